"Which functions of the package belong to the backward pass, by rule, and which mutants there are of them."
import ast, os, re
from collections import Counter
from dataclasses import dataclass
from hashlib import sha1
from pathlib import Path

import parso
from cosmic_ray.ast import ast_nodes
from cosmic_ray.mutating import mutate_code
from cosmic_ray.work_item import MutationSpec, WorkItem

from .operators import GRADIENT, all_operators, arguments, callee, code, inner, leaves, parameters, parents
from .operators import plain_call

CELL = re.compile(r'(?m)^# %% (\S+\.ipynb) #(\w+)\n')

@dataclass(frozen=True)
class Cell:
    "An exported cell as it stands in a module."
    module: str # Name of the module, without the package, as in doctor.report
    notebook: str # Path of the notebook, seen from the module
    id: str # Of the cell in the notebook
    line: int # Of its first line in the module, counted from 1
    source: str

def module_name(path, folder):
    "Name of a file of the package in `folder`, as in doctor.report."
    return str(Path(path).relative_to(folder).with_suffix('')).replace(os.sep, '.')

def split_cells(path, module):
    "The exported cells of a module, first to last; before them, as a cell without a notebook, what nbdev has written."
    text = path.read_text(encoding='utf-8')
    marks = list(CELL.finditer(text))
    if marks: yield Cell(module, '', '', 1, text[:marks[0].start()])
    for m,end in zip(marks, [o.start() for o in marks[1:]] + [len(text)]):
        yield Cell(module, m[1], m[2], text.count('\n', 0, m.end()) + 1, text[m.end():end])

def modules(folder):
    "The modules of the package in `folder` by their names, as in doctor.report."
    return {module_name(p, folder): p for p in sorted(Path(folder).glob('**/*.py')) if p.name[0] != '_'}

def package_imports(path, module=None):
    "The modules of the package that a file imports, and the names that may be modules; `module` is its own, if any."
    here = (module or '').split('.')
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import): found = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ['fb_pass', *here[:-node.level]] if node.level else []
            base = '.'.join([*base, *filter(None, [node.module])])
            found = [base, *(f'{base}.{a.name}' for a in node.names)]
        else: continue
        yield from (o[8:] for o in found if o.startswith('fb_pass.'))

def imported(folder, names):
    "The modules `names` and what they import of the package, and what that imports."
    found = list(dict.fromkeys(names))
    for o in found: # grows while we walk
        for name in (o, f'{o}.__init__'):
            path = Path(folder, *name.split('.')).with_suffix('.py')
            if path.is_file(): found += [n for n in dict.fromkeys(package_imports(path, name)) if n not in found]
    return set(found)

def backward_of_rules(tree):
    "What is given to a `Rule` as its backward: the lambda, by the name of what the rule is assigned to, or a name."
    for node in ast_nodes(tree):
        if not (plain_call(node) and callee(node) == 'Rule'): continue
        args = arguments(node)
        named = [o.children[2] for o in args if o.type == 'argument' and code(o.children[0]) == 'backward']
        for o in named or [o for o in args[1:2] if o.type != 'argument']:
            target = next((code(up.children[0]) for up in parents(node) if up.type == 'expr_stmt'), 'Rule')
            yield o, f'{target}.backward' if o.type == 'lambdef' else code(o)

