"A model folder answers for scans as training did; if it cannot answer, it says why."
import json
import os
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pydicom
import pytest

from ich_fastai.core import DataError
from ich_fastai.infer import ModelError

CLI = [sys.executable, '-c', 'from ich_fastai.cli import main; raise SystemExit(main())']


def edit(fn, **tags):
    ds = pydicom.dcmread(fn)
    for k, v in tags.items(): setattr(ds, k, v)
    ds.save_as(fn)


def with_uids(scan, **tags):
    "Put UIDs in the place of a phantom's ids, which are not UIDs, as in RSNA's files."
    from pydicom.uid import CTImageStorage, generate_uid
    for fn in scan.iterdir():
        ds = pydicom.dcmread(fn)
        for k in ('StudyInstanceUID', 'SeriesInstanceUID', 'SOPInstanceUID'):
            setattr(ds, k, generate_uid(entropy_srcs=[str(ds.get(k))]))
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = CTImageStorage
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        for k, v in tags.items(): setattr(ds, k, v)
        ds.save_as(fn)
    return scan


def predict(*args, **kwargs):
    return subprocess.run([*CLI, 'predict', *map(str, args)], capture_output=True, text=True, timeout=300, **kwargs)


def height(fn): return float(pydicom.dcmread(fn, stop_before_pixels=True).ImagePositionPatient[2])


def test_every_file_is_accounted_for(folder, scan):
    from ich_fastai.infer import predict_study
    (scan/'readme.txt').write_text('hello')
    (scan/'cut.dcm').write_bytes(sorted(scan.glob('*.dcm'))[3].read_bytes()[:2000])
    found = predict_study(folder, scan)
    n = found['files']
    assert n['found'] == len(list(scan.iterdir())) == n['answered'] + n['blank'] + n['quarantined']
    named = {o['file'] for s in found['studies'] for k in ('slices', 'quarantined') for o in s[k]}
    assert named == {o.name for o in scan.iterdir()}
    assert {o['file'] for s in found['studies'] for o in s['quarantined']} == {'readme.txt', 'cut.dcm'}


def test_a_zip_gives_the_same_answer(folder, scan, tmp_path):
    from ich_fastai.infer import predict_study
    with zipfile.ZipFile(tmp_path/'scan.zip', 'w') as z:
        for o in sorted(scan.iterdir()): z.write(o, o.name)
    a, b = predict_study(folder, scan), predict_study(folder, tmp_path/'scan.zip')
    assert a == b


def test_names_that_lead_outside_write_nothing(folder, scan, tmp_path):
    from ich_fastai.infer.page import write_answer
    first = sorted(scan.iterdir())[5]
    with zipfile.ZipFile(tmp_path/'evil.zip', 'w') as z: z.write(first, '../../evil.dcm')
    before = sorted(o for o in tmp_path.rglob('*'))
    try: write_answer(folder, tmp_path/'evil.zip', tmp_path/'out')
    except DataError: pass
    assert not list(tmp_path.parent.rglob('evil.dcm'))
    assert [o for o in sorted(tmp_path.rglob('*')) if o not in before and 'out' not in o.parts] == []


@pytest.mark.parametrize('tags, reason', [(dict(Modality='MR'), 'not_ct'),
                                          (dict(BodyPartExamined='CHEST'), 'not_head')])
def test_what_is_no_head_ct_gets_no_number(folder, scan, tags, reason):
    for o in scan.iterdir(): edit(o, **tags)
    done = predict(folder, scan)
    assert done.returncode == 1 and reason in done.stderr
    assert 'Traceback' not in done.stderr and done.stderr.count('\n') <= 2


def test_nothing_to_answer_for(folder, tmp_path):
    "An empty folder, a folder without a CT, a file that is not DICOM, a missing path: each gets a sentence."
    from ich_fastai.infer import predict_study
    (tmp_path/'empty').mkdir()
    (tmp_path/'none').mkdir()
    (tmp_path/'none'/'letter.txt').write_text('hello')
    said = dict(empty='no file', none='1 not_dicom', nowhere='does not exist') | {'none/letter.txt': '1 not_dicom'}
    for src, words in said.items():
        with pytest.raises(DataError, match=words): predict_study(folder, tmp_path/src)
    done = predict(folder, tmp_path/'none')
    assert done.returncode == 1 and done.stdout == ''
    assert 'there is nothing to answer for' in done.stderr and 'Traceback' not in done.stderr


