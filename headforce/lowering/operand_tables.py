"""Tables for a cache that the model keeps itself: where in attention's own operands the rows of every frame are.

The rows that the model reads hold some past frames in rising order, and then the chunk. A rule chooses among them.
"""

from __future__ import annotations

import numpy as np

from ..errors import HeadforceError
from ..policy import FrameSet
from .plan import ChunkPlan, HeadPlan, Reading
from .tables import Ints, fill, merged


def operand_tables(plan: ChunkPlan, held: FrameSet, rows: int, batch: int, processors: int = 0) -> tuple[Ints, Ints]:
    """`reads` and `runs` of every layer, see `Tables`; runs count rows of the operand, in the order of frames.

    Args:
        plan: the plan of the running chunk. held: the past frames in the operand, in front of the chunk.
        rows: rows of a frame. batch: rows of the batch, which all read alike. processors: see `schedule`.

    Raises HF-EVICTED if the plan reads a frame that the operand does not hold.
    """
    place = {frame: i for i, frame in enumerate((*held, *plan.chunk.queries))}
    parts = [[_runs(head, reading, plan, place, rows) for reading in head.readings] for head in plan.heads]
    room = max(len(head.readings) for head in plan.heads), max(sum(map(len, of_head)) for of_head in parts)
    layers, _, heads = plan.which.shape
    base = np.zeros((layers, batch, heads), dtype=np.int64)
    return fill(plan.chunk, plan.heads, parts, plan.which, base, rows, room, processors)


def _runs(head: HeadPlan, reading: Reading, plan: ChunkPlan, place: dict[int, int], rows: int) -> Ints:
    frames = [(int(frame), int(shift)) for frame, shift in reading.frames]
    missing = FrameSet.of(frame for frame, _ in frames if frame not in place)
    if missing:
        layer, _, its_head = np.argwhere(plan.which == plan.heads.index(head))[0]
        held = FrameSet.of(frame for frame in place if frame < plan.chunk.start)
        raise HeadforceError(
            "HF-EVICTED",
            site=f"layer {layer}, head {its_head}",
            found=f"a rule that reads frames {missing} at frame {plan.chunk.start}",
            needed=f"frames that the model still reads there: {held}",
        )
    if head.reads_chunk:
        frames += [(frame, 0) for frame in plan.chunk.queries]
    pieces = [(place[frame] * rows, rows, shift) for frame, shift in frames]
    return merged(np.array(pieces, dtype=np.int64).reshape(-1, 3))
