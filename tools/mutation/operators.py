"Faults as they happen in backward code, as operators of Cosmic Ray: each changes one node of parso's syntax tree."
import re

from cosmic_ray import plugins
from cosmic_ray.operators.operator import Argument, Example, Operator
from parso.python.tree import Name

def code(node): return node.get_code(include_prefix=False)
def leaves(node): return [node] if not hasattr(node, 'children') else [l for c in node.children for l in leaves(c)]
def words(node): return [l.value for l in leaves(node) if l.type == 'name']
def parents(node):
    "`node`, what it stands in, what that stands in, and so on."
    while node is not None:
        yield node
        node = node.parent

def function(node): return next((o for o in parents(node.parent) if o.type in ('funcdef', 'lambdef')), None)
def parameters(f): return [p.name.value for p in f.get_params()]
def goes_forward(f): return f.type == 'funcdef' and f.name.value == 'forward'
def inner(f, node=None):
    "The functions defined in the body of `f`, not those inside of them."
    for c in getattr(node or f, 'children', ()):
        if c.type == 'funcdef': yield c
        else: yield from inner(f, c)

def plain_call(node):
    if node.type not in ('atom_expr', 'power') or node.children[-1].type != 'trailer': return False
    return node.children[-1].children[0] == '('
def callee(node): return call_of(node.children[-1].children[1])
def arguments(node):
    args = node.children[-1].children[1]
    return args.children[::2] if args.type == 'arglist' else [args][:args != ')']

SEVERAL = 'testlist', 'testlist_star_expr', 'testlist_comp'
def elements(node): return node.children[::2] if node.type in SEVERAL else [node]

def call_of(node):
    "What is called where `node` is an argument, or all of them, or the bracket after none: its name, '' if nothing is."
    trailer = node.parent if node.parent.type == 'trailer' else node.parent.parent
    if trailer is None or trailer.type != 'trailer' or trailer.children[0] != '(': return ''
    before = trailer.get_previous_sibling()
    if before is None: return ''
    if before.type == 'trailer' and before.children[0] == '.': return before.children[-1].value
    return getattr(before, 'value', '')

GRADIENT = re.compile(r'(^|Y|_)g$|grad')
# what these are given is looked at, not computed with
LOOKS = re.compile(r'_?check|clear|zero_|^(zip|len|tuple|range|enumerate|float|int|isinstance|getattr|hasattr|map|repr|'
                   r'type|reversed|zeros_like)$')
ARITHMETIC = ('term', 'arith_expr', 'factor')

def value(node):
    "Whether `node` is a gradient: a value that is assigned, returned or handed on, and computed or called a gradient."
    if node.type not in ('name', 'atom_expr', 'power', 'atom', *ARITHMETIC): return False
    if node.type == 'atom' and node.children[1].type == 'testlist_comp' and node.children[1].children[1] == ',':
        return False # several values
    up, target = node.parent, None
    if up is None: return False
    several = up.type in SEVERAL and up.children[1] == ','
    if several: up = up.parent
    if several and up.type == 'atom' and up.children[0] == '(': up = up.parent
    if up.type == 'expr_stmt' and node.start_pos > up.children[-2].start_pos:
        target = up.children[0]
        if len(elements(target)) > 1 and not several: return False # a function that returns several things
    elif up.type in ('trailer', 'arglist'):
        if not (name := call_of(node)) or LOOKS.search(name): return False
    elif up.type == 'lambdef': # what it returns, and no default of an argument
        if node.start_pos < up.children[-1].start_pos: return False
    elif up.type != 'return_stmt': return False
    named = words(node) + (words(target) if target else [])
    if node.type not in ARITHMETIC and not any(map(GRADIENT.search, named)): return False
    # a call that is looked at, or that is changed further in
    if plain_call(node) and (LOOKS.search(callee(node)) or any(map(value, arguments(node)))): return False
    f = function(node)
    return f is not None and not goes_forward(f) and not any(inner(f)) # what is computed there goes forward

class Fault(Operator):
    "An operator that puts other code in the place of a node; a subclass says which, in `faults`."
    @classmethod
    def faults(cls, node, **kwargs): "Yield the code of each fault that can be made at `node`."
    def found(self, node): return list(self.faults(node) or ())
    def mutation_positions(self, node): return [(node.start_pos, node.end_pos) for _ in self.found(node)]
    def mutate(self, node, index): return Name(self.found(node)[index], node.start_pos, node.get_first_leaf().prefix)
    @classmethod
    def examples(cls): return [Example(*o) for o in cls.EXAMPLES]

FACTORS = '2', '0.5', '1.001', '-1'

