"Measure the hand-written training step against everybody else's, taking turns, into results/speed.json."
import json, math, os, platform, random, re, statistics, subprocess, sys, time
from collections import Counter
from functools import partial
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault('KINETO_LOG_LEVEL', '99') # the profiler would announce itself
import numpy as np
import torch, torch.nn.functional as F
from fastcore.script import call_parse
from fb_pass.backward import lin_rule, relu_rule
from fb_pass.bridges import to_function
from fb_pass.checks import peak_memory
from fb_pass.compiled import compile_step
from fb_pass.datasets import get_data
from fb_pass.doctor import check_layer
from fb_pass.gpt import encode, get_text, windows
from fb_pass.library import to_torch
from fb_pass.modules import Lin, Model, Mse, Relu
from fb_pass.normalization import normalize
from fb_pass.training import AdamW, SGD, dataloader, fit, mlp, one_cycle
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.autograd import gradcheck
from torch.profiler import ProfilerActivity, profile
from torch.utils.benchmark import Timer
from torch.utils.data import DataLoader, TensorDataset

import gpt
from contenders import CNN, GPT, STEPS

root = Path(__file__).resolve().parent.parent
console = Console(highlight=False, markup=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120)
SMALL = 784, 50, 10
REST = 0.1 # seconds
NETS = {'784-50-10, batch of 64': (SMALL, 64), '784-50-10, batch of 512': (SMALL, 512),
        'deeper, 784-50-50-50-50-10, batch of 64': ((784, 50, 50, 50, 50, 10), 64),
        'wider, 784-500-10, batch of 64': ((784, 500, 10), 64)}
LARGE = {'the convolutional network of room 13, batch of 64': CNN, 'the GPT of room 18, 12 windows of 64': GPT}
SWEEPS = {'batch': [(SMALL, n) for n in (16, 64, 256, 1024, 4096)],
          'width': [((784, h, 10), 64) for h in (16, 64, 256, 1024, 2048)],
          'depth': [((784, *[50]*d, 10), 64) for d in (1, 2, 4, 8, 16)]}
IN_SWEEPS = 'ours', 'ours, compile_step', 'torch eager', 'all matrix products'

def batch(data, n):
    "The first `n` digits."
    x,y = data
    return x[:n].contiguous(), y[:n].contiguous()

def same_results(makers, x, y, steps=3):
    "Refuse to time what does not compute the same: loss and parameters after some steps."
    want = None
    for name,make in makers.items():
        step,weights = make(x, y)
        if weights is None: continue
        got = [np.asarray([step() for _ in range(steps)]), *[np.array(o) for o in weights()]]
        if want is None: want = got
        for a,b in zip(got, want, strict=True):
            worst = np.abs(a - b).max()/np.abs(b).max()
            if not worst < 1e-4:
                first = next(iter(makers))
                sys.exit(f'{name} computes something else than {first}: a relative difference of {worst:.1g}')

