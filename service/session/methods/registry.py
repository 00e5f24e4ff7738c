"""Session methods by name: :data:`METHODS`.

To add one, write a file beside this one that declares a :class:`curation.service.session.methods.base.MethodKind`, and
name it here.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from curation.service.errors import Refusal

if TYPE_CHECKING:
    import pyarrow as pa

    from curation.service.session.methods.base import Limits, MethodKind
    from curation.service.session.protocols import Method
    from curation.service.session.spec import SessionSpec

METHODS: Mapping[str, str] = {
    "acquisition": "curation.service.session.methods.acquisition:KIND",
    "infobatch": "curation.service.session.methods.infobatch:KIND",
    "jest": "curation.service.session.methods.jest:KIND",
    "plan": "curation.service.session.methods.plan:KIND",
    "random": "curation.service.session.methods.random:KIND",
}
"""Loaded on first use: torch takes seconds to import, and a server that hands out no such sessions does without it."""


def method_kind(name: str) -> "MethodKind":
    """What a method declares of itself.

    Raises:
        Refusal: there is no such method.
    """
    if name not in METHODS:
        raise Refusal("bad-parameters", f"method {name!r} is unknown: choose one of {', '.join(METHODS)}")
    module, _, attribute = METHODS[name].partition(":")
    kind: MethodKind = getattr(import_module(module), attribute)
    return kind


def make_method(spec: "SessionSpec", size: int, tables: "Mapping[str, pa.Table]") -> "Method[Any]":
    """The method that a spec names.

    Raises:
        Refusal: no such method, or its parameters are wrong.
    """
    return method_kind(spec.method).make(spec, size, tables)


def check_limits(spec: "SessionSpec", size: int, limits: "Limits") -> None:
    """Refuse a session whose epochs would not fit in the server's memory, or that passes its method's other limits.

    Raises:
        Refusal: no such method; or says what the session would need, and what the limit is.
    """
    kind = method_kind(spec.method)
    needed = kind.bytes_per_candidate * size
    if needed > limits.resident_bytes:
        raise Refusal(
            "bad-parameters",
            f"method {spec.method} over {size} candidates takes {needed} bytes of memory, and this server's limit "
            f"(resident_bytes) is {limits.resident_bytes}",
        )
    if kind.check_limits is not None:
        kind.check_limits(spec, limits)