class Scale(Fault):
    "A gradient times a number; -1 turns its sign."
    EXAMPLES = [('def backward(g): return g', f'def backward(g): return {o}*(g)', 0, {'factor': o}) for o in FACTORS]
    def __init__(self, factor): self.factor = factor
    @classmethod
    def arguments(cls): return Argument('factor', 'What to multiply by, as Python code'),
    def found(self, node): return [f'{self.factor}*({code(node)})'] if value(node) else []

class ExtraSum(Fault):
    "A gradient summed over its first axis, though its shape stays."
    EXAMPLES = [('def f(): add_grad(t, g)', 'def f(): add_grad(t, (g).sum(0) + 0*(g))')]
    @classmethod
    def faults(cls, node):
        if value(node): yield f'({code(node)}).sum(0) + 0*({code(node)})'

class Transpose(Fault):
    "A factor of a matrix product transposed, or no longer."
    EXAMPLES = [('g @ w.t()', 'g.T @ w.t()'), ('g @ w.t()', 'g @ w', 1), ('x.T @ g', 'x @ g')]
    @classmethod
    def faults(cls, node):
        if node.parent is None or node.parent.type != 'term' or node.type == 'operator': return
        if '@' not in (node.get_previous_sibling(), node.get_next_sibling()): return
        old = code(node)
        new = re.sub(r'\.(t\(\)|T)$', '', old)
        yield new if new != old else f'{old}.T'

class SwapOperands(Fault):
    "The two sides of @, of - or of / in each other's place."
    EXAMPLES = [('a @ b', 'b @ a'), ('a - b - c', 'b - a - c'), ('2*a / n', '2*n / a')]
    @classmethod
    def faults(cls, node):
        if node.type not in ('term', 'arith_expr'): return
        for i in range(1, len(node.children), 2):
            op = node.children[i].value
            if op not in '@-/' or i > 1 and node.children[i-2].value == op != '@': continue # a - b - c is a - c - b
            parts = list(node.children)
            a, b = parts[i-1], parts[i+1]
            texts = [o.get_code() for o in parts]
            texts[0] = code(parts[0])
            texts[i-1], texts[i+1] = texts[i-1].replace(code(a), code(b)), texts[i+1].replace(code(b), code(a))
            yield ''.join(texts)

class DropOperand(Fault):
    "A factor, a divisor or a term left out: the 1/n, the 2, a mask that is multiplied by, what was there before."
    EXAMPLES = [('2*d / n', 'd / n'), ('2*d / n', '2*d', 2), ('a - b', '-b'), ('t + g', 't', 1)]
    @classmethod
    def faults(cls, node):
        if node.type not in ('term', 'arith_expr'): return
        first, *rest = node.children
        op = rest[0].value
        def joined(nodes): return ''.join(o.get_code() for o in nodes)
        if op not in ('/', '//', '%'): yield ('-' if op == '-' else '') + code(rest[1]) + joined(rest[2:])
        for i in range(0, len(rest), 2): yield code(first) + joined(rest[:i] + rest[i+2:])

NO_VALUES = 'torch', 'np', 'math', 'self', 'ctx', 'cls'

class DropMethod(Fault):
    "A step of a chain of methods left out: a sum, a transpose, a square root, a detach."
    EXAMPLES = [('y = g.sum(0)', 'y = g'), ('m.mul_(b).add_(g)', 'm.add_(g)'),
                ('y = torch.zeros(2).sqrt()', 'y = torch.zeros(2)')]
    @classmethod
    def faults(cls, node):
        if node.type != 'atom_expr': return
        base, *trailers = node.children
        alone = base.type == 'atom' or base.type == 'name' and base.value not in NO_VALUES
        deletes = node.parent.type == 'simple_stmt' and len(trailers) == 2 # the statement
        for i in range(len(trailers) - 1):
            if trailers[i].children[0] != '.' or trailers[i+1].children[0] != '(': continue
            if not i and (deletes or not alone): continue
            yield code(base) + ''.join(map(code, trailers[:i] + trailers[i+2:]))

class Reduction(Fault):
    "A mean for a sum, a sum for a mean."
    EXAMPLES = [('g.sum(0)', 'g.mean(0)'), ('d.mean()', 'd.sum()'), ('g.sum_to_size(s)', 'g.sum()')]
    @classmethod
    def faults(cls, node):
        if node.type != 'atom_expr': return
        swap = {'sum': 'mean', 'mean': 'sum'}
        for i,(a,b) in enumerate(zip(node.children[1:], node.children[2:]), 1):
            if a.children[0] != '.' or b.children[0] != '(': continue
            before, after = ''.join(map(code, node.children[:i])), ''.join(map(code, node.children[i+2:]))
            if (name := a.children[1].value) in swap: yield f'{before}.{swap[name]}{code(b)}{after}'
            elif name == 'sum_to_size': yield f'{before}.sum(){after}'

