"""What `compare` makes of the files of two runs. The runs themselves are played here; `test_run.py` has real ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from headforce import HeadforceError
from headforce.policy import Schedule
from headforce.run import compare as module
from headforce.run.compare import Wanted, compare
from headforce.run.launcher import Finished
from headforce.run.settings import RunSettings
from headforce.run.video import write_film

SITES = {"rewritten": 2, "refused": 0, "excluded": 2}
MODEL = {"name": "Model", "passes": 4, "launches": 4, "misses": 0, "refusal": "", "sites": SITES, "videos": [[2, 2]]}


@pytest.fixture
def play(monkeypatch, tmp_path):
    """The script is a function of the side and its folder; `play(script)` is what `compare` is then called with."""
    monkeypatch.chdir(tmp_path)

    def use(script, code=0, **changes):
        def execute(command, settings):
            side = "eager" if settings.mode == "eager" else "policy"
            script(side, Path(command[-1]))
            model = {**MODEL, **changes}
            return Finished(list(command), settings, code, 1.0, [{"models": [model]}])

        monkeypatch.setattr(module, "execute", execute)

    return use


def wanted(videos="{out}/*.npy", **more):
    return Wanted(["script", "{out}"], videos, Path("results"), **{"rate": 8, **more})


def latents(side, frames=4, worse=0.0):
    """[1, frames, 4, 6, 8]: values from 0 to 10; the policy's last frame is `worse`."""
    video = np.linspace(0, 10, frames * 4 * 6 * 8, dtype=np.float32).reshape(1, frames, 4, 6, 8)
    if side == "policy":
        video[:, -1] += worse
    return video


def refusal(how, code="HF-COMPARE"):
    with pytest.raises(HeadforceError) as caught:
        compare(how, RunSettings("self_forcing", seed=0))
    assert caught.value.code == code
    assert all(name.startswith("unfinished") for name in results())  # what is the script's, and nothing of ours
    return caught.value


def results():
    found = (path.relative_to("results") for path in Path("results").rglob("*") if path.is_file())
    return sorted(map(str, found))


def test_the_report(play):
    play(lambda side, out: np.save(out / "a.npy", latents(side, worse=1.0)))
    report = compare(wanted(), RunSettings("self_forcing", seed=4))
    assert json.loads(Path("results/compare.json").read_text()) == report
    (video,) = report["videos"]
    assert (report["seed"], video["name"], video["chunks"], video["peak"]) == (4, "a", [2, 2], 10)
    assert video["chunk_psnr"] == [None, pytest.approx(10 * np.log10(100 / 0.5))]
    assert video["psnr"] == pytest.approx(10 * np.log10(100 / 0.25))
    even = np.abs(np.diff(latents("eager")[0], axis=0)).mean()
    assert video["changes"]["policy"] == pytest.approx([even, even, even + 1])
    assert video["discontinuity"]["eager"] == pytest.approx(1)
    assert video["discontinuity"]["policy"] == pytest.approx((even + 1) / (even + 1 / 3))
    assert (Path("results") / video["film"]).is_file()
    assert (Path("results") / video["figure"]).is_file()


def test_files_elsewhere_are_moved_away_between_the_runs(play):
    Path("videos/deep").mkdir(parents=True)
    np.save("videos/old.npy", latents("eager"))
    seen = []

    def script(side, _):
        seen.append(Path("videos/deep/a.npy").exists())  # a script may skip what is there
        np.save("videos/deep/a.npy", latents(side))

    play(script)
    report = compare(wanted("videos/**/*.npy"), RunSettings("self_forcing"))
    assert seen == [False, False]
    assert [video["name"] for video in report["videos"]] == ["a"]
    assert Path("videos/old.npy").exists()
    assert sorted(str(p) for p in Path("results").rglob("*.npy")) == ["results/eager/a.npy", "results/policy/a.npy"]


