"The names that users' notebooks rely on exist and take the arguments they rely on."
import importlib
import inspect
import subprocess
import sys

import pytest

NAMES = dict(
    phantom='make_study write_phantom', dicom='read_header read_hu window WINDOWS pct_window brain_box hist_bins',
    clean='metadata_frame clean_dicoms', frames='rsna_labels check_frame split_by_patient split_by_slice audit_leakage',
    datasets='datasets load_dataset', data='binary_block multilabel_block multiclass_block ich_tfms',
    models='archs create_model',
    metrics='accuracy_multi rsna_log_loss auc_ci report_card', runs='load_run runs_table',
    train='train_binary train_multilabel train_multiclass cross_validate', report='write_report',
    explain='grad_cam', export='export_run', infer='load_model predict_study')


@pytest.mark.parametrize('module', NAMES)
def test_names(module):
    m = importlib.import_module(f'ich_fastai.{module}')
    for name in NAMES[module].split(): assert hasattr(m, name), name


def defaults(f): return {k: p.default for k, p in inspect.signature(f).parameters.items()}


def test_signatures():
    from ich_fastai.clean import clean_dicoms
    from ich_fastai.train import cross_validate, train_binary, train_multilabel
    d = defaults(clean_dicoms)
    assert (d['size'], d['windows'], d['min_brain'], d['crop'], d['format'], d['quality']) == (256,
        ('brain', 'subdural', 'soft'), .02, True, 'jpg', 90)
    want = dict(arch='resnet50', sizes=(256,), epochs=5, freeze_epochs=1, bs=None, lr=None, wd=.01, weights='imagenet',
                fp16=None,
                split='patient', valid=.2, only_bleeds=True, thresh=.5, tfms='ich', seed=42, study='adhoc')
    assert want.items() <= defaults(train_multilabel).items()
    assert defaults(train_binary)['arch'] == 'resnet18'
    assert not {'only_bleeds', 'thresh'} & set(defaults(train_binary))
    assert {'train_fn', 'data', 'folds', 'repeats'} <= set(defaults(cross_validate))


@pytest.mark.parametrize('module', 'core scan dicom dicom.source images frames clean phantom metrics runs cli infer '
                                   'infer.dicom_out infer.page infer.app'.split())
def test_no_torch(module):
    "Reading, cleaning and measuring must not load torch."
    code = f"import sys, ich_fastai.{module}; sys.exit('torch' in sys.modules or 'fastai' in sys.modules)"
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0
