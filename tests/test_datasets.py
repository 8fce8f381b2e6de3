"X-rays, CIFAR and near duplicates: each loader reads the layout of the public download, and names what is missing."
import io
import os
import pickle
import shutil
import tarfile
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pydicom
import pytest
from PIL import Image

from ich_fastai.core import DataError, DicomError, FrameError, IchError
from ich_fastai.datasets import Dataset, datasets, frame_vocab, load_dataset, open_dataset
from ich_fastai.datasets.archives import read_pickle
from ich_fastai.datasets.body_parts import PARTS, xray_gray
from ich_fastai.datasets.chest import NIH, parse_age, split_findings
from ich_fastai.datasets.cifar import CIFAR10
from ich_fastai.datasets.files import match_files, read_table
from ich_fastai.frames import audit_leakage, check_frame, near_duplicates

RNG = np.random.default_rng(0)


def save_image(fn, shape=(24, 20)):
    fn.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 255, shape, dtype=np.uint8)).save(fn)


def test_one_registry():
    real = 'covid_radiography covid_pneumonia_normal covid_chestxray xray_body_parts nih_cxr head_ct rsna_ich'.split()
    assert {*real, 'cifar10', 'cifar100', 'cifar10_jpg', 'phantom'} <= set(datasets)
    for o in datasets.values(): assert isinstance(o, Dataset) and o.where


@pytest.mark.parametrize('name', [o.name for o in datasets.values() if o.kind == 'real'])
def test_a_missing_set_says_where_it_is_and_on_which_terms(name, tmp_path):
    with pytest.raises(DataError) as e: open_dataset(name, tmp_path)
    text = str(e.value)
    assert name in text and 'put ' in text and 'ICH_DATA' in text
    assert any(o in text for o in ('free use', 'research use', 'licence', 'terms', 'non-commercial'))
    assert not list(tmp_path.iterdir())  # nothing was made for a set that is not there


# folders by class

@pytest.mark.parametrize('inner', ['', 'COVID-19_Radiography_Dataset'])
def test_covid_radiography(tmp_path, inner):
    home = tmp_path/'covid_radiography'/inner
    for o in 'COVID', 'Lung_Opacity', 'Normal', 'Viral Pneumonia':
        for i in 1, 2:
            save_image(home/o/'images'/f'{o}-{i}.png')
            save_image(home/o/'masks'/f'{o}-{i}.png')
        (home/f'{o}.metadata.xlsx').write_bytes(b'a table')
    o = open_dataset('covid_radiography', tmp_path)
    assert o.vocab == ('COVID', 'Lung_Opacity', 'Normal', 'Viral Pneumonia') and o.kind == 'real' and len(o.frame) == 8
    assert o.frame.group.is_unique and not o.frame.fn.str.contains('masks').any() and 'split' not in o.frame
    shutil.rmtree(home/'Normal')
    with pytest.raises(DataError, match='no folder with images of Normal'): open_dataset('covid_radiography', tmp_path)


def test_covid_radiography_of_the_first_release(tmp_path):
    home = tmp_path/'covid19-radiography-database'/'COVID-19 Radiography Database'
    for o in 'COVID-19', 'NORMAL', 'Viral Pneumonia': save_image(home/o/f'{o} (1).png')
    o = open_dataset('covid_radiography', tmp_path)
    assert o.vocab == ('COVID', 'Normal', 'Viral Pneumonia')  # a class that is not there is not trained


def test_covid_pneumonia_normal(tmp_path):
    for part in 'train', 'test':
        for o in 'COVID19', 'NORMAL', 'PNEUMONIA':
            for i in range(3): save_image(tmp_path/'covid_pneumonia_normal'/'Data'/part/o/f'{o}({i}).jpg')
    o = open_dataset('covid_pneumonia_normal', tmp_path)
    assert o.vocab == ('COVID-19', 'Normal', 'Pneumonia')
    assert o.frame.split.value_counts().to_dict() == dict(train=9, test=9)
    save_image(tmp_path/'covid_pneumonia_normal'/'Data'/'NORMAL'/'stray.jpg')
    with pytest.raises(DataError, match='neither in train/ nor in test/'):
        open_dataset('covid_pneumonia_normal', tmp_path)


