"""The clock of a stream: what a pass is to the passes before it, from the frames that it writes. Pure integers.

The same frames again are a repeat, frame 0 is a reset, frames that follow are an advance, and frames in front of the
end of history are a rewrite. What was written becomes history when a pass begins behind it, or goes back before it;
frames that a pass begins on top of are discarded.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from enum import Enum

from ..errors import HeadforceError
from ..policy import Chunk


class Event(Enum):
    """What a pass is to the pass before it."""

    RESET = "reset"
    REPEAT = "repeat"
    ADVANCE = "advance"
    REWRITE = "rewrite"


@dataclass(frozen=True)
class Clock:
    """Where a stream is.

    Attributes:
        chunk: the running pass; None before the first one.
        history: frames 0..history-1 are history. Those of them that `chunk` covers are being rewritten.
        starts: where the chunks of the history and the running one begin, rising. A rewrite adds none: its frames
            stay in the chunks in which they were first made, so a warm-up that is over stays over.
        closed: the running chunk is history already, although nothing has begun behind it.
        owed: the first of the frames that have to be run again before the stream goes on; None if none have.
    """

    chunk: Chunk | None = None
    history: int = 0
    starts: tuple[int, ...] = ()
    closed: bool = False
    owed: int | None = None

    def close(self, again: int = 0) -> Clock:
        """The clock once all frames are history: whatever comes now is a rewrite of them or goes on behind them.

        The newest `again` of them have to be run again first, and those that still had to be.
        """
        first = [self.end - again] if again else []
        owed = min([*first, *([self.owed] if self.owed is not None else [])], default=None)
        return Clock(self.chunk, self.end, self.starts, closed=True, owed=owed)

    @property
    def end(self) -> int:
        """Frames of the stream, those of the running pass included."""
        return max(self.history, self.chunk.stop if self.chunk else 0)

    def step(self, start: int, frames: int, lead: int = 0) -> tuple[Event, Clock]:
        """What a pass over frames start..start+frames-1 is, and the clock while it runs; HF-CLOCK for a gap.

        `lead`: frames that it sends in front of them, see `Chunk`.
        """
        if start < 0 or frames < 1 or not 0 <= lead <= start:
            in_front = f" behind {lead} that it does not write" if lead else ""
            raise HeadforceError(
                "HF-CLOCK", found=f"a pass of {frames} frames at {start}{in_front}", needed="frames from 0 on"
            )
        now = self.chunk
        if now is not None and (start, frames, lead) == (now.start, now.frames, now.lead) and not self.closed:
            return Event.REPEAT, self
        if start == 0 and self.owed != 0:
            return Event.RESET, Clock(Chunk(0, 0, frames), 0, (0,))
        if start > self.end:
            raise HeadforceError(
                "HF-CLOCK",
                found=f"a pass at frame {start} of a stream that has {self.end} frames",
                needed=f"a pass at frame {self.end} or earlier, without a gap",
            )
        if self.owed is not None and start != self.owed:
            raise HeadforceError(
                "HF-CLOCK",
                found=f"a pass at frame {start} after a prompt switch",
                needed=f"frames {self.owed} to {self.end - 1} run again first, as recache() says",
            )
        assert now is not None
        history = self.end
        # Frames of a pass that the next one begins on top of are gone, and with them whatever lay behind, unless the
        # next pass writes all of them anew.
        within = now.start <= start < now.stop and not self.closed
        if within and not (self.history > now.stop and start + frames >= now.stop):
            history = start
        if start < history:
            index = bisect_right(self.starts, start) - 1
            owed = start + frames if self.owed is not None and start + frames < history else None
            return Event.REWRITE, Clock(Chunk(index, start, frames, lead), history, self.starts, owed=owed)
        starts = tuple(s for s in self.starts if s < start)
        return Event.ADVANCE, Clock(Chunk(len(starts), start, frames, lead), history, (*starts, start))
