"""Layer norm, RMS norm and batch norm against torch's own layers, in float64 and in short dtypes; in models; faults.

The gradients of statistics that are given, `normalize_grad` and `normalize_full_grad`, are tested with normalization.
"""
import copy

import pytest
import torch
import torch.nn.functional as F
from fb_pass.bridges import to_function
from fb_pass.checks import autograd_grad, check_grad
from fb_pass.compiled import compile_step
from fb_pass.doctor import check_layer
from fb_pass.gradients import Rule, add_grad, check_rule
from fb_pass.library import as_torch, load_weights, save_weights
from fb_pass.modules import Lin, Model, Module, Relu
from fb_pass.norms import BatchNorm, LayerNorm, RmsNorm, average, standardize, standardize_grad
from fb_pass.training import SGD, AdamW, CrossEntropy, evaluate, fit, train_step
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import Row
from torch import nn

f64 = torch.float64
few = settings(max_examples=25, deadline=None, derandomize=True)
seeds, sizes = st.integers(0, 2**32 - 1), st.integers(1, 6)
layouts = st.sampled_from(['plain', 'transposed', 'expanded', 'sliced'])

class Draw:
    "Random tensors from one seed, also with other strides."
    def __init__(self, seed, dtype=f64): self.gen,self.dtype = torch.Generator().manual_seed(seed),dtype
    def __call__(self, *shape, layout='plain'):
        def rand(*s): return torch.randn(s, generator=self.gen, dtype=f64).to(self.dtype)
        if layout == 'transposed': return rand(*shape[::-1]).permute(*reversed(range(len(shape))))
        if layout == 'expanded' and shape[0] > 1: return rand(1, *shape[1:]).expand(shape)
        if layout == 'sliced': return rand(*(2*s + 1 for s in shape))[tuple(slice(1, None, 2) for _ in shape)]
        return rand(*shape)

def back(layer, x, g):
    "Output, and gradients of input and parameters."
    out = layer(x)
    layer.zero_grad()
    out.g = g
    layer.backward()
    return out, [x.g, *(p.g for p in layer.params)]

def compare(layer, theirs, x, g):
    out,grads = back(layer, x, g)
    ts = [x, *layer.params]
    want = theirs(*ts)
    assert out.shape == want.shape and torch.allclose(out, want, rtol=1e-10, atol=1e-10)
    leaves = [t.detach().clone().requires_grad_() for t in ts]
    wants = torch.autograd.grad(theirs(*leaves), leaves, g)
    for t,got,want in zip(ts, grads, wants):
        assert got.shape == t.shape and (got - want).abs().max() <= 1e-10*want.abs().max().clamp_min(1e-3)

@few
@given(seeds, st.lists(sizes, min_size=0, max_size=3), st.integers(2, 7), layouts, st.sampled_from([1e-5, .1, 3.]))
def test_rows(seed, shape, c, layout, eps):
    draw = Draw(seed)
    x,g,w,b = draw(*shape, c, layout=layout),draw(*shape, c, layout=layout),draw(c, layout=layout),draw(c)
    compare(LayerNorm(w, b, eps), lambda x, w, b: F.layer_norm(x, (c,), w, b, eps), x, g)
    compare(LayerNorm(w, eps=eps), lambda x, w: F.layer_norm(x, (c,), w, None, eps), x, g)
    compare(RmsNorm(w, eps), lambda x, w: F.rms_norm(x, (c,), w, eps), x, g)

@few
@given(seeds, st.integers(2, 6), sizes, st.sampled_from([(), (1, 3), (2, 2), (4,)]), layouts,
       st.sampled_from([1e-5, .1]), st.sampled_from([0., .1, 1.]))
def test_channels(seed, n, c, rest, layout, eps, momentum):
    draw = Draw(seed)
    w,b = draw(c),draw(c)
    layer,theirs = BatchNorm(w, b, eps, momentum),nn.BatchNorm1d(c, eps, momentum).double()
    theirs._check_input_dim = lambda x: None # images too
    theirs.weight.data,theirs.bias.data = w,b
    for _ in range(3):
        x,g = draw(n, c, *rest),draw(n, c, *rest, layout=layout)
        want = theirs(x)
        assert torch.allclose(layer(x), want, rtol=1e-10, atol=1e-10)
        for k in ('running_mean', 'running_var'):
            assert torch.allclose(getattr(layer, k), getattr(theirs, k), rtol=1e-12, atol=1e-12)
        compare(layer, lambda x, w, b: F.batch_norm(x, None, None, w, b, True, 0., eps), x, g)
        theirs(x) # as often as ours
    layer.training = False
    m,v = layer.running_mean.clone(),layer.running_var.clone()
    for rows in (1, n):
        x,g = draw(rows, c, *rest, layout=layout),draw(rows, c, *rest)
        # torch's own gradient is wrong for one image with one row if the channels lie next to each other
        compare(layer, lambda x, w, b: F.batch_norm(x.contiguous(), m, v, w, b, False, 0., eps), x, g)
    assert layer.running_mean.equal(m) and layer.running_var.equal(v)

