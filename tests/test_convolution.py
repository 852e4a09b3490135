"Convolution, pooling and reshaping: against torch's layers in float64, everywhere where `Lin` works, and with faults."
import copy, importlib.util, json

import pytest
import torch, torch.nn.functional as F
from fb_pass.bridges import to_function
from fb_pass.checks import autograd_grad
from fb_pass.compiled import compile_step
from fb_pass.convolution import (AvgPool2d, Conv2d, Flatten, MaxPool2d, Unflatten, avg_pool2d_rule, cnn, conv2d_rule,
                                 max_pool2d_rule)
from fb_pass.doctor import check_layer
from fb_pass.gradients import Rule, check_rule
from fb_pass.library import as_torch, from_torch, load_weights, named_weights, save_weights, to_torch
from fb_pass.modules import Lin, Model, Mse, Relu
from fb_pass.training import SGD, AdamW, CrossEntropy, evaluate, fit, train_step
from fb_pass.viewer import show_backward
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import Row
from torch import nn

few = settings(max_examples=40, deadline=None, derandomize=True)

def gen(seed=0): return torch.Generator().manual_seed(seed)
def rand(*shape, seed=0): return torch.randn(*shape, generator=gen(seed), dtype=torch.float64)

def near(got, want, name='', eps=1e-10):
    assert got.shape == want.shape and got.dtype == want.dtype, name
    assert (got - want).abs().max() <= eps*want.abs().max(), name

def compare(layer, f, x, seed=5):
    "Output and gradients of `layer` and of `f(x, *params)` of torch; twice, so that nothing is left over."
    out = layer(x)
    want_out = f(x, *layer.params)
    near(out, want_out, 'out')
    g = rand(*out.shape, seed=seed)
    wants = autograd_grad(lambda x, *ps: (f(x, *ps)*g).sum(), x, *layer.params)
    for _ in range(2):
        layer.zero_grad()
        out.g = g
        layer.backward()
        for i,(t,want) in enumerate(zip((x, *layer.params), wants if layer.params else [wants], strict=True)):
            near(t.g, want, f'gradient {i}')

def strided(t, how):
    if how == 'transposed': return t.mT.contiguous().mT
    if how == 'channels last': return t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t
    if how == 'sliced':
        big = t.new_full([2*s for s in t.shape], 7.)
        part = big[tuple(slice(None, None, 2) for _ in t.shape)]
        return part.copy_(t)
    if how == 'expanded': return t[:1].expand(t.shape)
    return t
layouts = st.sampled_from(['plain', 'transposed', 'channels last', 'sliced', 'expanded'])

small, one_or_two = st.integers(1, 3), st.tuples(st.integers(1, 3), st.integers(1, 3))

@few
@given(st.integers(0, 9), small, small, small, one_or_two, one_or_two, st.tuples(st.integers(0, 2), st.integers(0, 2)),
       one_or_two, st.tuples(st.integers(0, 4), st.integers(0, 4)), st.booleans(), layouts)
def test_convolution(seed, n, c_in, c_out, size, stride, padding, dilation, more, bias, how):
    h,w = (max(1, d*(k - 1) + 1 - 2*p) + m for k,d,p,m in zip(size, dilation, padding, more))
    x = strided(rand(n, c_in, h, w, seed=seed), how)
    ws = strided(rand(c_out, c_in, *size, seed=seed + 1), 'plain' if how == 'expanded' else how)
    b = rand(c_out, seed=seed + 2)
    layer = Conv2d(ws, b if bias else None, stride, padding, dilation)
    compare(layer, lambda x, w, b=None: F.conv2d(x, w, b, stride, padding, dilation), x)

@few
@given(st.integers(0, 9), small, small, one_or_two, st.none() | one_or_two, st.tuples(small, small), layouts,
       st.booleans())
def test_pooling(seed, n, c, size, stride, more, how, ties):
    x = rand(n, c, *(k + m for k,m in zip(size, more)), seed=seed)
    x = strided((x*1.5).round() if ties else x, how)
    compare(MaxPool2d(size, stride), lambda x: F.max_pool2d(x, size, stride), x)
    compare(AvgPool2d(size, stride), lambda x: F.avg_pool2d(x, size, stride), x)

