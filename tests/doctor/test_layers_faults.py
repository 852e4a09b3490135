"Faults of real code in convolution, pooling, norms, embedding, softmax and attention: what the doctor calls them."
import re

import pytest
import torch, torch.nn.functional as F
from fb_pass.activations import dropout_rule
from fb_pass.attention import attention_rule, embed_rule, merge_heads, softmax_rule, split_heads
from fb_pass.bridges import to_function
from fb_pass.convolution import avg_pool2d_rule, conv2d_rule, max_pool2d_rule
from fb_pass.doctor import check_layer
from fb_pass.gradients import Rule
from fb_pass.modules import Op
from fb_pass.norms import batch_norm_rule, fixed_norm_rule, layer_norm_rule, rms_norm_rule

def rand(*shape, seed=10):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

def look(layer, *inputs, **kw): return check_layer(layer, *inputs, raise_exception=False, progress=False, **kw)

forms = {
    'Rule': lambda forward, backward: type('Layer', (Op,), dict(rule=Rule(forward, backward)))(),
    'Function': lambda forward, backward: to_function(Rule(forward, backward), 'LayerFunction'),
    'functions': lambda forward, backward: (forward, backward)}

faults = [] # name, ways to write the forward, backward, inputs, whose gradient is wrong, causes, words
def add(name, forwards, backward, inputs, tensor, causes, words):
    faults.append((name, forwards, backward, inputs, tensor, causes.split(', '), words))


# convolution: three ways to write the forward, and the backward as a loop over the kernel

def entries(t, i, j, g, stride, dilation):
    "Those entries of images that meet entry `i`, `j` of the kernel."
    def along(i, m): return slice(i*dilation, i*dilation + stride*(m-1) + 1, stride)
    return t[:,:,along(i, g.shape[2]),along(j, g.shape[3])]

def conv_of(stride=1, padding=0, dilation=1, groups=1):
    how = dict(stride=stride, padding=padding, dilation=dilation)
    def torchs(x, w, b): return F.conv2d(x, w, b, **how, groups=groups)
    def unfolded(x, w, b): return conv2d_rule(**how).forward(x, w, b)
    def sliced(x, w, b):
        x,out = F.pad(x, [padding]*4),F.conv2d(x.detach(), w.detach(), b, **how)
        def tap(i, j): return torch.einsum('nchw,oc->nohw', entries(x, i, j, out, stride, dilation), w[:,:,i,j])
        return b[:,None,None] + sum(tap(i, j) for i in range(w.shape[2]) for j in range(w.shape[3]))
    return [torchs] if groups > 1 else [torchs, unfolded, sliced]

def conv_grads(g, x, w, stride=1, padding=0, dilation=1, crop=None):
    more = [dilation*(k - 1) + stride*(m - 1) + 1 - n - padding for n,k,m in zip(x.shape[2:], w.shape[2:], g.shape[2:])]
    xp = F.pad(x, [padding, max(more[1], padding), padding, max(more[0], padding)])
    dxp,dw = torch.zeros_like(xp),torch.zeros_like(w)
    for i in range(w.shape[2]):
        for j in range(w.shape[3]):
            entries(dxp, i, j, g, stride, dilation).add_(torch.einsum('nohw,oc->nchw', g, w[:,:,i,j]))
            dw[:,:,i,j] = torch.einsum('nohw,nchw->oc', g, entries(xp, i, j, g, stride, dilation))
    a = padding if crop is None else crop
    return dxp[:,:,a:a+x.shape[2],a:a+x.shape[3]], dw, g.sum((0, 2, 3))

def conv_fault(name, wrong, tensor, causes, words, c_in=2, **how):
    "`wrong(g, x, w)` is the wrong gradient of `tensor`."
    def backward(g, out, x, w, b):
        grads = [*conv_grads(g, x, w, **how)]
        grads['xwb'.index(tensor)] = wrong(g, x, w)
        return tuple(grads)
    inputs = rand(3, c_in, 7, 6), rand(3, c_in, 3, 3, seed=11), rand(3, seed=12)
    add(f'{name} {how or ""}', conv_of(**how), backward, inputs, tensor, causes, words)

