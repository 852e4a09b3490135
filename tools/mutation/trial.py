"Trying mutants: each in a copy of the project, first on the owning notebook, then on the tests that reach it."
import json, multiprocessing, os, re, shutil, signal, sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack, suppress
from difflib import unified_diff
from importlib import import_module
from pathlib import Path
from time import perf_counter

import pytest
from cosmic_ray import plugins
from cosmic_ray.distribution.distributor import Distributor
from cosmic_ray.mutating import use_mutation
from cosmic_ray.util import restore_contents
from cosmic_ray.work_item import TestOutcome, WorkResult, WorkerOutcome
from hypothesis import Phase, settings
from nbdev.config import get_config
from nbdev.sync import nbdev_update
from nbdev.test import test_nb

from . import operators # noqa: F401, makes Cosmic Ray know them
from .scope import imported, module_name, package_imports

SLOW = 'torch.utils.data', 'numpy', 'matplotlib.pyplot', 'hypothesis.extra.numpy'
SKIP = shutil.ignore_patterns('.*', '_run', '_proc', '_docs', 'build', 'dist', '*.egg-info', '__pycache__')

def copy_project(root, new):
    "Copy what is under version control, nearly: no environment, nothing that commands write, of the data the samples."
    def skip(folder, names):
        data = {'README.md', 'mnist_sample.npz', 'shakespeare.txt'}
        return SKIP(folder, names) | ({*names} - data if Path(folder) == Path(root)/'data' else set())
    shutil.copytree(root, new, ignore=skip)

def run_forked(f, args, timeout, log):
    "Run `f(*args)` in a process that knows what this one has imported: (exit code or 'timeout', what it printed)."
    def child():
        os.setsid() # so that all it starts ends with it
        with open(log, 'wb') as out:
            for fd in (1, 2): os.dup2(out.fileno(), fd)
        sys.exit(f(*args))
    p = multiprocessing.get_context('fork').Process(target=child)
    p.start()
    try: p.join(timeout)
    finally:
        code = 'timeout' if p.is_alive() else p.exitcode
        with suppress(ProcessLookupError, PermissionError): os.killpg(p.pid, signal.SIGKILL)
        p.kill()
        p.join()
    return code, Path(log).read_text(encoding='utf-8', errors='replace') if Path(log).exists() else ''

def notebook_fails(path):
    "Run a notebook as nbdev_test does: whether a cell fails."
    ok, _ = test_nb(Path(path).resolve(), skip_flags=get_config().tst_flags.split(), basepath=os.getcwd())
    return not ok

def first_failure(name, said):
    "What a notebook that failed says, in a line."
    where = re.search(r'Cell #(\d+)', said)
    kinds = re.findall(r'(?m)^((?:\w+\.)*\w*(?:Error|Exception|Interrupt|Exit|Warning)\b.*)$', said)
    return f"{name}, cell {where[1] if where else '?'}: {(kinds or said.strip().splitlines() or ['no word'])[-1]}"[:300]

class Chosen:
    """Plugin of pytest: runs `names` only, in that order, or all; keeps what failed, how long each took, and which
    functions of the package it called."""
    def __init__(self, package, names=None):
        self.package, self.names, self.failed, self.seconds, self.reached, self.here = package, names, [], {}, {}, set()

    def pytest_collection_modifyitems(self, config, items):
        if self.names is None: return
        order = {o: i for i,o in enumerate(self.names)}
        config.hook.pytest_deselected(items=[o for o in items if o.nodeid not in order])
        items[:] = sorted((o for o in items if o.nodeid in order), key=lambda o: order[o.nodeid])

    def pytest_runtest_logreport(self, report):
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.) + report.duration
        said = str(getattr(report.longrepr, 'reprcrash', '') or report.longrepr).strip()
        if report.failed: self.failed.append(f'{report.nodeid}: {said.splitlines()[0]}'[:300])
    def pytest_collectreport(self, report):
        if report.failed: self.failed.append(f'{report.nodeid}: {str(report.longrepr).strip().splitlines()[-1]}'[:300])

    def called(self, frame, event, arg):
        inside = frame.f_code.co_filename.startswith(f'{self.package}{os.sep}')
        if event == 'call' and inside: self.here.add(frame.f_code)
    def watch(self, name):
        "Add what is called meanwhile to what `name` reaches."
        if self.names is not None: return (yield)
        self.here = set()
        sys.setprofile(self.called)
        try: return (yield)
        finally:
            sys.setprofile(None)
            found = {(module_name(o.co_filename, self.package), o.co_firstlineno) for o in self.here}
            self.reached.setdefault(name, set()).update(found)

    # What a file calls when it is read, or a fixture when it is made, serves all tests of the file.
    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(self, collector): return (yield from self.watch(collector.nodeid))
    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item): return (yield from self.watch(item.nodeid.partition('::')[0]))
    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item): return (yield from self.watch(item.nodeid))

def tests_fail(files, names, scratch, result):
    """Run tests in this process until the first fails, or, without `names`, all of them; into the file `result` goes
    what is known then. Whether one has failed."""
    # The same examples every time, none remembered; a mutant is dead without the smallest example that kills it.
    settings.register_profile('mutants', derandomize=True, database=None, phases=(Phase.explicit, Phase.generate))
    settings.load_profile('mutants')
    sys.path.insert(0, os.getcwd())
    import fb_pass
    chosen = Chosen(Path('fb_pass').resolve(), names)
    if Path(fb_pass.__file__).resolve().parent != chosen.package:
        raise ImportError(f'{fb_pass.__file__} is not the package of the copy')
    options = ['-q', '--no-header', '-p', 'no:cacheprovider', '--basetemp', f'{scratch}/pytest']
    code = pytest.main([*options, *(['-x'] if names is not None else []), *files], plugins=[chosen])
    reached = [[k, *o] for k,v in chosen.reached.items() for o in sorted(v)]
    kept = dict(failed=chosen.failed, seconds=chosen.seconds, reached=reached)
    Path(result).write_text(json.dumps(kept), encoding='utf-8')
    return code not in (0, 5) # 5: no tests

