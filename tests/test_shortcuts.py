"What a score may know without the disease: borders, sources in balance, one source to another, parts of a figure."
import cv2
import numpy as np
import pandas as pd
import pytest

from ich_fastai.core import FrameError, IchError
from ich_fastai.metrics import compare_preds
from ich_fastai.metrics import auc_ci
from ich_fastai.studies.features import linear_probe
from ich_fastai.studies.shortcuts import attach, auc_parts, balance_sources, border_features, cross_source, cross_table, join_sources, keep_region, probe_labels, region_copies, subgroup_auc, take_apart

RNG = np.random.default_rng(0)


@pytest.fixture(scope='module')
def marked(tmp_path_factory):
    "Eighty pictures of two sources: the sick have a square in the middle, those of source b a mark in the corner."
    out, rows = tmp_path_factory.mktemp('patient'), []
    for i in range(80):
        sick, source = i % 2, 'ab'[i // 40]
        px = RNG.integers(60, 120, (40, 50 if i % 3 else 40)).astype(np.uint8)
        if sick: px[14:26, 14:26] += 70
        if source == 'b': px[:3, :3] = 255
        cv2.imwrite(str(out/f'Jane Doe {i}.png'), px)
        rows.append(dict(fn=str(out/f'Jane Doe {i}.png'), group=f'{source}{i % 40 // 2}', source=source, sick=sick, from_b=int(source == 'b')))
    return pd.DataFrame(rows)


@pytest.mark.parametrize('shape, share', [((7, 9), .1), ((320, 320), .05), ((33, 64), .4)])
def test_regions_are_parts_of_the_picture(shape, share):
    px = RNG.integers(1, 255, shape, dtype=np.uint8)
    border, middle = keep_region(px, 'border', share), keep_region(px, 'middle', share)
    assert (border + middle == px).all() and not ((border > 0) & (middle > 0)).any() and (keep_region(px, 'whole', share) == px).all()
    assert (border[0] > 0).all() and (border[:, -1] > 0).all() and middle[shape[0] // 2, shape[1] // 2] > 0


def test_regions_refuse():
    with pytest.raises(IchError, match='middle'): keep_region(np.zeros((9, 9), np.uint8), 'midle')
    for o in 0, .5, -1:
        with pytest.raises(FrameError, match='share'): keep_region(np.zeros((9, 9), np.uint8), share=o)


def test_copies_name_nobody(marked, tmp_path):
    made = region_copies(marked.fn, tmp_path/'border', side=32)
    assert len(made) == 80 and not any('Jane' in o or 'patient' in o.split('border')[1] for o in made)
    assert {cv2.imread(o, cv2.IMREAD_UNCHANGED).shape for o in made} == {(32, 32)} and all((cv2.imread(o, 0)[3:-3, 3:-3] == 0).all() for o in made)
    assert region_copies(marked.fn[::-1], tmp_path/'border', side=32) == made[::-1]  # the same content, the same names


def test_the_mark_is_found_and_the_disease_is_not(marked, tmp_path):
    border, middle = (border_features(region_copies(marked.fn, tmp_path/o, o, side=40), .49, side=40) for o in ('border', 'middle'))
    told = {k: compare_preds({o: linear_probe(x, marked, label=k, seeds=(0,), c=.1) for o, x in dict(border=border, middle=middle).items()}, 'border', label=k, n=50).value for k in ('from_b', 'sick')}
    assert told['from_b']['border'] > .95 > .8 > told['from_b']['middle'] and told['sick']['middle'] > .95 > .8 > told['sick']['border']


def test_auc_parts_is_auc_ci():
    group, y = np.repeat(np.arange(30), 3), RNG.integers(0, 2, 90).astype(float)
    preds = pd.DataFrame(dict(group=group, p_sick=(y + RNG.random(90) * 2) / 3, y_sick=y))
    one = auc_parts(preds, dict(all=y, none=np.full(90, np.nan)), 'sick', n=200)
    assert np.allclose(one.loc['all', ['value', 'low', 'high']].astype(float), auc_ci(y, preds.p_sick, group, n=200))
    assert one.note['none'] == 'one class only' and np.isnan(one.value['none'])
    pooled = auc_parts(pd.concat([preds.assign(seed=s) for s in (0, 1)]), dict(all=np.r_[y, y]), 'sick', n=200)
    assert np.allclose(pooled.loc['all', ['value', 'low', 'high', 'images']].astype(float), [*one.loc['all', ['value', 'low', 'high']], 90])


def test_a_score_of_the_source_is_taken_apart():
    df = pd.DataFrame(dict(group=np.arange(200), source=np.repeat(['a', 'b'], 100), y_sick=np.r_[RNG.random(100) < .9, RNG.random(100) < .1].astype(float)))
    knows = take_apart(df.assign(p_sick=np.where(df.source == 'a', .6, .2) + RNG.random(200) * .1), 'sick', n=100)
    assert knows.value['sick, all'] > .8 and knows.low['a told, without sick'] > .6 and knows.value[['sick, within a', 'sick, within b']].between(.2, .8).all()
    right = take_apart(df.assign(p_sick=df.y_sick * .5 + RNG.random(200) * .1), 'sick', n=100)
    assert (right.value[['sick, within a', 'sick, within b']] == 1).all() and right.value[['a told, without sick', 'a told, with sick']].between(.2, .8).all()
    groups = subgroup_auc(df.assign(p_sick=df.y_sick * .5), 'source', 'sick', n=50)
    assert groups.index.tolist() == ['all', 'a', 'b'] and (groups.low < 1).all()


def test_sources_in_balance():
    df = pd.DataFrame(dict(group=range(90), source=['a'] * 50 + ['b'] * 40, sick=[1.] * 40 + [0.] * 10 + [1.] * 10 + [0.] * 30))
    even = balance_sources(df, 'source', 'sick', seed=3)
    share = even.groupby('source').sick.mean()
    assert abs(share['a'] - share['b']) < .05 and even.index.is_monotonic_increasing and len(even) >= 40
    assert even.equals(balance_sources(df, 'source', 'sick', seed=3)) and not even.equals(balance_sources(df, 'source', 'sick', seed=4))
    with pytest.raises(FrameError, match="a has 50 pictures and 50 with 'sick'"): balance_sources(df.assign(sick=np.where(df.source == 'a', 1, df.sick)), 'source', 'sick')


def test_from_source_to_source_by_patient(marked):
    x = np.column_stack([marked.sick + RNG.normal(0, .3, 80), np.where(marked.source == 'a', marked.sick, RNG.integers(0, 2, 80))])
    preds = cross_source(x, marked, label='sick', seeds=(0, 1), c=1.)
    assert len(preds) == 2 * 2 * 80 and preds.groupby(['seed', 'group']).fold.nunique().max() == 1
    table = cross_table(preds, 'sick', n=50)
    assert table[['trained_on', 'source']].values.tolist() == [['a', 'a'], ['a', 'b'], ['b', 'b'], ['b', 'a']] and table.value[1] < table.value[0]
    with pytest.raises(FrameError, match='same frame'): cross_source(x[1:], marked, label='sick')


def test_frames_of_two_sources_do_not_mix_patients():
    a = pd.DataFrame(dict(fn=['1', '2'], group=[1, 2], sick=[0, 1]))
    both = join_sources(dict(a=a, b=a.assign(fn=['3', '4'])), ['sick'])
    assert both.group.is_unique and both.sick.tolist() == [0, 1, 0, 1]
    with pytest.raises(FrameError, match='other rows'): attach(both[['group']].iloc[::-1], both, ['source'])


def test_rare_labels_get_a_note(marked):
    table = probe_labels(RNG.normal(size=(80, 3)), marked.assign(rare=(np.arange(80) < 2).astype(int)), ['rare', 'sick'], seeds=(0,))
    assert 'too few' in table.note['rare'] and np.isnan(table.value['rare']) and table.note['sick'] == ''