class Mask(Fault):
    "A mask left out, or inverted: a comparison in a product, a `where`, a sign."
    EXAMPLES = [('torch.where(x > 0, g, 0.)', '(g)'), ('torch.where(x > 0, g, 0.)', 'torch.where(x > 0, 0., g)', 1),
                ('g * x.sign()', 'g * (-x).sign()'), ('g*(x > 0)', 'g*1'), ('g*(x > 0)', 'g*(~(x > 0))', 1)]
    @classmethod
    def faults(cls, node):
        def joined(nodes): return ''.join(map(code, nodes))
        if node.type == 'atom' and node.parent.type == 'term' and node.children[1].type == 'comparison':
            yield '1'
            yield f'(~{code(node)})'
        if node.type in ('atom_expr', 'power'):
            for i,o in enumerate(node.children):
                if code(o) in ('.sign', '.sign_'): yield f'(-{joined(node.children[:i])}){joined(node.children[i:])}'
        if node.type != 'atom_expr' or not re.search(r'where$', code(node).partition('(')[0]): return
        args = arguments(node)
        if len(args) != 3: return
        yield f'({code(args[1])})'
        yield f'{joined(node.children[:-1])}({code(args[0])}, {code(args[2])}, {code(args[1])})'

class OtherTensor(Fault):
    "The next argument of the function where this one belongs; in a comparison, any other of them."
    EXAMPLES = [('def f(inp, out): return inp > 0', 'def f(inp, out): return out > 0'),
                ('def f(a, b, c): return a', 'def f(a, b, c): return b')]
    @classmethod
    def faults(cls, node):
        if node.type != 'name' or {o.type for o in (node, node.parent)} & {'param', 'parameters', 'argument'}: return
        before, f = node.get_previous_leaf(), function(node)
        if f is None or before == '.' or before == 'def' or node.get_next_leaf() == '=': return
        names = [o for o in parameters(f) if o not in ('self', 'cls', 'ctx', 'name')]
        if node.value not in names or len(names) < 2: return
        i = names.index(node.value)
        others = names[i+1:] + names[:i]
        yield from others if any(o.type == 'comparison' for o in parents(node)) else others[:1]

class Overwrite(Fault):
    "What should be added takes the place of what was there; of two cases only one is left."
    EXAMPLES = [('t.g = g if t.g is None else t.g + g', 't.g = g'), ('a if c else b', 'b', 1),
                ('g[i] -= 1', 'g[i] = 1'), ('m.add_(g)', 'm.copy_(g)')]
    @classmethod
    def faults(cls, node):
        if node.type == 'test' and node.children[1] == 'if':
            yield code(node.children[0])
            yield code(node.children[4])
        elif node.type == 'operator' and node.value in ('+=', '-=', '*=', '/='): yield '='
        elif node.type == 'name' and node.value in ('add_', 'sub_') and node.get_previous_leaf() == '.': yield 'copy_'

class Stale(Fault):
    "What is assigned is computed in the first call, and kept in all later ones."
    EXAMPLES = [('def forward(self, x): y = x > 0',
                 "def forward(self, x): y = self.__dict__.setdefault('_first_y', (x > 0))"),
                ('def f(): g = h()', "def f(): g = globals().setdefault('_first_g', (h()))")]
    @classmethod
    def faults(cls, node):
        up, f = node.parent, function(node)
        if f is None or node.type in ('keyword', 'number', 'string') or up.type != 'expr_stmt': return
        if len(up.children) != 3 or node is not up.children[2] or up.children[1] != '=': return
        has_self = any('self' in parameters(o) for o in parents(f) if o.type == 'funcdef')
        name = '_first_' + '_'.join(words(up.children[0]))
        yield f"{'self.__dict__' if has_self else 'globals()'}.setdefault({name!r}, ({code(node)}))"

class SwapArguments(Fault):
    "Two neighbours in a call, or in an index, in each other's place."
    EXAMPLES = [('f(a, b, c)', 'f(b, a, c)'), ('f(a, b, c)', 'f(a, c, b)', 1),
                ('x[:,0]', 'x[0,:]'), ('f(a, *b)', 'f(*b, a)')]
    @classmethod
    def faults(cls, node):
        if node.type not in ('arglist', 'subscriptlist'): return
        # Where the order does not matter.
        if node.type == 'arglist' and re.search('clear|zip|m(ax|in)imum', call_of(node.children[0])): return
        parts = [code(o) for o in node.children[::2]]
        for i in range(len(parts) - 1):
            # neither by name, nor what only a message is made of
            if any(re.match(r'\w+ *=(?!=)|f?[\'"]|self$', o) for o in parts[i:i+2]) or parts[i] == parts[i+1]: continue
            comma = ', ' if node.type == 'arglist' else ','
            yield comma.join([*parts[:i], parts[i+1], parts[i], *parts[i+2:]])

