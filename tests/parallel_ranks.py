"What the processes of tests/test_parallel.py do: imported by those that Python starts, run by torchrun as a script."
import json, math, os, signal, sys, time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from fb_pass.activations import Dropout
from fb_pass.datasets import get_data
from fb_pass.gpt import gpt
from fb_pass.library import as_torch
from fb_pass.modules import Lin, Model, Module, Relu
from fb_pass.parallel import accumulate, average_grads, fit_parallel
from fb_pass.training import SGD, AdamW, CrossEntropy, mlp
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

f64,TIMEOUT = torch.float64,60
SHARDS = {2: [(4, 4), (7, 1), (8, 0), (0, 8)], 3: [(3, 3, 2), (1, 6, 1), (5, 0, 3), (0, 0, 8)],
          4: [(2, 2, 2, 2), (1, 2, 4, 1), (7, 0, 1, 0), (0, 8, 0, 0)]}
OPTIMIZERS = {'SGD': lambda ps: SGD(ps, .1, momentum=.9, weight_decay=1e-4), 'AdamW': lambda ps: AdamW(ps, 1e-3)}

def rand(*shape, seed=0): return torch.randn(*shape, dtype=f64, generator=torch.Generator().manual_seed(seed))
def labels(n): return torch.arange(n) % 3

def small(seed=1):
    "A network whose biases are not zero."
    model = mlp(6, 5, 3, generator=torch.Generator().manual_seed(seed), dtype=f64)
    for i,p in enumerate(model.params[1::2]): p.copy_(rand(*p.shape, seed=i))
    return model

def writer(block=5):
    "A small GPT, whose biases are not zero."
    model = gpt(7, block, 2, 2, 8, bias=True, generator=torch.Generator().manual_seed(1), dtype=f64)
    for i,p in enumerate(p for p in model.params if p.ndim < 2): p.add_(rand(*p.shape, seed=i))
    return model

def texts(n, block=5):
    ts = torch.randint(0, 7, (2, n, block), generator=torch.Generator().manual_seed(2))
    return *ts,

KINDS = {'mlp': (small, (rand(8, 6), labels(8))), 'gpt': (writer, texts(8))} # a model, and 8 rows for it

def digits():
    "The mlp of room 09, and so many digits that the last batch of 101 has 2 rows."
    x,y,_,_ = get_data(source='sample')
    return mlp(784, 50, 10, generator=torch.Generator().manual_seed(42), dtype=f64), x[:1012].double(), y[:1012]

def writing():
    "The GPT, and so many windows that the last batch of 5 has 2."
    return writer(), *texts(52)

TRAININGS = {'mlp': (digits, 5, 101), 'gpt': (writing, 5, 5)} # data, epochs, rows of a batch: 55 steps

def off(got, want):
    "The largest difference, as a share of the largest entry."
    found = ((got - want).abs().max()/want.abs().max()).item()
    assert math.isfinite(found)
    return found

def raised(f, *args, **kwargs):
    try: f(*args, **kwargs)
    except Exception as e:
        assert e.__suppress_context__ or not e.__context__, 'a second error is shown above it'
        assert not e.__cause__
        return type(e).__name__, str(e)

def gradients(kind, rows):
    "How far the gradients that this rank has after the exchange are off from those of all rows in one process."
    make,(x,y) = KINDS[kind]
    model,whole = make(),make()
    whole(x, y); whole.backward()
    xb,yb = [t.split(rows)[dist.get_rank()] for t in (x, y)]
    if len(xb): model(xb, yb); model.backward()
    elif rows[0]: # what an empty rank has in .g does not count
        for p in model.params: p.g = torch.full_like(p, torch.nan)
    average_grads(model.params, len(xb))
    return max(off(p.g, q.g) for p,q in zip(model.params, whole.params))

def micro_batches(kind, rows):
    "The same where each rank accumulates its rows in micro-batches of 2."
    make,(x,y) = KINDS[kind]
    model,whole = make(),make()
    whole(x, y); whole.backward()
    xb,yb = [t.split(rows)[dist.get_rank()] for t in (x, y)]
    if len(xb): accumulate(model, zip(xb.split(2), yb.split(2)))
    average_grads(model.params, len(xb))
    return max(off(p.g, q.g) for p,q in zip(model.params, whole.params))

