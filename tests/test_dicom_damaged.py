"""A fault of the source or the disk gives an error or a quarantine row.

It never gives half an image, a file outside the folder, or the name of a person."""
import io
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest

from ich_fastai.dicom import slices, source
from ich_fastai.images import make as preprocess
from ich_fastai.clean import clean_dicoms, load_manifest
from ich_fastai.core import DataError, DicomError, IchError, read_json
from ich_fastai.dicom import read_hu

sys.path.insert(0, str(Path(__file__).parent.parent/'tools'))
from fuzz import fuzz  # noqa: E402
from test_clean import same, total  # noqa: E402
from test_dicom import ct, enhanced  # noqa: E402


def test_damaged_files(tmp_path):
    "The short form of `make fuzz`."
    counts = fuzz(400, seed=3, keep=tmp_path)
    assert counts['written'] > 20 and counts['quarantined'] > 100


def test_names_in_a_zip_that_point_outside(raw, tmp_path):
    files = sorted((raw/'stage_2_train').iterdir())
    with zipfile.ZipFile(tmp_path/'a.zip', 'w') as z:
        for name, fn in zip(['../../evil.dcm', '/etc/evil.dcm', 'C:\\evil.dcm', 'ok/../../x.dcm'], files[5:]):
            z.writestr(zipfile.ZipInfo(name), fn.read_bytes())
    (tmp_path/'deep'/'er').mkdir(parents=True)
    c = clean_dicoms(tmp_path/'a.zip', tmp_path/'deep'/'er'/'out', min_brain=0.)
    assert c['found'] == total(c) == 4
    inside = {o.name for o in (tmp_path/'deep'/'er'/'out').rglob('*')}
    assert {o.name for o in tmp_path.rglob('*') if o.is_file()} - inside == {'a.zip'}


def test_bombs(raw, tmp_path, monkeypatch):
    good = sorted((raw/'stage_2_train').iterdir())[5]
    with zipfile.ZipFile(tmp_path/'bomb.zip', 'w', zipfile.ZIP_DEFLATED) as z:
        z.writestr('zeros.dcm', bytes(1 << 24))
        z.write(good, 'good.dcm')
    monkeypatch.setattr(source, 'MAX_BYTES', 1 << 20)
    c = clean_dicoms(tmp_path/'bomb.zip', tmp_path/'out', min_brain=0., workers=1)
    assert c['written'] == 1 and pd.read_csv(tmp_path/'out'/'quarantine.csv').reason.tolist() == ['unreadable']
    monkeypatch.setattr(slices, 'MAX_BYTES', 1 << 20)
    (tmp_path/'huge.dcm').write_bytes(bytes(1 << 21))
    with pytest.raises(DicomError, match='more than any CT'): read_hu(tmp_path/'huge.dcm')
    for rows, columns in (65535, 65535), (1, 65535), (65535, 0):
        with pytest.raises(DicomError): read_hu(ct(np.zeros((4, 4)), Rows=rows, Columns=columns))


@pytest.mark.skipif(sys.platform == 'win32', reason='Windows lets only administrators make links')
def test_links_pipes_and_folders(raw, tmp_path):
    src = tmp_path/'src'
    (src/'a').mkdir(parents=True)
    files = sorted((raw/'stage_2_train').iterdir())
    for o in files[4:8]: shutil.copy(o, src/'a')
    (src/'a'/'up').symlink_to(src)
    (src/'self').symlink_to(src/'self')
    (src/'gone.dcm').symlink_to(tmp_path/'nothing')
    (src/'elsewhere').symlink_to(raw/'stage_2_train', target_is_directory=True)
    os.mkfifo(src/'pipe')
    c = clean_dicoms(src, tmp_path/'out', min_brain=0., workers=1)
    q = pd.read_csv(tmp_path/'out'/'quarantine.csv').set_index('file')
    assert q.reason[['self', 'gone.dcm', 'pipe']].tolist() == ['unreadable'] * 3
    assert c['found'] == total(c) == 4 + 3 + len(files) and (q.reason == 'duplicate').sum() == 4
    (src/'gone.dcm').unlink()
    shutil.copy(files[0], src/'gone.dcm')  # the disk is back: what could not be read is tried again
    clean_dicoms(src, tmp_path/'out', min_brain=0., workers=1)
    q = pd.read_csv(tmp_path/'out'/'quarantine.csv').set_index('file')
    assert q.reason[['self', 'pipe']].tolist() == ['unreadable'] * 2 and q.reason.get('gone.dcm') != 'unreadable'


