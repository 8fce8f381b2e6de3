"Calibration, patients and submissions: against scikit-learn, values computed by hand, slow loops, and what goes wrong."
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, average_precision_score, brier_score_loss, roc_auc_score

from ich_fastai.cli import main
from ich_fastai.core import LABELS, FrameError, IchError
from ich_fastai.metrics import brier, by_group, calibration_table, ece, level_table, operating_points, paired_difference
from ich_fastai.metrics import reliability, report_card, resamples, threshold_for_sensitivity
from ich_fastai.metrics.calibration import fit_temperature, scale
from ich_fastai.metrics.patients import add_volumes, by_volume
from ich_fastai.metrics.submission import kaggle_submission
from ich_fastai.runs import new_run, save_run


def made_up(seed=0, patients=40, slices=15, digits=3):
    "A table of predictions for six labels, patients that differ, ties."
    rng = np.random.default_rng(seed)
    ids = np.repeat(np.arange(patients), slices)
    y = (rng.random((patients, 5)) < .3)[ids] & (rng.random((len(ids), 5)) < .5)
    y = np.column_stack([y, y.any(1)]).astype(float)
    p = np.round(expit(2*y - 1.5 + rng.normal(0, 1, y.shape) + rng.normal(0, .5, (patients, 6))[ids]), digits)
    df = pd.DataFrame(dict(fn=[f'clean/images/ID_{i:05d}.jpg' for i in range(len(ids))], group=[f'p{i}' for i in ids]))
    labels = {f'y_{o}': y[:, i] for i, o in enumerate(LABELS)}
    return df.assign(**labels, **{f'p_{o}': p[:, i] for i, o in enumerate(LABELS)})


def columns(df): return (df[[f'{k}_{o}' for o in LABELS]].to_numpy() for k in 'yp')


@pytest.mark.parametrize('module', 'calibration classes compare patients submission'.split())
def test_needs_no_torch(module):
    code = f"import sys, ich_fastai.metrics.{module}; sys.exit('torch' in sys.modules or 'fastai' in sys.modules)"
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0


def test_report_card_on_fixed_predictions():
    "Eight images written down here, judged by scikit-learn and by a sum over the definition of the challenge."
    y = np.array([[0, 0, 0, 0, 1, 1], [1, 0, 0, 0, 0, 1], [0, 1, 1, 0, 0, 1], [0, 0, 0, 1, 1, 1],
                  [0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]])
    p = np.array([[.05, .1, .02, .2, .9, .95], [.4, .1, .1, .1, .3, .6], [.01, .7, .55, .2, .1, .8],
                  [.1, .2, .1, .45, .6, .7], [.02, .1, .05, .1, .1, .15], [.3, .2, .1, .6, .2, .65],
                  [.01, .02, .01, .05, .1, .1], [.1, .15, .2, .1, .35, .3]])
    card = report_card(y, p, groups=list('abcdefgh'), n=20)
    for i, label in enumerate(LABELS):
        row, a, b = card['labels'][label], y[:, i], p[:, i]
        want = dict(auc=roc_auc_score(a, b), average_precision=average_precision_score(a, b),
                    brier=brier_score_loss(a, b), accuracy=accuracy_score(a, b > .5))
        for key, value in want.items(): assert row[key] == pytest.approx(value, abs=1e-9)
        assert brier(a, b) == pytest.approx(brier_score_loss(a, b), abs=1e-12)
    loss = 0.
    for image in range(8):
        for label, weight in enumerate((1, 1, 1, 1, 1, 2)):
            q = p[image, label] if y[image, label] else 1 - p[image, label]
            loss -= weight / 7 * np.log(q) / 8
    assert card['overall']['rsna_log_loss'] == pytest.approx(loss, abs=1e-9)
    # the first image by hand: epidural to subarachnoid are absent, subdural and any (twice) are there
    first = -(np.log(.95) + np.log(.9) + np.log(.98) + np.log(.8) + np.log(.9) + 2*np.log(.95)) / 7
    assert report_card(y[:1], p[:1], n=1)['overall']['rsna_log_loss'] == pytest.approx(first, abs=1e-9)


