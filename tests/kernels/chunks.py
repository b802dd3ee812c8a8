"""Arguments for kernels: a chunk to rotate and write, and tables whose reads are cut into parts."""

import torch

from headforce.lowering.schedule import TILE


def chunk(style, dtype=torch.float32, batch=2, frames=3, tokens=11, heads=3, dim=12, value_dim=8, strided=False):
    generator = torch.Generator().manual_seed(dim)

    def random(*shape):
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    rows = frames * tokens
    angles = random(2, rows, dim // 2) * 3
    turns = torch.stack((angles.cos(), angles.sin()), dim=-1)
    qkv = [random(batch, rows, heads, width).to(dtype) for width in (dim, dim, value_dim)]
    if strided:
        qkv = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in qkv]
    count = batch * heads * frames
    pools = [torch.full((count + 4, tokens, width), torch.nan, dtype=dtype) for width in (dim, value_dim)]
    pages = torch.randperm(count + 4, generator=generator)[:count]
    return *qkv, *turns, style, *pools, pages, dtype


def tables_of(rig, parts):
    """The tables of the first layer, each read cut into the next of `parts`; the tiles that all parts have besides."""
    reads, runs = rig.pool.reads[0].clone(), rig.pool.runs[0]
    slot, tiles = 0, 0
    for i, read in enumerate(reads.tolist()):
        reads[i, 6], reads[i, 7] = parts[i % len(parts)], slot
        cut = parts[i % len(parts)] if parts[i % len(parts)] > 1 else 0
        slot, tiles = slot + cut * read[3], tiles + cut * -(-read[3] // TILE)
    return reads, runs, tiles
