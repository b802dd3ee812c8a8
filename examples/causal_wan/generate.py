"""Making a video chunk by chunk: a few noisy passes, then one clean pass that leaves the chunk in the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .cache import Cache, allocate_crossattn_cache, allocate_kv_cache, reset_caches
from .config import WanConfig
from .schedule import SELF_FORCING_TIMESTEPS, renoise, x0_from_flow


@dataclass(frozen=True, eq=False)
class Pass:
    """One finished forward over a chunk."""

    chunk: int  # index of the chunk
    start: int  # its first frame
    frames: int  # how many frames it has
    step: int  # index of the pass within the chunk
    steps: int  # passes in every chunk
    timestep: float
    x0: Tensor  # the chunk as now estimated, [B, channels, frames, height, width]
    again: bool = False  # whether finished frames were run once more, after the prompt had switched

    @property
    def clean(self) -> bool:
        """Whether this was the last pass of the chunk, so that ``x0`` is final."""
        return self.step == self.steps - 1 and not self.again


class Rollout:
    """Generates videos with one model and one set of caches.

    ``model`` is a ``CausalWan``, compiled or not, or anything that is called like one; such a callable needs ``config``
    as well. The caches are allocated with the first chunk and used again for each further video.
    """

    def __init__(
        self,
        model: Callable[..., Tensor],
        config: WanConfig | None = None,
        timesteps: Sequence[float] = SELF_FORCING_TIMESTEPS,
    ) -> None:
        self.model = model
        self.config: WanConfig = model.config if config is None else config
        self.timesteps = tuple(timesteps)
        self.kv_cache: list[Cache] | None = None
        self.crossattn_cache: list[Cache] | None = None

    def generate(
        self,
        context: Tensor,
        chunks: Sequence[int],
        seed: int = 0,
        on_pass: Callable[[Pass], object] | None = None,
    ) -> Tensor:
        """The latents of a new video, [B, channels, sum(chunks), height, width]. Arguments as for ``passes``."""
        finished = []
        for done in self.passes(context, chunks, seed):
            if on_pass is not None:
                on_pass(done)
            if done.clean:
                finished.append(done.x0)
        return torch.cat(finished, dim=2)

    def passes(self, context: Tensor, chunks: Sequence[int], seed: int = 0) -> Iterator[Pass]:
        """Start a new video and yield after each pass.

        - ``context``: text embedding [B, text_len, text_dim]; latents and caches take its dtype and device
        - ``chunks``: frames of each chunk, such as [3, 3, 3] or [1, 3, 3]
        - ``seed``: of all noise, which is drawn on the CPU and so is the same on every device

        Raises ``ValueError`` at once when the chunks do not fit the model.
        """
        self._check(chunks)
        return self._passes(context, tuple(chunks), torch.Generator().manual_seed(seed))

    def prompts(
        self,
        parts: Sequence[tuple[Tensor, Sequence[int]]],
        seed: int = 0,
        on_switch: Callable[[], int] | None = None,
    ) -> Iterator[Pass]:
        """Start a new video of several prompts and yield after each pass.

        - ``parts``: (text embedding, frames of each chunk) of every prompt, in order
        - ``on_switch``: called between two prompts; so many of the newest frames are then run again, clean and with the
          new text. Without it none are. The caches of cross-attention are emptied either way

        Raises as ``passes`` does.
        """
        self._check([frames for _, chunks in parts for frames in chunks])
        return self._prompts(parts, torch.Generator().manual_seed(seed), on_switch)

    def reset(self) -> None:
        """Forget the video. ``passes`` does this by itself."""
        if self.kv_cache is not None and self.crossattn_cache is not None:
            reset_caches(self.kv_cache, self.crossattn_cache)

    def _prompts(
        self,
        parts: Sequence[tuple[Tensor, Sequence[int]]],
        generator: torch.Generator,
        on_switch: Callable[[], int] | None,
    ) -> Iterator[Pass]:
        self._prepare_caches(parts[0][0])
        video: list[Tensor] = []  # one frame each
        chunk = 0
        for number, (context, chunks) in enumerate(parts):
            if number:
                assert self.crossattn_cache is not None
                for cache in self.crossattn_cache:
                    cache["is_init"] = False
                again = on_switch() if on_switch is not None else 0
                if again:
                    newest = torch.cat(video[-again:], dim=2)
                    self._forward(newest, 0.0, context, len(video) - again)
                    yield Pass(chunk, len(video) - again, again, 0, 1, 0.0, newest, again=True)
            for done in self._chunks(context, tuple(chunks), generator, chunk, len(video)):
                if done.clean:
                    video += done.x0.split(1, dim=2)
                yield done
            chunk += len(chunks)

    def _passes(self, context: Tensor, chunks: tuple[int, ...], generator: torch.Generator) -> Iterator[Pass]:
        self._prepare_caches(context)
        yield from self._chunks(context, chunks, generator, 0, 0)

    def _chunks(
        self, context: Tensor, chunks: tuple[int, ...], generator: torch.Generator, first: int, start: int
    ) -> Iterator[Pass]:
        """Chunks from the ``first`` on, which begins at frame ``start``."""
        steps = len(self.timesteps) + 1
        for index, frames in enumerate(chunks, first):
            noisy = self._noise(context, frames, generator)
            for step, t in enumerate(self.timesteps):
                x0 = x0_from_flow(self._forward(noisy, t, context, start), noisy, t)
                yield Pass(index, start, frames, step, steps, t, x0)
                if step + 1 < len(self.timesteps):
                    noisy = renoise(x0, self._noise(context, frames, generator), self.timesteps[step + 1])
            # Its output is not needed: it leaves the clean keys and values in the cache for the chunks to come.
            self._forward(x0, 0.0, context, start)
            yield Pass(index, start, frames, steps - 1, steps, 0.0, x0)
            start += frames

    @torch.no_grad()
    def _forward(self, x: Tensor, t: float, context: Tensor, start: int) -> Tensor:
        return self.model(
            x,
            torch.full((x.shape[0], x.shape[2]), t, dtype=torch.float32, device=x.device),
            context,
            kv_cache=self.kv_cache,
            crossattn_cache=self.crossattn_cache,
            current_start=start * self.config.tokens_per_frame,
        )

    def _noise(self, like: Tensor, frames: int, generator: torch.Generator) -> Tensor:
        shape = (like.shape[0], self.config.channels, frames, self.config.latent_height, self.config.latent_width)
        return torch.randn(shape, generator=generator).to(like)

    def _prepare_caches(self, context: Tensor) -> None:
        """Empty caches for the batch, dtype and device of ``context``: the old ones where they suit."""
        batch, dtype, device = context.shape[0], context.dtype, context.device
        if self.kv_cache is not None:
            k = self.kv_cache[0]["k"]
            if (k.shape[0], k.dtype, k.device) == (batch, dtype, device):
                self.reset()
                return
        self.kv_cache = allocate_kv_cache(self.config, batch, dtype, device)
        self.crossattn_cache = allocate_crossattn_cache(self.config, batch, dtype, device)

    def _check(self, chunks: Sequence[int]) -> None:
        config, total = self.config, sum(chunks)
        if not self.timesteps:
            raise ValueError("there are no timesteps")
        if not chunks or min(chunks) < 1:
            raise ValueError(f"chunks {list(chunks)}: each needs at least one frame")
        if max(chunks) + config.sink_size > config.cache_frames:
            raise ValueError(
                f"a chunk of {max(chunks)} frames and a sink of {config.sink_size} "
                f"exceed the cache of {config.cache_frames} frames"
            )
        if config.local_attn_size == -1 and total > config.cache_frames:
            raise ValueError(f"without a window the cache ends at {config.cache_frames} frames, not {total}")
        if total > config.rope_positions:
            raise ValueError(f"the RoPE table ends at {config.rope_positions} frames, not {total}")
