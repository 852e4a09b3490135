"What a module may leave out or use up, and what it must not: `input_grad`, `keep`, `inplace`."
import pytest, torch
from torch.testing import assert_close
from fb_pass.autograd import to_linear
from fb_pass.backward import lin_grad, relu_grad
from fb_pass.checks import autograd_grad, check_grad, peak_memory
from fb_pass.gradients import add_grad, clear_grads
from fb_pass.forward import lin, mse, relu
from fb_pass.modules import Lin, Model, Module, Mse, Relu
from fb_pass.training import SGD, CrossEntropy, cross_entropy, mlp, train_step

def made(n=7, sizes=(6, 5, 1), dtype=torch.float64, seed=0):
    gen = torch.Generator().manual_seed(seed)
    def randn(*shape): return torch.randn(*shape, generator=gen, dtype=dtype)
    params = [t for a,b in zip(sizes, sizes[1:]) for t in (randn(a, b), randn(b))]
    return randn(n, sizes[0]), randn(n), params

def net(params, loss=Mse, **kwargs):
    layers = [o for w,b in zip(params[::2], params[1::2]) for o in (Lin(w, b), Relu(**kwargs))][:-1]
    return Model.from_layers(layers, loss())

class Residual(Module):
    "Adds what goes in to what comes out; one gradient arrives at both."
    def __init__(self, *layers): self.children = layers
    def forward(self, inp):
        h = inp
        for l in self.children: h = l(h)
        return inp + h
    def bwd(self, out, inp):
        add_grad(inp, out.g)
        add_grad(self.children[-1].out, out.g)
        for l in reversed(self.children): l.backward(keep=self.keep)

@pytest.mark.parametrize('inplace', [False, True])
@pytest.mark.parametrize('keep', [False, True])
@pytest.mark.parametrize('input_grad', [False, True])
@pytest.mark.parametrize('n', [1, 7])
def test_the_other_gradients_do_not_change(n, input_grad, keep, inplace):
    x, targ, params = made(n)
    model = net(params, inplace=inplace)
    model(x, targ); model.backward(input_grad=input_grad, keep=keep)
    want = autograd_grad(lambda x,w,b,v,c: mse(lin(relu(lin(x, w, b)), v, c), targ), x, *params)
    for p,g in zip(params, want[1:]): check_grad(p.g, g)
    if input_grad: check_grad(x.g, want[0])
    else: assert x.g is None

def test_only_the_first_layer_leaves_out():
    x, targ, params = made(sizes=(6, 5, 4, 3, 1))
    model = net(params)
    model(x, targ); model.backward(input_grad=False)
    assert [l.input_grad for l in model.children] == [False] + [True]*(len(model.children) - 1)
    assert x.g is None and all(l.args[0].g is not None for l in model.layers[1:])

def test_the_next_backward_finds_it_again():
    x, targ, params = made()
    model = net(params)
    model(x, targ); model.backward(input_grad=False); model.backward()
    check_grad(x.g, autograd_grad(lambda x: mse(lin(relu(lin(x, *params[:2])), *params[2:]), targ), x))

@pytest.mark.parametrize('keep', [False, True])
def test_a_gradient_that_two_tensors_share_is_not_written_over(keep):
    x, targ, params = made(sizes=(6, 6, 1))
    w, b, v, c = params
    model = Model.from_layers([Residual(Lin(w, b), Relu()), Lin(v, c)], Mse())
    model(x, targ); model.backward(keep=keep)
    want = autograd_grad(lambda x,w,b,v,c: mse(lin(x + relu(lin(x, w, b)), v, c), targ), x, *params)
    for t,g in zip((x, *params), want): check_grad(t.g, g)

def test_used_up():
    x, targ, params = made()
    model = net(params)
    model(x, targ); model.backward(keep=False)
    assert all(l.args is l.out is None for l in (model, *model.children))
    with pytest.raises(RuntimeError, match='again after keep=False'): model.backward()
    model(x, targ); model.backward()

def test_what_is_used_up_has_no_gradient_left():
    "Who still holds what came out of a layer must not find a gradient there, whose memory may be in use elsewhere."
    x, targ, params = made()
    model = net(params)
    model(x, targ)
    held = [l.out for l in model.children]
    model.backward(keep=False)
    assert [t.g for t in held] == [None]*len(held)

def test_kept_values_are_what_was_seen():
    x, targ, params = made()
    model = net(params)
    model(x, targ); model.backward()
    first, second, _ = model.layers
    assert (first.out < 0).any() and (second.out >= 0).all()
    assert_close(second.out, relu(lin(x, *params[:2])))

