"A model folder answers for scans as training did, and says why where it cannot."
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
from ich_fastai.modelfolder import ModelError

CLI = [sys.executable, '-c', 'from ich_fastai.cli import main; raise SystemExit(main())']


def edit(fn, **tags):
    ds = pydicom.dcmread(fn)
    for k, v in tags.items(): setattr(ds, k, v)
    ds.save_as(fn)


def predict(*args, **kwargs): return subprocess.run([*CLI, 'predict', *map(str, args)], capture_output=True, text=True, timeout=300, **kwargs)


def test_every_file_is_accounted_for(folder, scan):
    from ich_fastai.infer import predict_study
    (scan/'readme.txt').write_text('hello')
    (scan/'cut.dcm').write_bytes(sorted(scan.glob('*.dcm'))[3].read_bytes()[:2000])
    found = predict_study(folder, scan)
    n = found['files']
    assert n['found'] == len(list(scan.iterdir())) == n['answered'] + n['blank'] + n['quarantined']
    assert {o['file'] for s in found['studies'] for k in ('slices', 'quarantined') for o in s[k]} == {o.name for o in scan.iterdir()}
    assert {o['file'] for s in found['studies'] for o in s['quarantined']} == {'readme.txt', 'cut.dcm'}


def test_a_zip_gives_the_same_answer(folder, scan, tmp_path):
    from ich_fastai.infer import predict_study
    with zipfile.ZipFile(tmp_path/'scan.zip', 'w') as z:
        for o in sorted(scan.iterdir()): z.write(o, o.name)
    a, b = predict_study(folder, scan), predict_study(folder, tmp_path/'scan.zip')
    assert a == b


def test_names_that_lead_outside_write_nothing(folder, scan, tmp_path):
    from ich_fastai.answer import write_answer
    first = sorted(scan.iterdir())[5]
    with zipfile.ZipFile(tmp_path/'evil.zip', 'w') as z: z.write(first, '../../evil.dcm')
    before = sorted(o for o in tmp_path.rglob('*'))
    try: write_answer(folder, tmp_path/'evil.zip', tmp_path/'out')
    except DataError: pass
    assert not list(tmp_path.parent.rglob('evil.dcm'))
    assert [o for o in sorted(tmp_path.rglob('*')) if o not in before and 'out' not in o.parts] == []


@pytest.mark.parametrize('tags, reason', [(dict(Modality='MR'), 'not_ct'), (dict(BodyPartExamined='CHEST'), 'not_head')])
def test_what_is_no_head_ct_gets_no_number(folder, scan, tags, reason):
    for o in scan.iterdir(): edit(o, **tags)
    done = predict(folder, scan)
    assert done.returncode == 1 and reason in done.stderr and 'Traceback' not in done.stderr and done.stderr.count('\n') <= 2


def test_half_a_scan_is_answered_with_a_warning(folder, scan):
    from ich_fastai.infer import predict_study
    for o in sorted(scan.iterdir(), key=lambda o: float(pydicom.dcmread(o, stop_before_pixels=True).ImagePositionPatient[2]))[7:]: o.unlink()
    (one,) = predict_study(folder, scan)['studies']
    assert any(o.startswith('few_slices') for o in one['warnings'])


def test_a_missing_slice_is_said(folder, scan):
    from ich_fastai.infer import predict_study
    sorted(scan.iterdir(), key=lambda o: float(pydicom.dcmread(o, stop_before_pixels=True).ImagePositionPatient[2]))[8].unlink()
    (one,) = predict_study(folder, scan)['studies']
    assert any(o.startswith('gap') for o in one['warnings'])


def test_other_pixels_are_unlike_the_training(folder, scan):
    from ich_fastai.infer import predict_study
    for o in scan.iterdir(): edit(o, PixelSpacing=[3., 3.])
    (one,) = predict_study(folder, scan)['studies']
    assert any('pixels are 3.00 mm wide' in o for o in one['warnings'])


