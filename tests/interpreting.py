"""Whether Triton's interpreter can be used with the packages that are there."""

import numpy as np
import pytest
import triton


def need_interpreter():
    """Skips where the interpreter breaks on any loop whose bounds are computed."""
    old = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 8)
    if old and np.lib.NumpyVersion(np.__version__) >= "2.4.0":
        pytest.skip(f"the interpreter of triton {triton.__version__} cannot run with numpy {np.__version__}")