def conv_faults(**how):
    def grads(k, **other): return lambda g, x, w: conv_grads(g, x, w, **how | other)[k]
    def fault(*args, **kw): conv_fault(*args, **kw, **how)
    fault('kernel not turned', lambda g, x, w: grads(0)(g, x, w.flip(2, 3)), 'x', 'permuted', 'kernel `w` is not turn')
    fault('dw turned', lambda g, x, w: grads(1)(g, x, w).flip(2, 3), 'w', 'permuted', 'backwards along axis 2 and 3')
    fault('channels swapped', lambda g, x, w: grads(0)(g, x, w.transpose(0, 1)), 'x', 'transposed',
          'input and the output channels of `w` are exchanged', c_in=3)
    fault('dw with channels swapped', lambda g, x, w: grads(1)(g, x, w).transpose(0, 1), 'w', 'transposed', 'permute',
          c_in=3)
    for k,usual in dict(stride=1, dilation=1, padding=0).items():
        if k not in how: continue
        other = dict(crop=0) if k == 'padding' else {k: usual}
        cause = 'shifted' if k == 'padding' else 'wrong operand'
        fault(f'{k} ignored', grads(0, **other), 'x', cause, f'with the {k}')
        fault(f'{k} ignored in dw', grads(1, **{k: usual}), 'w', cause, f'with the {k}')
for how in (dict(), dict(padding=1), dict(stride=2, padding=1), dict(dilation=2, padding=2)): conv_faults(**how)

conv_fault('bias over one image', lambda g, x, w: g[0].sum((1, 2)), 'b', 'sum missing', 'only the first of the 3')
conv_fault('bias, mean of images', lambda g, x, w: g.mean(0).sum((1, 2)), 'b', 'scaled', 'a mean where a sum belongs')
conv_fault('bias, mean of places', lambda g, x, w: g.mean((2, 3)).sum(0), 'b', 'scaled', 'one over')
conv_fault('dw, last image', lambda g, x, w: conv_grads(g[-1:], x[-1:], w)[1], 'w', 'sum missing', 'only the last')
conv_fault('dw, mean of images', lambda g, x, w: conv_grads(g, x, w)[1]/3, 'w', 'scaled', 'a mean where a sum belongs')
conv_fault('shape: bias over images', lambda g, x, w: g.sum(0), 'b', 'sum missing', 'lacks a sum over axis 1 and 2')
conv_fault('shape: bias over places', lambda g, x, w: g.sum((2, 3)), 'b', 'sum missing', 'lacks a sum over axis 0')
conv_fault('shape: not cropped', lambda g, x, w: conv_grads(g, F.pad(x, [1]*4), w)[0], 'x', 'shape', 'is not cropped',
           padding=1)

def in_groups(f, g, x, w):
    "The gradients of a convolution in two groups."
    found = [f(*o)[:2] for o in zip(g.chunk(2, 1), x.chunk(2, 1), w.chunk(2))]
    return torch.cat([o[0] for o in found], 1), torch.cat([o[1] for o in found])
def full(w): return w.repeat(1, 2, 1, 1)
for name,k,cause,wrong in (
        ('dx, every channel', 0, 'wrong operand', lambda g, x, w: conv_grads(g, x, full(w))[0]),
        ('shape: dx', 0, 'shape', lambda g, x, w: conv_grads(g, x[:,:2], w)[0]),
        ('shape: dw', 1, 'wrong operand', lambda g, x, w: conv_grads(g, x, full(w))[1])):
    def of_groups(g, out, x, w, b, k=k, wrong=wrong):
        grads = [*in_groups(conv_grads, g, x, w), g.sum((0, 2, 3))]
        grads[k] = wrong(g, x, w)
        return tuple(grads)
    add(f'{name}, groups ignored', conv_of(groups=2), of_groups, (rand(3, 4, 7, 6), rand(4, 2, 3, 3, seed=11), rand(4)),
        'xw'[k], cause, 'the 2 groups are ignored')


