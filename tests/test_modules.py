"A layer of one's own works everywhere: with a rule, and without base classes' help, parameters as plain attributes."
import copy, pickle
from collections import UserDict, UserList, deque
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType, SimpleNamespace

import pytest, torch
from torch.autograd import gradcheck
from fb_pass.activations import Dropout, Gelu as GeluOf
from fb_pass.attention import CausalAttentionInBlocks, CausalSelfAttention
from fb_pass.bridges import to_function
from fb_pass.checks import autograd_grad, check_grad
from fb_pass.doctor import check_layer
from fb_pass.backward import lin_grad, relu_grad
from fb_pass.forward import lin, relu
from fb_pass.gradients import Rule, add_grad, check_fits, check_rule, clear_grads, upstream_grad
from fb_pass.inputs import checked
from fb_pass.compiled import compile_step
from fb_pass.convolution import AvgPool2d, Conv2d, MaxPool2d, Unflatten
from fb_pass.library import load_weights, named_weights, save_weights
from fb_pass.modules import Lin, Model, Module, Mse, Op, Relu
from fb_pass.norms import BatchNorm, LayerNorm, RmsNorm
from fb_pass.training import SGD, AdamW, CrossEntropy, dataloader, fit, train_step

def rand(*shape, seed=0): return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))

def cdf(x): return torch.special.ndtr(x)
def pdf(x): return torch.exp(-x**2/2)/(2*torch.pi)**.5

class Gelu(Op):
    rule = Rule(lambda x: x*cdf(x), lambda g, out, x: g*(cdf(x) + x*pdf(x)))

class Affine(Module):
    "Scales and shifts; sets `.g` of one parameter and adds to that of the other, and keeps what it needs as it likes."
    def __init__(self, n): self.scale,self.deep = rand(n, seed=1),{'shift': [rand(n, seed=2)]}
    def forward(self, inp):
        self.seen,self.tape = inp,[inp*2.]
        return inp*self.scale + self.deep['shift'][0]
    def bwd(self, out, inp):
        self.dscale = (out.g*self.seen).sum(0)
        self.scale.g = self.dscale
        add_grad(self.deep['shift'][0], out.g.sum(0))
        inp.g = out.g*self.scale

def model():
    first,last = Lin(rand(5, 4, seed=3), rand(4, seed=4)),Lin(rand(4, 3, seed=5), rand(3, seed=6))
    return Model.from_layers([first, Gelu(), Affine(4), last], CrossEntropy())
def batch(n=6): return rand(n, 5, seed=7), torch.arange(n) % 3

def test_one_definition_is_layer_function_and_check():
    x = rand(4, 3)
    check_rule(Gelu.rule, x)
    assert gradcheck(to_function(Gelu.rule, 'GeluFunction').apply, (x.clone().requires_grad_(),))
    assert all(row.verdict == 'right' for row in check_layer(Gelu(), x).rows)
    assert Gelu.rule.name == 'Gelu' and repr(Gelu()) == 'Gelu()'
    torch.testing.assert_close(Gelu()(x), torch.nn.functional.gelu(x))

wrong_rules = {
    'a term forgotten': lambda g, out, x: g*cdf(x),
    'no upstream gradient': lambda g, out, x: cdf(x) + x*pdf(x),
    'a sign': lambda g, out, x: -g*(cdf(x) + x*pdf(x)),
    'a sign inside': lambda g, out, x: g*(cdf(x) - x*pdf(x)),
    'the mean of what arrives': lambda g, out, x: g.mean()*(cdf(x) + x*pdf(x)),
}
@pytest.mark.parametrize('wrong', wrong_rules.values(), ids=wrong_rules)
def test_a_wrong_rule_is_found(wrong):
    rule = Rule(Gelu.rule.forward, wrong)
    with pytest.raises(AssertionError, match='gradient of input 0 is wrong'): check_rule(rule, rand(4, 3))

def test_a_rule_without_a_gradient_for_a_float_is_found():
    rule = Rule(torch.mul, lambda g, out, a, b: (g*b, None))
    with pytest.raises(AssertionError, match='input 1 is missing'): check_rule(rule, rand(3), rand(3))

@pytest.mark.parametrize('n', [1, 6])
def test_own_layers_gradients(n):
    net,(x,y) = model(),batch(n)
    net(x, y); net.backward()
    def run(*ps):
        h = torch.nn.functional.gelu(x@ps[0] + ps[1])*ps[2] + ps[3]
        return torch.nn.functional.cross_entropy(h@ps[4] + ps[5], y)
    for p,g in zip(net.params, autograd_grad(run, *net.params), strict=True): check_grad(p.g, g)

def test_own_layers_parameters_are_found_before_and_after_a_pass():
    net,(x,y) = model(),batch()
    names = ['layers.0.w', 'layers.0.b', 'layers.2.scale', 'layers.2.deep.shift.0', 'layers.3.w', 'layers.3.b']
    assert [k for k,_ in net.named_params()] == names
    for _ in range(2):
        net(x, y); net.backward()
        assert [k for k,_ in net.named_params()] == names, 'what a pass has left in attributes is no parameter'
    assert len(net.params) == 6

@pytest.mark.parametrize('make', [lambda ps: SGD(ps, .1), lambda ps: AdamW(ps, .01)])
def test_own_layers_are_trained(make):
    net,(x,y) = model(),batch()
    before = [p.clone() for p in net.params]
    hist = fit(net, make(net.params), dataloader(x, y, 3), dataloader(x, y, 6), 5, progress=False)
    assert hist.losses[-1] < hist.losses[0]
    for p,q in zip(net.params, before): assert not torch.equal(p, q)

def test_own_layers_are_saved_and_loaded(tmp_path):
    net,other = model(),model()
    net(*batch()) # results in attributes are not saved
    for p in net.params: p += 1.
    save_weights(net, tmp_path/'w.safetensors')
    load_weights(other, tmp_path/'w.safetensors')
    assert list(named_weights(other)) == [k for k,_ in net.named_params()]
    for p,q in zip(net.params, other.params): assert torch.equal(p, q)

