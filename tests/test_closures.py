"The library of room 08: its size, its gradients on any shape, its errors, and that it trains as the modules do."
import inspect, io, re, subprocess, sys, tokenize
from types import SimpleNamespace

import fb_pass.closures as closures
import numpy as np, pytest, torch, torch.nn.functional as F
from fb_pass.closures import Layer, Learner, Linear, Parameter, Relu, SGDOptimizer, Sequential, Sigmoid, mse_loss
from fb_pass.modules import Lin, Model, Mse, Relu as ReluModule
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

few = settings(max_examples=30, deadline=None, derandomize=True)
sizes = st.integers(1, 7)
seeds = st.integers(0, 2**32 - 1)
floats = st.floats(-1e300, 1e300, allow_nan=False)
same = {Relu: torch.relu, Sigmoid: torch.sigmoid}

def close(got, want, rtol=1e-10):
    "Same shape, same dtype, and no entry off by more than `rtol` of the largest."
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape and got.dtype == want.dtype
    assert np.abs(got - want).max() <= rtol*np.abs(want).max()

def linear(n_in, n_out, rng):
    "A layer whose biases are not zero."
    layer = Linear(n_in, n_out, rng)
    layer.b.tensor = rng.standard_normal(n_out)
    return layer

def in_torch(layer, x, tensors):
    "What `layer` computes, by torch, with the tensors in `tensors` for its parameters."
    if isinstance(layer, Sequential):
        for o in layer.layers: x = in_torch(o, x, tensors)
        return x
    if isinstance(layer, Linear): return x@tensors[layer.w] + tensors[layer.b]
    return same[type(layer)](x)

def compare(layer, X, u, rtol=1e-10):
    "Gradients of `X` and of every parameter against autograd's."
    for p in layer.parameters: p.clear()
    Y, backward = layer.forward(X)
    got = backward(u), *[p.gradient for p in layer.parameters]
    x = torch.tensor(X, requires_grad=True)
    tensors = {p: torch.tensor(p.tensor, requires_grad=True) for p in layer.parameters}
    out = in_torch(layer, x, tensors)
    close(Y, out.detach(), rtol)
    for g, h in zip(got, torch.autograd.grad(out, [x, *tensors.values()], torch.tensor(u)), strict=True): close(g, h, rtol)


# size

