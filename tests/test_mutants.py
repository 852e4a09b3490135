"The command behind `make mutants`: the faults, where they are put, and a run on a project made for the purpose."
import ast, json, re, subprocess, sys

import mutants as command
import pytest
from cosmic_ray.mutating import mutate_code
from cosmic_ray.work_db import use_db
from mutation.operators import OURS, all_operators
from mutation.scope import functions, modules, mutants
from mutation.trial import test_files as files_that_import

EXAMPLES = [(name, e) for name, cls in OURS.items() for e in cls.examples()]

@pytest.mark.parametrize('name, e', EXAMPLES, ids=lambda o: getattr(o, 'pre_mutation_code', o))
def test_operator_makes_the_fault_that_it_says(name, e):
    assert mutate_code(e.pre_mutation_code, OURS[name](**e.operator_args), e.occurrence) == e.post_mutation_code

@pytest.mark.parametrize('name, source', [
    ('Scale', 'def forward(self, g): return g'), # goes forward
    ('Scale', 'def f(g): _check(g); n = len(g)'), # only looked at
    ('Scale', "def f(x): return 'g'"), ('Scale', 'def f(ctx, grad): a,b = h(ctx, x)'),
    ('Scale', 'f = lambda x, g=g: x'), ('Scale', 'def f(g): return [g, 1]'), ('Stale', 'def f(t): t.g = None'),
    ('DoubleStatement', '_check_x(x)\n'), ('DoubleStatement', 'clear_grads(x)\n'), ('DoubleStatement', 'x = g\n'),
    ('DoubleStatement', 'ctx.save_for_backward(x)\n'),
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
        source = spec.module_path.read_text(encoding='utf-8')
        cls = next(type(op) for name, args, op in all_operators() if name == spec.operator_name)
        assert mutate_code(source, cls(**spec.operator_args), spec.occurrence) == source.replace(m.cell.source, m.new)

def names(folder): return {f'{f.cell.module}.{f.qualname}' for f in functions(folder)}

def test_backward_functions_are_found(root):
    found = names(root/'fb_pass')
    expected = dict(
        gradients='add_grad clear_grads upstream_grad', norms='normalize_grad normalize_full_grad',
        backward='mse_grad relu_grad lin_grad forward_and_backward',
        modules='Module.__call__ Module.backward Model.bwd',
        training='cross_entropy_grad SGD.update AdamW.update',
        closures='Parameter.add Parameter.clear mse_loss SGDOptimizer.update')
    assert found >= {f'{k}.{o}' for k,v in expected.items() for o in v.split()}
    layers = ('Relu', 'Sigmoid', 'Linear', 'Sequential')
    assert found >= {f'closures.{o}.forward{p}' for o in layers for p in ('', '.backward')}
    assert found >= {'bridges._by_rule.setup_context', 'bridges._by_rule.backward', 'bridges._by_module.backward',
                     'bridges.register_op.backward'} # of every autograd.Function, and every operator
    # neither what checks a gradient, nor what goes forward, nor what must be overridden
    assert not found & {'checks.numerical_grad', 'checks.autograd_grad', 'checks.check_grad', 'forward.lin',
                        'training.softmax', 'modules.Module.bwd', 'training.Optimizer.update'}

def test_every_rule_of_the_package_is_found(root):
    "The backward of each `Rule(forward, backward)`, by another way of reading."
    def text(f): # of a lambda its source, of a function its name
        source = f.node.get_code(include_prefix=False)
        return ast.unparse(ast.parse(source, mode='eval')) if f.node.type == 'lambdef' else f.name
    found = {(f.cell.module, text(f)) for f in functions(root/'fb_pass') if f.of_a_rule}
    trees = {k: ast.parse(p.read_text(encoding='utf-8')) for k,p in modules(root/'fb_pass').items()}
    there = {(k, ast.unparse(o.args[1] if len(o.args) > 1 else o.keywords[0].value))
             for k,tree in trees.items() for o in ast.walk(tree)
             if isinstance(o, ast.Call) and getattr(o.func, 'id', '') == 'Rule'}
    assert there <= found
    assert {o for o in found if 'lambda' in o[1]} <= there

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
    cells = (CELL.format('14_convolution', i, o.strip()) for i,o in enumerate(ROOM.split('---')))
    (tmp_path/'convolution.py').write_text('"Doc."\n' + ''.join(cells))
    found = names(tmp_path)
    expected = 'gelu_grad Conv.bwd Conv.__call__ _spread rms make make.backward Lion.update'
    assert found == {f'convolution.{o}' for o in expected.split()}
    assert {f'{m.module}.{m.function}' for m in mutants(tmp_path)} >= found - {'convolution.make'}

RULES = '''
def gelu_back(g, out, inp): return spread(g, inp)
def spread(g, x): return g*x
gelu = Rule(lambda inp: inp*2, gelu_back)
---
swish = Rule(lambda x: x*3, lambda g, out, x: g*(out > 0))
class Scale(Op):
    rule = Rule(lambda x, w: x*w, backward=lambda g, out, x, w: (g*w, (g*x).sum(0)))
'''

def test_backward_of_a_rule_is_found(tmp_path):
    "A function or a lambda, by place or by name; what goes forward is left alone."
    cells = (CELL.format('11_activations', i, o.strip()) for i,o in enumerate(RULES.split('---')))
    (tmp_path/'activations.py').write_text('"Doc."\n' + ''.join(cells))
    found = {o: [] for o in ('gelu_back', 'spread', 'swish.backward', 'Scale.rule.backward')}
    assert names(tmp_path) == {f'activations.{o}' for o in found}
    for m in mutants(tmp_path): found[m.function].append(m.change[1])
    assert all('lambda x: x*3, lambda' in o for o in found['swish.backward'])
    assert not any('2*((g*w' in o for o in found['Scale.rule.backward']), 'a tuple is no value'
    parts = '(2*(g*w), (g*x)', '(g*w, 2*((g*x).sum(0)))', '(g*w, (g*x))', '(g*w, (g*x).mean(0))', '(g*w, (g*w).sum'
    for part in parts:
        assert any(part in o for o in found['Scale.rule.backward']), part
    assert any('g*(x > 0)' in o for o in found['swish.backward'])

def test_tests_of_a_module(root):
    found = files_that_import(root, ['closures'])
    assert 'tests/test_closures.py' in found and not {'tests/test_datasets.py', 'tests/test_project.py'} & {*found}
    assert {'tests/test_core.py', 'tests/test_training.py'} <= {*files_that_import(root, ['backward'])}
    of_doctor = {'tests/doctor/test_adapters.py', 'tests/doctor/test_report.py'}
    assert of_doctor <= {*files_that_import(root, ['doctor.tracing'])}, 'through fb_pass.doctor, too'

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
    "A project of one function. Its notebook sees a wrong sign, its test a wrong factor, but not a small one."
    new = tmp_path_factory.mktemp('toy')
    for o in ('fb_pass', 'nbs', 'tests'): (new/o).mkdir()
    settings = 'lib_name = fb_pass', 'lib_path = fb_pass', 'nbs_path = nbs', 'tst_flags = notest', 'user = me'
    (new/'settings.ini').write_text('\n'.join(['[DEFAULT]', *settings, '']))
    (new/'fb_pass'/'__init__.py').write_text('')
    (new/'fb_pass'/'_modidx.py').write_text("d = {'syms': {}}") # what nbdev_update looks for
    (new/'fb_pass'/'toy.py').write_text('"Doc."\n\n' + CELL.format('00_toy', 'cafe', TOY))
    write(new, f'#| export\n{TOY}', 'assert backward(1) > 0')
    test = 'from fb_pass.toy import backward\n\ndef test_toy(): assert abs(backward(1) - 1) < .01\n'
    (new/'tests'/'test_toy.py').write_text(test)
    return new

def write(project, *sources):
    cells = [dict(cell_type='code', id=i, source=o, metadata={}, outputs=[], execution_count=None)
             for i,o in zip(('cafe', 'beef'), sources)]
    nb = dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)
    (project/'nbs'/'00_toy.ipynb').write_text(json.dumps(nb))

def run(project, *args):
    files = dict(out='out.json', equivalents='equivalent.toml', session='session.sqlite')
    options = [o for k,v in files.items() for o in (f'--{k}', project/v)]
    args = [sys.executable, command.__file__, '--project', project, *options, '--jobs', '1', *args]
    res = subprocess.run(args, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return res.returncode, res.stdout

ENTRY = '''[[equivalent]]
module = "toy"
function = "backward"
line = "return g"
mutants = ["return 1.001*(g)"{}]
reason = "made up for this test"
'''

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
    found = [*mutants(toy/'fb_pass', command.fingerprint(toy))]
    entries = command.read_equivalents(toy/'equivalent.toml')
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
