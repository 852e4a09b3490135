"""Try the doctor on right layers and on faults: false alarms, the smallest fault it sees, what it calls each fault, and
what other checks make of the same ones; kept in results/doctor.json."""
import json, os, platform, re, statistics, sys, time, traceback
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr
from importlib.metadata import version
from io import StringIO
from pathlib import Path

import faults, torch
from fastcore.script import call_parse, store_true
from fastcore.test import test_close
from fb_pass.doctor import check_layer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch.autograd import gradcheck

root = Path(__file__).resolve().parent.parent
console = Console(highlight=False, markup=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120)
dtypes = {str(o).split('.')[1]: o for o in (torch.float64, torch.float32, torch.bfloat16, torch.float16)}
# What a diagnosis must know, in the order of the table; the mask at exactly zero is a kink: either answer is a slope.
classes = ('absent', 'zero', 'dtype', 'non-finite', 'scaled', 'added twice', 'use lost', 'term missing', 'sum missing',
           'sum extra', 'transposed', 'permuted', 'shifted', 'stale',
           'mask missing', 'mask inverted', 'mask from wrong tensor')

def share(k, n): return f'{k/n:.1%}' if n else '-'

def spread(f, args, jobs, what):
    "`f` of each of `args`, by several processes, under a bar."
    args,found = [*args],[]
    columns = TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    with progress as bar, ProcessPoolExecutor(jobs, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        task = bar.add_task(what, total=len(args))
        for o in pool.map(f, args, chunksize=max(1, min(20, len(args)//(4*jobs)))):
            found.append(o)
            bar.advance(task)
    return found

def where(e):
    "The last lines that an error went through."
    return ' < '.join(f'{Path(o.filename).name}:{o.lineno} {o.name}'
                      for o in reversed(traceback.extract_tb(e.__traceback__)[-4:]))

def examine(layer, inputs, **kw): return check_layer(layer, *inputs, raise_exception=False, progress=False, **kw)


# no false alarm

def right_cases():
    "Names of all layers that are right, with the ways to build them."
    drawn = [('catalogue', i, kind) for i,c in enumerate(faults.right_cases()) for kind in c.kinds()]
    return [('own', k, None) for k in faults.own] + drawn

def build_right(which, k, kind, seed, dtype):
    if which == 'own': return faults.own[k](faults.Draw(seed, 2, 6, dtype=dtype, layouts=True))
    b = faults.right_cases()[k].build(seed, kind, dtype=dtype, high=6, layouts=True)
    return b.layer, b.inputs

def alarm(arg):
    "What a check of a right layer says: its dtype, and None, or what was wrong about it."
    (which, k, kind),seed,name = arg
    label = f'{k if which == "own" else faults.right_cases()[k].layer.name}, {kind or "as it is"}, {name}, seed {seed}'
    try: layer,inputs = build_right(which, k, kind, seed, dtypes[name])
    except Exception as e: return name, 'skipped', f'{label}: {type(e).__name__}: {e}'
    try: report = examine(layer, inputs, seed=seed, dtype=dtypes[name])
    except Exception as e: return name, 'error', f'{label}: {type(e).__name__}: {e}'
    return (name, 'right', '') if report.ok else (name, 'alarm', f'{label}\n{report}')

def supported(case, name):
    "Can the layer be built and called in that dtype?"
    which,k,kind = case
    return not (name == 'bfloat16' and (kind == 'closures' or k in faults.ARRAYS)) # numpy has none

def false_alarms(count, jobs=1):
    "Counts over random right cases: layers, ways to build them and dtypes take turns."
    todo = [(case, name) for case in right_cases() for name in dtypes if supported(case, name)]
    found = spread(alarm, [(todo[i % len(todo)][0], i//len(todo), todo[i % len(todo)][1]) for i in range(count)], jobs,
                   'right layers')
    rows = {name: dict(Counter(kind for n,kind,_ in found if n == name)) for name in dtypes}
    return dict(cases=count, layers=len({c[:2] for c,_ in todo}), rows=rows,
                said=[said for _,kind,said in found if kind != 'right'][:50])


# what a fault is called

def row_name(row): return re.sub(r'\.g$', '', row.name)

def about(built, row):
    "Is the row about the wrong tensor? The input of a layer of arrays has a name of its own."
    if row_name(row) == built.tensor: return True
    return row_name(row) == 'X' and built.kind == 'closures' and built.tensor not in built.layer.layer.params

def diagnose(arg):
    "One fault: is it caught, in the right tensor, and what is it called?"
    number,seed = arg
    case = faults.catalogue()[number]
    b = case.build(seed)
    res = dict(number=number, seed=seed, name=case.name, layer=case.layer.name, cls=case.fault.cls,
               label=case.fault.label, known=case.fault.known, kind=b.kind, causes=[], caught=False, named=False,
               wrong=False,
               cause='', text='', tensor=True, confident=False)
    began = time.perf_counter()
    try: report = examine(b.layer, b.inputs, seed=seed, wrt=b.wrt)
    except Exception as e:
        return res | dict(cause='crash', text=f'{type(e).__name__}: {e} [{where(e)}]',
                          seconds=time.perf_counter() - began)
    res['seconds'] = time.perf_counter() - began
    res['caught'],res['causes'] = not report.ok,sorted(case.true_causes(b, seed))
    row,res['kinks'] = report.first,sum(r.kinks for r in report.rows)
    if row is None: return res | dict(text=' '.join(report.notes))
    d = row.diagnosis
    res |= dict(row=row.name, tensor=about(b, row), verdict=row.verdict)
    if d is None: return res
    named = d.cause in res['causes'] and res['tensor']
    # Sure of itself, and another cause than the true one: wrong if undoing it does not help, another name for the same
    # numbers if it does.
    # the digits that a shorter dtype has lost are gone
    undone = d.confident and d.corrected is not None and d.left <= (1e-6 if d.cause == 'dtype' else 1e-9)
    return res | dict(cause=d.cause, text=d.text, confident=bool(d.confident), named=named,
                      wrong=bool(d.confident and not undone and d.corrected is not None),
                      other=bool(d.confident and not named), left=d.left)

def diagnosis(seeds, jobs=1, every=1):
    "What every fault is called."
    todo = [(c.number, seed) for c in faults.catalogue() for seed in seeds if (c.number + seed) % every == 0]
    return spread(diagnose, todo, jobs, 'faults')

def by_class(found):
    "Counts for each class of fault and for each layer."
    rows,cells = {},defaultdict(lambda: dict(cases=0, caught=0, named=0, wrong=0))
    for r in found:
        if not r['known']: continue
        for row in (rows.setdefault(r['cls'], dict(cases=0, caught=0, named=0, wrong=0)), cells[r['cls'], r['layer']]):
            row['cases'] += 1
            for k in ('caught', 'named', 'wrong'): row[k] += bool(r[k])
    found = {k: rows[k] | dict(layers=sum(c == k for c,_ in cells)) for k in classes if k in rows}
    return found, {f'{c}, {l}': v for (c, l),v in cells.items()}

def summary(found):
    "The table of the diagnosis, its totals, and every case that was missed."
    rows,cells = by_class(found)
    def total(k): return sum(o[k] for o in rows.values())
    unknown = [r for r in found if not r['known']]
    missed = [{k: r[k] for k in ('name', 'kind', 'seed', 'causes', 'cause', 'confident', 'text')} for r in found
              if r['known'] and not (r['caught'] and r['named'])]
    return dict(cases=total('cases'), caught=total('caught'), named=total('named'),
                wrong=sum(r['wrong'] for r in found), other=sum(r.get('other', False) for r in found), rows=rows,
                cells=cells, missed=missed,
                without_name=dict(cases=len(unknown), caught=sum(r['caught'] for r in unknown),
                                  said_so=sum(r['cause'] == 'unknown' for r in unknown),
                                  wrong=sum(r['wrong'] for r in unknown)))

def networks(arg):
    "A model with one or two wrong steps: is the first one in the backward pass named, and is nothing else blamed?"
    seed,count = arg
    net = faults.network(seed, count)
    res = dict(seed=seed, wrong=[(i, c.name) for i,c in net.wrong], caught=False, named=False, blamed=[])
    try: report = examine(net.model, net.inputs, seed=seed)
    except Exception as e: return res | dict(error=f'{type(e).__name__}: {e}')
    steps = [int(p.name.split()[0]) for p in report.parts for r in p.rows if not r.ok]
    wrong = {i for i,_ in net.wrong}
    first = next((int(p.name.split()[0]) for p in report.parts if p.first is not None), None)
    return res | dict(caught=not report.ok, named=first == max(wrong),
                      blamed=sorted({s for s in steps if s not in wrong}))

def whole_models(count, jobs=1):
    "Models with one wrong step, with two, and right ones are among the right layers."
    rows = {}
    for wrong in (1, 2):
        found = spread(networks, [(seed, wrong) for seed in range(count)], jobs, f'models with {wrong} wrong')
        rows[str(wrong)] = dict(cases=count, caught=sum(o['caught'] for o in found),
                                named=sum(o['named'] for o in found), blamed=sum(bool(o['blamed']) for o in found),
                                missed=[o for o in found if not o['named'] or o['blamed']][:20])
    return rows


# how small a fault is seen

def altered(layer, how, size):
    "A fault of relative size `size` in the first gradient: all too large, or one entry by a share of the largest."
    k = next(k for k,o in faults.sample(layer)[3].items())
    def scaled(c): return c.G*(1 + size)
    def entry(c):
        res = c.G.clone(memory_format=torch.contiguous_format)
        res.view(-1)[c.G.numel()//2] += (size*c.G.abs().max()).to(c.G)
        return res
    return faults.Fault('scaled', f'{size:.1e}', k, frozenset({'scaled'}), scaled if how == 'all' else entry)

def seen(layer, how, size, seed, dtype):
    "Is a fault of that size seen? The gradient is computed in float64 and rounded, so that the fault is not lost."
    t = faults.Case(layer, None, 0).tensors(seed, dtype=dtype, low=3)
    obj,inputs = faults.kinds['pair'](layer, t, faults.hand(layer, altered(layer, how, size)))
    return not examine(obj, inputs, seed=seed, dtype=dtype).ok

def smallest(arg):
    "The smallest fault that is seen, within a factor of 1.2; None where the right one fails or nothing is seen."
    name,how,seed,kind = arg
    layer,dtype = faults.layers[name],dtypes[kind]
    try:
        if seen(layer, how, 0., seed, dtype) or not seen(layer, how, 1., seed, dtype): return arg, None
        low,high = -16.,0.
        while high - low > .08:
            mid = (low + high)/2
            low,high = (low, mid) if seen(layer, how, 10**mid, seed, dtype) else (mid, high)
        return arg, 10**high
    except Exception: return arg, None

def smallest_faults(names=None, seeds=(0,), jobs=1):
    "Median and largest of the smallest faults that are seen, over the layers, for each dtype."
    names = [*faults.layers] if names is None else names
    found = spread(smallest,
                   [(n, how, s, kind) for n in names for how in ('all', 'entry') for s in seeds for kind in dtypes],
                   jobs, 'smallest faults')
    rows = {}
    for kind in dtypes:
        for how in ('all', 'entry'):
            sizes = {f'{n}, seed {s}': v for (n, h, s, k),v in found if (h, k) == (how, kind)}
            good = [v for v in sizes.values() if v is not None]
            rows[f'{kind}, {how}'] = dict(layers=len(good))
            if not good: continue
            where = max((v, k) for k,v in sizes.items() if v is not None)[1]
            rows[f'{kind}, {how}'] |= dict(median=statistics.median(good), worst=max(good), where=where)
    return rows


# the same faults before other checks

def by_autograd(layer, t, g):
    "What autograd gives through the forward."
    leaves = {k: o.detach().clone().requires_grad_() if o.is_floating_point() and k not in layer.fixed else o
              for k,o in t.items()}
    names = [k for k in leaves if leaves[k].requires_grad]
    return dict(zip(names, torch.autograd.grad(layer.forward(*leaves.values()), [leaves[k] for k in names], g)))

def complains(f):
    "Does a check fail, and in how many seconds?"
    began = time.perf_counter()
    try: bad = f() is False
    except Exception: bad = True
    return bad, time.perf_counter() - began

def rivals(layer, t, way, seed):
    "The checks that are compared: each a function that raises, or returns False, where it finds something wrong."
    gen = torch.Generator().manual_seed(seed)
    g = torch.randn(layer.forward(*t.values()).shape, generator=gen, dtype=torch.float64)
    def compared(same):
        got,want = way(g, t),by_autograd(layer, t, g)
        return all(same(got[k], want[k]) for k in want)
    def by_torch(fast):
        function,inputs = faults.as_function(layer, {k: o.clone() for k,o in t.items()}, way)
        return gradcheck(function.apply, [o.requires_grad_() if o.is_floating_point() else o for o in inputs],
                         fast_mode=fast)
    def closely(a, b):
        test_close(a, b, eps=.01)
        return True
    return {'test_close, eps 0.01': lambda: compared(closely), 'torch.allclose': lambda: compared(torch.allclose),
            'gradcheck, slow': lambda: by_torch(False), 'gradcheck, fast': lambda: by_torch(True)}

names = 'test_close, eps 0.01', 'torch.allclose', 'gradcheck, slow', 'gradcheck, fast', 'check_layer'

def beside(arg):
    "What each check says of one fault, or of a right layer: (does it complain, seconds, the name of the cause)."
    number,seed = arg
    case = faults.catalogue()[number] if number >= 0 else faults.right_cases()[-number - 1]
    kind = next(k for k in ('pair', 'value and way back') if k in case.kinds())
    b,said,of = case.build(seed, kind),{},(number, case.fault and case.fault.cls)
    for k in names[:-1]:
        # Each is given a backward that has not run yet, or that remembers a pass on other numbers, as it would in use.
        way = faults.hand(case.layer, case.fault)
        with redirect_stderr(StringIO()): said[k] = *complains(rivals(case.layer, b.tensors, way, seed)[k]), False
    began = time.perf_counter()
    try: report = examine(b.layer, b.inputs, seed=seed, wrt=b.wrt)
    except Exception: return of, said | {'check_layer': (True, time.perf_counter() - began, False)}
    seconds,d = time.perf_counter() - began,report.first and report.first.diagnosis
    named = bool(case.fault and d and d.cause in case.true_causes(b, seed))
    return of, said | {'check_layer': (not report.ok, seconds, named)}

def side_by_side(seeds, jobs=1, every=1):
    "Caught, missed and named faults, false alarms and seconds of each check, in one run."
    wrong = [(c.number, s) for c in faults.catalogue() for s in seeds if c.fault.known and (c.number + s) % every == 0]
    right = [(-i - 1, s) for i in range(len(faults.right_cases())) for s in range(max(1, 10//every))]
    found = spread(beside, wrong + right, jobs, 'side by side')
    bad,good = [o for (n, _),o in found if n >= 0],[o for (n, _),o in found if n < 0]
    rows = {k: dict(caught=sum(o[k][0] for o in bad), missed=sum(not o[k][0] for o in bad),
                    named=sum(o[k][2] for o in bad), false_alarms=sum(o[k][0] for o in good),
                    seconds=statistics.median(o[k][1] for o in bad + good)) for k in names}
    missed = {k: dict(Counter(cls for (n, cls),o in found if n >= 0 and not o[k][0])) for k in names}
    return dict(faults=len(bad), right=len(good), rows=rows, missed=missed)


# tables

def tables(part=12, jobs=1):
    "All trials, on one of `part` cases, the same ones every time."
    some = None if part == 1 else ['lin', 'relu', 'layer norm', 'softmax'][:max(2, 8//part)]
    found = diagnosis((0, 1) if part < 12 else (0,), jobs, part)
    of = 'all cases' if part == 1 else f'one of {part} cases'
    return dict(part=f'{of} of each trial', false_alarms=false_alarms(10_000//part, jobs),
                smallest=smallest_faults(some, jobs=jobs), diagnosis=summary(found),
                models=whole_models(300//part, jobs), side_by_side=side_by_side((0,), jobs, part))

def table(title, head, rows):
    t = Table(title=title, title_justify='left')
    for i,o in enumerate(head): t.add_column(o, justify='left' if not i else 'right')
    for r in rows: t.add_row(*map(str, r))
    console.print(t)

def show(res):
    "The tables, for a terminal."
    a = res['false_alarms']
    table(f"Right layers: {a['cases']:,} cases of {a['layers']} layers",
          ['dtype', 'right', 'false alarms', 'errors', 'skipped'],
          [[k, *(o.get(c, 0) for c in ('right', 'alarm', 'error', 'skipped'))] for k,o in a['rows'].items()])
    table('Smallest relative fault that is seen', ['dtype, where', 'layers', 'median', 'worst', 'in'],
          [[k, o['layers'], *(f'{o[c]:.1e}' if c in o else '-' for c in ('median', 'worst')), o.get('where', '')]
           for k,o in res['smallest'].items()])
    d = res['diagnosis']
    caught,named = share(d['caught'], d['cases']),share(d['named'], d['cases'])
    said = f"{d['cases']:,} faults, caught {caught}, named right first {named}, sure and wrong {d['wrong']}"
    table(f'Diagnosis: {said}', ['fault', 'layers', 'cases', 'caught', 'named', 'sure and wrong'],
          [[k, *(o[c] for c in ('layers', 'cases', 'caught', 'named', 'wrong'))] for k,o in d['rows'].items()])
    w = d['without_name']
    said = f"{w['cases']}, caught {w['caught']}, left unexplained {w['said_so']}, sure and wrong {w['wrong']}"
    console.print(f'Faults without a name: {said}')
    table('Whole models', ['wrong steps', 'models', 'caught', 'first one named', 'others blamed'],
          [[k, *(o[c] for c in ('cases', 'caught', 'named', 'blamed'))] for k,o in res['models'].items()])
    s = res['side_by_side']
    table(f"Side by side: {s['faults']:,} faults, {s['right']:,} right",
          ['check', 'caught', 'missed', 'named', 'false alarms', 'median seconds'],
          [[k, *(o[c] for c in ('caught', 'missed', 'named', 'false_alarms')), f"{o['seconds']:.2g}"]
           for k,o in s['rows'].items()])

def shortcomings(res):
    "What the doctor promises and did not keep, in words; empty if it kept all."
    d,a = res['diagnosis'],res['false_alarms']['rows']
    bad = sum(o.get('alarm', 0) + o.get('error', 0) for o in a.values())
    yield from ([f'{bad} false alarms or errors on right layers'] if bad else [])
    yield from ([f"{d['cases'] - d['caught']} faults not caught"] if d['caught'] < d['cases'] else [])
    yield from ([f"only {share(d['named'], d['cases'])} named right"] if d['named'] < .95*d['cases'] else [])
    yield from ([f"{d['wrong']} times sure and wrong"] if d['wrong'] else [])

@call_parse
def main(
    part:int=1, # Take one of so many cases: 1 for all, which takes an hour; 4 for a quarter of one
    quick:store_true=False, # One of 50 cases, in a few minutes, not kept
    jobs:int=max(1, len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()), # Processes
    out:str=str(root/'results'/'doctor.json'), # Where to keep the results
):
    "Try the doctor: false alarms, the smallest fault it sees, what it calls every fault, and other checks beside it."
    res = tables(50 if quick else part, jobs)
    show(res)
    if not quick:
        versions = {k: version(k) for k in ('torch', 'fastcore', 'numpy')} | dict(python=platform.python_version())
        machine = f'{jobs} processes, {platform.machine()}'
        kept = dict(command='make doctor' + f' PART={part}'*(part > 1), versions=versions, machine=machine, **res)
        Path(out).parent.mkdir(exist_ok=True)
        Path(out).write_text(json.dumps(kept, indent=1) + '\n', encoding='utf-8')
    short = [*shortcomings(res)]
    if short: sys.exit('The doctor falls short: ' + '; '.join(short))
