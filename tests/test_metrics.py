"The metrics against scikit-learn, against values computed by hand, and against literal resampling."
import json
import subprocess
import sys
import time

import numpy as np
import pytest
from sklearn.metrics import (accuracy_score, average_precision_score, brier_score_loss, log_loss, recall_score,
                             roc_auc_score)

from ich_fastai.core import LABELS, FrameError, IchError
from ich_fastai.metrics import accuracy_multi, auc, auc_ci, report_card, report_table, resamples, rsna_log_loss
from ich_fastai.metrics import threshold_for_sensitivity, wilson
from ich_fastai.metrics.bootstrap import rank_stats, rank_tables


def clustered(seed=0, patients=60, slices=15):
    "Six labels of `patients` heads, scores with ties, patient of each image."
    rng = np.random.default_rng(seed)
    ids = np.repeat(np.arange(patients), slices)
    subtypes = (rng.random((patients, 5)) < .3)[ids] & (rng.random((len(ids), 5)) < .5)
    y = np.column_stack([subtypes, subtypes.any(1)]).astype(int)
    p = 1 / (1 + np.exp(-(2*y - 1.5 + rng.normal(0, 1, y.shape) + rng.normal(0, .5, (patients, 6))[ids])))
    return y, np.round(p, 2), ids


def test_import_needs_no_torch():
    code = "import sys, ich_fastai.metrics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0


def test_card_equals_scikit_learn():
    y, p, ids = clustered()
    card = report_card(y, p, groups=ids, n=50)
    for i, v in enumerate(LABELS):
        row, a, b = card['labels'][v], y[:, i], p[:, i]
        assert row['auc'] == pytest.approx(roc_auc_score(a, b), abs=1e-9)
        assert row['average_precision'] == pytest.approx(average_precision_score(a, b), abs=1e-9)
        assert row['brier'] == pytest.approx(brier_score_loss(a, b), abs=1e-9)
        assert row['accuracy'] == pytest.approx(accuracy_score(a, b > .5), abs=1e-9)
        assert row['sensitivity'] == pytest.approx(recall_score(a, b > .5), abs=1e-9)
        assert row['specificity'] == pytest.approx(recall_score(a, b > .5, pos_label=0), abs=1e-9)
        assert row['baseline_accuracy'] == pytest.approx(1 - a.mean(), abs=1e-9)
        assert (row['n'], row['positives']) == (len(a), a.sum())
        for k in ('auc', 'average_precision', 'accuracy', 'sensitivity', 'specificity', 'brier'):
            assert row[f'{k}_ci'][0] < row[k] < row[f'{k}_ci'][1]
    overall = card['overall']
    assert overall['mean_auc'] == pytest.approx(roc_auc_score(y, p, average='macro'), abs=1e-9)
    assert overall['mean_auc_subtypes'] == pytest.approx(roc_auc_score(y[:, :5], p[:, :5], average='macro'), abs=1e-9)
    assert overall['accuracy_multi'] == pytest.approx(((p > .5) == y).mean(), abs=1e-9)
    assert overall['baseline_accuracy_multi'] == pytest.approx(1 - y.mean(), abs=1e-9)
    each = [log_loss(y[:, i], np.clip(p[:, i], 1e-15, 1 - 1e-15)) for i in range(6)]
    assert overall['rsna_log_loss'] == pytest.approx((sum(each) + each[5]) / 7, abs=1e-9)
    assert (overall['n_images'], overall['n_groups']) == (900, 60)
    assert json.loads(json.dumps(card)) == card


def test_log_loss_by_hand():
    # image 1: subdural and any, both at 0.8; the others at 0.25. image 2: nothing, all at 0.25, any at 0.5
    p = [[.25, .25, .25, .25, .8, .8], [.25, .25, .25, .25, .25, .5]]
    y = [[0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 0]]
    first = (4 * -np.log(.75) - np.log(.8) + 2 * -np.log(.8)) / 7
    second = (5 * -np.log(.75) + 2 * -np.log(.5)) / 7
    assert rsna_log_loss(p, y) == pytest.approx((first + second) / 2, abs=1e-9)
    assert rsna_log_loss(np.zeros((1, 6)), np.ones((1, 6))) == pytest.approx(-np.log(1e-15), abs=1e-9)
    # the baseline: own or training prevalence for everybody
    card = report_card(np.array(y * 2), np.array(p * 2), n=5, prior=[.1] * 5 + [.2])['overall']
    constant = np.tile([.1] * 5 + [.2], (4, 1))
    assert card['baseline_rsna_log_loss'] == pytest.approx(rsna_log_loss(constant, y * 2), abs=1e-12)
    assert card['baseline_prevalence'] == 'training'


