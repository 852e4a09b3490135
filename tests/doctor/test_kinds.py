"What people write, by kinds: the right one passes, a wrong one is caught, and what was not looked at is said."
import random

import numpy as np, pytest, torch
from fb_pass.doctor import check_layer
from fb_pass.gradients import Rule
from fb_pass.modules import Relu
from fb_pass.training import mlp
from torch import nn
from torch.autograd import Function
from torch.utils.checkpoint import checkpoint

def rand(*shape, seed=0): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

def R(*shape): return rand(*shape).double().numpy()

def look(layer, *inputs, **kw): return check_layer(layer, *inputs, raise_exception=False, progress=False, **kw)

def function(forward, backward, name='Made'):
    return type(name, (Function,), dict(forward=staticmethod(forward), backward=staticmethod(backward)))

class Calls(nn.Module):
    "A module that calls a function of its input, with a parameter if it is given one."
    def __init__(self, f, w=None):
        super().__init__()
        self.f,self.w = f,None if w is None else nn.Parameter(w)
    def forward(self, *args): return self.f(*args) if self.w is None else self.f(*args, self.w)

def passes(layer, *inputs, **kw):
    report = look(layer, *inputs, **kw)
    assert report.ok and report.tested, report
    return str(report)

def fails(layer, *inputs, words='', **kw):
    report = look(layer, *inputs, **kw)
    assert not report.ok and words in str(report), report


# Arguments and outputs

@pytest.mark.parametrize('factor', [2, 3])
def test_an_argument_that_is_a_tuple_is_one_argument(factor):
    def forward(ctx, x, index):
        ctx.index,ctx.shape = index,x.shape
        return x[index]*2
    def backward(ctx, g):
        res = g.new_zeros(ctx.shape)
        res[ctx.index] = factor*g
        return res, None
    (passes if factor == 2 else fails)(function(forward, backward), rand(3, 4), (1, slice(0, 2)))

@pytest.mark.parametrize('factor', [1, 2])
def test_a_gradient_that_autograd_sums_up(factor):
    def forward(ctx, x, a):
        ctx.save_for_backward(x, a)
        return x*a
    def backward(ctx, g):
        x,a = ctx.saved_tensors
        return g*a, factor*(g*x).sum(1, keepdim=True)
    (passes if factor == 1 else fails)(function(forward, backward), rand(4, 3), torch.tensor(2.))

@pytest.mark.parametrize('factor', [1, 2])
def test_an_argument_that_the_forward_uses_up(factor):
    def forward(ctx, x, options):
        ctx.p = options.pop('p')
        ctx.save_for_backward(x)
        return x**ctx.p
    def backward(ctx, g): return factor*g*ctx.p*ctx.saved_tensors[0]**(ctx.p - 1), None
    F = function(forward, backward)
    for layer,*inputs in ((F, rand(3), dict(p=3)), (Calls(lambda x: F.apply(x, dict(p=3))), rand(3))):
        (passes if factor == 1 else fails)(layer, *inputs)

@pytest.mark.parametrize('factor', [2, 1])
def test_complex_numbers(factor):
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return (z*z.conj()).real
    F = function(forward, lambda ctx, g: factor*g*ctx.saved_tensors[0])
    check = passes if factor == 2 else fails
    check(F, torch.view_as_complex(rand(3, 2)))
    check(Calls(lambda x: F.apply(torch.view_as_complex(x))), rand(3, 2))
    check(Calls(lambda x, w: F.apply(x*w), torch.view_as_complex(rand(3, 2, seed=1))), rand(4, 3))

def test_what_cannot_be_checked_is_refused_in_a_sentence():
    pair = lambda z: z*2, lambda g: g*2
    with pytest.raises(TypeError, match='z of .* is complex, and complex numbers are checked in an autograd.Function'):
        look(pair, torch.view_as_complex(rand(3, 2)))
    nested = torch.nested.nested_tensor([rand(2, 3), rand(4, 3)])
    for t in (nested, rand(3, 3).to_sparse()):
        with pytest.raises(TypeError, match='nested or sparse tensor, whose gradient is not checked: give it'):
            look(nn.ReLU(), t)

def test_sparse_gradients(): passes(nn.Embedding(5, 3, sparse=True), torch.tensor([[0, 2, 1], [2, 2, 4]]))

def test_inputs_held_fixed():
    x,target = rand(4, 3),torch.where(rand(4, 3, seed=1) > 0, 1., -1.)
    report = look(nn.SoftMarginLoss(), x, target)
    assert report.ok and [o.name for o in report.rows] == ['input'] and 'target is held fixed' in str(report)
    assert passes(nn.SoftMarginLoss(), x, target, wrt='input')
    seen = []
    def forward(ctx, a, b):
        seen.append(b.requires_grad)
        ctx.save_for_backward(a, b)
        return a*b
    F = function(forward, lambda ctx, g: (g*ctx.saved_tensors[1], None))
    report = look(F, x, target, wrt=['a'])
    assert report.ok and [o.name for o in report.rows] == ['a'] and not any(seen)
    fails(F, x, target)


# Layers of all sorts

