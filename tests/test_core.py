"""Forward, backward, modules, checks and the `Function`s on inputs that no notebook would show: random, odd, or wrong.

The reference is autograd in float64 on another way to write the same function, which finds faults in the forward pass.
"""
from itertools import groupby

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastcore.test import test_close as assert_close
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from fb_pass.autograd import LinFunction, MseFunction, ReluFunction
from fb_pass.backward import forward_and_backward, lin_grad, mse_grad, relu_grad
from fb_pass.bridges import to_function
from fb_pass.checks import (autograd_grad, check_grad, compare_times, default_rtol, numerical_grad, peak_memory,
                            test_near_zero as assert_near_zero)
from fb_pass.gradients import Rule, add_grad, check_rule, clear_grads
from fb_pass.forward import lin, mse, relu
from fb_pass.library import as_torch, to_linear
from fb_pass.modules import Lin, Model, Module, Mse, Relu

RTOL = 1e-10 # of the largest entry, in float64
examples = settings(max_examples=60, deadline=None, print_blob=True)
sizes, seeds = st.integers(1, 7), st.integers(0, 2**32 - 1)
layouts = st.sampled_from(['plain', 'transposed', 'every other', 'expanded rows', 'expanded columns',
                           'backwards slice'])

def agree(got, want, name='gradient', rtol=RTOL, scale=None):
    """Same shape and dtype, and as close as `rtol` to `want`, relative to its largest entry or to `scale`.

    Zero, as behind a dead ReLU, must be met exactly."""
    assert got is not None, f'{name} is missing'
    found,expected = [(o.shape, o.dtype) for o in (got, want)]
    assert found == expected, f'{name}: {found}, expected {expected}'
    assert got.isfinite().all(), f'{name} is not finite'
    if not got.numel(): return
    scale = want.abs().max() if scale is None else scale
    worst = (got - want).abs().max()
    assert worst <= rtol*scale, f'{name} is wrong by {worst/scale:.2g} of the largest entry'

def agree_each(got, want):
    "As close as a rounding in each entry by itself: for what nothing is added up in. Zero must be met exactly."
    torch.testing.assert_close(got, want, rtol=1e-15, atol=0)

class Draw:
    """Random tensors from one seed, in the layouts that real code hands over.

    Continuous values: what is not zero by construction is not nearly zero."""
    def __init__(self, seed, dtype=torch.float64): self.gen,self.dtype = torch.Generator().manual_seed(seed),dtype
    def __call__(self, *shape, layout='plain'):
        rand = lambda *s: torch.randn(s, generator=self.gen, dtype=self.dtype)
        if layout == 'transposed': t = rand(*shape[::-1]).permute(*reversed(range(len(shape))))
        elif layout == 'every other': t = rand(*(2*s for s in shape))[tuple(slice(None, None, 2) for _ in shape)]
        elif layout == 'expanded rows': t = rand(1, *shape[1:]).expand(shape)
        elif layout == 'expanded columns': t = rand(*shape[:-1], 1).expand(shape)
        elif layout == 'backwards slice': t = rand(*(s + 2 for s in shape))[tuple(slice(1, -1) for _ in shape)]
        else: t = rand(*shape)
        assert t.shape == shape
        return t

def by_autograd(f, *ts):
    "Output of `f(*ts)` and, by autograd, the gradients of the sum of `out*upstream`, on copies in plain layout."
    leaves = [t.detach().clone(memory_format=torch.contiguous_format).requires_grad_() for t in ts]
    out = f(*leaves)
    return out.detach(), lambda upstream: torch.autograd.grad(out, leaves, upstream)

def lin_ref(x, w, b): return torch.einsum('ij,jk->ik', x, w) + b[None]
def mse_ref(output, targ): return F.mse_loss(output, targ.unsqueeze(-1))


# one operation at a time

@examples
@given(seeds, sizes, sizes, sizes, layouts, layouts, layouts)
def test_lin(seed, n, n_in, n_out, x_layout, w_layout, g_layout):
    draw = Draw(seed)
    x,w,b = draw(n, n_in, layout=x_layout),draw(n_in, n_out, layout=w_layout),draw(n_out)
    want,grads = by_autograd(lin_ref, x, w, b)
    out = lin(x, w, b)
    agree(out, want, 'out')
    out.g = draw(n, n_out, layout=g_layout)
    lin_grad(x, out, w, b)
    for k,t,g in zip('xwb', (x, w, b), grads(out.g.clone())): agree(t.g, g, k)

@examples
@given(seeds, st.lists(st.integers(1, 5), min_size=0, max_size=4), layouts, layouts)
def test_relu(seed, shape, x_layout, g_layout):
    if not shape: x_layout = g_layout = 'plain'
    draw = Draw(seed)
    x = draw(*shape, layout=x_layout)
    want,grads = by_autograd(F.relu, x)
    out = relu(x)
    agree_each(out, want)
    out.g = draw(*shape, layout=g_layout)
    relu_grad(x, out)
    agree_each(x.g, grads(out.g.clone())[0])

@examples
@given(seeds, sizes, layouts, st.sampled_from(['plain', 'every other', 'backwards slice']))
def test_mse(seed, n, layout, t_layout):
    draw = Draw(seed)
    output,targ = draw(n, 1, layout=layout),draw(n, layout=t_layout)
    want,grads = by_autograd(mse_ref, output, targ)
    loss = mse(output, targ)
    agree(loss, want, 'loss')
    mse_grad(output, targ)
    for t,g in zip((output, targ), grads(torch.ones_like(loss))): agree(t.g, g)

@pytest.mark.parametrize('x', [0., -0., 1e-300, -1e-300, 1e300, -1e300])
def test_relu_at_the_kink_and_far_out(x):
    x = torch.tensor([x, 1.], dtype=torch.float64)
    out = relu(x); out.g = torch.tensor([3., 5.], dtype=torch.float64)
    relu_grad(x, out)
    agree_each(x.g, by_autograd(F.relu, x)[1](out.g)[0])