# pooling

def pool_of(kind, size, stride):
    f,rule = (F.max_pool2d, max_pool2d_rule) if kind == 'max' else (F.avg_pool2d, avg_pool2d_rule)
    def torchs(x): return f(x, size, stride)
    def by_windows(x):
        x = x.unfold(2, size, stride).unfold(3, size, stride).flatten(4)
        return x.amax(4) if kind == 'max' else x.mean(4)
    return [torchs, by_windows, rule(size, stride).forward]

def pool_fault(name, kind, size, stride, share, causes, words, x=None, other=None):
    "A backward that gives each entry of a window a `share` of it, with an `other` stride."
    step = other or stride
    def backward(g, out, x):
        res = torch.zeros_like(x)
        for i in range(g.shape[2]):
            for j in range(g.shape[3]):
                def window(t): return t.narrow(2, i*step, size).narrow(3, j*step, size)
                window(res).add_(share(window(x))*g[:,:,i:i+1,j:j+1])
        return res
    ways = pool_of(kind, size, stride)
    ways = ways[::2] if x is not None else ways # `amax` shares the gradient of what is equal
    add(f'{name} {size} {stride}', ways, backward, (rand(2, 2, 6, 8) if x is None else x,), 'x', causes, words)

def every_max(t): return (t == t.amax((2, 3), keepdim=True)).to(t)
def equally(t): return torch.full_like(t, 1/(t.shape[2]*t.shape[3]))
def first(t): return F.pad(torch.ones_like(t[:,:,:1,:1]), [0, t.shape[3] - 1, 0, t.shape[2] - 1])
tied = torch.randint(0, 3, (2, 2, 6, 8), generator=torch.Generator().manual_seed(1)).double()
for size,stride in ((2, 2), (3, 1), (3, 2)):
    pool_fault('max to every tie', 'max', size, stride, every_max, 'ties, added twice', 'share one gradient', tied)
    pool_fault('max to the first entry', 'max', size, stride, first, 'mask from wrong tensor', 'to the first entry')
    pool_fault('max to all', 'max', size, stride, equally, 'mask missing', 'every entry alike, as in a mean')
    pool_fault('mean not divided', 'avg', size, stride, torch.ones_like, 'scaled', 'as in a sum|sum where a mean')
    pool_fault('mean to the largest', 'avg', size, stride, every_max, 'mask from wrong tensor', 'to the largest entry')
    for kind,share in (('max', every_max), ('avg', equally)) if stride > 1 else ():
        pool_fault(f'{kind}, stride ignored', kind, size, stride, share, 'wrong operand', 'the stride', other=1)


# norms

def norm_of(dims, channels, eps=1e-5):
    "The forward, and a function that makes its backward with parts exchanged."
    def like(w, x): return w.view(-1, *[1]*(x.ndim - 2)) if channels else w
    def stats(x, dims=dims, eps=eps, correction=0):
        s = (x.var(dims, correction=correction, keepdim=True) + eps).sqrt()
        return (x - x.mean(dims, keepdim=True))/s, s
    def forward(x, w, b): return stats(x)[0]*like(w, x) + like(b, x)
    def made(mean=1, std=1, power=1, over=dims, eps=eps, correction=0, dw=None, low=None):
        def backward(g, out, x, w, b):
            xhat,s = stats(x, over, eps, correction)
            h,n = g*like(w, x)**power,x.numel()//s.numel() - correction
            rest = [o for o in range(x.ndim) if o != (1 if channels else x.ndim - 1)]
            dx = (h - mean*h.mean(over, keepdim=True) - std*xhat*(h*xhat).sum(over, keepdim=True)/n)/s
            db = g.sum(rest) if low is None else g.to(low).sum(rest).to(g)
            return dx, (g*(stats(x)[0] if dw is None else dw(x))).sum(rest), db
        return backward
    return forward, made

