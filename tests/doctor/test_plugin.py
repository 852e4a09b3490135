"The pytest plugin, tried in a pytest of its own, where plugins are not found but named: so each is loaded once."
import subprocess, sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from bs4 import BeautifulSoup
from fb_pass.doctor import check_layer
from fb_pass.doctor.plugin import every_function, find_functions, save_report

pytest_plugins = 'pytester'

LAYERS = '''
import torch
from torch.autograd import Function
from fb_pass.bridges import to_function
from fb_pass.gradients import Rule

class Right(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x*x
    @staticmethod
    def backward(ctx, g):
        x, = ctx.saved_tensors
        return 2*x*g

class Wrong(Right):
    @staticmethod
    def backward(ctx, g): return ctx.saved_tensors[0]*g

class Layer:
    class Inside(Right): pass
    function = Right

class Base(Function): pass

Made = to_function(Rule(lambda x: 3*x, lambda g, out, x: 3*g), 'Tripled')
Alias = Right
'''

@pytest.fixture(scope='module')
def warm():
    "What torch imports late is imported now: pytester forgets what a run inside this process has imported."
    def square(x): return x*x
    for n in (1, 2): check_layer((square, lambda g, x: n*x*g), torch.randn(3), raise_exception=False)

@pytest.fixture
def package(pytester, monkeypatch, warm):
    "A package `mine`, and a function that runs pytest on the text of a test file: here, or with processes of its own."
    monkeypatch.setenv('PYTEST_DISABLE_PLUGIN_AUTOLOAD', '1')
    monkeypatch.syspath_prepend(pytester.path)
    monkeypatch.setenv('PYTHONPATH', f'{Path(__file__).resolve().parents[2]}')
    pytester.mkpydir('mine')
    def write(name, text): (pytester.path/'mine'/name).write_text(text, encoding='utf-8')
    write('layers.py', LAYERS)
    write('__init__.py', 'from torch.autograd import Function\nfrom .layers import Right')
    write('__main__.py', 'raise SystemExit("the program was run")')
    def run(text, *options):
        head = 'import torch\nfrom fb_pass.doctor.plugin import every_function\nx = torch.randn(4, 3)\n'
        pytester.makepyfile(test_mine=head + text)
        start = pytester.runpytest_subprocess if {'-n', '-W'} & {*options} else pytester.runpytest_inprocess
        return start('-p', 'fb_pass.doctor.plugin', '-p', 'no:cacheprovider', *options)
    run.write, run.path = write, pytester.path
    yield run
    for k in [k for k in sys.modules if k.partition('.')[0] == 'mine']: del sys.modules[k]

GIVEN = "'Right': x, 'Wrong': lambda: (x,), 'Inside': [x], 'Made': x"
ALL = f"test_functions = every_function('mine', inputs={{{GIVEN}}})"
def case(name): return f'test_mine.py::test_functions[mine.layers.{name}]'

def text_of(result): return '\n'.join(result.outlines)


# what is found

def test_every_function_is_found_once_by_its_own_name(package):
    found = find_functions('mine')
    assert [*found] == [f'mine.layers.{k}' for k in ('Base', 'Layer.Inside', 'Made', 'Right', 'Wrong')]
    assert found['mine.layers.Made'].__name__ == 'Tripled'
    assert [*find_functions('mine.layers')] == [*found], 'a module is as good as a package'

def test_this_package_is_found_whole():
    names = {k.rpartition('.')[2] for k in find_functions('fb_pass')}
    assert names == {'LinFunction', 'ReluFunction', 'MseFunction', '_Once'} # the last refuses its backward


# every_function

