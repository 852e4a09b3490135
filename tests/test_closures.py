"The library of room 08: its size, its gradients on any shape, its errors, and that it trains as the modules do."
import inspect, subprocess, sys
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
dtypes = st.sampled_from(['float32', 'float64'])
acts = st.sampled_from([Relu, Sigmoid])
same = {Relu: torch.relu, Sigmoid: torch.sigmoid}

def close(got, want, rtol=1e-10):
    "Same shape, same dtype, and no entry off by more than `rtol` of the largest."
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape and got.dtype == want.dtype
    assert np.abs(got - want).max() <= rtol*np.abs(want).max()

def linear(n_in, n_out, rng):
    "A layer whose biases are not zero."
    layer = Linear(n_in, n_out, rng)
    layer.bias.tensor = rng.standard_normal(n_out)
    return layer

def in_torch(layer, x, tensors):
    "What `layer` computes, by torch, with the tensors in `tensors` for its parameters."
    if isinstance(layer, Sequential):
        for o in layer.layers: x = in_torch(o, x, tensors)
        return x
    if isinstance(layer, Linear): return x@tensors[layer.weights] + tensors[layer.bias]
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
    want = torch.autograd.grad(out, [x, *tensors.values()], torch.tensor(u))
    for g, h in zip(got, want, strict=True): close(g, h, rtol)


# size

def code_lines(source):
    "Lines that are neither blank nor a comment nor a docstring, as in the notebook."
    return sum(o.strip()[:1] not in ('', '#', '"') for o in source.splitlines())

def test_the_library_is_about_a_hundred_lines():
    assert 50 < code_lines(inspect.getsource(closures)) <= 120

def test_counting():
    assert code_lines('"doc"\nimport a\n\n# why\ndef f(\n    x, # one\n):\n    "doc"\n    return x\n') == 5

def test_it_is_complete_without_torch():
    code = 'import sys; sys.modules["torch"] = None; import fb_pass.closures as c; print(len(c.__all__))'
    res = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert res.returncode == 0 and int(res.stdout) == 9, res.stderr


# gradients

@few
@given(n=sizes, widths=st.lists(sizes, min_size=2, max_size=5), acts=st.tuples(*[acts]*4), seed=seeds)
def test_any_depth_and_width(n, widths, acts, seed):
    rng = np.random.default_rng(seed)
    layers = [o for a, b, act in zip(widths, widths[1:], acts) for o in (linear(a, b, rng), act())]
    net = Sequential(*layers[:-1])
    compare(net, rng.standard_normal((n, widths[0])), rng.standard_normal((n, widths[-1])))

@few
@given(n=sizes, width=sizes, uses=st.integers(1, 4), seed=seeds)
def test_a_layer_that_is_used_many_times(n, width, uses, seed):
    rng = np.random.default_rng(seed)
    layer = linear(width, width, rng)
    net = Sequential(Sequential(layer, Sigmoid()), *[o for _ in range(uses) for o in (layer, Sigmoid())])
    assert net.parameters == [layer.weights, layer.bias]
    compare(net, rng.standard_normal((n, width)), rng.standard_normal((n, width)))

@few
@given(shape=array_shapes(min_dims=1, max_dims=4, max_side=4), act=acts, dtype=dtypes, seed=seeds)
def test_activations_of_any_shape(shape, act, dtype, seed):
    rng = np.random.default_rng(seed)
    X, u = [rng.standard_normal(shape).astype(dtype) for _ in range(2)]
    compare(act(), X, u, rtol=1e-6 if dtype == 'float32' else 1e-12)

@few
@given(x=arrays('float64', array_shapes(max_dims=2), elements=floats))
def test_sigmoid_takes_anything(x):
    with np.errstate(all='raise', under='ignore'):
        (y, backward), (mirrored, _) = Sigmoid().forward(x), Sigmoid().forward(-x)
    assert ((0 <= y) & (y <= 1)).all() and (np.abs(y + mirrored - 1) < 1e-15).all()
    assert np.allclose(y, torch.sigmoid(torch.tensor(x)), rtol=1e-13, atol=0)
    assert np.isfinite(backward(np.ones_like(x))).all()

@few
@given(shape=array_shapes(max_dims=3, max_side=5), dtype=dtypes, seed=seeds)
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

def small_layers():
    rng = np.random.default_rng(0)
    return Layer(), linear(3, 4, rng), Relu(), Sigmoid(), Sequential(linear(3, 3, rng), Relu())

