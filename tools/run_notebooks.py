"Execute the notebooks top to bottom, each in a fresh kernel, and say what was checked, on which data, and what failed."
import os, re, shutil, sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from types import SimpleNamespace

import nbformat
from book import notebooks, root
from fastcore.script import Param, call_parse
from jupyter_core.utils import run_sync
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from traitlets.config import Config

console = Console(highlight=False, markup=False, soft_wrap=True)

def plain(s): return re.sub(r'\x1b\[[0-9;]*m', '', s)

def fetch_data():
    "Look for the data once, so that a download happens once and is seen; the line that says which data it is."
    from fb_pass.datasets import get_data
    with redirect_stdout(StringIO()) as said: x_train, *_ = get_data()
    # Without all of MNIST here and now, no notebook needs to wait for the network again.
    if len(x_train) < 50_000: os.environ['FB_PASS_OFFLINE'] = '1'
    return said.getvalue().strip()

def prepare_kernels(folder):
    "Environment of every kernel: this Python, nobody's own IPython settings, and the counter of checks."
    startup = Path(folder)/'profile_default'/'startup'
    startup.mkdir(parents=True)
    shutil.copy(root/'tools'/'count_checks.py', startup)
    os.environ.update(IPYTHONDIR=folder, JUPYTER_RUNTIME_DIR=folder, JUPYTER_PREFER_ENV_PATH='1')

def checks_passed(client):
    "What the counter of checks in the kernel says; 0 if the kernel is dead or still busy."
    if not run_sync(client.km.is_alive)(): return 0
    ask = run_sync(client.kc.execute_interactive)
    try: reply = ask('', silent=True, timeout=5, user_expressions={'n': 'get_ipython().checks_passed'})
    except Exception: return 0
    return int(reply['content']['user_expressions']['n']['data']['text/plain'])

def data_lines(nb):
    "What `get_data` printed in an executed notebook."
    texts = [o.text for c in nb.cells for o in c.get('outputs', ()) if o.get('name') == 'stdout']
    return [l for t in texts for l in t.splitlines() if l.startswith('MNIST:')]

def run_notebook(name, path, out, timeout, advance):
    "Execute a notebook, write it to `out`. A failure is part of the result, so that the other notebooks still run."
    res = SimpleNamespace(name=name, checks=0, seconds=0., error='', trace='', data=[])
    start, nb, number = perf_counter(), None, 0
    # Files of our own instead of TCP, where anyone on the machine could listen, as the kernel would warn every time.
    socket = f"{os.environ['JUPYTER_RUNTIME_DIR']}/{path.stem}"
    transport = dict(transport='ipc', ip=socket) if os.name == 'posix' else {}
    try:
        nb = nbformat.read(path, as_version=4)
        client = NotebookClient(nb, kernel_name='python3', timeout=timeout, record_timing=False, coalesce_streams=True,
                                resources={'metadata': {'path': str(path.parent)}},
                                config=Config(KernelManager=transport))
        with client.setup_kernel():
            try:
                for i,cell in enumerate(nb.cells):
                    number += cell.cell_type == 'code' and bool(cell.source.strip())
                    client.execute_cell(cell, i)
                    advance(len(nb.cells))
            finally: res.checks = checks_passed(client)
    except CellExecutionError as e:
        res.error, res.trace = f"{e.ename}: {plain(e.evalue).partition(chr(10))[0]}", plain(e.traceback)
    except Exception as e: res.error = f'{type(e).__name__}: {e}'.strip().splitlines()[0]
    if res.error and number: res.error = f'cell [{number}]: {res.error}'
    if nb:
        nb.metadata.pop('language_info', None) # the kernel adds it; what is left is the same on every machine
        (target := out/f'{name}.ipynb').parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(nb, target)
        res.data = data_lines(nb)
    res.seconds = perf_counter() - start
    return res

def run_all(paths, out, timeout):
    "Execute the notebooks one after the other, so that each has all cores and its measured times mean something."
    results = []
    bar = BarColumn(), MofNCompleteColumn(), TextColumn('cells'), TimeElapsedColumn()
    columns = TextColumn('{task.description}'), *bar
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        for i,(name,path) in enumerate(paths.items(), 1):
            what = f'{i} of {len(paths)}  {name}'
            if not console.is_terminal: print(what, flush=True)
            task = progress.add_task(what, total=None)
            def advance(n, task=task): progress.update(task, total=n, advance=1)
            results.append(run_notebook(name, path, out, timeout, advance))
            progress.remove_task(task)
    return results

def report(results, data):
    "Print the table, the data and what failed."
    table = Table('notebook', title='Notebooks')
    for o in ('checks passed', 'seconds'): table.add_column(o, justify='right')
    table.add_column('')
    for r in results: table.add_row(r.name, str(r.checks), f'{r.seconds:.1f}', 'FAILED' if r.error else 'ok')
    table.add_section()
    table.add_row('all', str(sum(r.checks for r in results)), f'{sum(r.seconds for r in results):.1f}', '')
    console.print(table)
    # What stands in brackets is why, and the notebooks cannot know that as well as the first look for the data.
    lines = {l.partition(' (')[0]: l for l in reversed([data] + [l for r in results for l in r.data])}
    for line in reversed(lines.values()): print(line)
    for r in results:
        if r.error: print(f"\nFAILED {r.name}, {r.error}" + (f'\n\n{r.trace}' if r.trace else ''))

@call_parse
def main(
    names:Param('Notebooks to run, as in 05_backward, doctor/report or doctor; all by default', str, nargs='*'),
    nbs:str=str(root/'nbs'), # Folder of the notebooks
    out:str=str(root/'_run'), # Folder for the executed notebooks
    timeout:int=1800, # Seconds that one cell may take
):
    "Execute notebooks, each in a fresh kernel; print what was checked, how long it took, on which data, what failed."
    paths, out = notebooks(names, Path(nbs)), Path(out)
    out.mkdir(exist_ok=True)
    data = fetch_data()
    print(data, flush=True)
    with TemporaryDirectory() as folder:
        prepare_kernels(folder)
        results = run_all(paths, out, timeout)
    report(results, data)
    failed = [r.name for r in results if r.error]
    print(f"\nExecuted notebooks are in {os.path.relpath(out)}/" + (f"; failed: {', '.join(failed)}" if failed else ''))
    sys.exit(bool(failed))
