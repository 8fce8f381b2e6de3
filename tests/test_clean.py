"Cleaning accounts for every file, continues where it was stopped, and says what is wrong."
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile

import pandas as pd
import pytest

from ich_fastai.clean import clean_dicoms, load_manifest, metadata_frame
from ich_fastai.core import DataError, FrameError, IchError

CLI = [sys.executable, '-c', 'from ich_fastai.cli import main; raise SystemExit(main())']


def same(a, b):
    def files(folder):
        found = (o for o in folder.rglob('*') if o.is_file() and o.name not in ('clean.json', '.clean.lock'))
        return {o.relative_to(folder) for o in found}
    names = files(a)
    assert names == files(b)
    for o in names: assert (a/o).read_bytes() == (b/o).read_bytes(), o


def total(c): return c['written'] + c['blank'] + c['quarantined'] + c['skipped']


def test_every_file_is_accounted_for(raw, cleaned):
    about = json.loads((cleaned/'clean.json').read_text())
    assert about['found'] == total(about) == len(list((raw/'stage_2_train').iterdir()))
    assert about['quarantined'] == 1 and about['reasons'] == {'bad_pixels': 1}
    assert about['data_kind'] == 'phantom' and about['px_fixed'] > 0
    m = load_manifest(cleaned)
    assert len(m) == about['written'] == len(list((cleaned/'images').iterdir()))
    assert m.groupby('series').z.apply(lambda o: o.is_monotonic_increasing).all()


def test_workers_do_not_matter(raw, cleaned, tmp_path):
    clean_dicoms(raw/'stage_2_train', tmp_path/'two', labels=raw/'stage_2_train.csv', size=64, workers=2)
    same(cleaned, tmp_path/'two')


def test_again_does_nothing(raw, cleaned):
    before = {o: o.stat().st_mtime_ns for o in (cleaned/'images').iterdir()}
    c = clean_dicoms(raw/'stage_2_train', cleaned, labels=raw/'stage_2_train.csv', size=64)
    assert c['skipped'] == c['found'] and before == {o: o.stat().st_mtime_ns for o in (cleaned/'images').iterdir()}


def test_a_deleted_image_is_made_again(raw, cleaned, tmp_path):
    shutil.copytree(cleaned, tmp_path/'c')
    next((tmp_path/'c'/'images').iterdir()).unlink()
    c = clean_dicoms(raw/'stage_2_train', tmp_path/'c', labels=raw/'stage_2_train.csv', size=64)
    assert c['written'] == 1
    assert len(list((tmp_path/'c'/'images').iterdir())) == len(list((cleaned/'images').iterdir()))


def heed_sigint():
    "A shell that runs pytest in the background has SIGINT ignored, and a child process would inherit that."
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def ten_slices(out):
    "Whether ten slices were written."
    if len(list((out/'images').glob('ID_*'))) >= 10: return True
    return (out/'hu.npy').exists() and (out/'hu.npy').stat().st_size > 10 * 64 * 64 * 2


@pytest.mark.skipif(sys.platform == 'win32', reason='Windows has no SIGINT for children')
@pytest.mark.parametrize('sig,format,workers', [(signal.SIGINT, 'jpg', 1), (signal.SIGKILL, 'jpg', 1),
    (signal.SIGKILL, 'hu', 1), (signal.SIGKILL, 'jpg', 2)])
def test_stopped_and_taken_up_again(raw, cleaned, tmp_path, sig, format, workers):
    for again in range(8):  # on a busy machine it may be done before it is stopped
        out = tmp_path/f'out{again}'
        args = ['clean', str(raw/'stage_2_train'), str(out), '--labels', str(raw/'stage_2_train.csv'), '--size', '64',
            '--workers', str(workers), '--format', format]
        p = subprocess.Popen(CLI + args, stderr=subprocess.PIPE, text=True, start_new_session=True,
            preexec_fn=heed_sigint)
        while not ten_slices(out) and p.poll() is None: time.sleep(.001)
        with contextlib.suppress(ProcessLookupError): os.killpg(p.pid, sig)
        err = p.communicate()[1]
        if p.returncode: break
    assert p.returncode != 0 and 'Traceback' not in err
    assert not (out/'manifest.parquet').exists()
    if sig == signal.SIGINT: assert p.returncode == 1 and 'goes on from where it was' in err
    r = subprocess.run(CLI + args, capture_output=True, text=True)
    assert r.returncode == 0, r.stderr
    if format == 'hu':
        labels = raw/'stage_2_train.csv'
        clean_dicoms(raw/'stage_2_train', tmp_path/'undisturbed', labels=labels, size=64, format='hu')
    same(tmp_path/'undisturbed' if format == 'hu' else cleaned, out)


def test_zip(raw, cleaned, tmp_path):
    with zipfile.ZipFile(tmp_path/'a.zip', 'w') as z:
        for o in sorted((raw/'stage_2_train').iterdir()): z.write(o, f'deep/stage_2_train/{o.name}')
    clean_dicoms(tmp_path/'a.zip/deep/stage_2_train', tmp_path/'z', labels=raw/'stage_2_train.csv', size=64)
    same(cleaned, tmp_path/'z')


def test_duplicates_and_strangers(raw, tmp_path):
    src = tmp_path/'src'
    (src/'b').mkdir(parents=True)
    files = sorted((raw/'stage_2_train').iterdir())[:30]
    for o in files: shutil.copy(o, src/o.name)
    shutil.copy(files[0], src/'b'/'copy.dcm')
    (src/'notes.txt').write_text('no image')
    c = clean_dicoms(src, tmp_path/'out', min_brain=0.)
    q = pd.read_csv(tmp_path/'out'/'quarantine.csv').set_index('file').reason
    assert total(c) == 32 and q['notes.txt'] == 'not_dicom' and 'duplicate' in set(q)


