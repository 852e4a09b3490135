"Running an answer so that it can neither stop the notebook, nor run for ever, nor change what later checks find."
import builtins, ctypes, math, os, random, sys, threading, time, warnings
from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from types import ModuleType
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F

class Interrupted(BaseException):
    "Raised in an answer to stop it."
    def __str__(self):
        return 'by you, or as it took too long; `check_exercise(name, answer, seconds=60)` gives it more time'

LIBRARIES = torch, torch.Tensor, F, np, math, builtins

def root(o):
    "The package that a module, a class, a function or an object is from."
    return str(getattr(o, '__module__', None) or getattr(o, '__name__', '')).split('.')[0]

def namespaces():
    "Where an answer could exchange a function: the modules of this project, what is in them, and what they use most."
    def is_ours(o): return hasattr(o, '__dict__') and root(o) in ('fb_pass', 'exercises')
    modules = [m for m in [*sys.modules.values()] if is_ours(m)]
    inside = [o for m in modules for o in vars(m).values() if is_ours(o)]
    return {id(o): o for o in (*modules, *inside, *LIBRARIES)}.values()

def put_names(before):
    "Give every namespace its former content, except for modules, and for what a library has exchanged itself."
    for o,was in before:
        now = dict(vars(o))
        for k in was.keys() | now.keys():
            new = now.get(k)
            if k in was and was[k] is new or isinstance(new, ModuleType): continue
            if o in LIBRARIES and root(new) == root(o): continue
            if k in was: setattr(o, k, was[k])
            else: delattr(o, k)

def put_environ(was):
    if os.environ != was: os.environ.clear(); os.environ.update(was)
def put_path(was): sys.path[:] = was
def put_streams(was): sys.stdout,sys.stderr = was
printing = vars(torch._tensor_str.PRINT_OPTS)

# What is kept: pairs of a function that reads it and one that puts it back. Whether gradients are recorded, the default
# device and the like belong to a thread, and an answer has its own.
KEPT = [
    (torch.get_rng_state, torch.set_rng_state), (random.getstate, random.setstate),
    (np.random.get_state, np.random.set_state), (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly), (torch.get_num_threads, torch.set_num_threads),
    (lambda: dict(printing), printing.update), (np.get_printoptions, lambda o: np.set_printoptions(**o)),
    (sys.getrecursionlimit, sys.setrecursionlimit), (lambda: (sys.stdout, sys.stderr), put_streams),
    (os.getcwd, os.chdir), (lambda: dict(os.environ), put_environ), (lambda: [*sys.path], put_path),
    (lambda: [(o, dict(vars(o))) for o in namespaces()], put_names)]

@contextmanager
def kept():
    "What an answer could change for everything that comes later is put back in the end, random numbers included."
    with ExitStack() as stack:
        for get,put in KEPT: stack.callback(put, get())
        stack.enter_context(warnings.catch_warnings())
        shell = sys.modules['IPython'].get_ipython() if 'IPython' in sys.modules else None
        if hasattr(shell, 'ask_exit'): # as `exit()` ends the kernel otherwise
            stack.enter_context(patch.object(shell, 'ask_exit', sys.exit))
        yield

def run_apart(f, seconds):
    "What `f()` returns, called in a thread, so that it can be stopped everywhere; None if it could not be."
    found,done = [],threading.Event()
    def work():
        try: found.append(f())
        finally: done.set()
    worker = threading.Thread(target=copy_context().run, args=(work,), daemon=True)
    worker.start()
    end = time.monotonic() + seconds
    try:
        while not done.wait(.2) and time.monotonic() < end: pass # in short waits: Windows interrupts only between them
    except BaseException: pass # an interruption is meant for the answer
    for _ in range(10): # it may catch what is raised in it
        if done.is_set(): break
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(worker.ident), ctypes.py_object(Interrupted))
        done.wait(.3)
    return found[0] if found else None
