"Short dtypes: master weights, a scaled loss, steps that are left out."
import pytest, torch
from fb_pass.checks import check_grad
from fb_pass.gpt import ClippedAdamW, gpt
from fb_pass.library import load_weights, save_weights
from fb_pass.modules import Lin, Model, Module, Mse
from fb_pass.norms import BatchNorm
from fb_pass.precision import LowPrecision, WideLoss
from fb_pass.training import SGD, AdamW, CrossEntropy, mlp

bf16,f16 = torch.bfloat16,torch.float16
both = pytest.mark.parametrize('dtype', [bf16, f16])

def gen(seed=0): return torch.Generator().manual_seed(seed)
def net(seed=0): return mlp(6, 5, 3, generator=gen(seed))
def batch(n=8, seed=1): return torch.randn(n, 6, generator=gen(seed)), torch.arange(n) % 3
def sgd(lr): return lambda params: SGD(params, lr)

@both
def test_small_steps_add_up_in_the_masters(dtype):
    "Many steps, each of which is rounded away in the short dtype: the weights that plain arithmetic gives."
    model = Model.from_layers([Lin(torch.ones(1, 1), torch.zeros(1))], Mse())
    step = LowPrecision(model, sgd(1e-5), dtype)
    x,y = torch.ones(1, 1),torch.zeros(1)
    assert model.layers[0].w.dtype == dtype and step.opt.params[0].dtype == torch.float32
    w,b = torch.ones(()).double(),torch.zeros(()).double()
    for _ in range(3000):
        assert step(x, y) >= 0
        g = 2*(w + b)
        w,b = w - 1e-5*g,b - 1e-5*g
    assert abs(step.opt.params[0].item() - w.item()) < 5e-4 and w < .95
    assert torch.equal(model.layers[0].w, step.opt.params[0].to(dtype))

def test_a_scale_that_is_a_power_of_two_changes_no_bit():
    models,(x,y) = [net() for _ in range(2)],batch()
    steps = [LowPrecision(m, lambda params: AdamW(params, .01), bf16, scale) for m,scale in zip(models, (1., 1024.))]
    for _ in range(5): assert steps[0](x, y) == steps[1](x, y)
    for p,q in zip(models[0].params, models[1].params): assert torch.equal(p, q)

@both
def test_the_gradients_are_those_of_float32_up_to_the_dtype(dtype):
    model,other,(x,y) = net(),net(),batch()
    step = LowPrecision(model, sgd(0.), dtype)
    step(x, y)
    other(x, y); other.backward()
    for m,p in zip(step.opt.params, other.params):
        assert m.g.dtype == torch.float32
        check_grad(m.g, p.g, rtol=8*torch.finfo(dtype).eps)
        with pytest.raises(AssertionError): check_grad(1.2*m.g, p.g, rtol=8*torch.finfo(dtype).eps)

def test_small_gradients_need_the_scale():
    "In float16 they are zero without it."
    def grads(scale):
        model,(x,y) = net(),batch()
        model.layers[-1].w.mul_(1e-4)
        step = LowPrecision(model, sgd(0.), f16, scale)
        step(1e-3*x, y)
        return step.opt.params[0].g
    assert grads(1.).count_nonzero() < .5*grads(2.**14).count_nonzero()

def test_a_step_with_an_infinite_gradient_is_left_out():
    model,(x,y) = net(),batch()
    step = LowPrecision(model, sgd(.1), f16, 2.**24)
    before = [p.clone() for p in model.params]
    step(x, y)
    assert step.skipped == 1 and step.scale == 2.**23 and step.opt.steps == 0
    for p,q,m in zip(model.params, before, step.opt.params): assert torch.equal(p, q) and torch.equal(m.to(f16), q)
    while not step.opt.steps: step(x, y)
    assert 2.**10 < step.scale < 2.**20 and step.good == 1
    assert not torch.equal(model.params[0], before[0])

def test_the_scale_grows_again():
    step = LowPrecision(net(), sgd(.01), f16, 4., patience=3)
    for i in range(7): step(*batch())
    assert step.scale == 16 and step.good == 7
    step = LowPrecision(net(), sgd(.01), bf16, 4., patience=3)
    for i in range(7): step(*batch())
    assert step.scale == 4

def test_what_no_scale_mends_is_an_error():
    model,(x,y) = net(),batch()
    step = LowPrecision(model, sgd(.1), bf16)
    before = [p.clone() for p in model.params]
    x[0,0] = torch.nan
    with pytest.raises(FloatingPointError, match='not finite at a scale of 1: lower the learning rate'): step(x, y)
    for p,q in zip(model.params, before): assert torch.equal(p, q)

