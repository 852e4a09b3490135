"Exercises on modules: whole layers, a layer that does not keep its mask, and one object in two places."
import torch
from fb_pass.checks import autograd_grad
from fb_pass.gradients import add_grad
from fb_pass.modules import Lin, Module, Relu
from .asking import agree, ask, ask_twice, exercise, rands

def _scale(grad, keep=True, own=True, add=add_grad):
    "A wrong `Scale`: with this gradient for the number, none for the input, or another number than its own."
    class Scale(Module):
        def __init__(self, s): self.s = s if own else s.clone()
        @property
        def params(self): return self.s,
        def forward(self, inp): return self.s*inp
        def bwd(self, out, inp):
            if keep: add_grad(inp, self.s*out.g)
            add(self.s, grad(inp, out.g))
    return Scale

def _summed(inp, g): return (inp*g).sum()[None]

@exercise('06.1', 'Write `Scale`, a `Module` that multiplies its input by a learned number `s` of shape `(1,)`.',
    'What was broadcast in the forward pass is summed in the backward pass, as with the bias, but here along both '
    'axes.', slips={
    'The contributions of all entries are added, not averaged: a sum, not a mean.':
        _scale(lambda inp, g: (inp*g).mean()[None]),
    'In `s*inp`, by what is the number multiplied? That is the derivative with respect to it.':
        _scale(lambda inp, g: g.sum()[None])}, wrong=[
    ('is used once for every entry', _scale(lambda inp, g: inp*g)), ('inp.g', _scale(_summed, keep=False)),
    ('`layer.params`', _scale(_summed, own=False)),
    ('do not overwrite', _scale(_summed, add=lambda t, g: setattr(t, 'g', g)))])
def scale(cls):
    inp,s,u = rands((4, 3), (1,), (4, 3))
    layer = cls(s)
    out = layer(inp)
    assert agree(out, s*inp), 'Look at `forward` first: the output is `s` times the input, entry by entry.'
    assert any(p is s for p in layer.params or ()), ('The output is right, but `layer.params` does not contain '
        'the number, so an optimizer would never change it. Keep the tensor itself as an attribute, as `Lin` does, and '
        'no copy of it.')
    out.g = u
    twice = ('The first pass is right. But the number may be used in a second place, and then it collects two '
        'gradients: add, do not overwrite.')
    upstream = 'The layer before needs this gradient as its upstream gradient.'
    for n in (1, 2):
        try: layer.backward()
        except ValueError as e: raise AssertionError(f'{e}\nThe number is used once for every entry of the input. '
            'How do the gradients of all these uses combine?') from None
        where, hint = dict(values=dict(inp=inp), grads={'out.g': u}), twice if n == 2 else ''
        yield ask(getattr(inp, 'g', None), n*s*u, 'inp.g', hint or upstream, **where)
        yield ask(getattr(s, 'g', None), n*_summed(inp, u), 's.g', hint, **where)

class _Dropout(Module):
    "The faulty layer of the exercise."
    def __init__(self, p): self.p = p
    def mask(self, inp): return (torch.rand_like(inp) > self.p).to(inp)/(1 - self.p)
    def forward(self, inp): return inp*self.mask(inp)
    def bwd(self, out, inp): add_grad(inp, out.g*self.mask(inp))

class _NoFactor(_Dropout):
    def bwd(self, out, inp): add_grad(inp, out.g*(out != 0))

class _NoMask(_Dropout):
    def bwd(self, out, inp): add_grad(inp, out.g)

class _OnTheClass(_Dropout):
    def forward(self, inp): type(self).kept = self.mask(inp); return inp*self.kept
    def bwd(self, out, inp): add_grad(inp, out.g*self.kept)

class _Seeded(_Dropout):
    def mask(self, inp): torch.manual_seed(1); return super().mask(inp)

@exercise('06.2', 'Find out why the gradient of `FaultyDropout` is wrong, and write `RepairedDropout`, in which it is '
    'right.', 'What is random in the forward pass is a constant in the backward pass, and must be kept like everything '
    'else that the backward pass needs.', wrong=[
    ('set to 0 in the forward pass', _Dropout), ('set to 0 in the forward pass', _NoMask), ('1/(1 - p)', _NoFactor),
    ('two layers', _OnTheClass), ('the same entries', _Seeded)])
def repaired_dropout(cls):
    inp,u = rands((20, 10), (20, 10))
    layer,second = cls(.5),cls(.5)
    out,other = layer(inp),second(inp)
    kept = out != 0
    assert 0 < kept.sum() < 200 and agree(out[kept], 2*inp[kept]), ('`forward` was right: entries '
        'become 0 with probability `p`, and the others are divided by `1 - p`. Do not change this.')
    assert not torch.equal(out, other), 'Every call must draw a new mask. Here two calls set the same entries to 0.'
    out.g = u
    layer.backward()
    g,want = getattr(inp, 'g', None),u*out/inp
    assert not agree(g, u*kept), ('The right entries are 0. But what was multiplied by 1/(1 - p) in the forward '
        'pass is multiplied by it in the backward pass as well.')
    assert not agree(g, u*other/inp), ('With two layers of this class, the backward pass of one used the mask '
        'of the other. Where does each keep its own?')
    wrong = int(((g != 0) != (want != 0)).sum()) if isinstance(g, torch.Tensor) and g.shape == want.shape else 0
    assert not wrong, (f'{wrong} of 200 entries were set to 0 in the forward pass but have a gradient, or the '
        'other way round. Which mask does `bwd` use?')
    yield ask(g, want, 'inp.g')

def what_happens():
    "The letter of what happens in the exercise."
    x,w1,w2,w3,b,u = rands((5, 3), (3, 3), (3, 3), (3, 3), (3,), (5, 3))
    first,second,third,step = Lin(w1, b),Lin(w2, b),Lin(w3, b),Relu()
    third(step(second(step(first(x))))).g = u
    for o in (third, step, second, step): o.backward()
    try: first.backward()
    except RuntimeError: return 'c'

def _swish(slope):
    "A layer with this derivative, a function of x and of the sigmoid of x."
    class Swish(Module):
        def forward(self, inp): return inp*inp.sigmoid()
        def bwd(self, out, inp): add_grad(inp, out.g*slope(inp, inp.sigmoid()))
    return Swish

@exercise('06.4', 'Derive the gradient of `inp*inp.sigmoid()`, and write the layer `Swish`.', 'The product rule of '
    'calculus and the sum of the two gradients of a tensor that is used twice are the same rule.', slips={
    '`inp` occurs in two places, before the sigmoid and inside it. Your gradient has only the first, as if '
        'the sigmoid were a constant.': _swish(lambda x, s: s),
    '`inp` occurs in two places, before the sigmoid and inside it. Your gradient has only the second, as '
        'if the factor were a constant.': _swish(lambda x, s: x*s*(1 - s)),
    'Two paths lead from `inp` to the product. Multiply along a path; derivatives along different paths are added.':
        _swish(lambda x, s: s*(1 - s)),
    'The first term is right. In the second, the derivative of the sigmoid is multiplied by `inp`, the factor before '
        'the sigmoid.': _swish(lambda x, s: s + s*(1 - s))})
def swish(cls):
    inp,u = rands((4, 3), (4, 3))
    layer = cls()
    out = layer(inp)
    assert agree(out, inp*inp.sigmoid()), 'Look at `forward` first: `inp*inp.sigmoid()`.'
    out.g = u
    want = autograd_grad(lambda x: (x*x.sigmoid()*u).sum(), inp)
    yield from ask_twice(layer.backward, inp, want, values=dict(inp=inp, out=out), grads={'out.g': u})