class Fn:
    "A function of a cell, with what the rules ask about it."
    def __init__(self, cell, node, name=None):
        self.cell, self.node, self.name = cell, node, name or node.name.value
        ups = [o for o in parents(node.parent) if o.type in ('funcdef', 'classdef')]
        self.qualname = '.'.join([*(o.name.value for o in reversed(ups)), self.name])
        self.parent = ups[0] if ups else None
        self.inner = list(inner(node))
        own = [l for l in leaves(node) if next(o for o in parents(l) if o.type == node.type) is node]
        names = [l for l in own if l.type == 'name']
        self.calls = {l.value for l in names if l.get_next_leaf() == '(' and l.get_previous_leaf() != 'def'}
        attributes = [l for l in names if l.value in ('g', 'gradient') and l.get_previous_leaf() == '.']
        self.touches, self.stores = bool(attributes), any(l.get_next_leaf() == '=' for l in attributes)
        self.says = any(re.search(r'(?m)^\s*# (forward|backward)\b', l.prefix) for l in own)
        self.abstract = any('abstractmethod' in code(o) for o in parents(node) if o.type == 'decorated')
        self.of_a_rule = node.type == 'lambdef'

    @property
    def first_line(self):
        "Of its decorators, if it has any, in the module; this is where Python says that it begins."
        up = self.node.parent
        return self.cell.line - 1 + (up if up.type == 'decorated' else self.node).start_pos[0]

    def goes_back(self):
        "Named so, or of a rule, or an optimizer's step, or its forward stands in a comment, or it adds gradients."
        adds = self.name.endswith('_grad') and self.calls & {'add_grad', 'add_grads'}
        return not self.abstract and bool(self.name in ('backward', 'bwd') or self.of_a_rule or self.says or adds
                                          or self.name == 'update' and self.touches)

    def helps(self):
        "It stores a gradient, or has one in its name or among its arguments; asked of what backward functions call."
        takes = any(map(GRADIENT.search, parameters(self.node)))
        return self.stores or takes or bool(re.search('upstream|grad', self.name))

def functions(folder):
    "Every function of the package that is a backward, helps one, or keeps what one needs; by module, then by line."
    sees, every, given = {k: imported(folder, [k]) for k in modules(folder)}, [], []
    for k,p in modules(folder).items():
        for cell in split_cells(p, k):
            tree = parso.parse(cell.source)
            every += [Fn(cell, n) for n in ast_nodes(tree) if n.type == 'funcdef']
            rules = list(backward_of_rules(tree))
            every += [Fn(cell, o, name) for o,name in rules if o.type == 'lambdef']
            given += [(k, name.split('.')[-1]) for o,name in rules if o.type != 'lambdef']
    for f in every: f.of_a_rule |= any(f.name == name and f.cell.module in sees[k] for k,name in given)
    found = [f for f in every if f.goes_back()]
    for f in found: # grows while we walk
        found += [o for o in every if o.name in f.calls and o.cell.module in sees[f.cell.module] and o not in found
                  and o.helps() and not o.abstract]
    nodes, classes = {id(f.node) for f in found}, {id(f.parent) for f in found if f.name in ('backward', 'bwd')}
    def keeps(o):
        saves = 'save_for_backward' in o.calls or o.name == '__call__' and id(o.parent) in classes
        return saves or any(id(i) in nodes for i in o.inner)
    found += [o for o in every if o not in found and keeps(o)]
    return sorted(found, key=lambda f: (f.cell.module, f.first_line))

def may_change(node, fn):
    "Whether `node` is code in the body of `fn` itself: no signature, no docstring, no function inside, no message."
    for o in parents(node):
        if o is fn.node: return False
        if o.type in ('raise_stmt', 'fstring', 'string', 'strings', 'decorator', 'parameters', 'funcdef'): return False
        if o.parent is fn.node: return o is fn.node.children[-1] and (node is not o or fn.node.type == 'lambdef')
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
    def notebook(self): return self.item.mutations[0].module_path.parent/self.cell.notebook
    @property
    def change(self): return changed_lines(self.cell.source, self.new)

def changed_lines(old, new):
    "The lines that differ, without what surrounds them: (before, after)."
    a, b = ([o.strip() for o in s.splitlines()] for s in (old, new))
    while a and b and a[0] == b[0]: del a[0], b[0]
    while a and b and a[-1] == b[-1]: del a[-1], b[-1]
    return '\n'.join(a), '\n'.join(b)

def mutants(folder, salt=''):
    "Every mutant of these functions; those that do not parse, or read the same to Python as another one, are left out."
    by_cell = {}
    for f in functions(folder): by_cell.setdefault(f.cell, []).append(f)
    for module, path in modules(folder).items():
        seen, count = set(), Counter()
        for cell in split_cells(path, module):
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
                        job = sha1(f'{salt}\n{cell.module}\n{cell.id}\n{new}'.encode()).hexdigest()
                        yield Mutant(WorkItem.single(job, spec), cell, fn.qualname, fn.first_line, new)
                count[key] += here
