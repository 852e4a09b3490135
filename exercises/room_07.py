"Exercises on autograd: what it saves, a Function that saves less, unregistered parameters, a faulty training step."
import torch
from fb_pass.forward import lin
from torch import nn
from .asking import agree, ask, exercise, rand, rands

def saved_for(asked):
    "Names of what autograd saves for `lin` when only the tensor `asked` requires a gradient."
    ts = dict(zip('xwb', rands((5, 4), (4, 3), (3,))))
    ts[asked].requires_grad_()
    found = []
    def pack(t): found.append(t.untyped_storage().data_ptr()); return t
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t): lin(**{'x': ts['x'], 'w': ts['w'], 'b': ts['b']})
    return ' and '.join(k for k,t in ts.items() if t.untyped_storage().data_ptr() in found) or 'nothing'

def _frugal(keep, slope):
    "A ReLU as a `Function` that saves its input or its output, with a backward of its own."
    class Frugal(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            out = x.clamp_min(0.)
            if keep == 'attribute': ctx.x = x
            else: ctx.save_for_backward(out if keep == 'out' else x)
            return out
        @staticmethod
        def backward(ctx, grad): return slope(*ctx.saved_tensors or [ctx.x], grad)
    return Frugal

@exercise('07.2', 'Write `FrugalRelu`, a `torch.autograd.Function` that saves nothing but its output.', 'The mask of '
    'the output is the mask of the input. In a network of ten layers that saves ten activations.', slips={
    'Every gradient passes. The output of ReLU is never negative, so `out >= 0` is true everywhere.':
        _frugal('out', lambda out, g: g*(out >= 0)),
    'The mask is right, but `grad`, the upstream gradient, is not in the result.':
        _frugal('out', lambda out, g: (out > 0).to(g)),
    'The derivative of ReLU is 1 or 0, and not its output.': _frugal('out', lambda out, g: g*out)}, wrong=[
    ('keeps its input alive', _frugal('x', lambda x, g: g*(x > 0))),
    ('keeps its input alive', _frugal('attribute', lambda x, g: g*(x > 0)))])
def frugal_relu(function):
    x,u,saved = rand(5, 4).requires_grad_(),rand(5, 4),[]
    def pack(t): saved.append(t.data_ptr()); return t
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t): out = function.apply(x)
    assert out is not None and agree(out, x.relu()), 'Forward first: `relu(x)`.'
    saved += [t.data_ptr() for t in vars(out.grad_fn).values() if isinstance(t, torch.Tensor)] # attributes of ctx
    g, = torch.autograd.grad(out, x, u)
    yield ask(g, u*(x > 0), 'x.grad', values=dict(x=x.detach(), out=out.detach()), grads={'out.grad': u})
    assert x.data_ptr() not in saved, ('The gradient is right. But this function keeps its input alive, which nothing '
        'else needs. The output is saved for the next layer anyway: take the mask from it.')

class _Hiding(nn.Module):
    "A network with its first layer in a plain list, its second used twice, and a tensor that is no `nn.Parameter`."
    def __init__(self):
        super().__init__()
        self.first,self.second,self.shift = [nn.Linear(4, 3)],nn.Linear(3, 3),torch.ones(1, requires_grad=True)
    def forward(self, x): return (self.second(self.second(self.first[0](x)).relu()) + self.shift).sum()

def _leaves(step):
    "The leaves of the graph that ends in `step`, one for each path to it."
    if step is None: return []
    if hasattr(step, 'variable'): return [step.variable]
    return [o for before,_ in step.next_functions for o in _leaves(before)]

def _along_the_first(step):
    "The leaf that is found if one always follows the first of the previous steps."
    while step is not None and not hasattr(step, 'variable'):
        step = next((o for o,_ in step.next_functions if o is not None), None)
    return [] if step is None else [step.variable]

def _is_in(p, ps): return any(p is q for q in ps)
def _without_parameters(leaves):
    return lambda model, loss: [p for p in leaves(loss.grad_fn) if not _is_in(p, model.parameters())]

@exercise('07.3', 'Write `unnoticed(model, loss)`: a list of the tensors that get a gradient from `loss` and are not '
    'among the parameters of `model`, each once.', 'This check need not know how many parameters there should '
    'be. Call it after the first forward pass of any network that you write.', wrong=[
    ('reports as its parameters', lambda model, loss: list({id(p): p for p in _leaves(loss.grad_fn)}.values())),
    ('all of them', _without_parameters(_along_the_first)),
    ('all of them', lambda model, loss: [o.variable for o,_ in loss.grad_fn.next_functions[:1]]),
    ('each of them once', _without_parameters(_leaves))])
def unnoticed(find):
    model,x = _Hiding(),torch.randn(5, 4)
    hidden = model.first[0].weight,model.first[0].bias,model.shift
    got = list(find(model, model(x)))
    missed = sum(not _is_in(p, got) for p in hidden)
    assert not missed, (f'In a network with three unregistered tensors, {missed} of them are not found. A step has '
        'several steps in `next_functions`: follow all of them, down to the leaves.')
    assert not any(_is_in(p, model.parameters()) for p in got), ('All unregistered tensors are found, but also some '
        'that the model reports as its parameters.')
    twice = list(find(model, model(x) + model(2*x)))
    assert len(got) == 3 and len(twice) == 3, ('A tensor that is used twice is a leaf in two places of the graph. '
        'List each of them once, by its `id`.')

def _step(change, clear=True, record=False):
    def step(w, lr):
        with torch.set_grad_enabled(record): change(w, lr*w.grad)
        if clear: w.grad = None
    return step

@exercise('07.4', 'Write `repaired_step(w, lr)`, which changes the tensor that it is given, and leaves it ready for '
    'the next pass.', 'A step changes the tensor in place, without being recorded, and the gradient is cleared. An '
    'optimizer does all three.', wrong=[
    ('another tensor', _step(lambda w, g: w - g)), ('in-place operation', _step(lambda w, g: w.sub_(g), record=True)),
    ('the second step', _step(lambda w, g: w.sub_(g), clear=False)), ('uphill', _step(lambda w, g: w.add_(g))),
    ('does not require a gradient', _step(lambda w, g: w.requires_grad_(False).sub_(g)))])
def repaired_step(step):
    w = torch.tensor([1., -2., 3.], dtype=torch.float64, requires_grad=True)
    start = w.detach().clone()
    for k,want in enumerate((.8*start, .64*start)):
        w.pow(2).sum().backward()
        step(w, .1)
        now = w.detach()
        assert not torch.equal(now, start), ("The caller's tensor has not changed. `w - lr*w.grad` is another tensor, "
            "and `w = ...` gives it the name `w`, but only inside the function.")
        assert not (now.abs() > start.abs()).any(), 'The loss has grown: the step goes uphill.'
        assert w.requires_grad, 'The step is right, but afterwards `w` does not require a gradient any more.'
        hint = 'The first step is too long or too short: it is `lr` times the gradient.'
        if k: hint = ('The first step is right, the second step is too long. What is in `w.grad` when the second '
            'backward pass adds to it?')
        assert agree(now, want), hint

def same_bits(n):
    "Whether our order of the arithmetic and autograd's agree for a batch of n in every bit."
    d = rand(10_000)
    return torch.equal(2*d/n, 1/n*(2*d))
