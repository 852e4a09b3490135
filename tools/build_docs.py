"Build the site into _docs: by Quarto where it is installed, else by smalldocs, from the same sources and settings."
import html, os, re, shutil, sys, warnings
from importlib import import_module
from pathlib import Path

from fastcore.script import call_parse
from fb_pass._modidx import d as modidx
from latex2mathml.converter import convert
from nbdev.config import get_config
from nbdev.quarto import nbdev_docs, refresh_quarto_yml
from nbdev.serve import proc_nbs

from book import root
from site_cells import options

def complete_index():
    "nbdev passes over a notebook with `auto` in its name, as in 07_autograd, when it lists what is where; add that."
    for module,names in modidx['syms'].items():
        if names: continue
        path = '/'.join(module.split('.')[1:])
        public = import_module(module).__all__
        names.update({f'{module}.{o}': (f'{path}.html#{o.lower()}', f'fb_pass/{path}.py') for o in public})

def prepare(cfg):
    "Empty the folder of processed notebooks and put the pictures there: they lie beside the pages on the site."
    shutil.rmtree(root/'_proc', ignore_errors=True)
    shutil.copytree(root/'images', root/'_proc'/'images')
    cfg.d.update(options)
    complete_index()
    warnings.filterwarnings('ignore', 'Found cells containing imports and other code')

def with_quarto():
    "By Quarto. README.md, which nbdev writes only if the index is newer, is left to `make readme`."
    os.utime(root/'README.md')
    nbdev_docs.__wrapped__(n_workers=0)

def with_smalldocs():
    "By smalldocs; the way of nbdev up to there."
    if not shutil.which('smalldocs', path=str(Path(sys.executable).parent)):
        sys.exit('make docs: neither quarto nor smalldocs is installed; smalldocs needs Python 3.11 or newer: '
                 'make distclean docs PYTHON=python3.11')
    from smalldocs.cli import main
    refresh_quarto_yml()
    cache = proc_nbs(n_workers=0)
    if main(['render', str(cache)]): sys.exit('make docs: smalldocs failed, see above')
    without_fonts(cache/'_docs')
    with_mathml(cache/'_docs')
    shutil.rmtree(root/'_docs', ignore_errors=True)
    shutil.move(cache/'_docs', root/'_docs')

def rewrite(site, files, mend):
    "Put `mend(text)` in the place of the text of each of these files."
    for p in site.glob(files):
        text = p.read_text(encoding='utf-8')
        if (mended := mend(text)) != text: p.write_text(mended, encoding='utf-8')

def without_fonts(site):
    "The themes fetch their fonts from a third party at each visit. The reader's own fonts do as well."
    rewrite(site, 'site_libs/**/*.css', lambda text: re.sub(r'@import url\(https:[^)]*\);?', '', text))

MATH = re.compile(r'<span class="(math (inline|display))">\\[(\[](.*?)\\[)\]]</span>', re.DOTALL)
KATEX = re.compile(r'<link[^>]*/katex[^>]*>|<script[^>]*/katex@[^>]*></script>')

def with_mathml(site):
    "Formulas as MathML, as Quarto writes them for us, too: browsers typeset it without a script, and without the net."
    def formula(m):
        made = convert(html.unescape(m[3]), display='block' if m[2] == 'display' else 'inline')
        return f'<span class="{m[1]}">{made}</span>'.replace(r'\_', '_')
    rewrite(site, '**/*.html', lambda text: KATEX.sub('', MATH.sub(formula, text)))

@call_parse
def main():
    "Build the site into _docs."
    os.chdir(root)
    prepare(get_config())
    with_quarto() if shutil.which('quarto') else with_smalldocs()
    print('The site is in _docs/; make docs-serve shows it')
