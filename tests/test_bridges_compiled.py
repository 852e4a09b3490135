"Our layers and models inside torch, compiled, and as operators: in a file of their own, as compiling is slow."
import pytest, torch
from fb_pass.activations import Dropout
from fb_pass.bridges import as_torch, own_tensors, register_op
from fb_pass.checks import check_grad
from fb_pass.gpt import Residual
from fb_pass.modules import Model
from fb_pass.norms import BatchNorm
from fb_pass.training import CrossEntropy
from test_bridges import every_layer, ids, leaves, made, ours, rand, same, theirs, trained

@every_layer
@pytest.mark.parametrize('mode', [True, False])
def test_compiled_without_a_break(name, mode):
    layer,args = made(name, mode)
    net = as_torch(layer)
    assert net.training == mode or not any(hasattr(o, 'training') for o in (layer, *layer._below))
    torch._dynamo.reset()
    fast = torch.compile(net, fullgraph=True, backend='aot_eager')
    same(theirs(fast, args, trained(net)), ours(layer, args))
    for t,(_,b) in zip(net.buffers(), layer.named_buffers(), strict=True): assert torch.allclose(t, b, rtol=1e-12)

def test_compiled_follows_the_mode_and_draws_anew():
    layer,x = Residual(Dropout(.5)),torch.ones(50)
    torch._dynamo.reset()
    fast = torch.compile(as_torch(layer), fullgraph=True, backend='aot_eager')
    assert not torch.equal(fast(x), fast(x))
    fast.eval()
    assert torch.equal(fast(x), 2*x)
    fast.train()
    assert not torch.equal(fast(x), fast(x))

def test_running_statistics_move_when_compiled():
    twins = [as_torch(Model.from_layers([BatchNorm(rand(4), rand(4))], CrossEntropy())) for _ in range(2)]
    torch._dynamo.reset()
    fast = torch.compile(twins[0], fullgraph=True, backend='aot_eager')
    for i in range(3):
        for f in (fast, twins[1]): f(rand(6, 4, seed=i), ids(6, n=4)).backward()
    for a,b in zip(*(t.buffers() for t in twins)): check_grad(a, b)
    assert not torch.equal(twins[1].layers[0].running_mean, torch.zeros(4))
    fast.eval(); twins[1].eval()
    same([fast(rand(6, 4), ids(6, n=4)).detach()], [twins[1](rand(6, 4), ids(6, n=4)).detach()])

def test_compiled_by_inductor():
    layer,args = made('GPT')
    net = as_torch(layer)
    torch._dynamo.reset()
    same(theirs(torch.compile(net, fullgraph=True), args, trained(net)), ours(layer, args), rtol=1e-10)

@every_layer
def test_operator(name):
    layer,args = made(name, mode=False)
    op = register_op(layer, f"test_bridges::{''.join(c if c.isalnum() else '_' for c in name)}")
    own = [t.detach().clone().requires_grad_('running' not in k) for k,t in own_tensors(layer)]
    params = [t for t in own if t.requires_grad]
    assert {*torch.library.opcheck(op, (*leaves(args), *own)).values()} == {'SUCCESS'}
    for t in params: t.grad = None # which opcheck has left
    want = ours(layer, args)
    same(theirs(lambda *a: op(*a, *own), args, params), want)
