"Layers as people write them, run by their adapter: against autograd, and the caller's layer untouched."
import copy
from functools import partial

import numpy as np, pytest, torch
from fb_pass import closures
from fb_pass.doctor.adapters import adapt, find_inside
from fb_pass.autograd import LinFunction, MseFunction, ReluFunction
from fb_pass.backward import lin_grad, mse_grad
from fb_pass.checks import autograd_grad, check_grad
from fb_pass.gradients import add_grad
from fb_pass.forward import lin, mse, relu
from fb_pass.modules import Lin, Module, Mse, Relu
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

f64 = torch.float64

@pytest.fixture(autouse=True)
def seeded(): torch.manual_seed(0)

def rand(*shape): return torch.randn(*shape)

def by_hand(s, upstream=None, seed=0):
    "Gradients by the layer's own backward, and the upstream gradient of each output."
    ts = s.leaves(s.copies())
    outs,back = s.call(s.fresh(ts), ts)
    g = torch.Generator().manual_seed(seed)
    def drawn(o): return torch.randn(o.shape, generator=g, dtype=f64).to(o) if o.is_floating_point() else None
    if upstream is None: upstream = [torch.ones_like(outs[0])] if s.starts else [*map(drawn, outs)]
    return back([] if s.starts else list(upstream)), upstream

def agrees(layer, *inputs, names=None, absent=(), dtype=f64):
    "The adapter of a right layer: its own gradients are those that autograd finds through the forward."
    s = adapt(layer, inputs, dtype)
    if names is not None: assert [*s.tensors] == names
    got,upstream = by_hand(s)
    want = s.exact(s.copies(), upstream)
    for k in s.tensors:
        if k in absent: assert got.get(k) is None
        else: check_grad(got[k], want[k], name=k)
    return s


# Modules

class Add(Module):
    "A sum of modules, each called with the same input."
    def __init__(self, *inside): self.inside = dict(enumerate(inside)); self.children = inside
    def forward(self, inp): return sum(o(inp) for o in self.children)
    def bwd(self, out, inp):
        for o in self.children: o.out.g = out.g; o.backward()

def random_lin(n_in=3, n_out=3): return Lin(rand(n_in, n_out), rand(n_out))

def test_modules_three_deep_in_a_dict_and_tied():
    one = random_lin()
    model = Add(one, Add(Add(Lin(one.w, one.b), random_lin())))
    s = agrees(model, rand(4, 3))
    assert len(s.tensors) == 1 + 2 + 2
    assert [p.title.split()[0] for p in s.parts] == ['1', '0'] and [len(p.parts) for p in s.parts] == [1, 0]
    assert len(s.parts[0].parts[0].parts) == 2
    inside = ['0', '1', '1.inside.0', '1.inside.0.inside.0', '1.inside.0.inside.1']
    assert [*find_inside(Module, model)] == ['', *('inside.' + o for o in inside)]

def test_a_layer_that_is_not_called_is_no_part():
    class Picks(Add):
        def forward(self, inp): return self.children[1](inp)
        def bwd(self, out, inp): self.children[1].out.g = out.g; self.children[1].backward()
    s = adapt(Picks(random_lin(), random_lin()), (rand(2, 3),), f64)
    assert [p.title for p in s.parts] == ['1 Lin(3->3)']

def test_the_past_is_forgotten_at_any_depth_and_the_callers_stays():
    model,x = Add(Add(random_lin())),rand(4, 3)
    out = model(x)
    out.g = torch.ones_like(out)
    model.backward()
    w = model.inside[0].inside[0].w
    before = w.clone(),w.g.clone()
    s = agrees(model, rand(2, 3))
    assert all(o.args is None and o.out is None for o in find_inside(Module, s.layer).values())
    assert [*s.tensors] == ['inp', 'inside.0.inside.0.w', 'inside.0.inside.0.b']
    assert all(o.args is not None for o in find_inside(Module, model).values()) and model.args[0] is x
    assert torch.equal(w, before[0]) and torch.equal(w.g, before[1])

