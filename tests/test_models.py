"Every architecture of the table, and every way in which weights can be had, refused or kept."
import os
import pickle
import urllib.error
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from safetensors.torch import save_file
from torch import nn
from torchvision import models as tv

from ich_fastai.models import weights
from ich_fastai.core import IchError, WeightsError
from ich_fastai.models import archs, create_model, find_arch, load_weights, read_weights, save_weights, split_body_head
from ich_fastai.models.networks import NETWORKS

# real files are beside the checkout on some machines only
REAL = Path(os.environ.get('ICH_REAL_DATA') or Path(__file__).parents[2]/'shared'/'data')/'weights'
TIMM = ['test_resnet', 'test_efficientnet', 'test_vit', 'test_convnext']  # tiny ones, of four families


pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    "No network, and empty caches."
    def no_network(*args, **kwargs): raise urllib.error.URLError('no network in a test')
    class Session: head = get = no_network
    monkeypatch.setattr(weights, 'urlopen', no_network)
    monkeypatch.setattr(torch.hub, 'urlopen', no_network)
    monkeypatch.setattr(huggingface_hub, 'get_session', lambda: Session)
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path/'hub'))
    monkeypatch.setenv('TORCH_HOME', str(tmp_path/'torch'))


def same(a, b):
    "Whether two modules hold the same numbers."
    a, b = (list(o.state_dict().values()) for o in (a, b))
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b))


@pytest.mark.parametrize('name', list(archs) + TIMM)
def test_every_architecture(name):
    model = create_model(name, 6, 'none')
    if name in NETWORKS: size = NETWORKS[name].size
    else: size = 64 if name in archs else timm.get_pretrained_cfg(name).input_size[-1]
    assert model.training
    out = model(torch.randn(2, 3, size, size))
    assert out.shape == (2, 6) and out.isfinite().all()
    ids = [id(p) for group in split_body_head(model) for p in group]
    assert len(ids) == len(set(ids)) and set(ids) == {id(p) for p in model.parameters()}
    assert all(len(group) for group in split_body_head(model))


@pytest.mark.parametrize('name', [k for k, a in archs.items() if a.source == 'torchvision'])
def test_whole_networks_are_the_published_ones(name):
    with torch.device('meta'): net = archs[name].make()
    parts = [o for k, o in net.named_children() if not k.startswith('aux')]  # not counted by torchvision
    published = tv.get_model_weights(name).DEFAULT.meta['num_params']
    assert sum(p.numel() for o in parts for p in o.parameters()) == published


def test_table():
    assert set(archs) >= {'alexnet', 'densenet121', 'mobilenet_v2', 'resnet18', 'resnet34', 'resnet50', 'resnet101',
                          'xresnet18'}
    assert archs['densenet121'].bs == archs['resnet50'].bs // 2  # as in the source project
    for name, near in (('resnet51', 'resnet50'), ('densnet121', 'densenet121'), ('xceptoin41', 'xception41'),
                       ('?', 'alexnet')):
        with pytest.raises(IchError, match=near): find_arch(name)
    with pytest.raises(IchError, match='no architecture'): find_arch(tv.resnet18)  # names, not functions
    assert find_arch('xception41p').stats == ((.5,) * 3, (.5,) * 3)


def test_frozen_body_keeps_its_batch_norm_alive():
    items = [(torch.randn(3, 64, 64), torch.ones(2)) for _ in range(4)]
    dls = DataLoaders.from_dsets(items, items, bs=4, num_workers=0, device='cpu', drop_last=False)
    model = create_model('mobilenet_v2', 2, 'none')
    learn = Learner(dls, model, loss_func=nn.BCEWithLogitsLoss(), splitter=split_body_head)
    learn.freeze()
    for module in learn.model[0].modules():
        if isinstance(module, nn.BatchNorm2d): assert module.weight.requires_grad and module.bias.requires_grad
        if isinstance(module, nn.Conv2d): assert not module.weight.requires_grad
    assert all(p.requires_grad for p in learn.model[1].parameters())
    learn.unfreeze()
    assert all(p.requires_grad for p in learn.model.parameters())


def test_no_network_is_said():
    url = tv.ResNet18_Weights.DEFAULT.url
    with pytest.raises(WeightsError) as e: create_model('resnet18', 6)
    cache = str(Path(torch.hub.get_dir())/'checkpoints')
    for part in (Path(url).name, url, cache, "weights='none'", 'weights=FILE', 'no network'):
        assert part in str(e.value)
    with pytest.raises(WeightsError) as e: create_model('test_resnet', 6)
    cache = huggingface_hub.constants.HF_HUB_CACHE
    for part in ('timm/test_resnet.r160_in1k/model.safetensors', cache, "weights='none'"):
        assert part in str(e.value)
    with pytest.raises(WeightsError, match='xception-43020ad28.pth'):  # not on the hub
        create_model('legacy_xception', 6)


@pytest.mark.parametrize('name', ['xresnet18', 'resnet10_narrow', 'botnet50ts_256'])
def test_no_public_weights(name):
    with pytest.raises(WeightsError, match=f'no public ImageNet weights for {name}'): create_model(name, 6)


