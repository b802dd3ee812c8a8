"""The heads of one stream that are classified while it runs."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import HeadforceError
from ..lowering.pool import PagePool
from ..lowering.state.classify import masses
from ..lowering.state.sampling import sampled_rows
from ..lowering.state.turning import Turning
from ..lowering.stream import Event, Stream
from ..policy import Policy, Rule
from .kept_queries import KeptQueries
from .layers import PassFacts
from .site import Site


class HeadClasses:
    """Keeps a sample of the queries of one chunk, and says from it which heads are what.

    Args:
        policy: with `classify`. queries: where the graph keeps them. of_model: what `Policy.bind` wants to know.
        native: the rule of the unmodified model.

    Attributes:
        classes: the class of every head, [layer][head], once that is known.
    """

    def __init__(self, policy: Policy, queries: KeptQueries, of_model: Mapping[str, int], native: Rule) -> None:
        assert policy.classify is not None
        self.policy = policy
        self.classify = policy.classify
        self.queries = queries
        self.classes: list[list[str]] | None = None
        self._of_model = of_model
        self._native = native
        self._scale = 1.0

    def before(self, facts: PassFacts, pool: PagePool, turning: Turning) -> None:
        """A pass is about to begin. If it begins behind the measured chunk, the heads get their classes first.

        Raises HF-CLASSIFY if the stream has gone by the chunk that was to be measured.
        """
        stream = pool.stream
        chunk, event = stream.chunk, stream.check_pass(facts.start, facts.frames, facts.lead)
        if self.classes is not None or chunk is None or event in (Event.REPEAT, Event.RESET):
            return
        whole = facts.start >= chunk.stop or stream.closed
        if chunk.index == self.classify.chunk and not whole:
            raise HeadforceError(
                "HF-CLASSIFY",
                found=f"a pass at frame {facts.start}, which leaves chunk {chunk.index} before all of it is history",
                needed="the whole chunk that is measured, and then what follows it",
            )
        if chunk.index == self.classify.chunk:
            first, middle = masses(pool, turning, self.queries.kept, self._scale, self.classify)
            self.classes = self.classify.assign(first, middle)
            stream.resolve(self.policy.classified(self.classes).bind(**self._of_model, native=self._native))
        elif chunk.index > self.classify.chunk:
            raise HeadforceError(
                "HF-CLASSIFY",
                found=f"a stream at chunk {chunk.index} whose heads have no classes",
                needed=f"a pass over chunk {self.classify.chunk} before it, to be measured",
            )

    def begun(self, facts: PassFacts, site: Site, stream: Stream) -> None:
        """A pass has begun: makes room for its queries if they are to be kept."""
        assert stream.chunk is not None
        measured = self.classes is None and stream.chunk.index == self.classify.chunk
        self._scale = site.scale
        tokens = facts.frames * facts.rows if measured else 0
        rows = sampled_rows(self.classify.queries, self.classify.seed, tokens)
        self.queries.want(rows + facts.written.start, facts, site)