class Split(Module):
    "Two outputs and a label."
    def forward(self, inp, n, flag, label): return inp*n, [inp.sin(), label]
    def bwd(self, out, inp, n, flag, label): add_grad(inp, out[0].g*n + out[1][0].g*inp.cos())

def test_module_with_several_outputs_and_arguments_that_are_no_tensors():
    s = agrees(Split(), rand(3, 2), 3, True, torch.tensor([1, 2]), names=['inp'])
    assert len(s.outputs(s.tensors)) == 3

class Joined(Module):
    "A list of tensors as one argument."
    def forward(self, xs, more=None): return torch.cat(xs)
    def bwd(self, out, xs, more=None):
        for x,g in zip(xs, out.g.split([len(x) for x in xs])): add_grad(x, g)

def test_lists_of_tensors_and_none():
    agrees(Joined(), [rand(2, 3), rand(1, 3)], None, names=['xs[0]', 'xs[1]'])
    product = lambda xs: xs['a']*xs['b'], lambda g, xs: (g*xs['b'], g*xs['a'])
    agrees(product, dict(a=rand(3), b=rand(3)), names=['a', 'b'])

class Outer(Module):
    "x^T v, both of which may be one tensor; parameters may be named like the input."
    def __init__(self, inp): self.inp = inp
    params = property(lambda self: [self.inp])
    def forward(self, inp): return inp.t() @ self.inp
    def bwd(self, out, inp): add_grad(inp, self.inp @ out.g.t()); add_grad(self.inp, inp @ out.g)

def test_a_parameter_named_like_an_input_and_one_that_is_an_input():
    v = rand(3, 2)
    agrees(Outer(rand(3, 2)), v, names=['inp', 'self.inp'])
    agrees(Outer(v), v, names=['inp'])

def test_one_tensor_in_two_places():
    x = rand(3, 3)
    agrees((lambda a, b: a@b, lambda g, a, b: (g@b.t(), a.t()@g)), x, x, names=['a'])
    def product_grad(a, b, out): add_grad(a, out.g*b); add_grad(b, out.g*a)
    agrees((lambda a, b: a*b, product_grad), x, x, names=['a'])
    agrees(LinFunction, x, x, rand(3), names=['x', 'b'])

class Slotted(Module):
    __slots__ = ('w', 'held')
    def __init__(self, w): self.w,self.held = w,[rand(3), np.ones(3)]
    params = property(lambda self: (self.w,))
    def forward(self, inp): return inp*self.w + self.held[0]
    def bwd(self, out, inp): add_grad(inp, out.g*self.w); add_grad(self.w, (out.g*inp).sum(0))

def test_slots_and_constants_of_the_layer():
    agrees(Slotted(rand(3)), rand(2, 3), names=['inp', 'w'])
    s = adapt(Slotted(rand(3)), (rand(2, 3),), torch.float32)
    new = s.fresh({k: t.double() for k,t in s.tensors.items()})
    assert new.held[0].dtype == f64 and new.held[0] is not s.layer.held[0]
    assert isinstance(new.held[1], np.ndarray) and new.held[1] is not s.layer.held[1] # an array stays one

def test_a_forward_may_write_to_what_it_gets():
    s = adapt((lambda x: x.mul_(2), lambda g: 2*g), (rand(3),), f64)
    before = s.copies()
    assert torch.equal(*(s.outputs(s.tensors)[0] for _ in range(2)))
    assert torch.equal(s.tensors['x'], before['x'])
    assert torch.equal(s.exact(s.tensors, [torch.ones(3, dtype=f64)])['x'], torch.full((3,), 2., dtype=f64))