@pytest.mark.parametrize('layer', small_layers(), ids=repr)
def test_nothing_is_written_to(layer):
    rng = np.random.default_rng(2)
    X = rng.standard_normal((5, 3))
    Y, backward = layer.forward(X)
    u = rng.standard_normal(Y.shape)
    arrays = X, Y, u, *[p.tensor for p in layer.parameters], *[p.gradient for p in layer.parameters]
    for a in arrays: a.setflags(write=False)
    backward(u)
    layer.update(SGDOptimizer())

def test_a_plain_layer_is_the_identity():
    Y, backward = Layer().forward(X)
    assert Y is X and backward(Y) is Y and Layer().parameters == []
    compare(Sequential(), X, 2*X)

def test_no_two_layers_share_their_list_of_parameters():
    class Plain(Layer): # calls no __init__ of Layer
        def __init__(self, value): self.value = value
    first, second = Plain(1.), Plain(2.)
    first.parameters.append(Parameter(X))
    assert first.value == 1. and second.parameters == [] == Relu().parameters
    outer = Layer()
    outer.parameters = first.parameters
    added = outer.build_param(X)
    assert outer.parameters[1] is added and len(first.parameters) == 1

def test_each_call_has_a_backward_of_its_own():
    rng = np.random.default_rng(0)
    net = Sequential(linear(3, 4, rng), Relu(), linear(4, 2, rng))
    batches = [(rng.standard_normal((n, 3)), rng.standard_normal((n, 2))) for n in (4, 1, 6)]
    want = [net.forward(X)[1](u) for X, u in batches]
    total = [p.gradient for p in net.parameters]
    for p in net.parameters: p.clear()
    backwards = [net.forward(X)[1] for X, _ in batches]
    for i in (1, 2, 0): close(backwards[i](batches[i][1]), want[i], 1e-14)
    for p, g in zip(net.parameters, total): close(p.gradient, g, 1e-13)

def test_a_backward_outlives_an_update():
    rng = np.random.default_rng(0)
    net = Sequential(linear(3, 4, rng), Sigmoid(), linear(4, 2, rng))
    X, u = rng.standard_normal((5, 3)), rng.standard_normal((5, 2))
    _, backward = net.forward(X)
    want = backward(u)
    net.update(SGDOptimizer(10.))
    close(backward(u), want, 1e-14)

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

def upstream(layer, Yg): return lambda: layer.forward(X)[1](Yg)