@examples
@given(seeds, sizes, sizes, sizes)
def test_float32_and_float16_keep_their_dtype(seed, n, n_in, n_out):
    "The same numbers in float64 say how far off a short format may be: some roundings of the sum of absolute products."
    draw = Draw(seed, torch.float32)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        x,w,b,g = [o.to(dtype) for o in (draw(n, n_in), draw(n_in, n_out), draw(n_out), draw(n, n_out))]
        out = lin(x, w, b); out.g = g
        lin_grad(x, out, w, b)
        x64,w64,b64,g64 = [o.double() for o in (x, w, b, g)]
        want,grads = by_autograd(lin_ref, x64, w64, b64)
        bound,bounds = by_autograd(lin_ref, x64.abs(), w64.abs(), b64.abs())
        rtol = 20*torch.finfo(dtype).eps
        for k,t in dict(out=out, x=x.g, w=w.g, b=b.g).items(): assert t.dtype == dtype, k
        for t,v,most in zip((out, x.g, w.g, b.g), (want, *grads(g64)), (bound, *bounds(g64.abs()))):
            assert ((t.double() - v).abs() <= rtol*most).all()
        assert relu(x).dtype == dtype and mse(out[:,:1], g[:,0]).dtype == dtype

@examples
@given(seeds, sizes, sizes, sizes)
def test_a_tensor_used_twice_gets_both_gradients(seed, n, n_in, n_out):
    "Two layers on the same input, and one layer applied to two inputs."
    draw = Draw(seed)
    x,y,w,v,b = draw(n, n_in),draw(n, n_in),draw(n_in, n_out),draw(n_in, n_out),draw(n_out)
    out,other,again = lin(x, w, b),lin(x, v, b),lin(y, w, b)
    for o in (out, other, again): o.g = draw(n, n_out)
    for inp,o,weight in ((x, out, w), (x, other, v), (y, again, w)): lin_grad(inp, o, weight, b)
    def f(x, y, w, v, b): return torch.stack([lin_ref(x, w, b), lin_ref(x, v, b), lin_ref(y, w, b)])
    _,grads = by_autograd(f, x, y, w, v, b)
    for k,t,g in zip('xywvb', (x, y, w, v, b), grads(torch.stack([out.g, other.g, again.g]))): agree(t.g, g, k)

@examples
@given(seeds, sizes, sizes)
def test_a_residual_adds_up(seed, n, nh):
    draw = Draw(seed)
    x,w,b = draw(n, nh),draw(nh, nh),draw(nh)
    out = relu(lin(x, w, b)) + x
    l1 = lin(x, w, b); l2 = relu(l1)
    l2.g = draw(n, nh)
    add_grad(x, l2.g) # the way around
    relu_grad(l1, l2); lin_grad(x, l1, w, b)
    want,grads = by_autograd(lambda x, w, b: F.relu(lin_ref(x, w, b)) + x, x, w, b)
    agree(out, want, 'out')
    for k,t,g in zip('xwb', (x, w, b), grads(l2.g)): agree(t.g, g, k)

@examples
@given(seeds, sizes, sizes)
def test_weight_that_is_its_own_input(seed, n, n_out):
    "`lin(w, w, b)`: all the gradient goes to one tensor."
    draw = Draw(seed)
    w,b = draw(n, n),draw(n)
    out = lin(w, w, b); out.g = draw(n, n)
    lin_grad(w, out, w, b)
    _,grads = by_autograd(lambda w, b: lin_ref(w, w, b), w, b)
    for k,t,g in zip('wb', (w, b), grads(out.g)): agree(t.g, g, k)

@pytest.mark.parametrize('n_in,n_out', [(1, 1), (3, 2)])
def test_no_rows(n_in, n_out):
    "A batch of none goes through a layer and back: the parameters' gradients are zeros, and nothing is NaN."
    draw = Draw(0)
    x,w,b = draw(0, n_in),draw(n_in, n_out),draw(n_out)
    l1 = lin(x, w, b); l2 = relu(l1)
    assert l2.shape == (0, n_out)
    l2.g = draw(0, n_out)
    relu_grad(l1, l2); lin_grad(x, l1, w, b)
    assert x.g.shape == x.shape and torch.equal(w.g, torch.zeros_like(w)) and torch.equal(b.g, torch.zeros_like(b))
    for f in (mse, mse_grad):
        with pytest.raises(ValueError, match='mse.*batch is empty'): f(draw(0, 1), draw(0))

@examples
@given(seeds, sizes, sizes, sizes)
def test_forward_and_backward(seed, n, n_in, nh):
    draw = Draw(seed)
    x,targ = draw(n, n_in),draw(n)
    params = draw(n_in, nh),draw(nh),draw(nh, 1),draw(1)
    for t in (x, targ, *params): t.g = torch.full_like(t, 1e6) # left over from somewhere
    loss = forward_and_backward(x, targ, *params)
    def f(x, w1, b1, w2, b2): return mse_ref(lin_ref(F.relu(lin_ref(x, w1, b1)), w2, b2), targ)
    agree(targ.g, autograd_grad(lambda t: mse_ref(lin_ref(F.relu(lin_ref(x, *params[:2])), *params[2:]), t), targ))
    want,grads = by_autograd(f, x, *params)
    agree(loss, want, 'loss')
    for k,t,g in zip(('x', 'w1', 'b1', 'w2', 'b2'), (x, *params), grads(torch.ones_like(loss))): agree(t.g, g, k)

def test_inputs_are_left_alone():
    draw = Draw(0)
    x,w,b = draw(4, 3),draw(3, 2),draw(2)
    copies = [t.clone() for t in (x, w, b)]
    out = lin(x, w, b); out.g = upstream = draw(4, 2); kept = upstream.clone()
    lin_grad(x, out, w, b)
    assert all(torch.equal(t, c) for t,c in zip((x, w, b), copies)) and torch.equal(upstream, kept)
    first = x.g
    value = first.clone()
    lin_grad(x, out, w, b)
    assert torch.equal(first, value), 'what somebody holds as x.g must not change when more is added'
    agree(x.g, 2*value, 'x')


