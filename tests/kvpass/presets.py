"""Every preset, at a size where its stores fill and let go on the tests' model of two layers of four heads."""

from headforce.presets import (
    Labels,
    deep_forcing,
    dummy_forcing,
    forcing_kv,
    head_forcing,
    longlive,
    pyramid_forcing,
    self_forcing,
)

PRESETS = {
    "deep_forcing": deep_forcing(sink=2, budget=7, recent=4, window=10, segments=4),
    "self_forcing": self_forcing(window=9),
    "longlive": longlive(window=9, sink=3),
    "dummy_forcing": dummy_forcing(Labels((("sink", "neighbor", "dummy", "dummy"),) * 2)),
    "head_forcing": head_forcing(Labels((("local", "anchor", "memory", "memory"),) * 2), novelty=0.999),
    "forcing_kv": forcing_kv(Labels((("static", "dynamic", "dynamic", "dynamic"),) * 2)),
    "pyramid_forcing": pyramid_forcing(Labels((("wave", "anchor", "veil", "veil"),) * 2)),
}