@pytest.mark.parametrize('shape', [(2, 3, 4), (1, 2, 2, 5), (3, 7), (1, 1)])
def test_reshaping(shape):
    for how in ('plain', 'transposed', 'expanded'):
        x = strided(rand(*shape), how)
        compare(Flatten(), lambda x: x.flatten(1), x)
        compare(Unflatten(*shape[1:]), lambda x: x.reshape(shape), x.reshape(len(x), -1))

def test_rules_against_differences():
    for s,p,d in (((1, 1), (0, 0), (1, 1)), ((2, 1), (1, 2), (1, 1)), ((2, 3), (1, 0), (2, 1))):
        check_rule(conv2d_rule(s, p, d), rand(2, 3, 7, 8), rand(4, 3, 2, 3, seed=1), rand(4, seed=2))
        check_rule(conv2d_rule(s, p, d), rand(1, 1, 7, 8), rand(2, 1, 2, 3, seed=1))
    for make in (max_pool2d_rule, avg_pool2d_rule):
        for size,stride in (((2, 2), (2, 2)), ((3, 2), (1, 2))): check_rule(make(size, stride), rand(2, 2, 5, 6))
    check_rule(Flatten.rule, rand(2, 3, 2)); check_rule(Unflatten(3, 2).rule, rand(2, 6))

def test_who_takes_the_gradient_of_a_tie():
    x = torch.tensor([[1., 5., 5.], [5., 2., 0.], [5., 5., 5.]])[None,None]
    layer = MaxPool2d(2, 1)
    layer(x).g = torch.tensor([[1., 10.], [100., 1000.]])[None,None]
    layer.backward()
    assert x.g[0,0].tolist() == [[0., 11., 0.], [100., 0., 0.], [0., 1000., 0.]]

def test_no_image_and_two_dtypes():
    layers = Conv2d(torch.ones(2, 3, 2, 2), torch.zeros(2)),MaxPool2d(2),AvgPool2d(2),Flatten()
    for layer in layers:
        x = torch.zeros(0, 3, 4, 4)
        layer(x).g = torch.zeros_like(layer(x))
        out = layer(x); out.g = torch.zeros_like(out); layer.backward()
        assert x.g.shape == x.shape
    for dtype in (torch.float16, torch.bfloat16):
        layer = Conv2d(rand(2, 3, 2, 2).to(dtype), rand(2).to(dtype), padding=1)
        for l in (layer, MaxPool2d(2), AvgPool2d(2)):
            x = rand(2, 3, 4, 4).to(dtype)
            out = l(x); out.g = torch.ones_like(out); l.backward()
            assert x.g.dtype == out.dtype == dtype

def test_gradients_share_no_memory():
    for layer in (Flatten(), Unflatten(2, 2)):
        x = rand(3, 4)
        out = layer(x); out.g = rand(*out.shape, seed=1)
        kept = out.g.clone()
        layer.backward()
        before = x.clone()
        x.g = x.g.clone(); x.g.mul_(0)
        assert torch.equal(out.g, kept) and torch.equal(x, before)

# Settings and errors

def test_settings_of_a_layer():
    layer = Conv2d(torch.ones(4, 3, 2, 5), stride=2, padding=(1, 0), dilation=[1, 2])
    assert (layer.stride, layer.padding, layer.dilation) == ((2, 2), (1, 0), (1, 2))
    assert repr(layer) == 'Conv2d(3->4, 2x5, stride=(2, 2), padding=(1, 0), dilation=(1, 2))'
    assert repr(Conv2d(torch.ones(4, 3, 2, 5))) == 'Conv2d(3->4, 2x5)'
    assert layer.params == (layer.w,) and layer.uses == ('w',)
    assert Conv2d(torch.ones(1, 1, 1, 1), torch.ones(1)).uses == ('w', 'b')
    assert MaxPool2d(2).stride == (2, 2) and AvgPool2d((3, 2), 1).stride == (1, 1) and MaxPool2d((3, 2)).size == (3, 2)
    assert repr(MaxPool2d(2)) == 'MaxPool2d((2, 2))' and repr(AvgPool2d(2, 1)) == 'AvgPool2d((2, 2), stride=(1, 1))'
    assert repr(Unflatten(1, 28, 28)) == 'Unflatten(1, 28, 28)'

