"Put faults into every backward function, one at a time, and see whether the owning notebook or the tests notice."
import json, os, platform, signal, sys
from collections import Counter
from hashlib import sha1
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import toml
from cosmic_ray.work_db import use_db
from cosmic_ray.work_item import TestOutcome, WorkerOutcome
from fastcore.script import Param, call_parse
from mutation.scope import functions, mutants
from mutation.trial import Copies, copy_project, test_files
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

root = Path(__file__).resolve().parent.parent
console = Console(highlight=False, markup=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120)
tested_with = ('torch', 'numpy', 'cosmic-ray', 'hypothesis')

def fingerprint(project):
    "Of all that a verdict may depend on: a kept session is gone on with only where it still holds."
    every = 'fb_pass/**/*.py', 'nbs/**/*.ipynb', 'tests/**/*.py', 'tools/mutation/*.py'
    paths = [p for o in every for p in sorted(project.glob(o))]
    return sha1(b'\0'.join(str(p.relative_to(project)).encode() + b'\0' + p.read_bytes() for p in paths)).hexdigest()

def chosen(m, only): return not only or any(f'{m.module}.{m.function}.'.startswith(f'{o}.') for o in only)

def read_equivalents(path):
    "The kept list: who cannot be killed, and why."
    return toml.loads(Path(path).read_text(encoding='utf-8')).get('equivalent', []) if Path(path).exists() else []

def names_it(entry, m):
    return (m.module, m.function, *m.change) in all_named([entry])

def all_named(entries):
    return {(e['module'], e['function'], e['line'].strip(), o.strip()): o for e in entries for o in e['mutants']}

def stale(entries, found):
    "What the list names and is not among the mutants."
    known = {(m.module, m.function, *m.change) for m in found}
    return [f'{k[0]}.{k[1]}: {o}' for k,o in all_named(entries).items() if k not in known]

def baseline(copies, project, found, progress, tests=''):
    "Everything must pass without a mutant. Seconds of each notebook and test, and the functions a test reaches."
    books = {m.module: m.notebook for m in found}
    files = [p for p in test_files(project, books) if not tests or any(o in p for o in tests.split())]
    tasks = [('tests', 'tests', files, None, None)]
    tasks += [(k, 'notebook', str(v), None) for k,v in books.items()]
    bar, results = progress.add_task('without a fault', total=len(tasks)), {}
    for key, res in copies.run(tasks):
        if res['failed']:
            sys.exit(f"without any fault this fails, so nothing can be learned from mutants: "
                     f"{'; '.join(res['failed'])}\n\n{res['said'][-4000:]}")
        results[key] = res
        progress.advance(bar)
    progress.remove_task(bar)
    return results

def plan(found, results):
    "For each job its cell, what becomes of it, the tests that reach it, cheapest first, and the seconds they may take."
    seconds, reached = results['tests']['seconds'], {}
    for name, *key in results['tests']['reached']: reached.setdefault(tuple(key), set()).add(name)
    def tests(m):
        hits = reached.get((m.module, m.first_line), ())
        return sorted((o for o in seconds if o in hits or o.partition('::')[0] in hits), key=seconds.get)
    def job(m, ts):
        return m.cell, m.new, ts, (60 + 4*results[m.module]['seconds'], 60 + 8*sum(map(seconds.get, ts)))
    return {m.item.job_id: job(m, tests(m)) for m in found}

