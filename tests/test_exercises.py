"The exercises: an empty answer is met politely, a wrong one with its hint, a solution is right; a room loads alone."
import ast, builtins, importlib, inspect, io, math, os, random, re, subprocess, sys, threading, warnings
from pathlib import Path

import exercises
import fb_pass.checks
import nbformat
import numpy as np
import pytest
import torch
from nbclient import NotebookClient
from book import notebooks as all_notebooks
from exercises import Verdict, check_exercise, exercises_of, rooms, tomllib, verdict_of
from exercises.asking import Ask, ask, ask_twice, exercise, judge, same
from exercises.gaps import codes, has_gap, is_blank
from fb_pass.backward import relu_rule
from fb_pass.modules import Lin
from make_exercises import for_class, is_solution, main, read_exercises, section

root = Path(__file__).resolve().parent.parent
CHECK = re.compile(r"check_exercise\('(\d\d)\.(\d)', (\w+)\)")

def numbered():
    "Page, number of its room, and notebook, for all notebooks in which something is checked; the lesson comes first."
    for stem, path in all_notebooks().items():
        nb = nbformat.read(path, as_version=4)
        found = [m[1] for cell in section(nb) if cell.cell_type == 'code' for m in CHECK.finditer(cell.source)]
        if found: yield stem, found[0], nb

notebooks, room_of = {}, {}
for stem, room, nb in numbered(): notebooks[stem], room_of[stem] = nb, room
named = [(stem, e.number) for stem,nb in notebooks.items() for e in read_exercises(nb)[1]]
every = {name: ex for room in rooms() for name,ex in exercises_of(room).items()}
each_room = pytest.mark.parametrize('room', sorted({*room_of.values()}))
each_page = pytest.mark.parametrize('stem', notebooks)
each_exercise = pytest.mark.parametrize('stem, number', named, ids=[f'{r}.{k}' for r,k in named])

def data(room):
    path = root/'exercises'/f'room_{room}.toml'
    return tomllib.loads(path.read_text(encoding='utf-8')) if path.exists() else {}

def find(stem, number): return next(e for e in read_exercises(notebooks[stem])[1] if e.number == number)

def tree(source): return ast.parse(re.sub(r'(?m)^\s*[%!].*$', '', source))

def imports(nb):
    "The imports of a notebook that stand at the top level of its cells, one cell after the other."
    for cell in nb.cells:
        if cell.cell_type != 'code': continue
        yield from (ast.unparse(o) for o in tree(cell.source).body if isinstance(o, (ast.Import, ast.ImportFrom)))

def run(source, names):
    "Execute a cell as a notebook does: the value of its last line is its result."
    body = ast.parse(source).body
    last = ast.Expression(body.pop().value) if body and isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), '<cell>', 'exec'), names)
    return eval(compile(last, '<cell>', 'eval'), names) if last else None

@pytest.fixture
def names(stem, monkeypatch):
    "What an exercise may use: what its page exports, what its notebook imports, and what stands before exercise 1."
    nb, path = notebooks[stem], all_notebooks()[stem]
    exported = [m[1] for cell in nb.cells for m in [re.search(r'(?m)^#\| default_exp (\S+)', cell.source)] if m]
    names = {k: v for o in exported for k,v in vars(importlib.import_module(f'fb_pass.{o}')).items() if k[:2] != '__'}
    names['__name__'] = '__main__' # or classes would be of no module
    monkeypatch.chdir(path.parent)
    monkeypatch.setattr(sys, 'path', [*sys.path]) # the notebooks add to it
    for source in imports(nb): run(source, names)
    for source in read_exercises(nb)[0]: run(source, names)
    return names

def test_every_exercise_has_an_entry_and_every_entry_an_exercise():
    "Names what is missing: an exercise is a cell of a notebook, and an entry in the files of its room in exercises/."
    asked = {f'{room_of[stem]}.{number}' for stem,number in named}
    assert not (lost := asked - every.keys()), f'no entry in exercises/ for {sorted(lost)}'
    assert not (lost := every.keys() - asked), f'asked for in no notebook: {sorted(lost)}'

@each_room
def test_room_has_exercises(room):
    "Numbered from the lesson on; two or three stand there, and the others on the page beside it."
    found = {stem: [e.number for e in read_exercises(notebooks[stem])[1]] for stem,o in room_of.items() if o == room}
    numbers = [o for ks in found.values() for o in ks]
    assert numbers == [*range(1, len(numbers)+1)] and 3 <= len(numbers) <= 5, found
    lesson = [len(ks) for stem,ks in found.items() if '/' not in stem and room <= '07']
    assert all(2 <= o <= 3 for o in lesson), found