def test_names_with_a_time_are_paired_in_their_order(play):
    def script(side, out):
        for number in (1, 2):
            np.save(out / f"{number}-at-{side}.npy", latents(side, worse=number))

    play(script)
    report = compare(wanted(), RunSettings("self_forcing"))
    assert [video["name"] for video in report["videos"]] == ["1-at-eager", "2-at-eager"]
    first, second = (video["chunk_psnr"][1] for video in report["videos"])
    assert first == pytest.approx(second + 20 * np.log10(2))


def test_every_film_is_compared_under_a_name_of_its_own(play):
    """Names that differ in a suffix, in a folder or a dash, or in a row of a batch."""
    worse = {"clip.npy": 1, "clip.mp4": 0, "a/x.npy": 2, "a-b/x.npy": 3, "a-x.npy": 4, "two-1.npy": 5, "two.npy": 6}

    def script(side, out):
        for name, by in worse.items():
            (out / name).parent.mkdir(exist_ok=True)
            if name.endswith("mp4"):
                write_film(out / name, np.zeros((4, 16, 16, 3), np.uint8), 8)
            else:
                np.save(out / name, np.concatenate([latents(side, worse=by)] * (2 if name == "two.npy" else 1)))

    play(script)
    report = compare(wanted("{out}/**/*.*"), RunSettings("self_forcing"))
    lost = {video["name"]: video["chunk_psnr"][1] for video in report["videos"]}
    found = {name: round(float(np.sqrt(2 * 100 / 10 ** (db / 10))), 3) for name, db in lost.items() if db is not None}
    assert found == {"clip.npy": 1, "a-b-x": 3, "a-x.npy": 4, "a-x.npy-2": 2, "two-1": 5, "two-0": 6, "two-1-2": 6}
    assert lost["clip.mp4"] is None
    for video in report["videos"]:
        assert {video["film"], video["figure"]} <= set(results())


def test_batches_that_do_not_match(play):
    play(lambda side, out: np.save(out / "a.npy", np.concatenate([latents(side)] * (1 + (side == "policy")))))
    assert refusal(wanted()).found == "1 videos and 2"


def test_a_batch_is_several_videos(play):
    play(lambda side, out: np.save(out / "a.npy", np.concatenate([latents(side)] * 2)))
    report = compare(wanted(), RunSettings("self_forcing"))
    assert [video["name"] for video in report["videos"]] == ["a-0", "a-1"]


def test_films_have_more_pictures_than_latent_frames(play):
    pictures = np.zeros((13, 16, 16, 3), np.uint8)
    play(lambda side, out: write_film(out / "a.mp4", pictures, 8))
    report = compare(wanted("{out}/*.mp4"), RunSettings("self_forcing"))
    (video,) = report["videos"]
    assert video["chunks"] == [5, 8]  # 1 + 4, and 2 times 4
    assert (video["psnr"], video["discontinuity"]["eager"]) == (None, None)


def test_chunks_can_be_said(play):
    play(lambda side, out: np.save(out / "a.npy", latents(side, frames=6)), videos=[])
    assert refusal(wanted()).hint.startswith("Say how it is cut with --chunks")
    report = compare(wanted(chunks=Schedule.parse("1,2,3")), RunSettings("self_forcing"))
    assert report["videos"][0]["chunks"] == [1, 2, 3]


def test_chunks_that_could_be_either(play):
    play(lambda side, out: np.save(out / "a.npy", latents(side)), videos=[[2, 2], [1, 3]])
    assert "2x2, 1,3" in refusal(wanted()).found


def test_a_script_that_fails(play):
    play(lambda side, out: np.save(out / "a.npy", latents(side)), code=3)
    assert "ended with 3" in refusal(wanted()).found


def test_a_script_whose_model_was_not_rewritten(play):
    play(lambda side, out: np.save(out / "a.npy", latents(side)), launches=0)
    refusal(wanted(), "HF-RUN-NOTHING")


def test_a_script_that_writes_nothing(play):
    np.save("old.npy", latents("eager"))
    play(lambda side, out: None)
    assert "no new file *.npy" in refusal(wanted("*.npy")).found