@both
def test_a_gpt_learns(dtype):
    model = gpt(5, 4, 1, 2, 8, generator=gen())
    step = LowPrecision(model, lambda params: ClippedAdamW(params, .01), dtype)
    tokens = torch.arange(4).expand(6, 4).contiguous()
    losses = [step(tokens, (tokens + 1) % 5) for _ in range(60)]
    assert losses[-1] < .2 < 1.5 < losses[0]
    assert all(p.dtype == dtype for p in model.params) and len(model.params) == len(step.opt.params)

@pytest.mark.parametrize('dtype', [torch.float32, bf16, f16])
def test_wide_loss_against_autograd(dtype):
    preds,y = torch.randn(7, 4, generator=gen()).to(dtype),torch.arange(7) % 4
    leaf = preds.float().requires_grad_()
    want, = torch.autograd.grad(3*torch.nn.functional.cross_entropy(leaf, y), leaf)
    loss = WideLoss(CrossEntropy())
    out = loss(preds, y)
    out.g = torch.tensor(3.)
    loss.backward()
    assert out.dtype == torch.float32 and preds.g.dtype == dtype
    check_grad(preds.g.float(), want, rtol=4*torch.finfo(dtype).eps)

def test_refusals():
    for bad in (torch.float32, torch.float64, torch.int8):
        with pytest.raises(TypeError, match='expected torch.bfloat16 or'): LowPrecision(net(), sgd(.1), bad)
    with_buffers = Model.from_layers([BatchNorm(torch.ones(6), torch.zeros(6))], CrossEntropy())
    with pytest.raises(ValueError, match='running_mean, which is not trained'): LowPrecision(with_buffers, sgd(.1))
    model = net()
    LowPrecision(model, sgd(.1))
    with pytest.raises(TypeError, match='not all float32'): LowPrecision(model, sgd(.1))
    with pytest.raises(TypeError, match='what make returns'): LowPrecision(net(), lambda params: None)
    for kw in (dict(scale=-1.), dict(scale=float('inf')), dict(scale=0.), dict(patience=0)):
        with pytest.raises(ValueError, match='LowPrecision: patience='): LowPrecision(net(), sgd(.1), **kw)
    for take in (lambda ps: ps[2:], lambda ps: ps[::-1], lambda ps: [p.clone() for p in ps]):
        with pytest.raises(ValueError, match='expected all of them, in the same order'):
            LowPrecision(net(), lambda params: SGD(take(params), .1))
    frozen = net()
    frozen.params = frozen.layers[2].params
    with pytest.raises(ValueError, match='layers.0.w, which is not trained'): LowPrecision(frozen, sgd(.1))
    w = torch.randn(6, 6)
    views = Model.from_layers([Lin(w, torch.zeros(6)), Lin(w.t(), torch.zeros(6))], CrossEntropy())
    with pytest.raises(ValueError, match='LowPrecision: parameters share memory'): LowPrecision(views, sgd(.1))
    class Weighted(CrossEntropy):
        def __init__(self): self.weight = torch.ones(3)
    with pytest.raises(ValueError, match='the loss has parameters'):
        LowPrecision(Model.from_layers(net().layers, Weighted()), sgd(.1))
    with pytest.raises(TypeError, match='loss is a Linear, expected a Module'): WideLoss(torch.nn.Linear(2, 2))

def test_a_refused_model_is_as_it_was():
    model = net()
    before = [p.clone() for p in model.params]
    with pytest.raises(TypeError): LowPrecision(model, lambda params: None)
    assert all(torch.equal(p, q) for p,q in zip(model.params, before)) and isinstance(model.loss, CrossEntropy)

def test_any_optimizer_of_ones_own():
    class Sign(SGD):
        def update(self, i, p): p -= self.lr*p.g.sign()
    model = net()
    before = model.params[0].clone()
    LowPrecision(model, lambda params: Sign(params, 2.**-3), bf16)(*batch())
    assert ((model.params[0].float() - before).abs() - 2.**-3).abs().max() < .01
    assert isinstance(model.loss, Module)

@both
def test_weights_that_are_loaded_are_those_that_are_stepped(dtype, tmp_path):
    (x,y),first,then = batch(),net(),net(5)
    step,other = [LowPrecision(m, lambda params: AdamW(params, .05), dtype) for m in (first, then)]
    for _ in range(20): step(x, y)
    other(x, y)
    save_weights(first, tmp_path/'w'); load_weights(then, tmp_path/'w')
    losses = [other(x, y) for _ in range(3)]
    assert losses[0] == step(x, y) and max(losses) < .3, losses
    then.layers[0].w.zero_()
    other.opt.lr = 0.
    other(x, y)
    assert then.layers[0].w.abs().max() == 0

def test_an_infinite_loss_with_finite_gradients_is_an_error():
    class Infinite(CrossEntropy):
        def forward(self, preds, targ): return super().forward(preds, targ) + torch.inf
    step = LowPrecision(Model.from_layers(net().layers, Infinite()), sgd(.1), f16)
    with pytest.raises(FloatingPointError, match='loss inf'): step(*batch())