def test_own_layers_are_examined():
    class Adds(Affine):
        factor = 1
        def bwd(self, out, inp):
            add_grad(self.scale, self.factor*(out.g*self.seen).sum(0)); add_grad(self.deep['shift'][0], out.g.sum(0))
            add_grad(inp, out.g*self.scale)
    assert [row.verdict for row in check_layer(Adds(4), rand(6, 4)).rows] == ['right']*3
    class Doubles(Adds): factor = 2
    report = check_layer(Doubles(4), rand(6, 4), raise_exception=False)
    assert [row.name for row in report.rows if row.verdict == 'wrong'] == ['scale']
    report = check_layer(Affine(4), rand(6, 4), raise_exception=False) # right, but it sets where it should add
    assert [row.verdict for row in report.rows] == ['overwritten', 'overwritten', 'right']

def test_children_given_as_an_attribute():
    class Residual(Module):
        def __init__(self, *layers): self.children = layers
        def forward(self, inp):
            h = inp
            for l in self.children: h = l(h)
            return inp + h
        def bwd(self, out, inp):
            add_grad(inp, out.g); add_grad(self.children[-1].out, out.g)
            for l in reversed(self.children): l.backward()
    w,b,v,c,x,targ = rand(3, 3), rand(3), rand(3, 1), rand(1), rand(5, 3), rand(5)
    net = Model.from_layers([Residual(Lin(w, b), Relu()), Lin(v, c)], Mse())
    net(x, targ); net.backward()
    def run(x, w, b, v, c): return ((x + (x@w + b).relu())@v + c)[:,0].sub(targ).pow(2).mean()
    for t,g in zip((x, *net.params), autograd_grad(run, x, w, b, v, c), strict=True): check_grad(t.g, g)
    first = 'layers.0.children.0'
    assert [k for k,_ in net.named_params()] == [f'{first}.w', f'{first}.b', 'layers.1.w', 'layers.1.b']

@pytest.mark.parametrize('order', ['rows', 'columns'])
def test_any_order_in_memory(order):
    x,targ,w,b,v,c = rand(9, 6), rand(9), rand(6, 5), rand(5), rand(5, 1), rand(1)
    def run(x, w, b, v, c): return ((x@w + b).relu()@v + c)[:,0].sub(targ).pow(2).mean()
    want = autograd_grad(run, x, w, b, v, c)
    x,w,v = [t.t().contiguous().t() if order == 'columns' else t for t in (x, w, v)]
    net = Model(w, b, v, c)
    net(x, targ); net.backward()
    for t,g in zip((x, w, b, v, c), want): check_grad(t.g, g)

def test_the_output_can_be_viewed():
    "`lin` once returned the transpose of a product, which `view` refuses."
    assert Lin(rand(5, 4), rand(4))(rand(3, 5)).view(-1).shape == (12,)

def test_cross_entropy_goes_back_from_its_own_call():
    a,b,y = rand(5, 3), rand(5, 3, seed=1), torch.arange(5) % 3
    layer = CrossEntropy()
    layer(a, y)
    layer.forward(b, y) # a look at something else in between
    layer.backward()
    check_grad(a.g, autograd_grad(lambda o: torch.nn.functional.cross_entropy(o, y), a))

def test_a_broken_step_names_the_place():
    class Blows(Relu):
        def bwd(self, out, inp): add_grad(inp, out.g*torch.inf)
    from fb_pass.training import train_step
    net = Model.from_layers([Lin(rand(5, 4), rand(4)), Blows(), Lin(rand(4, 3), rand(3))], CrossEntropy())
    before = [p.clone() for p in net.params]
    with pytest.raises(FloatingPointError, match='first gradient that is not finite.*Blows'):
        train_step(net, SGD(net.params, .1), *batch())
    for p,q in zip(net.params, before): assert torch.equal(p, q)

def test_large_gradients_whose_sum_overflows_are_no_alarm():
    from fb_pass.training import train_step
    class Large(Module):
        def __init__(self): self.w = torch.zeros(4)
        def forward(self, x, targ): return self.w.sum()*0. + x.sum()
        def bwd(self, out, x, targ): add_grad(x, torch.ones(2)); add_grad(self.w, torch.full((4,), 3e38))
    net = Model.from_layers([Relu()], Large())
    train_step(net, SGD(net.params, 1e-38), torch.ones(2), torch.ones(2))
    torch.testing.assert_close(net.params[0], torch.full((4,), -3.))

def test_a_layer_of_ours_may_be_given_more_to_remember():
    class Keeps(Lin):
        def forward(self, inp):
            self.first,self.other = inp,torch.zeros(3)
            return super().forward(inp)
    layer = Keeps(rand(5, 4), rand(4))
    for _ in range(2):
        layer(rand(3, 5)).g = rand(3, 4)
        layer.backward()
        assert [k for k,_ in layer.named_params()] == ['w', 'b']

def test_attributes_of_ones_own_do_not_get_in_the_way():
    class Busy(Lin):
        def __init__(self, w, b):
            super().__init__(w, b)
            self.parts,self.run,self.results,self.modules,self.loss = [1], 'fast', [], None, 'none'
    net = Model.from_layers([Busy(rand(5, 4), rand(4)), Lin(rand(4, 3), rand(3))], CrossEntropy())
    net(*batch()); net.backward()
    assert len(net.params) == 4 and all(p.g is not None for p in net.params)

# Parameters wherever they stand, and all of them saved

class Holds(Module):
    "Keeps what it is given, and adds it up."
    def __init__(self, **kw): vars(self).update(kw)
    def forward(self, x): return x + sum(p.sum() for p in self.params)
    def bwd(self, out, x):
        add_grad(x, out.g)
        for p in self.params: add_grad(p, out.g.sum().expand(p.shape))