@pytest.mark.skipif(sys.platform == 'win32' or os.geteuid() == 0, reason='nothing is forbidden to an administrator')
def test_folder_that_cannot_be_listed(raw, tmp_path):
    (tmp_path/'src'/'shut').mkdir(parents=True)
    (tmp_path/'src'/'shut').chmod(0)
    try:
        with pytest.raises(DataError, match='cannot be listed'): clean_dicoms(tmp_path/'src', tmp_path/'out')
    finally: (tmp_path/'src'/'shut').chmod(0o755)


def test_source_that_vanishes(raw, cleaned, tmp_path, monkeypatch):
    shutil.copytree(raw, tmp_path/'disk')
    src, seen, real_one = tmp_path/'disk'/'stage_2_train', [], preprocess.clean_file
    def unplug(*args):
        seen.append(args)
        if len(seen) == 20: src.rename(tmp_path/'unplugged')
        return real_one(*args)
    monkeypatch.setattr(preprocess, 'clean_file', unplug)
    args = dict(labels=raw/'stage_2_train.csv', size=64, workers=1)
    with pytest.raises(DataError, match='is gone'): clean_dicoms(src, tmp_path/'out', **args)
    assert not (tmp_path/'out'/'manifest.parquet').exists() and not list((tmp_path/'out'/'images').glob('.tmp-*'))
    (tmp_path/'unplugged').rename(src)
    assert clean_dicoms(src, tmp_path/'out', **args)['skipped'] > 10
    same(cleaned, tmp_path/'out')


