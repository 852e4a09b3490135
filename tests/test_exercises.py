"The exercises: an empty answer is met politely, a wrong one with the right hint, a solution is right; and a class gets notebooks without solutions."
import ast, importlib, inspect, re
from pathlib import Path

import nbformat
import pytest
import torch
from book import notebooks as all_notebooks
from fb_pass.exercises import all_exercises, check_exercise
from make_exercises import for_class, is_solution, main, read_exercises, section

root = Path(__file__).resolve().parent.parent
rooms = sorted(p for p in (root/'nbs').glob('*.ipynb') if re.match(r'0\d|1[0-7]', p.stem))
notebooks = {p.stem: nbformat.read(p, as_version=4) for p in rooms}
exercises = [(room, e.number) for room,nb in notebooks.items() for e in read_exercises(nb)[1]]
each_room = pytest.mark.parametrize('room', notebooks)
each_exercise = pytest.mark.parametrize('room, number', exercises, ids=[f'{r}.{k}' for r,k in exercises])
registry = all_exercises()
mistakes = [(name, o) for name,ex in registry.items() for o in ex.wrong]

def find(room, number): return next(e for e in read_exercises(notebooks[room])[1] if e.number == number)

def tree(source): return ast.parse(re.sub(r'(?m)^\s*[%!].*$', '', source))

def imports(nb):
    "The imports of a notebook that stand at the top level of its cells, one cell after the other."
    for cell in nb.cells:
        if cell.cell_type == 'code': yield from (ast.unparse(o) for o in tree(cell.source).body if isinstance(o, (ast.Import, ast.ImportFrom)))

def run(source, names):
    "Execute a cell as a notebook does: the value of its last line is its result."
    body = ast.parse(source).body
    last = ast.Expression(body.pop().value) if body and isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), '<cell>', 'exec'), names)
    return eval(compile(last, '<cell>', 'eval'), names) if last else None

@pytest.fixture
def names(room):
    "What an exercise may use: the room's exports, what its notebook imports, and what stands before the first exercise."
    nb = notebooks[room]
    names = {k: v for k,v in vars(importlib.import_module(f'fb_pass.{room[3:]}')).items() if k[:2] != '__'}
    names['__name__'] = '__main__' # or classes would be of no module
    for source in imports(nb): run(source, names)
    for source in read_exercises(nb)[0]: run(source, names)
    return names

@each_room
def test_room_has_exercises(room):
    found = read_exercises(notebooks[room])[1]
    assert 3 <= len(found) <= 5, f'{room} has {len(found)} exercises, expected three to five'
    assert [e.number for e in found] == [*range(1, len(found)+1)]
    for e in found:
        what = f'{room}, exercise {e.number}'
        assert e.given and len(e.checks) == len(e.solutions) == 1, f'{what}: expected an empty answer, one check and one folded solution'
        check = e.checks[0].source.strip().splitlines()[-1]
        assert check.startswith(f"check_exercise('{room[:2]}.{e.number}',"), f'{what} checks another one: {check}'
        assert e.solutions[0].source.strip().splitlines()[-1] == check, f'{what}: the solution must end with {check}'

def test_every_exercise_has_a_checker_and_every_checker_an_exercise():
    assert sorted(registry) == [f'{room[:2]}.{number}' for room,number in exercises]

@each_exercise
def test_empty_answer_is_met_politely(room, number, names):
    e = find(room, number)
    for cell in e.given: run(cell.source, names)
    verdict = run(e.checks[0].source, names)
    task = registry[verdict.name].task
    assert verdict.state == 'empty' and task in str(verdict), verdict

@each_exercise
def test_solution_is_right(room, number, names):
    e = find(room, number)
    for cell in (*e.given, *e.solutions): verdict = run(cell.source, names)
    assert verdict.state == 'right' and verdict.text.strip(), verdict

@each_exercise
def test_tuple_that_is_too_short_is_refused(room, number, names):
    e = find(room, number)
    for cell in (*e.given, *e.solutions): verdict = run(cell.source, names)
    answer = names[re.search(r"check_exercise\('\d\d\.\d', (\w+)\)", e.checks[0].source)[1]]
    if isinstance(answer, tuple): assert not check_exercise(verdict.name, answer[:-1]), 'one value is missing'

@each_exercise
def test_notebook_shows_these_verdicts(room, number):
    e = find(room, number)
    for cells,opening in ((e.checks, 'Not yet.'), (e.solutions, 'Right.')):
        texts = [o.get('data', {}).get('text/plain', '') for o in cells[0].outputs]
        assert len(texts) == 1 and texts[0].startswith(opening), f'{texts}: make notebooks NB={room}'

