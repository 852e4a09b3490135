"""Every public callable with hostile arguments: a right result, or an error of ours.

An error is ours if a `raise` of the package made it, and its message names the callable or one of its arguments.
"""
import dis, importlib, math, os, re, warnings
from contextlib import nullcontext
from functools import partial

import matplotlib
import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

matplotlib.use('Agg')
import matplotlib.pyplot

MODULES = ['normalization', 'initialization', 'forward', 'backward', 'gradients', 'bridges', 'checks', 'inputs',
           'parameters', 'norms', 'modules', 'autograd', 'closures', 'training', 'activations', 'library',
           'convolution', 'speed', 'compiled', 'attention', 'gpt', 'parallel',
           'precision']
mod = {k: importlib.import_module(f'fb_pass.{k}') for k in MODULES}
package = os.path.dirname(mod['forward'].__file__)

def rand(*shape, dtype=torch.float32): return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)
def labels(): return torch.tensor([0, 1, 2, 1])
def causal(): return torch.ones(4, 4, dtype=torch.bool).tril()
def out(*shape):
    t = rand(*shape); t.g = rand(*shape)
    return t
def model(): return mod['training'].mlp(3, 5, 3, generator=torch.Generator().manual_seed(0))
def trained():
    m = model(); m(rand(4, 3), labels()); m.backward()
    return m
def sgd(m): return sgd_of(m.params)
def sgd_of(params): return mod['training'].SGD(params, .1)
def pairs(): return [(rand(4, 3), labels())]
def fitted():
    m = model()
    return mod['training'].fit(m, sgd(m), pairs(), pairs(), 1, progress=False)
def tiny(): return mod['gpt'].gpt(3, 4, 1, 1, 2, generator=generator())
def net(): return nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 3))
def rule(): return mod['gradients'].Rule(torch.exp, lambda g, out, x: g*out)
def generator(): return torch.Generator().manual_seed(0)
def ours(): return type('Ours', (mod['modules'].Relu,), {})
def array(*shape): return np.random.default_rng(0).standard_normal(shape)
def learner():
    c = mod['closures']
    return c.Learner(c.Linear(3, 2), c.mse_loss, c.SGDOptimizer())

HOSTILE = {
    'None': lambda: None, 'a string': lambda: 'abc', 'an integer': lambda: 3, 'minus one': lambda: -1,
    'nan': lambda: math.nan, 'a complex number': lambda: 1j, 'True': lambda: True,
    'a class': lambda: torch.Tensor, 'an object': object,
    'a list': lambda: [1., 2.], 'a nested list': lambda: [[1., 2.], [3.]], 'an empty list': list,
    'a dict': lambda: {'x': rand(4, 3)}, 'a tuple of tensors': lambda: (rand(4, 3), rand(4, 3)),
    'a module': lambda: nn.Linear(3, 3),
    'float16': lambda: rand(4, 3, dtype=torch.float16), 'int64': lambda: torch.ones(4, 3, dtype=torch.int64),
    'complex64': lambda: rand(4, 3).to(torch.complex64), 'bool': lambda: rand(4, 3) > 0,
    'float64': lambda: rand(4, 3).double(),
    'another shape': lambda: rand(7, 2, 5), 'a vector': lambda: rand(3), 'empty': lambda: torch.empty(0),
    'no rows': lambda: torch.empty(0, 3), 'no columns': lambda: torch.empty(4, 0), 'a scalar': lambda: torch.tensor(1.),
    'meta': lambda: torch.empty(4, 3, device='meta'), 'sparse': lambda: torch.eye(3).to_sparse(),
    'nested': lambda: torch.nested.nested_tensor([rand(2, 3), rand(1, 3)]),
    'quantized': lambda: torch.quantize_per_tensor(rand(4, 3), .1, 0, torch.qint8),
    'requires grad': lambda: rand(4, 3).requires_grad_(), 'with a graph': lambda: rand(4, 3).requires_grad_()*2,
    'expanded': lambda: rand(1, 3).expand(4, 3), 'not finite': lambda: torch.full((4, 3), math.nan),
    'an array': lambda: np.ones((4, 3)), 'an array of float32': lambda: np.ones((4, 3), np.float32),
    'an array of integers': lambda: np.ones((4, 3), int), 'an array of objects': lambda: np.array([None, 'a']),
    'a matrix': lambda: np.matrix(np.ones((4, 3))),
    'a masked array': lambda: np.ma.masked_array(np.ones((4, 3)), True),
    'a number of numpy': lambda: np.float32(1), 'an empty array': lambda: np.ones(0),
    'an array without axes': lambda: np.array(1.),
}
MODES = {'no_grad': torch.no_grad, 'inference_mode': torch.inference_mode, 'autocast': lambda: torch.autocast('cpu')}