def test_a_part_that_closes_over_tensors():
    def implicit(factor):
        def forward(ctx, f, x, *params):
            ctx.f = f
            ctx.save_for_backward(x, *params)
            return f(x)
        def backward(ctx, g):
            x,*params = ctx.saved_tensors
            with torch.enable_grad(): y = ctx.f(x := x.detach().requires_grad_())
            return None, *(factor*o for o in torch.autograd.grad(y, (x, *params), g))
        F = function(forward, backward, 'Implicit')
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.w = nn.Parameter(torch.tensor([2.]))
            def forward(self, x): return F.apply(lambda x: (x*self.w).sin(), x, self.w)
        return Net()
    assert 'Implicit, x: nothing was tested here: it could not be run by itself' in passes(implicit(1), rand(4))
    fails(implicit(2), rand(4))

def test_a_symmetric_matrix_of_which_one_half_is_read():
    def forward(ctx, a):
        low = torch.linalg.cholesky(a)
        ctx.save_for_backward(low)
        return 2*low.diagonal().log().sum()
    def made(factor): return function(forward, lambda ctx, g: factor*g*torch.cholesky_inverse(ctx.saved_tensors[0]))
    a = rand(3, 3).double()
    a = a@a.mT + torch.eye(3)
    assert 'a is symmetric and the forward reads half of it' in passes(made(1), a)
    fails(made(2), a)
    passes(made(1), a, like='symmetric')
    passes(Calls(lambda x: made(1).apply(x@x.mT + torch.eye(3).to(x))), rand(3, 3))
    b = rand(3, 2).double()
    transposed = lambda a: a@b, lambda g: (g@b.mT).mT # it reads all of it, and is no excuse
    fails(transposed, a)
    passes(transposed, a, like='symmetric')
    with pytest.raises(ValueError, match="like names 'c', expected some of a"):
        look(made(1), a, like=dict(c='symmetric'))

def test_a_layer_that_frees_the_storage_of_its_input():
    def reversible(factor):
        def forward(ctx, x):
            with torch.no_grad(): ctx.y = x.detach()*2
            x.untyped_storage().resize_(0)
            ctx.x = x
            return ctx.y.detach()
        def backward(ctx, g):
            ctx.x.untyped_storage().resize_(ctx.y.numel()*ctx.y.element_size())
            ctx.x.data.copy_(ctx.y/2)
            return factor*g
        F = function(forward, backward)
        return Calls(lambda x: F.apply(x*1.))
    passes(reversible(2), rand(3, 4))
    fails(reversible(1), rand(3, 4))

def test_a_forward_that_was_replaced_on_the_instance():
    layer = nn.Linear(4, 3)
    layer.forward = lambda x, f=layer.forward: f(x)
    assert [o.verdict for o in look(layer, rand(5, 4)).rows] == ['right']*3
    inner = nn.Linear(4, 3)
    outer = Calls(lambda x, inner=inner: inner(x))
    outer.inner = inner
    assert [o.name for o in look(outer, rand(5, 4)).rows] == ['input 0', 'inner.weight', 'inner.bias']

def test_a_forward_in_float32_only():
    for dtype in (torch.float32, torch.float64):
        said = passes(Calls(lambda x: x@torch.ones(3, 3)), rand(2, 3), dtype=dtype)
        assert 'runs in float32 only, and so did the references' in said
    double = function(lambda ctx, x: x@torch.ones(3, 3), lambda ctx, g: 2*g@torch.ones(3, 3))
    fails(double, rand(2, 3), dtype=torch.float32)

def test_a_hook_in_the_forward():
    def hooked(factor):
        def forward(x):
            y = x.sin()
            y.register_hook(lambda g: factor*g)
            return y*1
        return Calls(forward)
    passes(hooked(1), rand(3))
    fails(hooked(2), rand(3))

def test_a_state_that_each_call_changes():
    words = 'each call changes its state, and with it the output of the next; checked '
    assert words + 'where the state moves no more' in passes(nn.utils.spectral_norm(nn.Linear(4, 3)), rand(5, 4))
    def counting(factor):
        F = function(lambda ctx, x, n: setattr(ctx, 'n', n) or x*n, lambda ctx, g: (factor*g*ctx.n, None))
        class Counts(nn.Module):
            def __init__(self):
                super().__init__()
                self.n = 1
            def forward(self, x):
                self.n += 1
                return F.apply(x, self.n)
        return Counts()
    assert words + 'as at its first call, and not after another' in passes(counting(1), rand(3))
    fails(counting(2), rand(3))
    passes(nn.BatchNorm1d(3), rand(5, 3))

def test_a_module_that_only_backward_can_run():
    layer = nn.Linear(4, 3)
    module = Calls(lambda x, layer=layer: checkpoint(layer, x, use_reentrant=True))
    module.layer = layer
    assert passes(module, rand(5, 4)) and all(p.grad is None for p in layer.parameters())

def test_functions_without_a_backward_of_their_own():
    words = "no autograd.Function was found in it: autograd's own backward pass was checked"
    assert words in passes(lambda x: x.sin()*x, rand(3)) and words in passes(nn.Linear(3, 2), rand(4, 3))
    w,layer = rand(3, 2).requires_grad_(),nn.Linear(3, 2)
    said = passes(lambda x: x@w, rand(4, 3))
    assert 'w, which <lambda> takes from outside, was not checked: make it an argument' in said
    assert 'layer, which <lambda> takes from outside' in passes(lambda x: layer(x), rand(4, 3))


# What checks forget to try

def product_of(backward, forward=None):
    def saving(ctx, a, b):
        ctx.save_for_backward(a, b)
        return a*b
    return function(forward or saving, backward)

