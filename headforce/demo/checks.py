"""What has to be true of a run. Each check is a plain sentence that says what was found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .measure import Measured

TOLERANCE = 1e-4
"""Largest deviation in a whole video, as a share of its largest value; float32 rounding gives about 1e-6."""
CONTROL = 10 * TOLERANCE
"""A single frame missing in a single head has to show this much, or the tolerance would prove nothing."""


@dataclass(frozen=True)
class Check:
    """`sentence` says what was found, and what was needed where it does not hold."""

    name: str
    holds: bool
    sentence: str


def run_checks(measured: Measured) -> list[Check]:
    """All checks, those that hold and those that do not."""
    return [*_structure(measured), *_numbers(measured)]


def _structure(m: Measured) -> Iterator[Check]:
    native, policy = (m.sides.runners[name] for name in ("native", "policy"))
    layers, last = m.sides.config.num_layers, m.evicting[0]
    for runner in (native, policy):
        assert runner.session is not None
        report = runner.session.report
        refused, rewritten = report.count("refused"), report.count("rewritten")
        wanted = report.graphs_with_sites * (layers if m.settings.whole else 1)
        yield Check(
            f"sites_rewritten_{runner.name}",
            refused == 0 and rewritten == wanted > 0,
            f"{runner.title}: {rewritten} attention sites rewritten in {report.graphs} graphs, {refused} refused"
            f" (needed: {wanted} and 0).",
        )
        launches = runner.session.launches
        yield Check(
            f"launches_{runner.name}",
            launches == [m.passes] * layers,
            f"{runner.title}: each of {layers} layers launched its attention {_range(launches)} times in {m.passes}"
            " passes (needed: once a pass).",
        )
        late = runner.graphs_after(last)
        yield Check(
            f"no_graphs_after_eviction_{runner.name}",
            late == 0,
            f"{runner.title}: {late} graphs compiled after the first chunk that evicts (needed: 0).",
        )
    yield Check(
        "policies_share_graphs",
        policy.graphs == 0,
        f"The policy compiled {policy.graphs} graphs beside the {native.graphs} of native() (needed: 0).",
    )
    yield Check("no_graph_breaks", m.graph_breaks == 0, f"{m.graph_breaks} graph breaks (needed: 0).")


def _numbers(m: Measured) -> Iterator[Check]:
    for name, title, reference in (
        ("identity", "Under native() the compiled model", "dense"),
        ("policy_error", "Under the policy the compiled model", "reference"),
    ):
        error = m.error("native" if name == "identity" else "policy", reference)
        yield Check(
            name,
            error <= TOLERANCE,
            f"{title} differs by {error:.1e} from {m.sides.runners[reference].title} (needed: at most"
            f" {TOLERANCE:.0e}).",
        )
    yield Check(
        "control",
        m.control_error >= CONTROL,
        f"One frame missing in one head of the reference shows as {m.control_error:.1e} (needed: at least"
        f" {CONTROL:.0e}).",
    )
    held, most = m.history.pool[-1], max(m.history.pool)
    at_most, needed = (f", {most} at most", f"{m.predicted_bytes} and {m.predicted_peak}")
    if held == most == m.predicted_bytes == m.predicted_peak:
        at_most, needed = "", str(held)
    yield Check(
        "bytes_as_planned",
        (held, most) == (m.predicted_bytes, m.predicted_peak),
        f"{held} bytes of K and V are held{at_most} (needed: the {needed} that the plan predicts).",
    )


def _range(counts: list[int]) -> str:
    return " or ".join(str(count) for count in sorted(set(counts)))
