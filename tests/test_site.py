"The site in a browser without a network: pages come from _docs under their address, and nothing else answers."
import inspect, os, posixpath, re, shutil, subprocess, sys
from functools import cache
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest
from bs4 import BeautifulSoup

pytestmark = pytest.mark.site
pytest.importorskip('playwright.sync_api')
from axe_playwright_python.sync_playwright import Axe
from book import cells, companion, pages, root, settings

CFG = settings()
BASE = f"{CFG['doc_host']}{CFG['doc_baseurl']}/"
DOCS, SHOTS = root/'_docs', root/'_screenshots'
BOOK = list(pages())
STEMS = [o.stem for o in BOOK]
SIZES = {1300: 900, 390: 844} # a desk and a telephone
each_page = pytest.mark.parametrize('stem', STEMS)

@pytest.fixture(scope='session', autouse=True)
def site():
    "What `make test-site` makes first."
    if not (DOCS/'index.html').is_file(): pytest.fail('there is no site in _docs; make docs', pytrace=False)

# Reading the clipboard back can wait for ever where other programs have one too.
remember_copies = """const write = navigator.clipboard.writeText.bind(navigator.clipboard)
navigator.clipboard.writeText = text => write(text).then(() => { window.copied = text })"""

class Visit:
    "A tab of the browser, and all that went wrong in it."
    def __init__(self, browser, width=1300, scheme='light'):
        self.width, self.wrong = width, []
        size = {'width': width, 'height': SIZES[width]}
        self.context = browser.new_context(viewport=size, color_scheme=scheme, reduced_motion='reduce')
        self.context.grant_permissions(['clipboard-write'])
        self.context.add_init_script(remember_copies)
        self.context.route('**/*', self.answer)
        self.tab = self.context.new_page()
        self.tab.set_default_timeout(15_000)
        self.tab.on('console', lambda m: m.type in ('error', 'warning') and self.wrong.append(f'console: {m.text}'))
        self.tab.on('pageerror', lambda e: self.wrong.append(f'script: {e}'))
        self.tab.on('requestfailed', self.failed)
        self.tab.on('response', lambda r: r.status >= 400 and self.wrong.append(f'{r.status}: {r.url}'))

    def failed(self, request):
        "All pages of the site are answered; a request for one is aborted only when the tab goes on to another page."
        left = request.url.startswith(BASE) and request.failure == 'net::ERR_ABORTED'
        if not left: self.wrong.append(f'request failed ({request.failure}): {request.url[:200]}')

    def answer(self, route):
        url = urldefrag(route.request.url)[0].partition('?')[0]
        if url.startswith(BASE): file = DOCS/(unquote(url.removeprefix(BASE)) or 'index.html')
        else: return route.abort()
        if file.is_file(): route.fulfill(path=file)
        else: route.fulfill(status=404)

    def open(self, stem):
        self.tab.goto(f'{BASE}{stem}.html')
        self.tab.wait_for_function('document.fonts.status === "loaded"')
        return self.tab

@pytest.fixture
def visit(browser):
    "Opens tabs: visit(width, scheme). They are closed at the end, and must have been without fault."
    made = []
    def new(**kw):
        made.append(Visit(browser, **kw))
        return made[-1]
    yield new
    for v in made: v.context.close()
    wrong = [w for v in made for w in v.wrong]
    assert not wrong, '\n'.join(wrong)

def at(*widths):
    "Each page at these widths. All tests of one are for one worker, so that it is opened once."
    def one(o, w): return pytest.param((o, w), marks=pytest.mark.xdist_group(f'{o}-{w}'), id=f'{o}-{w}')
    return [one(o, w) for o in STEMS for w in widths]

@pytest.fixture(scope='module', params=at(*SIZES))
def page(request, browser):
    "A page in a tab, at one size, for all the tests that only look."
    stem, width = request.param
    v = Visit(browser, width)
    v.stem = stem
    v.open(stem)
    yield v
    v.context.close()

@cache
def soup(stem):
    "A page as it is in the file, before any script."
    return BeautifulSoup((DOCS/f'{stem}.html').read_text(encoding='utf-8'), 'html.parser')

def seen_from(stem, path):
    "Where a relative path on a page leads, from the root of the site."
    return posixpath.normpath(posixpath.join(posixpath.dirname(stem), path))

