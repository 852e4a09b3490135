"The viewer in a real browser: saved pages, opened from a file."
import pytest, torch

pytestmark = pytest.mark.site
pytest.importorskip('playwright.sync_api')
from axe_playwright_python.sync_playwright import Axe
from fb_pass.gradients import add_grad
from fb_pass.modules import Lin, Model, Mse, Relu
from fb_pass.training import mlp
from fb_pass.viewer import show_backward

class Half(Lin):
    def bwd(self, out, inp):
        add_grad(inp, out.g @ self.w.t())
        add_grad(self.w, inp.t() @ out.g / len(inp))
        add_grad(self.b, out.g.sum(0))

def views():
    torch.manual_seed(0)
    w1, b1, w2, b2 = (torch.randn(o) for o in ((4, 3), (3,), (3, 1), (1,)))
    broken = Model.from_layers([Lin(w1, b1), Relu(), Half(w2, b2)], Mse())
    yield 'small', show_backward(Model(w1, b1, w2, b2), torch.randn(5, 4), torch.randn(5))
    yield 'broken', show_backward(broken, torch.randn(5, 4), torch.randn(5))
    yield 'digits', show_backward(mlp(784, 50, 10), torch.rand(64, 784), torch.arange(64) % 10, image=(28, 28))
    yield 'deep', show_backward(mlp(*[5]*12), torch.randn(3, 5), torch.tensor([0, 1, 2]))

NAMES = 'small', 'broken', 'digits', 'deep'
RULES = ('* { color:red } p, pre, figure { margin:99px } .step, .chip, .number { display:none } '
         'button { font-size:99px } table, svg { width:7px }')

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "Each view as a page, and one page with the same view twice among rules of its own."
    here = tmp_path_factory.mktemp('pages')
    for name, view in views():
        view.save(here/f'{name}.html')
        if name == 'small':
            head = f'<!doctype html><meta charset="utf-8"><style>{RULES}</style><p id="mine">mine</p>'
            (here/'two.html').write_text(head + view._repr_html_() + view._repr_html_(), encoding='utf-8')
    return here

@pytest.fixture
def visit(browser, folder):
    "Opens a page; nothing may go wrong in any of them, and none may ask for another file."
    wrong, contexts = [], []
    def opened(name, width=1300, scheme='light', js=True):
        size = {'width': width, 'height': 844}
        contexts.append(browser.new_context(viewport=size, color_scheme=scheme, java_script_enabled=js))
        tab = contexts[-1].new_page()
        tab.on('console', lambda m: wrong.append(m.text))
        tab.on('pageerror', lambda e: wrong.append(str(e)))
        tab.on('request', lambda r: r.url.startswith(('data:', 'file:')) or wrong.append(r.url))
        tab.goto((folder/f'{name}.html').as_uri())
        return tab
    yield opened
    for c in contexts: c.close()
    assert not wrong

def shown(tab, view='.fb'):
    "The number of the step that is shown, or `several`."
    steps = tab.locator(f'{view} .step:visible')
    return steps.locator('.number').first.inner_text() if steps.count() == 1 else 'several'

FOCUS = """() => { const o = document.activeElement, s = getComputedStyle(o)
    return [o.matches("[data-step], button, input"), s.outlineStyle, s.outlineWidth, o.tagName] }"""

def test_keyboard(visit):
    tab = visit('small')
    assert shown(tab) == '1'
    for key, step in [('ArrowRight', '2'), ('ArrowRight', '3'), ('ArrowLeft', '2'), ('End', '8'), ('ArrowRight', '8'),
                      ('Home', '1'), ('ArrowLeft', '1')]:
        tab.keyboard.press(key)
        assert shown(tab) == step
    seen = []
    for _ in range(12): # the links, then the controls: each is reached, and seen when it is
        tab.keyboard.press('Tab')
        ours, style, width, tag = tab.evaluate(FOCUS)
        if not ours: continue
        seen.append(tag)
        assert style == 'solid' and width == '3px'
    assert seen == ['A']*8 + ['BUTTON', 'INPUT', 'BUTTON']

