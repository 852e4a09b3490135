"Parameters and settings that are exchanged between two calls: the second goes by what stands there then."
import pytest, torch
from fb_pass.attention import CausalSelfAttention
from fb_pass.checks import check_grad
from fb_pass.training import AdamW

def rand(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))

@pytest.mark.parametrize('bias', [False, True])
def test_attention_takes_the_matrices_that_it_has_now(bias):
    def parameters(seed):
        shapes = (4, 12), (12,), (4, 4), (4,)
        return [None if len(s) < 2 and not bias else rand(*s, seed=seed + i) for i,s in enumerate(shapes)]
    x,u = rand(6, 4),rand(6, 4, seed=9)
    def grads(layer):
        layer.zero_grad()
        x.g = None
        layer(x).g = u
        layer.backward()
        return [x.g, *(p.g for p in layer.params)]
    layer = CausalSelfAttention(*parameters(1), n_head=2, block=3)
    grads(layer)
    layer.w_qkv,layer.b_qkv,layer.w_out,layer.b_out = parameters(20)
    for got,want in zip(grads(layer), grads(CausalSelfAttention(*parameters(20), n_head=2, block=3)), strict=True):
        check_grad(got, want)

def test_adamw_takes_the_betas_that_it_has_now():
    p,q = (torch.ones(3, dtype=torch.float64) for _ in range(2))
    one,other = AdamW([p], .1),AdamW([q], .1)
    for opt,t in ((one, p), (other, q)): t.g = torch.tensor([1., -2., 3.], dtype=torch.float64); opt.step()
    p.g,q.g,other.betas = -p.g,-q.g,(.5, .6)
    one.step(); other.step()
    assert (p - q).abs().min() > 1e-3

def test_a_subclass_of_adamw_may_spare_parameters_the_decay():
    class Matrices(AdamW):
        def decay(self, p): return self.weight_decay if p.ndim > 1 else 0.
    ps = [torch.ones(2, 2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)]
    for p in ps: p.g = torch.zeros_like(p)
    Matrices(ps, .1, weight_decay=.5).step()
    assert (ps[0] == .95).all() and (ps[1] == 1).all()
