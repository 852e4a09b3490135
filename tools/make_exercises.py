"Write the notebooks without the solutions of their exercises, for a class."
import copy, os, re, sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
from fastcore.script import Param, call_parse

root = Path(__file__).resolve().parent.parent
folded = {'#| code-fold: true', '#| code-summary: "Solution"'}

def is_solution(cell):
    "Whether a cell is a folded solution, or the folded derivation that stands before it."
    if cell.cell_type == 'code': return folded <= set(cell.source.splitlines()[:3])
    return cell.source.startswith('<details><summary>Solution</summary>')

def is_check(cell): return cell.cell_type == 'code' and not is_solution(cell) and re.search(r"^check_exercise\('\d\d\.\d', \w+\)\s*\Z", cell.source, re.M)

def section(nb):
    "The cells from the heading Exercises to the next one."
    found, inside = [], False
    for cell in nb.cells:
        headings = re.findall(r'(?m)^## (.*?) *$', cell.source) if cell.cell_type == 'markdown' else []
        if headings: inside = headings[-1] == 'Exercises' # a cell may hold the end of the section before, too
        if inside: found.append(cell)
    return found

def read_exercises(nb):
    "What stands before the first exercise, and each exercise: title, code that is given, check and solution, as sources; the cells of the last two."
    before, found = [], []
    for cell in section(nb):
        title = re.search(r'^### Exercise (\d): (.+)', cell.source, re.M) if cell.cell_type == 'markdown' else None
        if title: found.append(SimpleNamespace(number=int(title[1]), title=title[2], given=[], checks=[], solutions=[]))
        elif cell.cell_type == 'code' and not found: before.append(cell.source)
        elif cell.cell_type == 'code': (found[-1].solutions if is_solution(cell) else found[-1].checks if is_check(cell) else found[-1].given).append(cell)
    return before, found

def fold(nb):
    "Fold the solutions and what is said about them in JupyterLab, too, as the site does."
    for cell in section(nb):
        if is_solution(cell) and cell.cell_type == 'code': cell.metadata.update(jupyter={'source_hidden': True, 'outputs_hidden': True})
    return nb

def for_class(nb):
    "A copy of a notebook without solutions, and without the outputs of its exercises; all else is as it was."
    nb = copy.deepcopy(nb)
    for cell in section(nb):
        if cell.cell_type == 'code': cell.outputs, cell.execution_count = [], None
    solutions = [id(o) for o in section(nb) if is_solution(o)]
    nb.cells = [o for o in nb.cells if id(o) not in solutions]
    nbformat.validate(nb)
    return nb

@call_parse
def main(
    names:Param('Notebooks to write, as in 05_backward or budgets; all by default', str, nargs='*'),
    out:str=str(root/'_exercises'), # Folder for the notebooks
):
    "Write the notebooks without solutions. Pictures, links and `exercises` are found from where they are written to."
    nbs = root/'nbs'
    paths = {p.stem: p for p in sorted([*nbs.glob('*.ipynb'), *nbs.glob('[!_.]*/*.ipynb')])}
    wanted, out = [Path(o).stem for o in names] or list(paths), Path(out)
    if (unknown := set(wanted) - paths.keys()): sys.exit(f"no notebook {', '.join(sorted(unknown))}; there are: {', '.join(paths)}")
    for name in wanted:
        to = out/paths[name].relative_to(nbs)
        to.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(for_class(nbformat.read(paths[name], as_version=4)), to)
    print(f'{len(wanted)} notebooks without solutions are in {os.path.relpath(out)}/')
