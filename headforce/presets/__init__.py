"""Published systems as policies, and the files in which they label heads. No torch."""

from .dummy_forcing import dummy_forcing
from .head_forcing import head_forcing
from .labels import Labels
from .longlive import longlive
from .named import read_policy
from .registry import find_preset, load_presets, make_preset, preset
from .self_forcing import self_forcing

__all__ = [
    "Labels",
    "dummy_forcing",
    "find_preset",
    "head_forcing",
    "load_presets",
    "longlive",
    "make_preset",
    "preset",
    "read_policy",
    "self_forcing",
]
