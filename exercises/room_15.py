"Exercises on the doctor's report: right and wrong backward passes, and one that the check does not detect."
import torch
from fb_pass.doctor import check_layer
from fb_pass.forward import lin
from fb_pass.backward import lin_grad
from fb_pass.gradients import add_grad
from fb_pass.modules import Module
from fb_pass.training import log_softmax
from .asking import agree, exercise, rand, rands

def _findings(layer, *inputs, **kw):
    "What `check_layer` says is wrong, in words; empty if nothing is."
    report = check_layer(layer, *inputs, raise_exception=False, progress=False, **kw)
    return str(report).split('largest entry.')[-1].strip()

_log_softmax_slips = {
    'The logarithm of the sum is one number for each row, and it depends on x as well.': lambda out, grad: grad,
    'An entry of x is in the logarithm, and so in every output of its row. What do all of these contribute?':
        lambda out, grad: grad - out.exp()*grad,
    'Your sum goes over the wrong axis: which outputs does an entry of x affect?':
        lambda out, grad: grad - out.exp()*grad.sum(0),
    'The derivative of the logarithm of the sum is a probability. Is `out` one?':
        lambda out, grad: grad - out*grad.sum(1, keepdim=True)}

@exercise('15.1', 'Write `log_softmax_back(out, grad)`, the backward of the logarithm of a softmax along the last '
    'axis; return the gradient of its input.', 'All three references agree. For a loss that picks one entry of each '
    'row, this gives the probabilities with 1 subtracted at the right class.', _log_softmax_slips, wrong=[
    ('The report says', lambda out, grad: grad + out.exp()*grad.sum(1, keepdim=True))])
def log_softmax_back(answer):
    x,g = rands((6, 4), (6, 4)); y = x.log_softmax(1)
    found,got = _findings((log_softmax, answer), x),answer(y, g)
    for hint,slip in _log_softmax_slips.items():
        if agree(got, slip(y, g)): found += ' ' + hint
    assert not found, f'The report says: {found}'

def passed_by_ones():
    "Names of the wrong gradients of a softmax that pass with ones as upstream gradient."
    y = rand(3, 4).softmax(1)
    def right(g): return y*(g - (g*y).sum(1, keepdim=True))
    faults = dict(zeros=lambda g: 0*g, twice=lambda g: 2*right(g), no_sum=lambda g: y*g,
                  plain_mean=lambda g: y*(g - g.mean(1, keepdim=True)))
    ones = torch.ones_like(y)
    return {k for k,f in faults.items() if torch.allclose(f(ones), right(ones), atol=1e-12)}

def _dropout(again=False, first=False, half=False, add=True):
    "A dropout layer, right or with one fault."
    class Dropout(Module):
        mask = None
        def forward(self, inp):
            if self.mask is None or not first: self.mask = (torch.rand_like(inp) > .5)*2.
            return inp*self.mask
        def bwd(self, out, inp):
            mask = (torch.rand_like(inp) > .5)*2. if again else self.mask
            g = out.g*mask.to(out.g)*(.5 if half else 1)
            if add: add_grad(inp, g)
            else: inp.g = g
    return Dropout

@exercise('15.3', 'Write `Dropout` again so that its backward is right.', 'The check works although the layer is '
    'random: every call starts from the same random state.', wrong=[
    ('the same random numbers', _dropout(again=True)), ('first call', _dropout(first=True)),
    ('multiplied by 0.5', _dropout(half=True)), ('overwritten', _dropout(add=False)),
    ('the class itself', _dropout()())])
def dropout_mended(answer):
    assert isinstance(answer, type), 'Give the class itself: the check makes a layer of it.'
    x = rand(6, 5)
    layer = answer(); outs = [layer(x.clone()) for _ in range(2)]
    assert not torch.equal(*outs), ('It drops the same entries in the first call and in the second. New random numbers '
        'are drawn in every call.')
    assert all(((o == 0) | torch.isclose(o, 2*x)).all() for o in outs), ('The output has to stay the same: each entry '
        'is 0 or doubled.')
    found = _findings(answer(), x)
    assert not found, (f'The report says: {found} The backward needs the same random numbers as the forward of the '
        'same call.')

def _column_factors(w_grad):
    "An autograd.Function for `x*w` with `w` of shape `(c,)`, and the given gradient of `w`."
    class ColumnFactors(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, w): ctx.save_for_backward(x, w); return x*w
        @staticmethod
        def backward(ctx, g):
            x,w = ctx.saved_tensors
            return g*w, w_grad(g, x)
    return ColumnFactors

@exercise('15.4', 'Fill in the backward of `ColumnFactors`: return a gradient for `x` and one for `w`.',
    'In a batch of one the sum has a single term, so a fault in it cannot be seen. This check had five rows.', wrong=[
    ('lacks a sum', _column_factors(lambda g, x: g*x)),
    ('multiplied by 0.2', _column_factors(lambda g, x: (g*x).mean(0))),
    ('only the first', _column_factors(lambda g, x: (g*x)[0])), ('the factor', _column_factors(lambda g, x: g.sum(0))),
    ('absent', _column_factors(lambda g, x: None))])
def column_factors(answer):
    assert isinstance(answer, type) and issubclass(answer, torch.autograd.Function), ('Give the class itself, an '
        '`autograd.Function`.')
    x,w = rands((5, 3), (3,)); ctx = type('Saved', (), dict(saved_tensors=(x, w)))
    found = _findings(answer, x, w)
    assert not found, f'The report says: {found}'
    assert answer.backward(ctx, x)[1].shape == w.shape, ('The gradient of `w` lacks a sum: autograd adds up what was '
        'broadcast by itself, but here you do it.')

def _lin_times(factor):
    def sneaky(inp, out, w, b):
        add_grad(inp, out.g@w.t()); add_grad(b, out.g.sum(0)); add_grad(w, inp.t()@out.g*factor(inp))
    return sneaky

@exercise('15.5', 'Write `sneaky(inp, out, w, b)`, a backward of `lin` that a quick `check_layer` calls right for five '
    'examples, and that is wrong for other batches.', 'A quick check is valid for one shape only. Without `quick=True` '
    'another one is tried as well.', wrong=[
    ('right', lin_grad), ('caught', _lin_times(lambda inp: 1/len(inp))),
    ('caught', _lin_times(lambda inp: 1 + inp[0,0])), ('right', _lin_times(lambda inp: 1 + 1e-17))])
def sneaky(answer):
    w,b = rands((4, 3), (3,))
    found = _findings((lin, answer), rand(5, 4), w, b, quick=True)
    assert not found, (f'It is caught with five examples already: {found} What is the same in all passes of this '
        'check?')
    wrong_elsewhere = any(_findings((lin, answer), rand(n, 4), w, b, quick=True) for n in (1, 2, 3, 6, 8))
    assert wrong_elsewhere, ('This one is right: for 1, 2, 3, 6 and 8 examples nothing is wrong either. The check '
        'changes the numbers, but what does it never change?')