@each_page
def test_exercises_are_whole(stem):
    room = room_of[stem]
    for e in read_exercises(notebooks[stem])[1]:
        what = f'{stem}, exercise {e.number}'
        whole = e.given and len(e.checks) == len(e.solutions) == 1
        assert whole, f'{what}: expected an empty answer, one check and one folded solution'
        check = e.checks[0].source.strip().splitlines()[-1]
        assert check.startswith(f"check_exercise('{room}.{e.number}',"), f'{what} checks another one: {check}'
        assert e.solutions[0].source.strip().splitlines()[-1] == check, f'{what}: the solution must end with {check}'

def cell_with_import():
    return next(c.source for c in notebooks['00_datasets'].cells if 'from exercises import' in c.source)

@each_page
def test_import_is_the_same_everywhere(stem):
    cells = [c.source for c in notebooks[stem].cells if 'from exercises import' in c.source]
    assert len(cells) == 1 and cells[0].endswith(cell_with_import()), f'{stem}: {cells}'

@each_exercise
def test_empty_answer_is_met_politely(stem, number, names):
    e = find(stem, number)
    for cell in e.given: run(cell.source, names)
    verdict = run(e.checks[0].source, names)
    assert verdict.state == 'empty' and every[verdict.name].task in str(verdict), verdict

@each_exercise
def test_solution_is_right(stem, number, names):
    e, room = find(stem, number), room_of[stem]
    for cell in (*e.given, *e.solutions): verdict = run(cell.source, names)
    assert verdict.state == 'right' and verdict.text.strip(), verdict
    answer = names[CHECK.search(e.checks[0].source)[3]]
    if isinstance(answer, tuple): assert not check_exercise(verdict.name, answer[:-1]), 'one value is missing'
    for text,wrong in (found := [*mistakes(room, number, answer)]):
        said = check_exercise(verdict.name, wrong)
        assert said.state == 'wrong' and text in said.text, f'{wrong!r}: expected {text!r} in {said.text!r}'
    told = {check_exercise(verdict.name, wrong).text for _,wrong in found}
    assert len(told) >= 2 or verdict.name not in data(room), f'{verdict.name}: two common mistakes must be told apart'

def mistakes(room, number, answer):
    "Wrong answers that follow from an entry of a TOML file and the right answer: (what must be said, answer)."
    entry = data(room).get(f'{room}.{number}', {})
    code = root/'exercises'/f'room_{room}.py'
    names = vars(importlib.import_module(f'exercises.{code.stem}')) if code.exists() else {}
    def wrong(part):
        for k,text in part.get('slips', {}).items():
            v = eval(k, {'math': math, 'torch': torch, **names})
            yield from ((text, o) for o in (v if isinstance(v, set) and 'members' not in entry else [v]))
        if 'members' not in entry: yield part.get('hint', ''), 'something else'
    if 'answer' in entry: yield from wrong(entry)
    for i,part in enumerate(entry.get('parts', {}).values()):
        yield from ((text, (*answer[:i], v, *answer[i+1:])) for text,v in wrong(part))
    for k,part in entry.get('keys', {}).items(): yield from ((text, answer | {k: v}) for text,v in wrong(part))
    for o in (members := entry.get('members', [])):
        if (other := {*answer} ^ {o}): yield members[o] if isinstance(members, dict) else '', other

@each_exercise
def test_notebook_shows_these_verdicts(stem, number):
    e = find(stem, number)
    for cells,opening in ((e.checks, 'Not yet.'), (e.solutions, 'Right.')):
        texts = [o.get('data', {}).get('text/plain', '') for o in cells[0].outputs]
        assert len(texts) == 1 and texts[0].startswith(opening), f'{texts}: make notebooks NB={stem}'

@each_exercise
def test_solution_is_folded(stem, number):
    "On the site by the directives, in JupyterLab by the metadata; and what the check says to it, which tells a lot."
    cell = find(stem, number).solutions[0]
    assert '#| output: false' in cell.source.splitlines()[:3]
    assert cell.metadata.get('jupyter') == {'source_hidden': True, 'outputs_hidden': True}

coded = [name for name in every if name not in data(name[:2])]