# whole models

@st.composite
def networks(draw, square=False):
    "Sizes of the layers, where the ReLUs are, the batch, a seed and a layout."
    depth = draw(st.integers(1, 5))
    widths = [draw(sizes)]*(depth + 1) if square else [draw(sizes) for _ in range(depth + 1)]
    acts = [draw(st.integers(0, 2)) for _ in range(depth)]
    return (*widths[:-1], 1), acts, draw(sizes), draw(seeds), draw(layouts)

def build(widths, acts, rand, shared=False):
    "Layers of these widths, each with so many ReLUs before it; with `shared`, those of one shape share their tensors."
    layers,made = [],{}
    for i,(n_in,n_out) in enumerate(zip(widths, widths[1:])):
        key = (n_in, n_out) if shared else i
        if key not in made: made[key] = rand(n_in, n_out)/n_in**.5,rand(n_out)
        layers += [Relu() for _ in range(acts[i])] + [Lin(*made[key])]
    return layers, [t for pair in made.values() for t in pair]

def reference(layers, params, x, targ):
    "By autograd: loss, the gradients of `x` and of every parameter, and what every layer put out with its gradient."
    leaf = {id(t): t.detach().clone().requires_grad_() for t in params}
    x = start = x.detach().clone().requires_grad_()
    outs = []
    for l in layers:
        x = F.relu(x) if isinstance(l, Relu) else lin_ref(x, leaf[id(l.w)], leaf[id(l.b)])
        x.retain_grad(); outs.append(x)
    loss = mse_ref(x, targ)
    loss.backward()
    return loss.detach(), start.grad, [leaf[id(t)].grad for t in params], [(o.detach(), o.grad) for o in outs]

def check_model(model, layers, params, x, targ):
    loss = model(x, targ)
    model.backward()
    want,x_grad,grads,outs = reference(layers, params, x, targ)
    agree(loss, want, 'loss')
    agree(model.preds, outs[-1][0], 'preds')
    for i,(l,(out,g)) in enumerate(zip(layers, outs)):
        agree(l.out, out, f'out of step {i}, {l}')
        agree(l.out.g, g, f'gradient of step {i}, {l}')
    agree(x.g, x_grad, 'x')
    for t,g in zip(params, grads): agree(t.g, g, f'parameter {tuple(t.shape)}')

@examples
@given(networks())
def test_model_of_any_depth(net):
    widths,acts,n,seed,layout = net
    rand = Draw(seed)
    layers,params = build(widths, acts, rand)
    model = Model.from_layers(layers, Mse())
    x,targ = rand(n, widths[0], layout=layout),rand(n)
    check_model(model, layers, params, x, targ)

@examples
@given(networks(square=True))
def test_model_with_shared_weights(net):
    widths,acts,n,seed,layout = net
    rand = Draw(seed)
    layers,params = build(widths, acts, rand, shared=True)
    assume(len(params) < 2*(len(widths) - 1)) # something is shared
    check_model(Model.from_layers(layers, Mse()), layers, params, rand(n, widths[0], layout=layout), rand(n))

@examples
@given(networks(), sizes)
def test_nothing_stale(net, n2):
    "A second backward, a second batch, and gradients left over by others change nothing."
    widths,acts,n,seed,layout = net
    rand = Draw(seed)
    layers,params = build(widths, acts, rand)
    model = Model.from_layers(layers, Mse())
    x,targ = rand(n, widths[0], layout=layout),rand(n)
    check_model(model, layers, params, x, targ)
    first = [t.g.clone() for t in (x, *params)]
    model.backward()
    assert all(torch.equal(t.g, g) for t,g in zip((x, *params), first))
    for t in (x, *params): t.g = torch.full_like(t, 1e6)
    check_model(model, layers, params, x, targ)
    check_model(model, layers, params, rand(n2, widths[0]), rand(n2))

@examples
@given(seeds, sizes, sizes, sizes)
def test_model_of_two_layers(seed, n, n_in, nh):
    rand = Draw(seed)
    params = rand(n_in, nh),rand(nh),rand(nh, 1),rand(1)
    model = Model(*params)
    check_model(model, model.layers, params, rand(n, n_in), rand(n))
    assert [type(l) for l in model.layers] == [Lin, Relu, Lin]

def test_model_keeps_the_parameters_it_was_given():
    params = [torch.ones(3, 2), torch.ones(2), torch.ones(2, 1), torch.ones(1)]
    model = Model(*params)
    assert model.layers[0].w is params[0] and model.layers[2].b is params[3]

def test_a_module_of_ones_own():
    "Modules that know nothing of two dimensions, and a loss of their own."
    class Scale(Module):
        def __init__(self, k): self.k = k
        def forward(self, inp): return inp*self.k
        def bwd(self, out, inp): add_grad(inp, out.g*self.k)
    class Half(Module):
        def forward(self, inp, targ): return ((inp - targ)**2).sum()/2
        def bwd(self, out, inp, targ): add_grad(inp, inp - targ)
    model = Model.from_layers([Scale(3.), Relu(), Scale(2.)], Half())
    rand = Draw(0)
    x,targ = rand(2, 3, 4),rand(2, 3, 4)
    model(x, targ); model.backward()
    agree(x.g, by_autograd(lambda x: ((F.relu(x*3)*2 - targ)**2).sum()/2, x)[1](torch.tensor(1., dtype=x.dtype))[0])


# bad input: an error that names the layer, the shapes and the remedy

f32, f64 = torch.float32, torch.float64
def z(*shape): return torch.zeros(shape)
def z64(*shape): return torch.zeros(shape, dtype=f64)

