"The phantom: the same everywhere, true to its masks, and with RSNA's layout, headers and oddities."
import hashlib

import numpy as np
import pandas as pd
import pydicom
import pytest

from ich_fastai.core import LABELS, SUBTYPES, IchError
from ich_fastai.phantom import make_study, write_phantom
from ich_fastai.phantom.files import FLAVOURS, plan_patient, stored_values

ARGS = dict(patients=10, seed=3, size=128, n_slices=10)
HEADER = {'SOPInstanceUID', 'Modality', 'PatientID', 'StudyInstanceUID', 'SeriesInstanceUID', 'StudyID',
    'ImagePositionPatient', 'ImageOrientationPatient', 'SamplesPerPixel', 'PhotometricInterpretation',
    'Rows', 'Columns',
    'PixelSpacing', 'BitsAllocated', 'BitsStored', 'HighBit', 'PixelRepresentation', 'QualityControlImage',
    'WindowCenter', 'WindowWidth', 'RescaleIntercept', 'RescaleSlope', 'PixelData'}

@pytest.fixture(scope='module')
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp('phantom')/'set'
    return out, write_phantom(out, workers=1, **ARGS)

@pytest.fixture(scope='module')
def truth(made): return pd.read_csv(made[0]/'phantom_truth.csv', keep_default_na=False).set_index('sop')

def headers(out): return [pydicom.dcmread(fn) for fn in sorted((out/'stage_2_train').glob('*.dcm'))]

def true_hu(ds):
    "What the flavour stands for, worked out here without the library."
    px = ds.pixel_array.astype(int)
    if int(ds.RescaleIntercept) > -100: return np.where(px > 2047, px - 4096, px)
    return px + int(ds.RescaleIntercept)

def test_same_seed_same_bytes():
    a, b, other = [make_study(s, size=128, n_slices=8, bleeds=SUBTYPES) for s in (7, 7, 8)]
    assert a.hu.tobytes() == b.hu.tobytes() and a.hu.tobytes() != other.hu.tobytes()
    assert a.hu.dtype == np.int16 and a.hu.min() >= -1024 and a.hu.max() <= 2047

def test_same_bytes_on_every_machine():
    study = make_study(11, size=128, n_slices=8, bleeds=('epidural', 'subarachnoid'))
    assert int(study.hu.astype(np.int64).sum()) == -75893858
    assert hashlib.sha256(study.hu.astype('<i2').tobytes()).hexdigest()[:16] == '3f4f419c665a0725'

@pytest.mark.parametrize('kind', SUBTYPES)
def test_labels_follow_masks(kind):
    study = make_study(21, size=128, n_slices=14, bleeds=(kind,), min_area=60)
    area = study.masks[kind].sum((1, 2))*study.spacing[1]*study.spacing[2]
    assert (study.labels[kind] == (area >= 60)).all() and study.labels[kind].any()
    assert list(study.labels) == list(LABELS)
    assert (study.labels['any'] == study.labels[list(SUBTYPES)].max(axis=1)).all()
    assert all(study.volumes_ml[k] == 0 for k in SUBTYPES if k != kind) and .3 < study.volumes_ml[kind] < 120