# A right call of each callable, argument by argument; `then` is what is done with the result.
def x(): return rand(4, 3)
def call(result): return result
CALLS = {
    'normalization': {'normalize': dict(x=x, m=lambda: 0.5, s=lambda: 2.)},
    'initialization': {
        'kaiming_std': dict(fan=lambda: 3, a=lambda: 0.),
        **{k: dict(n_in=lambda: 3, n_out=lambda: 5, a=lambda: 0., mode=lambda: 'fan_in',
                   generator=lambda: torch.Generator().manual_seed(0)) for k in ('kaiming_normal', 'kaiming_uniform')}},
    'forward': {'lin': dict(x=x, w=lambda: rand(3, 5), b=lambda: rand(5)), 'relu': dict(x=x),
                'mse': dict(output=lambda: rand(4, 1), targ=lambda: rand(4))},
    'backward': {
        'mse_grad': dict(inp=lambda: rand(4, 1), targ=lambda: rand(4)),
        'relu_grad': dict(inp=x, out=lambda: out(4, 3)),
        'lin_grad': dict(inp=x, out=lambda: out(4, 5), w=lambda: rand(3, 5), b=lambda: rand(5)),
        'forward_and_backward': dict(inp=x, targ=lambda: rand(4), w1=lambda: rand(3, 5), b1=lambda: rand(5),
                                     w2=lambda: rand(5, 1), b2=lambda: rand(1))},
    'gradients': {
        'check_fits': dict(who=lambda: 'f', g=x, t=x), 'add_grad': dict(t=x, g=x), 'clear_grads': dict(t=x),
        'upstream_grad': dict(name=lambda: 'f', out=lambda: out(4, 3), shape=lambda: (4, 3)),
        'Rule': dict(forward=lambda: torch.exp, backward=lambda: lambda g, out, x: g*out),
        'Rule.grads': dict(g=x, out=x, x=x), 'Rule.add_grads': dict(out=lambda: out(4, 3), x=x),
        'check_rule': dict(rule=rule, x=x, rtol=lambda: 1e-6)},
    'bridges': {'to_function': dict(o=rule, name=lambda: 'F'), 'own_tensors': dict(module=model),
                'as_torch': dict(model=model), 'as_torch()': dict(x=x, targ=labels),
                'register_op': dict(o=lambda: mod['modules'].Lin, name=lambda: 'hostile::op')},
    'precision': {
        'WideLoss': dict(loss=lambda: mod['training'].CrossEntropy()), 'WideLoss()': dict(preds=x, targ=labels),
        'LowPrecision': dict(model=model, make=lambda: sgd_of, dtype=lambda: torch.bfloat16, scale=lambda: 2.,
                             patience=lambda: 9),
        'LowPrecision()': dict(xb=x, yb=labels)},
    'checks': {
        'numerical_grad': dict(f=lambda: torch.sum, x=x, eps=lambda: 1e-4),
        'autograd_grad': dict(f=lambda: torch.sum, x=x),
        'default_rtol': dict(dtype=lambda: torch.float32),
        'check_grad': dict(got=x, want=x, rtol=lambda: 1e-3, name=lambda: 'w.g'),
        'test_near_zero': dict(a=lambda: torch.zeros(3), tol=lambda: 1e-3),
        'compare_times': dict(fns=lambda: {'f': lambda: None}, rounds=lambda: 2, warmup=lambda: True),
        'peak_memory': dict(f=lambda: lambda: rand(3))},
    'inputs': {
        'check_kind': dict(who=lambda: 'f', name=lambda: 'x', value=x, kind=lambda: torch.Tensor),
        'typed': dict(f=lambda: lambda x: x), 'checked': dict(axes=lambda: 'n c'),
        'check_inputs': dict(who=lambda: 'f', axes=lambda: 'n c', x=x),
        'note_versions': dict(owner=x, x=x), 'check_versions': dict(who=lambda: 'f', owner=x, x=x),
        'check_apart': dict(who=lambda: 'f', x=x, y=x),
        'check_stats': dict(who=lambda: 'f', x=x, m=lambda: 0., s=lambda: 1.)},
    'parameters': {'found': dict(f=lambda: lambda o: 1), 'Parts': {}, 'Parts.train': dict(mode=lambda: False)},
    'norms': {
        'normalize_grad': dict(inp=x, out=lambda: out(4, 3), s=lambda: 2.),
        'normalize_full_grad': dict(inp=x, out=lambda: out(4, 3), s=lambda: 2., correction=lambda: 1),
        'LayerNorm': dict(weight=lambda: rand(3), bias=lambda: rand(3), eps=lambda: 1e-5), 'LayerNorm()': dict(x=x),
        'RmsNorm': dict(weight=lambda: rand(3), eps=lambda: 1e-6), 'RmsNorm()': dict(x=x),
        'BatchNorm': dict(weight=lambda: rand(3), bias=lambda: rand(3), eps=lambda: 1e-5, momentum=lambda: .1),
        'BatchNorm()': dict(x=x)},
    'modules': {
        'Lin': dict(w=lambda: rand(3, 5), b=lambda: rand(5)), 'Lin()': dict(x=x), 'Relu()': dict(x=x),
        'Mse()': dict(output=lambda: rand(4, 1), targ=lambda: rand(4)),
        'Model': dict(w1=lambda: rand(3, 5), b1=lambda: rand(5), w2=lambda: rand(5, 1), b2=lambda: rand(1)),
        'Model.from_layers': dict(layers=lambda: model().layers, loss=lambda: model().loss),
        'Model()': dict(x=x, targ=lambda: rand(4))},
    'autograd': {
        'LinFunction': dict(x=x, w=lambda: rand(3, 5), b=lambda: rand(5)), 'ReluFunction': dict(x=x),
        'MseFunction': dict(output=lambda: rand(4, 1), targ=lambda: rand(4))},
    'closures': {
        'Parameter': dict(tensor=lambda: array(3, 2)), 'Parameter.add': dict(g=lambda: array(3, 2)),
        'Layer.build_param': dict(tensor=lambda: array(3, 2)),
        **{f'{k}.{f}': {name: lambda: array(4, 3)} for k in ('Relu', 'Sigmoid', 'Linear', 'Sequential')
           for f,name in (('forward', 'X'), ('back', 'Yg'))},
        'Linear': dict(inputs=lambda: 3, outputs=lambda: 2), 'Sequential': dict(layer=lambda: mod['closures'].Relu()),
        'mse_loss': dict(pred=lambda: array(4, 3), targ=lambda: array(4, 3)), 'SGDOptimizer': dict(lr=lambda: .1),
        'Learner': dict(model=lambda: mod['closures'].Linear(3, 2), loss=lambda: mod['closures'].mse_loss,
                        optimizer=lambda: mod['closures'].SGDOptimizer()),
        'Learner.fit': dict(X=lambda: array(4, 3), Y=lambda: array(4, 2), epochs=lambda: 1, bs=lambda: 2)},
    'training': {
        **{k: dict(x=x) for k in ('logsumexp', 'log_softmax', 'softmax')},
        'check_classes': dict(name=lambda: 'f', logits=x, targ=labels),
        'cross_entropy': dict(logits=x, targ=labels), 'cross_entropy_grad': dict(inp=x, targ=labels),
        'CrossEntropy()': dict(logits=x, targ=labels), 'accuracy': dict(logits=x, targ=labels),
        'mlp': dict(n_in=lambda: 3, n_out=lambda: 3, generator=lambda: torch.Generator(), dtype=lambda: torch.float64),
        'Optimizer': dict(params=lambda: [x()], lr=lambda: .1),
        'SGD': dict(params=lambda: [x()], lr=lambda: .1, momentum=lambda: .9, weight_decay=lambda: .1),
        'AdamW': dict(params=lambda: [x()], lr=lambda: .1, betas=lambda: (.9, .99), eps=lambda: 1e-8,
                      weight_decay=lambda: .1),
        'SGD.step': dict(g=x, lr=lambda: .1, momentum=lambda: .9, weight_decay=lambda: .1),
        'AdamW.step': dict(g=x, lr=lambda: .1, betas=lambda: (.9, .9), eps=lambda: 1e-8, weight_decay=lambda: .1),
        'dataloader': dict(x=x, y=labels, bs=lambda: 2, generator=lambda: torch.Generator(), batches=lambda: 3),
        'one_cycle': dict(lr_max=lambda: .1, steps=lambda: 9, pct_start=lambda: .3, div=lambda: 25.,
                          final_div=lambda: 1e4),
        'one_cycle()': dict(step=lambda: 3),
        'train_step': dict(model=model, opt=lambda: None, xb=x, yb=labels),
        'evaluate': dict(model=model, dl=pairs, metric=lambda: mod['training'].accuracy),
        'layer_stats': dict(layer=lambda: trained().layers[0]), 'History': dict(layers=lambda: model().layers),
        'LayerStats': dict(mean=lambda: 0., std=lambda: 1., dead=lambda: 0., grad_mean=lambda: 0., grad_std=lambda: 1.),
        'fit': dict(model=model, opt=lambda: None, train_dl=pairs, valid_dl=pairs, epochs=lambda: 1,
                    schedule=lambda: lambda step: .1, metric=lambda: mod['training'].accuracy, stats_every=lambda: 1,
                    progress=lambda: False, after_epoch=lambda: lambda hist: None, hist=lambda: None),
        'plot_wrong': dict(x=x, targ=lambda: (-x()).argmax(1), logits=x, count=lambda: 2, shape=lambda: (1, 3))},
    'activations': {
        **{k: dict(x=x) for k in ('sigmoid', 'tanh', 'silu', 'gelu', 'gelu_tanh')}, 'dropout': dict(x=x, mask=x),
        **{f'{k}()': dict(x=x) for k in ('Sigmoid', 'Tanh', 'Silu', 'Gelu', 'Dropout')},
        'Gelu': dict(approximate=lambda: 'tanh'), 'Dropout': dict(p=lambda: .5, generator=generator)},
    'library': {
        'to_linear': dict(w=lambda: rand(3, 5), b=lambda: rand(5)), 'to_torch': dict(model=model),
        'counterpart': dict(ours=ours, theirs=lambda: type('Theirs', (nn.ReLU,), {}), to=lambda: lambda l: nn.ReLU(),
                            back=lambda: lambda l: ours()(), weights=lambda: {'w': 'weight'}, optional=lambda: ('w',),
                            buffers=lambda: {'m': 'mean'}, without=lambda: ('n',), turn=lambda: torch.t),
        'from_torch': dict(net=net, loss=lambda: mod['training'].CrossEntropy()), 'named_weights': dict(model=model),
        'save_weights': dict(model=model, path=lambda: 'weights'),
        'load_weights': dict(model=model, path=lambda: 'saved'),
        'save_training': dict(path=lambda: 'run', model=model, opt=lambda: None, hist=fitted, generators=lambda: []),
        'load_training': dict(path=lambda: 'training', model=model, opt=lambda: None, generators=lambda: [])},
    'speed': {
        'Work': dict(calls=lambda: 1, flops=lambda: 1, bytes=lambda: 1),
        'Machine': dict(flops=lambda: 1., bytes=lambda: 1.),
        'Entry': dict(layer=lambda: 'l', forward=lambda: 0, backward=lambda: 0, kept=lambda: 0, seconds=lambda: (1, 1),
                      autograd=lambda: (1, 1)),
        'work': dict(f=lambda: lambda: None), 'ledger': dict(model=model, x=x, targ=labels, rounds=lambda: 1),
        'machine': dict(size=lambda: 8, mb=lambda: 1, dtype=lambda: torch.float32, device=lambda: 'cpu')},
    'attention': {
        'embed': dict(ids=labels, weight=x), 'Embedding': dict(weight=x), 'Embedding()': dict(ids=labels),
        'Softmax()': dict(x=x), **{k: dict(a=lambda: rand(4, 4), v=x) for k in ('average', 'Average()')},
        'AttentionWeights()': dict(q=x, k=x, mask=causal), 'Attention()': dict(q=x, k=x, v=x, mask=causal),
        'Product': dict(w=lambda: rand(3, 5)), 'Product()': dict(x=x),
        'attention_weights': dict(q=x, k=x, mask=causal),
        'attention': dict(q=x, k=x, v=x, mask=causal),
        'attention_in_blocks': dict(q=x, k=x, v=x, rows=lambda: 2),
        'attention_in_blocks_grad': dict(g=x, out=x, lse=lambda: rand(4, 1), q=x, k=x, v=x, rows=lambda: 2),
        'split_heads': dict(x=x, n_head=lambda: 3, block=lambda: 2),
        'merge_heads': dict(x=lambda: rand(2, 3, 2, 1)), 'product': dict(x=x, w=lambda: rand(3, 5)),
        'CausalAttention()': dict(q=x, k=x, v=x), 'CausalAttentionInBlocks': dict(rows=lambda: 2),
        'CausalAttentionInBlocks()': dict(q=x, k=x, v=x),
        'CausalSelfAttention': dict(w_qkv=lambda: rand(3, 9), b_qkv=lambda: rand(9), w_out=lambda: rand(3, 3),
                                    b_out=lambda: rand(3), n_head=lambda: 3, block=lambda: 2, rows=lambda: None),
        'CausalSelfAttention()': dict(x=x)},
    'gpt': {
        'get_text': dict(path=lambda: 'text'), 'encode': dict(text=lambda: 'abab', vocab=lambda: 'ab'),
        'decode': dict(tokens=labels, vocab=lambda: 'abc'),
        'windows': dict(tokens=labels, block=lambda: 2, step=lambda: 1),
        'place': dict(x=x, w=lambda: rand(2, 3)), 'Positions': dict(w=lambda: rand(2, 3)), 'Positions()': dict(x=x),
        'scores': dict(x=x, weight=lambda: rand(5, 3)), 'TiedOutput': dict(weight=lambda: rand(5, 3)),
        'TiedOutput()': dict(x=x), **{k: dict(logits=x, targ=labels) for k in ('token_loss', 'TokenLoss()')},
        **{k: dict(layer=lambda: mod['modules'].Relu()) for k in ('Residual', 'Recomputed')},
        **{f'{k}()': dict(x=x) for k in ('Residual', 'Recomputed')},
        'gpt': dict(vocab=lambda: 3, block=lambda: 2, n_layer=lambda: 1, n_head=lambda: 1, width=lambda: 2,
                    bias=lambda: True, dropout=lambda: .1, generator=generator, dtype=lambda: torch.float64,
                    recompute=lambda: True),
        'Gpt()': dict(tokens=lambda: labels()[None], targ=lambda: labels()[None]),
        'generate': dict(model=tiny, tokens=lambda: labels()[None], count=lambda: 2, temperature=lambda: .5,
                         generator=generator),
        'clip_grads': dict(params=lambda: [out(4, 3)], max_norm=lambda: 1.),
        'ClippedAdamW': dict(params=lambda: [x()], lr=lambda: .1, betas=lambda: (.9, .99), eps=lambda: 1e-8,
                             weight_decay=lambda: .1, max_norm=lambda: 1.),
        'ClippedAdamW.step': dict(g=x, lr=lambda: .1, max_norm=lambda: 1.),
        'warmup_cosine': dict(lr_max=lambda: .1, steps=lambda: 9, warmup=lambda: 2, lr_min=lambda: .01),
        'warmup_cosine()': dict(step=lambda: 3)},
    'convolution': {
        'conv2d_rule': dict(stride=lambda: (1, 1), padding=lambda: (1, 0), dilation=lambda: (1, 1)),
        'max_pool2d_rule': dict(size=lambda: (2, 2), stride=lambda: (1, 1)),
        'avg_pool2d_rule': dict(size=lambda: (2, 2), stride=lambda: (1, 1)),
        'Conv2d': dict(w=lambda: rand(2, 3, 2, 2), b=lambda: rand(2), stride=lambda: 1, padding=lambda: 1,
                       dilation=lambda: (1, 1)),
        'Conv2d()': dict(x=lambda: rand(4, 3, 5, 5)),
        **{k: dict(size=lambda: 2, stride=lambda: 1) for k in ('MaxPool2d', 'AvgPool2d')},
        **{k: dict(x=lambda: rand(4, 3, 5, 5)) for k in ('MaxPool2d()', 'AvgPool2d()', 'Flatten()', 'flatten')},
        'Unflatten': dict(size=lambda: 3), 'Unflatten()': dict(x=x),
        'cnn': dict(generator=lambda: torch.Generator(), dtype=lambda: torch.float64)},
    'compiled': {'compile_step': dict(xb=x, yb=labels, backend=lambda: 'replay')},
    'parallel': {
        'average_grads': dict(params=lambda: [*trained().params], n=lambda: 4),
        'accumulate': dict(model=model, batches=pairs), 'accumulate()': dict(xb=x, yb=labels),
        'fit_parallel': dict(model=model, opt=lambda: None, x=x, y=labels, epochs=lambda: 1, bs=lambda: 3,
                             seed=lambda: 0, schedule=lambda: lambda step: .1,
                             path=lambda: f'run{len(os.listdir())}', every=lambda: 1, timeout=lambda: 9.)},
}

