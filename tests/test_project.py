"Notebooks, package and README are in step, and keep the rules of the house."
import ast, importlib, inspect, json, re, shutil, subprocess, sys
from dataclasses import is_dataclass
from importlib.metadata import version
from pathlib import Path

import grimp
import pytest
from book import notebooks as book, pages, settings
from fastcore.docments import docments

root = Path(__file__).resolve().parent.parent
notebooks = book()
hand_written = {'__init__.py'} # every other module is exported
modules = {p.relative_to(root/'fb_pass').with_suffix('').as_posix().replace('/', '.'): p
           for p in sorted(root.glob('fb_pass/**/*.py')) if p.name[0] != '_'}
each_notebook = pytest.mark.parametrize('stem', notebooks)
each_module = pytest.mark.parametrize('name', modules)

def cells(stem, kind='code'):
    return [c for c in json.loads(notebooks[stem].read_text(encoding='utf-8'))['cells'] if c['cell_type'] == kind]

def tree(source):
    "Syntax tree of a cell as Python 3.10 reads it; lines for IPython alone are left out."
    return ast.parse(re.sub(r'(?m)^\s*[%!].*$', '', source), feature_version=(3, 10))

def exported(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.glob('**/*.py') if p.name not in hand_written}

@pytest.fixture(scope='module')
def fresh(tmp_path_factory):
    "A copy of the settings and the notebooks, cleaned and exported from scratch."
    new = tmp_path_factory.mktemp('fresh')
    for name in ('settings.ini', 'setup.py', 'LICENSE'): shutil.copy(root/name, new)
    only = shutil.ignore_patterns('.*', '_*', '*.svg', '*.css')
    shutil.copytree(root/'nbs', new/'nbs', ignore=only)
    for command in ('nbdev_clean', 'nbdev_export'):
        subprocess.run([Path(sys.executable).parent/command], cwd=new, check=True, stdin=subprocess.DEVNULL)
    return new

def test_package_is_in_step(fresh):
    ours, theirs = exported(root/'fb_pass'), exported(fresh/'fb_pass')
    assert ours.keys() == theirs.keys(), 'make export'
    stale = [k for k in ours if ours[k] != theirs[k]]
    assert not stale, f'these differ from a fresh export: {stale}; make export'

def without_numbers(path):
    "A notebook without the numbers of execution, which nbdev_clean drops; we keep them to see that it ran as a whole."
    nb = json.loads(path.read_text(encoding='utf-8'))
    for o in (o for c in nb['cells'] for o in (c, *c.get('outputs', ()))): o.pop('execution_count', None)
    return nb

@each_notebook
def test_notebook_is_clean(fresh, stem):
    cleaned = without_numbers(fresh/'nbs'/f'{stem}.ipynb')
    assert without_numbers(notebooks[stem]) == cleaned, f'make notebooks NB={stem}'

def test_readme_is_in_step():
    from make_readme import readme
    fresh = (root/'README.md').read_text(encoding='utf-8') == readme()
    assert fresh, 'make readme'

def test_drawing_of_the_imports_is_in_step():
    from imports import block, drawing, page
    assert block.findall(page.read_text(encoding='utf-8'))[0] == drawing(), 'make imports'

def test_contributing_names_every_tool_and_only_what_is_there():
    text = (root/'CONTRIBUTING.md').read_text(encoding='utf-8')
    missing = [p.name for p in (root/'tools').glob('*.py') if f'`{p.name}`' not in text]
    assert not missing, f'CONTRIBUTING.md does not say why they are ours: {missing}'
    targets = re.findall(r'(?m)^([a-z-]+):', (root/'Makefile').read_text(encoding='utf-8'))
    gone = {o for said in re.findall(r'`make ([^`]+)`', text) for o in said.split() if '=' not in o} - {*targets}
    assert not gone, f'no such commands: {gone}'

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
def test_notebook_is_executed(stem):
    numbers = [c['execution_count'] for c in cells(stem) if ''.join(c['source']).strip()]
    assert numbers == [*range(1, len(numbers)+1)], f'not run from top to bottom: make notebooks NB={stem}'
    silent = [''.join(c['source']) for c in cells(stem) if shows(''.join(c['source'])) and not c['outputs']]
    assert not silent, f'cells that should show something and do not; run them: {[o.splitlines()[-1] for o in silent]}'

@each_notebook
def test_outputs_are_fit_for_print(stem):
    outputs = [o for c in cells(stem) for o in c['outputs']]
    bad = [''.join(o.get('text', o.get('traceback', ''))) for o in outputs
           if o.get('name') == 'stderr' or o['output_type'] == 'error']
    assert not bad, '\n'.join(bad)
    texts = [''.join(t) for o in outputs
             for t in (o.get('text', ''), *(v for k,v in o.get('data', {}).items() if k[:4] == 'text'))]
    machine = r'(?<![\w.:/])/(home|root|tmp|usr|opt|var|mnt|work|Users|private)/\S*|\b[A-Z]:\\\S*'
    paths = [m[0] for t in texts for m in re.finditer(machine, t)]
    assert not paths, f'paths of one machine: {paths}'

places = {o.module: o for o in pages() if o.module} # a module and the page that exports it
places |= {'doctor': places['doctor.report']}
parts = {o.stem: o for o in pages()}

