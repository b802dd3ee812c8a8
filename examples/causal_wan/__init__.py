"""A causal Wan video transformer in plain PyTorch, with the KV cache protocol of Self-Forcing.

The model denoises a video a few latent frames at a time and keeps the keys and values of the past in a cache that it
writes in place. Its parameters have the names and shapes of the published Self-Forcing checkpoints, and it traces into
one graph under ``torch.compile(fullgraph=True)``.

>>> import torch
>>> from examples.causal_wan import TINY, CausalWan, Rollout, init_random
>>> model = init_random(CausalWan(TINY), seed=0)
>>> context = torch.randn(1, TINY.text_len, TINY.text_dim)
>>> Rollout(model).generate(context, chunks=[1, 3, 3]).shape  # [B, channels, frames, height, width]
torch.Size([1, 4, 7, 8, 12])
"""

from .attention import CrossAttention, RMSNorm, SelfAttention
from .cache import CacheError, allocate_crossattn_cache, allocate_kv_cache, append, reset_caches
from .checkpoint import CheckpointError, load_checkpoint
from .config import DEMO, PRESETS, TINY, WAN_1_3B, WAN_14B, WanConfig
from .generate import Pass, Rollout
from .model import CausalWan
from .rope import rope_angles, rope_table, rotate
from .schedule import SELF_FORCING_TIMESTEPS, renoise, warp_timesteps, x0_from_flow
from .weights import PEAKED_LOGIT_STD, init_random

__all__ = [
    "DEMO",
    "PEAKED_LOGIT_STD",
    "PRESETS",
    "SELF_FORCING_TIMESTEPS",
    "TINY",
    "WAN_1_3B",
    "WAN_14B",
    "CacheError",
    "CausalWan",
    "CheckpointError",
    "CrossAttention",
    "Pass",
    "RMSNorm",
    "Rollout",
    "SelfAttention",
    "WanConfig",
    "allocate_crossattn_cache",
    "allocate_kv_cache",
    "append",
    "init_random",
    "load_checkpoint",
    "renoise",
    "reset_caches",
    "rope_angles",
    "rope_table",
    "rotate",
    "warp_timesteps",
    "x0_from_flow",
]