def test_labels_are_copied_for_each_call():
    def spoil(x, labels): labels += 1; return x*labels
    labels = torch.tensor([0, 1, 2])
    s = adapt((spoil, lambda g, labels: g*labels), (rand(3), labels), f64)
    assert torch.equal(s.outputs(s.tensors)[0], s.outputs(s.tensors)[0]) and labels.tolist() == [0, 1, 2]
    numbers = np.array([0, 1, 2])
    s = adapt(lambda x, n: (spoil(x, n), lambda g: g*n), (np.ones(3), numbers), f64)
    assert torch.equal(s.outputs(s.tensors)[0], s.outputs(s.tensors)[0]) and numbers.tolist() == [0, 1, 2]

def test_losses_start_by_themselves():
    for layer in (Mse(), (mse, mse_grad)):
        assert adapt(layer, (rand(4, 1), rand(4)), f64).starts
        agrees(layer, rand(4, 1), rand(4))
    assert not adapt(MseFunction, (rand(4, 1), rand(4)), f64).starts
    assert not adapt(random_lin(), (rand(1, 3),), f64).starts
    class Total(Module):
        def forward(self, inp): return inp.sum()
        def bwd(self, out, inp): add_grad(inp, out.g.expand(inp.shape).clone())
    assert not agrees(Total(), rand(3)).starts
    class Deaf(Module): # wrong, and no loss
        def forward(self, inp): return inp*2
        def bwd(self, out, inp): add_grad(inp, torch.full_like(inp, 2.))
    assert not adapt(Deaf(), (rand(3),), f64).starts


# Pairs and functions

def test_names_of_pairs():
    x,w,b = rand(4, 3),rand(3, 2),rand(2)
    agrees((lin, lin_grad), x, w, b)
    agrees([lin, lin_grad], x, w, b)
    agrees((lin, lambda out, b, w, x: lin_grad(x, out, w, b)), x, w, b)
    agrees((lin, lambda dout, x, w, b, eps=1e-5, **more: (dout@w.t(), x.t()@dout, dout.sum(0))), x, w, b)
    agrees((lin, lambda g, eps=1e-5, x=None, w=None: (g@w.t(), x.t()@g, g.sum(0))), x, w, b)
    many = lambda x, *others: x@others[0], lambda g, *args: (g@args[1].t(), args[0].t()@g)
    agrees(many, x, w, names=['x', 'input 1'])
    def by_name(grad_output, *, x, w): return dict(x=grad_output@w.t(), w=x.t()@grad_output, b=grad_output.sum(0))
    agrees((lin, by_name), x, w, b)
    agrees((partial(lin, b=b), lambda g, x, w: (g@w.t(), x.t()@g)), x, w, names=['x', 'w']) # what is bound is converted
    agrees((torch.sigmoid, lambda out, g: g*out*(1-out)), x, names=['x'])
    agrees((lambda x, g: x*g, lambda x, g, dout: (dout*g, dout*x)), x, rand(4, 3)) # `g` is a gain
    assert agrees((lambda x, g: (x*g).sum(), lambda x, g: (g, x)), x, rand(4, 3)).starts

def test_pairs_with_several_outputs_and_with_a_cache():
    agrees((lambda x: (x.sin(), x.cos()), lambda x, grad: grad[0]*x.cos() - grad[1]*x.sin()), rand(3))
    agrees((lambda x: (x.sin(), x), lambda dout, cache: dout*cache.cos()), rand(3))

def test_pairs_on_arrays():
    x,w = rand(4, 3),rand(3, 2)
    for dtype in (np.float16, np.float32, np.float64, '>f4'):
        a = x.numpy().astype(dtype)
        s = adapt((lambda x, w: x@w, lambda g, x, w: (g@w.T, x.T@g)), (a, w.numpy()), f64)
        got,up = by_hand(s)
        assert s.on_numpy and s.tensors['x'].dtype == f64
        wants = autograd_grad(lambda x, w: (x@w*up[0]).sum(), *s.tensors.values())
        for k,want in zip('xw', wants): check_grad(got[k], want)
    assert set(s.exact(s.tensors, up).values()) == {None} and s.trace(s.tensors, up).grads == {}
    short = adapt((lambda x: x*2, lambda g: g*2), (x.numpy(),), torch.float16)
    assert by_hand(short)[0]['x'].dtype == torch.float16

