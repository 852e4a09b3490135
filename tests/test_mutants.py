"The command behind `make mutants`: the faults, where they are put, and a run on a project made for the purpose."
import json, re, subprocess, sys

import mutants as command
import pytest
from cosmic_ray.mutating import mutate_code
from cosmic_ray.work_db import use_db
from mutation.operators import OURS, all_operators
from mutation.scope import functions, mutants, split_cells
from mutation.trial import spliced, test_files as files_that_import

EXAMPLES = [(name, e) for name, cls in OURS.items() for e in cls.examples()]

@pytest.mark.parametrize('name, e', EXAMPLES, ids=lambda o: getattr(o, 'pre_mutation_code', o))
def test_operator_makes_the_fault_that_it_says(name, e):
    assert mutate_code(e.pre_mutation_code, OURS[name](**e.operator_args), e.occurrence) == e.post_mutation_code

@pytest.mark.parametrize('name, source', [
    ('Scale', 'def forward(self, g): return g'), # goes forward
    ('Scale', 'def f(g): _check(g); n = len(g)'), # only looked at
    ('Scale', "def f(x): return 'g'"), ('Scale', 'def f(ctx, grad): a,b = h(ctx, x)'),
    ('DoubleStatement', '_check_x(x)\n'), ('DoubleStatement', 'clear_grads(x)\n'), ('DoubleStatement', 'x = g\n'), ('DoubleStatement', 'ctx.save_for_backward(x)\n'), ('Stale', 'def f(t): t.g = None'),
    ('SwapArguments', "f('name', x)"), ('SwapArguments', 'f(a=1, b=2)'), ('SwapArguments', 'np.maximum(x, 0)'),
    ('SwapOperands', 'a + b'), ('DropMethod', 'torch.where(m, g, 0)'), ('DropMethod', 'p.sub_(g)\n'),
    ('OtherTensor', 'def f(a, b): return x.a'), ('OtherTensor', 'def f(self, a): return a')])
def test_operator_leaves_alone_what_would_be_no_fault(name, source):
    op = OURS[name](**({'factor': '2'} if name == 'Scale' else {}))
    assert mutate_code(source, op, 0) is None

@pytest.fixture(scope='module')
def ours(root): return [*mutants(root/'fb_pass')]

def test_every_operator_is_of_use(ours):
    used = {m.operator for m in ours}
    assert OURS.keys() <= used

def test_mutants_differ_and_parse(ours):
    sources = [(m.cell, m.new) for m in ours]
    assert len(set(sources)) == len(sources) and len({m.item.job_id for m in ours}) == len(ours)
    for m in ours: compile(m.new, m.module, 'exec')

def test_cosmic_ray_makes_of_the_module_what_was_made_of_the_cell(ours, root):
    for m in ours[::12]:
        spec, = m.item.mutations
        source = (root/'fb_pass'/f'{m.module}.py').read_text(encoding='utf-8')
        cls = next(type(op) for name, args, op in all_operators() if name == spec.operator_name)
        assert mutate_code(source, cls(**spec.operator_args), spec.occurrence) == source.replace(m.cell.source, m.new)

def names(folder): return {f'{f.cell.module}.{f.qualname}' for f in functions(folder)}

def test_functions_on_the_way_back_are_found(root):
    found = names(root/'fb_pass')
    assert found >= {'checks.add_grad', 'checks.clear_grads', 'checks.upstream_grad', 'normalization.normalize_grad', 'normalization.normalize_full_grad',
                     'backward.mse_grad', 'backward.relu_grad', 'backward.lin_grad', 'backward.forward_and_backward',
                     'modules.Module.__call__', 'modules.Module.backward', 'modules.Relu.bwd', 'modules.Lin.bwd', 'modules.Mse.bwd', 'modules.Model.bwd', 'modules.zero_grad',
                     'autograd._by_hand', 'autograd._asked_for', 'autograd.LinFunction.forward', 'training.cross_entropy_grad', 'training.CrossEntropy.bwd',
                     'training.SGD.update', 'training.AdamW.update', 'closures.Parameter.add', 'closures.Parameter.clear', 'closures.mse_loss', 'closures.SGDOptimizer.update'}
    assert found >= {f'autograd.{o}Function.backward' for o in ('Lin', 'Relu', 'Mse')}
    assert found >= {f'closures.{o}.forward{p}' for o in ('Relu', 'Sigmoid', 'Linear', 'Sequential') for p in ('', '.backward')}
    # what checks a gradient is not on its way, what goes forward is not, and what shall be overridden is not
    assert not found & {'checks.numerical_grad', 'checks.autograd_grad', 'checks.check_grad', 'forward.lin', 'training.softmax', 'modules.Module.bwd', 'training.Optimizer.update'}

