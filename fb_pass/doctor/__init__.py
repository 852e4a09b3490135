"""The doctor: what is wrong with a backward pass, and why."""
from typing import TYPE_CHECKING
if TYPE_CHECKING: from .report import GradientError, Report, check_layer

__all__ = ['GradientError', 'Report', 'check_layer']

def __getattr__(name):
    "Imported when it is asked for: pytest loads `plugin` at every start, and torch takes seconds."
    if name not in __all__: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from . import report
    return getattr(report, name)
