"What explore and headers compute, compared with values worked out by hand and with scikit-learn."
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from ich_fastai.core import LABELS, FrameError
from ich_fastai.frames import label_counts
from ich_fastai.studies.explore import (blank_price, cooccurrence, encoding, hu_by_rules, into_bins, label_rate,
    price_of_counts, wrong_share)
from ich_fastai.metrics import compare_preds, say_compare
from ich_fastai.studies.headers import balance, fingerprints, metadata_features, metadata_forest, misaligned


@pytest.fixture(scope='module')
def frame(raw):
    from ich_fastai.clean import metadata_frame
    from ich_fastai.frames import add_labels, rsna_labels
    meta = metadata_frame(raw/'stage_2_train', workers=1)
    return add_labels(meta[meta.reason == ''].reset_index(drop=True), rsna_labels(raw/'stage_2_train.csv'))[0]


@pytest.fixture(scope='module')
def signal():
    "Slices of 30 patients. The column `tells` predicts most of the label; the ids are in no order."
    rng = np.random.default_rng(5)
    n = 300
    tells = rng.uniform(size=n)
    sop = rng.permutation(n)
    label = (tells + rng.normal(0, .15, n) > .5).astype(int)
    df = pd.DataFrame(dict(sop=sop, group=np.repeat(np.arange(30), 10), any=label))
    return df, pd.DataFrame(dict(tells=tells, noise=rng.uniform(size=n)))


def test_import_needs_no_torch():
    code = "import sys, ich_fastai.studies.explore, ich_fastai.studies.headers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0


def test_blank_price_by_hand():
    df = pd.DataFrame(dict(group=list('aaabbc'), img_pct_window=[0, .05, .3, .019, .1, .2],
                           subdural=[0, 1, 1, 0, 1, 0], any=[0, 1, 1, 0, 1, 1]))
    price = blank_price(df, (0, .02, .05, .1, .2, .21), ('subdural', 'any'))
    assert price.images_dropped.tolist() == [0, 2, 2, 3, 4, 5]  # a slice that has just the threshold is kept
    assert price.any_lost.tolist() == [0, 0, 0, 1, 2, 3]
    assert price.subdural_share.tolist() == pytest.approx([0, 0, 0, 1/3, 2/3, 2/3])
    assert price.patients_lost.tolist() == [0, 0, 0, 0, 1, 2]


def test_blank_price_without_the_label():
    df = pd.DataFrame(dict(group=list('ab'), img_pct_window=[0, 1], any=[0, 0]))
    price = blank_price(df, (.5,), ('any',))
    assert price.images_dropped[.5] == 1 and np.isnan(price.any_share[.5])


def test_price_of_rsna_counts():
    "The values of the public code: 386,114 slices, 57.3 % of all, and 26.0 % of the bleeds."
    rsna = pd.DataFrame(dict(upto=[0, .02, .05, .1, .2, .3, 1],
                             images=[7_990, 70_673, 19_706, 45_886, 241_859, 226_345, 61_798],
                             positive=[0, 61, 696, 3_312, 21_137, 55_437, 16_459]))
    row = price_of_counts(rsna, (0, .2)).loc[.2]
    assert row.images_dropped == 386_114 and row.positive_lost == 25_206
    assert round(row.images_share, 3) == .573 and round(row.positive_share, 3) == .260
    with pytest.raises(FrameError, match='within a bin'): price_of_counts(rsna, (.15,))


def test_cooccurrence(frame):
    both = cooccurrence(frame, LABELS)
    assert np.diag(both).tolist() == [frame[o].sum() for o in LABELS] == label_counts(frame, LABELS).images.tolist()
    assert (both == both.T).all(axis=None)
    assert both.loc['epidural', 'subdural'] == (frame.epidural & frame.subdural).sum()
    assert cooccurrence(pd.DataFrame(dict(a=[1, np.nan, 1], b=[1, 1, 0])), 'ab').to_numpy().tolist() == [[2, 1], [1, 2]]


def test_bins_hold_their_upper_edge():
    bins = into_bins(pd.Series([-1, 0, .1, .5, .6]), (0, .5)).tolist()
    assert bins == ['up to 0', 'up to 0', '0 to 0.5', '0 to 0.5', 'over 0.5']
    rate = label_rate(pd.DataFrame(dict(group=[1, 2], any=[1, 0], v=[.1, .2])), 'v', (0, .5, 1))
    assert rate.images.tolist() == [2, 0] and np.isnan(rate.rate.iloc[1])  # an empty bin is shown, with no rate


def test_rate_interval_respects_patients():
    "Twenty slices of each of ten patients that all agree are ten observations, not two hundred."
    df = pd.DataFrame(dict(group=np.repeat(np.arange(10), 20), any=np.repeat([1, 0] * 5, 20), kind='x'))
    row = label_rate(df, 'kind').loc['x']
    assert row.rate == .5 and row.high - row.low > .4
    free = label_rate(df.assign(group=np.arange(200)), 'kind').loc['x']
    assert free.high - free.low < .16
    none = label_rate(df.assign(any=0), 'kind').loc['x']
    assert none.low == 0 and none.high == pytest.approx(.278, abs=.001)  # Wilson's for 0 of 10