@pytest.mark.parametrize('name', coded)
def test_mistakes_get_their_hints(name):
    ex = every[name]
    said = set()
    for words,answer in [*ex.slips.items(), *ex.wrong]:
        verdict = check_exercise(name, answer)
        assert verdict.state in ('wrong', 'error'), f'{words!r} is taken for {verdict.state}'
        assert words.lower() in verdict.text.lower(), f'expected {words!r} in the hint {verdict.text!r}'
        said.add(verdict.text)
    assert len(said) >= 2, 'two common mistakes must be told apart'

def no_sense(*args, **kwargs): return object()
def stops(*args, **kwargs): raise RuntimeError('a slip')
nonsense = {'number': 1234567.8, 'string': 'nonsense', 'object': object(), 'class': object, 'function': no_sense,
            'error': stops, 'tensor': torch.full((2, 3), torch.nan), 'tuple': (1j, 'y', object()), 'in itself': []}
nonsense['in itself'].append(nonsense['in itself'])

@pytest.mark.parametrize('name', every)
@pytest.mark.parametrize('kind', nonsense)
def test_nonsense_is_refused_in_words(name, kind):
    state = torch.get_rng_state()
    verdict = check_exercise(name, nonsense[kind])
    assert verdict.state in ('wrong', 'error') and verdict.text.strip()
    assert torch.equal(state, torch.get_rng_state())

# Answers that do more than answer: what they change, and how it is seen

def none(*args): return None
changes = {
    'grad mode': (lambda: torch.set_grad_enabled(False), torch.is_grad_enabled),
    'inference mode': (lambda: torch.inference_mode().__enter__(), torch.is_inference_mode_enabled),
    'default dtype': (lambda: torch.set_default_dtype(torch.float64), torch.get_default_dtype),
    'default device': (lambda: torch.set_default_device('meta'), lambda: torch.empty(0).device),
    'random numbers': (lambda: torch.manual_seed(3), torch.get_rng_state),
    'random numbers of Python': (lambda: random.seed(3), random.getstate),
    'random numbers of numpy': (lambda: np.random.seed(3), np.random.get_state),
    'determinism': (lambda: torch.use_deterministic_algorithms(True), torch.are_deterministic_algorithms_enabled),
    'anomaly detection': (lambda: torch.autograd.set_detect_anomaly(True), torch.is_anomaly_enabled),
    'precision': (lambda: torch.set_float32_matmul_precision('medium'), torch.get_float32_matmul_precision),
    'printing': (lambda: torch.set_printoptions(precision=1), lambda: torch.tensor(1/3)),
    'printing of numpy': (lambda: np.set_printoptions(precision=1), lambda: np.array(1/3)),
    'errors of numpy': (lambda: np.seterr(all='raise'), np.geterr),
    'warnings': (lambda: warnings.simplefilter('ignore'), lambda: [*warnings.filters]),
    'environment': (lambda: os.environ.pop('PATH'), lambda: dict(os.environ)),
    'working directory': (lambda: os.chdir('/'), os.getcwd),
    'search path': (lambda: sys.path.clear(), lambda: [*sys.path]),
    'output': (lambda: setattr(sys, 'stdout', io.StringIO()), lambda: sys.stdout),
    'recursion': (lambda: sys.setrecursionlimit(2000), sys.getrecursionlimit),
    'a function': (lambda: setattr(fb_pass.checks, 'test_close', none), lambda: fb_pass.checks.test_close),
    'a function of torch': (lambda: setattr(torch, 'equal', none), lambda: torch.equal),
    'a function of Python': (lambda: setattr(fb_pass.checks, 'abs', none), lambda: vars(fb_pass.checks).get('abs')),
    'a built-in function': (lambda: setattr(builtins, 'sorted', none), lambda: builtins.sorted),
    'a method': (lambda: setattr(Lin, '__call__', none), lambda: Lin.__call__),
    'a rule': (lambda: setattr(relu_rule, 'backward', none), lambda: relu_rule.backward),
    'the check': (lambda: setattr(exercises, 'is_blank', none), lambda: exercises.is_blank)}

def wrong_answer(inp, out): inp.g = (0 if getattr(inp, 'g', None) is None else inp.g) + 7*out.g
def right_answer(inp, out): inp.g = (0 if getattr(inp, 'g', None) is None else inp.g) + out.g*out*(1 - out)

@pytest.mark.parametrize('change, look', changes.values(), ids=changes)
def test_an_answer_changes_nothing_for_what_comes_later(change, look):
    before = look()
    assert not check_exercise('05.1', lambda inp, out: change())
    assert str(look()) == str(before)
    assert check_exercise('05.1', right_answer) and not check_exercise('05.1', wrong_answer)

