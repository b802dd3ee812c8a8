"""Every recogniser sees through rewrites of a graph that change no value, and what is lowered stays equal to eager."""

import pytest

from headforce.testing import zoo
from headforce.testing.metamorphic import REWRITES, check_rewrites

from .test_refusals import filled_mask

LAYERS = {
    "complex, cat, matmul": {"rope": "complex", "protocol": "cat_window", "core": "written"},
    "written in place, raw keys, sdpa": {"rope": "written", "raw_cache": True},
    "turned, deferred, bmm": {"rope": "turned", "protocol": "deferred", "core": "written_bmm"},
    "half, grouped heads": {"rope": "half", "core": "sdpa_repeated"},
}


def arguments(layer, frames=2):
    """One pass behind `frames` frames."""
    cache = layer.new_cache(1, frames)
    cache.update(held=frames * zoo.TOKENS, seen=frames * zoo.TOKENS)
    x, _ = next(zoo.inputs(1))
    return [(x, cache, frames * zoo.TOKENS)]


@pytest.mark.parametrize("parts", LAYERS.values(), ids=LAYERS)
def test_found_and_equal_after_every_rewrite(parts):
    layer = zoo.SelfAttention(**parts)
    places = check_rewrites(layer, arguments(layer))
    assert set(places) == {*REWRITES, "everything"}
    unused = {name for name, count in places.items() if not count}
    assert unused <= {"summed"}, "a rewrite that was applied nowhere proves nothing"
    assert ("summed" in unused) == (not str(parts.get("core")).startswith("written"))


def test_refused_after_every_rewrite():
    """A mask that hides rows is not forgotten on the way."""
    layer = zoo.SelfAttention(core=filled_mask)
    assert check_rewrites(layer, arguments(layer))["everything"]
