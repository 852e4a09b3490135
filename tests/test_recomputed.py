"Recomputed layers: the same masks, nothing kept, and what is refused."
import copy

import pytest, torch
from fb_pass.activations import Dropout, Gelu
from fb_pass.attention import Product
from fb_pass.checks import check_grad, peak_memory
from fb_pass.gpt import Recomputed, Residual, gpt
from fb_pass.inputs import recording
from fb_pass.modules import Lin, Relu
from fb_pass.norms import BatchNorm
from test_gpt import batch, gen, grads, ids, rand, small

def test_recomputation_draws_the_same_masks():
    for own in (None, gen(4)):
        kept = Residual(Product(rand(4, 4)), Dropout(.5, own), Gelu(), Dropout(.3, own))
        again = Recomputed(copy.deepcopy(kept)) if own else Recomputed(Residual(*kept.layers))
        x,u = rand(6, 4),rand(6, 4, seed=1)
        for i in range(3):
            torch.manual_seed(i)
            want = grads(kept, [x], u, [x, *kept.params])
            after = torch.get_rng_state()
            torch.manual_seed(i)
            got = grads(again, [x], u, [x, *again.params])
            for g,w in zip(got, want, strict=True): check_grad(g, w)
            assert torch.equal(torch.get_rng_state(), after) # as many draws as without

def test_recomputation_with_another_mask_would_be_noticed():
    class Forgets(Recomputed):
        def generators(self): return []
    layer,x,u = Forgets(Dropout(.5)),rand(6, 4),rand(6, 4, seed=1)
    torch.manual_seed(0)
    got, = grads(layer, [x], u, [x])
    torch.manual_seed(0)
    want, = grads(Dropout(.5), [x], u, [x])
    with pytest.raises(AssertionError): check_grad(got, want)

def test_recomputed_layers_keep_nothing_and_can_go_back_twice():
    model,(tokens,targ) = small(recompute=True, dropout=.2),batch()
    model(tokens, targ)
    inner = model.layers[3].layers[0]
    assert inner.args is None and inner.out is None and inner.layers[1].attend.weights.out is None
    assert not hasattr(inner.layers[1], 'qkv')
    model.backward()
    first = [p.g for p in model.params]
    model.backward()
    for p,g in zip(model.params, first): check_grad(p.g, g)
    with pytest.raises(RuntimeError, match='backward before forward'): inner.backward()

def test_recomputation_needs_less_memory():
    def peak(**kw):
        model = gpt(20, block=32, n_layer=6, n_head=2, width=32, generator=gen(), **kw)
        x,y = ids(8, 32, vocab=20),ids(8, 32, vocab=20, seed=1)
        def run(): model(x, y); model.backward()
        return peak_memory(run)
    assert peak(recompute=True) < .5*peak()

def test_recomputed_refuses_buffers_and_what_is_no_layer():
    with pytest.raises(ValueError, match='running_mean is a buffer'): Recomputed(BatchNorm(rand(3), rand(3)))
    for bad in ([], [Relu]):
        with pytest.raises(TypeError, match='expected at least one layer'): Recomputed(*bad)

def test_a_layer_forgets_and_learns_again():
    layer,x = Residual(Lin(rand(3, 3), rand(3)), Relu()),rand(2, 3)
    layer(x).g = rand(2, 3)
    layer.forget()
    assert layer.args is layer.out is layer.layers[0].out is None
    with pytest.raises(RuntimeError, match='backward before forward'): layer.backward()
    assert len(layer.params) == 2
    layer(x).g = rand(2, 3)
    layer.backward()

def test_recomputation_draws_from_the_generator_that_a_layer_has_now():
    drop,x,u = Dropout(.5, gen(1)),rand(6, 4),rand(6, 4, seed=1)
    layer = Recomputed(drop)
    for seed in 2, 3:
        grads(layer, [x], u, [x])
        drop.generator = gen(seed)
        got, = grads(layer, [x], u, [x])
        check_grad(got, *grads(Dropout(.5, gen(seed)), [x], u, [x]))

def test_what_is_drawn_between_the_passes_is_not_drawn_again():
    layer,x = Recomputed(Dropout(.5)),rand(6, 4)
    layer(x).g = rand(6, 4, seed=1)
    torch.rand(3)
    state = torch.get_rng_state()
    layer.backward()
    assert torch.equal(torch.get_rng_state(), state)

def test_several_layers_go_back_in_reverse_order():
    x,u,w,v = rand(4, 3),rand(4, 3, seed=1),rand(3, 3, seed=2),rand(3, 3, seed=3)
    want = grads(Residual(Product(w), Gelu(), Product(v)), [x], u, [x, w, v])
    got = grads(Recomputed(Product(w), Gelu(), Product(v)), [x], u, [x, w, v])
    check_grad(got[0] + u, want[0])
    for g,o in zip(got[1:], want[1:]): check_grad(g, o)

def test_layers_run_once_in_each_direction_and_once_more():
    class Counts(Gelu):
        runs = 0
        def forward(self, x):
            type(self).runs += 1
            return super().forward(x)
    layer,x = Recomputed(Counts()),rand(2, 3)
    layer(x).g = rand(2, 3)
    layer.backward()
    assert Counts.runs == 2
    recording.on = True # then whoever records decides
    try:
        layer(x).g = rand(2, 3)
        layer.backward()
    finally: recording.on = False
    assert Counts.runs == 3

@pytest.mark.parametrize('layers', [1, 2, 3])
def test_who_records_decides_what_is_computed_again(monkeypatch, layers):
    "A compiler, for example: in a record all layers run once, with one mask, and the gradients are the same."
    x,u,ws = rand(4, 3),rand(4, 3, seed=1),[rand(3, 3, seed=i) for i in range(2, 2 + layers)]
    torch.manual_seed(0)
    kept = [Product(ws[0]), Dropout(.5), Gelu(), *map(Product, ws[1:])][:layers + 2]
    want = grads(Residual(*kept), [x], u, [x, *ws[:max(1, layers - 1)]])
    monkeypatch.setattr(recording, 'on', True, raising=False)
    torch.manual_seed(0)
    again = Recomputed(*kept)
    got = grads(again, [x], u, [x, *ws[:max(1, layers - 1)]])
    check_grad(got[0] + u, want[0])
    for g,w in zip(got[1:], want[1:]): check_grad(g, w)

def test_a_single_layer_in_a_record():
    x,u = rand(4, 3),rand(4, 3, seed=1)
    recording.on = True
    try: got, = grads(Recomputed(Gelu()), [x], u, [x])
    finally: recording.on = False
    check_grad(got, *grads(Gelu(), [x], u, [x]))
