"""Answers for one slice and for a scan of 35 slices, against fastai's own calls; and how soon `ich predict` starts."""

import functools
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest.mock import patch

import numpy as np
from fastai.learner import Learner

from ich_fastai.clean import clean_dicoms
from ich_fastai.export import export_run, folder
from ich_fastai.export.network import try_int8
from ich_fastai.images.make import rgb_input
from ich_fastai.infer import Model, load_model, predict_study
from ich_fastai.phantom import write_patient
from ich_fastai.train import train_binary

from . import peers
from .common import DATA, check, limit, one_thread, phantom_files, quiet, row, timed
from .workers import run

SLICES, SIZE = 35, 256
ASKED = dict(mobilenet_v2=dict(slice=5, slice8=9, scan=12), resnet18=dict(slice=2, slice8=6, scan=8))

def trained(
    arch: str, # name of an architecture
    out: Path, # gets the cleaned files, the run and both model folders
) -> tuple[Learner, Model, Model]: # fastai's, ours in 32 bits and in 8
    "Train a network on the phantom for one epoch: its speed matters here, and its answers do not."
    labels = DATA/'phantom'/'stage_2_train.csv'
    # after one epoch a network may lose more AUC in 8 bits than is allowed; here it is used all the same
    anyway = functools.partial(try_int8, most=1)
    with quiet():
        clean_dicoms(phantom_files(), out/'clean', labels=labels, size=SIZE, min_brain=0, workers=1)
        done = train_binary(out/'clean', arch=arch, weights='none', sizes=(SIZE,), epochs=1, bs=16, lr=1e-3, valid=.3,
                            test=.2, keep='last', results=out)
        model = load_model(export_run(done, out/f'{arch}-32', root=out), 1)
        with patch.object(folder, 'try_int8', anyway): export_run(done, out/f'{arch}-8', root=out, int8=True)
    small = load_model(out/f'{arch}-8', 1)
    learn = done.learn
    learn.model.cpu()
    return learn, model, small

def scan_files(
    out: Path, # gets the files
) -> list[Path]:
    "Write one series of 35 slices with head, 512 x 512, as a scanner writes it."
    (out/'scan').mkdir()
    with quiet():
        for one in write_patient(out/'scan', 23, 0, False, 512, SLICES):
            if one['blank']: (out/'scan'/f"{one['sop']}.dcm").unlink()
    return sorted((out/'scan').iterdir())

def fastai_scan(
    learn: Learner, # fastai's
    files: list[Path], # of a scan
    tmp: Path, # gets the images
) -> list[float]: # a probability for each file
    "Do it with fastai: read, repair, scale, mask, box, crop, windows, JPEG, then `predict`."
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
predict = infer.Model.predict
def first(*args):
    predict(*args)
    memory = re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]
    print(time.process_time(), 'torch' in sys.modules, memory)
    raise SystemExit
