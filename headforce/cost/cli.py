"""The command `headforce calibrate`, and what `headforce plan` does with its file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..choices import check_choices, check_device, new_file
from ..lowering.footprint import DTYPE_BYTES, Footprint
from ..policy import BoundPolicy, Schedule

if TYPE_CHECKING:
    from rich.table import Table


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, callback=new_file, help="The file to write.")
@click.option("--device", default=None, help="cpu or cuda [default: cuda where there is one].")
@click.option("--dtype", type=click.Choice(sorted(DTYPE_BYTES)), help="[default: float32 on a CPU, else bfloat16]")
@click.option("--head-dim", "head_dims", type=click.IntRange(1), multiple=True, help="[default: 64 and 128]")
@click.option("--target", help="How attention is computed [default: the best for the device].")
@click.option("--inner", default="eager", show_default=True, help="eager, or inductor: takes minutes, and fuses.")
@click.option("--threads", type=click.IntRange(1), help="Threads of torch [default: what torch picks].")
@click.option("--processor-time", is_flag=True, help="Count seconds of the processor: for one thread of a busy CPU.")
def calibrate(
    out: Path,
    device: str | None,
    dtype: str | None,
    head_dims: tuple[int, ...],
    target: str | None,
    inner: str,
    threads: int | None,
    processor_time: bool,
) -> None:
    """Measure this machine, in a minute or less, for `headforce plan --predict`.

    Times are those of single operators over a grid of sizes, of planning, and of a miniature that is compiled. Nothing
    else should use the machine meanwhile.
    """
    import torch

    from .calibrate import calibrate as measured
    from .stopwatch import Stopwatch

    check_choices(target=target, inner=inner)
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device(where)
    on = torch.device(where)
    kind = dtype or ("float32" if on.type == "cpu" else "bfloat16")
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        watch = Stopwatch(on, now=time.process_time if processor_time else time.perf_counter)
        dims: Any = {"head_dims": head_dims} if head_dims else {}
        machine = measured(
            on,
            getattr(torch, kind),
            target=target,
            inner=inner,
            watch=watch,
            say=lambda words: click.echo(f"measuring {words}", err=True),
            **dims,
        )
    finally:
        torch.set_num_threads(before)
    try:
        machine.save(out)
    except OSError as error:
        raise click.FileError(str(out), error.strerror or str(error)) from error
    click.echo(f"{out}: {machine.device}, {machine.threads} threads, {machine.dtype}, {machine.target}")


def predicted(
    file: Path, policy: BoundPolicy, chunks: Schedule, size: Footprint, **shape: Any
) -> tuple[dict[str, Any], Table]:
    """What `plan` adds for a machine: as plain data, and as a table. Raises HF-MACHINE-FILE."""
    from .machine import Machine
    from .predict import predict
    from .shape import Shape
    from .text import table

    machine, sizes = Machine.load(file), Shape(**shape)
    prediction = predict(policy, chunks, sizes, machine)
    return prediction.to_json(), table(prediction, sizes, machine, size)
