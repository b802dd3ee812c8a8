"""What a chunk costs before it runs: counts of work, and the times of a machine that was measured once."""

from .machine import Machine
from .predict import Prediction, predict
from .shape import Shape

__all__ = ["Machine", "Prediction", "Shape", "predict"]