bad_lin = {
    'x has no rows axis':       (ValueError, (z(3), z(3, 2), z(2)),       ['lin', '(3,)', '(3, 2)', '(n, n_in)']),
    'x has three axes':         (ValueError, (z(4, 5, 3), z(3, 2), z(2)), ['lin', '(4, 5, 3)', '(n, n_in)']),
    'x and w do not meet':      (ValueError, (z(5, 4), z(3, 2), z(2)),    ['lin', '(5, 4)', '(3, 2)', '(n_in, n_out)']),
    'w the wrong way around':   (ValueError, (z(5, 3), z(2, 3), z(2)),    ['lin', '(2, 3)', '(n_in, n_out)']),
    'w is a vector':            (ValueError, (z(5, 3), z(3), z(1)),       ['lin', '(3,)', '(n_in, n_out)']),
    'b would be broadcast':     (ValueError, (z(5, 3), z(3, 2), z(1)),    ['lin', '(1,)', '(n_out,)']),
    'b is a row':               (ValueError, (z(5, 3), z(3, 2), z(1, 2)), ['lin', '(1, 2)', '(n_out,)']),
    'b is a column for each x': (ValueError, (z(2, 3), z(3, 2), z(2, 2)), ['lin', '(2, 2)', '(n_out,)']),
    'b is a number':            (ValueError, (z(5, 3), z(3, 2), z()),     ['lin', '()', '(n_out,)']),
    'x is bytes':               (TypeError,  (z(5, 3).byte(), z(3, 2), z(2)), ['lin: x ', 'uint8', 'float']),
    'w is integer':             (TypeError,  (z(5, 3), z(3, 2).long(), z(2)), ['lin: w ', 'int64', 'float']),
    'b is bool':                (TypeError,  (z(5, 3), z(3, 2), z(2).bool()), ['lin: b ', 'bool', 'float']),
    'x is numpy':               (TypeError,  (np.zeros((5, 3)), z(3, 2), z(2)), ['lin: x ', 'ndarray', 'as_tensor']),
    'x is a list':              (TypeError,  ([[0., 0., 0.]], z(3, 2), z(2)), ['lin: x ', 'list', 'as_tensor']),
    'b is a float':             (TypeError,  (z(5, 3), z(3, 2), 0.),      ['lin: b ', 'float', 'as_tensor']),
    'x is float64':             (TypeError,  (z64(5, 3), z(3, 2), z(2)),  ['lin', 'float64', 'float32', 'one dtype']),
    'b is float64':             (TypeError,  (z(5, 3), z(3, 2), z64(2)),  ['lin', 'float64', 'float32', 'one dtype']),
}
bad_mse = {
    'targ is a column':        (ValueError, (z(5, 1), z(5, 1)),     ['mse', 'targ', '(5, 1)', '(5,)', 'targ[:,0]']),
    'targ is a column of one': (ValueError, (z(1, 1), z(1, 1)),     ['mse', 'targ', '(1, 1)', '(1,)']),
    'targ is a row':           (ValueError, (z(5, 1), z(1, 5)),     ['mse', 'targ', '(1, 5)', '(5,)']),
    'targ is a number':        (ValueError, (z(5, 1), z()),         ['mse', 'targ', '()', '(5,)']),
    'targ is of length one':   (ValueError, (z(5, 1), z(1)),        ['mse', 'targ', '(1,)', '(5,)']),
    'targ is too short':       (ValueError, (z(5, 1), z(4)),        ['mse', 'targ', '(4,)', '(5,)']),
    'output is a vector':      (ValueError, (z(5), z(5)),           ['mse', 'output', '(5,)', '(n, 1)']),
    'output has two columns':  (ValueError, (z(5, 2), z(5)),        ['mse', 'output', '(5, 2)', '(n, 1)']),
    'output has three axes':   (ValueError, (z(5, 1, 1), z(5)),     ['mse', 'output', '(5, 1, 1)', '(n, 1)']),
    'targ are labels':         (TypeError,  (z(5, 1), z(5).long()), ['mse', 'targ', 'int64', 'float()']),
    'output is integer':       (TypeError,  (z(5, 1).int(), z(5)),  ['mse', 'int32', 'float()']),
    'targ is numpy':           (TypeError,  (z(5, 1), np.zeros(5)), ['mse', 'targ', 'ndarray', 'as_tensor']),
    'targ is float64':         (TypeError,  (z(5, 1), z64(5)),      ['mse', 'float64', 'float32', 'one dtype']),
}
bad_relu = {
    'integer': (TypeError,  (z(5).long(),),               ['relu', 'int64', 'float()']),
    'bool':    (TypeError,  (z(5).bool(),), ['relu', 'bool', 'float()']),
    'numpy':   (TypeError,  (np.zeros(5),),            ['relu', 'ndarray', 'as_tensor']),
    'None':    (TypeError,  (None,),                   ['relu', 'NoneType']),
}

def refuses(error, parts, f, *args):
    "`f(*args)` raises exactly `error`, and its message, which is returned, has all of `parts`."
    with pytest.raises(error) as info: f(*args)
    message = str(info.value)
    assert type(info.value) is error
    for p in parts: assert p in message, f'{p!r} is not in {message!r}'
    return message

def cases(table): return pytest.mark.parametrize('error,args,parts', table.values(), ids=table)

@cases(bad_lin)
def test_lin_refuses(error, args, parts):
    refuses(error, parts, lin, *args)
    if all(isinstance(a, torch.Tensor) for a in args[1:]): refuses(error, parts, Lin(*args[1:]), args[0])

@cases(bad_mse)
def test_mse_refuses(error, args, parts):
    for f in (mse, Mse(), mse_grad, MseFunction.apply): refuses(error, parts, f, *args)
    assert getattr(args[0], 'g', None) is None # nothing was stored

@cases(bad_relu)
def test_relu_refuses(error, args, parts):
    for f in (relu, Relu(), ReluFunction.apply): refuses(error, parts, f, *args)