def test_real_mr_gets_no_number(folder, real):
    from ich_fastai.infer import predict_study
    for o in sorted((real/'dicom_odd').glob('MR_*.dcm')):
        with pytest.raises(DataError, match='not_ct'): predict_study(folder, o)
    found = predict_study(folder, real/'dicom_odd')
    assert found['files']['found'] == len(list((real/'dicom_odd').iterdir()))
    assert all(o['warnings'] for o in found['studies'])  # single slices


def test_a_corrupt_file_among_good_ones(folder, scan):
    "A file that is cut short, an empty one, one of zeros: each is refused by name, and the gap is reported."
    from ich_fastai.infer import predict_study
    files = sorted(scan.iterdir(), key=height)
    files[5].write_bytes(files[5].read_bytes()[:3000])
    files[9].write_bytes(b'')
    files[12].write_bytes(b'\0' * 5000)
    (one,) = predict_study(folder, scan)['studies']
    assert {o['file'] for o in one['quarantined']} == {files[i].name for i in (5, 9, 12)}
    assert all(o['reason'] for o in one['quarantined']) and any('3 slices missing' in o for o in one['warnings'])


MISSING = dict(PixelSpacing='wide', SliceThickness='thick', ConvolutionKernel='kernel',
               ImagePositionPatient='no_position', ImageOrientationPatient='no_position')


@pytest.mark.parametrize('tag', MISSING)
def test_what_a_header_lacks_is_said(folder, scan, tag):
    from ich_fastai.infer import predict_study
    for o in scan.iterdir(): edit(o, SliceThickness=5., ConvolutionKernel='H31s')
    (one,) = predict_study(folder, scan)['studies']
    before = one['warnings']
    for o in scan.iterdir():
        ds = pydicom.dcmread(o)
        delattr(ds, tag)
        ds.save_as(o)
    (one,) = predict_study(folder, scan)['studies']
    assert any(MISSING[tag] in o for o in one['warnings'] if o not in before), one['warnings']


def test_only_a_scan_like_the_training_is_ruled_out(folder, scan):
    "A value that no header has is reported and does not warn; a value that differs does."
    from ich_fastai.infer import load_model, predict_study
    from ich_fastai.scan import not_recorded
    model = load_model(folder)
    cuts = dict(label='any', rule_out=1.1, urgent=1.2)  # every probability is below
    model.about['study'] = dict(model.about['study'], triage=cuts)
    for usual, triage in (({}, 'rule out'), (dict(spacing=[.1, .2]), 'look')):
        model.about['usual'] = usual
        (one,) = predict_study(model, scan)['studies']
        values = {k: np.nan if v is None else v for k, v in one['figures'].items()}
        (note,) = not_recorded(values, usual)
        assert one['triage'] == triage and one['comparable'] == (triage == 'rule out')
        assert note in one['warnings'] and (len(one['warnings']) > 1) == (triage == 'look')


def test_a_scan_for_bone_differs_from_the_training(folder, scan):
    from ich_fastai.infer import predict_study
    for o in scan.iterdir(): edit(o, ConvolutionKernel='H70h')
    (one,) = predict_study(folder, scan)['studies']
    assert any('bone' in o for o in one['warnings']) and not one['comparable']


def test_half_a_scan_is_answered_with_a_warning(folder, scan):
    from ich_fastai.infer import predict_study
    for o in sorted(scan.iterdir(), key=height)[7:]: o.unlink()
    (one,) = predict_study(folder, scan)['studies']
    assert any(o.startswith('few_slices') for o in one['warnings'])


def test_a_missing_slice_is_said(folder, scan):
    from ich_fastai.infer import predict_study
    sorted(scan.iterdir(), key=height)[8].unlink()
    (one,) = predict_study(folder, scan)['studies']
    assert any(o.startswith('gap') for o in one['warnings'])


def test_other_pixels_differ_from_the_training(folder, scan):
    from ich_fastai.infer import predict_study
    for o in scan.iterdir(): edit(o, PixelSpacing=[3., 3.])
    (one,) = predict_study(folder, scan)['studies']
    assert any('pixels are 3.00 mm wide' in o for o in one['warnings']) and not one['comparable']


def test_several_scans_come_most_urgent_first(folder, tmp_path):
    from ich_fastai.infer import predict_study
    from ich_fastai.infer.predict import QUEUE
    from ich_fastai.phantom import write_patient
    (tmp_path/'many').mkdir()
    for i in range(4): write_patient(tmp_path/'many', 5, i, False, 128, 10)
    found = predict_study(folder, tmp_path/'many')['studies']
    places = [QUEUE.index(o['triage']) for o in found]
    assert len(found) >= 4 and places == sorted(places)


