"Networks with a head of their own, what networks cost, and the metrics of mutually exclusive classes."
import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from sklearn import metrics as sk
from torch import nn
from torchvision import models as tv

from ich_fastai.metrics.classes import check_classes, class_numbers, class_report, class_table, confusion
from ich_fastai.core import FrameError, IchError, WeightsError
from ich_fastai.models.cost import cost_table, count_macs, count_parameters, latency, memory_of, network_cost
from ich_fastai.models import archs, create_model, find_arch, save_weights, split_body_head
from ich_fastai.models.networks import NETWORKS, lenet5, mobile_short

PETS = ('cat', 'dog', 'fox')


pytestmark = pytest.mark.usefixtures('one_thread')


def conv(n, m, l, k): return (n*m*l + 1)*k  # the lecture's formula
def dense(l, k): return (l + 1)*k


# published, or the lecture's formula layer by layer; ten classes unless said
COUNTS = {
    'lenet5': conv(5, 5, 3, 6) + conv(5, 5, 6, 16) + dense(400, 120) + dense(120, 84) + dense(84, 10),
    'lecture_cnn': 122_570,  # the summary in TensorFlow's tutorial
    'simple_cnn': conv(3, 3, 3, 32) + conv(3, 3, 32, 32) + conv(3, 3, 32, 64) + dense(1024, 64) + dense(64, 10),
    'mobile_cifar': 3_504_872 - dense(1280, 1000) + dense(1280, 10),  # torchvision's MobileNetV2; strides count nothing
    'resnet18_cifar': 11_173_962,  # pytorch-cifar
    'resnet34_cifar': 21_282_122,  # pytorch-cifar
    # from AlexNet's
    'zfnet': 62_378_344 - conv(11, 11, 3, 96) + conv(7, 7, 3, 96) - dense(4096, 1000) + dense(4096, 10),
}


@pytest.mark.parametrize('name', COUNTS)
def test_parameter_counts(name):
    with torch.device('meta'): assert count_parameters(NETWORKS[name].make(10)) == COUNTS[name]


def test_parameter_counts_that_are_quoted():
    assert (COUNTS['lenet5'], COUNTS['mobile_cifar']) == (62_006, 2_236_682)
    with torch.device('meta'):
        assert count_parameters(archs['zfnet'].make()) == 62_357_608
        assert count_parameters(archs['googlenet'].make()) - 6_624_904 == sum(  # not counted by torchvision
            count_parameters(getattr(tv.googlenet(init_weights=False), k)) for k in ('aux1', 'aux2'))
        for name, published in dict(vgg11=132_863_336, vgg16=138_357_544, alexnet=61_100_840).items():
            assert count_parameters(archs[name].make()) == published
        for name, published, features in ('xception', 22_855_952, 2048), ('inception_v3', 23_834_568, 2048):
            assert count_parameters(find_arch(name).make()) + dense(features, 1000) == published
    assert len({count_parameters(NETWORKS[o].make(10)) for o in ('mobile_short', 'mobile_fast', 'mobile_half')}) == 1
    assert 350_000 < count_parameters(mobile_short(10)) < 450_000


@pytest.mark.parametrize('name', NETWORKS)
def test_networks_are_models(name, tmp_path):
    if name == 'zfnet': pytest.skip('a quarter of a gigabyte; its shapes are tested in the notebook')
    size = NETWORKS[name].size
    net = create_model(name, 3, 'none')
    assert len(net) == 2 and net.training and all(len(group) for group in split_body_head(net))
    ids = [id(p) for group in split_body_head(net) for p in group]
    assert len(ids) == len(set(ids)) == len(list(net.parameters()))
    x = torch.randn(4, 3, size, size)
    out = net(x)
    assert out.shape == (4, 3) and out.isfinite().all()
    nn.functional.cross_entropy(out, torch.tensor([0, 1, 2, 0])).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    fn = save_weights(net, tmp_path/'w.safetensors')
    again = create_model(name, 3, fn)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), again.state_dict().values()))
    with pytest.warns(UserWarning, match='head starts fresh'): other = create_model(name, 5, fn)
    assert all(torch.equal(a, b) for a, b in zip(net[0].state_dict().values(), other[0].state_dict().values()))
    with torch.no_grad(): assert other(x).shape == (4, 5)
    with pytest.raises(WeightsError, match=f'no public ImageNet weights for {name}'): create_model(name, 3)
    for bad in 0, -1:
        with pytest.raises(IchError, match='at least one output'): create_model(name, bad, 'none')


