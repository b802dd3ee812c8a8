"""Cache indices that are tensors of one element, as Dynamo can trace them: boxes of a Python int."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from .dict_cache import INDICES, DictCache


class IndexBox:
    """A cache index as the model uses it: `.item()` reads, `.fill_()` writes, and Dynamo sees a Python int."""

    def __init__(self, value: int) -> None:
        self.value = value

    def item(self) -> int:
        return self.value

    def fill_(self, value: int) -> IndexBox:
        self.value = value
        return self

    def zero_(self) -> IndexBox:
        return self.fill_(0)

    def sub_(self, value: int) -> IndexBox:
        return self.fill_(self.value - value)


class BoxedDictCache(DictCache):
    """A layer's dict whose indices are tensors of one element."""

    indices: ClassVar[tuple[str, ...]] = INDICES

    def __init__(self, cache: dict[str, Any], *, adopted: bool) -> None:
        super().__init__(cache)
        if adopted:
            self._box()

    def _box(self) -> None:
        # A pipeline that starts another video puts new tensors here, so this is looked at before every call.
        for name in self.indices:
            if isinstance(self.cache[name], Tensor):
                self.cache[name] = IndexBox(int(self.cache[name].item()))

    def replace(self, k: Tensor, v: Tensor) -> None:
        super().replace(k, v)
        self._box()

    def give_back(self, k: Tensor, v: Tensor) -> None:
        super().give_back(k, v)
        with torch.inference_mode(False):  # whoever restores inside it may go on outside
            for name in self.indices:
                if isinstance(self.cache[name], IndexBox):
                    self.cache[name] = torch.tensor([self.cache[name].value], dtype=torch.long, device=k.device)

    def is_empty(self) -> bool:
        return int(self.cache["global_end_index"].item()) == 0
