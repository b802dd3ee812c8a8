"""Which modules are seen, when they are prepared, and what is left alone."""

from __future__ import annotations

import copy
import threading
from dataclasses import replace

import pytest
import torch
from torch import nn

from examples.causal_wan import TINY, CausalWan, Rollout, init_random
from headforce import HeadforceError, prepare
from headforce.kvpass.session import session_of
from headforce.policy import Chunk
from headforce.run.family import made_by_torch
from headforce.run.record import ModelRecord, ProcessRecord
from headforce.run.settings import RunSettings
from headforce.run.watcher import Watcher

CONFIG = replace(TINY, num_layers=1)
NATIVE = "headforce: 1\nclasses: {a: native()}\ndefault: a\n"


@pytest.fixture(autouse=True)
def clean_compiler():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def watch(tmp_path):
    """Begins to watch: mode and policy -> the record. It ends with the test."""
    undo = []

    def begin(mode="owned", policy=NATIVE):
        (tmp_path / "policy.yaml").write_text(policy)
        record = ProcessRecord(tmp_path)
        settings = RunSettings(str(tmp_path / "policy.yaml"), mode=mode, inner="eager", records=str(tmp_path))
        undo.append(Watcher(settings, record).install())
        return record

    yield begin
    for one in undo:
        one()


def wan():
    return init_random(CausalWan(CONFIG), seed=0).eval()


def text():
    return torch.randn(1, CONFIG.text_len, CONFIG.text_dim, generator=torch.Generator().manual_seed(1))


def first_pass(model):
    """The first chunk, noisy and clean: the shortest video."""
    return Rollout(model, CONFIG, timesteps=(1000.0,)).generate(text(), [3])


@pytest.fixture(scope="module")
def eager():
    return first_pass(wan())


class Wrapper(nn.Module):
    """What a pipeline calls in place of the model."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, *args, **kwargs):
        return self.model(*args, **kwargs)


class Refused(nn.Module):
    """A model with the marks of Rolling Forcing's."""

    def __init__(self):
        super().__init__()
        block, attention = nn.Module(), nn.Module()
        attention.block_length, attention.frame_length, block.self_attn = 4680, 1560, attention
        self.blocks = nn.ModuleList([block])

    def forward(self, x):
        return x


def test_a_family_that_is_known_and_not_taken_says_why(watch):
    record, model = watch(), Refused()
    with pytest.raises(HeadforceError, match="HF-CLOCK"):
        model(1)
    (seen,) = record.models
    assert seen.name == "Refused"
    assert "Rolling Forcing" in seen.refusal


@pytest.mark.slow
def test_a_model_is_prepared_in_front_of_its_first_pass(watch, eager):
    record, model = watch(), wan()
    assert (first_pass(model) - eager).abs().max() < 1e-5
    assert session_of(model) is not None
    (seen,) = record.models
    assert (seen.name, seen.passes, seen.launches, seen.misses) == ("CausalWan", 2, 2, 0)
    assert seen.sites == {"rewritten": seen.graphs, "refused": 0, "excluded": seen.graphs}
    assert seen.dense == 2 * 4 * CONFIG.cache_frames * CONFIG.tokens_per_frame * CONFIG.dim
    assert 0 < seen.held <= seen.dense
    assert seen.videos == [[3]]

    twin = copy.deepcopy(model)  # a model of its own
    assert (first_pass(twin) - eager).abs().max() < 1e-5
    assert session_of(twin) not in (None, session_of(model))
    assert [seen.launches for seen in record.models] == [2, 2]


@pytest.mark.slow
def test_what_the_script_wrapped_compiled_and_calls_from_two_threads(watch, eager):
    compiled = torch.compile(wan(), backend="eager")
    record, wrapper, results, failures = watch(), Wrapper(compiled), [], []
    barrier = threading.Barrier(2)

    def work():
        barrier.wait()
        try:
            results.append(first_pass(wrapper))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert all((result - eager).abs().max() < 1e-5 for result in results)
    assert session_of(wrapper) is None
    assert session_of(compiled) is not None
    assert [(seen.name, seen.passes, seen.launches) for seen in record.models] == [("CausalWan", 4, 4)]
    assert list(record.called) == ["Wrapper"]