def back(layer, X, Yg): return layer.forward(X)[1](Yg)
def layers_of_numpy():
    c = mod['closures']
    return {'Relu': c.Relu(), 'Sigmoid': c.Sigmoid(), 'Linear': c.Linear(3, 3, rng=0),
            'Sequential': c.Sequential(c.Linear(3, 3, rng=0), c.Relu())}
def called(layer, *args):
    "Forward and backward of a layer."
    layer(*args)
    if layer.out.ndim: layer.out.g = torch.ones_like(layer.out)
    layer.backward()
    return layer.out
def applied(f, *args):
    "An autograd.Function, forward and backward where something asks for a gradient."
    out = f.apply(*args)
    if out.requires_grad: out.sum().backward()
    return out
def stepped(opt, g, **numbers):
    for p in opt.params: p.g = g
    for k,v in numbers.items(): setattr(opt, k, v)
    opt.step()
    return opt.params[0]
def at_most_once(f):
    "For decorators: what they return is called."
    return f(lambda x: x)(rand(4, 3))
def in_a_group(f, *args, **kwargs):
    "Call a function of several processes in this one alone."
    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    try: return f(*args, **kwargs)
    finally: dist.destroy_process_group()
def trains(f, model, opt, *args, **kwargs):
    return f(model, sgd(model) if opt is None and isinstance(model, mod['modules'].Module) else opt, *args, **kwargs)

