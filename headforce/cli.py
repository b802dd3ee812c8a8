"""The command line; `headforce -h` lists its commands."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from ._version import __version__
from .choices import check_choices, new_file
from .cost.cli import calibrate as calibrate_command
from .cost.cli import predicted
from .doctor.cli import doctor as doctor_command
from .errors import HeadforceError
from .folder import Folder
from .profile.cli import profile as profile_command
from .run import cli as run_commands
from .verify import cli as verify_commands

T = TypeVar("T")


class _Group(click.Group):
    """Shows a refusal as a message and exit code 2 instead of a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except HeadforceError as error:
            click.echo(f"headforce: {error}", err=True)
            sys.exit(2)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="headforce")
def main() -> None:
    """Per-head KV caches for autoregressive video models, as a compiler."""


def _shape_options(command: Callable[..., None]) -> Callable[..., None]:
    options = [
        click.option("--layers", type=click.IntRange(1), default=30, show_default=True),
        click.option("--heads", type=click.IntRange(1), default=12, show_default=True),
        click.option("--schedule", default="3x14", show_default=True, help="Chunk sizes, such as 3x14 or 1,3x7,2."),
        click.option("--native", default="span(21)", show_default=True, help="The rule of the unmodified model."),
        click.option("--tokens-per-frame", type=click.IntRange(1), default=1560, show_default=True),
        click.option("--head-dim", type=click.IntRange(1), default=128, show_default=True),
        click.option("--dtype", default="bfloat16", show_default=True, help="bfloat16, float16 or float32."),
        click.option("--batch", type=click.IntRange(1), default=1, show_default=True),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@main.command()
@click.argument("policy")
@click.option("--labels", type=click.Path(path_type=Path), help="The label file of a preset that needs one.")
@_shape_options
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON instead of drawing it.")
@click.option("--png", type=click.Path(path_type=Path), help="Also write a picture to this file.")
@click.option(
    "--predict", "machine", type=click.Path(path_type=Path), help="A file of `headforce calibrate`: predict times too."
)
@click.option("--passes", type=click.IntRange(1), default=5, show_default=True, help="Of a chunk, for --predict.")
@click.option("--ffn", type=click.IntRange(1), default=8960, show_default=True, help="Its width, for --predict.")
@click.option("--text", type=click.IntRange(1), default=512, show_default=True, help="Its tokens, for --predict.")
def plan(
    policy: str,
    labels: Path | None,
    layers: int,
    heads: int,
    schedule: str,
    native: str,
    tokens_per_frame: int,
    head_dim: int,
    dtype: str,
    batch: int,
    as_json: bool,
    png: Path | None,
    machine: Path | None,
    passes: int,
    ffn: int,
    text: int,
) -> None:
    """Print and draw what every head reads under POLICY, chunk by chunk. Needs no model.

    POLICY is a policy file, or the name of a published system such as longlive. With --predict also the time of a
    chunk of a model like Wan, by part, against the same model as it is.
    """
    from .lowering.footprint import DTYPE_BYTES, footprint
    from .lowering.preview import preview, to_json
    from .policy import Schedule, parse_rule
    from .presets import read_policy

    if dtype not in DTYPE_BYTES:
        raise click.BadParameter(f"{dtype!r} is not one of {', '.join(DTYPE_BYTES)}", param_hint="--dtype")
    given, own, chunks = read_policy(policy, labels), parse_rule(native), Schedule.parse(schedule)
    try:
        bound = given.bind(layers=layers, heads=heads, native=own, tokens=tokens_per_frame)
    except HeadforceError as error:
        raise error.at(policy) from None
    size = footprint(bound, chunks, 2 * batch * tokens_per_frame * head_dim * DTYPE_BYTES[dtype])
    times = None
    if machine is not None:
        shape = {"layers": layers, "heads": heads, "head_dim": head_dim, "tokens": tokens_per_frame, "batch": batch}
        shape |= {"passes": passes, "ffn": ffn, "text": text}
        times = predicted(machine, bound, chunks, size, dtype=dtype, **shape)
    if as_json:
        json.dump(to_json(bound, chunks, size) | ({} if times is None else {"predicted": times[0]}), sys.stdout)
        sys.stdout.write("\n")
    else:
        from rich.console import Console

        from .draw import text_report

        width = shutil.get_terminal_size((100, 24)).columns
        Console(width=width).print(text_report(bound, list(preview(bound, chunks)), size, width))
        if times is not None:
            Console(width=max(width, 100)).print(times[1])
    if png is not None:
        from .draw import save_reads

        try:
            save_reads(bound, list(preview(bound, chunks)), png)
        except OSError as error:
            raise click.FileError(str(png), error.strerror) from error


@main.command()
@click.argument("call", metavar="TARGET")
@click.option("--policy", type=click.Path(path_type=Path), help="A policy, to see what it would make of the model.")
@click.option("--labels", type=click.Path(path_type=Path), help="The label file of a preset that needs one.")
@click.option("--json", "as_json", is_flag=True, help="Print the explanation as JSON.")
def explain(call: str, policy: Path | None, labels: Path | None, as_json: bool) -> None:
    """Print what headforce finds in one call of a model, and what it refuses and why.

    TARGET is FILE.py:FUNCTION or package.module:FUNCTION, a function that takes nothing and returns (model, args,
    kwargs) of the call, as in examples/one_call.py:first_chunk, or what else `headforce doctor` takes, but for calls
    that a function makes.
    """
    from .calls import load_example
    from .kvpass.explain import explain as explained

    model, args, kwargs = load_example(call).first(call)
    explanation = explained(model, *args, policy=None if policy is None else str(policy), labels=labels, **kwargs)
    click.echo(json.dumps(explanation.to_json()) if as_json else str(explanation))


@main.command()
@click.option("--model", default="causal-wan", show_default=True, help="The example: a folder of examples/.")
@click.option("--preset", type=click.Choice(["demo", "tiny"]), default="demo", show_default=True, help="Model size.")
@click.option("--policy", help="Policy file, or a published system [default: examples/policies/PRESET.yaml].")
@click.option(
    "--labels",
    type=click.Path(path_type=Path),
    help="The label file of a published system that needs one [default: examples/labels/POLICY.PRESET.json].",
)
@click.option("--chunks", type=click.IntRange(1), default=10, show_default=True, help="Chunks of 3 frames.")
@click.option("--inner", default="inductor", show_default=True, help="Inner compiler: inductor or eager.")
@click.option("--target", help="How attention is computed [default: the best for the device].")
@click.option("--whole", is_flag=True, help="Compile the model as one graph instead of block by block.")
@click.option("--out", type=click.Path(path_type=Path), default="out/demo", show_default=True, help="Results.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of weights, text and noise.")
@click.option("--threads", type=click.IntRange(1), help="Threads of torch [default: what torch picks].")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON instead of a table.")
def demo(as_json: bool, **choices: Any) -> None:
    """Run the example model eager and compiled, side by side; check, measure and draw.

    Exits with 1 if a check does not hold.
    """
    # Threads that spin while they wait starve each other on a busy machine. OpenMP reads this when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

    from .demo import Settings, run_demo

    check_choices(target=choices["target"], inner=choices["inner"])
    settings = Settings(**choices)
    report = run_demo(settings)
    if as_json:
        click.echo(json.dumps(report))
    else:
        from rich.console import Console

        from .demo.table import table

        Console().print(table(report))
        click.echo(f"\n{settings.out}: report.json, {', '.join(report['pictures'])}")
    failed = [check["sentence"] for check in report["checks"] if not check["holds"]]
    for sentence in failed:
        click.echo(f"headforce: a check of the demo does not hold. {sentence}", err=True)
    sys.exit(1 if failed else 0)


@main.command()
@click.option("--arch", "architectures", multiple=True, help="Such as sm90; several are possible [default: all].")
@click.option("--dtype", "dtypes", multiple=True, help="bfloat16, float16 or float32 [default: all].")
@click.option("--head-dim", "head_dims", multiple=True, type=click.IntRange(1), help="[default: 64 and 128]")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="A folder for report.json, binaries and sources.",
)
@click.option("--aot/--sources", default=True, help="Compile ahead of time, or only write the sources to --out.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def kernels(
    architectures: tuple[str, ...],
    dtypes: tuple[str, ...],
    head_dims: tuple[int, ...],
    out: Path | None,
    aot: bool,
    as_json: bool,
) -> None:
    """Compile the kernels for GPUs that need not be here; print what the compiler made of them.

    Registers of a thread, bytes of local memory, spills in the inner loop, shared memory, and the order of the inner
    loop (G: wgmma or tcgen05, M: mma, e: exponential, w: wait for wgmma, T: load of a tile by descriptor).
    """
    from .kernels.aot import TYPES
    from .kernels.config import ARCHITECTURES
    from .lowering.gate import all_kernels, compiled, save, save_sources

    known = {str(dtype).removeprefix("torch."): dtype for dtype in TYPES}
    for name in dtypes:
        if name not in known:
            raise click.BadParameter(f"{name!r} is not one of {', '.join(known)}", param_hint="--dtype")
    chosen = [known[name] for name in dtypes or known]
    wanted = list(all_kernels(architectures or ARCHITECTURES, chosen, head_dims or (64, 128)))
    if out is not None:
        Folder(out, "HF-OPTION").check()  # before minutes of compiling
    if not aot:
        if out is None:
            raise click.UsageError("--sources needs --out, a folder to write them to")
        for file in _published(out, lambda folder: save_sources(wanted, folder)):
            click.echo(str(out / file.name))
        return
    made = [compiled(*kernel) for kernel in wanted]
    report = (
        [kernel.to_json() for kernel in made] if out is None else _published(out, lambda folder: save(made, folder))
    )
    if as_json:
        click.echo(json.dumps(report))
    else:
        from rich.console import Console
        from rich.table import Table

        columns = ("kernel", "for", "dtype", "head dim", "rotates", "registers", "local", "inner spills", "shared")
        table = Table(*columns, "inner loop")
        for kernel in report:
            row = [kernel[name] for name in ("kernel", "architecture", "dtype", "head_dim")]
            row += ["yes" if kernel["rotated"] else "no"]
            row += [kernel[name] for name in ("registers", "local", "inner_spills")]
            table.add_row(*map(str, row), f"{kernel['shared']} of {kernel['shared_limit']}", kernel["order"])
        Console(width=160).print(table)
    sys.exit(0 if all(kernel.fits for kernel in made) else 1)


