"""What the command line of the demo says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import HeadforceError
from .example import examples_folder

CHUNK = 3
"""Frames denoised together."""
NOISY_PASSES = 1
"""Noisy passes of a chunk; a clean pass follows. Published samplers take four, and the demo would take longer."""
CHUNKS = 10


@dataclass(frozen=True)
class Settings:
    """`policy` is a file or the name of a published system, None the file for the size; `labels` its label file.

    `whole` compiles the model as one graph.
    """

    model: str = "causal-wan"
    preset: str = "demo"
    policy: str | None = None
    labels: Path | None = None
    chunks: int = CHUNKS
    inner: str = "inductor"
    target: str | None = None
    whole: bool = False
    out: Path = Path("out/demo")
    seed: int = 0
    threads: int | None = None

    @property
    def policy_name(self) -> str:
        """The policy file, or the published system, that is meant."""
        return self.policy or str(examples_folder() / "policies" / f"{self.preset}.yaml")

    @property
    def options(self) -> dict[str, str]:
        """The options of `torch.compile` for headforce."""
        return {"inner": self.inner} | ({"target": self.target} if self.target else {})

    def evicting(self, window: int) -> list[int]:
        """The chunks in which a model with a window of `window` frames evicts; HF-DEMO if they are fewer than two."""
        chunks = [chunk for chunk in range(self.chunks) if CHUNK * (chunk + 1) > window]
        if len(chunks) < 2:
            raise HeadforceError(
                "HF-DEMO",
                site="--chunks",
                found=f"{self.chunks} chunks of {CHUNK} frames",
                needed=f"at least {window // CHUNK + 2}, so that a window of {window} frames evicts twice",
            )
        return chunks
