"""The commands `headforce verify` and `headforce bisect`."""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ..choices import check_choices
from ..errors import HeadforceError


def _compile_options(command: Callable[..., None]) -> Callable[..., None]:
    options = [
        click.argument("example", metavar="TARGET"),
        click.option("--mode", type=click.Choice(["owned", "view"]), default="owned", show_default=True),
        click.option("--target", help="How attention is computed [default: the best for the device]."),
        click.option("--inner", default="inductor", show_default=True, help="Inner compiler: inductor, eager, ..."),
        click.option("--limit", type=click.FloatRange(0), help="Deviation from eager that is allowed, as a share."),
        click.option("--import", "modules", multiple=True, help="A module to import first, such as one with a target."),
        click.option("--json", "as_json", is_flag=True, help="Print plain data."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@_compile_options
@click.option("--policy", help="A policy file, or the name of a published system, to run with every check on besides.")
@click.option("--labels", type=click.Path(path_type=Path), help="The label file of a system that needs one.")
@click.option("--shrink/--no-shrink", default=True, show_default=True, help="Look for the smallest rollout that fails.")
def verify(
    example: str,
    policy: str | None,
    labels: Path | None,
    shrink: bool,
    limit: float | None,
    modules: tuple[str, ...],
    as_json: bool,
    **choices: Any,
) -> None:
    """Check a compiled model against the eager one over the calls of TARGET (see `headforce doctor`).

    Exits with 0 if all levels hold, with 1 if one does not. What fails is written to $HEADFORCE_FAILURES, or to
    headforce-failures, and so is the smallest rollout that is found to fail like it: fewer calls, a plainer policy, and
    smaller sizes if TARGET is a function with arguments such as `layers=2, chunks=(3, 3)`.
    """
    from ..presets import read_policy
    from .case import Case
    from .rollout import Way
    from .shrink import shrink as shrunk

    with contextlib.redirect_stdout(sys.stderr):  # what the model prints is no part of the answer
        _import(modules)
        check_choices(target=choices["target"], inner=choices["inner"])
        given = None if policy is None else read_policy(policy, labels)
        case = Case(example, Way(**choices), given, limit, modules)
        verdict = case.verdict()
    if not as_json:
        click.echo(str(verdict))
    small = None
    if shrink and not verdict.holds:
        with contextlib.redirect_stdout(sys.stderr):
            small = shrunk(case, verdict)
    if as_json:
        found = {} if small is None else {"smallest": small.to_json()}
        click.echo(json.dumps({**verdict.to_json(), **found}))
    elif small is not None:
        click.echo(str(small))
    sys.exit(0 if verdict.holds else 1)


@click.command()
@_compile_options
def bisect(example: str, limit: float | None, modules: tuple[str, ...], as_json: bool, **choices: Any) -> None:
    """Find the call and the attention site at which a compiled model departs from the eager one.

    Exits with 0 if it does not depart, with 1 if it does. `HEADFORCE_MAX_SITES=n` does by hand what this does: only the
    first n sites of a graph run on the target, the others run the reference.
    """
    from ..calls import load_example
    from .bisect import bisect as bisected
    from .rollout import Way

    with contextlib.redirect_stdout(sys.stderr):
        _import(modules)
        check_choices(target=choices["target"], inner=choices["inner"])
        found = bisected(load_example(example), Way(**choices), limit)
    click.echo(json.dumps(found.to_json()) if as_json else str(found))
    sys.exit(0 if found.call is None else 1)


def _import(modules: tuple[str, ...]) -> None:
    from ..calls import find_beside_user

    find_beside_user()
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever the module's own code raises
            raise HeadforceError(
                "HF-OPTION",
                site=f"--import {name}",
                found=f"{type(error).__name__}: {error}",
                needed="a module that can be imported",
            ) from error
