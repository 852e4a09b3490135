"One training step, by everybody who takes part in `make bench`: the same network, batch and optimizer."
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from fb_pass.compiled import compile_step
from fb_pass.closures import Learner, Linear, Relu, SGDOptimizer, Sequential
from fb_pass.gpt import ClippedAdamW
from fb_pass.initialization import kaiming_normal
from fb_pass.library import to_torch
from fb_pass.training import SGD, mlp, train_step

import cnn, gpt

LR = 0.01

def params_of(sizes, seed=0):
    "The weights that everybody begins with, each (n_in, n_out), and biases, as float32 arrays."
    gen = torch.Generator().manual_seed(seed)
    return [(kaiming_normal(a, b, generator=gen).numpy(), np.zeros(b, 'float32')) for a,b in zip(sizes, sizes[1:])]

def ours(sizes, x, y):
    "The public classes: a Model, our SGD, `train_step` with its checks of every number."
    model = mlp(*sizes)
    for p,q in zip(model.params, (o for pair in params_of(sizes) for o in pair)): p.copy_(torch.from_numpy(q))
    opt = SGD(model.params, LR)
    return lambda: train_step(model, opt, x, y), lambda: [p.numpy() for p in model.params]

def _recorded(sizes, x, y, backend):
    model = mlp(*sizes)
    for p,q in zip(model.params, (o for pair in params_of(sizes) for o in pair)): p.copy_(torch.from_numpy(q))
    step = compile_step(model, SGD(model.params, LR), x, y, backend)
    return lambda: step(x, y), lambda: [p.numpy() for p in model.params]

def ours_replayed(sizes, x, y):
    "The same classes through `compile_step`: calls of torch, one after the other."
    return _recorded(sizes, x, y, 'replay')

def ours_inductor(sizes, x, y):
    "The same record, compiled by torch's inductor."
    return _recorded(sizes, x, y, 'inductor')

def _torch_step(sizes, x, y, compiled=False, **kwargs):
    net = to_torch(mlp(*sizes))
    with torch.no_grad():
        start = [o for w,b in params_of(sizes) for o in (w.T, b)]
        for p,q in zip(net.parameters(), start): p.copy_(torch.from_numpy(q))
    return _by_sgd(net, x, y, compiled, **kwargs), lambda: [p.detach().t().numpy() for p in net.parameters()]

def _by_sgd(net, x, y, compiled, **kwargs):
    opt = torch.optim.SGD(net.parameters(), LR, **kwargs)
    def loss_of(x, y): return F.cross_entropy(net(x), y)
    if compiled: loss_of = torch.compile(loss_of)
    def step():
        loss = loss_of(x, y)
        loss.backward()
        opt.step()
        opt.zero_grad()
        return loss.item()
    return step

def torch_eager(sizes, x, y): return _torch_step(sizes, x, y)
def torch_fused(sizes, x, y): return _torch_step(sizes, x, y, fused=True)
def torch_compile(sizes, x, y): return _torch_step(sizes, x, y, compiled=True)

def jax_jit(sizes, x, y):
    "Loss, gradients and update in one compiled function, whose old parameters give their memory to the new ones."
    import jax, jax.numpy as jnp
    x,y,params = jnp.asarray(x.numpy()),jnp.asarray(y.numpy()),jax.tree.map(jnp.asarray, params_of(sizes))
    def loss_of(params):
        h = x
        for i,(w,b) in enumerate(params): h = h@w + b if i == len(params) - 1 else jax.nn.relu(h@w + b)
        return -jnp.take_along_axis(jax.nn.log_softmax(h), y[:,None], 1).mean()
    def update(params):
        loss,grads = jax.value_and_grad(loss_of)(params)
        return loss,jax.tree.map(lambda p,g: p - LR*g, params, grads)
    update,kept = jax.jit(update, donate_argnums=0),[params]
    def step():
        loss,kept[0] = update(kept[0])
        return float(loss)
    return step, lambda: [np.asarray(o) for pair in kept[0] for o in pair]

def numpy_cross_entropy(logits, targ):
    "Loss, and its gradient with respect to `logits`."
    z,rows = logits - logits.max(1, keepdims=True),np.arange(len(targ))
    e = np.exp(z)
    total = e.sum(1, keepdims=True)
    g = e/total
    loss = float((np.log(total[:,0]) - z[rows,targ]).mean())
    g[rows,targ] -= 1
    return loss, g/np.float32(len(targ))

def numpy_closures(sizes, x, y):
    "The numpy library of the room on closures."
    layers = []
    for w,b in params_of(sizes):
        layers += [Linear(*w.shape, dtype=np.float32), Relu()]
        layers[-2].weights.tensor,layers[-2].bias.tensor = w,b
    model = Sequential(*layers[:-1])
    learner = Learner(model, numpy_cross_entropy, SGDOptimizer(LR))
    return lambda: learner.fit_batch(x.numpy(), y.numpy()), lambda: [p.tensor for p in model.parameters]

