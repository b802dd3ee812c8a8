"""Classifying heads while a video is made: which heads are what is decided from one chunk of it.

Dummy Forcing (arXiv 2601.20499) measures, for a sample of the query rows of one chunk, how much attention every head
gives to the first frames and to those between them and the chunk. All heads are then assigned jointly: exactly so many
are dummies, and of the others each is what it attends to more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

from ..errors import HeadforceError
from .assignment import assign_kinds, normalised


@dataclass(frozen=True, eq=False)
class Classify:
    """How heads are classified. Compares and hashes by meaning: one dummy (1) is not the same as all heads (1.0).

    Attributes:
        chunk: index of the chunk whose last pass is measured. It has to be one of the warm-up.
        dummies: heads that get the class `without`: a number of heads of the model, or a share of them from 0.0 to 1.0.
        first, middle, without: the classes of heads that attend to the first frames, to the frames between them and the
            chunk, and of the dummies.
        first_frames: how many of the frames read count as first, from the oldest on.
        queries: the share of the query rows that is measured. seed: of the choice of rows.
    """

    chunk: int
    dummies: int | float = 0.5
    first: str = "sink"
    middle: str = "neighbor"
    without: str = "dummy"
    first_frames: int = 1
    queries: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("chunk", 1), ("first_frames", 1), ("seed", 0)):
            value = getattr(self, name)
            if type(value) is not int or not least <= value < 2**63:
                self._refuse(name, f"a whole number of at least {least}")
        most = 1 if self.is_share else 2**63
        if type(self.dummies) not in (int, float) or not 0 <= self.dummies <= most:  # NaN is neither
            self._refuse("dummies", "a number of heads, or a share of them from 0.0 to 1.0")
        if type(self.queries) not in (int, float) or not 0 < self.queries <= 1:
            self._refuse("queries", "a share of the query rows, more than 0 and at most 1")
        if len({self.first, self.middle, self.without}) < 3:
            self._refuse("without", "three different classes")
        # What is equal is spelled alike, since the digest of a policy is of the spelling.
        object.__setattr__(self, "queries", float(self.queries))
        object.__setattr__(self, "dummies", abs(self.dummies))  # -0.0

    @property
    def _meaning(self) -> tuple[Any, ...]:
        return self.is_share, *astuple(self)

    def __eq__(self, other: object) -> bool:
        return self._meaning == other._meaning if isinstance(other, Classify) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._meaning)

    def _refuse(self, name: str, needed: str) -> None:
        raise HeadforceError("HF-POLICY-VALUE", site=f"classify.{name}", found=repr(getattr(self, name)), needed=needed)

    @property
    def is_share(self) -> bool:
        return type(self.dummies) is float

    @property
    def classes(self) -> tuple[str, str, str]:
        return self.first, self.middle, self.without

    def count(self, heads: int) -> int:
        """How many of `heads` heads are dummies; HF-CLASSIFY for more than there are."""
        count = round(self.dummies * heads) if self.is_share else int(self.dummies)
        if count > heads:
            raise HeadforceError(
                "HF-CLASSIFY", found=f"{count} heads without memory", needed=f"from 0 to the {heads} that there are"
            )
        return count

    def assign(self, first: Sequence[Sequence[float]], middle: Sequence[Sequence[float]]) -> list[list[str]]:
        """The class of every head, [layer][head], from the probability on its first and on its middle frames.

        Both are divided by their sums over all heads of the model first, as the published code does and the paper's
        formula does not. Raises HF-CLASSIFY for numbers that are no probabilities.
        """
        flat = [[mass for layer in side for mass in layer] for side in (first, middle)]
        kinds = assign_kinds(normalised(*flat), self.count(len(flat[0])))
        names = [self.without if kind is None else (self.first, self.middle)[kind] for kind in kinds]
        heads = len(first[0])
        return [names[i : i + heads] for i in range(0, len(names), heads)]

    def guess(self, layers: int, heads: int) -> list[list[str]]:
        """Classes for a plan without a model: the dummies spread over the layers, all other heads `middle`."""
        dummies, total = self.count(layers * heads), layers * heads
        dummy = [(i + 1) * dummies // total > i * dummies // total for i in range(total)]
        names = [self.without if its else self.middle for its in dummy]
        return [names[i : i + heads] for i in range(0, total, heads)]
