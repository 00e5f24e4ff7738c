"""Functions of the installed Python's standard library: a real corpus that every machine has.

Modules are parsed with ``ast``, each once a process; a block parses only the modules that it lies in. Tests are
left out. Rows are in the order of path, then line.
"""

import ast
import difflib
import hashlib
import inspect
import os
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import pyarrow as pa

from curation.columns import subset
from curation.errors import SourceError
from curation.recipe.model import BLOCK_BYTES, StdlibSource
from curation.sources import files
from curation.sources.base import BadRow, Block, InputRecord
from curation.sources.blocks import Cutter

_LEFT_OUT = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}
_BLOCKS = ("body", "handlers", "orelse", "finalbody", "cases")
_WHERE = [("module", pa.string()), ("name", pa.string()), ("package", pa.string())]
_SCHEMAS = {
    "function": pa.schema([("text", pa.string()), *_WHERE, ("line", pa.int64())]),
    "pair": pa.schema([("query", pa.string()), ("positive", pa.string()), *_WHERE, ("line", pa.int64())]),
}


@dataclass(frozen=True)
class Function:
    """A function or method as it stands in its module. ``line`` is that of its ``def``, from 1."""

    name: str
    line: int
    text: str
    summary: str | None
    bare: str


class StdlibFunctions:
    """The standard library as a :class:`curation.sources.base.Source`.

    ``content: function`` has the columns text, module, name, package and line; ``content: pair`` has query (the
    first paragraph of the docstring) and positive (the function without its docstring) in place of text.

    Raises:
        SourceError: no such package.
    """

    def __init__(self, spec: StdlibSource) -> None:
        self.root = Path(sysconfig.get_path("stdlib"))
        self.schema: pa.Schema = _SCHEMAS[spec.content]
        self._content: Literal["function", "pair"] = spec.content
        self._counts: tuple[int, ...] | None = None
        modules = _modules(self.root)
        there = sorted({name.partition(".")[0] for name in modules})
        for name in [*(spec.packages or []), *spec.exclude]:
            if name not in there:
                near = difflib.get_close_matches(name, there, n=3)
                raise SourceError(
                    f"{self.root}: the standard library has no module {name!r} in Python"
                    + (f"; did you mean {', '.join(near)}?" if near else "")
                )
        wanted = set(there if spec.packages is None else spec.packages) - set(spec.exclude)
        self.modules = {name: path for name, path in modules.items() if name.partition(".")[0] in wanted}
        if not self.modules:
            raise SourceError(f"{self.root}: `exclude` leaves nothing of `packages`")
        self._names = list(self.modules)

    @property
    def counts(self) -> tuple[int, ...]:
        """Rows of each module. The first call parses all of them."""
        if self._counts is None:
            self._counts = tuple(len(self._rows(number)) for number in range(len(self._names)))
        return self._counts

    @property
    def notes(self) -> list[str]:
        """Which modules are left out."""
        if not self.skipped:
            return []
        return [f"{len(self.skipped):,} modules cannot be parsed by this Python: {files.named(self.skipped)}"]

    @property
    def skipped(self) -> list[str]:
        """Modules that this Python cannot parse."""
        return [name for name in self._names if _functions(str(self.root / self.modules[name])) is None]

    def inputs(self) -> list[InputRecord]:
        """One record for the whole tree; its fingerprint is over each file's path and sha256."""
        digest = hashlib.sha256()
        size = 0
        for path in self.modules.values():
            content = (self.root / path).read_bytes()
            size += len(content)
            digest.update(f"{path}\0{hashlib.sha256(content).hexdigest()}\n".encode())
        return [
            InputRecord(
                path=str(self.root), bytes=size, rows=sum(self.counts), fingerprint=f"sha256:{digest.hexdigest()}"
            )
        ]

    def blocks(self, rows: int, size: int = BLOCK_BYTES) -> list[Block]:
        """Cut all positions into blocks of ``rows``; the last is shorter. A function has a few hundred bytes."""
        cutter = Cutter(rows, size)
        for number, count in enumerate(self.counts):
            cutter.add(number, count)
        return cutter.blocks()

    def locate(self, index: int) -> tuple[str, int]:
        """File of one position, and its number among the rows of that file."""
        number, row = files.locate(self.counts, index)
        return str(self.root / self.modules[self._names[number]]), row

    def read(self, block: Block, columns: Sequence[str] | None = None) -> tuple[pa.Table, list[BadRow]]:
        """Read a block: exactly ``block.rows`` rows; none of them is bad.

        Raises:
            SourceError: a module has other functions than when they were counted (another Python on this node?).
            ValueError: the source has no such column.
        """
        schema = subset(self.schema, columns)
        rows: list[dict[str, str | int | None]] = []
        for part in block.parts:
            module = self._names[part.file]
            functions = self._rows(part.file)[part.row : part.row + part.rows]
            if len(functions) != part.rows:
                raise SourceError(
                    f"{self.root / self.modules[module]}: has fewer functions than when they were counted: "
                    "do all machines run the same Python?"
                )
            rows += [
                {
                    "text": function.text,
                    "query": function.summary,
                    "positive": function.bare,
                    "module": module,
                    "name": function.name,
                    "package": module.partition(".")[0],
                    "line": function.line,
                }
                for function in functions
            ]
        return pa.Table.from_arrays(
            [pa.array([row[field.name] for row in rows], field.type) for field in schema], schema=schema
        ), []

    def _rows(self, number: int) -> list[Function]:
        functions = _functions(str(self.root / self.modules[self._names[number]])) or ()
        return [one for one in functions if self._content == "function" or one.summary]