def comes_later(page, here):
    "Whether a page of the lesson comes after a room; to the rooms, deeper pages are read with the room beside them."
    return page.part in ('Lesson', 'Deeper') and here.part in ('Lesson', 'Deeper') and page.number > here.number

def imports(tree):
    "Names of the modules that the code of a notebook imports from; '*' for a star."
    for node in ast.walk(tree):
        if isinstance(node, ast.Import): found = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            whole = [f'{node.module}.{a.name}' for a in node.names]
            found = [o if o[8:] in places or o[-1] == '*' else node.module for o in whole]
        else: continue
        yield from ('*' if o[-1] == '*' else o[8:] for o in found if o.startswith('fb_pass.'))

@each_notebook
def test_nothing_is_imported_from_a_later_room(stem):
    found = {o for c in cells(stem) for o in imports(tree(''.join(c['source'])))}
    assert '*' not in found, 'import by name'
    later = {o for o in found & places.keys() if comes_later(places[o], parts[stem])}
    assert not later, f'later rooms: {later}'

@pytest.fixture(scope='module')
def graph(): return grimp.build_graph('fb_pass', cache_dir=None)

@each_module
def test_module_needs_no_later_room_and_there_is_no_circle(graph, name):
    "Directly or by way of others; nor does a module name another in a string, to import it when it is called."
    here = f'fb_pass.{name}'
    in_strings = set(re.findall(r"""['"]fb_pass\.([\w.]+)['"]""", modules[name].read_text(encoding='utf-8')))
    in_strings &= places.keys()
    in_strings.discard(name.rpartition('.')[0]) # its own package, where its files are
    assert not in_strings, f'imported by name: {in_strings}'
    needed = {o[8:] for o in graph.find_upstream_modules(here)}
    assert name not in needed, 'it needs itself'
    later = {o for o in needed & places.keys() if comes_later(places[o], places[name])}
    assert not later, f'from later rooms: {later}'

@each_module
def test_what_one_module_takes_from_another_is_public(graph, name):
    tree = ast.parse(modules[name].read_text(encoding='utf-8'))
    taken = [(o.module, a.name) for o in ast.walk(tree) if isinstance(o, ast.ImportFrom) and o.level for a in o.names]
    assert not [o for o in taken if o[1][0] == '_']

def assigned_rules(tree):
    "Names that a module or a class gives to a `Rule(...)`, as in lin_rule or Gelu.rule."
    for scope, names in [(tree, '')] + [(o, f'{o.name}.') for o in ast.walk(tree) if isinstance(o, ast.ClassDef)]:
        for o in scope.body:
            call = getattr(o, 'value', None) if isinstance(o, ast.Assign) else None
            if isinstance(call, ast.Call) and getattr(call.func, 'id', '') == 'Rule':
                yield from (names + t.id for t in o.targets if isinstance(t, ast.Name))

@each_module
def test_rule_is_checked_and_has_its_layer(name):
    "What a new layer may lack; its mutants are asked for by tests/test_mutants.py."
    found = list(assigned_rules(ast.parse(modules[name].read_text(encoding='utf-8'))))
    code = '\n'.join(''.join(c['source']) for o in notebooks for c in cells(o))
    source = '\n'.join(p.read_text(encoding='utf-8') for p in modules.values())
    unchecked = [o for o in found if not re.search(rf'check_rule\({re.escape(o)}\b', code)]
    assert not unchecked, f'below it in its notebook belongs check_rule(...) of {unchecked}'
    bare = [o for o in found if '.' not in o and not re.search(rf'(?m)^    rule\b[^=]*= .*\b{o}\b', source)]
    assert not bare, f'no class has `rule = ...` of {bare}; CONTRIBUTING.md says how a layer is added'

def test_version_has_one_place():
    number = settings()['version']
    import fb_pass
    assert fb_pass.__version__ == version('fb_pass') == number
    again = [o for o in ('setup.py', 'pyproject.toml', 'Makefile', 'MANIFEST.in') if number in (root/o).read_text()]
    assert not again, f'repeated in {again}'

def undocumented(name, f, signature):
    "What a reader of the documentation of `f` would miss."
    docs = docments(f)
    # fastcore's docments cannot read the comment of **others
    wanted = [k for k,p in signature.parameters.items() if k not in ('self', 'cls') and p.kind is not p.VAR_KEYWORD]
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
        # a dataclass has its comments in the class
        if k == '__init__': found += undocumented(name, o if is_dataclass(o) else f, inspect.signature(f))
        elif k[0] != '_' and not inspect.getdoc(getattr(o, k)): found.append(f'{name}.{k}: docstring')
    return found

@each_module
def test_public_names_are_documented(name):
    module = importlib.import_module(f'fb_pass.{name}')
    missing = [o for name in module.__all__ for o in faults(name, getattr(module, name))]
    assert not missing, f'lack a docstring or the comment of an argument: {missing}'

every_file = sorted(p for o in ('exercises', 'fb_pass', 'tests', 'tools') for p in root.glob(f'{o}/**/*.py'))
@pytest.mark.parametrize('path', [*every_file, root/'setup.py'], ids=lambda p: str(p.relative_to(root)))
def test_code_reads_as_the_oldest_python(path):
    ast.parse(path.read_text(encoding='utf-8'), feature_version=tuple(map(int, settings()['min_python'].split('.'))))
