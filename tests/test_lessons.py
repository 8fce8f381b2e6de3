"Lessons do what PyTorch does, for shapes drawn at random, and keep the rules of the library."
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ich_fastai.core import IchError
from ich_fastai.lessons.convolution import conv2d, conv_as_dense, conv_layer, conv_parameters, dense, dense_parameters
from ich_fastai.lessons.famous import FAMOUS, famous_layers, layer_table
from ich_fastai.lessons.filters import FILTERS, apply_filter, gaussian_kernel, noise_gain
from ich_fastai.lessons.layers import avg_pool, compose, max_pool, relu, softmax
from ich_fastai.lessons.sizes import conv, output_size, pad, receptive_field, same_padding, times_seen
from ich_fastai.lessons.training import (STROKES, conv_backward, cross_entropy, cross_entropy_backward, draw_strokes,
                                         first_weights, fit_polynomial,
                                         forward, gradients, max_pool_backward, mean_squared, sgd_step, squared_error,
                                         squared_error_backward)

ROOT = Path(__file__).parent.parent
SEEDS = range(12)


def drawn(seed):
    "A source of chance and random shapes: maps, filters, padding, stride."
    rng = np.random.default_rng(seed)
    l, k, n, m, p, s = (int(rng.integers(*o)) for o in ((1, 4), (1, 5), (1, 6), (1, 6), (0, 4), (1, 4)))
    height, width = (int(o) for o in rng.integers(6, 15, 2))
    return rng, rng.normal(size=(l, height, width)), rng.normal(size=(k, l, n, m)), rng.normal(size=k), p, s


def tensors(*arrays): return [torch.tensor(o) for o in arrays]


@pytest.mark.parametrize('seed', SEEDS)
def test_convolution(seed):
    rng, maps, weights, bias, p, s = drawn(seed)
    x, w, b = tensors(maps[None], weights, bias)
    want = F.conv2d(x, w, b, stride=s, padding=p)[0].numpy()
    assert np.allclose(conv(maps, weights, bias, p, s), want)
    assert np.allclose(conv_layer(maps, weights, bias), F.conv2d(x, w, b)[0].numpy())
    assert want.shape[1:] == tuple(output_size(o, f, p, s, floor=True) for o,
                                   f in zip(maps.shape[1:], weights.shape[2:]))
    k, l, n, m = weights.shape
    assert conv_parameters(n, m, l, k) == weights.size + bias.size
    one, kernel = maps[0], weights[0, 0]
    as_dense = conv_as_dense(kernel, *one.shape)
    assert np.allclose(dense(one.ravel(), as_dense, np.zeros(len(as_dense))), conv2d(one, kernel).ravel())
    assert dense_parameters(one.size, len(as_dense)) == as_dense.size + len(as_dense)


@pytest.mark.parametrize('seed', SEEDS)
def test_sizes(seed):
    rng = np.random.default_rng(seed)
    w, f, p, s = (int(rng.integers(*o)) for o in ((5, 40), (1, 8), (0, 4), (1, 5)))
    room = w - f + 2*p
    if room < 0 or room % s:
        with pytest.raises(IchError): output_size(w, f, p, s)
    else: assert output_size(w, f, p, s) == room / s + 1
    if room >= 0: assert times_seen(w, f, p, s).max() <= f*f
    if f % 2: assert output_size(w, f, same_padding(f)) == w
    else:
        with pytest.raises(IchError): same_padding(f)
    layers = [(int(a), int(b)) for a, b in zip(rng.integers(1, 5, 3), rng.integers(1, 4, 3))]
    field, size = receptive_field(layers), 1
    for a, b in reversed(layers): size = (size - 1)*b + a
    for a, b in layers: field = output_size(field, a, 0, b)
    assert field == 1 and size == receptive_field(layers)


@pytest.mark.parametrize('seed', SEEDS)
def test_layers(seed):
    rng, maps, *_ = drawn(seed)
    x, f, s = torch.tensor(maps), int(rng.integers(1, 5)), int(rng.integers(1, 4))
    assert np.array_equal(max_pool(maps, f, s), F.max_pool2d(x, f, s).numpy())
    assert np.allclose(avg_pool(maps, f, s), F.avg_pool2d(x, f, s).numpy())
    assert np.array_equal(relu(maps), F.relu(x).numpy())
    assert np.array_equal(relu(max_pool(maps, f, s)), max_pool(relu(maps), f, s))
    assert np.allclose(softmax(maps*50), (x*50).softmax(-1).numpy())
    assert np.array_equal(pad(maps, f), F.pad(x, [f]*4).numpy())
    a, b = rng.normal(size=(3, 2)), rng.normal(size=(2, 3))
    assert np.allclose(conv2d(conv2d(maps[0], a), b), conv2d(maps[0], compose(a, b)))


