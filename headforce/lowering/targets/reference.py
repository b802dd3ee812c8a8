"""Target `reference`: the definition itself. Slow, exact in any floating dtype."""

from __future__ import annotations

from ...kernels.reference import ragged_attention
from .registry import target

target("reference")(ragged_attention)
