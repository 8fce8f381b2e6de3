"Label tables, frames, splits and the leak audit."
import numpy as np
import pandas as pd
import pytest

from ich_fastai.core import LABELS, DataError, FrameError, IchError
from ich_fastai.datasets import datasets, load_dataset, open_dataset
from ich_fastai.frames import SPLITS, add_labels, audit_leakage, check_frame, check_folds, label_counts, patient_folds
from ich_fastai.frames import read_labels, rsna_labels, split_by_patient, split_by_slice


@pytest.fixture
def frame():
    rng = np.random.default_rng(0)
    df = pd.DataFrame(dict(fn=[f'{i}.jpg' for i in range(600)], group=np.repeat([f'p{i}' for i in range(60)], 10)))
    bleeder = rng.permutation(60) < 24
    df['any'] = (np.repeat(bleeder, 10) & (df.index % 10 < 4)).astype(int)
    return df


@pytest.mark.parametrize('seed', range(5))
def test_patients_never_leak(frame, seed):
    df = split_by_patient(frame, .2, .25, seed)
    assert df.groupby('group').split.nunique().max() == 1
    assert df.groupby('split').group.nunique().to_dict() == dict(train=33, valid=12, test=15)
    share = df.groupby('split')['any'].mean()
    assert share.max() - share.min() < .05  # stratified
    assert not audit_leakage(df)['leaks']
    pd.testing.assert_frame_equal(df, split_by_patient(frame, .2, .25, seed))


def test_split_does_not_depend_on_the_order_of_rows(frame):
    a = split_by_patient(frame).set_index('fn').split
    b = split_by_patient(frame.sample(frac=1, random_state=1)).set_index('fn').split
    assert a.eq(b.loc[a.index]).all()


def test_slice_split_leaks_and_is_noticed(frame):
    assert audit_leakage(split_by_slice(frame))['leaks']


def test_audit_finds_the_same_file_under_two_names(frame, tmp_path):
    df = split_by_patient(frame.iloc[:100].copy())
    for fn in df.fn: (tmp_path/fn).write_text(fn)
    assert not audit_leakage(df, tmp_path)['leaks']
    a, b = df[df.split == 'train'].fn.iloc[0], df[df.split == 'test'].fn.iloc[0]
    (tmp_path/b).write_text(a)
    assert audit_leakage(df, tmp_path)['same_file'] == [sorted([a, b])]


@pytest.mark.parametrize('kw', [dict(valid=0), dict(valid=.5, test=.5), dict(valid=-1)])
def test_impossible_shares(frame, kw):
    with pytest.raises(FrameError): split_by_patient(frame, **kw)


def test_check_frame_names_rows(frame):
    check_frame(split_by_patient(frame), ['any'])
    bad = frame.copy()
    bad.loc[[3, 5], 'any'] = 7
    with pytest.raises(FrameError, match=r'2 rows .* 3, 5'): check_frame(bad, ['any'])
    with pytest.raises(FrameError, match='fn'): check_frame(frame.drop(columns='fn'), ['any'])
    check_frame(frame.assign(any=np.nan), ['any'])  # nobody looked: allowed


def test_rsna_labels_of_the_phantom(raw):
    df = rsna_labels(raw/'stage_2_train.csv')
    text = pd.read_csv(raw/'stage_2_train.csv')
    assert text.duplicated().any()  # as in the real file
    assert list(df.columns) == ['sop', *LABELS] and len(df) == text.ID.nunique() / 6
    for k in LABELS:
        want = text[text.ID.str.endswith('_' + k)].drop_duplicates().Label.sum()
        assert df[k].sum() == want


def test_real_label_tables(real):
    df = read_labels(real/'rsna2019_sample'/'labels.csv')
    assert list(df.columns) == ['sop', *LABELS] and len(df) == 20 and df['any'].notna().sum() == 10
    assert list(read_labels(real/'head_ct_kitamura'/'labels.csv').columns) == ['sop', 'hemorrhage']


def test_join_is_by_id_not_by_order():
    labels = pd.DataFrame(dict(sop=list('cba'), any=[1, 0, 0]))
    df, _ = add_labels(pd.DataFrame(dict(sop=list('abc'))), labels)
    assert df['any'].tolist() == [0, 0, 1] and df['labels'].tolist() == ['', '', 'any']


def test_folds_hold_every_patient_out_once(frame):
    y, group = frame['any'].to_numpy(), frame.group.to_numpy()
    folds = patient_folds(y, group, 5, seed=3)
    assert sorted(np.concatenate([out for _, out in folds])) == list(range(len(frame)))
    for rest, out in folds: assert not set(group[rest]) & set(group[out])
    counts = label_counts(frame, ['any'])
    assert counts.patients['any'] == frame.group[frame['any'] == 1].nunique() == 24
    check_folds(y, group, 24, 'any')
    with pytest.raises(FrameError, match='25 folds need'): check_folds(y, group, 25, 'any')


def test_every_loader_says_where_to_get_it(tmp_path):
    for name in (o.name for o in datasets.values() if o.kind == 'real'):
        with pytest.raises(DataError, match='Download .*ICH_DATA'): load_dataset(name, tmp_path)


def test_cleaned_folder(cleaned):
    o = open_dataset(cleaned)
    assert (o.kind, o.vocab) == ('phantom', LABELS)
    df = load_dataset(cleaned)
    assert set(df.split) == set(SPLITS)
    df.drop(columns='split').to_parquet(cleaned.parent/'frame.parquet')
    again = open_dataset(cleaned.parent/'frame.parquet')
    assert again.hash == o.hash


def test_no_labels_no_names(raw, tmp_path):
    from ich_fastai.clean import clean_dicoms
    clean_dicoms(raw/'stage_2_train', tmp_path/'c', size=32)
    with pytest.raises(DataError, match='--labels'): open_dataset(tmp_path/'c')
    with pytest.raises(IchError, match='phantom'): open_dataset('fantom')


def test_head_ct(real):
    df = open_dataset('head_ct', real).frame
    assert len(df) == 200 and df['any'].sum() == 100 and df.group.is_unique
