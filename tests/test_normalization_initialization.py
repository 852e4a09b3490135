"Normalization and initialization: errors on bad input, and properties over shapes."
import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from fb_pass.checks import autograd_grad, check_grad, test_near_zero as near_zero
from fb_pass.gradients import clear_grads
from fb_pass.initialization import kaiming_normal, kaiming_std, kaiming_uniform
from fb_pass.normalization import normalize
from fb_pass.norms import normalize_full_grad, normalize_grad

few = settings(max_examples=30, deadline=None, derandomize=True)
seeds = st.integers(0, 2**16)
shapes = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple).filter(lambda o: math.prod(o) > 3)

def draw(shape, seed, n=2):
    "`n` float64 tensors, away from mean 0 and standard deviation 1."
    gen = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, dtype=torch.float64, generator=gen)*2 + 3 for _ in range(n)]

def stats(x, dim, correction):
    "Mean and standard deviation over all of `x` (`dim` None), or along `dim` with the axis kept."
    if dim is None: return x.mean(), x.std(correction=correction)
    return x.mean(dim, keepdim=True), x.std(dim, keepdim=True, correction=correction)

x = torch.tensor([[1., 3., 4.], [4., 5., 7.]])
nan, inf = float('nan'), float('inf')


# normalization: bad input

@pytest.mark.parametrize('args,error,words', [
    (([[1., 2.]], 0., 1.), TypeError, ['x is a list', 'torch.as_tensor']),
    ((x.long(), 0., 1.), TypeError, ['x has dtype torch.int64', 'x.float()']),
    ((x > 3, 0., 1.), TypeError, ['torch.bool', 'x.float()']),
    ((x, 'mean', 1.), TypeError, []),
    ((x.double(), x.mean(), x.double().std()), TypeError, ['m has dtype torch.float32', 'float64', 'm.to(x.dtype)']),
    ((x, x.mean(), x.double().std()), TypeError, ['s has dtype torch.float64', 's.to(x.dtype)']),
    ((x, x.mean(0), x.std(0)), ValueError, ['m has shape (3,)', 'x (2, 3)', 'keepdim=True']),
    ((x, x.mean(), x.std(1)), ValueError, ['s has shape (2,)', 'keepdim=True']),
    ((x[:1], x, 1.), ValueError, ['m has shape (2, 3)', 'x (1, 3)']),
    ((x, x.mean()[None], 1.), ValueError, ['m has shape (1,)']),
    ((x, nan, 1.), ValueError, ['m is not finite in 1 of 1']),
    ((x, 0., inf), ValueError, ['s is not finite']),
    ((x, 0., torch.tensor([[1., nan, nan]])), ValueError, ['s is not finite in 2 of 3', 'batch of one']),
    ((x, 0., 0.), ValueError, ['s is 0 or negative in 1 of 1', 'constant']),
    ((x, 0., -1.), ValueError, ['s is 0 or negative']),
    ((x, 0., torch.tensor([[1., 0., 2.]])), ValueError, ['s is 0 or negative in 1 of 3']),
])
def test_normalize_refuses(args, error, words):
    with pytest.raises(error) as e: normalize(*args)
    for word in words: assert word in str(e.value)

def with_grad(out, g):
    out = out.clone()
    out.g = g
    return out

@pytest.mark.parametrize('f', [normalize_grad, normalize_full_grad])
@pytest.mark.parametrize('out,s,error,words', [
    (x.clone(), 2., RuntimeError, ['out (2, 3) has no gradient', 'backward']),
    (with_grad(x, torch.ones(3)), 2., ValueError, ['out.g (3,)', 'expected (2, 3)']),
    (with_grad(x[:1], torch.ones(1, 3)), 2., ValueError, ['out (1, 3)', 'expected (2, 3)']),
    (with_grad(x, x), 0., ValueError, ['s is 0 or negative']),
    (with_grad(x, x), torch.ones(3), ValueError, ['keepdim=True']),
    (with_grad(x, x), torch.tensor(2., dtype=torch.float64), TypeError, ['s.to(x.dtype)']),
])
def test_backward_refuses(f, out, s, error, words):
    inp = x.clone()
    with pytest.raises(error) as e: f(inp, out, s)
    for word in words: assert word in str(e.value)
    assert getattr(inp, 'g', None) is None

