"Activations and dropout: beside the library's, wrong ones found, wherever a layer can stand, train and eval."
import copy, pickle
from functools import partial

import pytest, torch, torch.nn.functional as F
from fb_pass.activations import (Dropout, Gelu, Sigmoid, Silu, Tanh, dropout, dropout_rule, gelu, gelu_rule, gelu_tanh,
                                 gelu_tanh_rule, sigmoid, sigmoid_rule, silu, silu_rule, tanh, tanh_rule)
from fb_pass.checks import autograd_grad, check_grad, numerical_grad
from fb_pass.compiled import compile_step
from fb_pass.doctor import check_layer
from fb_pass.gradients import Rule, check_rule
from fb_pass.library import as_torch, load_weights, save_weights
from fb_pass.modules import Lin, Model, Module, Op, Relu
from fb_pass.parameters import Parts
from fb_pass.training import SGD, AdamW, CrossEntropy, dataloader, evaluate, fit, train_step
from fb_pass.viewer import show_backward
from rows import Row
from test_properties import laid_out, layouts

def seeded(n=0): return torch.Generator().manual_seed(n)
def rand(*shape, seed=0, dtype=torch.float64): return torch.randn(shape, generator=seeded(seed), dtype=dtype)

# beside the library: layer, its function, its rule, torch's
both = {
    'sigmoid': (Sigmoid, sigmoid, sigmoid_rule, torch.sigmoid), 'tanh': (Tanh, tanh, tanh_rule, torch.tanh),
    'silu': (Silu, silu, silu_rule, F.silu), 'gelu': (Gelu, gelu, gelu_rule, F.gelu),
    'gelu_tanh': (partial(Gelu, 'tanh'), gelu_tanh, gelu_tanh_rule, partial(F.gelu, approximate='tanh'))}
each = pytest.mark.parametrize('name', both)
shapes = (1, 5), (7, 3), (2, 3, 4, 4), (20,), (), (1, 1)

def close(got, want, eps=1e-10):
    assert got.shape == want.shape and got.dtype == want.dtype
    assert (got - want).abs().max() <= eps*want.abs().max()

@each
@pytest.mark.parametrize('shape', shapes, ids=str)
@pytest.mark.parametrize('layout', layouts)
def test_layer_is_the_librarys(name, shape, layout):
    make,f,rule,library = both[name]
    for seed,size in enumerate((.1, 1., 5.)):
        x,u = laid_out(size*rand(*shape, seed=seed), layout),laid_out(rand(*shape, seed=9), layout)
        layer = make()
        layer(x).g = u
        layer.backward()
        def loss(x): return (library(x)*u).sum()
        close(layer.out, library(x))
        close(x.g, autograd_grad(loss, x))
        if size == 1.: check_grad(x.g, numerical_grad(loss, x), rtol=1e-7)
    assert torch.equal(f(x), layer.out) and layer.rule is rule

@each
def test_rule(name):
    for shape in shapes: check_rule(both[name][2], 2*rand(*shape, seed=3))

@each
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_extremes_are_numbers(name, dtype):
    "Largest and smallest numbers, and those where an exponential is too large."
    big = torch.finfo(dtype).max
    up = [1e-3, 20., 100., 1000., big**.5, big]
    x = torch.tensor([*(-o for o in reversed(up)), 0., *up], dtype=torch.float64).to(dtype)
    rule,library = both[name][2:]
    out = rule.forward(x)
    g, = rule.grads(torch.ones_like(x), out, x)
    assert out.isfinite().all() and g.isfinite().all()
    wide = x.double().clamp(-1e100, 1e100)
    eps = 4*torch.finfo(dtype).eps
    close(g.double(), autograd_grad(lambda x: library(x).sum(), wide.clamp(-1e6, 1e6)), 8*eps)
    assert out[0] == (-1. if name == 'tanh' else 0.) and out[-1] == (1. if name in ('sigmoid', 'tanh') else big)

def test_sigmoid_far_from_zero_keeps_its_digits():
    x = torch.tensor([-80., -40.])
    torch.testing.assert_close(sigmoid(x), x.exp(), rtol=1e-5, atol=0.)

def test_gelu_has_two_forms():
    assert repr(Gelu()) == 'Gelu()' and repr(Gelu('tanh')) == "Gelu('tanh')" and Gelu('none').rule is gelu_rule
    with pytest.raises(ValueError, match="approximate is 'erf', expected 'none' or 'tanh'"): Gelu('erf')
    with pytest.raises(TypeError, match='approximate'): Gelu(None)


