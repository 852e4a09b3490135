"`make scale`: what it stores, and what was stored."
import json, os, subprocess, sys

import pytest

def test_what_is_stored(root):
    "The bytes that were counted are those of a ring, and the results are those of the command's defaults."
    run = json.loads((root/'results'/'scale.json').read_text(encoding='utf-8'))
    assert run['command'] == 'make scale' and list(run['ranks']) == ['1', '2', '4'] and run['machine']
    for kind,alone in run['alone'].items():
        assert alone['1'] < max(alone.values()) and alone['update'] > 0
        for ranks,found in run['ranks'].items():
            row = found[kind]
            assert row['seconds'].keys() == {'by hand', 'by hand, in DDP', 'torch in DDP', 'by hand, without exchange'}
            if ranks == '1': assert not row['sent']
            for way,n in row['sent'].items():
                if n is None: continue # the system did not count
                share = n/(2*(int(ranks) - 1)*row['parameters'])
                if 'without' in way: assert share < .01
                else: assert share == pytest.approx(1, abs=.03), (kind, ranks, way, share)

@pytest.mark.xdist_group('parallel')
def test_the_command(root, tmp_path):
    "Two processes, one round: a table, and results of the same form."
    out = tmp_path/'scale.json'
    done = subprocess.run([sys.executable, root/'tools'/'scale.py', '--rounds', '1', '--ranks', '1 2', '--out', out],
                          env={**os.environ, 'OMP_NUM_THREADS': '1'}, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert 'times as fast as one process' in done.stdout and "of DDP's time" in done.stdout
    run = json.loads(out.read_text())
    assert list(run['ranks']) == ['1', '2'] and "--rounds 1" in run['command']
    stored = json.loads((root/'results'/'scale.json').read_text(encoding='utf-8'))
    assert run['ranks']['2'].keys() == stored['ranks']['2'].keys() and run.keys() == stored.keys()
