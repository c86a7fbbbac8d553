"""What a learner's tangent kernel says: how tasks interfere in it, and how well each can be learned in it."""

from __future__ import annotations

from evertune.diagnostics.diagnosis import Diagnosis, diagnose, kernel_drift
from evertune.diagnostics.features import FeatureOverlap, basis, class_means, feature_overlap, principal_angles
from evertune.diagnostics.gaps import gap_terms, sample_gain
from evertune.diagnostics.kernel import Kernel, Spectrum, centred_alignment, drift, exact, sketched
from evertune.diagnostics.tangent import Tangent

__all__ = [
    "Diagnosis",
    "FeatureOverlap",
    "Kernel",
    "Spectrum",
    "Tangent",
    "basis",
    "centred_alignment",
    "class_means",
    "diagnose",
    "drift",
    "exact",
    "feature_overlap",
    "gap_terms",
    "kernel_drift",
    "principal_angles",
    "sample_gain",
    "sketched",
]