def test_functions_that_return_their_gradients():
    agrees(lambda x, y: ((x*y).sum(), {'y': x, 'x': y}), rand(3), rand(3))
    agrees(lambda x: (x.sum(), torch.ones_like(x)), rand(3))
    agrees(partial(lambda w, x: (x@w, lambda g: g@w.t()), rand(3, 2)), rand(4, 3), names=['x'])
    agrees(lambda x, n, y: (x*n*y, lambda g: (g*n*y, None, g*n*x)), rand(3), 2, rand(3))
    s = agrees(lambda x, y: (x*y.detach(), lambda g: (g*y, None)), rand(3), rand(3), absent={'y'})
    assert not s.starts and s.inputs == ['x', 'y']
    assert adapt(closures.mse_loss, (np.ones((2, 1)), np.zeros((2, 1))), torch.float32).starts

def test_functions_with_two_outputs():
    for f in (lambda x: x.chunk(2, 1), lambda x: [x.sin(), x.cos()], lambda x: torch.std_mean(x, 0)):
        s = agrees(f, rand(3, 4), names=['x'])
        assert len(s.outputs(s.tensors)) == 2

def test_methods_of_nn_modules():
    class Coder(nn.Linear):
        def decode(self, y): return self(y) + (y - self.bias)@self.weight
    coder = Coder(3, 3)
    s = agrees(coder.decode, rand(2, 3), names=['y', 'of.weight', 'of.bias'])
    assert s.title == 'decode'

def test_empty_batches_and_single_numbers():
    for n in (0, 1): assert by_hand(adapt(random_lin(), (rand(n, 3),), f64))[0]['inp'].shape == (n, 3)
    square = lambda x: x**2, lambda g, x: 2*g*x
    agrees(square, torch.tensor(3.))
    assert by_hand(adapt(square, (np.array(3.),), f64), [torch.tensor(1., dtype=f64)])[0]['x'] == 6
    assert by_hand(adapt((np.square, lambda g, x: 2*g*x), (np.zeros((0, 2)),), f64))[0]['x'].shape == (0, 2)


# autograd.Function

class Double(Function):
    "Right forward, wrong backward: the old style, with an argument that is no tensor; it looks at its context."
    @staticmethod
    def forward(ctx, x, n, mask):
        ctx.n = n
        ctx.set_materialize_grads(False)
        if ctx.needs_input_grad[0]: ctx.save_for_backward(mask)
        return x*n*mask
    @staticmethod
    @once_differentiable
    def backward(ctx, g): return g*ctx.n*ctx.saved_tensors[0]*2, None, None

class Both(Function):
    "The new style; two outputs, and a third that has no gradient."
    @staticmethod
    def forward(x, w): return x*w, x.sin(), x > 0, x.abs()
    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.mark_non_differentiable(output[2], output[3])
    @staticmethod
    def backward(ctx, g0, g1, g2, g3):
        x,w = ctx.saved_tensors
        return g0*w + g1*x.cos(), g0*x

class InPlace(Function):
    @staticmethod
    def forward(ctx, x): ctx.mark_dirty(x); return x.mul_(3)
    @staticmethod
    def backward(ctx, g): return 3*g

class SquareInPlace(Function):
    @staticmethod
    def forward(ctx, x): ctx.save_for_backward(x.clone()); ctx.mark_dirty(x); return x.pow_(2)
    @staticmethod
    def backward(ctx, g): return 2*g*ctx.saved_tensors[0]

class Squares(nn.Module):
    def __init__(self): super().__init__(); self.w = nn.Parameter(rand(3))
    def forward(self, x): return SquareInPlace.apply(x*self.w)

def test_functions_that_write_to_their_input():
    agrees(SquareInPlace, rand(3))
    s = agrees(Squares(), rand(2, 3))
    for part in s.parts: agrees(SquareInPlace, *part.given)

