"What several tests use: a small phantom set, raw and cleaned, made once."
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
REAL = Path(os.environ.get('ICH_REAL_DATA', ROOT.parent/'shared'/'data'))


@pytest.fixture(scope='session')
def raw(tmp_path_factory):
    "RSNA layout: `stage_2_train/` and `stage_2_train.csv`."
    from ich_fastai.phantom import write_phantom
    out = tmp_path_factory.mktemp('phantom')/'set'
    write_phantom(out, patients=8, seed=7, size=128, n_slices=10, workers=1)
    return out


@pytest.fixture(scope='session')
def cleaned(raw, tmp_path_factory):
    "The same, cleaned to 64 px with labels."
    from ich_fastai.clean import clean_dicoms
    out = tmp_path_factory.mktemp('cleaned')/'clean'
    clean_dicoms(raw/'stage_2_train', out, labels=raw/'stage_2_train.csv', size=64, workers=1)
    return out


@pytest.fixture(scope='session')
def folder(cleaned, tmp_path_factory):
    "A model folder of a network that saw the small phantom set for an epoch."
    import torch
    from ich_fastai.export import export_run
    from ich_fastai.train import train_multilabel
    torch.set_num_threads(1)
    tmp = tmp_path_factory.mktemp('model')
    run = train_multilabel(cleaned, arch='resnet10_narrow', weights='none', sizes=(64,), epochs=1, lr=3e-3, bs=16,
                           only_bleeds=False, valid=.4, test=.2, seed=3, results=tmp)
    return export_run(run, tmp/'out', root=tmp)


@pytest.fixture
def scan(tmp_path):
    "A new phantom patient."
    from ich_fastai.phantom import write_patient
    (tmp_path/'scan').mkdir()
    write_patient(tmp_path/'scan', 99, 1, False, 128, 14)
    return tmp_path/'scan'


@pytest.fixture(scope='module')
def one_thread():
    "Torch with one thread: several would wait for each other on a busy machine, and sum in another order."
    import torch
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def real():
    "Folder of small real inputs, which are not part of the repository."
    if not REAL.is_dir(): pytest.skip(f'no real data at {REAL} (set ICH_REAL_DATA)')
    return REAL
