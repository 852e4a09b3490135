"Exercises on diagnosis: recognizing faults, writing a hypothesis, and the probability of a coincidence."
import torch
from fb_pass.doctor.diagnosis import Case, explain_grad
from .asking import exercise, rand

causes = 'added twice', 'permuted', 'scaled', 'stale', 'sum extra', 'sum missing', 'transposed'

def cause(exhibit):
    "The diagnosis of one of the four wrong gradients of the exercise."
    x,g = torch.tensor([[1., 2.], [3., -1.], [0., 2.]]),torch.tensor([[2., 1.], [-1., 0.], [1., 3.]])
    want,earlier = x.t()@g,torch.tensor([[1., 0.], [5., 2.]])
    got = dict(a=want.t(), b=want/3, c=x[:1].t()@g[:1], d=want + earlier)[exhibit]
    return explain_grad(got, want, values=dict(x=x), grads={'out.g': g}, earlier=earlier, name='w.g').cause

def _momentum(factor=.9, price=1.4, cheat=False, careful=True):
    def momentum(c):
        for k,e in c.earlier.items():
            if e.shape != c.got.shape and careful: continue
            corrected = c.want.clone() if cheat else c.got - factor*e
            yield c.undone('stale', f'has {factor} times {k} in it', corrected, price)
    return momentum

@exercise('13.2', 'Write a hypothesis `momentum(c)` that yields a fit if `c.got` is the right gradient and 0.9 times '
    'an earlier one.', 'It holds because twelve entries agree to many digits, while its price is one or two.', wrong=[
    ('How much of the earlier', _momentum(1.)), ('subtract', _momentum(-.9)), ('pick one of ten', _momentum(price=0.)),
    ('too high', _momentum(price=500.)), ('explains nothing', _momentum(cheat=True)),
    ('another shape', _momentum(careful=False))])
def hypothesis_of_momentum(answer):
    want,earlier,other = rand(4, 3),rand(4, 3),rand(4, 3)
    c = Case(want + .9*earlier, want, 'w.g', earlier=earlier)
    fits = list(answer(c))
    assert fits, ('It yields nothing for a gradient that has 0.9 times the earlier one in it. `c.earlier` is a '
        'dictionary of earlier gradients by name.')
    fit = min(fits, key=lambda o: o.left)
    by_chance = any(o.left <= c.tol for o in answer(Case(other, want, 'w.g', earlier=earlier)))
    assert not by_chance, ('It accepts a random gradient. A correction that starts from `c.want` explains nothing: it '
        'has to be computed from `c.got` and the earlier gradient.')
    doubled = fit.corrected is not None and torch.allclose(fit.corrected, want + 1.8*earlier)
    look = 'Undo what was added: subtract it.' if doubled else 'How much of the earlier gradient is in it?'
    assert fit.left <= c.tol, f'The error after the correction is {fit.left:.2g} of the largest entry. {look}'
    assert fit.price >= 1, (f'The price is {fit.price:g}. Why 0.9, and not 0.8 or 0.5? It takes a digit to pick one of '
        'ten factors, and there are more.')
    assert c.accepts(fit), (f'A price of {fit.price:g} digits is too high: `c.luck(fit)` is {c.luck(fit):.0f} and has '
        'to be below -2.5. The constants of this room cost one to three digits.')
    silent = not any(list(answer(Case(want, want + 1, 'w.g', earlier=e))) for e in (None, rand(3)))
    assert silent, 'If there is no earlier gradient, or one of another shape, it must yield nothing.'

def entries_needed(dtype, price, **kw):
    "How many different entries there must be, all of them right after the correction, before luck is below -2.5."
    for n in range(1, 99):
        want = torch.arange(1., n + 1).to(dtype)
        c = Case(-want if kw.get('coarse') else 2*want, want, 'w.g')
        if c.luck(c.undone('scaled', '', c.want, price, **kw)) < -2.5: return n

@exercise('13.4', 'Choose the sizes `(n, n_in, n_out)` so that the diagnosis is certain and names only the batch size.',
    wrong=[
    ('there is no fault', (1, 3, 2)), ('plainer name', (2, 4, 3)), ('two lengths', (4, 4, 3)),
    ('two lengths', (3, 4, 3))])
def sizes_of_a_test(answer):
    n,n_in,n_out = answer
    assert all(isinstance(o, int) and 1 <= o <= 50 for o in answer), ('Three whole numbers from 1 to 50: examples, '
        'inputs, outputs.')
    assert n > 1, ('With a batch of one a mean is a sum, so there is no fault. A test with one example cannot show a '
        'fault that depends on the batch size.')
    x,w,g = rand(n, n_in),rand(n_in, n_out),rand(n, n_out)
    d = explain_grad(x.t()@g/n, x.t()@g, values=dict(x=x, w=w), grads={'out.g': g}, name='w.g')
    said = f'It says: {d.text}'
    assert d.confident, f'It is not certain: {d.text} Each different entry is a witness; how many are there?'
    assert 'half' not in d.text, (f'{said} The factor has a plainer name, one that does not point to the batch. For '
        'which batch sizes is one over the size a plain number?')
    assert ' or ' not in d.text.split(':')[0], (f'{said} There are two lengths that are the same, so the factor cannot '
        'be attributed to one of them.')
    assert 'the batch size' in d.text, f'{said} That does not point to the batch. Try another size for it.'
    return said
