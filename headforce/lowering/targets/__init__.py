"""Targets: ways to compute ragged attention over pages. One file each; none imports another."""

from .registry import Target, find_target, load_targets, target

__all__ = ["Target", "find_target", "load_targets", "target"]