def around(a, b, c):
    ring = [a]; ring.append(ring)
    class Given(Holds):
        @property
        def params(self): return self.mine()
    class Children(Holds):
        children = Lin(a, b), Holds(c=c)
    given = Given(mine=lambda: (a, b, c))
    child = Holds(b=b, c=c); parent = Holds(a=a, child=child); child.parent = parent
    return {
        'a list in a dictionary in a tuple': Holds(t=(dict(k=[a, b]), c)), 'a deque': Holds(d=deque([a, b, c])),
        'one name': Holds(d={1: a, '1': b, (1,): c}),
        'dots': Holds(d={'a.w': a, 'a': {'w': b}}, **{'d.a': {'w': c}}),
        'layers in dictionaries': Holds(d=dict(x=[Lin(a, b)], y=dict(z=Holds(c=c)))),
        'a ring': Holds(r=ring, b=b, c=c), 'found by `params`': given, 'children of the class': Children(),
        'a child that knows its parent': parent, 'twice': Holds(x=[a, a], y=Lin(a, b), c=c),
        'given': Holds(x=[a], params=[a, b, c])}

@pytest.mark.parametrize('kind', around(*map(rand, (1, 1, 1))))
def test_every_parameter_is_found_named_trained_and_saved(kind, tmp_path):
    a,b,c = tensors = rand(4, 3), rand(3, seed=1), rand(2, seed=2)
    layer,other = around(a, b, c)[kind],around(*map(torch.zeros_like, tensors))[kind]
    def check():
        assert {id(p) for p in layer.params} == {*map(id, tensors)} and len(layer.params) == 3
        names = [k for k,_ in layer.named_params()]
        assert len({*names}) == len(names) and {id(p) for _,p in layer.named_params()} == {*map(id, tensors)}
        assert {id(p) for p in named_weights(layer).values()} == {*map(id, tensors)}
    check()
    layer(rand(2)).g = torch.ones(2, dtype=torch.float64)
    layer.backward()
    assert all(t.g is not None for t in tensors)
    check()
    layer.zero_grad()
    assert all(t.g is None for t in tensors)
    save_weights(layer, tmp_path/'w')
    load_weights(other, tmp_path/'w')
    assert [torch.equal(p, q) for p,q in zip(layer.params, other.params)] == [True]*3

def test_results_beside_parameters_are_no_parameters(tmp_path):
    "What a call adds to a list or a dictionary, at any depth; what was there before stays."
    class Adds(Holds):
        def forward(self, x):
            self.list.append(x.clone()); self.dict['x'] = x.clone(); self.deep['t'][0].append(x.clone())
            return x*self.list[0] + self.dict['w']
    layer = Adds(list=[rand(2)], dict=dict(w=rand(2, seed=1)), deep=dict(t=[[]]))
    for _ in range(3):
        assert [k for k,_ in layer.named_params()] == ['list.0', 'dict.w']
        layer(rand(2))
    save_weights(layer, tmp_path/'w')
    load_weights(Adds(list=[rand(2)], dict=dict(w=rand(2, seed=1)), deep=dict(t=[[]])), tmp_path/'w')

class Lazy(Module):
    "Makes its weight at the first call, and a result and a constant besides."
    def forward(self, x):
        if not hasattr(self, 'table'): self.table = torch.arange(1, x.shape[1] + 1).to(x)
        if not hasattr(self, 'w'): self.w = rand(x.shape[1], 4)
        self.h = x*self.table
        return self.h@self.w
    def bwd(self, out, x):
        self.w.g,self.h.g = self.h.t()@out.g,out.g@self.w.t()
        x.g = self.h.g*self.table

def test_a_parameter_that_a_call_makes_is_refused():
    "At the second backward pass, when it is seen that the forward has left it as it was."
    net,x,y = Model.from_layers([Lazy(), Lin(rand(4, 3), rand(3))], CrossEntropy()),*batch()
    opt = SGD(net.params, .1)
    train_step(net, opt, x, y)
    with pytest.raises(RuntimeError, match=r'Lazy\(\): w has a gradient, but was made by a call'):
        train_step(net, opt, x, y)

def test_results_with_gradients_and_constants_are_not_refused():
    net,x,y = Model.from_layers([Lazy(), Lin(rand(4, 3), rand(3))], CrossEntropy()),*batch()
    net.layers[0].w = rand(x.shape[1], 4)
    assert [k for k,_ in net.named_params()] == ['layers.0.w', 'layers.1.w', 'layers.1.b']
    for _ in range(4): train_step(net, SGD(net.params, .1), x, y)
    layer = Lazy()
    layer.w = rand(x.shape[1], 4) # by itself, its gradients are not cleared
    for _ in range(3): layer(x).g = rand(len(x), 4); layer.backward()
    class First(Lin):
        "Keeps an input for ever, and no result."
        def forward(self, x):
            self.kept = getattr(self, 'kept', x)
            return super().forward(x)
        def bwd(self, out, x): lin_grad(self.kept, out, self.w, self.b)
    layer,first = First(rand(5, 4), rand(4)),x.clone()
    for inp in first, x, x:
        layer.zero_grad()
        layer(inp).g = rand(len(x), 4)
        layer.backward()
    assert layer.kept is first
    layer = Lazy()
    layer(x)
    layer.params = [layer.w] # who names it may make it when he likes
    for _ in range(3): layer(x).g = rand(len(x), 4); layer.backward()

class Cell(Module):
    "Is called once for each step of time, and one backward pass goes through all of them."
    def __init__(self, w): self.w,self.tape,self.h = w,[],torch.zeros(2, 3).to(w)
    def forward(self, x):
        h = torch.tanh(x + self.h@self.w)
        self.tape.append((x, self.h, h))
        self.h = h
        return h.clone()
    def bwd(self, out, x):
        g,self.w.g = out.g,torch.zeros_like(self.w)
        for x,before,h in reversed(self.tape):
            x.g = g*(1 - h**2)
            self.w.g += before.t()@x.g
            before.g = g = x.g@self.w.t()
        self.tape,self.h = [],torch.zeros_like(self.h)

