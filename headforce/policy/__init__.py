"""What each head remembers: rules, policies, their files, and the oracle that says what they mean. Imports no torch."""

from .bound import BoundPolicy, Capacity, HeadRule
from .chunk import Chunk, Schedule
from .classify import Classify
from .frameset import FrameSet
from .grammar import parse_answer, parse_rule
from .item import Item, PartItem
from .memory import BUSIEST, Commit, Decide, HeadMemory, PagedStore, StoreOp, Write
from .op import Op, load_ops, policy_op
from .parts import Mixture, Part
from .policy import Policy, Warmup
from .positions import Carry, Clamp, Collapse, Keep
from .rule import Rule
from .switch import Amended, Answer, Cut, Flush, KeepAll, Recache

__all__ = [
    "BUSIEST",
    "Amended",
    "Answer",
    "BoundPolicy",
    "Capacity",
    "Carry",
    "Chunk",
    "Clamp",
    "Classify",
    "Collapse",
    "Commit",
    "Cut",
    "Decide",
    "Flush",
    "FrameSet",
    "HeadMemory",
    "HeadRule",
    "Item",
    "Keep",
    "KeepAll",
    "Mixture",
    "Op",
    "PagedStore",
    "Part",
    "PartItem",
    "Policy",
    "Recache",
    "Rule",
    "Schedule",
    "StoreOp",
    "Warmup",
    "Write",
    "load_ops",
    "parse_answer",
    "parse_rule",
    "policy_op",
]
