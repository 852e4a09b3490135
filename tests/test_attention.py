"Attention: embedding, softmax and attention against torch in float64, everywhere that a layer works, and wrong ones."
from functools import partial

import pytest, torch, torch.nn.functional as F
from fb_pass.attention import (Attention, AttentionWeights, Average, CausalAttention, CausalAttentionInBlocks,
                               CausalSelfAttention, Embedding, Product, Softmax, attention, attention_in_blocks,
                               attention_in_blocks_grad, attention_rule, attention_weights, average, average_rule,
                               embed, embed_rule, merge_heads, product, product_rule, softmax_rule, split_heads,
                               weights_rule)
from fb_pass.backward import lin_rule
from fb_pass.bridges import to_function
from fb_pass.checks import autograd_grad, check_grad, numerical_grad, peak_memory
from fb_pass.compiled import compile_step
from fb_pass.doctor import check_layer
from fb_pass.gpt import TokenLoss, gpt, gpt_by_torch
from fb_pass.gradients import Rule, add_grad, check_rule, clear_grads
from fb_pass.library import as_torch
from fb_pass.modules import Lin, Model, Op
from fb_pass.training import AdamW, softmax
from fb_pass.viewer import show_backward

def rand(*shape, seed=0): return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
def tokens(*shape, vocab=5, seed=0): return torch.randint(vocab, shape, generator=torch.Generator().manual_seed(seed))
def causal(t): return torch.ones(t, t, dtype=torch.bool).tril()

def same(gots, wants):
    "To 1e-10 of the largest entry; what must be zero is."
    for i,(got,want) in enumerate(zip(gots, wants, strict=True)):
        assert got.shape == want.shape
        if want.abs().max() > 1e-12: check_grad(got, want, rtol=1e-10, name=f'gradient {i}')
        else: assert got.abs().max() < 1e-12

def laid_out(t, layout):
    "`t` with other strides; what is expanded has other numbers."
    if layout == 'transposed': return t.mT.contiguous().mT
    if layout == 'every other': return t.repeat_interleave(2, -1)[...,::2]
    if layout == 'slice': return F.pad(t, (1, 1, 1, 1))[...,1:-1,1:-1]
    return t[...,:1,:].expand(t.shape) if layout == 'expanded' else t
layouts = 'plain', 'transposed', 'every other', 'slice', 'expanded'

def grads(layer, inputs, u, ts):
    "What forward and backward of a layer leave in `.g` of `ts`."
    clear_grads(*ts)
    layer(*inputs).g = u
    layer.backward()
    return [t.g for t in ts]


# Embedding

@pytest.mark.parametrize('shape', [(), (1,), (7,), (3, 4), (1, 1), (0,), (2, 3, 2)])
@pytest.mark.parametrize('layout', layouts)
def test_embedding_is_that_of_torch(shape, layout):
    ids,w = tokens(*shape),laid_out(rand(5, 3, seed=1), layout)
    u = rand(ids.numel(), 3, seed=2)
    layer = Embedding(w)
    got = grads(layer, [ids], u, [w])
    assert torch.equal(layer.out, F.embedding(ids.reshape(-1), w))
    same(got, [autograd_grad(lambda w: (F.embedding(ids.reshape(-1), w)*u).sum(), w)])
    if len(shape) == 2: # as a token row of a transposed batch
        same(grads(layer, [ids.t().contiguous().t()], u, [w]), got)

def test_embedding_is_the_product_with_a_one_hot_matrix():
    ids,w,u = tokens(3, 4),rand(5, 3),rand(12, 3)
    H = F.one_hot(ids.flatten(), 5).double()
    same([embed(ids, w)], [H@w])
    none,got = embed_rule.grads(u, H@w, ids, w)
    assert none is None
    same([got], [H.t()@u])
    check_rule(embed_rule, ids, w)

def test_a_token_that_does_not_occur_has_gradient_zero_and_a_repeated_one_the_sum():
    w = rand(4, 2)
    g, = grads(Embedding(w), [torch.tensor([2, 0, 2])], torch.tensor([[1., 2.], [3., 4.], [5., 6.]]).double(), [w])
    assert g.tolist() == [[3., 4.], [0., 0.], [6., 8.], [0., 0.]]

