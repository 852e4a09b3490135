"""The recorded step is the readable step: same numbers, same errors, and nothing else changes."""
import copy, shutil

import pytest, torch, torch.nn.functional as F
from fb_pass import compiled
from fb_pass.activations import Gelu as RealGelu
from fb_pass.attention import AttentionWeights, Embedding, Softmax
from fb_pass.compiled import PASSES, CompiledStep, Script, compile_step, improve, record, state_of
from fb_pass.convolution import Conv2d, Flatten, Unflatten
from fb_pass.gpt import ClippedAdamW, gpt
from fb_pass.gradients import Rule
from fb_pass.modules import Lin, Model, Module, Mse, Op, Relu
from fb_pass.norms import LayerNorm, layer_norm_rule, standardize, standardize_grad
from fb_pass.training import SGD, AdamW, CrossEntropy, Optimizer, dataloader, fit, mlp, one_cycle, train_step

aten = torch.ops.aten
OPTIMIZERS = {'plain': lambda ps: SGD(ps, .1), 'momentum': lambda ps: SGD(ps, .1, .9, .01),
              'AdamW': lambda ps: AdamW(ps, .01)}

def batch(n=9, size=6, classes=4, dtype=torch.float64):
    gen = torch.Generator().manual_seed(n)
    return torch.randn(n, size, generator=gen, dtype=dtype), torch.randint(classes, (n,), generator=gen)

def pair(optimizer='plain', sizes=(6, 5, 4), dtype=torch.float64):
    model = mlp(*sizes, generator=torch.Generator().manual_seed(0), dtype=dtype)
    return model, OPTIMIZERS[optimizer](model.params)

def same(a, b, rtol=1e-12):
    for (k,x),y in zip(state_of(*a).items(), state_of(*b).values(), strict=True):
        assert (x - y).abs().max() <= rtol*y.abs().max().clamp_min(1e-300), k
    assert a[1].steps == b[1].steps

class Gelu(Op):
    rule = Rule(lambda x: x*torch.sigmoid(1.702*x), lambda g, out, x: g*(
        torch.sigmoid(1.702*x)*(1 + 1.702*x*(1 - torch.sigmoid(1.702*x)))))

class Scale(Module):
    "As a reader writes it: a parameter in a list, `.g` set by hand."
    def __init__(self, n): self.held = [torch.ones(n, dtype=torch.float64)]
    def forward(self, x): return x*self.held[0]
    def bwd(self, out, x): self.held[0].g,x.g = (out.g*x).sum(0), out.g*self.held[0]

def models():
    def lin(a, b): return Lin(torch.randn(a, b, dtype=torch.float64)/2, torch.randn(b, dtype=torch.float64))
    torch.manual_seed(0)
    shared = lin(6, 6)
    return {'one layer': (mlp(6, 4, dtype=torch.float64), 4), 'deep': (mlp(6, 5, 5, 5, 4, dtype=torch.float64), 4),
            'mse': (Model.from_layers([lin(6, 5), Relu(), lin(5, 1)], Mse()), None),
            'own layers': (Model.from_layers([lin(6, 5), Gelu(), Scale(5), lin(5, 1)], Mse()), None),
            'one tensor, two layers': (
                Model.from_layers([shared, Relu(), Lin(shared.w, shared.b), lin(6, 1)], Mse()), None)}

@pytest.mark.parametrize('optimizer', OPTIMIZERS)
@pytest.mark.parametrize('name', models())
def test_same_numbers(name, optimizer):
    model,classes = models()[name]
    ours = model,OPTIMIZERS[optimizer](model.params)
    theirs = copy.deepcopy(ours)
    x,y = batch()
    if classes is None: y = y.double()
    step = compile_step(*ours, x, y)
    for i,n in enumerate((9, 9, 4, 1, 9)): # a last batch of another size, another learning rate in each step
        for _,opt in (ours, theirs): opt.lr = .1/(i + 1)
        assert step(x[:n], y[:n]) == pytest.approx(train_step(*theirs, x[:n], y[:n]), rel=1e-12)
    same(ours, theirs, 1e-11)

@pytest.mark.parametrize('optimizer', OPTIMIZERS)
def test_float32(optimizer):
    ours,(x,y) = pair(optimizer, dtype=torch.float32),batch(dtype=torch.float32)
    theirs,step = copy.deepcopy(ours),compile_step(*ours, x, y)
    for _ in range(5): assert step(x, y) == pytest.approx(train_step(*theirs, x, y), rel=1e-5)
    same(ours, theirs, 1e-5)

@pytest.mark.skipif(not shutil.which('g++'), reason='inductor needs a C++ compiler')
@pytest.mark.parametrize('optimizer', ['momentum', 'AdamW'])
def test_inductor(optimizer):
    ours,(x,y) = pair(optimizer),batch()
    theirs,step = copy.deepcopy(ours),compile_step(*ours, x, y, backend='inductor')
    for lr in (.1, .2, .05):
        for _,opt in (ours, theirs): opt.lr = lr
        assert step(x, y) == pytest.approx(train_step(*theirs, x, y), rel=1e-12)
    same(ours, theirs)
    with pytest.raises(FloatingPointError): step(x*float('inf'), y)
    same(ours, theirs)

