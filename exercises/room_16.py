"Exercises on speed: a backward pass that makes one tensor, and the cost of a call."
from fb_pass.checks import autograd_grad, peak_memory
from .asking import Ask, ask, exercise, rands

@exercise('16.3', 'Write `sigmoid_back(out, g)` so that it makes one tensor.', 'The gradient is right, and one tensor '
    'is all that it takes.', wrong=[
    ('`mul_`', lambda out, g: g*out*(1 - out)), ('belongs to the caller', lambda out, g: g.mul_(out).mul_(1 - out)),
    ('The upstream gradient', lambda out, g: (1 - out).mul_(out))])
def sigmoid_back(answer):
    x,g = rands((50, 40), (50, 40))
    out = x.sigmoid()
    given = out.clone(),g.clone()
    got = answer(out, g)
    assert out.equal(given[0]) and g.equal(given[1]), ('It has changed `out` or `g`, which belongs to the caller. '
        'Which tensor has your function made itself?')
    want = autograd_grad(lambda x: (x.sigmoid()*g).sum(), x)
    hint = 'The upstream gradient, `g`, is multiplied by `out*(1 - out)`.'
    yield ask(got, want, 'the result', hint, values=dict(out=out), grads={'out.g': g})
    made = peak_memory(lambda: answer(out, g))/(8*out.numel())
    assert made < 1.5, (f'It is right, but at its peak it holds {made:.0f} tensors of this size. `1 - out` makes one; '
        '`mul_` overwrites it.')

def _fitted(f): return lambda n1, t1, n2, t2: f(b := (t2 - t1)/(n2 - n1), t1 - b*n1, t1/n1)

@exercise('16.4', 'Derive `break_even(n1, t1, n2, t2)`.', 'For the steps of this room: put in the times for 64 and '
    '512, and compare with the batches that people use.', slips={
    'That is upside down: it is the work of one example as a share of the overhead.': _fitted(lambda b, a, mean: b/a),
    'That is the overhead of the calls, in seconds. How many examples are as much work?':
        _fitted(lambda b, a, mean: a)}, wrong=[
    ('two unknowns', _fitted(lambda b, a, mean: mean/b)), ('all four numbers', lambda n1, t1, n2, t2: 400.)])
def break_even(answer):
    two = ('There are two unknowns, a and b, and two measurements: t = a + b*n for both. Which n makes b*n as large '
           'as a?')
    four = 'It is right for one pair of measurements, and not for another. Do you use all four numbers?'
    for a,b,n1,n2,hint in ((200., .5, 64, 512, two), (1., .25, 10, 30, four)):
        yield Ask(answer(n1, a + n1*b, n2, a + n2*b), a/b, hint=hint)
