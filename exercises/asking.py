"""What checkers are made of: `@exercise` above a function that judges an answer, and what such functions use."""
import math
from contextlib import suppress
from dataclasses import dataclass, field
from inspect import isgenerator
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from fb_pass.checks import check_grad

def rand(*shape): return torch.randn(*shape, dtype=torch.float64)
def rands(*shapes): return [rand(*s) for s in shapes]

@dataclass(frozen=True)
class Exercise:
    "An exercise: what is asked for, what is said when it is right, and how an answer is judged."
    name: str # Room and number, as in '05.2'
    task: str # What to do, in one sentence
    right: str # What is said of a right answer
    check: object # Function of the answer: raises AssertionError with a hint, yields `Ask`s, or returns what is said
    slips: dict = field(default_factory=dict) # Hint -> a wrong answer; an answer that yields the same gets that hint
    wrong: list = field(default_factory=list) # Pairs: words of another hint, and a wrong answer that has to get it

class Ask(NamedTuple):
    "One comparison that an answer must pass."
    got: object
    want: object
    name: str = '' # What to call it
    hint: str = '' # What to say if nothing better is known
    slips: list = () # Pairs of a wrong value and what to say about it
    rtol: float = 1e-6 # Share of a number by which it may be off
    said: str = '' # What the hints begin with
    where: dict = {} # What may explain a wrong gradient: values, grads, terms, paths, as for `explain_grad`

def ask(got, want, name='gradient', hint='', **where):
    "Compare a gradient of the answer, or another tensor, with the right one."
    got, want = (torch.from_numpy(o) if isinstance(o, np.ndarray) else o for o in (got, want))
    return Ask(got, want, name, hint, where=where)

def ask_twice(call, inp, want, hint='', **where):
    "Compare what a backward leaves in `inp.g` after one call and after a second one, to which it must add."
    add = ('The first time it was right. But a tensor that is used twice has the sum of both as its gradient: '
           'add, do not overwrite.')
    for n in (1, 2):
        call()
        yield ask(getattr(inp, 'g', None), n*want, 'inp.g', add if n == 2 else hint, **where)

def same(a, b, rtol=1e-6):
    "Whether two predictions are the same: numbers up to `rtol`, words in any case, collections entry by entry."
    if isinstance(a, torch.Tensor): a = a.tolist()
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k], rtol) for k in b)
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
        return len(a) == len(b) and all(same(o, p, rtol) for o,p in zip(a, b))
    if isinstance(a, str) and isinstance(b, str): return a.strip().lower() == b.lower()
    if isinstance(a, bool) or isinstance(b, bool): return a is b
    try: return math.isclose(a, b, rel_tol=rtol, abs_tol=1e-12)
    except TypeError: return False

def agree(got, want, rtol=1e-6):
    "Whether two gradients are the same, shape and dtype included, or two predictions."
    got, want = (torch.from_numpy(o) if isinstance(o, np.ndarray) else o for o in (got, want))
    if got is None or not isinstance(want, torch.Tensor): return got is want or same(got, want, rtol)
    if not want.any(): return isinstance(got, torch.Tensor) and torch.equal(got, want) # no scale to compare on
    try: check_grad(got, want)
    except (AssertionError, TypeError, RuntimeError, ValueError): return False # also what is no gradient at all
    return True

def refuse(o):
    "Raise AssertionError for a comparison that failed: the hint of a known slip, or how a gradient differs and why."
    for value, text in o.slips:
        if agree(o.got, value, o.rtol): raise AssertionError(o.said + text)
    if not isinstance(o.want, torch.Tensor): raise AssertionError(f'{o.said}{o.got!r} is not it. {o.hint}')
    if o.got is not None and not isinstance(o.got, torch.Tensor):
        expected = f'expected a tensor {tuple(o.want.shape)}'
        raise AssertionError(f'`{o.name}` is a {type(o.got).__name__}, {expected}. {o.hint}'.strip())
    try: check_grad(o.got, o.want, name=o.name)
    except AssertionError as e:
        from fb_pass.doctor.diagnosis import explain_grad # here, since a right answer does not need the doctor
        found = explain_grad(o.got, o.want, name=o.name, **o.where)
        text = '' if o.got is None or found.cause == 'unknown' else f'What it looks like: {found.text}'
        raise AssertionError('\n'.join(s for s in (str(e), text, o.hint) if s)) from None

def outcome(ex, answer, k):
    "What the k-th comparison gets from this answer; something unlike anything else if it does not come so far."
    with torch.random.fork_rng(devices=[]), suppress(Exception):
        torch.manual_seed(0)
        return next(islice(ex.check(answer), k, None)).got
    return object()

def judge(ex, answer):
    "What is said of a right answer. Raises AssertionError with a hint for a wrong one."
    torch.manual_seed(0)
    found = ex.check(answer)
    if not isgenerator(found): return found or ex.right
    for k,o in enumerate(found):
        if agree(o.got, o.want, o.rtol): continue
        for hint, wrong in ex.slips.items():
            if agree(o.got, outcome(ex, wrong, k)): raise AssertionError(hint)
        refuse(o)
    return ex.right

def exercise(name, task, right='', slips=None, wrong=()):
    "Make an `Exercise` of the function below, its checker; the arguments are those of `Exercise`."
    return lambda check: Exercise(name, task, right, check, slips or {}, list(wrong))
