"""Checkpoints: both formats, the published wrapping, and everything that must be refused."""

import pickle

import pytest
import torch
from safetensors.torch import save_file

from examples.causal_wan import TINY, CausalWan, CheckpointError, init_random, load_checkpoint


@pytest.fixture
def source():
    return init_random(CausalWan(TINY), seed=1).state_dict()


@pytest.fixture
def model():
    return init_random(CausalWan(TINY), seed=2)


def prefixed(state, prefix):
    return {prefix + name: tensor for name, tensor in state.items()}


def holds(model, state):
    return all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: prefixed(state, "model."),
        lambda state: {"generator": prefixed(state, "model.")},
        lambda state: {"generator_ema": prefixed(state, "model.")},
        lambda state: {"generator_ema": prefixed(state, "model._fsdp_wrapped_module."), "step": 600},
    ],
    ids=["plain", "prefix", "generator", "ema", "fsdp"],
)
def test_torch_files(tmp_path, source, model, wrap):
    torch.save(wrap(source), tmp_path / "weights.pt")
    load_checkpoint(model, tmp_path / "weights.pt")
    assert holds(model, source)


def test_the_older_torch_format(tmp_path, source, model):
    torch.save(source, tmp_path / "weights.pth", _use_new_zipfile_serialization=False)
    load_checkpoint(model, str(tmp_path / "weights.pth"))
    assert holds(model, source)


@pytest.mark.parametrize("prefix", ["", "model."])
def test_safetensors_files(tmp_path, source, model, prefix):
    save_file(prefixed(source, prefix), tmp_path / "weights.safetensors")
    load_checkpoint(model, tmp_path / "weights.safetensors")
    assert holds(model, source)


def test_the_averaged_weights_are_taken_unless_others_are_named(tmp_path, source, model):
    plain = {name: tensor + 1 for name, tensor in source.items()}
    torch.save({"generator": plain, "generator_ema": source}, tmp_path / "weights.pt")
    load_checkpoint(model, tmp_path / "weights.pt")
    assert holds(model, source)
    load_checkpoint(model, tmp_path / "weights.pt", weights="generator")
    assert holds(model, plain)
    with pytest.raises(CheckpointError, match="no 'critic'; it has generator, generator_ema"):
        load_checkpoint(model, tmp_path / "weights.pt", weights="critic")


def test_values_take_the_dtype_of_the_model(tmp_path, source, model):
    torch.save(source, tmp_path / "weights.pt")
    load_checkpoint(model.bfloat16(), tmp_path / "weights.pt")
    assert holds(model, {name: tensor.bfloat16() for name, tensor in source.items()})


class Attack:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (str(self.target), "w")


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, protocol=2))])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, source, model, save):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save({"generator": source, "more": Attack(tmp_path / "ran")}, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=r"weights\.pt was refused.*could run code"):
        load_checkpoint(model, tmp_path / "weights.pt")
    assert not (tmp_path / "ran").exists()
    assert holds(model, before)


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda s: s.pop("head.head.bias"), r"missing: head\.head\.bias"),
        (lambda s: s.update(extra=torch.zeros(1)), "unexpected: extra"),
        (lambda s: s.update({"head.head.bias": torch.zeros(3)}), r"head\.head\.bias is \[3\], not \[16\]"),
        (lambda s: s.update(epoch=3), "not a state dict of tensors; other values are under epoch"),
        (lambda s: s.update(generator=3), "holds a int under 'generator'"),
        (lambda s: s.clear(), "missing: .* and 63 more"),
    ],
    ids=["missing", "unexpected", "shape", "value", "wrapper", "empty"],
)
def test_nothing_is_loaded_from_a_file_that_does_not_fit(tmp_path, source, model, spoil, match):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    spoil(source)
    torch.save(dict(source), tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=match):
        load_checkpoint(model, tmp_path / "weights.pt")
    assert holds(model, before)


def test_files_that_cannot_be_read(tmp_path, model):
    for name in ("weights.pt", "weights.safetensors"):
        with pytest.raises(CheckpointError, match="there is no file"):
            load_checkpoint(model, tmp_path / name)
        (tmp_path / name).write_bytes(b"not weights at all")
        with pytest.raises(CheckpointError, match=name):
            load_checkpoint(model, tmp_path / name)
    torch.save([1, 2], tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match="holds a list"):
        load_checkpoint(model, tmp_path / "weights.pt")


def test_a_model_without_memory_is_refused(tmp_path, source):
    torch.save(source, tmp_path / "weights.pt")
    with torch.device("meta"):
        model = CausalWan(TINY)
    with pytest.raises(CheckpointError, match="to_empty"):
        load_checkpoint(model, tmp_path / "weights.pt")
    load_checkpoint(model.to_empty(device="cpu"), tmp_path / "weights.pt")
    assert holds(model, source)