def some(layer=LayerNorm, c=4, seed=0):
    draw = Draw(seed)
    return layer(draw(c) + 2, *[draw(c)][:layer is not RmsNorm])
kinds = pytest.mark.parametrize('kind', [LayerNorm, RmsNorm, BatchNorm])

@kinds
def test_rule_against_differences(kind):
    draw = Draw(1)
    layer = some(kind)
    check_rule(layer.rule, draw(5, 4), *(getattr(layer, k) for k in layer.uses))
    ts = [draw(*s).requires_grad_() for s in ((5, 4), (4,), (4,))[:1 + len(layer.uses)]]
    assert torch.autograd.gradcheck(to_function(layer.rule, 'F').apply, ts)

@kinds
def test_sums_that_are_zero(kind):
    "The gradient has no part along what the layer does not look at: a stretch, and but for RMS norm a shift."
    draw,axis = Draw(2),0 if kind is BatchNorm else -1
    layer = some(kind)
    layer.eps = 0.
    x = draw(5, 4) + 1
    g = back(layer, x, draw(5, 4))[1][0]
    middle = 0 if kind is RmsNorm else x.mean(axis, keepdim=True)
    assert (g*(x - middle)).sum(axis).abs().max() < 1e-12
    assert (g.sum(axis).abs().max() < 1e-12) == (kind is not RmsNorm)

@kinds
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
def test_short_dtypes(kind, dtype):
    "Results are rounded once from float32, so they are as good as the dtype; large numbers do not overflow."
    draw = Draw(3)
    layer,x,g = some(kind, 300),draw(40, 300)*100,draw(40, 300)
    for k in ('weight', 'bias', *layer.buffers):
        if hasattr(layer, k): setattr(layer, k, getattr(layer, k).to(dtype))
    x,g = x.to(dtype),g.to(dtype)
    out,grads = back(layer, x, g)
    double = copy.deepcopy(layer)
    for k in ('weight', 'bias', *layer.buffers):
        if hasattr(layer, k): setattr(double, k, getattr(layer, k).double())
    want,wants = back(double, x.double(), g.double())
    for a,b in zip((out, *grads), (want, *wants)):
        assert a.dtype == dtype
        assert (a.double() - b).abs().max() <= 2*max(torch.finfo(dtype).eps, 1e-5)*b.abs().max()

def test_mode_of_the_forward_pass_holds_in_the_backward_pass():
    draw = Draw(4)
    x,g = draw(5, 4),draw(5, 4)
    for training in (True, False):
        layer = some(BatchNorm)
        layer.training = training
        want = back(layer, x, g)[1][0]
        layer(x).g = g
        layer.training = not training
        x.g = None
        layer.backward()
        assert x.g.equal(want)
        assert copy.deepcopy(layer).by_batch is training

def test_running_statistics_are_neither_trained_nor_touched_by_a_failing_call():
    layer,x = some(BatchNorm),Draw(5)(5, 4)
    assert [k for k,_ in layer.named_params()] == ['weight', 'bias'] and len(layer.params) == 2
    assert [k for k,_ in layer.named_buffers()] == ['running_mean', 'running_var']
    mean,var = layer.running_mean,layer.running_var
    layer(x)
    kept = mean.clone(),var.clone()
    assert layer.running_mean is mean and len(layer.params) == 2
    for bad in (x[:1], x[:,:2], x.float(), x[0], x[:0]):
        with pytest.raises((TypeError, ValueError)): layer(bad)
    assert mean.equal(kept[0]) and var.equal(kept[1])
    other = copy.deepcopy(layer)
    other(x)
    assert mean.equal(kept[0]) and not other.running_mean.equal(mean)
    with pytest.raises(ValueError, match='no parameter of this model'): layer._check_owner(SGD([mean], .1))

def test_an_input_with_a_graph_leaves_none_behind():
    layer = some(BatchNorm)
    layer(Draw(6)(5, 4).requires_grad_()*2)
    assert not layer.running_mean.requires_grad and not layer.running_var.requires_grad

