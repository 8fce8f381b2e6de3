"The loaders read what fastai's own would, batch by batch, wherever they run."
import multiprocessing
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
import fastai.callback.progress  # noqa: F401  gives a Learner `no_bar`
import fastai.callback.schedule  # noqa: F401  and `fit_one_cycle`
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.transforms import ColReader, parent_label
from fastai.learner import Learner, load_learner
from fastai.torch_basics import Transform
from fastai.vision.augment import PadMode, Resize, ResizeMethod, aug_transforms
from fastai.vision.core import PILImage, imagenet_stats
from fastai.vision.data import ImageBlock
from PIL import Image
from torch import nn

from ich_fastai.core import DataError, FrameError, IchError
from ich_fastai.data import binary_block, image_kind, make_dls, multiclass_block, multilabel_block
from ich_fastai.data.blocks import BINARY
from ich_fastai.datasets import load_dataset
from ich_fastai.dicom import WINDOWS, window
from ich_fastai.data.loader import FastImageBlock, HUBlock, HUWindows, ImageDL
from ich_fastai.data.reader import ReadImages, ReadPlanes, Room
from ich_fastai.images import read_image, read_rgb

pytestmark = pytest.mark.usefixtures('one_thread')
PAD = Resize(64, ResizeMethod.Pad, PadMode.Zeros)


@pytest.fixture(scope='module')
def df(cleaned):
    return load_dataset(cleaned, valid=.3, test=.2).assign(label=lambda o: np.where(o['any'].eq(1), 'bleed', 'clear'))


@pytest.fixture(scope='module')
def hu_df(raw, tmp_path_factory):
    from ich_fastai.clean import clean_dicoms
    out = tmp_path_factory.mktemp('planes')/'clean'
    clean_dicoms(raw/'stage_2_train', out, labels=raw/'stage_2_train.csv', size=64, workers=1, format='hu')
    return load_dataset(out, valid=.3, test=.2).assign(label=lambda o: np.where(o['any'].eq(1), 'bleed', 'clear'))


BLOCKS = dict(
    binary=lambda image, tfms='none': binary_block(64, tfms, image=image),
    multilabel=lambda image, tfms='none': multilabel_block(size=64, tfms=tfms, image=image),
    multiclass=lambda image, tfms='none': multiclass_block(['clear', 'bleed'], 64, tfms, image),
)


def same(a, b):
    "Two batches are equal in type and value."
    assert type(a) is type(b) and len(a) == len(b)
    for x, y in zip(a, b):
        assert type(x) is type(y) and x.dtype == y.dtype and x.shape == y.shape
        assert torch.equal(x.cpu(), y.cpu())


@pytest.mark.parametrize('task', BLOCKS)
def test_equal_to_fastai(df, task):
    fast, plain = (make_dls(df, BLOCKS[task](o), bs=7) for o in ('fast', 'fastai'))
    assert type(fast.train) is ImageDL and type(plain.train) is not ImageDL
    assert list(fast.vocab) == list(plain.vocab) and fast.c == plain.c
    for a, b in zip(fast.loaders, plain.loaders):
        a, b = (o.new(shuffle=False, drop_last=False) for o in (a, b))
        assert len(a) == len(b) > 2
        for x, y in zip(a, b, strict=True): same(x, y)


def test_every_image_once_an_epoch_in_another_order(df):
    names = [f'{i:03d}' for i in range(len(df))]
    dls = make_dls(df.assign(label=names), multiclass_block(names, 64, 'none'), bs=8)
    one, two = (torch.cat([y for _, y in dls.train]).tolist() for _ in range(2))
    n = len(dls.train_ds)
    assert len(dls.train) == n // 8 and len(one) == n // 8 * 8  # the rest is dropped
    assert one != two and len(set(one)) == len(one)
    whole = torch.cat([y for _, y in dls.train.new(drop_last=False)])
    assert sorted(whole.tolist()) == np.flatnonzero(df.split == 'train').tolist()
    assert torch.cat([y for _, y in dls.valid]).tolist() == np.flatnonzero(df.split == 'valid').tolist()


def test_a_batch_that_is_kept_never_changes(df):
    dl = make_dls(df, multilabel_block(size=64, tfms='none'), bs=4).valid
    kept = list(dl)
    same([x for x, _ in kept], [x.clone() for x, _ in dl])
    x = kept[1][0][2:, 1].cpu().numpy()
    before = x.copy()
    del kept
    for _ in range(3): list(dl)
    assert (x == before).all()


