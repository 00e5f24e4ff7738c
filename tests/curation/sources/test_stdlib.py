"""The standard library as a corpus."""

import ast
import hashlib
import json.decoder
import pickle
import sysconfig
import textwrap
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from curation.errors import SourceError
from curation.recipe import StdlibSource
from curation.sources import open_source, stdlib


def opened(**options: Any) -> Any:
    return open_source(StdlibSource(format="stdlib", **options))


def whole(source: Any, rows: int = 50, columns: list[str] | None = None) -> pa.Table:
    return pa.concat_tables([source.read(block, columns)[0] for block in source.blocks(rows)])


def test_functions_of_a_package_stand_as_their_modules_have_them() -> None:
    source = opened(packages=["json", "heapq"])
    table = whole(source)
    assert table.schema == source.schema
    assert table.schema.names == ["text", "module", "name", "package", "line"]
    rows = table.to_pylist()
    assert {row["package"] for row in rows} == {"json", "heapq"}
    assert {row["module"] for row in rows} >= {"heapq", "json", "json.decoder", "json.tool"}
    (decode,) = (row for row in rows if row["name"] == "JSONDecoder.decode")
    path = Path(json.decoder.__file__)
    lines = path.read_text(encoding="utf-8").split("\n")
    assert decode["module"] == "json.decoder"
    assert lines[decode["line"] - 1].strip().startswith("def decode(")
    assert decode["text"].startswith("def decode(")
    assert textwrap.indent(decode["text"], "    ", lambda line: bool(line.strip())) in path.read_text(encoding="utf-8")
    for row in rows:
        ast.parse(row["text"])


def test_every_function_of_a_tree_is_there_in_order() -> None:
    source = opened(packages=["email"])
    root = Path(sysconfig.get_path("stdlib"))
    expected = []
    for path in sorted((root / "email").rglob("*.py")):
        tree = ast.parse(path.read_bytes())
        found = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
        module = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        expected += sorted((module, n.lineno, n.name) for n in found)
    rows = whole(source).to_pylist()
    assert [(row["module"], row["line"], row["name"].rpartition(".")[2]) for row in rows] == expected
    assert len(rows) > 300


@pytest.mark.parametrize("content", ["function", "pair"])
@pytest.mark.parametrize("rows", [1, 13, 5000])
def test_blocks_concatenate_and_travel(content: str, rows: int) -> None:
    source = opened(packages=["json", "csv", "asyncio"], content=content)
    expected = whole(source, 100)
    source = pickle.loads(pickle.dumps(source))
    assert whole(source, rows).equals(expected)
    assert whole(source, 40, ["line", "name"]).equals(expected.select(["line", "name"]))
    for block in source.blocks(97):
        table, bad = source.read(block)
        assert len(table) == block.rows
        assert bad == []


def test_pairs_are_docstring_and_code_without_it() -> None:
    table = whole(opened(packages=["json", "textwrap", "bisect"], content="pair"))
    assert table.schema.names == ["query", "positive", "module", "name", "package", "line"]
    rows = {(row["module"], row["name"]): row for row in table.to_pylist()}
    row = rows["bisect", "insort_right"]
    assert row["query"] == "Insert item x in list a, and keep it sorted assuming a is sorted."
    assert row["positive"].startswith("def insort_right(a, x, lo=0, hi=None, *, key=None):\n")
    assert "Insert item" not in row["positive"]
    assert all(row["query"] and row["positive"] for row in rows.values())
    both = whole(opened(packages=["json", "textwrap", "bisect"])).to_pylist()
    documented = [row for row in both if ast.get_docstring(ast.parse(row["text"]).body[0])]
    assert list(rows) == [(row["module"], row["name"]) for row in documented]
    for row in documented:
        tree = ast.parse(row["text"])
        positive = rows[row["module"], row["name"]]["positive"]
        assert isinstance(tree.body[0], ast.FunctionDef)
        if len(tree.body[0].body) > 1:
            del tree.body[0].body[0]
            assert ast.dump(ast.parse(positive)) == ast.dump(tree)


SOURCE = '''\
import os
class A:
    @property
    def é(self): "één"; return 1
    if os:
        async def b(self):
            """Text that is

            long.
            """
            x = """
no indent
"""
            def inner(): pass
            return inner
    def empty(self):
        "only this"
    def warns(self):
        "\\d"
        return "\\d"
    def blank(self):
        "  "
'''


