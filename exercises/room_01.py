"Exercises on checks: a slope along a direction, a check that refuses what it must, and one that is fooled."
import torch
from fb_pass.checks import autograd_grad, check_grad, numerical_grad
from fb_pass.gradients import add_grad, clear_grads
from .asking import exercise, rand

def _along_unit(f, x, v, eps=1e-5): v = v/v.norm(); return (f(x + eps*v) - f(x - eps*v)) / (2*eps)

@exercise('01.3', 'Write `slope_along(f, x, v)`: a central difference along the direction `v`, in two evaluations.',
    'One random direction sees a fault in any entry. Where it fails, `numerical_grad` tells which one.', wrong=[
    ('from both sides', lambda f, x, v, eps=1e-5: (f(x + eps*v) - f(x)) / eps),
    ('distance between the two', lambda f, x, v, eps=1e-5: (f(x + eps*v) - f(x - eps*v)) / eps),
    ('length of `v`', _along_unit), ('evaluations', lambda f, x, v, eps=1e-5: (numerical_grad(f, x)*v).sum())])
def slope_along(answer):
    x,v,calls = rand(3, 4),3*rand(3, 4),[]
    def f(x): calls.append(x); return (x.exp()*x).sum()
    got, want = float(answer(f, x, v)), float((autograd_grad(lambda x: (x.exp()*x).sum(), x)*v).sum())
    ratio = got/want
    off = abs(ratio - 1)
    assert abs(ratio - 2) > 1e-3, 'Twice as much as it should be: what is the distance between the two points?'
    assert abs(ratio*v.norm() - 1) > 1e-3, ('It depends on the length of `v`: a step of `eps` along `v` is `eps*v`, '
        'however long that is.')
    assert off > 1e-2 or off < 1e-8, (f'Nearly: it is off by {off:.0e}. From both sides it would be about 1e-10, since '
        'the error goes with the square of the step.')
    assert off < 1e-8, f'It gives {got:.4f}, while `(x.g*v).sum()` is {want:.4f}.'
    assert len(calls) <= 2, f'The value is right. But it took {len(calls)} evaluations of `f`, and two are enough.'

def _stale(backward, x, want): backward(x); check_grad(x.g, want)
def _clears_late(backward, x, want): backward(x); clear_grads(x); check_grad(x.g, want)
def _keeps_quiet(backward, x, want): clear_grads(x); backward(x)
def _answers(backward, x, want): clear_grads(x); backward(x); return torch.allclose(x.g, want)

@exercise('01.4', 'Write `check_backward_mended(backward, x, want)`, so that no gradient of an earlier pass can help.',
    'Clear, run, compare. A check that has never refused anything has not been checked.', wrong=[
    ('earlier pass', _stale), ('right backward', _clears_late), ('wrong gradient', _keeps_quiet),
    ('wrong gradient', _answers)])
def check_backward(answer):
    x = rand(3, 2); want = 2*x
    def good(x): add_grad(x, 2*x)
    def refuses(backward, x):
        try: answer(backward, x, want)
        except AssertionError: return True
    assert not refuses(good, x), 'It refuses a right backward. What is in `x.g` when the comparison is made?'
    assert refuses(lambda x: add_grad(x, -2*x), rand(3, 2)), ('It accepts a wrong gradient: it must raise '
        '`AssertionError`, as `check_grad` does.')
    clear_grads(x); good(x)
    assert refuses(lambda x: None, x), ('A backward that does nothing still passes, with what an earlier pass has left '
        'in `x.g`.')
    assert not refuses(good, x), 'A right backward is refused if something was in `x.g` before.'

@exercise('01.5', 'Write `impostor(want)`: `test_close(got, want, eps=1e-2)` accepts it, and it points the other way.',
    'The sign of every entry is wrong, and the test passed. `check_grad` divides by the largest entry first.',
    wrong=[
    ('right gradient', lambda want: want), ('test_close', lambda want: want - 1), ('stands still', torch.zeros_like),
    ('downhill', lambda want: want/2)])
def impostor(answer):
    want = rand(20)*1e-4
    got = answer(want)
    assert isinstance(got, torch.Tensor) and got.shape == want.shape, 'Return a tensor of the shape of `want`.'
    off, along = float((got - want).abs().max()), float((got*want).sum() / want.pow(2).sum())
    assert off <= 1e-2, f'`test_close` refuses it: an entry is off by {off:.2g}. How small are the entries of `want`?'
    right = abs(along - 1) < 1e-6 and torch.allclose(got, want, rtol=1e-3, atol=0.)
    assert not right, 'That is the right gradient. What would lead a network astray?'
    assert along != 0, 'With zeros a network stands still. Find one with which it goes the wrong way.'
    assert along < 0, 'A step along this one still goes downhill, if slowly.'
