"""Heads that were built to be something are found to be it, in rollouts of a compiled model."""

from __future__ import annotations

import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

import headforce
from headforce.calls import Example
from headforce.kvpass.layers import viewed
from headforce.presets import Labels, read_policy
from headforce.profile.budget import candidates, within
from headforce.profile.classify import classify_heads
from headforce.profile.file import load_profile
from headforce.profile.measure import measure
from headforce.profile.measured import Sample
from headforce.profile.report import judge
from headforce.profile.results import write_results
from headforce.profile.rollouts import Rollouts

from .planted import KINDS, TOKENS, WINDOW, planted, rollout

OPTIONS = {"inner": "eager"}
EACH, LAYERS = 8, 2


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The model, and the profile of two of its videos."""
    torch._dynamo.reset()
    model = planted(LAYERS, EACH)
    folder = tmp_path_factory.mktemp("profile")
    rollouts = Rollouts.of(Example(model, rollout), seeds=2)
    eager = rollout(model)
    profile = measure(rollouts, folder, sample=Sample(0.5, 0, True), source="planted", options=OPTIONS)
    assert torch.equal(rollout(model), eager)
    yield model, profile, folder
    torch._dynamo.reset()
    viewed.clear()


def kinds(model):
    return np.array(model.kinds)


@pytest.mark.parametrize(
    ("method", "constants", "claims"),
    [
        (
            "pyramid",
            {},
            {**dict.fromkeys(("wave3", "wave4", "wave5", "wave6"), "wave"), "broad": "anchor", "negative": "veil"},
        ),
        (
            "head_forcing",
            {"anchor": 1 / 8, "local": 1 / 7},
            {**dict.fromkeys(KINDS, "memory"), "sink": "anchor", "local": "local"},
        ),
        ("dummy", {"dummies": 1 / 8}, {**dict.fromkeys(KINDS, "neighbor"), "sink": "sink", "local": "dummy"}),
        ("forcing_kv", {}, {**dict.fromkeys(KINDS, "dynamic"), "local": "static"}),
        ("forcing_kv", {"skip": 3}, {**dict.fromkeys(KINDS, "dynamic"), "local": "static"}),
    ],
)
def test_planted_heads_are_recovered(found, method, constants, claims):
    """In every video at least 99 of 100 heads of the kinds that the method claims to know."""
    model, profile, _ = found
    classified = classify_heads(profile, method, **constants)
    known = np.isin(kinds(model), list(claims))
    expected = np.vectorize(lambda kind: claims.get(kind, ""))(kinds(model))
    assert known.sum() >= 6 * EACH * LAYERS
    for video in classified.videos:
        hits = np.array(video.labels.layers) == expected
        assert hits[known].mean() >= 0.99
    # The same labels at other places are not right: the test can fail.
    turned = np.roll(np.array(classified.labels.layers), 1, axis=1)
    assert (turned == expected)[known].mean() < 0.9


def test_heads_differ_by_their_noise(found):
    """No two heads of a kind, and no two videos, have the same numbers."""
    _, profile, _ = found
    one, other = (passed.mass for passed in profile.passes())
    assert len(np.unique(one.reshape(-1, *one.shape[2:]), axis=0)) == EACH * LAYERS * len(KINDS)
    assert not np.isclose(one, other, atol=1e-4).all()


def test_a_wave_as_long_as_the_chunk_is_seen_by_query_frame(found):
    """In the mean over the chunk, which the published classification takes, it is gone."""
    model, profile, _ = found
    passed = next(profile.passes())
    waves = passed.logits[kinds(model) == "wave3"]
    assert waves.mean(1).std(-1).mean() < 0.25 * waves.std(-1).mean()


def test_the_profile_on_disk_is_the_one_that_was_measured(found):
    _, profile, folder = found
    again = load_profile(folder)
    assert [video.name for video in again.videos] == [{"seed": 0}, {"seed": 1}]
    for video, other in zip(again.videos, profile.videos, strict=True):
        assert len(video.passes) == 8
        np.testing.assert_array_equal(video.at().mass, other.at().mass)


def test_bytes_are_those_that_are_held(found):
    """The policy within a budget, owned: pools are exactly as large as was said."""
    model, profile, _ = found
    budgeted = within(candidates(profile), 0.35)
    assert budgeted.pages <= 0.35 * WINDOW * LAYERS * EACH * len(KINDS)
    assert len(budgeted.policy.classes) > 2
    with headforce.prepare(model, policy=budgeted.policy) as session:
        session.compile(**OPTIONS)
        rollout(model)
        assert session.pool_bytes == budgeted.bytes
        assert budgeted.candidates.frame_bytes == 2 * 4 * TOKENS * 22


class Page(HTMLParser):
    """What a page would load or run."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]


@pytest.fixture(scope="module")
def written(found, tmp_path_factory):
    """What was said of the profile, the report, and the folder of its files."""
    folder = tmp_path_factory.mktemp("results")
    judged = judge(found[1], "pyramid", budget=0.35)
    return judged, write_results(judged, folder), folder


def test_the_page_has_everything_inside_it(written):
    judged, report, folder = written
    assert report["counts"] == judged.chosen.labels.counts()
    text = (folder / report["page"]).read_text()
    page = Page()
    page.feed(text)
    assert page.tags.count("img") == len(report["pictures"]) == 5
    assert all(load.startswith("data:image/png;base64,") for load in page.loads)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert "http" not in text.replace("http-equiv", "")
    assert "@import" not in text
    for name in report["pictures"]:
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


def test_the_files_are_what_was_said(written):
    judged, report, folder = written
    assert Labels.load(folder / "labels.csv") == judged.chosen.labels
    assert Labels.load(folder / "labels-shuffled.csv").counts() == judged.chosen.labels.counts()
    assert read_policy(folder / report["policy"]) == judged.budgeted.policy
    assert report["budget"]["share"] <= 0.35
    assert report["budget"]["kept"] > max(report["budget"]["controls"].values())
    assert {path.name for path in folder.iterdir()} == {
        *("labels.csv", "labels-shuffled.csv", "labels-swapped.csv", "policy.yaml", "report.json", "profile.html"),
        *report["pictures"],
    }


def test_the_page_in_a_browser(written, tmp_path):
    """A screenshot, with all that is outside cut off."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium here; the test of the page's text says that it loads nothing")
    shot = tmp_path / "page.png"
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND"]
    page = (written[2] / "profile.html").as_uri()
    subprocess.run([*command, f"--screenshot={shot}", "--window-size=1200,3000", page], check=True, timeout=60)
    assert shot.stat().st_size > 50_000