def test_cached_files_need_no_network(tmp_path):
    net, fn = tv.resnet18(), Path(torch.hub.get_dir())/'checkpoints'/Path(tv.ResNet18_Weights.DEFAULT.url).name
    fn.parent.mkdir(parents=True)
    torch.save(net.state_dict(), fn)
    assert torch.equal(create_model('resnet18', 6)[0][0].weight, net.conv1.weight)
    fn.write_bytes(fn.read_bytes()[:1000])  # damaged
    with pytest.raises(WeightsError, match='could not be had'): create_model('resnet18', 6)

    net, repo = timm.create_model('test_resnet'), tmp_path/'hub'/'models--timm--test_resnet.r160_in1k'
    (repo/'refs').mkdir(parents=True)
    (repo/'refs'/'main').write_text('0' * 40)
    (repo/'snapshots'/('0' * 40)).mkdir(parents=True)
    save_file(net.state_dict(), repo/'snapshots'/('0' * 40)/'model.safetensors')
    # its images had another mean than ImageNet's: Restat comes before it
    assert torch.equal(create_model('test_resnet', 6)[0][1].net.conv1[0].weight, net.conv1[0].weight)


@pytest.mark.parametrize('name, make', [('resnet18', tv.resnet18), ('xresnet18', archs['xresnet18'].make),
                                        ('mobilenet_v2', lambda: tv.mobilenet_v2(num_classes=7)),
                                        ('test_resnet', lambda: timm.create_model('test_resnet')),
                                        ('test_vit', lambda: timm.create_model('test_vit'))])
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_file_of_the_whole_network(tmp_path, name, make, suffix):
    net, fn = make(), tmp_path/f'w{suffix}'
    save_file(net.state_dict(), fn) if suffix == '.safetensors' else torch.save(net.state_dict(), fn)
    own, theirs = list(create_model(name, 6, fn)[0].state_dict().values()), list(net.state_dict().values())
    assert all(torch.equal(a, b) for a, b in zip(own, theirs))  # the body comes first in the network


def test_file_of_our_own_model(tmp_path):
    model = create_model('resnet10_narrow', 6, 'none')
    with torch.no_grad(): model[0][1].running_mean += 1
    fn = save_weights(model.to(memory_format=torch.channels_last), tmp_path/'m.safetensors')
    assert [o.name for o in tmp_path.iterdir()] == ['m.safetensors']
    assert same(model, create_model('resnet10_narrow', 6, fn))
    assert same(model, load_weights(create_model('resnet10_narrow', 6, 'none'), fn))
    with pytest.warns(UserWarning, match='head starts fresh'): other = create_model('resnet10_narrow', 1, str(fn))
    assert same(model[0], other[0]) and other[1][-1].weight.shape == (1, 512)
    part = create_model('resnet10_narrow', 6, 'none')
    body = {k: v for k, v in read_weights(fn).items() if k.startswith('0.')}
    save_file(body | {'x': torch.ones(1)}, tmp_path/'part.safetensors')
    with pytest.raises(WeightsError, match='missing: 1'): load_weights(part, tmp_path/'part.safetensors')
    assert same(load_weights(part, tmp_path/'part.safetensors', strict=False)[0], model[0])
    torch.save({'model': model.state_dict(), 'opt': {}}, tmp_path/'learner.pth')  # as fastai's Learner.save
    assert same(model, create_model('resnet10_narrow', 6, tmp_path/'learner.pth'))


class Evil:
    def __reduce__(self): return (exec, ("raise SystemExit('code ran')",))


def test_bad_files(tmp_path):
    with open(tmp_path/'evil.pth', 'wb') as f: pickle.dump({'conv1.weight': Evil()}, f)
    torch.save(nn.Linear(1, 1), tmp_path/'module.pth')
    torch.save({'a': 1}, tmp_path/'numbers.pth')
    torch.save({}, tmp_path/'empty.pth')
    (tmp_path/'zero.pth').write_bytes(b'')
    (tmp_path/'zero.safetensors').write_bytes(b'')
    torch.save(tv.squeezenet1_1().state_dict(), tmp_path/'squeeze.pth')
    for fn, says in (('evil.pth', 'could run code'), ('module.pth', 'could run code'), ('numbers.pth', 'no state dict'),
                     ('empty.pth', 'no state dict'), ('zero.pth', 'cannot be read'),
                     ('zero.safetensors', 'cannot be read'),
                     ('absent.pth', 'no file of weights'), ('squeeze.pth', 'do not fit.*missing: conv1.weight')):
        with pytest.raises(WeightsError, match=says): create_model('resnet18', 6, tmp_path/fn)
    with pytest.raises(WeightsError, match="'imagenet', 'none' or a file"): create_model('resnet18', 6, 'ImageNet')


@pytest.mark.skipif(not REAL.is_dir(), reason='the real weights are not on this machine')
def test_real_weights():
    fn = REAL/'mobilenet_v2_imagenet_tv.pth'
    model, state = create_model('mobilenet_v2', 1, fn).eval(), torch.load(fn, weights_only=True)
    assert torch.equal(model[0][0][0][0].weight, state['features.0.0.weight'])
    net = tv.mobilenet_v2()
    net.load_state_dict(state)
    x = torch.randn(2, 3, 96, 96)
    with torch.no_grad(): assert torch.equal(model[0](x), net.eval().features(x))
    with pytest.raises(WeightsError, match='do not fit'): create_model('resnet18', 1, fn)
    fn = REAL/'squeezenet1_1_imagenet_tv.pth'
    with pytest.raises(WeightsError, match='do not fit'): create_model('mobilenet_v2', 1, fn)
