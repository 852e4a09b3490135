"""Try check_layer and gradcheck on the layers of torch.nn, functions of torch and public libraries: as they are, and
with a right or a wrong backward of their own; kept in results/doctor_torch.json."""
import ast, importlib, inspect, json, multiprocessing, platform, signal, statistics, sys, time, warnings
from collections import Counter
from importlib.metadata import packages_distributions, version
from pathlib import Path

import numpy as np
import torch
from doctor_trials import console, root, share, spread, table
from fastcore.script import call_parse, store_true
from fb_pass.doctor import check_layer
from fb_pass.doctor.adapters import draws_now, is_floating, same_draws
from torch import nn
from torch.autograd import Function, gradcheck
from torch.autograd.gradcheck import GradcheckError
from torch.nn import functional as F
from torch.utils._pytree import tree_flatten

fork = multiprocessing.get_context('fork') # quick, and nothing needs to be sent
limit,factors = 30,(-1., 2., .9, 1.001) # seconds of processor time; by what a gradient is multiplied that is made wrong
left_out = {
    'Module Container RNNBase RNNCellBase': 'a base class', 'DataParallel SyncBatchNorm': 'for several devices',
    'ModuleDict ModuleList ParameterDict ParameterList': 'a container without a forward',
    'NLLLoss2d': 'deprecated, the same as NLLLoss', 'Lazy': 'becomes the class without Lazy at its first call'}


# the inputs, by name, and the cases

def inputs():
    "The tensors that an expression may name: the same ones every time."
    torch.manual_seed(0)
    def n(*shape): return torch.randn(shape, dtype=torch.float64)
    def r(*shape): return torch.rand(shape, dtype=torch.float64)*.8 + .1
    s,order = n(4, 4),torch.tensor([2, 0, 1])
    pools = {k: f(n(1, 2, *(4,)*d), 2, return_indices=True) for k,d,f in
             (('', 1, F.max_pool1d), ('2', 2, F.max_pool2d), ('3', 3, F.max_pool3d))}
    return dict(
        x=n(3, 4), y=n(3, 4), z=n(3, 4), h=n(3, 3), x4=n(4, 3), v=n(4), w=n(4), s=s, t=n(4, 4), three=n(2, 3),
        three2=n(2, 3), p=r(3, 4), q=r(3, 4).softmax(1), pos=r(3, 4) + .5, spd=s@s.T + torch.eye(4).to(s),
        q3=torch.tensor(.3).to(s), low=n(4, 4).tril() + 3*torch.eye(4).to(s), batch=n(2, 4, 4), batch2=n(2, 4, 4),
        steps=n(5, 2, 4), steps2=n(3, 2, 4), seq=n(2, 2, 6), img=n(2, 2, 6, 6), img4=n(2, 4, 3, 3), posimg=r(2, 2, 6,
        6), vol=n(2, 2, 4, 4, 4), cols=n(2, 8, 9), kernel=n(2, 2, 3, 3), kernel3=n(3, 4, 4), theta=n(2, 2, 3),
        grid=n(2, 3, 3, 2)/2, weights=n(5, 4), labels=torch.tensor([1, 0, 2]), table=torch.tensor([[1, 0, 2, 3], [2,
        2, 1, 0], [0, 3, 3, 1]]), order=order, bits=torch.tensor([[1, 0, 0, 1], [0, 1, 1, 1], [1, 0, 1, 0]]).bool(),
        signs=torch.tensor([1, -1, 1]), signs4=torch.tensor([[1., -1, 1, 1], [-1, -1, 1, -1], [1, 1, -1,
        1]]).double().sign().long(), logp=n(7, 2, 5), chars=torch.tensor([[1, 2, 2], [3, 1, 4]]),
        lengths_in=torch.tensor([7, 6]), lengths_out=torch.tensor([3, 2]), lengths=torch.tensor([2, 1]), five=n(3, 5),
        pos3=r(2, 3, 4, 4), seq4=n(3, 4, 2), x1=n(3, 1), times=torch.tensor([0., .5, 1.]).to(s),
        edges=torch.tensor([[0, 1, 2, 2, 1], [1, 0, 0, 1, 2]]), a=n(3, 4).numpy(), a1=n(3).numpy(), a3=n(3, 4,
        2).numpy(), a3b=n(3, 4, 2).numpy(), a4=n(2, 4, 4, 2).numpy(), **{k + d: o[i] for d,o in pools.items() for i,k
        in enumerate(('half', 'where'))})

def cases():
    "Section -> its lines, each without the comment."
    found = {}
    for line in Path(__file__).with_suffix('.txt').read_text(encoding='utf-8').splitlines():
        if line.startswith('['): found[line.strip('[]')] = rows = []
        elif line and line[0] != '#': rows.append(line)
    return found