g, t, m, c, n, a, at, v, gp = (
    mod[k] for k in ('gradients', 'training', 'modules', 'closures', 'inputs', 'activations', 'attention',
                    'convolution', 'gpt'))
def self_attention(**parts):
    given = {k: make() for k,make in CALLS['attention']['CausalSelfAttention'].items()} | parts
    return at.CausalSelfAttention(**given)
HOW = { # calls that are not a plain `function(**arguments)`
    'clear_grads': lambda t: g.clear_grads(t), 'Rule.grads': lambda **a: rule().grads(*a.values()),
    'Rule.add_grads': lambda **a: rule().add_grads(*a.values()),
    'check_rule': lambda rule, x, rtol: g.check_rule(rule, x, rtol=rtol),
    'autograd_grad': lambda f, x: mod['checks'].autograd_grad(f, x),
    'checked': lambda axes: at_most_once(n.checked(axes)),
    'note_versions': lambda owner, x: n.note_versions(owner, dict(x=x)),
    'check_apart': lambda **a: n.check_apart(*a.values()),
    'check_versions': lambda who, owner, x: n.check_versions(who, owner, dict(x=x)),
    'Lin': lambda w, b: called(m.Lin(w, b), x()), 'Lin()': lambda x: called(m.Lin(rand(3, 5), rand(5)), x),
    'Relu()': lambda x: called(m.Relu(), x), 'Mse()': lambda **a: called(m.Mse(), *a.values()),
    'Model.from_layers': lambda layers, loss: called(m.Model.from_layers(layers, loss), x(), labels()),
    'Model()': lambda x, targ: called(m.Model(rand(3, 5), rand(5), rand(5, 1), rand(1)), x, targ),
    **{k: lambda k=k, **a: called(getattr(mod['norms'], k)(**a), x()) for k in ('LayerNorm', 'RmsNorm', 'BatchNorm')},
    'LayerNorm()': lambda x: called(mod['norms'].LayerNorm(rand(3), rand(3)), x),
    'RmsNorm()': lambda x: called(mod['norms'].RmsNorm(rand(3)), x),
    'BatchNorm()': lambda x: called(mod['norms'].BatchNorm(rand(3), rand(3)), x),
    'CrossEntropy()': lambda **a: called(t.CrossEntropy(), *a.values()),
    **{f'{k}()': lambda x, k=k: called(getattr(a, k)(), x) for k in ('Sigmoid', 'Tanh', 'Silu', 'Gelu')},
    'Gelu': lambda approximate: called(a.Gelu(approximate), x()),
    'Dropout': lambda **k: called(a.Dropout(**k), x()),
    'Dropout()': lambda x: called(a.Dropout(.5, generator()), x),
    'Parts.train': lambda mode: model().train(mode),
    **{k: lambda k=k, **a: called(type(k, (m.Op,), dict(rule=getattr(v, k)(*a.values())))(), rand(4, 3, 5, 5))
       for k in ('max_pool2d_rule', 'avg_pool2d_rule')},
    'conv2d_rule': lambda **a: v.conv2d_rule(**a).forward(rand(4, 3, 5, 5), rand(2, 3, 2, 2)),
    'Conv2d': lambda **a: called(v.Conv2d(**a), rand(4, 3, 5, 5)),
    'Conv2d()': lambda x: called(v.Conv2d(rand(2, 3, 2, 2), rand(2)), x),
    **{k: lambda k=k, **a: called(getattr(v, k)(**a), rand(4, 3, 5, 5)) for k in ('MaxPool2d', 'AvgPool2d')},
    **{f'{k}()': lambda x, k=k: called(getattr(v, k)(2), x) for k in ('MaxPool2d', 'AvgPool2d')},
    'Flatten()': lambda x: called(v.Flatten(), x), 'Unflatten': lambda size: called(v.Unflatten(size), x()),
    'Unflatten()': lambda x: called(v.Unflatten(3, 1), x),
    **{k: lambda k=k, **a: applied(getattr(mod['autograd'], k), *a.values()) for k in CALLS['autograd']},
    'Embedding': lambda weight: called(at.Embedding(weight), labels()),
    'Embedding()': lambda ids: called(at.Embedding(rand(4, 3)), ids), 'Softmax()': lambda x: called(at.Softmax(), x),
    **{f'{k}()': lambda made=getattr(at, k), **a: called(made(), *a.values())
       for k in ('Average', 'AttentionWeights', 'Attention')},
    'Product': lambda w: called(at.Product(w), x()), 'Product()': lambda x: called(at.Product(rand(3, 5)), x),
    'CausalAttention()': lambda **a: called(at.CausalAttention(), *a.values()),
    'CausalAttentionInBlocks': lambda rows: called(at.CausalAttentionInBlocks(rows), x(), x(), x()),
    'CausalAttentionInBlocks()': lambda **a: called(at.CausalAttentionInBlocks(2), *a.values()),
    'CausalSelfAttention': lambda **a: called(self_attention(**a), x()),
    'CausalSelfAttention()': lambda x: called(self_attention(), x),
    'Parameter.add': lambda g: c.Parameter(array(3, 2)).add(g),
    'Layer.build_param': lambda tensor: c.Layer().build_param(tensor),
    **{f'{k}.forward': lambda X, k=k: layers_of_numpy()[k].forward(X)[0] for k in layers_of_numpy()},
    **{f'{k}.back': lambda Yg, k=k: back(layers_of_numpy()[k], array(4, 3), Yg) for k in layers_of_numpy()},
    'Sequential': lambda layer: c.Sequential(layer), 'Learner.fit': lambda **a: learner().fit(**a, progress=False),
    'mlp': lambda n_in, n_out, **a: t.mlp(n_in, n_out, **a), 'one_cycle()': lambda step: t.one_cycle(.1, 9)(step),
    'SGD.step': lambda **a: stepped(t.SGD([x()], .1, momentum=.9), **a),
    'AdamW.step': lambda **a: stepped(t.AdamW([x()]), **a),
    'train_step': lambda model, opt, xb, yb: trains(t.train_step, model, opt, xb, yb),
    'fit': lambda model, opt, **a: trains(t.fit, model, opt, **a),
    'plot_wrong': lambda **a: matplotlib.pyplot.close(t.plot_wrong(**a)),
    'as_torch()': lambda x, targ: mod['bridges'].as_torch(model())(x, targ),
    'compile_step': lambda **k: (lambda m: mod['compiled'].compile_step(m, sgd(m), **k))(model()),
    'save_training': lambda path, model, opt, **a: trains(partial(mod['library'].save_training, path), model, opt, **a),
    'load_training': lambda path, model, opt, **a: trains(partial(mod['library'].load_training, path), model, opt, **a),
    'Positions': lambda w: called(gp.Positions(w), x()), 'Positions()': lambda x: called(gp.Positions(rand(2, 3)), x),
    'TiedOutput': lambda weight: called(gp.TiedOutput(weight), x()),
    'TiedOutput()': lambda x: called(gp.TiedOutput(rand(5, 3)), x),
    'TokenLoss()': lambda **a: called(gp.TokenLoss(), *a.values()),
    **{k: lambda layer, k=k: called(getattr(gp, k)(layer), x()) for k in ('Residual', 'Recomputed')},
    **{f'{k}()': lambda x, k=k: called(getattr(gp, k)(m.Relu()), x) for k in ('Residual', 'Recomputed')},
    'gpt': lambda **a: called(gp.gpt(**a), labels()[:2,None].t() % 2, labels()[:2,None].t() % 2),
    'Gpt()': lambda **a: called(tiny(), *a.values()),
    'WideLoss()': lambda **a: called(mod['precision'].WideLoss(mod['training'].CrossEntropy()), *a.values()),
    'LowPrecision()': lambda xb, yb: mod['precision'].LowPrecision(model(), sgd_of)(xb, yb),
    'ClippedAdamW.step': lambda **a: stepped(gp.ClippedAdamW([x()]), **a),
    'warmup_cosine()': lambda step: gp.warmup_cosine(.1, 9, 2, .01)(step),
    'average_grads': lambda params, n: in_a_group(mod['parallel'].average_grads, params, n),
    'accumulate()': lambda xb, yb: mod['parallel'].accumulate(model(), [(xb, yb)]),
    'fit_parallel': lambda model, opt, **a: trains(mod['parallel'].fit_parallel, model, opt, **a),
    'ledger': lambda model, x, targ, rounds: mod['speed'].ledger(model, x, targ, rounds=rounds),
}

