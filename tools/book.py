"The pages of the book in reading order, as nbs/sidebar.yml has them, and what stands at the top of each."
import json, re, sys
from configparser import ConfigParser
from os.path import relpath
from pathlib import Path
from typing import NamedTuple

import yaml

root = Path(__file__).resolve().parent.parent

def settings():
    "The settings of the project."
    ini = ConfigParser(delimiters=['='])
    ini.read(root/'settings.ini', encoding='utf-8')
    return ini['DEFAULT']

class Page(NamedTuple):
    "A page and its place in the book."
    stem: str # path of the notebook in nbs/ without its ending, as in 05_backward or doctor/report
    part: str # part of the book; empty for the index
    @property
    def number(self): return m[1] if (m := re.search(r'(?:^|/)(\d\d)_', self.stem)) else ''
    @property
    def room(self): return '' if '/' in self.stem else self.number # of the lesson; a deeper page stands beside one
    @property
    def name(self): return re.sub(r'^\d\d_', '', self.stem.rpartition('/')[2])
    @property
    def module(self):
        "What the notebook exports, without the package, as in doctor.report."
        return exported(self.stem)
    @property
    def label(self): return f'{self.room} {self.name}'.strip()

def pages(path=root/'nbs'/'sidebar.yml'):
    "All pages in reading order."
    for o in yaml.safe_load(path.read_text(encoding='utf-8'))['website']['sidebar']['contents']:
        if isinstance(o, str): yield Page(o.removesuffix('.ipynb'), '')
        else: yield from (Page(name.removesuffix('.ipynb'), o['section']) for name in o['contents'])

def notebooks(names=(), folder=root/'nbs'):
    "Paths of the notebooks by their stems, in reading order: all, or those named, as in 05_backward, doctor or report."
    found = {p.relative_to(folder).with_suffix('').as_posix(): p for p in sorted(folder.glob('**/*.ipynb'))}
    found = {k: p for k,p in found.items() if not re.search(r'(^|/)[_.]', k)}
    book = [o.stem for o in pages(folder/'sidebar.yml')] if (folder/'sidebar.yml').is_file() else []
    paths = {k: found[k] for k in dict.fromkeys([*(o for o in book if o in found), *found])}
    if not paths: sys.exit(f'no notebook in {folder}')
    def called(k, name):
        name = name.removesuffix('.ipynb').strip('/')
        return f'/{k}'.endswith(f'/{name}') or f'/{name}'.endswith(f'/{k}') or k.startswith(f'{name}/')
    if (unknown := [o for o in names if not any(called(k, o) for k in paths)]):
        sys.exit(f"no notebook {', '.join(unknown)}; there are: {', '.join(paths)}")
    return {k: p for k,p in paths.items() if not names or any(called(k, o) for o in names)}

def cells(stem, kind=None, nbs=root/'nbs'):
    "Sources of the cells of a notebook, all or of one kind."
    nb = json.loads((nbs/f'{stem}.ipynb').read_text(encoding='utf-8'))
    return [''.join(c['source']) for c in nb['cells'] if kind in (None, c['cell_type'])]

def exported(stem, nbs=root/'nbs'):
    "The module that a notebook exports, without the package; empty if none."
    return next((m[1] for o in cells(stem, 'code', nbs) if (m := re.match(r'#\| default_exp (\S+)', o))), '')

def title_of(stem, nbs=root/'nbs'):
    "Title of a notebook."
    for o in cells(stem, 'markdown', nbs):
        if (m := re.search(r'^# (.+)$', o, re.MULTILINE)): return m[1].strip()
    raise ValueError(f'{stem}.ipynb has no title: a line that begins with "# " in a Markdown cell')

def question_of(stem):
    "The question that stands as a quote under the title."
    head = next(o for o in cells(stem, 'markdown') if o.startswith('# '))
    return ' '.join(o.lstrip('> ') for o in re.search(r'(?:^>.*\n?)+', head, re.MULTILINE)[0].splitlines())

WORDS, LINES = 240, 25 # of prose and of code that are read in a minute; prose by Brysbaert 2019

class Length(NamedTuple):
    "What a reader sees of a page: no set-up, no folded solutions."
    words: int
    cells: int # of code
    lines: int # of code
    @property
    def minutes(self): return self.words/WORDS + self.lines/LINES

FOLDED = re.compile(r'\A(?:#\|.*\n)*#\| (?:default_exp|hide$|code-fold|code-summary)|\A<details>', re.MULTILINE)

def words(text):
    "How many words a reader reads: a formula counts as one, a picture as none."
    text = re.sub(r'!\[[^\]]*\]\([^)]*\)|^\[!\[.*$|^[|: -]+$', ' ', text, flags=re.MULTILINE)
    text = re.sub(r'\$\$.*?\$\$|\$[^$]+\$', ' x ', text, flags=re.DOTALL)
    return len(re.findall(r"[^\W_][\w.'-]*", re.sub(r'\]\([^)]*\)', ' ', text)))