w43 = torch.ones(4, 3, 2, 2)
def image(*shape): return torch.ones(*shape)
@pytest.mark.parametrize('make, error, words', [
    (lambda: Conv2d(image(4, 3, 2)), ValueError, 'Conv2d: w .4, 3, 2. .*expected w .c_out, c_in, kh, kw.'),
    (lambda: Conv2d(w43, image(3)), ValueError, 'Conv2d: .*b has shape .3,., expected .4,.'),
    (lambda: Conv2d(image(0, 3, 2, 2)), ValueError, 'w .0, 3, 2, 2. is empty'),
    (lambda: Conv2d([1.]), TypeError, 'Conv2d: w is a list'), (lambda: Conv2d(w43.long()), TypeError, 'floating-point'),
    (lambda: Conv2d(w43, image(4).double()), TypeError, 'dtypes differ'),
    (lambda: Conv2d(w43, stride=0), ValueError, 'Conv2d: stride is 0, expected at least 1'),
    (lambda: Conv2d(w43, stride=(1, 2, 3)), TypeError, 'stride is .1, 2, 3., expected a whole number, or a pair'),
    (lambda: Conv2d(w43, padding=-1), ValueError, 'padding is -1, expected at least 0'),
    (lambda: Conv2d(w43, padding='same'), TypeError, "padding is 'same'"),
    (lambda: Conv2d(w43, dilation=(1, 0)), ValueError, 'dilation is .1, 0., expected at least 1'),
    (lambda: Conv2d(w43, stride=True), TypeError, 'stride is True'),
    (lambda: Conv2d(w43, stride=(1, False)), TypeError, 'stride is .1, False.'),
    (lambda: Conv2d(w43, stride=1.5), TypeError, 'stride is 1.5'),
    (lambda: Conv2d(w43)(image(1, 2, 4, 4)), ValueError, 'conv2d: x .1, 2, 4, 4.* do not fit'),
    (lambda: Conv2d(w43)(image(3, 4, 4)), ValueError, 'conv2d: x .3, 4, 4.* expected x .n, c_in, h, w.'),
    (lambda: Conv2d(w43)(image(1, 3, 1, 4)), ValueError, 'conv2d: x .1, 3, 1, 4. has no place for a window'),
    (lambda: Conv2d(w43, dilation=3)(image(1, 3, 4, 3)), ValueError, r'spans \(4, 4\), with padding \(0, 0\)'),
    (lambda: Conv2d(w43)(image(1, 3, 4, 4).double()), TypeError, 'dtypes differ'),
    (lambda: MaxPool2d(0), ValueError, 'MaxPool2d: size is 0'), (lambda: AvgPool2d(2, 0), ValueError, 'stride is 0'),
    (lambda: AvgPool2d('a'), TypeError, "AvgPool2d: size is 'a'"), (lambda: MaxPool2d(None), TypeError, 'size is None'),
    (lambda: MaxPool2d(2)(image(4, 4)), ValueError, 'max_pool2d: x .4, 4. .*expected x .n, c, h, w.'),
    (lambda: AvgPool2d(3)(image(1, 1, 4, 2)), ValueError, 'avg_pool2d: x .1, 1, 4, 2. has no place'),
    (lambda: MaxPool2d(2)(image(1, 0, 4, 4)), ValueError, 'max_pool2d: x .1, 0, 4, 4. has no place'),
    (lambda: Flatten()(image(3)), ValueError, r'flatten: x has shape \(3,\), expected \(n, ...\)'),
    (lambda: Unflatten(), ValueError, 'Unflatten: shape is ..'), (lambda: Unflatten(2, 0), ValueError, 'at least 1'),
    (lambda: Unflatten(2.), TypeError, 'Unflatten: shape is a float'),
    (lambda: Unflatten(2, 2)(image(1, 5)), ValueError, r'unflatten: x \(1, 5\) do not fit'),
    (lambda: cnn(gen(), torch.int64), TypeError, 'cnn: dtype is torch.int64'),
    (lambda: cnn(3), TypeError, 'cnn: generator is a int'),
    (lambda: cnn(gen())(image(2, 783), torch.zeros(2).long()), ValueError, '28., step 0 of the model')])