class Held(nn.Module):
    "A function of a module and of tensors, as a module."
    def __init__(self, f, held):
        super().__init__()
        self.f,self.held = f,held
    def forward(self, *ts): return self.f(self.held, *ts)

class Field(nn.Module):
    "The right-hand side of a differential equation; for a stochastic one also the size of the noise."
    noise_type,sde_type = 'diagonal','stratonovich'
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
    def forward(self, t, y): return self.linear(y).tanh()
    f = forward
    def g(self, t, y): return .1*y.sin() + .2

def build(section, line, folder):
    "The layer, its inputs, and the options of the line."
    expr,_,options = line.partition(' ; ')
    space = dict(vars(nn) if section == 'modules' else {}, nn=nn, torch=torch, F=F, linalg=torch.linalg, fft=torch.fft,
                 special=torch.special)
    if section == 'libraries':
        module,_,expr = expr.partition(': ')
        if folder not in sys.path: sys.path.append(folder)
        space |= dict(Held=Held, Field=Field, np=np) | vars(importlib.import_module(module))
    known,tree = inputs(),ast.parse(expr, mode='eval').body
    def named(o): return [*dict.fromkeys(n.id for n in ast.walk(o) if isinstance(n, ast.Name) and n.id in known)]
    plain = isinstance(tree, ast.Call) and not tree.keywords and all(
        isinstance(o, ast.Name) and o.id in known for o in tree.args)
    if plain and not named(tree.func): names,layer = [o.id for o in tree.args],eval(ast.unparse(tree.func), space)
    else: layer = eval(f'lambda {", ".join(names := named(tree))}: {expr}', space)
    return layer, [known[k] for k in names], eval(f'dict({options})', space)

def tensors(out):
    "The tensors that a layer has returned: one, or a tuple."
    outs = tuple(o for o in tree_flatten(out)[0] if isinstance(o, torch.Tensor))
    return outs[0] if len(outs) == 1 else outs

def as_function(layer, given):
    "A function of tensors that computes what the layer does, and its arguments: the inputs and the parameters."
    if not isinstance(layer, nn.Module): return lambda *ts: tensors(layer(*ts)), given
    layer = layer.double()
    params,buffers,count = dict(layer.named_parameters()),dict(layer.named_buffers()),len(given)
    def f(*ts):
        now = dict(zip(params, ts[count:])) | {k: o.clone() for k,o in buffers.items()}
        return tensors(torch.func.functional_call(layer, now, ts[:count]))
    return f, [*given, *(o.detach() for o in params.values())]

def gradients(f, args, upstream=None):
    "The gradient for each of `args`, None where there is none, by default for random upstream gradients."
    with torch.enable_grad():
        ts = [o.detach().clone().requires_grad_() if is_floating(o) else o for o in args]
        outs = tree_flatten(f(*ts))[0]
    upstream = [torch.randn_like(o) if is_floating(o) else o for o in outs] if upstream is None else upstream
    ends,gs = zip(*((o, u) for o,u in zip(outs, upstream) if o.requires_grad))
    grads = iter(torch.autograd.grad(ends, [o for o in ts if is_floating(o)], gs, allow_unused=True))
    return [next(grads) if is_floating(o) else None for o in ts]

def loses(layer, given, sizes):
    """Does a parameter get no gradient when it is given as an argument?

    An adjoint solver looks for its parameters in the module, where they no longer are when it goes back."""
    params = [*layer.parameters()] if isinstance(layer, nn.Module) else []
    if not params: return False
    outs = [o for o in tree_flatten(layer(*given))[0] if is_floating(o) and o.requires_grad]
    grads = torch.autograd.grad(outs, params, [torch.randn_like(o) for o in outs], allow_unused=True)
    return any(g is not None and g.any() and not size for g,size in zip(grads, sizes[len(given):]))

def with_own_backward(f, which=0, factor=1.):
    "`f` as an autograd.Function whose backward multiplies the gradient number `which` by `factor`."
    class Own(Function):
        @staticmethod
        def forward(ctx, *args):
            ctx.called_with,ctx.drew = [o.clone() if isinstance(o, torch.Tensor) else o for o in args],draws_now()
            outs = f(*args)
            return outs.clone() if isinstance(outs, torch.Tensor) else tuple(o.clone() for o in outs)
        @staticmethod
        def backward(ctx, *upstream):
            with same_draws(ctx.drew): grads = gradients(f, ctx.called_with, upstream)
            if factor != 1.: grads[which] = grads[which]*factor
            return tuple(grads)
    return Own


# one check, and what it says

class Hangs(BaseException): "No `except Exception` on the way stops it."