@pytest.mark.parametrize('format', ['jpg', 'hu'])
def test_disk_full(raw, tmp_path, monkeypatch, format):
    class Full(io.FileIO):
        "A disk with room for a few images, which then takes a part of the next."
        room = 30_000
        def __init__(self, fn, mode, buffering): super().__init__(fn, mode)
        def write(self, data):
            Full.room -= len(data)
            return super().write(data if Full.room >= 0 else data[:len(data) // 2])
    args = dict(labels=raw/'stage_2_train.csv', size=64, workers=1, format=format)
    clean_dicoms(raw/'stage_2_train', tmp_path/'undisturbed', **args)
    with monkeypatch.context() as m:
        m.setattr(preprocess, 'open', Full, raising=False)
        with pytest.raises(IchError, match='No space left.*Make room'):
            clean_dicoms(raw/'stage_2_train', tmp_path/'out', **args)
    assert not list((tmp_path/'out'/'images').glob('.tmp-*')) and not (tmp_path/'out'/'manifest.parquet').exists()
    for fn in (tmp_path/'out'/'images').iterdir():
        assert fn.read_bytes() == (tmp_path/'undisturbed'/'images'/fn.name).read_bytes()
    clean_dicoms(raw/'stage_2_train', tmp_path/'out', **args)
    same(tmp_path/'undisturbed', tmp_path/'out')


def text_of(folder):
    "Everything in a folder that somebody could read: names and contents."
    parquet = load_manifest(folder).to_csv()
    return ' '.join(str(o.relative_to(folder)) for o in folder.rglob('*')) + parquet + ' '.join(
        o.read_text(errors='replace') for o in folder.rglob('*') if o.suffix in ('.csv', '.json', '.jsonl'))


def test_nobody_is_named(raw, tmp_path):
    src = tmp_path/'DOE_JOHN'
    src.mkdir()
    files = sorted((raw/'stage_2_train').iterdir())[:40]
    for o in files:
        ds = pydicom.dcmread(o)
        ds.PatientName, ds.PatientBirthDate = 'Doe^John', '19700203'
        ds.ReferringPhysicianName, ds.SeriesDescription = 'Roe^Jane', 'Head of Doe'
        ds.save_as(src/o.name)
    shutil.copy(files[0], src/'DOE_copy.dcm')
    tags = 'SOPInstanceUID', 'PatientID', 'StudyInstanceUID', 'SeriesInstanceUID'
    ids = {str(ds[tag].value) for ds in map(pydicom.dcmread, files) for tag in tags}
    args = dict(labels=raw/'stage_2_train.csv', size=32)
    clean_dicoms(src, tmp_path/'open', **args)
    found = text_of(tmp_path/'open')
    assert not any(o in found for o in ('Doe', '19700203', 'Roe'))
    assert any(o in found for o in ids)

    clean_dicoms(src, tmp_path/'hidden', **args, pseudonymize=True)
    found = text_of(tmp_path/'hidden')
    assert not any(o in found for o in ids) and 'DOE' not in found.upper().replace('DOES', '')
    a, b = load_manifest(tmp_path/'open'), load_manifest(tmp_path/'hidden')
    assert len(a) == len(b) and a['any'].sum() == b['any'].sum()
    assert sorted(a.groupby('group').size()) == sorted(b.groupby('group').size())
    assert (tmp_path/'hidden.key').exists() and read_json(tmp_path/'hidden'/'clean.json')['pseudonyms']

    before = load_manifest(tmp_path/'hidden').sop.tolist()
    # resumed under the same pseudonyms
    assert clean_dicoms(src, tmp_path/'hidden', **args, pseudonymize=True)['skipped'] == 41
    clean_dicoms(src, tmp_path/'again', **args, pseudonymize=tmp_path/'hidden.key')
    assert load_manifest(tmp_path/'again').sop.tolist() == before
    with pytest.raises(IchError, match='other settings'): clean_dicoms(src, tmp_path/'hidden', **args)


def test_contrast_and_bone(tmp_path):
    (tmp_path/'s').mkdir()
    x = np.full((64, 64), 1064)
    agent, kernel = dict(ContrastBolusAgent='Iomeron'), dict(ConvolutionKernel='H70s')
    plain = dict(SeriesDescription='Head C-')
    for i, tags in enumerate([dict(), agent, kernel, plain]):
        (tmp_path/'s'/f'{i}.dcm').write_bytes(ct(x, SOPInstanceUID=f'1.2.{i}', **tags))
    assert clean_dicoms(tmp_path/'s', tmp_path/'all', workers=1)['written'] == 4
    assert clean_dicoms(tmp_path/'s', tmp_path/'some', refuse='contrast,bone', workers=1)['written'] == 2
    assert pd.read_csv(tmp_path/'some'/'quarantine.csv').reason.tolist() == ['contrast', 'bone']


def test_frames_of_one_file(tmp_path):
    (tmp_path/'s').mkdir()
    (tmp_path/'s'/'many.dcm').write_bytes(enhanced(np.full((5, 64, 64), 40)))
    c = clean_dicoms(tmp_path/'s', tmp_path/'out', size=32, workers=1)
    m = load_manifest(tmp_path/'out')
    assert c['found'] == c['written'] == 5 and m.z.tolist() == [0, 5, 10, 15, 20] and m.fn.is_unique
    assert clean_dicoms(tmp_path/'s', tmp_path/'out', size=32, workers=1)['skipped'] == 5


FRESH_WORKER = '''
import multiprocessing
import sys
from pathlib import Path

from ich_fastai.dicom.source import find_files, open_source
from ich_fastai.images.make import clean_files, describe_files

def go(src, out, how):
    src = open_source(src)
    names = find_files(src)[:8]
    opts = dict(size=32, windows=('brain',), crop=True, min_brain=0., format='jpg', quality=90, refuse=())
    with multiprocessing.get_context(how).Pool(1) as pool:
        cleaned = pool.apply(clean_files, (src, names, Path(out), opts))
        return len(cleaned) + len(pool.apply(describe_files, (src, names, True)))

if __name__ == '__main__': print(go(*sys.argv[1:]))
'''

def test_nothing_needs_fork(raw, tmp_path):
    "Everything that goes to a worker process can be sent to one that was started afresh."
    (tmp_path/'go.py').write_text(FRESH_WORKER)
    for how in ['spawn'] + ['fork'] * (sys.platform != 'win32'):
        command = [sys.executable, tmp_path/'go.py', raw/'stage_2_train', tmp_path, how]
        r = subprocess.run(command, capture_output=True, text=True)
        assert r.stdout.strip() == '16', r.stderr


def test_planes_go_all_the_way(raw, tmp_path):
    "A folder of planes is audited, trained on and shown like a folder of images."
    from ich_fastai.datasets import load_dataset
    from ich_fastai.frames import audit_leakage
    from ich_fastai.plots import load_gray
    from ich_fastai.train import train_binary
    clean_dicoms(raw/'stage_2_train', tmp_path/'hu', labels=raw/'stage_2_train.csv', size=64, format='hu')
    df = load_dataset(tmp_path/'hu')
    assert audit_leakage(df)['files_compared'] == len(df) and load_gray(df.fn.iloc[0], 32).shape == (32, 32)
    run = train_binary(str(tmp_path/'hu'), arch='resnet10_narrow', weights='none', sizes=(32,), epochs=1, lr=1e-3,
                       results=tmp_path/'results')
    assert run.preds.filter(like='p_').notna().all().all()