def test_repairs_by_kind_of_file(frame, raw):
    first = frame.file.groupby(encoding(frame)).first()
    wrong = {k: wrong_share(hu_by_rules(raw/'stage_2_train'/fn)) for k, fn in first.items()}
    assert len(wrong) > 1
    for k, o in wrong.items():
        assert o['sign'] == 0
        if k.endswith('wrapped'): assert o['header'] > .2 and 0 < o['kernel'] < o['header']
        else: assert o['header'] == o['kernel'] == 0 and o['column'] > .5


def test_features_are_numbers_that_differ(frame):
    x = metadata_features(frame)
    assert x.index.equals(frame.index) and (x.dtypes == float).all() and (x.nunique() > 1).all()
    assert not x.T.duplicated().any() and 'spacing_x' not in x and 'any' not in x
    names = fingerprints(x, frame.group)
    assert names.only_one_patient['spacing_y'] == names.same_in_patient['spacing_y'] == 1
    assert names.same_in_patient['height'] == 0


def test_misaligned_gives_chance_and_joined_gives_more(signal):
    df, x = signal
    shifted = misaligned(df, df.sort_values('sop'), ('any',))
    assert sorted(shifted['any']) == sorted(df['any'])
    orders = [misaligned(df, df.sample(frac=1, random_state=k), ('any',)) for k in range(6)]  # one order may be lucky
    frames = {**dict(enumerate(orders)), 'id': df, 'row': shifted}
    preds = {k: metadata_forest(x, o, seeds=(0,), trees=20)[0] for k, o in frames.items()}
    assert abs(compare_preds({k: preds[k] for k in range(6)}, 0, n=1).value.mean() - .5) < .06
    table = compare_preds(dict(id=preds['id'], row=preds['row']), 'id', n=300)
    assert table.value['id'] > .85 and table.half['id'] == 'above 0.5' and table.says['row'] == 'lower'
    assert '**row**' in say_compare(table) and 'lower than *id*' in say_compare(table)


def test_misaligned_wants_enough_labels(signal):
    with pytest.raises(FrameError, match='rows of labels'): misaligned(signal[0], signal[0].iloc[:5], ('any',))


def test_balance(frame):
    half = balance(frame, seed=1)
    assert half['any'].mean() == .5 and half['any'].sum() == frame['any'].sum()
    assert half.index.is_monotonic_increasing and balance(frame, seed=1).equals(half)
    assert not balance(frame, seed=2).equals(half)


def test_forest_keeps_patients_apart(signal):
    df, x = signal
    preds, _ = metadata_forest(x, df, seeds=(0,), trees=5)
    assert preds.groupby('group').fold.nunique().eq(1).all() and len(preds) == len(df)
    assert preds.y_any.tolist() == df['any'].tolist()  # in the order of the frame
    mixed, drops = metadata_forest(x, df, by='slice', seeds=(0,), trees=20, repeats=2)
    assert mixed.groupby('group').fold.nunique().gt(1).any()
    assert drops.groupby('column')['drop'].mean().idxmax() == 'tells'
    again, _ = metadata_forest(x, df, by='slice', seeds=(0,), trees=20)
    assert again.equals(mixed)
    hidden = df.assign(any=df['any'].astype(float).where(df.index > 9))
    assert len(metadata_forest(x, hidden, seeds=(0,), trees=5)[0]) == len(df) - 10


def test_compare_equals_scikit_learn(signal):
    df, x = signal
    preds, _ = metadata_forest(x, df, seeds=(0, 1), trees=10)
    by_hand = [np.mean([roc_auc_score(o.y_any, o.p_any) for _, o in each.groupby('fold')])
               for _, each in preds.groupby('seed')]
    row = compare_preds(dict(a=preds), 'a', n=50).loc['a']
    assert row.value == pytest.approx(np.mean(by_hand), abs=1e-12)
    assert row.sd == pytest.approx(np.std(by_hand, ddof=1), abs=1e-12)
    accuracy = compare_preds(dict(a=preds), 'a', metric='accuracy', n=50).value['a']
    assert accuracy == pytest.approx(((preds.p_any > .5) == preds.y_any).mean(), abs=1e-12)


def test_compare_refuses(signal):
    df, x = signal
    preds, _ = metadata_forest(x, df, seeds=(0,), trees=5)
    with pytest.raises(FrameError, match='no predictions named'): compare_preds(dict(a=preds), 'b')
    with pytest.raises(FrameError, match="'auc' or 'accuracy'"): compare_preds(dict(a=preds), 'a', metric='f1')
    fewer = dict(a=preds, b=preds[preds.group > 2])
    with pytest.raises(FrameError, match='different patients'): compare_preds(fewer, 'a')
    with pytest.raises(FrameError, match='fewer folds'): metadata_forest(x, df.assign(any=0), seeds=(0,))