# dropout

@pytest.mark.parametrize('p', [0, 0., .1, .5, .9, 1, 1.])
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_dropout_is_the_librarys_from_the_same_seed(p, dtype):
    for shape in shapes:
        x,u = rand(*shape, dtype=dtype),rand(*shape, seed=1, dtype=dtype)
        layer = Dropout(p)
        torch.manual_seed(4); layer(x).g = u
        state = torch.get_rng_state()
        torch.manual_seed(4); out = F.dropout(x, p)
        assert torch.equal(torch.get_rng_state(), state), 'as many draws'
        torch.manual_seed(4)
        leaf = x.clone().requires_grad_()
        F.dropout(leaf, p).backward(u)
        layer.backward()
        assert torch.equal(layer.out, out) or layer.out.allclose(out, 1e-6)
        torch.testing.assert_close(x.g, leaf.grad)
        assert x.g.shape == x.shape and x.g.dtype == x.dtype

def test_dropout_of_a_generator():
    "Its own stream, which neither reads nor moves torch's; anew in each call, the same again from the same state."
    gen = seeded(5)
    layer,x,before = Dropout(.5, gen),torch.ones(50, 40),torch.get_rng_state()
    state = gen.get_state()
    first,second = layer(x),layer(x)
    assert torch.equal(torch.get_rng_state(), before) and not torch.equal(first, second)
    gen.set_state(state)
    assert torch.equal(layer(x), first)
    assert {*first.unique().tolist()} == {0., 2.} and abs(first.mean() - 1) < .1

def test_dropout_in_evaluation_is_the_identity():
    gen = seeded(5)
    x,layer,state = rand(4, 3),Dropout(.9, gen).eval(),gen.get_state()
    x[0,0],x[0,1] = float('inf'),float('nan')
    assert layer(x).allclose(x, 0., 0., equal_nan=True) and layer.out is not x
    assert torch.equal(gen.get_state(), state)
    layer.out.g = rand(4, 3, seed=1)
    layer.backward()
    assert torch.equal(x.g, rand(4, 3, seed=1)) and x.g is not layer.out.g

def test_backward_is_that_of_the_call_though_the_mode_has_changed():
    x,layer = torch.ones(1, 20),Dropout(.5, seeded())
    layer(x).g = torch.ones(1, 20)
    layer.eval().backward()
    assert torch.equal(x.g, layer.out) and 0. in x.g

def test_mask_is_a_result_and_no_parameter():
    layer = Dropout(.5)
    layer(rand(4, 3)).g = rand(4, 3)
    layer.backward()
    assert layer.params == () and layer.named_params() == [] and getattr(layer.mask, 'g', None) is None
    layer.mask.zero_()
    with pytest.raises(RuntimeError, match='mask .* was changed in place'): layer.backward()

@pytest.mark.parametrize('p, words', [(-.1, 'p is -0.1'), (1.1, 'p is 1.1'), (float('nan'), 'p is nan')])
def test_no_probability(p, words):
    with pytest.raises(ValueError, match=words): Dropout(p)

def test_hostile_arguments_of_dropout():
    with pytest.raises(TypeError, match='p is a str'): Dropout('a')
    with pytest.raises(TypeError, match='generator is a int'): Dropout(.5, 3)
    with pytest.raises(TypeError, match='Dropout: x has dtype torch.int64'): Dropout(.5)(torch.arange(3))
    with pytest.raises(ValueError, match=r'x has shape \(4, 3\) and mask \(3,\)'): dropout(rand(4, 3), rand(3))
    with pytest.raises(TypeError, match='dtypes differ'): dropout(rand(4, 3), rand(4, 3).float())
    layer = Dropout(.5)
    layer(rand(4, 3))
    with pytest.raises(TypeError): layer('x')
    with pytest.raises(RuntimeError, match='backward before forward'): layer.backward()

def test_rule_of_dropout():
    x,g = rand(4, 3),rand(4, 3, seed=1)
    check_rule(dropout_rule, x, x > 0)
    for mask in (rand(4, 3, seed=2), torch.tensor(.5).double()):
        got,none = dropout_rule.grads(g, dropout(x, mask), x, mask)
        check_grad(got, autograd_grad(lambda x: (x*mask*g).sum(), x))
        assert none is None


# in every place where Lin stands

def lin(n_in, n_out, seed): return Lin(rand(n_in, n_out, seed=seed)/n_in**.5, rand(n_out, seed=seed + 50)/5)
def layers(make): return [lin(6, 8, 1), make(), lin(8, 3, 2)]
def model(make): return Model.from_layers(layers(make), CrossEntropy())
def batch(n=9): return rand(n, 6, seed=7), torch.arange(n) % 3

