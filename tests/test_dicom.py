"Hounsfield units from every encoding, and a reason for every file that has none."
import io

import numpy as np
import pydicom
import pytest

from ich_fastai.core import DicomError
from ich_fastai.dicom import WINDOWS, brain_box, crop_resize, open_slices, pct_window
from ich_fastai.dicom import read_header, read_hu, read_slice, window
from ich_fastai.dicom.hounsfield import is_wrapped, sign_extend


def ct(stored, **tags):
    ds = pydicom.Dataset()
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = tags.pop('syntax', pydicom.uid.ExplicitVRLittleEndian)
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = '1.2.840.10008.5.1.4.1.1.2', '1.2.3'
    stored = np.asarray(stored)
    base = dict(SOPInstanceUID='1.2.3', Modality='CT', PatientID='p', StudyInstanceUID='1', SeriesInstanceUID='2',
                Rows=stored.shape[0], Columns=stored.shape[1], SamplesPerPixel=1,
                PhotometricInterpretation='MONOCHROME2', BitsAllocated=16, BitsStored=12, HighBit=11,
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
    "Files that the common repair (intercept over -100 and unsigned) would spoil."
    x = np.random.default_rng(0).integers(0, 4096, (64, 64))
    wide = dict(RescaleIntercept=0, BitsStored=16, HighBit=15)
    for tags in dict(RescaleIntercept=-1024), dict(RescaleIntercept=-1000), wide:
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
    (dict(Modality='MR'), 'not_ct'), (dict(PixelData=None), 'no_pixels'), (dict(PixelData=b'1234'), 'bad_pixels'),
    (dict(RescaleIntercept=None), 'no_hu'), (dict(RescaleSlope=0), 'no_hu'), (dict(BitsStored=0), 'bad_header'),
    (dict(NumberOfFrames=2, PixelData=bytes(64)), 'no_hu'),
    (dict(SamplesPerPixel=3, PhotometricInterpretation='RGB', PlanarConfiguration=0, PixelData=bytes(96)), 'no_hu')])
def test_reasons(tags, reason):
    with pytest.raises(DicomError) as e: read_hu(ct(np.zeros((4, 4)), **tags))
    assert e.value.reason == reason


PREAMBLE = bytes(128) + b'DICM'

@pytest.mark.parametrize('raw', [b'', b'text', bytes(1000), PREAMBLE, PREAMBLE + b'\xff' * 500])
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


def recoded(hu, syntax, **tags):
    "The same slice in another transfer syntax."
    big = syntax == pydicom.uid.ExplicitVRBigEndian
    kind = 'i' if tags.get('PixelRepresentation') else 'u'
    dtype = f"{'>' if big else '<'}{kind}{tags.get('BitsAllocated', 16) // 8}"
    tags.setdefault('PixelData', np.asarray(hu).astype(dtype).tobytes())
    raw = ct(hu, syntax=pydicom.uid.ExplicitVRLittleEndian if syntax.is_encapsulated else syntax, **tags)
    if not syntax.is_encapsulated: return raw
    ds, out = pydicom.dcmread(io.BytesIO(raw)), io.BytesIO()
    ds.compress(syntax, generate_instance_uid=False)
    ds.save_as(out, enforce_file_format=True)
    return out.getvalue()


@pytest.mark.parametrize('syntax', ['ExplicitVRLittleEndian', 'ImplicitVRLittleEndian', 'ExplicitVRBigEndian',
                                    'DeflatedExplicitVRLittleEndian', 'RLELossless', 'JPEG2000Lossless',
                                    'JPEGLSLossless'])
@pytest.mark.parametrize('kind', [dict(), dict(PixelRepresentation=1, BitsStored=16, HighBit=15, RescaleIntercept=0),
                                  dict(BitsAllocated=8, BitsStored=8, HighBit=7, RescaleIntercept=-100),
                                  dict(PhotometricInterpretation='MONOCHROME1')])
def test_every_encoding(syntax, kind):
    x = np.random.default_rng(0).integers(0, 256, (48, 80))
    x[0] = 255
    if kind.get('PixelRepresentation'): x = x * 20 - 1000
    elif 'BitsAllocated' not in kind: x = x * 16
    hu = read_hu(recoded(x, getattr(pydicom.uid, syntax), **kind))
    assert (hu == x + kind.get('RescaleIntercept', -1024)).all()