def test_covid_pneumonia_normal_flat(tmp_path):
    for o in 'Covid', 'Normal', 'Viral Pneumonia':
        for i in range(4): save_image(tmp_path/'covid_pneumonia_normal'/o/f'{i}.jpeg')
    df = load_dataset('covid_pneumonia_normal', tmp_path)
    assert set(df.split) == {'train', 'valid', 'test'}
    assert df.label.value_counts().to_dict() == {'COVID-19': 4, 'Normal': 4, 'Pneumonia': 4}


# tables of findings

NEW = ('patientid,offset,sex,age,finding,RT_PCR_positive,view,modality,date,location,folder,filename,doi,url,license,'
       'clinical_notes\n')


def cohen(home, rows, header=NEW):
    home.mkdir(parents=True, exist_ok=True)
    (home/'metadata.csv').write_text(header + '\n'.join(rows) + '\n', encoding='utf-8')


def test_covid_chestxray_new_style(tmp_path):
    home = tmp_path/'covid_chestxray'
    cohen(home, [
        '2,0,M,65,Pneumonia/Viral/COVID-19,Y,PA,X-ray,2020,"Wuhan, Hubei’s",images,a.b.jpg,,,CC BY,"two\nlines"',
        '2,3,M,65,Pneumonia/Viral/COVID-19,Y,AP,X-ray,2020,,images,b.jpeg,,,CC BY,',
        '319-A,,F,,No Finding,,PA,X-ray,,,images,c.png,,,,',
        '4,,,40,todo,,PA,X-ray,,,images,d.png,,,,', '4,,,40,Unknown,,PA,X-ray,,,images,e.png,,,,',
        '5,,,40,Pneumonia,,Axial,CT,,,volumes,f.nii.gz,,,,'])
    for o in 'a.b.jpg', 'b.jpeg', 'c.png', 'd.png': save_image(home/'images'/o)
    o = open_dataset('covid_chestxray', tmp_path)
    assert o.vocab == ('COVID-19', 'Pneumonia', 'Viral') and o.kind == 'real'
    assert o.frame.group.tolist() == ['2', '2', '319-A'] and o.frame.iloc[2][list(o.vocab)].sum() == 0
    assert {'view', 'sex', 'age', 'license'} <= set(o.frame) and o.frame.age.tolist()[:2] == [65, 65]
    (home/'images'/'b.jpeg').unlink()
    with pytest.raises(DataError, match='1 of 3 images .* b.jpeg'): open_dataset('covid_chestxray', tmp_path)


def test_covid_chestxray_old_style(tmp_path):
    home = tmp_path/'covid-chestxray-dataset'
    cohen(home, ['1, ,,,"COVID-19, ARDS",,PA,2019,,a.jpg,,x,,', '3,4,M,74,SARS,N,L,2004,,b.jpeg,,x,,',
        '17,9,M,54,COVID-19,Y,CT,2020,,c.jpg,,x,,'],
        'Patientid,offset,sex,age,finding,survival,view,date,location,filename,doi, url,license,notes\n')
    for o in 'a.jpg', 'b.jpeg', 'c.jpg': save_image(home/'images'/o)
    o = open_dataset('covid_chestxray', tmp_path)
    assert o.vocab == ('ARDS', 'COVID-19', 'SARS') and o.frame[list(o.vocab)].values.tolist() == [[1, 1, 0], [0, 0, 1]]


def test_covid_chestxray_of_another_shape(tmp_path):
    cohen(tmp_path/'covid_chestxray', ['1,2'], 'patient,diagnosis\n')
    with pytest.raises(DataError, match='no column for finding, fn'): open_dataset('covid_chestxray', tmp_path)
    cohen(tmp_path/'covid_chestxray', ['1,todo,a.jpg'], 'patientid,finding,filename\n')
    with pytest.raises(DataError, match='no X-ray with a finding that is known'):
        open_dataset('covid_chestxray', tmp_path)


FINDINGS = {'Pneumonia/Fungal/Pneumocystis': ['Pneumonia', 'Fungal', 'Pneumocystis'],
    'COVID-19,ARDS': ['COVID-19', 'ARDS'],
    'No Finding': [], 'Todo': None, 'unknown': None, ' ': None, 'Pneumonia/Unknown': ['Pneumonia']}


@pytest.mark.parametrize('text, want', FINDINGS.items())
def test_findings(text, want): assert split_findings(text) == want


