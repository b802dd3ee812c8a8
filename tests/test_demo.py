"""`headforce demo` on the tiny model: what it reports, what it writes, and how it fails."""

import inspect
import io
import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from headforce.cli import main
from headforce.demo import Settings, demo, run_demo
from headforce.demo.checks import run_checks
from headforce.demo.example import load_example
from headforce.demo.table import table
from headforce.errors import HeadforceError
from headforce.lowering.preview import preview
from headforce.lowering.targets import target
from headforce.lowering.targets.sdpa import sdpa
from headforce.policy import Schedule
from headforce.presets import Labels, load_presets, read_policy

TINY = ["--preset", "tiny", "--inner", "eager", "--chunks", "4", "--threads", "1"]
KEYS = ["version", "made_with", "model", "rollout", "compile", "policy", "sides", "bytes", "errors", "structure",
        "checks", "pictures"]  # fmt: skip


def run(out, *options, code=0):
    result = CliRunner().invoke(main, ["demo", *TINY, "--out", str(out), *map(str, options)])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


def measured_run(folder, *options):
    """(folder, what was measured, the command's result) of one run; checks are asked while its caches still live."""
    kept = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "run_checks", lambda measured: kept.append(measured) or run_checks(measured))
        result = run(folder, "--json", *options)
    return folder, kept[0], result


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return measured_run(tmp_path_factory.mktemp("demo") / "new" / "folder")


@pytest.fixture
def report(finished):
    return json.loads((finished[0] / "report.json").read_text())


def test_the_report_is_whole_and_true(report):
    assert list(report) == KEYS
    assert all(check["holds"] and check["sentence"].endswith(".") for check in report["checks"])
    assert len({check["name"] for check in report["checks"]}) == len(report["checks"]) == 12
    assert report["model"]["layers"], report["model"]["heads"] == (2, 4)
    assert report["rollout"]["evicting_chunks"] == [2, 3]
    assert report["made_with"]["threads"] == 1


def test_bytes_and_frames(report):
    frame = 2 * 24 * 24 * 4  # K and V of 24 tokens of 24 channels in float32
    assert report["bytes"]["dense"] == 2 * 4 * 6 * frame
    # Past frames of the classes: 4 heads keep 1, 3 keep 2, 1 keeps 3; each has room for a chunk of 3 besides.
    assert report["bytes"]["held"] == report["bytes"]["planned"] == (4 * 1 + 3 * 2 + 1 * 3 + 8 * 3) * frame
    assert report["bytes"]["ratio"] == report["bytes"]["held"] / report["bytes"]["dense"]
    kept = {name: (entry["heads"], entry["kept"]) for name, entry in report["policy"]["classes"].items()}
    assert kept == {"near": (4, [0, 1, 1, 1]), "rhythm": (3, [0, 1, 2, 2]), "far": (1, [0, 3, 3, 3])}
    assert report["bytes"]["by_chunk"]["history"]["far"] == [0, 3 * frame, 3 * frame, 3 * frame]
    assert report["bytes"]["by_chunk"]["current"] == [8 * 3 * frame] * 4
    assert report["sides"]["native"]["held_bytes"] == report["sides"]["dense"]["held_bytes"] == report["bytes"]["dense"]


def test_sides(report):
    assert list(report["sides"]) == ["dense", "dense_compiled", "native", "policy", "reference"]
    for side in report["sides"].values():
        assert len(side["passes"]) == 4 * 2
        assert side["chunk_seconds"] > 0
        compiling = sum(one["seconds"] for one in side["passes"] if one["graphs"])
        assert side["compiling_passes_seconds"] == pytest.approx(compiling)
    graphs = {name: side["graphs"] for name, side in report["sides"].items()}
    assert graphs["dense"] == graphs["reference"] == graphs["policy"] == 0
    assert graphs["dense_compiled"] == graphs["native"] > 0
    assert report["structure"]["launches_per_layer_and_pass"] == 1
    assert 0 < report["errors"]["policy_against_reference"] < 1e-5
    assert report["errors"]["one_frame_missing"] > 1e-3


def test_files_and_output(finished, report):
    folder, _, result = finished
    assert sorted(path.name for path in folder.iterdir()) == sorted(["report.json", *report["pictures"]])
    assert json.loads(result.stdout) == report
    from matplotlib.image import imread

    for name in report["pictures"]:
        height, width = imread(folder / name).shape[:2]
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
        assert (folder / name).stat().st_size < 120_000
        assert width > 1000
        assert height > 300


def shown_table(report):
    from rich.console import Console

    shown = io.StringIO()
    Console(width=80, file=shown).print(table(report))
    return shown.getvalue()


