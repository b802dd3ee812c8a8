"""Generated kernels: cut down to their spec, readable, found again by their content."""

import ast
import inspect
from dataclasses import replace
from itertools import product

import pytest
import torch

from headforce.kernels import ragged_attention
from headforce.kernels.config import Config
from headforce.kernels.rotation import INTERLEAVED, SPLIT_HALF
from headforce.kernels.spec import Spec
from headforce.lowering import codegen
from headforce.lowering.folding import fold

KERNEL = "ragged_attention"
PLAIN = Spec(torch.bfloat16, torch.bfloat16, 128, 128, None, False, False, False, Config())
FULL = replace(PLAIN, rotation=INTERLEAVED, parts=True, lse=True)


def functions(text):
    return {node.name: node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(
    ("rotation", "parts", "lse", "descriptors", "width"),
    list(product([None, INTERLEAVED, SPLIT_HALF], [False, True], [False, True], [False, True], [96, 128])),
)
def test_every_spec_is_a_file_without_open_questions(rotation, parts, lse, descriptors, width):
    spec = replace(PLAIN, rotation=rotation, parts=parts, lse=lse, descriptors=descriptors, head_dim=width)
    text = codegen.source_of(KERNEL, spec)
    tree = ast.parse(text)
    left = {n.id for node in ast.walk(tree) if isinstance(node, ast.If) for n in ast.walk(node.test)
            if isinstance(n, ast.Name)}  # fmt: skip
    assert not left & {"ROTATED", "PARTS", "LSE", "DESCRIPTORS", "SPLIT_HALF", "CONVERTED"}
    arguments = {a.arg for a in functions(text)["ragged_attention"].args.args}
    assert ("theta" in arguments) == (rotation is not None)
    assert ("part_out" in arguments) == parts
    assert ("lse" in arguments) == lse
    assert ("key_tiles" in arguments) == descriptors
    assert ({"write_turned", "cosine_and_sine"} <= functions(text).keys()) == (rotation is not None)
    assert ast.get_docstring(tree).replace("\n", " ").startswith(f"Ragged attention.  For {spec}.")
    assert max(map(len, text.splitlines())) <= 120
    # Every name is defined, and every argument of a launched kernel is used.
    compile(text, "generated", "exec")
    node = functions(text)[KERNEL]
    used = {n.id for statement in node.body for n in ast.walk(statement) if isinstance(n, ast.Name)}
    assert {a.arg for a in node.args.args} <= used


def test_comments_and_layout_stay():
    template, text = inspect.getsource(ragged_attention), codegen.source_of(KERNEL, FULL)
    kept = {line.strip() for line in text.splitlines()}
    comments = {line.strip() for line in template.splitlines() if line.strip().startswith("# ")}
    assert len(comments & kept) >= len(comments) - 1  # all but that of descriptors
    assert "\n\n\n\n" not in text
    assert "\n\n\n    " not in text


TEMPLATE = '''"""A template."""

import math
import os

# --- settings
SIZE = int(1)  # of things
FAST = bool(False)
DEEP = bool(False)
# --- end of settings


def helper(x):
    return math.sqrt(x)


def entry(
    a,
    b,  # only where it is deep
    c,
):
    total = a
    count = 0
    if (
        FAST
        and not DEEP
    ):  # why not
        # As quick as can be.
        total += SIZE
        count += 1
    else:  # slowly
        # With care.
        total += helper(c)
        if DEEP:
            deep = b
            total += deep
    return total
'''


def load(text):
    names = {}
    exec(text, names)
    return names["entry"]


def test_folding_takes_one_branch_and_drops_what_it_left():
    fast = fold(TEMPLATE, {"SIZE": 7, "FAST": True, "DEEP": False}, ["entry"], "Fast.")
    assert "# As quick as can be." in fast
    assert not {"helper", "math", "DEEP", "With care"} & set(fast.replace("(", " ").split())
    assert "With care" not in fast
    assert inspect.signature(load(fast)).parameters.keys() == {"a"}
    assert load(fast)(1) == 8
    assert "count" not in fast
    assert "# slowly" not in fast
    slow = fold(TEMPLATE, {"SIZE": 7, "FAST": False, "DEEP": True}, ["entry"], "Slow.")
    assert inspect.signature(load(slow)).parameters.keys() == {"a", "b", "c"}
    assert load(slow)(1, 2, 9) == 6
    assert "SIZE" not in slow
    assert "import os" not in slow


def test_an_elif_is_refused():
    text = TEMPLATE.replace("    else:  # slowly", "    elif DEEP:")
    with pytest.raises(ValueError, match="elif"):
        fold(text, {"SIZE": 7, "FAST": True, "DEEP": False}, ["entry"], "")


def test_a_setting_that_was_not_given():
    with pytest.raises(KeyError, match="DEEP"):
        fold(TEMPLATE, {"SIZE": 7, "FAST": False}, ["entry"], "")


def test_files_are_found_again_and_repaired(tmp_path, monkeypatch):
    monkeypatch.setenv(codegen.FOLDER_VARIABLE, str(tmp_path / "kernels"))
    text = codegen.source_of(KERNEL, FULL)
    codegen.load(text)
    (file,) = (tmp_path / "kernels").iterdir()
    assert file.read_text() == text
    file.write_text("raise SystemExit")
    module = codegen.load(text)
    assert file.read_text() == text
    assert KERNEL in vars(module)


def test_a_cache_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(codegen.FOLDER_VARIABLE, str(tmp_path / "file" / "kernels"))
    folder = codegen.cache_folder()
    assert folder.is_dir()
    assert folder == codegen.cache_folder()  # one for the process


def test_without_a_home(tmp_path, monkeypatch):
    for name in ("HOME", "XDG_CACHE_HOME", codegen.FOLDER_VARIABLE):
        monkeypatch.delenv(name, raising=False)

    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(codegen.Path, "home", staticmethod(nowhere))
    assert codegen.cache_folder().is_dir()
    monkeypatch.setenv(codegen.FOLDER_VARIABLE, str(tmp_path))
    assert codegen.cache_folder() == tmp_path


def test_a_disk_that_is_full(tmp_path, monkeypatch):
    monkeypatch.setenv(codegen.FOLDER_VARIABLE, str(tmp_path))
    replace_ = codegen.os.replace

    def full(source, target):
        if str(target).startswith(str(tmp_path)):
            raise OSError("No space left on device")
        replace_(source, target)

    monkeypatch.setattr(codegen.os, "replace", full)
    module = codegen.load(codegen.source_of(KERNEL, FULL))
    assert KERNEL in vars(module)
    assert not list(tmp_path.iterdir())


def test_others_may_read_what_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv(codegen.FOLDER_VARIABLE, str(tmp_path))
    codegen.load(codegen.source_of(KERNEL, FULL))
    (file,) = tmp_path.iterdir()
    assert file.stat().st_mode & 0o444 == 0o444


def test_one_module_for_a_spec():
    assert codegen.kernel_of(KERNEL, PLAIN) is codegen.kernel_of(KERNEL, replace(PLAIN))
    assert codegen.kernel_of(KERNEL, PLAIN) is not codegen.kernel_of(KERNEL, FULL)
