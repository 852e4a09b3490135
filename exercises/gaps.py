"""What a reader's code tells: whether there is still a gap in it, and on which line of it an error came up."""
import dis, linecache, traceback
from types import CodeType

IDLE = {'RESUME', 'NOP', 'POP_TOP', 'COPY_FREE_VARS', 'MAKE_CELL', 'LOAD_CONST', 'RETURN_VALUE', 'RETURN_CONST'}
COLLECTIONS = dict, list, tuple, set

def entries(o, around=()):
    "What is in a collection and in the collections inside; None for an empty one, and itself for one inside itself."
    if not isinstance(o, COLLECTIONS) or any(o is a for a in around): return [o]
    inside = o.values() if isinstance(o, dict) else o
    return [v for e in inside for v in entries(e, (*around, o))] or [None]

def is_blank(o):
    "Whether a value has not been filled in: nothing, an ellipsis, or a collection with such an entry."
    return any(v is None or v is ... or isinstance(v, str) and not v for v in entries(o))

def codes(o):
    "Code objects of a function, of a class and of a collection of them, with what is defined inside."
    if isinstance(o, COLLECTIONS): return [c for v in entries(o) if not isinstance(v, COLLECTIONS) for c in codes(v)]
    if isinstance(o, type):
        inside = [v for v in vars(o).values() if not isinstance(v, type)]
        return codes([getattr(v, '__func__', getattr(v, 'fget', v)) for v in inside])
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
