"Our layers and models inside torch: as functions, as modules, as operators, and compiled."
import copy, pickle

import pytest, torch
from fb_pass.activations import Dropout, Gelu, Sigmoid, Silu, Tanh
from fb_pass.attention import (Attention, AttentionWeights, Average, CausalAttention, CausalAttentionInBlocks,
                               CausalSelfAttention, Embedding, Product, Softmax)
from fb_pass.bridges import as_torch, own_tensors, register_op, to_function
from fb_pass.checks import check_grad
from fb_pass.convolution import AvgPool2d, Conv2d, Flatten, MaxPool2d, Unflatten, cnn
from fb_pass.gpt import Positions, Recomputed, Residual, TiedOutput, TokenLoss, gpt
from fb_pass.gradients import Rule, add_grad
from fb_pass.modules import Lin, Model, Module, Mse, Op, Relu
from fb_pass.norms import BatchNorm, LayerNorm, RmsNorm
from fb_pass.training import CrossEntropy, mlp
from torch.autograd.gradcheck import GradcheckError
from torch.func import functional_call, grad, vmap

def gen(seed=0): return torch.Generator().manual_seed(seed)
def rand(*shape, seed=0): return torch.randn(shape, dtype=torch.float64, generator=gen(seed))
def ids(*shape, n=7): return torch.randint(0, n, shape, generator=gen())
def see(): return torch.ones(3, 3, dtype=torch.bool).tril()
def attention(**kw): return CausalSelfAttention(rand(8, 24), rand(24), rand(8, 8), rand(8), 2, 4, **kw)

class Double(Module):
    "Without a rule, with a parameter in a list, and with a `bwd` that sets `.g` itself."
    def __init__(self): self.ws = [rand(3)]
    def forward(self, x): return 2*x*self.ws[0]
    def bwd(self, out, x): x.g,self.ws[0].g = 2*out.g*self.ws[0],(2*out.g*x).sum(0)