OFFICIAL = ('Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,'
            'OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],\n'
            '00000001_000.png,Cardiomegaly|Emphysema,0,1,58,M,PA,2682,2749,0.143,0.143,\n'
            '00000001_001.png,Pleural_Thickening,1,1,411,M,AP,2500,2048,0.171,0.171,\n'
            '00000002_000.png,No Finding,0,2,81,F,PA,2500,2048,0.171,0.171,\n')


@pytest.mark.parametrize('folders', [('images', 'images', 'images'),
    ('images_001/images', 'images_001/images', 'images_002/images')])
def test_nih_official(tmp_path, folders):
    home = tmp_path/'nih_cxr'
    for o, name in zip(folders, ('00000001_000', '00000001_001', '00000002_000')): save_image(home/o/f'{name}.png')
    (home/'Data_Entry_2017_v2020.csv').write_text(OFFICIAL)
    o = open_dataset('nih_cxr', tmp_path)
    assert o.vocab == NIH and len(NIH) == 14 and 'split' not in o.frame
    assert o.frame.group.tolist() == ['1', '1', '2'] and o.frame[list(NIH)].sum(axis=1).tolist() == [2, 1, 0]
    assert o.frame.age[0] == 58 and np.isnan(o.frame.age[1])
    assert o.frame.sex.tolist() == ['M', 'M', 'F'] and o.frame['view'].tolist() == ['PA', 'AP', 'PA']
    (home/'train_val_list.txt').write_text('00000001_000.png\n00000001_001.png\n')
    (home/'test_list.txt').write_text('00000002_000.png\n')
    df = load_dataset('nih_cxr', tmp_path)
    assert df.split.tolist() == ['train', 'train', 'test'] and not audit_leakage(df)['leaks']
    (home/'test_list.txt').write_text('\n')
    with pytest.raises(FrameError, match='neither in train_val_list'): open_dataset('nih_cxr', tmp_path)


def test_nih_other_spellings_and_errors(tmp_path):
    home = tmp_path/'nih_cxr'
    for o in 'a_000', 'b_000': save_image(home/'some'/f'{o}.jpg')
    csv = home/'sample_labels.csv'
    csv.write_text('Image Index,Finding Labels,Patient ID,Patient Age,Patient Sex\n'
        'a_000.png,Pneumonia,7,060Y,M\nb_000.png,No Finding,8,013M,F\n')
    df = open_dataset('nih_cxr', tmp_path).frame
    assert df.Pneumonia.tolist() == [1, 0] and df.age.round(2).tolist() == [60, 1.08]
    assert df.sex.tolist() == ['M', 'F'] and 'view' not in df
    csv.write_text('Image Index,Finding Labels,Patient ID\na_000.png,Fracture,7\n')
    with pytest.raises(FrameError, match='Fracture'): open_dataset('nih_cxr', tmp_path)
    csv.write_text('Image Index,Finding Labels,Patient ID\na_000.png,Hernia,7\nz_000.png,Hernia,7\n')
    with pytest.raises(DataError, match='1 of 2 images .* z_000.png'): open_dataset('nih_cxr', tmp_path)
    csv.write_text('Image Index,Finding Labels,Patient ID\na_000.png,Hernia,\n')
    with pytest.raises(FrameError, match='without an image, a patient'): open_dataset('nih_cxr', tmp_path)


def test_ages():
    assert [parse_age(o) for o in ('58', '058Y', '18M')] == [58, 58, 1.5]
    assert np.isnan([parse_age(o) for o in ('414', '', 'old', None)]).all()


def test_two_images_of_one_name(tmp_path):
    save_image(tmp_path/'a'/'x.png')
    shutil.copytree(tmp_path/'a', tmp_path/'b'/'a')  # as in a download that holds its images twice
    files = sorted(tmp_path.rglob('*.png'))
    assert match_files(['x.png'], files, 't.csv') == [str(tmp_path/'a'/'x.png')]
    save_image(tmp_path/'b'/'a'/'x.png', (99, 99))
    with pytest.raises(DataError, match='two different images x.png'): match_files(['x.png'], files, 't.csv')