def test_the_table_fits_a_terminal(report):
    shown = shown_table(report)
    for part in ("time of a chunk, s", "past frames, rhythm", "0.77", "ok ", "says", "Policy: tiny.yaml."):
        assert part in shown
    assert max(map(len, shown.splitlines())) <= 80


# --- published systems ------------------------------------------------------------------------------------------

LABELS = Path(__file__).parents[1] / "examples" / "labels"


def needs_labels(name):
    labels = inspect.signature(load_presets()[name]).parameters.get("labels")
    return labels is not None and labels.default is labels.empty


def kinds_of_parts(plans):
    readings = [reading for plan in plans for head in plan.heads for reading in head.readings]
    return {item.kind for reading in readings for item in reading.parts}


def kinds_with_parts(bound):
    return {term.op.name for rule in bound.distinct for term in rule.rule.paged}


def enough_chunks(name):
    """Until every store that keeps parts of frames has some, by a plan without a model; at least 5."""
    policy = read_policy(name, Settings(policy=name, preset="tiny").labels_file)
    bound = policy.bind(layers=2, heads=4, tokens=24)
    plans = list(preview(bound, Schedule((3,) * 12)))
    return next(n for n in range(5, 13) if kinds_of_parts(plans[:n]) == kinds_with_parts(bound))


