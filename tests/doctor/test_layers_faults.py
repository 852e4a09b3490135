"Faults of real code in convolution, pooling, norms, embedding, softmax and attention: what the doctor calls them."
import math, re

import pytest
import torch, torch.nn.functional as F
from fb_pass.activations import dropout_rule
from fb_pass.attention import attention_rule, embed_rule, merge_heads, softmax_rule, split_heads
from fb_pass.convolution import avg_pool2d_rule, conv2d_rule, max_pool2d_rule
from fb_pass.doctor import check_layer
from fb_pass.gradients import Rule, to_function
from fb_pass.modules import Op
from fb_pass.norms import average, batch_norm_rule, fixed_norm_rule, layer_norm_rule, rms_norm_rule, standardize

def rand(*shape, seed=10, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)

def look(layer, *inputs, **kw): return check_layer(layer, *inputs, raise_exception=False, progress=False, **kw)

forms = {
    'Rule': lambda forward, backward: type('Layer', (Op,), dict(rule=Rule(forward, backward)))(),
    'Function': lambda forward, backward: to_function(Rule(forward, backward), 'LayerFunction'),
    'functions': lambda forward, backward: (forward, backward)}


# convolution: three ways to write the forward, and a backward with every part of it exchanged for another

def conv_of(stride=1, padding=0, dilation=1, groups=1):
    how = dict(stride=stride, padding=padding, dilation=dilation)
    def torchs(x, w, b): return F.conv2d(x, w, b, **how, groups=groups)
    def unfolded(x, w, b): return conv2d_rule(**how).forward(x, w, b)
    def sliced(x, w, b):
        x = F.pad(x, [padding]*4)
        h,v = ((n - dilation*(k - 1) - 1)//stride + 1 for n,k in zip(x.shape[2:], w.shape[2:]))
        out = b[:,None,None]
        for i in range(w.shape[2]):
            for j in range(w.shape[3]):
                at = x[:,:,i*dilation:i*dilation+stride*(h-1)+1:stride, j*dilation:j*dilation+stride*(v-1)+1:stride]
                out = out + torch.einsum('nchw,oc->nohw', at, w[:,:,i,j])
        return out
    return [torchs] if groups > 1 else [torchs, unfolded, sliced]

def conv_grads(g, x, w, stride=1, padding=0, dilation=1, groups=1, crop=None):
    "The gradients by loops over the kernel, cropped at `crop`."
    h,v = g.shape[2:]
    need = [max(n + 2*padding, dilation*(k - 1) + stride*(m - 1) + 1) for n,k,m in zip(x.shape[2:], w.shape[2:], (h, v))]
    xp = F.pad(x, [padding, need[1] - x.shape[3] - padding, padding, need[0] - x.shape[2] - padding])
    dxp,dw = torch.zeros_like(xp),torch.zeros_like(w)
    for i in range(w.shape[2]):
        for j in range(w.shape[3]):
            def at(t): return t[:,:,i*dilation:i*dilation+stride*(h-1)+1:stride,
                                j*dilation:j*dilation+stride*(v-1)+1:stride]
            c,o = x.shape[1]//groups,w.shape[0]//groups
            for k in range(groups):
                at(dxp)[:,k*c:k*c+c] += torch.einsum('nohw,oc->nchw', g[:,k*o:k*o+o], w[k*o:k*o+o,:,i,j])
                dw[k*o:k*o+o,:,i,j] = torch.einsum('nohw,nchw->oc', g[:,k*o:k*o+o], at(xp)[:,k*c:k*c+c])
    a = padding if crop is None else crop
    return dxp[:,:,a:a+x.shape[2],a:a+x.shape[3]], dw, g.sum((0, 2, 3))

faults = [] # name, forward, backward, inputs, whose gradient is wrong, causes, words
def add(name, forwards, backward, inputs, tensor, causes, words):
    for f in forwards if isinstance(forwards, list) else [forwards]:
        faults.append((f'{name}, {getattr(f, "__name__", "")}', f, backward, inputs, tensor, causes.split(', '), words))

def conv_fault(name, wrong, tensor, causes, words, c_in=2, c_out=3, size=(7, 6), kernel=(3, 3), groups=1, **how):
    "`wrong(right gradients, g, x, w)` is the wrong gradient of `tensor`."
    args = rand(3, c_in, *size), rand(c_out, c_in//groups, *kernel, seed=11), rand(c_out, seed=12)
    k = 'xwb'.index(tensor)
    def backward(g, out, x, w, b):
        grads = [*conv_grads(g, x, w, **how, groups=groups)]
        grads[k] = wrong(grads, g, x, w)
        return tuple(grads)
    add(name, conv_of(**how, groups=groups), backward, args, tensor, causes, words)

for how in (dict(), dict(padding=1), dict(stride=2, padding=1), dict(dilation=2, padding=2)):
    said = ' '.join(f'{k} {v}' for k,v in how.items())
    conv_fault(f'kernel not turned {said}', lambda d, g, x, w, how=how: conv_grads(g, x, w.flip(2, 3), **how)[0], 'x',
               'permuted', 'kernel .w. is not turned', **how)
    conv_fault(f'kernel turned in dw {said}', lambda d, g, x, w: d[1].flip(2, 3), 'w', 'permuted',
               'runs backwards along axis 2 and 3|the kernel is turned', **how)
    conv_fault(f'channels swapped {said}', lambda d, g, x, w, how=how: conv_grads(g, x, w.transpose(0, 1), **how)[0],
               'x', 'transposed', 'channels', c_in=3, **how)
    conv_fault(f'dw with channels swapped {said}', lambda d, g, x, w, how=how: d[1].transpose(0, 1), 'w',
               'transposed', 'channels|permute', c_in=3, **how)
    if 'padding' in how:
        conv_fault(f'padding cropped at 0 {said}', lambda d, g, x, w, how=how: conv_grads(g, x, w, **how, crop=0)[0],
                   'x', 'shifted', 'padding', **how)
        conv_fault(f'dw without padding {said}', lambda d, g, x, w, how=how: conv_grads(g, x, w, **how|{'padding': 0})[1],
                   'w', 'shifted', 'padding', **how)
    if 'stride' in how:
        conv_fault(f'stride ignored {said}',
                   lambda d, g, x, w, how=how: conv_grads(g, x, w, **how|{'stride': 1})[0], 'x', 'wrong operand', 'stride', **how)
        conv_fault(f'stride ignored in dw {said}',
                   lambda d, g, x, w, how=how: conv_grads(g, x, w, **how|{'stride': 1})[1], 'w', 'wrong operand', 'stride', **how)
    if 'dilation' in how:
        conv_fault(f'dilation ignored {said}',
                   lambda d, g, x, w, how=how: conv_grads(g, x, w, **how|{'dilation': 1})[0], 'x', 'wrong operand', 'dilation', **how)
        conv_fault(f'dilation ignored in dw {said}',
                   lambda d, g, x, w, how=how: conv_grads(g, x, w, **how|{'dilation': 1})[1], 'w', 'wrong operand', 'dilation', **how)
conv_fault('bias over places only', lambda d, g, x, w: g[0].sum((1, 2)), 'b', 'sum missing', 'sum')
conv_fault('bias mean over images', lambda d, g, x, w: g.mean(0).sum((1, 2)), 'b', 'scaled', 'mean')
conv_fault('bias mean over places', lambda d, g, x, w: g.mean((2, 3)).sum(0), 'b', 'scaled', 'mean|one over')
conv_fault('dw of the last image', lambda d, g, x, w: conv_grads(g[-1:], x[-1:], w)[1], 'w',
           'sum missing, use lost', 'last')
conv_fault('dw mean', lambda d, g, x, w: d[1]/len(x), 'w', 'scaled', 'mean')

# shapes that are wrong; torch itself refuses these in a Function
def conv_shape(name, wrong, tensor, causes, words, **kw):
    conv_fault('shape: ' + name, wrong, tensor, causes, words, **kw)
conv_shape('not cropped', lambda d, g, x, w: F.pad(conv_grads(g, F.pad(x, [1]*4), w)[0], [0]*4), 'x', 'shape',
           'padding', padding=1)
conv_shape('bias over images only', lambda d, g, x, w: g.sum(0), 'b', 'sum missing', 'lacks a sum over axis 1 and 2')
conv_shape('bias over places only', lambda d, g, x, w: g.sum((2, 3)), 'b', 'sum missing', 'lacks a sum over axis 0')
conv_shape('groups ignored in dw', lambda d, g, x, w: conv_grads(g, x, w.repeat(1, 2, 1, 1))[1], 'w', 'wrong operand', 'groups',
           c_in=4, c_out=4, groups=2)
conv_shape('groups ignored in dx', lambda d, g, x, w: conv_grads(g, x[:,:2], w)[0], 'x', 'shape, sum missing, sum extra', 'groups',
           c_in=4, c_out=4, groups=2)
conv_fault('groups ignored in dx, every channel', lambda d, g, x, w: conv_grads(g, x, w.repeat(1, 2, 1, 1))[0], 'x', 'sum extra, wrong operand',
           'groups', c_in=4, c_out=4, groups=2)


# pooling

def pool_of(kind, size, stride, padding=0):
    f = dict(max=F.max_pool2d, avg=F.avg_pool2d)[kind]
    def torchs(x): return f(x, size, stride, padding)
    def windows(x): return x.unfold(2, size, stride).unfold(3, size, stride).flatten(4)
    def by_windows(x): return windows(x).amax(4) if kind == 'max' else windows(x).mean(4)
    rule = dict(max=max_pool2d_rule, avg=avg_pool2d_rule)[kind]
    return [torchs] if padding else [torchs, by_windows, rule(size, stride).forward]

def spread(g, x, size, stride, share):
    "Each entry of `g` goes to the entries of its window, by a share of the window's numbers."
    res = torch.zeros_like(x)
    for i in range(g.shape[2]):
        for j in range(g.shape[3]):
            at = slice(None),slice(None),slice(i*stride, i*stride+size),slice(j*stride, j*stride+size)
            res[at] += share(x[at])*g[:,:,i:i+1,j:j+1]
    return res
def first_of(t): return torch.zeros_like(t).index_put((*[slice(None)]*2, torch.tensor(0), torch.tensor(0)), torch.tensor(1., dtype=t.dtype)) if False else F.pad(torch.ones_like(t[:,:,:1,:1]), [0, t.shape[3]-1, 0, t.shape[2]-1])
def every_max(t): return (t == t.amax((2, 3), keepdim=True)).to(t)
def equally(t): return torch.full_like(t, 1/(t.shape[2]*t.shape[3]))

picture,whole = rand(2, 2, 6, 8),torch.randint(0, 3, (2, 2, 6, 8), generator=torch.Generator().manual_seed(1)).double()
for size,stride in ((2, 2), (3, 1), (3, 2)):
    def pool_fault(name, kind, share, causes, words, x=picture, stride_of=None):
        def backward(g, out, x, size=size, stride=stride_of or stride): return spread(g, x, size, stride, share)
        def wrong(g, out, x): return backward(g, out, x)
        add(f'{name} {size} {stride}', pool_of(kind, size, stride), wrong, (x,), 'x', causes, words)
    pool_fault('max to every tie', 'max', every_max, 'ties, added twice', 'tie|equal|share', x=whole)
    pool_fault('max to the first entry', 'max', first_of, 'mask from wrong tensor', 'first')
    pool_fault('max spread as a mean', 'max', equally, 'mask missing', 'mean|average')
    pool_fault('average not divided', 'avg', torch.ones_like, 'scaled', 'number of entries|window|sum where a mean')
    pool_fault('average to the largest', 'avg', every_max, 'mask from wrong tensor', 'max')
    if stride > 1:
        pool_fault('stride ignored', 'max', every_max, 'wrong operand', 'stride', stride_of=1)
        pool_fault('stride ignored', 'avg', equally, 'wrong operand', 'stride', stride_of=1)


# norms

def norm_layer(dims, own, eps=1e-5, correction=0, channels=False):
    "The forward, and a function that makes its backward with parts exchanged."
    def like(w, x): return w.view(-1, *[1]*(x.ndim - 2)) if channels else w
    def stats(x, dims=dims, eps=eps, correction=correction):
        s = (x.var(dims, correction=correction, keepdim=True) + eps).sqrt()
        return (x - x.mean(dims, keepdim=True))/s, s
    def forward(x, w, b): return stats(x)[0]*like(w, x) + like(b, x)
    def made(mean=1, std=1, power=1, over=dims, own_eps=eps, own_correction=correction, dw=None, low=None):
        def backward(g, out, x, w, b):
            xhat,s = stats(x, over if over != dims else dims, own_eps, own_correction)
            h = g*like(w, x)**power
            n = x.numel()//s.numel()
            rest = [o for o in range(x.ndim) if o != (1 if channels else x.ndim - 1)]
            dx = (h - mean*h.mean(over, keepdim=True) - std*xhat*(h*xhat).sum(over, keepdim=True)/(n - own_correction))/s
            xhat = stats(x)[0]
            dw_ = (g*xhat).sum(rest) if dw is None else dw(g, x, xhat, rest)
            return dx, dw_, (g.sum(rest) if low is None else g.to(low).sum(rest).to(g))
        return backward
    return forward, made

norms = {'layer norm': norm_layer(-1, 'layer'), 'batch norm': norm_layer((0, 2, 3), 'batch', channels=True),
         'batch norm, rows': norm_layer((0,), 'batch', channels=True)}
fused = {'layer norm': lambda x, w, b: F.layer_norm(x, w.shape, w, b),
         'batch norm': lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True),
         'batch norm, rows': lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True)}