@pytest.mark.parametrize('backward,words', [
    (lambda ctx, g: 2*g.view(-1).view(g.shape), 'stops if the upstream gradient is transposed in memory, with Runtime'),
    (lambda ctx, g: 2*torch.as_strided(g, g.shape, torch.empty(g.shape).stride()), 'another if the upstream gradient'),
    (lambda ctx, g: g.mul_(2), 'the upstream gradient was written to')])
def test_layouts_of_the_upstream_gradient(backward, words):
    fails(function(lambda ctx, x: 2*x, backward), rand(3, 4), words=words)

def test_an_upstream_gradient_that_is_expanded():
    def backward(ctx, g):
        if 0 in g.stride(): raise RuntimeError('unsupported operation')
        return 2*g
    fails(function(lambda ctx, x: 2*x, backward), rand(3, 4), words='stops if the upstream gradient is expanded')

def test_inputs_that_need_no_gradient():
    def right(ctx, g):
        a,b = ctx.saved_tensors
        return g*b if ctx.needs_input_grad[0] else None, g*a if ctx.needs_input_grad[1] else None
    def asserts(ctx, g):
        assert all(ctx.needs_input_grad)
        return right(ctx, g)
    def packs(ctx, g): return *(o for o in right(ctx, g) if o is not None), *[None]*(2 - sum(ctx.needs_input_grad))
    passes(product_of(right), rand(3), rand(3, seed=1))
    fails(product_of(asserts), rand(3), rand(3, seed=1), words='backward pass stops if a needs no gradient, with Ass')
    fails(product_of(packs), rand(3), rand(3, seed=1), words='b.g is another if a needs no gradient')

def test_what_was_kept_is_overwritten():
    def forward(ctx, x):
        ctx.y = x.exp()
        return x.exp()
    fails(function(forward, lambda ctx, g: ctx.y.mul_(g)), rand(3), words='in a second backward pass: the first has')
    passes(function(forward, lambda ctx, g: ctx.y*g), rand(3))

def test_an_input_written_to_without_a_word():
    def forward(ctx, x): return x.mul_(2).clone()
    fails(function(forward, lambda ctx, g: 2*g), rand(3), words='its forward writes to x: say so by ctx.mark_dirty(x)')
    def marked(ctx, x):
        ctx.mark_dirty(x)
        return x.mul_(2)
    passes(function(marked, lambda ctx, g: 2*g), rand(3))

def norm(weighted):
    def forward(ctx, x, w):
        h = x/(x.square().mean(-1, keepdim=True)).sqrt()
        ctx.save_for_backward(x, h, w)
        return h*w
    def backward(ctx, g):
        x,h,w = ctx.saved_tensors
        gh = g*w if weighted else g
        return (gh - h*(gh*h).mean(-1, keepdim=True))/x.square().mean(-1, keepdim=True).sqrt(), (g*h).sum(0)
    return function(forward, backward)

def test_weights_away_from_one():
    def module(weighted): return Calls(norm(weighted).apply, torch.ones(4))
    passes(module(True), rand(5, 4))
    fails(module(False), rand(5, 4), words='wrong with w other than 1')