@pytest.mark.parametrize('skipped', range(len(PASSES)))
@pytest.mark.parametrize('how', [{}, dict(buffers=False), dict(in_place=False), dict(layouts=False)])
def test_each_pass_and_each_choice_alone(skipped, how):
    ours,(x,y) = pair('AdamW'),batch()
    theirs = copy.deepcopy(ours)
    passes = [f for i,f in enumerate(PASSES) if i != skipped]
    script = Script(improve(record(*ours, x, y), passes), state_of(*ours), **how)
    for i in range(3):
        assert script.run(x, y, ours[1].lr, i) == pytest.approx(train_step(*theirs, x, y), rel=1e-12)
    ours[1].steps = 3
    same(ours, theirs)

def test_the_script_needs_no_memory_and_few_calls():
    ours,(x,y) = pair(),batch()
    source = Script(improve(record(*ours, x, y)), state_of(*ours)).source
    lines = [o.strip() for o in source.splitlines()[1:]]
    made = [o for o in lines if 'out=' not in o and not o.startswith(('loss', 'if ', 'return '))]
    assert sorted(o.partition('= ')[2] for o in made) == ['(-lr)', 't(xb)', 'unsqueeze(yb, -1)'], source
    assert sum('addmm(' in o for o in lines) == 4 and sum('mm(' in o for o in lines) == 5, 'no product is done twice'
    assert len(lines) <= 24, source

def test_recording_changes_nothing():
    ours,(x,y) = pair('AdamW'),batch()
    before,rng = [t.clone() for t in state_of(*ours).values()],torch.get_rng_state()
    compile_step(*ours, x, y)
    assert all(torch.equal(a, b) for a,b in zip(before, state_of(*ours).values()))
    assert ours[1].steps == 0 and torch.equal(rng, torch.get_rng_state())
    assert all(getattr(t, 'g', None) is None for t in (*ours[0].params, x)) and ours[0].args is None

@pytest.mark.parametrize('bad', ['loss', 'label above', 'label below', 'dtype', 'shape'])
def test_what_does_not_fit_changes_nothing(bad):
    ours,(x,y) = pair('AdamW'),batch()
    step = compile_step(*ours, x, y)
    before = copy.deepcopy(ours)
    wrong = dict(loss=(x*float('inf'), y), dtype=(x.float(), y), shape=(x[:,:5], y)) | {
        'label above': (x, y + 4), 'label below': (x, y - 1)}
    with pytest.raises((FloatingPointError, IndexError, RuntimeError, TypeError, ValueError)): step(*wrong[bad])
    same(ours, before)

class Broken(Module):
    def __init__(self): self.w = torch.ones(6, dtype=torch.float64)
    def bwd(self, out, x, targ): self.w.g = x.sum(0)

def refused():
    class Branch(Broken):
        def forward(self, x, targ): return (x@self.w).sum()*(2 if self.w.sum() > 0 else 1)
    class Item(Broken):
        def forward(self, x, targ): return (x@self.w).sum()*self.w.max().item()
    class Part(Broken):
        def forward(self, x, targ):
            self.w[0] += 1
            return (x@self.w).sum()
    class Data(Broken):
        def forward(self, x, targ): return (x.add_(1)@self.w).sum()
    class Counter(Broken):
        def __init__(self): super().__init__(); self.count = torch.zeros(1, dtype=torch.int64)
        def forward(self, x, targ):
            self.count += 1
            return (x@self.w).sum()
    class Data2(Broken):
        def forward(self, x, targ): return (x@self.w).sum()*(1. if x.abs().max() < 3 else 2.)
    class Counted(Broken):
        def forward(self, x, targ): return (x@self.w).sum()/(targ > 0).sum().item()
    class Masked(Broken):
        def forward(self, x, targ): return (x@self.w)[targ > 0].mean()
    class Random(Broken):
        def forward(self, x, targ): return (x@self.w).sum()*(torch.rand(()).item() < .9)
    class Normal(Broken):
        def forward(self, x, targ): return (x@self.w + torch.empty_like(x[:,0]).normal_()).sum()
    class Number(Broken):
        n = 0
        def __init__(self): super().__init__(); self.n = 0
        def forward(self, x, targ): self.n += 1; return (x@self.w).sum()*(1 if self.n < 4 else 2)
    class Running(Broken):
        def __init__(self): super().__init__(); self.mean,self.params = torch.zeros(6).double(),(self.w,)
        def forward(self, x, targ):
            self.mean = .9*self.mean + .1*x.mean(0)
            return ((x - self.mean)@self.w).sum()
    return {o.__name__: (o, words) for o,words in (
        (Branch, 'torch.where'), (Item, 'torch.where'), (Part, r'x = x \+ 1'), (Data, r'x = x \+ 1'),
        (Counter, 'reads and changes count'), (Data2, 'torch.where'), (Counted, 'torch.where'),
        (Masked, 'size of the result'), (Random, 'random draw'),
        (Normal, 'randn_like'), (Number, "changes 'n'"), (Running, 'changes .*mean'))}

@pytest.mark.parametrize('name', refused())
def test_what_cannot_be_recorded_is_refused(name):
    cls,words = refused()[name]
    model = cls()
    with pytest.raises(ValueError, match=words): compile_step(model, SGD(model.params, .1), *batch())

