"""Features of Hugging Face ``datasets``: what a column means beyond its Arrow type, such as an image or a label.

They travel as JSON in the metadata of Arrow schemas, under ``huggingface``, so that reading and writing them needs no
import of ``datasets``.
"""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pyarrow import types

from curation.columns import plain
from curation.errors import SourceError

if TYPE_CHECKING:
    from datasets import Features

KEY = b"huggingface"
_FOLLOWING = {"Value", "List", "LargeList", "Sequence"}
"""Features that follow from the Arrow type."""

_ARRAYS = {"Array2D": 2, "Array3D": 3, "Array4D": 4, "Array5D": 5}


def told(metadata: Mapping[bytes, bytes] | None) -> dict[str, Any]:
    """The features that a schema's metadata tells of its columns, but for those that follow from the types."""
    try:
        features = json.loads((metadata or {})[KEY])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return beyond_types(features)


def beyond_types(features: Any) -> dict[str, Any]:
    """Those of some features, as JSON has them, that do not follow from the Arrow types."""
    if not isinstance(features, dict):
        return {}
    return {name: feature for name, feature in features.items() if _marks(feature) - _FOLLOWING}


def _marks(feature: Any) -> set[str]:
    """The names of the features in a feature, at any depth."""
    if isinstance(feature, list):
        return set().union(*map(_marks, feature))
    if not isinstance(feature, dict):
        return set()
    mark = feature.get("_type")
    if not isinstance(mark, str):
        return set().union(*map(_marks, feature.values()))
    return {mark} | _marks(feature.get("feature"))


def with_features(schema: pa.Schema, features: Mapping[str, Any]) -> pa.Schema:
    """A schema whose metadata tells these features of its columns, and nothing else."""
    if not features:
        return schema.remove_metadata()
    return schema.with_metadata({KEY: json.dumps({"info": {"features": dict(features)}}, sort_keys=True)})


def marked(schema: pa.Schema) -> pa.Schema:
    """The schema of a shard: columns of arrays marked as the extension types that ``datasets`` expects of them."""
    fields = []
    features = told(schema.metadata)
    for field in schema.remove_metadata():
        feature = features.get(field.name)
        if feature is not None and _is_array(feature, field.type):
            name = f"datasets.features.features.{feature['_type']}ExtensionType"
            about = json.dumps([feature["shape"], feature["dtype"]])
            field = field.with_metadata({"ARROW:extension:name": name, "ARROW:extension:metadata": about})
        fields.append(field)
    return pa.schema(fields)


def _is_array(feature: Mapping[str, Any], kind: pa.DataType) -> bool:
    if feature.get("_type") not in _ARRAYS:
        return False
    for _ in range(_ARRAYS[feature["_type"]]):
        if not types.is_list(kind):
            return False
        kind = kind.value_type
    return bool(kind == pa.type_for_alias(feature["dtype"]))


def datasets_features(schema: pa.Schema) -> dict[str, Any]:
    """What ``datasets`` calls the columns of a schema, as JSON: by the features that its metadata tells, else by types.

    ``datasets``, which takes seconds to import, is asked only where that is not plain.

    Raises:
        SourceError: it has no such type; names the column, the type and what to do.
    """
    features = told(schema.metadata)
    made: dict[str, Any] = {}
    for field in schema.remove_metadata():
        feature = features.get(field.name)
        if feature is not None:
            known = _known(field.name, feature)
            if _fits(known.arrow_schema.field(0).type, feature, field.type):
                made[field.name] = known.to_dict()[field.name]
                continue
        everyday = _everyday(field.type)
        made[field.name] = _asked(field) if everyday is None else everyday
    return made


def _asked(field: pa.Field) -> Any:
    from datasets import Features

    try:
        return Features.from_arrow_schema(pa.schema([field])).to_dict()[field.name]
    except (ValueError, TypeError, KeyError) as error:
        raise SourceError(
            f"column {field.name!r} is {field.type}, a type that `datasets` lacks, so the result could not be "
            "loaded: leave the column out, by `columns` of the source, or give it another type, by `schema`"
        ) from error


def _known(column: str, feature: Any) -> "Features":
    from datasets import Features

    try:
        return Features.from_dict({column: feature})
    except (ValueError, TypeError, KeyError) as error:
        raise SourceError(
            f"column {column!r} is marked as the feature {json.dumps(feature)[:200]}, which the installed `datasets` "
            "cannot make: install the version that wrote it, or leave the column out, by `columns` of the source"
        ) from error


def _fits(kind: pa.DataType, feature: Mapping[str, Any], found: pa.DataType) -> bool:
    """Whether a column is of its feature's type; arrays are known to ``datasets`` at the top alone."""
    return bool(kind == found or (_is_array(feature, found) and plain(kind) == found))


_OTHER_NAMES = {"halffloat": "float16", "float": "float32", "double": "float64"}
"""What ``datasets`` calls types, where it is not what Arrow calls them."""


def _everyday(kind: pa.DataType) -> dict[str, Any] | None:
    """What ``datasets`` calls a type, of which every version does; None for another one."""
    if types.is_list(kind) or types.is_large_list(kind):
        inside, name = _everyday(kind.value_type), "List" if types.is_list(kind) else "LargeList"
        return None if inside is None else {"feature": inside, "_type": name}
    if types.is_struct(kind):
        fields = {field.name: _everyday(field.type) for field in kind}
        return None if None in fields.values() else fields
    if (
        types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_boolean(kind)
        or types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_binary(kind)
        or types.is_large_binary(kind)
    ):
        return {"dtype": _OTHER_NAMES.get(str(kind), str(kind)), "_type": "Value"}
    return None
