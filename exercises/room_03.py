"Exercises on initialization: the size of weights, and how much of it an activation keeps."
import math

import torch
from fb_pass.initialization import kaiming_std
from .asking import exercise

@exercise('03.2', 'Write `abs_std(fan)`, the size of weights that keeps the second moment if the activation is '
    '`z.abs()`.', 'A square has no sign, so the absolute value keeps all of it.', wrong=[
    ('Twice that', kaiming_std), ('root', lambda fan: 1/fan), ('fan', lambda fan: 1.)])
def abs_std(answer):
    sizes = {fan: float(answer(fan)) for fan in (4, 100)}
    x = torch.randn(2000, 100)
    factor = float((x @ (torch.randn(100, 500)*sizes[100])).abs().pow(2).mean() / x.pow(2).mean())
    hint = ('Solve `fan * size**2 * share = 1` for the size; mind the root, and what share of the squares the '
        'activation leaves.')
    if abs(factor - 2) < .1: hint = ('Twice that: your size is for an activation that removes half. What does `abs` do '
        'to a square?')
    assert abs(factor - 1) < .05, (f'I tried it with 100 inputs: after one layer the second moment is {factor:.3g} '
        f'times what it was. {hint}')
    fits = abs(sizes[4] - .5) < 1e-6 and abs(sizes[100] - .1) < 1e-6
    assert fits, f'It is right for a fan of 100, but not for a fan of 4: there it gives {sizes[4]:.3g}.'

def _drawn(n_out, n_in, after='relu'):
    return torch.nn.init.kaiming_normal_(torch.empty(n_out, n_in), nonlinearity=after)

@exercise('03.3', 'Write `draw_mended(n_in, n_out)`: weights `(n_in, n_out)` of the size that keeps the activations.',
    "`mode='fan_out'` on our shape does the same: the two names are exchanged with the axes.", wrong=[
    ('second axis', lambda n_in, n_out: _drawn(n_in, n_out)), ('shape', lambda n_in, n_out: _drawn(n_out, n_in)),
    ('what ReLU removes', lambda n_in, n_out: _drawn(n_out, n_in, 'linear').t())])
def draw(answer):
    w = answer(600, 100)
    fits = isinstance(w, torch.Tensor) and tuple(w.shape) == (600, 100)
    assert fits, f'The shape is {tuple(getattr(w, "shape", ()))}, expected (600, 100): `x@w` needs it so.'
    ratio, mean = float(w.std()) / kaiming_std(600), float(w.mean())
    said = f'The weights have {ratio:.2f} times the size they should have,'
    assert abs(ratio - 6**.5) > .1, (f'{said} the root of 600/100: torch reads `fan_in` from the second axis. Which '
        'axis is that in ours?')
    assert abs(ratio - 1) < .05 and abs(mean) < 5e-3, (f'{said} `kaiming_std(600)`, and mean {mean:.3f}. Is the fan '
        'right, and is there a 2 for what ReLU removes?')

@exercise('03.5', 'Find `alpha` and `beta` such that `alpha*(relu(z) - beta)` has mean 0 and second moment 1 for '
    'standard normal `z`.', 'With weights of variance `1/fan` it keeps mean and size through any number of layers. Try '
    'twenty, and look at `mean_cosine`.', wrong=[
    ('the mean is', (1.7128, .5)), ('the mean is', (.3989, 1.7128)), ('second moment', (2**.5, .3989)),
    ('second moment', (1/(.5 - .5/math.pi), .3989))])
def centered_relu(answer):
    assert isinstance(answer, (tuple, list)) and len(answer) == 2, 'Give two numbers, `alpha` and `beta`.'
    alpha, beta = map(float, answer)
    out = alpha*(torch.randn(1_000_000, dtype=torch.float64).relu() - beta)
    mean, moment = float(out.mean()), float(out.pow(2).mean())
    assert abs(mean) < .01*abs(alpha), f'I drew a million numbers: the mean is {mean:.3f}. Which `beta` makes it 0?'
    assert abs(moment - 1) < .02, (f'The mean is near 0. The second moment is {moment:.3f}: with mean 0 it is the '
        'variance, which is `alpha**2` times that of `relu(z)`.')
    assert alpha > 0, 'Both moments are right. Take the positive `alpha`, so that it still points up like ReLU.'