def test_clear_errors(make, error, words):
    with pytest.raises(error, match=words): make()

def test_a_failing_call_leaves_nothing():
    layer = Conv2d(w43)
    layer(image(1, 3, 4, 4))
    with pytest.raises(ValueError): layer(image(1, 2, 4, 4))
    with pytest.raises(RuntimeError, match='backward before forward'): layer.backward()

# Everywhere where Lin works

def tiny(dtype=torch.float32, seed=0):
    r = lambda *s, k=0: rand(*s, seed=seed + k).to(dtype)/2
    return Model.from_layers([
        Unflatten(1, 8, 8), Conv2d(r(3, 1, 3, 3), r(3, k=1), padding=1), Relu(), MaxPool2d(2),
        Conv2d(r(4, 3, 2, 2, k=2), None, stride=2), Relu(), AvgPool2d(2), Flatten(), Lin(r(4, 5, k=3), r(5, k=4))],
        CrossEntropy())

def batch(n=6, dtype=torch.float32): return rand(n, 64, seed=9).to(dtype),torch.arange(n) % 5

def apart(model, net):
    ours = [t for _,t in model.named_params()]
    return max(float((a - b).abs().max()/b.abs().max()) for a,b in zip(ours, named_weights(net).values(), strict=True))

def test_a_model_and_its_torch_counterpart_learn_the_same():
    model,(x, y) = tiny(torch.float64),batch(dtype=torch.float64)
    net,inside = to_torch(model),as_torch(model)
    opt,theirs,third = AdamW(model.params, .01),torch.optim.AdamW(net.parameters(), .01),torch.optim.AdamW(
        inside.parameters(), .01)
    for _ in range(30):
        train_step(model, opt, x, y)
        for o,f in ((theirs, lambda: F.cross_entropy(net(x), y)), (third, lambda: inside(x, y))):
            o.zero_grad(); f().backward(); o.step()
    assert apart(model, net) < 1e-9
    for p,q in zip(model.params, inside.parameters(), strict=True): near(p, q.detach(), eps=1e-9)

def test_there_and_back():
    model = tiny()
    net = to_torch(model)
    assert [type(l) for l in net] == [nn.Unflatten, nn.Conv2d, nn.ReLU, nn.MaxPool2d, nn.Conv2d, nn.ReLU, nn.AvgPool2d,
                                      nn.Flatten, nn.Linear]
    again = from_torch(net)
    assert repr(again) == repr(model) and again.layers[4].b is None
    for p,q in zip(again.params, model.params, strict=True): assert torch.equal(p, q) and p is not q

def test_settings_there_and_back():
    layer = Conv2d(rand(4, 3, 2, 3), rand(4), (2, 1), (0, 1), (1, 2))
    model = Model.from_layers([layer, MaxPool2d((2, 1), (1, 2)), AvgPool2d((1, 2), 1)], CrossEntropy())
    net = to_torch(model)
    x = rand(2, 3, 9, 9)
    model.layers[2](model.layers[1](layer(x)))
    near(net(x).detach(), model.layers[2].out)
    assert repr(from_torch(net)) == repr(model)

@pytest.mark.parametrize('layer, words', [
    (nn.Conv2d(4, 4, 3, groups=2), 'its groups.* cannot be carried over'),
    (nn.Conv2d(2, 2, 3, padding=1, padding_mode='reflect'), 'padding_mode cannot'),
    (nn.Conv2d(2, 2, 3, padding='same'), "padding is 'same'"), (nn.MaxPool2d(2, ceil_mode=True), 'ceil_mode cannot'),
    (nn.MaxPool2d(2, padding=1), 'padding cannot'), (nn.MaxPool2d(2, dilation=2), 'dilation cannot'),
    (nn.MaxPool2d(2, return_indices=True), 'return_indices cannot'),
    (nn.AvgPool2d(2, count_include_pad=False), 'count_include_pad cannot'), (nn.AvgPool2d(2, padding=1), 'padding'),
    (nn.AvgPool2d(2, divisor_override=3), 'divisor_override cannot'), (nn.Flatten(0), 'start_dim cannot'),
    (nn.Unflatten(2, (1, 2)), 'dim cannot'), (nn.Conv3d(1, 1, 1), 'has no counterpart')])