@pytest.mark.parametrize('seed', SEEDS)
def test_backward(seed):
    rng, maps, weights, bias, _, _ = drawn(seed)
    x, w, b = (o.requires_grad_() for o in tensors(maps, weights, bias))
    out = F.conv2d(x[None], w, b)[0]
    grad = rng.normal(size=out.shape)
    for ours, theirs in zip(conv_backward(maps, weights, grad),
                            torch.autograd.grad(out, (x, w, b), torch.tensor(grad))): assert np.allclose(ours, theirs)
    even = rng.normal(size=(2, 4, 8))
    x = torch.tensor(even, requires_grad=True)
    grad = rng.normal(size=(2, 2, 4))
    assert np.allclose(max_pool_backward(even, grad), torch.autograd.grad(F.max_pool2d(x, 2), x, torch.tensor(grad))[0])

    scores, target = torch.tensor(rng.normal(size=6)*3, requires_grad=True), np.eye(6)[rng.integers(6)]
    p, t = softmax(scores.detach().numpy()), torch.tensor(target)
    loss = -(t*scores.log_softmax(0)).sum()
    assert cross_entropy(p, target) == pytest.approx(loss.item())
    assert np.allclose(cross_entropy_backward(p, target), torch.autograd.grad(loss, scores)[0])
    loss = ((t - scores.softmax(0))**2).sum()/2
    assert squared_error(p, target) == pytest.approx(loss.item())
    assert np.allclose(squared_error_backward(p, target), torch.autograd.grad(loss, scores)[0])


@pytest.mark.parametrize('seed', range(4))
def test_whole_network(seed):
    "All gradients of the network that is trained by hand, and a step."
    images, kinds = draw_strokes(3, seed)
    weights = first_weights(seed, filters=3)
    for image, kind in zip(images, kinds):
        w = {k: torch.tensor(v, requires_grad=True) for k, v in weights.items()}
        x = F.max_pool2d(F.relu(F.conv2d(torch.tensor(image)[None], w['filters'], w['filter_bias'])), 2).flatten()
        scores = F.linear(x, w['dense'], w['dense_bias'])
        target = np.eye(len(STROKES))[kind]
        loss, grads = gradients(weights, image, target)
        want = F.cross_entropy(scores[None], torch.tensor([kind]))
        assert loss == pytest.approx(want.item())
        want.backward()
        for k, v in grads.items(): assert np.allclose(v, w[k].grad), k
        new = sgd_step(weights, grads, 1e-4)
        assert cross_entropy(forward(new, image)['p'], target) < loss


@pytest.mark.parametrize('seed', range(6))
def test_filters_and_polynomials(seed):
    rng = np.random.default_rng(seed)
    image, flat = rng.normal(size=(9, 11)), np.full((9, 11), 3.)
    for name, kernel in FILTERS.items():
        assert apply_filter(image, kernel).shape == image.shape
        assert np.allclose(apply_filter(flat, kernel), 3*kernel.sum()), name
    size, sigma = int(rng.integers(0, 5))*2 + 1, rng.uniform(.3, 4)
    assert gaussian_kernel(size, sigma).sum() == pytest.approx(1)
    assert noise_gain(gaussian_kernel(size, sigma)) <= 1 + 1e-12
    x, y = rng.uniform(-1, 1, (2, 15))
    errors = [mean_squared(fit_polynomial(x, y, d), x, y) for d in range(8)]
    assert np.allclose(fit_polynomial(x, y, 4), np.polyfit(x, y, 4)) and all(a >= b - 1e-12 for a,
        b in zip(errors, errors[1:]))


def test_layer_tables():
    "Every parameter is in the table once, whatever the network; the network is left as it was."
    for name, o in FAMOUS.items():
        with torch.device('meta'): net = o.make().train()
        table = layer_table(net, o.size, o.channels)
        assert table.parameters.sum() == sum(p.numel() for p in net.parameters()), name
        assert net.training and not any(m._forward_hooks for m in net.modules())
    assert (famous_layers('LeNet-5').multiply_adds > 0).sum() == 5


LESSONS = sorted((ROOT/'nbs'/'teaching').glob('5*.ipynb'))


def cells(fn): return [''.join(o['source'])
                       for o in json.loads(fn.read_text(encoding='utf-8'))['cells'] if o['cell_type'] == 'code']


def lesson_of(fn): return re.search(r'#\|\s*default_exp lessons\.(\w+)', '\n'.join(cells(fn)))[1]


def test_one_notebook_one_lesson():
    files = {o.stem for o in (ROOT/'ich_fastai'/'lessons').glob('*.py')} - {'__init__'}
    assert files == {lesson_of(o) for o in LESSONS} and len(LESSONS) == 6
    assert (ROOT/'ich_fastai'/'lessons'/'__init__.py').exists()


@pytest.mark.parametrize('fn', LESSONS, ids=lambda o: o.stem)
def test_lesson(fn):
    "Short; imports earlier lessons only; as many cells that check as cells that export; less than 300 KB."
    text = (ROOT/'ich_fastai'/'lessons'/f'{lesson_of(fn)}.py').read_text(encoding='utf-8')
    assert len(text.splitlines()) <= 300
    earlier = {lesson_of(o) for o in LESSONS[:LESSONS.index(fn)]}
    assert set(re.findall(r'^from \.(\w+) import', text, re.M)) <= earlier
    exports = [o for o in cells(fn) if re.search(r'^#\|\s*export', o, re.M) and re.search(r'^(def|class|@dataclass)', o,
        re.M)]
    checks = [o for o in cells(fn) if re.search(r'^\s*(assert |test_\w+\()|: test_\w+\(|: assert ', o,
                                                re.M) and '#| export' not in o]
    assert len(checks) >= len(exports)
    assert fn.stat().st_size <= 307_200
