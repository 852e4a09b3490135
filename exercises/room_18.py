"Exercises of room 11, on `check_layer`: four verdicts, a repair, and an input that hides a mistake."
import torch
from torch.autograd import Function
from fb_pass.doctor import check_layer
from .asking import exercise, rands

def _function(name, forward, backward):
    "An `autograd.Function` that keeps all its inputs."
    def run(ctx, *inputs):
        ctx.save_for_backward(*inputs)
        return forward(*inputs)
    def back(ctx, g): return backward(g, *ctx.saved_tensors)
    return type(name, (Function,), dict(forward=staticmethod(run), backward=staticmethod(back)))

def _report(*args): return check_layer(*args, raise_exception=False, progress=False)

kinds = 'right', 'wrong', 'absent', 'not tested'

def verdict(case):
    "The verdict on the gradient that the exercise names."
    relu = _function('Relu', lambda x: x.clamp_min(0.), lambda g, x: g*(x >= 0))
    scale = _function('Scale', lambda x, factor: x*factor, lambda g, x, factor: (g*factor, None))
    center = _function('Center', lambda x: x - x.mean(-1, keepdim=True), lambda g, x: g)
    calls = dict(a=(relu, torch.tensor([-3., -.5])), b=(relu, torch.tensor([-3., 0., .5])),
                 c=(scale, torch.ones(3), torch.ones(3)), d=(center, torch.ones(4, 3)))
    return _report(*calls[case]).rows[-1].verdict

def _norm(x, w): return x*(x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt()*w

def _rms_norm(over_row='mean', over_rows='sum', forward=_norm):
    "RmsNorm, right or with a fault."
    def backward(g, x, w):
        r = (x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt()
        gx = g*w
        gx = r*(gx - x*r*getattr(gx*x*r, over_row)(-1, keepdim=True))
        return gx, getattr(g*x*r, over_rows)(0)
    return _function('RmsNormRight', forward, backward)

@exercise('18.2', 'Write the class `RmsNormRight`, an `autograd.Function` as `RmsNorm`, with the right backward.',
    'A mean in the forward pass is a mean in the backward pass, and what all rows use gets a sum over the rows.',
    wrong=[('one over the batch size', _rms_norm(over_rows='mean')), ('its 1/n is missing', _rms_norm('sum')),
           ('its forward', _rms_norm(forward=lambda x, w: x*w))])
def repaired_rms_norm(answer):
    is_function = isinstance(answer, type) and issubclass(answer, Function)
    assert is_function, 'The answer is a class, derived from `RmsNorm` or from `Function`.'
    x,w = rands((5, 4), (4,))
    out = answer.apply(x.requires_grad_(), w.requires_grad_())
    assert torch.allclose(out, _norm(x, w)), 'Leave its forward as it is: only the backward is wrong.'
    found = str(_report(answer, x, w)).partition('largest entry.')[2].strip()
    assert not found, f'The report says: {found}'

@exercise('18.3', 'Give an input of three numbers or more on which `Square` passes.', 'A check sees only the input '
    'that it is given. Give it random numbers: no ones, no zeros.', wrong=[
    ('three', torch.ones(2)), ('For which x', torch.tensor([1., 2., 3.])), ('the right gradient is 0', torch.zeros(3))])
def blind_input(answer):
    fits = isinstance(answer, torch.Tensor) and answer.is_floating_point() and bool(answer.isfinite().all())
    assert fits and answer.numel() >= 3, 'The answer is a floating-point tensor of at least three numbers.'
    row = _report(_function('Square', lambda x: x*x, lambda g, x: 2*g), answer).rows[0]
    assert bool(answer.any()), 'At 0 the right gradient is 0, and `2*g` is not.'
    assert row.verdict == 'right', f'The verdict is {row.verdict!r}. For which x are `2*x*g` and `2*g` the same?'
