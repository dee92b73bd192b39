"""Diagnostics of models: functions of arrays that return numbers.

Flows: `round_trip_error`, `ks_normal`, `principal_plane`, `kept_rows`.
Simple reference models: `reference_check`, `gaussian_losses`, `histogram_losses`, `class_losses`,
`image_losses`.
Anomaly detection: `Typicality`, `conformal_p_values`, `Flagging`, `radius_p_values`, `combined_p_values`,
`adjusted_p_values`, `benjamini_hochberg`, `ranked`, `auroc`.
Anomaly detection under distribution shift: `weighted_conformal_p_values`, `weighted_discoveries`; a bound on false
discoveries: `false_discovery_bound`; in a stream: `monitored`. Coverage guarantees: `conformal_quantile`,
`Region`, `Cells`, `reached_coverage`, `Reached`, `Sharpness`. Posteriors: `sbc`, `sbc_ranks`, `tarp`,
`hpd_coverage`, `coverage`, `resimulation_error`, `misspecification`. Two-sample tests: `mmd2`, `c2st`. Classifiers:
`accuracy`, `confusion`, `reliability`, `expected_calibration_error`.

Advice on failed checks: `advice_for`, `advised`.

A result has a `verdict`, a summary in one sentence, and a `check` with the limit that a good model satisfies.
"""

from flowknife.diagnostics._advice import advice_for, advised
from flowknife.diagnostics._anomalies import (
    Typicality,
    adjusted_p_values,
    auroc,
    benjamini_hochberg,
    combined_p_values,
    radius_p_values,
    ranked,
)
from flowknife.diagnostics._check import Check, kept_rows
from flowknife.diagnostics._classes import Reliability, accuracy, confusion, expected_calibration_error, reliability
from flowknife.diagnostics._conformal import (
    Flagging,
    conformal_p_values,
    false_discovery_bound,
    weighted_conformal_p_values,
    weighted_discoveries,
)
from flowknife.diagnostics._coverage import Reached, Sharpness, reached_coverage
from flowknife.diagnostics._flows import ks_normal, principal_plane, round_trip_error
from flowknife.diagnostics._martingale import Monitoring, monitored
from flowknife.diagnostics._ranks import Coverage, Ranks, coverage, hpd_coverage, sbc, sbc_ranks, tarp
from flowknife.diagnostics._references import (
    class_losses,
    cross_entropies,
    gaussian_losses,
    histogram_losses,
    image_losses,
    reference_check,
)
from flowknife.diagnostics._regions import Cells, Region, conformal_quantile
from flowknife.diagnostics._samples import c2st, mmd2
from flowknife.diagnostics._scores import Scores, scored
from flowknife.diagnostics._simulations import Misspecification, Resimulation, misspecification, resimulation_error

__all__ = [
    "Cells",
    "Check",
    "Coverage",
    "Flagging",
    "Misspecification",
    "Monitoring",
    "Ranks",
    "Reached",
    "Region",
    "Reliability",
    "Resimulation",
    "Scores",
    "Sharpness",
    "Typicality",
    "accuracy",
    "adjusted_p_values",
    "advice_for",
    "advised",
    "auroc",
    "benjamini_hochberg",
    "c2st",
    "class_losses",
    "combined_p_values",
    "conformal_p_values",
    "conformal_quantile",
    "confusion",
    "coverage",
    "cross_entropies",
    "expected_calibration_error",
    "false_discovery_bound",
    "gaussian_losses",
    "histogram_losses",
    "hpd_coverage",
    "image_losses",
    "kept_rows",
    "ks_normal",
    "misspecification",
    "mmd2",
    "monitored",
    "principal_plane",
    "radius_p_values",
    "ranked",
    "reached_coverage",
    "reference_check",
    "reliability",
    "resimulation_error",
    "round_trip_error",
    "sbc",
    "sbc_ranks",
    "scored",
    "tarp",
    "weighted_conformal_p_values",
    "weighted_discoveries",
]
