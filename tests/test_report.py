"The report page: nothing from outside, nothing private, nothing mixed, and no crash if a run kept little."
import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from ich_fastai.clean.folder import MANIFEST
from ich_fastai.core import LABELS, DataError, IchError
from ich_fastai.metrics import report_card
from ich_fastai.report import write_report
from ich_fastai.report.facts import report_tables
from ich_fastai.runs import Run, save_run

PATIENTS, SLICES = 12, 6


@pytest.fixture(scope='module')
def cleaned(tmp_path_factory):
    "A cleaned folder of grey noise with labels, as `ich clean` writes it."
    home, rng = tmp_path_factory.mktemp('set')/'clean', np.random.default_rng(0)
    (home/'images').mkdir(parents=True)
    df = pd.DataFrame(dict(group=np.repeat([f'p{i:02d}' for i in range(PATIENTS)], SLICES)))
    df = df.assign(sop=[f'ID_{i}' for i in df.index], fn=[f'images/ID_{i}.jpg' for i in df.index],
                   z=5. * (df.index % SLICES),
                   study=df.group, series=df.group, phantom=True, px_fixed=df.index < 4)
    df = df.reindex(columns=MANIFEST)
    for i, o in enumerate(LABELS[:-1]): df[o] = ((df.index // SLICES % 6 == i) & (df.index % SLICES > 2)).astype('int8')
    df['any'] = df[list(LABELS[:-1])].max(axis=1)
    df['labels'] = [';'.join(o for o in LABELS[:-1] if row[o]) for _, row in df.iterrows()]
    for fn in df.fn: Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(home/fn)
    df.to_parquet(home/'manifest.parquet')
    counts = dict(found=80, written=72, blank=6, quarantined=2, skipped=0,
                  folder=dict(images=72, blank=6, quarantined=2))
    about = dict(counts, arguments=dict(min_brain=.02, windows=['brain', 'subdural', 'soft'], src='<b>raw</b>'),
                 reasons=dict(bad_pixels=2), px_fixed=4, data_kind='phantom',
                 labels=dict(blank_positive=dict(any=1), images_without_label=0, labels_without_image=2))
    (home/'clean.json').write_text(json.dumps(about))
    return home


def make_run(cleaned, root, id='one', task='multilabel', vocab=LABELS, kind='phantom', seed=0):
    "A run with predictions by chance, saved."
    df, rng = pd.read_parquet(cleaned/'manifest.parquet'), np.random.default_rng(seed)
    df['split'] = np.where(df.index < 24, 'train', np.where(df.index < 36, 'valid', 'test'))
    preds = df.loc[df.split != 'train', ['fn', 'group', 'split']].reset_index(drop=True)
    preds['fn'] = [str(cleaned/o) for o in preds.fn]
    for o in vocab:
        preds[f'y_{o}'] = df.loc[df.split != 'train', o].to_numpy(float)
        preds[f'p_{o}'] = rng.uniform(size=len(preds))
    test = preds[preds.split == 'test']
    card = report_card(test[[f'y_{o}' for o in vocab]], test[[f'p_{o}' for o in vocab]], vocab, test.group, n=50)
    data = dict(name='clean', hash='ab', split='patient', vocab=list(vocab), images=df.split.value_counts().to_dict(),
                patients=df.groupby('split').group.nunique().to_dict())
    record = dict(function=f'train_{task}', data=data, data_kind=kind, seconds=3, lr=1e-3, grey_baseline=card,
                  environment=dict(git=dict(revision='f'*40, dirty=False), device='cpu', versions=dict(torch='2')))
    args = dict(data=str(cleaned), arch='resnet18', seed=1, weights='/home/somebody/w.pth',
                study='<script>alert(1)</script>')
    run = Run(id, task, args, root/'runs'/id, dict(card, on='test', operating={}), record, preds=preds)
    run.log = pd.DataFrame(dict(stage=[0, 1], size=[32, 64], frozen=[True, False], train_loss=[.7, .6],
                                valid_loss=[.7, .5], accuracy_multi=[.8, .9], auc=[.5, np.nan]))
    run.path.mkdir(parents=True)
    pd.DataFrame(dict(lr=[1e-5, 1e-4, 1e-3], loss=[.7, .6, 9.])).to_csv(run.path/'lr_find.csv', index=False)
    save_run(run)
    return run


class Page(HTMLParser):
    "What a page says and points to; fails if a tag is not closed or an image has no words."
    def __init__(self, fn):
        super().__init__()
        self.open, self.links, self.ids, self.levels, self.text = [], [], [], [], ''
        self.raw = fn.read_text(encoding='utf-8')
        self.feed(self.raw)
        assert not self.open
        self.text = ' '.join(self.text.split())

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag not in ('img', 'meta'): self.open.append(tag)
        if tag == 'img': assert attrs['alt'] and attrs['src'].startswith('data:image/')
        if re.fullmatch('h[1-6]', tag): self.levels.append(int(tag[1]))
        if 'id' in attrs: self.ids.append(attrs['id'])
        if 'href' in attrs: self.links.append(attrs['href'])

    def handle_endtag(self, tag): assert self.open.pop() == tag
    def handle_data(self, data): self.text += data


@pytest.fixture(scope='module')
def report(cleaned, tmp_path_factory):
    home = tmp_path_factory.mktemp('report')
    make_run(cleaned, home/'results')
    make_run(cleaned, home/'results', 'two', 'binary', ('any',), seed=1)
    return write_report(['one', 'two'], home/'out', cleaned=cleaned, root=home/'results', command='ich demo')


def test_page_stands_alone(report, cleaned):
    page = Page(report)
    assert report.name == 'report.html' and report.stat().st_size < 1_500_000
    assert not re.search(r'https?://|file:|url\(|@import|<script|<link', page.raw)
    assert all(o.startswith('#') for o in page.links) and {o[1:] for o in page.links} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids)) and page.levels[0] == 1 and max(np.diff(page.levels)) == 1
    for o in str(cleaned), str(cleaned.parent), '/home/somebody', Path.home().as_posix() + '/': assert o not in page.raw
    assert '&lt;script&gt;' in page.raw and '<b>raw</b>' not in page.raw


