"""The methods of sessions, by name: :data:`METHODS`.

To add one, write a file beside this one with a function like :class:`curation.service.session.methods.base.Maker`, and
name it here.
"""

from collections.abc import Mapping
from importlib import import_module

import pyarrow as pa

from curation.service.errors import Refusal
from curation.service.session.methods.base import Maker
from curation.service.session.session import Method
from curation.service.session.spec import SessionSpec

METHODS: Mapping[str, str] = {
    "acquisition": "curation.service.session.methods.acquisition:acquisition",
    "infobatch": "curation.service.session.methods.infobatch:infobatch",
    "jest": "curation.service.session.methods.jest:jest",
    "plan": "curation.service.session.methods.plan:plan",
    "random": "curation.service.session.methods.random:random",
}
"""Loaded on first use: torch takes seconds to import, and a server that hands out no such sessions does without it."""


RESIDENT: Mapping[str, int] = {"acquisition": 12, "infobatch": 9}
"""Bytes in memory for each candidate, of the methods that keep any."""


def check_size(spec: SessionSpec, size: int, resident_bytes: int) -> None:
    """Refuse a session whose epochs would not fit in what the server keeps in memory.

    Raises:
        Refusal: says what it would need.
    """
    needed = RESIDENT.get(spec.method, 0) * size
    if needed > resident_bytes:
        raise Refusal(
            "bad-parameters",
            f"method {spec.method} over {size} candidates takes {needed} bytes of memory, and this server's limit "
            f"(resident_bytes) is {resident_bytes}",
        )


def make_method(spec: SessionSpec, size: int, tables: Mapping[str, pa.Table]) -> Method:
    """The method that a spec names.

    Raises:
        Refusal: no such method, or its parameters are wrong.
    """
    if spec.method not in METHODS:
        raise Refusal("bad-parameters", f"method {spec.method!r} is unknown: choose one of {', '.join(METHODS)}")
    module, _, name = METHODS[spec.method].partition(":")
    maker: Maker = getattr(import_module(module), name)
    return maker(spec, size, tables)