def test_a_backward_through_several_calls_is_not_refused():
    cell,xs = Cell(rand(3, 3)),rand(4, 2, 3)
    def unrolled(w):
        h = torch.zeros(2, 3).to(w)
        for x in xs: h = torch.tanh(x + h@w)
        return h.sum()
    want = autograd_grad(unrolled, cell.w)
    for _ in range(3):
        for x in xs: out = cell(x)
        out.g = torch.ones_like(out)
        cell.backward()
        assert [k for k,_ in cell.named_params()] == ['w']
        torch.testing.assert_close(cell.w.g, want)

def test_a_parameter_that_a_call_replaces_is_lost_for_the_optimizer():
    class Clamped(Lazy):
        def __init__(self, w): self.w = w
        def forward(self, x):
            self.w = self.w.clamp(-1, 1)
            return super().forward(x)
    x,y = batch()
    net = Model.from_layers([Clamped(rand(x.shape[1], 4))], CrossEntropy())
    with pytest.raises(ValueError, match='no parameter of this model.*has to be in place'):
        train_step(net, SGD(net.params, .1), x, y)

# What was changed between forward and backward, or is in two places

class Masked(Module):
    "Keeps a result of its forward pass."
    def __init__(self, w): self.w = w
    def forward(self, inp):
        self.mask = (inp > 0).double()
        return inp*self.mask*self.w
    def bwd(self, out, inp): add_grad(inp, out.g*self.mask*self.w); add_grad(self.w, (out.g*self.mask*inp).sum(0))

def masked():
    net = Model.from_layers([Lin(rand(5, 4), rand(4)), Masked(rand(4)), Lin(rand(4, 3), rand(3))], CrossEntropy())
    return net, *batch()

changes = {
    'a weight': lambda net, x, y: net.layers[2].w.mul_(3),
    'a weight by a view': lambda net, x, y: net.layers[2].w[0].zero_(),
    'a bias': lambda net, x, y: net.layers[0].b.add_(1), 'the batch': lambda net, x, y: x.zero_(),
    'labels': lambda net, x, y: y.fill_(0), 'a result in an attribute': lambda net, x, y: net.layers[1].mask.fill_(1),
    'an output': lambda net, x, y: net.preds.mul_(2),
    'an output by a view': lambda net, x, y: net.layers[0].out.view(-1).neg_(),
    'a weight that is another one': lambda net, x, y: setattr(net.layers[2], 'w', net.layers[2].w*2),
    'a step': lambda net, x, y: (net.backward(), SGD(net.params, .1).step()),
}
@pytest.mark.parametrize('change', changes.values(), ids=changes)
def test_a_change_in_place_is_noticed(change):
    net,x,y = masked()
    net(x, y); change(net, x, y)
    with pytest.raises(RuntimeError, match='was changed in place or exchanged after the forward pass'): net.backward()
    net(x, y); net.backward() # a new forward pass mends it

def test_a_second_backward_is_the_same():
    net,x,y = masked()
    net(x, y); net.backward()
    first = [p.g.clone() for p in net.params]
    net.backward()
    for p,g in zip(net.params, first): torch.testing.assert_close(p.g, g)

def test_a_change_in_place_is_noticed_by_the_functions():
    x,w,b = rand(4, 3),rand(3, 2),rand(2)
    for t in (x, w, b):
        out = lin(x, w, b); out.g = torch.ones_like(out)
        t.mul_(2)
        with pytest.raises(RuntimeError, match='lin: . .* was changed in place'): lin_grad(x, out, w, b)
    out = relu(x); out.g = torch.ones_like(out)
    x.neg_()
    with pytest.raises(RuntimeError, match='relu: x'): relu_grad(x, out)

def test_modes_of_torch():
    net,x,y = masked()
    with torch.no_grad(): net(x, y); net.backward()
    assert net.params[0].g.any()
    with torch.inference_mode():
        net(x, y)
        with pytest.raises(RuntimeError, match='torch.inference_mode, .* use torch.no_grad'): net.backward()
    with torch.autocast('cpu'), pytest.raises(RuntimeError, match='step 0 of the model: lin: torch.autocast is on'):
        net(x, y)

def test_a_copy_begins_anew():
    net,x,y = masked()
    net(x, y); net.backward()
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        other.backward()
        for p,q in zip(net.params, other.params): torch.testing.assert_close(q.g, p.g)

@pytest.mark.parametrize('n', [1, 6])
def test_a_layer_that_returns_its_input(n):
    "Output and input would have one `.g`, to which the layer adds it once more."
    class Same(Module):
        def forward(self, inp): return inp
        def bwd(self, out, inp): add_grad(inp, out.g)
    w,b,v,c,(x,y) = rand(5, 4), rand(4), rand(4, 3), rand(3), batch(n)
    net = Model.from_layers([Same(), Lin(w, b), Same(), Lin(v, c)], CrossEntropy())
    net(x, y); net.backward()
    def run(x, w, b, v, c): return torch.nn.functional.cross_entropy((x@w + b)@v + c, y)
    for t,g in zip((x, *net.params), autograd_grad(run, x, w, b, v, c), strict=True): check_grad(t.g, g)

def test_a_layer_that_returns_its_parameter():
    class Table(Module):
        def __init__(self, w): self.w = w
        def forward(self, inp): return self.w
        def bwd(self, out, inp): add_grad(self.w, out.g)
    w,v,c,y = rand(6, 4), rand(4, 3), rand(3), torch.arange(6) % 3
    net = Model.from_layers([Table(w), Lin(v, c)], CrossEntropy())
    net(rand(6, 4), y); net.backward()
    def run(w, v, c): return torch.nn.functional.cross_entropy(w@v + c, y)
    for t,g in zip(net.params, autograd_grad(run, w, v, c), strict=True): check_grad(t.g, g)

