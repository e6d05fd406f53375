"""Counts lines of Python: `python scripts/count_lines.py [FOLDER...]`, by default src/chordflow.

Code lines are those that hold a token which is neither a comment nor part of a docstring.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from pathlib import Path

SILENT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}
DOCUMENTED = ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef


def code_lines(source: str) -> int:
    """Lines of `source` that hold code."""
    held = {
        line
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type not in SILENT
        for line in range(token.start[0], token.end[0] + 1)
    }
    for node in ast.walk(ast.parse(source)):
        # A string that stands alone: a docstring, of an attribute as well.
        for one in node.body if isinstance(node, DOCUMENTED) else []:
            if (
                isinstance(one, ast.Expr)
                and isinstance(one.value, ast.Constant)
                and isinstance(one.value.value, str)
            ):
                held -= set(range(one.lineno, (one.end_lineno or one.lineno) + 1))
    return len(held)


def main(folders: list[str]) -> None:
    """Prints modules, all lines, code lines and the largest file of each folder."""
    for folder in folders or ["src/chordflow"]:
        sources = {path: path.read_text(encoding="utf-8") for path in Path(folder).rglob("*.py")}
        lines = {path: source.count("\n") for path, source in sources.items()}
        largest = max(lines, key=lines.__getitem__)
        print(
            f"{folder}: {len(sources)} modules, {sum(lines.values())} lines, "
            f"{sum(map(code_lines, sources.values()))} of code; largest: {largest}, {lines[largest]}"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
