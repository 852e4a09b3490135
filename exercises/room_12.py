"Exercises on tracing: contributions of uses, paths through a network, and a square root without nan."
import torch
from fb_pass.doctor.tracing import first_non_finite, trace
from .asking import agree, ask, exercise, rands

_x = torch.tensor([[1., 2., 0.], [3., -1., 2.]], dtype=torch.float64)
_g = torch.tensor([[3., 1., -2.], [1., -1., 2.]], dtype=torch.float64)
_uses = {'*': 7*_g, 'sum': torch.full((2, 3), 13.).double()}

@exercise('12.1', "Work out what the two uses of `x` in `x * x.sum()` contribute to its gradient: a dict with a tensor "
    "for '*' and one for 'sum'.", 'A statistic gives every entry the same gradient in the backward pass.', wrong=[
    ('exchanged', {'*': _uses['sum'], 'sum': _uses['*']}), ('other factor', _uses | {'*': _x*_g}),
    ('adds up these contributions', _uses | {'sum': _x*_g}), ('before it is added up', _uses | {'sum': _g.sum()}),
    ('all of the gradient', _uses | {'*': _uses['*'] + 13}), ('multiply x by', _uses | {'*': 7})])
def product_with_its_sum(answer):
    parts = trace(lambda x: x*x.sum(), dict(x=_x), _g).terms['x']
    missing = [k for k in parts if k not in answer]
    assert not missing, f'There is nothing for {missing}: the two uses are called `*` and `sum`.'
    got = {k: torch.as_tensor(answer[k], dtype=torch.float64).expand(2, 3) for k in parts}
    def is_(k, t): return agree(got[k], t.expand(2, 3))
    assert not (is_('*', parts['sum']) and is_('sum', parts['*'])), ('The numbers are right, but exchanged. Which use '
        'gives every entry the same number?')
    assert not is_('*', sum(parts.values())), ('`*` is all of the gradient. What would the gradient be if the sum were '
        'a constant?')
    assert not is_('*', _x*_g), ('In the backward pass through `*` a factor gets g times the other factor. What is x '
        'multiplied by here?')
    yield ask(got['*'], parts['*'], 'What comes through *', 'If the sum is a constant, which number does it multiply x '
        'by?')
    assert not is_('sum', _x*_g), ('x*g is what each entry of the product contributes to the gradient of the sum. The '
        'sum is one number: its gradient adds up these contributions, and every entry of x gets the total.')
    assert not is_('sum', _g.sum()), ('In the product, the sum is multiplied by another factor. So g is multiplied by '
        'that factor before it is added up.')
    yield ask(got['sum'], parts['sum'], 'What comes through sum', 'Every entry gets the same number. Change the sum by '
        '1: how much does each entry of the product change, and what is g times that, added up?')

def uses_and_ways():
    "Uses of the first input of ten residual blocks, and paths to it."
    def blocks(x):
        for _ in range(10): x = x + x.clone()
        return x
    t = trace(blocks, dict(x=torch.ones(1).double()))
    return len(t.terms['x']), t.grads['x'].item()

def _tied_uses(x, w, g, slope=True, turn=True, inner=True):
    h = (x@w).tanh()
    arrives = g@(w.t() if turn else w)*(1 - h*h if slope else 1)
    return {'@': x.t()@arrives, '@ 2': (h if inner else x).t()@g}

@exercise('12.3', "Write `tied_uses(x, w, g)`: what each of the two uses of `w` contributes to its gradient, as a dict "
    "with '@' and '@ 2'.", 'Their sum is the gradient of the weight. With `=` for `+=` only one of them is left.',
    slips={
    'In `@` something is missing between the two products: the gradient of the output of tanh is not the gradient of '
        'its input.': lambda *ts: _tied_uses(*ts, slope=False),
    'In `@`, `g @ w` has the right shape only because `w` is square. The forward pass sums over the rows of `w`; the '
        'backward pass sums over its columns.':
        lambda *ts: _tied_uses(*ts, turn=False)}, wrong=[
    ('`x`', lambda *ts: _tied_uses(*ts, inner=False)), ('a dict', lambda *ts: sum(_tied_uses(*ts).values()))])
