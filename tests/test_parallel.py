"""Training in parallel: groups of 2, 3 and 4 processes against one process and against torch's DistributedDataParallel;
processes that are killed or do not answer; checkpoints. The processes talk to each other on this machine alone."""
import json, os, re, subprocess, sys, time

import parallel_ranks as pr
import psutil
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from fb_pass import datasets
from fb_pass.checks import check_grad
from fb_pass.library import load_weights, save_weights
from fb_pass.modules import Lin, Model, Mse
from fb_pass.norms import BatchNorm, LayerNorm
from fb_pass.parallel import accumulate, average_grads, fit_parallel
from fb_pass.training import SGD, AdamW, CrossEntropy, dataloader, fit
from parallel_ranks import labels, off, rand, small
from safetensors.torch import load_file

def start(f, ranks, folder):
    "Run `f(rank, folder)` in several processes, which import what is slow only once, where there is such a way."
    method = 'forkserver' if 'forkserver' in mp.get_all_start_methods() else 'spawn'
    mp.set_forkserver_preload(['fb_pass.parallel', 'torch._dynamo'])
    mp.start_processes(f, (str(folder),), nprocs=ranks, start_method=method)
    return [json.loads((folder/f'{r}.json').read_text()) for r in range(ranks)]

pytestmark = pytest.mark.xdist_group('parallel') # they share processes

@pytest.fixture(scope='module')
def found(tmp_path_factory):
    "What four processes have found, by rank; and the folder with the weights after training."
    folder = tmp_path_factory.mktemp('ranks')
    return start(pr.all_cases, 4, folder), folder

each_size = pytest.mark.parametrize('ranks', [2, 3, 4])

def each(found, ranks, name): return [o[str(ranks)][name] for o in found[0][:ranks]]

each_kind = pytest.mark.parametrize('kind', pr.KINDS)

@each_kind
@pytest.mark.parametrize('ranks, rows', [(k, rows) for k,every in pr.SHARDS.items() for rows in every])
def test_gradients_are_those_of_one_process(found, ranks, rows, kind):
    "Each rank has those of all rows, also with micro-batches inside the ranks, also a rank without rows."
    worst = max(max(o) for o in each(found, ranks, f'{kind} {rows}'))
    assert worst < 1e-12, worst

@each_size
def test_parameters_of_other_dtypes_and_layouts(found, ranks): assert max(each(found, ranks, 'mixed')) < 1e-5

@each_kind
@pytest.mark.parametrize('ranks', [2, 4])
def test_same_as_distributed_data_parallel(found, kind, ranks):
    grads,weights = map(max, zip(*each(found, ranks, f'ddp {kind}')))
    assert grads < 1e-12 and weights < 1e-12, (grads, weights)

@each_kind
@pytest.mark.parametrize('ranks', [2, 4])
def test_the_state_of_the_optimizer_can_be_divided(found, kind, ranks):
    "By torch's own optimizer for it, tensor by tensor: the weights of one process, and each number on one rank only."
    off_by,shares = zip(*each(found, ranks, f'sharded {kind}'))
    assert max(off_by) < 1e-9 and sum(shares) == pytest.approx(1), (off_by, shares)
    assert max(shares) < (2/ranks if kind == 'gpt' else 1) # of the mlp most is in a single tensor

@pytest.fixture(scope='module', params=[(kind, name) for kind in pr.KINDS for name in pr.OPTIMIZERS], ids=' '.join)
def alone(request):
    "Weights and losses after 55 steps by `fit` of room 09, which knows nothing of processes."
    kind,name = request.param
    data,epochs,bs = pr.TRAININGS[kind]
    model,x,y = data()
    loader = dataloader(x, y, bs, torch.Generator().manual_seed(3))
    hist = fit(model, pr.OPTIMIZERS[name](model.params), loader, [(x, y)], epochs, metric=None, progress=False)
    return kind, name, model, torch.tensor(hist.losses, dtype=torch.float64)

@each_size
def test_training_is_that_of_one_process(found, ranks, alone):
    "55 steps on digits, or on text; the last batch of an epoch has two rows, so that some ranks have none."
    kind,name,model,losses = alone
    for r,others in enumerate(each(found, ranks, f'losses {kind} {name}')):
        assert len(others) == 55 and off(torch.tensor(others, dtype=torch.float64), losses) < 1e-9
        weights = torch.load(found[1]/f'{ranks}-{kind}-{name}-{r}.pt')
        worst = max(off(p, q) for p,q in zip(weights, model.params, strict=True))
        assert worst < 1e-9, worst