def test_room_is_used_again_and_bounded():
    room = Room()
    kept = [room((3, 5), np.uint8) for _ in range(6)]
    assert len(room.blocks) == 2 and len({o.data_ptr() for o in kept}) == 6
    at = kept[0].data_ptr()
    del kept[0]
    assert room((2, 5), np.uint8).data_ptr() == at
    big = room((50, 50), np.float32)  # the block that is free is too small and goes
    assert len(room.blocks) == 2 and big.shape == (50, 50)


@pytest.mark.skipif('fork' not in multiprocessing.get_all_start_methods(), reason='no fork here')
def test_forked_workers(df, hu_df):
    for frame, image in (df, 'fast'), (hu_df, 'hu'):
        dls = make_dls(frame, multilabel_block(size=64, tfms='none', image=image), bs=8)
        for a, b in zip(dls.valid.new(num_workers=2), dls.valid, strict=True): same(a, b)
        assert len(list(dls.train.new(num_workers=2))) == len(dls.train)


SPAWNED = '''
import multiprocessing, sys

def main():
    import pandas as pd, torch
    from fastai.data.core import Datasets
    from fastai.data.transforms import Categorize, ColReader
    from ich_fastai.data.loader import ImageDL
    from ich_fastai.data.reader import ReadImages, ReadPlanes
    multiprocessing.set_start_method('spawn')
    data = Datasets(pd.read_pickle(sys.argv[1]), n_inp=2, tfms=[
        [ColReader('fn'), ReadImages()], [ColReader('plane'), ReadPlanes()], [ColReader('label'), Categorize()]])
    dl = ImageDL(data, bs=8, num_workers=2)
    for a, b in zip(dl, dl.new(num_workers=0), strict=True): assert len(a) == 3 and all(map(torch.equal, a, b))
    print('equal')

if __name__ == '__main__': main()
'''


def test_spawned_workers(df, hu_df, tmp_path):
    "What goes to a new process can be pickled, and opens its files there: images and planes in one batch."
    (tmp_path/'spawned.py').write_text(SPAWNED)
    df.assign(plane=hu_df.fn).to_pickle(tmp_path/'df')
    p = subprocess.run([sys.executable, tmp_path/'spawned.py', tmp_path/'df'], capture_output=True, text=True)
    assert p.returncode == 0 and 'equal' in p.stdout, p.stderr


@pytest.mark.parametrize('image', ['fast', 'hu'])
@pytest.mark.parametrize('task', BLOCKS)
def test_learner(df, hu_df, task, image, tmp_path):
    import matplotlib.pyplot as plt
    from fastai.interpret import Interpretation
    frame = hu_df if image == 'hu' else df
    dls = make_dls(frame, BLOCKS[task](image, 'ich'), bs=8)
    n = len(dls.vocab)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(64, n))
    learn = Learner(dls, net, path=tmp_path)  # the loss comes from the block
    with learn.no_bar():
        learn.fit_one_cycle(1, 1e-3)
        assert np.isfinite(learn.recorder.values[-1]).all()
        dls.show_batch(max_n=2)
        learn.show_results(max_n=2)
        p, y = learn.get_preds()
        assert len(p) == len(y) == len(dls.valid_ds)
        row = dls.valid_ds.items.iloc[3]
        some = [row, row.fn]
        if image != 'hu': some += [PILImage.create(row.fn), PILImage.create(row.fn).to_bytes_format()]
        for item in some: torch.testing.assert_close(learn.predict(item)[2], p[3], rtol=1e-4, atol=1e-5)
        rows = frame[frame.split == 'test']
        test = dls.test_dl(rows)
        assert test.n_inp == 1 and len(test.one_batch()) == 1
        assert len(learn.get_preds(dl=test)[0]) == len(rows)
        labelled, target = dls.test_dl(rows, with_labels=True).one_batch(), dls.valid_ds.tls[1].tfms
        assert labelled[1].tolist() == [target(o).tolist() for _, o in rows.head(8).iterrows()]
        assert len(learn.tta(n=1)[0]) == len(p)
        Interpretation.from_learner(learn).top_losses(2)
        learn.export(tmp_path/'all.pkl')
        back = load_learner(tmp_path/'all.pkl')
        with back.no_bar(): torch.testing.assert_close(back.predict(row)[2], p[3], rtol=1e-4, atol=1e-5)
    plt.close('all')


def test_a_frame_of_planes_is_trained_on_as_it_is(hu_df, tmp_path):
    from ich_fastai.train import train_binary
    run = train_binary(hu_df.drop(columns='label'), arch='resnet10_narrow', weights='none', sizes=(32, 64), epochs=1,
                       lr=3e-3, bs=16, results=tmp_path)
    assert run.record['status'] == 'done' and isinstance(run.learn.dls.valid.after_batch.fs[-1], HUWindows)