def test_functions_of_every_style():
    x,w = rand(3, 2),rand(3, 2)
    s = agrees(Both, x, w, names=['x', 'w'])
    assert len(s.outputs(s.tensors)) == 2
    agrees(Both.apply, x, w)
    agrees(InPlace, x)
    agrees(ReluFunction, x)
    class ByVjp(Function):
        forward = staticmethod(lambda x: x.sin())
        setup_context = staticmethod(lambda ctx, inputs, output: ctx.save_for_backward(*inputs))
        vjp = staticmethod(lambda ctx, g: (g*ctx.saved_tensors[0].cos(), None)) # torch allows a None too many
    agrees(ByVjp, x)

def test_a_wrong_function_is_seen_wherever_it_hides():
    x,mask,op = rand(3),torch.ones(3),Double.apply
    s = adapt(Double, (x, 2, mask), f64)
    got,up = by_hand(s)
    check_grad(s.exact(s.tensors, up)['x'], 2*up[0])
    check_grad(got['x'], 4*up[0])
    class Nested(Function): # calls it in its own forward
        forward = staticmethod(lambda x, mask: op(x, 2, mask))
        setup_context = staticmethod(lambda ctx, inputs, output: None)
        backward = staticmethod(lambda ctx, g: (2*g, None))
    class Net(nn.Module):
        def __init__(self, op): super().__init__(); self.op,self.w = op,nn.Parameter(rand(3))
        def forward(self, x): return self.op(x*self.w, 2, (x > 0).to(x)).sin()
    pair = lambda x: op(x, 2, mask.double()), lambda g: 2*g
    for layer,*inputs in ((Net(op), x), (pair, x), (Nested, x, mask)):
        s = adapt(layer, inputs, f64)
        f = dict(x=s.tensors['x'].requires_grad_(), w=s.tensors.get('w'))
        up = [torch.ones(3, dtype=f64)]
        want = (2*f['x']*f['w']*(f['x'] > 0)).sin() if f['w'] is not None else 2*f['x']
        check_grad(s.exact(s.copies(), up)['x'], torch.autograd.grad(want.sum(), f['x'])[0])
    ctx = type('c', (), dict(n=1, saved_tensors=[mask])) # the class has its own backward again
    assert Double.__dict__['forward'].__func__.__name__ == 'forward'
    assert Double.backward(ctx, mask)[0].tolist() == [2.]*3

def test_a_wrong_function_in_the_forward_of_a_function_in_an_nn_module():
    class Outside(Function):
        forward = staticmethod(lambda ctx, x: Double.apply(x, 2, torch.ones_like(x)))
        backward = staticmethod(lambda ctx, g: 2*g)
    class Net(nn.Module):
        def forward(self, x):
            for _ in range(60): x = x/2 + x/2 # as many ways back as 2**60
            return ReluFunction.apply(torch.ones_like(x)) + ReluFunction.apply(Outside.apply(x))
    s = agrees(Net(), rand(3))
    assert [p.title for p in s.parts] == ['2 ReluFunction', '1 Outside'] # what the other gets has no gradient

def test_parts_of_an_nn_module():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.w,self.frozen = nn.Parameter(rand(3)),nn.Parameter(rand(3), requires_grad=False)
        def forward(self, x): return Double.apply(ReluFunction.apply(x*self.w + self.frozen), 2, self.frozen)
    net = Net()
    s = adapt(net, (rand(2, 3),), torch.float32)
    assert [*s.tensors] == ['x', 'w']
    assert [(p.title, [*p.tensors]) for p in s.parts] == [('1 Double', ['x']), ('0 ReluFunction', ['x'])]
    part = s.parts[0]
    got,up = by_hand(part)
    doubles = {k: t.double() for k,t in part.tensors.items()}
    check_grad(got['x'], 2*part.exact(doubles, [u.double() for u in up])['x'].float())
    assert part.args(doubles)[2].dtype == f64 # constants go along

