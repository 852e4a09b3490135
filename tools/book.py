"The pages of the book in reading order, as nbs/sidebar.yml has them, and what stands at the top of each."
import json, re
from configparser import ConfigParser
from itertools import chain
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
    stem: str # name of the notebook without its ending
    part: str # part of the book; empty for the index
    @property
    def room(self): return self.stem[:2] if self.part else ''
    @property
    def name(self): return self.stem[3:] if self.part else self.stem

def pages(path=root/'nbs'/'sidebar.yml'):
    "All pages in reading order."
    for o in yaml.safe_load(path.read_text(encoding='utf-8'))['website']['sidebar']['contents']:
        if isinstance(o, str): yield Page(Path(o).stem, '')
        else: yield from (Page(Path(name).stem, o['section']) for name in o['contents'])

def cells(stem, kind=None, nbs=root/'nbs'):
    "Sources of the cells of a notebook, all or of one kind."
    nb = json.loads((nbs/f'{stem}.ipynb').read_text(encoding='utf-8'))
    return [''.join(c['source']) for c in nb['cells'] if kind in (None, c['cell_type'])]

def title_of(stem, nbs=root/'nbs'):
    "Title of a notebook."
    for o in cells(stem, 'markdown', nbs):
        if (m := re.search(r'^# (.+)$', o, re.MULTILINE)): return m[1].strip()
    raise ValueError(f'{stem}.ipynb has no title: a line that begins with "# " in a Markdown cell')

def reading_minutes(stem, nbs=root/'nbs'):
    "About how long a notebook takes: 200 words of prose a minute, 10 lines of code a minute."
    words = sum(len(o.split()) for o in cells(stem, 'markdown', nbs))
    lines = sum(bool(l.strip()) for o in cells(stem, 'code', nbs) for l in o.splitlines())
    return 5*max(1, round((words/200 + lines/10)/5))

def neighbors(stem):
    "The page, the one before it and the one after it; None where there is none. A page that has no place has no neighbors either."
    book = list(pages())
    found = [i for i,o in enumerate(book) if o.stem == stem]
    if not found: raise ValueError(f'{stem}.ipynb has no place in the book: write it into nbs/sidebar.yml')
    i = found[0]
    return book[i], book[i-1] if i else None, book[i+1] if i + 1 < len(book) else None

def place(stem):
    "The sentence that says where a page belongs and what comes next."
    page, before, after = neighbors(stem)
    def link(o): return f'[{title_of(o.stem)}]({o.stem}.ipynb)'
    said = [f'Room {page.room}, in the part *{page.part}*.'] if page.part else []
    if before and before.part: said.append(f'Before: {link(before)}.')
    if after: said.append(f"{'Next' if page.part else 'Begin with'}: {link(after)}.".replace('with:', 'with'))
    return ' '.join(said)

# Where a notebook runs without anything installed. User, repository and branch come from settings.ini.
hosts = {
    'Open in Colab': ('badge_colab.svg', 'https://colab.research.google.com/github/{user}/{repo}/blob/{branch}/nbs/{stem}.ipynb'),
    'Open in Binder': ('badge_binder.svg', 'https://mybinder.org/v2/gh/{user}/{repo}/{branch}?urlpath=lab/tree/nbs/{stem}.ipynb'),
}

def badges(stem):
    "The badges of a page, as Markdown."
    cfg = settings()
    where = {k: cfg[k] for k in ('user', 'repo', 'branch')}
    return ' '.join(f'[![{k}]({image})]({url.format(stem=stem, **where)})' for k,(image,url) in hosts.items())

def opening_line(stem):
    "What stands under the question of a page: its badges, where it belongs and what comes next."
    return f'{badges(stem)} {place(stem)}'

def install_lines():
    "What the first code cell of a notebook does on Colab. Nothing is imported: it may stand beside any directive."
    cfg = settings()
    where, nbs = f"/content/{cfg['repo']}", cfg['nbs_path']
    fetch = f"git clone -q --depth 1 -b {cfg['branch']} {cfg['git_url']} {where}"
    return ('# On Colab: fetch the repository and install the package. Anywhere else this does nothing.\n'
            "if 'google.colab' in str(get_ipython()):\n"
            f"    get_ipython().run_cell('!{fetch}\\n%cd -q {where}/{nbs}\\n%pip install -q ..')")