def test_an_input_that_is_a_parameter():
    w,b,y = rand(4, 4), rand(4), torch.arange(4)
    net = Model.from_layers([Lin(w, b)], CrossEntropy())
    for _ in range(2): net(w, y); net.backward()
    def run(w, b): return torch.nn.functional.cross_entropy(w@w + b, y)
    for t,g in zip((w, b), autograd_grad(run, w, b)): check_grad(t.g, g)

class Block(Module):
    def __init__(self, act, n=4): self.lin,self.act = Lin(rand(n, n), rand(n)),act
    def forward(self, x): return self.act(self.lin(x))
    def bwd(self, out, x): self.act.backward(); self.lin.backward()

def test_one_layer_object_on_two_paths():
    act = Relu()
    with pytest.raises(ValueError, match='one layer object appears twice in the model'):
        Model.from_layers([Block(act), Block(act)], CrossEntropy())
    class Twice(Module):
        def __init__(self): self.act = Relu()
        def forward(self, x): return self.act(x) + self.act(x - 1)
        def bwd(self, out, x):
            add_grad(self.act.out, out.g)
            self.act.backward(); self.act.backward()
    net = Model.from_layers([Twice(), Lin(rand(4, 3), rand(3))], CrossEntropy())
    net(rand(6, 4), torch.arange(6) % 3)
    with pytest.raises(RuntimeError, match='this layer object has two places in the model'): net.backward()

class Join(Module):
    def forward(self, pair): return torch.cat(pair, 1)
    def bwd(self, out, pair):
        for t,g in zip(pair, out.g.split([t.shape[1] for t in pair], 1)): add_grad(t, g)

def test_inputs_in_containers():
    a,b,w,c,y = rand(6, 2), rand(6, 3, seed=1), rand(5, 3), rand(3), torch.arange(6) % 3
    net = Model.from_layers([Join(), Lin(w, c)], CrossEntropy())
    for _ in range(2): net((a, b), y); net.backward()
    def run(a, b, w, c): return torch.nn.functional.cross_entropy(torch.cat([a, b], 1)@w + c, y)
    for t,g in zip((a, b, *net.params), autograd_grad(run, a, b, w, c), strict=True): check_grad(t.g, g)
    b.zero_()
    with pytest.raises(RuntimeError, match='args.0.1 .* was changed in place'): net.backward()

def test_gradients_of_parameters_that_are_not_trained_do_not_pile_up():
    net,x,y = masked()
    net.layers[0].params = [net.layers[0].w] # the bias is frozen
    for _ in range(3): net(x, y); net.backward()
    once = net.layers[0].b.g.clone()
    other,*_ = masked()
    other(x, y); other.backward()
    check_grad(once, other.layers[0].b.g)

def test_an_exception_in_the_middle_leaves_nothing():
    class Fails(Relu):
        def bwd(self, out, inp):
            if self.fail: raise KeyboardInterrupt
            super().bwd(out, inp)
    net = Model.from_layers([Lin(rand(5, 4), rand(4)), Fails(), Lin(rand(4, 3), rand(3))], CrossEntropy())
    x,y = batch()
    net.layers[1].fail = True; net(x, y)
    with pytest.raises(KeyboardInterrupt): net.backward()
    net.layers[1].fail = False; net(x, y); net.backward()
    def run(*ps): return torch.nn.functional.cross_entropy((x@ps[0] + ps[1]).relu()@ps[2] + ps[3], y)
    for p,g in zip(net.params, autograd_grad(run, *net.params), strict=True): check_grad(p.g, g)

@pytest.mark.filterwarnings('ignore::UserWarning') # of nested tensors, which are a prototype
@pytest.mark.parametrize('which', 'gt')
def test_a_gradient_is_a_dense_tensor_like_its_own(which):
    for odd in (torch.nested.nested_tensor([rand(3)]), torch.empty(3, dtype=torch.float64, device='meta'), 'text'):
        g,t = (odd, rand(3)) if which == 'g' else (rand(3), odd)
        with pytest.raises(TypeError, match=f'^a step: {which} is '): check_fits('a step', g, t)

def test_a_gradient_that_does_not_fit_is_refused_with_both_shapes():
    for old,g in ((None, rand(2)), (rand(2), rand(3))):
        t = rand(3); t.g = old
        with pytest.raises(ValueError, match=r'^add_grad: .* got \(2,\).* for \(3,\)'): add_grad(t, g)

def test_only_tensors_have_gradients_to_clear():
    with pytest.raises(TypeError, match='^clear_grads: an argument is a str'): clear_grads(rand(3), 'w')

@pytest.mark.parametrize('out, g, shape, error, words', [
    ('text', None, None, TypeError, 'out is a str'), (rand(3), 'text', None, TypeError, 'out.g is a str'),
    (rand(3), rand(3), [3], TypeError, r'shape is \[3\], expected a tuple'),
    (rand(3), rand(3), (2.5,), TypeError, r'shape is \(2.5,\), expected a tuple'),
    (rand(3), None, None, RuntimeError, r'out \(3,\) has no gradient'),
    (rand(3), rand(2), None, ValueError, r'out \(3,\) with out.g \(2,\), expected \(3,\) for both'),
    (rand(3), rand(2), (2,), ValueError, r'out \(3,\) with out.g \(2,\), expected \(2,\) for both'),
    (rand(3), rand(3).float(), None, TypeError, 'out.g is torch.float32 and out torch.float64')])
def test_an_upstream_gradient_that_does_not_fit(out, g, shape, error, words):
    if g is not None: out.g = g
    with pytest.raises(error, match=f'^a step: {words}'): upstream_grad('a step', out, shape)

@pytest.mark.filterwarnings('ignore::UserWarning') # of nested tensors, which are a prototype
@pytest.mark.parametrize('place, name', enumerate(('g', 'out', 'input')))
def test_a_rule_takes_dense_tensors(place, name):
    rule = Rule(torch.exp, lambda g, out, inp: g*out)
    for odd,why in ('text', 'a str'), (torch.nested.nested_tensor([rand(3)]), 'sparse, nested'):
        args = [rand(3), rand(3), rand(3)]
        args[place] = odd
        with pytest.raises(TypeError, match=f'^exp: {name} is {why}'): rule.grads(*args)