@pytest.mark.parametrize('name', ['lenet5', 'lenet5_wide', 'lecture_cnn'])
def test_one_size_only(name):
    net = create_model(name, 2, 'none')
    for size in 28, 64:
        with pytest.raises(IchError, match='takes images of 32 x 32 pixels'): net(torch.zeros(2, 3, size, size))


@pytest.mark.parametrize('name', ['simple_cnn', 'mobile_short', 'mobile_cifar', 'resnet18_cifar'])
def test_any_size(name):
    net = create_model(name, 2, 'none').eval()
    with torch.no_grad():
        for size in 32, 45, 96: assert net(torch.zeros(1, 3, size, size)).shape == (1, 2)


def test_a_published_file_is_refused(tmp_path):
    torch.save(tv.resnet18().state_dict(), tmp_path/'r18.pth')
    with pytest.raises(WeightsError, match='do not fit this architecture'):
        create_model('resnet18_cifar', 10, tmp_path/'r18.pth')
    fn = save_weights(create_model('lenet5', 10, 'none'), tmp_path/'lenet.safetensors')
    with pytest.raises(WeightsError, match='do not fit this architecture'): create_model('lenet5_wide', 10, fn)


def test_parameters_of_lenet():
    old = lenet5(10, act=nn.Tanh, pool=nn.AvgPool2d)
    assert [type(o) for o in old[0]] == [nn.Conv2d, nn.Tanh, nn.AvgPool2d]*2 and count_parameters(old) == 62_006
    deep = lenet5(10, channels=(8, 8), dense=(), norm=True)
    assert len([o for o in deep[1] if isinstance(o, nn.Linear)]) == 1
    assert deep(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_freezing():
    items = [(torch.randn(3, 32, 32), torch.tensor(i % 3)) for i in range(8)]
    dls = DataLoaders.from_dsets(items, items, bs=8, num_workers=0, device='cpu', drop_last=False)
    net = create_model('mobile_half', 3, 'none')
    learn = Learner(dls, net, loss_func=nn.CrossEntropyLoss(), splitter=split_body_head)
    learn.freeze()
    assert not any(m.weight.requires_grad for m in learn.model[0].modules() if isinstance(m, nn.Conv2d))
    assert all(p.requires_grad for p in learn.model[1].parameters())
    before = learn.model[0][0][0].weight.clone()
    with learn.no_logging(): learn.fit(1)
    assert torch.equal(before, learn.model[0][0][0].weight)


# ---- cost

def test_macs_by_hand():
    assert count_macs(nn.Conv2d(3, 8, 3, stride=2, padding=1), 32) == 16*16*8*27
    assert count_macs(nn.Conv2d(3, 6, 3, groups=3), 10) == 8*8*6*9
    net = nn.Sequential(nn.Flatten(), nn.Linear(3*4*4, 5))
    assert count_macs(net, 4) == 48*5


def test_cost_leaves_a_model_as_it_was():
    net = create_model('lenet5_wide', 10, 'none')
    net[0].eval()
    state = {k: v.clone() for k, v in net.state_dict().items()}
    modes, threads = [m.training for m in net.modules()], torch.get_num_threads()
    cost = network_cost(net, size=32, threads=2, n=3)
    assert [m.training for m in net.modules()] == modes and torch.get_num_threads() == threads
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters()) and torch.is_grad_enabled()
    assert cost['weights_mb'] == pytest.approx(sum(v.nbytes for v in state.values())/1e6)
    assert 0 < cost['latency_ms'] <= cost['latency_p95_ms'] and cost['threads'] == 2


def test_memory_counts_each_block_once():
    a = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), nn.Flatten(), nn.Identity())
    assert memory_of(a, 10)['activations_mb'] == pytest.approx(4*100*4/1e6)
    assert memory_of(nn.Identity(), 10) == dict(weights_mb=0, activations_mb=0)


def test_cost_errors():
    net = create_model('lenet5', 2, 'none')
    for kw in dict(n=0), dict(threads=0):
        with pytest.raises(IchError, match='cannot be measured'): latency(net, 32, **kw)
    for f in latency, count_macs, memory_of:
        with pytest.raises(IchError, match='takes images of 32 x 32'): f(net, 64)
        with pytest.raises(IchError, match='cannot take an image of 4 x 4'): f(net, 4)
    assert net.training
    table = cost_table(['lenet5', 'lecture_cnn'], n=2)
    assert list(table.index) == ['lenet5', 'lecture_cnn'] and table.parameters.tolist() == [62_006, 122_570]