# images

KINDS = {
    'plain.jpg': dict(mode='RGB', quality=90), 'fine.jpg': dict(mode='RGB', subsampling=0),
    'half.jpg': dict(mode='RGB', subsampling=1),
    'progressive.jpg': dict(mode='RGB', progressive=True), 'grey.jpg': dict(mode='L'), 'press.jpg': dict(mode='CMYK'),
    'colour.png': dict(mode='RGB'), 'clear.png': dict(mode='RGBA'), 'grey.png': dict(mode='L'),
    'palette.png': dict(mode='P'), 'bits.png': dict(mode='1'), 'deep.png': dict(mode='I;16'),
    'old.bmp': dict(mode='RGB'), 'old.gif': dict(mode='P'), 'new.webp': dict(mode='RGB'), 'print.tif': dict(mode='RGB'),
}


def colour_image(h, w, seed=0):
    "Make a smooth colour image with edges."
    y, x = np.mgrid[:h, :w]
    rng = np.random.default_rng(seed)
    img = np.stack([127 + 120 * np.sin(x / (9 + k) + y / (7 + 2 * k) + rng.uniform(0, 6)) for k in range(3)], -1)
    img[h // 3:h // 2, w // 4:w // 2] = 250, 20, 90
    return Image.fromarray(img.astype(np.uint8))


def write_kinds(folder, sizes):
    for i, (name, how) in enumerate(KINDS.items()):
        img, how = colour_image(*sizes[i % len(sizes)], seed=i), dict(how)
        mode = how.pop('mode')
        deep = np.asarray(img.convert('L')).astype(np.uint16) * 200
        img = Image.fromarray(deep) if mode == 'I;16' else img.convert(mode)
        if mode == 'RGBA': img.putalpha(Image.fromarray(np.asarray(img)[..., 0]))
        img.save(folder/name, **how)
    return [str(folder/o) for o in KINDS]


def both(fns, items=PAD):
    "The same files through our block and through fastai's, as validation images."
    df = pd.DataFrame(dict(fn=fns, y=0))
    def first(image):
        block = DataBlock(blocks=(image, CategoryBlock), get_x=ColReader('fn'), get_y=ColReader('y'), item_tfms=items,
                          splitter=lambda o: ([0], list(range(len(o)))))
        return block.dataloaders(df, bs=len(fns), num_workers=0, device='cpu').valid.one_batch()[0]
    return [first(image) for image in (FastImageBlock, ImageBlock)]


def test_every_format_as_pil_reads_it(tmp_path):
    fns = write_kinds(tmp_path, [(64, 64)])
    for fn in fns: assert (read_rgb(fn) == np.asarray(Image.open(fn).convert('RGB'))).all(), fn
    ours, theirs = both(fns)
    assert torch.equal(ours, theirs)
    assert torch.equal(*both(fns[:3], None))


def test_other_sizes_lie_on_black_as_in_fastai(tmp_path):
    fns = write_kinds(tmp_path, [(64, 64), (200, 150), (90, 160), (40, 31), (64, 20), (333, 64), (20, 64)])
    ours, theirs = both(fns)
    for fn, a, b in zip(fns, ours, theirs):
        if 'bits' in fn: continue  # nothing but edges
        assert ((a.sum(0) > 0) != (b.sum(0) > 0)).float().mean() < .08, fn  # the bars, to a pixel and the edges of JPEG
        assert (a - b).abs().mean() < .03, fn


def test_training_images_lie_anywhere_validation_images_in_the_middle(tmp_path):
    Image.new('RGB', (64, 16), 'white').save(tmp_path/'a.png')
    df = pd.DataFrame(dict(fn=str(tmp_path/'a.png'), y=[0] * 20))
    block = DataBlock(blocks=(FastImageBlock, CategoryBlock), get_x=ColReader('fn'), get_y=ColReader('y'),
                      item_tfms=PAD, splitter=lambda o: (list(range(10)), list(range(10, 20))))
    dls = block.dataloaders(df, bs=10, device='cpu')
    at = [[int(o[0, :, 0].argmax()) for o in dl.one_batch()[0]] for dl in dls.loaders]
    assert len(set(at[0])) > 3 and set(at[1]) == {24}


def test_images_without_resize_must_be_alike(tmp_path):
    fns = write_kinds(tmp_path, [(64, 64), (64, 65)])
    with pytest.raises(DataError, match='64 x 65 and 64 x 64 pixels.*Resize'): both(fns, None)


def test_oblong_batches(df):
    block = DataBlock(blocks=(FastImageBlock, CategoryBlock), get_x=ColReader('fn'), get_y=ColReader('label'),
                      item_tfms=Resize((32, 80), ResizeMethod.Pad, PadMode.Zeros))
    x = block.dataloaders(df, bs=4).one_batch()[0]
    assert x.shape == (4, 3, 32, 80) and x[..., :24, :5].sum() * x[..., :24, -5:].sum() == 0


def test_files_without_a_frame(df, tmp_path):
    "Any other getter works too, only slower."
    for o in df.itertuples():
        (tmp_path/o.label).mkdir(exist_ok=True)
        Image.open(o.fn).save(tmp_path/o.label/(o.sop + '.png'))
    fns = sorted(tmp_path.rglob('*.png'))
    def block(o):
        return DataBlock(blocks=(o, CategoryBlock), get_items=lambda _: fns, get_y=parent_label,
                         splitter=lambda o: (list(range(0, len(o), 2)), list(range(1, len(o), 2))))
    fast, plain = (block(o).dataloaders(tmp_path, bs=6, num_workers=0) for o in (FastImageBlock, ImageBlock))
    for a, b in zip(fast.valid, plain.valid, strict=True): same(a, b)


@pytest.mark.parametrize('keep', [0, 1, 3, 300, -400, -40, -2])
def test_damaged_images_are_refused_by_name(df, tmp_path, keep):
    fn = tmp_path/'torn.jpg'
    content = open(df.fn[0], 'rb').read()
    fn.write_bytes(content[:keep])
    with pytest.raises(IchError, match='torn.jpg'): ReadImages().read([df.fn[0], str(fn)])
    broken = bytearray(content)
    broken[-300:-200] = b'\xff\xd3' * 50
    fn.write_bytes(broken)
    with pytest.raises(IchError, match='torn.jpg'): ReadImages().read([str(fn)])


def test_missing_images_are_named_from_workers_too(df):
    df = df.copy()
    at = df.index[df.split == 'valid'][5]
    df.loc[at, 'fn'] = df.fn[at][:-4] + '_gone.jpg'
    dls = make_dls(df, binary_block(64), bs=4)
    with pytest.raises(IchError, match='_gone.jpg'): list(dls.valid)
    with pytest.raises(IchError, match='_gone.jpg'): list(dls.valid.new(num_workers=1))


@pytest.mark.parametrize('items', [Resize(64), Resize(64, ResizeMethod.Pad), *aug_transforms(size=32)[:1]])
def test_other_transforms_of_single_images_are_refused(df, items):
    block = binary_block(64)
    block.new(item_tfms=items, batch_tfms=None)
    with pytest.raises(IchError, match='plain ImageBlock'): block.dataloaders(df)


def test_a_transform_added_later_is_refused_too(df):
    dls = make_dls(df, binary_block(64), bs=4)
    dls.add_tfms([Transform(lambda o: o)], 'after_item')
    with pytest.raises(IchError, match='plain ImageBlock'): dls.one_batch()


# planes of HU

def write_cache(folder, planes):
    "A cache as `ich clean --format hu` writes it; the names of its planes."
    folder.mkdir(exist_ok=True)
    np.save(folder/'hu.npy', planes)
    return [str(folder/'hu.npy'/f'{i:06d}') for i in range(len(planes))]


def test_planes_become_the_windows_of_the_images(tmp_path):
    every = np.arange(-1100, 3000, dtype=np.int16)[:4096].reshape(1, 64, 64)
    names = write_cache(tmp_path/'a', np.concatenate([every, every[:, ::-1], every // 20]))
    x = ReadPlanes().read(names)
    for shown in ('brain', 'subdural', 'soft'), ('bone', 'stroke', 'brain'):
        tfm = HUWindows(shown)
        for how in x, x.double(), x.contiguous():
            y = tfm(how.clone()).double()
            mean, std = (torch.tensor(o).view(1, 3, 1, 1) for o in imagenet_stats)
            back = y * std + mean
            for fn, o in zip(names, back):
                assert np.abs(o.numpy().transpose(1, 2, 0) * 255 - read_image(fn, shown)).max() <= .5 + 1e-3
        assert np.abs(tfm.decode(tfm(x))[0].numpy().transpose(1, 2, 0) - read_image(names[0], shown)).max() <= 1
    assert (read_image(names[1])[..., 0] == window(every[0, ::-1], *WINDOWS['brain'])).all()


def test_planes_and_images_of_the_same_slices_agree(df, hu_df):
    assert df.sop.tolist() == hu_df.sop.tolist() and df.split.tolist() == hu_df.split.tolist()
    def first(frame, image):
        return make_dls(frame, multilabel_block(size=64, tfms='none', image=image), bs=16).valid.one_batch()
    a, b = first(df, 'fast'), first(hu_df, 'hu')
    assert torch.equal(a[1], b[1])
    assert all(o[0].is_contiguous(memory_format=torch.channels_last) for o in (a, b))
    assert (a[0] - b[0]).abs().mean() < .2  # JPEG


def test_what_turns_into_view_is_air(tmp_path):
    names = write_cache(tmp_path/'a', np.full((8, 32, 32), 40, np.int16))
    turn = aug_transforms(do_flip=False, max_rotate=45., p_affine=1., max_zoom=1., max_lighting=0., max_warp=0.,
                          pad_mode=PadMode.Zeros)
    block = DataBlock(blocks=(HUBlock, CategoryBlock), get_x=ColReader('fn'), get_y=ColReader('y'),
                      splitter=lambda o: (list(range(6)), [6, 7]), batch_tfms=turn)
    dls = block.dataloaders(pd.DataFrame(dict(fn=names, y=0)), bs=6, device='cpu')
    x = dls.one_batch()[0]
    mean, std = (torch.tensor(o).view(3, 1) for o in imagenet_stats)
    grey = (x[:, :, 0, 0].T * std + mean).min(1).values  # corners
    assert grey.abs().max() < 1e-3
    assert (x[:, :, 16, 16].T * std + mean - torch.tensor([.5, .2638, .5]).view(3, 1)).abs().max() < .01


def test_planes_of_another_size(tmp_path):
    rng = np.random.default_rng(0)
    big = np.kron(rng.integers(-1000, 2000, (2, 32, 32)), np.ones((1, 2, 2))).astype(np.int16)
    names = write_cache(tmp_path/'a', big)
    middle = lambda: (.5, .5)
    x = ReadPlanes().read(names, (32, 32), middle)
    assert (x[:, 0].numpy() == big[:, ::2, ::2] + 1000).all()
    wide = ReadPlanes().read(names, (64, 100), middle)
    assert (wide[:, 0, :, 18:82].numpy() == big + 1000).all()
    assert (wide[..., :18] == 0).all() and (wide[..., 82:] == 0).all()
    assert ReadPlanes().read(names, (96, 96), middle).shape == (2, 1, 96, 96)


def test_broken_caches_are_refused(tmp_path):
    names = write_cache(tmp_path/'a', np.zeros((3, 8, 8), np.int16))
    read = lambda fn: ReadPlanes().read([str(fn)])
    with pytest.raises(DataError, match='3 planes'): read(tmp_path/'a'/'hu.npy'/'000003')
    with pytest.raises(DataError, match='hu.npy'): read(tmp_path/'b'/'hu.npy'/'000000')
    with pytest.raises(DataError, match='plane'): read(tmp_path/'a'/'hu.npy')
    for i, o in enumerate((np.zeros((3, 8, 8)), np.zeros((8, 8), np.int16))):
        with pytest.raises(DataError, match='int16'): read(write_cache(tmp_path/f'c{i}', o)[0])
    content = (tmp_path/'a'/'hu.npy').read_bytes()
    (tmp_path/'d').mkdir()
    for cut in content[:-20], content[:50], b'':
        (tmp_path/'d'/'hu.npy').write_bytes(cut)
        with pytest.raises(DataError, match='hu.npy'): read(tmp_path/'d'/'hu.npy'/'000000')
    np.save(tmp_path/'d'/'hu.npy', np.array([None, {}]), allow_pickle=True)
    with pytest.raises(DataError, match='hu.npy'): read(tmp_path/'d'/'hu.npy'/'000000')
    assert read(names[2]).shape == (1, 1, 8, 8)


def test_kinds_of_images(df, hu_df):
    assert image_kind(df) == 'fast' and image_kind(hu_df) == 'hu'
    with pytest.raises(FrameError, match='planes of HU'): image_kind(pd.concat([df, hu_df]))
    with pytest.raises(IchError, match="image='hu'"): make_dls(hu_df, binary_block(64))
    with pytest.raises(IchError, match='plane'): make_dls(df, binary_block(64, image='hu'))
    with pytest.raises(IchError, match='kind of image'): binary_block(64, image='fst')
    with pytest.raises(IchError, match='subdural'): HUBlock(('brain', 'subdurall', 'soft'))


def test_class_names(df):
    dls = make_dls(df, binary_block(64), bs=4)
    assert tuple(dls.vocab) == BINARY
    assert dls.valid_ds.tls[1].tfms.decode(dls.valid_ds[0][1]) == BINARY[int(df[df.split == 'valid']['any'].iloc[0])]