def test_embedding_adds_to_a_gradient_that_is_there():
    ids,w,u = tokens(4),rand(5, 3),rand(4, 3)
    a,b = Embedding(w),Embedding(w) # tied
    want, = grads(a, [ids], u, [w])
    b(ids).g = u
    b.backward()
    same([w.g], [2*want])

@pytest.mark.parametrize('ids, error, words', [
    (torch.tensor([0, 5]), ValueError, 'ids has tokens from 0 to 5, expected 0 to 4'),
    (torch.tensor([-1, 2]), ValueError, 'ids has tokens from -1 to 2'),
    (torch.tensor([0, 1], dtype=torch.int32), TypeError, 'int32, expected int64'),
    (torch.tensor([0., 1.]), TypeError, 'float32, expected int64'), ([0, 1], TypeError, 'ids is a list'),
    (torch.tensor([True]), TypeError, 'bool, expected int64')])
def test_embedding_refuses_what_is_no_token(ids, error, words):
    layer = Embedding(rand(5, 3))
    layer(tokens(2))
    with pytest.raises(error, match=words): layer(ids)
    with pytest.raises(RuntimeError, match='backward before forward'): layer.backward()
    assert not layer.params[0] is None and len(layer.params) == 1

def test_embedding_refuses_what_is_no_table():
    for w,words in ((torch.ones(5, 3).long(), 'expected a floating-point'), (rand(5), 'do not fit')):
        with pytest.raises((TypeError, ValueError), match=words): Embedding(w)(tokens(2))
    with pytest.raises(TypeError, match='weight'): Embedding([[1., 2.]])


# Softmax

@pytest.mark.parametrize('shape', [(1, 1), (1, 4), (6, 3), (2, 3, 5), (4,)])
@pytest.mark.parametrize('layout', layouts)
def test_softmax_is_that_of_torch(shape, layout):
    x = laid_out(rand(*shape), layout) if len(shape) > 1 else rand(*shape)
    u = rand(*shape, seed=1)
    def plain(x): return (F.softmax(x, -1)*u).sum()
    layer = Softmax()
    same(grads(layer, [x], u, [x]), [autograd_grad(plain, x)])
    same([layer.out], [F.softmax(x, -1)])

def test_softmax_of_large_scores():
    x,u = rand(3, 4)*1e4,rand(3, 4, seed=1)
    g, = grads(Softmax(), [x], u, [x])
    assert g.isfinite().all()
    check_rule(softmax_rule, rand(3, 4))

def test_softmax_gradient_is_that_of_differences():
    x,u = rand(2, 3),rand(2, 3, seed=1)
    check_grad(*grads(Softmax(), [x], u, [x]), numerical_grad(lambda x: (softmax(x)*u).sum(), x), rtol=1e-7)


# Attention

shapes = [((), 1, 1, 1, 1), ((), 5, 3, 2, 4), ((2,), 1, 4, 3, 3), ((2, 3), 6, 6, 4, 4), ((1, 1), 3, 7, 1, 2)]

@pytest.mark.parametrize('lead, t, s, d, e', shapes)
@pytest.mark.parametrize('layout', layouts)
def test_attention_is_that_of_torch(lead, t, s, d, e, layout):
    q,k,v = (laid_out(rand(*lead, n, w, seed=i), layout) for i,(n,w) in enumerate(((t, d), (s, d), (s, e))))
    mask = torch.rand(t, s, generator=torch.Generator().manual_seed(0)) > .4
    mask[:,0] = True # each sees something
    u = rand(*lead, t, e, seed=9)
    def library(q, k, v): return F.scaled_dot_product_attention(q, k, v, mask)
    same([attention(q, k, v, mask)], [library(q, k, v)])
    got = attention_rule.grads(u, attention(q, k, v, mask), q, k, v, mask)
    assert got[3] is None
    same(got[:3], autograd_grad(lambda *ts: (library(*ts)*u).sum(), q, k, v))

def test_attention_rules_by_differences_and_as_functions():
    q,k,v,mask = rand(2, 4, 3),rand(2, 4, 3, seed=1),rand(2, 4, 2, seed=2),causal(4)
    check_rule(attention_rule, q, k, v, mask)
    check_rule(weights_rule, q, k, mask)
    check_rule(average_rule, attention_weights(q, k, mask), v)
    check_rule(product_rule, rand(3, 4), rand(4, 2))
    ts = [t.clone().requires_grad_() for t in (q, k, v)]
    assert torch.autograd.gradcheck(lambda *o: to_function(attention_rule, 'AttentionFunction').apply(*o, mask), ts)

