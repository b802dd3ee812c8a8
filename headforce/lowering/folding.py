"""Cutting a template of a kernel down to what its settings need, as text: comments and layout stay.

A template is a Python file with a block of settings, `NAME = wrapper(value)  # comment`, between two marks. `fold`
writes the given values there, resolves every `if` whose test names settings alone, and then drops functions, arguments,
variables, settings and imports that nothing uses any more.

Such an `if` may have an `else`, which may hold another, but no `elif`; strings in its branches are of one line.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence

BEGIN, END = "# --- settings", "# --- end of settings"


def fold(template: str, settings: Mapping[str, int | str], entries: Sequence[str], heading: str) -> str:
    """The template's text for these settings.

    Args:
        settings: a value for every setting of the template.
        entries: the functions that are launched; they lose the arguments that they do not use.
        heading: the docstring of the result, in place of the template's own.
    """
    text = _settled(template, settings)
    text = _resolved(text, settings)
    text = _without_unused(text, entries)
    return _headed(text, heading)


def _settled(text: str, settings: Mapping[str, int | str]) -> str:
    head, rest = text.split(BEGIN, 1)
    first, rest = rest.split("\n", 1)
    block, tail = rest.split(END, 1)

    def value(found: re.Match[str]) -> str:
        return f"{found[1]} = {found[2]}({settings[found[1]]!r})"

    block = re.sub(r"^(\w+) = ([\w.]+)\(.*?\)", value, block, flags=re.MULTILINE)
    return f"{head}{BEGIN}{first}\n{block}{END}{tail}"


def _resolved(text: str, settings: Mapping[str, int | str]) -> str:
    """Every `if` on settings alone is replaced by the branch that it takes."""
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.If) and _names(node.test) and _names(node.test) <= settings.keys():
            return _resolved("\n".join(_taken(lines, node, settings)) + "\n", settings)
    return text


def _taken(lines: list[str], node: ast.If, settings: Mapping[str, int | str]) -> list[str]:
    """The lines with the branch in the place of the `if`, comments at its head included."""
    if node.orelse and lines[node.orelse[0].lineno - 1].lstrip().startswith("elif"):
        raise ValueError(f"line {node.lineno}: an elif beside a setting; write an if in an else")
    holds = eval(compile(ast.Expression(node.test), "setting", "eval"), {}, dict(settings))
    assert node.end_lineno is not None
    kept: list[str] = []
    branch = node.body if holds else node.orelse
    if branch:
        begin = _header_end(lines, node.lineno - 1) if holds else _else_of(lines, node)
        kept = [line.removeprefix("    ") for line in lines[begin : branch[-1].end_lineno]]
    return [*lines[: node.lineno - 1], *kept, *lines[node.end_lineno :]]


def _header_end(lines: list[str], first: int) -> int:
    """The line after the colon of the `if` that begins in line `first`."""
    return next(i for i in range(first, len(lines)) if lines[i].split("#")[0].rstrip().endswith(":")) + 1


def _else_of(lines: list[str], node: ast.If) -> int:
    """The line after the `else` of an `if`, which is indented as far."""
    word = " " * node.col_offset + "else"
    after = range(node.body[-1].end_lineno or node.lineno, node.orelse[0].lineno)
    return next(i for i in after if lines[i].split("#")[0].rstrip() == f"{word}:") + 1


def _names(node: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}


def _without_unused(text: str, entries: Sequence[str]) -> str:
    """Drops what nothing uses, until nothing is left to drop."""
    while (shorter := _dropped(text, entries)) != text:
        text = shorter
    return text


def _dropped(text: str, entries: Sequence[str]) -> str:
    tree, lines = ast.parse(text), text.splitlines()
    used = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    gone: set[int] = set()
    for node in tree.body:
        assert node.end_lineno is not None
        if isinstance(node, ast.FunctionDef):
            if node.name not in used and node.name not in entries:
                first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                gone.update(range(first, node.end_lineno + 1))
                continue
            loaded = {
                n.id
                for statement in node.body
                for n in ast.walk(statement)
                if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)
            }
            gone.update(_unused_assignments(node, loaded))
            if node.name in entries:
                gone.update(argument.lineno for argument in node.args.args if argument.arg not in loaded)
        elif isinstance(node, ast.Assign) and not _stored(node) & used:
            gone.update(range(node.lineno, node.end_lineno + 1))
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = {(alias.asname or alias.name).split(".")[0] for alias in node.names}
            if not names & used:
                gone.update(range(node.lineno, node.end_lineno + 1))
    kept = "\n".join(line for i, line in enumerate(lines, 1) if i not in gone)
    return re.sub(r"\n{3,}(?=\s)|\n{4,}", _gap, kept).rstrip() + "\n"


def _gap(newlines: re.Match[str]) -> str:
    """One empty line inside a function, two between functions."""
    return "\n\n" if newlines.string[newlines.end()] == " " else "\n\n\n"


def _unused_assignments(function: ast.FunctionDef, loaded: set[str]) -> set[int]:
    """The lines of assignments to names that the function never reads; right sides only compute, so they may go."""
    return {
        line
        for node in ast.walk(function)
        if isinstance(node, (ast.Assign, ast.AugAssign)) and _stored(node) and not _stored(node) & loaded
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }


def _stored(node: ast.Assign | ast.AugAssign) -> set[str]:
    """The names that an assignment sets; none if it sets parts of something."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    names = [n for target in targets for n in ast.walk(target)]
    plain = all(isinstance(n, (ast.Name, ast.Tuple, ast.expr_context)) for n in names)
    return {n.id for n in names if isinstance(n, ast.Name)} if plain else set()


def _headed(text: str, heading: str) -> str:
    first = ast.parse(text).body[0]
    body = text.splitlines()[first.end_lineno :]
    return "\n".join([f'"""{heading}"""', *body]) + "\n"
