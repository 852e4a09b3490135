"""The doctor: what is wrong with a backward pass, and why."""
from .report import GradientError, Report, check_layer

__all__ = ['GradientError', 'Report', 'check_layer']
