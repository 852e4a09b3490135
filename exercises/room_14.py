"Exercises on adapters: copies with shared tensors, two references, and arguments matched by name."
from copy import deepcopy

import torch
from fb_pass.checks import autograd_grad
from fb_pass.doctor.adapters import FunctionAdapter, ObjectAdapter, PairAdapter, bind_backward, find_inside
from fb_pass.modules import Lin, Model, Mse
from .asking import ask, exercise, rand

def _on_the_spot(model):
    for o in model.layers: o.w,o.b = o.w.double(),o.b.double()
    return model

def _tied_model():
    v,b = torch.randn(2, 2),torch.zeros(2)
    return Model.from_layers([Lin(v, b), Lin(v, b.clone()), Lin(torch.ones(2, 1), torch.zeros(1))], Mse())

@exercise('14.1', 'Write `in_float64(model)`: a copy in float64 in which what was shared is shared, and nothing is '
    'shared with the original.', 'This is what an adapter does before anything else, for every kind of layer.', wrong=[
    ('two different tensors', lambda m: _on_the_spot(deepcopy(m))), ('belongs to the caller', _on_the_spot),
    ('expected torch.float64', lambda m: deepcopy(m)),
    ('`t` itself', lambda m: deepcopy(m, {id(t): t.double() for t in find_inside(torch.Tensor, m).values()}))])
def in_float64(answer):
    model = _tied_model(); v = model.layers[0].w
    new = answer(model)
    untouched = model.layers[0].w is v and v.dtype == torch.float32 and new is not model
    assert untouched, ('Your function has changed the model that it was given, which belongs to the caller. Copy it, '
        'and convert only the tensors of the copy.')
    assert isinstance(new, Model), f'Return the copy; this is a {type(new).__name__}.'
    for k,t in find_inside(torch.Tensor, new).items(): assert t.dtype == torch.float64, (f'In the copy, {k} is '
        f'{t.dtype}, expected torch.float64. The copy gets the tensors that are in the memo.')
    first,second = new.layers[0].w,new.layers[1].w
    assert first is second, ('The two layers share one weight; in the copy they have two different tensors, and each '
        'will get a part of the gradient. Convert every tensor once, before copying, and use the memo to replace it.')
    assert torch.equal(first, v.double()), 'The numbers in the copy differ from those in the original.'
    apart = answer(new).layers[0].w.data_ptr() != first.data_ptr()
    assert apart, ('If the model is already in float64, copy and original share their memory: `t.double()` is then '
        '`t` itself. A `clone` is not.')

class _HalfSquare(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): ctx.save_for_backward(x); return x*x
    @staticmethod
    def backward(ctx, g): return g*ctx.saved_tensors[0]

def two_witnesses():
    "What autograd says about `HalfSquare` at 3, and what `exact` says."
    x = torch.tensor([3.]).double()
    s = FunctionAdapter(_HalfSquare, (x,))
    exact = s.exact(s.tensors, [torch.ones_like(x)])['x'].item()
    return autograd_grad(lambda x: _HalfSquare.apply(x).sum(), x).item(), exact

class _KeepsGrads:
    def __init__(self, w): self.w,self.grads = w,{}
    def forward(self, x): self.x = x; return x*self.w
    def backward(self, g): self.grads = {'x': g*self.w, 'w': (g*self.x).sum(0)}

def _keeper(mine=True, later=True, params=True, taken=True):
    "An adapter for `_KeepsGrads`, or a wrong one."
    class Keeper(ObjectAdapter):
        def params(self): return {'w': self.layer.w} if params else {}
        def run(self, layer, ts):
            layer = layer if mine else self.layer
            out = layer.forward(*self.args(ts))
            if not later: return self.taken(out), layer.grads
            def back(upstream): layer.backward(*upstream); return layer.grads
            return self.taken(out) if taken else out, back
    return Keeper

@exercise('14.3', 'Write `KeepsGradsAdapter`, a subclass of `ObjectAdapter` with two methods, `params` and `run`.',
    'Two methods. Copies, names, equal random draws and the reference are the same for every form.', wrong=[
    ('not `self.layer`', _keeper(mine=False)), ('a backward function', _keeper(later=False)),
    ('`params`', _keeper(params=False)), ('`self.taken`', _keeper(taken=False)),
    ('the class itself', _keeper()(_KeepsGrads(torch.ones(3)), (torch.ones(2, 3),)))])
def adapter_for_kept_grads(answer):
    assert isinstance(answer, type), f'Give the class itself, not a {type(answer).__name__}.'
    s = answer(_KeepsGrads(torch.randn(3)), (torch.randn(4, 3),))
    assert 'w' in s.tensors, (f'It knows {", ".join(s.tensors)} and no weight: `params` returns a dictionary, name -> '
        'tensor of `self.layer`.')
    ts,g = {k: 2*t for k,t in s.copies().items()},rand(4, 3)
    found = s.call(s.fresh(ts), ts)
    two = isinstance(found, tuple) and len(found) == 2 and callable(found[1])
    assert two, ('`run` returns two things: the outputs, and a backward function. There are no gradients before the '
        'backward pass.')
    outs,back = found
    assert isinstance(outs, tuple), ('The outputs have to be a tuple, whatever the layer returns: `self.taken` makes '
        'one.')
    got = back([g])
    assert not getattr(s.layer, 'grads', None), ('You have called `self.layer`, which has the tensors of the original. '
        '`run` is given a copy with the tensors `ts` in it: its argument `layer`, not `self.layer`.')
    assert isinstance(got, dict), ('The backward function returns gradients by name, in a dictionary; this is a '
        f'{type(got).__name__}.')
    for k,want in dict(x=g*ts['w'], w=(g*ts['x']).sum(0)).items():
        yield ask(got.get(k), want, f'{k}.g', values=ts, grads={'out.g': g})

@exercise('14.4', 'Write `named_back`, which does what `columnwise_back` does, so that the adapter passes it the right '
    'arguments.', 'A right layer was called wrong. Check how it is called before you trust a report.', wrong=[
    ('`factor` gets x', lambda grad, factor, inp: (grad*factor, (grad*inp).sum(0))),
    ('`factor` gets x', lambda grad, factor, inp: ((grad*inp).sum(0), grad*factor)),
    ('lacks a sum', lambda grad, w, x: (grad*w, grad*x)),
    ('in the order of', lambda grad, w, x: ((grad*x).sum(0), grad*w))])
def named_back(answer):
    x,w,g = rand(4, 3),rand(3),rand(4, 3)
    s,names = PairAdapter((lambda x, w: x*w, answer), (x, w)),dict(x='x', w='w')
    given = bind_backward(answer, dict.fromkeys(s.above, 'the gradient') | dict(out='out') | names, names).arguments
    passed = ', '.join(f'`{k}` gets {v}' for k,v in given.items())
    outs,back = s.call(s.fresh(s.tensors), s.tensors)
    try: got = back([g])
    except RuntimeError as e: raise AssertionError(f'It stops: {e}. By their names, {passed}.') from None
    hint = (f'By their names, {passed}. A name that the forward also has means the same argument; other names get the '
        'remaining arguments in the order of the forward.')
    if getattr(got.get('x'), 'shape', None) == w.shape: hint += (' Gradients are returned in the order of the inputs '
        'of the forward.')
    for k,o in s.exact(s.tensors, [g]).items():
        yield ask(got.get(k), o, f'{k}.g', hint, values=dict(x=x, w=w), grads={'out.g': g})
