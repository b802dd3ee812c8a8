"""Kernels run in Triton's interpreter, one thread; where it cannot be used, these tests say why they are skipped."""

import numpy as np
import pytest
import torch
import triton

from headforce.kernels import interpreter


def version(module):
    return tuple(int(part) for part in module.__version__.split(".")[:2])


@pytest.fixture(autouse=True, scope="package")
def _interpreted():
    if not interpreter.enabled():
        pytest.skip(
            "TRITON_INTERPRET=1 was not set before triton was imported (tests/conftest.py sets it without a GPU)"
        )
    if version(triton) < (3, 8) and version(np) >= (2, 4):
        pytest.skip(f"the interpreter of triton {triton.__version__} cannot run with numpy {np.__version__}")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