def test_one_process_alone_needs_no_launcher(alone):
    kind,name,model,losses = alone
    data,epochs,bs = pr.TRAININGS[kind]
    again,x,y = data()
    others = fit_parallel(again, pr.OPTIMIZERS[name](again.params), x, y, epochs, bs, seed=3)
    assert off(torch.tensor(others, dtype=torch.float64), losses) < 1e-9 and not dist.is_initialized()
    assert max(off(p, q) for p,q in zip(again.params, model.params)) < 1e-9

@each_size
def test_weights_of_rank_0_are_sent_to_all(found, ranks): assert max(each(found, ranks, 'start')) == 0

@each_size
@pytest.mark.parametrize('name, kind, words', [
    ('shapes', 'ValueError', 'average_grads: rank 1 has other parameters'),
    ('dtypes', 'ValueError', 'rank 1 has other parameters'), ('order', 'ValueError', 'in the same order'),
    ('nothing', 'ValueError', 'n is 0 on all ranks'), ('seed', 'ValueError', 'fit_parallel: rank 1 has other'),
    ('length', 'ValueError', 'fit_parallel: rank 1 has other'), ('nan', 'FloatingPointError', 'is not finite')])
def test_an_error_is_the_same_on_all_ranks(found, ranks, name, kind, words):
    every = [o[name] for o in each(found, ranks, 'wrong')]
    assert every[0][0] == kind and words in every[0][1] and every == [every[0]]*ranks

def test_a_rank_that_does_not_answer_ends_the_run(found):
    "After the timeout of 1.5 seconds, not after 3, when it would answer."
    (kind, message),seconds = found[0][0]['silence']
    assert kind == 'ConnectionError' and message.startswith('fit_parallel, step 2 of 6: '), message
    assert 'no checkpoint' in message and seconds < 2.9
    assert found[0][1]['silence'][0][0] == 'ConnectionError' # it finds nobody when it comes

@pytest.fixture(scope='module')
def killed(tmp_path_factory, root):
    "Three ranks by torchrun, of which one is killed in the backward pass of step 12 of 20; the folder, the seconds."
    folder = tmp_path_factory.mktemp('killed')
    env = {**os.environ, 'PYTHONPATH': str(root), 'OMP_NUM_THREADS': '1'}
    began,command = time.monotonic(),[sys.executable, '-m', 'torch.distributed.run', '--standalone']
    with subprocess.Popen([*command, '--nproc-per-node=3', pr.__file__, folder/'run.safetensors'], env=env,
                          text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try: out,err = process.communicate(timeout=120)
        except BaseException:
            for o in psutil.Process(process.pid).children(recursive=True): o.kill()
            process.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err), folder, time.monotonic() - began

def test_a_rank_that_is_killed_ends_the_run_on_all(killed):
    "Long before they would have waited long enough; the two that are left say the same, and nothing of what is below."
    done,_,seconds = killed
    said = re.findall(r'(?m)^\[rank[02]\]: (\w+Error: .*)', done.stderr)
    assert done.returncode and seconds < pr.TIMEOUT and len(said) == 2, done.stderr
    for o in said:
        assert o.startswith('ConnectionError: fit_parallel, step 11 of 20: '), said
        assert 'another rank has ended' in o and o.endswith('it goes on from run.safetensors') and len(o) < 250
    assert 'During handling' not in done.stderr and 'direct cause' not in done.stderr

def test_no_process_is_left(killed):
    pids = [int(o) for o in re.findall(r'(?m)^pid (\d+)', killed[0].stdout)]
    assert len(pids) == 3 and not any(map(psutil.pid_exists, pids)), pids

def test_a_run_that_was_killed_goes_on_as_if_nothing_had_happened(killed):
    """Its checkpoint is whole, with the 10 steps before the last one written. From there the same losses and weights as
    of three ranks that were never killed, dropout included."""
    folder = killed[1]
    held = load_file(folder/'run.safetensors')
    assert held['done'].tolist() == [10, 10] and (held['losses'] > 0).sum() == 10
    assert [p.name for p in folder.iterdir()] == ['run.safetensors'], 'something is left beside the checkpoint'
    assert max(start(pr.go_on, 3, folder)) < 1e-12
    assert load_file(folder/'run.safetensors')['done'].tolist() == [20, 20]

def interrupted(steps, path, make, **kwargs):
    "The run of `small`, interrupted before the step `steps`; then to its end."
    class Stop(Exception): pass
    def stop(step):
        if step == steps: raise Stop
        return .1/(1 + step)
    def go(schedule):
        model = small()
        losses = fit_parallel(model, make(model.params), rand(8, 6), labels(8), 3, 3, path=path, every=2,
                              schedule=schedule, **kwargs)
        return torch.tensor(losses, dtype=torch.float64), model.params
    with pytest.raises(Stop): go(stop)
    return go(lambda step: .1/(1 + step))

