"""An answer for one slice and for a scan of 35, against fastai's own calls; and how soon `ich predict` begins."""

import functools
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest.mock import patch

import numpy as np
from fastai.learner import Learner

from ich_fastai import export
from ich_fastai.clean import clean_dicoms
from ich_fastai.infer import Model, load_model, predict_study
from ich_fastai.images.make import rgb_input
from ich_fastai.phantom import write_patient
from ich_fastai.train import train_binary

from . import peers
from .common import DATA, check, limit, one_thread, phantom_files, quiet, row, timed
from .workers import run

SLICES, SIZE = 35, 256
ASKED = dict(mobilenet_v2=dict(slice=5, slice8=9, scan=12), resnet18=dict(slice=2, slice8=6, scan=8))

def trained(
    arch: str,
    out: Path, # gets the cleaned files, the run and both model folders
) -> tuple[Learner, Model, Model]: # fastai's, ours in 32 bits and in 8
    "A network that saw the phantom for an epoch: what it answers does not matter, how long it takes does."
    labels = DATA/'phantom'/'stage_2_train.csv'
    with quiet():
        clean_dicoms(phantom_files(), out/'clean', labels=labels, size=SIZE, min_brain=0, workers=1)
        it = train_binary(out/'clean', arch=arch, weights='none', sizes=(SIZE,), epochs=1, bs=16, lr=1e-3, valid=.3, test=.2, keep='last', results=out)
        model = load_model(export.export_run(it, out/f'{arch}-32', root=out), 1)
        # a network of one epoch may lose more in 8 bits than is allowed; how long it takes is asked all the same
        with patch.object(export, '_make_int8', functools.partial(export._make_int8, most=1)): export.export_run(it, out/f'{arch}-8', root=out, int8=True)
    small = load_model(out/f'{arch}-8', 1)
    learn = it.learn
    learn.model.cpu()
    return learn, model, small

def scan_files(
    out: Path, # gets the files
) -> list[Path]:
    "One series of 35 slices with head, 512 x 512, as it comes from the scanner."
    (out/'scan').mkdir()
    with quiet():
        for o in write_patient(out/'scan', 23, 0, False, 512, SLICES):
            if o['blank']: (out/'scan'/f"{o['sop']}.dcm").unlink()
    return sorted((out/'scan').iterdir())

def fastai_scan(
    learn: Learner,
    files: list[Path],
    tmp: Path, # gets the pictures
) -> list[float]:
    "What fastai offers: read, repair, scale, mask, box, crop, windows, JPEG, then `predict` it."
    peers.fastai_clean(files, tmp, bs=1)
    return [float(learn.predict(tmp/f'{o.stem}.jpg')[2][1]) for o in files]

COLD_FASTAI = '''
import sys, tempfile
from pathlib import Path
sys.path.insert(0, {root!r})
import torch
torch.set_num_threads(1)
from benchmarks import peers
from fastai.learner import load_learner
learn = load_learner({pickle!r})
files = sorted(Path({scan!r}).iterdir())
with tempfile.TemporaryDirectory() as tmp, learn.no_bar():
    peers.fastai_clean(files, Path(tmp), bs=1)
    for o in files: learn.predict(Path(tmp)/f'{{o.stem}}.jpg')
'''
COLD_OURS = '''
import sys
from ich_fastai.cli import main
sys.exit(main(['predict', {model!r}, {scan!r}, '--threads', '1']))
'''
FIRST = '''
import re, sys, time
from ich_fastai import cli, infer
answer = infer._answer_batch
def first(*args):
    answer(*args)
    print(time.process_time(), 'torch' in sys.modules, re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])
    raise SystemExit
infer._answer_batch = first
infer.predict_study(infer.load_model({model!r}, 1), {scan!r}, bs=1)
'''

def cpu_of(
    code: str,
    rounds: int,
) -> float: # median CPU seconds of a fresh Python that runs it
    "Run a program to its end, several times."
    return statistics.median(run('-c', code) for _ in range(rounds))

