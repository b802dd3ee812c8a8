"""`headforce demo`: one rollout of the example model, run side by side as it is and under a policy."""

from typing import Any

from .settings import Settings

__all__ = ["Settings", "run_demo"]


def __getattr__(name: str) -> Any:
    # The sides and the reference are used by benchmarks on machines that cannot draw bars and tables.
    if name == "run_demo":
        from .demo import run_demo

        return run_demo
    raise AttributeError(name)
