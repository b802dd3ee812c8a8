"""What the command line of the demo says."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path

from ..errors import HeadforceError
from ..policy import Policy
from ..presets import load_presets
from ..presets.named import names_file
from .example import examples_folder

CHUNK = 3
"""Frames denoised together."""
NOISY_PASSES = 1
"""Noisy passes of a chunk; a clean pass follows. Published samplers take four, and the demo would take longer."""
CHUNKS = 10


@dataclass(frozen=True)
class Settings:
    """`policy` is a file or the name of a published system, None the file for the size; `labels` its label file.

    `preset` is the size of the model. `whole` compiles the model as one graph.
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
    def labels_file(self) -> Path | None:
        """The label file that is meant: the one given, or for a published system that needs one that of the size.

        Raises HF-DEMO if there is none for the size.
        """
        # A file goes before a system of its name, as in `read_policy`.
        if self.labels is not None or self.policy is None or names_file(self.policy):
            return self.labels
        system = load_presets().get(self.policy)
        if system is None:
            return None  # `read_policy` says what is wrong with the name
        labels = inspect.signature(system).parameters.get("labels")
        if labels is None or labels.default is not labels.empty:
            return None
        file = examples_folder() / "labels" / f"{self.policy}.{self.preset}.json"
        if not file.is_file():
            raise HeadforceError(
                "HF-DEMO",
                site=f"--policy {self.policy}",
                found=f"no file {file}",
                needed="a label file, for this system and this size of the model",
                hint="Give one with --labels, or add this one.",
            )
        return file

    @property
    def options(self) -> dict[str, str]:
        """The options of `torch.compile` for headforce."""
        return {"inner": self.inner} | ({"target": self.target} if self.target else {})

    def check_classify(self, policy: Policy) -> None:
        """HF-DEMO if heads are to be classified so late that nothing would be seen of it."""
        if policy.classify is not None and self.chunks < policy.classify.chunk + 2:
            raise HeadforceError(
                "HF-DEMO",
                site="--chunks",
                found=f"{self.chunks} chunks, and heads that are classified by chunk {policy.classify.chunk}",
                needed=f"at least {policy.classify.chunk + 2}",
            )

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