def _published(out: Path, save: Callable[[Path], T]) -> T:
    """What `save` returns, which writes to a folder; its files are put into `out` once all of them are there."""
    with Folder(out, "HF-OPTION") as folder:
        saved = save(folder.staging)
        folder.publish()
    return saved


def _table(context: click.Context, parameter: click.Parameter, path: Path | None) -> Path | None:
    """Callback of an option that names a table of tiles to write: the one that is read, if none is named.

    One that cannot be written is refused at once, and by HF-OPTION a file that is there and is no table.
    """
    from .kernels.config import VARIABLE, read_tiles, tuning_table

    table = path or tuning_table()
    try:
        new_file(context, parameter, table)
    except click.FileError as error:
        hint = "" if path else f"; name another with --out, and with {VARIABLE} where it is to be read"
        raise click.FileError(str(table), f"{error.message}{hint}") from error
    if table.exists():
        read_tiles(table)
    return table


@main.command()
@click.option("--kernel", "kernels", multiple=True, help="ragged_attention or hopper_attention [default: all].")
@click.option("--dtype", "dtypes", multiple=True, help="bfloat16, float16 or float32 [default: all].")
@click.option("--head-dim", "head_dims", multiple=True, type=int, help="64 or 128 [default: both].")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    callback=_table,
    help="The table to write [default: the one that is read, HEADFORCE_TUNING or that of the package].",
)
def tune(kernels: tuple[str, ...], dtypes: tuple[str, ...], head_dims: tuple[int, ...], out: Path) -> None:
    """Measure the kernels' tiles on this GPU and keep the fastest that compute accurately enough.

    Every kernel is compiled with every tile, for all dtypes and head dims: --kernel, --dtype and --head-dim, which can
    be given several times, choose among them. The table keeps its other entries. Models read the one that the
    environment variable HEADFORCE_TUNING names, or else that of the package.
    """
    import torch
    from triton.testing import do_bench

    from .kernels.config import architecture_of
    from .lowering.tune import Wanted, record, tune_device

    wanted = Wanted(kernels, dtypes, head_dims)
    if not torch.cuda.is_available():
        raise HeadforceError("HF-KERNEL", found="no GPU", needed="the GPU that the kernels are to run on")
    device = torch.device("cuda", torch.cuda.current_device())
    architecture, where = architecture_of(device), torch.cuda.get_device_name(device)
    for kernel, problem, trials in tune_device(device, lambda run: do_bench(run, quantiles=[0.5]), wanted):
        click.echo(f"{kernel}, {str(problem.dtype).removeprefix('torch.')}, head dim {problem.width}")
        for trial in trials:
            click.echo(f"  {'refused' if trial.ms is None else f'{trial.ms:.3f} ms'}  {trial.config} {trial.refused}")
        if trials and trials[0].ms is not None:
            try:
                record(kernel, architecture, problem, trials[0], where, out)
            except OSError as error:
                raise click.FileError(str(out), error.strerror or str(error)) from error