def test_one_case_for_each_function(package):
    result = package(ALL, '-rA', '--strict-markers')
    result.assert_outcomes(passed=3, failed=1, skipped=1)
    for name in ('Layer.Inside', 'Made', 'Right'): assert f'PASSED {case(name)}' in text_of(result)
    result.stdout.fnmatch_lines(['SKIPPED*test_mine.py:4: mine.layers.Base is not checked: it has no backward of its*'])
    result.stdout.fnmatch_lines(['Wrong: its backward pass is wrong', 'gradient of *verdict', 'Wrong, x.g *half*'])
    assert 'plugin.py' not in text_of(result) and 'another exception' not in text_of(result)

def test_a_function_without_inputs_fails_or_is_skipped_and_never_passes(package):
    given = "inputs={'Right': x, 'Inside': x}"
    result = package(f"test_functions = every_function('mine', {given})", '-rA')
    result.assert_outcomes(passed=2, failed=2, skipped=1)
    for name in ('Made', 'Wrong'): # the name in the package, not that of the class
        said = f"mine.layers.{name} is not checked: no inputs given. * inputs={{'{name}': (x, ...)}}*"
        result.stdout.fnmatch_lines([said])
    result = package(f"test_functions = every_function('mine', {given}, missing='skip')", '-rA')
    result.assert_outcomes(passed=2, skipped=3)
    result.stdout.fnmatch_lines(['SKIPPED*mine.layers.Wrong is not checked: no inputs given'])

def test_a_string_says_why_it_is_not_checked(package):
    result = package(ALL.replace('lambda: (x,)', "'needs two machines'"), '-rs')
    result.assert_outcomes(passed=3, skipped=2)
    result.stdout.fnmatch_lines(['SKIPPED*mine.layers.Wrong is not checked: needs two machines'])

def test_a_module_that_cannot_be_imported_fails_unless_a_string_says_why(package):
    package.write('kernels.py', 'import compiler_of_kernels')
    result = package(ALL)
    result.assert_outcomes(passed=3, failed=2, skipped=1)
    result.stdout.fnmatch_lines(['mine.kernels is not checked: Traceback*', '*kernels.py*', '*compiler_of_kernels*'])
    result = package(ALL.replace('inputs={', "inputs={'kernels': 'needs its compiler', "), '-rs')
    result.assert_outcomes(passed=3, failed=1, skipped=2)

def test_names_that_do_not_exist_fail(package):
    result = package(ALL.replace('inputs={', "inputs={'Rihgt': x, "))
    result.assert_outcomes(passed=3, failed=2, skipped=1)
    result.stdout.fnmatch_lines(['*inputs of Rihgt is not checked: *no such autograd.Function in mine*'])
    for text,said in (("'mine.nothing', {}", 'No module named'), ("'json', {}", 'no autograd.Function in it')):
        result = package(f'test_functions = every_function({text})')
        result.assert_outcomes(failed=1)
        result.stdout.fnmatch_lines([f'*{said}*'])

def test_the_longest_name_gives_the_inputs(package):
    matrix = LAYERS.partition('class Wrong')[0].replace('return x*x', 'return x@x').replace('2*x*g', 'g@x.T + x.T@g')
    package.write('other.py', matrix)
    given = "inputs={'Right': x, 'other.Right': x[:3], 'Wrong': x, 'Inside': x, 'Made': x}"
    package(f"test_functions = every_function('mine', {given})").assert_outcomes(passed=4, failed=1, skipped=1)

def test_options_are_those_of_check_layer_and_missing_is_checked(package):
    result = package(ALL.replace('})', '}, dtype=torch.bfloat16)'))
    result.assert_outcomes(passed=3, failed=1, skipped=1)
    result.stdout.fnmatch_lines(['Computed in bfloat16*'])
    with pytest.raises(ValueError, match="missing is 'ignore', expected 'fail' or 'skip'"):
        every_function('json', {}, missing='ignore')