LAYERS = {
    'Lin': (lambda: Lin(rand(4, 3), rand(3)), [rand(5, 4)]), 'Relu': (Relu, [rand(5, 4)]),
    'Mse': (Mse, [rand(5, 1), rand(5, seed=1)]), 'CrossEntropy': (CrossEntropy, [rand(5, 4), ids(5, n=4)]),
    'Sigmoid': (Sigmoid, [rand(3, 4)]), 'Tanh': (Tanh, [rand(3, 4)]), 'Silu': (Silu, [rand(3, 4)]),
    'Gelu': (Gelu, [rand(3, 4)]), 'Gelu tanh': (lambda: Gelu('tanh'), [rand(3, 4)]),
    'Dropout': (lambda: Dropout(.5), [rand(6, 4)]), 'Product': (lambda: Product(rand(4, 3)), [rand(5, 4)]),
    'Conv2d': (lambda: Conv2d(rand(2, 1, 3, 3), rand(2), 2, 1), [rand(2, 1, 7, 6)]),
    'Conv2d, no bias': (lambda: Conv2d(rand(2, 1, 3, 3), None), [rand(2, 1, 7, 6)]),
    'MaxPool2d': (lambda: MaxPool2d(2), [rand(2, 1, 6, 6)]), 'AvgPool2d': (lambda: AvgPool2d(2), [rand(2, 1, 6, 6)]),
    'Flatten': (Flatten, [rand(2, 1, 3, 3)]), 'Unflatten': (lambda: Unflatten(1, 2, 3), [rand(4, 6)]),
    'BatchNorm': (lambda: BatchNorm(rand(4), rand(4)), [rand(6, 4)]),
    'LayerNorm': (lambda: LayerNorm(rand(4), rand(4)), [rand(5, 4)]),
    'LayerNorm, no bias': (lambda: LayerNorm(rand(4)), [rand(5, 4)]),
    'RmsNorm': (lambda: RmsNorm(rand(4)), [rand(5, 4)]),
    'Embedding': (lambda: Embedding(rand(7, 4)), [ids(2, 3)]), 'Softmax': (Softmax, [rand(3, 4)]),
    'AttentionWeights': (AttentionWeights, [rand(2, 3, 4), rand(2, 3, 4, seed=1), see()]),
    'Average': (Average, [rand(2, 3, 3), rand(2, 3, 4)]),
    'Attention': (Attention, [*(rand(2, 3, 4, seed=i) for i in range(3)), see()]),
    'CausalAttention': (CausalAttention, [rand(2, 3, 4, seed=i) for i in range(3)]),
    'CausalAttentionInBlocks': (lambda: CausalAttentionInBlocks(2), [rand(2, 3, 4, seed=i) for i in range(3)]),
    'CausalSelfAttention': (attention, [rand(8, 8)]), 'in blocks': (lambda: attention(rows=2), [rand(8, 8)]),
    'Residual': (lambda: Residual(Lin(rand(4, 4), rand(4)), Gelu()), [rand(5, 4)]),
    'Recomputed': (lambda: Recomputed(Residual(Lin(rand(4, 4), rand(4)), Dropout(.5))), [rand(5, 4)]),
    'Positions': (lambda: Positions(rand(3, 4)), [rand(6, 4)]),
    'TiedOutput': (lambda: TiedOutput(rand(7, 4)), [rand(5, 4)]),
    'TokenLoss': (TokenLoss, [rand(6, 7), ids(2, 3)]), 'Double': (Double, [rand(5, 3)]),
    'GPT': (lambda: gpt(7, 3, 2, 2, 8, bias=True, generator=gen(), dtype=torch.float64), [ids(2, 3), ids(2, 3)]),
    'GPT, dropout, recomputed': (lambda: gpt(7, 3, 1, 2, 8, dropout=.3, recompute=True, generator=None,
                                             dtype=torch.float64), [ids(2, 3), ids(2, 3)]),
    'MLP': (lambda: mlp(4, 5, 3, dtype=torch.float64), [rand(6, 4), ids(6, n=3)])}
every_layer = pytest.mark.parametrize('name', LAYERS)

def made(name, mode=True):
    torch.manual_seed(0)
    make,args = LAYERS[name]
    return make().train(mode), args

def leaves(args): return [t.clone().requires_grad_(t.is_floating_point()) for t in args]

def ours(layer, args):
    "Output, gradients of the arguments that have one, gradients of the parameters."
    args = [t.clone() for t in args]
    torch.manual_seed(1)
    out = layer(*args)
    u = rand(*out.shape, seed=9)
    out.g = u
    layer.backward()
    return [out, *(t.g for t in args if t.is_floating_point()), *(p.g for p in layer.params)]

def theirs(f, args, params):
    args = leaves(args)
    torch.manual_seed(1)
    out = f(*args)
    out.backward(rand(*out.shape, seed=9))
    return [out.detach(), *(t.grad for t in args if t.is_floating_point()), *(p.grad for p in params)]

def same(got, want, rtol=1e-12):
    assert len(got) == len(want)
    for i,(g,w) in enumerate(zip(got, want)): check_grad(g, w, rtol=rtol, name=f'result {i}')

def trained(net): return [p for p in net.parameters() if p.requires_grad]


# As a module

@every_layer
def test_as_torch_has_our_numbers(name):
    layer,args = made(name)
    net = as_torch(layer)
    same(theirs(net, args, trained(net)), ours(layer, args))
    assert {k for k,_ in (*net.named_parameters(), *net.named_buffers())} == {k for k,_ in own_tensors(layer)}
    for p in net.parameters(): assert not hasattr(p, 'g')