CELL = '# %% ../nbs/{}.ipynb #{}\n{}\n\n'
ROOM = '''
def gelu_grad(inp, out): add_grad(inp, out.g * inp)
---
class Conv(Module):
    def __call__(self, x): self.x = x
    def bwd(self, out, x): _spread(out.g)
    @abstractmethod
    def backward(self): "For a subclass to say."
---
def _spread(g): return g
def rms(x):
    # forward: x / x.norm()
    return x
def make():
    def backward(g): return g
    return backward
---
class Lion:
    def update(self, i, p): p.sub_(p.g)
def update(hist): return hist
def check_grad(a, b): return a.g == b.g
'''

def test_a_later_room_is_found_by_itself(tmp_path):
    (tmp_path/'convolution.py').write_text('"Doc."\n' + ''.join(CELL.format('14_convolution', i, o.strip()) for i,o in enumerate(ROOM.split('---'))))
    found = names(tmp_path)
    assert found == {f'convolution.{o}' for o in ('gelu_grad', 'Conv.bwd', 'Conv.__call__', '_spread', 'rms', 'make', 'make.backward', 'Lion.update')}
    assert {f'{m.module}.{m.function}' for m in mutants(tmp_path)} >= found - {'convolution.make'}

def test_mutant_goes_into_the_notebook_as_into_the_module(tmp_path):
    text = 'from .checks import add_grad\n\ndef f(g):\n    # forward: x\n    return g\n'
    (tmp_path/'a.py').write_text(CELL.format('00_a', 'cafe', text.strip()))
    *_, cell = split_cells(tmp_path/'a.py')
    def notebook(source): return json.dumps({'cells': [{'id': 'beef', 'source': ['1']}, {'id': 'cafe', 'source': source.splitlines(True)}]})
    nb = notebook('#| export\n' + text.replace('.checks', 'fb_pass.checks'))
    new = json.loads(spliced(nb, cell, cell.source.replace('return g', 'return 2*g')))
    assert new['cells'][1]['source'] == '#| export\nfrom fb_pass.checks import add_grad\n\ndef f(g):\n    # forward: x\n    return 2*g'
    assert new['cells'][0]['source'] == ['1']
    with pytest.raises(ValueError, match='cell cafe is not what was exported: make export'): spliced(notebook('#| export\n' + text.replace('return g', 'return 3*g')), cell, cell.source.replace('return g', 'return 2*g'))
    with pytest.raises(ValueError, match='the notebook has no cell cafe: make export'): spliced(nb.replace('cafe', 'f00d'), cell, cell.source)

def test_every_mutant_can_be_put_into_its_notebook(ours, root):
    for cell in {m.cell for m in ours}:
        m = next(o for o in ours if o.cell == cell)
        path = root/'fb_pass'/cell.notebook
        assert spliced(path.read_text(encoding='utf-8'), cell, m.new)

def test_tests_of_a_module(root):
    found = files_that_import(root, ['closures'])
    assert 'tests/test_closures.py' in found and not {'tests/test_core.py', 'tests/test_datasets.py', 'tests/test_project.py'} & {*found}
    assert {'tests/test_core.py', 'tests/test_training.py'} <= {*files_that_import(root, ['backward'])}

def test_equivalent_mutants_are_named_with_a_reason_and_exist(ours, root):
    entries = command.read_equivalents(root/'tools'/'mutants_equivalent.toml')
    assert not command.stale(entries, ours), 'the source has changed: look at them anew'
    assert all(len(e['reason'].split()) > 4 for e in entries)

def test_scores_that_are_kept_are_of_the_present_functions(ours, root):
    kept = json.loads((root/'results'/'mutants.json').read_text(encoding='utf-8'))
    def counts(o): return {k: {f: o['mutants'] for f,o in v['functions'].items()} for k,v in o['modules'].items()}
    old, now = counts(kept), counts(command.summary({m: 'notebook' for m in ours}))
    stale = [k for k in {**old, **now} if old.get(k) != now.get(k)]
    assert not stale, f"make mutants ONLY='{' '.join(stale)}'"
    assert all(v['score'] == 1 and not v['survived'] for v in kept['modules'].values())

