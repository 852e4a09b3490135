"The benchmark: all who take part compute the same, and what it says follows from what it measured."
import json, subprocess, sys
from pathlib import Path

import numpy as np
import pytest, torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/'tools'))
import bench
from contenders import STEPS, numpy_cross_entropy, ours, params_of
from fb_pass.gpt import windows
from fb_pass.training import cross_entropy, cross_entropy_grad

SIZES = 12, 7, 6, 4

@pytest.fixture
def batch():
    gen = torch.Generator().manual_seed(3)
    return torch.randn(9, 12, generator=gen), torch.randint(0, 4, (9,), generator=gen)

def slow(name): return name == 'torch.compile' # a minute of compilation; `make bench` compares it before it times it

@pytest.mark.parametrize('name', [k for k in STEPS if not slow(k)])
def test_everybody_computes_the_same(name, batch):
    if name == 'JAX jit': pytest.importorskip('jax', reason='JAX is in the extra of the benchmark only')
    bench.same_results(bench.of(SIZES, {'ours': ours, name: STEPS[name]}), *batch)

@pytest.mark.parametrize('name', bench.LARGE)
def test_larger_networks_compute_the_same_as_torch(name):
    x,y = windows(torch.arange(12*64 + 1)*7 % 65, 64, 64) if 'GPT' in name else (torch.rand(8, 784), torch.arange(8))
    bench.same_results({k: bench.LARGE[name][k] for k in ('ours', 'ours, compile_step', 'torch eager')}, x, y)

def test_who_computes_something_else_is_refused(batch):
    def off(sizes, x, y):
        step,weights = ours(sizes, x, y)
        return step, lambda: [w*(1 + 1e-3) for w in weights()]
    with pytest.raises(SystemExit, match='off computes something else than ours'):
        bench.same_results(bench.of(SIZES, {'ours': ours, 'off': off}), *batch)

def test_a_loss_that_differs_is_refused(batch):
    def off(sizes, x, y):
        step,weights = ours(sizes, x, y)
        return lambda: step() + .1, weights
    with pytest.raises(SystemExit, match='off computes'):
        bench.same_results(bench.of(SIZES, {'ours': ours, 'off': off}), *batch)

def test_numpy_cross_entropy_is_ours():
    o,y = torch.randn(5, 4), torch.tensor([0, 3, 1, 1, 2])
    loss,g = numpy_cross_entropy(o.numpy(), y.numpy())
    cross_entropy_grad(o, y)
    assert abs(loss - cross_entropy(o, y).item()) < 1e-5
    np.testing.assert_allclose(g, o.g.numpy(), atol=1e-6)

def test_equal_weights_for_everybody():
    for (w,b),(n_in,n_out) in zip(params_of(SIZES), zip(SIZES, SIZES[1:])):
        assert w.shape == (n_in, n_out) and b.shape == (n_out,) and w.dtype == b.dtype == np.float32

def test_everybody_takes_as_many_turns():
    seconds = bench.take_turns({'one': lambda: sum(range(100)), 'other': lambda: None}, 1, rounds=3, turn=0)
    found = bench.summary(seconds)
    for k in ('one', 'other'):
        assert len(seconds[k]) == 3
        low,high = found[k]['quartiles']
        assert 0 < low <= found[k]['median'] <= high

def test_kept_results_are_complete():
    kept = json.loads((ROOT/'results'/'speed.json').read_text(encoding='utf-8'))
    assert kept['digits'] == 50_000
    for case,makers in (dict.fromkeys(bench.NETS, STEPS) | bench.LARGE).items():
        assert set(kept['cases'][case]) == set(makers), f'{case}: run `make bench` again'
    assert set(kept['growth']) == set(bench.SWEEPS)
    for row in kept['cases'].values():
        for o in row.values(): assert 0 < o['quartiles'][0] <= o['median'] <= o['quartiles'][1]

def test_the_command_runs_without_keeping_anything():
    "The command itself, on one small case and without the two that compile."
    code = ("import sys; sys.path.insert(0, 'tools'); import bench; "
            "[bench.STEPS.pop(k) for k in ('torch.compile', 'JAX jit')]; "
            "bench.main(rounds=3, only='batch of 512', threads=1)")
    out = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert out.returncode == 0, out.stderr
    assert 'ours' in out.stdout and 'plain numpy' in out.stdout and 'kept in' not in out.stdout