def take_turns(fns, threads, rounds, turn=0.03, label=''):
    """Seconds of one call, a list for each function. They take turns of `turn` seconds, in random order in every round.
    A library's threads go on looking for work for some time after its last call, and would be in the way of the next:
    so there is a rest before each turn. Without a length, one call is a turn."""
    timers = {k: Timer('f()', globals=dict(f=f), num_threads=threads) for k,f in fns.items()}
    calls = {k: max(1, math.ceil(turn/t.timeit(3).median)) if turn else 1 for k,t in timers.items()}
    seconds,rng = {k: [] for k in fns},random.Random(0)
    for _ in track(range(rounds), label, console=console, transient=True, disable=not console.is_terminal):
        for k in rng.sample(list(fns), len(fns)):
            time.sleep(REST)
            if turn:
                for _ in range(max(3, calls[k]//5)): fns[k]() # fill the caches, wake the processor
            seconds[k].append(timers[k].timeit(calls[k]).median)
    return seconds

def summary(seconds):
    "Median, quartiles, and the ratio to the median of each of the others."
    mid = {k: statistics.median(v) for k,v in seconds.items()}
    return {k: dict(median=mid[k], quartiles=[float(q) for q in np.quantile(v, [.25, .75])]) for k,v in seconds.items()}

def of(sizes, makers=STEPS):
    "Those who take part, for a network of these sizes."
    return {k: partial(make, sizes) for k,make in makers.items()}

def steps(makers, x, y, threads, rounds, label):
    same_results(makers, x, y)
    return summary(take_turns({k: make(x, y)[0] for k,make in makers.items()}, threads, rounds, label=label))

def libraries():
    "Which library multiplies matrices, for torch, numpy and JAX, and for which processor it was chosen."
    from threadpoolctl import threadpool_info # in the extra of the benchmark
    blas = [o for o in threadpool_info() if o['user_api'] == 'blas' and 'numpy' in o['filepath']]
    config = re.findall(r'- (.*(?:Math Kernel|DNN|OpenBLAS|Accelerate).*?[\d.]+)', torch.__config__.show())
    return {'torch': f"{', '.join(config)}, kernels for {torch.backends.cpu.get_cpu_capability()}",
            'numpy': ', '.join(f"{o['internal_api']} {o['version']}, kernels for {o['architecture']}" for o in blas),
            'JAX': f"XLA of jaxlib {version('jaxlib')}"}

def kernels(makers, x, y):
    "For each row the operations of torch that multiply matrices in one step, or the library that does."
    found = {}
    for name,make in makers.items():
        step = make(x, y)[0]
        step()
        with profile(activities=[ProfilerActivity.CPU]) as prof: step()
        names = Counter(o.name for o in prof.events() if re.search('(mm|linear|fused.*)$', o.name.split('<')[0]))
        other = 'JAX' if 'JAX' in name else 'numpy'
        found[name] = ', '.join(f'{k} {v}' for k,v in names.items()) or f'the library of {other}'
    return found

def kept_bytes(step, *others):
    "What a recorded step keeps from call to call, besides `others`."
    known = {o.untyped_storage().data_ptr() for o in others}
    held = (o.untyped_storage() for run in step.runs.values() for o in run.__globals__.values()
            if isinstance(o, torch.Tensor))
    return sum({o.data_ptr(): o.nbytes() for o in held if o.data_ptr() not in known}.values())

def full_batch(data, threads, rounds):
    "The pass of the lesson: all digits through 784-50-1. Autograd is asked for the gradient of the input, or not."
    x,targ = data[0],data[1].float()
    gen = torch.Generator().manual_seed(0)
    w1,w2 = torch.randn(784, 50, generator=gen)/28,torch.randn(50, 1, generator=gen)/7
    model = Model.from_layers([Lin(w1, torch.zeros(50)), Relu(), Lin(w2, torch.zeros(1))], Mse())
    net = torch.nn.Sequential(torch.nn.Linear(784, 50), torch.nn.ReLU(), torch.nn.Linear(50, 1))
    with torch.no_grad():
        for p,q in zip(net.parameters(), model.params): p.copy_(q.t())
    h,g,gh,leaf = torch.randn(len(x), 50),torch.randn(len(x), 1),torch.randn(len(x), 50),x.clone().requires_grad_()
    found = {}
    for asked in False, True:
        def ours(): model(x, targ); model.backward()
        def autograd(inp=leaf if asked else x):
            net.zero_grad(); inp.grad = None
            (net(inp)[:,0] - targ).pow(2).mean().backward()
        def products():
            x@w1; h@w2; g@w2.t(); h.t()@g; x.t()@gh
            if asked: gh@w1.t()
        fns = {'ours': ours, 'autograd': autograd, 'all matrix products': products}
        if not asked: # nobody uses the gradient of the input, and the record leaves it out
            step = compile_step(model, SGD(model.params, 0.), x, targ) # a rate of 0: the weights stay
            fns['ours, compile_step'] = lambda: step(x, targ)
        ours(); autograd()
        pairs = [(p.g, q.grad.t()) for p,q in zip(model.params, net.parameters())] + [(x.g, leaf.grad)]*asked
        worst = max((got - want).abs().max()/want.abs().max() for got,want in pairs)
        if not worst < 1e-3: sys.exit(f'full batch: a gradient differs by {worst:.1g} of its largest entry')
        row = summary(take_turns(fns, threads, rounds, turn=0, label='full batch'))
        for k,f in fns.items():
            model.zero_grad(); net.zero_grad(); leaf.grad = None
            row[k]['peak_bytes'] = peak_memory(f) + ('compile_step' in k and kept_bytes(step, *model.params))
        model.zero_grad(); leaf.grad = None
        what = 'asked' if asked else 'not asked'
        found[f'{len(x):,} digits at once, 784-50-1, autograd {what} for the gradient of the input'] = row
    return found

def training(data, threads, rounds, epochs, bs=128, lr=0.005, weight_decay=0.3):
    "`fit`, and the same with torch's layers, autograd, optimizer and schedule: seconds and accuracy."
    x,y,xv,yv = data
    def batches(): # one call of Python for each example, as in most scripts
        gen = torch.Generator().manual_seed(0)
        return DataLoader(TensorDataset(x, y), bs, True, generator=gen), dataloader(xv, yv, 1000)
    def loaders(): return dataloader(x, y, bs, torch.Generator().manual_seed(0)), dataloader(xv, yv, 1000)
    def new(): return mlp(*SMALL, generator=torch.Generator().manual_seed(0))
    def ours(**kwargs):
        model,(train_dl,valid_dl) = new(),loaders()
        opt,schedule = AdamW(model.params, lr, weight_decay=weight_decay),one_cycle(lr, epochs*len(train_dl))
        hist = fit(model, opt, train_dl, valid_dl, epochs, schedule, stats_every=0, progress=False, **kwargs)
        return hist.epochs[-1]['accuracy']
    def theirs(loaders=loaders):
        net,(train_dl,valid_dl) = to_torch(new()),loaders()
        opt = torch.optim.AdamW(net.parameters(), lr, weight_decay=weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(opt, lr, total_steps=epochs*len(train_dl), cycle_momentum=False)
        for _ in range(epochs):
            losses = []
            for xb,yb in train_dl:
                loss = F.cross_entropy(net(xb), yb)
                loss.backward()
                losses.append(loss.item())
                opt.step(); opt.zero_grad(); schedule.step()
            with torch.no_grad(): right = sum((net(xb).argmax(1) == yb).sum().item() for xb,yb in valid_dl)
        return right/len(xv)
    runs = {'ours': ours, 'ours, compile_step': partial(ours, compiled=True), 'torch eager': theirs,
            'torch eager, its DataLoader': partial(theirs, batches)}
    reached = {k: set() for k in runs}
    fns = {k: lambda k=k, f=f: reached[k].add(f()) for k,f in runs.items()}
    row = summary(take_turns(fns, threads, rounds, turn=0, label='training'))
    for k,v in reached.items(): row[k]['accuracy'] = sorted(v)
    return {f'training 784-50-10 for {epochs} epochs': row}

def checks(threads, rounds):
    "`check_layer` beside torch's gradcheck, slow and fast, on the same functions, in float64."
    lin,relu = to_function(lin_rule, 'Lin'),to_function(relu_rule, 'Relu')
    gen,found = torch.Generator().manual_seed(0),{}
    def n(*shape): return torch.randn(shape, generator=gen, dtype=torch.float64)
    for name,f,args in (('relu, 5x4', relu, [n(5, 4)]), ('lin, 5x4 to 5x3', lin, [n(5, 4), n(4, 3), n(3)]),
                        ('lin, 64x784 to 64x50', lin, [n(64, 784), n(784, 50), n(50)])):
        def ours(f=f): return check_layer(f, *args, raise_exception=False, progress=False)
        def theirs(f=f, **kwargs):
            return gradcheck(f.apply, [o.clone().requires_grad_() for o in args], raise_exception=False, **kwargs)
        fns = {'check_layer': ours, 'gradcheck, fast': partial(theirs, fast_mode=True)}
        if args[0].numel() < 100: fns['gradcheck'] = theirs # else it takes minutes
        class Wrong(f):
            @staticmethod
            def backward(ctx, g): return f.backward(ctx, 1.1*g)
        for k,check in fns.items():
            if not check() or check(f=Wrong): sys.exit(f'{k} does not tell right from wrong on {name}')
        found[f'a check of {name}'] = summary(take_turns(fns, threads, rounds, turn=0, label='checks'))
    return found

def imports(rounds):
    "Seconds to import, each in a new process."
    def run(what): return lambda: subprocess.run([sys.executable, '-c', f'import {what}'], check=True)
    fns = {k: run(k) for k in ('torch', 'fb_pass.training')}
    return {'a new process that imports': summary(take_turns(fns, 1, rounds, turn=0, label='imports'))}

def sweeps(makers, data, threads, rounds):
    "How the time of a step grows, and the slope on logarithmic axes over the last three points."
    found = {}
    for name,cases in SWEEPS.items():
        sizes_of = {'batch': lambda s,n: n, 'width': lambda s,n: s[1], 'depth': lambda s,n: len(s) - 2}[name]
        rows = [steps(of(s, makers), *batch(data, n), threads, rounds, f'growth with {name}') for s,n in cases]
        at = [sizes_of(*c) for c in cases]
        seconds = {k: [r[k]['median'] for r in rows] for k in makers}
        def slope(k): return float(np.polyfit(np.log(at[-3:]), np.log(seconds[k][-3:]), 1)[0])
        found[name] = dict(at=at, **{k: dict(seconds=seconds[k], slope=slope(k)) for k in makers})
    return found

def show(title, row):
    "One case as a table: microseconds, their spread, and multiples of the others."
    known = 'torch eager', 'autograd', 'all matrix products', 'the two large products'
    anchors = [k for k in known if k in row and len(row) > 2] or list(row)[-1:]
    table = Table(title=title, title_justify='left', title_style='bold')
    table.add_column('')
    for o in ('median', 'quartiles', *[f'of {k}' for k in anchors]): table.add_column(o, justify='right')
    unit,scale = ('ms', 1e3) if min(v['median'] for v in row.values()) > .01 else ('us', 1e6)
    for k,v in sorted(row.items(), key=lambda o: o[1]['median']):
        extra = f" ({v['accuracy'][0]:.2%})" if 'accuracy' in v else ''
        if 'peak_bytes' in v: extra = f" ({v['peak_bytes']/1e6:.1f} MB)"
        quartiles = ' - '.join(f'{q*scale:.1f}' for q in v['quartiles'])
        table.add_row(k + extra, f"{v['median']*scale:.1f} {unit}", quartiles,
                      *[f"{v['median']/row[a]['median']:.2f}" for a in anchors])
    console.print(table)

@call_parse
def main(
    rounds:int=31, # Turns that everybody takes
    epochs:int=5, # Of the training runs
    threads:int=2, # Threads of each library that lets itself be told
    only:str='', # Only the networks whose name contains this, and no sweeps
    out:str=str(root/'results'/'speed.json'), # Where to keep the results
):
    "Time of a training step by everybody, and of the matrix products alone. First all must compute the same."
    torch.set_num_threads(threads)
    x_train,y_train,x_valid,y_valid = get_data()
    mean,std = x_train.mean(),x_train.std()
    data = normalize(x_train, mean, std),y_train
    text,vocab = get_text()
    block = gpt.shape['block']
    cases = {k: (of(sizes), *batch(data, n)) for k,(sizes,n) in NETS.items()}
    tokens = encode(text, vocab)[:12*block + 1]
    cases |= {k: (LARGE[k], *o) for k,o in zip(LARGE, (batch(data, 64), windows(tokens, block, block)))}
    found = {}
    for name,(makers,x,y) in cases.items():
        if only in name:
            found[name] = steps(makers, x, y, threads, rounds, name)
            show(name, found[name])
    if only: return
    math_by,by = libraries(),kernels(of(SMALL), *batch(data, 64))
    for k,v in math_by.items(): console.print(f'{k}: {v}')
    for k,v in by.items(): console.print(f'  {k}: {v}')
    for_training = *data, normalize(x_valid, mean, std), y_valid
    for more in (full_batch(data, threads, max(5, rounds//2)), checks(threads, max(5, rounds//2)),
                 imports(max(5, rounds//3)), training(for_training, threads, max(3, rounds//8), epochs)):
        for name,row in more.items(): show(name, row)
        found |= more
    growth = sweeps({k: STEPS[k] for k in IN_SWEEPS}, data, threads, max(5, rounds//3))
    for name,o in growth.items():
        console.print(f'slope with {name}: ' + ', '.join(f"{k} {o[k]['slope']:.2f}" for k in IN_SWEEPS))
    machine = f'{os.cpu_count()} cores of {platform.machine()}, torch {torch.__version__} with {threads} threads'
    kept = dict(command='make bench', machine=machine, libraries=math_by, kernels=by, digits=len(x_train),
                rounds=rounds, cases=found, growth=growth)
    Path(out).parent.mkdir(exist_ok=True)
    Path(out).write_text(json.dumps(kept, indent=1) + '\n', encoding='utf-8')
    console.print(f'kept in {os.path.relpath(out, root)}; `make images` draws it')
