"The wheel, built from a source distribution and used in an empty environment, from an empty folder, without network."
import os, re, shutil, subprocess, sys, venv, zipfile
from email import message_from_bytes

import pytest
from test_project import modules, settings

pytestmark = pytest.mark.wheel

def run(*args, **kwargs):
    out = dict(stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    res = subprocess.run(args, **out, **kwargs)
    assert res.returncode == 0, res.stdout
    return res.stdout

@pytest.fixture(scope='module')
def wheel(root, tmp_path_factory):
    # Built from a copy: what earlier builds left in the checkout must not get in.
    source, dist = tmp_path_factory.mktemp('source')/'fb_pass', tmp_path_factory.mktemp('dist')
    skip = shutil.ignore_patterns('.git', '.venv', '_run', '_docs', '_proc', 'build', '*.egg-info', '__pycache__')
    shutil.copytree(root, source, ignore=skip)
    run(sys.executable, '-m', 'build', '--outdir', dist, source)
    return next(dist.glob('*.whl'))

def test_contents(wheel, root):
    with zipfile.ZipFile(wheel) as z:
        files = {n: z.read(n) for n in z.namelist()}
    package = {n for n in files if '.dist-info/' not in n}
    here = [p for p in root.glob('fb_pass/**/*') if p.is_file() and '__pycache__' not in p.parts]
    ours = {p.relative_to(root).as_posix() for p in here}
    data = {f'fb_pass/data/{k}' for k in ('mnist_sample.npz', 'shakespeare.txt', 'README.md')}
    assert package == ours | data and 'fb_pass/py.typed' in ours
    assert not [n for n in package if 'exercises' in n or 'answers' in n], 'exercises are no part of the package'
    assert files['fb_pass/data/mnist_sample.npz'] == (root/'data'/'mnist_sample.npz').read_bytes()

def test_metadata(wheel):
    with zipfile.ZipFile(wheel) as z:
        meta = message_from_bytes(z.read(next(n for n in z.namelist() if n.endswith('.dist-info/METADATA'))))
    cfg = settings()
    assert (meta['Name'], meta['Version'], meta['Summary']) == (cfg['lib_name'], cfg['version'], cfg['description'])
    assert 'Apache-2.0' in (meta['License-Expression'], meta['License'])
    assert meta['Requires-Python'] == f">={cfg['min_python']}"
    assert [r for r in meta.get_all('Requires-Dist') if 'extra' not in r] == cfg['requirements'].split()

USE = '''
import importlib, sys, time
from importlib.metadata import version
import torch
for name in sys.argv[1:]: importlib.import_module(f'fb_pass.{name}')
from fb_pass.backward import forward_and_backward
from fb_pass.checks import check_grad
from fb_pass.datasets import get_data
from fb_pass.forward import lin, mse, relu

start = time.perf_counter()
x_train, y_train, x_valid, y_valid = get_data()
seconds = time.perf_counter() - start
assert (len(x_train), len(y_train), len(x_valid), len(y_valid)) == (4000, 4000, 1000, 1000)
assert seconds < 15, seconds

torch.manual_seed(42)
x, targ = x_train[:64].double(), y_train[:64].double()
params = [torch.randn(s, dtype=torch.float64) for s in ((784, 50), (50,), (50, 1), (1,))]
forward_and_backward(x, targ, *params)
leaves = [t.clone().requires_grad_() for t in (x, *params)]
x2, w1, b1, w2, b2 = leaves
mse(lin(relu(lin(x2, w1, b1)), w2, b2), targ).backward()
for mine, theirs in zip((x, *params), leaves): check_grad(mine.g, theirs.grad)
versions = [f'{o} {version(o)}' for o in ('fastcore', 'torch', 'numpy')]
print(f'data in {seconds:.1f} s; Python {sys.version.split()[0]}', *versions, sep=', ')
'''

def cut_off():
    "Prefix of a command without network: a namespace of its own where we may make one, else proxies that lead nowhere."
    may = shutil.which('unshare') and not subprocess.run(['unshare', '-n', 'true'], capture_output=True).returncode
    return ['unshare', '-n'] if may else []

def test_works_alone(wheel, root, tmp_path):
    env, empty, home = (tmp_path/o for o in ('env', 'empty', 'home'))
    for o in (empty, home): o.mkdir()
    venv.create(env, with_pip=True)
    python = env/'bin'/'python'
    # Only torch is held: everything else comes as new as a reader would get it today.
    torch = re.search(r'(?m)^torch==\S+$', (root/'constraints.txt').read_text())[0]
    (tmp_path/'torch.txt').write_text(torch)
    run(python, '-m', 'pip', 'install', '-q', '--disable-pip-version-check', wheel, '-c', tmp_path/'torch.txt')
    nowhere = {k: 'http://127.0.0.1:9' for k in ('HTTPS_PROXY', 'https_proxy', 'HTTP_PROXY', 'http_proxy')}
    alone = {'PATH': os.environ['PATH'], 'HOME': str(home), 'XDG_CACHE_HOME': str(home/'cache'), **nowhere}
    print(run(*cut_off(), python, '-c', USE, *modules, cwd=empty, env=alone))