def test_quarto_is_taken_where_there_is_one(tmp_path):
    "By way of nbdev_docs, and README.md stays what it is. Quarto is played by smalldocs."
    left_out = shutil.ignore_patterns('__pycache__', 'nbdev.yml')
    for o in ('nbs', 'fb_pass', 'images', 'tools', 'exercises'): shutil.copytree(root/o, tmp_path/o, ignore=left_out)
    for o in ('settings.ini', 'setup.py', 'README.md'): shutil.copy(root/o, tmp_path)
    os.utime(tmp_path/'README.md', (0, 0))
    quarto, asked = tmp_path/'bin'/'quarto', tmp_path/'asked'
    quarto.parent.mkdir()
    quarto.write_text(f'#!/bin/sh\necho "$@" >> {asked}\nexec {Path(sys.executable).parent}/smalldocs render .\n')
    quarto.chmod(0o755)
    env = os.environ | {'PATH': f"{quarto.parent}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run([sys.executable, 'tools/build_docs.py'], cwd=tmp_path, env=env, check=True, stdin=subprocess.DEVNULL)
    assert asked.read_text().split() == ['render', '--no-cache']
    assert (tmp_path/'README.md').read_bytes() == (root/'README.md').read_bytes()
    built = {p.relative_to(tmp_path/'_docs') for p in (tmp_path/'_docs').glob('**/*.*')}
    assert built == {p.relative_to(DOCS) for p in DOCS.glob('**/*.*')}

def test_every_notebook_is_a_page_and_nothing_else():
    built = [p.relative_to(DOCS).with_suffix('').as_posix() for p in DOCS.glob('**/*.html')]
    assert sorted(built) == sorted(STEMS)

@each_page
def test_sidebar_is_the_book(stem):
    links = [seen_from(stem, a['href']) for a in soup(stem).select('#quarto-sidebar a[href$=".html"]')]
    assert list(dict.fromkeys(links)) == [f'{o}.html' for o in STEMS]

def test_page_loads_without_fault(page):
    assert page.tab.locator('h1').count() == 1
    assert not page.wrong, '\n'.join(page.wrong)

def test_screenshot_is_kept(page):
    SHOTS.mkdir(exist_ok=True)
    name = f"{page.stem.replace('/', '_')}_{page.width}.jpeg"
    page.tab.screenshot(path=SHOTS/name, type='jpeg', quality=60, full_page=True)

def test_page_does_not_scroll_sideways(page):
    assert page.tab.evaluate('document.documentElement.scrollWidth') <= page.width
    assert not (o := wide(page.tab, page.width)), o

def test_formulas_are_typeset(page):
    tab = page.tab
    formulas = tab.locator('main .math').count()
    heights = tab.locator('main .math > math').evaluate_all('os => os.map(o => o.getBoundingClientRect().height)')
    assert len(heights) == formulas and not tab.locator('merror').count()
    assert all(h > 5 for h in heights) or tab.locator('main details .math').count(), 'formulas without a height'
    if page.stem in ('03_initialization', '05_backward'): assert formulas > 10
    words = tab.locator('main').evaluate("""o => { o = o.cloneNode(true)
        o.querySelectorAll('math, pre, code, svg').forEach(k => k.remove())
        return o.textContent }""")
    left = re.findall(r'\\(?:frac|mathbb|qquad|partial)\b|\$\$', words)
    assert not left, 'formulas that nobody has set'

def test_pictures_have_a_size_and_words(page):
    pictures = page.tab.locator('main img').evaluate_all("""os => os.filter(o => o.checkVisibility()).map(o => {
        const {width, height} = o.getBoundingClientRect()
        return {src: o.src.slice(0, 80), alt: o.alt, natural: o.naturalWidth, width, height} })""")
    assert pictures, 'a page without a picture'
    for o in pictures: # a vector is drawn as a single row of cells
        assert o['natural'] > 0 and o['width'] > 15 and o['height'] > 8 and len(o['alt'].split()) >= 3, o

def test_first_screen_says_where_we_are(page):
    "Title, question, place and what comes next, without scrolling; a deeper page leads back to its room."
    tab = page.tab
    tab.evaluate('scrollTo(0, 0)')
    question = re.search(r'^> (.+)', '\n'.join(cells(page.stem, 'markdown')), re.MULTILINE)[1]
    said = tab.locator('main').get_by_text(re.compile(re.sub(r"[^\w ]+", '.{0,2}', question))).first
    i = STEMS.index(page.stem)
    shown = [tab.locator('h1'), said, tab.get_by_alt_text('Open in Colab'), tab.get_by_alt_text('Open in Binder')]
    for o in [companion(BOOK[i]).stem] if BOOK[i].part == 'Deeper' else STEMS[i+1:i+2]:
        shown.append(tab.locator(f'main p:has(img[alt="Open in Colab"]) a[href$="{posixpath.basename(o)}.html"]'))
    for what in shown:
        box = what.bounding_box(timeout=2000)
        assert box and box['y'] + box['height'] <= SIZES[page.width], what

def axe(tab, *rules):
    "What axe finds: the rules of WCAG 2, A and AA, or some rules."
    only = dict(type='rule', values=rules) if rules else ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa']
    found = Axe().run(tab, options={'runOnly': only, 'resultTypes': ['violations']}).response['violations']
    def line(n): return f"    {n['html'][:150]}\n      {' '.join(o['message'] for o in n['any'][:1])}"
    def lines(o): return [f"{o['id']}: {o['help']}, {len(o['nodes'])} times", *map(line, o['nodes'][:4])]
    return '\n'.join(l for o in found for l in lines(o))

def test_page_is_accessible(page):
    "Contrast, words for pictures, names of controls, the keyboard and more."
    assert not (found := axe(page.tab)), found

@pytest.mark.parametrize('page', at(1300), indirect=True)
def test_page_is_legible_in_the_dark(page):
    page.tab.emulate_media(color_scheme='dark')
    for _ in range(50): # a long page on a busy machine takes its time
        if shade(page.tab) < 60: break
        page.tab.wait_for_timeout(200)
    assert shade(page.tab) < 60
    found = axe(page.tab, 'color-contrast')
    page.tab.emulate_media(color_scheme='light')
    page.tab.wait_for_timeout(200)
    assert not found, found

def test_code_copies(page):
    "The code in the middle of the page, as it is in the notebook."
    box = page.tab.locator('main .code-copy-outer-scaffold:has(pre.cell-code) >> visible=true')
    assert box.count() > 3
    one = box.nth(box.count()//2)
    one.hover()
    one.locator('.code-copy-button').click()
    page.tab.wait_for_function('window.copied', timeout=5000)
    copied = page.tab.evaluate('window.copied').strip()
    assert copied and any(copied in o for o in cells(page.stem, 'code')), copied

def wide(tab, width):
    "What reaches over the right edge and is in no box that scrolls by itself."
    return tab.evaluate('''w => [...document.querySelectorAll('main *')].filter(o => {
        if (o.getBoundingClientRect().right <= w + 1 || o.closest('svg, math')) return false
        const cuts = p => ['auto', 'scroll', 'hidden'].includes(getComputedStyle(p).overflowX)
        const cut = p => p && (cuts(p) || cut(p.parentElement))
        return !cut(o.parentElement) }).map(o => o.outerHTML.slice(0, 120)).slice(0, 5)''', width)

def ids(stem): return {o['id'] for o in soup(stem).select('[id]')}

def repository(path):
    "What is wrong with a link into the repository, if anything: a file, perhaps with a line."
    name, line = re.fullmatch(r'([^#]*)(?:#L(\d+))?', path).groups()
    file = root/name
    if not file.exists(): return 'no such file'
    if line and int(line) > len(file.read_text(encoding='utf-8').splitlines()): return 'no such line'

def fault(href, stem):
    "What is wrong with a link on a page, if anything."
    if href.startswith(('mailto:', 'data:')): return None
    web = f"{CFG['git_url']}/"
    if href.startswith(web):
        m = re.fullmatch(rf"(?:blob|tree|edit)/{CFG['branch']}/(.+)|issues(?:/new)?|", href.removeprefix(web))
        return 'not in the repository' if not m else m[1] and repository(m[1])
    if re.match(r'https?://', href) and not href.startswith(BASE):
        return None if urlsplit(href).netloc and href.startswith('https:') else 'not https'
    path, anchor = map(unquote, urldefrag(href.removeprefix(BASE)))
    if not href.startswith(BASE): path = seen_from(stem, path) if path else f'{stem}.html'
    if not (DOCS/(path or 'index.html')).is_file(): return 'no such file'
    page = path.removesuffix('.html') or 'index'
    if anchor and anchor not in ids(page): return f'no such place in {page}'

@each_page
def test_links_lead_somewhere(stem):
    links = {a['href'] for a in soup(stem).select('a[href]')}
    assert len(links) > 20
    wrong = {o: f for o in links if (f := fault(o, stem))}
    assert not wrong, wrong
    notebooks = [o for o in links if o.endswith('.ipynb') and not o.startswith('https:')]
    assert not notebooks, 'links to notebooks instead of pages'

@each_page
def test_anchors_are_unique(stem):
    found = [o['id'] for o in soup(stem).select('[id]')]
    assert len(found) == len(set(found)), {o for o in found if found.count(o) > 1}

def public(module):
    "Names and objects of the public functions and classes."
    named = ((k, getattr(module, k)) for k in module.__all__)
    return [(k, o) for k,o in named if inspect.isfunction(o) or inspect.isclass(o)]

@pytest.mark.parametrize('page', [o for o in BOOK if o.module], ids=lambda o: o.stem)
def test_reference_is_complete(page):
    "Every public function and class of the module, each with a link to its source and a table of its arguments."
    for name,o in public(import_module(f'fb_pass.{page.module}')):
        head = soup(page.stem).find('h3', id=f'ref-{name}')
        assert head and head.get_text(strip=True) == name, f'{name} is missing'
        between = []
        for sib in head.find_all_next():
            if sib.name in ('h2', 'h3') and sib is not head: break
            between.append(sib)
        links = [s.get('href', '') for s in between if s.name == 'a']
        assert any('/fb_pass/' in o and '#L' in o for o in links), f'{name} has no link to its source'
        if not inspect.isfunction(o): continue
        rows = {s.td.get_text(strip=True) for s in between if s.name == 'tr' and s.td}
        wanted = {k.lstrip('*') for k in inspect.signature(o).parameters if k != 'self'}
        assert wanted <= rows, f'{name}: {wanted - rows} not in the table'

def test_the_whole_book_by_next(visit):
    "One page after the other by the link at the end, and back again."
    tab = visit().open('index')
    for stem in STEMS[1:]:
        tab.locator('.nav-page-next a').click()
        tab.wait_for_url(f'**/{stem}.html')
    for stem in STEMS[-2::-1]:
        tab.locator('.nav-page-previous a').click()
        tab.wait_for_url(re.compile(f'/{stem}\\.html$|/$'))

@pytest.mark.parametrize('width', SIZES)
@pytest.mark.parametrize('name, stem', [('lin_grad', '05_backward'), ('kaiming_normal', '03_initialization'),
                                        ('check_layer', 'doctor/report')])
def test_search_finds_a_function(visit, width, name, stem):
    tab = visit(width=width).open('index')
    if width < 1000: tab.locator('.navbar-toggler').click()
    tab.locator('.smalldocs-search input:visible').fill(name)
    hit = tab.locator(f'.search-result[href*="{stem}.html#ref-{name}"]:visible').first
    hit.wait_for(timeout=5000)
    hit.click()
    tab.wait_for_url(f'**/{stem}.html#ref-{name}')
    assert tab.locator(f'#ref-{name}').is_visible()

def shade(tab):
    "Mean of red, green and blue of the ground, 0 to 255."
    color = tab.evaluate('getComputedStyle(document.body).backgroundColor')
    return sum(map(int, re.findall(r'\d+', color)[:3]))/3

def test_dark_and_light(visit):
    "As the machine is set, or as the reader chooses; the choice holds on the next page."
    assert shade(visit(scheme='light').open('05_backward')) > 200
    v = visit(scheme='dark')
    assert shade(v.open('05_backward')) < 60
    v.tab.locator('.quarto-color-scheme-toggle').first.click()
    v.tab.wait_for_timeout(300)
    assert shade(v.tab) > 200
    assert shade(v.open('06_modules')) > 200

def test_folded_parts_unfold(visit):
    "Solutions and long cells are closed at first and open by the keyboard."
    some = [o for o in STEMS if soup(o).select('main details')]
    assert some, 'no page has a solution to unfold'
    tab = visit().open(some[-1])
    part = tab.locator('main details').first
    assert not part.evaluate('o => o.open') and part.locator('summary').inner_text().strip()
    part.locator('summary').focus()
    tab.keyboard.press('Enter')
    assert part.evaluate('o => o.open')
