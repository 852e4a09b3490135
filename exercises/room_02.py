"Exercises on normalization: statistics of the right data, gradients of centering and of the root mean square."
import torch
from fb_pass.normalization import normalize
from .asking import exercise, rand

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