def test_another_size():
    def mean(n): return lambda x: x.mean(0), lambda g, x: (g/(n or len(x))).expand(x.shape)
    passes(mean(None), rand(4, 4))
    fails(mean(4), rand(4, 4), words='x.g is right for the numbers given, and wrong with 5 instead of 4')
    assert look(mean(4), rand(4, 4), quick=True).ok
    def pooled(x): return x[:,:len(x[0])//2*2].unflatten(1, (-1, 2)).sum(2)
    passes((pooled, lambda g, x: nn.functional.pad(g.repeat_interleave(2, 1), (0, x.shape[1] % 2))), rand(3, 4))
    fails((pooled, lambda g: g.repeat_interleave(2, 1)), rand(3, 4), words='with 4 instead of 3 and 5 instead of 4')


# What a user can say

def test_a_surrogate_is_not_compared():
    straight = function(lambda ctx, x: x.sign(), lambda ctx, g: g)
    fails(straight, rand(4, 5))
    assert [o.verdict for o in look(straight, rand(4, 5), surrogate=True).rows] == ['as declared']
    fails(function(lambda ctx, x: x.sign(), lambda ctx, g: g.sum(0)), rand(4, 5), surrogate=True)

def test_the_error_of_a_solver():
    "A square root by Newton's method that stops early, and its derivative as it should be."
    def forward(ctx, x):
        y = x
        for _ in range(4): y = (y + x/y)/2
        ctx.save_for_backward(y)
        return y
    root,x = function(forward, lambda ctx, g: g/(2*ctx.saved_tensors[0])),rand(5).abs() + .5
    fails(root, x)
    passes(root, x, rtol=1e-3)
    fails(function(forward, lambda ctx, g: g/ctx.saved_tensors[0]), x, rtol=1e-3)

def test_thorough_comes_to_the_same_verdict():
    square = function(lambda ctx, x: ctx.save_for_backward(x) or x*x, lambda ctx, g: 2*g*ctx.saved_tensors[0])
    quick,thorough = look(square, rand(4, 3)),look(square, rand(4, 3), thorough=True)
    assert quick.ok and thorough.ok and thorough.rows[0].difference[1] < quick.rows[0].difference[1]

def test_generators_are_as_before_and_rewound():
    def state(): return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()
    def noisy(ctx, x):
        ctx.noise = random.random() + np.random.rand() + torch.rand(()).item()
        return x*ctx.noise
    before = state()
    for factor,check in ((1, passes), (2, fails)):
        F = function(noisy, lambda ctx, g: factor*g*ctx.noise)
        for layer in (F, Calls(F.apply)): check(layer, rand(3))
    assert state() == before


def cube(once, twice):
    "The cube, whose gradients are `once`, and their derivatives `twice`."
    slope = function(lambda ctx, x: ctx.save_for_backward(x) or 3*x*x, lambda ctx, g: twice*g*ctx.saved_tensors[0])
    return function(lambda ctx, x: ctx.save_for_backward(x) or x**3,
                    lambda ctx, g: once*g*slope.apply(ctx.saved_tensors[0]))

def test_second_derivatives_if_asked_for():
    x = rand(4, 3)
    passes(cube(1, 6), x, second_order=True)
    passes(cube(1, 5), x)
    fails(cube(1, 5), x, second_order=True, words='its second derivative is wrong: along a random direction')
    detached = function(lambda ctx, x: ctx.save_for_backward(x) or x**3,
                        lambda ctx, g: 3*(g*ctx.saved_tensors[0]**2).detach())
    fails(detached, x, second_order=True, words='cannot be differentiated again')
    passes(nn.Sequential(nn.Linear(3, 4), nn.Tanh()), x, second_order=True)

def test_under_compile_if_asked_for():
    x = rand(4, 3)
    passes(cube(1, 6), x, compiled=True)
    passes(nn.Linear(3, 2), x, compiled=True)
    class Else(nn.Module):
        def forward(self, x): return x*(2 if torch.compiler.is_compiling() else 3)
    fails(Else(), x, compiled=True, words='under torch.compile output 0, x.g is another')

# Kinks

@pytest.mark.parametrize('factor', [1, 2])
def test_a_network_on_a_blank_row(factor, monkeypatch):
    "All units of the row are at their kink, since biases are 0: the slopes on one side of all of them are right."
    relu = Relu.rule
    if factor == 2: relu = Rule(relu.forward, lambda g, out, inp: 2*relu.backward(g, out, inp))
    monkeypatch.setattr(Relu, 'rule', relu)
    x = rand(4, 6)
    x[1] = 0
    (passes if factor == 1 else fails)(mlp(6, 5, 3), x, torch.tensor([0, 1, 2, 0]))

def test_a_module_that_returns_nothing():
    with pytest.raises(TypeError, match='returns no floating-point numbers.*does its forward return its output'):
        look((lambda x: None, lambda g: g), rand(3))


# What wrong ones are called

def layer_norm(times=lambda g, w: g*w):
    def forward(ctx, x, w):
        r = (x.var(-1, unbiased=False, keepdim=True) + 1e-5).rsqrt()
        h = (x - x.mean(-1, keepdim=True))*r
        ctx.save_for_backward(h, r, w)
        return h*w
    def backward(ctx, g):
        h,r,w = ctx.saved_tensors
        gh = times(g, w)
        return r*(gh - gh.mean(-1, keepdim=True) - h*(gh*h).mean(-1, keepdim=True)), (g*h).sum(0)
    return function(forward, backward), rand(5, 4), rand(4, seed=1).abs() + .5

def lin_with(dx=lambda g, w: g@w.t(), dw=lambda g, x: x.t()@g, **kw):
    def backward(g, x, w): return dx(g, w), dw(g, x)
    return (lambda x, w: x@w, backward), rand(40, 4), rand(4, 3, seed=1)

def gelu_slope(approximate):
    def backward(g, x):
        with torch.enable_grad(): y = x.detach().requires_grad_()
        return torch.autograd.grad(nn.functional.gelu(y, approximate=approximate), y, g)
    return backward

@pytest.mark.parametrize('case,cause,words', [
    (layer_norm(lambda g, w: g*w*w), 'scaled', 'for w squared: the factor w is there twice'),
    (layer_norm(lambda g, w: g), 'scaled', 'for w = 1: the factor w is missing'),
    (lin_with(dw=lambda g, x: x[::2].t()@g[::2]), 'term missing', 'leaves out every second example'),
    (lin_with(dx=lambda g, w: (g@w.t()).index_fill(0, torch.tensor([3, 7]), 0.)), 'term missing', 'is 0 in rows 3, 7'),
    (lin_with(dw=lambda g, x: (x.t()@g).clamp(-2, 2)), 'clipped', 'is clipped to 2, entry by entry'),
    (lin_with(dw=lambda g, x: (x.t()@g)/(x.t()@g).norm()), 'clipped', 'has the norm 1, as if'),
    (lin_with(dw=lambda g, x: (x.t()@g)/len(x)), 'scaled', 'one over the batch size (1/40)'),
    (((nn.functional.gelu, gelu_slope('tanh')), rand(5, 4)), 'scaled', 'the slope of gelu by tanh'),
    (((nn.functional.silu, lambda g, x: g*x.sigmoid()*(1 - x.sigmoid())), rand(5, 4)), 'scaled', 'slope of sigmoid')])
def test_causes(case, cause, words):
    found = next(o.diagnosis for o in look(*case).rows if not o.ok)
    assert found.cause == cause and words in found.text, found

@pytest.mark.parametrize('low,dtype', [
    (torch.bfloat16, torch.float64), (torch.float16, torch.float32), (torch.bfloat16, torch.float32)])
def test_a_sum_in_low_precision(low, dtype):
    (pair,x,w) = lin_with(dw=lambda g, x: (x.t().to(low)@g.to(low)).to(g))
    found = look(pair, x, w, dtype=dtype).rows[1].diagnosis
    assert found.cause == 'dtype' and f'no more digits than {str(low)[6:]}' in found.text, found

def test_places_that_the_forward_rounds_to():
    class Own(Function):
        "The quantile `q` of the rows of `x`, by default with a gradient of `q` that is too small."
        @staticmethod
        def forward(ctx, x, q):
            ctx.save_for_backward(x, q)
            return torch.quantile(x, q, 1)
        @staticmethod
        def backward(ctx, g):
            with torch.enable_grad():
                ts = [o.detach().requires_grad_() for o in ctx.saved_tensors]
                dx,dq = torch.autograd.grad(torch.quantile(*ts, 1), ts, g)
            return dx, .9*dq
    report = check_layer(Own, torch.randn(3, 4), torch.tensor(.3), raise_exception=False)
    assert [o.verdict for o in report.rows] == ['right', 'wrong'] and report.first.diagnosis.cause == 'scaled'

def test_zeros_without_memory():
    report = check_layer(torch.sgn, torch.randn(3, 4), raise_exception=False)
    assert report.ok and not report.tested and 'the right gradient is zero' in report.rows[0].why

def test_rounding_that_depends_on_the_layout():
    passes(lambda x: (np.sin(x), lambda g: g*np.cos(x)*(1 + 1e-12*g.flags.f_contiguous)), np.ones((3, 4)))

def test_what_another_call_has_left_on_arrays():
    class Tanh:
        "It keeps every call, as some libraries do, and goes back through the first."
        def __init__(self): self.xs,self.w = [],np.random.default_rng(0).normal(size=(4, 3))
        def forward(self, x):
            self.xs.append(x)
            return np.tanh(x@self.w)
        def backward(self, g): return g*(1 - np.tanh(self.xs[0]@self.w)**2)@self.w.T
    report = check_layer(Tanh(), np.random.default_rng(1).normal(size=(3, 4)), wrt='x', raise_exception=False)
    assert report.first.diagnosis.cause == 'stale' and 'another call' in report.first.diagnosis.text

def test_symmetric_inputs_stay_so_in_other_sizes():
    a = torch.randn(4, 4)
    passes(torch.linalg.eigvalsh, a + a.T)

def test_a_value_that_is_an_integer():
    assert not check_layer(lambda x: (0, np.zeros_like(x)), np.ones(3), raise_exception=False).tested

def test_an_input_that_torch_refuses_to_differentiate():
    with pytest.raises(ValueError, match='name the inputs that have a gradient, as in wrt'):
        check_layer(lambda x, w: nn.functional.nll_loss(x, torch.tensor([1, 0]), w), torch.randn(2, 3), torch.rand(3))
    passes(lambda x, w: nn.functional.nll_loss(x, torch.tensor([1, 0]), w), torch.randn(2, 3), torch.rand(3), wrt='x')

def test_a_loss_that_is_a_small_difference():
    def loss(x):
        e = (x/.07).exp()
        return -(e[0]/e.sum() + 1e-300).log()
    for n in range(2, 8): passes(loss, torch.tensor([.9, .4, .35, .3, .3, .2, .1, .3])[:n])

@pytest.mark.parametrize('seed', range(3))
def test_a_solver_that_autograd_sees_in_part(seed):
    class Solve(Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            with torch.no_grad(): return x.sin()
        @staticmethod
        def backward(ctx, g): return g*ctx.saved_tensors[0].cos()
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))
    report = check_layer(lambda x: Solve.apply(x) + 2*x, x, rtol=1e-3, raise_exception=False)
    assert report.ok, report


