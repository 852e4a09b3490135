"Exercises on the backward pass: single gradients, a faulty backward pass, and a weight with two uses."
from fb_pass.backward import forward_and_backward
from fb_pass.checks import autograd_grad
from fb_pass.gradients import add_grad
from .asking import ask, ask_twice, exercise, rands

@exercise('05.1', 'Write `sigmoid_grad(inp, out)`: the gradient that follows from `out.g` is added to `inp.g`.',
    'Its backward function needs only the output. A layer that keeps `out` need not keep `inp`.', slips={
    'That is the derivative alone. By the chain rule it is multiplied by the upstream gradient, `out.g`.':
        lambda inp, out: add_grad(inp, out*(1 - out)),
    'The derivative is s(1 - s), where s is the value of the sigmoid: it is written in terms of the output, not of '
        'the input.': lambda inp, out: add_grad(inp, out.g*inp*(1 - inp)),
    'What is the derivative of the sigmoid at 0? Try it: it is a quarter, and `out` is one half there.':
        lambda inp, out: add_grad(inp, out.g*out),
    'There is no `inp.g`. A backward function of this room returns nothing: it adds its result with '
        '`add_grad(inp, ...)`.': lambda inp, out: out.g*out*(1 - out)}, wrong=[
    ('add, do not overwrite', lambda inp, out: setattr(inp, 'g', out.g*out*(1 - out)))])
def sigmoid_grad(backward):
    inp,u = rands((4, 3), (4, 3))
    out = inp.sigmoid(); out.g = u
    want = autograd_grad(lambda x: (x.sigmoid()*u).sum(), inp)
    yield from ask_twice(lambda: backward(inp, out), inp, want, values=dict(inp=inp, out=out), grads={'out.g': u})

def _errors_back(slope): return lambda inp, targ: add_grad(inp, slope(inp[:,0] - targ)[:,None]/len(inp))

@exercise('05.4', 'Derive the gradient of the mean absolute error, and write it as `mae_grad(inp, targ)`: it adds to '
    '`inp.g`.', 'Every prediction has a gradient of the same size, however wrong it is. So outliers '
    'have less influence than with the squared error, but steps do not become smaller near the minimum.', slips={
    'The signs are right, the sizes are not. Where is the mean?': _errors_back(lambda d: d.sign()*len(d)),
    'The gradient does not depend on the size of the error. Draw |d|: how steep is it at d = 2, and at d = 0.1?':
        _errors_back(lambda d: d),
    'That is the gradient of the squared error. The derivative of |d| is different.': _errors_back(lambda d: 2*d),
    'If a prediction is too large and grows, does the loss grow or shrink? Which sign must its gradient have?':
        _errors_back(lambda d: -d.sign())}, wrong=[
    ('has the shape', lambda inp, targ: add_grad(inp, (inp[:,0] - targ).sign()/len(inp)))])
def mae_grad(backward):
    inp,targ = rands((5, 1), (5,))
    want = autograd_grad(lambda o: (o[:,0] - targ).abs().mean(), inp)
    yield from ask_twice(lambda: backward(inp, targ), inp, want, values=dict(inp=inp))

def _network(step):
    "The pass of the exercise with another backward function for ReLU."
    def network(x, targ, w1, b1, w2, b2):
        l1 = x@w1 + b1; l2 = l1.clamp_min(0.); out = l2@w2 + b2
        out.g = 2*(out - targ[:,None])/len(x)
        l2.g,w2.g,b2.g = out.g@w2.t(),l2.t()@out.g,out.g.sum(0)
        l1.g = step(l1, l2)
        x.g,w1.g,b1.g = l1.g@w1.t(),x.t()@l1.g,l1.g.sum(0)
        return l1, l2, out
    return network

