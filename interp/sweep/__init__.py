"""Thousands of changed runs at the price of few: `sweep`; `slow_sweep`, its definition, runs each one by itself."""

from interp.sweep.inputs import Pair
from interp.sweep.results import SweepInterrupted, resumable
from interp.sweep.run import CHECKED, Progress, Rounding, Variant, lowered, slow_sweep, sweep

__all__ = [
    "CHECKED",
    "Pair",
    "Progress",
    "Rounding",
    "SweepInterrupted",
    "Variant",
    "lowered",
    "resumable",
    "slow_sweep",
    "sweep",
]