def test_reuse_spoils_only_out():
    x, _, params = made()
    inp, u = lin(x, *params[:2]), torch.randn(7, 5, dtype=torch.float64)
    before, out = inp.clone(), relu(inp)
    out.g = u.clone()
    relu_grad(inp, out, reuse=True)
    assert_close(inp, before); assert_close(out.g, u)
    assert inp.g is not out and inp.g.data_ptr() == out.data_ptr()
    check_grad(inp.g, autograd_grad(lambda x: (relu(x)*u).sum(), inp))

def test_inplace_relu_is_another_tensor_with_a_gradient_of_its_own():
    inp = torch.tensor([[-1., 2., 0.]])
    layer = Relu(inplace=True)
    out = layer(inp)
    assert out is not inp and out.data_ptr() == inp.data_ptr()
    out.g = torch.tensor([[5., 6., 7.]])
    layer.backward()
    assert_close(inp.g, torch.tensor([[0., 6., 0.]]))
    assert_close(out.g, torch.tensor([[5., 6., 7.]]))

def test_lin_grad_without_the_inputs():
    x, _, (w, b, *_) = made()
    out = lin(x, w, b); out.g = torch.randn_like(out)
    lin_grad(x, out, w, b, input_grad=False)
    assert getattr(x, 'g', None) is None
    check_grad(w.g, x.t() @ out.g); check_grad(b.g, out.g.sum(0))

@pytest.mark.parametrize('order', ['rows', 'columns'])
def test_any_order_in_memory(order):
    x, targ, params = made(n=9, sizes=(6, 5, 4, 1))
    want = autograd_grad(lambda x,*ps: mse(lin(relu(lin(relu(lin(x, *ps[:2])), *ps[2:4])), *ps[4:]), targ), x, *params)
    turned = [p.t().contiguous().t() if order == 'columns' and p.ndim == 2 else p for p in params]
    xs = x.t().contiguous().t() if order == 'columns' else x
    model = net(turned)
    model(xs, targ); model.backward()
    for t,g in zip((xs, *turned), want): check_grad(t.g, g)

def test_memory_is_no_more_than_autograds():
    x, targ, params = made(n=4000, sizes=(784, 50, 1), dtype=torch.float32)
    model = net(params, inplace=True)
    linears = [to_linear(w, b) for w,b in zip(params[::2], params[1::2])]
    library = torch.nn.Sequential(linears[0], torch.nn.ReLU(), linears[1])
    leaf = x.clone().requires_grad_()
    def ours(input_grad):
        model(x, targ); model.backward(input_grad, keep=False)
    def theirs(x):
        (library(x)[:,0] - targ).pow(2).mean().backward()
    def peak(f, x):
        clear_grads(x, *params); library.zero_grad(); leaf.grad = None
        return peak_memory(f)
    for input_grad,inp in ((False, x), (True, leaf)):
        assert peak(lambda: ours(input_grad), x) <= 1.001*peak(lambda: theirs(inp), x)

def test_step_of_training_forgets_and_keeps():
    gen = torch.Generator().manual_seed(0)
    x, y = torch.randn(8, 6, generator=gen), torch.arange(8) % 4
    model = mlp(6, 5, 4, generator=gen)
    opt = SGD(model.params, lr=0.1)
    train_step(model, opt, x, y)
    assert model.layers[0].out is None
    train_step(model, opt, x, y, keep=True)
    assert model.layers[0].out.g is not None and x.g is None

def test_a_broken_step_names_the_place_though_nothing_was_kept():
    x, y = torch.ones(2, 3), torch.tensor([0, 1])
    model = mlp(3, 4, 2, generator=torch.Generator().manual_seed(0))
    before = [p.clone() for p in model.params]
    class Blows(Relu):
        def bwd(self, out, inp): add_grad(inp, out.g*torch.inf)
    broken = Model.from_layers([model.layers[0], Blows(), model.layers[2]], CrossEntropy())
    with pytest.raises(FloatingPointError, match='first gradient that is not finite.*Blows'): train_step(broken, SGD(broken.params, .1), x, y)
    for p,q in zip(model.params, before): assert_close(p, q)

def test_large_gradients_whose_sum_overflows_are_no_alarm():
    p = torch.full((4,), 1e38)
    from fb_pass.training import _broken
    assert not _broken([p.mul(3), p.mul(3)])
    assert _broken([p, torch.tensor([1., torch.inf])]) and _broken([torch.tensor([torch.inf, -torch.inf])]) and _broken([torch.tensor([torch.nan])])

def test_cross_entropy_goes_back_from_its_own_call():
    gen = torch.Generator().manual_seed(0)
    a, b, y = torch.randn(5, 3, generator=gen, dtype=torch.float64), torch.randn(5, 3, generator=gen, dtype=torch.float64), torch.arange(5) % 3
    layer = CrossEntropy()
    layer(a, y)
    layer.forward(b, y) # a look at something else in between
    layer.backward()
    check_grad(a.g, autograd_grad(lambda o: cross_entropy(o, y), a))