class OwnStop(BaseException): pass

@pytest.mark.parametrize('error', [SystemExit, KeyboardInterrupt, GeneratorExit, OwnStop, RecursionError])
def test_an_answer_cannot_stop_the_notebook(error):
    def leaves(inp, out): raise error
    def deeper(inp, out): return deeper(inp, out)
    verdict = check_exercise('05.1', deeper if error is RecursionError else leaves)
    assert verdict.state == 'error' and error.__name__ in verdict.text and 'That was line 1 of' in verdict.text

def test_an_answer_that_cannot_even_be_described():
    class Error(Exception):
        def __str__(self): raise ValueError
    def raises(inp, out): raise Error
    deep = []
    for _ in range(100_000): deep = [deep]
    for answer in (raises, deep): assert 'could not use your answer' in check_exercise('05.1', answer).text

def loop(inp, out):
    while True: pass

def tough(inp, out):
    for _ in range(3):
        try: loop(inp, out)
        except BaseException: pass
    loop(inp, out)

@pytest.mark.parametrize('answer', [loop, tough])
def test_an_endless_loop_is_stopped(answer):
    "In any thread, with the line where it was, and with what to do if it is none."
    found = [check_exercise('05.1', answer, seconds=.3)]
    other = threading.Thread(target=lambda: found.append(check_exercise('05.1', answer, seconds=.3)))
    other.start(), other.join()
    for verdict in found:
        assert verdict.state == 'error' and 'seconds=60' in verdict.text
        assert 'line 2 of `loop`: `while True: pass`' in verdict.text or answer is tough

def test_what_cannot_be_stopped_is_left_behind():
    never = threading.Event()
    verdict = check_exercise('05.1', lambda inp, out: never.wait(), seconds=.1)
    assert verdict.state == 'error' and 'restart the kernel' in verdict.text
    never.set()

INTERRUPTED = """
import threading, _thread
from exercises import check_exercise
def loop(inp, out):
    threading.Timer(.5, _thread.interrupt_main).start()
    while True: pass
print(check_exercise('05.1', loop).state)
"""

def test_an_interruption_stops_the_answer_alone():
    res = subprocess.run([sys.executable, '-c', INTERRUPTED], capture_output=True, text=True, cwd=root, timeout=60)
    assert res.stdout == 'error\n', res.stderr

NOTEBOOK = ['from exercises import check_exercise', """
def leaves(inp, out): exit()
check_exercise('05.1', leaves)""", """
def prints(inp, out): print('seen')
check_exercise('05.1', prints)"""]

def test_in_a_notebook(tmp_path):
    "There `exit` ends the kernel, and what is printed belongs to the cell."
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(o) for o in NOTEBOOK])
    NotebookClient(nb, timeout=60, resources=dict(metadata=dict(path=root))).execute()
    left,(printed,_) = nb.cells[1].outputs[0],nb.cells[2].outputs
    assert 'SystemExit' in left.data['text/plain'] and printed.text == 'seen\n'

def test_error_in_an_answer_is_reported_with_its_line():
    found = [check_exercise(k, stops) for k in every]
    stopped = [str(o) for o in found if o.state == 'error']
    assert stopped and all('RuntimeError: a slip' in o and 'line 1 of `stops`' in o for o in stopped)

def test_unknown_exercise_is_an_error_that_lists_those_there_are():
    with pytest.raises(KeyError, match='room 05 has 05.1, 05.2'): check_exercise('05.9', 0)
    with pytest.raises(KeyError, match='there are rooms 00, 01'): check_exercise('square', 0)

# What checkers are made of

drawn = torch.Generator().manual_seed(42)
x, w, g = [torch.randn(n, 3, dtype=torch.float64, generator=drawn) for n in (5, 3, 5)]

@exercise('99.1', 'Write `square_grad(x)`, the gradient of `(x**2).sum()`.', 'Every entry answers for itself alone.',
          {'Half of what it should be: what does the exponent become?': lambda x: x})
def square_grad(answer): yield ask(answer(x), 2*x, 'x.g', 'Nudge one entry.', values=dict(x=x))

def check(answer):
    "As `check_exercise` does it, for the example above."
    try: return Verdict('99.1', 'right', judge(square_grad, answer))
    except Exception as e: return verdict_of(e, square_grad, answer)

