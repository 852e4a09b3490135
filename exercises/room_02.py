"Exercises on normalization: statistics of the right data, gradients of centering and of the root mean square."
import torch
from fb_pass.gradients import add_grad
from fb_pass.normalization import normalize
from .asking import ask, ask_twice, exercise, rand

def _own(t): return normalize(t, t.mean(), t.std())
def _together(*sets): t = torch.cat(sets); return [normalize(o, t.mean(), t.std()) for o in sets]

@exercise('02.2', 'Write `prepare_mended(train, valid)`: both sets normalized, without the bug.', 'Mean and standard '
    'deviation come from the training set and belong to the model. Other data need not have exactly 0 and 1.', wrong=[
    ('brighter', lambda train, valid: (_own(train), _own(valid))), ('training set has mean', _together),
    ('brighter', lambda train, valid: (_own(train), normalize(valid, train.mean(), valid.std())))])
def prepare(answer):
    train = rand(20, 3)*2 + 5; valid = rand(8, 3)*3 + 7
    got = answer(train, valid)
    assert isinstance(got, (tuple, list)) and len(got) == 2, ('Return two tensors, the training set and the validation '
        'set.')
    m,s = got[0].mean(),got[0].std()
    assert abs(m) < 1e-9 and abs(s - 1) < 1e-9, (f'The training set has mean {m:.3f} and standard deviation {s:.3f}: '
        'its statistics include the validation set. Compute them from the training set alone.')
    moved = float((answer(train, valid*1.5)[1] - got[1]).abs().max())
    right = torch.allclose(got[1], normalize(valid, train.mean(), train.std()))
    assert moved > 1e-6 and right, ('Suppose that the validation digits are brighter or more varied than the '
        'others: with your function the network cannot see it. Whose statistics should it use?')

def _joined(pieces): return torch.cat(pieces).double()
def _mean_of_means(pieces): return sum(o.double().mean() for o in pieces)/len(pieces), _joined(pieces).std()
def _naive(pieces):
    n = sum(o.numel() for o in pieces); m = sum(o.sum() for o in pieces)/n
    return m, ((sum(o.pow(2).sum() for o in pieces) - n*m**2)/(n - 1)).clamp_min(0.).sqrt()

@exercise('02.3', 'Write `mean_and_std(pieces)`, which returns the mean and the unbiased standard deviation of all '
    'entries.', 'Two passes over the data, one for the mean and one for the squares. With Welford\'s algorithm a '
    'single pass is enough.', wrong=[
    ('different lengths', _mean_of_means), ('digits', _naive),
    ('N - 1', lambda pieces: (_joined(pieces).mean(), _joined(pieces).std(correction=0)))])
def mean_and_std(answer):
    digits = ('Near 10,000, float32 has three digits after the point, and the square of 10,000 has none. Subtract the '
        'mean before you square, or add up in float64.')
    for shift,why in ((0., ''), (1e4, digits)):
        pieces = [torch.randn(n, 2)*(1 + n/10) + shift + n/10 for n in (3, 5, 12)]
        t, got = _joined(pieces), answer(pieces)
        assert isinstance(got, (tuple, list)) and len(got) == 2, ('Return two numbers, the mean and the standard '
            'deviation.')
        (mean, std), plain = map(float, got), float(_mean_of_means(pieces)[0])
        right = abs(mean - float(t.mean())) < 1e-6*abs(mean)
        assert right or abs(mean - plain) > 1e-6*abs(plain), ('That is the mean of the means. The pieces have '
            'different lengths, so they have different weights.')
        assert abs(mean - float(t.mean())) < 1e-5*abs(mean), f'The mean is {mean:.6g}, expected {t.mean():.6g}. {why}'
        assert abs(std - float(t.std(correction=0))) > 1e-5*std, ('That is the biased one: divide by N - 1, where N '
            'counts the entries of all pieces.')
        assert abs(std - float(t.std())) < 1e-4*float(t.std()), (f'The standard deviation is {std:.6g}, expected '
            f'{t.std():.6g}. {why}')

def _overwrites(inp, out): inp.g = out.g - out.g.mean(0)

@exercise('02.4', 'Write `center_grad(inp, out)`, the backward of `inp - inp.mean(0)`: add to `inp.g`.',
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

@exercise('02.5', 'Write `rms_grad(inp, out, r)`, the backward of `inp / r` with `r` the root mean square of `inp`: '
    'add to `inp.g`.', 'It removes the direction of `out` from the gradient, and keeps all others.', slips={
    'You also removed the mean from the gradient. But the forward pass subtracts no mean, and a shift of the input '
        'does change the output.':
        lambda inp, out, r: add_grad(inp, (out.g - out.g.mean() - out*(out.g*out).mean())/r)}, wrong=[
    ('stretch', lambda inp, out, r: add_grad(inp, out.g/r)),
    ('stretch', lambda inp, out, r: add_grad(inp, (out.g - out*(out.g*out).sum())/r)),
    ('stretch', lambda inp, out, r: add_grad(inp, (out.g - out*(out.g*out).sum()/(out.numel() - 1))/r))])
def rms_grad(answer):
    inp = rand(4, 3) + 1; r = inp.pow(2).mean().sqrt(); out = inp/r; out.g = rand(4, 3)
    probe, want = inp.clone(), (out.g - out*(out.g*out).mean())/r
    answer(probe, out, r)
    got, hint = getattr(probe, 'g', None), ('Take the two paths one after the other: the direct one with `r` held '
        'fixed, then the one through `r`.')
    along = float((got*inp).sum()) if isinstance(got, torch.Tensor) and got.shape == want.shape else 0.
    if abs(along) > 1e-9: hint = ('A stretch of `inp` changes nothing, so `(inp.g*inp).sum()` must be 0; yours is '
        f'{along:.3g}. What are the derivatives of `r` with respect to each entry, and of `out` with respect to `r`?')
    where = dict(values=dict(inp=inp, out=out, r=r), grads={'out.g': out.g})
    yield from ask_twice(lambda: answer(inp, out, r), inp, want, hint, **where)