@cases(bad_lin)
def test_functions_refuse_as_well(error, args, parts): refuses(error, parts, LinFunction.apply, *args)

@cases(bad_lin)
def test_backward_of_lin_refuses(error, args, parts):
    out = z(5, 2); out.g = z(5, 2)
    refuses(error, ['lin'], lin_grad, args[0], out, *args[1:])

def test_backward_needs_what_arrives():
    x,w,b = z(5, 3),z(3, 2),z(2)
    refuses(RuntimeError, ['lin', '(5, 2)', 'no gradient', 'first'], lin_grad, x, lin(x, w, b), w, b)
    refuses(RuntimeError, ['relu', '(5, 3)', 'no gradient', 'first'], relu_grad, x, relu(x))

@pytest.mark.parametrize('shape', [(5, 1), (1, 2), (4, 2), (2,), (), (5, 2, 1)])
def test_what_arrives_must_fit(shape):
    "A gradient that would be broadcast is refused, and nothing is stored."
    x,w,b = torch.ones(5, 3),torch.ones(3, 2),torch.ones(2)
    out = lin(x, w, b); out.g = z(*shape)
    refuses(ValueError, ['lin', str(shape), '(5, 2)'], lin_grad, x, out, w, b)
    y = torch.ones(5, 2); out = relu(y); out.g = z(*shape)
    refuses(ValueError, ['relu', str(shape), '(5, 2)'], relu_grad, y, out)
    other = z(*shape); other.g = z(5, 2) # the output of something else
    refuses(ValueError, ['lin', str(shape)], lin_grad, x, other, w, b)
    assert all(getattr(t, 'g', None) is None for t in (x, w, b, y))

def two_layers(): return Model(z(3, 2), z(2), z(2, 1), z(1))

modules = Relu(), Lin(z(3, 2), z(2)), Mse(), two_layers(), Model.from_layers([Relu()], Mse())

@pytest.mark.parametrize('module', modules, ids=repr)
def test_backward_before_forward(module):
    refuses(RuntimeError, [type(module).__name__, 'backward before forward', 'first'], module.backward)

def test_backward_after_a_forward_that_failed():
    "What an earlier, good call has left must not pass for the gradient of the bad one."
    model = two_layers()
    model(z(5, 3), z(5)); model.backward()
    for args in ((z(5, 4), z(5)), (z(5, 3), z(5, 1))):
        with pytest.raises(ValueError): model(*args)
        assert model.args is model.out is None
        refuses(RuntimeError, ['backward before forward'], model.backward)

def test_zero_grad_forgets_all_of_the_last_call():
    layer = Lin(z(3, 2), z(2))
    layer.w.g = z(3, 2)
    layer.zero_grad() # it was never called
    assert layer.w.g is None
    for x in (z(5, 3), z(4, 3)):
        ts = x, layer(x), layer.w, layer.b
        for t in ts: t.g = t
        layer.zero_grad()
        assert all(t.g is None for t in ts)

@cases({'wrong width':       (ValueError, (z(5, 4), z(5)),        ['Lin', '(5, 4)', '(3, 2)', '(n, n_in)']),
        'one example, flat': (ValueError, (z(3), z(1)),           ['Lin', '(3,)', '(n, n_in)']),
        'bytes':             (TypeError,  (z(5, 3).byte(), z(5)), ['Lin', 'uint8', 'float()']),
        'numpy':             (TypeError,  (np.zeros((5, 3), 'float32'), z(5)), ['Lin', 'ndarray', 'as_tensor']),
        'float64':           (TypeError,  (z64(5, 3), z(5)),      ['Lin', 'float64', 'float32', 'one dtype']),
        'column of targets': (ValueError, (z(5, 3), z(5, 1)),     ['Mse', '(5, 1)', '(5,)', 'targ[:,0]']),
        'labels':            (TypeError,  (z(5, 3), z(5).long()), ['Mse', 'int64', 'float()']),
        'numpy targets':     (TypeError,  (z(5, 3), np.zeros(5, 'float32')), ['Mse', 'ndarray', 'as_tensor']),
        'no rows':           (ValueError, (z(0, 3), z(0)),        ['Mse', 'empty'])})
def test_model_names_the_layer(error, args, parts): refuses(error, parts, two_layers(), *args)

def test_model_of_what_is_no_module():
    make,act = Model.from_layers,Relu()
    for wrong in ([Relu], [Lin(z(3, 1), z(1)), F.relu]): refuses(TypeError, ['Module', 'instance'], make, wrong, Mse())
    refuses(TypeError, ['Module'], make, [Relu()], Mse)
    refuses(ValueError, ['layer'], make, [], Mse())
    refuses(ValueError, ['twice'], make, [act, Lin(z(3, 3), z(3)), act], Mse())

def test_module_is_abstract():
    class NoBackward(Module):
        def forward(self, inp): return inp
    refuses(TypeError, ['abstract', 'bwd'], NoBackward)
    refuses(TypeError, ['abstract', 'forward'], Module)


# the checks themselves

ref = torch.tensor([[1., -2.], [3., 4.]], dtype=f64)

