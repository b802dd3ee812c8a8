"""Makes the examples importable, gives hypothesis its profiles, has kernels interpreted where there is no GPU, and
keeps test workers from waiting for each other and for the garbage collector."""

import gc
import os
import sys
from pathlib import Path

import pytest

# Tensors are small here, and the threads of several workers would wait for each other. Read when torch is imported, in
# the processes too that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # more are processes that import torch first

# Triton looks at this when it is imported, and torch imports triton when it likes.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

try:
    from hypothesis import HealthCheck, settings
except ImportError:  # the machine of `make gpu` may lack it; tests marked gpu do without
    pass
else:
    # Examples have no time limit: machines that run tests are busy. In CI a run can be repeated exactly.
    settings.register_profile("default", max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.register_profile("ci", settings.get_profile("default"), derandomize=True)
    settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture(autouse=True, scope="module")
def small_heap() -> None:
    """What Dynamo keeps of earlier graphs grows with every test; no later collection has to walk over it."""
    gc.collect()
    gc.freeze()