def as_ddp(kind):
    "Ours and torch's DistributedDataParallel around the same model: gradients, and weights after 10 steps."
    ranks,rank = dist.get_world_size(),dist.get_rank()
    make,batch = KINDS[kind]
    x,y = [t.chunk(ranks)[rank] for t in batch]
    model = make()
    net = DistributedDataParallel(as_torch(make()))
    ours,theirs = SGD(model.params, .1, momentum=.9),torch.optim.SGD(net.parameters(), .1, momentum=.9)
    grads = []
    for _ in range(10):
        model(x, y); model.backward()
        average_grads(model.params, len(x))
        theirs.zero_grad()
        net(x, y).backward()
        grads.append(max(off(p.g, q.grad) for p,q in zip(model.params, net.parameters(), strict=True)))
        ours.step(); theirs.step()
    return max(grads), max(off(p, q.detach()) for p,q in zip(model.params, net.parameters()))

def sharded(kind):
    """Ours in torch with an optimizer whose state is divided among the ranks, against AdamW on all rows in one process:
    weights after 10 steps; and how many numbers of state this rank has, as a share of all."""
    make,batch = KINDS[kind]
    x,y = [t.chunk(dist.get_world_size())[dist.get_rank()] for t in batch]
    model = make()
    net = DistributedDataParallel(as_torch(make()))
    theirs = ZeroRedundancyOptimizer(net.parameters(), torch.optim.AdamW, lr=1e-3)
    ours = AdamW(model.params, 1e-3)
    for _ in range(10):
        model(*batch); model.backward(); ours.step()
        theirs.zero_grad()
        net(x, y).backward()
        theirs.step()
    held = sum(t.numel() for state in theirs.optim.state.values() for t in state.values() if t.ndim)
    return max(off(q.detach(), p) for p,q in zip(model.params, net.parameters())), held/sum(
        2*p.numel() for p in model.params)

def wrong_calls():
    "Errors that all ranks must raise alike; after them the group still works."
    rank,model = dist.get_rank(),small()
    for p in model.params: p.g = torch.ones_like(p)
    other = torch.zeros(3 + rank); other.g = torch.zeros_like(other)
    long = torch.zeros(3, dtype=[torch.float32, f64][rank == 1]); long.g = torch.zeros_like(long)
    x = rand(9, 6)
    x[8] = torch.nan
    def fit(model, x, **kwargs): return fit_parallel(model, SGD(model.params, .1), x, labels(len(x)), 1, 3, **kwargs)
    found = dict(shapes=raised(average_grads, [other], 1), dtypes=raised(average_grads, [long], 1),
                 order=raised(average_grads, model.params[::1 if rank else -1], 1),
                 nothing=raised(average_grads, model.params, 0), seed=raised(fit, model, x[:8], seed=rank),
                 length=raised(fit, model, x[:7 + rank]), nan=raised(fit, model, x))
    first = dist.new_group([0])
    member = raised(average_grads, model.params, 1, first)
    assert not member if rank == 0 else 'average_grads: this rank is no member' in member[1]
    average_grads(model.params, 1)
    return found

def mixed():
    "Parameters of two dtypes, one of them a view with other strides, one without axes."
    rank = dist.get_rank()
    ps = [torch.zeros(2, 3, dtype=f64).t(), torch.zeros((), dtype=torch.float32), torch.zeros(4, dtype=f64)]
    for i,p in enumerate(ps): p.g = torch.full_like(p, 10.**i*(rank + 1))
    average_grads(ps, rank + 1)
    want = sum((r + 1)**2 for r in range(dist.get_world_size()))/sum(r + 1 for r in range(dist.get_world_size()))
    assert all(p.g.shape == p.shape and p.g.dtype == p.dtype for p in ps)
    return max((p.g/10.**i - want).abs().max().item() for i,p in enumerate(ps))

def from_rank_0():
    "Weights that differ at the start: those of rank 0 count. How far the others are off at the end."
    model = small(seed=dist.get_rank())
    fit_parallel(model, SGD(model.params, .1), rand(8, 6), labels(8), 2, 3)
    want = small(seed=0)
    for p,q in zip(model.params, want.params): dist.broadcast(q.copy_(p), 0)
    return max(off(p, q) for p,q in zip(model.params, want.params))

