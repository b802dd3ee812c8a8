"""Checking what was planned, launched and written."""

from .contents import Contents
from .failure import publish, write_launch, write_plan
from .launches import Deviation, deviation
from .plan import check_operands, check_plan, check_tables
from .settings import Verification

__all__ = [
    "Contents",
    "Deviation",
    "Verification",
    "check_operands",
    "check_plan",
    "check_tables",
    "deviation",
    "publish",
    "write_launch",
    "write_plan",
]
