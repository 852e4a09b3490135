"Which functions of the package are on the way back, by rule, and which mutants there are of them."
import ast, re
from collections import Counter
from dataclasses import dataclass
from hashlib import sha1
from pathlib import Path

import parso
from cosmic_ray.ast import ast_nodes
from cosmic_ray.mutating import mutate_code
from cosmic_ray.work_item import MutationSpec, WorkItem

from .operators import GRADIENT, all_operators, code, inner, leaves, parameters, parents

CELL = re.compile(r'(?m)^# %% (\S+\.ipynb) #(\w+)\n')

@dataclass(frozen=True)
class Cell:
    "An exported cell as it stands in a module."
    module: str # Name of the module, without the package
    notebook: str # Path of the notebook, seen from the module
    id: str # Of the cell in the notebook
    line: int # Of its first line in the module, counted from 1
    source: str

def split_cells(path):
    "The exported cells of a module, first to last; before them, as a cell without a notebook, what nbdev has written."
    text = path.read_text(encoding='utf-8')
    marks = list(CELL.finditer(text))
    if marks: yield Cell(path.stem, '', '', 1, text[:marks[0].start()])
    for m,end in zip(marks, [o.start() for o in marks[1:]] + [len(text)]):
        yield Cell(path.stem, m[1], m[2], text.count('\n', 0, m.end()) + 1, text[m.end():end])

def modules(folder): return sorted(p for p in Path(folder).glob('*.py') if p.name[0] != '_')

def package_imports(path):
    "The modules of the package that a file imports by name."
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import): yield from (a.name[8:] for a in node.names if a.name.startswith('fb_pass.'))
        if isinstance(node, ast.ImportFrom):
            if node.level: yield node.module
            elif (node.module or '').startswith('fb_pass.'): yield node.module[8:]
            elif node.module == 'fb_pass': yield from (a.name for a in node.names)

def imported(folder, names):
    "The modules `names` and what they import of the package, and what that imports."
    found = list(dict.fromkeys(names))
    for o in found: # grows while we walk
        if (path := Path(folder)/f'{o}.py').exists(): found += [n for n in dict.fromkeys(package_imports(path)) if n not in found]
    return set(found)

class Fn:
    "A function of a cell, with what the rules ask about it."
    def __init__(self, cell, node):
        self.cell, self.node, self.name = cell, node, node.name.value
        ups = [o for o in parents(node) if o.type in ('funcdef', 'classdef')]
        self.qualname = '.'.join(o.name.value for o in reversed(ups))
        self.parent = ups[1] if len(ups) > 1 else None
        self.inner = list(inner(node))
        own = [l for l in leaves(node) if next(o for o in parents(l) if o.type == 'funcdef') is node]
        self.calls = {l.value for l in own if l.type == 'name' and l.get_next_leaf() == '(' and l.get_previous_leaf() != 'def'}
        attributes = [l for l in own if l.type == 'name' and l.value in ('g', 'gradient') and l.get_previous_leaf() == '.']
        self.touches, self.stores = bool(attributes), any(l.get_next_leaf() == '=' for l in attributes)
        self.says = any(re.search(r'(?m)^\s*# (forward|backward)\b', l.prefix) for l in own)
        self.abstract = any('abstractmethod' in code(o) for o in parents(node) if o.type == 'decorated')

    @property
    def first_line(self):
        "Of its decorators, if it has any, in the module; this is where Python says that it begins."
        up = self.node.parent
        return self.cell.line - 1 + (up if up.type == 'decorated' else self.node).start_pos[0]

    def on_the_way_back(self):
        "Named so, or an optimizer's step along gradients, or its forward stands in a comment, or it adds gradients."
        return (self.name in ('backward', 'bwd') or self.name == 'update' and self.touches or self.says
                or self.name.endswith('_grad') and 'add_grad' in self.calls) and not self.abstract

    def helps(self):
        "It stores a gradient, or has one in its name or among its arguments. Asked only of what those on the way back call."
        return self.stores or bool(re.search('upstream|grad', self.name)) or any(map(GRADIENT.search, parameters(self.node)))

