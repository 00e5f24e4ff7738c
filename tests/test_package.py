"""The package as a whole: its faces, its layout, and who imports whom."""

import ast
import inspect
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import grimp
import networkx
import pytest

import curation

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("gpu", "selectors", "pipelines", "service")
PRODUCT = ("curation", *FOLDERS, "configs")
MOST_FILES = 14
HEAVY = ("ray", "torch", "numba", "faiss", "fastapi", "sqlalchemy", "datasets", "transformers")

# Tests of several modules at once, which so have none at the mirrored path.
SEVERAL = {
    "examples/test_b3_examples.py": "examples that train on B3's batches",
    "curation/sources/test_formats.py": "every format of a source",
    "curation/sources/test_union.py": "the columns of many files, in every format",
    "examples/test_examples.py": "every other example, whole and resumed",
    "gpu/learnability/test_memory.py": "the sums and JEST's selection, by what they hold",
    "gpu/test_interpreted.py": "all of Triton's kernels, in its interpreter",
    "gpu/test_machine_code.py": "all of Triton's kernels, by what they compile to",
    "pipelines/engine/test_cluster.py": "runs on several machines",
    "pipelines/engine/test_crash.py": "runs that are killed and resumed",
    "pipelines/engine/test_edits.py": "edits between an interrupted run and the next one",
    "pipelines/test_inputs.py": "runs on inputs that change, or hold what is easily lost",
    "pipelines/steps/test_outside.py": "a step of somebody else's package",
    "pipelines/steps/test_parameters.py": "every step's parameters beside its method's",
    "selectors/infobatch/test_faults.py": "faults of the published implementation, one by one",
    "selectors/infobatch/test_state.py": "states and ranks of the method",
    "selectors/samplers/test_resume.py": "every sampler: saved anywhere, resumed",
    "selectors/samplers/test_samplers.py": "every sampler: epochs, ranks and parameters",
    "service/http/test_fuzz.py": "Arrow bodies to every route",
    "service/http/test_refusals.py": "every refusal of every route",
    "service/manager/test_timeline.py": "where the parts of a session's timeline meet",
    "service/session/test_same_batches.py": "every method: sessions and samplers hand out the same",
    "service/store/test_postgres.py": "the whole store on another database",
    "service/test_conformance.py": "examples/conformance, and the client in JavaScript",
    "service/test_crashes.py": "servers that are killed, with clients that go on",
    "service/test_deployment.py": "the files of configs/ that an operator deploys",
    "service/test_hostile.py": "one token's attacks beside another's steps",
    "service/test_docs.py": "the commands of docs/service.md",
    "service/test_parameters.py": "every body's and session's parameters beside its method's",
    "test_contributing.py": "the walks of CONTRIBUTING.md",
    "test_package.py": "the package as a whole",
}


@cache
def _files() -> tuple[Path, ...]:
    """What git tracks or would, relative to the root."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return tuple(Path(line) for line in lines if (ROOT / line).is_file())


def _product_modules() -> dict[str, Path]:
    """Name in the package -> file relative to the root."""
    modules = {}
    for file in _files():
        if file.parts[0] in PRODUCT and file.suffix == ".py":
            parts = file.with_suffix("").parts if file.stem != "__init__" else file.parent.parts
            modules[".".join(parts if parts[0] == "curation" else ("curation", *parts))] = file
    return modules


def _python(code: str, cwd: Path) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=True)
    return done.stdout


def test_import_loads_nothing_heavy() -> None:
    loaded = _python("import curation, sys; print(*sys.modules)", ROOT).split()
    assert "curation" in loaded
    assert not set(loaded) & {*HEAVY, "numpy", "pyarrow"}


def test_no_rooms_face_loads_anything_heavy() -> None:
    rooms = sorted(name for name, file in _product_modules().items() if file.stem == "__init__")
    code = f"""
import importlib, sys
for room in {rooms}:
    importlib.import_module(room)
    for name in {HEAVY}:
        if sys.modules.pop(name, None) is not None: print(room, "loads", name)
