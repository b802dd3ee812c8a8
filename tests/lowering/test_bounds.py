"""Tables that name what is not there are refused before a kernel reads them."""

import numpy as np
import pytest
import torch

from headforce.errors import HeadforceError
from headforce.kernels.config import INTERPRETED
from headforce.kernels.rotation import INTERLEAVED
from headforce.lowering.attention import attention
from headforce.lowering.bounds import check_bounds
from headforce.lowering.schedule import TILE
from headforce.testing.rig import Rig, mixed

SIZES = {"batch": 1, "heads": 5, "tokens": 9, "rows": 0}


@pytest.fixture
def rig():
    rig = Rig(mixed(), dtype=torch.float32)
    for start in (0, 3, 6):
        rig.run(start, 3)
    return rig


def sizes(rig):
    return SIZES | {"rows": rig.pool.k.shape[0] * rig.tokens}


FAULTS = {
    "batch": ("reads", 0, 1),
    "head": ("reads", 1, 5),
    "query row": ("reads", 2, 9),
    "query rows": ("reads", 3, 10),
    "first run": ("reads", 4, 10_000),
    "runs": ("reads", 5, 10_000),
    "row": ("runs", 0, 10_000),
    "rows": ("runs", 1, 10_000),
    "negative": ("runs", 0, -1),
    "parts": ("reads", 6, 3),
    "no parts": ("reads", 6, 0),
    "negative rows": ("runs", 1, -8),
    "negative query rows": ("reads", 3, -1),
}


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_not_there_is_refused(rig, fault, kind):
    tables = {"reads": rig.pool.reads[0].numpy().copy(), "runs": rig.pool.runs[0].numpy().copy()}
    check_bounds(*map(kind, tables.values()), **sizes(rig), part_tiles=0)
    name, field, value = FAULTS[fault]
    tables[name][0, field] = value
    with pytest.raises(HeadforceError, match="HF-TABLES"):
        check_bounds(*map(kind, tables.values()), **sizes(rig), part_tiles=0)


def test_parts_stay_inside_the_workspace(rig):
    reads, runs = rig.pool.reads[0].clone(), rig.pool.runs[0]
    reads[0, 6], reads[0, 7] = 2, 2 * TILE - 2 * int(reads[0, 3])
    check_bounds(reads, runs, **sizes(rig), part_tiles=2)
    with pytest.raises(HeadforceError, match=r"HF-TABLES.*tiles of all parts 2"):
        check_bounds(reads, runs, **sizes(rig), part_tiles=1)
    reads[0, 7] += 1
    with pytest.raises(HeadforceError, match=r"HF-TABLES.*workspace"):
        check_bounds(reads, runs, **sizes(rig), part_tiles=2)


def test_no_more_query_rows_than_there_are(rig):
    """A launch has programs for so many."""
    reads, runs = rig.pool.reads[0].clone(), rig.pool.runs[0]
    check_bounds(reads, runs, **sizes(rig))
    unused = int((reads[:, 3] == 0).nonzero()[0])
    reads[unused] = reads[0]
    with pytest.raises(HeadforceError, match=r"HF-TABLES.*query rows of all reads"):
        check_bounds(reads, runs, **sizes(rig))


def test_tables_of_another_form(rig):
    reads, runs = rig.pool.reads[0], rig.pool.runs[0]
    with pytest.raises(HeadforceError, match=r"HF-TABLES.*columns"):
        check_bounds(reads[:, :7], runs, **sizes(rig))


def test_a_launch_checks_if_it_is_told_to(rig, monkeypatch):
    reads, runs = rig.pool.reads[0].clone(), rig.pool.runs[0].clone()
    runs[0, 0] = 10_000
    query = torch.randn(1, 9, 5, 6)
    arguments = (query, rig.pool.k, rig.pool.v, reads, runs, rig.theta, 0, INTERLEAVED, 1.0)
    monkeypatch.setenv("HEADFORCE_CHECK_TABLES", "1")
    with pytest.raises(HeadforceError, match="HF-TABLES"):
        attention(*arguments, config=INTERPRETED)
