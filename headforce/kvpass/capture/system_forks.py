"""Forks of Self-Forcing into which a policy was written by hand: what headforce has as a preset.

They are told by a variable of their self-attention's forward, and asked before the models that they were made from,
whose attributes they have: this module is imported behind those, and the latest registered adapter goes first.
"""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from ...errors import HeadforceError
from .adapter import adapter
from .refused import RefusedFamily
from .wan import variables_of


class SystemFork(RefusedFamily):
    """A published system in the form of a model. `variable` is one of its forward's; `preset` computes the same."""

    code = "HF-CACHE-FORM"
    system: ClassVar[str]
    variable: ClassVar[str]
    preset: ClassVar[str]

    def knows(self, model: nn.Module, attention: nn.Module) -> bool:
        return self.variable in variables_of(attention)

    def refusal(self, model: nn.Module) -> HeadforceError:
        return HeadforceError(
            self.code,
            site=type(model).__qualname__,
            found=f"{self.system}: its caches are those of a policy already, head by head",
            needed=f"the model that it was made from, with these weights, and policy={self.preset!r}",
            hint="Load the weights into that model; docs/systems.md has the policy against this code.",
        )


@adapter("forcing-kv")
class ForcingKV(SystemFork):
    """`CausalWanModel` of Forcing-KV (github.com/zju-jiyicheng/Forcing-KV), for Krea's model too."""

    system, variable, preset = "Forcing-KV", "temporal_heads", "forcing_kv"


@adapter("dummy-forcing")
class DummyForcing(SystemFork):
    """`CausalWanModel` of Dummy Forcing (github.com/csguoh/DummyForcing)."""

    system, variable, preset = "Dummy Forcing", "headgroup_first", "dummy_forcing"


@adapter("deep-forcing")
class DeepForcing(SystemFork):
    """`CausalWanModel` and `CausalWanModelDS` of Deep Forcing (arXiv 2512.05081)."""

    system, variable, preset = "Deep Forcing", "desired_sink_abs_start", "deep_forcing"


@adapter("pyramid-forcing")
class PyramidForcing(SystemFork):
    """`CausalWanModel` of Pyramid Forcing (github.com/IF-LAB-PKU/Pyramid-Forcing)."""

    system, variable, preset = "Pyramid Forcing", "prompt_v", "pyramid_forcing"