@pytest.mark.parametrize('digits', [1, 2, 9])
@pytest.mark.parametrize('bins', [1, 5, 10, 15])
def test_reliability_equals_scikit_learn(bins, digits):
    df = made_up(bins, digits=digits)
    y, p = df.y_any.to_numpy(), df.p_any.to_numpy()
    for equal, name in ('count', 'quantile'), ('width', 'uniform'):
        share, mean_p = calibration_curve(y, p, n_bins=bins, strategy=name)
        table = reliability(y, p, bins, equal=equal)
        np.testing.assert_allclose(table.share, share, atol=1e-12)
        np.testing.assert_allclose(table.mean_p, mean_p, atol=1e-12)
        assert table.n.sum() == len(y) and (table.low <= table.share).all() and (table.share <= table.high).all()
        assert ece(y, p, bins, equal) == pytest.approx((table.n * abs(mean_p - share)).sum() / len(y), abs=1e-12)


@pytest.mark.parametrize('temperature', [.5, 1, 1.7, 3])
def test_temperature_is_found(temperature):
    rng = np.random.default_rng(1)
    true = expit(np.clip(rng.normal(-1, 1.5, (20_000, 2)), -4, 4))
    y = (rng.random(true.shape) < true).astype(float)
    p = expit(temperature * logit(true))
    assert fit_temperature(y, p) == pytest.approx(temperature, rel=.05)
    np.testing.assert_allclose(scale(p, temperature), true, atol=1e-4)
    y[:5000, 0] = np.nan  # not annotated: left out
    assert fit_temperature(y, p) == pytest.approx(temperature, rel=.05)
    z = np.where(y == 1, -1, 1)[5000:] * logit(p[5000:])
    grid = [np.mean(np.logaddexp(0, z / t)) for t in (.9*temperature, temperature, 1.1*temperature)]
    assert np.argmin(grid) == 1


def test_scaling_keeps_the_order():
    df = made_up()
    for t in .3, 4:
        before, after = roc_auc_score(df.y_any, df.p_any), roc_auc_score(df.y_any, scale(df.p_any, t))
        assert after == pytest.approx(before, abs=1e-12)


def test_calibration_table():
    df = made_up(3)
    for o in LABELS: df[f'p_{o}'] = scale(df[f'p_{o}'], .25)  # much too sure
    t, table = calibration_table(df[:300], df[300:], LABELS, n=100)
    assert 1.5 < t < 6 and list(table.label) == list(LABELS)
    assert (table.log_loss_after < table.log_loss_before).all()
    assert table.change_high.iloc[5] < 0 < table.change_high.iloc[4]
    for row in table.itertuples():
        y, p = df[f'y_{row.label}'][300:], df[f'p_{row.label}'][300:]
        assert row.brier_before == pytest.approx(brier_score_loss(y, p), abs=1e-12)
        assert row.brier_after == pytest.approx(brier_score_loss(y, scale(p, t)), abs=1e-12)


def test_levels_against_a_slow_loop():
    df = made_up(5).assign(series=lambda o: o.group + '-' + (o.index % 2).astype(str)).sample(frac=1, random_state=1)
    df = df.assign(z=5. * (df.index % 15))
    df.loc[df.index[:40], 'y_any'] = np.nan
    def smooth(p): return [(p[max(i - 1, 0)] + 2*p[i] + p[min(i + 1, len(p) - 1)])/4 for i in range(len(p))]
    for col in 'group', 'series':
        for how in ('max', 'mean', 'noisy_or', 'top3', 'smooth3'):
            table = by_group(df, LABELS, col, how).set_index(col)
            assert set(table.index) == set(df[col]) and table.images.sum() == len(df)
            for name, some in df.groupby(col):
                for label in LABELS:
                    p, y = list(some.sort_values('z')[f'p_{label}']), list(some[f'y_{label}'])
                    want = dict(max=max(p), mean=sum(p)/len(p), noisy_or=1 - np.prod([1 - v for v in p]),
                                top3=np.mean(sorted(p)[-3:]), smooth3=np.mean(sorted(smooth(p))[-3:]))[how]
                    assert table.loc[name, f'p_{label}'] == pytest.approx(want, abs=1e-12)
                    known, found = 1. if 1 in y else np.nan if np.isnan(y).any() else 0., table.loc[name, f'y_{label}']
                    assert found == known or np.isnan(known) and np.isnan(found)


def test_repeats_are_not_mixed():
    df = pd.concat([made_up(1, 6).assign(repeat=r, fold=0, split='test') for r in (0, 1)])
    table = by_group(df, ['any'])
    assert len(table) == 12 and (table.images == 15).all() and table.groupby('group').size().eq(2).all()


