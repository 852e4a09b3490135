"Notebooks, package and README are in step, and keep the rules of the house."
import ast, importlib, inspect, json, re, shutil, subprocess, sys
from configparser import ConfigParser
from dataclasses import is_dataclass
from importlib.metadata import version
from pathlib import Path

import pytest
from fastcore.docments import docments

root = Path(__file__).resolve().parent.parent
notebooks = sorted((root/'nbs').glob('*.ipynb'))
modules = sorted(p for p in (root/'fb_pass').glob('*.py') if p.name[0] != '_')
rooms = {p.stem[3:]: int(p.stem[:2]) for p in notebooks if re.match(r'\d\d_', p.stem)}
each_notebook = pytest.mark.parametrize('path', notebooks, ids=lambda p: p.stem)
each_module = pytest.mark.parametrize('path', modules, ids=lambda p: p.stem)

def settings():
    ini = ConfigParser(delimiters=['='])
    ini.read(root/'settings.ini', encoding='utf-8')
    return ini['DEFAULT']

def cells(path, kind='code'): return [c for c in json.loads(path.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == kind]

def tree(source):
    "Syntax tree of a cell as Python 3.10 reads it; lines for IPython alone are left out."
    return ast.parse(re.sub(r'(?m)^\s*[%!].*$', '', source), feature_version=(3, 10))

def files(folder): return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}

@pytest.fixture(scope='module')
def fresh(tmp_path_factory):
    "A copy of the settings and the notebooks, cleaned and exported from scratch."
    new = tmp_path_factory.mktemp('fresh')
    for name in ('settings.ini', 'setup.py', 'LICENSE'): shutil.copy(root/name, new)
    (new/'nbs').mkdir()
    for p in notebooks: shutil.copy(p, new/'nbs')
    for command in ('nbdev_clean', 'nbdev_export'):
        subprocess.run([Path(sys.executable).parent/command], cwd=new, check=True, stdin=subprocess.DEVNULL)
    return new

def test_package_is_in_step(fresh):
    ours, theirs = files(root/'fb_pass'), files(fresh/'fb_pass')
    assert ours.keys() == theirs.keys(), 'make export'
    stale = [k for k in ours if ours[k] != theirs[k]]
    assert not stale, f'these differ from a fresh export: {stale}; make export'

def without_numbers(path):
    "A notebook without the numbers of execution, which nbdev_clean drops and which we keep to see that it ran from top to bottom."
    nb = json.loads(path.read_text(encoding='utf-8'))
    for o in (o for c in nb['cells'] for o in (c, *c.get('outputs', ()))): o.pop('execution_count', None)
    return nb

@each_notebook
def test_notebook_is_clean(fresh, path):
    assert without_numbers(path) == without_numbers(fresh/'nbs'/path.name), f'make notebooks NB={path.stem}'

def test_readme_is_in_step():
    from make_readme import readme
    fresh = (root/'README.md').read_text(encoding='utf-8') == readme()
    assert fresh, 'make readme'

def printed(body):
    "Whether statements that surely run call print."
    loops = [o for stmt in body if isinstance(stmt, (ast.For, ast.With)) for o in stmt.body]
    calls = [o.value for o in body if isinstance(o, ast.Expr) and isinstance(o.value, ast.Call)]
    return any(getattr(o.func, 'id', '') == 'print' for o in calls) or bool(loops) and printed(loops)

def shows(source):
    "Whether a cell must have put something out: it prints, or closes with an expression that is no call."
    body = tree(source).body
    if printed(body): return True
    closes = bool(body) and isinstance(body[-1], ast.Expr) and not isinstance(body[-1].value, (ast.Call, ast.Constant))
    return closes and not source.rstrip().endswith(';')

@each_notebook
def test_notebook_is_executed(path):
    numbers = [c['execution_count'] for c in cells(path) if ''.join(c['source']).strip()]
    assert numbers == [*range(1, len(numbers)+1)], f'not run from top to bottom: make notebooks NB={path.stem}'
    silent = [''.join(c['source']) for c in cells(path) if shows(''.join(c['source'])) and not c['outputs']]
    assert not silent, f'cells that should show something and do not; run them: {[o.splitlines()[-1] for o in silent]}'

