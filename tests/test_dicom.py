"HU of every encoding, and a reason for whatever has none."
import io

import numpy as np
import pydicom
import pytest

from ich_fastai.core import DicomError
from ich_fastai.dicom import (WINDOWS, brain_box, crop_resize, is_wrapped, pct_window, read_header, read_hu, read_slice, sign_extend, window)


def ct(stored, **tags):
    ds = pydicom.Dataset()
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = tags.pop('syntax', pydicom.uid.ExplicitVRLittleEndian)
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = '1.2.840.10008.5.1.4.1.1.2', '1.2.3'
    stored = np.asarray(stored)
    base = dict(SOPInstanceUID='1.2.3', Modality='CT', PatientID='p', StudyInstanceUID='1', SeriesInstanceUID='2', Rows=stored.shape[0],
                Columns=stored.shape[1], SamplesPerPixel=1, PhotometricInterpretation='MONOCHROME2', BitsAllocated=16, BitsStored=12, HighBit=11,
                PixelRepresentation=0, RescaleSlope=1, RescaleIntercept=-1024, PixelData=stored.astype('<u2').tobytes())
    for k, v in (base | tags).items():
        if v is not None: setattr(ds, k, v)
    buf = io.BytesIO()
    ds.save_as(buf, enforce_file_format=True)
    return buf.getvalue()


@pytest.mark.parametrize('bits', [8, 12, 14, 16])
def test_sign_extension_is_exact(bits):
    every = np.arange(-2**(bits - 1), 2**(bits - 1))
    assert (sign_extend(every & (2**bits - 1), bits) == every).all()


def test_all_4096_values_through_a_file():
    hu = np.arange(-2048, 2048).reshape(64, 64)
    with_air = np.vstack([hu, np.full((64, 64), -1000)])
    got, want = read_hu(ct(with_air & 0xFFF, RescaleIntercept=0)), with_air.copy()
    want[want < -1500] = -1000  # padding
    assert (got == want).all()


def test_honest_files_are_left_alone():
    "What the usual repair (intercept over -100 and unsigned) would spoil."
    x = np.random.default_rng(0).integers(0, 4096, (64, 64))
    for tags in dict(RescaleIntercept=-1024), dict(RescaleIntercept=-1000), dict(RescaleIntercept=0, BitsStored=16, HighBit=15):
        row, hu = read_slice(ct(x, **tags))
        assert not row['px_fixed'] and (hu == x + tags['RescaleIntercept']).all()
    dense = np.zeros((64, 64), int)
    dense[20:40, 20:40] = 4095  # metal at the end of the scale, air at 0
    assert not is_wrapped(dense, 12, False, 0)


def test_signed_bits_above_stored_are_ignored():
    x = np.array([[-1000, 40], [0, 1000]])
    junk = (x & 0xFFF) | 0x5000
    assert (read_hu(ct(junk, PixelRepresentation=1, RescaleIntercept=0)) == x).all()


def test_slope():
    x = np.array([[0, 100], [2048, 4000]])
    assert (read_hu(ct(x, RescaleSlope='0.5')) == np.rint(x * .5 - 1024)).all()


@pytest.mark.parametrize('tags,reason', [
    (dict(Modality='MR'), 'not_ct'), (dict(PixelData=None), 'no_pixels'), (dict(PixelData=b'1234'), 'bad_pixels'), (dict(RescaleIntercept=None), 'no_hu'),
    (dict(RescaleSlope=0), 'no_hu'), (dict(SOPInstanceUID=None), 'bad_header'), (dict(NumberOfFrames=2, PixelData=bytes(64)), 'no_hu')])
def test_reasons(tags, reason):
    with pytest.raises(DicomError) as e: read_hu(ct(np.zeros((4, 4)), **tags))
    assert e.value.reason == reason


@pytest.mark.parametrize('raw', [b'', b'text', bytes(1000), b'\0' * 128 + b'DICM', b'\0' * 128 + b'DICM' + b'\xff' * 500])
def test_garbage(raw):
    with pytest.raises(DicomError): read_hu(raw)


def test_window():
    hu = np.array([-2000, -1, 0, 40, 80, 3000])
    assert window(hu, *WINDOWS['brain']).tolist() == [0, 0, 0, 128, 255, 255]
    with pytest.raises(ValueError): window(hu, 1, 40)


@pytest.mark.parametrize('shape', [(128, 128), (100, 160), (160, 100), (40, 512)])
def test_box_is_never_empty(shape):
    rng = np.random.default_rng(0)
    for hu in np.full(shape, -1000), np.full(shape, 35), np.full(shape, 2000), rng.integers(-1000, 1000, shape):
        box = brain_box(hu.astype(np.int16))
        assert box[2] > 0 and crop_resize(hu.astype(np.int16), box, 64).shape == (64, 64)


def test_pct_window_is_strict():
    assert pct_window(np.array([0, 80, 40, 41])) == .5


def test_real_rsna(real):
    from pydicom.pixels import apply_rescale
    for fn in sorted((real/'rsna2019_sample').glob('*.dcm')):
        row, hu = read_slice(fn)
        ds = pydicom.dcmread(fn)
        ref = apply_rescale(ds.pixel_array, ds)
        assert (hu[ref > -1500] == ref[ref > -1500]).all() and (hu[ref <= -1500] == -1000).all()
        assert -1060 < np.median(hu[:20]) < -900  # air
        if row['sop'] in ('ID_00008ce3c', 'ID_0000f1657', 'ID_00019828f'):
            y, x, side = brain_box(hu)
            brain = hu[y + side*2//5:y + side*3//5, x + side*3//10:x + side*4//10]
            assert 20 < np.median(brain) < 45


def test_real_odd_files(real):
    want = dict(CT_JPEG70=None, CT_small=None, nema_ct1_j2ki=None, MR_small_RLE='not_ct', MR_truncated='not_ct', SC_rgb_rle='not_ct', liver_1frame='not_ct',
                no_meta='not_dicom')
    for name, reason in want.items():
        fn = real/'dicom_odd'/f"{name.replace('nema_', 'nema-')}.dcm"
        if reason is None: assert read_hu(fn).ndim == 2
        else:
            with pytest.raises(DicomError) as e: read_hu(fn)
            assert e.value.reason == reason
    assert read_header(real/'dicom_odd'/'explicit_VR-UN.dcm')['body_part'] == 'PANCREAS'
