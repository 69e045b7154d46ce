"""Probes: estimators in scikit-learn's shape that can be merged, and the sweep over layers with its controls."""

from analyses.probes.base import Probe
from analyses.probes.causal import causal_check
from analyses.probes.linear import LDAProbe, MassMeanProbe, NearestCentroidProbe, RidgeProbe
from analyses.probes.logistic import LogisticProbe
from analyses.probes.mlp import MLPProbe
from analyses.probes.probe_layers import probe_layers

__all__ = [
    "LDAProbe",
    "LogisticProbe",
    "MLPProbe",
    "MassMeanProbe",
    "NearestCentroidProbe",
    "Probe",
    "RidgeProbe",
    "causal_check",
    "probe_layers",
]
