"""Families that are known, and that `prepare` does not take: each says what its models do that stands in the way."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import nn

from ...errors import HeadforceError
from ...policy import Rule
from .adapter import Adapter, LayerCache, adapter
from .wan import variables_of

COUNTED_FROM_FIRST_ROW = "grid_sizes_kv"
"""A variable of Infinite-Forcing's self-attention, which has the attributes of Self-Forcing's: the grid of the rows
that are read, whose frames RoPE counts from 0."""


class RefusedFamily(Adapter):
    """A family that is refused by name."""

    code: ClassVar[str]
    found: ClassVar[str]
    needed: ClassVar[str]

    def matches(self, model: nn.Module) -> bool:
        blocks = getattr(model, "blocks", None)
        attention = getattr(blocks[0], "self_attn", None) if isinstance(blocks, nn.ModuleList) and blocks else None
        return attention is not None and self.knows(model, attention)

    @abstractmethod
    def knows(self, model: nn.Module, attention: nn.Module) -> bool:
        """Whether a model with this self-attention is of this family."""

    def refusal(self, model: nn.Module) -> HeadforceError:
        return HeadforceError(
            self.code,
            site=type(model).__qualname__,
            found=self.found,
            needed=self.needed,
            hint="Run it as it is, without prepare(); docs/models.md lists what is refused and why.",
        )

    def caches(self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[LayerCache]:
        raise self.refusal(model)

    def native(self, model: nn.Module, cache_rows: int, tokens_per_frame: int) -> Rule:
        raise self.refusal(model)


@adapter("rolling-forcing")
class RollingForcing(RefusedFamily):
    """`CausalWanModel` of Rolling Forcing (github.com/TencentARC/RollingForcing); Causal-Forcing's `long_video`."""

    code = "HF-CLOCK"
    found = (
        "Rolling Forcing: a pass sends blocks at several noise levels and caches the first alone, and its first "
        "block, cached before RoPE, is rotated to stand right in front of whatever window is read"
    )
    needed = "passes that cache all the frames they send, each key rotated at the frame it has in the video"

    def knows(self, model: nn.Module, attention: nn.Module) -> bool:
        return hasattr(attention, "block_length") and hasattr(attention, "frame_length")


@adapter("reward-forcing")
class RewardForcing(RefusedFamily):
    """`CausalWanModel` of Reward Forcing (github.com/JaydenLyh/Reward-Forcing)."""

    code = "HF-CLOCK"
    found = (
        "Reward Forcing: RoPE counts from the first row that is read, not from the first frame of the video, and the "
        "rows of evicted frames are averaged into those of the sink"
    )
    needed = "keys and queries rotated at the frames they have in the video, and a cache whose rows are those of frames"

    def knows(self, model: nn.Module, attention: nn.Module) -> bool:
        return hasattr(attention, "compression_alpha") and hasattr(attention, "sink_size")


@adapter("infinite-forcing")
class InfiniteForcing(RefusedFamily):
    """`CausalWanModel` of Infinite-Forcing (github.com/SOTAMak1r/Infinite-Forcing)."""

    code = "HF-CLOCK"
    found = (
        "Infinite-Forcing: keys are cached before RoPE and rotated as counted from the first row that is read, and "
        "behind a full window one frame of the sink is read, drawn at random in every pass and layer"
    )
    needed = "keys and queries rotated at the frames they have in the video, and reads that follow from the clock"

    def knows(self, model: nn.Module, attention: nn.Module) -> bool:
        return hasattr(attention, "sink_size") and COUNTED_FROM_FIRST_ROW in variables_of(attention)


@adapter("streamdiffusion-v2")
class StreamDiffusionV2(RefusedFamily):
    """`CausalWanModel` of StreamDiffusionV2 (github.com/chenfengxu714/StreamDiffusionV2)."""

    code = "HF-CACHE-FORM"
    found = (
        "StreamDiffusionV2: once the cache is full, new frames overwrite rows in an order that a list on the module "
        "keeps and similarity of keys may change, and every row of a batch is at a frame of its own"
    )
    needed = "a cache whose rows are those of frames in order, appended to and rolled, and one clock for the batch"

    def knows(self, model: nn.Module, attention: nn.Module) -> bool:
        return hasattr(attention, "evict_idx") and hasattr(attention, "adapt_sink_thr")


@adapter("anyflow-far")
class AnyFlowFar(RefusedFamily):
    """`AnyFlowFARTransformer3DModel` of diffusers."""

    code = "HF-CACHE-PARTS"
    found = (
        "AnyFlow-FAR: keys and values of a layer share two tensors, one for newer chunks and one for older chunks at "
        "fewer tokens a frame, and after every chunk a pass over the whole video writes both anew under a block mask"
    )
    needed = (
        "a tensor each for keys and values, frames of one number of tokens, and passes that add their chunk to them"
    )

    def matches(self, model: nn.Module) -> bool:
        return hasattr(model, "far_patch_embedding") and hasattr(model, "build_attention_mask")

    def knows(self, model: nn.Module, attention: nn.Module) -> bool:
        return self.matches(model)
