"""The report of a run as plain data: what `report.json` holds. docs/usage.md says what each key means."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .._version import __version__
from .checks import TOLERANCE, Check
from .example import examples_folder
from .history import classes
from .measure import Measured
from .pictures import BYTES, READS
from .runner import Runner
from .settings import CHUNK

VERSION = 1


def build_report(m: Measured, checks: Sequence[Check]) -> dict[str, Any]:
    """Seconds, bytes, frames and errors of everything that was measured."""
    config, of_class = m.sides.config, classes(m.policy)
    return {
        "version": VERSION,
        "made_with": {
            "headforce": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "system": platform.system(),
            "machine": platform.machine(),
            "device": "cpu",
            "threads": torch.get_num_threads(),
            "load_average": list(m.load),
            "seconds": m.seconds,
        },
        "model": {
            "name": m.settings.model,
            "preset": m.settings.preset,
            "parameters": sum(p.numel() for p in m.sides.model.parameters()),
            "layers": config.num_layers,
            "heads": config.num_heads,
            "head_dim": config.head_dim,
            "tokens_per_frame": config.tokens_per_frame,
            "window_frames": config.cache_frames,
            "dtype": "float32",
            "weights": f"random, seed {m.settings.seed}, peaked attention",
        },
        "rollout": {
            "chunks": m.settings.chunks,
            "chunk_frames": CHUNK,
            "passes_per_chunk": m.passes_per_chunk,
            "timesteps": [*m.sides.timesteps, 0.0],
            "evicting_chunks": m.evicting,
        },
        "compile": {**m.settings.options, "unit": "model" if m.settings.whole else "block"},
        "policy": {
            "file": Path(m.settings.policy_name).name,
            "labels": _labels(m.settings.labels_file),
            "classified": m.sides.classified,
            "digest": m.sides.given.digest,
            "classes": {
                name: {
                    "rule": m.policy.rules[cells[0][0]][cells[0][1]].text,
                    "heads": len(cells),
                    "kept": m.history.kept(cells),
                }
                for name, cells in of_class.items()
            },
        },
        "sides": {name: _side(m, runner) for name, runner in m.sides.runners.items()},
        "bytes": {
            "dense": m.dense_bytes,
            "held": m.history.pool[-1],
            "planned": m.predicted_bytes,
            "peak": max(m.history.pool),
            "planned_peak": m.predicted_peak,
            "ratio": m.history.pool[-1] / m.dense_bytes,
            "by_chunk": {
                "history": {name: m.history.used(cells) for name, cells in of_class.items()},
                "current": m.history.current,
                "pools": m.history.pool,
            },
        },
        "errors": {
            "compiled_against_eager": m.error("dense_compiled", "dense"),
            "native_against_dense": m.error("native", "dense"),
            "policy_against_reference": m.error("policy", "reference"),
            "one_frame_missing": m.control_error,
            "tolerance": TOLERANCE,
        },
        "structure": {
            "graph_breaks": m.graph_breaks,
            "graphs_for_native": m.sides.runners["native"].graphs,
            "graphs_more_for_policy": m.sides.runners["policy"].graphs,
            "graphs_after_first_eviction": sum(
                m.sides.runners[name].graphs_after(m.evicting[0]) for name in ("native", "policy")
            ),
            "launches_per_layer_and_pass": _launches(m),
        },
        "checks": [{"name": c.name, "holds": c.holds, "sentence": c.sentence} for c in checks],
        "pictures": [READS, BYTES],
    }


def _labels(file: Path | None) -> str | None:
    """The label file, as it was given or as it is called in a checkout."""
    if file is None:
        return None
    checkout = examples_folder().parent
    return file.relative_to(checkout).as_posix() if file.is_relative_to(checkout) else str(file)


def _side(m: Measured, runner: Runner) -> dict[str, Any]:
    seconds = runner.chunk_seconds(m.evicting[0])
    against = {name: m.sides.runners[name].chunk_seconds(m.evicting[0]) for name in ("dense", "dense_compiled")}
    return {
        "title": runner.title,
        "chunk_seconds": seconds,
        "time_ratio": {name: seconds / other for name, other in against.items()},
        "held_bytes": runner.session.pool_bytes if runner.session else _cache_bytes(m, runner),
        "graphs": runner.graphs,
        "compiling_passes_seconds": runner.compile_seconds,
        "passes": [vars(one) for one in runner.times],
    }


def _cache_bytes(m: Measured, runner: Runner) -> int | None:
    return None if runner.name == "reference" else m.dense_bytes


def _launches(m: Measured) -> float:
    session = m.sides.runners["policy"].session
    assert session is not None
    return sum(session.launches) / m.sides.config.num_layers / m.passes