def test_what_a_backward_returns_is_seen_raw():
    class Shape(Function):
        forward,backward = staticmethod(lambda ctx, x: x.sum(1)),staticmethod(lambda ctx, g: g)
    assert by_hand(adapt(Shape, (rand(2, 3),), f64))[0]['x'].shape == (2,)
    class Few(Function):
        forward,backward = staticmethod(lambda ctx, x, n: x*n),staticmethod(lambda ctx, g: g)
    with pytest.raises(TypeError, match='returned 1 gradients for 2 inputs'): by_hand(adapt(Few, (rand(2), 3), f64))
    class Many(Function):
        forward,backward = staticmethod(lambda ctx, x: x*1),staticmethod(lambda ctx, g: (g, g))
    with pytest.raises(TypeError, match='returned 2 gradients for 1 inputs'): by_hand(adapt(Many, (rand(2),), f64))
    class Stops(Function):
        @staticmethod
        def forward(ctx, x): return x*1
        @staticmethod
        def backward(ctx, g): raise RuntimeError('by itself')
    with pytest.raises(RuntimeError, match='by itself'): by_hand(adapt(Stops, (rand(2),), f64))

def test_a_backward_that_writes_to_its_input_is_seen():
    class Writes(Function):
        @staticmethod
        def forward(ctx, x): ctx.save_for_backward(x); return x*1
        @staticmethod
        def backward(ctx, g): ctx.saved_tensors[0].zero_(); return g
    for layer,written in ((Writes, True), (InPlace, False)):
        s = adapt(layer, (rand(3),), f64)
        ts = s.leaves(s.copies())
        s.call(s.layer, ts)[1]([torch.ones(3, dtype=f64)])
        assert torch.equal(ts['x'], s.tensors['x']) is not written


# nn.Module

def test_nn_modules_with_buffers_tied_weights_and_lists():
    norm = nn.BatchNorm1d(3)
    net = nn.Sequential(norm, nn.Linear(3, 3), nn.ReLU(inplace=True), nn.Dropout(.4))
    net[1].bias = norm.bias # tied
    before = copy.deepcopy(net.state_dict())
    s = agrees(net, rand(5, 3))
    assert len(s.tensors) == 4 and not s.parts
    assert torch.equal(s.outputs(s.tensors)[0], s.outputs(s.tensors)[0])
    assert all(torch.equal(before[k], v) for k,v in net.state_dict().items()) and norm.weight.grad is None
    class Listed(nn.Module):
        def __init__(self): super().__init__(); self.ps = nn.ParameterList([rand(3, 3), rand(3)])
        def forward(self, x): return LinFunction.apply(x, *self.ps[0:2])
    agrees(Listed(), rand(2, 3), names=['x', 'ps.0', 'ps.1'])
    agrees(nn.ReLU(inplace=True), rand(2, 3))
    agrees(nn.Embedding(5, 3), torch.tensor([1, 1, 4]), names=['weight'])
    agrees(nn.LSTM(3, 2), rand(4, 1, 3))

def test_random_numbers_are_the_same_in_each_call_and_the_callers_go_on():
    class Drop(closures.Layer):
        def forward(self, X): mask = np.random.random(X.shape) > .5; return X*mask, lambda Yg: Yg*mask
    class Torch(Module):
        def forward(self, inp): self.mask = torch.rand(inp.shape) > .5; return inp*self.mask
        def bwd(self, out, inp): add_grad(inp, out.g*self.mask)
    for layer,x in ((Drop(), np.ones(50)), (nn.Dropout(.5), torch.ones(50)), (Torch(), torch.ones(50))):
        s = adapt(layer, (x,), f64)
        out, = s.outputs(s.tensors)
        assert 0 < (out != 0).sum() < 50
        torch.rand(9), np.random.random(9)
        before = torch.get_rng_state(),np.random.get_state()
        assert torch.equal((by_hand(s)[0][s.inputs[0]] != 0), out != 0)
        assert torch.equal(before[0], torch.get_rng_state())
        assert all(np.array_equal(a, b) for a,b in zip(before[1], np.random.get_state()))

