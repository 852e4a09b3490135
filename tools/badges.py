"""Write into each notebook, under its question, the badges of Colab and Binder and the line that says what comes before
and after it, and into the cell below, which the site does not show, what installs the package on Colab; into the index,
the tables of contents. Notebooks in order stay as they are, to the byte."""
import json, re
from pathlib import Path

from anybadge import Badge
from book import hosts, install_lines, lesson_table, opening_line, pages, root, settings, tools_table
from fastcore.script import Param, call_parse

def with_opening(text, stem):
    "A text with the opening line under its title and question; one that has been there is replaced."
    head = re.compile(r'^(# .+\n+(?:>.*\n)+)\n*(?:\[!\[Open in Colab\]\(.*\n*)?', re.MULTILINE)
    if not head.search(text + '\n'): raise ValueError(f'{stem}: no title with a question as a quote under it')
    new = head.sub(lambda m: f'{m[1]}\n{opening_line(stem)}\n\n', text + '\n', count=1)
    return new.rstrip('\n') + ending(text)

def ending(text): return text[len(text.rstrip('\n')):]

ours = r"# On Colab: .*\nif 'google\.colab' in .*(?:\n    .*)+"

def with_install(text, stem):
    "A cell that begins with the directive `default_exp` or `hide`, with what installs the package on Colab after it."
    text = re.sub(rf'\n{ours}', '', text)
    directive = re.compile(r'^(#\| (?:default_exp [\w.]+|hide))$', re.MULTILINE)
    return directive.sub(lambda m: f'{m[1]}\n{install_lines(stem)}', text, count=1)

def to_lines(text): return text.splitlines(keepends=True)

def refresh_notebook(nb, stem):
    "Change the notebook `nb`, as read from JSON, in place. Outputs stay: off Colab the new lines do nothing."
    cells = nb['cells']
    def find(kind, pattern):
        return next((c for c in cells if c['cell_type'] == kind and re.search(pattern, ''.join(c['source']))), None)
    if not (first := find('markdown', '(?m)^# ')): raise ValueError(f'{stem}: no title')
    if stem == 'index':
        for c in cells:
            if c['cell_type'] == 'markdown': c['source'] = to_lines(with_tables(''.join(c['source'])))
    first['source'] = to_lines(with_opening(''.join(first['source']), stem))
    setup = find('code', r'\A#\| (default_exp|hide)\b') or insert_setup(cells, cells.index(first) + 1)
    for c in (setup, first): cells.insert(0, cells.pop(cells.index(c))) # a page opens on its title
    setup['source'] = to_lines(with_install(''.join(setup['source']), stem))

def with_tables(text):
    "A text with the tables of the index, where it has them, as the notebooks are now."
    for first, table in (('room', lesson_table), ('tool', tools_table)):
        text = re.sub(rf'^\| {first} \| its question \|.*(?:\n\|.*)*', lambda m: table(), text, flags=re.MULTILINE)
    return text

def insert_setup(cells, at):
    "A hidden cell for a notebook that exports nothing. The numbers of cells after it go up, as if it had been run."
    run = [c for c in cells if c['cell_type'] == 'code' and c['execution_count']]
    for o in (o for c in run for o in (c, *c['outputs']) if o.get('execution_count')): o['execution_count'] += 1
    cell = dict(cell_type='code', execution_count=1 if run else None, id='a0b1c2d3', metadata={}, outputs=[],
                source=['#| hide'])
    cells.insert(at, cell)
    return cell

def refresh(path, stem):
    "Refresh the page `stem` in a file, a notebook or a source of one in Markdown; says whether it has changed."
    old = path.read_text(encoding='utf-8')
    if path.suffix == '.md': new = with_install(with_opening(old, stem), stem)
    else:
        nb = json.loads(old)
        refresh_notebook(nb, stem)
        new = json.dumps(nb, ensure_ascii=False, indent=1, sort_keys=False) + '\n'
        if json.loads(old) == nb: new = old
    if new != old: path.write_text(new, encoding='utf-8')
    return new != old

def write_images(folder):
    "Draw the badges: pictures of our own, so that no page asks a third party for one."
    for (alt,(image,_)), color in zip(hosts.items(), ('#8a4b00', '#2a5d84')):
        label, value = alt.rsplit(' ', 1)
        Badge(label, value, default_color=color).write_badge(folder/image, overwrite=True)

@call_parse
def main(
    sources:Param('Folder with other sources of the notebooks, as .md or .ipynb; nbs by default', str, nargs='?')=None,
):
    "Write badges, the place in the book, the installation on Colab and the table of contents into the notebooks."
    nbs = root/settings()['nbs_path']
    folder = Path(sources) if sources else nbs
    known = {folder/f'{o.stem}{ending}': o.stem for o in pages() for ending in ('.ipynb', '.md')}
    if not (found := {p: stem for p,stem in known.items() if p.is_file()}):
        raise SystemExit(f'badges: no page of nbs/sidebar.yml is in {folder}')
    write_images(nbs)
    # The index comes last: its table counts the lines of the others.
    changed = [stem for p,stem in sorted(found.items(), key=lambda o: o[1] == 'index') if refresh(p, stem)]
    print(f"{len(changed)} of {len(found)} changed{': ' if changed else ''}{', '.join(changed)}")