def test_a_view_of_a_gradient_that_is_kept_is_not_shared():
    a,b = rand(3), rand(3)
    add_grad(a, rand(3)); add_grad(b, a.g.view(3))
    assert b.g.data_ptr() != a.g.data_ptr() and b.g.equal(a.g)

def test_a_function_looks_at_its_inputs_each_time():
    def small(name, x):
        if (x > 1).any(): raise ValueError(f'{name}: x is too large')
    rule,x = Rule(checked(small)(lambda x: 2*x), lambda g, out, x: 2*g),torch.zeros(3)
    out,other = rule.forward(x),torch.zeros(3) # the first one knows its input, the other does not
    out.g = other.g = torch.ones(3)
    rule.add_grads(out, x)
    x += 2
    with pytest.raises(RuntimeError, match='x .* was changed in place'): rule.add_grads(out, x)
    with pytest.raises(ValueError, match='x is too large'): rule.add_grads(other, x)

def test_only_the_model_that_is_gone_back_through_begins_a_pass():
    class Clears(Module): # a part of it, while the pass is on
        def __init__(self): self.inside = Relu()
        def forward(self, x): return 2*x
        def bwd(self, out, x): self.inside.zero_grad(); add_grad(x, 2*out.g)
    w,b,x,y = rand(3, 3), rand(3), rand(4, 3), rand(4)
    net = Model.from_layers([Lin(w, b), Clears(), Lin(w, b), Lin(rand(3, 1), rand(1))], Mse()) # w is met twice
    net(x, y); net.backward()
    want = autograd_grad(lambda w: net.loss.forward(net.layers[3].forward((2*(x@w + b))@w + b), y), w)
    check_grad(w.g, want)

def test_two_tensors_do_not_share_a_gradient():
    class Add(Module):
        def __init__(self): self.a,self.b = rand(3),rand(3)
        def forward(self, x, targ): return ((self.a + self.b)*x).sum()
        def bwd(self, out, x, targ):
            add_grad(x, (self.a + self.b)*out.g)
            add_grad(self.a, x*out.g); add_grad(self.b, self.a.g)
    layer = Add()
    layer(rand(3), None).g = torch.ones((), dtype=torch.float64)
    layer.backward()
    layer.a.g *= .1
    check_grad(layer.b.g, rand(3))

def test_an_error_class_of_a_layer_is_kept():
    class ShapeError(ValueError):
        def __init__(self, a, b): super().__init__(f'{a} is not {b}')
    class Refuses(Module):
        def forward(self, x): raise ShapeError(1, 2)
        def bwd(self, out, x): pass
    with pytest.raises(ShapeError, match=r'Refuses\(\), step 0 of the model: 1 is not 2'):
        Model.from_layers([Refuses()], CrossEntropy())(*batch())

def test_lists_and_names_that_a_backward_leaves_are_no_false_alarm():
    class Tape(Module):
        def __init__(self): self.w,self.tape,self.who,self.owner = rand(4),[rand(1)],rand(4),rand(4)
        def forward(self, x):
            self.tape = [x*2]
            return x*self.w
        def bwd(self, out, x):
            self.tape = [out.g*3]
            add_grad(x, out.g*self.w); add_grad(self.w, (out.g*x).sum(0))
    net = Model.from_layers([Lin(rand(5, 4), rand(4)), Tape(), Lin(rand(4, 3), rand(3))], CrossEntropy())
    x,y = batch()
    net(x, y); net.backward()
    first = [p.g.clone() for p in net.params if p.g is not None]
    net.backward()
    for p,g in zip([p for p in net.params if p.g is not None], first): torch.testing.assert_close(p.g, g)

# Where tensors are kept, who changes them, and what is called behind the back of the model

@dataclass
class Data: w: torch.Tensor
def kept_in(kind, w):
    holds = {'a namespace': lambda w: SimpleNamespace(w=w), 'a data class': Data,
             'a user dictionary': lambda w: UserDict(w=w),
             'a user list': lambda w: UserList([w]), 'a proxy': lambda w: MappingProxyType(dict(w=w)),
             'a module of torch': lambda w: torch.nn.ParameterList([torch.nn.Parameter(w, requires_grad=False)])}
    return holds[kind](w) if kind else list(holds)

class Scale(Module):
    "A layer that finds its parameter by a function."
    def __init__(self, find): self.find = find
    def forward(self, x): return x*self.find()
    def bwd(self, out, x): add_grad(x, out.g*self.find()); add_grad(self.find(), (out.g*x).sum(0))

@pytest.mark.parametrize('kind', kept_in('', None))
def test_parameters_in_containers_of_any_kind(kind, tmp_path):
    def make(w):
        held = kept_in(kind, w)
        layer = Scale(lambda: held[0] if hasattr(held, 'append') else getattr(held, 'w', None) if
                      hasattr(held, 'w') else held['w'])
        layer.held = held
        return Model.from_layers([layer, Lin(rand(4, 3), rand(3))], CrossEntropy()), layer.find()
    (net,w),(other,v) = make(rand(4)),make(torch.zeros(4, dtype=torch.float64))
    x,y = rand(6, 4),torch.arange(6) % 3
    net(x, y); w.mul_(2)
    with pytest.raises(RuntimeError, match='was changed in place'): net.backward()
    before = w.clone()
    train_step(net, SGD(net.params, .1), x, y)
    assert len(net.params) == 3 and not torch.equal(w, before)
    save_weights(net, tmp_path/'w'); load_weights(other, tmp_path/'w')
    assert torch.equal(v, w)