# ---- classes

def test_confusion_of_every_small_case():
    for y, p in itertools.product(itertools.product(range(3), repeat=3), repeat=2):
        assert (confusion(list(y), list(p), PETS).to_numpy() == sk.confusion_matrix(y, p, labels=[0, 1, 2])).all()


def test_class_metrics_against_scikit_learn():
    rng = np.random.default_rng(1)
    for k in 2, 3, 7:
        y = rng.choice(k, 200, p=rng.dirichlet(np.full(k, 3.)))
        p = rng.dirichlet(np.ones(k), 200)*.6 + .4*np.eye(k)[y]*rng.random((200, 1))
        named, vocab = p.argmax(1), [f'c{i}' for i in range(k)]
        t, overall = class_table(y, p, vocab), class_report(y, p, vocab, n=20)['overall']
        want = sk.precision_recall_fscore_support(y, named, labels=range(k), zero_division=np.nan)
        np.testing.assert_allclose(t[['precision', 'recall', 'F1']].to_numpy().T, want[:3])
        np.testing.assert_allclose(t.AUC, [sk.roc_auc_score(y == c, p[:, c]) for c in range(k)])
        assert overall['accuracy'] == pytest.approx((y == named).mean())
        assert overall['macro_f1'] == pytest.approx(sk.f1_score(y, named, average='macro'))
        assert overall['baseline_accuracy'] == pytest.approx(np.bincount(y).max()/200)
        assert overall['baseline_macro_recall'] == pytest.approx(1/k)


def test_names_numbers_and_columns_agree():
    y, p = np.array([0, 2, 1, 1]), np.eye(3)[[0, 2, 0, 1]]
    whole = class_report(y, p, PETS, n=20)
    for other in np.array(PETS)[y], np.eye(3)[y], pd.Series(np.array(PETS)[y], dtype='category'), torch.tensor(y):
        assert class_report(other, p, PETS, n=20) == whole
    assert confusion(y, ['cat', 'fox', 'cat', 'dog'], PETS).equals(confusion(y, p, PETS))


def test_intervals_follow_the_patients():
    rng = np.random.default_rng(2)
    y, who = rng.integers(0, 3, 40), np.arange(40)
    p = rng.dirichlet(np.ones(3), 40) + np.eye(3)[y]*.5
    p /= p.sum(1, keepdims=True)
    one = class_report(y, p, PETS, who, n=300)
    ten = class_report(np.repeat(y, 10), np.repeat(p, 10, axis=0), PETS, np.repeat(who, 10), n=300)
    for k in 'accuracy', 'macro_f1', 'macro_auc':  # ten copies of each image are worth no more
        assert ten['overall'][k] == pytest.approx(one['overall'][k])
        assert ten['overall'][f'{k}_ci'] == pytest.approx(one['overall'][f'{k}_ci'])
    assert one == class_report(y, p, PETS, who, n=300)  # the same seed, the same patients


@pytest.mark.parametrize('y, p, says', [
    (['cat', 'cow'], [0, 1], "'cow' is no class"), ([0, 3], [0, 1], '3 is no class'),
    (['cat', None], [0, 1], '1 images have no class'), ([0, 1], [0, 3], '3 is no class'),
    ([0, 1], [[.2, .3, .5]], 'labels have shape'), ([0], [[.5, np.nan, .5]], 'predictions are NaN'),
    ([0], [[3., -1, 0]], 'apply a softmax'), ([], np.empty((0, 3)), 'no predictions'),
    ([[1, 1, 0]], [0], 'of no class, or of several'),
    ([[[1]]], [0], 'classes have shape')])
def test_what_does_not_fit_is_said(y, p, says):
    for f in confusion, class_table, class_report, check_classes:
        with pytest.raises(FrameError, match=says): f(y, p, PETS)


def test_vocabulary():
    with pytest.raises(FrameError, match='two or more classes'): class_numbers([0], ['one'])
    assert class_numbers([10, 2], [2, 10]).tolist() == [1, 0]


def test_too_few_patients_have_no_interval():
    r = class_report([0, 1, 2], np.eye(3), PETS, groups=['a']*3, n=10)
    assert r['overall']['accuracy'] == 1
    assert r['overall']['accuracy_ci'] is None and r['overall']['macro_auc_ci'] is None