def ended(signum, frame): raise Hangs(f'more than {limit} seconds')

def said(check):
    "What a check says: a verdict, a text, and the seconds of processor time that it took."
    signal.signal(signal.SIGPROF, ended)
    signal.setitimer(signal.ITIMER_PROF, limit)
    began = time.process_time()
    try: verdict,text = check()
    except (GradcheckError, AssertionError) as e: verdict,text = 'complains', str(e)
    except Hangs as e: verdict,text = 'hangs', str(e)
    except Exception as e: verdict,text = 'unusable', f'{type(e).__name__}: {e}'
    signal.setitimer(signal.ITIMER_PROF, 0)
    return dict(verdict=verdict, text=text[:1500], seconds=time.process_time() - began)

def by_doctor(layer, given, options):
    report = check_layer(layer, *given, raise_exception=False, progress=False, **options)
    zero = all('the right gradient is zero' in o.why or o.verdict == 'not used' for o in report.rows)
    if report.ok and not report.tested: return 'zero gradient' if zero else 'unusable', f'nothing tested\n{report}'
    return ('fine', '') if report.ok else ('complains', str(report))

def by_gradcheck(f, args, options):
    states = draws_now()
    def drawn(*ts):
        with same_draws(states): return f(*ts)
    ts = [o.detach().clone().requires_grad_() if is_floating(o) else o for o in args]
    return ('fine', '') if gradcheck(drawn, ts, rtol=max(1e-3, options.get('rtol', 0.))) else ('complains', '')