def test_a_table_that_is_none(tmp_path):
    (tmp_path/'t.csv').write_bytes(bytes(range(256)) * 40)
    with pytest.raises(DataError): read_table(tmp_path/'t.csv', dict(fn='file'))
    (tmp_path/'t.csv').write_text('file\n')
    with pytest.raises(DataError, match='no rows'): read_table(tmp_path/'t.csv', dict(fn='file'))


# parts of the body

def xray(fn, px, study, photometric='MONOCHROME2', **tags):
    ds = pydicom.Dataset()
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = '1.2.840.10008.5.1.4.1.1.1'
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = fn.stem.removesuffix('-c')
    ds.Modality, ds.StudyInstanceUID, ds.PhotometricInterpretation = 'DX', study, photometric
    ds.Rows, ds.Columns = px.shape
    ds.SamplesPerPixel, ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 1, 16, 12, 11, 0
    for k, v in tags.items(): setattr(ds, k, v)
    ds.PixelData = px.astype('<u2').tobytes()
    fn.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(fn, enforce_file_format=True)
    return fn


@pytest.fixture
def parts(tmp_path):
    home, px = tmp_path/'unifesp-x-ray-body-part-classifier', RNG.integers(0, 4096, (300, 600))
    for i, study in enumerate(('1.5', '1.5', '1.6')):
        xray(home/'train'/'train'/study/'9'/f'1.2.{i}-c.dcm', px, study, ('MONOCHROME2', 'MONOCHROME1')[i % 2])
    (home/'train.csv').write_text('SOPInstanceUID,Target\n1.2.0,3 \n1.2.1,18 17\n1.2.2,21\n')
    return home


def test_xray_body_parts(parts, tmp_path, capsys):
    o = open_dataset('xray_body_parts', tmp_path)
    assert o.vocab == PARTS and len(PARTS) == 22 and o.frame.group.tolist() == ['1.5', '1.5', '1.6']
    assert [[p for p in PARTS if row[p]] for _, row in o.frame.iterrows()] == [['Chest'], ['Sinus', 'Skull'], ['Wrist']]
    a, b = (cv2.imread(fn, cv2.IMREAD_UNCHANGED) for fn in o.frame.fn[:2])
    assert a.shape == (256, 512) and a.dtype == np.uint8 and abs(a.astype(int) - (255 - b)).max() <= 1
    before = [os.stat(fn).st_mtime_ns for fn in o.frame.fn]
    assert open_dataset('xray_body_parts', tmp_path).hash == o.hash
    assert before == [os.stat(fn).st_mtime_ns for fn in o.frame.fn]
    assert not [f for f in (tmp_path/'xray_body_parts'/'png').iterdir() if 'tmp' in f.name]


def test_xrays_that_cannot_be_read(parts, tmp_path, capsys):
    fn = parts/'train'/'train'/'1.6'/'9'/'1.2.2-c.dcm'
    fn.write_bytes(fn.read_bytes()[:-1000])
    df = open_dataset('xray_body_parts', tmp_path).frame
    assert len(df) == 2 and '1 of 3 DICOM files' in capsys.readouterr().out
    bad = pd.read_csv(tmp_path/'xray_body_parts'/'png'/'bad.csv')
    assert len(bad) == 1 and bad.reason[0].startswith('bad_pixels') and bad.file[0].endswith('1.2.2-c.dcm')
    for o in parts.rglob('*.dcm'): o.write_bytes(b'nothing')
    shutil.rmtree(tmp_path/'xray_body_parts')
    with pytest.raises(DataError, match='None of 3 DICOM files'): open_dataset('xray_body_parts', tmp_path)


def test_xray_body_parts_as_png(tmp_path):
    home = tmp_path/'xray_body_parts'
    for o in '1.2.0.png', '1.2.1-c.png': save_image(home/'images'/o)
    (home/'train.csv').write_text('SOPInstanceUID,Target\n1.2.0,0\n1.2.1,1 2\n')
    df = open_dataset('xray_body_parts', tmp_path).frame
    assert df.group.is_unique and df[['Abdomen', 'Ankle', 'Cervical Spine']].values.tolist() == [[1, 0, 0], [0, 1, 1]]


@pytest.mark.parametrize('row, want', [('1.2.0,22', 'no part from 0 to 21'), ('1.2.0,hand', 'no part'),
    ('../x,1', 'no part'), ('1.2.0,1\n1.2.0,2', 'no part'), ('1.2.9,1', '1 of 1 images'), ('1.2.0,', 'without')])