def test_weights_are_a_distribution_over_what_may_be_seen():
    a = attention_weights(rand(2, 5, 3), rand(2, 5, 3, seed=1), causal(5))
    torch.testing.assert_close(a.sum(-1), torch.ones(2, 5).double())
    assert (a >= 0).all() and not a.triu(1).any()

@pytest.mark.parametrize('lead', [(), (2, 3)])
def test_mask_may_be_of_one_row_or_of_each_head(lead):
    q,k,v = rand(2, 3, 4, 2),rand(2, 3, 4, 2, seed=1),rand(2, 3, 4, 2, seed=2)
    mask = torch.tensor([True, True, False, True]).expand(*lead, 1, 4)
    assert torch.equal(attention(q, k, v, mask), attention(q, k, v, mask.expand(*lead, 4, 4)))
    same([attention(q, k, v, mask)], [F.scaled_dot_product_attention(q, k, v, mask.expand(2, 3, 4, 4))])

@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_row_that_is_masked_whole_is_zero_and_has_gradient_zero(dtype):
    q,k,v,u = (rand(2, 3, 4, seed=i).to(dtype) for i in range(4))
    mask = causal(3); mask[1] = False
    out = attention(q, k, v, mask)
    assert torch.equal(out[:,1], torch.zeros(2, 4, dtype=dtype))
    got = attention_rule.grads(u, out, q, k, v, mask)[:3]
    assert all(g.isfinite().all() for g in got) and not got[0][:,1].any()
    if dtype == torch.float64: # the others as if that query were not there
        keep = torch.tensor([0, 2])
        want = attention_rule.grads(u[:,keep], out[:,keep], q[:,keep], k, v, mask[keep])
        same([got[0][:,keep], got[1], got[2]], want[:3])
    none = torch.zeros(3, 3, dtype=torch.bool)
    for t in (attention(q, k, v, none), *attention_rule.grads(u, out, q, k, v, none)[:3]): assert not t.any()

def test_large_scores_do_not_overflow():
    q,k,v = rand(4, 3)*1e5,rand(4, 3, seed=1)*1e5,rand(4, 3, seed=2)
    got = attention_rule.grads(v, attention(q, k, v, causal(4)), q, k, v, causal(4))[:3]
    assert all(t.isfinite().all() for t in got)
    out,lse = attention_in_blocks(q, k, v, 2)
    same([out], [attention(q, k, v, causal(4))])
    assert lse.isfinite().all()

def bad_calls():
    q,k,v,mask = rand(2, 4, 3),rand(2, 4, 3),rand(2, 4, 3),causal(4)
    yield lambda: attention(q, k[:1], v, mask), 'do not fit'
    yield lambda: attention(q, k, v[:,:3], mask), 'do not fit'
    yield lambda: attention(q, k[...,:2], v, mask), 'do not fit'
    yield lambda: attention(q[0,0], k, v, mask), 'do not fit'
    yield lambda: attention(q[...,:0], k[...,:0], v, mask), 'their width is 0'
    yield lambda: attention(q, k, v, mask.double()), 'expected bool'
    yield lambda: attention(q, k, v, causal(3)), 'does not fit scores'
    yield lambda: attention(q, k, v, mask.expand(3, 2, 4, 4)), 'does not fit scores'
    yield lambda: attention(q.float(), k, v, mask), 'dtypes differ'
    yield lambda: attention(q, k, v, None), 'mask is a NoneType'
    yield lambda: attention_weights(q, k[...,:2], mask), 'do not fit'
    yield lambda: attention_in_blocks(q, k[:,:3], v[:,:3], 2), '4 queries in q and 3 keys in k'
    yield lambda: attention_in_blocks(q, k, v, 0), 'rows is 0'
    yield lambda: attention_in_blocks(q[...,:0,:], k[...,:0,:], v[...,:0,:], 2), 'has no tokens'
    yield lambda: CausalAttention()(q, k[:,:3], v[:,:3]), '4 queries in q and 3 keys in k'
    yield lambda: attention_in_blocks(q, k, v, 2.), 'rows is a float'
    for i in range(3): # gradient, output, logarithms
        args = [v, v, q[...,:1]]
        args[i] = args[i][:,:3]
        yield partial(attention_in_blocks_grad, *args, q, k, v, 2), f"{('g', 'out', 'lse')[i]} has shape"
        args[i] = args[i].float()
        yield partial(attention_in_blocks_grad, *args, q, k, v, 2), 'dtypes differ'
    yield lambda: attention_in_blocks_grad(v, v, q, q, k, v, 2), r'lse has shape \(2, 4, 3\), expected \(2, 4, 1\)'
    yield lambda: attention_in_blocks_grad(v, v, q[...,:1], q, k[:,:3], v[:,:3], 2), '4 queries in q and 3 keys in k'
    yield lambda: attention_in_blocks_grad(v, v, q[...,:1], q, k, v, 0), 'rows is 0'
    yield lambda: split_heads(rand(6, 4), 3, 2), 'a width that is a multiple of n_head'
    yield lambda: split_heads(rand(6, 4), 2, 4), 'a multiple of block rows'
    yield lambda: split_heads(rand(6, 4), 0, 2), 'n_head is 0'
    yield lambda: split_heads(rand(6, 4), 2, -1), 'block is -1'
    yield lambda: split_heads(rand(6, 4), 2., 2), 'n_head is a float'
    yield lambda: merge_heads(rand(6, 4)), 'do not fit'
    yield lambda: product(rand(3, 4), rand(3, 4)), 'do not fit'
    for first,second in ((4, 4), (3,)), ((3,), (3, 4)), ((2, 4, 4), (3, 4, 2)), ((4, 3), (4, 3)):
        yield partial(average, rand(*first), rand(*second)), 'do not fit'