def test_scores_of_one_module_go_beside_those_of_others(ours, tmp_path):
    def scores(*names, v='notebook'): return command.summary({m: v for m in ours if m.module in names})
    def keep(new, *names): command.keep(tmp_path/'kept.json', new, [m for m in ours if m.module in names], ours)
    keep(scores('backward', 'modules'), 'backward', 'modules')
    keep(scores('modules', v='survived'), 'modules')
    kept = json.loads((tmp_path/'kept.json').read_text())
    n = {k: v['mutants'] for k,v in kept['modules'].items()}
    assert kept['modules']['backward']['score'] == 1 and kept['modules']['modules']['score'] == 0
    assert kept['total']['mutants'] == sum(n.values()) and kept['total']['score'] == n['backward']/sum(n.values())
    command.keep(tmp_path/'kept.json', {}, [m for m in ours if m.function == 'relu_grad'], ours) # a part is not kept
    assert json.loads((tmp_path/'kept.json').read_text()) == kept

TOY = "def backward(g):\n    # forward: x\n    return g"

@pytest.fixture(scope='module')
def toy(tmp_path_factory):
    "A project of one function, whose notebook sees a wrong sign and whose test sees a wrong factor, but not a small one."
    new = tmp_path_factory.mktemp('toy')
    for o in ('fb_pass', 'nbs', 'tests'): (new/o).mkdir()
    (new/'settings.ini').write_text('[DEFAULT]\nlib_name = fb_pass\nlib_path = fb_pass\nnbs_path = nbs\ntst_flags = notest\nuser = me\n')
    (new/'fb_pass'/'__init__.py').write_text('')
    (new/'fb_pass'/'toy.py').write_text(CELL.format('00_toy', 'cafe', TOY))
    write(new, f'#| export\n{TOY}', 'assert backward(1) > 0')
    (new/'tests'/'test_toy.py').write_text('from fb_pass.toy import backward\n\ndef test_toy(): assert abs(backward(1) - 1) < .01\n')
    return new

def write(project, *sources):
    cells = [dict(cell_type='code', id=i, source=o, metadata={}, outputs=[], execution_count=None) for i,o in zip(('cafe', 'beef'), sources)]
    (project/'nbs'/'00_toy.ipynb').write_text(json.dumps(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)))

def run(project, *args):
    args = [sys.executable, command.__file__, '--project', project, '--out', project/'out.json', '--equivalents', project/'equivalent.toml', '--session', project/'session.sqlite', '--jobs', '1', *args]
    res = subprocess.run(args, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return res.returncode, res.stdout

ENTRY = '[[equivalent]]\nmodule = "toy"\nfunction = "backward"\nline = "return g"\nmutants = ["return 1.001*(g)"{}]\nreason = "made up for this test"\n'

def test_a_run_from_end_to_end(toy, capsys):
    before = {p: p.read_bytes() for p in toy.rglob('*') if p.is_file()}
    code, said = run(toy)
    assert code == 1 and 'ALIVE toy.backward, Scale\n-    return g\n+    return 1.001*(g)' in said
    kept = json.loads((toy/'out.json').read_text())
    assert kept['total'] == dict(mutants=6, equivalent=0, killed=5, by_notebook=3, by_tests=2, survived=1, score=5/6)
    assert before == {p: p.read_bytes() for p in before}, 'the project itself is left as it is'

    # once more, with a list that names the survivor; the session knows all results
    (toy/'equivalent.toml').write_text(ENTRY.format(''))
    code, said = run(toy)
    assert code == 0 and '5 of 5 killed, 1 more are equivalent' in said and 'ALIVE' not in said

    # and with a list that is wrong
    (toy/'equivalent.toml').write_text(ENTRY.format(', "return -1*(g)", "return 7*g"'))
    with use_db(toy/'session.sqlite') as db: results = dict(db.results)
    found, entries = [*mutants(toy/'fb_pass', command.fingerprint(toy))], command.read_equivalents(toy/'equivalent.toml')
    assert command.report(command.judge(found, results, entries), results, entries, found)
    said = capsys.readouterr().out
    assert 'NO SUCH MUTANT toy.backward: return 7*g' in said
    assert re.search(r'YET KILLED toy.backward: return -1\*\(g\)\n  00_toy, cell 2: AssertionError', said)

def test_nothing_is_tried_if_something_fails_without_a_fault(toy):
    write(toy, f'#| export\n{TOY}', 'assert backward(1) < 0')
    code, said = run(toy)
    assert code == 1 and 'without any fault this fails' in said and '00_toy, cell 2: AssertionError' in said

def test_what_to_try_is_refused_if_there_is_no_such_thing(toy):
    code, said = run(toy, 'toy.forward')
    assert code == 1 and 'no mutant of toy.forward; there are: toy.backward' in said
