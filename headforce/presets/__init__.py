"""Published systems as policies, and the files in which they label heads. No torch."""

from .deep_forcing import deep_forcing
from .dummy_forcing import dummy_forcing
from .forcing_kv import forcing_kv
from .head_forcing import head_forcing
from .labels import Labels
from .longlive import longlive
from .named import read_policy
from .pyramid_forcing import pyramid_forcing
from .registry import find_preset, load_presets, make_preset, need_quirks, preset
from .self_forcing import self_forcing

__all__ = [
    "Labels",
    "deep_forcing",
    "dummy_forcing",
    "find_preset",
    "forcing_kv",
    "head_forcing",
    "load_presets",
    "longlive",
    "make_preset",
    "need_quirks",
    "preset",
    "pyramid_forcing",
    "read_policy",
    "self_forcing",
]
