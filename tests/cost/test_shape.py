"""Counts of work against what torch counts on the example model, and against what a compiled pass really reads."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import headforce
from examples.causal_wan import TINY, CausalWan, Rollout, init_random
from headforce.cost import Shape
from headforce.cost.predict import works
from headforce.lowering.footprint import footprint
from headforce.lowering.watch import watching
from headforce.policy import Policy, Schedule, parse_rule

WINDOW, CHUNKS = 6, (3, 3, 1, 3, 2)


def shape_of(config, passes=1, batch=1):
    return Shape(
        layers=config.num_layers,
        heads=config.num_heads,
        head_dim=config.head_dim,
        tokens=config.tokens_per_frame,
        ffn=config.ffn_dim,
        text=config.text_len,
        text_width=config.text_dim,
        channels=4 * config.channels,
        frequencies=config.freq_dim,
        batch=batch,
        passes=passes,
        dtype="float32",
    )


def text_of(config, batch=1):
    return torch.randn(batch, config.text_len, config.text_dim, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("batch", [1, 2])
def test_flops_of_the_dense_model_are_those_that_torch_counts(batch):
    config = replace(TINY, num_layers=3, local_attn_size=WINDOW)
    shape, native = shape_of(config, batch=batch), parse_rule(f"span({WINDOW})")
    bound = Policy({}).bind(layers=1, heads=1, native=native)
    model = init_random(CausalWan(config).eval())
    rollout = Rollout(model, config, timesteps=(1000.0,)).passes(text_of(config, batch), list(CHUNKS))
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # the others are not counted on a CPU
        for chunk in Schedule(CHUNKS):
            past = len(bound.distinct[0].at(chunk).frames(chunk, chunk.start))
            expected = shape.flops(chunk.frames, 3 * shape.dense(chunk.frames, past).flops(shape.head_dim))
            text = sum(one.flops for one in shape.of_text()) if chunk.index == 0 else 0
            for extra in (text, 0):  # the noisy pass and the clean one
                with FlopCounterMode(display=False) as counter:
                    next(rollout)
                assert counter.get_total_flops() == expected + extra


class Read:
    """Adds up what launches read."""

    def __init__(self):
        self.flops = 0

    def wrote(self, *_):
        pass

    def attended(self, launch, _):
        runs = launch.runs.tolist()
        for _, _, _, rows, first, count, *_ in launch.reads.tolist():
            keys = sum(runs[i][1] for i in range(first, first + count))
            self.flops += 4 * rows * keys * launch.query.shape[-1]


@pytest.mark.slow
def test_flops_and_bytes_of_a_policy_are_those_of_the_compiled_model():
    rules = {
        "far": "sink(1)@collapse(4) | window(3)",
        "near": "window(1)",
        "beat": 'stride(2, phase="query", last=1)',
        "none": "drop()",
    }
    heads = {0: {"none": (3,)}, 1: {"far": (0, 2), "beat": (1,)}}
    config = replace(TINY, local_attn_size=WINDOW)
    policy = Policy({name: parse_rule(rule) for name, rule in rules.items()}, "near", heads=heads)
    shape = shape_of(config)
    bound = policy.bind(layers=2, heads=4, native=parse_rule(f"span({WINDOW})"), tokens=shape.tokens)
    schedule = Schedule((3, 3, 3))
    expected = [work.flops(shape.head_dim) for work in works(bound, schedule, shape)]
    model = init_random(CausalWan(config).eval())
    torch._dynamo.reset()
    with headforce.prepare(model, policy) as session, torch.no_grad():
        session.compile(blocks="blocks", inner="eager")
        rollout = Rollout(model, config, timesteps=(1000.0,)).passes(text_of(config), list(schedule.sizes))
        for chunk in range(len(schedule.sizes)):
            for _ in range(2):
                read = Read()
                with watching(read):
                    next(rollout)
                assert read.flops == expected[chunk]
        assert session.pool_bytes == footprint(bound, schedule, shape.frame_bytes).pool_bytes
    torch._dynamo.reset()


def test_bytes_of_a_frame():
    assert Shape().frame_bytes == 2 * 1560 * 128 * 2
    assert Shape(batch=2, dtype="float32").frame_bytes == 4 * Shape().frame_bytes
