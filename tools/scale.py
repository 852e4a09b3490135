"Time, bytes and efficiency of 1, 2 and 4 processes, ours beside DistributedDataParallel, into results/scale.json."
import json, os, statistics, sys, time
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import torch, torch.distributed as dist, torch.multiprocessing as mp
from accuracy import console, machine, root
from fastcore.script import call_parse
from fb_pass.gpt import gpt
from fb_pass.library import as_torch, to_torch
from fb_pass.parallel import average_grads
from fb_pass.training import SGD, mlp
from gpt import to_torch as gpt_to_torch
from rich.table import Table
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

LR,GPT = .01,dict(vocab=65, block=32, n_layer=2, n_head=4, width=128)
COUNTER = Path('/sys/class/net/lo/statistics/tx_bytes') # what processes of this machine have sent to each other

def gen(): return torch.Generator().manual_seed(0)

def digits(n): return torch.randn(n, 784, generator=gen()), torch.randint(0, 10, (n,), generator=gen())
def tokens(n): return *torch.randint(0, GPT['vocab'], (2, n, GPT['block']), generator=gen()),
def new_mlp(): return mlp(784, 512, 512, 10, generator=gen())
def new_gpt(): return gpt(**GPT, generator=gen())

class Loss(torch.nn.Module):
    "A network of torch's layers and its loss."
    def __init__(self, net):
        super().__init__()
        self.net = net
    def forward(self, x, targ): return cross_entropy(self.net(x), targ)

KINDS = {'mlp 784-512-512-10, 512 rows': (new_mlp, digits, 512, lambda m: Loss(to_torch(m))),
         'gpt of 2 blocks, 32 windows': (new_gpt, tokens, 32, lambda m: gpt_to_torch(m, GPT['n_layer'], GPT['n_head']))}

def ours(model, x, y, exchange=True):
    "A step by hand, and its parameters in torch's order."
    opt = SGD(model.params, LR)
    def step():
        model(x, y)
        model.backward()
        if exchange: average_grads(model.params, len(x))
        opt.step()
    return step

def theirs(net, x, y):
    "A step of torch's optimizer on a network in DistributedDataParallel, or on one alone."
    if dist.get_world_size() > 1: net = DistributedDataParallel(net)
    opt = torch.optim.SGD(net.parameters(), LR)
    def step():
        opt.zero_grad()
        net(x, y).backward()
        opt.step()
    return step

def contenders(kind, rank, ranks):
    "By name a step on this rank's share of the rows, and the parameters that it changes."
    make,data,n,by_torch = KINDS[kind]
    x,y = [t.tensor_split(ranks)[rank] for t in data(n)]
    models = [make() for _ in range(3)]
    inside,net = as_torch(models[1]),by_torch(models[1])
    return {'by hand': (ours(models[0], x, y, ranks > 1), models[0].params),
            'by hand, in DDP': (theirs(inside, x, y), [*inside.parameters()]),
            'torch in DDP': (theirs(net, x, y), [*net.parameters()]),
            'by hand, without exchange': (ours(models[2], x, y, False), None)}

def timed(step, steps):
    "Seconds of a step, from when all ranks begin until all are done."
    dist.barrier()
    begin = time.perf_counter()
    for _ in range(steps): step()
    dist.barrier()
    return (time.perf_counter() - begin)/steps

def sent(step, steps):
    "Bytes that all ranks together have sent for a step; None where the system does not count them."
    if not COUNTER.exists(): return None
    dist.barrier()
    begin = int(COUNTER.read_text())
    dist.barrier()
    for _ in range(steps): step()
    dist.barrier()
    return (int(COUNTER.read_text()) - begin)/steps

def same(all_params):
    "Refuse to time what does not compute the same: the sums of the squares of all parameters."
    sums = [sum(p.detach().double().pow(2).sum().item() for p in ps) for ps in all_params]
    if max(sums) - min(sums) > 1e-4*max(sums): sys.exit(f'they do not compute the same: {sums}')

def run(rank, ranks, folder, rounds):
    "What a process does."
    torch.set_num_threads(1)
    dist.init_process_group('gloo', store=dist.FileStore(f'{folder}/store{ranks}', ranks), rank=rank, world_size=ranks,
                            timeout=timedelta(seconds=120))
    found = {}
    for kind,(make,*_) in KINDS.items():
        steps = contenders(kind, rank, ranks)
        for step,_ in steps.values():
            for _ in range(3): step()
        same([ps for _,ps in steps.values() if ps is not None])
        times = {k: [] for k in steps}
        for _ in range(rounds):
            for k,(step,_) in steps.items(): times[k].append(timed(step, 5))
        found[kind] = dict(parameters=4*sum(p.numel() for p in make().params),
                           seconds={k: statistics.median(ts) for k,ts in times.items()},
                           sent={k: sent(step, 10) for k,(step,_) in steps.items()} if ranks > 1 else {})
    dist.destroy_process_group()
    if rank == 0: Path(f'{folder}/{ranks}.json').write_text(json.dumps(found))

def alone(rounds):
    "Seconds of a step of one process with fewer and fewer rows, and of the update in it."
    found = {}
    for kind,(make,data,n,_) in KINDS.items():
        sizes = [n >> i for i in range(n.bit_length())]
        steps = {m: ours(make(), *data(m), False) for m in sizes}
        model = make()
        model(*data(1)); model.backward()
        steps['update'] = SGD(model.params, LR).step
        times = {k: [] for k in steps}
        for _ in range(rounds):
            for k,step in steps.items():
                begin = time.perf_counter()
                for _ in range(3): step()
                times[k].append((time.perf_counter() - begin)/3)
        found[kind] = {str(k): statistics.median(ts) for k,ts in times.items()}
    return found

@call_parse
def main(
    rounds:int=21, # Rounds in which all take turns; the median counts
    ranks:str='1 2 4', # Numbers of processes
    out:str=str(root/'results'/'scale.json'), # Where to keep the results
):
    "The same batch on more and more processes of this machine: time of a step, bytes sent, beside torch's."
    torch.set_num_threads(1)
    sizes,found = [int(o) for o in ranks.split()],{}
    with TemporaryDirectory() as folder:
        for r in sizes:
            console.print(f'{r} processes')
            mp.spawn(run, (r, folder, rounds), nprocs=r)
            found[str(r)] = json.loads(Path(f'{folder}/{r}.json').read_text())
    command = 'make scale' + (f" SCALE='{' '.join(sys.argv[1:])}'" if sys.argv[1:] else '')
    result = dict(command=command, machine=machine(), cores=os.cpu_count(), ranks=found, alone=alone(rounds))
    Path(out).parent.mkdir(exist_ok=True)
    Path(out).write_text(json.dumps(result, indent=1) + '\n', encoding='utf-8')
    for kind in KINDS:
        table = Table('processes', *found[str(sizes[0])][kind]['seconds'], 'bytes sent, of 2(R-1) times the parameters',
                      title=f'{kind}: ms of a step, speed-up by hand')
        for r in sizes:
            row = found[str(r)][kind]
            base = found[str(sizes[0])][kind]['seconds']['by hand']
            bytes_ = row['sent'].get('by hand')
            table.add_row(str(r), *(f'{1000*s:.2f}' for s in row['seconds'].values()), '' if r == 1 else
                          'not counted here' if bytes_ is None else f"{bytes_/(2*(r - 1)*row['parameters']):.3f}")
            console.print(f"{kind}, {r}: {base/row['seconds']['by hand']:.2f} times as fast as one process, "
                          f"{row['seconds']['by hand']/row['seconds']['torch in DDP']:.2f} of DDP's time")
        console.print(table)
