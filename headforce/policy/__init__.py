"""What each head remembers: rules, policies, their files, and the oracle that says what they mean. Imports no torch."""

from .bound import BoundPolicy, Capacity, HeadRule
from .chunk import Chunk, Schedule
from .frameset import FrameSet
from .grammar import parse_rule
from .memory import BUSIEST, Decide, HeadMemory, PagedStore, StoreOp, Write
from .op import Op, load_ops, policy_op
from .parts import Part
from .policy import Policy, Warmup
from .positions import Clamp, Collapse, Keep
from .rule import Item, PartItem, Rule

__all__ = [
    "BUSIEST",
    "BoundPolicy",
    "Capacity",
    "Chunk",
    "Clamp",
    "Collapse",
    "Decide",
    "FrameSet",
    "HeadMemory",
    "HeadRule",
    "Item",
    "Keep",
    "Op",
    "PagedStore",
    "Part",
    "PartItem",
    "Policy",
    "Rule",
    "Schedule",
    "StoreOp",
    "Warmup",
    "Write",
    "load_ops",
    "parse_rule",
    "policy_op",
]