def test_looks_like_a_head():
    study = make_study(2, size=128, bleeds=(), lookalikes=())
    assert not study.labels.to_numpy().any()
    middle = study.hu[len(study.hu)//2 + 3]
    brain = middle[(middle > 0) & (middle < 80)]
    assert 20 < np.median(brain) < 45 and middle.max() > 800 and abs(np.median(middle[:8]) + 1000) < 20

def test_wrong_arguments():
    with pytest.raises(IchError, match='100'): make_study(0, size=100)
    with pytest.raises(IchError, match='subdural'): make_study(0, bleeds=('subdurral',))

def test_every_subtype_in_forty_patients():
    plans = [plan_patient(0, i)['bleeds'] for i in range(40)]
    assert sum(not o for o in plans) == 20 and all(sum(k in o for o in plans) >= 4 for k in SUBTYPES)

def test_flavours_hold_the_same():
    hu = make_study(4, size=128, n_slices=6).hu[3].astype(int)
    inside = np.s_[40:90, 40:90]
    a, b, c = (stored_values(hu.astype(np.int16), k).astype(int) for k in FLAVOURS)
    assert (a - 1024 == hu).all() and ((b - 1024)[inside] == hu[inside]).all() and b[0, 0] == -2000
    assert (np.where(c > 2047, c - 4096, c) == hu).all() and c.min() >= 0

def test_header(made, truth):
    out, counts = made
    assert len(headers(out)) == counts['files'] == len(truth)
    multi = set()
    for ds in headers(out):
        assert {o.keyword for o in ds} == HEADER and ds.QualityControlImage == 'YES' and ds.Modality == 'CT'
        row = truth.loc[str(ds.SOPInstanceUID)]
        assert row.patient == ds.PatientID and len(ds.SOPInstanceUID) == 12 and len(ds.PatientID) == 11
        assert (ds.BitsStored, ds.PixelRepresentation) == ((16, 1) if row.flavour == 'signed16' else (12, 0))
        assert (ds.RescaleIntercept in (0, 1)) == (row.flavour == 'wrapped12')
        multi.add(isinstance(ds.WindowCenter, pydicom.multival.MultiValue))
        if row.corrupt:
            with pytest.raises(ValueError): ds.pixel_array
            continue
        hu = true_hu(ds)
        assert abs(np.median(hu[:8, :20]) - (-3024 if row.flavour == 'signed16' else -1000)) < 30
        assert not row.blank or (np.median(hu[hu > -1500]) < -900 and hu.max() < 600)
    assert multi == {True, False}

def test_positions_follow_the_tilt(made, truth):
    seen = {}
    for ds in headers(made[0]): seen.setdefault(ds.PatientID, []).append(ds)
    for patient, files in seen.items():
        files.sort(key=lambda ds: truth.loc[str(ds.SOPInstanceUID)].slice)
        o = np.array(files[0].ImageOrientationPatient, float)
        along = np.array([ds.ImagePositionPatient for ds in files], float) @ np.cross(o[:3], o[3:])
        assert np.allclose(np.diff(along), 12.5, atol=1e-3)
        assert abs(np.degrees(np.arccos(o[4])) - truth[truth.patient == patient].tilt.iloc[0]) < .1
        names = [str(ds.SOPInstanceUID) for ds in files]
        assert names != sorted(names)

def test_labels_csv(made, truth):
    df = pd.read_csv(made[0]/'stage_2_train.csv')
    assert list(df) == ['ID', 'Label'] and df.duplicated().sum() >= 12
    df = df.drop_duplicates()
    df[['sop', 'label']] = df.ID.str.rsplit('_', n=1, expand=True)
    wide = df.pivot(index='sop', columns='label', values='Label')
    assert (wide[list(LABELS)] == truth.loc[wide.index, list(LABELS)]).all(axis=None) and len(wide) == made[1]['files']

def test_again_and_elsewhere(made, tmp_path):
    out, counts = made
    before = {o: o.stat().st_mtime_ns for o in out.rglob('*')}
    assert write_phantom(out, **ARGS) == counts and {o: o.stat().st_mtime_ns for o in out.rglob('*')} == before
    with pytest.raises(IchError, match='another phantom set'): write_phantom(out, **ARGS | dict(seed=4))
    (tmp_path/'notes.txt').write_text('mine')
    with pytest.raises(IchError, match='not empty'): write_phantom(tmp_path, **ARGS)
    with pytest.raises(IchError, match='is a file'): write_phantom(tmp_path/'notes.txt', **ARGS)
    assert [o.name for o in tmp_path.iterdir()] == ['notes.txt']

def test_an_interrupted_set_is_finished(made, tmp_path):
    small = dict(patients=2, seed=3, size=128, n_slices=6, workers=1)
    whole = write_phantom(tmp_path/'a', **small)
    folder = tmp_path/'b'/'stage_2_train'
    folder.mkdir(parents=True)
    (folder/'ID_000000000.part').write_bytes(b'half')
    text = (tmp_path/'a'/'phantom.json').read_text()
    (tmp_path/'b'/'phantom.json').write_text(text.replace('"complete": true', '"complete": false'))
    assert write_phantom(tmp_path/'b', **small) == whole
    a, b = ({o.name: o.read_bytes() for o in (tmp_path/k/'stage_2_train').iterdir()} for k in 'ab')
    assert a == b
