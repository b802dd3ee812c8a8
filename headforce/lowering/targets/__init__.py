"""Targets: ways to compute ragged attention over pages. One file each; none imports another."""

from .registry import (
    Target,
    capturable,
    check_rows,
    default_target,
    find_target,
    fuses_rope,
    least_rows,
    load_targets,
    target,
)

__all__ = [
    "Target",
    "capturable",
    "check_rows",
    "default_target",
    "find_target",
    "fuses_rope",
    "least_rows",
    "load_targets",
    "target",
]