all_layers = {**{k: o[0] for k,o in both.items()}, 'dropout': partial(Dropout, .4),
              'dropout of a generator': lambda: Dropout(.4, seeded(1))}
everywhere = pytest.mark.parametrize('name', all_layers)

@everywhere
@pytest.mark.parametrize('n', [1, 9])
def test_model_by_autograd(name, n):
    net,(x,y) = model(all_layers[name]),batch(n)
    net(x, y); net.backward()
    act = net.layers[1]
    f = (lambda h: h*act.mask) if 'dropout' in name else both[name][3]
    def run(x, w1, b1, w2, b2): return F.cross_entropy(f(x@w1 + b1)@w2 + b2, y)
    assert len(net.params) == 4
    for t,g in zip((x, *net.params), autograd_grad(run, x, *net.params)): close(t.g, g)
    net.zero_grad()
    assert x.g is None and act.out.g is None

@everywhere
def test_nested_copied_pickled_saved(name, tmp_path):
    net,(x,y) = Model.from_layers([Row(*layers(all_layers[name]))], CrossEntropy()),batch()
    net(x, y); net.backward()
    first = [p.g.clone() for p in net.params]
    other = copy.deepcopy(net)
    other.backward() # with the mask of the call
    for p,g in zip(other.params, first): assert torch.equal(p.g, g)
    save_weights(net, tmp_path/'w')
    for p in other.params: p.zero_()
    load_weights(other, tmp_path/'w')
    for a,b in zip(net.params, other.params): assert torch.equal(a, b)
    assert [k for k,_ in net.named_params()][0] == 'layers.0.layers.0.w'
    if name != 'dropout of a generator' or hasattr(torch.Generator, 'clone_state'): # since torch 2.5
        assert torch.equal(pickle.loads(pickle.dumps(net)).eval()(x, y), net.eval()(x, y))

@everywhere
def test_fit_and_evaluate(name):
    x,y = batch(60)
    net = model(all_layers[name])
    opt = AdamW(net.params, .02)
    dls = dataloader(x, y, 20, seeded()),dataloader(x, y, 30)
    hist = fit(net, opt, *dls, 8, progress=False, stats_every=3)
    assert hist.losses[-1] < hist.losses[0] and len(hist.stats[0][1]) == 3
    assert evaluate(net, dls[1]) == evaluate(net, dls[1]) # no draw
    assert hist.epochs[-1]['valid_loss'] == pytest.approx(evaluate(net, dls[1])[0], rel=1e-12)

@everywhere
def test_compiled_step_is_the_readable_one(name):
    ours = (lambda m: (m, AdamW(m.params, .02)))(model(all_layers[name]))
    theirs,(x,y) = copy.deepcopy(ours),batch()
    before = torch.get_rng_state()
    step = compile_step(*ours, x, y)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1); got = [step(x, y) for _ in range(4)]
    torch.manual_seed(1); want = [train_step(*theirs, x, y) for _ in range(4)]
    assert got == pytest.approx(want, rel=1e-9)
    for a,b in zip(ours[0].params, theirs[0].params): close(a, b, 1e-8)
    for m,_ in (ours, theirs): m.eval()
    assert step(x, y) == pytest.approx(train_step(*theirs, x, y), rel=1e-9), 'the mode is noticed'
    for m,_ in (ours, theirs): m.train()
    torch.manual_seed(1); got = [step(x[:5], y[:5]), step(x, y)]
    torch.manual_seed(1); want = [train_step(*theirs, x[:5], y[:5]), train_step(*theirs, x, y)]
    assert got == pytest.approx(want, rel=1e-9)

def test_compiled_fit_draws_the_same():
    x,y = batch(60)
    found = []
    for fast in (False, True):
        inside = Dropout(.3, seeded(2)),Relu(),Dropout(.3)
        net = Model.from_layers([lin(6, 8, 1), *inside, lin(8, 3, 2)], CrossEntropy())
        torch.manual_seed(3)
        dls = dataloader(x, y, 25, seeded()),dataloader(x, y, 30)
        found.append(fit(net, SGD(net.params, .1), *dls, 3, progress=False, stats_every=4, compiled=fast))
    assert found[0].losses == pytest.approx(found[1].losses, rel=1e-9)
    assert [o['valid_loss'] for o in found[0].epochs] == pytest.approx([o['valid_loss'] for o in found[1].epochs])