@pytest.mark.parametrize('make', pr.OPTIMIZERS.values(), ids=pr.OPTIMIZERS)
@pytest.mark.parametrize('steps', range(9))
def test_a_run_goes_on_from_any_step(tmp_path, steps, make):
    "Three steps in an epoch, a checkpoint after every second one: in all places of an epoch."
    model = small()
    want = fit_parallel(model, make(model.params), rand(8, 6), labels(8), 3, 3, schedule=lambda step: .1/(1 + step))
    losses,params = interrupted(steps, tmp_path/'run', make)
    assert off(losses, torch.tensor(want, dtype=torch.float64)) < 1e-12
    assert max(off(p, q) for p,q in zip(params, model.params)) < 1e-12

def trained(path, bs=3, epochs=2, layers=None, **kwargs):
    model = Model.from_layers(layers, CrossEntropy()) if layers else small()
    opt = SGD(model.params, .1, momentum=.9)
    return fit_parallel(model, opt, rand(8, 6), labels(8), epochs, bs, path=path, **kwargs), model, opt

def test_a_finished_run_is_only_read(tmp_path):
    first,then = trained(tmp_path/'run'),trained(tmp_path/'run')
    assert then[0] == first[0] and then[2].steps == first[2].steps == 6
    for p,q in zip(then[1].params, first[1].params): assert torch.equal(p, q)

@pytest.mark.parametrize('change, words', [(dict(epochs=3), 'losses'), (dict(bs=2), 'losses'),
    (dict(layers=[Lin(rand(6, 3), rand(3))]), 'another model')])
def test_a_checkpoint_of_another_run_is_refused(tmp_path, change, words):
    trained(tmp_path/'run')
    with pytest.raises(ValueError, match=f'run.*{words}'): trained(tmp_path/'run', **change)
    assert not dist.is_initialized()

@pytest.mark.parametrize('share', [0., .3, .99])
def test_a_damaged_checkpoint_is_refused(tmp_path, share):
    trained(path := tmp_path/'run')
    path.write_bytes(path.read_bytes()[:int(share*path.stat().st_size)])
    with pytest.raises(ValueError, match='truncated or damaged'): trained(path)

def test_a_write_that_fails_leaves_the_checkpoint_before_it(tmp_path, monkeypatch):
    "The third one; and what was written half is gone."
    calls,replace = [],os.replace
    def full(a, b):
        calls.append(b)
        if len(calls) == 3: raise OSError(28, 'No space left on device', str(b))
        replace(a, b)
    monkeypatch.setattr(datasets.os, 'replace', full)
    with pytest.raises(OSError, match='No space'): trained(tmp_path/'run', every=2)
    monkeypatch.undo()
    assert load_file(tmp_path/'run')['done'].tolist() == [2, 2] and [*tmp_path.iterdir()] == [tmp_path/'run']
    assert off(*(torch.tensor(trained(path)[0]) for path in (tmp_path/'run', None))) < 1e-6

def test_a_folder_that_is_not_there_is_seen_before_the_first_step(tmp_path):
    def never(step): raise AssertionError('a step was taken')
    with pytest.raises(FileNotFoundError): trained(tmp_path/'no'/'run', schedule=never)

def test_the_weights_of_a_checkpoint_can_be_read_alone(tmp_path):
    _,model,_ = trained(tmp_path/'run')
    held = load_file(tmp_path/'run')
    for k,p in model.named_params(): assert torch.equal(held[f'model.{k}'], p)

def test_batch_norm_is_refused_and_layer_norm_is_not():
    def layers(norm): return [Lin(rand(6, 5), rand(5)), norm, Lin(rand(5, 3), rand(3))]
    with pytest.raises(ValueError, match='fit_parallel: model has the buffer layers.1.running_mean.*batch norm'):
        trained(None, layers=layers(BatchNorm(rand(5), rand(5))))
    trained(None, layers=layers(LayerNorm(rand(5), rand(5))))

@pytest.mark.parametrize('change, words', [(dict(epochs=0), 'epochs is 0'), (dict(every=0), 'every is 0'),
    (dict(timeout=0.), 'timeout is 0'), (dict(timeout=float('nan')), 'timeout is nan')])
def test_numbers_that_make_no_sense(change, words):
    with pytest.raises(ValueError, match=f'fit_parallel: {words}'): trained(None, **change)