def test_an_optimizer_that_counts_by_itself_is_refused():
    class Counting(SGD):
        def __init__(self, *args): super().__init__(*args); self.k = 0
        def update(self, i, p): self.k += 1; p -= self.lr/self.k*p.g
    model = pair()[0]
    opt = Counting(model.params, .1)
    with pytest.raises(ValueError, match="changes 'k' of the model or the opt"): compile_step(model, opt, *batch())

def test_a_wrong_pass_is_found(monkeypatch):
    def forgets(gm):
        for n in gm.graph.nodes:
            if n.target is aten.div.Tensor: n.replace_all_uses_with(n.args[0])
        return gm
    monkeypatch.setitem(compiled.BACKENDS, 'replay', ((forgets,), compiled.BACKENDS['replay'][1]))
    with pytest.raises(RuntimeError, match='is not the readable one: layers'): compile_step(*pair(), *batch())

def test_a_replaced_parameter_is_seen():
    ours,(x,y) = pair(),batch()
    theirs,step = copy.deepcopy(ours),compile_step(*ours, x, y)
    for model,opt in (ours, theirs):
        model.layers[0].w = torch.full((6, 5), .1, dtype=torch.float64)
        opt.params[0] = model.layers[0].w
    assert step(x, y) == pytest.approx(train_step(*theirs, x, y), rel=1e-12)
    same(ours, theirs)

def test_settings_and_readable_steps_in_between():
    ours,(x,y) = pair('AdamW'),batch()
    theirs,step = copy.deepcopy(ours),compile_step(*ours, x, y)
    for i in range(6):
        if i == 4:
            for _,opt in (ours, theirs): opt.weight_decay,opt.betas = .5,(.5, .6)
        take = step if i % 2 else lambda x, y: train_step(*ours, x, y)
        assert take(x, y) == pytest.approx(train_step(*theirs, x, y), rel=1e-12)
    same(ours, theirs)

@pytest.mark.parametrize('columns', [False, True])
def test_random_layers_draw_anew(columns, monkeypatch):
    monkeypatch.setattr(Script, '_faster', lambda self, f, n, t: t.view(t.shape[::-1]).t() if columns else t)
    class Dropout(Module):
        def forward(self, x): self.mask = (torch.rand_like(x) < .5).to(x); return x*self.mask
        def bwd(self, out, x): x.g = out.g*self.mask
    def lin(a, b): return Lin(torch.randn(a, b, dtype=torch.float64), torch.zeros(b, dtype=torch.float64))
    model = Model.from_layers([lin(6, 50), Dropout(), lin(50, 1)], Mse())
    ours,(x,y) = (model, SGD(model.params, 0.)),batch()
    step = compile_step(*ours, x, y.double())
    assert step(x, y.double()) != step(x, y.double())
    torch.manual_seed(3)
    a = step(x, y.double())
    torch.manual_seed(3)
    assert a == pytest.approx(train_step(*ours, x, y.double()), rel=1e-12)

def test_fit():
    x,y = batch(100)
    found = []
    for fast in (False, True):
        model,opt = pair('AdamW')
        dls = dataloader(x, y, 32, torch.Generator().manual_seed(0)),dataloader(x, y, 50)
        found.append(fit(model, opt, *dls, 3, one_cycle(.01, 12), stats_every=5, progress=False, compiled=fast))
    a,b = found
    assert a.losses == pytest.approx(b.losses, rel=1e-12) and a.lrs == b.lrs and len(a.stats) == len(b.stats) == 3
    assert [o['accuracy'] for o in a.epochs] == [o['accuracy'] for o in b.epochs]

def test_arguments():
    ours,(x,y) = pair(),batch()
    with pytest.raises(ValueError, match="backend is 'jit', expected one of"): compile_step(*ours, x, y, backend='jit')
    with pytest.raises(TypeError, match='model'): compile_step('model', ours[1], x, y)
    theirs = torch.optim.SGD([x.clone().requires_grad_()], .1)
    with pytest.raises(TypeError, match='one of our optimizers'): compile_step(ours[0], theirs, x, y)
    other = pair()[0]
    with pytest.raises(ValueError, match='no parameter of this'): compile_step(ours[0], SGD(other.params, .1), x, y)
    with pytest.raises(TypeError, match='xb is a tuple, expected a tensor'): compile_step(*ours, x, y)((x, x), y)
    with pytest.raises(TypeError, match='neither copied nor saved'): copy.deepcopy(compile_step(*ours, x, y))
    assert isinstance(ours[1], Optimizer) and isinstance(compile_step(*ours, x, y), CompiledStep)

def test_a_weight_is_updated_when_its_gradient_is_there_and_its_old_value_is_not_read_any_more():
    ours,(x,y) = pair(sizes=(6, 5, 5, 4)),batch()
    lines = Script(improve(record(*ours, x, y)), state_of(*copy.deepcopy(ours))).source.splitlines()
    def line(text): return next(i for i,o in enumerate(lines) if text in o)
    for k in (2, 4):
        assert line(f'layers_{k}_w_t') < line(f'out=layers_{k}_w)') < line(f'layers_{k}_w_t') + 4
    assert not any('copy_' in o for o in lines)