def examine(arg, only_ours=False):
    "What both checks say of one line: as it is, with a backward of its own, and with a wrong one."
    def theirs(*args):
        return dict(verdict='crashes', text='', seconds=0.) if only_ours else said(lambda: by_gradcheck(*args))
    section,number,line,folder = arg
    warnings.simplefilter('ignore')
    res = dict(section=section, line=line, checks={})
    try:
        layer,given,options = build(section, line, folder)
        in_tensors = all(isinstance(o, torch.Tensor) for o in given) and not isinstance(layer, tuple)
        if in_tensors: outs = tensors((once := as_function(layer, given))[0](*once[1]))
    except ImportError as e: return res | dict(missing=str(e))
    except Exception as e: return res | dict(broken=f'{type(e).__name__}: {e}')
    res['known'],checks = options.pop('known', None),res['checks']
    layer,given,_ = build(section, line, folder) # as it was before that call
    checks['as it is'] = [said(lambda: by_doctor(layer, given, options))]
    if not in_tensors or options.get('surrogate'): return res
    options.pop('like', None)
    f,args = as_function(layer, given) # anew, as a call may free its inputs
    try: sizes = [0. if g is None or not g.numel() else g.abs().max().item() for g in gradients(f, args)]
    except Exception: sizes = None # it has no gradient
    if sizes and loses(layer, given, sizes): return res
    checks['as it is'].append(theirs(f, args, options))
    if res['known'] or 'wrt' in options or any(o.is_complex() for o in tree_flatten(outs)[0]) or not sizes: return res
    seen,kind,how = [i for i,size in enumerate(sizes) if size > 1e-6],'own backward',(0, 1.)
    if seen and number % 2:
        kind,res['factor'] = 'wrong backward',factors[number//2 % len(factors)]
        how = seen[number//2 % len(seen)],res['factor']
    own = with_own_backward(f, *how)
    checks[kind] = [said(lambda: by_doctor(own, args, options)), theirs(own.apply, args, options)]
    return res

def apart(arg):
    "As `examine`, in a process of its own, which a layer that frees its inputs may end; then without gradcheck."
    for only_ours in (False, True):
        reader,writer = fork.Pipe(False)
        child = fork.Process(target=lambda: writer.send(examine(arg, only_ours)))
        child.start()
        writer.close()
        try: return reader.recv()
        except EOFError: pass # it has died
        finally: child.join()
    return dict(section=arg[0], line=arg[2], known=None, checks={'as it is': [
        dict(verdict='crashes', text='the process ended', seconds=0.)]*2})


# counts and tables

def without_entry(found):
    "Classes of torch.nn without a line: name -> why, None if it was forgotten."
    there = {o['line'].split('(')[0] for o in found if o['section'] == 'modules'}
    def why(k): return next((v for ks,v in left_out.items() if k in ks.split() or ks == 'Lazy' == k[:4]), None)
    return {k: why(k) for k,o in vars(nn).items() if inspect.isclass(o) and issubclass(o, nn.Module) and k not in there}

def summary(found):
    "For each section and check: counts, seconds, and what was said where it should have been something else."
    rows,notes = {},[]
    for section in dict.fromkeys(o['section'] for o in found):
        for i,name in enumerate(('check_layer', 'gradcheck')):
            mine = [(o, kind, c[i]) for o in found if o['section'] == section
                    for kind,c in o['checks'].items() if len(c) > i]
            if not mine: continue
            right,wrong = [[o for o in mine if (o[1] == 'wrong backward') == w and not o[0]['known']]
                           for w in (False, True)]
            def count(of, *verdicts): return sum(c['verdict'] in verdicts for _,_,c in of)
            seconds = [c['seconds'] for _,_,c in mine]
            rows[f'{section}, {name}'] = dict(
                right=len(right), false_alarms=count(right, 'complains'), zero=count(right, 'zero gradient'),
                unusable=count(right, 'unusable', 'hangs', 'crashes'), faults=len(wrong),
                missed=len(wrong) - count(wrong, 'complains'), missed_factors=dict(Counter(
                    str(o['factor']) for o,_,c in wrong if c['verdict'] != 'complains')),
                known=sum(bool(o['known']) for o,_,_ in mine),
                known_named=sum(c['verdict'] not in ('fine', 'hangs', 'crashes') for o,_,c in mine if o['known']),
                median=statistics.median(seconds), largest=max(seconds),
                slowest=max(mine, key=lambda o: o[2]['seconds'])[0]['line'])
            def due(o, kind): return 'complains' if o['known'] or kind == 'wrong backward' else 'fine'
            notes += [dict(check=name, line=o['line'], kind=kind, known=o['known'], verdict=c['verdict'],
                           said=c['text'])
                      for o,kind,c in mine if o['known'] or c['verdict'] not in (due(o, kind), 'zero gradient')]
    return rows, notes

def libraries(found):
    "Package -> its version and how many of its lines were tried; why, if it could not be imported."
    names,res = packages_distributions(),{}
    for o in (o for o in found if o['section'] == 'libraries'):
        package = o['line'].split(':')[0].split('.')[0]
        row = res.setdefault(package, dict(version=None, lines=0))
        if 'missing' in o: row['missing'] = o['missing']
        else: row |= dict(version=version(names[package][0]) if package in names else None, lines=row['lines'] + 1)
    return res

@call_parse
def main(
    jobs:int=2, # Processes
    folder:str='', # Where the libraries are installed, if not beside torch: by pip install --no-deps --target
    libraries_only:store_true=False, # Only the public libraries, those that are installed; nothing is kept
    only:str='', # Only lines with this text; nothing is kept
    out:str=str(root/'results'/'doctor_torch.json'), # Where to keep the results
):
    "check_layer and gradcheck on torch.nn, on functions of torch and on public libraries."
    todo = [(section, i, line, folder) for section,lines in cases().items() for i,line in enumerate(lines)
            if only in line and (section == 'libraries' or not libraries_only)]
    check_layer(nn.Linear(2, 2), torch.ones(3, 2)) # what is imported on the way is no part of the seconds
    found = spread(apart, todo, jobs, 'layers')
    rows,notes = summary(found)
    head = ('right', 'false alarms', 'zero', 'unusable', 'wrong', 'missed', 'true faults', 'named', 'median s',
            'largest s')
    table('Layers of torch and of public libraries', ['check', *head], [
        [k, o['right'], o['false_alarms'], o['zero'], f"{o['unusable']} ({share(o['unusable'], o['right'])})",
         *(o[c] for c in ('faults', 'missed', 'known', 'known_named')), *(f'{o[c]:.2g}' for c in ('median', 'largest'))]
        for k,o in rows.items()])
    broken,forgotten = {o['line']: o['broken'] for o in found if 'broken' in o},without_entry(found)
    packages = libraries(found)
    for k,o in packages.items(): console.print(f"{k} {o['version'] or ''}: {o.get('missing', '')} {o['lines']} lines")
    for o in notes:
        if o['check'] == 'check_layer': console.print(f"\n{o['line']} ({o['kind']}): {o['verdict']}\n{o['said']}")
    for k,v in broken.items(): console.print(f'cannot be built: {k}: {v}')
    if only or libraries_only: return
    console.print(*(f'{k}: no line, {v or "forgotten"}' for k,v in forgotten.items()), sep='\n')
    versions = {k: version(k) for k in ('torch', 'numpy')} | dict(python=platform.python_version())
    kept = dict(command='make doctor-torch', versions=versions, machine=f'{jobs} processes, {platform.machine()}',
                lines=dict(Counter(o['section'] for o in found)), rows=rows, left_out=forgotten, libraries=packages,
                broken=broken, notes=notes)
    Path(out).write_text(json.dumps(kept, indent=1) + '\n', encoding='utf-8')