def do(module, name, args):
    if name in HOW: return HOW[name](**args)
    return getattr(mod[module], name)(**args)

public = {name for k in MODULES for name in mod[k].__all__ if callable(getattr(mod[k], name))}
cases = [(k, name) for k,calls in CALLS.items() for name in calls]
each_call = pytest.mark.parametrize('module, name', cases, ids=[name for _,name in cases])

def unclear(e, name, args):
    "Why an exception is no clear error of ours, or None."
    tb = e.__traceback__
    while tb.tb_next: tb = tb.tb_next
    code = tb.tb_frame.f_code
    where = f'{type(e).__name__}: {str(e)[:150]} ({os.path.basename(code.co_filename)}:{tb.tb_lineno})'
    # a verdict of a check; a file that cannot be read, which Python names
    if isinstance(e, AssertionError) or isinstance(e, OSError) and e.filename: return None
    if not code.co_filename.startswith(package) or dis.opname[code.co_code[tb.tb_lasti]] != 'RAISE_VARARGS':
        return f'raised by none of us: {where}'
    named = {*public, *args, *(k.removesuffix('s') for k in args), 'beta1', 'parameter', 'input', *MODES}
    given = [o for o in args.values() if isinstance(o, str)] # such as the name of the function in a check
    if not named & {*re.findall(r'\w+', str(e))} and not any(o in str(e) for o in given):
        return f'names neither a function nor an argument: {where}'