@pytest.mark.parametrize('make, words', [
    (lambda: BatchNorm(torch.ones(3), torch.zeros(3))(torch.ones(1, 3)), 'fewer than two numbers.*training = False'),
    (lambda: BatchNorm(torch.ones(3), torch.zeros(3))(torch.ones(4, 2)), r'x \(4, 2\).*expected x \(n, c\)'),
    (lambda: BatchNorm(torch.ones(3), torch.zeros(3))(torch.ones(3)), r'expected x \(n, c\)'),
    (lambda: BatchNorm(torch.ones(3), torch.zeros(2)), 'do not fit'),
    (lambda: LayerNorm(torch.ones(3, 3)), 'do not fit'), (lambda: LayerNorm(torch.ones(3), eps=-1.), 'eps is -1'),
    (lambda: RmsNorm(torch.ones(3), float('nan')), 'eps is nan'),
    (lambda: BatchNorm(torch.ones(3), torch.zeros(3), eps=float('inf')), 'eps is inf'),
    (lambda: BatchNorm(torch.ones(3), torch.zeros(3), momentum=1.5), 'momentum is 1.5.*from 0 to 1'),
    (lambda: LayerNorm(torch.ones(3))(torch.ones(4, 1)), r'x \(4, 1\) and weight \(3,\)'),
    (lambda: RmsNorm(torch.ones(1))(torch.ones(4, 3)), r'x \(4, 3\) and weight \(1,\)'),
    (lambda: LayerNorm(torch.ones(3))(torch.ones(4, 3).double()), 'dtypes differ')])
def test_errors_say_what_to_do(make, words):
    with pytest.raises((TypeError, ValueError), match=words): make()

def test_a_constant_row_needs_eps():
    x,w = torch.full((1, 4), .7, dtype=f64),torch.ones(4, dtype=f64)
    compare(LayerNorm(w), lambda x, w: F.layer_norm(x, (4,), w), x, Draw(7)(1, 4))


# in models

def net(seed=0, dtype=f64):
    draw = Draw(seed, dtype)
    norms = BatchNorm(draw(5), draw(5)),LayerNorm(draw(4), draw(4)),RmsNorm(draw(4))
    return Model.from_layers([Lin(draw(6, 5), draw(5)), norms[0], Relu(), Lin(draw(5, 4), draw(4)), norms[1], norms[2]],
                             CrossEntropy())
def batch(n=8, seed=1): return Draw(seed)(n, 6),torch.arange(n) % 4
def state(model): return {k: t.clone() for k,t in (*model.named_params(), *model.named_buffers())}
def close(a, b): return all((a[k] - b[k]).abs().max() <= 1e-10*b[k].abs().max() for k in a.keys() | b.keys())

