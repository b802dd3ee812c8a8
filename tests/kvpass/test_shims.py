"""What stands in for tensors of one element and for the frame grid in models of the Wan family."""

from __future__ import annotations

import contextlib
import gc
import math
import types
import weakref

import pytest
import torch

from headforce import HeadforceError
from headforce.kvpass.capture.boxes import BoxedDictCache, IndexBox
from headforce.kvpass.capture.grid import MATH, Grid, GridOf
from headforce.kvpass.capture.krea import NumberedDictCache
from headforce.kvpass.capture.patches import patched


def test_a_grid_is_read_as_the_model_reads_grid_sizes() -> None:
    tensor = torch.tensor([[3, 4, 6], [3, 4, 6]])
    grid = Grid(2, (3, 4, 6))
    assert grid.tolist() == tensor.tolist()
    assert MATH.prod(grid[0][1:]).item() == math.prod(tensor[0][1:]).item() == 24
    assert [row.sizes for row in grid] == [(3, 4, 6)] * 2
    assert MATH.prod([2, 3], start=2) == 12
    assert MATH.ceil(1.5) == 2


def test_index_boxes_replace_tensors_and_give_them_back() -> None:
    cache = {"k": torch.zeros(1), "v": torch.zeros(1), "global_end_index": torch.tensor([5])}
    cache["local_end_index"] = torch.tensor([4])
    layer = BoxedDictCache(cache, adopted=False)
    assert not layer.is_empty()
    layer.replace(torch.ones(1), torch.ones(1))
    assert isinstance(cache["global_end_index"], IndexBox)
    cache["global_end_index"].fill_(7)
    assert cache["global_end_index"].item() == 7
    cache["local_end_index"] = torch.tensor([0])  # a pipeline that starts anew
    BoxedDictCache(cache, adopted=True)
    assert isinstance(cache["local_end_index"], IndexBox)
    assert cache["global_end_index"].sub_(2).item() == 5
    layer.give_back(torch.zeros(1), torch.zeros(1))
    assert torch.equal(cache["global_end_index"], torch.tensor([5]))
    assert IndexBox(3).zero_().item() == 0


def test_indices_of_the_int_kind_stay_ints() -> None:
    """A pipeline may put tensors there for the next video (Krea)."""
    cache = {"k": torch.zeros(1), "v": torch.zeros(1), "global_end_index": torch.tensor([0]), "local_end_index": 4}
    assert NumberedDictCache(cache).is_empty()
    assert (cache["global_end_index"], cache["local_end_index"]) == (0, 4)
    assert type(cache["global_end_index"]) is int


class Unpatcher(torch.nn.Module):
    patch_size = (1, 2, 2)

    def unpatchify(self, x, grid_sizes):
        return x, grid_sizes.tolist()


def test_a_method_is_handed_the_grid_and_given_back() -> None:
    module = Unpatcher()
    grid = GridOf(module)
    grid.see(torch.zeros(1, 4, 3, 8, 12))
    with grid.handed_to(module, "unpatchify"):
        assert module.unpatchify(1, "a tensor") == (1, [[3, 4, 6]])
        assert module.unpatchify(x=2, grid_sizes="a tensor") == (2, [[3, 4, 6]])
    assert "unpatchify" not in vars(module)


def test_a_model_is_not_kept_alive_by_what_is_replaced_on_it() -> None:
    module = Unpatcher()
    stack = contextlib.ExitStack()
    stack.enter_context(GridOf(module).handed_to(module, "unpatchify"))
    gone = weakref.ref(module)
    del module
    gc.collect()
    assert gone() is None
    stack.close()


def test_patches_are_counted() -> None:
    module = types.ModuleType("headforce_patched")
    module.name = "original"
    first, second = (patched(vars(module), "name", value) for value in ("shim", "another shim"))
    first.__enter__()
    second.__enter__()
    assert module.name == "shim"
    first.__exit__(None, None, None)
    assert module.name == "shim"
    second.__exit__(None, None, None)
    assert module.name == "original"


def test_a_name_that_was_not_there_is_taken_away_again() -> None:
    namespace = {}
    with patched(namespace, "name", "shim"):
        assert namespace == {"name": "shim"}
    assert namespace == {}


class Replaced(torch.nn.Module):
    """Somebody put a function of their own in place of the model's."""

    patch_size = (1, 2, 2)

    def forward(self, x):
        return x


def test_a_method_without_a_grid_is_refused() -> None:
    module = Replaced()
    with (
        pytest.raises(HeadforceError, match=r"HF-ADAPTER.*forward.*takes self, x.*grid_sizes"),
        GridOf(module).handed_to(module, "forward"),
    ):
        raise AssertionError
    assert "forward" not in vars(module)