def test_page_says_what_matters(report):
    text = Page(report).text
    for o in ('Phantom data.', 'not a medical device', '80 files were found', 'accounts for every file', 'wrapped',
              '1 any', 'No patient, study or series is in two sets', 'guessing', 'always saying no',
              'grey values only', 'difference', 'Epoch 2 of 2 was kept', 'One patient, from bottom to top',
              'Drawn at random', 'actual:', 'ich demo', 'ffffffffffff', '6 patients are few',
              "train_multilabel(**load_run('one', '…/results').args)",
              'RSNA log loss', 'Runs compared', 'over any', 'How far the probabilities can be trusted', 'divided by',
              'patient, max', 'interval (95 %)', 'Intracranial Hemorrhage Detection, 2022'): assert o in text, o
    assert '✓' in text and '✗' in text


def test_tables_beside_the_page(report):
    tables = {o.stem: pd.read_csv(o) for o in (report.parent/'tables').glob('*.csv')}
    names = 'results', 'labels', 'sides', 'grid', 'points', 'levels', 'calibration', 'compare'
    assert set(tables) == {f'{o}_phantom' for o in names} | {'cleaning', 'label_counts'}
    assert (tables['results_phantom'].difference.dropna() == 0).all()  # the baseline is the run itself here
    sides = tables['sides_phantom'].query("run == 'two'").set_index('side')
    assert sides.images.to_dict() == dict(train=24, valid=12, test=36) and sides['any'].sum() == 30
    assert not any('/' in str(o) for o in tables['grid_phantom'].image)


def test_same_again(report, cleaned):
    home = report.parent.parent
    again = write_report(['one', 'two'], home/'again', cleaned=cleaned, root=home/'results', command='ich demo')
    assert again.read_bytes() == report.read_bytes()


