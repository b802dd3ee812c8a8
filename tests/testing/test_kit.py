"""The kit on what headforce registers itself, and on things that break its laws."""

import pytest
import torch

from examples.own_model import TwoBlocks, TwoBlocksAdapter, play
from headforce.errors import HeadforceError
from headforce.kernels import reference
from headforce.kernels.rotation import INTERLEAVED
from headforce.kvpass.capture import adapter as adapter_module  # noqa: F401
from headforce.kvpass.recognize.append_cache import append_cache
from headforce.kvpass.recognize.cat_history import cat_history
from headforce.kvpass.report import Report
from headforce.lowering import ops  # noqa: F401  registers the operators
from headforce.lowering.state import score as scores
from headforce.testing import (
    assert_refused,
    assert_rewritten,
    check_adapter,
    check_kernel,
    check_recognizer,
    check_score,
    peak,
    spread,
    zoo,
)
from tests.kernels.chunks import chunk
from tests.kvpass.conftest import clean_compiler, wan  # noqa: F401

# --- assertions -------------------------------------------------------------------------------------------------


def test_refusals_are_asserted_by_code():
    def refuse():
        raise HeadforceError("HF-MASK", found="a mask", needed="none", site="blocks.0")

    with assert_refused("HF-MASK", site="blocks", found="mask") as refusal:
        refuse()
    assert refusal.error.code == "HF-MASK"
    for code, words in (("HF-ROPE", "refused with HF-MASK, not HF-ROPE"), ("HF-NONE", "not in the catalogue")):
        with pytest.raises(AssertionError, match=words), assert_refused(code):
            refuse()
    with pytest.raises(AssertionError, match="nothing was refused"), assert_refused("HF-MASK"):
        pass


def test_a_report_without_a_rewrite_does_not_pass():
    with pytest.raises(AssertionError, match="nothing was rewritten"):
        assert_rewritten(Report())


# --- adapters ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (lambda model: play(model)[:1], "one video only"),
        (lambda model: [video + torch.rand(()) for video in play(model)], "same twice"),
    ],
    ids=["one video", "noise"],
)
def test_an_adapter_is_not_judged_by_too_little(broken, words):
    with pytest.raises(AssertionError, match=f"adapter two-blocks: .*{words}"):
        check_adapter("two-blocks", TwoBlocks(), broken)


def test_an_adapter_that_leaves_something_behind_is_found(monkeypatch):
    real = TwoBlocksAdapter.install
    monkeypatch.setattr(TwoBlocksAdapter, "install", lambda self, model: setattr(model, "left", 1) or real(self, model))
    with pytest.raises(AssertionError, match=r"adapter two-blocks: restore.. leaves something behind"):
        check_adapter("two-blocks", TwoBlocks(), play)


# --- recognisers ------------------------------------------------------------------------------------------------


def example(protocol, chunks=1, **parts):
    layer = zoo.SelfAttention(protocol=protocol, **parts)
    cache = layer.new_cache(frames=3)
    return layer, [(x, cache, start) for x, start in zoo.inputs(chunks, passes=1)]


def shared(k, v, cache, start):
    """K and V read from one tensor."""
    cache["k"][:, start : start + k.shape[1]] = k
    read = cache["k"][:, : start + k.shape[1]]
    return read, read


def test_a_recogniser_of_caches():
    refuses = {"HF-SHARED-KV": [example(shared)]}
    check_recognizer(append_cache, [example("append", 1)], refuses)
    with pytest.raises(AssertionError, match=r"recogniser cat_history: .*another recogniser knew it"):
        check_recognizer(cat_history, [example("append", 1)], refuses)
    with pytest.raises(AssertionError, match=r"recogniser append_cache: .*HF-SHARED-KV in its place"):
        check_recognizer(append_cache, [example("append", 1)], {"HF-ROLL": [example(shared)]})


# --- kernels ----------------------------------------------------------------------------------------------------

ROTATE = {"mutates": (6, 7), "keeps": (3, 4)}


def rotation_case():
    """Arguments of `rotate_and_write`; the last one, the dtype of the result, is left to the query."""
    return chunk(INTERLEAVED, torch.float64, tokens=5)[:-1]


def rotated(query, *rest):
    """`rotate_and_write` in the dtype of the query."""
    return reference.rotate_and_write(query, *rest, query.dtype)


def test_a_kernel_against_its_reference():
    def operator(query, *rest):
        return torch.ops.headforce.rotate_and_write(query, *rest, query.dtype)

    check_kernel(operator, rotated, [rotation_case()], **ROTATE)


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (lambda query, *rest: rotated(query, *rest) * 1.01, "result 0 is off by"),
        (lambda query, *rest: rotated(query, *rest).double(), "result 0 is torch.float64"),
        (lambda query, *rest: rotated(query.mul_(1), *rest) + query.mul_(0), "it changes argument 0"),
        (lambda query, *rest: (rotated(query, *rest), rest[5].nan_to_num_(0))[0], "NaN in other places"),
        (lambda query, *rest: rotated(query, *rest) + torch.rand(()) * 1e-9, "differs from one run"),
    ],
    ids=["scaled", "dtype", "writes its input", "fills poison", "random"],
)
def test_a_kernel_that_breaks_a_law_is_found(broken, words):
    with pytest.raises(AssertionError, match=f"kernel .*{words}"):
        check_kernel(broken, rotated, [rotation_case()], **ROTATE, dtypes=[torch.float32])


# --- scores -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda s: s.keys.mean((1, 3, 4))[:, :1], "numbers for"),
        (lambda s: s.keys.mean((1, 3, 4)) / 0, "not finite"),
        (lambda s: s.keys.mean((1, 3, 4)) * 0, "the same number"),
        (lambda s: s.keys.mean((1, 3, 4)) - s.keys.mean(), "groups see each other"),
        (lambda s: s.keys.mean((1, 3, 4)).cumsum(1), "the order of candidates"),
        (lambda s: s.keys.mean((1, 3, 4)), "not scored in float32"),
    ],
    ids=["shape", "infinite", "constant", "groups", "order", "precision"],
)
def test_a_score_that_breaks_a_law_is_found(function, words, monkeypatch):
    def broken(segments):
        """A number, of a kind."""
        return function(segments)

    monkeypatch.setitem(scores._SCORES, "broken", scores.Score("broken", broken, "lowest", False, False, False, False))
    with pytest.raises(AssertionError, match=f"score broken: .*{words}"):
        check_score("broken")


# --- peaked attention -------------------------------------------------------------------------------------------


def test_peaked_attention():
    query, key = torch.randn(2, 1, 20, 2, 16, dtype=torch.float64).unbind(0)
    assert spread(query, key, 16**-0.5) > 0.8
    assert spread(6 * query, key, 16**-0.5) < 0.5
    assert spread(0 * query, key, 1.0) == pytest.approx(1)
    model = wan()
    names = peak(model)
    assert names
    assert all(name.endswith(("norm_q.weight", "norm_k.weight")) and "cross" not in name for name in names)
    layer = zoo.SelfAttention()
    before = layer.q.weight.clone()
    assert peak(layer, 3.0) == ["q.weight"]
    torch.testing.assert_close(layer.q.weight, 3 * before)
    with pytest.raises(ValueError, match="no parameter"):
        peak(torch.nn.Linear(2, 2))