ours = {'layer norm': layer_norm_rule(1e-5).forward, 'batch norm': batch_norm_rule(1e-5).forward,
        'batch norm, rows': batch_norm_rule(1e-5).forward}
for k,(forward,made) in norms.items():
    x = 2*rand(4, 3, 2, 3) + 1 if k == 'batch norm' else 2*rand(6, 5) + 1
    m = x.shape[1]
    args = x, rand(m, seed=11), rand(m, seed=12)
    fused[k].__name__ = 'fused'
    ways = [forward, fused[k], ours[k]]
    def norm_fault(name, tensor, causes, words, ways=ways, **how):
        add(f'{k}, {name}', ways, made(**how), args, tensor, causes, words)
    norm_fault('weight forgotten', 'x', 'scaled', 'factor w(eight)? is missing', power=0)
    norm_fault('weight twice', 'x', 'scaled', 'factor w(eight)? is there twice', power=2)
    norm_fault('statistics as constants', 'x', 'term missing', 'statistics|mean|var', mean=0, std=0)
    norm_fault('no mean term', 'x', 'term missing, use lost', 'mean', mean=0)
    norm_fault('no std term', 'x', 'term missing, use lost', 'spread|var|std|mean 2', std=0)
    norm_fault('wrong axis', 'x', 'wrong operand', 'axis', over=(1,) if k != 'layer norm' else (0,))
    norm_fault('eps forgotten', 'x', 'term missing', 'eps', own_eps=0.)
    norm_fault('n - 1', 'x', 'scaled', 'n-1', own_correction=1)
    norm_fault('bias summed in bfloat16', 'b', 'dtype', 'bfloat16', low=torch.bfloat16)
    norm_fault('dw with x', 'w', 'wrong operand, scaled', '`x`', dw=lambda g, x, xhat, rest: (g*x).sum(rest))
    norm_fault('dw without xhat', 'w', 'mask missing, scaled', 'factor', dw=lambda g, x, xhat, rest: g.sum(rest))


