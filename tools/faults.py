"""Single faults, put one at a time into backwards that are right: what the doctor is tried on.

A layer is a function of tensors, a right backward that says what each use or term contributes to each gradient, and a
way to draw tensors. A fault changes one gradient. Each stands in one entry, and `catalogue` puts every fault into every
layer that it can apply to. Nothing here knows how the doctor finds a cause; an entry only says which causes are true.
"""
import math
from functools import cache, partial
from inspect import Parameter as Arg, Signature
from types import SimpleNamespace
from typing import Any, Callable, NamedTuple
from zlib import crc32

import numpy as np
import torch
from fb_pass import closures
from fb_pass.autograd import LinFunction, MseFunction, ReluFunction
from fb_pass.backward import lin_grad, mse_grad, relu_grad
from fb_pass.gradients import add_grad
from fb_pass.forward import lin, mse, relu
from fb_pass.library import as_torch
from fb_pass.modules import Lin, Model, Module, Mse, Relu
from fb_pass.normalization import normalize
from fb_pass.norms import normalize_full_grad, normalize_grad
from fb_pass.training import CrossEntropy, cross_entropy, cross_entropy_grad, logsumexp, mlp, softmax
from torch import nn


# what a layer is

class Draw:
    "Sizes by name and random tensors, all from one seed. Sizes that are `square` are all the same."
    def __init__(self, seed, low=3, high=6, square=False, dtype=torch.float64, scale=1., layouts=False):
        self.gen,self.sizes,self.low,self.high = torch.Generator().manual_seed(seed),{},low,high
        self.square,self.dtype,self.scale,self.layouts = square,dtype,scale,layouts
    def int(self, low, high): return int(torch.randint(low, high + 1, (), generator=self.gen))
    def size(self, k):
        if isinstance(k, int): return k
        return self.sizes.setdefault('' if self.square else k, self.int(self.low, self.high))
    def __call__(self, *shape):
        "A tensor of that shape, in float64 until all is drawn, in one of the layouts that real code hands over."
        shape = [self.size(k) for k in shape]
        def rand(s): return (torch.randn(s, generator=self.gen, dtype=torch.float64)*self.scale).to(self.dtype)
        layout = self.int(0, 3) if self.layouts and len(shape) > 1 else 0
        if layout == 1: return rand(shape[::-1]).permute(*reversed(range(len(shape))))
        if layout == 2: return rand([2*s for s in shape])[tuple(slice(None, None, 2) for _ in shape)]
        return rand(shape)
    def labels(self, n, c): return torch.randint(0, self.size(c), (self.size(n),), generator=self.gen)

class Sum(NamedTuple):
    "A contribution before it is summed, and the axes to sum."
    full: torch.Tensor
    dims: tuple
    keepdim: bool = False
    def total(self): return self.full.sum(self.dims, self.keepdim)

def total(parts):
    "The gradient that the contributions add up to."
    return sum(p.total() if isinstance(p, Sum) else p for p in parts.values())

class Layer(NamedTuple):
    name: str
    draw: Callable # From a Draw: dict of tensors, in the order of the arguments
    forward: Callable # From the tensors: what comes out
    backward: Callable # From the gradient and the tensors: {tensor: {use or term: contribution}}
    params: tuple = () # The tensors that the layer owns
    fixed: tuple = () # Tensors without a gradient: labels, indices; one of floats is built in
    masks: dict = {} # Class of fault -> the wrong mask, an argument of `backward`
    # Faults of this layer alone: (class, tensor, label, causes, function of the context, what it needs)
    others: tuple = ()
    low: int = 1 # Smallest size for which the layer makes sense
    def __deepcopy__(self, memo): return self # nothing in it ever changes

def of(x): return dict(x=dict(x=x))
def outer(x, g): return Sum(x[:,:,None]*g[:,None,:], (0,))
def everywhere(x, *_): return torch.ones_like(x, dtype=torch.bool)

def relu_masks(where=lambda x, g, *o: g):
    return {'mask missing': everywhere, 'mask inverted': lambda x, *_: x <= 0,
            'mask from wrong tensor': lambda x, g, *o: where(x, g, *o) > 0,
            'mask at the boundary': lambda x, *_: x >= 0}

# The same numbers have several names where a gradient is a sum of uses: to lose a use is to miss a term.
LOST = {'use lost', 'term missing'}
# A factor that is missing, or another one, has no name of its own in the list of causes; what is said about it counts.
FACTOR = {'scaled', 'wrong operand', 'mask from wrong tensor'}

def lin_backward(g, x, w, b): return dict(x=dict(x=g@w.t()), w=dict(w=outer(x, g)), b=dict(b=Sum(g, (0,))))

def mse_backward(g, output, targ):
    d = 2*(output[:,0] - targ)*g/len(targ)
    return dict(output=dict(x=d[:,None]), targ=dict(x=-d))

def centered(x, g, s, out, dims, less):
    "The three terms of a normalization by own statistics: `g` and `out` before gain and bias."
    count = math.prod(x.shape[d] for d in dims)
    return {'direct': g/s, 'mean': (-g.sum(dims, True)/count/s).expand_as(x),
            'std': -out*(g*out).sum(dims, True)/(count - less)/s}

def own_stats(x, dims):
    if dims is None: return x.mean(), x.std()
    return x.mean(dims, keepdim=True), x.std(dims, keepdim=True)

def own_normalize(dims):
    "`normalize` by the mean and the standard deviation of what comes in."
    def forward(x): return normalize(x, *own_stats(x, dims))
    def backward(g, x):
        return dict(x=centered(x, g, own_stats(x, dims)[1], forward(x), (0, 1) if dims is None else (dims,), 1))
    return dict(draw=lambda d: dict(x=d('n', 'm')), forward=forward, backward=backward, low=3)