float32, ints = X.astype('float32'), X.astype(int)
refused = {
    'another width': (lambda: net().forward(X[:,:2]), ValueError, 'Linear(3->2): X has shape (4, 2), expected (n, 3)'),
    'no batch': (lambda: net().forward(X[0]), ValueError, 'Linear(3->2): X has shape (3,), expected (n, 3)'),
    'three dimensions': (lambda: net().forward(X[None]), ValueError, 'Linear(3->2): X has shape (1, 4, 3)'),
    'integers': (lambda: net().forward(ints), TypeError, "Linear(3->2): X is of type int64"),
    'integers in relu': (lambda: Relu().forward(ints), TypeError, "Relu(): X is of type int64"),
    'what to do': (lambda: Relu().forward(ints), TypeError, "np.asarray(X, 'float')"),
    'what to do about a dtype': (lambda: net().forward(float32), TypeError, "np.asarray(X, 'float64')"),
    'booleans in sigmoid': (lambda: Sigmoid().forward(X > 0), TypeError, 'Sigmoid(): X is of type bool'),
    'another dtype': (lambda: net().forward(float32), TypeError, 'Linear(3->2): X is of type float32'),
    'a tensor': (lambda: net().forward(torch.ones(4, 3)), TypeError, 'Linear(3->2): X is of type torch.float32'),
    'a list': (lambda: Relu().forward([1., 2.]), TypeError, 'Relu(): X is of type list'),
    'upstream of another shape': (upstream(Relu(), X[:,:1]), ValueError, 'Yg has shape (4, 1), expected (4, 3)'),
    'upstream that broadcasts': (upstream(Linear(3, 2), np.ones(2)), ValueError, 'Yg has shape (2,), expected (4, 2)'),
    'upstream of the sigmoid': (upstream(Sigmoid(), X[0]), ValueError, 'Sigmoid(): Yg has shape (3,), expected (4, 3)'),
    'upstream of another dtype': (upstream(Relu(), float32), TypeError, "np.asarray(Yg, 'float64')"),
    'upstream of a linear layer': (upstream(Linear(3, 3), float32), TypeError, 'Linear(3->3): Yg is of type float32'),
    'upstream is a number': (upstream(net(), 1.), TypeError, 'Yg is of type float'),
    'a class': (lambda: Sequential(Linear(3, 2), Relu), TypeError, 'is not a Layer: pass an instance, like Relu()'),
    'integer parameter': (lambda: Parameter(np.arange(3)), TypeError, 'Parameter: tensor is of type int64'),
    'gradient of another shape': (lambda: Parameter(X).add(X[:1]), ValueError, 'g has shape (1, 3), expected (4, 3)'),
    'gradient of another dtype': (lambda: Parameter(X).add(float32), TypeError, 'Parameter.add: g is of type float32'),
    'targets (n,)': (lambda: mse_loss(X[:,:1], X[:,0]), ValueError, 'mse_loss: targ has shape (4,), expected (4, 1)'),
    'targets (n,1)': (lambda: mse_loss(X[:,0], X[:,:1]), ValueError, 'mse_loss: targ has shape (4, 1), expected (4,)'),
    'integer targets': (lambda: mse_loss(X, ints), TypeError, 'mse_loss: targ is of type int64'),
    'integer predictions': (lambda: mse_loss(ints, X), TypeError, 'mse_loss: pred is of type int64'),
    'targets of another dtype': (lambda: mse_loss(X, float32), TypeError, "mse_loss: targ is of type float32"),
    'an empty batch': (lambda: mse_loss(X[:0], X[:0]), ValueError, 'the batch is empty'),
    'no inputs': (lambda: Linear(0, 2), ValueError, 'inputs=0'),
    'no outputs': (lambda: Linear(2, 0), ValueError, 'outputs=0'),
    'a negative step': (lambda: SGDOptimizer(-.1), ValueError, 'lr is -0.1'),
    'no step': (lambda: SGDOptimizer(0), ValueError, 'lr is 0'),
    'a step that is no number': (lambda: SGDOptimizer(float('nan')), ValueError, 'lr is nan'),
    'nothing to learn': (lambda: Learner(Sequential(), mse_loss, SGDOptimizer()), ValueError, '() has no parameters'),
    'fewer targets': (lambda: learner().fit(X, X[:3,:2], 1, 2), ValueError, 'X (4, 3), Y (3, 2)'),
    'no examples': (lambda: learner().fit(X[:0], X[:0,:2], 1, 2), ValueError, 'X (0, 3)'),
    'no batch size': (lambda: learner().fit(X, X[:,:2], 1, 0), ValueError, 'bs=0'),
    'a negative batch size': (lambda: learner().fit(X, X[:,:2], 1, -2), ValueError, 'bs=-2'),
    'a negative number of epochs': (lambda: learner().fit(X, X[:,:2], -3, 2), ValueError, 'epochs=-3'),
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
    with np.errstate(invalid='ignore'), pytest.raises(FloatingPointError, match='the loss is'):
        l.fit_batch(x, X[:,:2])
    for p, t in zip(l.model.parameters, before):
        assert p.tensor is t and not p.gradient.any()

def test_steps_that_explode_are_noticed():
    l = Learner(Sequential(Linear(3, 2, 0)), mse_loss, SGDOptimizer(1e6))
    with np.errstate(all='ignore'), pytest.raises(FloatingPointError, match='lower lr'):
        l.fit(X, X[:,:2], 200, 4, progress=False)
    assert all(np.isfinite(p.tensor).all() for p in l.model.parameters)


# training

def test_an_optimizer_sees_every_parameter_once():
    seen = []
    layer = Linear(2, 2, 0)
    Sequential(layer, Sequential(layer, Relu()), layer).update(SimpleNamespace(update=seen.append))
    assert seen == [layer.weights, layer.bias]

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
        middle.weights = first.weights
        middle.parameters = [middle.weights, middle.bias]
    net = Sequential(first, Relu(), middle, Relu(), last)
    tensors = {p: torch.tensor(p.tensor) for p in net.parameters}
    a, b, c = [Lin(tensors[o.weights], tensors[o.bias]) for o in (first, middle, last)]
    model = Model.from_layers([a, ReluModule(), b, ReluModule(), c], Mse())
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

def test_relu_passes_nothing_at_exactly_zero():
    _,backward = Relu().forward(np.array([-1., 0., 2.]))
    assert backward(np.array([10., 20., 30.])).tolist() == [0., 0., 30.]


# What the caller changes between forward and backward, and what is no plain array

@pytest.mark.parametrize('change', [lambda X, w: X.fill(0), lambda X, w: w.__imul__(3), lambda X, w: X[1:].sort(0)],
                         ids=['the batch', 'a weight', 'a view'])
@pytest.mark.parametrize('dtype', [np.float64, np.float32, np.float16])
def test_a_change_in_place_is_noticed(change, dtype):
    layer,X = Linear(3, 2, rng=0, dtype=dtype),np.arange(12.).reshape(4, 3)[::-1].astype(dtype)
    _,backward = layer.forward(X)
    change(X, layer.weights.tensor)
    with pytest.raises(RuntimeError, match=r'Linear\(3->2\): X or weights changed in place'):
        backward(np.ones((4, 2), dtype))
    assert not layer.weights.gradient.any()

def test_an_output_may_be_written_to():
    layer,Yg = Sigmoid(),np.ones((4, 3))
    Y,backward = layer.forward(X)
    want = backward(Yg)
    Y.fill(0)
    np.testing.assert_allclose(backward(Yg), want, rtol=1e-12)

def test_not_a_number_is_no_change():
    layer = Linear(3, 2, rng=0)
    Y,backward = layer.forward(np.full((4, 3), np.nan)[:,::-1])
    assert np.isnan(backward(np.ones((4, 2)))).sum() == 0 and np.isnan(layer.weights.gradient).all()

@pytest.mark.parametrize('wrap', [np.matrix, np.ma.masked_array])
def test_arrays_with_rules_of_their_own_are_refused(wrap):
    a = np.ones((3, 3))
    for f in (Relu().forward, Sigmoid().forward, Linear(3, 3).forward, Parameter, lambda o: mse_loss(o, a),
              lambda o: mse_loss(a, o), Relu().forward(a)[1]):
        with pytest.raises(TypeError, match=rf'{wrap(a).__class__.__name__}\), expected np.asarray'): f(wrap(a))

def test_an_interrupted_step_does_not_double_the_next():
    class Stops(Relu):
        stop = False
        def forward(self, X):
            Y,back = super().forward(X)
            def backward(Yg):
                if self.stop: raise KeyboardInterrupt
                return back(Yg)
            return Y, backward
    def after(interrupted):
        first = Stops()
        learn = Learner(Sequential(first, Linear(3, 2, rng=0)), mse_loss, SGDOptimizer(.1))
        X,Y = np.ones((4, 3)),np.zeros((4, 2))
        if interrupted:
            first.stop = True
            with pytest.raises(KeyboardInterrupt): learn.fit_batch(X, Y)
            first.stop = False
        learn.fit_batch(X, Y)
        return learn.model.parameters[0].tensor
    np.testing.assert_allclose(after(True), after(False), rtol=1e-12)

@pytest.mark.parametrize('f, words', [
    (lambda: SGDOptimizer('0.1'), "lr is '0.1'"), (lambda: SGDOptimizer(None), 'lr is None'),
    (lambda: Linear('3', 2), "inputs='3'"), (lambda: Linear(3, 2.), 'outputs=2.0'),
    (lambda: Learner(None, mse_loss, SGDOptimizer()), 'None has no parameters'),
    (lambda: Learner(Linear(3, 2), None, None), 'loss=None, optimizer=None'),
    (lambda: learner().fit([[1., 2., 3.]], X[:1,:2], 1, 1), 'X ()'),
    (lambda: learner().fit(X, X[:,:2], None, 1), 'epochs=None'),
])
def test_what_is_no_number_and_no_layer(f, words):
    with pytest.raises((TypeError, ValueError)) as e: f()
    assert words in str(e.value)

def kept(param):
    class Knows(Layer):
        def __init__(self): self.k = Parameter(param.tensor); self.sub = Layer(); self.sub.parent = self
    inner = Layer(); inner.k = param
    return {'an attribute': param, 'a layer': inner, 'a list': [1, param], 'a tuple of layers': (Relu(), inner),
            'a dictionary': dict(a=inner, b=param), 'twice': [param, inner], 'a layer that knows its parent': Knows()}

@pytest.mark.parametrize('kind', kept(Parameter(X)))
def test_a_parameter_in_an_attribute_is_learned(kind):
    class Scale(Layer):
        def __init__(self): self.held = kept(Parameter(np.ones(1)))[kind]
        def forward(self, X):
            p, = self.parameters
            def backward(Yg):
                p.add((X*Yg).sum(keepdims=True)[0])
                return Yg*p.tensor
            return X*p.tensor, backward
    X = np.random.default_rng(0).standard_normal((6, 1))
    learner = Learner(Sequential(Scale()), mse_loss, SGDOptimizer(.2))
    learner.fit(X, 5*X, epochs=200, bs=2, progress=False)
    assert learner.model.parameters[0].tensor == pytest.approx(5.)

def test_who_sets_the_parameters_says_what_is_learned():
    layer = Linear(3, 2, 0)
    layer.parameters = [layer.weights]
    Learner(layer, mse_loss, SGDOptimizer()).fit_batch(X, X[:,:2])
    assert not layer.bias.tensor.any() and layer.bias.gradient.any() and not layer.weights.gradient.any()
    assert not hasattr(layer, 'velocity')
