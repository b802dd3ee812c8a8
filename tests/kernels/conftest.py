"""Kernels run in Triton's interpreter; where it cannot be used, these tests say why they are skipped."""

import pytest

from headforce.kernels import interpreter
from tests.interpreting import need_interpreter


@pytest.fixture(autouse=True, scope="package")
def _interpreted():
    if not interpreter.enabled():
        pytest.skip(
            "TRITON_INTERPRET=1 was not set before triton was imported (tests/conftest.py sets it without a GPU)"
        )
    need_interpreter()