class MadeAtFirstCall:
    "A layer that makes its parameters when it sees its first input, and keeps every input in a list."
    def __init__(self, factor): self.factor,self.params,self.grads,self.xs = factor,{},{},[]
    def forward(self, x):
        if not self.params:
            rng = np.random.RandomState(0)
            self.params = dict(W=rng.randn(x.shape[1], 3), b=rng.randn(3))
        self.xs.append(x)
        return x @ self.params['W'] + self.params['b']
    def backward(self, g):
        self.grads = dict(W=self.factor*self.xs[-1].T @ g, b=g.sum(0))
        return g @ self.params['W'].T

def test_parameters_made_at_the_first_call():
    x = np.random.RandomState(1).randn(4, 5)
    report = check_layer(MadeAtFirstCall(1), x)
    assert [o.name for o in report.rows] == ['x', 'W', 'b'] and all(o.verdict == 'right' for o in report.rows)
    report = check_layer(MadeAtFirstCall(2), x, raise_exception=False)
    assert [o.verdict for o in report.rows] == ['right', 'wrong', 'right']

def test_less_than_the_tolerance_is_not_zero():
    "With `rtol` the tolerance is a share of the gradient that is judged, and that may be a thousand times too large."
    x = torch.randn(2, 3, dtype=torch.float64)
    report = check_layer((lambda x: 3*x, lambda g, x: 6e3*g), x, rtol=1e-3, raise_exception=False)
    assert not report.ok and 'zero' not in str(report)

def test_torch_has_no_backward():
    with pytest.raises(TypeError, match='torch has no backward'):
        check_layer(torch.special.bessel_j0, torch.rand(2, 3, dtype=torch.float64))

@pytest.mark.parametrize('draw', [lambda x: torch.from_numpy(np.random.rand(*x.shape)), torch.rand_like,
                                  lambda x: torch.tensor([random.random() for _ in range(4)])])