def tied_uses(answer):
    x,w,g = rands((6, 4), (4, 4), (6, 4))
    t = trace(lambda x, w: (x@w).tanh() @ w, dict(x=x, w=w), g)
    got,where = answer(x, w, g),dict(values=t.values, grads={k: o for k,o in t.grads.items() if k != 'w'})
    assert isinstance(got, dict) and got.keys() == t.terms['w'].keys(), ('Return a dict with what each use '
        'contributes, under `@` for the first and `@ 2` for the second.')
    for use,hint in {'@ 2': 'For the second product you have everything: its input and the upstream gradient.',
                     '@': 'Go back one step at a time: through the second product to the output of tanh, then '
                         'through tanh.'}.items():
        yield ask(got[use], t.terms['w'][use], use, hint, **where)

def _standardized_columns(x):
    d = x - x.mean(0)
    return d / (d*d).mean(0).sqrt()

def _columns_back(share=0.):
    "The backward with this share of what comes through the variance."
    def back(x, g):
        d = x - x.mean(0); s = (d*d).mean(0).sqrt()
        gd = g/s - share*d*(g*d).mean(0)/s**3
        return gd - gd.mean(0)
    return back

@exercise('12.4', 'Find what `columns_grad` forgets, and write it again, complete, as `columns_mended(x, g)`.',
    'The path through the variance removes from the gradient its component along the output.', slips={
    'One path is missing altogether. In `d / (d*d).mean(0).sqrt()` d is in the numerator, and where else? '
        '`trace` shows what comes through `mean 2`.': _columns_back(),
    'The path through the variance has the wrong sign: if the variance grows, the output shrinks.':
        _columns_back(-1.),
    'The path through the variance is five times too large, for five rows: the variance is a mean, so its gradient has '
        'a factor 1/n.': _columns_back(5.)}, wrong=[
    ('d*d', _columns_back(.5)), ('terms', lambda x, g: g/x.std(0, correction=0))])
def columns_mended(answer):
    x,g = rands((5, 4), (5, 4))
    t = trace(_standardized_columns, dict(x=x), g)
    got,want,lost = answer(x, g),t.grads['x'],t.paths['x']['mean 2']
    look = ('Compare with a trace: `terms` of x add up to its gradient, and what comes through `mean 2`, the variance, '
        'is among its `paths`.')
    if isinstance(got, torch.Tensor) and got.shape == want.shape:
        factor = 1 + ((got - want)*lost).sum().item()/lost.square().sum().item()
        if agree(got, want + (factor - 1)*lost): # all is right but for a multiple of one path
            look = (f'What comes through the variance is {factor:.3g} times what it should be: go back through the '
                'root, the mean and `d*d`, in which d occurs twice.')
    yield ask(got, want, 'x.g', look, values=t.values, grads={'out.g': g}, terms=t.terms['x'], paths=t.paths['x'])

@exercise('12.5', 'Write `quiet_root(x)`: the root where `x` is positive and 0 elsewhere, with a gradient that is '
    'finite everywhere.', '`where` chooses values; in the backward pass the side that was not chosen gets zeros, and '
    'zero times infinity is not zero.', wrong=[
    ('before the root', lambda x: torch.where(x > 0, x.sqrt(), 0.)),
    ('before the root', lambda x: x.clamp_min(0.).sqrt()), ('before the root', lambda x: x.sqrt().nan_to_num(0.)),
    ('have to stay', lambda x: (x.clamp_min(0.) + 1e-3).sqrt()),
    ('no gradient', lambda x: x.detach().clamp_min(0.).sqrt())])
def quiet_root(answer):
    x = torch.tensor([-1., 0., 4., 9.]).double().requires_grad_()
    out = answer(x)
    assert out.tolist() == [0., 0., 2., 3.], ('The values have to stay the same: 0, 0, 2 and 3 for -1, 0, 4 and 9. '
        f'They are {out.tolist()}.')
    assert out.requires_grad, 'There is no gradient any more: something has cut the graph.'
    found = first_non_finite(lambda: answer(x).sum().backward())
    x.grad = None; answer(x).sum().backward()
    assert x.grad.isfinite().all(), (f'The values are right, but the gradient is {x.grad.tolist()}: the first '
        f'`{found.kind}` comes from `{found.op}`. The derivative of the root is infinite at 0, and a mask after the '
            'root multiplies it by 0, which gives `nan`. Values that must not go into the root have to be replaced '
                'before the root.')
    yield ask(x.grad, torch.tensor([0., 0., 1/4, 1/6], dtype=torch.float64), 'x.g', 'Where x is positive the '
        'derivative is that of the root, elsewhere 0.')
