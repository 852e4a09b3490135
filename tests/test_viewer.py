"The viewer without a browser: what is on the page, verdicts on wrong gradients, and that the model stays as it was."
import inspect, itertools, re
from functools import cache
from html.parser import HTMLParser

import pytest, torch
from hypothesis import assume, example, given, settings, strategies as st
from torch import nn

from fb_pass import viewer
from fb_pass.activations import Dropout
from fb_pass.autograd import LinFunction
from fb_pass.forward import lin
from fb_pass.gradients import add_grad
from fb_pass.library import from_torch
from fb_pass.modules import Lin, Model, Module, Mse, Relu
from fb_pass.norms import BatchNorm
from fb_pass.training import CrossEntropy, mlp
from fb_pass.viewer import BackwardView, show_backward

VOID = {'meta', 'img', 'input', 'br', 'hr', 'link'}

class Page(HTMLParser):
    "Tags, attributes and text of a page; every tag that is opened must be closed."
    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.feed(html)
        self.close()
        assert not self.open
    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID: self.open.append(tag)
    def handle_endtag(self, tag): assert self.open.pop() == tag
    def handle_comment(self, data): raise AssertionError(f'a comment: {data}')
    unknown_decl = handle_pi = handle_comment
    def handle_data(self, data):
        if not {'style', 'script'} & {*self.open}: self.texts.append(data)
    @property
    def text(self): return ' '.join(self.texts)
    def all(self, tag, **attrs):
        def fits(a): return all(v in (a.get(k.rstrip('_')) or '').split() for k, v in attrs.items())
        return [a for t, a in self.tags if t == tag and fits(a)]

def gen(seed=0): return torch.Generator().manual_seed(seed)
def rand(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=gen(seed), dtype=torch.float64).to(dtype)

def two_layers(dtype=torch.float32):
    w1, b1, w2, b2 = (rand(*o, dtype=dtype, seed=i) for i, o in enumerate(((4, 3), (3,), (3, 1), (1,))))
    return Model(w1, b1, w2, b2), rand(5, 4, dtype=dtype, seed=7), rand(5, dtype=dtype, seed=8)

class Residual(Module):
    "Adds its input to what the layers inside make of it."
    def __init__(self, *inner): self.inner = inner
    def forward(self, inp):
        h = inp
        for c in self.inner: h = c(h)
        return inp + h
    def bwd(self, out, inp):
        add_grad(self.inner[-1].out, out.g)
        for c in reversed(self.inner): c.backward()
        add_grad(inp, out.g)

class OpenRelu(Relu):
    def bwd(self, out, inp): add_grad(inp, out.g)

class MeanLin(Lin):
    def bwd(self, out, inp):
        add_grad(inp, out.g @ self.w.t())
        add_grad(self.w, inp.t() @ out.g / len(inp))
        add_grad(self.b, out.g.sum(0))

def residual(relu):
    inner = Residual(relu, Lin(rand(3, 3, seed=1), rand(3, seed=2)))
    return Model.from_layers([Lin(rand(4, 3), rand(3)), inner, Lin(rand(3, 1, seed=3), rand(1))], Mse())

def verdicts(view): return [(i, p.name, p.verdict) for i, s in enumerate(view.steps, 1) for p in s.panels if p.verdict]
def alarms(view): return [o for o in verdicts(view) if o[2] in ('wrong', 'missing', 'unknown', 'wrong upstream')]

# What the page holds

@pytest.fixture(scope='module')
def small(): return show_backward(*two_layers())

def test_steps_go_forward_then_back(small):
    paths = ['layers[0]', 'layers[1]', 'layers[2]', 'loss']
    wanted = [('forward', o) for o in paths] + [('backward', o) for o in reversed(paths)]
    assert [(s.phase, s.path) for s in small.steps] == wanted

