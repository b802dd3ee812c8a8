"""What each head remembers: rules, policies, their files, and the oracle that says what they mean. Imports no torch."""

from .bound import BoundPolicy, Capacity, HeadRule
from .chunk import Chunk, Schedule
from .frameset import FrameSet
from .grammar import parse_rule
from .memory import HeadMemory, StoreOp, Write
from .op import Op, load_ops, policy_op
from .policy import Policy, Warmup
from .positions import Clamp, Collapse, Keep
from .rule import Item, Rule

__all__ = [
    "BoundPolicy",
    "Capacity",
    "Chunk",
    "Clamp",
    "Collapse",
    "FrameSet",
    "HeadMemory",
    "HeadRule",
    "Item",
    "Keep",
    "Op",
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