bad_grads = {
    'no gradient':        (None, ref, ['missing']),
    'no reference':       (ref, None, ['reference', 'None']),
    'a row of it':        (ref[0], ref, ['shape (2,)', '(2, 2)']),
    'would be broadcast': (ref[:1], ref, ['shape (1, 2)', '(2, 2)']),
    'another view':       (ref.reshape(1, 4), ref, ['(1, 4)']),
    'a number':           (torch.tensor(1., dtype=f64), ref, ['shape ()']),
    'float32':            (ref.float(), ref, ['float32', 'float64']),
    'integers':           (ref.long(), ref.long(), ['int64', 'floating']),
    'integer gradient':   (ref.long(), ref, ['int64', 'float64']),
    'empty':              (torch.zeros(0, dtype=f64), torch.zeros(0, dtype=f64), ['empty']),
    'zeros':              (torch.zeros(2, 2), torch.zeros(2, 2), ['all zero']),
    'zero reference':     (ref, torch.zeros(2, 2, dtype=f64), ['reference', 'all zero']),
    'divided by zero':    (ref/0, ref, ['4 non-finite']),
    'one NaN':            (ref.where(ref < 4, torch.nan), ref, ['1 non-finite']),
    'infinite reference': (ref, ref.where(ref < 4, torch.inf), ['reference', 'non-finite']),
    'NaN in both':        (ref.where(ref < 4, torch.nan), ref.where(ref < 4, torch.nan), ['reference', 'non-finite']),
    'zeros for it':       (torch.zeros_like(ref), ref, ['wrong in 4 of 4']),
    'sign':               (-ref, ref, ['wrong in 4 of 4', '[1, 1]', 'got -4', 'expected 4']),
    'transposed':         (ref.t(), ref, ['wrong in 2 of 4', 'got', 'expected']),
}

@pytest.mark.parametrize('got,want,parts', bad_grads.values(), ids=bad_grads)
def test_check_grad_refuses(got, want, parts):
    refuses(AssertionError, ['the name of it', *parts], lambda: check_grad(got, want, name='the name of it'))

def test_check_grad_says_where_and_by_how_much():
    got = ref.clone(); got[1,0] = 3.5
    parts = 'w1.g', '1 of 4', '[1, 0]', 'got 3.5', 'expected 3', '0.12'
    refuses(AssertionError, parts, lambda: check_grad(got, ref, name='w1.g'))
    refuses(AssertionError, ['[]', 'got 2', 'expected 1'], lambda: check_grad(torch.tensor(2.), torch.tensor(1.)))

@examples
@given(seeds, st.lists(st.integers(1, 5), max_size=3), st.sampled_from([f32, f64]), st.integers(-30, 30), st.data())
def test_check_grad_is_relative(seed, shape, dtype, power, data):
    "Whatever the size of the numbers: half the tolerance passes and twice does not, in each entry, in both directions."
    rand = Draw(seed)
    want = (rand(*shape)*10.**power).to(dtype)
    rtol = default_rtol(dtype)
    i = tuple(data.draw(st.integers(0, s - 1)) for s in shape)
    sign = data.draw(st.sampled_from([-1, 1]))
    check_grad(want.clone(), want)
    for k,passes in ((.5, True), (2, False)):
        got = want.clone(); got[i] += sign*k*rtol*want.abs().max()
        if passes: check_grad(got, want)
        else: refuses(AssertionError, [str([*i]), 'wrong in 1 of'], check_grad, got, want)

def test_check_grad_takes_arrays_and_parameters():
    check_grad(np.array([1., 2.]), torch.tensor([1., 2.], dtype=f64))
    check_grad(torch.nn.Parameter(ref), ref)
    check_grad(ref.t().contiguous().t(), ref)
    check_grad(torch.tensor([1e-40, 2e-40], dtype=f64), torch.tensor([1e-40, 2e-40], dtype=f64))
    check_grad(torch.tensor([3.2e38]), torch.tensor([3.2e38])) # near the largest float32

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, f32, f64])
def test_default_rtol(dtype): assert torch.finfo(dtype).eps < default_rtol(dtype) < .05

@pytest.mark.parametrize('a', [[1., 2e-3], 2e-3, -2e-3, [float('nan'), 0.], float('inf'), torch.zeros(0), []])
def test_near_zero_refuses(a):
    message = refuses(AssertionError, [], assert_near_zero, a)
    assert 'zero' in message or 'empty' in message

def test_near_zero_passes():
    for a in (0, 0., [9.9e-4, -9e-4], np.full(3, 1e-4), z(2, 2), z(3).long()): assert_near_zero(a)
    assert_near_zero(.5, tol=1)
    refuses(AssertionError, ['0.5', '0.1'], lambda: assert_near_zero(.5, tol=.1))

@examples
@given(seeds, st.lists(st.integers(1, 4), max_size=3), layouts)
def test_numerical_grad(seed, shape, layout):
    rand = Draw(seed)
    x = rand(*shape, layout=layout if shape else 'plain')
    before,weights = x.clone(),rand(*shape)
    def f(x): return (weights*x.sin()).sum() + (x*x).prod()
    agree(numerical_grad(f, x), by_autograd(f, x)[1](torch.tensor(1., dtype=f64))[0], rtol=1e-7)
    agree(autograd_grad(f, x), by_autograd(f, x)[1](torch.tensor(1., dtype=f64))[0])
    assert torch.equal(x, before) and not x.requires_grad and x.grad is None

def test_numerical_grad_nudges_a_copy():
    "`f` may know `x` by another way, where it must not move."
    x = ref.clone()
    agree(numerical_grad(lambda y: (x*y).sum(), x), ref, rtol=1e-8)

def test_witnesses_leave_no_trace():
    x,w = ref.clone().requires_grad_(),ref.clone()
    a,b = autograd_grad(lambda x, w: (x@w).sum(), x, w)
    assert x.grad is None and w.grad is None and not w.requires_grad and not a.requires_grad and b.shape == w.shape
    assert numerical_grad(lambda x: x.sum(), ref.float()).dtype == f64

@examples
@given(seeds, st.lists(st.integers(1, 4), max_size=3), st.lists(st.integers(1, 4), max_size=3))
def test_add_grad(seed, shape, other):
    rand = Draw(seed)
    t,a,b = rand(*shape),rand(*shape),rand(*shape)
    add_grad(t, a); assert torch.equal(t.g, a)
    add_grad(t, b); agree(t.g, a + b)
    before = t.g.clone()
    if shape != other:
        refuses(ValueError, [str((*shape,)), str((*other,))], add_grad, t, rand(*other))
        assert torch.equal(t.g, before)
    refuses(ValueError, ['float32', 'float64'], add_grad, t, a.float())
    clear_grads(t, a); assert t.g is None and a.g is None

