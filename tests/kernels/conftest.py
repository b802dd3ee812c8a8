"""Kernels run in Triton's interpreter, one thread; where it cannot be used, these tests say why they are skipped."""

import pytest
import torch

from headforce.kernels import interpreter
from tests.interpreting import need_interpreter


@pytest.fixture(autouse=True, scope="package")
def _interpreted():
    if not interpreter.enabled():
        pytest.skip(
            "TRITON_INTERPRET=1 was not set before triton was imported (tests/conftest.py sets it without a GPU)"
        )
    need_interpreter()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