def test_to_adapt_a_layer_draws_none_of_the_callers_random_numbers():
    class Noise(Function):
        forward = staticmethod(lambda ctx, x: x + torch.rand(x.shape))
        backward = staticmethod(lambda ctx, g: g)
    class Noisy(closures.Layer):
        def forward(self, X): return X + np.random.random(X.shape), lambda Yg: Yg
    def noisy(x): return x + torch.rand(x.shape), lambda g: g
    twice = closures.Sequential(Noisy(), Noisy())
    for layer,x in ((Noise, rand(3)), (noisy, rand(3)), (nn.Dropout(.5), rand(3)), (twice, np.ones(3))):
        before = torch.get_rng_state(),np.random.get_state()[1].copy()
        assert len(adapt(layer, (x,), f64).parts) == 2*(layer is twice)
        assert torch.equal(before[0], torch.get_rng_state()) and np.array_equal(before[1], np.random.get_state()[1])


# closures

class Scale(closures.Layer):
    "Parameters that are single numbers, or one array twice."
    def __init__(self, a, b): self.a,self.b = self.build_param(a),self.build_param(b)
    def forward(self, X):
        def back(Yg):
            for p,g in ((self.a, Yg*X), (self.b, Yg)): p.add(np.asarray(g.sum() if p.tensor.ndim == 0 else g))
            return Yg*self.a.tensor
        return X*self.a.tensor + self.b.tensor, back

def test_parameters_of_closures():
    X,v = np.random.default_rng(0).standard_normal(3),np.array([1., 2., 3.])
    s = adapt(Scale(np.float64(2.), np.array(3.)), (X,), f64)
    got,(up,) = by_hand(s)
    wants = autograd_grad(lambda X, a, b: ((X*a + b)*up).sum(), *s.tensors.values())
    for k,want in zip(('X', 'a', 'b'), wants): check_grad(got[k], want, name=k)
    s = adapt(Scale(v, v), (X,), f64)
    got,(up,) = by_hand(s)
    wants = autograd_grad(lambda X, a: ((X*a + a)*up).sum(), *s.tensors.values())
    for k,want in zip(('X', 'a'), wants): check_grad(got[k], want, name=k)
    s = adapt(Scale(v, np.ones(3)), (v,), f64)
    got,(up,) = by_hand(s)
    check_grad(got['X'], autograd_grad(lambda X: (X*X*up).sum(), s.tensors['X']))
    assert not s.layer.a.gradient.any()

def test_parts_of_closures():
    twice = closures.Linear(3, 3, 0)
    net = closures.Sequential(twice, closures.Sequential(closures.Sigmoid(), twice))
    for p in net.parameters: p.gradient = p.gradient + 1.
    s = adapt(net, (rand(2, 3),), torch.float32)
    assert [p.title for p in s.parts] == ['1 Sequential(Sigmoid(), Linear(3->3))', '0 Linear(3->3)']
    assert len(s.parts[0].parts) == 2
    got,(up,) = by_hand(s)
    wants = autograd_grad(lambda X, w, b: (((X@w + b).sigmoid()@w + b)*up).sum(), *s.tensors.values())
    for (k,g),want in zip(got.items(), wants): check_grad(g, want, name=k)
    assert all((p.gradient == 1).all() for p in net.parameters)
    check_grad(s.parts[0].tensors['X'], s.parts[1].outputs(s.parts[1].tensors)[0])


# What cannot be done

class Anew(Lin):
    params = property(lambda self: (self.w*1, self.b))

class Locked(Lin):
    def __init__(self, w, b): super().__init__(w, b); self.lines = (o for o in 'abc')