def test_every_step_is_a_section_with_formula_source_and_pictures(small):
    page = Page(small._repr_html_())
    assert len(page.all('section', class_='step')) == 8 == len(page.all('a', class_='chip'))
    assert {a['href'][1:] for a in page.all('a', class_='chip')} == {a['id'] for a in page.all('section')}
    assert inspect.getsource(lin).split('\n')[-2] in page.text # the line that does the work
    for words in ('g.sum(0)', 'out.g where inp > 0', '5×4, float32', 'largest', 'agrees with autograd', 'layers[0]'):
        assert words in page.text
    assert 'def add_grad' not in page.text
    assert len(page.all('pre')) == 8 and page.all('p', class_='formula')
    panels = sum(len(s.panels) for s in small.steps)
    assert len(page.all('figure', class_='value')) == len(page.all('figure', class_='grad')) == panels

def test_pictures_have_words_and_ids_are_unique(small):
    page = Page(small._repr_html_())
    pictures = page.all('svg') + page.all('img')
    assert len(pictures) > 20 and all(a.get('alt') or a.get('aria-label') for a in pictures)
    ids = [a['id'] for _, a in page.tags if 'id' in a]
    assert len(ids) == len({*ids})

def test_without_javascript_all_steps_stand_and_the_controls_do_not(small):
    page = Page(small._repr_html_())
    assert not any('hidden' in a for a in page.all('section'))
    bar, = page.all('div', class_='controls')
    assert 'hidden' in bar

def test_nothing_comes_from_elsewhere(small, tmp_path):
    html = small.save(tmp_path/'a.html').read_text(encoding='utf-8')
    page = Page(html)
    assert not re.search(r'https?:|//cdn|@import|<link', html)
    for _, a in page.tags:
        assert (a.get('src') or 'data:').startswith('data:') and (a.get('href') or '#').startswith('#')
    assert 'url(' not in html

def test_a_page_of_784_50_10_is_small(tmp_path):
    model, x, targ = mlp(784, 50, 10, generator=gen()), rand(64, 784), torch.arange(64) % 10
    for image in (None, (28, 28)):
        view = show_backward(model, x, targ, image=image)
        assert view.ok and view.save(tmp_path/'big.html').stat().st_size < 500_000

def test_two_views_share_no_name(small):
    ids = [{a['id'] for _, a in Page(small._repr_html_()).tags if 'id' in a} for _ in range(2)]
    assert not ids[0] & ids[1]

def test_every_rule_of_style_is_for_this_view_alone(small):
    html = small._repr_html_()
    name = re.search(r'data-view="(\S+?)"', html)[1]
    css = re.search('<style>(.*?)</style>', html, re.S)[1]
    assert 'fb-view' not in html
    flat = re.sub(r'@media[^{]*\{|/\*.*?\*/', '', css, flags=re.S)
    selectors = [o.split('}')[-1].strip() for o in flat.split('{')[:-1]]
    assert len(selectors) > 40
    for s in selectors:
        for one in re.split(r',(?![^(]*\))', s): assert f'#{name}' in one, one

# Names that are HTML

class Nasty(Lin):
    "<script>alert(1)</script> & <b>bold</b>"
    def forward(self, inp): return super().forward(inp)
    def bwd(self, out, inp): return super().bwd(out, inp) # "<img src=x onerror=alert(2)>"
    def __repr__(self): return '<img src="x" onerror="alert(3)">'

def test_names_are_escaped(tmp_path):
    view = show_backward(Model.from_layers([Nasty(rand(4, 1), rand(1))], Mse()), rand(5, 4), rand(5))
    page = Page(view.save(tmp_path/'a.html').read_text(encoding='utf-8'))
    assert view.ok and not page.all('b') and len(page.all('script')) == 1
    assert not any(k.startswith('on') for _, a in page.tags for k in a)
    assert '<img src="x" onerror="alert(3)">' in page.text and '<script>alert(1)' in page.text

INJECTION = '"><img src=x onerror=alert(1)><script>alert(2)</script>'
PIECES = [INJECTION, "'", '"', '<', '>', '&', '=', '/', '`', '$', '${title}', '<!--', '-->', '<![CDATA[', ']]>',
          '</script>', '</title>', '</style>', '</code></pre>', '&quot;', '&#34;', '&lt;b&gt;', '_i', '^2', '\\', '%',
          '\0', '\n', '\r', '\x1b[2J', '\ud800', '\udfff', '\u2028', '\u202e', '\ufffe', '\N{PILE OF POO}']
names = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), min_size=1, max_size=5).map(''.join)

def called(name, inner, stops):
    "A layer in which everything that can have a name has this one."
    class Layer(Module):
        def __init__(self, w, b): self.kept = {name: w}; setattr(self, name, b)
        @property
        def params(self): return *self.kept.values(), getattr(self, name)
        def forward(self, inp): return inp*self.kept[name] + getattr(self, name)
        def bwd(self, out, inp):
            if stops: raise ValueError(name)
            add_grad(inp, out.g*self.kept[name]), add_grad(self.kept[name], (out.g*inp).sum(0))
            add_grad(getattr(self, name), 2*out.g.sum(0)) # a fault, which is explained in words
        def __repr__(self): return name
    Layer.__doc__ = name
    Layer.__name__ = inner
    return Layer(rand(3), rand(3, seed=1))

def skeleton(view, folder):
    "Every element of a saved page with its attributes, without what is said in words."
    page = Page(html := view.save(folder/'a.html').read_text(encoding='utf-8'))
    own = re.search(r'data-view="(\S+?)"', html)[1]
    words = {'alt', 'aria-label', 'title', 'data-where'}
    return page, [(tag, [(k, k in words or (v or '').replace(own, '')) for k,v in a.items()]) for tag,a in page.tags]

@cache
def plain(stops, folder): return skeleton(named('plain', 'Plain', stops), folder)[1]

def named(name, inner, stops):
    model = Model.from_layers([called(name, inner, stops), Lin(rand(3, 1), rand(1))], Mse())
    return show_backward(model, rand(5, 3), rand(5))

@pytest.mark.parametrize('stops', [False, True])
@settings(max_examples=25, deadline=None, derandomize=True)
@given(name=names, inner=names)
@example(name=INJECTION, inner=INJECTION)
def test_no_name_becomes_a_part_of_the_page(tmp_path_factory, stops, name, inner):
    "Keys, attributes, classes, reprs, docstrings and errors, with whatever a string may hold."
    assume('\0' not in inner and not re.search('[\ud800-\udfff]', inner)) # Python itself has no such class
    folder = tmp_path_factory.getbasetemp()
    page,found = skeleton(view := named(name, inner, stops), folder)
    assert found == plain(stops, folder) and not view.ok
    def kept(text): return re.sub(r'[^\w<>&"\']', '', text) # the rest is replaced, or a line end
    assert kept(name) in kept(page.text) and not re.search('[\0\x1b\ud800-\udfff]', repr(view))

def test_a_name_with_an_underscore_is_no_formula():
    view = show_backward(called('w_i', 'My_Layer', False), rand(5, 3))
    assert 'out = My_Layer(inp)' in Page(view._repr_html_()).text

# Right and wrong

@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_right_models_are_right(dtype):
    model, x, targ = two_layers(dtype)
    for rows in (1, 5):
        view = show_backward(model, x[:rows], targ[:rows])
        assert view.ok and not alarms(view) and len(verdicts(view)) == 13
    deep = mlp(4, 6, 5, 4, 3, generator=gen(), dtype=dtype)
    assert show_backward(deep, x, torch.tensor([0, 1, 2, 0, 1])).ok
    assert show_backward(Lin(*deep.layers[0].params), x).ok
    assert show_backward(Relu(), x).ok

class LeakyAtZero(Relu):
    "The other slope at 0."
    def bwd(self, out, inp): add_grad(inp, out.g*(inp >= 0))

class Clamped(Module):
    "A kink at 1 and at -1."
    def forward(self, inp): return inp.clamp(-1., 1.)
    def bwd(self, out, inp): add_grad(inp, out.g*(inp.abs() < 1))

@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('between', [[Relu()], [LeakyAtZero()], [Relu(), Relu()], [Residual(Relu())], [Clamped()]])
def test_at_a_kink_either_slope_is_right(between, dtype):
    "A blank example and biases of zero, as `mlp` makes them: the output of the first layer is exactly 0."
    first,last = mlp(4, 6, generator=gen(), dtype=dtype).layers[0],mlp(6, 3, generator=gen(1), dtype=dtype).layers[0]
    x = rand(5, 4, dtype=dtype)
    x[2] = 0
    if isinstance(between[0], Clamped): first.b.fill_(1.)
    model = Model.from_layers([first, *between, last], CrossEntropy())
    view = show_backward(model, x, torch.tensor([0, 1, 2, 0, 1]))
    assert view.ok, view