@pytest.mark.parametrize('with_parameter', [True, False])
def test_a_class_that_draws_random_numbers_leaves_their_state(draw, with_parameter):
    class Drop:
        def __init__(self, factor=1):
            self.factor = factor
            if with_parameter: self.scale = rand(4)
        def forward(self, x):
            self.mask = draw(x) < .5
            return x*self.mask
        def backward(self, g): return self.factor*g*self.mask
    random.seed(1); np.random.seed(1); torch.manual_seed(1) # not all columns are dropped
    def states(): return str((np.random.get_state(), torch.get_rng_state().tolist(), random.getstate()))
    before = states()
    look(Drop(), rand(5, 4))
    assert states() == before
    if not with_parameter: passes(Drop(), rand(5, 4)); fails(Drop(2), rand(5, 4), words='wrong')

def step(x, h):
    a = np.tanh(x + h)
    return a, x*h, (x, h, a)

def step_grads(da, dc, saved, factor):
    (x, h, a),d = saved,factor*da
    return d*(1 - a**2) + dc*h, d*(1 - a**2) + dc*x

def nested(x, h): return step(x, h)[:2], step(x, h)[2]

def parts_of(x, h): return *step(x, h)[:2], x, h, step(x, h)[0]

@pytest.mark.parametrize('forward', [step, nested, parts_of])
@pytest.mark.parametrize('made', [
    lambda factor: lambda da, dc, cache: step_grads(da, dc, cache, factor),
    lambda factor: lambda dnext_h, dnext_c, cache: step_grads(dnext_h, dnext_c, cache, factor),
    lambda factor: lambda dout, dc, cache: step_grads(dout, dc, cache, factor),
    lambda factor: lambda da, dc, kept: step_grads(da, dc, kept, factor)])
def test_several_outputs_before_a_cache(forward, made):
    inputs = rand(3, 4).double().numpy(),rand(3, 4, seed=1).double().numpy()
    passes((forward, made(1)), *inputs)
    fails((forward, made(2)), *inputs)

def test_several_outputs_whose_gradients_have_names_of_their_own():
    def backward(da, dc, x, h): return step_grads(da, dc, (x, h, np.tanh(x + h)), 1)
    def twice(da, dc, x, h): return step_grads(da, dc, (x, h, np.tanh(x + h)), 2)
    inputs = rand(3, 4).double().numpy(),rand(3, 4, seed=1).double().numpy()
    passes((lambda x, h: step(x, h)[:2], backward), *inputs)
    fails((lambda x, h: step(x, h)[:2], twice), *inputs)

@pytest.mark.parametrize('forward,backward', [
    (nested, lambda d, cache: step_grads(*d, cache, 1)), (nested, lambda dout, cache: step_grads(*dout, cache, 1)),
    (lambda x, h: (x*h, x, h), lambda g, inp, cache: (g*cache[1], g*inp)),
    (lambda x, h: (x*h, h), lambda g, dim, cache: (g*cache, g*dim)),
    (lambda x, h: (x*h, (x, h)), lambda dout, data: (dout*data[1], dout*data[0]))])
def test_one_upstream_gradient_before_a_cache(forward, backward):
    passes((forward, backward), rand(3, 4).double().numpy(), rand(3, 4, seed=1).double().numpy())

@pytest.mark.parametrize('sparse', [torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr])
def test_a_sparse_input_that_has_no_gradient(sparse):
    class Spread(nn.Module):
        def __init__(self, f):
            super().__init__()
            self.w,self.f = nn.Parameter(rand(2, 3)),f
        def forward(self, x, A): return A @ self.f.apply(x@self.w)
    def made(factor): return Spread(function(lambda ctx, x: 1*x, lambda ctx, g: factor*g))
    inputs = rand(4, 2),sparse(torch.eye(4) + rand(4, 4).relu())
    passes(made(1), *inputs, wrt='x')
    fails(made(2), *inputs, wrt='x', words='multiplied by 2')

def test_a_sparse_input_of_a_wrong_function():
    def made(factor): return function(lambda ctx, A, x: (ctx.save_for_backward(A), torch.sparse.mm(A, x))[1],
                                      lambda ctx, g: (None, factor*torch.sparse.mm(ctx.saved_tensors[0].t(), g)))
    inputs = (torch.eye(4) + rand(4, 4).relu()).to_sparse(),rand(4, 2)
    passes(made(1), *inputs, wrt='x')
    fails(made(2), *inputs, wrt='x', words='multiplied by 2')


# Callables of torch's own

def test_an_instance_of_an_autograd_function():
    cls = function(lambda ctx, x: 1*x, lambda ctx, g: g, 'Kept')
    with pytest.warns(DeprecationWarning), pytest.raises(TypeError, match=r'Kept\(\) is an instance.*give Kept'):
        look(cls(), rand(3))

@pytest.mark.filterwarnings('ignore:.*torch.jit.script')
def test_a_scripted_function():
    def product(x, w): return x*x*w
    passes(torch.jit.script(product), rand(3), rand(3, seed=1))

@pytest.mark.skipif(not hasattr(torch.library, 'custom_op'), reason='this version has no custom_op')
def test_an_operator_of_ones_own():
    def made(name, factor):
        def square(x: torch.Tensor) -> torch.Tensor: return x**2
        op = torch.library.custom_op(f'kinds::{name}', square, mutates_args=())
        op.register_autograd(lambda ctx, g: factor*2*g*ctx.saved_tensors[0],
                             setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs))
        return op
    passes(made('right', 1), rand(3))
    fails(made('wrong', 2), rand(3), words='wrong')