def silence(seconds=1.5):
    "Rank 1 does not answer in step 2. What the others raise, and after how long."
    rank,model = dist.get_rank(),small()
    def rate(step):
        if step == 2 and rank == 1: time.sleep(2*seconds)
        return .1
    began = time.monotonic()
    found = raised(fit_parallel, model, SGD(model.params, .1), rand(8, 6), labels(8), 2, 3, schedule=rate)
    seconds = time.monotonic() - began
    for p in model.params: p.g = torch.ones_like(p)
    assert raised(average_grads, model.params, 1)[0] == 'ConnectionError'
    return found, seconds

def all_cases(rank, folder):
    "What a spawned process does, in groups of 2, 3 and 4 one after the other; it writes down what it found."
    torch.set_num_threads(1)
    found = {}
    for ranks in 2, 3, 4:
        if rank >= ranks: continue
        dist.init_process_group('gloo', store=dist.FileStore(f'{folder}/{ranks}', ranks), rank=rank, world_size=ranks,
                                timeout=timedelta(seconds=TIMEOUT))
        here = found[ranks] = dict(mixed=mixed(), wrong=wrong_calls(), start=from_rank_0())
        for kind,(data,epochs,bs) in TRAININGS.items():
            if ranks != 3: # 8 rows cannot be shared out evenly among three, as DDP expects
                here[f'ddp {kind}'],here[f'sharded {kind}'] = as_ddp(kind),sharded(kind)
            for rows in SHARDS[ranks]: here[f'{kind} {rows}'] = gradients(kind, rows), micro_batches(kind, rows)
            for name,make in OPTIMIZERS.items():
                model,x,y = data()
                here[f'losses {kind} {name}'] = fit_parallel(model, make(model.params), x, y, epochs, bs, seed=3)
                torch.save([*model.params], f'{folder}/{ranks}-{kind}-{name}-{rank}.pt')
        dist.destroy_process_group()
    if rank < 2:
        dist.init_process_group('gloo', store=dist.FileStore(f'{folder}/end', 2), rank=rank, world_size=2,
                                timeout=timedelta(seconds=1.5))
        found['silence'] = silence()
        dist.destroy_process_group()
    Path(f'{folder}/{rank}.json').write_text(json.dumps(found))

class Deadly(Module):
    "A layer that does nothing; in its backward, call number `at`, rank 1 is killed."
    def __init__(self, at): self.at,self.calls = at,0
    def forward(self, x): return x.clone()
    def bwd(self, out, x):
        self.calls += 1
        if self.calls == self.at and os.environ['RANK'] == '1': os.kill(os.getpid(), signal.SIGKILL)
        x.g = out.g

def run(path=None, at=0):
    "A run of 20 steps of a model with dropout, each rank with masks of its own; losses and weights."
    gen = torch.Generator().manual_seed(7 + int(os.environ['RANK']))
    ws = [rand(6, 8, seed=1), rand(8, seed=2), rand(8, 3, seed=3), rand(3, seed=4)]
    model = Model.from_layers([Lin(*ws[:2]), Relu(), Dropout(.5, gen), Dropout(.1), Deadly(at), Lin(*ws[2:])],
                              CrossEntropy())
    torch.manual_seed(0)
    losses = fit_parallel(model, AdamW(model.params), rand(23, 6), labels(23), 5, 6, path=path, every=5,
                          schedule=lambda step: .01/(1 + step), timeout=TIMEOUT)
    return torch.tensor(losses, dtype=f64), model.params

def go_on(rank, folder):
    "What three spawned processes do with the checkpoint of a run that was killed; and how far another is off."
    torch.set_num_threads(1)
    os.environ['RANK'] = str(rank)
    dist.init_process_group('gloo', store=dist.FileStore(f'{folder}/store', 3), rank=rank, world_size=3,
                            timeout=timedelta(seconds=TIMEOUT))
    (losses,params),(whole,others) = run(f'{folder}/run.safetensors'),run()
    dist.destroy_process_group()
    Path(f'{folder}/{rank}.json').write_text(json.dumps(max(off(p, q) for p,q in zip([losses, *params],
                                                                                     [whole, *others]))))

if __name__ == '__main__': # by torchrun
    print(f'pid {os.getpid()}', flush=True)
    run(sys.argv[1], at=12)
