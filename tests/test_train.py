"Training on a small phantom: it records, repeats, resumes and refuses."
import inspect
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch

from ich_fastai.core import LABELS, SUBTYPES, FrameError, IchError, WeightsError
from ich_fastai.runs import load_run, runs_table
from ich_fastai.train import cross_validate, train_binary, train_multilabel

# a shell that starts programs in the background lets them ignore Ctrl-C: the child takes its usual handler back
CLI = [sys.executable, '-c', 'import signal; signal.signal(signal.SIGINT, signal.default_int_handler); '
       'from ich_fastai.cli import main; raise SystemExit(main())']
pytestmark = pytest.mark.usefixtures('one_thread')
QUICK = dict(arch='resnet10_narrow', weights='none', sizes=(32,), epochs=1, lr=3e-3, bs=16)


def test_record(cleaned, tmp_path):
    run = train_multilabel(cleaned, only_bleeds=False, results=tmp_path, **QUICK)
    rec = json.loads((run.path/'run.json').read_text())
    assert (run.path/'run.json').stat().st_size < 20_000
    assert rec['data_kind'] == 'phantom' and rec['data']['split'] == 'patient' and rec['function'] == 'train_multilabel'
    assert rec['args']['wd'] == .01 and rec['args']['seed'] == 42  # defaults included
    assert {'git', 'versions', 'device'} <= set(rec['environment'])
    images = rec['data']['images']
    assert len(run.preds) == images['valid'] + images['test']
    assert list(run.preds.columns) == ['fn', 'group', 'split'] + [f'{k}_{o}' for o in LABELS for k in 'py']
    assert rec['metrics']['on'] == 'test' and rec['metrics']['overall']['n_images'] == images['test']
    back = load_run(run.id, tmp_path)
    pd.testing.assert_frame_equal(back.preds, run.preds)
    assert len(back.log) == 1 and back.learn is None


def test_same_seed_same_metrics(cleaned, tmp_path):
    a, b, c = (train_binary(cleaned, results=tmp_path, **QUICK, seed=s) for s in (1, 1, 2))
    assert a.metrics == b.metrics != c.metrics
    assert a.record['data']['hash'] == c.record['data']['hash']
    pd.testing.assert_frame_equal(a.preds, b.preds)


def test_only_bleeds_is_the_set_of_the_source_project(cleaned, tmp_path):
    run = train_multilabel(cleaned, results=tmp_path, **QUICK)
    assert set(run.metrics['labels']) == set(SUBTYPES)
    assert run.preds[[f'y_{o}' for o in SUBTYPES]].max(axis=1).eq(1).all()


def test_saved_weights_give_the_saved_predictions(cleaned, tmp_path):
    from ich_fastai.models import create_model, load_weights
    run = train_binary(cleaned, results=tmp_path, **QUICK)
    model = create_model('resnet10_narrow', 2, 'none')
    load_weights(model, run.path/'model.safetensors')
    x = run.learn.dls.test_dl(run.preds[['fn']].iloc[:4]).one_batch()[0].cpu()
    with torch.no_grad(): p = model.eval()(x).softmax(1)[:, 1]
    close = 1e-5 if run.record['environment']['device'] == 'cpu' else 1e-3  # a GPU rounds more
    np.testing.assert_allclose(p.numpy(), run.preds.p_any[:4], atol=close)


