"""`headforce demo`: one rollout of the example model, run side by side as it is and under a policy."""

from .demo import run_demo
from .settings import Settings

__all__ = ["Settings", "run_demo"]
