"""Versions of what decides results."""

import platform
import zlib
from importlib.metadata import PackageNotFoundError, version

PACKAGES = (
    "curation",
    "numpy",
    "pyarrow",
    "datasets",
    "ray",
    "torch",
    "numba",
    "lz4",
    "zstandard",
    "xxhash",
    "scikit-learn",
    "kaminpar",
    "pymetis",
    "faiss-cpu",
    "faiss-gpu",
    "triton",
)


def versions() -> dict[str, str]:
    """Python's version, zlib's, and those of the installed packages that decide results; nothing is imported."""
    found = {"python": platform.python_version(), "zlib": zlib.ZLIB_RUNTIME_VERSION}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
