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
    def room(self): return m[1] if (m := re.match(r'(\d\d)_', self.stem)) else '' # the lesson's rooms have a number
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

def reading_minutes(stem, nbs=root/'nbs'):
    "About how long a notebook takes: 200 words of prose a minute, 10 lines of code a minute."
    words = sum(len(o.split()) for o in cells(stem, 'markdown', nbs))
    lines = sum(bool(l.strip()) for o in cells(stem, 'code', nbs) for l in o.splitlines())
    return 5*max(1, round((words/200 + lines/10)/5))

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
    def link(o): return f'[{title_of(o.stem)}]({seen_from(stem, o.stem)}.ipynb)'
    said = [f"{f'Room {page.room}, in' if page.room else 'In'} the part *{page.part}*."] if page.part else []
    if before and before.part: said.append(f'Before: {link(before)}.')
    if after: said.append(f"{'Next' if page.part else 'Begin with'}: {link(after)}.".replace('with:', 'with'))
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

def table():
    "The table of all notebooks, for the index."
    rows = [f'| [{o.label}]({o.stem}.ipynb) | {question_of(o.stem)} | {f"`fb_pass.{o.module}`" if o.module else ""} '
            f'| {reading_minutes(o.stem)} |' for o in pages() if o.part]
    return '\n'.join(['| notebook | its question | module | minutes |', '|---|---|---|---|', *rows])

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