def test_at_a_kink_wrong_is_wrong():
    first,last = mlp(4, 6, generator=gen()).layers[0],mlp(6, 3, generator=gen(1)).layers[0]
    x = rand(5, 4)
    x[2] = 0
    broken = Model.from_layers([first, Relu(), MeanLin(*last.params)], CrossEntropy())
    assert alarms(show_backward(broken, x, torch.tensor([0, 1, 2, 0, 1]))) == [(6, 'w', 'wrong')]
    open_model = Model.from_layers([first, OpenRelu(), last], CrossEntropy())
    assert not show_backward(open_model, x, torch.tensor([0, 1, 2, 0, 1])).ok

def test_many_shapes():
    for n, sizes, seed in itertools.product((1, 2, 65, 130), ((3, 2), (70, 5, 2), (2, 129, 3)), (0, 1)):
        assert show_backward(mlp(*sizes, generator=gen(seed)), rand(n, sizes[0], seed=seed), torch.arange(n) % 2).ok

def test_a_module_with_modules_inside():
    view = show_backward(residual(Relu()), rand(5, 4), rand(5))
    assert view.ok
    assert [s.title for s in view.steps[6:]] == ['Mse', 'Lin(3→1)', 'Lin(3→3)', 'Relu', 'Residual', 'Lin(4→3)']
    assert [p.name for p in view.steps[10].panels] == ['out', 'inp'] # the parameters inside are shown inside

def test_a_fault_is_found_where_it_is():
    view = show_backward(residual(OpenRelu()), rand(5, 4), rand(5))
    found = alarms(view)
    assert not view.ok and found[0] == (10, 'inp', 'wrong') and {v for *_, v in found[1:]} == {'wrong upstream'}
    assert 'the mask' in [*view.failures][0][1]

def test_a_wrong_parameter_is_shown_loudly(tmp_path):
    model, x, targ = two_layers()
    broken = Model.from_layers([model.layers[0], Relu(), MeanLin(*model.layers[2].params)], Mse())
    view = show_backward(broken, x, targ)
    assert alarms(view) == [(6, 'w', 'wrong')]
    page = Page(view.save(tmp_path/'a.html').read_text(encoding='utf-8'))
    assert len(page.all('p', class_='alarm')) == 2 # above, and in the step
    for words in ('w.g is wrong in 3 of 3 entries', 'multiplied by 0.2', '✗ Lin(3→1)'): assert words in page.text
    assert 'All' not in page.text.split('Step')[0]

@pytest.mark.parametrize('bwd, verdict', [
    (lambda self, out, inp: None, 'missing'),
    (lambda self, out, inp: add_grad(inp, 0*out.g), 'wrong'),
    (lambda self, out, inp: setattr(inp, 'g', out.g[:1]), 'wrong'),
    (lambda self, out, inp: setattr(inp, 'g', out.g.double()), 'wrong'),
    (lambda self, out, inp: add_grad(inp, out.g*float('nan')), 'wrong')])
def test_other_faults(bwd, verdict):
    layer = type('Odd', (Relu,), {'bwd': bwd})()
    x = rand(5, 4)
    view = show_backward(Model.from_layers([Residual(layer), Lin(rand(4, 1), rand(1))], Mse()), x, rand(5))
    assert alarms(view)[0][1:] == ('inp', verdict) and not view.ok
    Page(view._repr_html_())

def test_overwriting_is_found():
    class Overwrites(Residual):
        def bwd(self, out, inp):
            add_grad(self.inner[-1].out, out.g)
            for c in reversed(self.inner): c.backward()
            inp.g = out.g
    view = show_backward(Model.from_layers([Overwrites(Relu()), Lin(rand(4, 1), rand(1))], Mse()), rand(5, 4), rand(5))
    assert alarms(view)[0] == (8, 'inp', 'wrong')