def rows_of(
    arch: str,
    rounds: int,
    tmp: Path,
) -> list[dict]: # rows of the table
    "Race one network."
    learn, model, small = trained(arch, tmp)
    files, asked = scan_files(tmp), ASKED[arch]
    found = predict_study(model, tmp/'scan')
    one_scan = len(found['studies']) == 1 and found['files']['answered'] == SLICES
    pictures = sorted((tmp/'clean'/'images').iterdir())
    with quiet(), learn.no_bar(): theirs = np.array([float(learn.predict(o)[2][1]) for o in pictures[:SLICES]])
    ours = np.array([model.predict(rgb_input(str(o), SIZE)[None])[0, 0] for o in pictures[:SLICES]])
    apart = float(np.abs(ours - theirs).max())
    res = [check(f'{arch}: probability of {SLICES} pictures, ours and learn.predict', f'{apart:.1e} apart at most', apart <= 1e-4),
           check(f'{arch}: the scan', f"{len(found['studies'])} series, {found['files']['answered']} slices answered", one_scan)]
    one = pictures[0]
    with learn.no_bar():
        spent = timed({'ours': lambda: model.predict(rgb_input(str(one), SIZE)[None]), 'int8': lambda: small.predict(rgb_input(str(one), SIZE)[None]), 'fastai': lambda: learn.predict(one)}, rounds)
    ms = {k: v * 1000 for k, v in spent.items()}
    res.append(row(f'{arch}: one slice from its JPEG, 32 bits', 'learn.predict', ms['ours'], ms['fastai'], asked['slice']))
    res.append(check(f'{arch}: the network in 8 bits', small.network, small.network == 'int8.onnx'))
    res.append(row(f'{arch}: one slice from its JPEG, 8 bits', 'learn.predict', ms['int8'], ms['fastai'], asked['slice8']))
    with tempfile.TemporaryDirectory() as made, learn.no_bar():
        spent = timed({'ours': lambda: predict_study(model, tmp/'scan'), 'int8': lambda: predict_study(small, tmp/'scan'), 'fastai': lambda: fastai_scan(learn, files, Path(made))}, min(rounds, 3))
    ms = {k: v * 1000 / SLICES for k, v in spent.items()}
    res.append(row(f'{arch}: a scan of {SLICES} from DICOM, warm, a slice of it', 'fastai.medical + learn.predict', ms['ours'], ms['fastai'], asked['scan']))
    res.append(row(f'{arch}: the same in 8 bits', 'fastai.medical + learn.predict', ms['int8'], ms['fastai']))
    learn.export(tmp/'export.pkl')
    root = str(Path(__file__).parent.parent)
    cold = {'fastai': cpu_of(COLD_FASTAI.format(root=root, pickle=str(tmp/'export.pkl'), scan=str(tmp/'scan')), 1), 'ours': cpu_of(COLD_OURS.format(model=str(model.folder.path), scan=str(tmp/'scan')), min(rounds, 3))}
    res.append(row(f'{arch}: a scan of {SLICES}, cold start, the whole process', 'load_learner + the same', cold['ours'] * 1000, cold['fastai'] * 1000, 15))
    p = subprocess.run([sys.executable, '-c', FIRST.format(model=str(model.folder.path), scan=str(tmp/'scan'))], capture_output=True, text=True, check=True)
    seconds, torch_there, kb = p.stdout.split()
    return res + [limit(f'{arch}: `ich predict` until the first slice is answered', float(seconds), 's CPU', .6), limit(f'{arch}: memory by then', int(kb) / 1024, 'MB', 300), check(f'{arch}: torch is not imported', torch_there, torch_there == 'False')]

def compare(rounds: int = 7) -> list[dict]: # rows of the table
    "Race both networks."
    one_thread()
    res = []
    for arch in ASKED:
        with tempfile.TemporaryDirectory() as tmp: res += rows_of(arch, rounds, Path(tmp))
    return res
