"""Triton's interpreter with bfloat16 as hardware computes it.

As it comes, the interpreter multiplies the bit patterns of bfloat16 values, and cuts floats off where hardware rounds
them to the nearest (triton-lang/triton issue 11584, versions 3.6 to 3.9). It also spends half of its time on two things
that nobody gets anything from: it puts its own functions in place of the language's again at every call of one kernel
function by another, and looks for overflows behind every sum and product of integers without saying so, unless its
option `debug` is set. `install()` repairs this; it touches private names of `triton.runtime.interpreter` and is for
tests and for `TRITON_INTERPRET=1`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import triton
import triton.language as tl
from triton.runtime import interpreter


def enabled() -> bool:
    """Whether kernels run in the interpreter: the environment had TRITON_INTERPRET=1 when triton was imported."""
    return bool(triton.knobs.runtime.interpret)


def install() -> None:
    """Repairs the interpreter, once."""
    builder = interpreter.InterpreterBuilder
    if getattr(builder, "_headforce_bf16", False):
        return
    cast, convert, dot = builder.cast_impl, builder.create_fp_to_fp, builder.create_dot

    def repaired_cast(self: Any, source: Any, to: Any) -> Any:
        converted = _converted(source, to)  # a handle is false where it holds a zero
        return cast(self, source, to) if converted is None else converted

    def repaired_convert(self: Any, source: Any, to: Any, rounding: Any = None) -> Any:
        converted = _converted(source, to)
        return convert(self, source, to, rounding) if converted is None else converted

    def repaired_dot(self: Any, a: Any, b: Any, accumulator: Any, precision: Any, imprecise: Any) -> Any:
        return dot(self, _widened(a), _widened(b), accumulator, precision, imprecise)

    def through_cast(self: Any, source: Any, to: Any) -> Any:
        return self.cast_impl(source, to)

    builder.cast_impl = repaired_cast
    builder.create_fp_to_fp = repaired_convert
    builder.create_dot = repaired_dot
    builder.create_fp_ext = builder.create_fp_trunc = through_cast
    builder._headforce_bf16 = True
    interpreter._patch_lang = _once_a_launch(interpreter._patch_lang)
    options = interpreter.interpreter_builder.options
    interpreter.interpreter_builder.options = replace(options, sanitize_overflow=options.debug)


def _once_a_launch(patch: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`patch`, which makes the language of a function's module interpreted until the launch restores it, for modules
    that the running launch has not met yet."""
    done: set[int] = set()

    class Launch(interpreter._LangPatchScope):
        def restore(self) -> None:
            done.clear()
            super().restore()

    def patch_once(function: Any) -> Any:
        languages = {id(value) for value in function.__globals__.values() if value is tl or value is tl.core}
        scope = Launch()
        if not languages or not languages <= done:  # without any, it says what is missing
            scope._changes = patch(function)._changes
            done.update(languages)
        return scope

    return patch_once


def _converted(source: Any, to: Any) -> Any | None:
    before, after = source.dtype.scalar, to.scalar
    if before == tl.float32 and after == tl.bfloat16:
        return interpreter.TensorHandle(_rounded(source.data), after)
    if before == tl.bfloat16 and after == tl.float32:
        return interpreter.TensorHandle(_wide(source.data), after)
    return None


def _widened(x: Any) -> Any:
    return interpreter.TensorHandle(_wide(x.data), tl.float32) if x.dtype.scalar == tl.bfloat16 else x


def _wide(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _rounded(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """To the nearest, halves to even; NaN stays NaN."""
    values = np.ascontiguousarray(values, dtype=np.float32)
    bits = values.view(np.uint32)
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)