def test_damaged_model_folders(folder, scan, tmp_path):
    from ich_fastai.infer import load_model
    def copy(): return shutil.copytree(folder, tmp_path/f'm{len(list(tmp_path.iterdir()))}')
    bad = copy()
    data = bytearray((bad/'model.onnx').read_bytes())
    data[len(data) // 2] ^= 1
    (bad/'model.onnx').write_bytes(data)
    with pytest.raises(ModelError, match='not the file that was exported'): load_model(bad)
    newer = copy()
    about = json.loads((newer/'pipeline.json').read_text())
    (newer/'pipeline.json').write_text(json.dumps(about | dict(format=99)))
    done = predict(newer, scan)
    assert done.returncode == 1 and 'format 99' in done.stderr and 'Traceback' not in done.stderr
    sly = copy()
    (sly/'weights.bin').write_bytes(b'\x80\x04.')
    with pytest.raises(ModelError, match='weights.bin'): load_model(sly)
    for name in ('model.onnx', 'head.onnx', 'model.safetensors'):  # a pickle under a good name
        sly = copy()
        (sly/name).write_bytes(b'\x80\x04.')
        with pytest.raises(ModelError, match='not the file that was exported'): load_model(sly)
    bare = copy()
    (bare/'model.onnx').unlink()
    with pytest.raises(ModelError, match='cannot be read'): load_model(bare)
    edited = copy()
    (edited/'pipeline.json').write_text(json.dumps(about | dict(vocab=about['vocab'][::-1])))  # labels in another order
    with pytest.raises(ModelError, match='changed after it was exported'): load_model(edited)


def test_two_thousand_slices_without_torch_in_little_memory(folder, scan, tmp_path):
    "Copies under other names, in one folder: the process stays small, and torch is never loaded."
    (tmp_path/'big').mkdir()
    originals = [pydicom.dcmread(o) for o in sorted(scan.iterdir())]
    for i in range(2000):
        ds = originals[i % len(originals)]
        ds.SOPInstanceUID, ds.SeriesInstanceUID = f'ID_{i:06d}', f'ID_s{i // len(originals)}'
        ds.save_as(tmp_path/'big'/f'{i:06d}.dcm')
    if sys.platform != 'linux': pytest.skip('measures memory as Linux does')
    # `ru_maxrss` would also count the test process, from which this one was forked
    code = ('import re, sys\nfrom ich_fastai.infer import predict_study\n'
            f'found = predict_study({str(folder)!r}, {str(tmp_path/"big")!r})\n'
            'assert "torch" not in sys.modules and "fastai" not in sys.modules\n'
            'kb = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])\n'
            'print(found["files"]["found"], len(found["studies"]), kb // 1024)')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    n, scans, mb = map(int, done.stdout.split())
    assert n == 2000 and scans == -(-2000 // len(originals)) and mb < 300, done.stdout


def test_nothing_is_reported_to_anybody(folder, scan, tmp_path):
    "By default ONNX Runtime from PyPI keeps an id of the machine and a queue of reports."
    (tmp_path/'home').mkdir()
    names = 'HOME', 'USERPROFILE', 'TMPDIR', 'TEMP', 'TMP', 'XDG_CACHE_HOME', 'LOCALAPPDATA'
    home = dict.fromkeys(names, str(tmp_path/'home'))
    done = predict(folder, scan, env={k: v for k, v in os.environ.items() if k != 'ORT_DISABLE_TELEMETRY'} | home)
    assert done.returncode == 0, done.stderr
    assert [o.name for o in (tmp_path/'home').rglob('*') if o.is_file()] == []


def test_the_first_slice_comes_soon(folder, scan):
    "CPU seconds of a fresh process until the first batch is answered."
    code = ('import sys, time\nfrom ich_fastai.cli import parser\nfrom ich_fastai import infer\n'
            'predict = infer.Model.predict\n'
            'def first(*args):\n'
            '    predict(*args)\n'
            '    print(time.process_time(), "pandas" in sys.modules, "torch" in sys.modules)\n'
            '    raise SystemExit\n'
            f'infer.Model.predict = first\ninfer.predict_study({str(folder)!r}, {str(scan)!r})')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
    seconds, pandas, torch = done.stdout.split()
    assert (pandas, torch) == ('False', 'False') and float(seconds) < 2, done.stdout  # 0.6 on a quiet machine


def test_real_scans(real, folder):
    "A plastic head and single slices of RSNA: every file is accounted for."
    from ich_fastai.infer import predict_study
    found = predict_study(folder, real/'ct_series_philips_phantom')
    assert found['files']['found'] == len(list((real/'ct_series_philips_phantom').iterdir()))
    assert not any(o['comparable'] for o in found['studies'])
    rsna = predict_study(folder, real/'rsna2019_sample')
    assert rsna['files']['found'] == 21 and rsna['files']['answered'] == 17
    assert all(np.isfinite(list(o['probability'].values())).all() for o in rsna['studies'] if o['probability'])


def test_dicom_out_is_linked_to_the_scan(folder, scan, tmp_path):
    from ich_fastai.infer.page import write_answer
    pytest.importorskip('highdicom')
    found = write_answer(folder, with_uids(scan), tmp_path/'out', sr=True, sc=True)
    (one,), headers = found['studies'], [pydicom.dcmread(o, stop_before_pixels=True) for o in scan.iterdir()]
    sr = pydicom.dcmread(tmp_path/'out'/'report-1.dcm')
    (series,) = sr.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    assert sr.StudyInstanceUID == headers[0].StudyInstanceUID
    assert series.SeriesInstanceUID == headers[0].SeriesInstanceUID
    assert {o.ReferencedSOPInstanceUID for o in series.ReferencedSOPSequence} == {o.SOPInstanceUID for o in headers}
    text = sr.to_json()
    assert 'RESEARCH' in sr.ContentQualification and 'NOT FOR DIAGNOSIS' in sr.SeriesDescription
    made = found['model']
    words = *one['probability'], *one['warnings'], made['run'], made['hash'][:12], made['arch']
    assert all(o in text for o in words)
    captures = sorted((tmp_path/'out'/'heat-1').iterdir())
    assert len(captures) == 3
    for o in map(pydicom.dcmread, captures):
        assert o.ContentQualification == 'RESEARCH' and 'NOT FOR DIAGNOSIS' in o.SeriesDescription
        assert o.pixel_array.shape == (512, 512, 3)
        assert o.ReferencedSeriesSequence[0].SeriesInstanceUID == headers[0].SeriesInstanceUID
        assert o.SourceImageSequence[0].ReferencedSOPInstanceUID in {h.SOPInstanceUID for h in headers}


WHOLE = dict(SliceThickness=5., BodyPartExamined='HEAD', StudyDate='20260101', StudyTime='120000', StudyID='1',
             PatientName='A^B')


@pytest.mark.parametrize('tags', [{}, WHOLE], ids=['as in RSNA', 'whole header'])
def test_dicom_out_validates(folder, scan, tmp_path, tags):
    "dciodvfy of dicom3tools finds no error; the only terms that it does not know are our own."
    from ich_fastai.infer.page import write_answer
    pytest.importorskip('highdicom')
    if shutil.which('dciodvfy') is None: pytest.skip('dciodvfy is not installed: apt-get install dicom3tools')
    write_answer(folder, with_uids(scan, **tags), tmp_path/'out', sr=True, sc=True)
    for o in sorted((tmp_path/'out').rglob('*.dcm')):
        said = subprocess.run(['dciodvfy', '-new', str(o)], capture_output=True, text=True, timeout=60)
        lines = [k for k in (said.stdout + said.stderr).splitlines() if k.startswith(('Error', 'Warning'))]
        strange = [k for k in lines if not ('99ICH' in k or not tags and 'needed to build DICOMDIR' in k)]
        assert not strange, '\n'.join(strange)


def test_dicom_out_needs_uids(folder, scan, tmp_path):
    "Ids as in RSNA's files: one line, no warnings of a library, and the answer is written."
    pytest.importorskip('highdicom')
    done = predict(folder, scan, '--out', tmp_path/'out', '--sr', '--sc')
    assert done.returncode == 1 and 'no valid SOP' in done.stderr
    assert 'UserWarning' not in done.stderr and 'Traceback' not in done.stderr
    assert (tmp_path/'out'/'prediction.json').exists() and not list((tmp_path/'out').rglob('*.dcm'))


def test_reports_join_slices_by_the_rules_of_prediction():
    "`metrics.by_group` joins a whole table, `scan.join_slices` one scan, and both by the same rules."
    import pandas as pd
    from ich_fastai.metrics import by_group
    from ich_fastai.scan import RULES, join_slices
    rng = np.random.default_rng(0)
    p, by = rng.random((60, 2)) ** 3, np.repeat(np.arange(6), 10)
    p[:10], p[10:20, 0] = 1, 0  # certain, and impossible
    preds = pd.DataFrame(dict(group=by, z=np.tile(np.arange(10.), 6), p_a=p[:, 0], p_b=p[:, 1], y_a=0., y_b=1.))
    for rule in RULES:
        joined = by_group(preds.sample(frac=1, random_state=1), ['a', 'b'], how=rule)[['p_a', 'p_b']].to_numpy()
        assert np.allclose(joined, [join_slices(p[by == i], rule) for i in range(6)], rtol=0, atol=1e-14), rule