def test_record_only(cleaned, tmp_path):
    run = make_run(cleaned, tmp_path/'results', task='binary', vocab=('any',))
    for o in 'log.csv', 'preds.parquet', 'lr_find.csv': (run.path/o).unlink()
    text = Page(write_report('one', tmp_path/'out', root=tmp_path/'results')).text
    for o in ('predictions of this run were not kept', 'log of this run was not kept', 'No cleaned folder was named'):
        assert o in text, o


def test_unfinished_run(tmp_path):
    record = dict(status='interrupted', data_kind='phantom')
    run = Run('stopped', 'binary', dict(arch='resnet18'), tmp_path/'stopped', {}, record)
    assert 'no results: its status is interrupted' in Page(write_report(run, tmp_path/'out')).text


def test_phantom_and_real_apart(cleaned, tmp_path):
    run = make_run(cleaned, tmp_path, task='binary', vocab=('any',))
    real = replace(run, id='other', record=dict(run.record, data_kind='real'))
    tables = report_tables([run, real])
    assert set(tables['results_phantom'].run) == {'one'} and set(tables['results_real'].run) == {'other'}
    assert not {'results', 'labels', 'sides'} & set(tables)
    text = Page(write_report([run, real], tmp_path/'out')).text
    assert 'Phantom data.' in text and 'Real images.' in text and ': real data' in text


def test_classes_and_folds(cleaned, tmp_path):
    run = make_run(cleaned, tmp_path, 'c', 'multiclass', ('subdural', 'any'))
    assert 'The most probable class is the answer.' in Page(write_report(run, tmp_path/'a')).text
    args = dict(train_fn='train_binary', data='head_ct', folds=2, seed=1)
    preds = run.preds.assign(split='test', repeat=0, fold=(run.preds.group > 'p07').astype(int))
    folds = [dict(fold=0, auc=.9, run='r0')]
    over = {f'{k}_{o}': .9 for k in ('auc', 'accuracy') for o in ('mean', 'std', 'min', 'max')}
    cv = replace(run, task='cross_validation', args=args, preds=preds, log=None,
                 metrics=dict(run.metrics, on='held-out folds', folds=folds, over_folds=over),
                 record=dict(run.record, runs=['r0', 'r1']))
    text = Page(write_report(cv, tmp_path/'b', cleaned=cleaned)).text
    again = "cross_validate(train_binary, 'head_ct', folds=2"
    for o in 'held out in exactly one fold', '0.900 ± 0.900', 'r0, r1', again:
        assert o in text, o


def test_folder_without_labels(cleaned, tmp_path):
    df = pd.read_parquet(cleaned/'manifest.parquet')[MANIFEST]
    home = tmp_path/'bare'
    home.mkdir()
    df.assign(z=np.nan).to_parquet(home/'manifest.parquet')
    about = json.loads((cleaned/'clean.json').read_text())
    del about['labels']
    (home/'clean.json').write_text(json.dumps(about))
    run = make_run(cleaned, tmp_path, task='binary', vocab=('any',))
    text = Page(write_report(run, tmp_path/'out', cleaned=home)).text
    for o in ('cleaned without labels', 'does not match the data of this run', 'image not kept', 'no labels'):
        assert o in text, o


def test_clear_errors(cleaned, tmp_path):
    run = make_run(cleaned, tmp_path/'results', task='binary', vocab=('any',))
    with pytest.raises(IchError, match='no run to report'): write_report([], tmp_path/'out')
    root = tmp_path/'results'
    with pytest.raises(IchError, match="no run 'onn'.*one"): write_report('onn', tmp_path/'out', root=root)
    with pytest.raises(DataError, match='no cleaned folder'): write_report(run, tmp_path/'out', cleaned=tmp_path)
    (tmp_path/'file').write_text('')
    with pytest.raises(IchError, match='is a file'): write_report(run, tmp_path/'file')
    assert not (tmp_path/'out').exists()


def test_imports_no_torch_and_no_pyplot():
    code = "import sys, ich_fastai.report; sys.exit(bool({'torch', 'matplotlib.pyplot'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0