def test_two_draws_from_one_generator_are_two():
    "Neither taken for one nor exchanged, when a step is recorded."
    class Two(Module):
        def __init__(self): self.gen = seeded(3)
        def forward(self, x):
            self.a,self.b = (torch.bernoulli(x, .5, generator=self.gen) for _ in range(2))
            return x*self.a + 2*x*self.b
        def bwd(self, out, x): x.g = out.g*(self.a + 2*self.b)
    net = model(Two)
    ours = net, SGD(net.params, .1)
    theirs,(x,y) = copy.deepcopy(ours),batch()
    step = compile_step(*ours, x, y)
    assert [step(x, y) for _ in range(3)] == pytest.approx([train_step(*theirs, x, y) for _ in range(3)], rel=1e-9)

def test_inductor_refuses_a_generator():
    net = model(partial(Dropout, .4, seeded()))
    with pytest.raises(ValueError, match="use backend='replay'"):
        compile_step(net, SGD(net.params, .1), *batch(), backend='inductor')

def test_mode_of_a_class_is_noticed_by_a_recorded_step():
    class Doubles(Op):
        rule,uses,training = Rule(lambda x, k: x*k, lambda g, out, x, k: (g*k, None)),('k',),True
        def forward(self, x):
            self.k = x.new_full((), 2. if self.training else 1.)
            return super().forward(x)
    net = model(Doubles)
    ours = net, SGD(net.params, 0.)
    x,y = batch()
    step = compile_step(*ours, x, y)
    assert step(x, y) == pytest.approx(net(x, y).item())
    net.eval()
    assert step(x, y) == pytest.approx(net(x, y).item())

@everywhere
def test_doctor_finds_nothing(name):
    for x in (rand(4, 3), rand(1, 5)):
        report = check_layer(all_layers[name](), x)
        assert report.ok and [o.verdict for o in report.rows] == ['right']

@everywhere
def test_viewer(name):
    net,(x,y) = model(all_layers[name]),batch()
    assert type(net.layers[1]).__name__ in str(show_backward(net, x, y))

@everywhere
def test_as_torch(name):
    net,(x,y) = model(all_layers[name]),batch()
    inside = as_torch(net)
    for g in net.generators(): g.manual_seed(3)
    loss = inside(x, y)
    loss.backward()
    for g in net.generators(): g.manual_seed(3)
    net(x, y); net.backward()
    close(loss.detach(), net.out)
    for p,q in zip(net.params, inside.parameters()): close(q.grad, p.g)



# train and eval

class Noisy(Module):
    def __init__(self): self.training = True
    def forward(self, x): return x + (1. if self.training else 0.)
    def bwd(self, out, x): x.g = out.g

def nested(): return Model.from_layers([Row(lin(6, 6, 1), Row(Noisy(), Dropout(.5))), Noisy(), lin(6, 3, 2)],
                                       CrossEntropy())
def modes(net): return [o.training for o in net._below if hasattr(o, 'training')]

def test_all_parts_are_switched():
    net = nested()
    assert modes(net) == [True]*3 and net.eval() is net and modes(net) == [False]*3
    assert net.train() is net and modes(net) == [True]*3
    net.train(False)
    assert modes(net) == [False]*3 and not hasattr(net.layers[2], 'training')
    net.layers[0].train()
    assert modes(net) == [True, True, False]
    assert not Dropout(.5).eval().training
    with pytest.raises(TypeError, match='mode is a str'): net.train('no')

def test_evaluate_restores_each_part():
    net,(x,y) = nested(),batch()
    net.layers[1].eval()
    seen = []
    def metric(preds, targ):
        seen.append(modes(net))
        return 0.
    want = copy.deepcopy(net).eval()(x, y).item()
    assert evaluate(net, [(x, y)], metric)[0] == pytest.approx(want, rel=1e-12)
    assert seen == [[False]*3] and modes(net) == [True, True, False]
    def fails(preds, targ): raise KeyError
    with pytest.raises(KeyError): evaluate(net, [(x, y)], fails)
    assert modes(net) == [True, True, False]
    with pytest.raises(FloatingPointError): evaluate(net, [(x*float('nan'), y)])
    assert modes(net) == [True, True, False]

def test_fit_trains_in_training_and_judges_in_evaluation():
    seen = []
    class Watch(Noisy):
        def forward(self, x):
            seen.append(self.training)
            return x
    net = Model.from_layers([lin(6, 3, 1), Watch()], CrossEntropy())
    fit(net, SGD(net.params, .1), [batch(), batch()], [batch()], 2, progress=False)
    assert seen == [True, True, False]*2

