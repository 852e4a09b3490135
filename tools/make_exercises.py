"Write the notebooks without the solutions of their exercises, for a class: what nbconvert removes, by what marks them."
import copy, os, re
from pathlib import Path
from types import SimpleNamespace

import nbformat
from book import notebooks, root
from fastcore.script import Param, call_parse
from nbconvert.preprocessors import RegexRemovePreprocessor

# A folded solution, and the folded derivation that stands before it: the marks by which the site folds them, too.
solutions = [r'(?:#\|.*\n)*#\| code-summary: "Solution"', '<details><summary>Solution</summary>']

def is_solution(cell): return bool(re.match('|'.join(solutions), cell.source))

def is_check(cell):
    called = re.search(r"^check_exercise\('\d\d\.\d', \w+\)\s*\Z", cell.source, re.M)
    return cell.cell_type == 'code' and not is_solution(cell) and called

def section(nb):
    "The cells from the heading Exercises to the next one."
    found, inside = [], False
    for cell in nb.cells:
        headings = re.findall(r'(?m)^## (.*?) *$', cell.source) if cell.cell_type == 'markdown' else []
        if headings: inside = headings[-1] == 'Exercises' # a cell may hold the end of the section before, too
        if inside: found.append(cell)
    return found

def read_exercises(nb):
    "Sources before the first exercise, and each exercise: title, and cells that are given, that check, that solve."
    before, found = [], []
    for cell in section(nb):
        title = re.search(r'^### Exercise (\d): (.+)', cell.source, re.M) if cell.cell_type == 'markdown' else None
        if title:
            found.append(SimpleNamespace(number=int(title[1]), title=title[2], given=[], checks=[], solutions=[]))
        elif cell.cell_type == 'code' and not found: before.append(cell.source)
        elif cell.cell_type == 'code':
            e = found[-1]
            (e.solutions if is_solution(cell) else e.checks if is_check(cell) else e.given).append(cell)
    return before, found

def for_class(nb):
    "A copy of a notebook without solutions, and without the outputs of its exercises; all else is as it was."
    nb = copy.deepcopy(nb)
    for cell in section(nb):
        if cell.cell_type == 'code': cell.outputs, cell.execution_count = [], None
    nb, _ = RegexRemovePreprocessor(patterns=solutions).preprocess(nb, {})
    nbformat.validate(nb)
    return nb

@call_parse
def main(
    names:Param('Notebooks to write, as in 05_backward or budgets; all by default', str, nargs='*'),
    out:str=str(root/'_exercises'), # Folder for the notebooks
):
    "Write notebooks without the solutions of their exercises; pictures and links are found from there."
    paths = notebooks(names)
    for name, path in paths.items():
        (target := Path(out)/f'{name}.ipynb').parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(for_class(nbformat.read(path, as_version=4)), target)
    print(f'{len(paths)} notebooks without solutions are in {os.path.relpath(out)}/')