def test_a_training_by_torch_has_the_weights_of_ours():
    from fb_pass.training import AdamW
    model = cnn(gen())
    x,y = torch.randn(8, 784, generator=gen()),ids(8, n=10)
    for p in model.params: p.data = p.data.double()
    x = x.double()
    net = as_torch(model)
    mine,other = AdamW(model.params, 1e-3, weight_decay=.1),torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=.1)
    for _ in range(5):
        model(x, y); model.backward(); mine.step()
        other.zero_grad(); net(x, y).backward(); other.step()
    for (k,p),q in zip(net.named_parameters(), model.params, strict=True): check_grad(p, q, rtol=1e-9, name=k)

def test_layer_by_layer_if_the_model_is_plain():
    "So that the gradients of the last layer are there first; a model with a forward of its own is one step."
    for name,steps in (('MLP', 4), ('GPT', 1)):
        layer,args = made(name)
        net,order = as_torch(layer),[]
        loss,seen = net(*args),set()
        todo = [loss.grad_fn]
        while todo:
            f = todo.pop()
            if f is None or f in seen: continue
            seen.add(f)
            if 'Function' in f.name(): order.append(f.name())
            todo += [g for g,_ in f.next_functions]
        assert len(order) == steps, order

def test_predictions():
    layer,args = made('GPT')
    net = as_torch(layer)
    layer(*args)
    same([net.layers(args[0]).detach()], [layer.preds])
    assert 'CausalSelfAttention' in repr(net)