@pytest.mark.parametrize('correction', [1, 0])
def test_full_backward_refuses_too_few_entries(correction):
    "A batch of one, with statistics for each column: one entry shares each `s`, and none would be left unbiased."
    one = x[:1].clone()
    if correction:
        with pytest.raises(ValueError, match=r'1 entries of out \(1, 3\) share one s \(1, 3\), expected more than 1'):
            normalize_full_grad(one, with_grad(one, one), torch.ones(1, 3), correction)
    else:
        normalize_full_grad(one, with_grad(torch.zeros(1, 3), one), torch.ones(1, 3), correction)
        near_zero(one.g, tol=1e-6)   # a single value is always normalized to 0, so nothing answers to it

def test_normalize_leaves_its_input_alone():
    before = x.clone()
    normalize(x, x.mean(), x.std())
    assert x.equal(before)


# normalization: properties

@few
@given(shapes, seeds, st.data())
def test_full_gradient(shape, seed, data):
    "Against autograd, over all entries or along an axis, biased or not; and its two vanishing sums."
    x,g = draw(shape, seed)
    dim = data.draw(st.sampled_from([None] + [i for i,o in enumerate(shape) if o > 2]))
    correction = data.draw(st.integers(0, 1))
    m,s = stats(x, dim, correction)
    out = normalize(x, m, s); out.g = g
    normalize_full_grad(x, out, s, correction)
    def loss(x):
        m,s = stats(x, dim, correction)
        return ((x - m)/s * g).sum()
    check_grad(x.g, autograd_grad(loss, x), rtol=1e-9)
    scale = (g/s).abs().sum()
    near_zero(x.g.sum_to_size(s.shape)/scale, tol=1e-12)
    near_zero((x.g*out).sum_to_size(s.shape)/scale, tol=1e-12)

@few
@given(shapes, seeds, st.floats(-5, 5), st.floats(.1, 5))
def test_constant_gradient(shape, seed, m, s):
    x,g = draw(shape, seed)
    out = normalize(x, m, s); out.g = g
    normalize_grad(x, out, s)
    check_grad(x.g, autograd_grad(lambda x: ((x - m)/s * g).sum(), x))

@few
@given(shapes, seeds, st.floats(-9, 9), st.floats(.1, 9))
def test_own_statistics_forget_shift_and_stretch(shape, seed, shift, stretch):
    def own(x): return normalize(x, x.mean(), x.std())
    x, = draw(shape, seed, 1)
    near_zero(own(x).mean(), tol=1e-12); near_zero(own(x).std() - 1, tol=1e-12)
    near_zero(own(stretch*x + shift) - own(x), tol=1e-9)

@few
@given(shapes, seeds)
def test_gradients_add_up(shape, seed):
    "A tensor used twice has the sum of both gradients."
    x,g = draw(shape, seed)
    s = x.std()
    out = normalize(x, x.mean(), s); out.g = g
    normalize_full_grad(x, out, s); full = x.g
    clear_grads(x); normalize_grad(x, out, s); constant = x.g
    normalize_full_grad(x, out, s)
    check_grad(x.g, full + constant)

@few
@given(shapes, seeds, st.floats(1e-6, 1.))
def test_full_gradient_with_a_number_added_under_the_root(shape, seed, eps):
    "As the layers that normalize have it: s = sqrt(var + eps). The formula is the same."
    x,g = draw(shape, seed)
    def std(x): return (x.var(correction=0) + eps).sqrt()
    out = normalize(x, x.mean(), std(x)); out.g = g
    normalize_full_grad(x, out, std(x), correction=0)
    check_grad(x.g, autograd_grad(lambda x: ((x - x.mean())/std(x) * g).sum(), x), rtol=1e-9)

def test_figures(mnist):
    x_train,_,x_valid,_ = mnist
    m,s = x_train.mean(), x_train.std()
    train,valid = normalize(x_train, m, s), normalize(x_valid, m, s)
    near_zero(train.mean(), tol=1e-3); near_zero(1 - train.std(), tol=1e-3)
    assert f'{valid.mean():.4f} {valid.std():.4f}' == '-0.0059 0.9924'


# initialization: bad input

both = pytest.mark.parametrize('init', [kaiming_normal, kaiming_uniform])