@each_notebook
def test_outputs_are_fit_for_print(path):
    outputs = [o for c in cells(path) for o in c['outputs']]
    bad = [''.join(o.get('text', o.get('traceback', ''))) for o in outputs if o.get('name') == 'stderr' or o['output_type'] == 'error']
    assert not bad, '\n'.join(bad)
    texts = [''.join(t) for o in outputs for t in [o.get('text', ''), *(v for k,v in o.get('data', {}).items() if k[:4] == 'text')]]
    machine = r'(?<![\w.:/])/(home|root|tmp|usr|opt|var|mnt|work|Users|private)/\S*|\b[A-Z]:\\\S*'
    paths = [m[0] for t in texts for m in re.finditer(machine, t)]
    assert not paths, f'paths of one machine: {paths}'

def imports(tree):
    "Names of the rooms that a piece of code imports from; '*' for a star."
    for node in ast.walk(tree):
        if isinstance(node, ast.Import): yield from (a.name[8:] for a in node.names if a.name.startswith('fb_pass.'))
        if isinstance(node, ast.ImportFrom):
            module = re.sub(r'^fb_pass\b\.?', '', node.module or '') if node.level or (node.module or '').split('.')[0] == 'fb_pass' else None
            for a in node.names:
                if a.name == '*': yield '*'
                elif module is not None: yield module or a.name

@each_notebook
def test_nothing_is_imported_from_a_later_room(path):
    found = {o for c in cells(path) for o in imports(tree(''.join(c['source'])))}
    assert '*' not in found, 'import by name'
    later = {o for o in found if path.stem != 'index' and rooms.get(o, -1) > rooms[path.stem[3:]]}
    assert not later, f'later rooms: {later}'

@each_module
def test_module_imports_only_from_rooms_before(path):
    wrong = {o for o in imports(tree(path.read_text(encoding='utf-8'))) if rooms.get(o, 99) >= rooms[path.stem]}
    assert not wrong, f'not rooms before this one: {wrong}'

def test_version_has_one_place():
    number = settings()['version']
    import fb_pass
    assert fb_pass.__version__ == version('fb_pass') == number
    hand_written = [root/o for o in ('setup.py', 'pyproject.toml', 'Makefile', 'MANIFEST.in')]
    again = [p.name for p in hand_written if number in p.read_text(encoding='utf-8')]
    assert not again, f'repeated in {again}'

def undocumented(name, f, signature):
    "What a reader of the documentation of `f` would miss."
    docs = docments(f)
    wanted = [k for k in signature.parameters if k not in ('self', 'cls')]
    if signature.return_annotation not in (inspect.Signature.empty, None): wanted.append('return')
    return [f'{name}: {k}' for k in wanted if not docs.get(k)]

def faults(name, o):
    "What lacks a docstring or a docment in a public function or class; a constant has neither."
    if not callable(o): return []
    found = [] if inspect.getdoc(o) else [f'{name}: docstring']
    if not inspect.isclass(o): return found + undocumented(name, o, inspect.signature(o))
    for k,f in vars(o).items():
        f = getattr(f, 'fget', None) or getattr(f, '__func__', f)
        if not inspect.isfunction(f): continue
        if k == '__init__': found += undocumented(name, o if is_dataclass(o) else f, inspect.signature(f)) # a dataclass has its comments in the class
        elif k[0] != '_' and not inspect.getdoc(getattr(o, k)): found.append(f'{name}.{k}: docstring')
    return found

@each_module
def test_public_names_are_documented(path):
    module = importlib.import_module(f'fb_pass.{path.stem}')
    missing = [o for name in module.__all__ for o in faults(name, getattr(module, name))]
    assert not missing, f'lack a docstring or the comment of an argument: {missing}'

@pytest.mark.parametrize('path', sorted([*root.glob('fb_pass/*.py'), *root.glob('exercises/*.py'), *root.glob('t*s/*.py'), root/'setup.py']), ids=lambda p: p.stem)
def test_code_reads_as_the_oldest_python(path):
    ast.parse(path.read_text(encoding='utf-8'), feature_version=tuple(map(int, settings()['min_python'].split('.'))))
