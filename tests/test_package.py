"""The package as a whole: its face, its layout, and who imports whom."""

import inspect
import shutil
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

import curation

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("gpu", "selectors", "pipelines", "service")
HEAVY = ("ray", "torch", "faiss", "fastapi", "datasets", "transformers")


def _python(code: str, cwd: Path) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=True)
    return done.stdout


def test_import_loads_nothing_heavy() -> None:
    loaded = _python("import curation, sys; print(*sys.modules)", ROOT).split()
    assert "curation" in loaded
    assert not set(loaded) & {*HEAVY, "numpy", "pyarrow"}


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
    for folder in (*FOLDERS, "configs"):
        assert not (ROOT / folder / "__init__.py").exists()


@pytest.fixture(scope="module")
def imports(tmp_path_factory: pytest.TempPathFactory) -> set[tuple[str, str]]:
    """Every (importer, imported) pair of modules, read from the tree laid out as the wheel lays it out."""
    home = tmp_path_factory.mktemp("layout")
    package = shutil.copytree(ROOT / "curation", home / "curation")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, package / folder)
        (package / folder / "__init__.py").touch()
    code = (
        "import sys; sys.path.insert(0, '.'); import grimp\n"
        "graph = grimp.build_graph('curation', include_external_packages=True, cache_dir=None)\n"
        "for a in sorted(graph.modules):\n"
        "    for b in sorted(graph.find_modules_directly_imported_by(a)): print(a, b)"
    )
    lines = _python(code, home).splitlines()
    return {(a, b) for a, b in (line.split() for line in lines)}


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
