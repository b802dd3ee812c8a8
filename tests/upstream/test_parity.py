"""Every fork whose checkout is at hand: HEADFORCE_UPSTREAM names a folder with them and with Self-Forcing's."""

import pytest

from .child import checkout_of, needs_diffusers, printed_by
from .forks import FORKS


@needs_diffusers
@pytest.mark.parametrize("name", FORKS)
def test_the_policy_computes_what_the_fork_computes(name: str) -> None:
    """On unmodified Self-Forcing, with the fork's weights, up to the rounding of float32; and it matters."""
    checkout, base = (str(checkout_of(folder)) for folder in (FORKS[name].checkout, "self-forcing"))
    row = printed_by("tests.upstream.parity", name, checkout, base)
    assert row["refused"] == FORKS[name].refused
    assert row["rewritten"] > 0
    assert row["breaks"] == 0
    assert row["classified"] in (None, True)
    assert max(row["difference"]) < 1e-6
    assert min(row["without"][-3:]) > 0.02