def test_a_backward_that_is_never_called():
    class Forgets(Residual):
        def bwd(self, out, inp): add_grad(inp, out.g)
    model = Model.from_layers([Forgets(Lin(rand(4, 4), rand(4))), Lin(rand(4, 1), rand(1))], Mse())
    view = show_backward(model, rand(5, 4), rand(5))
    assert not view.ok and 'layers[0].inner[0], was never called' in view.notes[0]
    assert view.notes[0] in Page(view._repr_html_()).text

def test_a_backward_that_stops():
    class Stops(Relu):
        def bwd(self, out, inp): raise KeyError('lost')
    model = Model.from_layers([Lin(rand(4, 3), rand(3)), Stops(), Lin(rand(3, 1), rand(1))], Mse())
    view = show_backward(model, rand(5, 4), rand(5))
    assert not view.ok and view.steps[-1].title == 'Stops' and view.steps[-1].error == "KeyError: 'lost'"
    assert "KeyError: 'lost'" in Page(view._repr_html_()).text and 'STOPPED' in repr(view)

def test_a_tensor_used_twice():
    w = rand(4, 4)
    model = Model.from_layers([Lin(w, rand(4)), Relu(), Lin(w, rand(4, seed=1)), Lin(rand(4, 1), rand(1))], Mse())
    view = show_backward(model, rand(5, 4), rand(5))
    assert view.ok and [v for _, name, v in verdicts(view) if name == 'w'] == ['right', 'so far', 'right']
    class Product(Module):
        def forward(self, a, b): return (a*b).sum()
        def bwd(self, out, a, b): add_grad(a, b*out.g); add_grad(b, a*out.g)
    t = rand(3, 2)
    assert show_backward(Product(), t, t).ok

class Fork(Module):
    "Two uses of one tensor."
    def __init__(self, *uses): self.uses = uses
    def forward(self, inp): return self.uses[0](inp) + self.uses[1](inp)
    def bwd(self, out, inp):
        for c in self.uses: add_grad(c.out, out.g)
        for c in reversed(self.uses): c.backward()

def test_each_use_is_judged_by_what_it_adds():
    lins = Lin(rand(4, 4), rand(4)), Lin(rand(4, 4, seed=1), rand(4))
    view = show_backward(Fork(*lins), rand(5, 4))
    assert view.ok and 'so far: another use' in view.steps[3].panels[1].said
    class Twice(Lin):
        def bwd(self, out, inp): out.g = 2*out.g; super().bwd(out, inp)
    class Gone(Lin):
        def bwd(self, out, inp): inp.g = None; super().bwd(out, inp)
    view = show_backward(Fork(lins[0], Twice(*lins[1].params)), rand(5, 4)) # goes back first
    assert (4, 'inp', 'wrong') in alarms(view) and not any(i == 5 for i, *_ in alarms(view))
    view = show_backward(Fork(Gone(*lins[0].params), lins[1]), rand(5, 4)) # forgets what the other has left
    assert alarms(view)[0] == (5, 'inp', 'wrong')

def test_a_backward_that_adds_in_place():
    class Adds(Residual):
        def bwd(self, out, inp):
            self.inner[-1].out.g = out.g.clone()
            for c in reversed(self.inner): c.backward()
            inp.g += out.g # what the layer inside has left there is changed
    view = show_backward(Model.from_layers([Adds(Relu()), Lin(rand(4, 1), rand(1))], Mse()), rand(5, 4), rand(5))
    assert view.ok

def test_a_gradient_where_none_belongs():
    class Zero(Module):
        def forward(self, inp): return 0*inp
        def bwd(self, out, inp): add_grad(inp, out.g)
    view = show_backward(Zero(), rand(2, 3))
    assert alarms(view)[0][1:] == ('inp', 'wrong') and 'should be zero everywhere' in repr(view)

def test_not_a_number_is_said():
    model, x, targ = two_layers()
    x[1, 2] = float('nan')
    view = show_backward(model, x, targ)
    text = Page(view._repr_html_()).text
    assert not view.ok and 'inp of step 1, Lin(4→3), is the first with numbers that are not finite' in text
    assert '1 not finite' in text and 'cannot be judged' in text
    x[1, 2] = float('inf')
    assert not show_backward(model, x, targ).ok

