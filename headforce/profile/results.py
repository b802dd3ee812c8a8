"""The files that a profile leaves: labels, the policy, the report, the page and its pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from ..folder import Folder
from ..presets import Labels, make_preset
from .methods import Method
from .page import page
from .pictures import draw_pictures
from .report import Judged, to_json

POLICY, REPORT, PAGE = "policy.yaml", "report.json", "profile.html"


def write_results(judged: Judged, out: Path) -> dict[str, Any]:
    """Writes all files and returns the report, with their names. Files appear when all of them are finished.

    `policy.yaml` is the published system of the method with the labels that were found, or with a budget the policy
    within it. Raises HF-PROFILE-FILE if the folder cannot be written, HF-PRESET for a method whose system is not there.
    """
    method, report = judged.chosen.method, to_json(judged)
    with Folder(out, "HF-PROFILE-FILE") as folder:
        labels = label_file(method, "labels")
        for name, its in (("labels", judged.chosen.labels), *((f"labels-{n}", c) for n, c in judged.controls.items())):
            (folder.staging / label_file(method, name)).write_text(label_text(method, its), encoding="utf-8")
        if judged.budgeted is not None:
            policy = judged.budgeted.policy
            policy.save(folder.staging / POLICY)
        else:
            policy = make_preset(method.preset, labels=judged.chosen.labels)
            named = {"headforce": 1, "preset": method.preset, "arguments": {"labels": labels}}
            (folder.staging / POLICY).write_text(yaml.safe_dump(named, sort_keys=False), encoding="utf-8")
        pictures, left_out = draw_pictures(judged, policy, folder.staging)
        report |= {"policy": POLICY, "labels": labels, "page": PAGE, "pictures": list(pictures), "left_out": left_out}
        (folder.staging / PAGE).write_text(page(report, pictures, folder.staging), encoding="utf-8")
        folder.write_json(REPORT, report)
        folder.publish()
    return report


def label_file(method: Method, name: str) -> str:
    """The name of a label file in the form that the method's system reads."""
    return f"{name}.csv" if method.form is Labels.to_pyramid else f"{name}.json"


def label_text(method: Method, labels: Labels) -> str:
    """The content of such a file."""
    content = method.form(labels)
    return content if isinstance(content, str) else json.dumps(content, indent=1) + "\n"