def functions(folder):
    "Every function of the package that is on the way back, helps there, or keeps what is needed there; in order, by (module, name)."
    sees = {p.stem: imported(folder, [p.stem]) for p in modules(folder)}
    every = [Fn(c, n) for p in modules(folder) for c in split_cells(p) for n in ast_nodes(parso.parse(c.source)) if n.type == 'funcdef']
    found = [f for f in every if f.on_the_way_back()]
    for f in found: # grows while we walk
        found += [o for o in every if o.name in f.calls and o.cell.module in sees[f.cell.module] and o not in found and o.helps() and not o.abstract]
    nodes, classes = {id(f.node) for f in found}, {id(f.parent) for f in found if f.name in ('backward', 'bwd')}
    def keeps(o): return any(id(i) in nodes for i in o.inner) or 'save_for_backward' in o.calls or o.name == '__call__' and id(o.parent) in classes
    found += [o for o in every if o not in found and keeps(o)]
    return sorted(found, key=lambda f: (f.cell.module, f.first_line))

def may_change(node, fn):
    "Whether `node` is code in the body of `fn` itself: no signature, no docstring, no function inside, no message of an error."
    for o in parents(node):
        if o is fn.node: return False
        if o.type in ('raise_stmt', 'fstring', 'string', 'strings', 'decorator', 'parameters') or o.type == 'funcdef': return False
        if o.parent is fn.node: return o is fn.node.children[-1] and node is not o
    return False

def normal(source):
    "What Python makes of a piece of code; None if it cannot read it."
    try:
        compile(source, '', 'exec')
        return ast.dump(ast.parse(source))
    except (SyntaxError, ValueError): return None

@dataclass(eq=False)
class Mutant:
    "A fault in a function."
    item: WorkItem # What Cosmic Ray keeps: path of the module, operator, arguments, occurrence
    cell: Cell
    function: str # Its name, with those of what it stands in
    first_line: int # Of the function, in the module
    new: str # Source of the cell with the fault

    @property
    def module(self): return self.cell.module
    @property
    def operator(self): return self.item.mutations[0].operator_name.partition('/')[2]
    @property
    def change(self): return changed_lines(self.cell.source, self.new)

def changed_lines(old, new):
    "The lines that differ, without what surrounds them: (before, after)."
    a, b = ([o.strip() for o in s.splitlines()] for s in (old, new))
    while a and b and a[0] == b[0]: del a[0], b[0]
    while a and b and a[-1] == b[-1]: del a[-1], b[-1]
    return '\n'.join(a), '\n'.join(b)

def mutants(folder, salt=''):
    "Every mutant of the functions on the way back; those that do not parse, or read the same to Python as another one, are left out."
    by_cell = {}
    for f in functions(folder): by_cell.setdefault(f.cell, []).append(f)
    for path in modules(folder):
        seen, count = set(), Counter()
        for cell in split_cells(path):
            fns = by_cell.get(cell, [])
            nodes = list(ast_nodes(fns[0].node.get_root_node() if fns else parso.parse(cell.source)))
            seen.add(normal(cell.source))
            for name, args, op in all_operators():
                key, here = (name, *args.values()), 0
                for node in nodes:
                    fn = next((f for f in fns if may_change(node, f)), None)
                    for start, end in op.mutation_positions(node):
                        occurrence, here = here, here + 1
                        if fn is None: continue
                        new = mutate_code(cell.source, op, occurrence)
                        if (same := normal(new)) is None or same in seen: continue
                        seen.add(same)
                        # Cosmic Ray counts places in the whole module, where we did so in the cell
                        start, end = ((line + cell.line - 1, column) for line,column in (start, end))
                        spec = MutationSpec(path, name, count[key] + occurrence, start, end, args, fn.qualname)
                        job = sha1(f'{salt}\n{path.name}\n{cell.id}\n{new}'.encode()).hexdigest()
                        yield Mutant(WorkItem.single(job, spec), cell, fn.qualname, fn.first_line, new)
                count[key] += here
