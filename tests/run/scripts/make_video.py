"""A script as its author left it: the example model makes videos and saves them. It knows nothing of headforce."""

import argparse
from pathlib import Path

import numpy as np
import torch

from examples.causal_wan import TINY, CausalWan, Rollout, init_random

parser = argparse.ArgumentParser()
parser.add_argument("--out", type=Path, required=True)
parser.add_argument("--videos", type=int, default=1)
args = parser.parse_args()

if __name__ == "__main__":
    rollout = Rollout(init_random(CausalWan(TINY), seed=0).eval(), timesteps=(1000.0, 500.0))
    args.out.mkdir(parents=True, exist_ok=True)
    for number in range(args.videos):
        text = torch.randn(1, TINY.text_len, TINY.text_dim)
        video = rollout.generate(text, chunks=[1, 3, 3, 3], seed=int(torch.randint(100, ())))
        np.save(args.out / f"{number}.npy", video.numpy())
        print(f"video {number}", tuple(video.shape))
