"Train two networks with several seeds, by hand and by torch, and keep what they reach in results/accuracy.json."
import json, math, os, platform, statistics, sys
from itertools import product
from pathlib import Path

import torch, torch.nn.functional as F
from fastcore.script import call_parse
from fb_pass.datasets import get_data
from fb_pass.library import to_torch
from fb_pass.normalization import normalize
from fb_pass.training import AdamW, accuracy, dataloader, fit, mlp, one_cycle
from rich.console import Console
from rich.progress import track

root = Path(__file__).resolve().parent.parent
console = Console(highlight=False, markup=False, soft_wrap=True)
networks = (784, 50, 10), (784, 256, 10)
settings = dict(bs=128, lr_max=0.005, weight_decay=0.3)

def new(sizes, seed, dtype): return mlp(*sizes, generator=torch.Generator().manual_seed(seed), dtype=dtype)

def loaders(data, seed, bs):
    return dataloader(*data[:2], bs, torch.Generator().manual_seed(seed)), dataloader(*data[2:], 1000)

def scores(net, x): return torch.cat([net(xb) for xb in x.split(1000)])

def by_hand(model, data, seed, epochs, bs, lr_max, weight_decay, watched=lambda dl: dl, **how):
    "Validation accuracy after training with the gradients and the optimizer of ours; `watched` wraps the batches."
    train_dl, valid_dl = loaders(data, seed, bs)
    opt = AdamW(model.params, lr_max, weight_decay=weight_decay)
    schedule = one_cycle(lr_max, epochs*len(train_dl))
    hist = fit(model, opt, watched(train_dl), valid_dl, epochs, schedule, stats_every=0, progress=False, **how)
    return hist.epochs[-1]['accuracy']

def by_torch(net, data, seed, epochs, bs, lr_max, weight_decay, watched=lambda dl: dl):
    "The same with nothing but torch's layers, autograd, optimizer and schedule."
    train_dl, _ = loaders(data, seed, bs)
    opt = torch.optim.AdamW(net.parameters(), lr_max, weight_decay=weight_decay)
    steps = epochs*len(train_dl)
    schedule = torch.optim.lr_scheduler.OneCycleLR(opt, lr_max, total_steps=steps, cycle_momentum=False)
    for _ in range(epochs):
        for xb, yb in watched(train_dl):
            F.cross_entropy(net(xb), yb).backward()
            opt.step()
            opt.zero_grad()
            schedule.step()
    with torch.no_grad(): return accuracy(scores(net, data[2]), data[3])

def machine():
    cores = f'{os.cpu_count()} cores of {platform.machine()}, {torch.get_num_threads()} of them used'
    return f'{cores}, torch {torch.__version__}'

def stored(path, start):
    "What an earlier run with the same settings has stored, to go on with, or nothing."
    if not path.exists(): return start
    found = json.loads(path.read_text(encoding='utf-8'))
    return found if all(found.get(k) == v for k,v in start.items() if k not in ('by_hand', 'torch')) else start

def line(row):
    "A row of the table: mean and standard deviation over the seeds."
    def words(accs): return f'{statistics.mean(accs):.2%} ± {statistics.stdev(accs) if len(accs) > 1 else math.nan:.2%}'
    reached = f"by hand {words(row['by_hand'])}   torch {words(row['torch'])}"
    return f"{row['network']:10}  {row['dtype']}  {len(row['by_hand'])} seeds   {reached}"

@call_parse
def main(
    seeds:int=5, # Runs of each network, with the seeds 0, 1, 2, ...
    epochs:int=15, # How often each run goes through the training digits
    threads:int=1, # Threads of torch; the order of its sums, and so the last bits, depend on them
    out:str=str(root/'results'/'accuracy.json'), # Where to keep the results
):
    "Accuracy on the 10,000 validation digits over seeds, by hand and by torch, from equal weights, on equal batches."
    torch.set_num_threads(threads)
    x_train, y_train, x_valid, y_valid = get_data()
    if len(x_train) != 50_000: sys.exit('this needs all of MNIST; set FB_PASS_DATA to the folder that has it')
    mean, std = x_train.mean(), x_train.std()
    rows = {}
    todo = [*product((torch.float32, torch.float64), networks, range(seeds))]
    for dtype, sizes, seed in track(todo, 'runs', console=console, transient=True, disable=not console.is_terminal):
        data = normalize(x_train, mean, std).to(dtype), y_train, normalize(x_valid, mean, std).to(dtype), y_valid
        name, bits = '-'.join(map(str, sizes)), str(dtype).split('.')[1]
        row = rows.setdefault((name, bits), dict(network=name, dtype=bits, by_hand=[], torch=[]))
        row['by_hand'].append(by_hand(new(sizes, seed, dtype), data, seed, epochs, **settings))
        row['torch'].append(by_torch(to_torch(new(sizes, seed, dtype)), data, seed, epochs, **settings))
        reached = f"by hand {row['by_hand'][-1]:.2%}   torch {row['torch'][-1]:.2%}"
        console.print(f'{name:10}  {bits}  seed {seed}   {reached}')
    kept = dict(command='make accuracy', machine=machine(), epochs=epochs, **settings,
                rows=[*rows.values()])
    Path(out).parent.mkdir(exist_ok=True)
    Path(out).write_text(json.dumps(kept, indent=1) + '\n', encoding='utf-8')
    print('', *map(line, rows.values()), sep='\n')