def test_inputs_are_the_same_in_any_order_and_the_other_random_numbers_stay(package):
    seen = '''
import pytest
@pytest.fixture(autouse=True)
def noise():
    torch.rand(1); before = torch.get_rng_state(); yield
    assert torch.equal(before, torch.get_rng_state())
drawn = []
def draw(): drawn.append(torch.randn(4, 3)); return drawn[-1]
test_functions = every_function('mine.layers', inputs={'Right': draw, 'Wrong': draw, 'Inside': draw, 'Made': draw})
def test_z(): assert len(drawn) == 4 and all(torch.equal(a, drawn[0]) for a in drawn)
'''
    package(seen).assert_outcomes(passed=4, failed=1, skipped=1)

def test_cases_are_chosen_by_name_and_by_mark(package):
    text = ALL + '\ndef test_other(): pass'
    package(text, '-k', 'Made').assert_outcomes(passed=1, deselected=5)
    package(text, '-m', 'not doctor').assert_outcomes(passed=1, deselected=5)
    package(text, '-m', 'doctor').assert_outcomes(passed=3, failed=1, skipped=1, deselected=1)

def test_warnings_as_errors_change_nothing(package):
    package(ALL, '-W', 'error').assert_outcomes(passed=3, failed=1, skipped=1)


# the fixture

OWN = '''
from fb_pass.doctor import GradientError
import pytest
def square(x): return x*x
def test_right(check_layer): assert check_layer((square, lambda g, x: 2*x*g), x).ok
def test_wrong(check_layer): check_layer((square, lambda g, x: x*g), x)
def test_looks(check_layer): assert not check_layer((square, lambda g, x: x*g), x, raise_exception=False).ok
'''

def test_fixture_is_check_layer(package):
    result = package(OWN)
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(['>*def test_wrong(check_layer)*', 'E*GradientError: square and*', 'E*verdict'])
    assert 'plugin.py' not in text_of(result)


# JUnit and the page

def page_of(package, name):
    "A page that was written, read again."
    page = (package.path/name).read_text(encoding='utf-8')
    assert '://' not in page and 'src=' not in page, 'it needs no other file'
    return BeautifulSoup(page, 'html.parser')

def test_junit_has_a_case_for_each_function_and_the_report(package):
    package(ALL, '--junitxml=junit.xml')
    cases = {o.get('name'): o for o in ElementTree.parse(package.path/'junit.xml').iter('testcase')}
    assert {o.get('classname') for o in cases.values()} == {'test_mine'}
    kinds = {k: [c.tag for c in o] for k,o in cases.items()}
    found = dict.fromkeys(('Layer.Inside', 'Made', 'Right'), []) | dict(Base=['skipped'], Wrong=['failure'])
    assert kinds == {f'test_functions[mine.layers.{k}]': o for k,o in found.items()}
    failure = cases['test_functions[mine.layers.Wrong]'].find('failure')
    for said in ('gradient of', 'verdict', 'half'): assert said in failure.text
    assert 'Wrong: its backward pass is wrong' in failure.get('message')
    assert 'no backward' in cases['test_functions[mine.layers.Base]'].find('skipped').get('message')

@pytest.mark.parametrize('processes', [[], ['-p', 'xdist.plugin', '-n', '2']], ids=['here', 'in two processes'])
def test_page_has_every_report(package, processes):
    package.write('kernels.py', 'import a_compiler_<b>')
    more = "\n@pytest.mark.parametrize('o', ['<b>'])\ndef test_odd(check_layer, o): test_right(check_layer)"
    result = package(ALL + OWN + more + '\ndef test_other(): pass', '--doctor-html=out/page.html', *processes)
    result.stdout.fnmatch_lines(['*reports on gradients: out/page.html*'])
    page = page_of(package, 'out/page.html')
    assert page.h1.text == 'Gradients: 3 failed, 6 passed, 1 skipped' == page.title.text
    said = {o.h2.text.removeprefix('test_mine.py::'): o for o in page.find_all('section')}
    def of(k): return said[f'test_functions[mine.{k}']
    assert len(said) == 10 and 'test_odd[<b>]: passed' in said and not page.find('b')
    for k in ('layers.Right]: passed', 'layers.Made]: passed'): assert len(of(k).find_all('table')) == 1, k
    assert 'half' in of('layers.Wrong]: failed').table.text and not of('layers.Wrong]: failed').pre
    assert 'a_compiler_<b>' in of('kernels]: failed').pre.text and not of('kernels]: failed').table
    assert 'no backward' in of('layers.Base]: skipped').pre.text
    for k in ('test_wrong: failed', 'test_looks: passed'): assert len(said[k].find_all('table')) == 1, k
    assert [p.name for p in (package.path/'out').iterdir()] == ['page.html'], 'nothing half-written is left'

