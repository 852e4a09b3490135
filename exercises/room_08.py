"Exercises on closures: layers whose `forward` returns a backward function, momentum, a batch in parts."
import numpy as np
import torch
from fb_pass.checks import autograd_grad
from fb_pass.closures import Layer, Learner, Linear, Parameter, Sequential, SGDOptimizer, mse_loss
from .asking import agree, ask, exercise, rands

def arrays(*shapes): return [t.numpy() for t in rands(*shapes)]

def _tanh(slope):
    class Tanh(Layer):
        def forward(self, X):
            Y = np.tanh(X)
            return Y, lambda Yg: slope(X, Y, Yg)
    return Tanh

@exercise('08.1', 'Write `Tanh`, a `Layer` whose `forward` returns the hyperbolic tangent and a backward function.',
    'The closure holds `Y` and nothing else. `X` is not needed.', slips={
    'The derivative is written in terms of the output, not of the input.': _tanh(lambda X, Y, Yg: Yg*(1 - X**2)),
    'That is the derivative alone. Where is `Yg`, the upstream gradient?': _tanh(lambda X, Y, Yg: 1 - Y**2),
    'This is the derivative of the sigmoid. That of tanh is 1 at 0: differentiate the quotient in the text above.':
        _tanh(lambda X, Y, Yg: Yg*Y*(1 - Y))}, wrong=[
    ('Change', _tanh(lambda X, Y, Yg: Yg*(1 - Y))),
    ('two things', type('Tanh', (Layer,), dict(forward=lambda self, X: np.tanh(X))))])
def tanh(cls):
    X,u = arrays((5, 4), (5, 4))
    made = cls().forward(X)
    assert isinstance(made, tuple) and len(made) == 2, ('`forward` returns two things: the output, and the '
        'backward function.')
    Y,backward = made
    assert agree(Y, np.tanh(X)), 'Forward first: `np.tanh(X)`.'
    x,g = torch.from_numpy(X),torch.from_numpy(u)
    want = autograd_grad(lambda x: (x.tanh()*g).sum(), x)
    where = dict(values=dict(X=x, Y=x.tanh()), grads={'Yg': g})
    yield ask(backward(u), want, 'Xg', 'Change the input at one place where the output is known.', **where)

def _sum_layer(way):
    "A layer that adds up the outputs of several layers; `way` makes its backward function from theirs."
    class Sum(Layer):
        def __init__(self, *layers): self.layers,self.parameters = layers,[p for o in layers for p in o.parameters]
        def forward(self, X):
            Ys,backs = zip(*[o.forward(X) for o in self.layers])
            return sum(Ys), way(backs)
    return Sum

def _one_after_the_other(backs):
    def backward(Yg):
        for back in backs: Yg = back(Yg)
        return Yg
    return backward

@exercise('08.3', 'Find out why the gradients of `FaultySum` are wrong, and write `RepairedSum`, in which they are '
    'right.', 'A list of backward functions, as in `Sequential`; but each gets the same `Yg`, and the results are '
    'added.', wrong=[
    ('no gradient at all', _sum_layer(lambda backs: lambda Yg: sum(backs[-1](Yg) for _ in backs))),
    ('side by side', _sum_layer(_one_after_the_other)),
    ('all of `Yg`', _sum_layer(lambda backs: lambda Yg: sum(back(Yg/len(backs)) for back in backs))),
    ('Xg', _sum_layer(lambda backs: lambda Yg: [back(Yg) for back in backs][-1]))])
def repaired_sum(cls):
    X,u = arrays((5, 4), (5, 4))
    layers = [Linear(4, 4, k) for k in (1, 2, 3)]
    weights = [o.parameters[0] for o in layers]
    Y,backward = cls(*layers).forward(X)
    assert agree(Y, sum(o.forward(X)[0] for o in layers)), ('The forward pass was right: the sum of the outputs of the '
        'layers. Leave it as it is.')
    g,want = backward(u),X.T@u
    silent = sum(not w.gradient.any() for w in weights)
    assert not silent, (f'{silent} of 3 layers got no gradient at all, and another one too much. How many '
        'variables `back` are there, and when is it looked up?')
    assert not agree(weights[0].gradient, want/3), ('A sum has derivative 1 for each of its terms: every layer gets '
        'all of `Yg`, undivided.')
    for i,w in enumerate(weights): assert agree(w.gradient, want), (f'The gradient of the weight of layer {i} is '
        'wrong. The layers stand side by side, and not in a row: each of them gets the same `Yg`.')
    terms = {f'layer {i}': torch.from_numpy(u@w.tensor.T) for i,w in enumerate(weights)}
    hint = 'The input was used once by each layer. What happens to the contributions?'
    yield ask(g, sum(terms.values()), 'Xg', hint, terms=terms)