infer.Model.predict = first
infer.predict_study(infer.load_model({model!r}, 1), {scan!r}, bs=1)
'''

def cpu_of(
    code: str, # a program
    rounds: int, # how often it is run
) -> float: # median CPU seconds of a fresh Python that runs it
    "Run a program to its end, several times."
    return statistics.median(run('-c', code) for _ in range(rounds))

def check_answers(
    arch: str, # name of the network
    learn: Learner, # fastai's
    model: Model, # ours
    images: list[Path], # cleaned images
    scan: Path, # folder of a scan
) -> list[dict]: # rows of the table
    "Compare the answers before anything is timed."
    found = predict_study(model, scan)
    one_scan = len(found['studies']) == 1 and found['files']['answered'] == SLICES
    with quiet(), learn.no_bar(): theirs = np.array([float(learn.predict(fn)[2][1]) for fn in images])
    ours = np.array([model.predict(rgb_input(str(fn), SIZE)[None])[0, 0] for fn in images])
    apart = float(np.abs(ours - theirs).max())
    answered = f"{len(found['studies'])} series, {found['files']['answered']} slices answered"
    return [check(f'{arch}: probability of {len(images)} images, ours and learn.predict', f'{apart:.1e} apart at most',
                  apart <= 1e-4),
            check(f'{arch}: the scan', answered, one_scan)]

def race_slice(arch: str, learn: Learner, model: Model, small: Model, fn: Path, rounds: int) -> list[dict]:
    "Race an answer for one slice from its JPEG."
    def ask(net): return net.predict(rgb_input(str(fn), SIZE)[None])
    ways = dict(ours=lambda: ask(model), int8=lambda: ask(small), fastai=lambda: learn.predict(fn))
    with learn.no_bar(): ms = {k: v * 1000 for k, v in timed(ways, rounds).items()}
    asked, work = ASKED[arch], f'{arch}: one slice from its JPEG'
    return [row(f'{work}, 32 bits', 'learn.predict', ms['ours'], ms['fastai'], asked['slice']),
            check(f'{arch}: the network in 8 bits', small.network, small.network == 'int8.onnx'),
            row(f'{work}, 8 bits', 'learn.predict', ms['int8'], ms['fastai'], asked['slice8'])]

def race_scan(arch: str, learn: Learner, model: Model, small: Model, scan: Path, rounds: int) -> list[dict]:
    "Race the answers for a scan, in this process."
    files, peer = sorted(scan.iterdir()), 'fastai.medical + learn.predict'
    with tempfile.TemporaryDirectory() as made, learn.no_bar():
        spent = timed(dict(ours=lambda: predict_study(model, scan), int8=lambda: predict_study(small, scan),
                           fastai=lambda: fastai_scan(learn, files, Path(made))), min(rounds, 3))
    ms = {k: v * 1000 / SLICES for k, v in spent.items()}
    work = f'{arch}: a scan of {SLICES} from DICOM, warm, per slice'
    return [row(work, peer, ms['ours'], ms['fastai'], ASKED[arch]['scan']),
            row(f'{arch}: the same in 8 bits', peer, ms['int8'], ms['fastai'])]

def race_start(arch: str, learn: Learner, model: Model, scan: Path, tmp: Path, rounds: int) -> list[dict]:
    "Race whole processes, and measure what `ich predict` needs until the first slice is answered."
    learn.export(tmp/'export.pkl')
    root, where = str(Path(__file__).parent.parent), str(model.folder.path)
    theirs = cpu_of(COLD_FASTAI.format(root=root, pickle=str(tmp/'export.pkl'), scan=str(scan)), 1)
    ours = cpu_of(COLD_OURS.format(model=where, scan=str(scan)), min(rounds, 3))
    code = FIRST.format(model=where, scan=str(scan))
    p = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    seconds, torch_there, kb = p.stdout.split()
    work = f'{arch}: a scan of {SLICES}, cold start, the whole process'
    return [row(work, 'load_learner + the same', ours * 1000, theirs * 1000, 15),
            limit(f'{arch}: `ich predict` until the first slice is answered', float(seconds), 's CPU', .6),
            limit(f'{arch}: memory by then', int(kb) / 1024, 'MB', 300),
            check(f'{arch}: torch is not imported', torch_there, torch_there == 'False')]

def rows_of(
    arch: str, # name of an architecture
    rounds: int, # how often everything is timed
    tmp: Path, # gets all files
) -> list[dict]: # rows of the table
    "Race one network."
    learn, model, small = trained(arch, tmp)
    scan = scan_files(tmp)[0].parent
    images = sorted((tmp/'clean'/'images').iterdir())[:SLICES]
    return [*check_answers(arch, learn, model, images, scan),
            *race_slice(arch, learn, model, small, images[0], rounds),
            *race_scan(arch, learn, model, small, scan, rounds),
            *race_start(arch, learn, model, scan, tmp, rounds)]

def compare(rounds: int = 7) -> list[dict]: # rows of the table
    "Race both networks."
    one_thread()
    rows = []
    for arch in ASKED:
        with tempfile.TemporaryDirectory() as tmp: rows += rows_of(arch, rounds, Path(tmp))
    return rows
