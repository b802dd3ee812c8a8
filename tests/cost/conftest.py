"""What the tests of predictions share: a machine that nobody measured, whose every time is work over a round number."""

import itertools
import math

import pytest

from headforce.cost.machine import Host, Machine, Table


def table(rate, *axes, work=lambda *sizes: math.prod(sizes)):
    """Times in proportion to the product of the sizes, or to other work of them, `rate` a second."""
    seconds = tuple(work(*sizes) / rate for sizes in itertools.product(*axes))
    return Table(tuple(tuple(map(float, axis)) for axis in axes), seconds)


WIDE = (1, 1 << 10, 1 << 20, 1 << 30)


def linear_machine(**changes):
    """A machine without launch costs, but for what the host does."""
    made = {
        "device": "made up",
        "kind": "cpu",
        "threads": 1,
        "dtype": "float32",
        "torch": "2",
        "target": "sdpa",
        "inner": "eager",
        "linear": table(1e9, WIDE, WIDE),
        "dense": {64: table(1e8, (1, 64), WIDE, WIDE)},
        "ragged": {
            64: table(1e7, (1, 64), WIDE, (1, 4, 1000), work=lambda heads, rows, ratio: heads * rows**2 * ratio)
        },
        "rest": {"eager": table(1e8, WIDE), "inductor": table(1e9, WIDE)},
        "activation": {"eager": table(1e9, WIDE), "inductor": table(1e9, WIDE)},
        "between": table(1e9, WIDE),
        "ends": table(1e9, WIDE),
        "copy": table(1e10, WIDE),
        "write": table(1e9, WIDE),
        "turn": table(1e9, WIDE),
        "host": Host(call=1e-4, site=1e-5, chunk=1e-3, rule=1e-4, cell=1e-6, launch=0.0),
    }
    return Machine(**{**made, **changes})


@pytest.fixture
def machine():
    return linear_machine()