# evaluation for training, and the reverse

def running(x, w, b, m, v): return fixed_norm_rule(1e-5).forward(x, w, b, m, v)
def batch(x, w, b, m, v): return batch_norm_rule(1e-5).forward(x, w, b) + 0*m.sum() + 0*v.sum()
evaluates,trains = fixed_norm_rule(1e-5).backward,batch_norm_rule(1e-5).backward
def eval_for_training(g, out, x, w, b, m, v): return *evaluates(g, out, x, w, b, m, v)[:1], *trains(g, out, x, w, b)[1:], torch.zeros_like(m), torch.zeros_like(v)
def training_for_eval(g, out, x, w, b, m, v):
    return *trains(g, out, x, w, b)[:1], *evaluates(g, out, x, w, b, m, v)[1:3], None, None
args = 2*rand(6, 5) + 1, rand(5, seed=11), rand(5, seed=12), rand(5, seed=13), rand(5, seed=14).abs() + .5
add("evaluation's gradient in training", batch, eval_for_training, args, 'x', 'term missing', 'evaluation|running|`v`')
add("training's gradient in evaluation", running, training_for_eval, args, 'x', 'term missing, wrong operand', 'batch|training|statistics')


# rms norm

def rms(x, w): return x/(x.square().mean(-1, keepdim=True) + 1e-6).sqrt()*w
def rms_back(power=1, term=1.):
    def backward(g, out, x, w):
        r = (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        xhat,h = x/r,g*w**power
        return (h - term*xhat*(h*xhat).mean(-1, keepdim=True))/r, (g*xhat).sum(0)
    return backward
for f in (rms, rms_norm_rule(1e-6).forward):
    args = 2*rand(6, 5) + 1, rand(5, seed=11)
    add('rms, weight forgotten', f, rms_back(0), args, 'x', 'scaled', 'factor w(eight)? is missing')
    add('rms, weight twice', f, rms_back(2), args, 'x', 'scaled', 'factor w(eight)? is there twice')
    add('rms, root as a constant', f, rms_back(1, 0.), args, 'x', 'term missing, use lost', '')


# embedding

def embedding(ids, w): return F.embedding(ids, w)
def indexed(ids, w): return w[ids]
ids,table = torch.tensor([[2, 0, 2], [1, 2, 4]]),rand(5, 3)
def assigned(g, out, ids, w):
    dw = torch.zeros_like(w)
    dw[ids] = g
    return None, dw
def plus(g, out, ids, w):
    dw = torch.zeros_like(w)
    dw[ids] += g
    return None, dw
for f in (embedding, indexed):
    for wrong in (assigned, plus):
        add(f'embedding, {wrong.__name__}', f, wrong, (ids, table), 'w', 'use lost', 'overwrite')


# softmax

def softmaxed(x): return x.softmax(-1)
def by_hand(x):
    e = (x - x.amax(-1, keepdim=True)).exp()
    return e/e.sum(-1, keepdim=True)
for f in (softmaxed, by_hand):
    add('softmax, s*(1-s)', f, lambda g, out, x: g*out*(1 - out), (rand(4, 5),), 'x', 'term missing', 'diagonal|Jacobian')
    add('softmax, no sum', f, lambda g, out, x: g*out, (rand(4, 5),), 'x', 'term missing', 'lacks the sum|diagonal|sum')
    add('softmax, other axis', f, lambda g, out, x: out*(g - (g*out).sum(0)), (rand(4, 5),), 'x', 'sum missing',
        'axis 0')


# attention

def causal(t): return torch.ones(t, t, dtype=torch.bool).tril()
def attend(q, k, v):
    a = (q@k.mT/q.shape[-1]**.5).masked_fill(~causal(q.shape[-2]), -torch.inf).softmax(-1)
    return a@v
def attend_fused(q, k, v): return F.scaled_dot_product_attention(q, k, v, is_causal=True)
def attend_ours(q, k, v): return attention_rule.forward(q, k, v, causal(q.shape[-2]))
def free(q, k, v): return (q@k.mT/q.shape[-1]**.5).softmax(-1)@v
def attention_back(mask=lambda t: causal(t), scale=-.5, masked=True, axis=-1, back_mask=None, jacobian=True, swap=None, root=.5):
    def backward(g, out, q, k, v):
        seen = mask(q.shape[-2])
        a = (q@k.mT/q.shape[-1]**root).masked_fill(~seen, -1e30).softmax(-1)
        da = g@v.mT
        ds = a*(da - (da*a).sum(axis, keepdim=True)) if jacobian is True else jacobian(a, da)
        if back_mask is not None: ds = ds.masked_fill(~back_mask(q.shape[-2]), 0.)
        ds = ds*q.shape[-1]**scale
        grads = [ds@k, ds.mT@q, a.mT@g]
        if swap: grads[swap[0]],grads[swap[1]] = grads[swap[1]],grads[swap[0]]
        return tuple(grads)
    return backward
def everything(t): return torch.ones(t, t, dtype=torch.bool)
qkv = rand(2, 5, 3), rand(2, 5, 3, seed=11), rand(2, 5, 3, seed=12)
for f in (attend, attend_fused, attend_ours):
    def attention_fault(name, causes, words, tensor='q', **how):
        add(f'attention, {name}', f, attention_back(**how), qkv, tensor, causes, words)
    attention_fault('mask missing', 'mask missing', 'mask', mask=everything)
    attention_fault('backward mask inverted', 'zero', 'zero', back_mask=lambda t: ~causal(t))
    attention_fault('scale forgotten', 'scaled', 'root|scale', scale=0.)
    attention_fault('scale twice', 'scaled', 'root|scale', scale=-1.)
    attention_fault('row sum along the wrong axis', 'sum missing', 'axis', axis=-2)
    attention_fault('s*(1-s)', 'term missing', 'diagonal|Jacobian', jacobian=lambda a, da: a*(1 - a)*da)
    attention_fault('no sum', 'term missing', 'sum|diagonal', jacobian=lambda a, da: a*da)
    attention_fault('k and v exchanged', 'permuted', 'exchanged', 'k', swap=(1, 2))
    attention_fault('q and k exchanged', 'permuted', 'exchanged', swap=(0, 1))

some = torch.tensor([[1, 0, 1, 0, 0], [0, 1, 1, 0, 1], [1, 1, 0, 0, 0], [0, 0, 1, 1, 1], [1, 1, 1, 1, 0]], dtype=torch.bool)
def attend_some(q, k, v): return (q@k.mT/q.shape[-1]**.5).masked_fill(~some, -torch.inf).softmax(-1)@v
def attend_where(q, k, v): return torch.where(some, q@k.mT/q.shape[-1]**.5, -1e9).softmax(-1)@v
def attend_added(q, k, v): return (q@k.mT/q.shape[-1]**.5 + torch.zeros(5, 5).masked_fill(~some, -torch.inf)).softmax(-1)@v
for f in (attend_some, attend_where):
    add('attention, mask inverted', f, attention_back(mask=lambda t: ~some), qkv, 'q', 'mask inverted', 'mask')
add('attention, added mask missing', attend_added, attention_back(mask=everything), qkv, 'q', 'mask missing', 'mask')

def heads(x): return split_heads(x, 2, 4)
def heads_plain(x): return x.view(-1, 4, 2, x.shape[-1]//2).transpose(1, 2)
def merged(x): return merge_heads(x)
def merged_plain(x): return x.transpose(1, 2).reshape(x.shape[0]*x.shape[2], -1)
for f in (heads, heads_plain):
    add('heads reshaped', f, lambda g, out, x: g.reshape(x.shape), (rand(8, 6),), 'x', 'transposed', 'reshape|order')
for f in (merged, merged_plain):
    add('merged reshaped', f, lambda g, out, x: g.reshape(x.shape), (rand(2, 2, 4, 3),), 'x', 'transposed', 'reshape|order')

def multi_head(x, wqkv, wo):
    q,k,v = (x@wqkv).view(len(x)//4, 4, 3, 2, -1).permute(2, 0, 3, 1, 4)
    return attend(q, k, v).transpose(1, 2).reshape(len(x), -1)@wo
def multi_back(reshaped=False, **how):
    def backward(g, out, x, wqkv, wo):
        q,k,v = (x@wqkv).view(len(x)//4, 4, 3, 2, -1).permute(2, 0, 3, 1, 4)
        y = attend(q, k, v)
        dwo = y.transpose(1, 2).reshape(len(x), -1).mT@g
        dy = (g@wo.mT)
        dy = dy.reshape(y.shape) if reshaped else dy.view(len(x)//4, 4, 2, -1).transpose(1, 2)
        grads = attention_back(**how)(dy, y, q, k, v)
        d = torch.stack(grads).permute(1, 3, 0, 2, 4).reshape(len(x), -1)
        return d@wqkv.mT, x.mT@d, dwo
    return backward
args = rand(8, 6), rand(6, 18, seed=11), rand(6, 6, seed=12)
def multi_fault(name, causes, words, **how): add(f'multi-head, {name}', multi_head, multi_back(**how), args, 'x', causes, words)
multi_fault('heads reshaped', 'transposed', 'reshape|order', reshaped=True)
multi_fault('mask missing', 'mask missing', 'mask', mask=everything)
multi_fault('scale forgotten', 'scaled', 'factor 1.73205 of `/` is missing', scale=0.)
multi_fault('scale twice', 'scaled', 'factor 1.73205 of `/` is there twice', scale=-1.)
multi_fault('s*(1-s)', 'term missing', 'diagonal|Jacobian', jacobian=lambda a, da: a*(1 - a)*da)
multi_fault('row sum along the wrong axis', 'sum missing', 'axis', axis=-2)


# dropout

def drop(x, mask): return x*mask
kept = (rand(6, 5, seed=13) > -.3).double()/.6
add('dropout, mask redrawn', [drop, dropout_rule.forward],
    lambda g, out, x, mask: (g*torch.bernoulli(torch.full_like(g, .6))/.6, g*x), (rand(6, 5), kept), 'x',
    'mask from wrong tensor', 'mask')
add('dropout, scale forgotten', [drop, dropout_rule.forward], lambda g, out, x, mask: (g*(mask > 0), g*x),
    (rand(6, 5), kept), 'x', 'scaled', 'multiplied by 0.6')
def draws(x): return F.dropout(x, .4, training=True)
add('dropout, mask redrawn inside', draws, lambda g, out, x: g*torch.bernoulli(torch.full_like(g, .6))/.6, (rand(6, 5),),
    'x', 'mask from wrong tensor', 'mask')
add('dropout, scale forgotten inside', draws, lambda g, out, x: g*(out != 0), (rand(6, 5),), 'x', 'scaled', 'multiplied by 0.6')


# broadcasting and einsum

def plus_row(x, b): return x + b
def times_column(x, a): return x*a
def outer(x, w): return torch.einsum('nti,io->nto', x, w)
add('broadcast, no sum', plus_row, lambda g, out, x, b: (g, g), (rand(4, 3), rand(1, 3)), 'b', 'sum missing', 'sum')
add('broadcast, first row', plus_row, lambda g, out, x, b: (g, g[:1]), (rand(4, 3), rand(1, 3)), 'b', 'sum missing', 'sum|first')
add('broadcast product, no sum', times_column, lambda g, out, x, a: (g*a, g*x), (rand(4, 3), rand(4, 1)), 'a', 'sum missing', 'sum')
add('broadcast product, spread', times_column, lambda g, out, x, a: (g*a, (g*x).sum(0)[:,None][:1].expand(4, 1)), (rand(4, 3), rand(4, 1)), 'a', 'sum missing', '')
add('einsum, no sum over n', outer, lambda g, out, x, w: (g@w.mT, x.mT@g), (rand(2, 4, 3), rand(3, 3, seed=11)), 'w', 'sum missing', 'sum')
add('einsum, first only', outer, lambda g, out, x, w: (g@w.mT, x[0].mT@g[0]), (rand(2, 4, 3), rand(3, 3, seed=11)), 'w', 'sum missing', 'first|sum')

SHAPE_IN_TORCH = ('broadcast, no sum', 'broadcast product, no sum', 'einsum, no sum over n')
def cases():
    for name,f,backward,inputs,tensor,causes,words in faults:
        for form in forms:
            if form == 'Function' and name.startswith(('shape', *SHAPE_IN_TORCH)): continue # torch sums up or refuses
            yield pytest.param(form, f, backward, inputs, tensor, causes, words, id=f'{name}, {form}')

@pytest.mark.parametrize('form, forward, backward, inputs, tensor, causes, words', cases())
def test_the_doctor_names_faults(form, forward, backward, inputs, tensor, causes, words):
    torch.manual_seed(0)
    report = look(forms[form](forward, backward), *inputs)
    row = report.first
    assert row is not None, report
    found = next(r for r in report.rows if not r.ok)
    assert (row.name[0], row.diagnosis.cause in causes) == (tensor, True) and re.search(words, row.diagnosis.text), report
