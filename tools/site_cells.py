"What happens to the cells of a notebook on its way to the site, besides what nbdev does: processors for it, in the order of `procs`."
import ast, re

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

class front_matter(Processor):
    "Title and question of the first Markdown cell become those of the page; the rest of the cell stays, unlike with nbdev's own."
    def begin(self):
        stem = re.sub(r'.*?([^/\\]+)\.ipynb$', r'\1', self.nb.path_)
        place = next((o for o in pages() if o.stem == stem), None)
        cell = next(c for c in self.nb.cells if c.cell_type == 'markdown' and re.search(r'^# ', c.source, re.MULTILINE))
        m = re.search(r'^# (?P<title>.+)\n+(?P<question>(?:>.*(?:\n|\Z))*)', cell.source + '\n', re.MULTILINE)
        question = ' '.join(l[1:].strip() for l in m['question'].splitlines())
        title = f"{place.room} · {m['title']}" if place and place.part else m['title']
        cell.source = (cell.source + '\n')[m.end():].strip()
        front = yaml.dump(dict(title=title, description=question), allow_unicode=True)
        self.nb.cells.remove(cell)
        self.nb.cells[:0] = [mk_cell(f'---\n{front}---', 'raw'), cell]

class drop_setup(Processor):
    "Cells that only tell nbdev something are not for readers. Unlike nbdev's `rm_export`, this keeps what is exported: it is what the page is about."
    def cell(self, cell):
        if cell.directives_ and cell.directives_.keys() & {'default_exp', 'hide'}: del cell['source']

class reference_last(Processor):
    "The reference of a page stands at its end, under a heading of its own, and is about what is public."
    def begin(self):
        entries = [c for c in self.nb.cells if c.get('has_sd')]
        self.nb.cells = [c for c in self.nb.cells if not c.get('has_sd')]
        public = [c for c in entries if 'show_doc(_' not in c.source]
        if public: self.nb.cells += [mk_cell('## Reference', 'markdown'), *public]

def labels(source):
    "What the code of a plot calls its axes, curves and titles."
    tree = ast.parse(re.sub(r'(?m)^\s*[%!].*$', '', source))
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call): continue
        name = getattr(node.func, 'attr', '').removeprefix('set_')
        if name in ('xlabel', 'ylabel', 'title') and node.args and isinstance(node.args[0], ast.Constant): yield name, str(node.args[0].value)
        for k in node.keywords:
            if k.arg in ('xlabel', 'ylabel', 'title', 'label') and isinstance(k.value, ast.Constant) and k.value.value: yield k.arg, str(k.value.value)

words = dict(title='titled', xlabel='to the right', ylabel='upward', label='with')

def alt_text(source):
    "Words for who cannot see a plot: what its code says of it. What it shows is said by the text beside it."
    found = {}
    for k,v in labels(source): found.setdefault(k, []).append(v)
    parts = [f"{word} {', '.join(dict.fromkeys(found[k]))}" for k,word in words.items() if k in found]
    kind = 'Pictures' if 'imshow' in source else 'Plot'
    return re.sub(r'["\\]', '', '; '.join([f'{kind} made by the code above, described in the text beside it', *parts]))

class alt_texts(Processor):
    "Every picture that a cell puts out gets words."
    def cell(self, cell):
        if cell.cell_type != 'code' or 'fig-alt:' in cell.source: return
        if any('image/png' in o.get('data', {}) for o in cell.outputs): cell.source = f'#| fig-alt: "{alt_text(cell.source)}"\n{cell.source}'

class from_site(Processor):
    "Pictures and links as the site has them: images/ is beside the pages, and a page of this book is linked by the name of its notebook."
    def begin(self):
        cfg = settings()
        self.host = re.escape(f"{cfg['doc_host']}{cfg['doc_baseurl']}/")
        self.stems = {o.name: o.stem for o in pages()}
        self.web = f"{cfg['git_url']}/blob/{cfg['branch']}/"
    def fix(self, text):
        text = re.sub(rf'\[`([^`]+?)(\(\))?`\]\({self.host}(\w+)\.html#([^)]+)\)', self.to_reference, text)
        text = re.sub(r'''(\]\(|(?:src|href)=["'])\.\./images/''', r'\1images/', text)
        # Alone on its line a picture would get its words as a caption, too; they are for who does not see it.
        text = re.sub(r'(?m)^!\[([^\]]+)\]\(([^)\s]+)\)$', lambda m: f'![]({m[2]}){{fig-alt="{m[1]}"}}', text)
        return re.sub(r'(\]\()\.\./', rf'\1{self.web}', text)
    def to_reference(self, m):
        "A link that nbdev has made from a name in backticks, to the entry of that name; nbdev's anchors do not tell `Slope` from `slope`."
        text, call, name, anchor = m.groups()
        if text.split('.')[-1][0] == '_' or anchor[0] == '_': return f"`{text}{call or ''}`" # what is not public has no entry
        return f"[`{text}{call or ''}`]({self.stems[name]}.ipynb#ref-{text[-len(anchor):]})"
    def cell(self, cell):
        if cell.cell_type == 'markdown': cell.source = self.fix(cell.source)
        for o in cell.get('outputs', ()):
            if 'text/markdown' in o.get('data', {}): o.data['text/markdown'] = self.fix(''.join(o.data['text/markdown']))

# What `settings.ini` could say to nbdev as well; it does not, so that nbdev's own commands need no folder of ours.
options = dict(renderer='site_cells.Reference', skip_procs='FrontmatterProc,rm_export',
               procs=' '.join(f'site_cells:{o.__name__}' for o in (front_matter, drop_setup, reference_last, alt_texts, from_site)))
