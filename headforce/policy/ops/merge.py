"""`merge(block, height, width, last)`: means over cells of several frames, made at commit."""

from __future__ import annotations

from dataclasses import dataclass

import sympy

from ..chunk import Chunk
from ..frameset import EMPTY, FrameSet
from ..memory import Commit, Decide, PagedStore, Write
from ..op import policy_op
from ..parts import Mixture, Part


@policy_op("merge")
@dataclass(frozen=True)
class Merge(PagedStore):
    """The newest `last` blocks of `block` frames each, of which every cell of `height` x `width` tokens became one row.

    Blocks are counted from frame 0. Once all frames of a block are committed, the keys of each cell over all its frames
    are averaged as they were before RoPE, and so are the values. The mean key stands at the middle frame of the block
    (the earlier of two), in the first row and column of its cell (Pyramid Forcing's veil heads, arXiv 2605.13111).
    """

    block: int
    height: int = 1
    width: int = 1
    last: int = 1

    scope = "every"  # which blocks there are is a matter of frame numbers alone

    def __post_init__(self) -> None:
        self.need_count("block", "height", "width", "last")

    @property
    def slots(self) -> int:  # type: ignore[override]
        return self.last

    @property
    def evict(self) -> str:  # type: ignore[override]
        return "fifo"

    @property
    def cell(self) -> int:
        """Tokens of a cell within one frame."""
        return self.height * self.width

    @property
    def pages(self) -> int:
        return -(-self.last // self.cell)

    @property
    def most_parts(self) -> int:
        return self.last

    def parts_of_frame(self, tokens: int) -> int:
        return self.cell

    def resolved(self, tokens: int) -> Merge:
        self.need_division(tokens, self.cell)
        return self

    def units(self, arrived: FrameSet) -> tuple[FrameSet, ...]:
        """The blocks whose last frame is among those that arrived."""
        ends = (f + 1 for f in arrived if (f + 1) % self.block == 0)
        return tuple(FrameSet.interval(end - self.block, end) for end in ends)[-self.last :]

    def offered(
        self, store: str, held: tuple[FrameSet, ...], arrived: FrameSet, decide: Decide, when: Commit
    ) -> tuple[Write, ...]:
        writes: list[Write] = []
        for unit in (unit for unit in self.units(arrived) if not unit & when.lost):
            writes.append(Write(unit, held[0] if len(held) == self.last else EMPTY))
            held = self.after(held, (writes[-1],))
        return tuple(writes)

    def parts(self, held: FrameSet) -> tuple[Part, ...]:
        # Blocks in a row keep their places while they are held; where one was never made, its place may be taken.
        blocks = sorted({f // self.block for f in held})
        places: dict[int, int] = {}
        for block in blocks:
            free = [place for place in range(self.last) if place not in places.values()]
            wanted = block % self.last
            places[block] = wanted if wanted in free else free[0]
        return tuple(self._part(block, places[block]) for block in blocks)

    def _part(self, block: int, place: int) -> Part:
        frames = tuple(range(block * self.block, (block + 1) * self.block))
        return Part((frames[0] + frames[-1]) // 2, frames, 0, self.cell, place)

    def materialize_part(self, part: Part, height: int, width: int) -> list[Mixture]:
        cells = []
        for top in range(0, height, self.height):
            for left in range(0, width, self.width):
                tokens = [y * width + x for y in range(top, top + self.height) for x in range(left, left + self.width)]
                rows = [(frame, token) for frame in part.frames for token in tokens]
                cells.append(Mixture(tokens[0], dict.fromkeys(rows, 1 / len(rows))))
        return cells

    def before(self, held: FrameSet, frame: int) -> FrameSet:
        return held.below(frame - frame % self.block)

    def live(self, chunk: Chunk) -> FrameSet:
        # The block that is not complete yet: its mean needs all of its frames.
        return FrameSet.interval(chunk.start - chunk.start % self.block, chunk.start)

    def bound(self, s: sympy.Expr, n: sympy.Expr) -> sympy.Expr:
        return sympy.Min(s, self.block - 1)

    def settles(self) -> int:
        return self.block

    def repeats(self) -> int:
        return self.block