@pytest.mark.parametrize('digits', [1, 2, 12])
def test_weighted_ranking_is_literal_resampling(digits):
    y, p, ids = clustered(digits, patients=12, slices=9)
    y, p = y[:, 5], np.round(p[:, 5] * .97 + .01, digits)
    for counts in resamples(12, 30, seed=4, rows=500_000):
        aucs, aps = rank_stats(rank_tables(y, p, ids, 12), counts)
        for b in range(counts.shape[1]):
            rows = np.repeat(np.arange(len(y)), counts[ids, b].astype(int))
            assert aucs[b] == pytest.approx(roc_auc_score(y[rows], p[rows]), abs=1e-12)
            assert aps[b] == pytest.approx(average_precision_score(y[rows], p[rows]), abs=1e-12)


def test_interval_is_that_of_a_plain_loop():
    y, p, ids = clustered(2, patients=20)
    y, p = y[:, 5], p[:, 5]
    values = []
    for counts in resamples(20, 200, seed=3):
        for column in counts.T:
            rows = np.repeat(np.arange(len(y)), column[ids].astype(int))
            values.append(roc_auc_score(y[rows], p[rows]))
    assert auc_ci(y, p, ids, n=200, seed=3)[1:] == pytest.approx(np.quantile(values, [.025, .975]), abs=1e-9)
    assert auc_ci(y, p, ids, n=200, seed=3) == auc_ci(y, p, ids, n=200, seed=3)
    names = np.array([f'patient {i}' for i in ids])  # names instead of numbers, in any order
    order = np.random.default_rng(0).permutation(len(y))
    assert auc_ci(y[order], p[order], names[order], n=20)[0] == pytest.approx(auc(y, p), abs=1e-12)


def test_chance_is_inside_and_patients_widen():
    rng = np.random.default_rng(7)
    ids = np.repeat(np.arange(40), 20)
    y = (np.arange(40) % 2)[ids]
    _, low, high = auc_ci(y, rng.random(800), ids)
    assert low < .5 < high
    p = 1 / (1 + np.exp(-(y + rng.normal(0, 2, 40)[ids] + rng.normal(0, .3, 800))))
    wide, narrow = auc_ci(y, p, ids), auc_ci(y, p)
    assert wide[2] - wide[1] > 2 * (narrow[2] - narrow[1])


def test_missing_and_one_class_labels():
    y, p, ids = clustered(1)
    y = y.astype(float)
    y[:, 0] = 0
    y[:, 1] = np.nan
    y[:300, 2] = np.nan
    card = report_card(y, p, groups=ids, n=50)
    assert card['labels']['epidural']['auc'] is None and 'no AUC: 0 of' in card['labels']['epidural']['note']
    assert card['labels']['epidural']['sensitivity'] is None and card['labels']['epidural']['specificity'] is not None
    assert card['labels']['intraparenchymal']['n'] == 0 and card['labels']['intraparenchymal']['accuracy'] is None
    assert card['labels']['intraventricular']['auc'] == pytest.approx(roc_auc_score(y[300:, 2], p[300:, 2]), abs=1e-9)
    assert card['overall']['mean_auc_labels'] == list(LABELS[2:])
    assert 'rsna_log_loss' not in card['overall']
    assert report_table(card).AUC['epidural'] == '–'
    assert json.loads(json.dumps(card, allow_nan=False)) == card
    empty = report_card(np.full((4, 1), np.nan), np.full((4, 1), .5), ('any',), n=5)
    assert empty['overall']['mean_auc'] is None and empty['overall']['accuracy_multi'] is None
    # one positive patient: many resamples miss him; they are left out and counted
    lone = report_card([1] + [0] * 9, np.linspace(1, 0, 10), 'any', n=200)['labels']['any']
    assert 30 < lone['one_class_resamples'] < 120 and lone['positive_groups'] == 1