# Numbers as arguments

def line(w, b, x, y):
    e = w*x + b - y
    return (e**2).mean(), (2*(e*x).mean(), 2*e.mean())

def line_twice(w, b, x, y):
    value,(dw, db) = line(w, b, x, y)
    return value, (2*dw, db)

def named_line(x, y, w, b): return line(w, b, x, y)[0], dict(zip(('dw', 'db'), line(w, b, x, y)[1]))

def just_w(w, x, y):
    value,(dw, _) = line(w, .1, x, y)
    return value, dw

def x_and_w(x, w, y):
    e = w*x - y
    return (e**2).mean(), (2*e*w/len(x), 2*(e*x).mean())

x6,y6 = rand(6).double().numpy(),rand(6, seed=1).double().numpy()

@pytest.mark.parametrize('layer,inputs', [
    (line, (.5, .1, x6, y6)), (line, (np.float64(.5), np.float32(.1), x6, y6)), (named_line, (x6, y6, .5, .1)),
    (lambda x, y, w, b: line(w, b, x, y), (x6, y6, .5, .1)), (just_w, (.5, x6, y6)), (x_and_w, (x6, .5, y6))])
def test_a_number_whose_gradient_is_returned(layer, inputs):
    fails(layer, *inputs, words=r'w is a number, and so its gradient was not checked: give np.array(0.5)')

def test_an_array_in_place_of_the_number():
    inputs = np.array(.5),np.array(.1),x6,y6
    passes(line, *inputs)
    fails(line_twice, *inputs, words='w.g is multiplied by 2')

def test_a_number_that_is_a_constant():
    def leaky(x, slope): return np.where(x > 0, x, slope*x)
    assert 'number' not in passes((leaky, lambda g, x, slope: g*np.where(x > 0, 1, slope)), x6, .5)
    assert 'number' not in passes((leaky, lambda g, x, slope: (g*np.where(x > 0, 1, slope), None)), x6, .5)
    fails((leaky, lambda g, x, slope: 2*g*np.where(x > 0, 1, slope)), x6, .5, words='multiplied by 2')
    fails((leaky, lambda g, x, slope: (g*np.where(x > 0, 1, slope)).sum()), x6, .5, words='summed')

def test_a_number_with_a_gradient_in_its_place():
    def grads(g, x, w): return g*w, (g*x).sum()
    said = passes((lambda x, w: x*w, grads), x6, .5)
    assert 'w is a number, and so its gradient was not checked' in said
    said = passes((lambda x, w: x*w, grads), rand(6), .5)
    assert 'give torch.tensor(0.5) instead' in said

def test_symmetric_is_said_of_square_matrices():
    a = rand(4, 4).double()
    a = a@a.T + 4*torch.eye(4).double()
    def solves(factor): return lambda g, a, b: (-factor*(s := torch.linalg.solve(a, g))@torch.linalg.solve(a, b).T, s)
    passes((torch.linalg.solve, solves(1)), a, rand(4, 3).double(), like='symmetric')
    fails((torch.linalg.solve, solves(2)), a, rand(4, 3).double(), like='symmetric', words='multiplied by 2')


# Ties, and outputs that nobody uses

def largest(ctx, x):
    ctx.save_for_backward(x, m := x.amax(1, keepdim=True))
    return m

def shared(ctx, g):
    at = ctx.saved_tensors[0] == ctx.saved_tensors[1]
    return g*at/at.sum(1, keepdim=True)

def first_of_them(ctx, g): return g*torch.zeros_like(x := ctx.saved_tensors[0]).scatter_(1, x.argmax(1, True), 1.)
def each_in_full(ctx, g): return g*(ctx.saved_tensors[0] == ctx.saved_tensors[1])

@pytest.mark.parametrize('times', [(1, 1), (20, 9)])
def test_entries_that_tie_share_a_gradient(times):
    x = torch.tensor([[1., 1, 0], [2, 1, 2]]).repeat(times)
    for backward in shared, first_of_them: passes(function(largest, backward), x)
    fails(function(largest, each_in_full), x, words='they have to share one gradient')

def test_a_tie_in_numpy():
    x = np.array([[1., 1, 0], [2, 1, 2]])
    def at(x): return x == x.max(1, keepdims=True)
    passes((lambda x: x.max(1), lambda g, x: g[:,None]*at(x)/at(x).sum(1, keepdims=True)), x)
    fails((lambda x: x.max(1), lambda g, x: g[:,None]*at(x)), x, words='they have to share one gradient')

def product_and_sum(ctx, x, y):
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, y)
    return x*y, x + y

def unguarded(ctx, a, b): return (a*ctx.saved_tensors[1] + b, a*ctx.saved_tensors[0] + b)

def guarded(ctx, a, b):
    a,b = (0 if o is None else o for o in (a, b))
    return unguarded(ctx, a, b)

def half_guarded(ctx, a, b):
    if a is None: return None, None # and what comes through the sum is lost
    return guarded(ctx, a, b)

def test_an_output_that_nobody_uses():
    inputs = rand(3),rand(3, seed=1)
    passes(function(product_and_sum, guarded), *inputs)
    fails(function(product_and_sum, unguarded), *inputs, words='stops if nobody uses output 0')
    fails(function(product_and_sum, half_guarded), *inputs, words='x.g is another if nobody uses output 0')