def test_a_child_that_knows_its_parent():
    class Knows(Noisy):
        parent = None
    child = Knows()
    net = Row(child)
    child.parent = net
    net.eval()
    assert not child.training and isinstance(net, Parts)


# the doctor on faults

def bad(rule, backward): return type('Wrong', (Op,), dict(rule=Rule(rule.forward, backward)))()
def bad_mask(backward): return type('Wrong', (Dropout,), dict(rule=Rule(dropout, backward)))(.3)
S,T = torch.sigmoid,torch.tanh
def gelu_slope(x): return gelu_rule.grads(torch.ones_like(x), x, x)[0]
def silu_slope(x): return S(x) + x*S(x)*(1 - S(x))

faults = { # what is wrong: the layer, its cause, words of the explanation
    'slope at the output, sigmoid': (bad(sigmoid_rule, lambda g, out, x: g*S(out)*(1 - S(out))), 'scaled', 'at `out`'),
    'slope at the output, tanh': (bad(tanh_rule, lambda g, out, x: g*(1 - T(out)**2)), 'scaled', 'at `out`'),
    'slope at the output, gelu': (bad(gelu_rule, lambda g, out, x: g*gelu_slope(out)), 'wrong operand', 'at `out`'),
    'slope at the output, silu': (bad(silu_rule, lambda g, out, x: g*silu_slope(out)), 'wrong operand', 'at `out`'),
    'formula in out with x, sigmoid': (bad(sigmoid_rule, lambda g, out, x: g*x*(1 - x)), 'scaled', r'`x`\*\(1 - `x`\)'),
    'formula in out with x, tanh': (bad(tanh_rule, lambda g, out, x: g*(1 - x**2)), 'scaled', r'1 - `x`\*\*2'),
    'slope of tanh for sigmoid': (bad(sigmoid_rule, lambda g, out, x: g*(1 - out**2)), 'scaled', '`out`.*2 stands'),
    'slope of sigmoid for tanh': (bad(tanh_rule, lambda g, out, x: g*out*(1 - out)), 'scaled', r'\(1 - `out`\) stands'),
    'slope of relu for gelu': (bad(gelu_rule, lambda g, out, x: g*(x > 0)), 'scaled', '`x` > 0 stands'),
    'slope of silu for gelu': (bad(gelu_rule, lambda g, out, x: g*silu_slope(x)), 'scaled', 'of silu at `x` stands'),
    'slope of gelu for silu': (bad(silu_rule, lambda g, out, x: g*gelu_slope(x)), 'scaled', 'of gelu at `x` stands'),
    'second term, gelu': (bad(gelu_rule, lambda g, out, x: g*torch.special.ndtr(x)), 'use lost', 'ndtr` is lost'),
    'second term, silu': (bad(silu_rule, lambda g, out, x: g*S(x)), 'use lost', 'sigmoid` is lost'),
    'tanh slope for exact gelu': (bad(gelu_rule, gelu_tanh_rule.backward), 'scaled', 'of gelu by tanh at `x` st'),
    'exact slope for gelu by tanh': (bad(gelu_tanh_rule, gelu_rule.backward), 'scaled', 'of gelu at `x` stands'),
    'scale forgotten': (bad_mask(lambda g, out, x, mask: (g*(mask > 0), None)), 'scaled', 'multiplied by 0.7'),
    'mask applied twice': (bad_mask(lambda g, out, x, mask: (g*mask*mask, None)), 'scaled', 'multiplied by 1.42857'),
    'no mask': (bad_mask(lambda g, out, x, mask: (g*1, None)), 'term missing', 'nothing but `out.g`'),
}
@pytest.mark.parametrize('name', faults)
def test_doctor_names_the_fault(name):
    layer,cause,words = faults[name]
    row = check_layer(layer, rand(6, 5), raise_exception=False).first
    assert row.verdict == 'wrong' and row.diagnosis.cause == cause
    with pytest.raises(AssertionError, match=words): check_layer(layer, rand(6, 5))

class Redraws(Dropout):
    def bwd(self, out, x):
        self.mask = self.draw(x)
        super().bwd(out, x)

def test_a_mask_that_is_drawn_anew_is_wrong():
    row = check_layer(Redraws(.5), rand(6, 5), raise_exception=False).first
    assert row.verdict == 'wrong'
    x,layer = torch.ones(1, 50),Redraws(.5, seeded())
    layer(x).g = torch.ones(1, 50)
    layer.backward()
    assert not torch.equal(x.g, layer.out)