@pytest.mark.parametrize('layer,inputs,error,words', [
    (Lin, (rand(2, 3),), TypeError, ['an instance, not the class', 'two functions (forward, backward)']),
    (3, (), TypeError, ['3 cannot be checked']),
    ((relu, 3), (rand(2),), TypeError, ['cannot be checked']),
    (Relu(), (torch.tensor([1, 2]),), ValueError, ['check_layer: Relu() has no parameter', '.float()']),
    ((lambda x: x, lambda g: g), (torch.tensor([1, 2]), 3), ValueError,
     ['check_layer: <lambda> and <lambda> has no parameter', 'no gradient to check', '.float()']),
    (Anew(rand(3, 2), rand(2)), (rand(2, 3),), TypeError,
     ['check_layer: parameter 0 of Lin(3->2)', 'make it an attribute']),
    (Locked(rand(3, 2), rand(2)), (rand(2, 3),), TypeError, ['check_layer: Lin(3->2) cannot be copied', 'generator']),
    ((relu, torch.add), (rand(2),), TypeError, ['check_layer: the arguments of add have no names', 'lambda g, x']),
    (torch.detach, (rand(2),), TypeError, ['check_layer: detach returned Tensor, expected a pair', '(forward, ']),
    (lambda x: (x, x), (rand(2),), TypeError,
     ['check_layer: <lambda> returned two values', 'a loss', 'in a list']),
    (nn.Flatten(), (rand(2, 3) > 0,), ValueError, ['check_layer: Flatten has no parameter']),
    (type('Idle', (Function,), dict(forward=staticmethod(lambda ctx, x: x > 0))), (rand(2),), TypeError,
     ['check_layer: nothing that Idle returns has a gradient', 'not a list of tensors']),
    (partial(torch.detach), (rand(2),), TypeError, ['check_layer: detach returned Tensor']),
])
def test_errors(layer, inputs, error, words):
    with pytest.raises(error) as e: adapt(layer, inputs, f64)
    for o in words: assert o in str(e.value)

@pytest.mark.parametrize('backward, message', [
    (lambda x: x, 'check_layer: the backward of relu and <lambda> takes no upstream gradient'),
    (lambda g, y, z: y, "check_layer: what should the backward get as 'z'.*x, by these names"),
    (lambda g: (g, g, g), 'returned 3 gradients for 1 inputs, x: return one'),
    (lambda g: dict(u=g), "returned a gradient for 'u', but the inputs are x: name it like"),
])
def test_errors_of_the_backward(backward, message):
    with pytest.raises(TypeError, match=message): by_hand(adapt((relu, backward), (rand(3),), f64))

def test_errors_of_the_dtype():
    x = rand(3)
    message = 'check_layer: .* numpy has no torch.bfloat16: choose float64, float32 or float16'
    for layer in (closures.Relu(), (np.abs, lambda g, x: g*np.sign(x)), lambda x: (x.sum(), x)):
        with pytest.raises(TypeError, match=message): adapt(layer, (x.numpy(),), torch.bfloat16)
    message = 'check_layer: dtype is .*, expected a floating-point dtype'
    for dtype in (torch.int64, np.float32, 'float64'):
        with pytest.raises(TypeError, match=message): adapt(Relu(), (x,), dtype)

class WrongSquare(torch.autograd.Function):
    "With a context of its own, and a backward that is wrong."
    @staticmethod
    def forward(x): return x*x
    @staticmethod
    def setup_context(ctx, inputs, output): ctx.save_for_backward(*inputs)
    @staticmethod
    def backward(ctx, g): return 3*g*ctx.saved_tensors[0]

class SquareNet(nn.Module):
    def forward(self, x): return WrongSquare.apply(x)

def test_autograd_goes_through_the_forward_of_a_function_with_a_context_of_its_own():
    x,u = torch.randn(3, 2, dtype=torch.float64),torch.randn(3, 2, dtype=torch.float64)
    s = adapt(SquareNet(), (x,), torch.float64)
    check_grad(s.exact(s.tensors, [u])['x'], 2*x*u)
    assert len(s.parts) == 1 and torch.equal(s.parts[0].tensors['x'], x)
