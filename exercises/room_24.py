"Exercises on normalization layers: gradients of centering and of rows of length one."
import torch
from fb_pass.gradients import add_grad
from .asking import ask, ask_twice, exercise, rand

def _overwrites(inp, out): inp.g = out.g - out.g.mean(0)

@exercise('24.2', 'Write `center_grad(inp, out)`, the backward of `inp - inp.mean(0)`: add to `inp.g`.',
    'Centering removes the mean from the values, and from the gradient. The gradient of a batch of one is 0.',
    wrong=[
    ('adds up to 0', lambda inp, out: add_grad(inp, out.g)),
    ('adds up to 0', lambda inp, out: add_grad(inp, out.g - out.g.mean())),
    ('adds up to 0', lambda inp, out: add_grad(inp, out.g - out.g.mean(1, keepdim=True))), ('used twice', _overwrites)])
def center_grad(answer):
    inp = rand(5, 3); out = inp - inp.mean(0); out.g = rand(5, 3)
    hint = 'Adding a number to a whole column changes nothing, so every column of `inp.g` adds up to 0. Does yours?'
    where = dict(values=dict(inp=inp, out=out), grads={'out.g': out.g})
    yield from ask_twice(lambda: answer(inp, out), inp, out.g - out.g.mean(0), hint, **where)
    single, zero = inp[:1].clone(), 0*out[:1]
    single.g, zero.g = torch.ones_like(single), out.g[:1]
    answer(single, zero)
    yield ask(single.g, torch.ones_like(single), 'inp.g of a batch of one')

def _over_length(g, inp): return g/inp.norm(dim=1, keepdim=True)

@exercise('24.3', 'Write `unit_grad(inp, out)`, the backward of `inp / inp.norm(dim=1, keepdim=True)`: add to `inp.g`.',
    'It removes the direction of each row of `out` from the gradient, and keeps all others.', slips={
    'You also removed the mean from the gradient. But the forward pass subtracts no mean, and a shift of the input '
        'does change the output.': lambda inp, out: add_grad(inp, _over_length(
            out.g - out.g.mean(1, keepdim=True) - out*(out.g*out).sum(1, keepdim=True), inp)),
    'That is RMS norm. A length has a sum of squares under the root, no mean: look for the 1/n.':
        lambda inp, out: add_grad(inp, _over_length(out.g - out*(out.g*out).mean(1, keepdim=True), inp))}, wrong=[
    ('stretch', lambda inp, out: add_grad(inp, _over_length(out.g, inp))),
    ('stretch', lambda inp, out: add_grad(inp, _over_length(out.g - out*(out.g*out).sum(), inp)))])
def unit_grad(answer):
    inp = rand(4, 3) + 1; out = inp/inp.norm(dim=1, keepdim=True); out.g = rand(4, 3)
    probe, want = inp.clone(), _over_length(out.g - out*(out.g*out).sum(1, keepdim=True), inp)
    answer(probe, out)
    got, hint = getattr(probe, 'g', None), ('Take the two paths one after the other: the direct one with the length '
        'held fixed, then the one through the length.')
    along = float((got*inp).sum(1).abs().max()) if hasattr(got, 'shape') and got.shape == want.shape else 0.
    if along > 1e-9: hint = ('A stretch of a row changes nothing, so `(inp.g*inp).sum(1)` must be 0; yours is up to '
        f'{along:.3g}. What are the derivatives of the length with respect to each entry, and of `out` by the length?')
    where = dict(values=dict(inp=inp, out=out), grads={'out.g': out.g})
    yield from ask_twice(lambda: answer(inp, out), inp, want, hint, **where)