NESTED = """\
try:
    def a(): pass
except ValueError:
    def b(): pass
else:
    def c(): pass
finally:
    def d(): pass
for x in y:
    def e(): pass
else:
    def f(): pass
while x:
    def g(): pass
with x:
    def h(): pass
match x:
    case 1:
        def i(): pass
if x:
    pass
elif y:
    def j(): pass
else:
    async def k(): pass
"""


def test_odd_functions(tmp_path: Path) -> None:
    path = tmp_path / "odd.py"
    path.write_text(SOURCE, encoding="utf-8")
    functions = stdlib._functions(str(path))
    assert functions is not None
    assert [(one.name, one.line) for one in functions] == [
        ("A.é", 4),
        ("A.b", 6),
        ("A.b.<locals>.inner", 14),
        ("A.empty", 16),
        ("A.warns", 18),
        ("A.blank", 21),
    ]
    decorated, long, inner, empty, warns, blank = functions
    assert decorated.text == '@property\ndef é(self): "één"; return 1'
    assert decorated.summary == "één"
    assert decorated.bare == "@property\ndef é(self): ; return 1"
    assert long.summary == "Text that is"
    assert long.text.startswith(
        'async def b(self):\n    """Text that is\n\n    long.\n    """\n    x = """\nno indent\n"""'
    )
    assert long.bare.startswith('async def b(self):\n    x = """\nno indent\n"""\n    def inner(): pass')
    assert (inner.text, inner.summary, inner.bare) == ("def inner(): pass", None, "")
    assert (empty.summary, empty.bare) == ("only this", "def empty(self):")
    assert warns.summary == r"\d"
    assert blank.summary is None
    (tmp_path / "nested.py").write_text(NESTED, encoding="utf-8")
    nested = stdlib._functions(str(tmp_path / "nested.py"))
    assert nested is not None
    assert [one.name for one in nested] == list("abcdefghijk")
    (tmp_path / "not.py").write_text("def f(:\n")
    assert stdlib._functions(str(tmp_path / "not.py")) is None
    (tmp_path / "nul.py").write_bytes(b"x = '\0'\n")
    assert stdlib._functions(str(tmp_path / "nul.py")) is None
    (tmp_path / "encoding.py").write_bytes("# -*- coding: latin-1 -*-\ndef f(): 'é'\n".encode("latin-1"))
    latin = stdlib._functions(str(tmp_path / "encoding.py"))
    assert latin is not None
    assert latin[0].summary == "é"


def test_tests_and_installed_packages_are_left_out() -> None:
    modules = stdlib._modules(Path(sysconfig.get_path("stdlib")))
    assert {"json", "json.decoder", "os", "asyncio.events", "importlib._bootstrap"} <= set(modules)
    parts = {part for path in modules.values() for part in Path(path).parts}
    assert parts.isdisjoint({"site-packages", "test", "tests", "idle_test", "__pycache__"})
    assert list(modules.values()) == sorted(modules.values(), key=lambda path: Path(path).parts)


def test_the_account_of_the_tree() -> None:
    source = opened(packages=["json"])
    (record,) = source.inputs()
    root = Path(sysconfig.get_path("stdlib"))
    paths = sorted((root / "json").glob("*.py"))
    listing = "".join(
        f"{path.relative_to(root).as_posix()}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n" for path in paths
    )
    assert record.fingerprint == f"sha256:{hashlib.sha256(listing.encode()).hexdigest()}"
    assert record.bytes == sum(path.stat().st_size for path in paths)
    assert record.rows == len(whole(source))
    assert record.path == str(root)
    assert source.skipped == []
    file, row = source.locate(record.rows - 1)
    assert file == str(paths[-1])
    assert row == sum(module == "json.tool" for module in whole(source)["module"].to_pylist()) - 1


def test_wrong_names() -> None:
    with pytest.raises(SourceError, match=r"no module 'jsn'.*did you mean json"):
        opened(packages=["jsn"])
    with pytest.raises(SourceError, match=r"no module 'nonesuch-at-all'"):
        opened(exclude=["nonesuch-at-all"])
    with pytest.raises(SourceError, match="`exclude` leaves nothing"):
        opened(packages=["json"], exclude=["json"])
    assert set(whole(opened(packages=["json", "csv"], exclude=["csv"]))["package"].to_pylist()) == {"json"}


def test_another_python_is_noticed() -> None:
    source = opened(packages=["json", "csv"])
    block = source.blocks(10_000)[0]
    source.modules = {name: source.modules["json" if name == "csv" else name] for name in source.modules}
    with pytest.raises(SourceError, match="do all machines run the same Python"):
        source.read(type(block)(0, 0, 999, (type(block.parts[0])(0, 0, 999),)))