@each_exercise
def test_solution_is_folded(room, number):
    "On the site by the directives, in JupyterLab by the metadata; and what the check says to it, since that tells a lot."
    cell = find(room, number).solutions[0]
    assert '#| output: false' in cell.source.splitlines()[:3]
    assert cell.metadata.get('jupyter') == {'source_hidden': True, 'outputs_hidden': True}

@pytest.mark.parametrize('name', registry)
def test_exercise_has_common_mistakes(name): assert len(registry[name].wrong) >= 2

@pytest.mark.parametrize('name, mistake', mistakes, ids=[f'{n}-{m}' for n,m in mistakes])
def test_mistake_gets_its_hint(name, mistake):
    answer, words = registry[name].wrong[mistake]
    verdict = check_exercise(name, answer)
    assert verdict.state in ('wrong', 'error'), f'{mistake} is taken for {verdict.state}'
    assert words.lower() in verdict.text.lower(), f'{mistake}: expected {words!r} in the hint {verdict.text!r}'

def no_sense(*args, **kwargs): return object()
def stops(*args, **kwargs): raise RuntimeError('a slip')
nonsense = {'number': 1234567.8, 'string': 'nonsense', 'object': object(), 'class': object, 'function': no_sense, 'error': stops, 'tensor': torch.full((2, 3), torch.nan), 'tuple': (1j, 'y', object())}

@pytest.mark.parametrize('name', registry)
@pytest.mark.parametrize('kind', nonsense)
def test_nonsense_is_refused_in_words(name, kind):
    state = torch.get_rng_state()
    verdict = check_exercise(name, nonsense[kind])
    assert verdict.state in ('wrong', 'error') and verdict.text.strip()
    assert torch.equal(state, torch.get_rng_state())

def test_error_in_an_answer_is_reported_with_its_line():
    name = next(iter(registry))
    found = [check_exercise(k, stops) for k in registry]
    stopped = [str(o) for o in found if o.state == 'error']
    assert stopped and all("RuntimeError: a slip" in o and 'line 1 of `stops`' in o for o in stopped)
    with pytest.raises(KeyError, match=f'has {name}'): check_exercise(f'{name[:2]}.9', 0)

@each_room
def test_class_gets_no_solutions(room):
    nb = notebooks[room]
    bare = for_class(nb)
    solutions = [o.source for o in section(nb) if is_solution(o)]
    removed = len(nb.cells) - len(bare.cells)
    assert removed == len(solutions) > 0
    assert not any('code-summary: "Solution"' in o.source or '<summary>Solution' in o.source for o in bare.cells)
    assert not any(o.outputs for o in section(bare) if o.cell_type == 'code')
    outside = lambda nb: [o for o in nb.cells if o not in section(nb)]
    same = outside(bare) == outside(nb) # compared here, so that a failure does not print both notebooks
    assert same, 'something else has changed'

def test_class_gets_all_notebooks_but_the_answers(tmp_path, capsys):
    main.__wrapped__([], str(tmp_path))
    written = {p.relative_to(tmp_path): nbformat.read(p, as_version=4) for p in tmp_path.glob('**/*.ipynb')}
    assert written.keys() == {p.relative_to(root/'nbs') for k,p in all_notebooks().items() if k != '19_answers'}
    for nb in written.values(): nbformat.validate(nb)
    assert capsys.readouterr().out.startswith(f'{len(written)} notebooks without solutions')
    with pytest.raises(SystemExit, match='no notebook 77_nowhere'): main.__wrapped__(['77_nowhere'], str(tmp_path))

def test_class_sees_the_pictures():
    assert Path(inspect.signature(main.__wrapped__).parameters['out'].default).parent == root, 'beside nbs/, so that ../images is found'

def assigned(sources):
    "Names that cells give a value at their top level."
    for node in (o for source in sources for o in tree(source).body):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)): yield node.name
        elif isinstance(node, (ast.Import, ast.ImportFrom)): continue
        else: yield from (o.id for o in ast.walk(node) if isinstance(o, ast.Name) and isinstance(o.ctx, ast.Store))

@each_room
def test_exercises_change_nothing_that_the_notebook_uses(room):
    nb = notebooks[room]
    ours = [o.source for o in section(nb) if o.cell_type == 'code']
    others = [o.source for o in nb.cells if o.cell_type == 'code' and o.source not in ours]
    used = {o.id for source in others for o in ast.walk(tree(source)) if isinstance(o, ast.Name)}
    defined = {o.name for source in others for o in ast.walk(tree(source)) if isinstance(o, (ast.FunctionDef, ast.ClassDef))}
    assert not (clash := set(assigned(ours)) & (used | defined)), f'{room}: take other names for {sorted(clash)}'
