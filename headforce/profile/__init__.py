"""Measuring what the heads of a model attend to, and which policy follows from it."""

from .budget import Budgeted, Candidates, candidates, within
from .classify import Classified, classify_heads, vote
from .compare import contingency, rand_index, same, shuffled, stability, swapped
from .file import load_profile, save_profile
from .measure import measure
from .measured import Pass, Profile, Sample, Video, collect
from .methods import Found, Method, find_method, load_methods, method
from .periodicity import folded_spectrum, period
from .report import Judged, judge
from .results import write_results
from .rollouts import Rollouts

__all__ = [
    "Budgeted",
    "Candidates",
    "Classified",
    "Found",
    "Judged",
    "Method",
    "Pass",
    "Profile",
    "Rollouts",
    "Sample",
    "Video",
    "candidates",
    "classify_heads",
    "collect",
    "contingency",
    "find_method",
    "folded_spectrum",
    "judge",
    "load_methods",
    "load_profile",
    "measure",
    "method",
    "period",
    "rand_index",
    "same",
    "save_profile",
    "shuffled",
    "stability",
    "swapped",
    "vote",
    "within",
    "write_results",
]
