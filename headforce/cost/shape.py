"""The sizes of a causal diffusion transformer like Wan, and the work of one pass of it: exact counts, no times."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..lowering.footprint import DTYPE_BYTES


@dataclass(frozen=True)
class Linear:
    """A matrix product: `rows` of `inputs` numbers become `outputs` numbers each, `count` times."""

    rows: int
    inputs: int
    outputs: int
    count: int = 1

    @property
    def flops(self) -> int:
        return 2 * self.rows * self.inputs * self.outputs * self.count


@dataclass(frozen=True)
class Attended:
    """Attention of `heads` heads: `rows` rows of each read `keys` rows; `batch` times over."""

    heads: int
    rows: int
    keys: float
    batch: int = 1

    def flops(self, head_dim: int) -> float:
        """Both products, as usual without the softmax."""
        return 4 * self.batch * self.heads * self.rows * self.keys * head_dim


@dataclass(frozen=True)
class Shape:
    """The sizes that time depends on. The defaults are those of Wan2.1-T2V 1.3B at 480p.

    Args:
        tokens: in a frame. ffn: width of the feed-forward network. text: tokens of the text.
        channels: numbers in a patch, before and after. frequencies: width of the timestep's encoding.
        text_width: of the text's encoding. passes: of a chunk, noisy ones and the clean one.
    """

    layers: int = 30
    heads: int = 12
    head_dim: int = 128
    tokens: int = 1560
    ffn: int = 8960
    text: int = 512
    text_width: int = 4096
    channels: int = 64
    frequencies: int = 256
    batch: int = 1
    passes: int = 5
    dtype: str = "bfloat16"

    @property
    def dim(self) -> int:
        """Width of the model."""
        return self.heads * self.head_dim

    @property
    def itemsize(self) -> int:
        """Bytes of a number."""
        return DTYPE_BYTES[self.dtype]

    @property
    def frame_bytes(self) -> int:
        """Bytes of K and V of one frame of one head."""
        return 2 * self.batch * self.tokens * self.head_dim * self.itemsize

    def rows(self, frames: int) -> int:
        """Tokens of so many frames, over the batch."""
        return self.batch * frames * self.tokens

    def linears(self, frames: int) -> Iterator[Linear]:
        """The matrix products of a pass over a chunk of `frames` frames, but for those of the text."""
        rows, dim, times = self.rows(frames), self.dim, self.batch * frames
        # Queries, keys, values and output of self-attention, queries and output of cross-attention.
        yield Linear(rows, dim, dim, 6 * self.layers)
        yield Linear(rows, dim, self.ffn, self.layers)
        yield Linear(rows, self.ffn, dim, self.layers)
        yield Linear(rows, self.channels, dim)
        yield Linear(rows, dim, self.channels)
        yield Linear(times, self.frequencies, dim)
        yield Linear(times, dim, dim)
        yield Linear(times, dim, 6 * dim)

    def of_text(self) -> Iterator[Linear]:
        """The products that only the first pass after a prompt has: the text's embedding, its keys and values."""
        rows = self.batch * self.text
        yield Linear(rows, self.text_width, self.dim)
        yield Linear(rows, self.dim, self.dim, 1 + 2 * self.layers)

    def cross(self, frames: int) -> Attended:
        """Cross-attention of one layer."""
        return Attended(self.heads, frames * self.tokens, self.text, self.batch)

    def dense(self, frames: int, past: float) -> Attended:
        """Self-attention of one layer whose heads all read `past` frames and the chunk."""
        return Attended(self.heads, frames * self.tokens, (past + frames) * self.tokens, self.batch)

    def flops(self, frames: int, attended: float) -> float:
        """Of a pass, where self-attention over all layers takes `attended` of them; without the text's own products."""
        cross = self.layers * self.cross(frames).flops(self.head_dim)
        return sum(one.flops for one in self.linears(frames)) + cross + attended
