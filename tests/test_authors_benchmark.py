"""benchmarks/authors.py without a checkout: whose turn it is, what a chunk takes, what caches hold, sides that fail."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from .benchmark_scripts import load

side = load("authors_side")
authors = load("authors")


class Wire:
    """A connection to a parent who lets every chunk begin at once; `log` has what was heard and said."""

    def __init__(self) -> None:
        self.log: deque[object] = deque()

    def recv(self) -> str:
        self.log.append("heard")
        return "go"

    def send(self, what: object) -> None:
        self.log.append(what)


def test_a_chunk_waits_for_its_turn_and_is_told_before_the_next(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(side.time, "perf_counter", lambda: float(next(clock)))
    wire = Wire()
    turns = side._Turns(wire, 3, torch.device("cpu"))
    for _ in range(6):
        turns.before()
        turns.behind()
    turns.tell()
    first, told, second, last = wire.log
    assert (first, second) == ("heard", "heard")
    assert (told, last) == (1.0, 1.0)  # of the clock's ticks, one from the first pass of a chunk to its last


def test_bytes_count_every_storage_once():
    whole = torch.zeros(4, 8)
    other = torch.zeros(3, dtype=torch.float64)
    held = SimpleNamespace(parts=[other, {"again": other}], size=7)
    held.itself = held
    assert side._bytes([{"k": whole, "v": whole[:2]}, held]) == whole.nbytes + other.nbytes


def of(name: str, seconds: float, video: np.ndarray, failed: str = "") -> object:
    told = {} if failed else {"video": video, "held": 2**20, "peak": None}
    return authors.Side(name, None, None, [9.0, *[seconds] * 5], told, failed)


def test_ratios_are_of_the_chunks_that_count_and_a_failed_side_says_why():
    video = np.ones((6, 2))
    off = video.copy()
    off[4, 0] = 1.5
    sides = [
        of(authors.UNMODIFIED, 4.0, off),
        of(authors.AUTHORS, 2.0, video),
        of(authors.OURS, 1.0, video, "RuntimeError: out of luck\nand more"),
    ]
    found = authors.results(sides)
    assert found[authors.UNMODIFIED]["difference"] == pytest.approx(0.5)
    assert found[authors.AUTHORS]["median"] == 2.0
    lines = authors.table(found, timed=False).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[3][:3] == [authors.AUTHORS, "2.00", "1.00"]
    assert cells[4][0] == authors.OURS
    assert cells[4][-1] == "failed: RuntimeError: out of luck"
