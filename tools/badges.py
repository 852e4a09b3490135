"""Write into each notebook, under its question, the badges of Colab and Binder and the line that says what comes before and after it,
and into its first code cell what installs the package on Colab. Notebooks that are in order stay as they are, to the byte."""
import json, re
from pathlib import Path

from book import hosts, install_lines, opening_line, pages, root, settings
from fastcore.script import Param, call_parse

svg = '''<svg xmlns="http://www.w3.org/2000/svg" width="{w}" height="20" viewBox="0 0 {w} 20" role="img">
<title>{text}</title>
<rect width="{w}" height="20" rx="3" fill="{color}"/>
<text x="{x}" y="14" text-anchor="middle" font-family="DejaVu Sans, Verdana, sans-serif" font-size="11" fill="#fff">{text}</text>
</svg>
'''

def badge(text, color):
    "The picture of one badge."
    w = round(6.9*len(text)) + 14
    return svg.format(w=w, x=w/2, text=text, color=color)

def with_opening(text, stem):
    "A text with the opening line under its title and question; one that has been there is replaced."
    line = r'\[!\[Open in Colab\]\(.*\n*'
    head = re.compile(rf'^(# .+\n+(?:>.*\n)+)\n*(?:{line})?', re.MULTILINE)
    if not head.search(text + '\n'): raise ValueError(f'{stem}: no title with a question as a quote under it')
    return head.sub(lambda m: f'{m[1]}\n{opening_line(stem)}\n\n', text + '\n', count=1).removesuffix('\n').rstrip('\n') + ending(text)

def ending(text): return text[len(text.rstrip('\n')):]

ours = r"# On Colab: .*\nif 'google\.colab' in .*\n    .*"

def with_install(text):
    "A cell that begins with the directive `default_exp` or `hide`, with what installs the package on Colab after it."
    text = re.sub(rf'\n{ours}', '', text)
    return re.sub(r'^(#\| (?:default_exp \w+|hide))$', lambda m: f'{m[1]}\n{install_lines()}', text, count=1, flags=re.MULTILINE)

def to_lines(text): return text.splitlines(keepends=True)

def refresh_notebook(nb, stem):
    "Change the notebook `nb`, as read from JSON, in place. Outputs and numbers of execution stay: off Colab the new lines do and put out nothing."
    cells = nb['cells']
    first = next((c for c in cells if c['cell_type'] == 'markdown' and re.search(r'^# ', ''.join(c['source']), re.MULTILINE)), None)
    if not first: raise ValueError(f'{stem}: no title')
    first['source'] = to_lines(with_opening(''.join(first['source']), stem))
    code = [c for c in cells if c['cell_type'] == 'code']
    setup = next((c for c in code if re.match(r'#\| (default_exp|hide)\b', ''.join(c['source']))), None)
    if setup is None: setup = insert_setup(cells, cells.index(first) + 1)
    setup['source'] = to_lines(with_install(''.join(setup['source'])))

def insert_setup(cells, at):
    "A hidden cell for a notebook that exports nothing. The numbers of the cells after it go up by one, as if it had been run."
    run = [c for c in cells if c['cell_type'] == 'code' and c['execution_count']]
    for o in (o for c in run for o in (c, *c['outputs']) if o.get('execution_count')): o['execution_count'] += 1
    cell = dict(cell_type='code', execution_count=1 if run else None, id='a0b1c2d3', metadata={}, outputs=[], source=['#| hide'])
    cells.insert(at, cell)
    return cell

def refresh(path):
    "Refresh one file, a notebook or a source of one in Markdown; says whether it has changed."
    old = path.read_text(encoding='utf-8')
    if path.suffix == '.md': new = with_install(with_opening(old, path.stem))
    else:
        nb = json.loads(old)
        refresh_notebook(nb, path.stem)
        new = json.dumps(nb, ensure_ascii=False, indent=1, sort_keys=False) + '\n'
        if json.loads(old) == nb: new = old
    if new != old: path.write_text(new, encoding='utf-8')
    return new != old

def write_images(folder):
    "Draw the badges."
    for (image,_),(text,color) in zip(hosts.values(), {'Open in Colab': '#8a4b00', 'Open in Binder': '#2a5d84'}.items()):
        (folder/image).write_text(badge(text, color), encoding='utf-8')

@call_parse
def main(
    sources:Param('Folder with other sources of the notebooks, NN_name.md or NN_name.ipynb; the notebooks by default', str, nargs='?')=None,
):
    "Write the badges, the place in the book and the installation on Colab into the notebooks."
    nbs = root/settings()['nbs_path']
    folder = Path(sources) if sources else nbs
    known = [folder/f'{o.stem}{ending}' for o in pages() for ending in ('.ipynb', '.md')]
    if not (found := [p for p in known if p.is_file()]): raise SystemExit(f'badges: no page of nbs/sidebar.yml is in {folder}')
    write_images(nbs)
    changed = [p.name for p in found if refresh(p)]
    print(f"{len(changed)} of {len(found)} changed{': ' if changed else ''}{', '.join(changed)}")