@pytest.mark.slow
def test_view_mode(watch, eager):
    record, model = watch("view"), wan()
    assert (first_pass(model) - eager).abs().max() < 1e-5
    assert session_of(model).mode == "view"
    (seen,) = record.models
    assert (seen.launches, seen.held, seen.misses, seen.videos) == (2, 0, 0, [[3]])
    assert seen.dense > 0


def test_watching_changes_nothing(watch, eager):
    record, model = watch("eager"), wan()
    assert torch.equal(first_pass(model), eager)
    assert session_of(model) is None
    (seen,) = record.models
    assert (seen.passes, seen.launches, seen.graphs) == (2, 0, 0)
    assert seen.dense == 2 * 4 * CONFIG.cache_frames * CONFIG.tokens_per_frame * CONFIG.dim


def test_a_call_without_a_cache_is_none_of_our_business(watch):
    record, model = watch(), Wrapper(nn.Linear(2, 2))
    model.forward = lambda x, kv_cache=None: model.model(x)
    model(torch.ones(1, 2))
    assert session_of(model) is None
    assert [(seen.name, seen.passes, seen.launches) for seen in record.models] == [("Wrapper", 0, 0)]


def test_a_model_that_the_script_prepared_is_left_to_it(watch):
    record, model = watch(), wan()
    with prepare(model, policy="self_forcing") as session:
        with pytest.raises(HeadforceError) as caught:
            first_pass(model)  # the script has not compiled it
        assert caught.value.code == "HF-EAGER"
        assert session_of(model) is session
    assert [seen.launches for seen in record.models] == [0]


def test_a_refusal_reaches_the_script_and_the_record(watch, tmp_path):
    record, model = watch(policy="headforce: 1\nclasses: {a: native()}\nheads: {5: {a: [0]}}\ndefault: a\n"), wan()
    with pytest.raises(HeadforceError) as caught:
        first_pass(model)
    assert caught.value.code == "HF-POLICY-SHAPE"
    assert "HF-POLICY-SHAPE" in record.models[0].refusal
    assert "HF-POLICY-SHAPE" in next(tmp_path.glob("*.json")).read_text()  # at once: the script may be killed


def test_it_ends(watch, tmp_path):
    call = nn.Module.__call__
    undo = Watcher(RunSettings("self_forcing"), ProcessRecord(tmp_path)).install()
    assert nn.Module.__call__ is not call
    undo()
    assert nn.Module.__call__ is call


def test_modules_of_torch():
    class Own(nn.Linear):
        pass

    assert made_by_torch(nn.Linear)
    assert made_by_torch(nn.DataParallel)
    assert made_by_torch(torch.distributed.fsdp.FullyShardedDataParallel)
    assert not made_by_torch(Own)
    assert not made_by_torch(CausalWan)


def test_chunks_of_videos():
    record = ModelRecord("Model")
    passes = [(0, 1), (0, 1), (1, 3), (1, 3), (4, 3), (0, 3), (0, 3), (3, 3), (0, 6), (6, 3)]
    for start, frames in passes:
        record.see(Chunk(0, start, frames))
    assert record.videos == [[1, 3, 3], [3, 3], [6, 3]]
    record.see(Chunk(0, 3, 6))  # frames that are run again, after a prompt has switched
    record.see(Chunk(0, 9, 3))
    assert record.videos[-1] == [6, 3, 3]


def test_records_are_written_where_there_is_something_to_say(tmp_path):
    record = ProcessRecord(tmp_path)
    record.save()
    assert not list(tmp_path.iterdir())
    record.called["Vae"] = None
    record.save()
    assert len(list(tmp_path.glob("*.json"))) == 1
    gone = ProcessRecord(tmp_path / "gone")  # the folder of a command that has ended
    gone.called["Vae"] = None
    gone.save()
    assert not gone.folder.exists()