def test_peak_memory_counts_what_is_held_at_one_moment():
    mib = 2**20
    def make(k): return torch.empty(k*mib, dtype=torch.uint8)
    def one_after_the_other():
        for _ in range(3): make(2)
    assert peak_memory(one_after_the_other) == 2*mib
    def together(): return [make(2) for _ in range(3)]
    assert peak_memory(together) == 6*mib
    t = make(4)
    assert peak_memory(lambda: t.view(2, -1)[0].add_(1)) < mib/4 # views, in place
    assert peak_memory(lambda: t + 1) == 4*mib

def test_peak_memory_sees_the_backward_of_autograd():
    x = torch.ones(1024, 256, requires_grad=True)
    assert peak_memory(lambda: (x*2).sum().backward()) >= 2**20

def test_compare_times():
    calls = []
    times = compare_times({'a': lambda: calls.append('a'), 'b': lambda: calls.append('b')}, rounds=3)
    assert set(times) == {'a', 'b'} and all(t >= 0 for t in times.values()) # a coarse clock may see nothing pass
    assert calls.count('a') == calls.count('b') >= 4
    turns = [k for k,_ in groupby(calls)]
    assert turns.count('a') >= 3 and turns.count('b') >= 3


# the same backwards inside autograd

@settings(max_examples=15, deadline=None)
@given(seeds, st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_functions_pass_gradcheck(seed, n, n_in, n_out):
    rand = Draw(seed)
    def leaf(*shape, layout='plain'): return rand(*shape, layout=layout).requires_grad_()
    assert gradcheck(LinFunction.apply, (leaf(n, n_in, layout='transposed'), leaf(n_in, n_out), leaf(n_out)))
    assert gradcheck(MseFunction.apply, (leaf(n, 1), leaf(n)))
    x = rand(n, n_in); x = (x + .1*x.sign()).requires_grad_() # away from the kink
    assert gradcheck(ReluFunction.apply, (x,))

@examples
@given(seeds, sizes, sizes, sizes, st.lists(st.booleans(), min_size=3, max_size=3).filter(any), layouts)
def test_function_gives_what_was_asked_for(seed, n, n_in, n_out, asked, layout):
    rand = Draw(seed)
    ts = rand(n, n_in, layout=layout),rand(n_in, n_out),rand(n_out)
    upstream = rand(n, n_out)
    _,grads = by_autograd(lin_ref, *ts)
    leaves = [t.detach().requires_grad_(a) for t,a in zip(ts, asked)]
    out = LinFunction.apply(*leaves)
    out.backward(upstream)
    for t,a,g in zip(leaves, asked, grads(upstream)):
        if a: agree(t.grad, g)
        else: assert t.grad is None
    out = LinFunction.apply(*leaves)
    with torch.no_grad(): returned = LinFunction.backward(out.grad_fn, upstream) # as the engine calls it
    assert [r is not None for r in returned] == asked
    assert not any(hasattr(t, 'g') for t in (*leaves, out, upstream))

@examples
@given(seeds, sizes, st.lists(st.booleans(), min_size=2, max_size=2).filter(any))
def test_mse_function_gives_what_was_asked_for(seed, n, asked):
    # gradcheck forgives a thousandth
    rand = Draw(seed)
    ts,upstream = (rand(n, 1), rand(n)),rand()
    _,grads = by_autograd(mse_ref, *ts)
    leaves = [t.detach().requires_grad_(a) for t,a in zip(ts, asked)]
    MseFunction.apply(*leaves).backward(upstream)
    for t,a,g in zip(leaves, asked, grads(upstream)):
        if a: agree(t.grad, g)
        else: assert t.grad is None

def test_as_many_gradients_as_there_were_inputs():
    a,b = torch.ones(2, requires_grad=True),torch.ones(2)
    for grads in ((a,), (a, a, a)):
        f = to_function(Rule(torch.mul, lambda g, out, a, b: grads), 'Miscounted')
        refuses(ValueError, ['gradients for 2 inputs'], f.apply(a, b).sum().backward)

@examples
@given(networks())
def test_as_torch_is_our_model(net):
    widths,_,n,seed,layout = net
    rand = Draw(seed)
    layers,params = build(widths, [0] + [1]*(len(widths) - 2), rand)
    x,targ = rand(n, widths[0], layout=layout),rand(n)
    before = [p.clone() for p in params]
    model = Model.from_layers(layers, Mse())
    net = as_torch(model)
    (-7*net(x, targ)).backward()
    model(x, targ); model.backward()
    for p,t in zip(net.parameters(), params, strict=True): agree(p.grad, -7*t.g)
    agree(net.layers(x).detach(), model.preds, 'preds')
    torch.optim.SGD(net.parameters(), lr=1.).step()
    assert all(torch.equal(p, b) for p,b in zip(params, before)) # the tensors given are not trained
    assert not any(hasattr(p, 'g') for p in net.parameters())

def test_function_with_a_tensor_used_twice():
    rand = Draw(0)
    w,b = rand(3, 3).requires_grad_(),rand(3).requires_grad_()
    w.g = 'mine'
    f = lambda lin, relu: lin(relu(lin(w, w, b)), w, b)
    upstream = rand(3, 3)
    for got,want in zip(torch.autograd.grad(f(LinFunction.apply, ReluFunction.apply), (w, b), upstream),
                        torch.autograd.grad(f(lin_ref, F.relu), (w, b), upstream)): agree(got, want)
    assert w.g == 'mine'

@pytest.mark.parametrize('f,shapes', [(LinFunction, [(2, 3), (3, 2), (2,)]), (ReluFunction, [(2, 3)]),
                                      (MseFunction, [(2, 1), (2,)])])
def test_second_derivative_is_refused(f, shapes):
    rand = Draw(0)
    leaves = [rand(*s).requires_grad_() for s in shapes]
    def twice(): torch.autograd.grad(f.apply(*leaves).sum(), leaves, create_graph=True)
    refuses(RuntimeError, [f.__name__, 'second derivative'], twice)

@examples
@given(seeds, sizes, sizes, sizes, st.sampled_from([f32, f64]), layouts)
def test_to_linear(seed, n, n_in, n_out, dtype, layout):
    rand = Draw(seed, dtype)
    x,w,b = rand(n, n_in),rand(n_in, n_out, layout=layout),rand(n_out)
    state = torch.get_rng_state()
    layer = to_linear(w, b)
    assert torch.equal(torch.get_rng_state(), state) # no random number was drawn
    assert layer.weight.shape == (n_out, n_in) and layer.weight.dtype == dtype and layer.weight.requires_grad
    assert torch.equal(layer.weight, w.t()) and layer.weight.data_ptr() != w.data_ptr()
    assert ((layer(x) - lin(x, w, b)).abs() <= 20*torch.finfo(dtype).eps*lin_ref(x.abs(), w.abs(), b.abs())).all()

def test_autograd_refuses():
    for w,b in ((z(3), z()), (z(3, 2, 4), z(2, 4)), (z(3, 2), z(3)), (z(3, 2), z(2, 1)), (z(3, 2), z(1))):
        refuses(ValueError, ['to_linear', '(n_in, n_out)', str((*b.shape,))], to_linear, w, b)
    net = as_torch(Model.from_layers([Lin(z(3, 1), z(1))], Mse()))
    refuses(ValueError, ['mse', 'targ[:,0]'], net, z(2, 3), z(2, 1))

def test_fastcore_agrees_that_it_is_relative():
    "The comparison at the heart of `check_grad`, in the words of its docstring."
    assert_close(ref/ref.abs().max(), ref/ref.abs().max(), eps=RTOL)
    with pytest.raises(AssertionError): assert_close(ref/ref.abs().max(), (ref + 1e-8)/ref.abs().max(), eps=RTOL)


# Differences where they would be wrong without a word

def test_numerical_grad_of_a_function_that_writes_to_its_argument():
    agree(numerical_grad(lambda z: z.mul_(2).pow(2).sum(), x := torch.tensor([1., -2., .5])), 8*x.double(), rtol=1e-7)

@pytest.mark.parametrize('size', [1e-3, 1., 1e6, 1e12, 1e100])
def test_numerical_grad_of_large_numbers(size):
    x = size*torch.tensor([1., -3.], dtype=torch.float64)
    agree(numerical_grad(lambda z: (z**2).sum(), x), 2*x, rtol=1e-6)

@pytest.mark.parametrize('f, x, eps, error, words', [
    (torch.sum, torch.tensor([1e12]), 1e-6, ValueError, 'vanishes beside the largest x'),
    (torch.sum, torch.ones(3), 0., ValueError, 'step of 0.0'),
    (torch.sum, torch.ones(3), -1., ValueError, 'step of -1.0'),
    (torch.sum, torch.tensor([1 + 2j]), None, TypeError, 'x is torch.complex64, expected real numbers'),
    (torch.sum, torch.tensor([1., torch.inf]), None, ValueError, 'not finite'),
    (torch.sum, np.ones(3), None, TypeError, 'x is a ndarray'),
    (lambda z: z, torch.ones(3), None, ValueError, r'f returned torch.float64 of shape \(3,\), expected a scalar'),
    (lambda z: None, torch.ones(3), None, TypeError, 'what f returned is a NoneType'),
    (lambda z: z.sum()*1j, torch.ones(3), None, ValueError, 'f returned torch.complex128'),
    (None, torch.ones(3), None, TypeError, 'f is a NoneType, expected a function'),
])
def test_numerical_grad_refuses(f, x, eps, error, words):
    with pytest.raises(error, match=words): numerical_grad(f, x, eps)

def test_numerical_grad_keeps_the_digits_of_a_float():
    x = torch.tensor([1., 2.])
    agree(numerical_grad(lambda z: float(z.pow(3).sum()), x), 3*x.double()**2, rtol=1e-8)

def test_differences_under_autocast_are_refused_by_name():
    w = torch.randn(3, 2)
    with torch.autocast('cpu'), pytest.raises(RuntimeError, match='numerical_grad: torch.autocast is on'):
        numerical_grad(lambda x: (x.float()@w).sum(), torch.ones(2, 3))

@pytest.mark.parametrize('mode', [torch.no_grad, torch.inference_mode])
def test_the_reference_by_autograd_in_any_mode(mode):
    x = torch.tensor([1., 2.])
    with mode(): agree(autograd_grad(lambda x: x.pow(2).sum(), x*1.), 2*x)

def test_a_reference_that_does_not_depend_on_its_input():
    with pytest.raises(ValueError, match='does not depend on x number 1'):
        autograd_grad(lambda a, b: a.sum(), torch.ones(2), torch.ones(2))
    with pytest.raises(ValueError, match='does not depend on x number 0'):
        autograd_grad(lambda a: a.detach().sum(), torch.ones(2))

def test_check_rule_without_anything_to_check():
    with pytest.raises(ValueError, match='no floating-point input'):
        check_rule(Rule(torch.neg, lambda g, out, x: None), torch.tensor([1, 2]))

def test_our_functions_inside_autocast_compute_as_given():
    "In a loop of torch that uses autocast, the gradients are those without."
    x,w,b = torch.randn(4, 3),torch.randn(3, 2, requires_grad=True),torch.zeros(2, requires_grad=True)
    want = torch.autograd.grad(LinFunction.apply(x, w, b).pow(2).sum(), (w, b))
    with torch.autocast('cpu'): got = torch.autograd.grad(LinFunction.apply(x, w, b).pow(2).sum(), (w, b))
    for g,o in zip(got, want): torch.testing.assert_close(g, o)
