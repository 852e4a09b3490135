"""The exercises of the rooms: `check_exercise` says whether an answer is right, and if it is not, what to look at."""
import importlib, inspect, re
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from pathlib import Path

from .asking import Exercise, judge
from .gaps import codes, has_gap, is_blank, line_of
from .guarding import kept, run_apart
from .predicting import predicted

try: import tomllib
except ModuleNotFoundError: import tomli as tomllib # Python 3.10

OPENINGS = {'empty': 'Not yet.', 'wrong': 'Not right yet.', 'error': 'Your code stopped.', 'right': 'Right.'}
folder = Path(__file__).parent

@dataclass(frozen=True, repr=False)
class Verdict:
    "What `check_exercise` says about an answer; true if it is right."
    name: str # The exercise, as in '05.2'
    state: str # 'empty', 'wrong', 'error' or 'right'
    text: str # What to look at next, or why it is right; code between backticks
    def __bool__(self): return self.state == 'right'
    def __repr__(self): return f'{OPENINGS[self.state]} {self.text}'
    def _repr_html_(self):
        text = re.sub(r'`([^`\n]+)`', r'<code>\1</code>', escape(self.text, quote=False)).replace('\n', '<br>')
        style = 'border-left: .25em solid currentColor; padding: .2em .8em; overflow-wrap: anywhere'
        return f'<div class="verdict {self.state}" style="{style}"><b>{OPENINGS[self.state]}</b> {text}</div>'

def rooms():
    "The numbers of the rooms that have exercises, in order."
    return sorted({p.stem[5:] for p in folder.glob('room_*.*')})

@lru_cache
def exercises_of(
    room: str, # Its number, as in '05'
) -> dict: # Name -> Exercise, in order
    "The exercises of one room, from its Python and its TOML file. Those of other rooms are not loaded."
    code, data = (folder/f'room_{room}.{o}' for o in ('py', 'toml'))
    names = vars(importlib.import_module(f'{__name__}.{code.stem}')) if code.exists() else {}
    found = [o for o in names.values() if isinstance(o, Exercise)]
    entries = tomllib.loads(data.read_text(encoding='utf-8')) if data.exists() else {}
    found = sorted(found + [predicted(k, names, **entry) for k,entry in entries.items()], key=lambda o: o.name)
    names = [o.name for o in found]
    for k in names:
        bad = names.count(k) > 1 or not re.fullmatch(rf'{room}\.\d', k)
        if bad: raise ValueError(f'room {room}: {k!r} is there twice, or not a name such as {room}.1')
    return dict(zip(names, found))

def find_exercise(name):
    "The exercise of that name. Raises KeyError that lists what there is."
    room, there = str(name)[:2], rooms()
    found = exercises_of(room) if room in there else {}
    if name in found: return found[name]
    has = f'room {room} has {", ".join(found)}' if found else f'there are rooms {", ".join(there)}'
    raise KeyError(f"no exercise {name!r}; {has}, and a name is room and number, as in '05.2'")

def verdict_of(error, ex, answer):
    "What to say when the checker of an exercise has raised `error`."
    written = codes(answer)
    if isinstance(error, NotImplementedError) or any(map(has_gap, written)):
        return Verdict(ex.name, 'empty', f'{ex.task} There is still a gap in your code.')
    what = f'{type(error).__name__}: {error}'
    if (place := line_of(error, written)):
        name, n, line = place
        return Verdict(ex.name, 'error', f'{what}\nThat was line {n} of `{name}`' + (f': `{line}`' if line else ''))
    if isinstance(error, AssertionError): return Verdict(ex.name, 'wrong', str(error) or ex.task)
    kind = 'a function' if inspect.isroutine(answer) else f'of type {type(answer).__name__}'
    return Verdict(ex.name, 'wrong', f'The check could not use your answer, which is {kind} ({what}). {ex.task}')

def judged(ex, answer):
    "The verdict on an answer, whatever happens when it runs."
    try: return Verdict(ex.name, 'empty', ex.task) if is_blank(answer) else Verdict(ex.name, 'right', judge(ex, answer))
    except BaseException as e: # SystemExit as well: it is the answer that raises it
        try: return verdict_of(e, ex, answer)
        except Exception: return Verdict(ex.name, 'wrong', f'The check could not use your answer: {type(e).__name__}.')

def check_exercise(
    name: str, # Room and number, as in '05.2'
    answer, # What the exercise asks for: a function, a class, a value, or a tuple of them
    seconds: float=20, # The time that it may take; an interruption stops it earlier
) -> Verdict: # What to look at next, or why it is right
    """Check the answer to an exercise. It does not raise if that is wrong; KeyError if there is no such exercise.

    What an answer can change for later code, such as random numbers and the default dtype, is put back."""
    ex = find_exercise(name)
    with kept(): found = run_apart(lambda: judged(ex, answer), seconds)
    stuck = 'It could not be stopped and still runs in the background: restart the kernel, or end Python.'
    return Verdict(name, 'error', stuck) if found is None else found