@pytest.mark.parametrize('kind', ['a closure', 'a method', 'a class', 'a partial'])
def test_a_parameter_that_is_not_found_is_noticed(kind):
    w = rand(4)
    layer = Scale(lambda: w)
    layer.held = {'a closure': None, 'a method': Rule(torch.exp, w.mul),
                  'a class': type('A', (), dict(w=w)), 'a partial': partial(torch.mul, w)}[kind]
    net = Model.from_layers([layer, Lin(rand(4, 3), rand(3))], CrossEntropy())
    opt,x,y = SGD(net.params, .1),rand(6, 4),torch.arange(6) % 3
    train_step(net, opt, x, y)
    with pytest.raises(RuntimeError, match='the model does not know this tensor'): train_step(net, opt, x, y)
    w.g = None
    train_step(net, opt, x, y) # cleared by its owner

class Plain:
    "Neither a module nor a container."
    def __init__(self, **kw): vars(self).update(kw)
class Slotted:
    __slots__ = 'w',
    def __init__(self, w): self.w = w
hidden = { # how a parameter is kept, and the name by which the error calls it
    'a set': (lambda w: {w}, 'held.0'), 'an object': (lambda w: Plain(w=w), 'held.w'),
    'an object in an object': (lambda w: Plain(a=[Plain(w=w)]), 'held.a.0.w'),
    'an object in a list': (lambda w: [1, Plain(w=w)], 'held.1.w'), 'a slot': (Slotted, 'held.w'),
    'a set in a dictionary': (lambda w: dict(s=frozenset([w])), 'held.s.0'),
    'a set of layers': (lambda w: {Holds(w=w)}, 'held.0.w'),
    'a layer in an object': (lambda w: Plain(l=Holds(w=w)), 'held.l.w')}

@pytest.mark.parametrize('way', ['readable', 'compiled'])
@pytest.mark.parametrize('kind', hidden)
def test_a_parameter_where_none_is_looked_for_is_named_before_the_first_step(kind, way):
    make,name = hidden[kind]
    class Finds(Scale): # in a copy too
        def __init__(self): self.held = make(rand(4))
        def find(self): return {k: t for _,k,t,_ in self._hidden()}[name]
    net = Model.from_layers([Finds(), Lin(rand(4, 3), rand(3))], CrossEntropy())
    x,y,before = rand(6, 4),torch.arange(6) % 3,[p.clone() for p in net.params]
    with pytest.raises(ValueError, match=rf'^Finds\(\): {name} \(4,\) has got a gradient'):
        if way == 'compiled': compile_step(net, SGD(net.params, .1), x, y)
        else: train_step(net, SGD(net.params, .1), x, y)
    assert all(map(torch.equal, net.params, before))

def test_objects_in_attributes_that_hold_no_parameter_are_no_false_alarm():
    w,b,v = rand(4, 4),rand(4),rand(4, 3)
    net = Model.from_layers([Lin(w, b), Block(Relu()), Lin(v, rand(3))], CrossEntropy())
    x,y = rand(6, 4),torch.arange(6) % 3
    opt,cache = AdamW(net.params, .1),Plain()
    class Caches(Relu):
        def forward(self, x):
            cache.x = x*1
            return super().forward(x)
        def bwd(self, out, x): cache.x.g = out.g; super().bwd(out, x)
    net.layers.insert(1, Caches())
    frozen = Scale(lambda: v[0]); frozen.params = []
    net.layers[0].held = [Plain(opt=opt, x=x, whole=net, frozen=frozen, n=3, f=torch.exp), torch.nn, {1, 'a'}, cache,
                          dataloader(x, y, 2), torch.Generator(), iter([w]), Plain, {w, x}, b.numpy()]
    for _ in range(3):
        train_step(net, opt, x, y)
        opt.steps = 0 # each of them is a first step

def test_complex_parameters_are_not_lost(tmp_path):
    layer = Scale(lambda: None)
    layer.w = torch.ones(3, dtype=torch.complex64)
    assert [*named_weights(layer)] == ['w']
    with pytest.raises(TypeError, match='complex64, expected a floating-point'): SGD(layer.params, .1)

def test_looking_at_numbers_by_numpy_is_no_change():
    net,x,y = masked()
    net(x, y); net.preds.numpy(), net.params[0].numpy(), x.numpy(); net.backward()