@pytest.mark.parametrize('call, words', [*bad_calls()])
def test_what_does_not_fit_is_refused(call, words):
    with pytest.raises((TypeError, ValueError), match=words): call()


@pytest.mark.parametrize('make, own', [(Attention, 4), (AttentionWeights, 3)])
def test_attention_with_any_mask_is_a_layer(make, own):
    ts = [rand(2, 4, 3, seed=i) for i in range(own - 1)]
    mask = causal(4); mask[2] = False
    layer = make()
    u = rand(*layer(*ts, mask).shape, seed=9)
    def library(q, k, *v):
        a = (q@k.mT/3**.5).masked_fill(~mask, -1e9).softmax(-1)*mask.any(1, keepdim=True)
        return (a@v[0] if v else a)*u
    same(grads(layer, [*ts, mask], u, ts), autograd_grad(lambda *o: library(*o).sum(), *ts))

def test_average_and_product_are_layers():
    a,v,u = rand(2, 3, 4),rand(2, 4, 2, seed=1),rand(2, 3, 2, seed=2)
    same(grads(Average(), [a, v], u, [a, v]), autograd_grad(lambda a, v: ((a@v)*u).sum(), a, v))
    x,w,u = rand(3, 4),rand(4, 2, seed=1),rand(3, 2, seed=2)
    layer = Product(w)
    same(grads(layer, [x], u, [x, w]), autograd_grad(lambda x, w: ((x@w)*u).sum(), x, w))
    assert layer.params == (w,) or layer.params[0] is w


# In blocks

@pytest.mark.parametrize('lead, t, d, e', [((), 1, 2, 3), ((), 9, 3, 5), ((2, 3), 7, 4, 4), ((1,), 4, 1, 1)])
@pytest.mark.parametrize('rows', [1, 2, 4, 30])
def test_blocks_are_attention(lead, t, d, e, rows):
    q,k,v = (rand(*lead, t, w, seed=i) for i,w in enumerate((d, d, e)))
    u = rand(*lead, t, e, seed=9)
    out,lse = attention_in_blocks(q, k, v, rows)
    scores = (q@k.mT/d**.5).masked_fill(~causal(t), -torch.inf)
    same([out, lse], [scores.softmax(-1)@v, scores.logsumexp(-1, keepdim=True)])
    def library(*ts): return (F.scaled_dot_product_attention(*ts, is_causal=True)*u).sum()
    wants = autograd_grad(library, q, k, v)
    for again in (rows, 3): same(attention_in_blocks_grad(u, out, lse, q, k, v, again), wants)
    for layer in (CausalAttention(), CausalAttentionInBlocks(rows)):
        same(grads(layer, (q, k, v), u, (q, k, v)), wants)

@pytest.mark.parametrize('layout', layouts)
def test_blocks_with_strides(layout):
    q,k,v = (laid_out(rand(2, 6, 3, seed=i), layout) for i in range(3))
    u = rand(2, 6, 3, seed=9)
    same(grads(CausalAttentionInBlocks(4), (q, k, v), u, (q, k, v)), grads(CausalAttention(), (q, k, v), u, (q, k, v)))