"""
    assert len(rooms) > 20
    assert not _python(code, ROOT).splitlines()


def test_command_line_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from curation.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\nprint(*sys.modules)"
    )
    loaded = _python(code, ROOT).split()
    assert not set(loaded) & set(HEAVY)


@pytest.mark.parametrize("name", curation.__all__)
def test_every_public_name_loads_and_says_what_it_takes(name: str) -> None:
    public = getattr(curation, name)
    assert inspect.isclass(public)
    doc = inspect.getdoc(public)
    assert doc is not None
    assert "Args:" in doc, f"{name} does not describe its parameters"


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        curation.Nothing  # noqa: B018


def test_root_folders_do_not_shadow_the_standard_library() -> None:
    code = "import selectors, asyncio; assert hasattr(selectors, 'DefaultSelector')"
    _python(code, ROOT)
    for folder in ("selectors", "configs"):
        assert not (ROOT / folder / "__init__.py").exists()


def test_every_room_is_in_the_wheel() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    rooms = {file.parent for file in _product_modules().values()} | {Path("configs")}
    names = {".".join(room.parts if room.parts[0] == "curation" else ("curation", *room.parts)): room for room in rooms}
    assert {*settings["packages"]} == {*names}
    assert settings["package-dir"] == {name: room.as_posix() for name, room in names.items()}


def test_no_folder_is_crowded() -> None:
    counts = Counter(file.parent.as_posix() for file in _files())
    assert not {folder: count for folder, count in counts.items() if count > MOST_FILES}


def test_no_module_hides_behind_an_underscore() -> None:
    """A file's name is no promise: what a module keeps to itself are its own ``_names``."""
    hidden = {
        part
        for file in _files()
        if file.suffix == ".py"
        for part in file.with_suffix("").parts
        if part.startswith("_") and part not in ("__init__", "__main__")
    }
    assert not hidden


