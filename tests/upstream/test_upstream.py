"""Every family whose checkout is at hand: HEADFORCE_UPSTREAM names a folder with them, named as families are."""

import pytest

from .child import checkout_of, needs_diffusers, printed_by
from .families import FAMILIES

CASES = [*((name, "sdpa") for name in FAMILIES), ("self-forcing", "triton")]


@needs_diffusers
@pytest.mark.parametrize(("name", "target"), CASES)
def test_the_unmodified_repository(name: str, target: str) -> None:
    """Its own pipeline: equal under native(), rewritten, whole graphs, and as it was after restore()."""
    family = FAMILIES[name]
    checkout = checkout_of(family.checkout or name)
    row = printed_by("tests.upstream", name, str(checkout), "--target", target, "--quiet")
    assert row["bare"]["prepare"], row["bare"]
    assert (row["prepared"] or {}).get("code", "") == family.refusal
    assert bool(row["sides"]) == (not family.refusal)
    # Kernels turn by a float32 rotation and sum in another order: within a rounding of bfloat16.
    most = 0.0 if target == "sdpa" else 0.01
    for side in row["sides"]:
        native = side["name"].startswith("native")
        assert side["sites"]["rewritten"] > 0
        assert side["sites"]["refused"] == side["breaks"] == side["misses"] == side["late"] == 0
        assert set(side["launches"]) <= {1.0, 2.0}
        assert side["graphs"] <= family.graphs
        assert (side["difference"] <= most) == native
        assert native or side["held"] < row["held"] + family.fills
