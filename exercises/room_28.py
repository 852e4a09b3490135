"Exercises on the way into torch: a backward that computes what is asked for."
import torch
from .asking import ask, exercise, rands

class _Counts(torch.overrides.TorchFunctionMode):
    "Counts matrix products and sums."
    def __init__(self): super().__init__(); self.calls = 0
    def __torch_function__(self, f, types, args=(), kwargs=None):
        self.calls += getattr(f, '__name__', '') in ('matmul', '__matmul__', 'mm', 'sum', 'einsum', '__rmatmul__')
        return f(*args, **kwargs or {})

def _all(g, x, w): return g@w.t(), x.t()@g, g.sum(0)
def _needed(grads, needs): return tuple(g if need else None for g,need in zip(grads, needs))

@exercise('28.2', 'Write `frugal(g, x, w, needs)`, the gradients that are needed, `None` for the others.',
    'For the first layer of a network that is one product of three saved in each step.', slips={
    'The gradient of `b` is summed over the rows, not averaged.':
        lambda g, x, w, needs: _needed((g@w.t(), x.t()@g, g.mean(0)), needs),
    'What is not needed is `None`, not zeros: nobody has to add zeros then.':
        lambda g, x, w, needs: tuple(t if need else 0*t for t,need in zip(_all(g, x, w), needs))}, wrong=[
    ('computed', lambda g, x, w, needs: _needed(_all(g, x, w), needs)),
    ('is needed', lambda g, x, w, needs: (None, None, None))])
def frugal(answer):
    x,w,g = rands((5, 4), (4, 3), (5, 3))
    for needs in ((True, True, True), (False, True, True), (True, False, True), (False, False, True)):
        with _Counts() as counts: found = answer(g, x, w, needs)
        for k,got,want,need in zip(('x', 'w', 'b'), found, _all(g, x, w), needs, strict=True):
            if need:
                assert got is not None, f'{k}.g is needed here, as needs is {needs}.'
                yield ask(got, want, f'{k}.g', 'What does the shape say?', values=dict(x=x, w=w), grads={'out.g': g})
            else: yield ask(got is None, True, f'{k}.g is None', 'What is not needed is None.')
        assert counts.calls <= sum(needs), 'The gradients are right, but some are computed for nobody.'