def test_level_table():
    df = made_up(2)
    table = level_table(df, LABELS, hows=['max'], n=50).set_index(['level', 'label'])
    whole = by_group(df, LABELS)
    slices, patients = roc_auc_score(df.y_any, df.p_any), roc_auc_score(whole.y_subdural, whole.p_subdural)
    assert table.loc[('slice', 'any'), 'auc'] == pytest.approx(slices, abs=1e-12)
    assert table.loc[('patient', 'subdural'), 'auc'] == pytest.approx(patients, abs=1e-12)


def test_level_table_has_smooth3_where_slices_have_a_position():
    df = made_up(2)
    without, placed = level_table(df, ['any'], n=20), level_table(df.assign(z=df.index % 15), ['any'], n=20)
    assert list(without.how) == ['', 'max', 'top3', 'mean', 'noisy_or']
    assert list(placed.how) == ['', 'max', 'top3', 'smooth3', 'mean', 'noisy_or']
    others = placed[placed.how != 'smooth3'].reset_index(drop=True)
    pd.testing.assert_frame_equal(others, without)
    with pytest.raises(FrameError, match='column z'): level_table(df, ['any'], ['smooth3'], n=20)


def test_operating_points_against_a_slow_loop():
    df = made_up(4)
    valid, test = df[:300], df[300:]
    table = operating_points(valid, test, LABELS, (.5, .9), n=60, seed=2)
    ids = pd.factorize(test.group)[0]
    counts = np.concatenate(list(resamples(ids.max() + 1, 60, 2)), axis=1).astype(int)
    def measure(y, called): return tuple(o.mean() if len(o) else np.nan for o in (called[y], ~called[~y], y[called]))
    for row in table.itertuples():
        y, p = valid[f'y_{row.label}'], valid[f'p_{row.label}']
        t = threshold_for_sensitivity(y, p, row.wanted)
        assert row.threshold == t and (p[y == 1] > t).mean() >= row.wanted
        y, called = test[f'y_{row.label}'].to_numpy() == 1, (test[f'p_{row.label}'] > t).to_numpy()
        assert (row.sensitivity, row.specificity, row.ppv) == pytest.approx(measure(y, called), abs=1e-12)
        copies = [np.repeat(np.arange(len(y)), c[ids]) for c in counts.T]
        low, high = np.nanquantile([measure(y[rows], called[rows]) for rows in copies], (.025, .975), axis=0)
        if row.sensitivity < 1:
            assert (row.sensitivity_low, row.sensitivity_high) == pytest.approx((low[0], high[0]), abs=1e-9)
        assert (row.ppv_low, row.ppv_high) == pytest.approx((low[2], high[2]), abs=1e-9)


def test_paired_difference_is_that_of_a_plain_loop():
    df = made_up(6)
    (y, p), rng = columns(df), np.random.default_rng(0)
    q = expit(logit(np.clip(p, .01, .99)) + rng.normal(0, 1, p.shape))
    d = paired_difference(y, p, q, df.group, n=40, seed=3)
    ids, values = pd.factorize(df.group)[0], []
    for counts in resamples(40, 40, 3):
        for c in counts.T:
            rows = np.repeat(np.arange(len(y)), c[ids].astype(int))
            values.append(roc_auc_score(y[rows], q[rows]) - roc_auc_score(y[rows], p[rows]))
    assert d['difference'] == pytest.approx(roc_auc_score(y, q) - roc_auc_score(y, p), abs=1e-12)
    assert (d['low'], d['high']) == pytest.approx(np.quantile(values, (.025, .975)), abs=1e-9)
    assert d['high'] < 0


def test_volumes():
    df = made_up(7)
    ml = {f'ml_{o}': df[f'y_{o}']*(1 + df.index % 3) for o in LABELS[:-1]}
    truth = pd.DataFrame(dict(sop=[f'ID_{i:05d}' for i in range(len(df))], **ml))
    sized = add_volumes(df, truth[::-1])
    assert sized.ml_any.tolist() == truth[[f'ml_{o}' for o in LABELS[:-1]]].sum(axis=1).tolist()
    table = by_volume(sized, ['subdural'], edges=(0, 1, 2, 3), n=30)
    assert table.n.sum() == df.y_subdural.sum() and len(table) == 3
    for o in table.itertuples():
        rows = df.y_subdural.eq(0) | (sized.ml_subdural > o.from_ml) & (sized.ml_subdural <= o.to_ml)
        assert o.auc == pytest.approx(roc_auc_score(df.y_subdural[rows], df.p_subdural[rows]), abs=1e-12)
    with pytest.raises(FrameError, match='stand twice'): add_volumes(df, pd.concat([truth, truth[:2]]))