def test_verdict_is_something_to_look_at():
    assert str(Verdict('00.1', 'right', 'Both agree.')) == 'Right. Both agree.'
    assert [bool(Verdict('00.1', o, '')) for o in ('empty', 'wrong', 'error', 'right')] == [False, False, False, True]
    assert '<code>x &lt; 0</code>' in Verdict('00.1', 'wrong', 'is `x < 0` here?')._repr_html_()

def test_answers_are_told_apart():
    def in_a_line(x): return 2 * ...
    def nothing(x): pass
    answers = in_a_line, nothing, lambda x: x, lambda x: x/0*y, 7, lambda x: 2*x # noqa: F821
    assert [check(o).state for o in answers] == ['empty', 'empty', 'wrong', 'error', 'wrong', 'right']
    assert 'of type int' in str(check(7)) and 'what does the exponent become' in str(check(lambda x: x))
    assert all(o in str(check(lambda x: 6*x)) for o in ('x.g is wrong in', 'What it looks like', 'Nudge one entry.'))

def test_gaps_are_found():
    def in_place(x, out): x.g = ...
    def nothing(x): "Only words."
    class Half:
        def forward(self, x): return 2*x
        def backward(self, out, x): ...
    class HalfFunction(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x): return 2*x
        @staticmethod
        def backward(ctx, g): return ...
    def last(x, i): return x[..., i] + x[...]
    def constant(x): return 3
    gap = [any(map(has_gap, codes(o))) for o in (in_place, nothing, Half, HalfFunction, (nothing, 3))]
    assert all(gap) and not any(any(map(has_gap, codes(o))) for o in (last, constant, lambda x: None, 3))
    assert all(map(is_blank, (None, ..., '', [], (1, None), {'a': ...})))
    assert not any(map(is_blank, (0, False, 'w', (1, 2), torch.zeros(0))))

def test_wrong_gradient_is_explained():
    def said(got, want, **where):
        try: judge(exercise('99.2', '')(lambda a: (o for o in [ask(got, want, 'w.g', **where)])), None)
        except AssertionError as e: return str(e)
    want = x.t() @ g
    assert 'transposed' in said(g.t() @ x, want, values=dict(x=x, w=w), grads={'out.g': g})
    assert 'expected a tensor' in said(3., want) and 'is missing' in said(None, want)
    assert said(x.t() @ g, want) is None and all(said(f*want, want) for f in (1.001, -1))

def test_backward_must_add():
    def backward(inp, add): inp.g = g + (getattr(inp, 'g', 0) if add else 0)
    def example(add): inp = x.clone(); yield from ask_twice(lambda: backward(inp, add), inp, g)
    assert judge(exercise('99.3', '', 'Right')(example), True) == 'Right'
    with pytest.raises(AssertionError, match='add, do not overwrite'): judge(exercise('99.3', '')(example), False)

def test_predictions_are_compared_as_people_write_them():
    pairs = (.1304, .13), (torch.tensor(2.), 2), ('W ', 'w'), (True, True), ([4], (4,)), (dict(a=1), dict(a=1.))
    assert all(same(a, b, 1e-2) for a,b in pairs)
    assert not any(same(a, b) for a,b in ((1, True), ('2', 2), ((1, 2), (1, 2, 3)), (dict(a=1), dict(b=1))))
    answer = exercise('99.4', '')(lambda a: (Ask(o, 4, hint='Count.', slips=[(5, 'One less.')]) for o in [a]))
    for wrong,hint in ((5, 'One less.'), (6, '6 is not it. Count.'), ('four', 'is not it')):
        with pytest.raises(AssertionError, match=hint): judge(answer, wrong)

# What loads what

LOADED = """
import sys
from exercises import check_exercise, exercises_of
assert check_exercise('{room}.1', None).state == 'empty' and exercises_of('{room}')
for name, wrong in [(ex.name, a) for ex in exercises_of('{room}').values() for a in [*ex.slips.values()][:1]]:
    if {wrong}: assert not check_exercise(name, wrong)
print(*(o for o in sys.modules if o.startswith(('fb_pass.doctor', 'fb_pass.viewer', 'exercises.room'))))
"""

def loaded(room, wrong=False):
    "What of the doctor, the viewer and the rooms is loaded after the exercises of a room, in a fresh process."
    code = [sys.executable, '-c', LOADED.format(room=room, wrong=wrong)]
    res = subprocess.run(code, capture_output=True, text=True, cwd=root)
    assert not res.returncode, res.stderr
    return set(res.stdout.split())

