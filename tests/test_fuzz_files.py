"No file of any content stops a reader otherwise than by an error of ours; `make fuzz` tries more of them, for longer."
import re, subprocess, sys
import fuzz_files
import pytest, torch
from hypothesis import HealthCheck, given, settings, strategies as st
from fuzz_files import make, outcome, seeds
from fb_pass import datasets

good = seeds()

@pytest.fixture(autouse=True)
def sample(monkeypatch):
    monkeypatch.setattr(datasets, '_sample_path', datasets._sample_path) # as it was, after the test

@given(st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None, suppress_health_check=[*HealthCheck])
def test_any_file_is_read_or_refused(tmp_path, r):
    reader, data, _ = make(r, good, bombs=0)
    (tmp_path/'file').write_bytes(data)
    assert outcome(reader, tmp_path/'file', good) in ('read', 'refused')

@pytest.mark.parametrize('reader', good)
def test_good_files_are_read(reader, tmp_path):
    torch.manual_seed(0)
    for data in good[reader]:
        (tmp_path/'file').write_bytes(data)
        found = {outcome(reader, tmp_path/'file', good) for _ in range(20)} # an IDX file is taken for either kind
        assert found == {'refused'} if reader == 'pair' else 'read' in found # a pair has to be the published one

@pytest.mark.parametrize('error, words', [(KeyError('k'), 'KeyError'), (ValueError('v'), 'that is not ours')])
def test_other_errors_are_faults(error, words, monkeypatch, tmp_path):
    def read(*args): raise error
    monkeypatch.setattr(fuzz_files, 'read', read)
    assert words in outcome('idx', tmp_path/'file', good)

def test_command(root):
    res = subprocess.run([sys.executable, root/'tools'/'fuzz_files.py', '--minutes', '0', '--first', '5'],
                         capture_output=True, text=True)
    assert res.returncode == 0, res.stderr
    assert re.search(r'1 files; most memory beyond the true data: -?\d+ MB .case 5.*\nno fault\n', res.stdout)