def test_several_scans_come_most_urgent_first(folder, tmp_path):
    from ich_fastai.infer import QUEUE, predict_study
    from ich_fastai.phantom import write_patient
    (tmp_path/'many').mkdir()
    for i in range(4): write_patient(tmp_path/'many', 5, i, False, 128, 10)
    found = predict_study(folder, tmp_path/'many')['studies']
    assert len(found) >= 4 and [QUEUE.index(o['triage']) for o in found] == sorted(QUEUE.index(o['triage']) for o in found)


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


def test_two_thousand_slices_without_torch_in_little_memory(folder, scan, tmp_path):
    "Copies under other names, in one folder: the process stays small, and torch is never loaded."
    (tmp_path/'big').mkdir()
    originals = [pydicom.dcmread(o) for o in sorted(scan.iterdir())]
    for i in range(2000):
        ds = originals[i % len(originals)]
        ds.SOPInstanceUID, ds.SeriesInstanceUID = f'ID_{i:06d}', f'ID_s{i // len(originals)}'
        ds.save_as(tmp_path/'big'/f'{i:06d}.dcm')
    code = ('import re, sys\nfrom ich_fastai.infer import predict_study\n'
            f'found = predict_study({str(folder)!r}, {str(tmp_path/"big")!r})\n'
            'assert "torch" not in sys.modules and "fastai" not in sys.modules\n'
            'print(found["files"]["found"], len(found["studies"]), int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) // 1024)')  # ru_maxrss would tell that of the test process, from which this one was forked
    if sys.platform != 'linux': pytest.skip('measures memory as Linux does')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    n, scans, mb = map(int, done.stdout.split())
    assert n == 2000 and scans == -(-2000 // len(originals)) and mb < 300, done.stdout


def test_nothing_is_reported_to_anybody(folder, scan, tmp_path):
    "ONNX Runtime as it comes from PyPI keeps an id of the machine and a queue of what it reports, unless it is told not to."
    (tmp_path/'home').mkdir()
    home = {k: str(tmp_path/'home') for k in ('HOME', 'USERPROFILE', 'TMPDIR', 'TEMP', 'TMP', 'XDG_CACHE_HOME', 'LOCALAPPDATA')}
    done = predict(folder, scan, env={k: v for k, v in os.environ.items() if k != 'ORT_DISABLE_TELEMETRY'} | home)
    assert done.returncode == 0, done.stderr
    assert [o.name for o in (tmp_path/'home').rglob('*') if o.is_file()] == []


def test_the_first_slice_comes_soon(folder, scan):
    "CPU seconds of a fresh process until the first batch is answered."
    code = ('import sys, time\nfrom ich_fastai.cli import parser\nfrom ich_fastai import infer\n'
            'orig = infer._answer_batch\n'
            'def first(*a):\n    orig(*a)\n    print(time.process_time(), "pandas" in sys.modules)\n    raise SystemExit\n'
            f'infer._answer_batch = first\ninfer.predict_study({str(folder)!r}, {str(scan)!r})')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
    seconds, pandas = done.stdout.split()
    assert float(seconds) < 2 and pandas == 'False', done.stdout + done.stderr  # 0.6 on a quiet machine, see benchmarks


def test_real_scans(real, folder):
    "A plastic head and single slices of RSNA: an answer, or a sentence, with every file accounted for."
    from ich_fastai.infer import predict_study
    found = predict_study(folder, real/'ct_series_philips_phantom')
    assert found['files']['found'] == len(list((real/'ct_series_philips_phantom').iterdir()))
    assert any('unlike the training' in o for s in found['studies'] for o in s['warnings'])
    rsna = predict_study(folder, real/'rsna2019_sample')
    assert rsna['files']['found'] == 21 and rsna['files']['answered'] == 17
    assert all(np.isfinite(list(o['probability'].values())).all() for o in rsna['studies'] if o['probability'])
