"The doctor on right layers and on faults: a small part of what `make doctor` tries, and what it says to bad input."
import re

import doctor_trials, faults
import numpy as np
import pytest
import torch, torch.nn.functional as F
from fb_pass import closures
from fb_pass.backward import lin_grad, relu_grad
from fb_pass.gradients import add_grad
from fb_pass.doctor.diagnosis import causes, explain_grad
from fb_pass.doctor.tracing import first_non_finite, trace
from fb_pass.doctor import report as doctor
from fb_pass.doctor.report import GradientError, check_layer
from fb_pass.forward import lin, relu
from fb_pass.modules import Lin, Model, Module, Mse, Relu
from fb_pass.training import CrossEntropy
from torch import nn

f64 = torch.float64
def rand(*shape, seed=0): return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=f64)
def look(layer, *inputs, **kw): return check_layer(layer, *inputs, raise_exception=False, progress=False, **kw)
def taking_turns(cases, start, count):
    return [cases[(start + i*len(cases)//count) % len(cases)] for i in range(min(count, len(cases)))]

def wrong_bias(out, x, w, b):
    "`lin_grad` with a mean where a sum belongs."
    add_grad(x, out.g@w.t()); add_grad(w, x.t()@out.g); add_grad(b, out.g.mean(0))


# the catalogue

def test_catalogue_is_large_and_each_class_in_it():
    cases = faults.catalogue()
    assert len(cases) > 1000 and {c.fault.cls for c in cases} >= {*doctor_trials.classes, 'noise', 'one entry'}
    assert {k for c in cases for k in c.fault.causes} <= {*causes}
    assert {k for c in cases for k in c.kinds()} == {*faults.kinds}

@pytest.mark.parametrize('name', faults.layers)
def test_backwards_of_the_catalogue_are_right(name):
    "By autograd, without the doctor, in every way to build the layer; and each fault makes a difference."
    layer = faults.layers[name]
    for seed in range(3):
        t,out,g,parts = faults.sample(layer, seed)
        want = doctor_trials.by_autograd(layer, t, g)
        assert {*parts} == {*want}
        for k,p in parts.items():
            assert torch.allclose(faults.total(p), want[k], 1e-9, 1e-10*float(want[k].abs().max())), k
    for case in faults.catalogue([name]):
        right,wrong = case.both(case.tensors(0), torch.Generator().manual_seed(0))
        if case.fault.cls == 'stale': continue
        if wrong is None or wrong.shape != right.shape or wrong.dtype != right.dtype: continue
        assert not torch.allclose(wrong, right, 1e-6, 1e-5*float(right.abs().max())), case.name
    for case in faults.right_cases():
        if case.layer is layer: assert all(case.build(0, kind).kind == kind for kind in case.kinds())


# right layers

@pytest.mark.parametrize('name', faults.own)
def test_layers_of_the_package_pass(name):
    layer,inputs = faults.own[name](faults.Draw(1, 2, 4, layouts=True))
    assert look(layer, *inputs).ok

@pytest.mark.parametrize('i', range(len(faults.layers)), ids=[*faults.layers])
def test_right_layers_pass(i):
    "Kinds and dtypes take turns."
    case = faults.right_cases()[i]
    kinds = [k for k in case.kinds() if k != 'closures'] if i % 4 == 2 else case.kinds()
    b = case.build(i, kinds[i % len(kinds)], dtype=[*doctor_trials.dtypes.values()][i % 4], high=4)
    report = look(b.layer, *b.inputs, seed=i, dtype=[*doctor_trials.dtypes.values()][i % 4])
    assert report.ok, f'{b.kind}\n{report}'

def test_a_layer_that_is_right_passes_in_silence(capsys):
    report = check_layer((lin, lin_grad), rand(4, 3), rand(3, 2), rand(2))
    assert report.ok and report.first is None and [r.name for r in report.rows] == ['x', 'w', 'b']
    assert capsys.readouterr() == ('', '')


# faults

@pytest.mark.parametrize('cls', doctor_trials.classes)
def test_each_fault_is_caught_and_named(cls):
    cases = [c for c in faults.catalogue() if c.fault.cls == cls]
    for i,case in enumerate(taking_turns(cases, 1, 3)):
        # What the uses and terms are cannot be seen in a layer of arrays.
        inside = cls in ('use lost', 'term missing', 'added twice')
        b = case.build(i, [k for k in case.kinds() if k != 'closures'][i] if inside else None, high=4)
        report = look(b.layer, *b.inputs, wrt=b.wrt, seed=i)
        assert not report.ok, f'{case.name}, {b.kind}'
        row,d = report.first,report.first.diagnosis
        assert doctor_trials.about(b, row), f'{case.name}, {b.kind}: {row.name} is blamed'
        # numpy cannot be traced, and what came through one use alone may stay unexplained there; but it is never
        # called by another name
        true = case.true_causes(b, i) | ({'unknown'} if b.kind == 'closures' else set())
        assert d.cause in true, f'{case.name}, {b.kind}: {d}'
        assert d.text in str(report)

@pytest.mark.parametrize('cls', ['noise', 'one entry'])
def test_what_nothing_explains(cls):
    "It is caught, and not explained."
    for i,case in enumerate(taking_turns([c for c in faults.catalogue() if c.fault.cls == cls], 0, 3)):
        b = case.build(i, high=4)
        report = look(b.layer, *b.inputs, seed=i)
        assert not report.ok
        d = report.first.diagnosis
        assert d.cause in case.true_causes(b, i), f'{case.name}, {b.kind}: {d}'

def test_who_is_sure_can_undo_it():
    "A sure answer comes with a gradient that is right."
    sure = 0
    for case in taking_turns([c for c in faults.catalogue() if not c.fault.shape
                              and c.fault.cls not in ('stale', 'absent', 'non-finite')], 0, 25):
        t = case.tensors(3)
        out = case.layer.forward(*t.values())
        g = rand(*out.shape, seed=3)
        name = case.fault.tensor
        want,got = doctor_trials.by_autograd(case.layer, t, g)[name],faults.hand(case.layer, case.fault)(g, t)[name]
        seen = trace(case.layer.forward, {k: o for k,o in t.items()}, g)
        d = explain_grad(got, want, values=seen.values, grads={'out.g': g} | seen.grads,
                         terms=seen.terms.get(name), name=name)
        assert d.cause != 'right', f'{case.name}: {d}'
        if not d.confident or d.corrected is None: continue
        sure += 1
        rtol = 1e-6 if d.cause == 'dtype' else 1e-9
        assert (d.corrected - want).abs().max() <= rtol*want.abs().max(), f'{case.name}: {d}'
    assert sure > 15

@pytest.mark.parametrize('seed,count', [(1, 1), (2, 1), (3, 2), (4, 2)])
def test_the_first_wrong_layer_of_a_model(seed, count):
    "The last of the wrong ones is the first on the way back; right ones before and behind it are not blamed."
    res = doctor_trials.networks((seed, count))
    assert res['caught'] and res['named'] and not res['blamed'], res

def test_a_wrong_layer_in_a_sequential():
    layer,inputs,step,case = faults.seq_network(1)
    report = look(layer, *inputs)
    assert not report.ok
    wrong = [i for i,p in enumerate(reversed(report.parts)) if p.first]
    assert wrong == [step], f'{case.name} in step {step}\n{report}'

def test_stale_from_an_earlier_pass():
    class Cached(Module):
        mask = None
        def forward(self, inp): return relu(inp)
        def bwd(self, out, inp):
            if self.mask is None: self.mask = inp > 0
            add_grad(inp, out.g*self.mask)
    report = look(Cached(), rand(4, 5))
    assert not report.ok

def test_a_backward_that_overwrites():
    def overwrites(out, x): x.g = torch.where(x > 0, out.g, 0.)
    report = look((relu, overwrites), rand(4, 3))
    assert not report.ok and report.first.diagnosis.cause == 'use lost'

def test_a_backward_that_writes_to_its_input():
    def writes(out, x):
        add_grad(x, torch.where(x > 0, out.g, 0.))
        x.clamp_(min=0)
    assert not look((relu, writes), rand(4, 3)).ok

def test_a_backward_that_stops():
    def stops(out, x): raise KeyError('nothing here')
    report = look((relu, stops), rand(4, 3))
    assert not report.ok and 'KeyError' in str(report) and 'nothing here' in str(report)


# kinks

def test_on_a_kink():
    "At 0 a ReLU has two slopes, and either is right; beside it, none but one is."
    x = rand(4, 3)
    x[1,2] = x[3,0] = 0
    for slope in (0., 1., .3):
        def backward(out, x): add_grad(x, torch.where(x > 0, out.g, torch.where(x < 0, 0., slope*out.g)))
        report = look((relu, backward), x)
        assert report.ok and report.rows[0].kinks == 2, report
    def backward(out, x): add_grad(x, torch.where(x > 0, out.g, torch.where(x < 0, 0., 2*out.g)))
    assert not look((relu, backward), x).ok

def test_near_a_kink_and_far_from_it():
    "No step is so long that it takes a number to the other side."
    x = rand(5, 4)
    x[0,0],x[2,3],x[4,1] = 1e-12,-1e-9,1e-4
    assert look((relu, relu_grad), x).ok
    for one in x.flatten().argsort()[:3]:
        def backward(out, x):
            g = torch.where(x > 0, out.g, 0.)
            g.view(-1)[one] += .1
            add_grad(x, g)
        assert not look((relu, backward), x).ok


# the report, and the errors

def test_the_error_is_an_assertion_that_says_what_is_wrong():
    with pytest.raises(GradientError) as e: check_layer((lin, wrong_bias), rand(4, 3), rand(3, 2), rand(2))
    assert isinstance(e.value, AssertionError)
    report,said = e.value.report,str(e.value)
    assert not report.ok and report.first.name == 'b' and [r.name for r in report.rows if not r.ok] == ['b']
    d = report.first.diagnosis
    assert d.cause == 'scaled' and d.confident and re.search(r'0?\.25|1/4|batch|\bn\b', d.text), d
    assert d.text in said and all(k in said for k in ('x', 'w', 'b', '4x3', '3x2', 'autograd'))

def test_the_report_in_a_notebook():
    report = look((lin, wrong_bias), rand(4, 3), rand(3, 2), rand(2))
    page = report._repr_html_()
    assert page.count('<tr') >= 4 and 'batch size' in page
    assert page.count('<table') == page.count('</table>') and page.count('<td') == page.count('</td>')
    assert report.first.diagnosis.evidence and 'scaled' in str(report.first.diagnosis).splitlines()[0]

def test_names_from_outside_are_escaped():
    class Odd(Module):
        def forward(self, inp): return inp*2
        def bwd(self, out, inp): add_grad(inp, out.g)
        def __repr__(self): return '<script>'
    assert '<script>' not in look(Odd(), rand(2, 3))._repr_html_()

@pytest.mark.parametrize('args,kwargs,error,words', [
    ((lin, lin_grad), {}, (TypeError, ValueError), 'lin'),
    ((3, rand(2)), {}, TypeError, '3'),
    ((Lin, rand(2, 3)), {}, TypeError, 'Lin'),
    ((nn.Linear(3, 2), torch.zeros(2, 3).long()), {}, Exception, '.'),
    (((relu, relu_grad), torch.zeros(2, 3).long()), {}, (TypeError, ValueError), 'float'),
    (((relu, relu_grad), rand(2, 3)), dict(dtype=torch.int64), TypeError, 'dtype'),
    (((relu, relu_grad), rand(2, 3)), dict(wrt='y'), ValueError, "'y'"),
    (((relu,), rand(2, 3)), {}, TypeError, '.'),
    (((relu, relu_grad),), {}, (TypeError, ValueError), '.'),
], ids=['function and function', 'number', 'class', 'integers into nn', 'integers', 'dtype', 'wrt', 'no backward',
        'no input'])
def test_what_cannot_be_checked(args, kwargs, error, words):
    with pytest.raises(error, match=words) as e: check_layer(*args, progress=False, **kwargs)
    assert not isinstance(e.value, GradientError)

@pytest.mark.parametrize('got,want,error', [(rand(2), None, TypeError), (rand(2), torch.zeros(2).long(), TypeError)])
def test_what_cannot_be_explained(got, want, error):
    with pytest.raises(error, match='explain_grad'): explain_grad(got, want)

def test_inputs_and_parameters_are_left_alone():
    x,w,b,targ = rand(4, 3),rand(3, 1),rand(1),rand(4)
    model = Model(rand(3, 5), rand(5), rand(5, 1), rand(1))
    kept = [t.clone() for t in (x, targ, *model.params)]
    check_layer(model, x, targ, progress=False)
    assert all(torch.equal(a, b) for a,b in zip((x, targ, *model.params), kept))
    assert all(getattr(t, 'g', None) is None for t in (x, targ, *model.params)) and model.args is None
    state = torch.get_rng_state()
    check_layer((lin, lin_grad), x, w, b, progress=False)
    assert torch.equal(torch.get_rng_state(), state)

def test_the_same_seed_says_the_same():
    args = (lin, wrong_bias),rand(4, 3),rand(3, 2),rand(2)
    assert str(look(*args, seed=3)) == str(look(*args, seed=3))

def test_where_a_number_stops_being_finite():
    x = torch.tensor([1., 0., 2.], dtype=f64)
    found = first_non_finite(lambda: (x.log()*2).sum())
    assert 'log' in str(found) and first_non_finite(lambda: x.exp().sum()) is None


# the trials

def test_trials_find_what_is_wrong_with_a_doctor(monkeypatch):
    "A doctor who passes everything, and one who fails everything, are both found out."
    kind = [o for o in doctor_trials.right_cases() if o[1] == 'Relu'][0]
    def says(ok):
        real = doctor_trials.examine
        def examine(layer, inputs, **kw):
            report = real(layer, inputs, **kw)
            type(report).ok = property(lambda self: ok)
            return report
        return examine
    case = next(c for c in faults.catalogue() if c.name == 'relu, x: mask missing')
    assert doctor_trials.diagnose((case.number, 0))['named'] and doctor_trials.alarm((kind, 0, 'float64'))[1] == 'right'
    from fb_pass.doctor.report import Report
    kept = Report.ok
    try:
        monkeypatch.setattr(doctor_trials, 'examine', says(True))
        assert not doctor_trials.diagnose((case.number, 0))['caught']
    finally: Report.ok = kept
    monkeypatch.undo()
    try:
        monkeypatch.setattr(doctor_trials, 'examine', says(False))
        assert doctor_trials.alarm((kind, 0, 'float64'))[1] == 'alarm'
    finally: Report.ok = kept

def test_summary_of_the_trials():
    def one(cls, layer, **kw):
        return dict(cls=cls, layer=layer, known=True, caught=True, named=True, wrong=False, name='', kind='', seed=0,
                    causes=[], cause='', confident=False, text='') | kw
    res = doctor_trials.summary([one('scaled', 'lin'), one('scaled', 'relu', named=False),
                                 one('zero', 'lin', caught=False, named=False),
                                 one('noise', 'lin', known=False, cause='unknown')])
    assert (res['cases'], res['caught'], res['named'], res['wrong']) == (3, 2, 1, 0) and len(res['missed']) == 2
    assert res['rows']['scaled'] == dict(cases=2, caught=2, named=1, wrong=0, layers=2)
    assert res['without_name']['said_so'] == 1
    bad = dict(diagnosis=res, false_alarms=dict(rows=dict(float64=dict(right=5, alarm=1))))
    assert len([*doctor_trials.shortcomings(bad)]) == 3

def test_what_others_make_of_the_same_faults():
    number = next(c.number for c in faults.catalogue() if c.name == 'relu, x: scaled (1.01)')
    _,said = doctor_trials.beside((number, 0))
    assert {*said} == {*doctor_trials.names}
    assert said['check_layer'][0] and said['check_layer'][2] and said['gradcheck, slow'][0]
    _,said = doctor_trials.beside((-1, 0))
    assert not any(bad for bad,_,_ in said.values())

def test_each_fault_of_a_network_makes_a_difference():
    assert not faults.drawn_network(13, 1).shows(), 'its weight has one column, and the columns are permuted'
    found = doctor_trials.networks((13, 1))
    assert found['caught'] and found['named'] and not found['blamed']

def test_the_smallest_fault():
    _,size = doctor_trials.smallest(('relu', 'all', 0, 'float64'))
    assert 1e-16 < size < 1e-11

def test_a_right_loss_whose_differences_are_lucky_once():
    "The last correction of one difference quotient here is small by accident: its error must not be taken for that."
    net = faults.network(10, 1)
    net.model(*net.inputs)
    assert check_layer(CrossEntropy(), *net.model.loss.args, raise_exception=False, progress=False).ok


# No verdict without evidence

def function(forward, backward):
    "An `autograd.Function` with these two; the backward is given the upstream gradient and what went in."
    def keep(ctx, *ts): ctx.save_for_backward(*ts); return forward(*ts)
    def back(ctx, g): return backward(g, *ctx.saved_tensors)
    return type('Made', (torch.autograd.Function,), dict(forward=staticmethod(keep), backward=staticmethod(back)))

def masked_softmax(x): return x.masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf).softmax(-1)
def masked_softmax_back(g, x): y = masked_softmax(x); return y*(g - (g*y).sum(-1, True))
def amax_back(g, x): return torch.autograd.functional.vjp(lambda x: x.amax(1), x, g)[1]
whole = torch.arange(20.).view(4, 5) % 3

@pytest.mark.parametrize('forward, backward, x', [
    (masked_softmax, masked_softmax_back, rand(2, 5, 5)), (lambda x: x.amax(1), amax_back, whole),
    (lambda x: x.logcumsumexp(-1), lambda g, x: (g*(-x.logcumsumexp(-1)).exp()).flip(-1).cumsum(-1).flip(-1)*x.exp(),
     rand(4, 5))], ids=['a mask of minus infinity', 'ties', 'logcumsumexp'])
def test_infinities_and_ties_widen_no_tolerance(forward, backward, x):
    assert look(function(forward, backward), x).tested and look(function(forward, backward), x).ok
    report = look(function(forward, lambda g, x: -backward(g, x)), x)
    assert report.first.diagnosis.cause == 'scaled' and report.first.budget < 1e-12

def test_a_forward_that_draws_its_own_numbers_is_not_judged():
    gen = torch.Generator()
    net = function(lambda x: x*torch.rand(x.shape, generator=gen, dtype=x.dtype), lambda g, x: -g)
    report = look(net, rand(3, 4))
    assert not report.ok and [o.verdict for o in report.rows] == ['not tested']
    assert 'gives another output for the same numbers' in str(report)

@pytest.mark.parametrize('layer, x', [(nn.ReLU(), -rand(3, 4).abs() - 1), (nn.ReLU(), rand(0, 4))])
def test_where_nothing_could_fail_nothing_was_tested(layer, x):
    with pytest.raises(GradientError, match='nothing was tested'): check_layer(layer, x, progress=False)
    assert look(layer, x).ok and not look(layer, x).tested

def test_a_gradient_where_none_belongs():
    "A straight-through estimator: the right gradient is zero, and no factor of it."
    report = look(function(torch.sign, lambda g, x: g), rand(4, 5))
    assert 'should be zero' in report.first.diagnosis.text

def test_input_or_output_that_is_not_finite_is_refused():
    for x in (torch.full((2,), torch.nan), torch.zeros(2)):
        with pytest.raises(ValueError, match='numbers that are not finite'): look(nn.LogSigmoid(), x.log())

class Rescaled(nn.Module):
    "Computes in float32 whatever it is given."
    def forward(self, x): return x.float().mul(x.float().pow(2).mean(-1, True).rsqrt()).to(x)

def test_float32_inside_is_recognized():
    report = look(Rescaled(), rand(4, 6))
    assert report.ok and report.inner == torch.float32 and 'with float32 inside' in str(report)
    half = function(Rescaled().forward, lambda g, x: g*x.pow(2).mean(-1, True).rsqrt()) # a term is missing
    assert not look(half, rand(4, 6)).ok

def test_a_parameter_that_is_not_used_is_not_wrong():
    class Spare(nn.Linear):
        def __init__(self): super().__init__(4, 3); self.spare = nn.Parameter(torch.ones(2))
    assert [o.verdict for o in look(Spare(), rand(5, 4)).rows] == ['right']*3 + ['not used']

def test_forward_mode_is_believed_only_where_it_agrees():
    "Where torch's own is wrong: for a product by scatter_reduce it returns zero."
    class Product(nn.Module):
        def forward(self, x): return torch.ones(2, 3).to(x).scatter_reduce(0, torch.tensor([[0, 1, 0]]*4), x, 'prod')
    assert look(Product(), rand(4, 3)).ok

def test_a_domain_that_is_left_is_no_error():
    assert look(nn.BCELoss(), torch.rand(5, 2, dtype=f64)*.98 + .01, torch.rand(5, 2, dtype=f64)).ok

class HalfSoftmax(closures.Layer):
    "Softmax in numpy, out of autograd's sight; its backward pass is half of the right one."
    def forward(self, X):
        Y = np.exp(X - X.max(1, keepdims=True))
        Y = Y/Y.sum(1, keepdims=True)
        return Y, lambda Yg: .5*Y*(Yg - (Yg*Y).sum(1, keepdims=True))

def test_a_cause_is_named_where_differences_are_the_only_reference():
    "Their error belongs to the tolerance of the explanation."
    report = look(HalfSoftmax(), np.random.default_rng(0).standard_normal((3, 6)))
    assert report.first.diagnosis.cause == 'scaled' and report.first.diagnosis.confident

@pytest.mark.parametrize('shape', [(3, 4), (11, 11)])
def test_autograd_explains_nothing_where_it_is_not_believed(shape):
    "It does not see through `detach`: by it, half of the right gradient would be right. Of any size."
    report = look(function(lambda x: x*x.detach(), lambda g, x: g*x), rand(*shape))
    assert not report.ok and report.first.diagnosis.cause == 'scaled'

def test_a_tensor_that_cannot_be_moved_is_not_called_unused():
    "Moved by 1, a probability has left the domain. Autograd knows nothing of it, because of `detach`."
    def loss(x, w): return F.binary_cross_entropy(x.detach(), torch.ones_like(x))*w.sum()
    report = look(function(loss, lambda g, x, w: (None, g*loss(x, torch.ones_like(w)/w.numel()).expand_as(w))),
                  torch.rand(5, dtype=f64)*.98 + .01, rand(3))
    assert report.rows[0].verdict == 'absent' and report.rows[1].verdict == 'right'

def test_progress_never_passes_its_end(monkeypatch):
    "A wrong gradient is looked at once more, in case that float32 inside explains it."
    bars = []
    class Kept(doctor.tqdm):
        def close(self): bars.append((self.n, self.total)); super().close()
    monkeypatch.setattr(doctor, 'tqdm', Kept)
    report = check_layer(function(Rescaled().forward, lambda g, x: g), rand(4, 6), raise_exception=False)
    assert not report.ok and bars and all(n == total for n,total in bars)

def test_a_report_is_true_if_all_was_right_and_something_was_tested():
    x = torch.randn(3)
    for backward,ok in ((lambda g, x: 2*g*x, True), (lambda g, x: 3*g*x, False)):
        assert bool(check_layer((lambda x: x**2, backward), x, raise_exception=False)) == ok
    nothing = check_layer((lambda x: x.sign(), lambda g, x: 0*g), x, raise_exception=False)
    assert nothing.ok and not nothing.tested and not nothing

def cross_entropy(x, y, n=None):
    "Of numpy arrays, with its gradient; a fixed `n` is wrong for another batch size."
    p = np.exp(x - x.max(1, keepdims=True))
    p = p/p.sum(1, keepdims=True)
    return -(y*np.log(p)).sum()/len(y), (p - y)/(n or len(y))

@pytest.mark.parametrize('y', [
    np.eye(3)[[0, 1, 2, 0]], np.eye(3, dtype=int)[[0, 1, 2, 0]], rand(4, 3).softmax(1).numpy(), np.full((4, 3), 1/3)])
def test_other_sizes_keep_sums_of_one(y):
    "And so keep labels labels: the gradient is right only for them."
    x = rand(4, 3).numpy()
    assert look(cross_entropy, x, y).ok and look(cross_entropy, x, y, wrt='x').ok
    report = look(lambda x, y: cross_entropy(x, y, 4), x, y)
    assert not report.ok and 'wrong with 5 instead of 4' in str(report)

def of_orthogonal(x, q, k=1): return ((x@q)**2).sum()/2, x*k
def of_sorted(x, k=1): return ((np.sort(x) - x)**2).sum() + (x**2).sum()/2, x*k

@pytest.mark.parametrize('f, inputs', [
    (of_orthogonal, (rand(4, 3).numpy(), np.linalg.qr(rand(3, 3).numpy())[0])), (of_sorted, (np.arange(5.)**2,))])
def test_other_sizes_keep_what_a_gradient_may_rely_on(f, inputs):
    assert look(f, *inputs, wrt='x').ok and not look(lambda x, *a: f(x, *a, k=2), *inputs, wrt='x').ok

class Softmax(torch.autograd.Function):
    "Over the last axis."
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(p := x.softmax(-1))
        return p
    @staticmethod
    def backward(ctx, g): p, = ctx.saved_tensors; return p*(g - (g*p).sum(-1, True))

class OtherSoftmax(Softmax):
    "With a sum over another axis in the backward pass."
    @staticmethod
    def backward(ctx, g): p, = ctx.saved_tensors; return p*(g - (g*p).sum(-2, True))

class Attention(nn.Module):
    def __init__(self, softmax): super().__init__(); self.softmax = softmax
    def forward(self, x, mask): return self.softmax.apply((x@x.mT).masked_fill(mask, -torch.inf))@x

@pytest.mark.parametrize('n', [3, 11])
def test_entries_of_minus_infinity_stay_so(n):
    mask = torch.ones(n, n).triu(1).bool()
    x = rand(2, n, n).masked_fill(mask, -torch.inf)
    for softmax,right in ((Softmax, True), (OtherSoftmax, False)):
        assert look(Attention(softmax), rand(2, n, 4), mask).ok is look(softmax, x).ok is right

class Fit:
    "A network with a loss, whose gradient of the bias is what the function `of_bias` makes of it and of the errors."
    def __init__(self, of_bias): self.params,self.of_bias = {'w': rand(4, 3).numpy(), 'b': rand(3).numpy()},of_bias
    def loss(self, x, y):
        w,b = self.params.values()
        d = x@w + b - y
        return (d**2).sum()/2, {'w': x.T@d, 'b': self.of_bias(b, d)}

@pytest.mark.parametrize('of_bias', [lambda b, d: np.cos(b), lambda b, d: np.ones(3)])
def test_a_gradient_that_is_the_same_without_an_earlier_call_is_not_stale(of_bias):
    inputs = rand(5, 4).numpy(),rand(5, 3).numpy()
    assert look(Fit(lambda b, d: d.sum(0)).loss, *inputs).ok
    report = look(Fit(of_bias).loss, *inputs)
    assert not report.ok and report.first.diagnosis.cause != 'stale' and 'earlier' not in report.first.diagnosis.text

class Cut(nn.Module):
    "x + xw, of which autograd does not see all."
    def __init__(self, cut): super().__init__(); self.w,self.cut = nn.Parameter(rand(4, 4)),cut
    def forward(self, x): return x + self.cut(x, self.w)

@torch.no_grad()
def without_graph(x, w): return x@w
def hooked(x, w):
    if (y := x@w).requires_grad: y.register_hook(lambda g: 2*g)
    return y

@pytest.mark.parametrize('cut', [without_graph, hooked, lambda x, w: (x@w).data, lambda x, w: x.detach()@w])
def test_what_autograd_does_not_see_is_no_missing_factor(cut):
    assert look(Cut(torch.matmul), rand(3, 4)).ok
    wrong = [o for o in look(Cut(cut), rand(3, 4)).rows if not o.ok]
    assert wrong and all('autograd does not see a part' in o.diagnosis.text for o in wrong)

def tanh32(x): return x.float().tanh().to(x)
def numpy_tanh32(x): return np.tanh(x.astype(np.float32)).astype(x.dtype)

@pytest.mark.parametrize('shape', [(3, 4), (15, 14)])
@pytest.mark.parametrize('forward, tanh', [(tanh32, torch.tanh), (numpy_tanh32, np.tanh)])
def test_a_fault_with_float32_inside_has_its_name(forward, tanh, shape):
    "In float32 the smallest steps change nothing, and so the gradient seemed to be zero."
    x = rand(*shape) if forward is tanh32 else rand(*shape).numpy()
    def backward(k): return lambda g, x: k*g*(1 - tanh(x)**2)
    assert look((forward, backward(1)), x).ok
    report = look((forward, backward(2)), x)
    assert not report.ok and report.first.diagnosis.cause == 'scaled'


# No more evidence than is needed

def forwards(name, dtype, kind='pair', fault=None):
    "How often a check calls the forward of a layer of the catalogue, and its report."
    layer,calls = faults.layers[name],[]
    def counted(*ts): calls.append(1); return layer.forward(*ts)
    t = faults.Case(layer, None, 0).tensors(0, dtype=dtype, low=3)
    made,inputs = faults.kinds[kind](layer._replace(forward=counted), t, faults.hand(layer, fault))
    report = look(made, *inputs, dtype=dtype)
    return len(calls), report

@pytest.mark.parametrize('dtype', [f64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize('name', ['lin', 'relu', 'softmax', 'layer norm', 'batch norm'])
def test_a_right_layer_needs_no_difference_for_each_entry(name, dtype):
    calls,report = forwards(name, dtype)
    assert report.ok and calls < 100, report

def test_nor_does_one_with_small_gradients():
    calls = []
    def forward(x): calls.append(1); return x/32
    assert look((forward, lambda g, x: g/32), rand(4, 6).bfloat16(), dtype=torch.bfloat16).ok and len(calls) < 100

@pytest.mark.parametrize('dtype', [f64, torch.float32, torch.float16], ids=str)
def test_nor_does_one_that_is_off_by_many_roundings(dtype):
    calls,report = forwards('attention', dtype)
    assert report.ok and calls < 200, report

@pytest.mark.parametrize('name', ['lin', 'softmax', 'layer norm'])
def test_nor_does_one_of_arrays(name):
    calls,report = forwards(name, f64, 'closures')
    assert report.ok and calls < 250, report

@pytest.mark.parametrize('dtype, roundings', [(torch.bfloat16, 4), (torch.float16, 4), (torch.float32, 40)], ids=str)
@pytest.mark.parametrize('how', ['all', 'entry'])
@pytest.mark.parametrize('name, more', [('lin', 2), ('relu', 1), ('softmax', 4), ('layer norm', 4)])
def test_a_small_fault_in_a_short_dtype_is_seen(name, more, how, dtype, roundings):
    assert doctor_trials.seen(faults.layers[name], how, more*roundings*torch.finfo(dtype).eps/2, 0, dtype)
    assert not doctor_trials.seen(faults.layers[name], how, 0., 0, dtype)

def test_a_small_fault_in_arrays_is_seen():
    class Scale(closures.Layer):
        def __init__(self, factor): super().__init__(); self.factor = factor
        def forward(self, X): return 3*X, lambda D: 3*self.factor*D
    x = rand(4, 5).numpy()
    assert look(Scale(1.), x).ok and not look(Scale(1 + 1e-8), x).ok

def test_a_whole_with_a_wrong_part_needs_no_difference_for_each_entry():
    calls = []
    class Counted(Lin):
        def forward(self, inp): calls.append(1); return super().forward(inp)
    def network(middle):
        return Model.from_layers([Lin(rand(4, 3), rand(3)), middle(), Counted(rand(3, 1), rand(1))], Mse())
    class Wrong(Relu):
        def bwd(self, out, inp): add_grad(inp, -out.g*(inp > 0))
    x,y = rand(5, 4),rand(5)
    right = look(network(Relu), x, y)
    assert right.ok
    once = len(calls)
    report = look(network(Wrong), x, y)
    assert [o.ok and o.verdict == 'right' for o in report.rows] == [False, True, False, False, True, True]
    assert {o.verdict for o in report.rows} == {'right', 'wrong from upstream'}
    assert report.rows[0].autograd[0] > report.rows[0].autograd[1] and report.first.diagnosis.cause == 'scaled'
    assert len(calls) - once < 200, 'each of the 20 entries of x would take some ten forward passes'


# What the upstream gradient or the inputs do not change

@pytest.mark.parametrize('name, tensor', [('layer norm', 'bias'), ('cross_entropy', 'logits'), ('lin', 'x')])
def test_a_gradient_that_is_the_first_one_for_ever_is_stale(name, tensor):
    wanted = tensor,'the first one for ever'
    case = next(c for c in faults.catalogue([name]) if (c.fault.tensor, c.fault.label) == wanted)
    for seed in range(3):
        b = case.build(seed)
        row = look(b.layer, *b.inputs, seed=seed, wrt=b.wrt).first
        assert row.diagnosis.cause == 'stale' and 'depends on neither' in row.diagnosis.text

def test_a_factor_of_the_first_call_is_found_where_it_is_one_number():
    class Times:
        def __init__(self, keeps): self.kept,self.keeps = None,keeps
        def forward(self, x, a):
            self.x,self.a = x,a
            if self.kept is None: self.kept = a
            return x*a
        def backward(self, g): return g*(self.kept if self.keeps else self.a), (g*self.x).sum()
    x,a = rand(4, 5),torch.tensor(1.5, dtype=f64)
    assert look(Times(False), x, a).ok
    report = look(Times(True), x, a)
    assert not report.ok and report.first.diagnosis.cause == 'stale', report

def test_a_rounding_more_or_less_is_no_random_number():
    "A solver of LAPACK may round otherwise in other memory."
    def jittery(size):
        calls = []
        def forward(x): calls.append(1); return x*2*(1 + size*(len(calls) % 3))
        return forward, lambda g, x: 2*g
    assert look(jittery(2e-16), rand(4, 3)).ok
    assert 'another output for the same numbers' in look(jittery(1e-9), rand(4, 3)).notes[0]

@pytest.mark.parametrize('name', ['batch norm', 'layer norm'])
def test_what_a_norm_removes_is_no_input_that_is_not_used(name):
    case = next(c for c in faults.catalogue([name]) if (c.fault.tensor, c.fault.cls) == ('x', 'absent'))
    for seed in range(12):
        b = case.build(seed)
        assert not look(b.layer, *b.inputs, seed=seed, wrt=b.wrt).ok