def test_settings_that_ours_does_not_have(layer, words):
    with pytest.raises(TypeError, match=words): from_torch(nn.Sequential(nn.ReLU(), layer))

def test_names_and_files(tmp_path):
    model,net = tiny(),to_torch(tiny(seed=7))
    names = ['layers.1.w', 'layers.1.b', 'layers.4.w', 'layers.8.w', 'layers.8.b']
    assert list(named_weights(model)) == list(named_weights(net)) == [k for k,_ in model.named_params()] == names
    save_weights(model, tmp_path/'a'); save_weights(to_torch(model), tmp_path/'b')
    assert (tmp_path/'a').read_bytes() == (tmp_path/'b').read_bytes()
    load_weights(net, tmp_path/'a')
    assert apart(model, net) == 0
    other = tiny(seed=3); load_weights(other, tmp_path/'b')
    for p,q in zip(other.params, model.params, strict=True): assert torch.equal(p, q)

def test_a_shared_kernel_stays_shared():
    w,b = rand(2, 2, 3, 3),rand(2)
    model = Model.from_layers([Conv2d(w, b, padding=1), Relu(), Conv2d(w, None, padding=1), Flatten()], CrossEntropy())
    x,y = rand(3, 2, 2, 2),torch.tensor([0, 3, 7])
    net = to_torch(model)
    assert len(model.params) == len([*net.parameters()]) == len(from_torch(net).params) == 2
    model(x, y); model.backward(); F.cross_entropy(net(x), y).backward()
    near(w.g, net[0].weight.grad)

def test_training_evaluating_and_copying():
    model,(x, y) = tiny(),batch()
    twin = copy.deepcopy(model)
    hist = fit(model, SGD(model.params, .05), [(x, y)]*20, [(x, y)], 1, progress=False, stats_every=5)
    assert hist.losses[-1] < hist.losses[0]
    assert evaluate(model, [(x, y)])[0] < evaluate(twin, [(x, y)])[0]
    twin(x, y); again = copy.deepcopy(twin)
    again.backward(); twin.backward()
    for p,q in zip(again.params, twin.params, strict=True): assert torch.equal(p.g, q.g)
    again.zero_grad(); assert all(p.g is None for p in again.params) and x.g is not None

def test_a_compiled_step_gives_the_same_numbers():
    one,two,(x, y) = tiny(torch.float64),tiny(torch.float64),batch(dtype=torch.float64)
    opt,other = AdamW(one.params, .01),AdamW(two.params, .01)
    step = compile_step(two, other, x, y)
    for _ in range(5):
        loss = train_step(one, opt, x, y)
        assert float(step(x, y)) == pytest.approx(loss, rel=1e-12)
    for p,q in zip(one.params, two.params, strict=True): near(p, q)

def test_nested_and_in_the_viewer():
    r = rand
    inner = Row(Conv2d(r(2, 1, 3, 3), r(2), padding=1), MaxPool2d(2))
    model = Model.from_layers([Unflatten(1, 4, 4), inner, Flatten(), Lin(r(8, 1), r(1))], Mse())
    assert [k for k,_ in model.named_params()][0] == 'layers.1.layers.0.w'
    view = show_backward(model, r(3, 16), r(3))
    assert view.ok, view.failures
    x,y = batch(); model = tiny()
    assert show_backward(model, x, y).ok

def test_functions_for_autograd():
    x,w,b = (t.requires_grad_() for t in (rand(2, 3, 5, 5), rand(4, 3, 2, 2, seed=1), rand(4, seed=2)))
    f = to_function(conv2d_rule((2, 2), (1, 1)), 'ConvFunction')
    assert torch.autograd.gradcheck(f.apply, (x, w, b))
    assert torch.autograd.gradcheck(to_function(max_pool2d_rule((2, 2), (1, 1)), 'PoolFunction').apply, (x,))

# The network