@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mod['library'].save_weights(model(), 'saved')
    m = model()
    mod['library'].save_training('training', m, sgd(m), mod['training'].History(m.layers))
    with open('text', 'w') as f: f.write('a text')

def tried(module, name, changed=(), mode=nullcontext):
    "The result of a call, and what is unclear about its error."
    with warnings.catch_warnings():
        warnings.simplefilter('ignore') # of numpy and torch about the hostile things themselves
        args = {k: make() for k,make in (CALLS[module][name] | dict(changed)).items()}
    with mode(), warnings.catch_warnings():
        warnings.simplefilter('error')
        try: return do(module, name, args), None
        except Exception as e: return None, unclear(e, name, args)

@each_call
def test_hostile_arguments(module, name, record_property):
    "A function that is hostile itself is left out where a function is expected: its errors are its own."
    found = {(k, what): tried(module, name, [(k, make)])[1] for k,right in CALLS[module][name].items()
             for what,make in HOSTILE.items() if not (callable(make()) and (callable(right()) or k == 'axes'))}
    record_property('cases', len(found))
    print(f'{name}: {len(found)} cases')
    bad = [f'{k} = {what}: {why}' for (k, what),why in found.items() if why]
    assert not bad, '\n'.join(bad)

@each_call
@pytest.mark.parametrize('mode', ['none', *MODES])
def test_modes(module, name, mode):
    "Without a mode the call is right; with one there is the same result or an error that names the mode."
    (want, wrong),(got, why) = (tried(module, name, mode=MODES.get(o, nullcontext)) for o in ('none', mode))
    assert wrong is why is None
    if isinstance(want, torch.Tensor) and isinstance(got, torch.Tensor): torch.testing.assert_close(got, want)

def test_every_public_callable_is_called():
    named = {name.partition('.')[0].removesuffix('()') for _,name in cases}
    others = {'Module', 'Op', 'Layer', 'Ledger', 'Counterpart'} # what they do is done by subclasses; lists
    others |= {*mod['compiled'].__all__} - {'compile_step'} # its own parts, which take the record that it makes
    print(f'{len(public)} callables, {sum(len(CALLS[k][name]) for k,name in cases)*len(HOSTILE)} hostile calls')
    missing = public - named - others
    assert not missing