def test_zero_everywhere_is_no_alarm():
    model, x, targ = two_layers()
    model.layers[0].b.fill_(-1000)
    view = show_backward(model, x, targ)
    assert view.ok and (7, 'inp', 'zero') in verdicts(view)

def test_an_autograd_function_inside_does_not_judge_itself():
    class Wrong(LinFunction):
        @staticmethod
        def backward(ctx, g):
            x, w, b = ctx.saved_tensors
            return 2*g@w.t(), x.t()@g, g.sum(0)
    class Wraps(Lin):
        def forward(self, inp): return Wrong.apply(inp, self.w, self.b)
    view = show_backward(Model.from_layers([Wraps(rand(4, 1), rand(1))], Mse()), rand(5, 4), rand(5))
    assert view.ok # the backward by hand is right, whatever that of the Function says

def test_chance_is_drawn_once():
    class Dropout(Module):
        def forward(self, inp):
            self.mask = (torch.rand(inp.shape) > .5).to(inp)
            return inp*self.mask
        def bwd(self, out, inp): add_grad(inp, out.g*self.mask)
    before = torch.get_rng_state()
    assert show_backward(Model.from_layers([Dropout(), Lin(rand(4, 1), rand(1))], Mse()), rand(5, 4), rand(5)).ok
    assert torch.equal(torch.get_rng_state(), before)

def test_without_source_and_without_grad():
    where = {'Module': Module, 'add_grad': add_grad}
    exec('class Typed(Module):\n    def forward(self, inp): return 2*inp\n'
         '    def bwd(self, out, inp): add_grad(inp, 2*out.g)', where)
    with torch.no_grad(): view = show_backward(where['Typed'](), rand(2, 3))
    assert view.ok and 'is not available here' in view.steps[0].code