def test_xray_body_parts_refuses(parts, tmp_path, row, want):
    (parts/'train.csv').write_text(f'SOPInstanceUID,Target\n{row}\n')
    with pytest.raises(IchError, match=want): open_dataset('xray_body_parts', tmp_path)


def test_xray_windows_and_luts(tmp_path):
    ramp = np.tile(np.arange(0, 4000, 10), (50, 1))
    a = xray_gray(xray(tmp_path/'1.dcm', ramp, '1', WindowCenter=[2000, 500], WindowWidth=[1000, 10]).read_bytes())
    assert a[0, 140] == 0 and a[0, 260] == 255 and 100 < a[0, 200] < 155  # the first window counts
    with pytest.raises(DicomError): xray_gray(xray(tmp_path/'1.dcm', ramp, '1', Rows=60000).read_bytes())
    with pytest.raises(DicomError): xray_gray(b'no DICOM')


# CIFAR

@pytest.fixture(scope='module')
def tiny(): return RNG.integers(0, 256, (24, 3072), dtype=np.uint8)


def write(folder, files, protocol=2):
    folder.mkdir(parents=True, exist_ok=True)
    for k, v in files.items(): (folder/k).write_bytes(v if isinstance(v, bytes) else pickle.dumps(v, protocol))
    return folder


BATCHES = [f'data_batch_{i}' for i in range(1, 6)] + ['test_batch']
CODES = [(i * 7) % 10 for i in range(24)]


def cifar10_python(home, tiny, protocol=2):
    files = {o: {b'batch_label': b'x', b'labels': CODES[4*i:4*i + 4], b'data': tiny[4*i:4*i + 4],
        b'filenames': [b'a.png'] * 4} for i, o in enumerate(BATCHES)}
    meta = {b'label_names': [o.encode() for o in CIFAR10], b'num_vis': 3072}
    return write(home/'cifar-10-batches-py', files | {'batches.meta': meta, 'readme.html': b'<html>'}, protocol)


def cifar10_binary(home, tiny):
    rows = [bytes([c]) + px.tobytes() for c, px in zip(CODES, tiny)]
    files = {f'{o}.bin': b''.join(rows[4*i:4*i + 4]) for i, o in enumerate(BATCHES)}
    return write(home/'cifar-10-batches-bin', files | {'batches.meta.txt': '\n'.join(CIFAR10).encode() + b'\n\n'})


def cifar_images(home, tiny, suffix='png'):
    for i, (c, px) in enumerate(zip(CODES, tiny)):
        fn = home/('test' if i >= 20 else 'train')/CIFAR10[c]/f'{i:04d}.{suffix}'
        fn.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(px.reshape(3, 32, 32).transpose(1, 2, 0)).save(fn)
    return home


def check_cifar(o, tiny):
    assert o.kind == 'real' and list(o.vocab) == sorted({CIFAR10[c] for c in CODES}) and len(o.frame) == 24
    assert o.frame.split.value_counts().to_dict() == dict(train=20, test=4)
    assert o.frame.group.tolist() == [f'{i:06d}' for i in range(24)]
    pixels = np.load(Path(o.frame.fn[0]).parent)
    assert pixels.dtype == np.uint8 and pixels.shape == (24, 32, 32, 3)
    got = {px.tobytes(): (label, split) for px, label, split in zip(pixels, o.frame.label, o.frame.split)}
    images = [px.reshape(3, 32, 32).transpose(1, 2, 0).tobytes() for px in tiny]
    want = {px: (CIFAR10[c], 'test' if i >= 20 else 'train') for i, (c, px) in enumerate(zip(CODES, images))}
    assert got == want


@pytest.mark.parametrize('kind', ['python', 'python3', 'python.tar.gz', 'binary', 'binary.tar.gz',
    'png', 'png.zip', 'png.tar.xz', 'loose.tar.gz', 'loose'])