def test_the_network_for_digits():
    model = cnn(gen(3), dtype=torch.float64)
    x,y = rand(3, 784),torch.tensor([1, 0, 9])
    net = to_torch(model)
    model(x, y); model.backward(); F.cross_entropy(net(x), y).backward()
    for p,q in zip(model.params, net.parameters(), strict=True): near(p.g, q.grad.t() if p.ndim == 2 else q.grad)
    again = cnn(gen(3), dtype=torch.float64)
    assert all(torch.equal(p, q) for p,q in zip(model.params, again.params, strict=True))
    assert cnn().params[0].dtype == torch.float32 and cnn(dtype=torch.bfloat16).params[0].dtype == torch.bfloat16
    kernels = [l for l in cnn(gen()).layers if isinstance(l, Conv2d)]
    for l in kernels: assert l.w.std().item()*(l.w[0].numel()/2)**.5 == pytest.approx(1, abs=.15), 'He and others'
    assert all(not l.b.any() and l.w.is_contiguous() for l in kernels)

def tool(root):
    spec = importlib.util.spec_from_file_location('cnn_tool', root/'tools'/'cnn.py')
    module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)
    return module

@pytest.fixture
def root(request): return request.config.rootpath

def test_kept_results_of_the_network(root):
    kept = json.loads((root/'results'/'cnn.json').read_text(encoding='utf-8'))
    for k in ('by_hand', 'torch'):
        assert kept[k] and abs(kept[f'{k}_mean'] - sum(kept[k])/len(kept[k])) < 1e-12
        assert kept[f'{k}_mean'] >= .99, k
    assert len(kept['by_hand']) == 5 and kept['machine'] and kept['command'] == 'make cnn'
    assert len(kept['figures']['filters']) == 8 and len(kept['figures']['wrong']) == 12

def test_the_command_trains_both_alike_and_goes_on_where_it_stopped(root, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(root/'tools'))
    t,(x, y) = tool(root),(rand(96, 784),torch.arange(96) % 10)
    monkeypatch.setattr(t, 'new', lambda seed: cnn(gen(seed), dtype=torch.float64))
    data,calls = (x, y, x, y),[]
    (ours,model),(theirs,net) = (f(data, 1, 2, lambda: calls.append(1)) for f in (t.by_hand, t.by_torch))
    assert apart(model, net) < 1e-7 and ours == theirs and len(calls) == 4
    path = tmp_path/'deep'/'cnn.json'
    found = t.kept(path, 2)
    found['by_hand'].append(.5); t.store(path, found)
    assert t.kept(path, 2)['by_hand'] == [.5] and t.kept(path, 3)['by_hand'] == [] and found['by_hand_spread'] is None
    found['by_hand'].append(.6); t.store(path, found)
    assert t.kept(path, 2)['by_hand_mean'] == .55 and t.kept(path, 2)['by_hand_spread'] > 0
    shown = t.figures(model, x, (y + 1) % 10, x*0 + 7, count=3)
    assert len(shown['wrong']) == 3 and shown['wrong'][0]['sure'] >= shown['wrong'][1]['sure']
    assert shown['wrong'][0]['pixels'] == [7]*784

# Faults

def conv(stride=1, padding=0, dilation=1, c_in=2, c_out=3, k=(3, 2)):
    return Conv2d(rand(c_out, c_in, *k, seed=1), rand(c_out, seed=2), stride, padding, dilation)

def turned_conv(g, w, size, stride=(1, 1), padding=(0, 0), dilation=(1, 1)):
    "The gradient of the input, as the operator of torch."
    return F.conv_transpose2d(g, w, None, stride, padding, [
        n - ((m - 1)*s - 2*p + d*(k - 1) + 1) for n,m,s,p,d,k in zip(size, g.shape[2:], stride, padding, dilation,
                                                                       w.shape[2:])], 1, dilation)

def faulty(layer, x_grad=None, w_grad=None, b_grad=None):
    "`layer` with some of its gradients exchanged; each is made from `g, x, w` and the right one."
    right,made = layer.rule,copy.copy(layer)
    def backward(g, out, x, w, b):
        found = right.backward(g, out, x, w, b)
        return tuple(good if f is None else f(g, x, w, good) for f,good in zip((x_grad, w_grad, b_grad), found))
    made.__class__ = type('Conv2dWrong', (Conv2d,), dict(rule=Rule(right.forward, backward)))
    return made