@exercise('05.3', 'Find the faulty line of `faulty_pass`, and write the function again without the fault, as '
    '`repaired_pass`.', 'All eight gradients are right. Those of the second layer were right from the beginning: '
    'they are closer to the loss than the fault.', slips={
    'l1.g has its zeros in the right places, and is wrong elsewhere. ReLU passes the upstream gradient; by what is it '
        'multiplied here?': _network(lambda l1, l2: l2.g*l2)}, wrong=[
    ('mask', _network(lambda l1, l2: l2.g)), ('l1.g is wrong', _network(lambda l1, l2: l2.g*(l2.g > 0))),
    ('inverted', _network(lambda l1, l2: l2.g*(l1 <= 0))), ('return l1, l2, out', lambda *ts: None)])
def repaired_pass(answer):
    x,targ,w1,b1,w2,b2 = ts = rands((6, 5), (6,), (5, 4), (4,), (4, 1), (1,))
    right = [t.clone() for t in ts]
    l1,l2,out = _network(lambda l1, l2: l2.g*(l1 > 0))(*right)
    want = dict(out=out.g, w2=right[4].g, b2=right[5].g, l2=l2.g, l1=l1.g, w1=right[2].g, b1=right[3].g, x=right[0].g)
    made = answer(*ts)
    assert isinstance(made, tuple) and len(made) == 3, ('Let it end with `return l1, l2, out`, as `faulty_pass` does: '
        'the check compares the gradients in between.')
    l1,l2,out = made
    where = dict(values=dict(x=x, l1=l1, l2=l2, w1=w1, w2=w2), grads={'out.g': want['out'], 'l2.g': want['l2']})
    for name,t in dict(out=out, w2=w2, b2=b2, l2=l2, l1=l1, w1=w1, b1=b1, x=x).items(): # the one next to the loss first
        hint = (f'Counted from the loss, {name}.g is the first that is wrong: what it is computed from is right, so '
            'look at the line that computes it.')
        yield ask(getattr(t, 'g', None), want[name], f'{name}.g', hint, **where)

def rescaled():
    "By which factor each gradient of the network changes when layer 1 is doubled and w2 halved, measured."
    x,targ,*params = rands((6, 5), (6,), (5, 4), (4,), (4, 1), (1,))
    forward_and_backward(x, targ, *params)
    before = [p.g for p in params]
    params = [f*p for f,p in zip((2, 2, .5, 1), params)]
    forward_and_backward(x, targ, *params)
    return {k: (p.g/g).nanmean().item() for k,p,g in zip(('w1', 'b1', 'w2', 'b2'), params, before)}

def _first(x, w, g): return x.t() @ (g @ w)
def _second(x, w, g): return g.t() @ (x @ w)

@exercise('05.5', 'Derive the gradient of the weight of `out = (x@w)@w.t()`, and write it as `tied_grad(x, w, g)`, '
    'which returns it.', 'One weight, two uses, two terms. Such a network is called an autoencoder with tied weights.',
    slips={
    '`w` is used twice, and you have the term of one use: it also occurs in `l@w.t()`, where l = x@w.': _first,
    '`w` is used twice, and you have the term of one use: it also occurs in `x@w`. There the upstream gradient is that '
        'of l = x@w.': _second,
    'Both terms are right. Two paths lead from `w` to the loss; derivatives along different paths are added.':
        lambda *ts: _first(*ts) * _second(*ts)}, wrong=[
    ('(5, 3)', lambda x, w, g: _first(x, w, g).t() + _second(x, w, g).t())])
def tied_grad(f):
    x,w,g = rands((4, 5), (5, 3), (4, 5))
    want = autograd_grad(lambda w: (x@w@w.t()*g).sum(), w)
    yield ask(f(x, w, g), want, 'w.g', 'A gradient has the shape of its tensor, (5, 3) here. In l@w.t() the weight '
        'is transposed, so its gradient comes out transposed as well.',
              terms={'x@w': _first(x, w, g), 'l@w.t()': _second(x, w, g)})