def execute(found, entries, project, folder, session, jobs, tests=''):
    "Try all mutants whose result the session does not have. Results by job."
    bar = BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    shown = Progress(TextColumn('{task.description}'), *bar, console=console, transient=True,
                     disable=not console.is_terminal)
    wanted = {m.item.job_id: m for m in found}
    with use_db(session) as db, Copies(project, folder, jobs) as copies, shown as progress:
        known = {o.job_id for o in db.work_items}
        db.add_work_items(m.item for k,m in wanted.items() if k not in known)
        pending = [o for o in db.pending_work_items if o.job_id in wanted]
        if pending:
            results = baseline(copies, project, found, progress, tests)
            pending.sort(key=lambda o: (results[wanted[o.job_id].module]['seconds'], *o.mutations[0].start_pos))
            tally, task = Counter(), progress.add_task('', total=len(pending))
            def done(job, res):
                db.set_result(job, res)
                tally[res.test_outcome] += 1
                m, n = wanted[job], sum(tally.values())
                said = f'{tally[TestOutcome.KILLED]} killed, {tally[TestOutcome.SURVIVED]} not'
                progress.update(task, advance=1, description=said)
                if res.test_outcome != TestOutcome.KILLED and not any(names_it(e, m) for e in entries):
                    console.print(f'alive: {m.module}.{m.function}  {m.change[1]}')
                elif not console.is_terminal and n % 50 == 0: print(f'{n} of {len(pending)}', flush=True)
            copies(pending, None, None, plan(found, results), done)
        return {k: r for k,r in db.results if k in wanted}

def judge(found, results, entries):
    "Of each mutant: 'notebook' or 'tests' if killed, 'equivalent' if it lives and is named so, else 'survived'."
    verdicts = {}
    for m in found:
        res = results[m.item.job_id]
        if res.worker_outcome != WorkerOutcome.NORMAL:
            sys.exit(f'{m.module}.{m.function}: Cosmic Ray could not make or try a mutant: '
                     f'{res.output or res.worker_outcome}')
        named = any(names_it(e, m) for e in entries)
        verdicts[m] = json.loads(res.output)['by'] or ('equivalent' if named else 'survived')
    return verdicts

def tally(verdicts):
    "Counts, and the share of those not equivalent that were killed."
    n = Counter(verdicts)
    killed, real = n['notebook'] + n['tests'], len(verdicts) - n['equivalent']
    return dict(mutants=len(verdicts), equivalent=n['equivalent'], killed=killed, by_notebook=n['notebook'],
                by_tests=n['tests'], survived=n['survived'], score=killed/real if real else 1.)

def summary(verdicts):
    "What is kept in results/mutants.json."
    by_module = {}
    for m,v in sorted(verdicts.items(), key=lambda o: (o[0].module, o[0].first_line)):
        by_module.setdefault(m.module, {}).setdefault(m.function, []).append(v)
    rows = {k: dict(tally(sum(fs.values(), [])), functions={f: tally(vs) for f,vs in fs.items()})
            for k,fs in by_module.items()}
    versions = dict(python=platform.python_version(), **{o: version(o) for o in tested_with})
    return dict(command='make mutants', versions=versions, total=tally([*verdicts.values()]), modules=rows)

def added(rows):
    "The sum of scores."
    counts = 'mutants', 'equivalent', 'killed', 'by_notebook', 'by_tests', 'survived'
    total = {k: sum(o[k] for o in rows) for k in counts}
    real = total['mutants'] - total['equivalent']
    return total | dict(score=total['killed']/real if real else 1.)

def keep(path, new, found, every):
    "Write the scores of the functions that were tried as a whole, beside those that are kept of others still there."
    tried,there = (Counter((m.module, m.function) for m in o) for o in (found, every))
    def rows(o): return {(k, f): v for k,m in o.get('modules', {}).items() for f,v in m['functions'].items()}
    old = json.loads(path.read_text(encoding='utf-8')) if path.exists() else {}
    known = rows(old) | {k: v for k,v in rows(new).items() if tried[k] == there[k]}
    modules = {}
    for (k,f),v in sorted(known.items()):
        if v['mutants'] == there[k,f]: modules.setdefault(k, {})[f] = v
    if not modules: return
    scores = {k: dict(added(fs.values()), functions=fs) for k,fs in modules.items()}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(dict(old | new, total=added(scores.values()), modules=scores), indent=1) + '\n',
                    encoding='utf-8')