def _with_memory(where, rule=lambda beta, v, g: beta*v + g, clears=True):
    "An optimizer that keeps velocities under `where(param)` and updates them by `rule`."
    class Momentum:
        def __init__(self, lr, beta): self.lr,self.beta,self.kept = lr,beta,{}
        def update(self, param):
            v = self.kept[where(param)] = rule(self.beta, self.kept.get(where(param), 0), param.gradient)
            param.tensor = param.tensor - self.lr*v
            if clears: param.clear()
    return Momentum

@exercise('08.4', 'Write `Momentum(lr, beta)` with a method `update(param)`, an optimizer that keeps a velocity for '
    'each parameter.', 'A dictionary whose keys are the parameters, or an attribute on them. Both outlive the arrays, '
    'which are new after every step.', wrong=[
    ('each of the parameters', _with_memory(lambda p: 'all')),
    ('puts a new array', _with_memory(lambda p: id(p.tensor))), ('clears', _with_memory(id, clears=False)),
    ('first step', _with_memory(id, lambda beta, v, g: beta*v + (1 - beta)*g)),
    ('no memory', _with_memory(id, lambda beta, v, g: g))])
def momentum(cls):
    params,gs = [Parameter(o) for o in arrays((3,), (3,))],arrays(*[(3,)]*6)
    ours,vs,at = cls(.1, .9),[0., 0.],[p.tensor for p in params]
    for step in range(3):
        vs = [.9*v + g for v,g in zip(vs, gs[2*step:])]
        without,at = [a - .1*g for a,g in zip(at, gs[2*step:])],[a - .1*v for a,v in zip(at, vs)]
        for i,p in enumerate(params):
            p.add(gs[2*step + i]); ours.update(p)
            assert not step or not agree(p.tensor, without[i]), ('It steps as if it had no memory, or as if it had '
                'lost it: an update puts a new array in the place of `param.tensor`. What stays the same?')
            assert step or not i or agree(p.tensor, at[i]), ('The first parameter steps rightly, the second does not. '
                'Each of the parameters needs a velocity of its own.')
            which = 'A first step has no velocity yet, and is `lr` times the gradient.'
            if step: which = 'The velocity becomes `beta` times what it was plus the gradient.'
            assert agree(p.tensor, at[i]), f'Step {step + 1} of parameter {i} is wrong. {which}'
            assert not p.gradient.any(), 'The step is right. But what clears the gradient for the next batch?'

def _in_parts(weight, update_each=False):
    "A step in parts: `weight(n, N, k)` is the factor of a part of n of N examples in k parts."
    def step(learner, parts):
        N = sum(len(X) for X,_ in parts)
        for X,Y in parts:
            pred,backward = learner.model.forward(X)
            backward(learner.loss(pred, Y)[1]*weight(len(X), N, len(parts)))
            if update_each: learner.model.update(learner.optimizer)
        if not update_each: learner.model.update(learner.optimizer)
    return step

def _steps(learner, parts):
    for o in parts: learner.fit_batch(*o)

@exercise('08.5', 'Write `step_in_parts(learner, parts)`: one step, as if the parts, pairs `(X, Y)`, were one batch.',
    'The step of the whole batch up to rounding, with the memory of the larger part. It works because `backward` '
    'adds, and only the optimizer clears.', slips={
    'Nothing has moved. After the last part it is the turn of `learner.model.update(learner.optimizer)`.':
        lambda learner, parts: None,
    'The step is about twice too long. The loss of a part is its mean, and two means add up to two: by what must each '
        'be multiplied?': _in_parts(lambda n, N, k: 1),
    'With halves it would be right. Here the parts have 40 and 24 examples, and each of the 24 counts more than each '
        'of the 40. Every example is to count as much as every other.': _in_parts(lambda n, N, k: 1/k),
    'These are two steps. It should be one step, after the gradients of all parts have been added up.': _steps,
    'The weights of the parts are right. But this is a step for each part; take one step, after all of them.':
        _in_parts(lambda n, N, k: n/N, update_each=True)}, wrong=[
    ('is its mean', _in_parts(lambda n, N, k: N/n))])
def step_in_parts(step):
    X,Y = arrays((64, 3), (64, 1))
    def after(f):
        learner = Learner(Sequential(Linear(3, 1, 0)), mse_loss, SGDOptimizer(.1))
        f(learner)
        return learner.model.parameters[0].tensor
    got, want = after(lambda o: step(o, [(X[:40], Y[:40]), (X[40:], Y[40:])])), after(lambda o: o.fit_batch(X, Y))
    yield ask(got, want, 'the weight after the step', 'The step is another one than that of the whole batch. The loss '
        'of a part of n examples is its mean, their sum divided by n. What makes the mean of all out of that?')