def code_lines(source):
    "Logical lines of code, as in the notebook: a signature is one, comments and docstrings are none."
    lines, nothing = [[]], (tokenize.COMMENT, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    for t in tokenize.generate_tokens(io.StringIO(source).readline):
        if t.type == tokenize.NEWLINE: lines.append([])
        elif t.type not in nothing: lines[-1].append(t.type)
    return sum(o not in ([], [tokenize.STRING]) for o in lines)

def test_the_library_is_about_a_hundred_lines():
    source = re.sub(r'(?m)^__all__ = \[[^]]*\]$', '', inspect.getsource(closures))
    assert 50 < code_lines(source) <= 120

def test_counting():
    assert code_lines('"doc"\nimport a\n\n# why\ndef f(\n    x, # one\n    y,\n):\n    "doc"\n    return x\n') == 3

def test_it_is_complete_without_torch():
    code = 'import sys, importlib.util as u; sys.modules["torch"] = None; import fb_pass.closures as c; print(len(c.__all__))'
    res = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert res.returncode == 0 and int(res.stdout) == 9, res.stderr


# gradients

@few
@given(n=sizes, widths=st.lists(sizes, min_size=2, max_size=5), acts=st.lists(st.sampled_from([Relu, Sigmoid]), min_size=4, max_size=4), seed=seeds)
def test_any_depth_and_width(n, widths, acts, seed):
    rng = np.random.default_rng(seed)
    layers = [o for a, b, act in zip(widths, widths[1:], acts) for o in (linear(a, b, rng), act())]
    compare(Sequential(*layers[:-1]), rng.standard_normal((n, widths[0])), rng.standard_normal((n, widths[-1])))

@few
@given(n=sizes, width=sizes, uses=st.integers(1, 4), seed=seeds)
def test_a_layer_that_is_used_many_times(n, width, uses, seed):
    rng = np.random.default_rng(seed)
    layer = linear(width, width, rng)
    net = Sequential(Sequential(layer, Sigmoid()), *[o for _ in range(uses) for o in (layer, Sigmoid())])
    assert net.parameters == (layer.w, layer.b)
    compare(net, rng.standard_normal((n, width)), rng.standard_normal((n, width)))

@few
@given(shape=array_shapes(min_dims=1, max_dims=4, max_side=4), act=st.sampled_from([Relu, Sigmoid]), dtype=st.sampled_from(['float32', 'float64']), seed=seeds)
def test_activations_of_any_shape(shape, act, dtype, seed):
    rng = np.random.default_rng(seed)
    compare(act(), rng.standard_normal(shape).astype(dtype), rng.standard_normal(shape).astype(dtype), rtol=1e-6 if dtype == 'float32' else 1e-12)

@few
@given(x=arrays('float64', array_shapes(max_dims=2), elements=floats))
def test_sigmoid_takes_anything(x):
    with np.errstate(all='raise', under='ignore'): (y, backward), (mirrored, _) = Sigmoid().forward(x), Sigmoid().forward(-x)
    assert ((0 <= y) & (y <= 1)).all() and (np.abs(y + mirrored - 1) < 1e-15).all()
    assert np.allclose(y, torch.sigmoid(torch.tensor(x)), rtol=1e-13, atol=0)
    assert np.isfinite(backward(np.ones_like(x))).all()

@few
@given(shape=array_shapes(max_dims=3, max_side=5), dtype=st.sampled_from(['float32', 'float64']), seed=seeds)
def test_loss_of_any_shape(shape, dtype, seed):
    rng = np.random.default_rng(seed)
    pred, targ = [rng.standard_normal(shape).astype(dtype) for _ in range(2)]
    loss, gradient = mse_loss(pred, targ)
    p = torch.tensor(pred, requires_grad=True)
    want = F.mse_loss(p, torch.tensor(targ))
    want.backward()
    rtol = 1e-5 if dtype == 'float32' else 1e-12
    assert type(loss) is float and loss == pytest.approx(want.item(), rel=rtol)
    close(gradient, p.grad, rtol)

@pytest.mark.parametrize('layer', [linear(3, 4, np.random.default_rng(0)), Relu(), Sigmoid(), Sequential(linear(3, 3, np.random.default_rng(1)), Relu())], ids=repr)
def test_nothing_is_written_to(layer):
    rng = np.random.default_rng(2)
    X = rng.standard_normal((5, 3))
    Y, backward = layer.forward(X)
    u = rng.standard_normal(Y.shape)
    arrays = X, Y, u, *[p.tensor for p in layer.parameters], *[p.gradient for p in layer.parameters]
    for a in arrays: a.setflags(write=False)
    backward(u)
    layer.update(SGDOptimizer())

def test_each_call_has_a_way_back_of_its_own():
    rng = np.random.default_rng(0)
    net = Sequential(linear(3, 4, rng), Relu(), linear(4, 2, rng))
    batches = [(rng.standard_normal((n, 3)), rng.standard_normal((n, 2))) for n in (4, 1, 6)]
    want = [net.forward(X)[1](u) for X, u in batches]
    total = [p.gradient for p in net.parameters]
    for p in net.parameters: p.clear()
    ways = [net.forward(X)[1] for X, _ in batches]
    for i in (1, 2, 0): close(ways[i](batches[i][1]), want[i], 1e-14)
    for p, g in zip(net.parameters, total): close(p.gradient, g, 1e-13)

def test_a_way_back_outlives_an_update():
    rng = np.random.default_rng(0)
    net = Sequential(linear(3, 4, rng), Sigmoid(), linear(4, 2, rng))
    X, u = rng.standard_normal((5, 3)), rng.standard_normal((5, 2))
    _, backward = net.forward(X)
    want = backward(u)
    net.update(SGDOptimizer(10.))
    close(backward(u), want, 0.)

def test_scalars_can_be_learned():
    class Scale(Layer):
        def __init__(self): self.s = self.build_param(np.array(2.))
        def forward(self, X):
            s = self.s.tensor
            def backward(Yg):
                self.s.add((X*Yg).sum())
                return Yg*s
            return X*s, backward
    X = np.random.default_rng(0).standard_normal((6, 1))
    learner = Learner(Scale(), mse_loss, SGDOptimizer(.2))
    learner.fit(X, 5*X, epochs=200, bs=2, progress=False)
    assert learner.model.s.tensor == pytest.approx(5.)


# errors

X = np.ones((4, 3))
def net(): return Sequential(Linear(3, 2, 0), Relu())
def learner(lr=.1): return Learner(net(), mse_loss, SGDOptimizer(lr))

refused = {
    'another width': (lambda: net().forward(X[:,:2]), ValueError, 'Linear(3->2): X has shape (4, 2), expected (n, 3)'),
    'no batch': (lambda: net().forward(X[0]), ValueError, 'X[None]'),
    'three dimensions': (lambda: net().forward(X[None]), ValueError, 'Linear(3->2): X has shape (1, 4, 3)'),
    'integers': (lambda: net().forward(X.astype(int)), TypeError, 'Linear(3->2): X has dtype int64, expected a floating-point dtype: X.astype(float)'),
    'integers in relu': (lambda: Relu().forward(X.astype(int)), TypeError, 'Relu(): X has dtype int64'),
    'booleans in sigmoid': (lambda: Sigmoid().forward(X > 0), TypeError, 'Sigmoid(): X has dtype bool'),
    'another dtype': (lambda: net().forward(X.astype('float32')), TypeError, "X has dtype float32, expected float64: X.astype('float64')"),
    'a tensor': (lambda: net().forward(torch.ones(4, 3)), TypeError, 'Linear(3->2): X is a Tensor, expected a numpy array: np.asarray(X)'),
    'a list': (lambda: Relu().forward([1., 2.]), TypeError, 'Relu(): X is a list'),
    'upstream of another shape': (lambda: net().forward(X)[1](np.ones((4, 1))), ValueError, 'Relu(): backward: Yg has shape (4, 1), expected (4, 2)'),
    'upstream that broadcasts': (lambda: Linear(3, 2).forward(X)[1](np.ones(2)), ValueError, 'Linear(3->2): backward: Yg has shape (2,), expected (4, 2)'),
    'upstream of the sigmoid': (lambda: Sigmoid().forward(X)[1](np.ones(3)), ValueError, 'Sigmoid(): backward: Yg has shape (3,), expected (4, 3)'),
    'upstream of another dtype': (lambda: net().forward(X)[1](np.ones((4, 2), 'float32')), TypeError, "Yg has dtype float32, expected float64"),
    'upstream is a number': (lambda: net().forward(X)[1](1.), TypeError, 'Yg is a float'),
    'a class': (lambda: Sequential(Linear(3, 2), Relu), TypeError, 'is not a Layer: it takes instances like Relu()'),
    'a layer without forward': (lambda: type('Idle', (Layer,), {})(), TypeError, 'forward'),
    'integer parameter': (lambda: Parameter(np.arange(3)), TypeError, 'Parameter: tensor has dtype int64'),
    'gradient of another shape': (lambda: Parameter(X).add(X[:1]), ValueError, 'Parameter.add: g has shape (1, 3), expected (4, 3)'),
    'gradient of another dtype': (lambda: Parameter(X).add(X.astype('float32')), TypeError, 'Parameter.add: g has dtype float32'),
    'targets (n,)': (lambda: mse_loss(X[:,:1], X[:,0]), ValueError, 'mse_loss: targ has shape (4,), expected (4, 1)'),
    'targets (n,1)': (lambda: mse_loss(X[:,0], X[:,:1]), ValueError, 'mse_loss: targ has shape (4, 1), expected (4,)'),
    'integer targets': (lambda: mse_loss(X, X.astype(int)), TypeError, 'mse_loss: targ has dtype int64'),
    'integer predictions': (lambda: mse_loss(X.astype(int), X), TypeError, 'mse_loss: pred has dtype int64'),
    'targets of another dtype': (lambda: mse_loss(X, X.astype('float32')), TypeError, 'mse_loss: targ has dtype float32, expected float64'),
    'an empty batch': (lambda: mse_loss(X[:0], X[:0]), ValueError, 'the batch is empty'),
    'a negative step': (lambda: SGDOptimizer(-.1), ValueError, 'lr is -0.1'),
    'no step': (lambda: SGDOptimizer(0), ValueError, 'lr is 0'),
    'a step that is no number': (lambda: SGDOptimizer(float('nan')), ValueError, 'lr is nan'),
    'nothing to learn': (lambda: Learner(Sequential(), mse_loss, SGDOptimizer()), ValueError, 'Sequential() has no parameters'),
    'fewer targets': (lambda: learner().fit(X, X[:3,:2], 1, 2), ValueError, '4 inputs, 3 targets'),
    'no examples': (lambda: learner().fit(X[:0], X[:0,:2], 1, 2), ValueError, '0 inputs'),
    'no batch size': (lambda: learner().fit(X, X[:,:2], 1, 0), ValueError, 'bs=0'),
    'a negative batch size': (lambda: learner().fit(X, X[:,:2], 1, -2), ValueError, 'bs=-2'),
}

@pytest.mark.parametrize('f, kind, words', refused.values(), ids=refused)
def test_refused(f, kind, words):
    with pytest.raises(kind) as e: f()
    assert words in str(e.value)

@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_a_loss_that_is_not_finite_changes_nothing(bad):
    l = learner()
    before = [p.tensor for p in l.model.parameters]
    x = X.copy(); x[1,1] = bad
    with np.errstate(invalid='ignore'), pytest.raises(FloatingPointError, match='the loss is'): l.fit_batch(x, X[:,:2])
    for p, t in zip(l.model.parameters, before):
        assert p.tensor is t and not p.gradient.any()

def test_steps_that_explode_are_noticed():
    l = Learner(Sequential(Linear(3, 2, 0)), mse_loss, SGDOptimizer(1e6))
    with np.errstate(all='ignore'), pytest.raises(FloatingPointError, match='lower lr'): l.fit(X, X[:,:2], 200, 4, progress=False)
    assert all(np.isfinite(p.tensor).all() for p in l.model.parameters)


# training

def test_an_optimizer_sees_every_parameter_once():
    seen = []
    layer = Linear(2, 2, 0)
    Sequential(layer, Sequential(layer, Relu()), layer).update(SimpleNamespace(update=seen.append))
    assert seen == [layer.w, layer.b]

@few
@given(n=st.integers(1, 12), bs=st.integers(1, 15), epochs=st.integers(0, 3), seed=seeds)
def test_every_example_once_an_epoch(n, bs, epochs, seed):
    "The losses are means over the examples, also where the last batch is smaller."
    seen = []
    model, x = Linear(1, 1, seed), np.arange(float(n))[:,None]
    def loss(pred, targ):
        seen.append(targ[:,0])
        return float(targ.mean()), np.zeros_like(pred)
    losses = Learner(model, loss, SGDOptimizer()).fit(x, x, epochs, bs, rng=seed, progress=False)
    per = -(-n//bs)
    assert [len(o) for o in seen] == ([bs]*(n//bs) + [n % bs]*(n % bs > 0))*epochs
    for e in range(epochs): assert sorted(np.concatenate(seen[e*per:(e+1)*per])) == list(range(n))
    assert losses == pytest.approx([(n-1)/2]*epochs)

def run(weights=1, order=2, dtype='float64'):
    rng = np.random.default_rng(weights)
    data = np.random.default_rng(0)
    X, Y = data.standard_normal((50, 6)).astype(dtype), data.standard_normal((50, 2)).astype(dtype)
    l = Learner(Sequential(Linear(6, 8, rng, dtype), Relu(), Linear(8, 2, rng, dtype)), mse_loss, SGDOptimizer(.1))
    losses = l.fit(X, Y, epochs=4, bs=16, rng=order, progress=False)
    return losses, [p.tensor for p in l.model.parameters]

@pytest.mark.parametrize('dtype', ['float32', 'float64'])
def test_seeded_runs_repeat(dtype):
    (losses, params), (again, params_) = run(dtype=dtype), run(dtype=dtype)
    assert losses == again and losses[-1] < losses[0]
    for p, q in zip(params, params_): assert p.dtype == dtype and (p == q).all()
    assert run(order=3, dtype=dtype)[0] != losses != run(weights=3, dtype=dtype)[0]

def test_the_bar_is_not_on_stderr(capfd):
    learner().fit(X, X[:,:2], 2, 3)
    out, err = capfd.readouterr()
    assert 'epoch 2 of 2' in out and not err
    learner().fit(X, X[:,:2], 2, 3, progress=False)
    assert capfd.readouterr() == ('', '')

@pytest.mark.parametrize('tied', [False, True])
def test_as_the_modules_after_100_steps(tied):
    rng, lr = np.random.default_rng(42), .05
    first, middle, last = linear(6, 6, rng), linear(6, 6, rng), linear(6, 1, rng)
    if tied:
        middle.w = first.w
        middle.parameters = middle.w, middle.b
    net = Sequential(first, Relu(), middle, Relu(), last)
    tensors = {p: torch.tensor(p.tensor) for p in net.parameters}
    model = Model.from_layers([Lin(tensors[first.w], tensors[first.b]), ReluModule(), Lin(tensors[middle.w], tensors[middle.b]), ReluModule(),
                               Lin(tensors[last.w], tensors[last.b])], Mse())
    assert len(model.params) == len(net.parameters) == (5 if tied else 6)
    start = [p.tensor for p in net.parameters]
    l = Learner(net, mse_loss, SGDOptimizer(lr))
    for _ in range(100):
        x, t = rng.standard_normal((16, 6)), rng.standard_normal(16)
        loss = model(torch.tensor(x), torch.tensor(t)); model.backward()
        for p in model.params: p -= lr*p.g
        assert l.fit_batch(x, t[:,None]) == pytest.approx(loss.item(), rel=1e-10)
    for p, s in zip(net.parameters, start):
        close(p.tensor, tensors[p])
        assert np.abs(p.tensor - s).max() > .01 # it has moved
