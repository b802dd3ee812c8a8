"""The example of docs/your-own-model.md: its adapter keeps the laws, and its page shows what is in the file."""

import pytest
import torch

from examples.own_model import TwoBlocks, play
from headforce.testing import check_adapter


@pytest.mark.slow
def test_the_adapter_of_the_page():
    torch.manual_seed(0)
    check_adapter("two-blocks", TwoBlocks(), play)
    torch._dynamo.reset()