def norm_layer(dim, eps=1e-5):
    "Layer norm over the features (`dim` 1) or batch norm over the batch (`dim` 0), biased, with gain and bias."
    def parts(x):
        s = (x.var(dim, correction=0, keepdim=True) + eps).sqrt()
        return s, (x - x.mean(dim, keepdim=True))/s
    def forward(x, gain, bias): return parts(x)[1]*gain + bias
    def backward(g, x, gain, bias):
        s,h = parts(x)
        return dict(x=centered(x, g*gain, s, h, (dim,), 0), gain=dict(x=Sum(g*h, (0,))), bias=dict(x=Sum(g, (0,))))
    return dict(draw=lambda d: dict(x=d('n', 'm'), gain=d('m'), bias=d('m')), forward=forward, backward=backward,
                params=('gain', 'bias'), low=3)

def rms(x, eps=1e-5): return (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()
def rms_backward(g, x, gain):
    s = rms(x)
    return dict(x={'direct': g*gain/s, 'rms': -x*(g*gain*x).mean(-1, keepdim=True)/s**3}, gain=dict(x=Sum(g*x/s, (0,))))

def largest(x, *_): return torch.arange(x.shape[1]) == x.argmax(1, keepdim=True) # the first, where some are equal

def softmax_backward(g, x):
    p = softmax(x)
    return dict(x={'direct': p*g, 'sum': -p*(p*g).sum(-1, keepdim=True)})

def cross_entropy_backward(g, logits, targ):
    hot = torch.zeros_like(logits).scatter(1, targ[:,None], 1.)
    return dict(logits={'softmax': softmax(logits)*g/len(targ), 'label': -hot*g/len(targ)})

def residual_backward(g, x, w):
    h = g*(1 - torch.tanh(x@w)**2)
    return dict(x={'skip': g, 'branch': h@w.t()}, w=dict(w=outer(x, h)))

def tied_backward(g, x, w):
    h = torch.tanh(x@w)
    gh = (g@w)*(1 - h**2)
    return dict(x=dict(x=gh@w.t()), w={'first': x.t()@gh, 'second': g.t()@h})

def attention(x, wq, wk, wv):
    q,k,v = x@wq,x@wk,x@wv
    return softmax(q@k.t()/math.sqrt(q.shape[1]))@v

def attention_backward(g, x, wq, wk, wv):
    q,k,v = x@wq,x@wk,x@wv
    p = softmax(q@k.t()/math.sqrt(q.shape[1]))
    ga,gv = g@v.t(),p.t()@g
    gs = p*(ga - (p*ga).sum(-1, keepdim=True))/math.sqrt(q.shape[1])
    gq,gk = gs@k,gs.t()@q
    return dict(x=dict(q=gq@wq.t(), k=gk@wk.t(), v=gv@wv.t()), wq=dict(x=x.t()@gq), wk=dict(x=x.t()@gk),
                wv=dict(x=x.t()@gv))

def embedding_backward(g, w, idx):
    return dict(w=dict(x=outer(nn.functional.one_hot(idx, len(w)).to(g.dtype), g)))

def conv(x, w, b): return torch.einsum('nclk,ock->nol', x.unfold(2, w.shape[2], 1), w) + b[:,None]
def conv_backward(g, x, w, b):
    def tap(i):
        t,l = torch.zeros_like(x),g.shape[2]
        t[:,:,i:i+l] = torch.einsum('nol,oc->ncl', g, w[:,:,i])
        return t
    full = torch.einsum('nol,nclk->nock', g, x.unfold(2, w.shape[2], 1))
    return dict(x={f'tap {i}': tap(i) for i in range(w.shape[2])}, w=dict(x=Sum(full, (0,))), b=dict(x=Sum(g, (0, 2))))

def kernel_changed(c, w): return total(conv_backward(c.g, c.t['x'], w, c.t['b'])['x'])

def overwritten(c):
    "Rows of a table written to their places one after the other, so that the last one stays where several belong."
    res = torch.zeros_like(c.t['w'])
    for i,row in zip(c.t['idx'], c.g): res[i] = row
    return res

layers = {o.name: o for o in [
    # those of the package
    Layer('lin', lambda d: dict(x=d('n', 'i'), w=d('i', 'o'), b=d('o')), lin, lin_backward, ('w', 'b'), others=(
        ('operand transposed', 'x', 'g@w', {'unknown', 'transposed', 'wrong operand'}, lambda c: c.g@c.t['w'],
         'square'),
        ('transposed', 'w', 'g.t()@x', {'transposed'}, lambda c: c.g.t()@c.t['x'], 'square'),
        ('sum missing', 'b', 'g.sum(1)', {'unknown', 'sum missing', 'sum extra', 'transposed'}, lambda c: c.g.sum(1),
         'square'))),
    Layer('relu', lambda d: dict(x=d('n', 'm')), relu,
          lambda g, x, mask=lambda x, *_: x > 0: of(torch.where(mask(x, g), g, 0.)), masks=relu_masks()),
    Layer('mse', lambda d: dict(output=d('n', 1), targ=d('n')), mse, mse_backward, others=(
        ('broadcast', 'output', 'targ not (n,1)', {'unknown', 'shape', 'sum missing', 'sum extra', 'wrong operand'},
         lambda c: 2*(c.t['output'] - c.t['targ']).mean(1, keepdim=True)*c.g/c.n, ''),)),
    Layer('normalize, constants', lambda d: dict(x=d('n', 'm'), m=d(1, 'm'), s=d(1, 'm').abs() + .5),
          lambda x, m, s: normalize(x, m.to(x), s.to(x)), lambda g, x, m, s: of(g/s.to(g)), fixed=('m', 's')),
    Layer('normalize, columns', **own_normalize(0)),
    Layer('normalize, rows', **own_normalize(1)),
    Layer('normalize, all', **own_normalize(None)),
    Layer('cross_entropy', lambda d: dict(logits=d('n', 'c'), targ=d.labels('n', 'c')), cross_entropy,
          cross_entropy_backward, fixed=('targ',), low=2),
    Layer('logsumexp', lambda d: dict(x=d('n', 'm')), logsumexp, lambda g, x: of(softmax(x)*g[:,None]), low=2),
    # further ones
    Layer('sigmoid', lambda d: dict(x=d('n', 'm')), torch.sigmoid,
          lambda g, x: of(g*torch.sigmoid(x)*(1 - torch.sigmoid(x))), others=(
        ('factor missing', 'x', 'without y(1-y)', {'mask missing', 'term missing', 'unknown', *FACTOR},
         lambda c: c.g.clone(), ''),
        ('factor missing', 'x', 'without (1-y)', {'mask missing', 'term missing', 'unknown', *FACTOR},
         lambda c: c.g*torch.sigmoid(c.t['x']), ''),
        ('factor from wrong tensor', 'x', 'x(1-x)', {'unknown', *FACTOR}, lambda c: c.g*c.t['x']*(1 - c.t['x']), ''))),
    Layer('tanh', lambda d: dict(x=d('n', 'm')), torch.tanh, lambda g, x: of(g*(1 - torch.tanh(x)**2)), others=(
        ('term missing', 'x', 'only g', {'term missing', 'mask missing', 'unknown'}, lambda c: c.g.clone(), ''),
        ('factor from wrong tensor', 'x', '1-x^2', {'unknown', *FACTOR}, lambda c: c.g*(1 - c.t['x']**2), ''))),
    Layer('leaky relu', lambda d: dict(x=d('n', 'm')), lambda x: torch.where(x > 0, x, .1*x),
          lambda g, x, mask=lambda x, *_: x > 0: of(torch.where(mask(x, g), g, .1*g)), masks=relu_masks()),
    Layer('gate', lambda d: dict(x=d('n', 'm'), y=d('n', 'm')), lambda x, y: x.relu()*y,
          lambda g, x, y, mask=lambda x, *_: x > 0: dict(
              x=dict(x=torch.where(mask(x, g, y), g*y, 0.)), y=dict(x=g*x.relu())),
          masks=relu_masks(lambda x, g, y: y)),
    Layer('softmax', lambda d: dict(x=d('n', 'm')), softmax, softmax_backward, low=2, others=(
        ('term missing', 'x', 'only the diagonal', {'term missing'},
         lambda c: c.g*softmax(c.t['x'])*(1 - softmax(c.t['x'])), ''),)),
    Layer('layer norm', **norm_layer(1)),
    Layer('batch norm', **norm_layer(0)),
    Layer('rms norm', lambda d: dict(x=d('n', 'm'), gain=d('m')), lambda x, gain: x/rms(x)*gain, rms_backward,
          ('gain',), low=2),
    Layer('residual', lambda d: dict(x=d('n', 'm'), w=d('m', 'm')), lambda x, w: x + torch.tanh(x@w), residual_backward,
          ('w',)),
    Layer('tied weights', lambda d: dict(x=d('n', 'i'), w=d('i', 'h')), lambda x, w: torch.tanh(x@w)@w.t(),
          tied_backward, ('w',)),
    Layer('attention', lambda d: dict(x=d('n', 'i'), wq=d('i', 'k'), wk=d('i', 'k'), wv=d('i', 'v')), attention,
          attention_backward, ('wq', 'wk', 'wv'), low=2),
    Layer('embedding', lambda d: dict(w=d('v', 'm'), idx=d.labels('n', 'v')), lambda w, idx: w[idx], embedding_backward,
          ('w',), ('idx',), others=(
        ('use lost', 'w', 'rows overwritten', LOST, overwritten, ''),)),
    Layer('conv1d', lambda d: dict(x=d('n', 'c', 'l') if d.square else torch.cat([d('n', 'c', 'l'), d('n', 'c', 2)], 2),
                                   w=d('o', 'c', 3), b=d('o')), conv, conv_backward, ('w', 'b'), others=(
        ('permuted', 'x', 'kernel not turned', {'permuted'}, lambda c: kernel_changed(c, c.t['w'].flip(2)), ''),
        ('transposed', 'x', 'channels exchanged', {'transposed'},
         lambda c: kernel_changed(c, c.t['w'].transpose(0, 1)), 'square'))),
    Layer('max', lambda d: dict(x=d('n', 'm')), lambda x: x.amax(1),
          lambda g, x, mask=largest: of(torch.where(mask(x, g), g[:,None], 0.)),
          masks={'mask missing': everywhere, 'mask inverted': lambda x, *_: x < x.amax(1, True)}, low=2),
    Layer('mean', lambda d: dict(x=d('n', 'm')), lambda x: x.mean(1),
          lambda g, x: of((g[:,None]/x.shape[1]).expand_as(x))),
    Layer('product', lambda d: dict(x=d('n', 'm'), y=d('n', 'm')), lambda x, y: x*y,
          lambda g, x, y: dict(x=dict(x=g*y), y=dict(x=g*x)), others=(
        ('factor from wrong tensor', 'x', 'g*x', {'unknown', *FACTOR}, lambda c: c.g*c.t['x'], ''),)),
    Layer('broadcast add', lambda d: dict(x=d('n', 'm'), b=d(1, 'm')), torch.add,
          lambda g, x, b: dict(x=dict(x=g), b=dict(x=Sum(g, (0,), True)))),
    Layer('broadcast product', lambda d: dict(x=d('n', 'm'), a=d('n', 1)), torch.mul,
          lambda g, x, a: dict(x=dict(x=g*a), a=dict(x=Sum(g*x, (1,), True)))),
    Layer('one gain', lambda d: dict(x=d('n', 'm'), a=d()), torch.mul,
          lambda g, x, a: dict(x=dict(x=g*a), a=dict(x=Sum(g*x, (0, 1)))), ('a',)),
]}
# Their tensors are used in several places; in the others several contributions are terms of a formula.
USES = {'residual', 'tied weights', 'attention', 'embedding', 'conv1d'}


# what a fault is

class Fault(NamedTuple):
    cls: str # Class, as in the table
    label: str # Which one of the class
    tensor: str # Whose gradient is wrong
    causes: frozenset # Names of the cause that are true
    wrong: Any # From a context (G the right gradient, parts, g, t, n, old): the wrong gradient, or None
    need: str = '' # 'square' sizes, 'zeros' in the input
    shape: bool = False # Does it change the shape?
    known: bool = True # Is it one of the classes that a diagnosis must know?

def at_one(G, v):
    "`G` with its middle entry multiplied by `v`."
    res = G.clone(memory_format=torch.contiguous_format)
    res.view(-1)[G.numel()//2] *= v
    return res

def by_operation(op):
    "A gradient that went through an operation which is not defined, or too large, at one entry."
    def wrong(c):
        one = at_one(torch.ones_like(c.G), 0.)
        if op == 'div': return c.G*(one/one)
        if op == 'log': return c.G + one.log()
        return c.G*torch.exp((1 - one)*1e4)
    return wrong

def shift(G, axis):
    "Everything one place on along `axis`, zeros at the beginning."
    res = G.roll(1, axis)
    res.select(axis, 0).zero_()
    return res

def swap(G, axis):
    "The first two along `axis` change places, which for three or more is no shift."
    order = torch.arange(G.shape[axis], device=G.device)
    order[:2] = order[:2].flip(0)
    return G.index_select(axis, order)

def whole(G):
    "Faults that any gradient like `G` can have: (class, label, causes, function, need, changes the shape, known)."
    S = {'scaled'}
    for label,f in {'batch size': lambda c: c.n, '1/batch size': lambda c: 1/c.n, '0.5': lambda c: .5,
                    '-1': lambda c: -1, '1.01': lambda c: 1.01}.items():
        yield 'scaled', label, S, lambda c, f=f: c.G*f(c)
    # The whole gradient twice is a gradient times 2.
    yield 'added twice', 'all of it', {'added twice', 'scaled'}, lambda c: c.G*2
    if G.ndim > 1 and G.shape[-1] > 1: yield 'scaled', 'features', S, lambda c: c.G*c.G.shape[-1]
    if G.ndim == 2 and min(G.shape) > 1: yield 'transposed', 'square', {'transposed'}, lambda c: c.G.t(), 'square'
    if G.ndim == 2 and min(G.shape) > 1:
        yield 'transposed', 'not square', {'transposed'}, lambda c: c.G.t(), 'oblong', True
    yield 'zero', '', {'zero'}, lambda c: torch.zeros_like(c.G)
    yield 'absent', '', {'absent'}, lambda c: None
    yield 'dtype', 'float32', {'dtype'}, lambda c: c.G.float()
    for op in ('div', 'log', 'exp'): yield 'non-finite', op, {'non-finite'}, by_operation(op)
    yield 'stale', 'the first one for ever', {'stale'}, lambda c: c.old.setdefault(c.G.shape, c.G)
    def behind(c, start, more=0.):
        last = more + c.old.get(c.G.shape, start)
        c.old[c.G.shape] = c.G
        return last
    yield 'stale', 'one pass behind', {'stale'}, lambda c: behind(c, c.G)
    yield 'stale', 'added to the last', {'stale'}, lambda c: behind(c, 0., c.G)
    for axis in range(G.ndim):
        if G.shape[axis] < 3: continue
        yield 'permuted', f'axis {axis}', {'permuted'}, lambda c, axis=axis: swap(c.G, axis)
        yield 'permuted', f'axis {axis}, backwards', {'permuted'}, lambda c, axis=axis: c.G.flip(axis)
        # A shift that goes round is a permutation too.
        yield 'shifted', f'axis {axis}, round', {'shifted', 'permuted'}, lambda c, axis=axis: c.G.roll(1, axis)
        yield 'shifted', f'axis {axis}', {'shifted'}, lambda c, axis=axis: shift(c.G, axis)
        for label,f in (('spread', torch.sum), ('mean, spread', torch.mean)):
            def spread(c, axis=axis, f=f): return f(c.G, axis, keepdim=True).expand_as(c.G)
            yield 'sum extra', f'axis {axis}, {label}', {'sum extra'}, spread
        yield 'sum extra', f'axis {axis}', {'sum extra'}, lambda c, axis=axis: c.G.sum(axis), '', True
    if G.ndim > 1: yield 'sum extra', 'all axes, spread', {'sum extra'}, lambda c: c.G.sum().expand_as(c.G)
    # Nothing explains these, and to say so is right.
    if G.numel() > 5: yield 'one entry', '', {'unknown'}, lambda c: at_one(c.G, -2.), '', False, False
    def noisy(c):
        noise = torch.randn(c.G.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        return c.G*(1 + 1e-3*noise.to(c.G))
    yield 'noise', '1e-3', {'unknown'} if G.numel() > 2 else {'unknown', 'scaled'}, noisy, '', False, False

def pieces(layer, parts):
    "Faults in how the contributions to one gradient are put together."
    lost = 'use lost' if layer.name in USES else 'term missing'
    for k,p in parts.items():
        if isinstance(p, Sum):
            yield 'sum missing', 'not summed', {'sum missing'}, lambda c, k=k: c.parts[k].full, '', True
            # To keep the last row is to overwrite where one should add.
            def last_row(c, k=k):
                p = c.parts[k]
                return p.full.narrow(p.dims[0], -1, 1).sum(p.dims, p.keepdim)
            def mean(c, k=k): return c.parts[k].full.mean(c.parts[k].dims, c.parts[k].keepdim)
            def one_of_two(c, k=k): return c.parts[k].full.sum(c.parts[k].dims[0])
            yield 'sum missing', 'the last row', {'sum missing', 'use lost'}, last_row
            yield 'scaled', 'mean for sum', {'scaled'}, mean
            if len(p.dims) > 1: yield 'sum missing', 'one of two', {'sum missing'}, one_of_two, '', True
        if len(parts) > 1:
            yield lost, f'without {k}', LOST, lambda c, k=k: c.G - total({k: c.parts[k]})
            yield 'added twice', k, {'added twice'}, lambda c, k=k: c.G + total({k: c.parts[k]})
        if len(parts) > 2: yield lost, f'only {k}', LOST, lambda c, k=k: total({k: c.parts[k]})

def stale_inputs(layer, k):
    "The tensors of the first pass, never renewed."
    def wrong(c):
        kept = c.old.setdefault(tuple(t.shape for t in c.t.values()), list(c.t.values()))
        return total(layer.backward(c.g, *kept)[k])
    return wrong

def sample(layer, seed=0, **kw):
    "Tensors, what comes out, a gradient for it, and the contributions."
    d = Draw(seed, **kw)
    t = layer.draw(d)
    out = layer.forward(*t.values())
    g = torch.randn(out.shape, generator=d.gen, dtype=torch.float64).to(out.dtype)
    return t, out, g, layer.backward(g, *t.values())

def faults(layer):
    "Every fault of `layer`."
    t,_,g,parts = sample(layer)
    own = *layer.params,*layer.fixed # which are the same at every call
    moved = layer.backward(g, *(o*1.5 + .1 if o.is_floating_point() and k not in own else o for k,o in t.items()))
    for k,ps in parts.items():
        G = total(ps)
        # Of one number nobody can tell: whatever it is, it is a multiple of the right one.
        for o in (*whole(G), *pieces(layer, ps)):
            one = G.numel() == 1 and o[0] in ('scaled', 'sum missing', 'stale')
            yield Fault(o[0], o[1], k, frozenset(o[2]) | ({'unknown'} if one else set()), *o[3:])
        if not torch.allclose(total(moved[k]), G):
            yield Fault('stale', 'inputs of the first pass', k, frozenset({'stale'}), stale_inputs(layer, k))
    for cls,mask in layer.masks.items():
        k,boundary = next(iter(parts)),cls == 'mask at the boundary'
        causes = {'mask missing', 'mask inverted', 'mask from wrong tensor'} if boundary else {cls}
        # the factor .1 of the negative side is missing
        if layer.name == 'leaky relu' and cls == 'mask missing': causes = {cls, 'scaled'}
        yield Fault(cls, '', k, frozenset(causes),
                    lambda c, mask=mask, k=k: total(layer.backward(c.g, *c.t.values(), mask=mask)[k]),
                    'zeros' if boundary else '', False, not boundary)
    for cls,k,label,causes,f,need in layer.others:
        yield Fault(cls, label, k, frozenset(causes), f, need, False, 'unknown' not in causes)


# a backward with a fault in it

def hand(layer, fault=None):
    "The backward of `layer`, from a gradient and the tensors: a dict of gradients, one of them wrong, with a memory."
    old = {}
    def way(g, t):
        parts = layer.backward(g, *t.values())
        grads = {k: total(p) for k,p in parts.items()}
        if fault:
            k,n = fault.tensor,next(iter(t.values())).shape[0]
            grads[k] = fault.wrong(SimpleNamespace(G=grads[k].detach().clone(), parts=parts[k], g=g,
                                                   t={k: o.detach().clone() for k,o in t.items()}, n=n, old=old))
        return grads
    return way

def signed(f, *names):
    "`f`, which takes its arguments by place, with names for them."
    sig = Signature([Arg(k, Arg.POSITIONAL_OR_KEYWORD) for k in names])
    def g(*args, **kw): return f(*sig.bind(*args, **kw).args)
    g.__signature__,g.__name__ = sig,getattr(f, '__name__', 'f')
    return g

def leave(t, g):
    "Put a gradient into `t.g`, added if it can be."
    if g is None: return
    if g.shape == t.shape and g.dtype == t.dtype: add_grad(t, g)
    else: t.g = g

class Hand(Module):
    "A layer of the catalogue as a module."
    def __init__(self, layer, t, way):
        self.layer,self.way,self.names = layer,way,[*t]
        self.owned = (*layer.params, *(k for k in layer.fixed if t[k].is_floating_point()))
        for k in self.owned: setattr(self, k, t[k])
    @property
    def params(self): return tuple(getattr(self, k) for k in self.layer.params)
    def join(self, xs):
        xs = iter(xs)
        return {k: getattr(self, k) if k in self.owned else next(xs) for k in self.names}
    def forward(self, *xs): return self.layer.forward(*self.join(xs).values())
    def bwd(self, out, *xs):
        t = self.join(xs)
        for k,g in self.way(out.g, t).items(): leave(t[k], g)
    def __repr__(self): return f'Hand({self.layer.name})'

def split(layer, t):
    "Names of what is built in, and of what goes in."
    built = [k for k in layer.fixed if t[k].is_floating_point()]
    return built, [k for k in t if k not in built]

def as_module(layer, t, way):
    free = [k for k in split(layer, t)[1] if k not in layer.params]
    named = type('Hand', (Hand,),
                 dict(forward=signed(Hand.forward, 'self', *free), bwd=signed(Hand.bwd, 'self', 'out', *free)))
    return named(layer, t, way), [t[k] for k in free]

def as_pair(layer, t, way, give=False):
    "Two functions; the second leaves the gradients in `.g`, or returns them."
    built,free = split(layer, t)
    def join(ts): return {k: t[k] for k in t} | dict(zip(free, ts))
    def forward(*ts): return layer.forward(*join(ts).values())
    def leaving(out, *ts):
        for k,g in way(out.g, join(ts)).items(): leave(join(ts)[k], g)
    def giving(g, *ts):
        grads = way(g, join(ts))
        return tuple(grads[k] for k in free if k in grads)
    return (signed(forward, *free), signed(*((giving, 'g') if give else (leaving, 'out')), *free)), [t[k] for k in free]

def function_of(layer, t, way):
    built,free = split(layer, t)
    def join(ts): return {k: t[k] for k in t} | dict(zip(free, ts))
    def forward(ctx, *ts):
        ctx.save_for_backward(*ts)
        return layer.forward(*join(ts).values())
    def backward(ctx, g):
        grads = way(g, {k: o.detach() for k,o in join(ctx.saved_tensors).items()})
        res = tuple(grads.get(k) for k in free)
        return res if len(res) > 1 else res[0]
    return type('HandFunction', (torch.autograd.Function,),
                dict(forward=staticmethod(signed(forward, 'ctx', *free)), backward=staticmethod(backward)))

def as_function(layer, t, way): return function_of(layer, t, way), [t[k] for k in split(layer, t)[1]]

class HandNN(nn.Module):
    "A layer of the catalogue as a module of torch, around an `autograd.Function`."
    def __init__(self, layer, t, way):
        super().__init__()
        self.function,self.names = function_of(layer, t, way),split(layer, t)[1]
        for k in layer.params: setattr(self, k, nn.Parameter(t[k].clone()))
    def forward(self, *xs):
        xs = iter(xs)
        return self.function.apply(*(p if (p := self._parameters.get(k)) is not None else next(xs) for k in self.names))

def as_nn(layer, t, way):
    free = [k for k in split(layer, t)[1] if k not in layer.params]
    named = type('HandNN', (HandNN,), dict(forward=signed(HandNN.forward, 'self', *free)))
    return named(layer, t, way), [t[k] for k in free]

class HandLayer(closures.Layer):
    "A layer of the catalogue as one of `fb_pass.closures`: arrays in, arrays out."
    def __init__(self, layer, t, way):
        self.layer,self.way,self.t = layer,way,t
        for k in layer.params: setattr(self, k, self.build_param(t[k].numpy().copy()))
    def forward(self, X):
        mine = {k: getattr(self, k) for k in self.layer.params}
        own = {k: torch.as_tensor(p.tensor) for k,p in mine.items()}
        x = [k for k in self.t if k not in (*mine, *self.layer.fixed)][0]
        t = {**{k: o if o is None else torch.as_tensor(o) for k,o in self.t.items()}, **own,
             x: torch.as_tensor(np.array(X))}
        def backward(Yg):
            grads = self.way(torch.as_tensor(np.array(Yg)), t)
            for k,p in mine.items():
                if grads[k] is None: continue
                g = grads[k].numpy()
                p.gradient = p.gradient + g if g.shape == p.gradient.shape else g
            return grads[x] if grads[x] is None else grads[x].numpy()
        return self.layer.forward(*t.values()).numpy(), backward
    def __repr__(self): return f'HandLayer({self.layer.name})'

def as_closure(layer, t, way):
    return HandLayer(layer, t, way), [t[k].numpy() for k in t if k not in (*layer.params, *layer.fixed)]

def as_value(layer, t, way, later=True):
    "One function: it returns the value and the way back, or at once the gradients."
    built,free = split(layer, t)
    def f(*ts):
        ts = {k: t[k] for k in t} | dict(zip(free, ts))
        out = layer.forward(*ts.values())
        def back(g=torch.ones_like(out)):
            grads = way(g, {k: o.detach() for k,o in ts.items()})
            res = tuple(grads[k] for k in free if k in grads)
            return res if len(res) > 1 else res[0]
        return out, back if later else back()
    return signed(f, *free), [t[k] for k in free]

kinds = {'module': as_module, 'pair': as_pair, 'pair, returned': partial(as_pair, give=True), 'Function': as_function,
         'nn.Module': as_nn, 'closures': as_closure,
         'value and way back': as_value, 'value and gradients': partial(as_value, later=False)}
# Torch itself sums a gradient to the shape of its tensor, or refuses it, and casts it to the dtype; and None is to it,
# as to a Parameter, a zero.
TORCH = {'Function', 'nn.Module'}

def kinds_of(layer):
    "The ways in which `layer` can be built."
    t,out,*_ = sample(layer)
    inputs = [k for k in t if k not in (*layer.params, *layer.fixed)]
    ints = any(not t[k].is_floating_point() for k in t)
    one_input = len(inputs) == 1 and not (ints and not out.ndim == 0) and out.ndim
    return [k for k in kinds
            if not (k == 'closures' and not one_input) and not (k == 'value and gradients' and out.ndim)]


# cases

class Built(NamedTuple):
    layer: Any # What to give to check_layer
    inputs: list # And what to call it with
    tensor: str # Whose gradient is wrong, None if all are right
    tensors: dict # All of them, by name
    way: Callable # The hand-written backward: from a gradient and the tensors to a dict of gradients
    kind: str
    wrt: Any # Whose gradients to ask for: the targets of a loss need none unless one asks

class Case(NamedTuple):
    "A layer with a fault, or without, and its number in the catalogue."
    layer: Layer
    fault: Fault
    number: int
    @property
    def name(self):
        f,name = self.fault,self.layer.name
        return f'{name}, {f.tensor}: {f.cls}' + (f' ({f.label})' if f.label else '') if f else f'{name}: right'
    def kinds(self):
        "The ways in which it can be built with this fault."
        f = self.fault
        return [k for k in kinds_of(self.layer) if not (f and f.shape and k in TORCH)]
    def causes(self, kind):
        "The true names of the cause, as the layer is of that kind."
        c = self.fault.causes
        return c | {'zero'} if c == {'absent'} and kind in TORCH | {'closures'} else c
    def true_causes(self, built, seed=0):
        "The true names for this draw: that of another fault with the same numbers, too; a sum that vanishes is a zero."
        causes,(_,wrong) = self.causes(built.kind),self.both(built.tensors, torch.Generator().manual_seed(seed))
        if wrong is None or self.fault.cls == 'stale': return causes
        if wrong.dtype == torch.float64 and wrong.isfinite().all() and wrong.abs().max() < 1e-12:
            causes = causes | {'zero', 'shape' if self.fault.shape else 'zero'}
        for o in _cases(self.layer.name):
            if o.fault.tensor != self.fault.tensor or o.fault.cls == 'stale': continue
            if o.fault.need not in ('', 'oblong', self.fault.need): continue
            _,other = o.both(built.tensors, torch.Generator().manual_seed(seed))
            if other is None or other.shape != wrong.shape: continue
            if torch.allclose(other.double(), wrong.double(), 1e-9, 0.): causes = causes | o.fault.causes
        return causes
    def both(self, t, gen):
        "The right gradient and the wrong one, for a random gradient of the output."
        out = self.layer.forward(*t.values())
        g = torch.randn(out.shape, generator=gen, dtype=torch.float64).to(out.dtype)
        return [hand(self.layer, f)(g, t)[self.fault.tensor] for f in (None, self.fault)]
    def possible(self):
        "Is there a draw for which the fault makes a difference?"
        try: return bool(self.tensors(0))
        except ValueError: return False
    def tensors(self, seed, dtype=torch.float64, **kw):
        "Random tensors for which the fault makes a difference."
        need = self.fault.need if self.fault else ''
        for i in range(50):
            d = Draw(crc32(f'{self.name} {seed} {i}'.encode()),
                     **{'low': 3 if self.fault else self.layer.low, 'square': need == 'square', 'dtype': dtype, **kw})
            if not self.fault: d.low = max(d.low, self.layer.low)
            t = self.layer.draw(d)
            if need == 'zeros':
                x = next(iter(t.values()))
                x[torch.rand(x.shape, generator=d.gen) < .3] = 0.
            if self.differs(t, d.gen): return t
        raise ValueError(f'{self.name}: the fault makes no difference with seed {seed}')
    def differs(self, t, gen):
        "Does the fault change the gradient? One of an earlier pass cannot be seen in the first one."
        if not self.fault or self.fault.cls == 'stale': return True
        right,wrong = self.both(t, gen)
        if self.fault.need == 'oblong' and wrong.shape == right.shape: return False
        if wrong is None or wrong.shape != right.shape or wrong.dtype != right.dtype: return True
        return not wrong.isfinite().all() or bool((wrong - right).abs().max() > 1e-4*right.abs().max())
    def build(self, seed, kind=None, **kw):
        "The layer with the fault in it, and inputs of random shapes; the kinds take turns."
        ks = self.kinds()
        kind = kind or ks[crc32(f'{self.name} {seed}'.encode()) % len(ks)]
        t,way = self.tensors(seed, **kw),hand(self.layer, self.fault)
        # The way is given copies of its own, so that nobody's change of a tensor reaches what the case was made of.
        obj,inputs = kinds[kind](self.layer, {k: o.clone() if kind == 'closures' else o for k,o in t.items()}, way)
        asked = self.fault and self.fault.cls == 'absent' and not self.layer.forward(*t.values()).ndim
        return Built(obj, inputs, self.fault and self.fault.tensor, t, way, kind, self.fault.tensor if asked else None)

@cache
def _cases(name):
    cases = [Case(layers[name], f, 0) for f in faults(layers[name])]
    return [c for c in cases if c.possible()]

def catalogue(names=None):
    "All single faults in all layers, or in those of some names."
    return [c._replace(number=i) for i,c in enumerate(c for name in layers if names is None or name in names
                                                      for c in _cases(name))]

def right_cases(): return [Case(layer, None, i) for i,layer in enumerate(layers.values())]


# the package's own, as they are

def linear(d, i, o):
    layer = closures.Linear(i, o, d.int(0, 2**31))
    layer.bias.tensor = d(o).numpy()
    return layer

def sizes_of(d): return [d.size(k) for k in ('n', 'i', 'h', 'o')]

def own_model(d):
    n,i,h,o = sizes_of(d)
    return Model(d(i, h), d(h), d(h, 1), d(1)), [d(n, i), d(n)]

def own_mlp(d):
    n,i,h,o = sizes_of(d)
    o = max(o, 2)
    m = mlp(i, h, h, o, generator=d.gen, dtype=d.dtype)
    for l in m.layers[::2]: l.b.copy_(d(len(l.b)))
    return m, [d(n, i), torch.randint(0, o, (n,), generator=d.gen)]

def own_sequential(d):
    n,i,h,o = sizes_of(d)
    layers = linear(d, i, h), closures.Relu(), linear(d, h, h), closures.Sigmoid(), linear(d, h, o)
    return closures.Sequential(*layers), [d(n, i).numpy()]

def own_normalize_pair(d, full):
    x = d(d.size('n') + 2, 'm')
    if full:
        return (lambda inp: normalize(inp, *own_stats(inp, 0)),
                lambda inp, out: normalize_full_grad(inp, out, inp.std(0, keepdim=True))), [x]
    m,s = x.mean(),x.std()
    return (lambda inp: normalize(inp, m.to(inp), s.to(inp)), lambda inp, out: normalize_grad(inp, out, s.to(inp))), [x]

def own_in_torch(d):
    n,i,h,o = sizes_of(d)
    return as_torch(Model(d(i, h), d(h), d(h, 1), d(1))), [d(n, i), d(n)]

# Name -> from a Draw: a layer of the package, and what to call it with.
own = {
    'Lin': lambda d: (Lin(d('i', 'o'), d('o')), [d('n', 'i')]), 'Relu': lambda d: (Relu(), [d('n', 'm')]),
    'Mse': lambda d: (Mse(), [d('n', 1), d('n')]),
    'CrossEntropy': lambda d: (CrossEntropy(), [d('n', 'c'), d.labels('n', 'c')]),
    'lin, lin_grad': lambda d: ((lin, lin_grad), [d('n', 'i'), d('i', 'o'), d('o')]),
    'relu, relu_grad': lambda d: ((relu, relu_grad), [d('n', 'm')]),
    'mse, mse_grad': lambda d: ((mse, mse_grad), [d('n', 1), d('n')]),
    'cross_entropy, cross_entropy_grad': lambda d: ((cross_entropy, cross_entropy_grad),
                                                    [d('n', 'c'), d.labels('n', 'c')]),
    'normalize, normalize_grad': partial(own_normalize_pair, full=False),
    'normalize, normalize_full_grad': partial(own_normalize_pair, full=True),
    'LinFunction': lambda d: (LinFunction, [d('n', 'i'), d('i', 'o'), d('o')]),
    'ReluFunction': lambda d: (ReluFunction, [d('n', 'm')]),
    'MseFunction': lambda d: (MseFunction, [d('n', 1), d('n')]),
    'as_torch': own_in_torch, 'closures.Linear': lambda d: (linear(d, d.size('i'), d.size('o')), [d('n', 'i').numpy()]),
    'closures.Relu': lambda d: (closures.Relu(), [d('n', 'm').numpy()]),
    'closures.Sigmoid': lambda d: (closures.Sigmoid(), [d('n', 'm').numpy()]), 'closures.Sequential': own_sequential,
    'closures.mse_loss': lambda d: (closures.mse_loss, [d('n', 'm').numpy(), d('n', 'm').numpy()]), 'Model': own_model,
    'mlp': own_mlp,
}
# float64 alone: what they make of other dtypes is for their own tests
ARRAYS = {k for k in own if k.startswith('closures')}


# a network with wrong layers in it

class Net(NamedTuple):
    model: Model
    inputs: list
    wrong: list # (number of the step, Case), from the loss back
    def shows(self):
        "Does each of the faults make a difference?"
        self.model(*self.inputs)
        steps = *self.model.layers,self.model.loss
        return all(case.differs(steps[i].join(steps[i].args), Draw(i).gen) for i,case in self.wrong)

def network(seed, count=1):
    "A model of linear layers, ReLU and a loss, with faults in `count` of its steps. Sizes and faults are random."
    # A fault may make no difference: one output cannot be permuted, a ReLU may be 0 everywhere.
    nets = (drawn_network(seed + 10_000*i, count) for i in range(50))
    return next(net for net in nets if net.shows())

def drawn_network(seed, count):
    "One draw of `network`."
    d = Draw(seed)
    depth = d.int(2, 4)
    loss = 'cross_entropy' if d.int(0, 1) else 'mse'
    names = ['lin', 'relu']*depth
    names[-1] = loss
    wrong = sorted(torch.randperm(len(names), generator=d.gen)[:count].tolist(), reverse=True)
    steps,found = [],[]
    for i,name in enumerate(names):
        case = None
        if i in wrong:
            # Only what the next step back can go on with, and what shows in one pass.
            fit = [o for o in CASES[name] if not o.fault.shape and not o.fault.need and o.fault.known
                   and o.fault.cls not in ('absent', 'dtype', 'non-finite', 'stale')]
            fit = [o for o in fit if not (name == 'mse' and o.fault.tensor == 'targ')]
            case = fit[d.int(0, len(fit) - 1)]
            found.append((i, case))
        steps.append((name, case))
    widths = [d.int(3, 6) for _ in range(depth)] + [1 if loss == 'mse' else d.int(3, 6)]
    mods = []
    for i,(name,case) in enumerate(steps):
        way = hand(layers[name], case and case.fault)
        t = dict.fromkeys(dict(relu='x', mse='output targ', cross_entropy='logits targ', lin='x w b')[name].split())
        if name == 'lin': t |= dict(w=d(*widths[i//2:i//2+2]), b=d(widths[i//2+1]))
        right = {'relu': Relu, 'mse': Mse, 'cross_entropy': CrossEntropy, 'lin': lambda: Lin(t['w'], t['b'])}[name]
        mods.append(Free(layers[name], t, way) if case else right())
    n = d.int(4, 8)
    targ = d(n) if loss == 'mse' else torch.randint(0, widths[-1], (n,), generator=d.gen)
    return Net(Model.from_layers(mods[:-1], mods[-1]), [d(n, widths[0]), targ], found[::-1])

class Free(Hand):
    "A module inside a network: what goes in is not known yet."
    def __init__(self, layer, t, way):
        self.layer,self.way,self.names,self.owned = layer,way,[*t],layer.params
        for k in layer.params: setattr(self, k, t[k])
    def bwd(self, out, *xs):
        out_g = out.g if getattr(out, 'g', None) is not None else torch.ones_like(out)
        t = self.join(xs)
        for k,g in self.way(out_g, t).items():
            if k != 'targ': leave(t[k], g)

CASES = {k: [c for c in catalogue([k])] for k in ('lin', 'relu', 'mse', 'cross_entropy')}

def seq_network(seed):
    "A `Sequential` of arrays with one wrong layer inside: the layer, its inputs, the wrong one's number, its case."
    d = Draw(seed)
    n,i,h,o = sizes_of(d)
    good = [linear(d, i, h), closures.Relu(), linear(d, h, o), closures.Sigmoid()]
    k = d.int(0, 3)
    name = ['lin', 'relu', 'lin', 'sigmoid'][k]
    fit = [c for c in catalogue([name]) if not c.fault.shape and not c.fault.need and c.fault.known
           and c.fault.cls not in ('absent', 'dtype', 'non-finite', 'stale')]
    case = fit[d.int(0, len(fit) - 1)]
    t = dict(x=torch.empty(0))
    if name == 'lin':
        t |= dict(w=torch.from_numpy(good[k].weights.tensor), b=torch.from_numpy(good[k].bias.tensor))
    good[k] = HandLayer(layers[name], t, hand(layers[name], case.fault))
    return closures.Sequential(*good), [d(n, i).numpy()], k, case
