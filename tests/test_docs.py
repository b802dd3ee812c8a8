"""The README's example runs, its links lead somewhere, and the pages name what exists."""

import dataclasses
import functools
import re
from pathlib import Path

import pytest
import torch

from headforce.errors import CATALOGUE
from headforce.errors_page import markdown

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def rows(page, heading):
    """The first cells of the table under a heading."""
    part = (ROOT / page).read_text(encoding="utf-8").split(heading, 1)[1].split("\n## ", 1)[0]
    return re.findall(r"`([\w.()-]+)`", " ".join(re.findall(r"^\| (.*?) \|", part, re.MULTILINE)))


def test_the_example_of_the_readme_runs(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    # Inductor would compile for half a minute and is tested elsewhere.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, options={"inner": "eager"}))
    (code,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL | re.M)
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    names = {}
    exec(code, names)
    assert names["video"].shape == (1, 4, 12, 8, 12)
    shown = capsys.readouterr().out
    assert " 0 refused" in shown
    assert "170496" in shown


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links(page):
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert link.startswith("https://") or (page.parent / link).exists(), link
    unknown = {code for code in re.findall(r"\bHF-[A-Z0-9]+(?:-[A-Z0-9]+)*", text) if code not in CATALOGUE}
    assert not unknown


def test_the_page_of_errors_is_current():
    assert (ROOT / "docs/errors.md").read_text(encoding="utf-8") == markdown(), "run: headforce errors > docs/errors.md"


def test_the_options_of_the_page_are_those_of_the_code():
    from headforce.kvpass.options import Options

    page = set(rows("docs/usage.md", "## Options of `torch.compile`"))
    assert page == {field.name for field in dataclasses.fields(Options)}


def test_the_session_of_the_page_is_that_of_the_code():
    from headforce import Session

    for name in rows("docs/usage.md", "## The session"):
        attribute = name.removeprefix("session.").removesuffix("()")
        assert hasattr(Session, attribute) or f"self.{attribute}" in Path(
            ROOT / "headforce/kvpass/session.py"
        ).read_text(encoding="utf-8")


def test_the_dependencies_of_the_page_are_those_of_the_project():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    page = (ROOT / "docs/dependencies.md").read_text(encoding="utf-8")
    names = re.findall(r'^    "([A-Za-z-]+)[>";]', project, re.MULTILINE)
    listed = re.findall(r"`([A-Za-z-]+)(?: [<>=0-9., ]+)?`", page)
    missing = [name for name in names if name not in listed]
    assert not missing


def test_rooms_of_the_map_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rooms = re.findall(r"^\| `(headforce/[\w.]+)`", text, re.MULTILINE)
    assert rooms
    assert all((ROOT / room).exists() for room in rooms)


def test_the_entry_points_of_the_page_are_those_of_the_code():
    text = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "headforce").rglob("*.py"))
    table = re.findall(r"^\| .*?`@(\w+)\(.*?`(headforce/[\w/]+)` \| `(headforce\.\w+)` \|$", text, re.MULTILINE)
    assert len(table) == 8
    for decorator, folder, group in table:
        assert f"def {decorator}(" in source
        assert (ROOT / folder).is_dir()
        assert f'"{group}"' in source or f"`{group}`" in source


@pytest.mark.parametrize(
    ("page", "files"),
    [
        ("your-own-model.md", ["examples/own_model.py"]),
        (
            "extending.md",
            [
                "examples/plugin_dilated_window/headforce_dilated_window/op.py",
                "examples/plugin_dilated_window/pyproject.toml",
                "examples/plugin_dilated_window/tests/test_dilated_window.py",
            ],
        ),
    ],
)
def test_walks_show_what_is_in_the_files(page, files):
    source = "\n".join((ROOT / file).read_text(encoding="utf-8") for file in files)
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    shown = [b for b in re.findall(r"^```\w+\n(.*?)^```", text, re.DOTALL | re.M) if len(b.splitlines()) > 6]
    assert len(shown) >= 2
    assert all(block in source for block in shown)
    assert len((ROOT / files[0]).read_text(encoding="utf-8").splitlines()) <= (60 if "plugin" in files[0] else 200)


def test_the_laws_of_the_page_are_those_of_the_kit():
    import headforce.testing as kit

    listed = set(re.findall(r"`(check_\w+|assert_\w+)\(", (ROOT / "docs/extending.md").read_text(encoding="utf-8")))
    assert listed == {name for name in kit.__all__ if name.startswith(("check_", "assert_"))}
    assert all(callable(getattr(kit, name)) for name in kit.__all__)