def test_page_has_what_could_not_be_collected(package):
    package("raise RuntimeError('<i>stopped</i>')", '--doctor-html=page.html')
    page = page_of(package, 'page.html')
    assert page.h1.text == 'Gradients: 1 failed' and '<i>stopped</i>' in page.pre.text and not page.find('i')

def test_page_has_a_failed_check_without_the_fixture_and_nothing_of_other_tests(package):
    text = '''
from fb_pass.doctor import check_layer
def test_plain(): check_layer((lambda x: x*x, lambda g, x: x*g), x)
def test_fails(): assert False
'''
    package(text, '--doctor-html=page.html').assert_outcomes(failed=2)
    assert [o.text for o in page_of(package, 'page.html').find_all('h2')] == ['test_mine.py::test_plain: failed']
    package('def test_other(): pass', '--doctor-html=page.html').assert_outcomes(passed=1)
    assert page_of(package, 'page.html').h1.text == 'Gradients: no gradient was checked'


# without pytest, and at its start

def test_save_report(tmp_path, monkeypatch):
    def square(x): return x*x
    right = check_layer((square, lambda g, x: 2*x*g), torch.randn(3))
    wrong = check_layer((square, lambda g, x: x*g), torch.randn(3), raise_exception=False)
    path = save_report([right, wrong], tmp_path/'deep'/'er.html')
    page = BeautifulSoup(path.read_text(encoding='utf-8'), 'html.parser')
    assert [o.text for o in page.find_all('h2')] == ['square and <lambda>']*2 and len(page.find_all('table')) == 2
    save_report(right, path)
    assert path.read_text(encoding='utf-8').count('<h2>') == 1
    def on_a_full_disk(path, data):
        with open(path, 'wb') as f: f.write(data[:10])
        raise OSError('no space left')
    before = path.read_bytes()
    monkeypatch.setattr(Path, 'write_bytes', on_a_full_disk)
    with pytest.raises(OSError): save_report([right, wrong], path)
    assert path.read_bytes() == before and [*path.parent.iterdir()] == [path], 'nothing half-written'

def test_the_plugin_loads_no_torch_and_needs_no_pytest(root):
    code = ("import sys; sys.modules['pytest'] = None\nfrom fb_pass.doctor import plugin\n"
            "assert 'torch' not in sys.modules and plugin.save_report\n"
            "from fb_pass.doctor import Report, check_layer\nassert 'torch' in sys.modules\n"
            "try: from fb_pass.doctor import nothing\nexcept ImportError as e: print(e)")
    res = subprocess.run([sys.executable, '-c', code], cwd=root, capture_output=True, text=True)
    assert res.returncode == 0 and "cannot import name 'nothing'" in res.stdout, res.stderr

def test_pytest_is_told_of_the_plugin(root, tmp_path):
    command = [sys.executable, 'setup.py', '-q', 'egg_info', '--egg-base', tmp_path]
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    found = (tmp_path/'fb_pass.egg-info'/'entry_points.txt').read_text()
    assert '[pytest11]\nfb_pass = fb_pass.doctor.plugin' in found
    assert 'pytest' not in (tmp_path/'fb_pass.egg-info'/'requires.txt').read_text().partition('[')[0]