class Theirs(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.bn,self.ps = nn.BatchNorm1d(5).double(),nn.ParameterList([p.clone() for p in model.params])
    def forward(self, x):
        w1,b1,bn_w,bn_b,w2,b2,ln_w,ln_b,rms_w = self.ps
        x = F.batch_norm(x@w1 + b1, self.bn.running_mean, self.bn.running_var, bn_w, bn_b, self.training)
        return F.rms_norm(F.layer_norm(x.relu()@w2 + b2, (4,), ln_w, ln_b), (4,), rms_w, 1e-6)

def test_training_as_in_torch():
    model,(x,y) = net(),batch()
    theirs = Theirs(model)
    opt,other = SGD(model.params, .05, .9),torch.optim.SGD(theirs.ps, .05, .9)
    for _ in range(20):
        loss = F.cross_entropy(theirs(x), y)
        other.zero_grad(); loss.backward(); other.step()
        assert train_step(model, opt, x, y) == pytest.approx(loss.item(), rel=1e-10)
    for p,q in zip(model.params, theirs.ps): assert (p - q).abs().max() <= 1e-9*q.abs().max()
    theirs.eval()
    model.layers[1].training = False
    loss,_ = evaluate(model, [(x[:1], y[:1]), (x[1:], y[1:])])
    assert loss == pytest.approx(F.cross_entropy(theirs(x), y).item(), rel=1e-9)

@pytest.mark.parametrize('optimizer', [lambda ps: SGD(ps, .05, .9, .01), AdamW])
def test_a_recorded_step_updates_the_running_statistics_once(optimizer):
    readable,recorded,(x,y) = net(),net(),batch()
    opts = optimizer(readable.params),optimizer(recorded.params)
    step = compile_step(recorded, opts[1], x, y)
    assert close(state(readable), state(recorded)), 'recording changes nothing'
    for seed in range(3):
        x,y = batch(seed=seed)
        assert step(x, y) == pytest.approx(train_step(readable, opts[0], x, y), rel=1e-10)
        assert close(state(readable), state(recorded))
    before = state(recorded)
    with pytest.raises(FloatingPointError): step(x*float('nan'), y)
    assert close(before, state(recorded)), 'a loss that is not finite changes nothing'
    for model in (readable, recorded): model.layers[1].training = False
    assert step(x, y) == pytest.approx(train_step(readable, opts[0], x, y), rel=1e-10)
    assert close(state(readable), state(recorded))
    assert recorded.layers[1].running_mean.equal(before['layers.1.running_mean'])

def test_fit_in_both_ways():
    found = []
    for compiled in (False, True):
        model = net()
        fit(model, SGD(model.params, .05), [batch(), batch(5)], [batch()], 3, stats_every=2, progress=False,
            compiled=compiled)
        found.append(state(model))
    assert close(*found)

def test_weights_and_running_statistics_are_saved(tmp_path):
    model,other,(x,y) = net(),net(3),batch()
    train_step(model, SGD(model.params, .1), x, y)
    save_weights(model, tmp_path/'w')
    load_weights(other, tmp_path/'w')
    assert close(state(model), state(other)) and 'layers.1.running_var' in state(other)

def test_nested_zero_grad_and_copies():
    flat,(x,y) = net(),batch()
    model = Model.from_layers([Row(*flat.layers[:3]), Row(*flat.layers[3:])], CrossEntropy())
    assert [k for k,_ in model.named_buffers()] == [f'layers.0.layers.1.running_{k}' for k in ('mean', 'var')]
    flat(x, y); flat.backward()
    grads = [p.g.clone() for p in flat.params]
    model(x, y); model.backward()
    other = copy.deepcopy(model)
    other(x, y); other.backward()
    for p,g in zip(other.params, grads): check_grad(p.g, g)
    model.zero_grad()
    assert all(p.g is None for p in model.params)

def test_inside_torch():
    draw = Draw(8)
    model = Model.from_layers([LayerNorm(draw(4), draw(4)), RmsNorm(draw(4)), some(BatchNorm), LayerNorm(draw(4))],
                              CrossEntropy())
    x,y = draw(6, 4),torch.arange(6) % 4
    theirs = as_torch(model)
    theirs(x, y).backward()
    model(x, y); model.backward()
    for p,q in zip(model.params, theirs.parameters(), strict=True): check_grad(q.grad, p.g)
    for b,(_,c) in zip(theirs.buffers(), model.named_buffers(), strict=True): check_grad(b, c)

def test_it_is_drawn():
    from fb_pass.viewer import show_backward
    assert 'BatchNorm' in show_backward(net(), *batch())._repr_html_()


# the doctor

@kinds
def test_the_doctor_finds_them_right(kind):
    layer,x = some(kind),3*Draw(9)(6, 4) + 1
    check_layer(layer, x)
    if kind is not BatchNorm: return
    layer.training = False
    mean = layer.running_mean.clone()
    check_layer(layer, x)
    assert layer.running_mean.equal(mean)

def faulty(kind, dx=None, dw=None):
    "A layer whose backward has a fault: `dx(g*w, g, w, xhat, s)` or `dw(g*xhat)`."
    axis = 0 if kind is BatchNorm else -1
    class Faulty(kind):
        @property
        def rule(self):
            def backward(g, out, x, w, b):
                xhat,s = standardize(x, axis, self.eps)
                gx = dx(g*w, g, w, xhat, s) if dx else standardize_grad(g*w, xhat, s)
                return gx, dw(g*xhat) if dw else (g*xhat).sum(0), g.sum(0)
            return Rule(super().rule.forward, backward)
    return some(Faulty)

def right(gw, g, w, xhat, s): return standardize_grad(gw, xhat, s)
FAULTS = {
    'weight twice': (dict(dx=lambda gw, g, w, xhat, s: standardize_grad(gw, xhat, s)*w), 'scaled', 'weight'),
    'weight forgotten': (dict(dx=lambda gw, g, w, xhat, s: standardize_grad(g, xhat, s)), 'scaled', 'weight'),
    'statistics as constants': (dict(dx=lambda gw, g, w, xhat, s: gw/s), 'term missing', 'statistics'),
    'only the mean': (dict(dx=lambda gw, g, w, xhat, s: (gw - average(gw, s))/s), 'term missing', 'mean'),
    'only the spread': (dict(dx=lambda gw, g, w, xhat, s: (gw - xhat*average(gw*xhat, s))/s), 'term missing', 'mean'),
    'weight averaged': (dict(dw=lambda o: o.mean(0)), 'scaled', 'a mean where a sum belongs'),
    'low precision': (dict(dx=lambda gw, g, w, xhat, s: standardize_grad(
        *(t.bfloat16() for t in (gw, xhat, s))).double()), 'dtype', 'bfloat16')}

@pytest.mark.parametrize('kind', [LayerNorm, BatchNorm])
@pytest.mark.parametrize('name', FAULTS)
def test_the_doctor_names_faults(kind, name):
    fault,cause,words = FAULTS[name]
    report = check_layer(faulty(kind, **fault), 3*Draw(10)(6, 4) + 1, raise_exception=False)
    row = report.first
    assert row.verdict == 'wrong' and row.name == ('weight' if 'dw' in fault else 'x')
    assert row.diagnosis.cause == cause and words in row.diagnosis.text, row.diagnosis.text

def test_the_doctor_finds_n_minus_one():
    layer = faulty(LayerNorm, lambda gw, g, w, xhat, s: standardize_grad(gw, xhat, s, 1))
    row = check_layer(layer, 3*Draw(10)(6, 4) + 1, raise_exception=False).first
    assert row.diagnosis.cause == 'scaled' and 'biased and the unbiased' in row.diagnosis.text

def test_the_faults_are_put_where_they_should_be():
    check_layer(faulty(LayerNorm, right), 3*Draw(10)(6, 4) + 1)

def test_gradient_by_constant_statistics_belongs_to_evaluation():
    "Where running and batch statistics agree, outputs do and gradients of the input do not."
    draw = Draw(11)
    x,g,layers = draw(5, 4),draw(5, 4),(some(BatchNorm), some(BatchNorm))
    layers[1].training = False
    layers[1].running_mean,layers[1].running_var = x.mean(0),x.var(0, correction=0)
    (a,(ax,aw,ab)),(b,(bx,bw,bb)) = [back(o, x.clone(), g) for o in layers]
    for p,q in ((a, b), (aw, bw), (ab, bb)): assert torch.allclose(p, q, rtol=1e-12, atol=1e-12)
    with pytest.raises(AssertionError): check_grad(bx, ax)
    want = autograd_grad(lambda x: ((x - x.mean(0).detach())/(x.var(0, correction=0).detach() + 1e-5).sqrt()
                                    * layers[0].weight*g).sum(), x)
    check_grad(bx, want)

# A step that fails

class Counts(Module):
    "Keeps buffers of all kinds: written to, exchanged, a number, in a dictionary."
    buffers = 'number','mean','deep'
    def __init__(self): self.number,self.mean,self.deep = 0,torch.zeros(5).double(),dict(n=torch.zeros(()), seen=[])
    def forward(self, x):
        self.number += 1
        self.mean = .9*self.mean + .1*x.mean(0)
        self.deep['n'] += len(x)
        self.deep['seen'].append(x.mean())
        return x*1
    def bwd(self, out, x): add_grad(x, out.g)

class Stops(Relu):
    error,factor = None,1
    def bwd(self, out, x):
        if self.error: raise self.error
        super().bwd(out, x)
        x.g *= self.factor

def sets(**kw): return lambda model, opt: vars(model.layers[2]).update(kw)
failures = { # what is done to the model and its optimizer; the batch then; what is raised
    'a loss that is not finite': (None, lambda x, y: (x*float('inf'), y), FloatingPointError),
    'labels that do not fit': (None, lambda x, y: (x, y + 3), ValueError),
    'a gradient that is not finite': (sets(factor=float('inf')), None, FloatingPointError),
    'an optimizer that refuses': (lambda m, o: m.layers[0].w.requires_grad_(), None, ValueError),
    'an optimizer of something else': (lambda m, o: o.params.append(torch.ones(2)), None, ValueError),
    'an error in the backward': (sets(error=ZeroDivisionError), None, ZeroDivisionError),
    'an interruption': (sets(error=KeyboardInterrupt), None, KeyboardInterrupt)}

@pytest.mark.parametrize('kind', failures)
def test_a_step_that_fails_changes_neither_parameters_nor_buffers(kind):
    prepare,change,error = failures[kind]
    (first,norm,_,last,*_),(x,y) = net().layers,batch()
    model = Model.from_layers([first, norm, Stops(), Counts(), last], CrossEntropy())
    opt,counts = SGD(model.params, .05),model.layers[3]
    train_step(model, opt, x, y)
    if prepare: prepare(model, opt)
    before,kept = state(model),copy.deepcopy(counts.deep)
    tensors = [t for _,t in model.named_buffers()]
    with pytest.raises(error): train_step(model, opt, *(change(x, y) if change else (x, y)))
    assert close(before, state(model)) and (counts.number, counts.deep) == (1, kept)
    assert all(a is b for a,b in zip(tensors, [t for _,t in model.named_buffers()], strict=True))