def not_turned(g, x, w, good): return turned_conv(g, w.flip(2, 3), x.shape[2:])
def cropped_wrong(g, x, w, good): # padding 1, all of it cut off at the end
    whole = turned_conv(g, w, [n + 2 for n in x.shape[2:]])
    return whole[:,:,:x.shape[2],:x.shape[3]]
def stride_ignored(g, x, w, good):
    near = turned_conv(g, w, [m + k - 1 for m,k in zip(g.shape[2:], w.shape[2:])])
    return F.pad(near, (0, x.shape[3] - near.shape[3], 0, x.shape[2] - near.shape[2]))
def channels_swapped(g, x, w, good): return turned_conv(g, w.transpose(0, 1), x.shape[2:])
def dilation_ignored(g, x, w, good):
    near = turned_conv(g, w, [m + k - 1 for m,k in zip(g.shape[2:], w.shape[2:])])
    return F.pad(near, (0, x.shape[3] - near.shape[3], 0, x.shape[2] - near.shape[2]))

def pooled(layer, backward):
    made = copy.copy(layer)
    made.__class__ = type(type(layer).__name__ + 'Wrong', (type(layer),), dict(rule=Rule(layer.rule.forward, backward)))
    return made
def last_tie(g, out, x):
    leaf = x.flip(2, 3).requires_grad_()
    return torch.autograd.grad(F.max_pool2d(leaf, 2), leaf, g.flip(2, 3))[0].flip(2, 3)
def no_mean(g, out, x): return 4*AvgPool2d(2).rule.backward(g, out, x)

picture = rand(2, 2, 6, 6)
ties = torch.randint(0, 2, (2, 2, 6, 6), generator=gen(4)).double()
FAULTS = { # name -> layer, input
    'kernel not turned': (faulty(conv(), not_turned), picture),
    'padding cropped on one side': (faulty(conv(padding=1), cropped_wrong), picture),
    'stride ignored': (faulty(conv(stride=2), stride_ignored), picture),
    'bias summed over images alone': (faulty(conv(), b_grad=lambda g, x, w, good: g.sum(0)[:,0,0]), picture),
    'bias summed over places alone': (faulty(conv(), b_grad=lambda g, x, w, good: g[0].sum((1, 2))), picture),
    'channels swapped': (faulty(conv(c_in=3), channels_swapped), rand(2, 3, 6, 6)),
    'to the last tie': (pooled(MaxPool2d(2), last_tie), ties),
    'no mean': (pooled(AvgPool2d(2), no_mean), picture),
    'dilation ignored': (faulty(conv(dilation=2), dilation_ignored), picture)}

def look(layer, *inputs): return check_layer(layer, *inputs, raise_exception=False, progress=False)

RIGHT = {'Conv2d': (conv(), picture), 'stride': (conv(2, 1), picture), 'dilation': (conv(dilation=2), picture),
         'no bias': (Conv2d(rand(3, 2, 2, 2)), picture), 'MaxPool2d': (MaxPool2d(2), picture),
         'overlapping': (MaxPool2d(3, 1), picture), 'AvgPool2d': (AvgPool2d((2, 3), 1), picture),
         'Flatten': (Flatten(), picture), 'Unflatten': (Unflatten(2, 3), rand(4, 6))}
@pytest.mark.parametrize('name', RIGHT)
def test_the_doctor_finds_nothing_wrong(name):
    layer,x = RIGHT[name]
    report = look(layer, x)
    assert report.ok and report.tested, report

NAMED = {'kernel not turned': 'permuted', 'padding cropped on one side': 'shifted', 'stride ignored': 'wrong operand',
         'bias summed over places alone': 'sum missing', 'channels swapped': 'transposed', 'no mean': 'scaled',
         'to the last tie': 'permuted', 'dilation ignored': 'wrong operand'}
@pytest.mark.parametrize('name', FAULTS)
def test_the_doctor_names_faults(name):
    "One number of each sum over images is no fault that it knows; it says that nothing explains it."
    report = look(*FAULTS[name])
    assert not report.ok and report.first.name == ('b' if 'bias' in name else 'x'), report
    assert report.first.diagnosis.cause == NAMED.get(name, 'unknown'), report