def test_the_input_of_relu_is_not_kept():
    ours,(x,y) = pair(sizes=(6, 5, 5, 4)),batch()
    source = Script(improve(record(*ours, x, y)), state_of(*copy.deepcopy(ours))).source
    for k in ('buffer', 'buffer_1'): assert f'clamp_min({k}, 0.0, out={k})' in source

# Adam at once

class Nearly(AdamW):
    "AdamW with one of three changes."
    inside,share,unbiased = 0.,1 - .9,.999 # what is added below the root, the share of the gradient, a correction
    def update(self, i, p):
        beta1,beta2 = self.betas
        self.means[i] = beta1*self.means[i] + self.share*p.g
        self.squares[i] = beta2*self.squares[i] + (1 - beta2)*p.g**2
        mean,square = self.means[i]/(1 - beta1**self.steps),self.squares[i]/(1 - self.unbiased**self.steps)
        p *= 1 - self.lr*self.weight_decay
        if self.inside: square = square + self.inside
        p -= self.lr*mean/(square.sqrt() + self.eps)

class Inside(Nearly): inside = 1e-3
class Share(Nearly): share = .2
class Unbiased(Nearly): unbiased = .99

class Later(AdamW):
    "AdamW, but its mean is changed once more."
    def update(self, i, p):
        super().update(i, p)
        self.means[i] = self.means[i] + .01*p.g

class Groups(AdamW):
    "Only matrices decay."
    def update(self, i, p):
        decay,self.weight_decay = self.weight_decay,self.weight_decay*(p.ndim > 1)
        super().update(i, p)
        self.weight_decay = decay

def turned():
    "A weight that lies in memory by columns, and one that two layers use."
    torch.manual_seed(0)
    w,v,b = torch.randn(5, 6, dtype=torch.float64).t(),torch.randn(5, 5, dtype=torch.float64),torch.randn(5).double()
    last = Lin(b[:,None].clone(), b[:1].clone())
    return Model.from_layers([Lin(w, b), Relu(), Lin(v, b), Relu(), Lin(v, b), last], Mse())

@pytest.mark.parametrize('optimizer, calls', [
    (AdamW, 1), (Groups, 2), (Inside, 0), (Share, 0), (Unbiased, 0), (Later, 0)])
def test_all_updates_by_adam_are_one_call_and_others_are_not(optimizer, calls):
    model,(x,y) = mlp(6, 5, 4, dtype=torch.float64),batch()
    ours = model,optimizer(model.params, .01, eps=1e-3)
    theirs,source = copy.deepcopy(ours),Script(improve(record(*ours, x, y)), state_of(*copy.deepcopy(ours))).source
    assert source.count('_adamw_(') == calls and ('sqrt' in source) == (not calls)
    step = compile_step(*ours, x, y)
    for _ in range(5): assert step(x, y) == pytest.approx(train_step(*theirs, x, y), rel=1e-12)
    same(ours, theirs, 1e-11)

def test_adam_on_weights_by_columns_and_in_two_layers():
    model,(x,y) = turned(),batch()
    ours = model,AdamW(model.params, .01)
    theirs,step = copy.deepcopy(ours),compile_step(*ours, x, y.double())
    for _ in range(5): assert step(x, y.double()) == pytest.approx(train_step(*theirs, x, y.double()), rel=1e-12)
    same(ours, theirs, 1e-11)

def test_a_gradient_by_columns_is_turned_before_adam(monkeypatch):
    def by_columns(self, f, n):
        t = torch.empty(n.meta['val'].shape[::-1], dtype=self._dtype(n))
        return t.t() if t.ndim == 2 else t
    monkeypatch.setattr(Script, '_buffer', by_columns)
    ours,(x,y) = pair('AdamW'),batch()
    theirs,script = copy.deepcopy(ours),Script(improve(record(*ours, x, y)), state_of(*ours))
    assert '.contiguous()' in script.source
    for i in range(3): assert script.run(x, y, .01, i) == pytest.approx(train_step(*theirs, x, y), rel=1e-12)

def test_without_torchs_adam_it_stays_as_it_is(monkeypatch):
    monkeypatch.delattr(torch, '_fused_adamw_')
    ours,(x,y) = pair('AdamW'),batch()
    assert 'sqrt' in Script(improve(record(*ours, x, y)), state_of(*ours)).source

# Layers at once, and fewer copies

def small_gpt(dtype=torch.float64):
    model = gpt(5, 4, 2, n_head=2, width=6, generator=torch.Generator().manual_seed(0), dtype=dtype)
    gen = torch.Generator().manual_seed(1)
    tokens = torch.randint(5, (3, 4), generator=gen),torch.randint(5, (3, 4), generator=gen)
    return (model, ClippedAdamW(model.params, .01)), tokens

def source_of(ours, x, y, passes=PASSES):
    return Script(improve(record(*ours, x, y), passes), state_of(*copy.deepcopy(ours))).source

def as_readable(ours, x, y, steps=3, rtol=1e-12):
    "The recorded step takes the steps of the readable one."
    theirs,step = copy.deepcopy(ours),compile_step(*ours, x, y)
    for _ in range(steps): assert step(x, y) == pytest.approx(train_step(*theirs, x, y), rel=rtol)
    same(ours, theirs, 10*rtol)