def _modules(root: Path) -> dict[str, str]:
    """Path under ``root`` by module name, sorted by path; ``json`` stands for its ``__init__.py``."""
    found: list[tuple[str, ...]] = []
    for folder, below, names in os.walk(root):
        below[:] = [name for name in below if name.isidentifier() and name not in _LEFT_OUT]
        inside = Path(folder).relative_to(root).parts
        stems = [name.removesuffix(".py") for name in names if name.endswith(".py")]
        found += [(*inside, stem) for stem in stems if stem.isidentifier()]
    return {
        ".".join(parts[:-1] if parts[-1] == "__init__" else parts): "/".join(parts) + ".py" for parts in sorted(found)
    }


@lru_cache(maxsize=4096)
def _functions(path: str) -> tuple[Function, ...] | None:
    """The functions of a file by line, or None where it cannot be parsed."""
    try:
        with tokenize.open(path) as file:
            source = file.read()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error}") from error
    except (SyntaxError, ValueError):
        return None
    lines = source.split("\n")
    return tuple(sorted((_function(node, name, lines) for node, name in _walk(tree, "")), key=lambda one: one.line))


def _walk(node: ast.AST, prefix: str) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, str]]:
    """Functions below a node, by way of statements alone: an expression holds none, and most nodes are expressions."""
    for child in (child for block in _BLOCKS for child in getattr(node, block, ())):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child, prefix + child.name
            yield from _walk(child, f"{prefix}{child.name}.<locals>.")
        elif isinstance(child, ast.ClassDef):
            yield from _walk(child, f"{prefix}{child.name}.")
        else:
            yield from _walk(child, prefix)


def _function(node: ast.FunctionDef | ast.AsyncFunctionDef, name: str, lines: list[str]) -> Function:
    start = node.decorator_list[0].lineno if node.decorator_list else node.lineno
    indent = lines[start - 1][: len(lines[start - 1]) - len(lines[start - 1].lstrip())]
    body = lines[start - 1 : node.end_lineno]
    docstring = ast.get_docstring(node, clean=False)
    paragraph = inspect.cleandoc(docstring).split("\n\n")[0] if docstring else ""
    return Function(
        name=name,
        line=node.lineno,
        text=_dedented(body, indent),
        summary=" ".join(paragraph.split()) or None,
        bare=_dedented(_without(body, node.body[0], start), indent) if docstring is not None else "",
    )


def _without(body: list[str], docstring: ast.stmt, start: int) -> list[str]:
    """The lines, from line ``start`` of the module on, without the docstring; lines that it leaves empty go too."""
    first, last = docstring.lineno - start, (docstring.end_lineno or docstring.lineno) - start
    before = body[first].encode()[: docstring.col_offset].decode()
    after = body[last].encode()[docstring.end_col_offset :].decode()
    rest = [before + after] if (before + after).strip() else []
    return body[:first] + rest + body[last + 1 :]


def _dedented(lines: list[str], indent: str) -> str:
    return "\n".join(line.removeprefix(indent) for line in lines)