@pytest.mark.parametrize('order', ['falling', 'rising'])
def test_the_running_maximum_may_come_first_or_last(order):
    q,v = torch.ones(8, 1).double(),rand(8, 2)
    k = 200*torch.arange(8.).double()[:,None]
    if order == 'falling': k = -k
    out,lse = attention_in_blocks(q, k, v, 2)
    scores = (q@k.t()).masked_fill(~causal(8), -torch.inf)
    same([out, lse], [scores.softmax(-1)@v, scores.logsumexp(-1, keepdim=True)])

def test_memory_of_blocks_grows_with_the_length_and_not_with_its_square():
    def peak(t, rows):
        layer = CausalAttention() if rows is None else CausalAttentionInBlocks(rows)
        qkv = [torch.randn(t, 8) for _ in range(3)]
        def both():
            layer(*qkv).g = qkv[0]
            layer.backward()
        return peak_memory(both)
    assert peak(512, None) > 3.5*peak(256, None)
    assert peak(512, 32) < 2.3*peak(256, 32) and peak(512, 32) < peak(512, None)/10
    assert CausalAttentionInBlocks(32)(*(torch.randn(64, 8) for _ in range(3))).shape == (64, 8)

def test_what_blocks_keep():
    plain,blocks = CausalAttention(),CausalAttentionInBlocks(2)
    qkv = [rand(2, 5, 3, seed=i) for i in range(3)]
    plain(*qkv), blocks(*qkv)
    assert plain.weights.out.shape == (2, 5, 5) and blocks.lse.shape == (2, 5, 1)
    assert not plain.params and not blocks.params # results are no parameters


# Heads and the layer

def test_heads_are_split_and_merged():
    x = rand(6, 8)
    heads = split_heads(x, 4, 3)
    assert heads.shape == (2, 4, 3, 2)
    for i in range(2):
        for h in range(4): assert torch.equal(heads[i,h], x[3*i:3*i+3, 2*h:2*h+2])
    assert torch.equal(merge_heads(heads), x)
    assert split_heads(rand(0, 8), 4, 3).shape == (0, 4, 3, 2)
    assert merge_heads(rand(0, 4, 3, 2)).shape == (0, 8)

def layer_of(width=6, n_head=2, block=4, rows=None, bias=True, seed=3):
    w_qkv,b_qkv,w_out,b_out = (rand(*s, seed=seed + i)/2 for i,s in enumerate((
        (width, 3*width), (3*width,), (width, width), (width,))))
    return CausalSelfAttention(w_qkv, b_qkv if bias else None, w_out, b_out if bias else None, n_head, block, rows)