def test_a_gpt_is_few_calls_and_the_same_numbers():
    ours,tokens = small_gpt()
    source = source_of(ours, *tokens)
    calls = {'native_layer_norm(': 5, 'native_layer_norm_backward': 5, 'gelu_out': 2, '_gelu_grad_to': 2,
             '_softmax_backward_data': 2, 'where(': 2, 'masked_fill': 0, 'clone(': 0, 'erf': 0, 'exp(': 1}
    assert {k: source.count(k) for k in calls} == calls, source
    as_readable(ours, *tokens, steps=5)

@pytest.mark.parametrize('skipped', range(len(PASSES)))
def test_a_gpt_without_one_of_the_passes(skipped, monkeypatch):
    monkeypatch.setitem(compiled.BACKENDS, 'replay', ([*PASSES[:skipped], *PASSES[skipped+1:]], compiled._replay))
    ours,tokens = small_gpt()
    as_readable(ours, *tokens)

def test_fewer_copies_are_fewer():
    ours,tokens = small_gpt()
    every,without = (source_of(ours, *tokens, passes).count('_copy(')
                     for passes in (PASSES, [f for f in PASSES if f is not compiled.fewer_copies]))
    assert every <= without - 2*3 # in each of two blocks: keys, values, and the gradient of the heads

def of_layers(*layers, classes=6):
    model = Model.from_layers([*layers, *mlp(classes, 4, dtype=torch.float64).layers], CrossEntropy())
    return model, SGD(model.params, .1)

class Rows(Module):
    "A layer for `(n, t, c)` in a model of `(n, c)`."
    def __init__(self, layer): self.layer = layer
    def forward(self, x): return self.layer(x.view(3, 3, -1)).reshape(9, -1)
    def bwd(self, out, x):
        self.layer.out.g = out.g.view(3, 3, -1)
        self.layer.backward()
        x.g = self.layer.args[0].g.reshape(x.shape)