@each_room
def test_room_loads_alone(room):
    found = loaded(room)
    others = {o for o in found if o.startswith('exercises.room') and o[-2:] != room}
    assert not others, f'exercises of other rooms are loaded: {sorted(others)}'
    if not any(stem.startswith('doctor/') for stem,o in room_of.items() if o == room):
        ours = {o for o in found if o.startswith('fb_pass')}
        assert not ours or room in ('17', '18'), f'the doctor or the viewer is loaded: {sorted(ours)}'

def test_doctor_is_loaded_when_a_wrong_gradient_has_to_be_explained():
    assert 'fb_pass.doctor.diagnosis' not in loaded('05')
    bad = check_exercise('05.5', lambda x, w, g: 3*(x.t()@(g@w) + g.t()@(x@w)))
    assert 'What it looks like' in str(bad) and '3' in str(bad)

@pytest.mark.parametrize('folder', ['nbs', 'nbs/doctor', '_run', '_exercises', 'nbs/deeper'])
def test_import_cell_works_where_a_notebook_may_be(folder, tmp_path):
    "Its working directory is its folder; on Colab it is nbs/ of a clone, and the package was installed alone."
    (tmp_path/'clone'/folder).mkdir(parents=True)
    (tmp_path/'clone'/'exercises').symlink_to(root/'exercises', target_is_directory=True)
    code = [sys.executable, '-c', cell_with_import() + "\nassert check_exercise('01.1', (3.31, 3.01))"]
    res = subprocess.run(code, cwd=tmp_path/'clone'/folder, capture_output=True, text=True)
    assert not res.returncode, res.stderr

def test_who_has_only_the_wheel_is_told_where_the_exercises_are(tmp_path):
    res = subprocess.run([sys.executable, '-I', '-c', cell_with_import()], cwd=tmp_path, capture_output=True, text=True)
    assert res.returncode and 'git clone https://github.com/fb-pass/fb_pass' in res.stderr.splitlines()[-1], res.stderr

# Notebooks for a class

@each_page
def test_class_gets_no_solutions(stem):
    nb = notebooks[stem]
    bare = for_class(nb)
    solutions = [o.source for o in section(nb) if is_solution(o)]
    removed = len(nb.cells) - len(bare.cells)
    assert removed == len(solutions) > 0
    assert not any('code-summary: "Solution"' in o.source or '<summary>Solution' in o.source for o in bare.cells)
    assert not any(o.outputs for o in section(bare) if o.cell_type == 'code')
    def outside(nb): return [o for o in nb.cells if o not in section(nb)]
    unchanged = outside(bare) == outside(nb) # compared here, so that a failure does not print both notebooks
    assert unchanged, 'something else has changed'

def test_class_gets_all_notebooks(tmp_path, capsys):
    main.__wrapped__([], str(tmp_path))
    written = {p.relative_to(tmp_path): nbformat.read(p, as_version=4) for p in tmp_path.glob('**/*.ipynb')}
    assert written.keys() == {p.relative_to(root/'nbs') for k,p in all_notebooks().items()}
    for nb in written.values(): nbformat.validate(nb)
    assert capsys.readouterr().out.startswith(f'{len(written)} notebooks without solutions')
    with pytest.raises(SystemExit, match='no notebook 77_nowhere'): main.__wrapped__(['77_nowhere'], str(tmp_path))

def test_class_sees_the_pictures():
    folder = Path(inspect.signature(main.__wrapped__).parameters['out'].default).parent
    assert folder == root, 'beside nbs/, so that ../images is found'

def assigned(sources):
    "Names that cells give a value at their top level."
    for node in (o for source in sources for o in tree(source).body):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)): yield node.name
        elif isinstance(node, (ast.Import, ast.ImportFrom)): continue
        else: yield from (o.id for o in ast.walk(node) if isinstance(o, ast.Name) and isinstance(o.ctx, ast.Store))

@each_page
def test_exercises_change_nothing_that_the_notebook_uses(stem):
    nb = notebooks[stem]
    ours = [o.source for o in section(nb) if o.cell_type == 'code']
    others = [o.source for o in nb.cells if o.cell_type == 'code' and o.source not in ours]
    nodes = [o for source in others for o in ast.walk(tree(source))]
    used = {o.id for o in nodes if isinstance(o, ast.Name)}
    defined = {o.name for o in nodes if isinstance(o, (ast.FunctionDef, ast.ClassDef))}
    assert not (clash := set(assigned(ours)) & (used | defined)), f'{stem}: take other names for {sorted(clash)}'