@pytest.mark.parametrize('args,error,words', [
    ((0,), ValueError, ['fan is 0', 'at least 1']),
    ((-3,), ValueError, ['fan is -3']),
    ((784.,), TypeError, ['fan is 784.0', 'whole number']),
    (((784, 50),), TypeError, ['fan is (784, 50)', 'w.shape[0]']),
    ((True,), TypeError, ['fan is True']),
    ((784, nan), ValueError, ['a is nan', 'finite']),
    ((784, -inf), ValueError, ['a is -inf']),
    ((784, None), TypeError, ['a is None', 'expected a number']),
    ((784, True), TypeError, ['a is True']),
])
def test_kaiming_std_refuses(args, error, words):
    with pytest.raises(error) as e: kaiming_std(*args)
    for word in words: assert word in str(e.value)

@both
@pytest.mark.parametrize('args,kwargs,error,words', [
    ((0, 50), {}, ValueError, ['n_in is 0']),
    ((784, 0), {}, ValueError, ['n_out is 0']),
    ((784, 50.), {}, TypeError, ['n_out is 50.0']),
    ((784, 50), dict(mode='fan_avg'), ValueError, ["mode is 'fan_avg'", 'fan_in', 'fan_out']),
    ((784, 50), dict(mode=None), ValueError, ['mode is None']),
    ((784, 50, 'fan_out'), {}, TypeError, ["a is 'fan_out'", "mode='fan_out'"]),
    ((784, 50), dict(a=inf), ValueError, ['a is inf']),
])
def test_kaiming_refuses(init, args, kwargs, error, words):
    with pytest.raises(error) as e: init(*args, **kwargs)
    for word in words: assert word in str(e.value)


# initialization: properties

@few
@given(st.integers(1, 10_000), st.floats(-10, 10))
def test_kaiming_std_is_the_formula(fan, a):
    std = kaiming_std(fan, a)
    assert math.isclose(fan * std**2 * (1 + a**2)/2, 1., rel_tol=1e-12)
    assert math.isclose(std, nn.init.calculate_gain('leaky_relu', a)/math.sqrt(fan), rel_tol=1e-12)

@few
@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 3), st.sampled_from(['fan_in', 'fan_out']), seeds)
def test_shape_range_and_seed(n_in, n_out, a, mode, seed):
    std = kaiming_std(n_in if mode == 'fan_in' else n_out, a)
    for init in (kaiming_normal, kaiming_uniform):
        w,again,other = (init(n_in, n_out, a, mode, torch.Generator().manual_seed(o)) for o in (seed, seed, seed+1))
        assert w.shape == (n_in, n_out) and w.dtype == torch.get_default_dtype()
        assert w.equal(again) and not w.equal(other)
    assert w.abs().max() <= math.sqrt(3)*std*(1 + 1e-6)

@both
def test_default_generator_follows_the_seed(init):
    torch.manual_seed(3); w = init(5, 4)
    torch.manual_seed(3); assert w.equal(init(5, 4))

@both
@pytest.mark.parametrize('mode,torch_mode', [('fan_in', 'fan_out'), ('fan_out', 'fan_in')])
def test_same_numbers_as_torch(init, mode, torch_mode):
    "torch takes the second axis for the input, so its mode is the other one."
    theirs = getattr(nn.init, init.__name__ + '_')
    torch.manual_seed(0); ours = init(30, 20, .2, mode)
    torch.manual_seed(0); want = theirs(torch.empty(30, 20), a=.2, mode=torch_mode)
    torch.testing.assert_close(ours, want)

def test_full_backward_takes_a_plain_number_at_full_precision():
    x,g = draw((5, 3), 0)
    out,again = with_grad(normalize(x, 3., .1), g),x.clone()
    normalize_full_grad(x, out, .1); normalize_full_grad(again, out, torch.tensor(.1, dtype=torch.float64))
    check_grad(x.g, again.g, rtol=1e-14)

def test_an_empty_batch_has_an_empty_gradient():
    x,out = torch.zeros(0, 3),torch.zeros(0, 3)
    out.g = torch.zeros(0, 3)
    normalize_full_grad(x, out, torch.zeros(0, 1))
    assert x.g.shape == (0, 3)