def numpy_plain(sizes, x, y):
    "Numpy without classes: the lines that one would write in a script."
    x,y,params = x.numpy(),y.numpy(),params_of(sizes)
    def step():
        inps,h = [],x
        for w,b in params:
            inps.append(h)
            h = np.maximum(h@w + b, 0) if w is not params[-1][0] else h@w + b
        loss,g = numpy_cross_entropy(h, y)
        for i,(w,b) in reversed(list(enumerate(params))):
            wg,bg = inps[i].T@g,g.sum(0)
            if i: g = g@w.T*(inps[i] > 0)
            w -= LR*wg
            b -= LR*bg
        return loss
    return step, lambda: [o for pair in params for o in pair]

def numpy_buffered(sizes, x, y):
    "The same, with every large array made once and filled anew in each step."
    x,y,params = x.numpy(),y.numpy(),params_of(sizes)
    outs = [np.empty((len(x), s), 'float32') for s in sizes[1:]]
    grads = [tuple(map(np.empty_like, pair)) for pair in params]
    gs,masks = [np.empty_like(o) for o in outs],[np.empty(o.shape, bool) for o in outs]
    def step():
        h = x
        for (w,b),out in zip(params, outs):
            np.matmul(h, w, out=out)
            out += b
            h = np.maximum(out, 0, out=out) if out is not outs[-1] else out
        loss,g = numpy_cross_entropy(h, y)
        for i,((w,b),(wg,bg)) in reversed(list(enumerate(zip(params, grads)))):
            inp = outs[i-1] if i else x
            np.matmul(inp.T, g, out=wg)
            np.sum(g, 0, out=bg)
            if i: g = np.multiply(np.matmul(g, w.T, out=gs[i-1]), np.greater(inp, 0, out=masks[i-1]), out=gs[i-1])
            for p,pg in ((w, wg), (b, bg)):
                pg *= LR
                p -= pg
        return loss
    return step, lambda: [o for pair in params for o in pair]

def _products(sizes, n, only_first):
    "The matrix products of a step, each as one would write it, and nothing else."
    acts,ws = [torch.randn(n, s) for s in sizes],[torch.randn(a, b) for a,b in zip(sizes, sizes[1:])]
    def run():
        for i,w in enumerate(ws[:1] if only_first else ws):
            acts[i]@w
            acts[i].t()@acts[i+1]
            if i: acts[i+1]@w.t()
    return run

def products(sizes, x, y): return _products(sizes, len(x), False), None
def two_large_products(sizes, x, y): return _products(sizes, len(x), True), None

STEPS = {'ours': ours, 'ours, compile_step': ours_replayed, 'ours, by inductor': ours_inductor,
         'torch eager': torch_eager, 'torch eager, fused SGD': torch_fused,
         'torch.compile': torch_compile, 'JAX jit': jax_jit,
         'our numpy closures': numpy_closures, 'plain numpy': numpy_plain, 'numpy, buffers kept': numpy_buffered,
         'all matrix products': products, 'the two large products': two_large_products}

# Larger networks: the readable classes, recorded, and the same network by torch

VOCAB,GPT_LR = 65,1e-3

def _five(new, optimizer, by_torch):
    """Ways to take a step of the model that `new()` makes. They are compared by the losses of the first steps alone: a
    step of Adam is as long for a gradient that is nothing but rounding."""
    def ours(x, y):
        model = new()
        opt = optimizer(model.params)
        return lambda: train_step(model, opt, x, y), list
    def recorded(x, y, backend):
        model = new()
        step = compile_step(model, optimizer(model.params), x, y, backend)
        return lambda: step(x, y), list
    def theirs(x, y, compiled): return by_torch(new(), x, y, compiled), list
    return {'ours': ours, 'ours, compile_step': partial(recorded, backend='replay'),
            'ours, by inductor': partial(recorded, backend='inductor'),
            'torch eager': partial(theirs, compiled=False), 'torch.compile': partial(theirs, compiled=True)}

def _gpt_by_torch(model, x, y, compiled):
    net = gpt.to_torch(model, gpt.shape['n_layer'], gpt.shape['n_head'])
    opt = gpt.torch_optimizer(net)
    if compiled: net = torch.compile(net)
    return lambda: gpt.torch_step(net, opt, x, y, GPT_LR)

CNN = _five(lambda: cnn.new(0), lambda ps: SGD(ps, LR), lambda model, *args: _by_sgd(to_torch(model), *args))
GPT = _five(lambda: gpt.new(VOCAB, 0), lambda ps: ClippedAdamW(ps, GPT_LR), _gpt_by_torch)