def show(kept):
    "Print the table of scores."
    table = Table('function', title='Mutants')
    columns = dict(mutants='mutants', equivalent='equivalent', by_notebook='killed by notebook', by_tests='by tests',
                   survived='alive')
    for o in (*columns.values(), 'score'): table.add_column(o, justify='right')
    def row(name, o, **kwargs): table.add_row(name, *(str(o[k]) for k in columns), f"{o['score']:.1%}", **kwargs)
    for name, o in kept['modules'].items():
        for f,v in o['functions'].items(): row(f'  {name}.{f}', v)
        row(name, o, style='bold', end_section=True)
    row('all', kept['total'], style='bold')
    console.print(table)

def report(verdicts, results, entries, every):
    "Print what needs a look; whether anything does."
    survivors = [m for m,v in verdicts.items() if v == 'survived']
    for m in survivors:
        diff = [o for o in results[m.item.job_id].diff.splitlines() if o[:3] not in ('---', '+++') and o[:1] in '+-']
        print(f'\nALIVE {m.module}.{m.function}, {m.operator}', *diff, sep='\n')
    killed = [m for m,v in verdicts.items() if v in ('notebook', 'tests') and any(names_it(e, m) for e in entries)]
    for m in killed:
        where = json.loads(results[m.item.job_id].output)['where'][0]
        print(f'\nNAMED EQUIVALENT, YET KILLED {m.module}.{m.function}: {m.change[1]}\n  {where}')
    old = stale(entries, every)
    for o in old: print(f'\nNAMED EQUIVALENT, BUT NO SUCH MUTANT {o}')
    return bool(survivors or killed or old)

@call_parse
def main(
    only:Param('Modules or functions, as in backward or backward.relu_grad; all by default', str, nargs='*'),
    project:str=str(root), # The project
    jobs:int=2, # Copies of the project that work at the same time
    session:str='', # File that keeps the results of Cosmic Ray, to go on with an interrupted run; none by default
    equivalents:str=str(root/'tools'/'mutants_equivalent.toml'), # The list of those that cannot be killed
    tests:str='', # Parts of the names of the files of tests to use, as in 'core modules'; fewer may only find less
    out:str=str(root/'results'/'mutants.json'), # Where to keep the scores of whole modules
):
    "Mutation score of the backward functions: what noticed each fault, and which were not noticed."
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1)) # as Ctrl-C does: nothing is left behind
    os.environ.update(OMP_NUM_THREADS='1', FB_PASS_OFFLINE='1')
    start, entries = perf_counter(), read_equivalents(equivalents)
    with TemporaryDirectory(prefix='mutants-') as folder:
        # Work in the tree meanwhile changes nothing here.
        copy_project(project, copied := Path(folder)/'project')
        os.chdir(copied)
        print('making mutants', flush=True)
        every = [*mutants('fb_pass', fingerprint(copied))]
        found = [m for m in every if chosen(m, only)]
        if not found:
            known = dict.fromkeys(f'{f.cell.module}.{f.qualname}' for f in functions('fb_pass'))
            sys.exit(f"no mutant of {', '.join(only)}; there are: {', '.join(known)}")
        print(f'{len(found)} mutants of {len({(m.module, m.function) for m in found})} functions', flush=True)
        results = execute(found, entries, copied, folder, session or f'{folder}/session.sqlite', jobs, tests)
        os.chdir(root)
    verdicts = judge(found, results, entries)
    kept = summary(verdicts)
    show(kept)
    wrong = report(verdicts, results, entries, every)
    keep(Path(out), kept, found, every)
    total = kept['total']
    print(f"\n{total['killed']} of {total['mutants'] - total['equivalent']} killed, {total['equivalent']} more are "
          f'equivalent; {(perf_counter() - start)/60:.0f} minutes')
    sys.exit(wrong)