def library_of(layer):
    def f(x, w_qkv, w_out, b_qkv=None, b_out=None):
        width,h = len(w_out),layer.n_head
        qkv = F.linear(x, w_qkv.t(), b_qkv).view(-1, layer.block, 3, h, width//h).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(*qkv, is_causal=True).transpose(1, 2).reshape(x.shape)
        return F.linear(out, w_out.t(), b_out)
    return f
def tensors_of(layer): return [t for t in (layer.w_qkv, layer.w_out, layer.b_qkv, layer.b_out) if t is not None]

@pytest.mark.parametrize('n, block, n_head, width', [
    (1, 1, 1, 1), (1, 5, 1, 4), (3, 4, 2, 6), (2, 3, 6, 6), (4, 1, 2, 4)])
@pytest.mark.parametrize('rows', [None, 2, 9])
@pytest.mark.parametrize('bias', [True, False])
def test_layer_is_that_of_torch(n, block, n_head, width, rows, bias):
    layer = layer_of(width, n_head, block, rows, bias)
    x,u,ts = rand(n*block, width, seed=1),rand(n*block, width, seed=2),tensors_of(layer)
    same(grads(layer, [x], u, [x, *ts]), autograd_grad(lambda *o: (library_of(layer)(*o)*u).sum(), x, *ts))
    same([layer.out], [library_of(layer)(x, *ts)])

def test_layer_is_multi_head_attention_of_torch():
    layer = layer_of()
    m = torch.nn.MultiheadAttention(6, 2, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        for p,t in ((m.in_proj_weight, layer.w_qkv.t()), (m.in_proj_bias, layer.b_qkv), (m.out_proj.weight,
                    layer.w_out.t()), (m.out_proj.bias, layer.b_out)): p.copy_(t)
    x = rand(12, 6).view(3, 4, 6).requires_grad_()
    out,_ = m(x, x, x, attn_mask=~causal(4), need_weights=False)
    out.backward(rand(12, 6, seed=2).view(3, 4, 6))
    flat = x.detach().reshape(12, 6)
    g = grads(layer, [flat], rand(12, 6, seed=2), [flat, layer.w_qkv, layer.b_qkv, layer.w_out, layer.b_out])
    same([layer.out], [out.detach().reshape(12, 6)])
    same(g, [x.grad.reshape(12, 6), m.in_proj_weight.grad.t(), m.in_proj_bias.grad, m.out_proj.weight.grad.t(),
             m.out_proj.bias.grad])

@pytest.mark.parametrize('layout', layouts)
@pytest.mark.parametrize('rows', [None, 3])
def test_layer_with_strides(layout, rows):
    layer,x,u = layer_of(rows=rows),rand(8, 6),rand(8, 6, seed=2)
    for k in ('w_qkv', 'w_out'): setattr(layer, k, laid_out(getattr(layer, k), layout))
    x,ts = laid_out(x, layout),tensors_of(layer)
    same(grads(layer, [x], laid_out(u, layout), [x, *ts]),
         autograd_grad(lambda *o: (library_of(layer)(*o)*laid_out(u, layout)).sum(), x, *ts))

@pytest.mark.parametrize('rows', [None, 3])
def test_no_token_sees_a_later_one_nor_another_sequence(rows):
    layer,x = layer_of(rows=rows),rand(8, 6)
    out = layer(x)
    for i in range(8):
        moved = x.clone(); moved[i] += 1.
        changed = (layer(moved) - out).abs().amax(1) > 1e-9
        assert changed.nonzero()[:,0].tolist() == [*range(i, 4*(i//4) + 4)]

def test_layer_adds_to_gradients_and_a_second_backward_of_a_new_call_gives_the_same():
    layer,x,u = layer_of(),rand(8, 6),rand(8, 6, seed=2)
    ts = [x, *tensors_of(layer)]
    want = [t.clone() for t in grads(layer, [x], u, ts)]
    layer(x).g = u
    layer.backward() # without clearing
    same([t.g for t in ts], [2*t for t in want])
    layer.zero_grad()
    layer(x).g = u
    layer.backward()
    same([t.g for t in ts], want)

@pytest.mark.parametrize('rows', [None, 3])
def test_nothing_of_an_earlier_call_is_used(rows):
    layer = layer_of(rows=rows)
    grads(layer, [rand(4, 6)], rand(4, 6), [])
    for k in ('w_qkv', 'b_qkv', 'w_out', 'b_out'): setattr(layer, k, getattr(layer, k) + 1.)
    x,u,ts = rand(8, 6, seed=1),rand(8, 6, seed=2),tensors_of(layer)
    same(grads(layer, [x], u, [x, *ts]), autograd_grad(lambda *o: (library_of(layer)(*o)*u).sum(), x, *ts))

def test_layer_with_another_length():
    layer,x = layer_of(),rand(8, 6)
    layer.block = 2
    same([layer(x)], [library_of(layer)(x, *tensors_of(layer))])

def test_layer_refuses_what_does_not_fit():
    layer = layer_of()
    args = dict(w_qkv=layer.w_qkv, b_qkv=layer.b_qkv, w_out=layer.w_out, b_out=layer.b_out, n_head=2, block=4)
    for wrong,words in ((dict(w_qkv=rand(6, 12)), r'w_qkv has shape \(6, 12\), expected \(6, 18\)'),
                        (dict(w_qkv=rand(18, 6)), 'w_qkv has shape'), (dict(b_qkv=rand(6)), 'b_qkv has shape'),
                        (dict(w_out=rand(6, 4)), 'w_out has shape'), (dict(b_out=rand(18)), 'b_out has shape'),
                        (dict(w_out=rand(())), 'w_out has shape'), (dict(n_head=4), 'n_head=4 heads cannot share'),
                        (dict(n_head=0), 'n_head is 0'), (dict(block=0), 'block is 0'), (dict(rows=0), 'rows is 0'),
                        (dict(n_head=2.), 'n_head is a float'), (dict(rows='all'), 'rows is a str'),
                        (dict(b_qkv=1.), 'b_qkv is a float'), (dict(w_qkv=None), 'w_qkv is a NoneType'),
                        (dict(w_qkv=layer.w_qkv.float()), 'dtypes differ')):
        with pytest.raises((TypeError, ValueError), match=words): CausalSelfAttention(**args | wrong)
    for x,words in ((rand(7, 6), 'a multiple of block rows'), (rand(8, 5), 'do not fit'),
                    (rand(8, 6).float(), 'dtypes differ'), (rand(2, 4, 6), 'do not fit'),
                    (tokens(8, 6), 'floating-point')):
        with pytest.raises((TypeError, ValueError), match=words): layer(x)
        with pytest.raises(RuntimeError, match='backward before forward'): layer.backward()

def test_backward_without_an_upstream_gradient_is_refused():
    for layer,args in ((layer_of(), [rand(8, 6)]), (layer_of(rows=2), [rand(8, 6)]),
                       (Embedding(rand(5, 3)), [tokens(4)]), (Softmax(), [rand(3, 4)]),
                       (CausalAttentionInBlocks(2), [rand(3, 2)]*3)):
        layer(*args)
        with pytest.raises(RuntimeError, match='has no gradient'): layer.backward()

def test_changes_after_the_forward_pass_are_refused():
    for what in ('weights', 'w_qkv', 'merged', 'qkv'):
        layer = layer_of()
        layer(rand(8, 6)).g = rand(8, 6)
        (layer.attend.weights.out if what == 'weights' else getattr(layer, what)).mul_(2.)
        with pytest.raises(RuntimeError, match='changed in place'): layer.backward()

def test_names():
    assert repr(layer_of()) == 'CausalSelfAttention(6, n_head=2, block=4)' and repr(Softmax()) == 'Softmax()'
    assert repr(Embedding(rand(5, 3))) == 'Embedding(5x3)' and repr(Product(rand(5, 3))) == 'Product(5->3)'


# In a model: everywhere that `Lin` works

VOCAB,BLOCK,WIDTH = 7,4,6
def batch(n=3): return tokens(n, BLOCK, vocab=VOCAB, seed=5), tokens(n, BLOCK, vocab=VOCAB, seed=6)

@pytest.mark.parametrize('n', [1, 3])
@pytest.mark.parametrize('bias', [True, False])
def test_a_gpt_with_attention_in_blocks_has_the_gradients_of_torch(n, bias):
    model,(ids,targ) = gpt(VOCAB, BLOCK, 2, 2, WIDTH, bias, dtype=torch.float64),batch(n)
    for i,p in enumerate(model.params): p += rand(*p.shape, seed=i)/2
    for l in model.layers[2:-2:2]: l.layers[1].attend = CausalAttentionInBlocks(3)
    for _ in range(2): # the second pass clears what the first one left
        loss = model(ids, targ)
        model.backward()
    same([loss], [gpt_by_torch(model, ids, targ, *model.params)])
    wants = autograd_grad(lambda *ps: gpt_by_torch(model, ids, targ, *ps), *model.params)
    assert len(wants) == (28 if bias else 15)
    for p,want in zip(model.params, wants, strict=True):
        if len(p) == 3*WIDTH and p.ndim == 1: # that of the keys is zero: all scores of a row move together
            assert p.g[WIDTH:2*WIDTH].abs().max() < 1e-12
        check_grad(p.g, want, rtol=1e-10)

def test_compiled_step_is_right_with_two_layers_whose_parts_are_views():
    "What chunk or split makes is a view: the memory of what was split is not free before the last of them was read."
    ids,targ = batch(6)
    layers = [Embedding(rand(VOCAB, WIDTH)/2), layer_of(bias=False), layer_of(bias=False, seed=9),
              Lin(rand(WIDTH, VOCAB, seed=8)/2, rand(VOCAB, seed=7)/2)]
    model = Model.from_layers(layers, TokenLoss())
    compile_step(model, AdamW(model.params, .01), ids, targ)(ids, targ) # which compares it with the readable one

def test_viewer_shows_tokens_and_attention():
    model,(ids,targ) = Model.from_layers([Embedding(rand(VOCAB, WIDTH)), layer_of(), Lin(rand(WIDTH, VOCAB),
                                          rand(VOCAB))], TokenLoss()),batch(2)
    page = show_backward(model, ids, targ)._repr_html_()
    assert 'Embedding' in page and 'CausalSelfAttention' in page and 'wrong' not in page.split('</style>')[-1].lower()

def test_inside_torch():
    model,(ids,targ) = Model.from_layers([Embedding(rand(VOCAB, WIDTH)), Lin(rand(WIDTH, VOCAB), rand(VOCAB))],
                                         TokenLoss()),batch(2)
    net = as_torch(model)
    net(ids, targ).backward()
    model(ids, targ); model.backward()
    same([p.grad for p in net.parameters()], [p.g for p in model.params])


# The doctor

@pytest.mark.parametrize('make, args', [
    (lambda: Embedding(rand(5, 3)), lambda: [tokens(2, 3)]), (Softmax, lambda: [rand(4, 5)]),
    (CausalAttention, lambda: [rand(2, 4, 3, seed=i) for i in range(3)]),
    (lambda: CausalAttentionInBlocks(3), lambda: [rand(2, 4, 3, seed=i) for i in range(3)]),
    (layer_of, lambda: [rand(8, 6)]), (partial(layer_of, rows=3, bias=False), lambda: [rand(8, 6)])])
def test_doctor_finds_the_layers_right(make, args):
    assert {row.verdict for row in check_layer(make(), *args()).rows} == {'right'}

def first(layer, *args):
    "What the doctor says of the first wrong gradient: whose it is, and the cause."
    row = check_layer(layer, *args, raise_exception=False).first
    return row.name, row.diagnosis.cause

def made(forward, backward, *own):
    class Layer(Op):
        rule,uses = Rule(forward, backward),tuple(f'p{i}' for i in range(len(own)))
    layer = Layer()
    for i,t in enumerate(own): setattr(layer, f'p{i}', t)
    return layer

def loses(g, out, ids, w):
    dw = torch.zeros_like(w)
    dw[ids] += g
    return None, dw
def low(g, out, ids, w): return None, torch.zeros_like(w).float().index_add(0, ids, g.float()).double()

def test_doctor_names_faults_of_the_embedding():
    ids,w = torch.tensor([2, 0, 2, 1, 2]),rand(4, 3)
    assert first(made(embed, loses, w), ids) == ('p0', 'use lost')
    assert first(made(embed, low, w), ids) == ('p0', 'dtype')

@pytest.mark.parametrize('backward, cause', [
    (lambda g, p, x: p*g, 'term missing'), (lambda g, p, x: g*p*(1 - p), 'term missing'),
    (lambda g, p, x: p*(g - (g*p).sum(0)), 'sum missing')])
def test_doctor_names_faults_of_the_softmax(backward, cause):
    assert first(made(softmax, backward), rand(5, 5))[1] == cause

@pytest.mark.parametrize('power', [.5, -.5])
def test_doctor_names_a_forgotten_or_repeated_root(power):
    def scaled(g, out, q, k, v, mask):
        dq,dk,dv,_ = attention_rule.backward(g, out, q, k, v, mask)
        return dq*3**power, dk*3**power, dv, None
    layer,args = made(attention, scaled),(rand(2, 5, 3), rand(2, 5, 3, seed=1), rand(2, 5, 4, seed=2), causal(5))
    assert first(layer, *args)[1] == 'scaled'

class NotTransposed(CausalSelfAttention):
    def bwd(self, out, x):
        lin_rule.add_grads(out, self.merged, self.w_out, self.b_out)
        add_grad(self.attend.out, self.merged.g.reshape(self.attend.out.shape))
        self.attend.backward()
        add_grad(self.qkv, merge_heads(torch.cat([t.g for t in self.attend.args], 1)))
        lin_rule.add_grads(self.qkv, x, self.w_qkv, self.b_qkv)

class OfColumns(CausalSelfAttention):
    def bwd(self, out, x):
        super().bwd(out, x)
        self.b_out.g = out.g.sum(1)

def test_doctor_names_heads_that_are_not_transposed_and_a_sum_over_the_wrong_axis():
    args = vars(layer_of(4))
    ps = [args[k] for k in ('w_qkv', 'b_qkv', 'w_out', 'b_out', 'n_head', 'block')]
    name,cause = first(NotTransposed(*ps), rand(8, 4))
    assert 'CausalAttention' in name and cause == 'transposed'
    assert first(OfColumns(*ps), rand(4, 4)) == ('b_out', 'sum missing')
