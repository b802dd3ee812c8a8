"""The sizes of a causal Wan model and of the video it makes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class WanConfig:
    """The sizes of one model.

    The first group is fixed by the weights. The second, the geometry and the cache, can be changed for any weights
    with ``dataclasses.replace``. Frames are latent frames; latents are what the video autoencoder makes of an image,
    eight times smaller in each direction.

    Raises ``ValueError`` when the sizes contradict each other.
    """

    dim: int
    num_layers: int
    num_heads: int
    ffn_dim: int
    channels: int = 16  # of the latents, in and out
    freq_dim: int = 256  # of the sinusoids that encode the timestep
    text_dim: int = 4096
    text_len: int = 512  # text tokens, after padding
    patch_size: tuple[int, int, int] = (1, 2, 2)  # latent frames, rows and columns in one token
    eps: float = 1e-6
    cross_attn_norm: bool = True

    latent_height: int = 60
    latent_width: int = 104
    local_attn_size: int = -1  # window in frames, the current chunk included; -1: no window, nothing is ever evicted
    sink_size: int = 0  # first frames that the window never evicts
    full_attn_size: int = 21  # frames the cache holds when there is no window
    rope_positions: int = 1024  # positions on each axis; the first bounds the length of a video in frames

    def __post_init__(self) -> None:
        if self.dim % self.num_heads or (self.dim // self.num_heads) % 2:
            raise ValueError(f"dim {self.dim} does not give {self.num_heads} heads of one even size")
        if self.head_dim < 6:
            raise ValueError(f"a head of {self.head_dim} channels has no rotary pair for each of the three axes")
        if self.freq_dim % 2:
            raise ValueError(f"freq_dim {self.freq_dim} is odd; sines and cosines come in pairs")
        if self.patch_size[0] != 1:
            raise ValueError(f"patch_size {self.patch_size} mixes frames; each frame has its own timestep")
        if self.latent_height % self.patch_size[1] or self.latent_width % self.patch_size[2]:
            raise ValueError(
                f"latents of {self.latent_height} x {self.latent_width} do not divide into patches {self.patch_size}"
            )
        if self.local_attn_size != -1 and self.local_attn_size < 1:
            raise ValueError(f"local_attn_size {self.local_attn_size} is neither -1 nor a number of frames")
        if not 0 <= self.sink_size < self.cache_frames:
            raise ValueError(f"a sink of {self.sink_size} frames leaves no room in a cache of {self.cache_frames}")

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens in one frame."""
        return self.latent_height // self.patch_size[1], self.latent_width // self.patch_size[2]

    @property
    def tokens_per_frame(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def cache_frames(self) -> int:
        """Frames the KV cache has room for, which are also the most that a query reads."""
        return self.full_attn_size if self.local_attn_size == -1 else self.local_attn_size


# Wan2.1-T2V (github.com/Wan-Video/Wan2.1) at 480p: 1560 tokens in a frame.
WAN_1_3B = WanConfig(dim=1536, num_layers=30, num_heads=12, ffn_dim=8960)
WAN_14B = WanConfig(dim=5120, num_layers=40, num_heads=40, ffn_dim=13824)

# Small enough to run on a laptop, large enough to show what a cache policy saves. There are no weights of this size.
DEMO = WanConfig(
    dim=768,
    num_layers=8,
    num_heads=12,
    ffn_dim=4480,
    text_dim=512,
    text_len=64,
    latent_height=24,
    latent_width=40,
    local_attn_size=21,
)

# For tests: everything that can be odd is odd, so that mixed-up axes do not go unseen.
TINY = WanConfig(
    dim=96,
    num_layers=2,
    num_heads=4,
    ffn_dim=128,
    channels=4,
    freq_dim=64,
    text_dim=32,
    text_len=8,
    latent_height=8,
    latent_width=12,
    local_attn_size=6,
)

PRESETS = {"wan-1.3b": WAN_1_3B, "wan-14b": WAN_14B, "demo": DEMO, "tiny": TINY}