def layer_norm_fused(x, w, b): return F.layer_norm(x, w.shape, w, b)
def batch_norm_fused(x, w, b): return F.batch_norm(x, None, None, w, b, training=True)
for kind,dims,shape,fused,rule in (('layer norm', -1, (6, 5), layer_norm_fused, layer_norm_rule),
                                   ('batch norm', (0, 2, 3), (4, 3, 2, 3), batch_norm_fused, batch_norm_rule),
                                   ('batch norm of rows', (0,), (6, 5), batch_norm_fused, batch_norm_rule)):
    forward,made = norm_of(dims, dims != -1)
    def norm_fault(name, tensor, causes, words, ways=(forward, fused, rule(1e-5).forward), **how):
        args = 2*rand(*shape) + 1, rand(shape[1], seed=11), rand(shape[1], seed=12)
        add(f'{kind}, {name}', ways, made(**how), args, tensor, causes, words)
    norm_fault('weight forgotten', 'x', 'scaled', 'the factor w(eight)? is missing', power=0)
    norm_fault('weight twice', 'x', 'scaled', 'the factor w(eight)? is there twice', power=2)
    norm_fault('statistics as constants', 'x', 'term missing', 'statistics|lacks what comes through', mean=0, std=0)
    norm_fault('no mean', 'x', 'term missing, use lost', 'mean', mean=0)
    norm_fault('no spread', 'x', 'term missing, use lost', 'spread|var|mean 2', std=0)
    norm_fault('wrong axis', 'x', 'wrong operand', 'taken along axis', over=1 if dims != -1 else 0)
    norm_fault('eps forgotten', 'x', 'term missing', 'eps is forgotten', eps=0.)
    norm_fault('n-1', 'x', 'scaled', 'has n-1 where n belongs', correction=1)
    norm_fault('bias summed in bfloat16', 'b', 'dtype', 'bfloat16', low=torch.bfloat16)
    if kind != 'batch norm':
        norm_fault('dw by x', 'w', 'wrong operand', '`x` stands where', dw=lambda x: x)
        norm_fault('dw without xhat', 'w', 'mask missing, scaled', 'factor', dw=torch.ones_like)

def in_training(x, w, b, m, v): return batch_norm_rule(1e-5).forward(x, w, b) + 0*(m.sum() + v.sum())
trains,evaluates = batch_norm_rule(1e-5).backward,fixed_norm_rule(1e-5).backward
def wrong_in_training(g, out, x, w, b, m, v):
    return evaluates(g, out, x, w, b, m, v)[0], *trains(g, out, x, w, b)[1:], 0*m, 0*v
def wrong_in_evaluation(g, out, x, w, b, m, v):
    return trains(g, out, x, w, b)[0], *evaluates(g, out, x, w, b, m, v)[1:]
args = 2*rand(6, 5) + 1, rand(5, seed=11), rand(5, seed=12), rand(5, seed=13), rand(5, seed=14).abs() + .5
add("evaluation's gradient in training", [in_training], wrong_in_training, args, 'x', 'term missing',
    'that is the gradient of evaluation')
add("training's gradient in evaluation", [fixed_norm_rule(1e-5).forward], wrong_in_evaluation, args, 'x',
    'wrong operand', 'is the gradient of training')

