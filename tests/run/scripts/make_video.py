"""A script as its author left it: the example model makes videos and saves them. It knows nothing of headforce."""

import argparse
import dataclasses
from pathlib import Path

import numpy as np
import torch
from settings import CHUNK  # the module beside this script

from examples.causal_wan import TINY, CausalWan, Rollout, init_random

parser = argparse.ArgumentParser()
parser.add_argument("--out", type=Path, required=True)
parser.add_argument("--chunks", type=int, default=2)
parser.add_argument("--exit", type=int, default=0)
args = parser.parse_args()

if __name__ == "__main__":
    config = dataclasses.replace(TINY, num_layers=1)
    rollout = Rollout(init_random(CausalWan(config), seed=0).eval(), timesteps=(1000.0,))
    args.out.mkdir(parents=True, exist_ok=True)
    text = torch.randn(1, config.text_len, config.text_dim)
    video = rollout.generate(text, [CHUNK] * args.chunks, seed=int(torch.randint(100, ())))
    np.save(args.out / "video.npy", video.numpy())
    print("made", tuple(video.shape))
    raise SystemExit(args.exit)
