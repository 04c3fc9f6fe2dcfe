"""Records to plotly figures: pure functions, one kind of figure a file, each returning ``Panel`` objects."""

from pinchpoint.report.charts.decisions import decision_plane, representation_pca
from pinchpoint.report.study.figures.accuracy import accuracy, ratio
from pinchpoint.report.study.figures.bounds import bound_against_gap, brackets
from pinchpoint.report.study.figures.curves import correlation_curve, robustness_curves
from pinchpoint.report.study.figures.layers import layer_names, layer_titles
from pinchpoint.report.study.figures.mechanism import alignment, amplification
from pinchpoint.report.study.figures.spectra import points_a_line, spectrum

__all__ = [
    "accuracy",
    "alignment",
    "amplification",
    "bound_against_gap",
    "brackets",
    "correlation_curve",
    "decision_plane",
    "layer_names",
    "layer_titles",
    "points_a_line",
    "ratio",
    "representation_pca",
    "robustness_curves",
    "spectrum",
]