# What a Function is told, and what it leaves

def scale_only(ctx, x, w):
    if ctx.needs_input_grad[0]: raise RuntimeError('no gradient with respect to x')
    ctx.save_for_backward(x, w)
    return x*w

@pytest.mark.parametrize('factor', [1, 2])
def test_a_forward_is_told_which_inputs_need_a_gradient(factor):
    made = function(scale_only, lambda ctx, g: (None, factor*(g*ctx.saved_tensors[0]).sum(0)))
    net = Calls(lambda x, w: made.apply(x.detach(), w))
    for layer,name in (made, 'w'), (net, 'input 1'):
        (passes if factor == 1 else fails)(layer, rand(3, 4), rand(4), wrt=name)

def through(ctx, x, lin, factor):
    ctx.save_for_backward(x)
    ctx.lin,ctx.factor = lin,factor
    with torch.no_grad(): return lin(x)

def back_through(ctx, g):
    x = ctx.saved_tensors[0].detach().requires_grad_()
    with torch.enable_grad(): ctx.lin(x).backward(ctx.factor*g)
    return x.grad/ctx.factor, None, None

class LeavesGradients(nn.Module):
    "As reversible layers do: its Function goes back through the layer inside, which leaves the gradients there."
    made = function(through, back_through)
    def __init__(self, factor):
        super().__init__()
        self.lin,self.factor = nn.Linear(4, 4),factor
    def forward(self, x): return self.made.apply(x, self.lin, self.factor)

def test_gradients_that_a_backward_leaves_in_parameters():
    report = look(LeavesGradients(1), rand(3, 4))
    assert report.ok and [o.verdict for o in (*report.rows, *report.parts[0].rows)] == ['right']*4
    report = look(LeavesGradients(2), rand(3, 4))
    assert [o.name for o in report.rows if o.verdict == 'wrong'] == ['lin.weight', 'lin.bias']

def test_two_losses_are_no_loss_with_its_gradient():
    said = passes(lambda x: (x.square().sum(), x.exp().sum()), rand(3, 4))
    assert "autograd's own backward pass was checked" in said
    fails(lambda x: (x.square().sum(), (2*x).sum(1)), rand(3, 4), words='summed over axis 1, once too often')


# Quick where it would take long

@pytest.mark.parametrize('factor', [1, 1.01])
def test_many_gradients_without_autograd_at_once(factor):
    calls = []
    def forward(x, w): calls.append(1); return np.tanh(x@w)
    def backward(g, x, w): g = g*(1 - np.tanh(x@w)**2); return g@w.T, factor*x.T@g
    inputs = R(8, 20),R(20, 30)
    if factor != 1: return fails((forward, backward), *inputs, words='w.g')
    assert 'right' in passes((forward, backward), *inputs)
    assert len(calls) < 1000 # entry by entry, it would be tens of thousands

def test_float32_inside_is_looked_for_first():
    calls = []
    class Inside(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(4, 4)
        def forward(self, x):
            calls.append(1)
            return self.lin(x).float().softmax(-1).to(x)
    report = look(Inside(), rand(6, 4))
    assert report.ok and report.inner == torch.float32 and len(calls) < 500, (report, len(calls))


@pytest.mark.parametrize('all_of_them', (True, False))
def test_ties_in_windows_that_are_copied_together(all_of_them):
    class Pool(torch.autograd.Function): # reshape copies: what only moves numbers rounds none, so ties stay ties
        @staticmethod
        def forward(ctx, x):
            *n,h,w = x.shape
            windows = x[:,:,:h//2*2,:w//2*2].unflatten(2, (h//2, 2)).unflatten(4, (w//2, 2)).transpose(3, 4).flatten(4)
            ctx.save_for_backward(x, windows)
            return windows.amax(-1)
        @staticmethod
        def backward(ctx, g):
            x,windows = ctx.saved_tensors
            if all_of_them: at = (windows == windows.amax(-1, keepdim=True)).to(g)
            else: at = torch.zeros_like(windows).scatter(-1, windows.argmax(-1, keepdim=True), 1.)
            gx = (at*g[...,None]).unflatten(4, (2, 2)).transpose(3, 4).flatten(4, 5).flatten(2, 3)
            return torch.nn.functional.pad(gx, (0, x.shape[3] - gx.shape[3], 0, x.shape[2] - gx.shape[2]))
    x = torch.randint(0, 3, (2, 2, 4, 4), generator=torch.Generator().manual_seed(0)).double()
    report = check_layer(Pool, x, raise_exception=False)
    assert bool(report) != all_of_them, str(report)
    if all_of_them: assert report.first.diagnosis.cause == 'ties'

def test_gradients_that_were_exchanged():
    class Scores(torch.autograd.Function):
        @staticmethod
        def forward(ctx, q, k):
            a = (q@k.mT).softmax(-1)
            ctx.save_for_backward(q, k, a)
            return a
        @staticmethod
        def backward(ctx, g):
            q,k,a = ctx.saved_tensors
            ds = a*(g - (g*a).sum(-1, keepdim=True))
            return ds.mT@q, ds@k
    report = check_layer(Scores, rand(2, 5, 4), rand(2, 5, 4, seed=1), raise_exception=False)
    for row,other in zip(report.rows, 'kq'):
        assert row.diagnosis.cause == 'permuted' and f'is what `{other}.g` should be' in row.diagnosis.text
