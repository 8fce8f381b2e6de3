"The order of slices, and the remarks about a series."
import warnings

import numpy as np
import pandas as pd
import pytest

from ich_fastai.dicom.series import PROBLEMS, check_series, order_slices

CORONAL = (1., 0., 0., 0., 0., -1.)

def stack(steps=(5,)*24, lean=(0., 0.), series='s', start=-31.5, **kw):
    "`lean`: degrees by which the slices lean, and the way the stack grows."
    a, b = np.radians(lean)
    z = start + np.r_[0, np.cumsum(steps)]
    n = len(z)
    df = pd.DataFrame(dict(sop=[f'{series}{i:04}' for i in range(n)], group='p', study='t', series=series, thickness=5.,
        instance=np.arange(n) + 1., rows=512, columns=512, spacing_y=.488281, spacing_x=.488281))
    df['position'] = [tuple(np.round([-125, -115 + o*np.sin(b), o*np.cos(b)], 6)) for o in z/np.cos(b - a)]
    df['orientation'] = [tuple(np.round([1, 0, 0, 0, np.cos(a), -np.sin(a)], 6))]*n
    return df.assign(**kw)


def said(df): return check_series(df).problems[0]

@pytest.mark.parametrize('step', [.6, .625, 1.25, 2.5, 4.8, 5, 10])
@pytest.mark.parametrize('lean', [(0, 0), (22, 0), (-14.5, 0), (12, 12)])
def test_sound_stacks(step, lean):
    r = check_series(stack([step]*30, lean)).iloc[0]
    assert r.problems == ('' if lean[0] == 0 else 'tilted' if lean[1] == 0 else 'oblique')
    shear = abs(lean[0] - lean[1])
    want = 31, abs(lean[0]), shear, step/np.cos(np.radians(shear))
    assert (r.n, r.tilt, r.shear, r.step) == pytest.approx(want, abs=.001)


@pytest.mark.parametrize('gone', [[1], [12], [23], [4, 5, 6], [3, 9, 15], [10, 12]])
@pytest.mark.parametrize('lean', [(0, 0), (22, 0)])
def test_every_gap_is_counted(gone, lean):
    r = check_series(stack(lean=lean).drop(index=gone)).iloc[0]
    assert 'gap' in r.problems.split(';') and f'{len(gone)} slice' in r.detail and 'uneven' not in r.problems
    assert f'z = {r.z_first + 5*(gone[0] - 1):.1f}' in r.detail


@pytest.mark.parametrize('steps', [[5]*9 + [10]*8, [10]*2 + [5]*20, [2.5]*12 + [3.75] + [5]*12, [.6]*40 + [5]*9,
                                   [5]*8 + [8]*8, [2, 3]*10, [1, 4]*10])
def test_other_steps_are_no_gaps(steps):
    assert said(stack(steps)) == 'uneven_steps'


def test_rounded_positions_are_even():
    assert said(stack(np.diff(np.round(np.arange(40)*.625, 1)))) == ''


@pytest.mark.parametrize('seed', range(4))
def test_order_does_not_depend_on_the_pile(seed):
    rng = np.random.default_rng(seed)
    coronal = stack([5]*5, orientation=[CORONAL]*6, sop=[f'x{i}' for i in range(6)])
    lost = stack(series='q', group='a', position=None, instance=rng.permutation(25))
    df = pd.concat([stack(lean=(20, 0)), coronal, stack(series='r'), lost], ignore_index=True)
    df['orientation'] = [tuple(np.add(o, rng.uniform(-.004, .004, 6))) for o in df.orientation]  # within a degree
    want, pile = order_slices(df), df.sample(frac=1, random_state=seed)
    pd.testing.assert_frame_equal(order_slices(pile), want)
    pd.testing.assert_frame_equal(check_series(pile), check_series(df))
    assert want.instance[:25].tolist() == list(range(25)) and want.sop[25:50].is_monotonic_increasing
    assert want.sop[50:75].tolist() == [f's{i:04}' for i in range(25)]  # axial slices lead, the coronal ones follow
    assert set(want.sop[75:]) == {f'x{i}' for i in range(6)}


def test_duplicates_and_two_series():
    df = stack()
    assert said(pd.concat([df, df.assign(instance=99)])) == 'duplicate_position'
    assert said(pd.concat([df, df[7:8].assign(position=[(-125., -115., 3.504)])])) == 'duplicate_position'
    assert check_series(pd.concat([df, stack(series='r')])).problems.tolist() == ['several_series']*2
    assert check_series(pd.concat([df, stack(series='r', study='u')])).problems.tolist() == ['']*2
    assert check_series(pd.concat([df, stack(series='r')]).drop(columns='study')).problems.tolist() == ['']*2


def test_other_remarks():
    df = stack()
    assert [said(df.assign(thickness=[5., o]*12 + [np.nan])) for o in (10., 4.8)] == ['thickness_changes', '']
    for o in 'spacing_x', 'columns': assert said(df.assign(**{o: [9]*24 + [10]})) == 'several_sizes'
    assert said(df[:4]) == 'few_slices'
    r = check_series(pd.concat([df[:1].assign(orientation=[CORONAL]), df])).iloc[0]
    assert (r.problems, r.n, r.z_first, r.z_last, r.tilt) == ('mixed_orientation', 26, -31.5, 88.5, 0)
    assert said(df.assign(position=[None, *df.position[1:]])) == 'no_position'
    assert said(df.assign(position=[(30.*(i > 9), 30.*(i > 9), 5.*i) for i in range(25)])) == ''  # moved


def test_what_is_unknown():
    df, none = stack(), stack(position=None, orientation=None)
    assert 'InstanceNumber' in check_series(none).detail[0]
    assert 'SliceLocation' in check_series(none.assign(z=range(25))).detail[0]
    assert 'by id' in check_series(none.assign(instance=None)).detail[0]
    r = check_series(df[['sop']].assign(z=np.arange(25)*5., tilt=14.).drop(index=9)).iloc[0]
    assert (r.problems, r.tilt, r.step, r.z_last) == ('gap', 14, 5, 120) and np.isnan(r.shear)
    for o in df[:0], pd.DataFrame():
        assert len(order_slices(o)) == len(check_series(o)) == 0 and list(check_series(o)) == list(check_series(df))
    assert len(order_slices(df.drop(columns=['sop', 'group', 'study', 'series', 'instance']))) == 25


def test_parquet_changes_nothing(tmp_path):
    df = stack([5]*10 + [10]*5, (15, 0))
    df.to_parquet(fn := tmp_path/'a.parquet')
    pd.testing.assert_frame_equal(check_series(pd.read_parquet(fn)), check_series(df))


def test_broken_headers_do_no_harm():
    odd = [None, np.nan, (), 'abc', (np.inf, 0, 1), (1e308, -1e308, 0), (None, 1, 2), np.ones(3), (1e11, 0, -1e11)]
    turns = [None, (0.,)*6, (1e308,)*6, (1., 0, 0, 1, 0, 0), CORONAL, (2., 0, 0, 0, 2, 0), (-1, 0, 0, 0, 1, 0)]
    scalars = dict(instance=['x', 1e308, -3, None], thickness=[0, -1, '5', np.inf], rows=[0, None, 7])
    rng = np.random.default_rng(0)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for _ in range(200):
            df = stack([5]*9).astype(object)
            for col, values in dict(position=odd, orientation=turns, **scalars).items():
                for i in rng.choice(10, 4): df.at[i, col] = values[rng.integers(len(values))]
            assert set(said(df).split(';')) <= {'', *PROBLEMS}
            assert sorted(order_slices(df).sop) == sorted(df.sop)