def trained(steps=20, sizes=(6, 5, 4), n=8, **kwargs):
    gen = torch.Generator().manual_seed(1)
    model = mlp(*sizes, generator=gen, dtype=torch.float64)
    for p in model.params: p.add_(torch.randn(p.shape, generator=gen, dtype=p.dtype)/4) # biases that are not zero
    opt = SGD(model.params, lr=0.3, **kwargs)
    x, y = torch.randn(n, sizes[0], generator=gen, dtype=torch.float64), torch.randint(0, sizes[-1], (n,), generator=gen)
    return model, opt, x, y, [train_step(model, opt, x, y) for _ in range(steps)]

@pytest.mark.parametrize('n', [1, 8])
@pytest.mark.parametrize('sizes', [(6, 4), (6, 5, 4), (6, 5, 7, 3, 4)])
def test_fused_steps_are_those_of_the_classes(sizes, n):
    one, _, _, _, losses = trained(sizes=sizes, n=n)
    two, opt, x, y, fused = trained(sizes=sizes, n=n, fused=True)
    assert_close(torch.tensor(fused), torch.tensor(losses), rtol=1e-12, atol=1e-12)
    for p,q in zip(two.params, one.params): check_grad(p, q, rtol=1e-11)
    assert opt.steps == 20 and all(p.g is None for p in two.params)

def test_fused_step_that_is_to_be_kept_keeps_its_gradients():
    model, opt, x, y, _ = trained(fused=True, steps=1)
    train_step(model, opt, x, y, keep=True)
    assert all(p.g is not None for p in model.params) and model.layers[0].out.g is not None
    train_step(model, opt, x, y)
    assert all(p.g is None for p in model.params) # not those of the step before

def test_fused_loss_that_is_not_finite_changes_nothing():
    model, opt, x, y, _ = trained(fused=True, steps=1)
    before = [p.clone() for p in model.params]
    x[2,3] = torch.nan
    with pytest.raises(FloatingPointError, match='not finite: look at the data'): train_step(model, opt, x, y)
    for p,q in zip(model.params, before): assert_close(p, q)

class Squared(Relu):
    def forward(self, inp): return super().forward(inp)**2

def test_fused_refuses_what_it_cannot_do():
    model, opt, x, y, _ = trained(steps=0)
    w1, b1, w2, b2 = model.params
    square = torch.randn(5, 5, dtype=torch.float64)
    layers = [Lin(w1, b1), Relu(), Lin(square, b1.clone()), Relu(), Lin(square, b1.clone()), Relu(), Lin(w2, b2)]
    refused = [(Model.from_layers([Lin(w1, b1), Squared(), Lin(w2, b2)], CrossEntropy()), None, 'not for'), (Model.from_layers([Lin(w1, b1), Relu()], CrossEntropy()), None, 'not for'),
               (Model.from_layers([Lin(w1, b1), Relu(), Lin(w2[:,:1], b2[:1])], Mse()), None, 'not for'), (Model.from_layers(layers, CrossEntropy()), None, 'each used once'),
               (model, [w1, b1], 'each used once'), (model, [w1, b1, w2, b2, square], 'each used once')]
    for m,params,words in refused:
        before = [p.clone() for p in m.params]
        with pytest.raises(ValueError, match=words): train_step(m, SGD(params or m.params, .1, fused=True), x, y)
        for p,q in zip(m.params, before): assert_close(p, q)
    for kwargs in (dict(momentum=.5), dict(weight_decay=.1)):
        with pytest.raises(ValueError, match='fused=True with'): SGD(model.params, .1, fused=True, **kwargs)

def test_fused_refuses_what_does_not_fit():
    model, opt, x, y, _ = trained(fused=True, steps=1)
    for xb,yb,error,words in ((x[:,:3], y, ValueError, 'do not fit'), (x.float(), y, TypeError, 'dtypes differ'), (x, y + 4, ValueError, 'labels from'), (x, y.double(), TypeError, 'int64')):
        with pytest.raises(error, match=words): train_step(model, opt, xb, yb)

def test_fused_goes_on_with_another_model():
    model, opt, x, y, _ = trained(fused=True, steps=2)
    other = Model.from_layers(list(model.layers), CrossEntropy())
    assert train_step(other, opt, x, y) < train_step(model, opt, x, y) + 1
    assert opt.fits[0] is model

def test_fit_with_a_fused_optimizer_records_its_statistics():
    from fb_pass.training import dataloader, fit
    def fitted(**kwargs):
        model, opt, x, y, _ = trained(steps=0, n=40, **kwargs)
        return fit(model, opt, dataloader(x, y, 8), dataloader(x, y, 8), 2, stats_every=3, progress=False)
    one, two = fitted(), fitted(fused=True)
    assert [s for s,_ in two.stats] == [0, 3, 6, 9]
    assert_close(torch.tensor(two.losses), torch.tensor(one.losses), rtol=1e-12, atol=1e-12)
