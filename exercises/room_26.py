"Exercises on a GPT: the gradients of a residual with a factor, and of the mean over two micro-batches."
from fb_pass.checks import autograd_grad
from .asking import ask, exercise, rands

@exercise('26.2', 'Write `scaled_grad(g, x, h, s)`, the gradients of `x`, `h` and `s` in `out = x + s*h`.',
    'With `s` at zero such a network begins as if it had no layers, and still each `s` has a gradient.', slips={
    'What goes past the layers is not scaled.': lambda g, x, h, s: (g*s, g*s, (g*h).sum(0)),
    'In `s*h` each is the slope of the other.': lambda g, x, h, s: (g, g*h, (g*s).sum(0)),
    'A sum does not share its gradient out: each summand gets all of it.':
        lambda g, x, h, s: (g/2, g*s/2, (g*h).sum(0)),
    'The same `s` is used in every row: contributions are added, not averaged.':
        lambda g, x, h, s: (g, g*s, (g*h).mean(0))}, wrong=[
    ('has shape (5, 3)', lambda g, x, h, s: (g, g*s, g*h))])
def scaled_grad(answer):
    x,h,s,g = rands((5, 3), (5, 3), (3,), (5, 3))
    wants = autograd_grad(lambda x, h, s: ((x + s*h)*g).sum(), x, h, s)
    for k,got,want in zip(('x', 'h', 's'), answer(g, x, h, s), wants, strict=True):
        yield ask(got, want, f'{k}.g', 'Begin with one row: what is the derivative of x + s*h?',
                  values=dict(x=x, h=h, s=s), grads={'out.g': g})

@exercise('26.3', 'Write `together(g1, n1, g2, n2)`, the gradient of the mean loss over all targets.',
    'So windows that do not fit into memory together can be handled one after the other, and machines can share them.',
    slips={
    'If one micro-batch has three targets and the other nine, should each of the three count three times as much?':
        lambda g1, n1, g2, n2: (g1 + g2)/2,
    'The loss is a mean, so its gradient has to be divided.': lambda g1, n1, g2, n2: n1*g1 + n2*g2,
    'That is the gradient of the sum of two means.': lambda g1, n1, g2, n2: g1 + g2,
    'Which of the two counts more, the one with more targets or the one with fewer?':
        lambda g1, n1, g2, n2: (n2*g1 + n1*g2)/(n1 + n2),
    'Each of the two gradients is already divided by its own number of targets.':
        lambda g1, n1, g2, n2: (g1 + g2)/(n1 + n2)})
def together(answer):
    w,x = rands((4,), (12, 4))
    def grad(x): return autograd_grad(lambda w: (x@w).sin().mean(), w)
    for n in 3, 10:
        yield ask(answer(grad(x[:n]), n, grad(x[n:]), 12 - n), grad(x), 'the gradient', 'Write the mean over all '
                  'targets as two sums, and each sum as a mean times a number.', values=dict(g1=grad(x[:n])))
