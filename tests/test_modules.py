"A layer of one's own works everywhere: with a rule, and without base classes' help, parameters as plain attributes."
import pytest, torch
from torch.autograd import gradcheck
from fb_pass.checks import autograd_grad, check_grad
from fb_pass.doctor import check_layer
from fb_pass.gradients import Rule, add_grad, check_rule, to_function
from fb_pass.library import load_weights, named_weights, save_weights
from fb_pass.modules import Lin, Model, Module, Mse, Op, Relu
from fb_pass.training import SGD, AdamW, CrossEntropy, dataloader, fit

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