@pytest.mark.parametrize('sop', ['../../evil', 'a/b', 'con', 'x' * 64, '..'])
def test_names_from_headers_stay_inside(raw, tmp_path, sop):
    import pydicom
    ds = pydicom.dcmread(sorted((raw/'stage_2_train').iterdir())[0])
    ds.SOPInstanceUID = sop
    (tmp_path/'src').mkdir()
    ds.save_as(tmp_path/'src'/'1.dcm')
    clean_dicoms(tmp_path/'src', tmp_path/'deep'/'er'/'out', min_brain=0.)
    assert len(list((tmp_path/'deep'/'er'/'out'/'images').iterdir())) == 1
    assert {o.name for o in tmp_path.iterdir()} == {'src', 'deep'}


def test_output_below_source(raw, tmp_path):
    shutil.copytree(raw/'stage_2_train', tmp_path/'s')
    first = clean_dicoms(tmp_path/'s', tmp_path/'s'/'clean')
    again = clean_dicoms(tmp_path/'s', tmp_path/'s'/'clean')
    assert first['found'] == again['found'] == again['skipped']


def test_errors(raw, cleaned, tmp_path):
    src, csv = raw/'stage_2_train', raw/'stage_2_train.csv'
    (tmp_path/'empty').mkdir()
    with pytest.raises(DataError, match='no file'): clean_dicoms(tmp_path/'empty', tmp_path/'o1')
    (tmp_path/'texts').mkdir()
    (tmp_path/'texts'/'a.txt').write_text('hello')
    with pytest.raises(DataError, match='1 not_dicom'): clean_dicoms(tmp_path/'texts', tmp_path/'o2')
    assert pd.read_csv(tmp_path/'o2'/'quarantine.csv').file.tolist() == ['a.txt']
    (tmp_path/'file').write_text('x')
    with pytest.raises(IchError, match='is a file'): clean_dicoms(src, tmp_path/'file')
    with pytest.raises(IchError, match='did not make'): clean_dicoms(src, tmp_path/'texts')
    with pytest.raises(IchError, match='other settings'): clean_dicoms(src, cleaned, size=32)
    with pytest.raises(IchError, match='brain'): clean_dicoms(src, tmp_path/'o3', windows=('bran', 'soft', 'bone'))
    df = pd.read_csv(csv)
    df.assign(ID='other_' + df.ID).to_csv(tmp_path/'other.csv', index=False)
    with pytest.raises(FrameError, match='another set'): clean_dicoms(src, tmp_path/'o4', labels=tmp_path/'other.csv')
    # no image is lost for it
    assert len(list((tmp_path/'o4'/'images').iterdir())) == len(list((cleaned/'images').iterdir()))


def test_labels_that_do_not_cover_all(raw, tmp_path):
    df = pd.read_csv(raw/'stage_2_train.csv')
    ids = sorted(set(df.ID.str.rsplit('_', n=1).str[0]))
    part = df[~df.ID.str.rsplit('_', n=1).str[0].isin(ids[:20])]
    extra = df[df.ID.str.startswith(ids[0])].assign(ID=lambda o: 'ID_unknown_' + o.ID.str.rsplit('_', n=1).str[1])
    pd.concat([part, extra]).to_csv(tmp_path/'l.csv', index=False)
    clean_dicoms(raw/'stage_2_train', tmp_path/'out', labels=tmp_path/'l.csv', size=32)
    about = json.loads((tmp_path/'out'/'clean.json').read_text())['labels']
    m = load_manifest(tmp_path/'out')
    assert about['images_without_label'] == m['any'].isna().sum() > 0
    assert about['labels_without_image'] >= 1


def test_overwrite_drops_only_its_own(raw, cleaned, tmp_path):
    shutil.copytree(cleaned, tmp_path/'c')
    (tmp_path/'c'/'mine.txt').write_text('keep')
    clean_dicoms(raw/'stage_2_train', tmp_path/'c', size=32, overwrite=True)
    assert (tmp_path/'c'/'mine.txt').exists()
    assert json.loads((tmp_path/'c'/'clean.json').read_text())['arguments']['size'] == 32


def test_two_runs_at_once(raw, tmp_path):
    from filelock import FileLock
    (tmp_path/'out').mkdir()
    with FileLock(tmp_path/'out'/'.clean.lock'):
        with pytest.raises(IchError, match='Another run'): clean_dicoms(raw/'stage_2_train', tmp_path/'out')


def test_metadata(raw):
    df = metadata_frame(raw/'stage_2_train', workers=1)
    assert len(df) == len(list((raw/'stage_2_train').iterdir()))
    assert df.img_mean.isna().sum() == (df.reason != '').sum() == 1
    head = metadata_frame(raw/'stage_2_train', pixels=False)
    assert head.sop.tolist() == df.sop.tolist() and 'img_mean' not in head
    assert not any('name' in o.lower() or 'birth' in o.lower() for o in df.columns)


def test_real_folders(real, tmp_path):
    for name in 'rsna2019_sample', 'ct_series_philips_phantom', 'dicom_odd':
        c = clean_dicoms(real/name, tmp_path/name)
        assert c['found'] == total(c) == sum(o.is_file() for o in (real/name).rglob('*'))
    m = metadata_frame(real/'ct_series_philips_phantom').query("reason == ''").sort_values('z')
    assert len(m) == 28 and m.z.diff().dropna().round(3).eq(5).all() and m.file.tolist() == sorted(m.file)