def test_errors_are_sentences():
    ok, p = [0, 1, 0, 1], [.1, .6, .3, .2]
    for call in (reliability, ece, fit_temperature):
        with pytest.raises(FrameError, match=r'labels have shape \(4, 1\), predictions \(3, 1\)'): call(ok, p[:3])
        with pytest.raises(FrameError, match='1 predictions are NaN: the training'): call(ok, [.1, np.nan, .3, .2])
        with pytest.raises(FrameError, match='apply a sigmoid'): call(ok, [.1, 2, .3, .2])
        with pytest.raises(FrameError, match='must be 0, 1 or NaN'): call([0, 1, 2, 1], p)
        with pytest.raises(FrameError, match='no predictions to judge'): call([], [])
        with pytest.raises(IchError, match='all 4 labels are 1, and both classes are needed'): call([1]*4, p)
        with pytest.raises(IchError, match='annotated'): call([np.nan]*4, p)
    with pytest.raises(IchError, match='no temperature can be fitted'): fit_temperature([0, 1], [.1, .9])
    df = made_up()
    with pytest.raises(FrameError, match='lack the columns p_epidural'): by_group(df.drop(columns='p_epidural'), LABELS)
    lacking = df.assign(group=[None] + ['a']*(len(df) - 1))
    with pytest.raises(FrameError, match='1 images have no patient'): by_group(lacking, LABELS)
    with pytest.raises(FrameError, match='600 predictions are NaN'):
        operating_points(df, df.assign(p_any=np.nan), ['any'])
    with pytest.raises(IchError, match='cannot be asked for'): operating_points(df, df, ['any'], [1.5])
    with pytest.raises(IchError, match='no label has both classes'): paired_difference([1, 1], [.1, .2], [.1, .2])


def test_a_submission_from_the_command_line(tmp_path, capsys):
    df, run = made_up(8, patients=3), new_run('multilabel', dict(only_bleeds=False), tmp_path)
    run.preds = df
    save_run(run)
    want = [f'ID_{i:05d}_{o}' for i in range(len(df)) for o in LABELS]
    sample = tmp_path/'sample.csv'
    pd.DataFrame(dict(ID=want[::-1], Label=.5)).to_csv(sample, index=False)
    assert main(['submit', run.id, str(tmp_path/'s.csv'), '--sample', str(sample), '--results', str(tmp_path)]) == 0
    assert '45 images' in capsys.readouterr().out
    out = pd.read_csv(tmp_path/'s.csv')
    assert list(out.columns) == ['ID', 'Label'] and out.ID.tolist() == want[::-1]
    np.testing.assert_allclose(out.Label[::-1], df[[f'p_{o}' for o in LABELS]].to_numpy().ravel(), atol=1e-9)
    pd.DataFrame(dict(ID=[*want, 'ID_other_any'], Label=.5)).to_csv(sample, index=False)
    assert main(['submit', run.id, str(tmp_path/'t.csv'), '--sample', str(sample), '--results', str(tmp_path)]) == 1
    assert '1 of the 271 ids' in capsys.readouterr().err and not (tmp_path/'t.csv').exists()
    with pytest.raises(FrameError, match='only_bleeds=False'):
        kaggle_submission(df.drop(columns=['p_any']), tmp_path/'t.csv')
    (run.path/'preds.parquet').unlink()
    assert main(['submit', run.id, str(tmp_path/'t.csv'), '--results', str(tmp_path)]) == 1
    assert 'were not kept' in capsys.readouterr().err


def test_a_thousand_resamples_are_quick():
    "1,000 resamples of 50,000 x 6: under 10 s alone, and never more than 20 on a busy machine."
    rng = np.random.default_rng(4)
    ids = np.repeat(np.arange(2500), 20)
    y = (rng.random((50_000, 6)) < (.02, .05, .04, .05, .06, .14)).astype(int)
    p = expit(2*y - 3 + rng.normal(0, 1, y.shape))
    start = time.perf_counter()
    card = report_card(y, p, groups=ids, n=1000)
    seconds = time.perf_counter() - start
    print(f'{seconds:.1f} s')
    assert card['overall']['n_bootstrap'] == 1000 and seconds < 20
