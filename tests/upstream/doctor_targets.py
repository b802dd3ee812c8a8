"""Models of checkouts, for `headforce doctor tests/upstream/doctor_targets.py:FAMILY`.

HEADFORCE_UPSTREAM names the folder of the checkouts. The files of a repository are imported one by one, without what
its packages import besides; the model and its calls are those that its adapter makes of the class.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from headforce.kvpass.capture import find_adapter
from tests.upstream.families import FAMILIES


def _example(name: str) -> Any:
    torch.set_num_threads(1)
    model = FAMILIES[name].make(Path(os.environ["HEADFORCE_UPSTREAM"]) / name).model
    return find_adapter(model).example(type(model))


def self_forcing() -> Any:
    return _example("self-forcing")


def causal_forcing() -> Any:
    return _example("causal-forcing")


def causvid() -> Any:
    return _example("causvid")


def longlive() -> Any:
    return _example("longlive-1")