@pytest.mark.parametrize('name', ['GPT', 'BatchNorm', 'Double'])
def test_state_dict_there_and_back(name):
    layer,args = made(name)
    net,other = as_torch(layer),as_torch(copy.deepcopy(layer))
    with torch.no_grad():
        for t in other.state_dict().values(): t.add_(1)
    other.load_state_dict(net.state_dict())
    want = theirs(net, args, trained(net))
    for again in (other, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        again.zero_grad()
        same(theirs(again, args, trained(again)), want)

def test_to_another_dtype():
    layer,args = made('GPT')
    assert as_torch(layer).float()(*args).dtype == torch.float32

def test_the_upstream_gradient_of_a_loss_is_used():
    for name in ('MLP', 'GPT'):
        layer,args = made(name)
        net = as_torch(layer)
        (-3*net(*args)).backward()
        layer(*args); layer.backward()
        for p,q in zip(net.parameters(), layer.params): check_grad(p.grad, -3*q.g)

def test_a_shared_weight_is_one_parameter():
    net = as_torch(made('GPT')[0])
    table = net.layers[0].weight
    assert net.layers[-1].weight is table and sum(p is table for p in net.parameters()) == 1
    square = rand(3, 3)
    both = as_torch(Model.from_layers([Lin(square, rand(3)), Lin(square, rand(3, seed=1))], CrossEntropy()))
    assert len([*both.parameters()]) == 3

def test_what_is_frozen_has_no_gradient():
    model = mlp(4, 5, 3, dtype=torch.float64)
    model.params = model.layers[2].params
    net = as_torch(model)
    assert [p.requires_grad for p in net.parameters()] == [False, False, True, True]
    net(rand(6, 4), ids(6, n=3)).backward()
    assert [p.grad is None for p in net.parameters()] == [True, True, False, False]

def test_the_model_given_is_left_alone():
    layer,args = made('GPT')
    before = [p.clone() for p in layer.params]
    net = as_torch(layer)
    net(*args).backward()
    torch.optim.SGD(net.parameters(), 1.).step()
    for p,q in zip(layer.params, before): assert torch.equal(p, q) and getattr(p, 'g', None) is None
    assert layer.args is None

def test_as_torch_refuses_what_it_would_lose():
    relu = Relu(); relu.forward = lambda x: x
    with pytest.raises(TypeError, match='its own forward cannot be carried over: write a class'):
        as_torch(Model.from_layers([Residual(relu)], CrossEntropy()))
    w = rand(3, 3)
    with pytest.raises(ValueError, match='as_torch: parameters share memory'):
        as_torch(Model.from_layers([Lin(w, rand(3)), Lin(w.t(), rand(3))], CrossEntropy()))
    with pytest.raises(TypeError, match='model is a Linear, expected a Module'): as_torch(torch.nn.Linear(2, 2))

def test_autocast_changes_no_dtype():
    for name in ('Lin', 'Residual', 'GPT'):
        layer,args = made(name)
        net = as_torch(layer)
        def f(*ts):
            with torch.autocast('cpu', torch.bfloat16): return net(*ts)
        same(theirs(f, args, trained(net)), ours(layer, args))


# As a function

@every_layer
def test_gradcheck(name):
    layer,args = made(name, mode=False)
    f = to_function(layer, 'Checked')
    own = [t.detach().clone().requires_grad_('running' not in k) for k,t in own_tensors(layer)]
    params = [t for t in own if t.requires_grad]
    if sum(t.numel() for t in own) < 400: assert torch.autograd.gradcheck(f.apply, (*leaves(args), *own))
    else: same(theirs(lambda *a: f.apply(*a, *own), args, params), ours(layer, args))

def test_calls_do_not_disturb_each_other():
    for name in ('Lin', 'Residual', 'GPT'):
        layer,args = made(name)
        net = as_torch(layer)
        other = [t + 1 if t.is_floating_point() else t.flip(0) for t in args]
        first,second = net(*args),net(*other)
        a = torch.autograd.grad(second.sum(), trained(net), retain_graph=True)
        b = torch.autograd.grad(first.sum(), trained(net), retain_graph=True)
        for call,got in ((args, b), (other, a)):
            for g,w in zip(got, torch.autograd.grad(net(*call).sum(), trained(net))): check_grad(g, w)
        for g,w in zip(torch.autograd.grad(first.sum(), trained(net)), b): check_grad(g, w) # a second time

def test_what_changed_in_place_is_noticed():
    for name in ('Lin', 'Residual'):
        layer,(x,) = made(name)
        out = as_torch(layer)(x := x.clone())
        x += 1
        with pytest.raises(RuntimeError, match='in ?place'): out.sum().backward()

def test_only_what_is_asked_for_has_a_gradient():
    layer,(x,) = made('Residual')
    w,b = [t.clone() for t in layer.params]
    f = to_function(layer, 'F')
    for i in range(3):
        ts = [t.clone().requires_grad_(i == j) for j,t in enumerate((x, w, b))]
        f.apply(*ts).sum().backward()
        assert [t.grad is not None for t in ts] == [i == j for j in range(3)]

def test_what_is_not_asked_for_is_none():
    f = to_function(Lin.rule, 'F')
    for i in range(3):
        ts = [t.clone().requires_grad_(i == j) for j,t in enumerate((rand(5, 4), rand(4, 3), rand(3)))]
        out = f.apply(*ts)
        with torch.no_grad(): returned = f.backward(out.grad_fn, rand(5, 3)) # as the engine calls it
        assert [g is not None for g in returned] == [i == j for j in range(3)]

def test_per_example_gradients():
    layer,(x,) = made('Lin')
    net = as_torch(layer)
    params = dict(net.named_parameters())
    def loss(params, row): return functional_call(net, params, (row[None],)).pow(2).sum()
    each = vmap(grad(loss), (None, 0))(params, x)
    for i,row in enumerate(x):
        for k,p in params.items():
            check_grad(each[k][i], torch.autograd.grad(net(row[None]).pow(2).sum(), p)[0])

def test_second_derivatives_are_refused_everywhere():
    for name in ('Gelu', 'Residual'):
        layer,(x,) = made(name)
        net = as_torch(layer)
        with pytest.raises(RuntimeError, match='Function: create_graph=True asks for a second derivative'):
            torch.autograd.grad(net(x.requires_grad_()).sum(), x, create_graph=True)
        x.requires_grad_(False)
    f = to_function(Rule(lambda x: x**2, lambda g, out, x: 2*g*x), 'Square').apply
    with pytest.raises(RuntimeError, match='Square: create_graph=True asks for a second'):
        grad(lambda x: grad(lambda x: f(x).sum())(x).sum())(rand(3))

def test_to_function_refuses():
    with pytest.raises(TypeError, match='to_function: got .*Linear.*expected a Rule, or a layer'):
        to_function(torch.nn.Linear(2, 2), 'F')
    with pytest.raises(TypeError, match='expected arguments and then its own tensors'):
        to_function(made('GPT')[0], 'F').apply(ids(2, 3), ids(2, 3))
    class Two(Module):
        def forward(self, x): return x, x
        def bwd(self, out, x): pass
    with pytest.raises(TypeError, match='the output is a tuple'): to_function(Two(), 'F').apply(rand(2))


# As an operator

def test_operator_of_a_class_and_of_a_rule():
    args = [rand(4, 3), rand(3, 2), rand(2)]
    want = Lin(*args[1:])(args[0])
    for o,name in ((Lin, 'a_class'), (Lin.rule, 'a_rule'), (Lin(*args[1:]), 'a_layer')):
        op = register_op(o, f'test_bridges::{name}')
        assert torch.equal(op(*args), want) and torch.autograd.gradcheck(op, leaves(args))
        assert torch.equal(getattr(torch.ops.test_bridges, name)(*args), want)

def test_an_argument_that_may_be_missing():
    assert torch.equal(register_op(Relu, 'test_bridges::relu')(rand(5)), rand(5).relu())
    op = register_op(LayerNorm(rand(4)), 'test_bridges::norm')
    x,w,b = leaves([rand(5, 4), rand(4), rand(4)])
    assert torch.autograd.gradcheck(op, (x, w)) and torch.autograd.gradcheck(op, (x, w, b))

def test_operators_refuse():
    for name in ('lin', 'a::b::c', '::lin', 'a::1'):
        with pytest.raises(ValueError, match='expected a namespace and a name'): register_op(Lin, name)
    with pytest.raises(TypeError, match='names no arguments: write it as a function of Python'):
        register_op(Rule(torch.exp, lambda g, out, x: g*out), 'test_bridges::bad')
    for bad in (Residual, 3, torch.nn.ReLU()):
        with pytest.raises(TypeError, match='register_op: got .*expected a Rule'): register_op(bad, 'test_bridges::bad')
    for layer in (Dropout(.5), Residual(Dropout(.5)), BatchNorm(rand(3), rand(3))):
        with pytest.raises(ValueError, match='is in training.*call eval'): register_op(layer, 'test_bridges::bad')
    x = rand(3).requires_grad_()
    op = register_op(Residual(Gelu()), 'test_bridges::second')
    with pytest.raises(RuntimeError, match='asks for a second derivative'):
        torch.autograd.grad(op(x).sum(), x, create_graph=True)

def test_operators_and_modules_notice_a_wrong_backward():
    class Wrong(Op): rule = Rule(lambda x: x**3, lambda g, out, x: 2*g*x**2)
    class WrongModule(Module):
        def forward(self, x): return x**3
        def bwd(self, out, x): add_grad(x, 2*out.g*x**2)
    for i,layer in enumerate((Wrong(), WrongModule())):
        op = register_op(layer, f'test_bridges::wrong{i}')
        for f in (op, as_torch(layer), to_function(layer, 'F').apply):
            with pytest.raises(GradcheckError): torch.autograd.gradcheck(f, leaves([rand(3)]))

def test_operators_leave_the_gradients_of_others_alone():
    "What stands in `.g` of the tensors given is neither added to nor lost."
    layer,(x,) = made('Residual')
    op = register_op(layer, 'test_bridges::others')
    ts = leaves([x, *layer.params])
    for t in ts: t.g = torch.ones_like(t)
    got = torch.autograd.grad(op(*ts).sum(), ts)
    for t,g,w in zip(ts, got, torch.autograd.grad(to_function(layer, 'F').apply(*ts).sum(), ts)):
        check_grad(g, w)
        assert torch.equal(t.g, torch.ones_like(t))


# What people do with them

class Center(Module):
    "A buffer that is assigned anew."
    buffers = 'mean'
    def __init__(self): self.mean = torch.zeros(2, dtype=torch.float64)
    def forward(self, x):
        self.mean = .9*self.mean + .1*x.mean(0)
        return x - self.mean
    def bwd(self, out, x): add_grad(x, out.g)

def test_a_buffer_that_is_assigned_moves():
    layer,net,x = Center(),as_torch(Center()),rand(4, 2)
    for _ in range(3): assert torch.allclose(layer(x), net(x), rtol=1e-12)
    assert torch.allclose(net.mean, layer.mean, rtol=1e-12) and net.mean.abs().max() > 0

def test_two_calls_before_the_backward_with_running_statistics():
    layer,x = BatchNorm(rand(3), rand(3)),rand(5, 3)
    net = as_torch(layer)
    (net(x).pow(2).sum() + net(2*x).pow(3).sum()).backward()
    want = [0, 0]
    for f,s in ((2, 1), (3, 2)):
        out = layer(s*x)
        out.g = f*out**(f - 1)
        for p in layer.params: p.g = None
        layer.backward()
        want = [w + p.g for w,p in zip(want, layer.params)]
    for p,w in zip(net.parameters(), want): check_grad(p.grad, w)
    for (_,a),b in zip(layer.named_buffers(), net.buffers(), strict=True): check_grad(b, a)

def test_a_backward_that_failed_leaves_nothing():
    fail = [True]
    class Fails(Module):
        def forward(self, x): return 2*x
        def bwd(self, out, x):
            add_grad(x, 2*out.g)
            if fail.pop(): raise MemoryError
    x = torch.ones(2, requires_grad=True)
    loss = as_torch(Fails())(x).sum()
    with pytest.raises(MemoryError): loss.backward(retain_graph=True)
    x.grad = None
    fail.append(False)
    loss.backward()
    assert x.grad.tolist() == [2, 2]

def test_a_backward_that_writes_into_the_upstream_gradient():
    class Writes(Module):
        def forward(self, x): return x.clamp(min=0)
        def bwd(self, out, x):
            out.g *= x > 0
            add_grad(x, out.g)
    a,c = torch.tensor([-1., 2.], requires_grad=True),torch.zeros(2, requires_grad=True)
    h = c.exp() # made first, so that its backward comes last
    ((as_torch(Writes())(a) + h)*torch.ones(2)).sum().backward()
    assert c.grad.tolist() == [1, 1] and a.grad.tolist() == [0, 1]

def test_a_second_derivative_through_the_upstream_gradient_is_refused():
    f = to_function(Rule(lambda x: x**2, lambda g, out, x: 2*g*x), 'Square').apply
    def first(t): return grad(lambda x: (t*f(x)).sum())(rand(3)).sum()
    with pytest.raises(RuntimeError, match='Square: create_graph=True asks for a second'): grad(first)(torch.tensor(2.))

def test_parts_keep_their_mode_until_it_is_set():
    layer,x = Residual(BatchNorm(rand(3), rand(3)).eval(), Dropout(.5)),rand(50, 3)
    net = as_torch(layer)
    for f in (layer, net): torch.manual_seed(0); f.last = f(x)
    same([net.last.detach()], [layer.last])
    assert (net.last == x).any() and not torch.equal(net.eval()(x), net.last)
    assert torch.equal(net(x), net(x)) and not torch.equal(net.train()(x), net(x))

class Times(Module):
    def forward(self, xs): return xs[0]*xs[1]
    def bwd(self, out, xs): add_grad(xs[0], out.g*xs[1]); add_grad(xs[1], out.g*xs[0])

def test_a_tensor_in_a_list_is_refused_where_it_needs_a_gradient():
    net,(a,b) = as_torch(Times()),(rand(3), rand(3, seed=1))
    assert torch.equal(net([a, b]), a*b)
    with pytest.raises(TypeError, match='inside a list or dictionary'): net([a.requires_grad_(), b])

def test_what_cannot_be_copied_is_refused():
    class Closure(Module):
        def __init__(self): self.w = rand(3); self.f = lambda x: x*self.w
        def forward(self, x): return self.f(x)
        def bwd(self, out, x): add_grad(x, out.g*self.w)
    class Views(Module):
        def __init__(self): self.w = rand(3, 6); self.q,self.k = self.w.chunk(2, 1); self.params = [self.w]
        def forward(self, x): return x@self.q + x@self.k
        def bwd(self, out, x): pass
    class Taken(Module):
        def __init__(self, name): setattr(self, name, rand(3))
        def forward(self, x): return x
        def bwd(self, out, x): pass
    with pytest.raises(TypeError, match='the function in f holds a tensor or a layer'): as_torch(Closure())
    with pytest.raises(ValueError, match='parameters share memory'): as_torch(Views())
    for name in ('half', 'modules', 'training', '_step'):
        with pytest.raises(TypeError, match=f"called '{name}', which a module of torch has"): as_torch(Taken(name))

def test_a_copy_of_layers_with_parameters_of_torch():
    net = copy.deepcopy(as_torch(Lin(torch.nn.Parameter(rand(3, 2)), torch.nn.Parameter(rand(2)))))
    assert len([*net.parameters()]) == 2 and net(rand(4, 3)).shape == (4, 2)

def test_operators_of_functions_that_cannot_be_one():
    def backward(g, out, *ts): return g
    for f in (lambda *ts: ts[0], lambda x, exact=True: x, lambda x, *, k=3: x):
        with pytest.raises(TypeError, match='expected tensors by name'): register_op(Rule(f, backward), 'bridges::bad')
    def affine(x, w=None, b=None): return x if w is None else x*w if b is None else x*w + b
    op = register_op(Rule(affine, lambda g, out, x, *ts: (g, *[g.sum(0)]*len(ts))), 'test_bridges::affine')
    with pytest.raises(ValueError, match='an argument is None, and one after it is not'): op(rand(4, 3), None, rand(3))
    assert op(rand(4, 3)).shape == (4, 3)

def test_models_inside_a_module_do_not_clear_each_other():
    add = Rule(lambda p, q: p + q, lambda g, out, p, q: (g, g))
    class Two(Module):
        def __init__(self, w): self.a,self.b = [Model.from_layers([Product(w)], CrossEntropy()) for _ in 'ab']
        def forward(self, x, y, z): return add.forward(self.a(x, y), self.b(x, z))
        def bwd(self, out, x, y, z):
            add.add_grads(out, self.a.out, self.b.out)
            self.a.backward(); self.b.backward()
    w,x,y,z = rand(4, 3),rand(5, 4),ids(5, n=3),(ids(5, n=3) + 1) % 3
    two,a,b = Two(w),x.clone().requires_grad_(),x.clone().requires_grad_()
    net = as_torch(two)
    net(a, y, z).backward()
    v = w.clone().requires_grad_()
    (torch.nn.functional.cross_entropy(b@v, y) + torch.nn.functional.cross_entropy(b@v, z)).backward()
    check_grad(a.grad, b.grad)
    check_grad([*net.parameters()][0].grad, v.grad)
    two(x, y, z); two.backward()
    check_grad(w.g, v.grad)
    check_grad(x.g, b.grad)

def test_the_backward_of_a_model_can_be_called_by_itself():
    model,(x,y) = mlp(4, 5, 3, dtype=torch.float64),(rand(6, 4), ids(6, n=3))
    model(x, y); model.backward()
    want = [p.g for p in model.params]
    for _ in range(2): model.bwd(model.out, x, y)
    for p,g in zip(model.params, want): check_grad(p.g, g)
