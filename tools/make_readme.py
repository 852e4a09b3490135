"Make README.md from nbs/index.ipynb: nbdev's processing of cells and nbconvert's Markdown. Quarto is not needed."
import re
from pathlib import Path
from posixpath import normpath

import nbformat
from execnb.nbio import nb2str
from fastcore.script import call_parse
from nbconvert import MarkdownExporter
from nbdev.process import NBProcessor
from nbdev.processors import (clean_magics, filter_stream_, hide_, hide_line, insert_warning, rm_export,
                              rm_header_dash, strip_ansi)

root = Path(__file__).resolve().parent.parent
# Not among them: what turns the title into front matter, and links to a site that may not be there.
procs = [insert_warning, strip_ansi, hide_line, filter_stream_, rm_header_dash, rm_export, clean_magics, hide_]

def from_root(md, folder='nbs'):
    "Links of a Markdown text in `folder`, as seen from the top: ../images/x.svg is images/x.svg, a.ipynb nbs/a.ipynb."
    def fix(m): return m[1] + normpath(f'{folder}/{m[2]}')
    return re.sub(r'''(\]\(|(?:src|href)=["'])(?![a-z]+:|[#/])([^)"'\s]+)''', fix, md)

def check(cell):
    "Refuse what a README of one file cannot show."
    if (m := re.search(r'^#\|.*', cell.source, re.MULTILINE)):
        raise ValueError(f'make readme does not know the directive {m[0]!r}')
    for o in cell.get('outputs', ()):
        if any(k.startswith('image/') for k in o.get('data', {})):
            raise ValueError(f'a cell of the README puts out a picture; draw it in images/ instead:\n{cell.source}')
        if o.output_type == 'error': raise ValueError(f'a cell of the README ends in an error:\n{cell.source}')

def readme(path=root/'nbs'/'index.ipynb'):
    "Text of README.md."
    proc = NBProcessor(path, procs=procs, process=True)
    nb = nbformat.reads(nb2str(proc.nb), as_version=4)
    nb.metadata.language_info = {'name': 'python'} # what the fences of code are marked with
    for cell in nb.cells:
        if cell.cell_type == 'code': check(cell)
        if cell.cell_type == 'markdown': cell.source = from_root(cell.source)
    md, _ = MarkdownExporter().from_notebook_node(nb)
    md = re.sub(r'(?m)^[ \t]+$', '', md)
    return re.sub(r'\n{3,}', '\n\n', md).strip() + '\n'

@call_parse
def main():
    "Write README.md from nbs/index.ipynb."
    (root/'README.md').write_text(readme(), encoding='utf-8')
    print('README.md is made from nbs/index.ipynb')