class DropArgument(Fault):
    "One of several things that should be cleared is not."
    EXAMPLES = [('clear_grads(a, *b)', 'clear_grads(*b)'), ('clear_grads(a, *b)', 'clear_grads(a)', 1)]
    @classmethod
    def faults(cls, node):
        if node.type != 'arglist' or not call_of(node.children[0]).startswith('clear'): return
        parts = [code(o) for o in node.children[::2]]
        for i in range(len(parts)): yield ', '.join(parts[:i] + parts[i+1:])

class DropTarget(Fault):
    "Of two attributes that are renewed together one is not."
    EXAMPLES = [('self.args,self.out = args,out', 'self.args = args'),
                ('self.args,self.out = args,out', 'self.out = out', 1),
                ('self.args = self.out = None', 'self.args = None')]
    @classmethod
    def faults(cls, node):
        if node.type != 'expr_stmt' or node.children[1] != '=': return
        *targets, source = node.children[::2]
        if len(targets) > 1:
            for o in targets: yield f'{code(o)} = {code(source)}'
        left, right = elements(targets[0]), elements(source)
        if len(targets) == 1 and len(left) == len(right) > 1 and all(o.type == 'atom_expr' for o in left):
            for a,b in zip(left, right): yield f'{code(a)} = {code(b)}'

class Forwards(Fault):
    "The backward pass in the order of the forward pass."
    EXAMPLES = [('for o in reversed(steps): pass', 'for o in steps: pass')]
    @classmethod
    def faults(cls, node):
        if plain_call(node) and code(node.children[0]) == 'reversed' and len(node.children) == 2:
            yield code(node.children[1].children[1])

def statement(node):
    if node.parent is None or node.parent.type != 'simple_stmt': return False
    return node.type not in ('newline', 'string', 'strings', 'operator')

class DeleteStatement(Fault):
    "A statement left out."
    EXAMPLES = [('x = 1\n', 'pass\n'), ('def f(): g(); h()\n', 'def f(): pass; h()\n')]
    @classmethod
    def faults(cls, node):
        if statement(node) and code(node) != 'pass': yield 'pass'

class DoubleStatement(Fault):
    "A statement done twice. Checking, clearing or saving twice is no fault."
    EXAMPLES = [('add_grad(t, g)\n', 'add_grad(t, g); add_grad(t, g)\n'), ('g -= 1\n', 'g -= 1; g -= 1\n')]
    @classmethod
    def faults(cls, node):
        if not statement(node): return
        changes = node.type == 'expr_stmt' and node.children[1].type == 'operator' and node.children[1].value != '='
        if changes or plain_call(node) and not re.match('_?check|clear|zero_|save_', callee(node)):
            yield f'{code(node)}; {code(node)}'

OURS = {o.__name__: o for o in (Scale, ExtraSum, Transpose, SwapOperands, DropOperand, DropMethod, Reduction, Mask,
                                OtherTensor, Overwrite, Stale, SwapArguments, DropArgument, DropTarget, Forwards,
                                DeleteStatement, DoubleStatement)}

class Provider:
    "The plugin of Cosmic Ray by which it finds our operators, as 'backward/Scale'."
    def __iter__(self): return iter(OURS)
    def __getitem__(self, name): return OURS[name]

# The tools are no distribution with entry points, by which Cosmic Ray would find a plugin by itself.
plugins.OPERATOR_PROVIDERS['backward'] = Provider()

# Those of Cosmic Ray's own that fit: constants and indices off by one, conditions turned around, boundaries, + for -,
# a loop that does nothing.
COMPARISONS = 'Gt_GtE Gt_LtE GtE_Gt GtE_Lt Lt_LtE Lt_GtE LtE_Lt LtE_Gt Eq_NotEq NotEq_Eq'
THEIRS = ['NumberReplacer', 'AddNot', 'ReplaceAndWithOr', 'ReplaceOrWithAnd', 'ReplaceTrueWithFalse',
          'ReplaceFalseWithTrue', 'ZeroIterationForLoop',
          *(f'ReplaceComparisonOperator_{o}' for o in COMPARISONS.split()),
          *(f'ReplaceBinaryOperator_{o}' for o in 'Add_Sub Sub_Add Mul_Div Div_Mul FloorDiv_Mul Pow_Mul'.split()),
          'ReplaceUnaryOperator_Delete_USub', 'ReplaceUnaryOperator_Delete_Not', 'ReplaceUnaryOperator_Delete_Invert']

def all_operators():
    "Name, arguments and instance of every operator in use; the name is the one by which Cosmic Ray finds it."
    for name in [f'backward/{o}' for o in OURS] + [f'core/{o}' for o in THEIRS]:
        cls = plugins.get_operator(name)
        for args in [{'factor': o} for o in FACTORS] if cls.arguments() else [{}]: yield name, args, cls(**args)