def test_enter_and_space(visit):
    tab = visit('small')
    tab.locator('.chip').nth(5).focus()
    tab.keyboard.press('Enter')
    assert shown(tab) == '6' and tab.locator('.chip[aria-current=step]').inner_text().startswith('6')
    tab.locator('.controls button').last.focus()
    tab.keyboard.press('Space')
    assert shown(tab) == '7' and tab.locator('.where').inner_text() == 'Step 7 of 8, backward: Relu'

def test_slider_by_keyboard(visit):
    tab = visit('small')
    slider = tab.locator('input[type=range]')
    slider.focus()
    tab.keyboard.press('ArrowRight')
    assert shown(tab) == '2' and slider.get_attribute('aria-valuetext') == 'Step 2 of 8, forward: Relu'

def test_mouse(visit):
    tab = visit('small')
    tab.get_by_role('button', name='Next').click()
    assert shown(tab) == '2'
    tab.get_by_role('button', name='Back').click()
    assert shown(tab) == '1'
    tab.locator('.chip').nth(7).click()
    assert shown(tab) == '8' and not tab.evaluate('location.hash')
    box = tab.locator('input[type=range]').bounding_box()
    tab.mouse.click(box['x'] + box['width']/2, box['y'] + box['height']/2)
    assert shown(tab) in ('4', '5')

def test_the_wrong_step_is_one_click_away(visit):
    tab = visit('broken')
    tab.locator('.said.alarm a').click()
    assert shown(tab) == '6' and 'w.g is wrong' in tab.locator('.step:visible').inner_text()

def test_without_javascript(visit):
    tab = visit('small', js=False)
    assert tab.locator('.step:visible').count() == 8 and not tab.locator('.controls').is_visible()
    tab.locator('.chip').nth(6).click()
    box = tab.locator('.step').nth(6).bounding_box()
    assert -1 < box['y'] < 844

def test_two_views_on_a_page_of_other_rules(visit):
    tab = visit('two')
    first, second = (f'[data-view="{o}"]' for o in tab.locator('.fb').evaluate_all('os => os.map(o => o.dataset.view)'))
    tab.locator(f'{second} button').last.click()
    assert (shown(tab, first), shown(tab, second)) == ('1', '2')
    tab.locator(f'{first} .chip').nth(4).focus()
    for _ in range(2): tab.keyboard.press('ArrowRight')
    assert (shown(tab, first), shown(tab, second)) == ('3', '2')
    style = 'o => [getComputedStyle(o).color, getComputedStyle(o).marginTop]'
    assert tab.locator(f'{first} .says').first.evaluate(style) == ['rgb(28, 33, 38)', '0px']
    assert tab.locator('#mine').evaluate(style) == ['rgb(255, 0, 0)', '99px']
    assert tab.locator(f'{first} .step:visible svg').first.bounding_box()['width'] > 40

@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('js', [True, False])
def test_a_telephone_needs_no_scrolling_to_the_side(visit, name, js):
    tab = visit(name, width=390, js=js)
    for _ in range(8 if js else 1):
        if not js: assert tab.locator('main').bounding_box()['width'] <= 390
        else:
            assert tab.locator('html').evaluate('o => o.scrollWidth') <= 390
            tab.keyboard.press('ArrowRight')

@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('width, scheme', [(1300, 'light'), (1300, 'dark'), (390, 'light')])
def test_accessible(visit, name, width, scheme):
    tab = visit(name, width, scheme)
    for _ in range(3):
        found = Axe().run(tab).response['violations']
        said = (f"{o['id']}: {o['help']} {[n['html'][:200] for n in o['nodes'][:3]]}" for o in found)
        assert not found, '\n'.join(said)
        for _ in range(3): tab.keyboard.press('ArrowRight')

def test_dark(visit):
    background = 'o => getComputedStyle(o).backgroundColor'
    assert visit('small', scheme='dark').locator('.fb').evaluate(background) == 'rgb(21, 25, 29)'
    tab = visit('small')
    assert tab.locator('.fb').evaluate(background) == 'rgb(255, 255, 255)'
    jupyter, quarto = 'body.dataset.jpThemeLight = "false"', 'documentElement.classList.add("quarto-dark")'
    for change in (jupyter, quarto):
        tab = visit('small')
        tab.evaluate(f'document.{change}')
        assert tab.locator('.fb').evaluate(background) == 'rgb(21, 25, 29)'