def rms(x, w): return x/(x.square().mean(-1, keepdim=True) + 1e-6).sqrt()*w
def rms_back(power=1, term=1.):
    def backward(g, out, x, w):
        r = (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        xhat,h = x/r,g*w**power
        return (h - term*xhat*(h*xhat).mean(-1, keepdim=True))/r, (g*xhat).sum(0)
    return backward
for name,how,causes,words in (('weight forgotten', dict(power=0), 'scaled', 'factor w(eight)? is missing'),
                              ('weight twice', dict(power=2), 'scaled', 'factor w(eight)? is there twice'),
                              ('root as a constant', dict(term=0.), 'term missing, use lost', 'mean')):
    add(f'rms norm, {name}', [rms, rms_norm_rule(1e-6).forward], rms_back(**how), (2*rand(6, 5) + 1, rand(5, seed=11)),
        'x', causes, words)


# embedding and softmax

def embedding(ids, w): return F.embedding(ids, w)
def indexed(ids, w): return w[ids]
def assigned(g, out, ids, w): return None, torch.zeros_like(w).index_put((ids,), g)
def added(g, out, ids, w):
    dw = torch.zeros_like(w)
    dw[ids] += g
    return None, dw
for wrong in (assigned, added):
    add(f'embedding, {wrong.__name__}', [embedding, indexed], wrong, (torch.tensor([[2, 0, 2], [1, 2, 4]]), rand(5, 3)),
        'w', 'use lost', 'overwrite each other')

def softmaxed(x): return x.softmax(-1)
def by_hand(x):
    e = (x - x.amax(-1, keepdim=True)).exp()
    return e/e.sum(-1, keepdim=True)
for name,wrong,cause,words in (('s*(1-s)', lambda g, out, x: g*out*(1 - out), 'term missing', 'only the diagonal'),
                               ('no sum', lambda g, out, x: g*out, 'term missing', 'sum'),
                               ('axis', lambda g, out, x: out*(g - (g*out).sum(0)), 'sum missing', 'over axis 0')):
    add(f'softmax, {name}', [softmaxed, by_hand], wrong, (rand(4, 5),), 'x', cause, words)


# attention

causal = torch.ones(5, 5, dtype=torch.bool).tril()
some = torch.tensor([[1, 0, 1, 0, 0], [0, 1, 1, 0, 1], [1, 1, 0, 0, 0], [0, 0, 1, 1, 1], [1, 1, 1, 1, 0]]).bool()
def scores(q, k): return q@k.mT/q.shape[-1]**.5
def attend(q, k, v): return scores(q, k).masked_fill(~causal, -torch.inf).softmax(-1)@v
def attend_fused(q, k, v): return F.scaled_dot_product_attention(q, k, v, is_causal=True)
def attend_by_rule(q, k, v): return attention_rule.forward(q, k, v, causal)
def attend_some(q, k, v): return scores(q, k).masked_fill(~some, -torch.inf).softmax(-1)@v
def attend_where(q, k, v): return torch.where(some, scores(q, k), -1e9).softmax(-1)@v
def attend_added(q, k, v): return (scores(q, k) + torch.zeros(5, 5).masked_fill(~causal, -torch.inf)).softmax(-1)@v

def of_softmax(a, da): return a*(da - (da*a).sum(-1, keepdim=True))
def attention_back(mask=causal, scale=-.5, jacobian=of_softmax, swap=None):
    def backward(g, out, q, k, v):
        a = scores(q, k).masked_fill(~mask, -torch.inf).softmax(-1)
        ds = jacobian(a, g@v.mT)*q.shape[-1]**scale
        grads = [ds@k, ds.mT@q, a.mT@g]
        if swap: grads[swap[0]],grads[swap[1]] = grads[swap[1]],grads[swap[0]]
        return tuple(grads)
    return backward
everything = torch.ones_like(causal)
def without_sum(a, da): return a*da
def diagonal(a, da): return a*(1 - a)*da
def columns(a, da): return a*(da - (da*a).sum(-2, keepdim=True))
def attention_fault(name, causes, words, tensor='q', ways=(attend, attend_fused, attend_by_rule), **how):
    qkv = rand(2, 5, 3), rand(2, 5, 3, seed=11), rand(2, 5, 3, seed=12)
    add(f'attention, {name}', ways, attention_back(**how), qkv, tensor, causes, words)
attention_fault('mask missing', 'mask missing', 'mask of `masked_fill` is missing', mask=everything)
attention_fault('added mask missing', 'mask missing', 'that is added is missing', ways=[attend_added], mask=everything)
attention_fault('mask inverted', 'mask inverted', 'is inverted', ways=[attend_some, attend_where], mask=~some)
attention_fault('all masked', 'zero', 'zero', jacobian=lambda a, da: of_softmax(a, da)*~causal)
attention_fault('scale forgotten', 'scaled', 'the root of', scale=0.)
attention_fault('scale twice', 'scaled', 'the root of', scale=-1.)
attention_fault('sums of columns', 'sum missing', 'over axis 1', jacobian=columns)
attention_fault('s*(1-s)', 'term missing', 'only the diagonal', jacobian=diagonal)
attention_fault('no sum', 'term missing', 'sum', jacobian=without_sum)
attention_fault('k and v exchanged', 'permuted', 'exchanged', 'k', swap=(1, 2))
attention_fault('q and k exchanged', 'permuted', 'exchanged', swap=(0, 1))

def heads(x): return split_heads(x, 2, 4)
def heads_by_view(x): return x.view(-1, 4, 2, x.shape[-1]//2).transpose(1, 2)
def merged_by_reshape(x): return x.transpose(1, 2).reshape(x.shape[0]*x.shape[2], -1)
def reshaped(g, out, x): return g.reshape(x.shape)
add('heads reshaped', [heads, heads_by_view], reshaped, (rand(8, 6),), 'x', 'transposed', 'reshape')
add('merged reshaped', [merge_heads, merged_by_reshape], reshaped, (rand(2, 2, 4, 3),), 'x', 'transposed', 'reshape')

def split(x, w): return (x@w).view(-1, 5, 3, 2, 3).permute(2, 0, 3, 1, 4)
def multi_head(x, w, wo): return attend(*split(x, w)).transpose(1, 2).reshape(len(x), -1)@wo
def multi_fault(name, causes, words, reshape=False, **how):
    def backward(g, out, x, w, wo):
        y,dy = attend(*split(x, w)),g@wo.mT
        dwo = y.transpose(1, 2).reshape(len(x), -1).mT@g
        dy = dy.view(y.shape) if reshape else dy.view(-1, 5, 2, 3).transpose(1, 2)
        d = torch.stack(attention_back(**how)(dy, y, *split(x, w))).permute(1, 3, 0, 2, 4).reshape(len(x), -1)
        return d@w.mT, x.mT@d, dwo
    args = rand(10, 6), rand(6, 18, seed=11), rand(6, 6, seed=12)
    add(f'multi-head, {name}', [multi_head], backward, args, 'x', causes, words)
multi_fault('heads reshaped', 'transposed', 'reshape', reshape=True)
multi_fault('mask missing', 'mask missing', 'mask', mask=everything)
multi_fault('scale forgotten', 'scaled', 'the factor 1.73205 of `/` is missing', scale=0.)
multi_fault('scale twice', 'scaled', 'the factor 1.73205 of `/` is there twice', scale=-1.)
multi_fault('s*(1-s)', 'term missing', 'only the diagonal', jacobian=diagonal)
multi_fault('sums of columns', 'sum missing', 'over axis 2', jacobian=columns)


# dropout, broadcasting, einsum

def drop(x, mask): return x*mask
def drawn_inside(x): return F.dropout(x, .4, training=True)
def anew(g): return g*torch.bernoulli(torch.full_like(g, .6))/.6
args = rand(6, 5), (rand(6, 5, seed=13) > -.3).double()/.6
add('dropout, drawn anew', [drop, dropout_rule.forward], lambda g, out, x, mask: (anew(g), g*x), args, 'x',
    'mask from wrong tensor', 'drawn anew')
add('dropout, drawn anew inside', [drawn_inside], lambda g, out, x: anew(g), (rand(6, 5),), 'x',
    'mask from wrong tensor', 'drawn anew')
add('dropout, no scale', [drop, dropout_rule.forward], lambda g, out, x, mask: (g*(mask > 0), g*x), args, 'x', 'scaled',
    'multiplied by 0.6')
add('dropout, no scale inside', [drawn_inside], lambda g, out, x: g*(out != 0), (rand(6, 5),), 'x', 'scaled', 'by 0.6')

def plus(x, b): return x + b
def times(x, a): return x*a
def contracted(x, w): return torch.einsum('nti,io->nto', x, w)
add('broadcast, no sum', [plus], lambda g, out, x, b: (g, g), (rand(4, 3), rand(1, 3)), 'b', 'sum missing', 'a sum')
add('broadcast, first', [plus], lambda g, out, x, b: (g, g[:1]), (rand(4, 3), rand(1, 3)), 'b', 'sum missing', 'only')
add('broadcast product, no sum', [times], lambda g, out, x, a: (g*a, g*x), (rand(4, 3), rand(4, 1, seed=11)), 'a',
    'sum missing', 'a sum')
args = rand(2, 4, 3), rand(3, 3, seed=11)
add('einsum, no sum', [contracted], lambda g, out, x, w: (g@w.mT, x.mT@g), args, 'w', 'sum missing', 'a sum')
add('einsum, first only', [contracted], lambda g, out, x, w: (g@w.mT, x[0].mT@g[0]), args, 'w', 'sum missing', 'first')

# what only functions can return: a Rule and torch refuse it, or torch sums it up
REFUSED = 'shape', 'broadcast, no sum', 'broadcast product, no sum', 'einsum, no sum'
def cases():
    "Each fault in one of the forms, with one of the ways to write the forward: they take turns."
    for i,(name,forwards,*rest) in enumerate(faults):
        form = 'functions' if name.startswith(REFUSED) else [*forms][i % 3]
        f = forwards[i//3 % len(forwards)]
        yield pytest.param(form, f, *rest, id=f'{name}, {f.__name__}, {form}')

@pytest.mark.parametrize('form, forward, backward, inputs, tensor, causes, words', [*cases()])
def test_the_doctor_names_faults(form, forward, backward, inputs, tensor, causes, words):
    torch.manual_seed(0)
    report = look(forms[form](forward, backward), *inputs)
    row = report.first
    assert row is not None, report
    assert row.name[0] == tensor and row.diagnosis.cause in causes, report
    assert re.search(words, row.diagnosis.text), report


# no false alarm

def drawn(seed, *sizes):
    g = torch.Generator().manual_seed(seed)
    return [int(torch.randint(a, b + 1, (), generator=g)) for a,b in sizes]

@pytest.mark.parametrize('seed', range(6))
def test_right_layers_of_random_settings(seed):
    "Batches of one, strides, paddings and dilations that do not divide, repeated tokens, rows that are masked whole."
    n,c,o,k,s,d,h,w = drawn(10*seed, (1, 3), (1, 3), (1, 3), (1, 3), (1, 3), (1, 2), (6, 8), (6, 9))
    x,p = rand(n, c, h, w),seed % 3
    conv = conv2d_rule(stride=(s, 1 + seed % 2), padding=(p, 1), dilation=(d, 1))
    pools = [rule((k, 2), (s, 2)) for rule in (max_pool2d_rule, avg_pool2d_rule)]
    norms_of = [(layer_norm_rule(1e-5), (x, rand(w), rand(w))), (batch_norm_rule(1e-5), (x, rand(c), rand(c))),
                (rms_norm_rule(1e-6), (x, rand(w)))]
    tokens = torch.randint(0, 4, (n, 5), generator=torch.Generator().manual_seed(seed))
    mask = torch.rand(h, h, generator=torch.Generator().manual_seed(seed)) < .5
    mask[seed % h] = False
    given = [(conv, (x, rand(o, c, k, 2), rand(o))), *((pool, (x,)) for pool in pools), *norms_of,
             (embed_rule, (tokens, rand(4, 3))), (softmax_rule, (x,)),
             (attention_rule, (x, rand(n, c, h, w, seed=11), rand(n, c, h, 2), mask)),
             (dropout_rule, (x, (rand(n, c, h, w, seed=12) > 0).double()*2))]
    for i,(rule,inputs) in enumerate(given):
        wrt = 'x' if rule is dropout_rule else None
        form = 'Rule' if rule is softmax_rule else [*forms][(seed + i) % 3] # its backward has another name for `out`
        report = look(forms[form](rule.forward, rule.backward), *inputs, wrt=wrt)
        assert report.ok and report.tested, report