@pytest.mark.parametrize('clone', [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_a_copy_is_watched_too(clone):
    net,x,y = masked()
    net(x, y); other = clone(net); other.params[2].mul_(3)
    with pytest.raises(RuntimeError, match='was changed in place'): other.backward()
    net.params[2].mul_(3) # and a copy of what has changed already
    with pytest.raises(RuntimeError, match='backward before forward'): clone(net).backward()

def test_a_copy_of_a_layer_with_slots():
    class Slots(Scale): __slots__ = 'w',
    layer = Slots(None); layer.w = rand(3); layer.v = rand(3)
    other = copy.deepcopy(layer)
    assert torch.equal(other.w, layer.w) and torch.equal(other.v, layer.v) and other.w is not layer.w

def test_a_parameter_in_a_slot(tmp_path):
    class Slots(Scale): __slots__ = 'w',
    layer = Slots(lambda: layer.w)
    layer.w = w = rand(5)
    net,x,y = Model.from_layers([layer, Lin(rand(5, 3), rand(3))], CrossEntropy()),*batch()
    before,opt = w.clone(),SGD(net.params, .1)
    assert [k for k,_ in net.named_params()] == ['layers.0.w', 'layers.1.w', 'layers.1.b']
    train_step(net, opt, x, y)
    assert not torch.equal(net.layers[0].w, before) and net.layers[0].w is w
    save_weights(net, tmp_path/'w')
    trained = w.clone()
    w.zero_()
    load_weights(net, tmp_path/'w')
    assert torch.equal(w, trained)

def test_layers_called_behind_the_back_of_the_model():
    net,x,y = masked()
    twin = copy.copy(net)
    net(x, y); twin(x + 1, y)
    with pytest.raises(RuntimeError, match='layers.0 was called again, and remembers only its last'): net.backward()
    twin.backward()
    net(x, y)
    for layer in net.layers: x = layer(x - 1)
    net.loss(x, y)
    with pytest.raises(RuntimeError, match=r'layers.0 was called again'): net.backward()

def test_a_layer_may_call_its_parts_again_in_its_backward():
    class Again(Module):
        def __init__(self, part): self.part = part
        def forward(self, x): return self.part(x)
        def bwd(self, out, x): self.part(x).g = out.g; self.part.backward()
    net = Model.from_layers([Again(Lin(rand(5, 3), rand(3)))], CrossEntropy())
    net(*batch()); net.backward()
    first = net.params[0].g.clone()
    net.backward()
    torch.testing.assert_close(net.params[0].g, first)

def test_a_child_that_knows_its_parent_has_one_place():
    block = Block(Relu()); block.lin.parent = block
    net = Model.from_layers([block, Lin(rand(4, 3), rand(3))], CrossEntropy())
    net(rand(6, 4), torch.arange(6) % 3); net.backward()
    assert len(net.params) == 4

# Settings that are changed after __init__

def attention(): return CausalSelfAttention(rand(4, 12), rand(12), rand(4, 4), rand(4), 2, 3)
settings = { # a layer, the shape of its input, and what is set
    'eps of a layer norm': (lambda: LayerNorm(rand(4)), (6, 4), dict(eps=1.)),
    'eps of an RMS norm': (lambda: RmsNorm(rand(4)), (6, 4), dict(eps=1.)),
    'eps of a batch norm': (lambda: BatchNorm(rand(4), rand(4)), (6, 4), dict(eps=1.)),
    'the mode of a batch norm': (lambda: BatchNorm(rand(4), rand(4)), (6, 4), dict(training=False)),
    'dropout': (lambda: Dropout(.5, torch.Generator().manual_seed(1)), (6, 4), dict(p=.9, training=False)),
    'GELU': (GeluOf, (6, 4), dict(approximate='tanh')),
    'stride': (lambda: Conv2d(rand(2, 1, 3, 3)), (2, 1, 5, 5), dict(stride=2)),
    'padding and dilation': (lambda: Conv2d(rand(2, 1, 2, 2)), (2, 1, 5, 5), dict(padding=1, dilation=3)),
    'the windows of the largest': (lambda: MaxPool2d(2), (2, 1, 6, 6), dict(size=1, stride=(2, 2))),
    'the windows of means': (lambda: AvgPool2d(2), (2, 1, 6, 6), dict(size=1, stride=(2, 2))),
    'a shape': (lambda: Unflatten(2, 2), (6, 4), dict(shape=(4, 1))),
    'heads': (attention, (6, 4), dict(n_head=1)), 'the block': (attention, (6, 4), dict(block=2))}

@pytest.mark.parametrize('kind', settings)
def test_the_backward_is_that_of_the_call_whatever_is_set_since(kind):
    make,shape,changed = settings[kind]
    found = []
    for change in (False, True):
        layer,x = make(),rand(*shape, seed=3)
        out = layer(x)
        out.g = rand(*out.shape, seed=4)
        if change: vars(layer).update(changed)
        layer.backward()
        found.append([x.g, *(p.g for p in layer.params)])
    for a,b in zip(*found, strict=True): assert torch.equal(a, b)

def numbers(): return LayerNorm(rand(4)), RmsNorm(rand(4)), BatchNorm(rand(4), rand(4))
wrong_settings = [
    *((l, (6, 4), dict(eps=eps), 'eps is') for l in numbers() for eps in (-5., '1', [1.], torch.tensor(1.), None)),
    *((BatchNorm(rand(4), rand(4)), (6, 4), {k: v}, f'BatchNorm: .*{k}') for k,v in (
        ('momentum', 2.), ('momentum', 'x'), ('running_mean', None), ('running_var', rand(1)),
        ('running_mean', rand(4).float()))),
    *((Dropout(.5), (6, 4), {k: v}, f'Dropout: {k} is') for k,v in (
        ('p', 2.), ('p', -1), ('p', 'x'), ('generator', 3))),
    (GeluOf(), (6, 4), dict(approximate='foo'), "Gelu: approximate is 'foo'"),
    *((Conv2d(rand(2, 1, 2, 2)), (2, 1, 5, 5), {k: v}, f'{k} is') for k,v in (('stride', 0), ('padding', 1.5))),
    (attention(), (6, 4), dict(block=4), 'block=4'), (attention(), (6, 4), dict(n_head=0), 'n_head is 0')]

@pytest.mark.parametrize('layer, shape, changed, words', wrong_settings)
def test_a_setting_that_makes_no_sense_is_refused_when_it_is_used(layer, shape, changed, words):
    vars(layer).update(changed)
    with pytest.raises((TypeError, ValueError), match=words): layer(rand(*shape))

def test_settings_may_be_numbers_of_any_library():
    from fractions import Fraction
    import numpy as np
    for half in (Fraction(1, 2), np.float32(.5)):
        for layer in (*numbers(), Dropout(.5)):
            layer.eps = layer.momentum = layer.p = half
            layer(rand(6, 4)).g = rand(6, 4)
            layer.backward()
    layer = CausalAttentionInBlocks(np.int64(2))
    layer(*rand(3, 4, 2)).g = rand(4, 2)
    layer.backward()

def test_a_layer_that_is_added_later_is_called_wherever_it_stands():
    net,x,y = masked()
    net.layers.append(Lin(rand(3, 3), rand(3)))
    net.spare = Lin(rand(9, 9), rand(9)) # no layer of the row
    net(x, y)
    torch.testing.assert_close(net.out, net.loss(net.layers[3](net.layers[2](net.layers[1](net.layers[0](x)))), y))
    act = Relu()
    net.layers = [*net.layers, act, act]
    net(x, y)
    with pytest.raises(RuntimeError, match='this layer object has two places in the model'): net.backward()
