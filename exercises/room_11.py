"Exercises on error budgets: sums in short dtypes, cancellation, the best step, and a kink."
import math

import torch
import torch.nn.functional as F
from fb_pass.checks import autograd_grad
from fb_pass.doctor.budgets import slope, unit_roundoff
from .asking import ask, exercise

def stands_still():
    one = torch.ones((), dtype=torch.float16); total = 0*one
    while total + one > total: total = total + one
    return total.item()

def _one_by_one(xs):
    total = torch.zeros_like(xs[0])
    for x in xs: total = total + x
    return total

def _pairs_without_last(xs):
    while len(xs) > 1: xs = xs[:-1:2] + xs[1::2]
    return xs[0]

@exercise('11.2', 'Write `add_in_pairs(xs)`, the sum of the rows of `xs`: add neighbors, then their sums, and so on, '
    'all of it in the dtype of `xs`.', wrong=[
    ('stagnates', _one_by_one), ('accumulated in a longer dtype', lambda xs: xs.sum(0)),
    ('torch.float32', lambda xs: xs.float().sum(0)), ('is odd', _pairs_without_last), ('one row', lambda xs: xs.sum())])
def add_in_pairs(answer):
    xs = torch.rand(4096, 50).bfloat16()
    exact,got = xs.double().sum(0),answer(xs)
    row = isinstance(got, torch.Tensor) and got.shape == exact.shape
    assert row, ('The sum of 4096 rows with 50 numbers each is one row, of shape `(50,)`: add rows until one is left, '
        'and return that one.')
    lost = ((got.double() - exact)/exact).abs().max().item() / unit_roundoff(torch.bfloat16)
    assert got.dtype == torch.bfloat16, (f'The sum has dtype {got.dtype}. The exercise is about bfloat16: every '
        'partial sum is to be rounded to it.')
    assert lost < 40, (f'The worst sum is off by {lost:.0f} roundings: it stagnates, as in the picture. Two partial '
        'sums of about the same size lose little when they are added: neighbors first, then their sums.')
    assert lost > 1.01, ('That is off by one rounding only, so it was accumulated in a longer dtype, as in '
        '`torch.sum`. Add with `+`, so that every partial sum is rounded.')
    for n in (1, 7):
        got = answer(torch.arange(1., n + 1).bfloat16()[:,None]).tolist()
        assert got == [n*(n + 1)/2], (f'The sum of 1 to {n} is {n*(n + 1)/2:g}, but your result is {got}. What happens '
            'to the last row when the number of rows is odd?')
    return (f'{lost:.0f} roundings for 4096 numbers: no number goes through more than 12 additions, the binary '
        'logarithm of 4096.')

def _one_taken_away(logits, targ):
    p = logits.softmax(1)
    p[torch.arange(len(targ)), targ] -= 1
    return p/len(targ)

def _others(logits, targ, sign=-1, n=None):
    p,rows = logits.softmax(1),torch.arange(len(targ))
    p[rows, targ] = 0
    p[rows, targ] = sign*p.sum(1)
    return p/(n or len(targ))

@exercise('11.3', 'Write `sure_grad(logits, targ)`, the gradient of the cross-entropy without a subtraction from 1; '
    'return it, in the dtype of `logits`.', 'The same formula, with five more correct digits: nothing cancels any '
    'more.', wrong=[
    ('the digits are gone', _one_taken_away), ('Raise the score', lambda o, t: _others(o, t, 1)),
    ('multiplied by 32', lambda o, t: _others(o, t, n=1)), ('adds up to 0', lambda o, t: _others(o, t, 0))])
def sure_grad(answer):
    logits,targ,rows = torch.randn(32, 10),torch.randint(0, 10, (32,)),torch.arange(32)
    logits[rows, targ] += 16
    want = autograd_grad(lambda o: F.cross_entropy(o, targ), logits.double()).float()
    got = answer(logits.clone(), targ)
    if isinstance(got, torch.Tensor) and got.shape == want.shape:
        assert got[rows,targ].any(), ('The entries of the right class are 0. Each row of the gradient adds up to 0, so '
            'what must stand there?')
        assert (got[rows,targ] <= 0).all(), ('Raise the score of the right class a little: does the loss grow or '
            'shrink? Look at the sign of that entry.')
        off,share = (got - want).abs().max(),1e-5*want.abs().max()
        assert off < share or off > 1e-8, (f'The formula is right, but the digits are gone: the error is '
            f'{off/want.abs().max():.0%} of the largest entry. Where is 1 subtracted from a number close to 1? The '
                'probabilities of a row add up to 1, so how much less than 1 is that of the right class?')
    yield ask(got, want, 'The gradient', values=dict(logits=logits, targ=targ))

def _forward_error(dtype, h):
    "Relative error of the forward difference of `exp` between 1 and 2 with step `h`, root mean square."
    x = torch.linspace(1, 2, 50, dtype=torch.float64).to(dtype)
    quotient,want = ((x + h).exp() - x.exp())/h,x.double().exp()
    return ((quotient.double() - want)/want).square().mean().sqrt().item()

@exercise('11.4', 'Derive the best step of the forward difference, and write it as `best_step(u)`, where `u` is the '
    'unit roundoff and `f`, `f′′` are of about size 1.', 'The error is about the square root of u as well: eight '
    'digits of sixteen, where the central difference has ten. Its second evaluation is worth the cost.', wrong=[
    ('central difference', lambda u: u**(1/3)), ('Nothing of', lambda u: u), ('the same step', lambda u: 1e-8),
    ('too long: truncation', lambda u: u**.25)])
def best_step(answer):
    assert float(answer(2**-53)) != float(answer(2**-24)), ('It is the same step for float64 and for float32, and '
        'cannot be best for both: `u` is half a billion times larger in the second. How does it depend on `u`?')
    for dtype in (torch.float64, torch.float32):
        u,name = unit_roundoff(dtype),str(dtype)[6:]
        h = float(answer(u)); best = 2*u**.5
        assert h > 4*u, (f'Nothing of a step {h:.1e} is left in x + h: in {name} a rounding is {u:.1e}, so f(x + h) is '
            'f(x) or the next number. Take a longer one.')
        error,least = _forward_error(dtype, h),_forward_error(dtype, best)
        central = math.isclose(h, u**(1/3), rel_tol=.5)
        assert error < 4*least or not central, ('That is the best step of the central difference, whose truncation '
            f'error is a multiple of h². Here it is a multiple of h. In {name} the error is {error:.0e}, and '
                f'{least:.0e} is possible.')
        assert error < 4*least, (f'In {name} your step {h:.1e} has an error of {error:.0e}, and {least:.0e} is '
            f'possible. It is too {"long: truncation" if h > best else "short: rounding"} makes most of it. With which '
                'power of h does each of the two errors grow?')

def kink_slopes():
    s = slope(lambda x: x[0].abs() + x[1].relu(), torch.zeros(2).double(), torch.tensor([1., -1.]).double())
    return s.low, s.high
