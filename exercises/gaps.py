"""What a reader's code tells: whether there is still a gap in it, and on which line of it an error came up."""
import dis, linecache, traceback
from types import CodeType

IDLE = {'RESUME', 'NOP', 'POP_TOP', 'COPY_FREE_VARS', 'MAKE_CELL', 'LOAD_CONST', 'RETURN_VALUE', 'RETURN_CONST'}

def is_blank(o):
    "Whether a value has not been filled in: nothing, an ellipsis, or a collection with such an entry."
    if isinstance(o, dict): o = list(o.values())
    if isinstance(o, (list, tuple, set, str)): return not len(o) or not isinstance(o, str) and any(map(is_blank, o))
    return o is None or o is ...

def codes(o):
    "Code objects of a function, of a class and of a collection of them, with what is defined inside."
    if isinstance(o, dict): o = list(o.values())
    if isinstance(o, type):
        o = [getattr(v, '__func__', getattr(v, 'fget', v)) for v in vars(o).values() if not isinstance(v, type)]
    if isinstance(o, (list, tuple)): return [c for v in o for c in codes(v)]
    code = o if isinstance(o, CodeType) else getattr(getattr(o, '__func__', o), '__code__', None)
    return [code, *codes([c for c in code.co_consts if isinstance(c, CodeType)])] if code else []

def has_gap(code):
    "Whether a function does nothing yet, or still has `...` where a value belongs; `x[..., 0]` is ordinary code."
    ops = [(o.opname, o.argval, o.argrepr) for o in dis.get_instructions(code)]
    idle = all(op in IDLE and (op[-5:] != 'CONST' or v in (None, ...)) for op,v,_ in ops)
    if idle and code.co_name != '<lambda>': return True
    for i,(op,value,_) in enumerate(ops):
        if value is not ...: continue
        taker,_,how = next((o for o in ops[i+1:] if o[0][:4] != 'LOAD'), (op, None, '')) # the instruction that uses it
        if not ('SUBSCR' in taker or taker[:6] == 'BUILD_' or how == '[]'): return True
    return False

def line_of(error, codes):
    "Where in the code objects `codes` an error was last: name, line within the function, its text; None if nowhere."
    lines = [(f.f_code, n) for f,n in traceback.walk_tb(error.__traceback__) if f.f_code in codes]
    if not lines: return None
    code, n = lines[-1]
    return code.co_name, n - code.co_firstlineno + 1, linecache.getline(code.co_filename, n).strip()
