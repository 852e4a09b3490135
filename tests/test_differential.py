"The command behind `make differential`: its random models agree with torch, and a fault anywhere is found."
import differential as command
import pytest
import torch
from fb_pass import closures, gradients
from fb_pass.backward import lin_rule, mse_rule, relu_rule
from fb_pass.modules import Model
from fb_pass.training import SGD, AdamW, cross_entropy_rule

def test_random_models_agree_with_torch(capsys):
    with pytest.raises(SystemExit) as e: command.main(models=150, seed=1_000_000)
    assert not e.value.code and '150 models and as many training runs' in capsys.readouterr().out

def test_recorded_steps_agree_with_torch(monkeypatch):
    "The same models, trained by `fit(..., compiled=True)`."
    readable = command.fit
    monkeypatch.setattr(command, 'fit', lambda *args, **kwargs: readable(*args, **kwargs, compiled=True))
    cases = [c for c in map(command.Case, range(5000, 5060)) if c.style == 'modules']
    assert len(cases) >= 12 and {'SGD', 'AdamW'} == {c.optimizer for c in cases}
    for c in cases:
        worst,_,wrong = command.compare(c)
        assert not wrong and worst < 1e-10, c.seed

def kinds(layers): return {k for k,what in layers for k in (k, *(kinds(what) if isinstance(what, list) else ()))}

def test_every_kind_is_among_them():
    cases = [command.Case(seed) for seed in range(300)]
    def every(f): return {f(c) for c in cases}
    assert {k for c in cases for k in kinds(c.layers)} == {'lin', 'relu', 'sigmoid', 'row', 'sum'}
    assert every(lambda c: c.style) == {'modules', 'functions', 'closures'}
    assert every(lambda c: c.loss) == {'mse', 'mean_square', 'cross_entropy'}
    assert every(lambda c: c.optimizer) == {'SGD', 'AdamW'}
    assert every(lambda c: c.schedule) == {'constant', 'decay', 'one_cycle'}
    assert {1, 8} <= every(lambda c: len(c.x)) and {1, 5} <= every(lambda c: c.x.shape[1])
    assert {1, 3} <= every(lambda c: c.epochs) and {1, 2} <= every(lambda c: len(c.batches))

def test_a_seed_is_enough_to_repeat_a_case():
    one,two = (command.by_autograd(command.Case(5)) for _ in range(2))
    assert all(command.apart(one[k], two[k]) == 0 for k in one)

def test_the_exact_gradients_are_those_of_torch():
    for case in map(command.Case, range(12)):
        theirs = command.by_autograd(case)
        truth = command.exactly(case, theirs['the learning rates'])
        largest = max(abs(command.array(o)).max() for o in truth.values())
        assert all(command.apart(theirs[k], o) < 1e-12*largest for k,o in truth.items())

def test_a_rounding_is_no_fault(monkeypatch):
    monkeypatch.setattr(command, 'TOLERANCE', 0.)
    results = [command.compare(command.Case(seed)) for seed in range(20)]
    assert any(settled for _,settled,_ in results) and not any(wrong for *_,wrong in results)

def momentum_of_the_step(self, i, p):
    self.velocities[i] = self.momentum*self.velocities[i] + self.lr*(p.g + self.weight_decay*p)
    p -= self.velocities[i]

def adam(self, i, p):
    beta1,beta2 = self.betas
    self.means[i] = beta1*self.means[i] + (1 - beta1)*p.g
    self.squares[i] = beta2*self.squares[i] + (1 - beta2)*p.g**2
    p *= 1 - self.lr*self.weight_decay
    p -= self.lr*self.means[i]/(self.squares[i].sqrt() + self.eps) # as if the means did not begin with zero

def sigmoid(self, X):
    Y = 1/(1 + closures.np.exp(-X))
    return Y, lambda Yg: Yg*Y*(1 + Y)

faults = {
    'ReLU': (relu_rule, 'backward', lambda g, out, inp: g*(inp < 0)),
    'ReLU at its kink': (relu_rule, 'backward', lambda g, out, inp: g*(inp >= 0)),
    'biases': (lin_rule, 'backward', lambda g, out, inp, w, b: (g@w.t(), inp.t()@g, g.mean(0))),
    'inputs': (lin_rule, 'backward', lambda g, out, inp, w, b: (g@w.t()*1.0000001, inp.t()@g, g.sum(0))),
    'a lost gradient': (lin_rule, 'backward', lambda g, out, inp, w, b: (g@w.t(), inp.t()@g, None)),
    'a shape': (relu_rule, 'backward', lambda g, out, inp: g.sum()),
    'the mean': (mse_rule, 'backward', lambda g, out, inp, targ: (g*2*(inp[:,0] - targ)[:,None], None)),
    'probabilities': (cross_entropy_rule, 'backward', lambda g, out, inp, targ: (g*inp.softmax(1)/len(inp), None)),
    'a sum of two uses': (gradients, 'add_grad', lambda t, g: setattr(t, 'g', g)),
    'gradients that stay': (Model, 'zero_grad', lambda self: None),
    'momentum': (SGD, 'update', momentum_of_the_step), 'AdamW': (AdamW, 'update', adam),
    'a schedule': (command, 'one_cycle', lambda lr, steps: lambda k: lr*(k + 1)/steps),
    'a closure': (closures.Sigmoid, 'forward', sigmoid),
    'a step': (closures.Parameter, 'clear', lambda self: setattr(self, 'gradient', self.tensor*1e-6)),
    'not a number': (relu_rule, 'backward', lambda g, out, inp: g*(inp > 0) + torch.nan)}

@pytest.mark.parametrize('where, what, fault', faults.values(), ids=faults)
def test_a_fault_is_found(where, what, fault, monkeypatch):
    monkeypatch.setattr(where, what, fault)
    assert any(command.compare(command.Case(seed))[2] for seed in range(200))

def test_the_command_fails_and_says_how_to_repeat_it(monkeypatch, capsys):
    monkeypatch.setattr(lin_rule, 'backward', faults['biases'][2])
    with pytest.raises(SystemExit) as e: command.main(models=30)
    assert e.value.code == 1 and '--models 1 --seed' in capsys.readouterr().out