def drawn(*shape): return torch.randn(*shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
def double_norm(c=6, bias=True): return LayerNorm(1 + drawn(c)/3, drawn(c) if bias else None)

@pytest.mark.parametrize('layer, calls', [
    (lambda: double_norm(), ['native_layer_norm(', 'native_layer_norm_backward']),
    (lambda: double_norm(bias=False), ['native_layer_norm(', 'native_layer_norm_backward']),
    (lambda: Rows(double_norm()), ['native_layer_norm(', 'native_layer_norm_backward']),
    (lambda: RealGelu(), ['gelu_out', '_gelu_grad_to']), (lambda: Softmax(), ['_softmax_backward_data'])])
def test_a_layer_is_one_call_each_way(layer, calls):
    ours,(x,y) = of_layers(Lin(drawn(6, 6), drawn(6)), layer()),batch()
    source = source_of(ours, x, y)
    assert [source.count(k) for k in calls] == [1]*len(calls), source
    as_readable(ours, x, y)

def convolving(first, **how):
    "Two convolutions of images of two channels, 7 x 6, the first of which has a bias."
    layers = [Conv2d(drawn(3, 2, *first)/4, drawn(3), **how), Relu(), Conv2d(drawn(4, 3, 2, 3)/4, padding=(1, 2))]
    images = Unflatten(2, 7, 6)
    out = images.forward(drawn(9, 84))
    for layer in layers: out = layer.forward(out)
    return of_layers(Lin(drawn(6, 84)/4, drawn(84)), images, *layers, Flatten(), classes=out[0].numel())

@pytest.mark.parametrize('first, how', [
    ((3, 3), dict()), ((3, 2), dict(stride=2, padding=1)), ((2, 2), dict(stride=(3, 1))),
    ((2, 3), dict(dilation=(3, 1), padding=(0, 2))), ((1, 1), dict(stride=2))])
def test_a_convolution_is_one_call_each_way(first, how):
    ours,(x,y) = convolving(first, **how),batch()
    source = source_of(ours, x, y)
    calls = {'= convolution(': 4, 'convolution_backward_default(': 2, 'col2im': 0, 'im2col': 0, 'bmm': 0}
    assert {k: source.count(k) for k in calls} == calls, source
    as_readable(ours, x, y)

@pytest.mark.skipif(not shutil.which('g++'), reason='inductor needs a C++ compiler')
def test_layers_by_inductor():
    images,conv = Unflatten(1, 3, 2),Conv2d(drawn(2, 1, 2, 2)/2, drawn(2), padding=1)
    ours,(x,y) = of_layers(images, conv, Flatten(), double_norm(24), RealGelu(), classes=24),batch()
    theirs,step = copy.deepcopy(ours),compile_step(*ours, x, y, backend='inductor')
    for _ in range(2): assert step(x, y) == pytest.approx(train_step(*theirs, x, y), rel=1e-12)
    same(ours, theirs, 1e-10)

@pytest.mark.parametrize('kind', ['cut otherwise', 'channels last', 'places summed'])
def test_what_is_nearly_a_convolution_stays_what_it_is(kind):
    size = (2, 3)
    def columns(x): return F.unfold(x, size) # (n, 12, 24) of images (n, 2, 7, 6): 6 x 4 places
    shape = (4, 6) if kind == 'cut otherwise' else (6, 4)
    def forward(x, w): return (w.flatten(1)@columns(x)).unflatten(2, shape)
    def backward(g, out, x, w):
        g = g.flatten(2)
        grad = (g@columns(x).mT).sum(0)
        if kind == 'places summed': grad = grad.flatten().roll(1) # and so in another shape before the last view
        return F.fold(w.flatten(1).t()@g, x.shape[2:], size), grad.view(w.shape)
    class Nearly(Op):
        rule,uses = Rule(forward, backward),('w',)
        def __init__(self): self.w = drawn(5, *((2, *size) if kind != 'channels last' else (*size, 2)))/4
    ours,(x,y) = of_layers(Lin(drawn(6, 84)/4, drawn(84)), Unflatten(2, 7, 6), Nearly(), Flatten(), classes=120),batch()
    source = source_of(ours, x, y)
    assert ('= convolution(' in source) == ('im2col' in source and kind == 'places summed'), source
    assert 'convolution_backward' not in source
    as_readable(ours, x, y)

# What is nearly a layer norm: forward or backward differ in one thing.

right = layer_norm_rule(1e-5)
def xhat_and_std(x): return standardize(x, -1, 1e-5)
def weight_gradient(g, x, w): return (g*xhat_and_std(x)[0]).sum_to_size(w.shape)
def for_each_entry(x, w): return xhat_and_std(x)[0]*w
def for_each_entry_grad(g, out, x, w): return standardize_grad(g*w, *xhat_and_std(x)), g*xhat_and_std(x)[0]
def over_columns(x, w): return standardize(x, 0, 1e-5)[0]*w
def over_columns_grad(g, out, x, w):
    xhat,std = standardize(x, 0, 1e-5)
    return standardize_grad(g*w, xhat, std), (g*xhat).sum_to_size(w.shape)
def eps_outside(x, w):
    centered = x - x.mean(-1, True)
    return centered/(centered.pow(2).mean(-1, True).sqrt() + 1e-5)*w
def eps_of_data(x, w): return standardize(x, -1, w[0])[0]*w
def wrong_means(g, x, w, axis, n):
    (xhat,std),gw = xhat_and_std(x),g*w
    m,k = (t.sum([axis], keepdim=True)/n for t in (gw, gw*xhat))
    return (gw - m - xhat*k)/std, weight_gradient(g, x, w)
def mean_forgotten(g, out, x, w):
    xhat,std = xhat_and_std(x)
    return (g*w - xhat*((g*w*xhat).sum([1], keepdim=True)/6))/std, weight_gradient(g, x, w)
def another_width(g, out, x, w): return wrong_means(g, x, w, 1, 7)
def over_the_batch(g, out, x, w): return wrong_means(g, x, w, 0, 6)
def wrong_axis(g, out, x, w):
    xhat,std = xhat_and_std(x)
    return standardize_grad(g*w, xhat, std), (g*xhat).sum([1], keepdim=True).view(w.shape)
def another_weight(g, out, x, w):
    weight_grad = weight_gradient(g, x, w) # before the weight that is used below
    return standardize_grad(g*w.flip(0), *xhat_and_std(x)), weight_grad

@pytest.mark.parametrize('forward, backward, shape, calls', [
    (for_each_entry, for_each_entry_grad, (6, 6), (0, 0)), (over_columns, over_columns_grad, (6,), (0, 0)),
    (eps_outside, right.backward, (6,), (1, 1)), (eps_of_data, right.backward, (6,), (1, 1)),
    (right.forward, mean_forgotten, (6,), (1, 0)), (right.forward, another_width, (6,), (1, 0)),
    (right.forward, over_the_batch, (6,), (1, 0)), (right.forward, wrong_axis, (6,), (1, 0)),
    (right.forward, another_weight, (6,), (1, 0))])
def test_what_is_nearly_a_layer_norm_stays_what_it_is(forward, backward, shape, calls):
    class NormLike(Op):
        rule,uses = Rule(forward, backward),('w',)
        def __init__(self): self.w = 1 + drawn(*shape)/3
    ours,(x,y) = of_layers(Lin(drawn(6, 6), drawn(6)), NormLike()),batch(6) # sums of rows and columns have one shape
    source = source_of(ours, x, y)
    assert (source.count('native_layer_norm('), source.count('native_layer_norm_backward')) == calls, source
    as_readable(ours, x, y)

@pytest.mark.parametrize('seen', ['all', 'a row of nobody', 'by the numbers'])
def test_a_masked_row_stays_zero(seen):
    class Seen(Module):
        def __init__(self): self.inner = AttentionWeights()
        def forward(self, x):
            mask = torch.ones(9, 9, dtype=torch.bool).tril()
            if seen == 'a row of nobody': mask = mask & (torch.arange(9) != 0)
            if seen == 'by the numbers': mask = mask & (x[:,0] > -10)
            return self.inner(x, x, mask)
        def bwd(self, out, x):
            self.inner.out.g = out.g
            self.inner.backward()
    ours,(x,y) = of_layers(Seen(), classes=9),batch()
    assert source_of(ours, x, y).count('where(') == (1 if seen == 'all' else 2)
    x = x.clone()
    x[4,0] = -20. # nobody may see it, if it goes by the numbers
    as_readable(ours, x, y)

def test_a_mask_that_only_lowers_scores_does_not_make_zeros():
    class Lowered(Op):
        def forward(self, x):
            mask = torch.ones(9, 9, dtype=torch.bool).triu(1)
            return (x@x.mT).masked_fill(mask, -3.).softmax(-1).masked_fill(mask, 0.)
        def bwd(self, out, x): x.g = out.g[:,:6]
    ours,(x,y) = of_layers(Lowered(), classes=9),batch()
    assert source_of(ours, x, y).count('where(') == 2
    as_readable(ours, x, y)

@pytest.mark.parametrize('also_as_rows', [False, True])
def test_a_transposed_copy_that_is_cut_otherwise(also_as_rows):
    k,l = drawn(9, 2, 2),drawn(6, 3, 3)
    class Cut(Module):
        params = ()
        def forward(self, x):
            if not also_as_rows: return torch.bmm(x.view(9, 2, 3).transpose(-2, -1).reshape(6, 3, 3), l).view(9, 6)
            t = x.view(3, 3, 2, 3).transpose(0, 1).transpose(-2, -1).reshape(9, 3, 2)
            return torch.bmm(t, k).view(9, 6) + t.view(9, 6)
        def bwd(self, out, x): x.g = out.g # not its gradient, and that is no matter here
    ours,(x,y) = of_layers(Cut()),batch()
    as_readable(ours, x, y)

def test_a_gradient_that_is_stretched_over_a_softmax():
    class Stretched(Softmax):
        def bwd(self, out, x):
            g = out.g.sum(0, keepdim=True)
            x.g = out*(g - (g*out).sum(-1, keepdim=True))
    ours,(x,y) = of_layers(Lin(drawn(6, 6), drawn(6)), Stretched()),batch()
    assert '_softmax_backward_data' not in source_of(ours, x, y)
    as_readable(ours, x, y)

class Twice(Module):
    "Two running values that are computed alike."
    buffers = 'one','other'
    def __init__(self): self.one,self.other = torch.zeros(6, dtype=torch.float64),torch.zeros(6, dtype=torch.float64)
    def forward(self, x):
        self.one,self.other = x.mean(0)/2,x.mean(0)/2
        return x*1
    def bwd(self, out, x): x.g = out.g

def test_two_values_that_are_computed_alike_are_both_renewed():
    ours = of_layers(Twice())
    as_readable(ours, *batch())
    assert ours[0].layers[0].one.abs().min() > 0

def test_a_shape_that_comes_rarely_is_not_recorded():
    model,opt = pair()
    calls = []
    def rare(xb, yb, where): calls.append(len(xb)); return train_step(model, opt, xb, yb, where)
    theirs,step = copy.deepcopy((model, opt)),CompiledStep(model, opt, rare=rare)
    for n in [9, 4]*100: assert step(*batch(n)) == pytest.approx(train_step(*theirs, *batch(n)), rel=1e-10)
    assert calls == [4]*99 and len(step.runs) == 2

# What the record does not see

class Leaky(Module):
    def __init__(self, slope=.1): self.slope,self.scale = slope,torch.ones(())
    def forward(self, x): return torch.where(x > 0, x, self.slope*x)*self.scale.to(x)
    def bwd(self, out, x): x.g = torch.where(x > 0, out.g, self.slope*out.g)*self.scale.to(x)
    params = ()

def leaky():
    torch.manual_seed(0)
    def lin(a, b): return Lin(torch.randn(a, b, dtype=torch.float64), torch.zeros(b, dtype=torch.float64))
    model = Model.from_layers([lin(6, 5), Leaky(), lin(5, 4)], CrossEntropy())
    return model, AdamW(model.params, .01)

def slope(model, opt): model.layers[1].slope = .5
def constant(model, opt): model.layers[1].scale = torch.full((), 2.)
def in_place(model, opt): model.layers[1].scale.mul_(3)
def exchanged(model, opt): model.layers[1] = Relu()
def appended(model, opt): model.layers.append(Leaky(.3))
def popped(model, opt): model.layers.pop(1)
def loss(model, opt):
    class Half(CrossEntropy): rule = Rule(lambda x, t: CrossEntropy.rule.forward(x, t)/2,
                                          lambda g, out, x, t: CrossEntropy.rule.backward(g/2, out, x, t))
    model.loss = Half()
def clipped(model, opt):
    for p in model.params: p.data = p.data.clamp(-.5, .5)

@pytest.mark.parametrize('change', [slope, constant, in_place, exchanged, appended, popped, loss, clipped])
def test_a_change_between_two_steps_is_seen(change):
    ours,(x,y) = leaky(),batch()
    theirs,step = copy.deepcopy(ours),compile_step(*ours, x, y)
    for i in range(4):
        if i == 2:
            for both in (ours, theirs): change(*both)
        assert step(x, y) == pytest.approx(train_step(*theirs, x, y), rel=1e-12)
    same(ours, theirs)

def test_a_parameter_that_the_optimizer_lets_go_is_not_stepped():
    ours,(x,y) = pair(),batch()
    step = compile_step(*ours, x, y)
    del ours[1].params[0], ours[1].velocities[0]
    theirs = copy.deepcopy(ours)
    for _ in range(3): assert step(x, y) == pytest.approx(train_step(*theirs, x, y), rel=1e-12)
    same(ours, theirs)

def test_labels_that_come_twice():
    class Labels(Module): # several for each row
        def forward(self, x, t):
            self.hot = torch.zeros_like(x).scatter(1, t, 1.)
            return (torch.nn.functional.softplus(x) - self.hot*x).mean()
        def bwd(self, out, x, t): x.g = (torch.sigmoid(x) - self.hot)/x.numel()
    model = Model.from_layers([Lin(torch.randn(6, 4).double(), torch.zeros(4).double())], Labels())
    ours,(x,_) = (model, SGD(model.params, .1)),batch(4)
    theirs,step = copy.deepcopy(ours),compile_step(*ours, x, torch.tensor([[0, 1], [2, 3], [1, 2], [3, 0]]))
    for t in ([[3, 3], [1, 1], [0, 2], [2, 2]],)*3:
        assert step(x, torch.tensor(t)) == pytest.approx(train_step(*theirs, x, torch.tensor(t)), rel=1e-12)
    same(ours, theirs)

def test_a_gradient_of_nothing_but_rounding_is_no_difference():
    class Center(Op): rule = Rule(lambda x: x - x.mean(0), lambda g, out, x: g - g.mean(0)) # what the bias adds goes
    torch.manual_seed(0)
    def lin(a, b): return Lin(torch.randn(a, b, dtype=torch.float64), torch.zeros(b, dtype=torch.float64))
    for optimizer in OPTIMIZERS:
        model = Model.from_layers([lin(6, 5), Center(), Relu(), lin(5, 4)], CrossEntropy())
        step = compile_step(model, OPTIMIZERS[optimizer](model.params), *batch())
        for _ in range(3): assert step(*batch()) < 10

def test_names_that_a_script_has_for_itself():
    class Whole(Module):
        def __init__(self): self.v4,self.loss,self.lr,self.isfinite = (torch.ones(6).double()*i for i in range(1, 5))
        def forward(self, x, t): return (x@(self.v4*self.loss*self.lr*self.isfinite)).mean()
        def bwd(self, out, x, t):
            for k in ('v4', 'loss', 'lr', 'isfinite'):
                others = [getattr(self, o) for o in ('v4', 'loss', 'lr', 'isfinite') if o != k]
                getattr(self, k).g = x.mean(0)*others[0]*others[1]*others[2]
    model,(x,y) = Whole(),batch()
    ours = model,SGD(model.params, .001)
    theirs,step = copy.deepcopy(ours),compile_step(*ours, x, y)
    for _ in range(3): assert step(x, y) == pytest.approx(train_step(*theirs, x, y), rel=1e-12)
    same(ours, theirs)

class Decays(SGD):
    def update(self, i, p): p -= self.lr/self.steps**.5*p.g

class Swaps(SGD):
    "It goes along the gradient of the step before."
    def __init__(self, params, lr):
        super().__init__(params, lr)
        self.last = [torch.zeros_like(p) for p in self.params]
    def update(self, i, p):
        p -= self.lr*self.velocities[i]
        self.velocities[i],self.last[i] = p.g,self.velocities[i]

@pytest.mark.parametrize('optimizer', [Decays, Swaps])
def test_optimizers_of_ones_own(optimizer):
    model,(x,y) = mlp(6, 5, 4, dtype=torch.float64),batch()
    ours = model,optimizer(model.params, .1)
    theirs,step = copy.deepcopy(ours),compile_step(*ours, x, y)
    for _ in range(5): assert step(x, y) == pytest.approx(train_step(*theirs, x, y), rel=1e-12)
    same(ours, theirs)

def test_predictions_and_gradients_of_an_earlier_step_are_gone():
    ours,(x,y) = pair(),batch()
    step = compile_step(*ours, x, y)
    train_step(*ours, x, y)
    step(x, y)
    assert ours[0].preds is None and all(p.g is None for p in ours[0].params)
    with pytest.raises(RuntimeError, match='backward before forward'): ours[0].backward()

def test_images_of_bytes():
    class Scaled(Module):
        def forward(self, x): return x.float()/255
        def bwd(self, out, x): pass
    model = Model.from_layers([Scaled(), Lin(torch.randn(6, 4), torch.zeros(4))], CrossEntropy())
    ours = model,SGD(model.params, .1)
    x,y = torch.randint(256, (9, 6), dtype=torch.uint8),batch()[1]
    theirs,step = copy.deepcopy(ours),compile_step(*ours, x, y)
    for _ in range(3): assert step(x, y) == pytest.approx(train_step(*theirs, x, y), rel=1e-5)

def test_not_all_shapes_are_kept():
    ours = pair()
    step = compile_step(*ours, *batch())
    for n in range(2, 22): step(*batch(n))
    assert len(step.runs) <= 16

def test_targets_with_another_number_of_rows_than_the_inputs():
    "As tokens: a row of inputs is a sequence, and a target belongs to each token."
    def lm():
        return Model.from_layers([Embedding(batch(7, 4)[0]), Lin(batch(4, 3)[0], batch(1, 3)[0][0])], CrossEntropy())
    x,y,(one,two) = torch.tensor([[0, 1, 6], [2, 2, 3]]),torch.arange(6) % 3,(lm(), lm())
    step,opt = compile_step(one, AdamW(one.params), x, y),AdamW(two.params)
    for _ in range(3): assert step(x, y) == pytest.approx(train_step(two, opt, x, y), rel=1e-10)
