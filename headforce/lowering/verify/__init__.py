"""Checking what was planned, launched and written."""

from .plan import check_operands, check_plan, check_tables

__all__ = ["check_operands", "check_plan", "check_tables"]
