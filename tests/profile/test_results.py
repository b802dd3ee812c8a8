"""The files of a profile of which a picture cannot be drawn."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from headforce.cli import main
from headforce.presets import Labels
from headforce.profile import measure, rollouts
from headforce.profile.periodicity import folded_spectrum
from headforce.profile.pictures import spectra
from headforce.profile.report import judge
from headforce.profile.results import write_results

from .made import passed, profile, random_video

READS, SPECTRA = "What the policy reads, chunk by chunk", "Periods of the heads that come back to frames most regularly"


def odd_frames():
    """A profile of a model whose frames have 10 tokens, which cannot be cut into 4 or 6."""
    made = profile(random_video(4, 12))
    return replace(made, model=replace(made.model, tokens_per_frame=10))


@pytest.mark.parametrize("method", ["pyramid", "forcing_kv"])
def test_labels_and_page_are_written_where_a_policy_cannot_be_drawn(method, tmp_path):
    judged = judge(odd_frames(), method)
    report = write_results(judged, tmp_path)
    assert list(report["left_out"]) == [READS]
    assert "HF-SEGMENTS" in report["left_out"][READS]
    assert "reads.png" not in report["pictures"]
    assert len(report["pictures"]) == 4
    assert not (tmp_path / "reads.png").exists()
    assert Labels.load(tmp_path / report["labels"]) == judged.chosen.labels
    page = (tmp_path / report["page"]).read_text()
    assert page.count("<img") == 4
    assert f"<h2>{READS}</h2><p class=dim>This cannot be drawn: [HF-SEGMENTS]" in page
    assert json.loads((tmp_path / "report.json").read_text()) == report


def test_spectra_of_a_short_video_are_left_out(tmp_path):
    report = write_results(judge(profile(random_video(chunks=(0, 1))), "forcing_kv"), tmp_path)
    assert list(report["left_out"]) == [SPECTRA]
    assert "HF-PROFILE-DATA" in report["left_out"][SPECTRA]


def test_spectra_are_of_frames_in_a_row(tmp_path, monkeypatch):
    """A head with a wave of four frames behind a sink of very high scores: its peak is at four frames."""
    signal = np.r_[np.full(3, 40.0), np.cos(np.pi / 2 * np.arange(15)), np.zeros(3)]
    made = profile([passed(np.ones((1, 2, 21)), np.stack([signal, signal])[None], chunk=20, sink=3)])
    seen = []

    def noted(signal, *constants):
        seen.append(folded_spectrum(signal, *constants))
        return seen[-1]

    monkeypatch.setattr("headforce.profile.pictures.folded_spectrum", noted)
    spectra(judge(made, "pyramid"), tmp_path / "spectra.png")
    ((spectrum, periods),) = seen
    assert abs(periods[spectrum[0, 0, 0].argmax()] - 4) < 1


def test_the_command_says_which_picture_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "measure", lambda *_, **__: odd_frames())
    monkeypatch.setattr(rollouts.Rollouts, "of", lambda *_: None)
    command = ["profile", "tests.profile.planted:example", "--out", str(tmp_path), "--json"]
    done = CliRunner().invoke(main, command, catch_exceptions=False)
    assert done.exit_code == 0
    assert f"left out the picture {READS!r}: [HF-SEGMENTS]" in done.stderr
    assert json.loads(done.stdout)["labels"] == "labels.csv"