def test_other_shapes_and_from_torch():
    class Double(Module):
        def forward(self, inp): return 2*inp
        def bwd(self, out, inp): add_grad(inp, 2*out.g)
    for shape in ((), (1,), (300,), (2, 3, 4), (2, 3, 4, 70), (0, 3)):
        view = show_backward(Double(), rand(*shape))
        Page(view._repr_html_())
        assert view.ok or 0 in shape
    model = from_torch(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
    assert show_backward(model, rand(5, 4), torch.tensor([0, 1, 0, 1, 1])).ok

def test_images():
    t = torch.arange(2*6.).reshape(2, 6)
    cells = viewer._cells(t, (2, 3))
    assert cells.numbers.tolist() == [[0, 1, 2, 6, 7, 8], [3, 4, 5, 9, 10, 11]]
    assert cells.note == '2 of 2 rows, each as 2 × 3'
    assert viewer._cells(t.t(), (2, 3)).numbers.tolist() == cells.numbers.tolist()
    assert viewer._cells(rand(10, 784), (28, 28)).numbers.shape == (56, 56)
    view = show_backward(mlp(6, 4, 3, generator=gen()), rand(9, 6), torch.arange(9) % 3, image=(2, 3))
    assert view.steps[0].panels[0].value.note == '9 of 9 rows, each as 2 × 3'
    assert view.steps[-1].panels[2].grad.note == '4 of 4 columns, each as 2 × 3'
    for bad in (28, (28,), (0, 3), (65, 2), ('a', 'b')):
        with pytest.raises(ValueError, match='image is'): show_backward(*two_layers(), image=bad)

# The model stays as it was

def test_the_model_stays_as_it_was():
    model, x, targ = two_layers()
    model(x, targ)
    model.backward()
    tensors = [x, targ, *model.params, *(l.out for l in model.children)]
    values, grads = [t.clone() for t in tensors], [getattr(t, 'g', None) for t in tensors]
    calls = [(o.args, o.out) for o in (model, *model.children)]
    keys = [{*vars(o)} for o in (model, *model.children)]
    show_backward(model, rand(3, 4, seed=9), rand(3, seed=9))
    assert all(torch.equal(a, b) for a, b in zip(tensors, values))
    assert all(getattr(t, 'g', None) is g for t, g in zip(tensors, grads))
    assert all(o.args is a and o.out is out for o, (a, out) in zip((model, *model.children), calls))
    assert [{*vars(o)} for o in (model, *model.children)] == keys
    model.backward() # and goes on as before
    assert all(g is None or torch.equal(t.g, g) for t, g in zip(tensors, grads))

# Bad input

def test_bad_input_is_named():
    (model, x, targ), whole = two_layers(), torch.arange(3)
    cases = [(TypeError, 'expected a Module or a Model', lambda: show_backward(Model, x, targ)),
             (TypeError, 'from_torch', lambda: show_backward(nn.Linear(4, 1), x)),
             (TypeError, 'dtypes differ', lambda: show_backward(model, x.double(), targ)),
             (TypeError, 'argument 0 is a ndarray', lambda: show_backward(model, x.numpy(), targ)),
             (ValueError, 'lin: x', lambda: show_backward(model, x[:, :3], targ)),
             (ValueError, 'mse: .*targ has shape', lambda: show_backward(model, x, targ[:, None])),
             (ValueError, 'show_backward: there is no floating-point tensor', lambda: show_backward(Relu(), whole)),
             (ValueError, 'show_backward', lambda: show_backward(Relu()))]
    for error, words, f in cases:
        with pytest.raises(error, match=words) as e: f()
        assert 'check_layer' not in str(e.value)

def test_saving(small, tmp_path, monkeypatch):
    path = small.save(str(tmp_path/'a.html'))
    old = path.read_bytes()
    assert old.startswith(b'<!doctype html>') and small.save(path) == path
    for name in ('a', 'a.png', 'a.html.txt'):
        with pytest.raises(ValueError, match='does not end in .html'): small.save(tmp_path/name)
    with pytest.raises(OSError): small.save(tmp_path/'nowhere'/'a.html')
    (tmp_path/'folder.html').mkdir()
    with pytest.raises(OSError): small.save(tmp_path/'folder.html')
    def full(*args): raise OSError('no space left')
    before = path.read_bytes()
    monkeypatch.setattr('os.replace', full)
    with pytest.raises(OSError, match='no space'): small.save(path)
    assert path.read_bytes() == before and sorted(p.name for p in tmp_path.iterdir()) == ['a.html', 'folder.html']

def test_printed(small):
    lines = repr(small).split('\n')
    assert isinstance(small, BackwardView) and len(lines) == 9
    assert lines[0] == 'Forward and backward through Model: x 5×4, targ 5'

# Layers of later rooms

def draw(*shape, seed=0, dtype=torch.float64): return rand(*shape, seed=seed).to(dtype)

@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('size', [.01, 1., 100.])
def test_a_gradient_of_nothing_but_rounding_is_no_alarm(size, dtype):
    "That of a bias before a batch norm is zero, and the numbers that remain are never those of autograd."
    def r(*shape): return draw(*shape, seed=sum(shape), dtype=dtype)
    layers = [Lin(r(5, 4), r(4)), BatchNorm(r(4), r(4)), Dropout(.3), Lin(r(4, 4), r(4)), BatchNorm(r(4), r(4)),
              Lin(r(4, 3), r(3))]
    for seed in range(5):
        view = show_backward(Model.from_layers(layers, CrossEntropy()), size*draw(7, 5, seed=seed, dtype=dtype),
                             torch.arange(7) % 3)
        assert view.ok, view

def test_what_rounding_does_not_explain_is_an_alarm():
    class Late(BatchNorm):
        def bwd(self, out, x): super().bwd(out, x); x.g = 1.5*x.g
    class Shifted(Lin):
        def bwd(self, out, x): super().bwd(out, x); self.b.g = self.b.g + 1e-9
    w,b,v,c = draw(5, 4), draw(4), draw(4, 3), draw(3)
    for layers in [Lin(w, b), Late(b + 1, b), Lin(v, c)], [Shifted(w, b), BatchNorm(b + 1, b), Lin(v, c)]:
        view = show_backward(Model.from_layers(layers, CrossEntropy()), draw(6, 5, seed=1), torch.arange(6) % 3)
        assert [o for o in alarms(view) if o[2] == 'wrong'] in ([(7, 'x', 'wrong')], [(8, 'b', 'wrong')])