def test_private_names_stay_in_their_module() -> None:
    borrowed = []
    for file in _files():
        if file.suffix != ".py" or file.parts[0] not in (*PRODUCT, "benchmarks", "examples"):
            continue
        tree = ast.parse((ROOT / file).read_text())
        imported = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in ("curation", "benchmarks")
            for alias in node.names
        }
        borrowed += [f"{file}: {name}" for name in imported if _is_private(name)]
        borrowed += [
            f"{file}:{node.lineno}: {node.value.id}.{node.attr}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in imported
            if _is_private(node.attr)
        ]
    assert not borrowed


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_tests_stand_where_their_modules_do() -> None:
    misplaced, several = [], set()
    for file in _files():
        if file.parts[0] != "tests" or not file.name.startswith("test_"):
            continue
        inside = file.relative_to("tests")
        tested = inside.stem.removeprefix("test_")
        mirrored = ROOT / (inside.parent if inside.parent.name == tested else inside.with_name(tested))
        if inside.as_posix() in SEVERAL:
            several.add(inside.as_posix())
        elif not mirrored.with_suffix(".py").is_file() and not mirrored.is_dir():
            misplaced.append(inside.as_posix())
        if not (ROOT / inside.parent).is_dir():
            misplaced.append(inside.parent.as_posix())
    assert not misplaced, "name the module that they test, or put them into SEVERAL with a reason"
    assert several == {*SEVERAL}, "SEVERAL names what is no more"


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package laid out as the wheel lays it out."""
    home = tmp_path_factory.mktemp("layout")
    package = shutil.copytree(ROOT / "curation", home / "curation")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, package / folder)
        (package / folder / "__init__.py").touch()
    return home


def _imports(layout: Path, *, only_run: bool) -> set[tuple[str, str]]:
    """(importer, imported) pairs of modules; ``only_run`` leaves out what stands under ``TYPE_CHECKING``."""
    code = (
        "import sys; sys.path.insert(0, '.'); import grimp\n"
        "graph = grimp.build_graph('curation', include_external_packages=True, cache_dir=None,\n"
        f"    exclude_type_checking_imports={only_run})\n"
        "for a in sorted(graph.modules):\n"
        "    for b in sorted(graph.find_modules_directly_imported_by(a)): print(a, b)"
    )
    lines = _python(code, layout).splitlines()
    return {(a, b) for a, b in (line.split() for line in lines)}


@pytest.fixture(scope="module")
def imports(layout: Path) -> set[tuple[str, str]]:
    """Every (importer, imported) pair of modules."""
    return _imports(layout, only_run=False)


def test_no_two_modules_import_each_other(layout: Path) -> None:
    graph = networkx.DiGraph(_imports(layout, only_run=True))
    assert len(graph) > 100
    assert not [sorted(circle) for circle in networkx.strongly_connected_components(graph) if len(circle) > 1]


def _layer(module: str) -> int:
    parts = module.split(".")
    if len(parts) == 1 or module.startswith("curation.cli"):
        return 99  # the faces see everything
    order = {"gpu": 0, "selectors": 2, "pipelines": 3, "service": 4}
    return order.get(parts[1], 1)


def test_imports_run_one_way(imports: set[tuple[str, str]]) -> None:
    inside = {(a, b) for a, b in imports if b.split(".")[0] == "curation"}
    assert len(inside) > 20, grimp.__version__
    wrong = {(a, b) for a, b in inside if _layer(a) < _layer(b) < 99}
    assert not wrong


def test_gpu_knows_nothing_of_the_project(imports: set[tuple[str, str]]) -> None:
    wrong = {
        (a, b)
        for a, b in imports
        if a.startswith("curation.gpu.") and b.startswith("curation.") and not b.startswith("curation.gpu")
    }
    assert not wrong


@pytest.mark.parametrize(
    ("library", "homes"),
    [
        # Of the core, a dataset alone may import Ray: when it is asked to become one of Ray's.
        ("ray", ("curation.pipelines.", "curation.service.", "curation.dataset.reader")),
        ("fastapi", ("curation.service.",)),
    ],
)
def test_libraries_stay_in_their_folder(imports: set[tuple[str, str]], library: str, homes: tuple[str, ...]) -> None:
    users = {a for a, b in imports if b.split(".")[0] == library}
    assert all(user.startswith(homes) for user in users), users


def test_sessions_are_pure(imports: set[tuple[str, str]]) -> None:
    room = "curation.service.session"
    outside = {b for a, b in imports if a.startswith(f"{room}.") and not b.startswith(room)}
    service = {b for b in outside if b.startswith("curation.service")}
    assert service == {"curation.service.arrow", "curation.service.errors"}, "both are pure themselves"
    impure = {
        "asyncio",
        "fastapi",
        "httpx",
        "os",
        "pathlib",
        "socket",
        "sqlalchemy",
        "sqlite3",
        "starlette",
        "threading",
    }
    assert "numpy" in outside
    assert not {b.split(".")[0] for b in outside} & impure


IMPURE = {"asyncio", "sqlalchemy", "fastapi", "starlette", "httpx", "ray"}


def test_sessions_know_no_network_and_no_database() -> None:
    """``curation.service.session`` is pure: what it runs on import, ours and all that ours imports, is without I/O."""
    modules = _product_modules()
    reached: dict[str, str] = {}
    waiting = [(name, name) for name in modules if f"{name}.".startswith("curation.service.session.")]
    assert len(waiting) > 5
    while waiting:
        name, path = waiting.pop()
        if name in reached:
            continue
        reached[name] = path
        waiting.append((name.rpartition(".")[0], path))
        if name in modules:
            waiting += [(imported, f"{path} -> {imported}") for imported in _run_on_import(modules, name)]
    assert not [path for name, path in reached.items() if name.split(".")[0] in IMPURE]


def _run_on_import(modules: dict[str, Path], name: str) -> Iterator[str]:
    """The modules that a module imports as it is imported itself: neither in functions nor under TYPE_CHECKING."""
    waiting: list[ast.AST] = [ast.parse((ROOT / modules[name]).read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = str(node.module)
            submodules = [f"{source}.{alias.name}" for alias in node.names if f"{source}.{alias.name}" in modules]
            yield from submodules
            yield source
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            checking = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            waiting += node.orelse if checking and isinstance(node, ast.If) else ast.iter_child_nodes(node)
