"Exercises on activation functions: a slope that does not overflow, and what was stretched is summed."
import torch
from .asking import ask, exercise, rand, rands

def _quotient(g, out, x): return g*x.exp()/(1 + x.exp())

@exercise('22.2', 'Write `softplus_grad(g, out, x)`, the gradient of `log(1 + exp(x))` with respect to `x`.',
    'The slope of softplus is the sigmoid, as the slope of ReLU is a step from 0 to 1.', slips={
    'By the chain rule: the derivative of the logarithm is 1/(1 + exp(x)), times the derivative of what is inside.':
        lambda g, out, x: g/(1 + x.exp()),
    'That is the derivative of the sigmoid. Differentiate `log(1 + exp(x))` once.':
        lambda g, out, x: g*x.sigmoid()*(1 - x.sigmoid()),
    'The slope alone: multiply by the upstream gradient `g`.': lambda g, out, x: x.sigmoid()}, wrong=[
    ('exponent', _quotient), ('a tensor', lambda g, out, x: 1.)])
def softplus_grad(answer):
    g,x = rands((4, 3), (4, 3))
    out = (1 + x.exp()).log()
    yield ask(answer(g, out, x), g*x.sigmoid(), 'x.g', values=dict(x=x, out=out), grads={'out.g': g})
    far = torch.tensor([-1000., -50., 0., 50., 1000.])
    got = answer(torch.ones(5), far.clamp_min(0.), far)
    assert got.isfinite().all(), (f'It is right for small numbers. For x = {far.tolist()} in float32 it is '
        f'{got.tolist()}. Which exponent is positive and large there? Which function of torch avoids it?')
    yield ask(got, far.sigmoid(), 'x.g in float32')

def _grads(dims, keep=True, mean=False):
    def answer(g, x, s, b):
        def total(t): return (t.mean if mean else t.sum)(dims, keepdim=keep)
        return g*s, total(g*x), total(g)
    return answer

@exercise('22.3', 'Write `channel_grads(g, x, s, b)`, the gradients of `x`, `s` and `b` for `out = x*s + b`.',
    'Summed over every axis of length 1 that was stretched, and over no other.', slips={
    'The contributions of all places are added, not averaged.': _grads((0, 2, 3), mean=True),
    'In `x*s`, by what is `s` multiplied? That is the derivative with respect to it.':
        lambda g, x, s, b: (g*s, g.sum((0, 2, 3), keepdim=True), g.sum((0, 2, 3), keepdim=True)),
    'Along which axes was `s` stretched? The batch is one of them.': lambda g, x, s, b: (
        g*s, (g*x).sum((2, 3), keepdim=True), g.sum((2, 3), keepdim=True))}, wrong=[
    ('three gradients', lambda g, x, s, b: g*s), ('shape', _grads((0, 2, 3), keep=False)),
    ('x.g', lambda g, x, s, b: (g, *_grads((0, 2, 3))(g, x, s, b)[1:])), ('shape', _grads((0, 1, 2, 3)))])
def channel_grads(answer):
    (g,x),s,b = rands((4, 3, 2, 5), (4, 3, 2, 5)),rand(1, 3, 1, 1),rand(1, 3, 1, 1)
    got = answer(g, x, s, b)
    assert isinstance(got, tuple) and len(got) == 3, 'Return three gradients, those of `x`, `s` and `b`, as a tuple.'
    dims = (0, 2, 3)
    for i in (1, 2, 0):
        want = (g*s, (g*x).sum(dims, keepdim=True), g.sum(dims, keepdim=True))[i]
        yield ask(got[i], want, f"{'xsb'[i]}.g", 'A gradient has the shape of its tensor: `keepdim=True` keeps the '
                  'axes that are summed.' if i else 'The derivative of `x*s` with respect to `x` is `s`.')