def test_cifar10_in_every_layout(tmp_path, tiny, kind):
    root = tmp_path/'data'
    home = root/'cifar10'
    home.mkdir(parents=True)
    packed = {'tar.gz': 'gztar', 'tar.xz': 'xztar', 'zip': 'zip'}.get(kind.partition('.')[2])
    at = tmp_path/'pack' if packed else root if kind == 'loose' else home
    if kind.startswith('png'): cifar_images(at/'cifar10', tiny)
    elif kind.startswith('binary'): cifar10_binary(at, tiny)
    else: cifar10_python(at, tiny, 4 if kind == 'python3' else 2)
    if packed: shutil.make_archive(str(root/'cifar-10-python' if kind.startswith('loose') else home/'down'), packed, at)
    check_cifar(open_dataset('cifar10', root), tiny)
    made = {o.name for o in home.iterdir()} - {'.lock'}
    assert {'pixels.npy', 'frame.parquet'} <= made and len(made) <= 3  # nothing was unpacked
    for o in root.rglob('*'):
        if o.is_file() and o.name not in ('pixels.npy', 'frame.parquet', '.lock'): o.unlink()
    check_cifar(open_dataset('cifar10', root), tiny)  # read, not made anew


def test_cifar100(tmp_path, tiny):
    fine, coarse = [f'fine{i:03d}' for i in range(100)], [f'coarse{i:02d}' for i in range(20)]
    def part(a, b):
        return {b'fine_labels': list(range(a, b)), b'coarse_labels': [i // 5 for i in range(a, b)], b'data': tiny[a:b]}
    home = tmp_path/'python'/'cifar100'
    meta = {b'fine_label_names': [o.encode() for o in fine], b'coarse_label_names': [o.encode() for o in coarse]}
    write(home/'cifar-100-python', dict(train=part(0, 18), test=part(18, 24), meta=meta))
    o = open_dataset('cifar100', tmp_path/'python')
    assert o.frame.label.tolist() == fine[:24] and (o.frame.split == 'test').sum() == 6
    assert o.frame.coarse.tolist() == [f'coarse{i // 5:02d}' for i in range(24)]
    rows = [bytes([i // 5, i]) + px.tobytes() for i, px in enumerate(tiny)]
    write(tmp_path/'binary'/'cifar100'/'cifar-100-binary', {
        'train.bin': b''.join(rows[:18]), 'test.bin': b''.join(rows[18:]),
        'fine_label_names.txt': '\n'.join(fine).encode(), 'coarse_label_names.txt': '\n'.join(coarse).encode()})
    o2 = open_dataset('cifar100', tmp_path/'binary')
    assert o2.hash == o.hash
    assert o2.frame[list(o.frame)].drop(columns='fn').equals(o.frame.drop(columns='fn'))
    assert (np.load(Path(o.frame.fn[0]).parent) == np.load(Path(o2.frame.fn[0]).parent)).all()


def test_jpeg_cifar_is_another_set(tmp_path, tiny):
    cifar_images(tmp_path/'pack', tiny, 'jpg')
    (tmp_path/'cifar10_jpg').mkdir()
    shutil.make_archive(str(tmp_path/'cifar10_jpg'/'cifar10_jpg'), 'xztar', tmp_path/'pack')
    o = open_dataset('cifar10_jpg', tmp_path)
    assert o.name == 'cifar10_jpg' and len(o.frame) == 24
    (tmp_path/'cifar10').mkdir()
    shutil.copy(tmp_path/'cifar10_jpg'/'cifar10_jpg.tar.xz', tmp_path/'cifar10')
    with pytest.warns(UserWarning, match='lossy'): open_dataset('cifar10', tmp_path)


class Command:
    def __reduce__(self): return os.system, ('touch harm',)


class Eval:
    def __reduce__(self): return eval, ("__import__('pathlib').Path('harm').touch()",)


@pytest.mark.parametrize('bad', [Command(), Eval(), np.array([Command()], object), Path('x'), {b'data': [Command()]},
    np.load, io.BytesIO])
@pytest.mark.parametrize('protocol', range(5))
def test_a_pickle_that_would_run_something_is_refused(tmp_path, monkeypatch, tiny, bad, protocol):
    monkeypatch.chdir(tmp_path)
    cifar10_python(tmp_path/'cifar10', tiny)
    (tmp_path/'cifar10'/'cifar-10-batches-py'/'data_batch_2').write_bytes(pickle.dumps(bad, protocol))
    with pytest.raises(DataError, match='data_batch_2'): open_dataset('cifar10', tmp_path)
    assert not (tmp_path/'harm').exists() and not (tmp_path/'cifar10'/'pixels.npy').exists()


@pytest.mark.parametrize('seed', range(30))
def test_a_damaged_pickle_is_an_error_or_data(tiny, seed):
    rng = np.random.default_rng(seed)
    data = bytearray(pickle.dumps({b'data': tiny[:1], b'labels': [1]}, 2))
    for i in rng.integers(0, len(data), 40): data[i] = rng.integers(0, 256)
    try: read_pickle(bytes(data[:rng.integers(20, len(data))]))
    except DataError: pass


def test_half_a_cifar(tmp_path, tiny):
    home = cifar10_python(tmp_path/'cifar10', tiny)
    (home/'data_batch_4').unlink()
    with pytest.raises(DataError, match='lacks data_batch_4'): open_dataset('cifar10', tmp_path)
    shutil.rmtree(home)
    home = cifar10_binary(tmp_path/'cifar10', tiny)
    (home/'test_batch.bin').write_bytes(b'x' * 5000)
    with pytest.raises(DataError, match='no multiple of 3073'): open_dataset('cifar10', tmp_path)
    shutil.rmtree(home)
    save_image(tmp_path/'cifar10'/'train'/'cat'/'1.png', (32, 32, 3))
    with pytest.raises(DataError, match='train/ only'): open_dataset('cifar10', tmp_path)
    save_image(tmp_path/'cifar10'/'test'/'cat'/'1.png', (64, 32, 3))
    with pytest.raises(DataError, match='32 x 64 pixels'): open_dataset('cifar10', tmp_path)
    shutil.rmtree(tmp_path/'cifar10')
    (tmp_path/'cifar10').mkdir()
    (tmp_path/'cifar10'/'cifar-10-python.tar.gz').write_bytes(b'\x1f\x8b half')
    with pytest.raises(DataError, match='Download it again'): open_dataset('cifar10', tmp_path)
    assert not (tmp_path/'cifar10'/'frame.parquet').exists()


def test_a_path_in_an_archive_is_only_a_name(tmp_path, tiny):
    buf = io.BytesIO()
    Image.fromarray(tiny[0].reshape(32, 32, 3)).save(buf, 'PNG')
    (tmp_path/'data'/'cifar10').mkdir(parents=True)
    with zipfile.ZipFile(tmp_path/'data'/'cifar10'/'z.zip', 'w') as z:
        for name in '../../evil/train/cat/1.png', '/tmp/train/dog/1.png', '../test/cat/2.png':
            z.writestr(name, buf.getvalue())
    assert open_dataset('cifar10', tmp_path/'data').frame.label.tolist() == ['cat', 'dog', 'cat']
    with tarfile.open(tmp_path/'links.tar', 'w') as t:
        link = tarfile.TarInfo('train/cat/1.png')
        link.type, link.linkname = tarfile.SYMTYPE, '/etc/passwd'
        t.addfile(link)
    (tmp_path/'other'/'cifar10').mkdir(parents=True)
    shutil.move(tmp_path/'links.tar', tmp_path/'other'/'cifar10'/'links.tar')
    with pytest.raises(DataError, match='hold neither'): open_dataset('cifar10', tmp_path/'other')
    assert {o.name for o in tmp_path.iterdir()} == {'data', 'other'}


# frames

def test_extra_columns_come_through(tmp_path):
    df = pd.DataFrame(dict(fn=['a.png', 'b.png'], group=['1', '2'], age=[0, 1], view=['PA', 'AP'], Mass=[0, 1]))
    o = open_dataset(df)
    assert o.vocab == ('Mass',) and frame_vocab(df) == ['Mass'] and list(o.frame) == list(df)
    check_frame(o.frame, o.vocab)


# near duplicates

def test_near_duplicates_of_phantoms(raw, tmp_path):
    from ich_fastai.clean import clean_dicoms
    clean_dicoms(raw/'stage_2_train', tmp_path/'clean', labels=raw/'stage_2_train.csv', size=128, workers=1)
    df = load_dataset(tmp_path/'clean')
    assert not near_duplicates(df.fn, sides=df.split).shape[0] and not audit_leakage(df, near=True)['leaks']
    train, test = df[df.split == 'train'].fn.iloc[3], df[df.split == 'test'].index[2]
    img = cv2.imread(train)
    moved = np.zeros_like(img)
    moved[:-3, 5:] = img[3:, :-5]
    copy = tmp_path/'clean'/'images'/'copy.jpg'
    cv2.imwrite(str(copy), cv2.resize(moved, (150, 150)), [cv2.IMWRITE_JPEG_QUALITY, 50])
    df.loc[test, 'fn'] = str(copy)
    assert not audit_leakage(df)['leaks']
    found = audit_leakage(df, near=True)
    assert found['leaks'] and found['near_same'] == [sorted([train, str(copy)])] and not found['same_file']


def test_near_duplicates_in_one_part_are_no_leak(tmp_path):
    img = cv2.GaussianBlur(np.random.default_rng(1).random((90, 90)), (0, 0), 6)
    img = np.uint8(255 * (img - img.min()) / (img.max() - img.min()))
    for i in 0, 1: cv2.imwrite(str(tmp_path/f'{i}.png'), img[i:80 + i, :80])
    cv2.imwrite(str(tmp_path/'2.png'), 255 - img)
    df = pd.DataFrame(dict(fn=['0.png', '1.png', '2.png'], group=[0, 1, 2], split=['train', 'train', 'test']))
    assert len(near_duplicates([tmp_path/o for o in df.fn])) == 1
    assert not audit_leakage(df, tmp_path, near=True)['leaks']


def test_near_duplicates_of_planes(tmp_path, tiny):
    rng = np.random.default_rng(2)
    small = [rng.integers(0, 256, (8, 8, 3), dtype=np.uint8) for _ in range(50)]
    pixels = np.stack([cv2.resize(o, (32, 32), interpolation=cv2.INTER_CUBIC) for o in small])
    pixels[7] = np.roll(pixels[3], 1, axis=1)
    np.save(tmp_path/'pixels.npy', pixels)
    pairs = near_duplicates([f'{tmp_path}/pixels.npy/{i:06d}' for i in range(50)])
    assert [(o.a[-1], o.b[-1]) for o in pairs.itertuples()] == [('3', '7')]


def test_too_many_candidates_are_said(tmp_path):
    for i in range(30): save_image(tmp_path/f'{i:02d}.png', (40, 40))
    fns = sorted(tmp_path.glob('*.png'))
    with pytest.warns(UserWarning, match='only pairs within'): near_duplicates(fns, distance=256, most=20)


# real data

def test_real_nih(real):
    o = open_dataset('nih_cxr', real)
    assert len(o.frame) == 1000 and o.vocab == NIH and o.kind == 'real' and o.frame.Pneumonia.sum() == 500
    assert (o.frame[list(NIH)].sum(axis=1) == 0).sum() == 500
    assert o.frame['view'].isin(['AP', 'PA']).all() and o.frame.age.between(0, 120).all()
    assert not audit_leakage(load_dataset('nih_cxr', real))['groups']


def test_real_covid(real):
    o = open_dataset('covid_chestxray', real)
    counts = o.frame[list(o.vocab)].sum().to_dict()
    # 22 todo and one Unknown of 113 are left out
    assert counts == {'ARDS': 1, 'Pneumocystis': 2, 'COVID-19': 85} and len(o.frame) == 90
    assert o.vocab[-1] == 'COVID-19' and o.frame.license.notna().all() and o.frame.group.nunique() < len(o.frame)


def test_real_copies_of_head_ct(real):
    df = open_dataset('head_ct', real).frame
    pairs = near_duplicates(df.fn)
    found = {(Path(a).stem, Path(b).stem) for a, b in zip(pairs.a, pairs.b)}
    known = {('188', '189'), ('198', '199'), ('009', '065'), ('010', '066'), ('105', '187'), ('104', '186')}
    assert known <= found and len(found) == 14


def test_real_jpeg_cifar(real, tmp_path):
    (tmp_path/'cifar10_jpg').mkdir()
    # the folder of real data is not written to
    shutil.copy(real/'cifar10_jpg'/'cifar10_jpg.tar.xz', tmp_path/'cifar10_jpg')
    o = open_dataset('cifar10_jpg', tmp_path)
    assert o.vocab == CIFAR10 and o.frame.split.value_counts().to_dict() == dict(train=50000, test=10000)
    assert o.frame.groupby(['split', 'label']).size().tolist() == [1000] * 10 + [5000] * 10
