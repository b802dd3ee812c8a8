"""The recognisers: one file for each form, found by being in this folder."""

from .base import (
    AttentionCall,
    CacheMatch,
    Excluded,
    Refused,
    Rotation,
    discover,
    first,
    recognizer,
    recognizers,
    rotated,
)

__all__ = [
    "AttentionCall",
    "CacheMatch",
    "Excluded",
    "Refused",
    "Rotation",
    "discover",
    "first",
    "recognizer",
    "recognizers",
    "rotated",
]