@pytest.mark.parametrize("name", [name for name in load_presets() if name not in ("self_forcing", "longlive")])
def test_every_published_system(tmp_path, name):
    """All checks hold, and stores that keep parts of frames have kept some; the command says whose labels it took."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch._dynamo, "reset", lambda: None)  # the graphs are those of the system before
        _, measured, result = measured_run(tmp_path, "--policy", name, "--chunks", enough_chunks(name))
    report = json.loads(result.stdout)
    assert len(report["checks"]) == 12
    assert all(check["holds"] for check in report["checks"])
    labels = f"examples/labels/{name}.tiny.json" if needs_labels(name) else None
    assert (report["policy"]["file"], report["policy"]["labels"]) == (name, labels)
    shown = shown_table(report)
    assert f"Policy: {name}" in shown
    assert (f"labels of the heads: {labels}" in " ".join(shown.split())) if labels else "labels of" not in shown

    assert report["policy"]["classified"] == bool(measured.sides.given.classify)
    assert ("heads classified" in " ".join(shown.split())) == report["policy"]["classified"]

    assert kinds_of_parts(measured.history.plans) == kinds_with_parts(measured.policy)
    entries = report["policy"]["classes"].items()
    for kind, entry in entries:
        frames = entry["kept"]
        assert frames[0] == 0
        assert max(frames) > 0
        assert f"past frames, {kind}" in shown
        assert f" {max(frames[report['rollout']['evicting_chunks'][0] :]):g} │" in shown
    by_chunk = report["bytes"]["by_chunk"]
    assert all(history[0] == 0 for history in by_chunk["history"].values())
    for used in zip(by_chunk["current"], *by_chunk["history"].values(), by_chunk["pools"], strict=True):
        assert sum(used[:-1]) <= used[-1]


@pytest.mark.parametrize("size", ["tiny", "demo"])
def test_every_published_system_has_the_labels_it_needs(size):
    for name in load_presets():
        file = Settings(policy=name, preset=size).labels_file
        assert (file is not None) == needs_labels(name)
        assert file is None or file.is_file()


@pytest.mark.parametrize("file", sorted(LABELS.glob("*")), ids=lambda file: file.name)
def test_label_files_for_the_example(file):
    name, size, _ = file.name.split(".")
    config = load_example("causal-wan").PRESETS[size]
    labels = Labels.load(file)
    assert (len(labels.layers), labels.heads) == (config.num_layers, config.num_heads)
    assert set(labels.layers[0]) == set(labels.layers[1]) == set(labels.classes)
    assert len(set(labels.layers)) == len(labels.layers)
    policy = read_policy(name, file)
    policy.bind(layers=config.num_layers, heads=config.num_heads, tokens=config.tokens_per_frame)
    assert set(labels.classes) <= {policy.class_of(layer, head) for layer in range(2) for head in range(labels.heads)}


def test_labels_of_the_user_and_files_called_like_a_system(tmp_path, monkeypatch):
    assert Settings(policy="forcing_kv", labels=Path("mine.json")).labels_file == Path("mine.json")
    assert Settings(policy="longlive").labels_file is None
    assert Settings().labels_file is None
    monkeypatch.chdir(tmp_path)
    (tmp_path / "forcing_kv").write_text("headforce: 0\n")
    assert Settings(policy="forcing_kv").labels_file is None


def test_a_folder_called_like_a_system_is_not_its_policy(tmp_path, monkeypatch):
    expected = Settings(policy="forcing_kv").labels_file
    assert expected is not None
    monkeypatch.chdir(tmp_path)
    (tmp_path / "forcing_kv").mkdir()
    assert Settings(policy="forcing_kv").labels_file == expected


def test_heads_that_are_classified_too_late(tmp_path):
    policy = tmp_path / "policy.yaml"
    policy.write_text("headforce: 1\npreset: dummy_forcing\narguments: {classify_at: 3}\n")
    result = run(tmp_path / "out", "--policy", policy, code=2)
    assert "[HF-DEMO] at --chunks: found 4 chunks, and heads that are classified by chunk 3" in result.stderr


def test_a_size_without_a_label_file(tmp_path, monkeypatch):
    monkeypatch.setattr("headforce.demo.settings.examples_folder", lambda: tmp_path)
    result = run(tmp_path / "out", "--policy", "forcing_kv", code=2)
    assert "headforce: [HF-DEMO] at --policy forcing_kv" in result.stderr
    assert f"{tmp_path / 'labels' / 'forcing_kv.tiny.json'}" in result.stderr


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("bytes_as_planned", {"predicted_bytes": 1}),
        ("no_graph_breaks", {"graph_breaks": 1}),
        ("control", {"control_error": 1e-4}),
    ],
)
def test_checks_see_what_is_wrong(finished, monkeypatch, name, change):
    measured = finished[1]
    assert {check.name: check.holds for check in run_checks(measured)}[name]
    for attribute, value in change.items():
        monkeypatch.setattr(measured, attribute, value)
    assert not {check.name: check.holds for check in run_checks(measured)}[name]


@pytest.mark.slow
def test_stores_are_compared_with_what_they_decided(tmp_path):
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        "headforce: 0\n"
        "classes: {store: 'window(1) as recent | episodic(2, source=evicted(recent), write=novel(0.9))'}\n"
        "heads: {0: {store: [1, 2]}, 1: {store: [3]}}\n"
    )
    result = run(tmp_path / "out", "--policy", policy, "--json")
    report = json.loads(result.stdout)
    assert {name: max(entry["kept"]) for name, entry in report["policy"]["classes"].items()} == {
        "native": 3,
        "store": 3,
    }


@pytest.mark.slow
def test_wrong_attention_fails_with_a_sentence(tmp_path):
    target("one percent off")(lambda *args: sdpa(*args) * 1.01)
    result = run(tmp_path, "--target", "one percent off", code=1)
    report = json.loads((tmp_path / "report.json").read_text())
    failed = [check["name"] for check in report["checks"] if not check["holds"]]
    assert failed == ["identity", "policy_error"]
    assert "FAILED" in result.stdout
    assert "a check of the demo does not hold. Under native() the compiled model differs by" in result.stderr


def test_an_interrupted_run_leaves_the_old_results(finished, tmp_path, monkeypatch):
    (tmp_path / "report.json").write_text("old")

    def interrupt(measured, folder):
        (folder.staging / "reads.png").write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "measure", lambda *_: finished[1])
    monkeypatch.setattr(demo, "build_report", lambda *_: {})
    monkeypatch.setattr(demo, "draw_pictures", interrupt)
    threads = torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt):
        run_demo(Settings(preset="tiny", out=tmp_path, threads=threads + 1))
    assert torch.get_num_threads() == threads
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
    assert (tmp_path / "report.json").read_text() == "old"


@pytest.mark.parametrize(
    ("options", "code", "part"),
    [
        (["--policy", "absent.yaml"], "HF-POLICY-FILE", "absent.yaml"),
        (["--policy", "examples/policies/demo.yaml"], "HF-POLICY-", ""),
        (["--policy", "longlife"], "HF-PRESET", "did you mean 'longlive'"),
        (["--policy", "longlive", "--labels", "labels.json"], "HF-PRESET", "'labels'"),
        (["--policy", "forcing_kv", "--labels", "absent.json"], "HF-LABELS", "absent.json"),
        (["--inner", "egaer"], "HF-OPTION", "'egaer' (did you mean 'eager'?)"),
        (["--model", "causal-wam"], "HF-DEMO", "did you mean 'causal-wan'?"),
        (["--chunks", "3"], "HF-DEMO", "at least 4"),
        (["--target", "spda"], "HF-TARGET", "did you mean 'sdpa'?"),
    ],
)
def test_refusals(tmp_path, monkeypatch, options, code, part):
    monkeypatch.chdir(Path(__file__).parents[1])
    result = run(tmp_path, *options, code=2)
    assert f"headforce: [{code}" in result.stderr
    assert part in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    assert "[HF-DEMO] at --out" in run(tmp_path / "file" / "out", code=2).stderr


def test_without_a_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr("headforce.demo.example.__file__", str(tmp_path / "site-packages/headforce/demo/example.py"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HeadforceError, match=r"HF-DEMO.*git clone"):
        load_example("causal-wan")