def test_what_an_optimizer_may_hold():
    model = small()
    with pytest.raises(ValueError, match='no parameter of this model'):
        fit_parallel(model, SGD([rand(2)], .1), rand(8, 6), labels(8), 1, 3)
    with pytest.raises(TypeError, match='fit_parallel: opt is a list'):
        fit_parallel(model, [*model.params], rand(8, 6), labels(8), 1, 3)

def test_without_processes_or_gradients_there_is_a_word_for_it():
    model = small()
    with pytest.raises(RuntimeError, match=r'average_grads: parameter 0 \(6, 5\) has no gradient'):
        average_grads(model.params, 1)
    with pytest.raises(RuntimeError, match='average_grads: there is no process group.*torchrun'):
        average_grads(model.params, 0)
    with pytest.raises(ValueError, match='n is -1'): average_grads(model.params, -1)
    with pytest.raises(ValueError, match='params is empty'): average_grads([], 1)
    with pytest.raises(TypeError, match='parameter 0 has dtype torch.int64'): average_grads([labels(3)], 0)

ROWS = [(8,), (4, 4), (7, 1), (1,)*8, (3, 0, 5), (0, 8), (0, 1, 0, 7, 0)]

@pytest.mark.parametrize('rows', ROWS)
def test_accumulated_gradients_are_those_of_all_rows(rows):
    x,y = rand(8, 6),labels(8)
    model,whole = small(),small()
    want = whole(x, y); whole.backward()
    loss = accumulate(model, zip(x.split(rows), y.split(rows))) # a generator, read once
    assert abs(loss - want.item()) < 1e-12
    for p,q in zip(model.params, whole.params): check_grad(p.g, q.g)

def test_accumulate_begins_anew_each_time():
    "What an earlier pass has left in .g does not count, and the optimizer steps along the result."
    x,y = rand(8, 6),labels(8)
    model = small()
    first = [accumulate(model, [(x[:5], y[:5]), (x[5:], y[5:])]) and [p.g for p in model.params] for _ in range(2)]
    for a,b in zip(*first): check_grad(a, b)
    before = [p.clone() for p in model.params]
    SGD(model.params, 1.).step()
    for p,b,g in zip(model.params, before, first[1]): check_grad(b - p, g)

def test_accumulate_leaves_no_gradient_where_no_batch_reaches():
    "A tensor that is found as a parameter, and not used: a step of it would be an error."
    class More(Lin): pass
    layer = More(rand(6, 1), rand(1))
    layer.unused = rand(2)
    model = Model.from_layers([layer], Mse())
    accumulate(model, [(rand(3, 6), rand(3)), (rand(2, 6), rand(2))])
    assert layer.unused.g is None and layer.w.g.shape == (6, 1)

@pytest.mark.parametrize('batches, error, words', [
    ([], ValueError, 'batches have no rows'), ([(rand(0, 6), labels(0))], ValueError, 'batches have no rows'),
    ([rand(2, 6)], TypeError, 'item 0 of batches is a Tensor, expected a pair'),
    ([(rand(2, 6), labels(2)), (3, labels(2))], TypeError, 'item 1 of batches: xb is a int'),
    ([(torch.tensor(1.), labels(2))], ValueError, 'item 0 of batches has no axes')])
def test_batches_that_are_none(batches, error, words):
    with pytest.raises(error, match=f'accumulate: .*{words}'): accumulate(small(), batches)

def test_a_run_is_saved_by_the_functions_of_weight_files(tmp_path):
    "So what is wrong with such a file is said in the same words."
    model = small()
    save_weights(model, tmp_path/'weights')
    with pytest.raises(ValueError, match='belongs to another model'): trained(tmp_path/'weights')
    trained(tmp_path/'run')
    with pytest.raises(ValueError, match='belongs to another model'): load_weights(model, tmp_path/'run')

def test_weights_of_adamw_go_on_with_their_steps(tmp_path):
    "The bias correction depends on how many steps the optimizer has taken, also before the run."
    def go(path, schedule=None):
        model = small()
        opt = AdamW(model.params, .01)
        for p in model.params: p.g = torch.ones_like(p)
        opt.step()
        return fit_parallel(model, opt, rand(8, 6), labels(8), 2, 4, path=path, every=1, schedule=schedule), opt.steps
    def stop(step):
        if step == 2: raise KeyboardInterrupt
        return .01
    with pytest.raises(KeyboardInterrupt): go(tmp_path/'run', stop)
    (losses, steps),(want, _) = go(tmp_path/'run'),go(None)
    assert steps == 5 and off(torch.tensor(losses), torch.tensor(want)) < 1e-6