@pytest.mark.skipif(sys.platform == 'win32', reason='Windows has no SIGINT for children')
def test_ctrl_c_and_resume(cleaned, tmp_path):
    args = ['train', 'binary', str(cleaned), '--arch', 'resnet10_narrow', '--weights', 'none', '--sizes', '32',
            '--epochs', '12', '--lr', '0.003', '--results', str(tmp_path)]
    p = subprocess.Popen(CLI + args, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)
    while not list(tmp_path.glob('runs/*/state.pth')) and p.poll() is None: time.sleep(.02)
    os.killpg(p.pid, signal.SIGINT)
    err = p.communicate()[1]
    assert p.returncode == 1 and 'Traceback' not in err and 'resume=' in err, err
    left = runs_table(root=tmp_path).iloc[0]
    assert left.status == 'interrupted'
    done = len(load_run(left.id, tmp_path).log)
    assert 0 < done < 12
    same = dict(arch='resnet10_narrow', weights='none', sizes=(32,), epochs=12, lr=.003, results=tmp_path,
                resume=left.id)
    run = train_binary(str(cleaned), **same)
    assert run.id == left.id and run.record['status'] == 'done' and run.log.epoch.tolist() == list(range(12))
    with pytest.raises(IchError, match='cannot be resumed: its status is done'): train_binary(str(cleaned), **same)


@pytest.mark.skipif(sys.platform == 'win32', reason='Windows has no SIGINT for children')
def test_ctrl_c_before_anything_is_saved(cleaned, tmp_path):
    args = ['train', 'binary', str(cleaned), '--arch', 'resnet18', '--weights', 'none', '--sizes', '256',
            '--epochs', '1', '--lr', '0.003', '--results', str(tmp_path)]
    p = subprocess.Popen(CLI + args, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)
    while not list(tmp_path.glob('runs/*/run.json')) and p.poll() is None: time.sleep(.02)
    os.killpg(p.pid, signal.SIGINT)
    err = p.communicate()[1]
    assert p.returncode == 1 and 'nothing was saved' in err and 'resume=' not in err, err


def test_cross_validation_holds_every_image_out_once(cleaned, tmp_path):
    cv = cross_validate(train_binary, cleaned, folds=3, repeats=2, valid=.2, results=tmp_path, **QUICK)
    assert cv.preds.groupby('fn').size().eq(2).all()
    assert len(cv.metrics['folds']) == 6 and len(cv.record['runs']) == 6
    assert 0 <= cv.metrics['over_folds']['accuracy_mean'] <= 1
    assert load_run(cv.id, tmp_path).metrics == cv.metrics


@pytest.mark.parametrize('folds', [1, 10_000])
def test_folds_that_the_patients_cannot_fill(cleaned, tmp_path, folds):
    with pytest.raises(FrameError, match=f'folds is {folds}, and .* patients; give a number from 2 to'):
        cross_validate(train_binary, cleaned, folds=folds, results=tmp_path, **QUICK)
    assert not list(tmp_path.iterdir())


def test_the_record_holds_every_argument(cleaned, tmp_path):
    run = train_binary(cleaned, results=tmp_path, **QUICK)
    assert list(run.args) == [o for o in inspect.signature(train_binary).parameters if o not in ('results', 'resume')]


def test_refusals(cleaned, tmp_path):
    kw = dict(QUICK, results=tmp_path)
    with pytest.raises(IchError, match='resnet18'): train_binary(cleaned, **kw | dict(arch='resnet81'))
    with pytest.raises(IchError, match='phantom'): train_binary('phantm', **kw)
    with pytest.raises(IchError, match='augmentation'): train_binary(cleaned, tfms='ihc', **kw)
    with pytest.raises(FrameError, match='no label'): train_binary(cleaned, label='fracture', **kw)
    with pytest.raises(WeightsError, match='nowhere.pth'): train_binary(cleaned, **kw | dict(weights='nowhere.pth'))
    assert not runs_table(root=tmp_path).status.eq('done').any()


def test_leaking_frame_is_refused(cleaned, tmp_path):
    from ich_fastai.datasets import open_dataset
    df = open_dataset(cleaned).frame
    df['split'] = np.resize(['train', 'valid', 'test'], len(df))
    with pytest.raises(FrameError, match='more than one set'): train_binary(df, results=tmp_path, **QUICK)


def test_weights_that_cannot_be_downloaded(cleaned, tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.setenv('https_proxy', 'http://127.0.0.1:9')  # a place where nobody answers
    with pytest.raises(WeightsError, match="weights='none'"):
        train_binary(cleaned, results=tmp_path, **QUICK | dict(weights='imagenet', arch='resnet18'))
