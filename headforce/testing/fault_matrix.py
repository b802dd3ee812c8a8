"""Which level of verification catches which fault: `python -m headforce.testing.fault_matrix` prints it.

A stream with every kind of rule runs once for each fault and level. The command ends with 1 if a fault that a level
claims to catch slips through, or if a level complains where there is no fault.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
from torch import Tensor

from ..errors import HeadforceError
from ..lowering.verify import Contents, check_plan, check_tables, deviation
from ..lowering.watch import Launch, watching
from .faults import FAULTS, FULL, IDENTITY, LEVELS, PLAN, SITE, Fault
from .rig import Rig, check, mixed

NONE = Fault("no fault", frozenset())
CHUNKS, FRAMES, PASSES = 4, 3, 2


class _Looking:
    """Raises what a level finds wrong in the operators of a rig."""

    def __init__(self, rig: Rig, level: str) -> None:
        self._rig, self._level, self._contents = rig, level, Contents()

    def wrote(self, key: Tensor, value: Tensor, k_pool: Tensor, v_pool: Tensor, pages: Tensor) -> None:
        if self._level == FULL:
            assert self._rig.stream.chunk is not None
            queries = self._rig.stream.chunk.queries
            self._contents.wrote(self._layer(pages), queries, key, value, self._rig.pool)

    def attended(self, launch: Launch, result: Tensor) -> None:
        if self._level not in (SITE, FULL):
            return
        if self._level == FULL:
            self._contents.check(self._layer(launch.reads), self._rig.pool)
        found = deviation(launch, result, None if self._level == FULL else 2)
        if found is not None:
            raise HeadforceError("HF-VERIFY-SITE", found=str(found), needed="attention as it is meant")

    def _layer(self, table: Tensor) -> int:
        tables = (self._rig.pool.reads, self._rig.pool.pages)
        return next(i for of in tables for i, own in enumerate(of) if own.data_ptr() == table.data_ptr())


def caught(fault: Fault, level: str) -> bool:
    """Whether a level catches a fault in a stream of a few chunks, a noisy and a clean pass each.

    Raises AssertionError where a level other than that of the outputs breaks: the rest of them say what they find in
    refusals of their own.
    """
    rig = Rig(mixed(), fault.target, dtype=torch.float32)
    try:
        with fault.on(), watching(_Looking(rig, level)):
            for start in range(0, CHUNKS * FRAMES, FRAMES):
                for _ in range(PASSES):
                    _pass(rig, level, start)
    except HeadforceError as error:
        return error.code in ("HF-VERIFY-PLAN", "HF-VERIFY-SITE")
    except AssertionError:
        if level != IDENTITY:
            raise
        return True
    return False


def _pass(rig: Rig, level: str, start: int) -> None:
    if level == IDENTITY:
        check(rig, start, FRAMES)
        return
    rig.run(start, FRAMES)
    if level == PLAN:
        check_plan(rig.stream)
        check_tables(rig.pool)


def matrix() -> Iterator[tuple[Fault, dict[str, bool]]]:
    """Every fault, and a stream without any, with what each level says."""
    for fault in (NONE, *FAULTS.values()):
        yield fault, {level: caught(fault, level) for level in LEVELS}


def main() -> int:
    """Prints the matrix; 1 if it is not as claimed."""
    wrong = 0
    print(f"{'fault':<22}" + "".join(f"{level:<14}" for level in LEVELS))
    for fault, found in matrix():
        words = []
        for level in LEVELS:
            claimed = level in fault.claimed
            wrong += claimed != found[level] if claimed or fault is NONE else 0
            quiet = "quiet" if fault is NONE else ("SLIPPED" if claimed else "not claimed")
            words.append("caught" if found[level] else quiet)
        print(f"{fault.name:<22}" + "".join(f"{word:<14}" for word in words))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