def length(stem, nbs=root/'nbs'):
    "How long a page is, without what is hidden or folded, and without its exercises, which are for doing."
    nb, inside, prose, code = json.loads((nbs/f'{stem}.ipynb').read_text(encoding='utf-8')), False, [], []
    for c in nb['cells']:
        source, kind = ''.join(c['source']), c['cell_type']
        if kind == 'markdown' and (found := re.findall(r'(?m)^## (.*?) *$', source)): inside = found[-1] == 'Exercises'
        folded = c['metadata'].get('jupyter', {}).get('source_hidden') or FOLDED.search(source)
        if not inside and not folded: (code if kind == 'code' else prose).append(source)
    lines = sum(bool(l.strip()) and not l.startswith('#|') for o in code for l in o.splitlines())
    return Length(sum(map(words, prose)), len(code), lines)

def companion(page):
    "The deeper page beside a room of the lesson, or the room beside a deeper page; None if there is none."
    return next((o for o in pages() if o.number and o.number == page.number and o.stem != page.stem), None)

def neighbors(stem):
    "The page, the one before it and the one after it; None where there is none."
    book = list(pages())
    found = [i for i,o in enumerate(book) if o.stem == stem]
    if not found: raise ValueError(f'{stem}.ipynb has no place in the book: write it into nbs/sidebar.yml')
    i = found[0]
    return book[i], book[i-1] if i else None, book[i+1] if i + 1 < len(book) else None

def seen_from(stem, path):
    "A path in nbs/ as a link from the notebook `stem`."
    return relpath(path, Path(stem).parent).replace('\\', '/')

def place(stem):
    "The sentence that says where a page belongs and what comes next."
    page, before, after = neighbors(stem)
    beside = companion(page)
    def link(o, said=None): return f'[{said or title_of(o.stem)}]({seen_from(stem, o.stem)}.ipynb)'
    if not page.part: return f'Begin with {link(after)}.'
    if page.number and not page.room: return f'Deeper, beside room {page.number}: {link(beside)}.'
    said = [f'{page.part}, room {page.room}.' if page.room else f'{page.part}.']
    if before and before.part == page.part: said.append(f'Before: {link(before)}.')
    if after: said.append(f'Next: {link(after)}.')
    if beside: said.append(f'{link(beside, "Deeper")}: what one may want to know next.')
    return ' '.join(said)

# Where a notebook runs without anything installed. User, repository and branch come from settings.ini.
hosts = {
    'Open in Colab': ('badge_colab.svg',
                      'https://colab.research.google.com/github/{user}/{repo}/blob/{branch}/nbs/{stem}.ipynb'),
    'Open in Binder': ('badge_binder.svg',
                       'https://mybinder.org/v2/gh/{user}/{repo}/{branch}?urlpath=lab/tree/nbs/{stem}.ipynb'),
}

def badges(stem):
    "The badges of a page, as Markdown."
    cfg = settings()
    where = {k: cfg[k] for k in ('user', 'repo', 'branch')}
    return ' '.join(f'[![{k}]({seen_from(stem, image)})]({url.format(stem=stem, **where)})'
                    for k,(image,url) in hosts.items())

def opening_line(stem):
    "What stands under the question of a page: its badges, where it belongs and what comes next."
    return f'{badges(stem)} {place(stem)}'

def minutes(stem): return max(1, round(length(stem).minutes))

def lesson_table(part='Lesson'):
    "The rooms of the lesson and the page beside each, for the index."
    rows = []
    for o in pages():
        if o.part != part: continue
        beside = (c := companion(o)) and f'[{minutes(c.stem)} minutes more]({c.stem}.ipynb)' or ''
        rows.append(f'| [{o.label}]({o.stem}.ipynb) | {question_of(o.stem)} | {minutes(o.stem)} | {beside} |')
    return '\n'.join(['| room | its question | minutes | deeper |', '|---|---|---|---|', *rows])

def tools_table(part='Tools'):
    "The notebooks of the tools, for the index."
    rows = [f'| [{o.label}]({o.stem}.ipynb) | {question_of(o.stem)} | {f"`fb_pass.{o.module}`" if o.module else ""} |'
            for o in pages() if o.part == part]
    return '\n'.join(['| tool | its question | module |', '|---|---|---|', *rows])

def install_lines(stem):
    "What the first code cell of a notebook does on Colab. Nothing is imported: it may stand beside any directive."
    cfg = settings()
    where, folder = f"/content/{cfg['repo']}", Path(cfg['nbs_path'], stem).parent
    fetch = f"git clone -q --depth 1 -b {cfg['branch']} {cfg['git_url']} {where}"
    top = '/'.join('..' for _ in folder.parts)
    return ('# On Colab: fetch the repository and install the package. Anywhere else this does nothing.\n'
            "if 'google.colab' in str(get_ipython()):\n"
            f"    get_ipython().run_cell('!{fetch}\\n'\n"
            f"                           '%cd -q {where}/{folder.as_posix()}\\n%pip install -q {top}')")
