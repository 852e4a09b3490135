"Processors for nbdev: what happens to the cells of a notebook on its way to the site, in the order of `procs`."
import ast, posixpath, re
from pathlib import Path

import yaml
from execnb.nbio import mk_cell
from fastcore.docments import DocmentTbl
from nbdev.doclinks import NbdevLookup
from nbdev.process import Processor
from nbdev.showdoc import BasicMarkdownRenderer

from book import pages, settings

class Reference(BasicMarkdownRenderer):
    "An entry of the reference: name, what it does, a link to the source, and a table of arguments and result."
    def _repr_markdown_(self):
        said = f"{self.docs or ''} [Source]({NbdevLookup().code(self.fn)})"
        return f'### {self.nm} {{#ref-{self.nm}}}\n\n{said.strip()}\n\n{DocmentTbl(self.sym)}'

def page_of(nb):
    "The page that a notebook becomes, by its path in nbs/; None if it has no place in the book."
    path = '/' + Path(nb.path_).with_suffix('').as_posix()
    return max((o for o in pages() if path.endswith(f'/{o.stem}')), key=lambda o: len(o.stem), default=None)

class front_matter(Processor):
    "The first lines of the first Markdown cell become title and description of the page; nbdev's own drops the others."
    def begin(self):
        page = page_of(self.nb)
        cell = next(c for c in self.nb.cells if c.cell_type == 'markdown' and re.search(r'^# ', c.source, re.MULTILINE))
        m = re.search(r'^# (?P<title>.+)\n+(?P<question>(?:>.*(?:\n|\Z))*)', cell.source + '\n', re.MULTILINE)
        question = ' '.join(l[1:].strip() for l in m['question'].splitlines())
        title = f"{page.room} · {m['title']}" if page and page.room else m['title']
        cell.source = (cell.source + '\n')[m.end():].strip()
        front = yaml.dump(dict(title=title, description=question), allow_unicode=True)
        self.nb.cells.remove(cell)
        self.nb.cells[:0] = [mk_cell(f'---\n{front}---', 'raw'), cell]

class drop_setup(Processor):
    "Cells that only tell nbdev something are left out. What is exported stays, unlike with nbdev's `rm_export`."
    def cell(self, cell):
        if cell.directives_ and cell.directives_.keys() & {'default_exp', 'hide'}: del cell['source']

class reference_last(Processor):
    "The reference of a page stands at its end, under a heading of its own, and is about what is public."
    def begin(self):
        entries = [c for c in self.nb.cells if c.get('has_sd')]
        self.nb.cells = [c for c in self.nb.cells if not c.get('has_sd')]
        public = [c for c in entries if 'show_doc(_' not in c.source]
        if public: self.nb.cells += [mk_cell('## Reference', 'markdown'), *public]

class fold(Processor):
    "What JupyterLab folds away by the metadata of a cell, the site folds, too."
    def cell(self, cell):
        hidden = cell.get('metadata', {}).get('jupyter', {}).get('source_hidden')
        if hidden and 'code-fold' not in cell.source:
            cell.source = f'#| code-fold: true\n#| code-summary: "Code"\n{cell.source}'

words = dict(title='titled', xlabel='to the right', ylabel='upward', label='with')

def labels(source):
    "What the code of a plot calls its axes, curves and titles: pairs of a keyword and a node of the syntax tree."
    tree = ast.parse(re.sub(r'(?m)^\s*[%!].*$', '', source))
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call): continue
        name = getattr(node.func, 'attr', '').removeprefix('set_')
        if name in ('xlabel', 'ylabel', 'title'): yield from ((name, o) for o in node.args[:1])
        yield from ((k.arg, k.value) for k in node.keywords if k.arg in words)

def alt_text(source):
    "Words for who cannot see a plot: what its code says of it. What it shows is said by the text beside it."
    found = {}
    for k,v in labels(source):
        if isinstance(v, ast.Constant) and v.value: found.setdefault(k, []).append(str(v.value))
    parts = [f"{word} {', '.join(dict.fromkeys(found[k]))}" for k,word in words.items() if k in found]
    kind = 'Pictures' if 'imshow' in source else 'Plot'
    return re.sub(r'["\\]', '', '; '.join([f'{kind} made by the code above, described in the text beside it', *parts]))

class alt_texts(Processor):
    "Every picture that a cell puts out gets words."
    def cell(self, cell):
        if cell.cell_type != 'code' or 'fig-alt:' in cell.source: return
        if any('image/png' in o.get('data', {}) for o in cell.outputs):
            cell.source = f'#| fig-alt: "{alt_text(cell.source)}"\n{cell.source}'

class from_site(Processor):
    "Paths as the site has them: images/ lies beside the pages, all else outside of nbs/ is in the repository."
    def begin(self):
        cfg, page = settings(), page_of(self.nb)
        self.host = re.escape(f"{cfg['doc_host']}{cfg['doc_baseurl']}/")
        self.web = f"{cfg['git_url']}/blob/{cfg['branch']}/"
        self.folder = posixpath.dirname(page.stem) if page else ''
        self.stems = {re.sub(r'(^|/)\d\d_', r'\1', o.stem): o.stem for o in pages()} # nbdev leaves out the numbers
    def fix(self, text):
        text = re.sub(r'\[\[(`[^`]+`)\]\([^)]*\)\]\(([^)]+)\)', r'[\1](\2)', text) # nbdev links names in links, too
        text = re.sub(rf'\[`([^`]+?)(\(\))?`\]\({self.host}([\w/]+)\.html#([^)]+)\)', self.to_reference, text)
        text = re.sub(r'''(\]\(|(?:src|href)=["'])(\.\./[^)"'\s]*)''', self.to_place, text)
        # Alone on its line a picture would get its words as a caption, too; they are for who does not see it.
        return re.sub(r'(?m)^!\[([^\]]+)\]\(([^)\s]+)\)$', lambda m: f'![]({m[2]}){{fig-alt="{m[1]}"}}', text)
    def to_place(self, m):
        "A path from the notebook's folder, as the site has it."
        path = posixpath.normpath(posixpath.join(self.folder, m[2])) + '/'*m[2].endswith('/')
        if not path.startswith('../'): return m[0] # another page
        path = path.removeprefix('../')
        return m[1] + (posixpath.relpath(path, self.folder or '.') if path.startswith('images/') else self.web + path)
    def to_reference(self, m):
        "A link from a name in backticks to the entry of that name; nbdev's anchors do not tell `Slope` from `slope`."
        text, call, name, anchor = m.groups()
        said = f"`{text}{call or ''}`"
        if text.split('.')[-1][0] == '_' or anchor[0] == '_': return said # what is not public has no entry
        entry = text[-len(anchor):].split('.')[0] # a method stands with its class
        return f"[{said}]({posixpath.relpath(self.stems[name], self.folder or '.')}.ipynb#ref-{entry})"
    def cell(self, cell):
        if cell.cell_type == 'markdown': cell.source = self.fix(cell.source)
        for data in (o.get('data', {}) for o in cell.get('outputs', ())):
            if 'text/markdown' in data: data['text/markdown'] = self.fix(''.join(data['text/markdown']))

# What `settings.ini` could say to nbdev as well; it does not, so that nbdev's own commands need no folder of ours.
procs = front_matter, drop_setup, reference_last, fold, alt_texts, from_site
options = dict(renderer='site_cells.Reference', skip_procs='FrontmatterProc,rm_export',
               procs=' '.join(f'site_cells:{o.__name__}' for o in procs))