@main.command(name="list")
@click.argument("kind", required=False)
@click.option("--check", is_flag=True, help="Print what lacks a reference, a docstring or a counter-example instead.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def list_registered(kind: str | None, check: bool, as_json: bool) -> None:
    """Print everything that is registered, by installed packages too: its file, and its docstring's first line.

    KIND chooses among operators, scores, makers, targets, recognisers, adapters, presets and profile methods. With
    --check, exits with 1 if something lacks what it owes.
    """
    from .registered import listing, registered

    things = [thing for thing in registered() if kind is None or thing.kind.startswith(kind.rstrip("s"))]
    if not things:
        raise click.BadParameter(f"nothing of the kind {kind!r} is registered", param_hint="KIND")
    shown = [thing for thing in things if thing.lacks] if check else things
    if as_json:
        click.echo(json.dumps([thing.to_json() for thing in shown]))
    elif check:
        for thing in shown:
            click.echo(f"{thing.kind} {thing.name} ({thing.where}) lacks {', '.join(thing.lacks)}")
        click.echo(f"{len(things)} checked, {len(shown)} lack something")
    else:
        click.echo(listing(shown))
    sys.exit(1 if check and shown else 0)


@main.command()
def schema() -> None:
    """Print the JSON schema of policy files (docs/policy.schema.json)."""
    from .policy.file import schema as schema_of_files

    click.echo(json.dumps(schema_of_files(), indent=2))


@main.command()
def errors() -> None:
    """Print every error code with its meaning and remedy, as Markdown (docs/errors.md)."""
    from .errors_page import markdown

    click.echo(markdown(), nl=False)


main.add_command(calibrate_command)
main.add_command(doctor_command)
main.add_command(profile_command)
main.add_command(run_commands.run)
main.add_command(run_commands.compare)
main.add_command(verify_commands.verify)
main.add_command(verify_commands.bisect)