def test_sides_that_do_not_match(play):
    def more(side, out):
        for number in range(1 + (side == "policy")):
            np.save(out / f"{number}.npy", latents(side))

    play(more)
    assert refusal(wanted()).found == "1 videos of the eager side and 2 of the other"
    play(lambda side, out: np.save(out / "a.npy", latents(side, frames=4 if side == "eager" else 6)))
    assert "(4, 6, 8, 4) and (6, 6, 8, 4)" in refusal(wanted()).found


@pytest.mark.parametrize("pattern", ["{out}/*.npy", "videos/*.npy"], ids=["its own folder", "the script's folder"])
@pytest.mark.parametrize("end", [KeyboardInterrupt, HeadforceError("HF-RUN-START", found="this", needed="that")])
def test_what_a_script_wrote_outlives_an_interrupted_comparison(play, pattern, end, capfd):
    """Twice, after a comparison that went well: no file of an earlier one is written over."""
    stop = []

    def script(side, out):
        if side == "policy" and stop:
            raise end
        folder = out if "{out}" in pattern else Path("videos")
        folder.mkdir(exist_ok=True)
        np.save(folder / "a.npy", latents(side) + len(stop))

    play(script)
    compare(wanted(pattern), RunSettings("self_forcing"))
    before = {name: (Path("results") / name).read_bytes() for name in results()}
    for name in ("unfinished", "unfinished-2"):
        stop.append(True)
        with pytest.raises(type(end) if isinstance(end, Exception) else end):
            compare(wanted(pattern), RunSettings("self_forcing"))
        kept = Path("results") / name
        np.testing.assert_array_equal(np.load(kept / "eager/a.npy"), latents("eager") + len(stop))
        assert f"what the script wrote is in {kept}\n" in capfd.readouterr().err
    assert {name: (Path("results") / name).read_bytes() for name in before} == before


@pytest.mark.parametrize(
    ("changes", "frames"), [({"videos": []}, (4, 4)), ({"launches": 0}, (4, 4)), ({}, (4, 6))], ids=str
)
def test_what_a_script_wrote_outlives_a_refusal(play, changes, frames):
    """Chunks that nobody said, a policy side that was not rewritten, videos of two shapes."""
    Path("videos").mkdir()
    play(lambda side, _: np.save("videos/a.npy", latents(side, frames[side == "policy"])), **changes)
    with pytest.raises(HeadforceError):
        compare(wanted("videos/*.npy"), RunSettings("self_forcing"))
    kept = [*Path("results/unfinished").rglob("*.npy"), *Path("videos").iterdir()]
    assert sorted(len(np.load(path)[0]) for path in kept) == sorted(frames)


def test_what_a_script_wrote_stays_where_it_is_if_the_folder_is_full(play, monkeypatch, capfd):
    def script(side, out):
        np.save(out / "a.npy", latents(side))
        if side == "policy":
            raise KeyboardInterrupt

    def full(*_):
        raise OSError(28, "No space left on device")

    play(script)
    monkeypatch.setattr("headforce.folder.shutil.copyfile", full)
    monkeypatch.setattr("headforce.folder.tempfile.tempdir", str(Path("temporary").absolute()))
    Path("temporary").mkdir()
    with pytest.raises(KeyboardInterrupt):
        compare(wanted(), RunSettings("self_forcing"))
    (staging,) = Path("temporary").absolute().iterdir()
    assert f"what the script wrote is in {staging}\n" in capfd.readouterr().err
    assert sorted(str(path.relative_to(staging)) for path in staging.rglob("*.npy")) == ["eager/a.npy", "policy/a.npy"]


def test_a_comparison_that_is_interrupted_early_leaves_nothing(play):
    def script(side, out):
        raise KeyboardInterrupt

    play(script)
    with pytest.raises(KeyboardInterrupt):
        compare(wanted(), RunSettings("self_forcing"))
    assert not list(Path("results").iterdir())


def test_a_folder_that_cannot_be_written(play):
    Path("results").write_text("a file")
    play(lambda side, out: None)
    with pytest.raises(HeadforceError) as caught:
        compare(wanted(), RunSettings("self_forcing"))
    assert caught.value.code == "HF-COMPARE"