def test_jpeg_baseline():
    import cv2
    y, x = np.mgrid[:64, :96]
    img = (127 + 100 * np.sin(x / 9) * np.cos(y / 7)).astype(np.uint8)
    data = pydicom.encaps.encapsulate([cv2.imencode('.jpg', img, [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()])
    tags = dict(BitsAllocated=8, BitsStored=8, HighBit=7, RescaleIntercept=0, PixelData=data)
    hu = read_hu(ct(img, syntax=pydicom.uid.JPEGBaseline8Bit, **tags))
    assert np.abs(hu - img).max() <= 2
    with pytest.raises(DicomError, match='64 x 96 pixels where the header says 64 x 90'):
        read_hu(ct(img, syntax=pydicom.uid.JPEGBaseline8Bit, **tags | dict(Columns=90)))


@pytest.mark.parametrize('tags,intercept', [
    (dict(RescaleIntercept='-1024.00000'), -1024), (dict(RescaleIntercept='-1.024E3'), -1024),
    (dict(RescaleIntercept=['-1024', '-1024']), -1024), (dict(RescaleSlope=None), -1024),
    (dict(RescaleIntercept=' -1000 '), -1000), (dict(RescaleSlope='1.0 ', WindowCenter=['40', '80']), -1024)])
def test_odd_forms_of_slope_and_intercept(tags, intercept):
    x = np.arange(64).reshape(8, 8)
    assert (read_hu(ct(x, **tags)) == x + intercept).all()


def test_intercept_with_a_comma():
    raw = ct(np.arange(64).reshape(8, 8), RescaleIntercept='-1024.0')
    assert (read_hu(raw.replace(b'-1024.0', b'-1024,0')) == np.arange(64).reshape(8, 8) - 1024).all()


def enhanced(planes, cut=0):
    "An enhanced multi-frame CT: positions, windows and the rescale in functional groups."
    from pydicom.sequence import Sequence
    def item(**tags):
        ds = pydicom.Dataset()
        for k, v in tags.items(): setattr(ds, k, v)
        return ds
    shared = item(PixelMeasuresSequence=Sequence([item(PixelSpacing=[.5, .5], SliceThickness=5)]),
                  PlaneOrientationSequence=Sequence([item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])]),
                  PixelValueTransformationSequence=Sequence([item(RescaleIntercept=-1024, RescaleSlope=1)]))
    places = [item(ImagePositionPatient=[0, 0, 5 * i]) for i in range(len(planes))]
    frames = [item(PlanePositionSequence=Sequence([place])) for place in places]
    data = (np.asarray(planes) + 1024).astype('<u2').tobytes()
    return ct(planes[0], RescaleIntercept=None, RescaleSlope=None, NumberOfFrames=len(planes),
              SharedFunctionalGroupsSequence=Sequence([shared]), PerFrameFunctionalGroupsSequence=Sequence(frames),
              PixelData=data[:len(data) - cut])


def test_enhanced_multi_frame():
    planes = np.random.default_rng(0).integers(-1000, 2000, (4, 32, 32))
    found = [(row, load()) for row, load in open_slices(enhanced(planes))]
    assert [row['sop'] for row, _ in found] == ['1.2.3.1', '1.2.3.2', '1.2.3.3', '1.2.3.4']
    assert [row['z'] for row, _ in found] == [0, 5, 10, 15]
    assert all((hu == p).all() for (_, hu), p in zip(found, planes)) and found[0][0]['thickness'] == 5
    with pytest.raises(DicomError, match='4 frames'): read_hu(enhanced(planes))
    for _, load in open_slices(enhanced(planes, cut=100)):
        with pytest.raises(DicomError, match='bad_pixels'): load()


def test_plain_reader_and_pydicom_agree_on_all_files(real, raw):
    from ich_fastai.dicom.plain import plain_tags
    from ich_fastai.dicom.tags import pydicom_tags
    mine = 0
    for fn in [*real.glob('*/*.dcm'), *(raw/'stage_2_train').glob('*.dcm')]:
        data = fn.read_bytes()
        if (found := plain_tags(data, len(data))) is None: continue
        ds = pydicom.dcmread(fn)
        assert (found[0], data[found[1]:sum(found[1:])]) == (pydicom_tags(ds), ds.PixelData), fn.name
        mine += 1
    assert mine > 60


def test_box_and_windows_equal_fastai(real, raw):
    pytest.importorskip('kornia', reason='fastai.medical.imaging needs kornia: pip install -e ".[bench]"')
    import torch
    from fastai.medical.imaging import TensorDicom, dicom_windows, mask2bbox
    n = 0
    phantoms = sorted((raw/'stage_2_train').glob('*.dcm'))[::3]
    for fn in [*real.glob('rsna2019_sample/*.dcm'), *real.glob('ct_series_philips_phantom/*.dcm'), *phantoms]:
        try: hu = read_hu(fn)
        except DicomError: continue
        if pct_window(hu) < .02: continue  # blank: no image is made of it
        px = TensorDicom(torch.from_numpy(hu.astype(np.float32)))
        assert np.abs(px.windowed(*dicom_windows.brain).numpy() * 255 - window(hu, *WINDOWS['brain'])).max() <= 1
        (y0, x0), (y1, x1) = np.array(mask2bbox(px.mask_from_blur(dicom_windows.brain)))
        y, x, side = brain_box(hu)
        assert abs(side - max(y1 - y0, x1 - x0) - 1) <= 2, fn.name
        assert y <= y0 + 2 and x <= x0 + 2 and y + side >= y1 - 1 and x + side >= x1 - 1, fn.name
        n += 1
    assert n > 20


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
    "Each was checked by hand: a CT slice is read in any encoding, everything else is refused with a reason."
    read = ['CT_JPEG70', 'CT_small', 'no_meta', '693_J2KR', '693_UNCI', 'explicit_VR-UN', 'nema-ct1_j2ki']
    not_ct = ['MR_small_RLE', 'MR_small_bigendian', 'MR_small_implicit', 'MR_small_padded', 'MR_truncated',
              'JPEGLSNearLossless_16', 'SC_rgb_rle', 'badVR', 'image_dfl', 'liver_1frame', 'nih_cxr_jpegbaseline',
              'emri_small_jpeg_2k_lossless_too_short', 'meta_missing_tsyntax', 'gdcm-CR-MONO1-10-chest', 'test-SR']
    want = dict.fromkeys(read) | dict.fromkeys(not_ct, 'not_ct')
    assert set(want) == {o.stem for o in (real/'dicom_odd').glob('*.dcm')}
    for name, reason in want.items():
        fn = real/'dicom_odd'/f'{name}.dcm'
        if reason is None: assert read_hu(fn).ndim == 2
        else:
            with pytest.raises(DicomError) as e: read_hu(fn)
            assert e.value.reason == reason, name
    assert read_header(real/'dicom_odd'/'explicit_VR-UN.dcm')['body_part'] == 'PANCREAS'
    assert (read_hu(real/'dicom_odd'/'no_meta.dcm') == read_hu(real/'dicom_odd'/'CT_small.dcm')).all()