def test_files(root, wanted):
    "The files of tests that import one of the modules `wanted`, or a module that imports one."
    files = sorted((root/'tests').glob('**/test_*.py'))
    return [p.relative_to(root).as_posix() for p in files
            if imported(root/'fb_pass', package_imports(p)) & set(wanted)]

class Copy:
    "What a worker holds: a copy of the project, and an empty folder for all that is written."
    def __init__(self, project, folder):
        self.scratch = Path(folder)/str(os.getpid())
        copy_project(project, self.scratch/'project')
        os.chdir(self.scratch/'project')
        (self.scratch/'tmp').mkdir()
        places = dict(XDG_CACHE_HOME='cache', IPYTHONDIR='ipython', TMPDIR='tmp', PYTHONPATH='project')
        os.environ.update({k: str(self.scratch/v) for k,v in places.items()})
        os.environ.update(OMP_NUM_THREADS='1', FB_PASS_OFFLINE='1', PYTHONDONTWRITEBYTECODE='1', MPLBACKEND='agg')
        os.environ.pop('FB_PASS_DATA', None)
        sys.dont_write_bytecode = True
        # What takes long to import is imported once, if it is used; each process imports the package itself.
        every = [p for o in ('fb_pass/**/*.py', 'nbs/**/*.ipynb', 'tests/**/*.py') for p in Path().glob(o)]
        used = ''.join(p.read_text(encoding='utf-8') for p in every)
        for name in SLOW:
            if name.partition('.')[0] in used: import_module(name)

    def notebook(self, path, timeout):
        start = perf_counter()
        code, said = run_forked(notebook_fails, (path,), timeout, self.scratch/'log')
        failure = 'timeout' if code == 'timeout' else first_failure(Path(path).stem, said)
        return dict(seconds=perf_counter() - start, failed=[failure] if code else [], said=said)

    def tests(self, files, names, timeout):
        start, result = perf_counter(), self.scratch/'result.json'
        result.unlink(missing_ok=True)
        shutil.rmtree(self.scratch/'tmp'/'pytest', ignore_errors=True)
        code, said = run_forked(tests_fail, (files, names, self.scratch/'tmp', result), timeout, self.scratch/'log')
        failure = 'timeout' if code == 'timeout' else f'pytest ended with {code}'
        found = json.loads(result.read_text(encoding='utf-8')) if result.exists() else dict(seconds={}, reached=[])
        failed = found.get('failed') or ([failure] if code or not result.exists() else [])
        return dict(found, all=perf_counter() - start, said=said, failed=failed)

    def mutant(self, item, cell, expected, tests, timeouts):
        "Try one: a `WorkResult` whose output says who killed it, if anyone did, and where."
        spec, = item.mutations
        path = Path(spec.module_path)
        notebook = (path.parent/cell.notebook).resolve()
        operator = plugins.get_operator(spec.operator_name)(**spec.operator_args)
        with ExitStack() as stack:
            old, new = stack.enter_context(use_mutation(path, operator, spec.occurrence))
            if new != old.replace(cell.source, expected): return WorkResult(WorkerOutcome.NO_TEST)
            stack.enter_context(restore_contents(notebook))
            nbdev_update(str(path)) # into the notebook, too
            who, where = 'notebook', self.notebook(notebook, timeouts[0])['failed']
            if not where and tests:
                files = sorted({o.partition('::')[0] for o in tests})
                who, where = 'tests', self.tests(files, tests, timeouts[1])['failed']
        outcome = TestOutcome.KILLED if where else TestOutcome.SURVIVED
        diff = '\n'.join(unified_diff(old.splitlines(), new.splitlines(), f'a/{path}', f'b/{path}', lineterm=''))
        said = json.dumps(dict(by=who if where else '', where=where[:1]))
        return WorkResult(WorkerOutcome.NORMAL, said, outcome, diff)

copy = None
def begin(project, folder):
    global copy
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    copy = Copy(project, folder)
def do(name, *args): return getattr(copy, name)(*args)

class Copies(Distributor):
    "Hands Cosmic Ray's work to processes that have a copy of the project each."
    def __init__(self, project, folder, jobs):
        spawn = multiprocessing.get_context('spawn')
        self.pool = ProcessPoolExecutor(jobs, spawn, begin, (str(project), str(folder)))
    def __enter__(self): return self
    def __exit__(self, *args): self.pool.shutdown(cancel_futures=True)

    def run(self, tasks):
        "Do `tasks`, tuples of a key, the name of what to do, and its arguments; yields keys and results as they come."
        futures = {self.pool.submit(do, *task): key for key,*task in tasks}
        for o in as_completed(futures): yield futures[o], o.result()

    def __call__(self, pending_work, test_command, timeout, config, on_task_complete):
        "`config` has, for each job, its cell, what becomes of it, the tests, and the seconds they may take."
        tasks = ((o.job_id, 'mutant', o, *config[o.job_id]) for o in pending_work)
        for job, result in self.run(tasks): on_task_complete(job, result)
