"""The command `headforce profile`."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import click
import yaml


@click.command()
@click.argument("target")
@click.option("--method", default="pyramid", show_default=True, help="pyramid, forcing_kv, head_forcing or dummy.")
@click.option("--out", type=click.Path(path_type=Path), default="out/profile", show_default=True, help="Results.")
@click.option("--set", "constants", multiple=True, metavar="NAME=VALUE", help="A constant of the method.")
@click.option("--prompts", type=click.IntRange(1), default=1, show_default=True, help="Prompts that the target takes.")
@click.option("--seeds", type=click.IntRange(1), default=1, show_default=True, help="Seeds that the target takes.")
@click.option("--chunk", default=-1, show_default=True, help="The chunk in which heads are classified; -1 is the last.")
@click.option("--step", default=-1, show_default=True, help="Its pass; -1 is the last.")
@click.option("--budget", type=click.FloatRange(0, 1, min_open=True), help="Share of the model's own K and V to hold.")
@click.option("--rule", "rules", multiple=True, help="A candidate for --budget; several are possible [default: ours].")
@click.option("--queries", default=0.25, show_default=True, help="Share of the queries that is measured.")
@click.option("--seed", default=0, show_default=True, help="Of the choice of queries.")
@click.option("--by-query", is_flag=True, help="Statistics of every query frame instead of the chunk.")
@click.option("--inner", default="inductor", show_default=True, help="Inner compiler: inductor or eager.")
@click.option("--blocks", help="A submodule whose children are compiled each by itself, sooner, such as blocks.")
@click.option("--fresh", is_flag=True, help="Measure anew instead of going on with what --out has.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def profile(
    target: str,
    method: str,
    out: Path,
    constants: tuple[str, ...],
    prompts: int,
    seeds: int,
    budget: float | None,
    rules: tuple[str, ...],
    queries: float,
    seed: int,
    by_query: bool,
    inner: str,
    blocks: str | None,
    fresh: bool,
    as_json: bool,
    **where: int,
) -> None:
    """Measure what the heads of a model look at; write labels, a policy and a page to look at.

    TARGET is FILE.py:FUNCTION or package.module:FUNCTION, a function that takes nothing and returns (model, rollout):
    `rollout(model, prompt=0, seed=0)` makes one video, and may leave out `prompt` and `seed`.
    """
    from ..calls import load_example
    from ..choices import check_choices
    from ..folder import Folder
    from .budget import RULES, check_rules
    from .measure import measure
    from .measured import Sample
    from .methods import find_method
    from .progress import Progress
    from .report import judge
    from .results import PAGE, write_results
    from .rollouts import Rollouts

    given = _constants(constants)
    if rules and budget is None:
        raise click.UsageError("--rule is a candidate for --budget, which is not given")
    # All this before a model runs for long.
    find_method(method).try_out(given)
    check_rules(rules)
    check_choices(inner=inner)
    Folder(out, "HF-PROFILE-FILE").check()
    with contextlib.redirect_stdout(sys.stderr):  # what the model prints is no part of the answer
        rollouts = Rollouts.of(load_example(target), prompts, seeds)
        found = measure(
            rollouts,
            out,
            sample=Sample(queries, seed, by_query),
            source=target,
            fresh=fresh,
            options={"inner": inner},
            blocks=blocks,
            progress=Progress(silent=as_json),
            say=lambda words: click.echo(words, err=True),
        )
    judged = judge(found, method, constants=given, budget=budget, rules=rules or RULES, **where)
    report = write_results(judged, out)
    for title, why in report["left_out"].items():
        click.echo(f"left out the picture {title!r}: {why}", err=True)
    if as_json:
        click.echo(json.dumps(report))
        return
    heads = ", ".join(f"{count} {name}" for name, count in report["counts"].items())
    agreed = f"; all videos agree on {report['unanimous']:.0%} of the heads" if len(report["videos"]) > 1 else ""
    click.echo(f"{method}: {heads}{agreed}")
    if report["budget"] is not None:
        kept, share = report["budget"]["kept"], report["budget"]["share"]
        click.echo(f"budget: {share:.1%} of the bytes keep {kept:.1%} of the attention")
    click.echo(f"{out}: {report['policy']}, {report['labels']}, {PAGE}")


def _constants(given: tuple[str, ...]) -> dict[str, Any]:
    """NAME=VALUE, the value as YAML reads it."""
    constants = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not equals:
            raise click.BadParameter(f"{item!r} is not NAME=VALUE", param_hint="--set")
        try:
            constants[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise click.BadParameter(f"{item!r} has no value that can be read", param_hint="--set") from error
    return constants