@pytest.mark.parametrize('shape', [(-1,), (-1, 1)])
def test_binary(shape):
    y, p, ids = clustered()
    card = report_card(y[:, 5].reshape(shape), p[:, 5].reshape(shape), ('any',), ids, n=50)
    assert card['labels']['any']['auc'] == pytest.approx(roc_auc_score(y[:, 5], p[:, 5]), abs=1e-9)
    assert card['overall']['mean_auc'] == card['labels']['any']['auc']
    assert 'mean_auc_subtypes' not in card['overall']


def test_perfect_is_not_certain():
    y = [1] * 10 + [0] * 30
    row = report_card(y, y, 'any', n=50)['labels']['any']
    assert row['sensitivity_ci'] == wilson(10, 10) and row['sensitivity_ci'][0] < .75
    row = report_card(y, y, 'any', groups=['a'] * 5 + ['b'] * 5 + ['c'] * 30, n=50)['labels']['any']
    assert row['sensitivity_ci'] == wilson(2, 2)  # two patients, not ten images
    assert row['specificity_ci'] is None          # one patient
    assert report_card(y, y, 'any', groups=['a'] * 40, n=5)['labels']['any']['auc_ci'] is None


def test_threshold():
    rng = np.random.default_rng(0)
    y, p = rng.integers(0, 2, 200), np.round(rng.random(200), 2).astype(np.float32)
    for sens in (.01, .5, .9, .95, 1):
        t = threshold_for_sensitivity(y, p, sens)
        assert (p[y == 1] > t).mean() >= sens
        higher = np.unique(p[p > t])[0]  # the next threshold up that changes anything
        assert (p[y == 1] > higher).mean() < sens
    assert threshold_for_sensitivity([1, 0], [0., .5], 1) < 0  # a positive image at 0: everything is called
    with pytest.raises(IchError, match='above 0'): threshold_for_sensitivity(y, p, 1.5)
    per_label = report_card(y, p, 'any', thresh={'any': .25}, n=5)['labels']['any']
    assert per_label['thresh'] == .25 and per_label['sensitivity'] == pytest.approx((p[y == 1] > .25).mean())


def test_accuracy_multi_takes_tensors_and_arrays():
    torch = pytest.importorskip('torch')
    rng = np.random.default_rng(0)
    logits, y = rng.normal(size=(50, 6)), rng.integers(0, 2, (50, 6))
    want = ((1 / (1 + np.exp(-logits)) > .3) == y).mean()
    assert accuracy_multi(logits, y, .3) == pytest.approx(want)
    assert accuracy_multi(torch.tensor(logits), torch.tensor(y), .3).item() == pytest.approx(want, abs=1e-6)
    assert accuracy_multi(np.array([1e4, -1e4]), np.array([1, 0])) == 1.


@pytest.mark.parametrize('y, p, groups, says', [
    ([0, 1], [.5], None, 'shape'), ([], [], None, 'no predictions'), ([0, 1], [.5, np.nan], None, 'NaN'),
    ([0, 1], [-.1, .5], None, 'sigmoid'), ([0, 3], [.1, .5], None, '0, 1 or NaN'),
    ([0, 1], [.1, .5], ['a'], '1 patients'),
    ([0, 1], [.1, .5], ['a', None], 'no patient')])
def test_errors(y, p, groups, says):
    with pytest.raises(FrameError, match=says): report_card(y, p, 'any', groups)


def test_one_class_says_what_to_do():
    with pytest.raises(IchError, match='hold out more patients'): auc([1, 1], [.1, .2])
    with pytest.raises(IchError, match='two patients'): auc_ci([0, 1], [.1, .2], ['a', 'a'])
    with pytest.raises(FrameError, match='give one'): auc(np.eye(2), np.eye(2))
    with pytest.raises(FrameError, match='2 columns, 1 labels'): report_card(np.eye(2), np.eye(2), 'any')
    with pytest.raises(FrameError, match='give thresh for b'):
        report_card(np.eye(2), np.eye(2), ('a', 'b'), thresh={'a': .5})


def test_speed_and_memory_stay_bounded():
    rng = np.random.default_rng(0)
    ids = np.repeat(np.arange(2500), 20)
    y = (rng.random((50_000, 6)) < .1).astype(int)
    start = time.process_time()
    report_card(y, rng.random(y.shape), groups=ids)
    assert time.process_time() - start < 20  # 2 to 4 s on an idle core
    assert max(c.size for c in resamples(50_000, 1000, rows=50_000)) <= 2_000_000
