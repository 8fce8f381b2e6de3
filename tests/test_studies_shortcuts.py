"What a score knows without the disease: borders, parts of the images, balance, source to source, the audit."
import cv2
import numpy as np
import pandas as pd
import pytest

from ich_fastai.core import FrameError, IchError
from ich_fastai.metrics import auc_ci, compare_preds
from ich_fastai.studies.features import linear_probe
from ich_fastai.studies.parts import attach, auc_parts, join_sources, probe_labels, subgroup_auc, take_apart
from ich_fastai.studies.shortcuts import (audit, balance_sources, border_features, cross_source, cross_table,
    keep_region, number_run, region_copies)

RNG = np.random.default_rng(0)


@pytest.fixture(scope='module')
def marked(tmp_path_factory):
    "Eighty images of two sources: the ill have a square in the middle, those of source b a mark in the corner."
    out, rows = tmp_path_factory.mktemp('patient'), []
    for i in range(80):
        sick, source = i % 2, 'ab'[i // 40]
        px = RNG.integers(60, 120, (40, 50 if i % 3 else 40)).astype(np.uint8)
        if sick: px[14:26, 14:26] += 70
        if source == 'b': px[:3, :3] = 255
        fn = str(out/f'Jane Doe {i}.png')
        cv2.imwrite(fn, px)
        rows.append(dict(fn=fn, group=f'{source}{i % 40 // 2}', source=source, sick=sick, from_b=int(source == 'b')))
    return pd.DataFrame(rows)


@pytest.mark.parametrize('shape, share', [((7, 9), .1), ((320, 320), .05), ((33, 64), .4)])
def test_regions_are_parts_of_the_image(shape, share):
    px = RNG.integers(1, 255, shape, dtype=np.uint8)
    border, middle, whole = (keep_region(px, o, share) for o in ('border', 'middle', 'whole'))
    assert (border + middle == px).all() and not ((border > 0) & (middle > 0)).any() and (whole == px).all()
    assert (border[0] > 0).all() and (border[:, -1] > 0).all() and middle[shape[0] // 2, shape[1] // 2] > 0


def test_regions_refuse():
    with pytest.raises(IchError, match='middle'): keep_region(np.zeros((9, 9), np.uint8), 'midle')
    for share in 0, .5, -1:
        with pytest.raises(FrameError, match='share'): keep_region(np.zeros((9, 9), np.uint8), share=share)


def test_copies_name_nobody(marked, tmp_path):
    made = region_copies(marked.fn, tmp_path/'border', side=32)
    assert len(made) == 80 and not any('Jane' in o or 'patient' in o.split('border')[1] for o in made)
    assert {cv2.imread(o, cv2.IMREAD_UNCHANGED).shape for o in made} == {(32, 32)}
    assert all((cv2.imread(o, 0)[3:-3, 3:-3] == 0).all() for o in made)
    assert region_copies(marked.fn[::-1], tmp_path/'border', side=32) == made[::-1]  # the same content, the same names


def test_the_mark_is_found_and_the_disease_is_not(marked, tmp_path):
    copies = {o: region_copies(marked.fn, tmp_path/o, o, side=40) for o in ('border', 'middle')}
    x = {k: border_features(fns, .49, side=40) for k, fns in copies.items()}
    value = {}
    for label in 'from_b', 'sick':
        preds = {k: linear_probe(o, marked, label=label, seeds=(0,), c=.1) for k, o in x.items()}
        value[label] = compare_preds(preds, 'border', label=label, n=50).value
    assert value['from_b']['border'] > .95 > .8 > value['from_b']['middle']
    assert value['sick']['middle'] > .95 > .8 > value['sick']['border']


def test_auc_parts_is_auc_ci():
    group, y = np.repeat(np.arange(30), 3), RNG.integers(0, 2, 90).astype(float)
    preds = pd.DataFrame(dict(group=group, p_sick=(y + RNG.random(90) * 2) / 3, y_sick=y))
    one = auc_parts(preds, dict(all=y, none=np.full(90, np.nan)), 'sick', n=200)
    columns = ['value', 'low', 'high']
    assert np.allclose(one.loc['all', columns].astype(float), auc_ci(y, preds.p_sick, group, n=200))
    assert one.note['none'] == 'one class only' and np.isnan(one.value['none'])
    pooled = auc_parts(pd.concat([preds.assign(seed=s) for s in (0, 1)]), dict(all=np.r_[y, y]), 'sick', n=200)
    assert np.allclose(pooled.loc['all', columns + ['images']].astype(float), [*one.loc['all', columns], 90])


def test_a_score_of_the_source_is_taken_apart():
    ill = np.r_[RNG.random(100) < .9, RNG.random(100) < .1].astype(float)
    df = pd.DataFrame(dict(group=np.arange(200), source=np.repeat(['a', 'b'], 100), y_sick=ill))
    within, told = ['sick, within a', 'sick, within b'], ['a or not, without sick', 'a or not, with sick']
    knows = take_apart(df.assign(p_sick=np.where(df.source == 'a', .6, .2) + RNG.random(200) * .1), 'sick', n=100)
    assert knows.value['sick, all'] > .8 and knows.low[told[0]] > .6 and knows.value[within].between(.2, .8).all()
    right = take_apart(df.assign(p_sick=df.y_sick * .5 + RNG.random(200) * .1), 'sick', n=100)
    assert (right.value[within] == 1).all() and right.value[told].between(.2, .8).all()
    groups = subgroup_auc(df.assign(p_sick=df.y_sick * .5), 'source', 'sick', n=50)
    assert groups.index.tolist() == ['all', 'a', 'b'] and (groups.low < 1).all()


def test_sources_in_balance():
    sick = [1.] * 40 + [0.] * 10 + [1.] * 10 + [0.] * 30
    df = pd.DataFrame(dict(group=range(90), source=['a'] * 50 + ['b'] * 40, sick=sick))
    even = balance_sources(df, 'source', 'sick', seed=3)
    share = even.groupby('source').sick.mean()
    assert abs(share['a'] - share['b']) < .05 and even.index.is_monotonic_increasing and len(even) >= 40
    assert even.equals(balance_sources(df, 'source', 'sick', seed=3))
    assert not even.equals(balance_sources(df, 'source', 'sick', seed=4))
    all_ill = df.assign(sick=np.where(df.source == 'a', 1, df.sick))
    with pytest.raises(FrameError, match="a has 50 images and 50 with 'sick'"):
        balance_sources(all_ill, 'source', 'sick')


def test_from_source_to_source_by_patient(marked):
    mark = np.where(marked.source == 'a', marked.sick, RNG.integers(0, 2, 80))
    x = np.column_stack([marked.sick + RNG.normal(0, .3, 80), mark])
    preds = cross_source(x, marked, label='sick', seeds=(0, 1), c=1.)
    assert len(preds) == 2 * 2 * 80 and preds.groupby(['seed', 'group']).fold.nunique().max() == 1
    table = cross_table(preds, 'sick', n=50)
    assert table[['trained_on', 'source']].values.tolist() == [['a', 'a'], ['a', 'b'], ['b', 'b'], ['b', 'a']]
    assert table.value[1] < table.value[0]
    with pytest.raises(FrameError, match='same frame'): cross_source(x[1:], marked, label='sick')


def test_frames_of_two_sources_do_not_mix_patients():
    a = pd.DataFrame(dict(fn=['1', '2'], group=[1, 2], sick=[0, 1]))
    both = join_sources(dict(a=a, b=a.assign(fn=['3', '4'])), ['sick'])
    assert both.group.is_unique and both.sick.tolist() == [0, 1, 0, 1]
    with pytest.raises(FrameError, match='other rows'): attach(both[['group']].iloc[::-1], both, ['source'])


def test_rare_labels_get_a_note(marked):
    several = marked.assign(rare=(np.arange(80) < 2).astype(int))
    table = probe_labels(RNG.normal(size=(80, 3)), several, ['rare', 'sick'], seeds=(0,))
    assert 'too few' in table.note['rare'] and np.isnan(table.value['rare']) and table.note['sick'] == ''


@pytest.fixture(scope='module')
def hospital():
    "120 patients of one collection, whose healthy come from one run of numbers, and 50 of another; features of both."
    rng = np.random.default_rng(3)
    home = pd.DataFrame(dict(fn='', group=np.arange(120), view=rng.choice(['AP', 'PA'], 120), ill=1.))
    home.loc[np.sort(rng.choice(np.arange(30, 110), 60, replace=False)), 'ill'] = 0
    other = pd.DataFrame(dict(fn='', group=np.arange(50), view='PA', ill=(np.arange(50) < 40).astype(float)))
    df = join_sources(dict(home=home, other=other), ['view', 'ill'])
    disease, mark = (np.column_stack([column, rng.normal(size=170)]) + rng.normal(0, .4, (170, 2))
                     for column in (df.ill, df.source == 'other'))
    return df, dict(whole=np.hstack([disease, mark]), middle=disease, border=mark)


def test_the_audit_finds_the_mark(hospital):
    df, features = hospital
    found = audit(df, features, label='ill', home='home', seeds=(0,), n=60)
    assert list(found) == ['collection', 'half', 'view', 'label', 'controls', 'cross', 'apart']
    assert found['collection'].value['border'] > .9 > .7 > found['collection'].value['middle']
    assert found['half'].value['border'] > .8 and found['view'].value.between(.3, .7).all()
    assert found['label'].value['middle'] > .9 > .7 > found['label'].value['border']
    apart = found['apart']
    assert apart.value['border', 'all'] > .9 and apart.low['border', 'within'] < .5 < apart.low['whole', 'all']
    assert apart.images['border', 'collection'] == 60 + 10 and apart.images['border', 'home'] == 120


def test_the_audit_is_made_of_its_parts(hospital):
    "Each table is what the functions of the chapter give when they are called one by one."
    df, features = hospital
    found = audit(df, features, label='ill', home='home', seeds=(0, 1), n=60)
    at_home = (df.source == 'home').to_numpy()
    own, x = df[at_home].reset_index(drop=True), {k: o[at_home] for k, o in features.items()}
    preds = {k: linear_probe(o, own, label='ill', seeds=(0, 1)) for k, o in x.items()}
    pd.testing.assert_frame_equal(found['label'], compare_preds(preds, 'whole', label='ill', n=60))
    views = subgroup_auc(attach(preds['middle'], own, ['view']), 'view', 'ill', n=60)
    row = found['controls'].loc['middle'].loc[views.index]
    assert np.allclose(row[['value', 'low', 'high']].astype(float), views[['value', 'low', 'high']].astype(float))
    inside, counts = number_run(own, 'ill')
    assert counts['without'] == 60 and counts['ill'] == inside.sum() - 60 and counts['ill_first'] == 0
    number = found['controls'].loc[('the patient number', 'all')]
    assert number.value == pytest.approx((1 + (~inside).sum() / 60) / 2)  # one threshold: half of both rates
    crossed = cross_table(cross_source(x['border'], own, label='ill', by='view', seeds=(0, 1)), 'ill', 'view', n=60)
    assert np.allclose(found['cross'].loc['border'].value.astype(float), crossed.value.astype(float))


def test_the_audit_refuses(hospital):
    df, features = hospital
    with pytest.raises(FrameError, match='middle is missing'):
        audit(df, {k: features[k] for k in ('whole', 'border')}, label='ill', home='home')
    with pytest.raises(FrameError, match="source 'nowhere'"): audit(df, features, label='ill', home='nowhere')
    with pytest.raises(FrameError, match='not numbers'): number_run(df.assign(group='home:x'), 'ill')
