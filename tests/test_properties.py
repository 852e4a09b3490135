"""Every layer and function of the package on random inputs: shapes, dtypes, strides, magnitudes, sharing, devices.

What comes out and every gradient are compared with the same function written another way in float64, and with autograd
through it. What may differ is not a guessed tolerance: it is the error budget of the dtype, and what one more rounding
of the inputs would change.
"""
from functools import partial
from typing import Callable, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fb_pass import closures
from fb_pass.activations import Dropout, Gelu, Sigmoid, Silu, Tanh
from fb_pass.autograd import LinFunction, MseFunction, ReluFunction
from fb_pass.backward import forward_and_backward, lin_grad, mse_grad, relu_grad
from fb_pass.doctor.budgets import error_budget, unit_roundoff
from fb_pass.gradients import clear_grads
from fb_pass.forward import lin, mse, relu
from fb_pass.library import as_torch
from fb_pass.modules import Lin, Model, Mse, Relu
from fb_pass.normalization import normalize
from fb_pass.norms import normalize_full_grad, normalize_grad
from fb_pass.training import CrossEntropy, cross_entropy, cross_entropy_grad, log_softmax, logsumexp, mlp, softmax
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

def examples(count):
    return settings(max_examples=count, deadline=None, derandomize=True,
                    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
f64, f32, f16, bf16 = dtypes = torch.float64, torch.float32, torch.float16, torch.bfloat16
devices = ['cpu', *['cuda:0'][:torch.cuda.device_count()], *['mps'][:torch.backends.mps.is_available()]]
on_each_device = pytest.mark.parametrize('device', devices)
layouts = 'plain', 'transposed', 'every other', 'expanded rows', 'expanded columns', 'slice'
# How large the inputs are. What is small or large enough to leave the range of a dtype is no matter of its precision.
magnitudes = {f64: (1e-100, 1e-6, 1., 1e6, 1e100), f32: (1e-6, 1., 1e6), bf16: (1e-6, 1., 1e6), f16: (.1, 1., 10.)}

def laid_out(t, layout):
    "`t` with other strides; what is expanded has other numbers, too."
    axes = *reversed(range(t.ndim)),
    if layout == 'transposed': return t.permute(axes).contiguous().permute(axes)
    if layout == 'expanded rows' and t.ndim: return t[:1].expand(t.shape) if len(t) else t
    if layout == 'expanded columns' and t.ndim: return t[...,:1].expand(t.shape) if t.shape[-1] else t
    if layout in ('plain', 'expanded rows', 'expanded columns'): return t
    step,more = (2, 0) if layout == 'every other' else (1, 2)
    big = t.new_full([step*s + more for s in t.shape], 7.)
    part = big[tuple(slice(more//2, more//2 + step*s, step) for s in t.shape)]
    return part.copy_(t)

def test_layouts():
    t = torch.randn(4, 5)
    for layout in layouts:
        got = laid_out(t, layout)
        assert got.shape == t.shape and (layout[:8] == 'expanded' or torch.equal(got, t)), layout
        assert layout == 'plain' or got.stride() != t.stride() or layout == 'slice' and not got.is_contiguous()

def plainly(t):
    "A copy of `t` on the processor, in float64 if it is floating point, in the plain layout."
    t = t.detach().cpu().clone(memory_format=torch.contiguous_format)
    return t.double() if t.is_floating_point() else t

class Draw:
    "Tensors from one seed: `d('n', 'i')` has the sizes of these names, the first one the magnitude, each a layout."
    def __init__(self, seed, sizes, dtype=f64, device='cpu', picks=(0,), magnitude=1.):
        self.gen,self.sizes,self.values,self.picks = torch.Generator().manual_seed(seed),{},list(sizes),list(picks)
        self.dtype,self.device,self.magnitude,self.count = dtype,device,magnitude,0
    def size(self, k):
        if isinstance(k, int): return k
        return self.sizes.setdefault(k, self.values[len(self.sizes) % len(self.values)])
    def rand(self, *shape): return torch.randn(shape, generator=self.gen, dtype=f64)
    def __call__(self, *shape):
        t = self.rand(*map(self.size, shape))*(1 if self.count else self.magnitude)
        self.count += 1
        return laid_out(t.to(self.device, self.dtype), layouts[self.picks[self.count % len(self.picks)]])
    def labels(self, n, c):
        n,c = self.size(n),self.size(c)
        return torch.randint(0, max(c, 1), (n,), generator=self.gen).to(self.device)


# what is tried

class Op(NamedTuple):
    draw: Callable # From a Draw: the arguments
    run: Callable # From the arguments: what comes out, and a function from its gradient to the gradients of `wrt`
    ref: Callable # From the arguments: what comes out, written another way
    wrt: tuple = (0,) # Which arguments have a gradient
    least: dict = {} # Sizes below which it must refuse
    who: str = '' # And the name that it refuses under
    loss: bool = False # It is the last step: the gradient of what comes out is 1
    dtypes: tuple = dtypes
    length: Callable = lambda *ts: max(1, *(max(t.shape, default=1) for t in ts)) # Terms of the longest sum
    kinked: bool = False # A kink inside: which side of it an entry is on must not hang on a rounding
    exact: bool = False # Nothing is rounded
    terms: Callable = None # From arguments and gradient: size of what cancels in the output, in each gradient

def leaving(forward, backward, wrt):
    "Run a pair of functions that leave gradients in `.g`."
    def run(*ts):
        out = forward(*ts)
        def back(g):
            clear_grads(*ts)
            out.g = g
            backward(out, *ts)
            return [ts[i].g for i in wrt]
        return out, back
    return run

def moduled(make, inputs=1):
    "Run a Module that is made of the arguments after the first `inputs`."
    def run(*ts):
        layer = make(*ts[inputs:])
        out = layer(*ts[:inputs])
        def back(g):
            layer.zero_grad()
            out.g = g
            layer.backward()
            return [t.g for t in ts if t.is_floating_point()]
        return out, back
    return run

def applied(function, wrt):
    "Run an `autograd.Function`."
    def run(*ts):
        leaves = {id(t): t.detach().requires_grad_(t.is_floating_point()) for t in ts}
        out = function(*(leaves[id(t)] for t in ts))
        asked = [leaves[id(ts[i])] for i in wrt]
        return out.detach(), lambda g: torch.autograd.grad(out, asked, g, retain_graph=True)
    return run

def arrays(make):
    "Run a layer of `closures` that is made of all arguments but the first."
    def run(*ts):
        x,*own = (t.numpy() for t in ts)
        layer = make(*own)
        Y,backward = layer.forward(x)
        def back(g):
            for p in layer.parameters: p.clear()
            return [torch.as_tensor(o) for o in (backward(g.numpy()), *(p.gradient for p in layer.parameters))]
        return torch.as_tensor(Y), back
    return run

def linear(w, b):
    layer = closures.Linear(1, 1, dtype=w.dtype)
    layer.weights.tensor,layer.bias.tensor = w,b
    return layer

def own_stats(x, dims):
    if dims is None: return x.mean(), x.std()
    return x.mean(dims, keepdim=True), x.std(dims, keepdim=True)
def normalize_ref(x, dims):
    dims = tuple(range(x.ndim)) if dims is None else (dims,)
    n = torch.Size([x.shape[i] for i in dims]).numel()
    c = x - x.sum(dims, True)/n
    return c/((c*c).sum(dims, True)/(n - 1)).sqrt() # the derivative of rsqrt would overflow where entries are small

def normalize_terms(dims):
    def terms(x, g):
        if not x.numel(): return 0., 0.
        out,s = normalize_ref(x, dims),own_stats(x, dims)[1]
        close = 1 + (x.abs()/s).max() # entries close to each other lose digits when their mean is subtracted
        most = 1 + out.abs().max()
        return most*close, g.abs().max()*most**2*close/s.min()
    return terms

def own_normalize(dims):
    def forward(x): return normalize(x, *own_stats(x, dims))
    def backward(out, x): normalize_full_grad(x, out, own_stats(x, dims)[1])
    return Op(lambda d: [d('n', 'm')], leaving(forward, backward, (0,)), partial(normalize_ref, dims=dims),
              who='normalize', terms=normalize_terms(dims))

def lin_ref(x, w, b): return torch.einsum('ij,jk->ik', x, w) + b[None]
def mse_ref(output, targ): return F.mse_loss(output, targ[:,None])
def net_ref(x, targ, w1, b1, w2, b2): return mse_ref(lin_ref(lin_ref(x, w1, b1).relu(), w2, b2), targ)
def mlp_ref(x, targ, *params):
    for i in range(0, len(params), 2): x = lin_ref(x.relu() if i else x, *params[i:i+2])
    return F.cross_entropy(x, targ)

def mlp_of(*params):
    model = mlp(*(len(w) for w in params[::2]), params[-1].shape[0], dtype=params[0].dtype)
    for l,w,b in zip(model.layers[::2], params[::2], params[1::2]): l.w,l.b = w,b
    return model

def at_once(x, targ, *params):
    loss = forward_and_backward(x, targ, *params)
    return loss, lambda g: [t.g for t in (x, *params)]

def in_torch(x, targ, *params):
    x,m = x.detach().requires_grad_(),as_torch(Model(*params))
    loss = m(x, targ)
    return loss.detach(), lambda g: torch.autograd.grad(loss, [x, *m.parameters()], g, retain_graph=True)

def loss_alone(pred, targ):
    value,g = closures.mse_loss(pred.numpy(), targ.numpy())
    return torch.tensor(value, dtype=f64), lambda _: [torch.as_tensor(g)]

def x_w_b(d): return [d('n', 'i'), d('i', 'o'), d('o')]
def net(d): return [d('n', 'i'), d('n'), d('i', 'h'), d('h'), d('h', 1), d(1)]
def deep(d): return [d('n', 'i'), d.labels('n', 'o'), d('i', 'h'), d('h'), d('h', 'k'), d('k'), d('k', 'o'), d('o')]
def any_shape(d): return [d(*'abcd'[:d.values[-1]])]
def pair(d): return [d('n', 1), d('n')]
def scores(d): return [d('n', 'c'), d.labels('n', 'c')]
same_x = Op(lambda d: [d('n', 'm'), d(1, 'm'), d(1, 'm').abs() + .5], None, lambda x, m, s: (x - m)/s)
one = dict(n=1)
sure = dict(dtypes=(f64, f32), kinked=True)
np_dtypes = (f64, f32, f16)

def but_targ(run):
    "What `run` does, without the gradient of the second argument."
    def without(*ts):
        out,back = run(*ts)
        return out, lambda g: [o for i,o in enumerate(back(g)) if i != 1]
    return without

def sigmoid_terms(x, g): return 0., (g*x.sigmoid()).abs().max() if x.numel() else 0. # y(1-y) is y - y*y
def scores_terms(x, targ, g): return 0., 1/len(x) # a probability near 1, minus 1
def mlp_terms(x, targ, *params_and_g):
    "What cancels in the scores' gradient, as it goes back without signs."
    x,*params = [t.abs().requires_grad_() for t in (x, *params_and_g[:-1])]
    h = x
    for w,b in zip(params[::2], params[1::2]): h = lin_ref(h, w, b)
    return 0., *(o.max() for o in torch.autograd.grad(h.sum()/len(x), [x, *params]))
def stacked(w1, b1, w2, b2):
    return closures.Sequential(linear(w1, b1), closures.Sigmoid(), closures.Relu(), linear(w2, b2))
def stacked_ref(x, w1, b1, w2, b2): return lin_ref(lin_ref(x, w1, b1).sigmoid().relu(), w2, b2)
def lin_back(out, x, w, b): lin_grad(x, out, w, b)
def relu_back(out, x): relu_grad(x, out)
def mse_back(out, o, t): mse_grad(o, t)
def cross_entropy_back(out, x, t): cross_entropy_grad(x, t)
def constants_back(out, x, m, s): normalize_grad(x, out, s)

def gelu_ref(x): return x*torch.special.erfc(-x/2**.5)/2
def gelu_tanh_ref(x):
    near = x.clamp(-1e3, 1e3) # beyond, the derivative of the cube overflows
    return x*(2*(2/torch.pi)**.5*(near + .044715*near**3)).sigmoid()
def near_one(x, g): return 0., g.abs().max() if x.numel() else 0. # 1 minus something near 1
def fixed(x): return (x > 0)/.7
class Masked(Dropout):
    "Dropout that draws what a test can know."
    def draw(self, x): return fixed(x).to(x.dtype)

of_lin = Op(x_w_b, None, lin_ref, (0, 1, 2))
of_relu = Op(any_shape, None, F.relu, exact=True)
of_mse = Op(pair, None, mse_ref, least=one, who='mse', loss=True)
of_scores = Op(scores, None, F.cross_entropy, least=dict(n=1, c=1), who='cross_entropy', loss=True,
               terms=scores_terms)
of_net = Op(net, None, net_ref, (0, 2, 3, 4, 5), least=one, who='mse', loss=True, **sure)

ops = {
    'lin': of_lin._replace(run=leaving(lin, lin_back, (0, 1, 2))),
    'Lin': of_lin._replace(run=moduled(Lin)),
    'LinFunction': of_lin._replace(run=applied(LinFunction.apply, (0, 1, 2))),
    'closures.Linear': of_lin._replace(run=arrays(linear), dtypes=np_dtypes),
    'relu': of_relu._replace(run=leaving(relu, relu_back, (0,))),
    'Relu': of_relu._replace(run=moduled(Relu)),
    'ReluFunction': of_relu._replace(run=applied(ReluFunction.apply, (0,))),
    'closures.Relu': of_relu._replace(run=arrays(closures.Relu), dtypes=np_dtypes),
    'closures.Sigmoid': Op(any_shape, arrays(closures.Sigmoid), torch.sigmoid, dtypes=np_dtypes, terms=sigmoid_terms),
    'mse': of_mse._replace(run=leaving(mse, mse_back, (0,))),
    'Mse': of_mse._replace(run=but_targ(moduled(Mse, 2))),
    'MseFunction': of_mse._replace(run=applied(MseFunction.apply, (0, 1)), wrt=(0, 1), loss=False),
    'closures.mse_loss': Op(lambda d: [d('n', 'm'), d('n', 'm')], loss_alone, F.mse_loss, least=dict(n=1, m=1),
                            who='mse_loss', loss=True, dtypes=np_dtypes, length=lambda p, t: max(1, p.numel())),
    'normalize, constants': same_x._replace(run=leaving(normalize, constants_back, (0,))),
    'normalize, columns': own_normalize(0),
    'normalize, rows': own_normalize(1),
    'normalize, all': own_normalize(None),
    'cross_entropy': of_scores._replace(run=leaving(cross_entropy, cross_entropy_back, (0,))),
    'CrossEntropy': of_scores._replace(run=moduled(CrossEntropy, 2)),
    'forward_and_backward': of_net._replace(run=at_once),
    'Model': of_net._replace(run=but_targ(moduled(Model, 2))),
    'as_torch': of_net._replace(run=in_torch, loss=False),
    'Sigmoid': Op(any_shape, moduled(Sigmoid), torch.sigmoid, terms=near_one),
    'Tanh': Op(any_shape, moduled(Tanh), torch.tanh, terms=near_one),
    'Silu': Op(any_shape, moduled(Silu), F.silu, terms=near_one),
    'Gelu': Op(any_shape, moduled(Gelu), gelu_ref, terms=near_one),
    "Gelu('tanh')": Op(any_shape, moduled(partial(Gelu, 'tanh')), gelu_tanh_ref, terms=near_one),
    'Dropout': Op(any_shape, moduled(lambda: Masked(.3)), lambda x: x*fixed(x)),
    'mlp': Op(deep, moduled(mlp_of, 2), mlp_ref, (0, 2, 3, 4, 5, 6, 7), least=dict(n=1, i=1, h=1, k=1, o=1),
              loss=True, terms=mlp_terms, **sure),
    'closures.Sequential': Op(lambda d: [d('n', 'i'), d('i', 'h'), d('h'), d('h', 'o'), d('o')], arrays(stacked),
                              stacked_ref, (0, 1, 2, 3, 4), dtypes=(f64, f32)),
}
each_op = pytest.mark.parametrize('name', ops)

seeds = st.integers(0, 2**32 - 1)
sizes = st.lists(st.integers(0, 5), min_size=5, max_size=5)
picks = st.lists(st.integers(0, len(layouts) - 1), min_size=6, max_size=6)


# how far off a right gradient may be

def reference(op, ts, g):
    "Output and gradients in float64 by autograd through the other way to write it."
    leaves = {id(t): plainly(t).requires_grad_(t.is_floating_point()) for t in ts}
    out = op.ref(*(leaves[id(t)] for t in ts))
    grads = torch.autograd.grad(out, [leaves[id(ts[i])] for i in op.wrt], plainly(g))
    return out.detach(), [o.detach() for o in grads]

def rounded(t, gen, u):
    "`t` with every entry off by one rounding, up or down."
    if not t.is_floating_point(): return t
    return t.cpu().double()*(1 + u*(2*torch.randint(0, 2, t.shape, generator=gen) - 1))

def allowed(op, ts, g, dtype, want):
    "For output and gradients: the dtype's budget, a share of the largest entry, and what one more rounding changes."
    if op.exact: return [unit_roundoff(dtype)*w.abs() for w in want] # of each entry by itself: a zero is met exactly
    gen,u = torch.Generator().manual_seed(0),unit_roundoff(dtype)
    budget = error_budget(dtype, op.length(*ts))
    moved = [torch.zeros_like(w) for w in want]
    for _ in range(4):
        # A step well above the rounding of float64, in which the reference itself is computed.
        step = max(u, 1e-7)
        new = {id(t): rounded(t, gen, step) for t in ts}
        res = reference(op, [new[id(t)] for t in ts], rounded(g, gen, step))
        moved = [torch.maximum(m, (o - w).abs()*u/step) for m,o,w in zip(moved, [res[0], *res[1]], want)]
    tiny = torch.finfo(dtype).smallest_normal*torch.finfo(dtype).eps
    def worst(t): return t.abs().max() if t.numel() else 0.
    terms = map(float, op.terms(*map(plainly, (*ts, g)))) if op.terms else [0.]*len(want)
    floor = 4*tiny*op.length(*ts)
    return [budget*(worst(w) + worst(m)/u + c) + floor for m,w,c in zip(moved, want, terms, strict=True)]

def agree(got, want, within, dtype, name):
    "Same shape, the dtype that it should have, no entry off by more than `within`, one number or one each."
    assert got is not None, f'{name} is missing'
    found,expected = (got.shape, got.dtype),(want.shape, dtype)
    assert found == expected, f'{name}: {found}, expected {expected}'
    if not want.numel(): return
    assert got.isfinite().all(), f'{name} is not finite'
    off,within = (plainly(got) - want).abs(),torch.as_tensor(within, dtype=f64)
    largest = [f'{o.max():.3g}' for o in (off, within, want.abs())]
    assert (off <= within).all(), '{} is off by {}, allowed {}, largest entry {}'.format(name, *largest)

def clear_of_kinks(ts, op):
    "Is every pre-activation so far from zero that no rounding takes it to the other side?"
    if not op.kinked: return True
    near = []
    def watch(self):
        near.append(bool(self.numel()) and bool((self.abs() < 1e-3*self.abs().max()).any()))
        return plain(self)
    plain,torch.Tensor.relu = torch.Tensor.relu,watch
    try: op.ref(*map(plainly, ts))
    finally: torch.Tensor.relu = plain
    return not any(near)

def refuses(op, d, ts):
    "Must it refuse these sizes, or a spread of nothing, and does it say who it is, in an error of the right type?"
    few = any(d.sizes.get(k, least) < least for k,least in op.least.items())
    if op.who == 'normalize': # what is empty has no statistics that could be wrong
        few = any(not o > 0 for o in own_stats(ts[0], op.ref.keywords['dims'])[1].flatten())
    if not few: return False
    with pytest.raises((ValueError, TypeError), match=op.who): op.run(*ts)
    return True

def upstream(op, out, d):
    "A gradient for what came out, of ordinary size."
    return torch.ones_like(out) if op.loss else d.rand(*out.shape).to(out.device, out.dtype)


# properties

@each_op
@on_each_device
def test_gradients(name, device):
    op = ops[name]
    if device != 'cpu' and 'closures' in name: pytest.skip('arrays are on the processor')
    @examples(150)
    @given(seeds, sizes, picks, st.data())
    def check(seed, values, picks, data):
        dtype = data.draw(st.sampled_from([o for o in op.dtypes if device != 'mps' or o != f64]))
        d = Draw(seed, values, dtype, device, picks, data.draw(st.sampled_from(magnitudes[dtype])))
        ts = op.draw(d)
        if refuses(op, d, ts): return
        assume(clear_of_kinks(ts, op))
        copies = [t.clone() for t in ts]
        out,back = op.run(*ts)
        g = laid_out(upstream(op, out, d), 'plain' if op.loss else layouts[picks[0]])
        kept = g.clone()
        got = back(g)
        want,grads = reference(op, ts, g)
        out_within,*within = allowed(op, ts, g, dtype, [want, *grads])
        if name != 'closures.mse_loss': agree(out, want, out_within, dtype, 'out')
        assert len(got) == len(grads)
        for i,a,b,w in zip(op.wrt, got, grads, within): agree(a, b, w, dtype, f'gradient of argument {i}')
        assert same([*ts, g], [*copies, kept]), 'what goes in is left as it is'
    check()

def plain_case(op, seed, low=2, dtype=f64):
    "Arguments that nothing is wrong with, what comes out, the way back, and a gradient."
    d = Draw(seed, [low + (seed >> 3*i)%3 for i in range(5)], dtype)
    ts = op.draw(d)
    assume(clear_of_kinks(ts, op))
    return d, ts, *(res := op.run(*ts)), upstream(op, res[0], d)

def same(got, want):
    "The same numbers to the last digit: of tensors and their copies, and of one computation that is run again."
    return all(torch.equal(a, b) for a,b in zip(got, want, strict=True))

def close(got, want):
    "The same numbers, dtypes and shapes, but for roundings in float64: relative to the largest entry."
    for a,b in zip(got, want, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert torch.allclose(a, b, 1e-12, 1e-12*float(b.abs().max()))

@each_op
@examples(15)
@given(seeds)
def test_nothing_is_left_over(name, seed):
    "A second way back, another batch in between, and everything made anew give the same numbers to the last digit."
    op = ops[name]
    d,ts,out,back,g = plain_case(op, seed)
    first = [o.clone() for o in back(g)]
    assert same(back(g), first)
    other = op.draw(d)
    _,back_other = op.run(*other)
    back_other(g)
    assert same(back(g), first), 'what another pass has left'
    again,back = op.run(*ts)
    assert torch.equal(again, out) and same(back(g), first)

@each_op
@examples(15)
@given(seeds, st.integers(-30, 30))
def test_twice_the_gradient_of_the_output_is_twice_the_gradient(name, seed, power):
    "Every backward is linear in what arrives, whatever its size."
    op = ops[name]
    if op.loss: pytest.skip('nothing arrives at a loss')
    d,ts,out,back,g = plain_case(op, seed)
    first = [o.clone() for o in back(g)]
    close(back(g*2.**power), [o*2.**power for o in first])
    zeros = back(torch.zeros_like(g))
    assert not any(o.any() for o in zeros)

@each_op
@examples(15)
@given(seeds, st.integers(1, len(layouts) - 1))
def test_strides_do_not_matter(name, seed, pick):
    "The same numbers in another layout."
    op = ops[name]
    d,ts,out,back,g = plain_case(op, seed)
    first = [o.clone() for o in back(g)]
    laid = [laid_out(t, 'every other' if 'expanded' in layouts[pick] else layouts[pick]) for t in ts]
    again,back = op.run(*laid)
    close([again, *back(g)], [out, *first])

@each_op
@examples(15)
@given(seeds)
def test_gradients_have_memory_of_their_own(name, seed):
    "To change a gradient changes neither an input, nor what came out, nor another gradient."
    op = ops[name]
    d,ts,out,back,g = plain_case(op, seed)
    kept = [t.clone() for t in ts]
    found = back(g)
    copies = [o.clone() for o in found]
    for i,o in enumerate(found):
        if 'Function' in name or name == 'as_torch': o = o.clone() # autograd's own, which may be shared
        o.mul_(0.)
        assert same(ts, kept), f'gradient {i} is a view of what went in'
        assert same(found[i+1:], copies[i+1:]), f'gradient {i} shares its memory with another'


# one tensor in two places

@on_each_device
@examples(30)
@given(seeds, sizes, st.sampled_from([f64, f32]))
def test_one_input_of_two_layers(device, seed, values, dtype):
    "The gradients of two uses of `x` add up, in any order, also through ReLU and a normalization."
    d = Draw(seed, [v + 2 for v in values], dtype, device)
    x,w,v,b = d('n', 'm'),d('m', 'o'),d('m', 'o'),d('o')
    one,two = Lin(w, b),Lin(v, b)
    act,out = Relu(),one(x)
    other,third = two(x),act(x)
    s = x.std(0, keepdim=True)
    fourth = normalize(x, x.mean(0, keepdim=True), s)
    for o in (out, other, third, fourth): o.g = d.rand(*o.shape).to(device, dtype)
    for back in (one.backward, act.backward, lambda: normalize_full_grad(x, fourth, s), two.backward): back()
    leaves = [plainly(t).requires_grad_() for t in (x, w, v, b)]
    X,W,V,B = leaves
    res = [lin_ref(X, W, B), lin_ref(X, V, B), X.relu(), normalize_ref(X, 0)]
    want = torch.autograd.grad(res, leaves, [plainly(o.g) for o in (out, other, third, fourth)])
    terms = float((fourth.g.abs().max()*(1 + fourth.abs().max())**2*(1 + x.abs().max()/s.min())/s.min()).cpu())
    for k,t,g in zip('xwvb', (x, w, v, b), want):
        agree(t.g, g, error_budget(dtype, 10)*(10*float(g.abs().max()) + terms), dtype, k)

@on_each_device
@examples(30)
@given(seeds, st.integers(1, 5), st.integers(1, 5), st.integers(2, 4), st.sampled_from([f64, f32]))
def test_one_weight_in_many_layers(device, seed, n, width, depth, dtype):
    "A model whose layers share `w` and `b`: once other modules, once the same one, called again through closures."
    d = Draw(seed, [n, width], dtype, device)
    x,w,b,out_w,out_b,targ = d('n', 'm'),d('m', 'm')/width,d('m'),d('m', 1),d(1),d('n')
    model = Model.from_layers([*(Lin(w, b) for _ in range(depth)), Lin(out_w, out_b)], Mse())
    model(x, targ); model.backward()
    first = [t.g.clone() for t in (x, w, b)]
    model.backward()
    assert same([t.g for t in (x, w, b)], first), 'a model clears before it goes back'
    leaves = [plainly(t).requires_grad_() for t in (x, w, b, out_w, out_b)]
    def hidden(h, w, b):
        for _ in range(depth): h = lin_ref(h, w, b)
        return h
    loss = mse_ref(lin_ref(hidden(*leaves[:3]), *leaves[3:]), plainly(targ))
    want,budget = torch.autograd.grad(loss, leaves),1e3*error_budget(dtype, depth*width)
    for k,t,g in zip(('x', 'w', 'b', 'out_w', 'out_b'), (x, w, b, out_w, out_b), want):
        agree(t.g, g, budget*(1 + g.abs().max()), dtype, k)
    if device != 'cpu' or dtype != f64: return
    layer = linear(w.numpy(), b.numpy())
    seq = closures.Sequential(*[layer]*depth)
    Y,back = seq.forward(x.numpy())
    u = d.rand(*Y.shape)
    got = back(u.numpy())
    for a,g in zip((got, layer.weights.gradient, layer.bias.gradient),
                   torch.autograd.grad(hidden(*leaves[:3]), leaves[:3], u)):
        assert np.abs(a - g.numpy()).max() <= 1e-12*(1 + float(g.abs().max()))

@examples(30)
@given(seeds, st.integers(1, 5))
def test_one_tensor_as_two_arguments(seed, n):
    d = Draw(seed, [n])
    w,b = d('n', 'n'),d('n')
    for run in (ops['lin'].run, ops['LinFunction'].run):
        out,back = run(w, w, b)
        g = d.rand(*out.shape)
        W,B = (t.clone().requires_grad_() for t in (w, b))
        want = torch.autograd.grad(lin_ref(W, W, B), (W, B), g)
        got = back(g)
        agree(got[0], want[0], 1e-12*float(want[0].abs().max()), f64, 'w')
        agree(got[2], want[1], 1e-12*float(want[1].abs().max()), f64, 'b')

@examples(30)
@given(seeds, st.integers(1, 4))
def test_gradients_add_up_until_they_are_cleared(seed, times):
    "One backward after the other on the same tensors: so many times the gradient of one; each keeps what came before."
    d = Draw(seed, [3, 4, 2])
    x,w,b = d('n', 'i'),d('i', 'o'),d('o')
    out = lin(x, w, b)
    out.g = d.rand(*out.shape)
    lin_grad(x, out, w, b)
    held = [t.g for t in (x, w, b)]
    once = [o.clone() for o in held]
    for _ in range(times): lin_grad(x, out, w, b)
    assert same(held, once), 'a gradient that somebody holds changes when more is added'
    for t,g in zip((x, w, b), once): assert torch.allclose(t.g, g*(times + 1), 1e-14, 0.)
    clear_grads(x, w, b)
    lin_grad(x, out, w, b)
    assert same([t.g for t in (x, w, b)], once)


# what has no backward of its own, and arrays

@on_each_device
@examples(60)
@given(seeds, st.lists(st.integers(0, 4), min_size=0, max_size=3), st.integers(1, 6),
       st.integers(0, len(layouts) - 1), st.sampled_from(dtypes), st.sampled_from([1e-3, 1., 30.]))
def test_softmax_and_its_logarithm(device, seed, shape, c, pick, dtype, magnitude):
    d = Draw(seed, [1], dtype, device, [pick], magnitude)
    x = d(*shape, c)
    X = x.cpu().double()
    top = float(X.abs().max()) if X.numel() else 0.
    budget = error_budget(dtype, c)*(1 + top)
    agree(softmax(x), X.softmax(-1), budget, dtype, 'softmax')
    agree(log_softmax(x), X.log_softmax(-1), budget*2, dtype, 'log_softmax')
    agree(logsumexp(x), X.logsumexp(-1), budget*2, dtype, 'logsumexp')
    if x.numel(): assert (softmax(x).sum(-1).double() - 1).abs().max() <= error_budget(dtype, c)*c

@examples(30)
@given(seeds, st.integers(1, 4), st.integers(1, 4))
def test_arrays_that_run_backwards(seed, n, m):
    "Negative strides, which torch does not have."
    rng = np.random.default_rng(seed)
    X,u = rng.standard_normal((2*n, 2*m)),rng.standard_normal((n, m))
    back_to_front = X[::-2,::-2]
    for layer in (closures.Relu(), closures.Sigmoid(), linear(*(rng.standard_normal(s) for s in ((m, m), m)))):
        (Y,back),(Z,plain) = layer.forward(back_to_front),layer.forward(back_to_front.copy())
        assert np.allclose(Y, Z, 1e-14) and np.allclose(back(u[::-1]), plain(u[::-1].copy()), 1e-14)
    assert np.isclose(closures.mse_loss(back_to_front, u)[0], ((back_to_front - u)**2).mean())

def test_no_layer_without_inputs():
    "Nothing to draw weights for: an error that says so, no division by zero."
    with pytest.raises(ValueError, match='Linear.*input'): closures.Linear(0, 3)
    with pytest.raises(ValueError, match='mlp|n_in'): mlp(0, 3)
