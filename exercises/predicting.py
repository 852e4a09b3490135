"""Exercises that ask for a prediction, made from their entries in a TOML file; `exercises/README.md` shows one."""
import math

import torch
from .asking import Ask, Exercise

def comparison(got, value, answer, hint='', slips={}, choices=None, rtol=1e-6, name=''):
    "How one value is judged; `value` computes expressions, and what is said begins with `name`."
    if choices and got not in value(choices): hint = f'Choose one of {", ".join(value(choices))}. {hint}'
    pairs = [(value(k), text) for k,text in slips.items()]
    pairs = [(o, text) for v,text in pairs for o in (v if isinstance(v, set) else [v])] # a set: several with one text
    return Ask(got, value(answer), hint=hint, slips=pairs, rtol=rtol, said=f'Look at {name}: ' if name else '')

def comparisons(got, value, parts=None, keys=None, hint='', **entry):
    "How the entries of a tuple or of a dict are judged, one after the other; none may be missing."
    asked = keys or parts
    fits = isinstance(got, dict) and got.keys() == keys.keys() if keys else isinstance(got, (tuple, list))
    form = f'a {"dict" if keys else "tuple"} of {", ".join(asked)}'
    assert fits and len(got) == len(asked), f'Expected {len(asked)} values, {form}; got {got!r}'
    for o,(k,part) in zip([got[k] for k in keys] if keys else got, asked.items()):
        part = entry | part | dict(hint=f'{part.get("hint", "")} {hint}'.strip())
        yield comparison(o, value, **part, name=f'`{k}`' if keys else f'the {k}')

def check_members(got, value, members, answer, slips={}, extra='', missing=''):
    "Judge a set: `members` are those to choose from, a list, or a table with a hint for each."
    got, want = {got} if isinstance(got, str) else {*got}, value(answer)
    for o in got: assert o in members, f'{o!r} is not one of {", ".join(map(str, members))}.'
    for k,text in slips.items(): assert got != value(k), text
    for o,hint in members.items() if isinstance(members, dict) else ():
        assert (o in got) == (o in want), f'Look at `{o}` once more. {hint}'
    for o in sorted(got - want): raise AssertionError(f'{o} is one too many. {extra.format(o)}')
    assert got == want, f'Still missing: {len(want - got)}. {missing}'

def predicted(name, names, task, right, **entry):
    "The exercise of an entry; answers and wrong answers are Python expressions, which may use `names`."
    def value(text): return eval(text, {'math': math, 'torch': torch, **names})
    def check(got):
        if 'members' in entry: check_members(got, value, **entry)
        elif 'parts' in entry or 'keys' in entry: yield from comparisons(got, value, **entry)
        else: yield comparison(got, value, **entry)
    return Exercise(name, task, right, check)
