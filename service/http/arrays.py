"""Arrays of a request: columns in Arrow, lists in JSON."""

from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ValidationError

from curation.service.errors import Refusal
from curation.service.http.bodies import read_json, read_tables
from curation.service.http.mistakes import invalid_model

B = TypeVar("B", bound=BaseModel)
Matrix = list[list[float]]


def read_arrays(
    body: bytes, arrow: bool, model: type[B], arrays: tuple[str, ...], max_bytes: int
) -> tuple[B, dict[str, pa.Array]]:
    """The request, and its Arrow columns; with JSON the arrays are in the model instead.

    Raises:
        Refusal: says what does not fit.
    """
    columns: dict[str, pa.Array] = {}
    if arrow:
        fields, table = read_tables(body, max_bytes)
        unknown = sorted((set(table.column_names) | set(fields)) - set(model.model_fields))
        both = sorted(set(fields) & set(arrays))
        if unknown or both or not set(table.column_names) <= set(arrays):
            allowed = [name for name in model.model_fields if name not in arrays]
            raise Refusal("bad-body", f"columns may be {', '.join(arrays)}; the request may have {', '.join(allowed)}")
        columns = {name: table[name].combine_chunks() for name in table.column_names}
        if any(column.null_count for column in columns.values()):
            raise Refusal("bad-body", "a column holds nulls")
        fields |= {name: [] for name in columns}
    else:
        fields = read_json(body)
    try:
        return model.model_validate(fields), columns
    except ValidationError as error:
        raise invalid_model(error) from error


def matrix_of(name: str, values: Any) -> Any:
    """float32[N, D] of a column or a list of lists; None where there is none."""
    if values is None:
        return None
    if isinstance(values, pa.Array):
        if not pa.types.is_fixed_size_list(values.type) or not pa.types.is_floating(values.type.value_type):
            raise Refusal("bad-body", f"column {name} must be fixed-size lists of floats, not {values.type}")
        flat = values.flatten()
        if flat.null_count:
            raise Refusal("bad-body", f"column {name} holds nulls")
        with np.errstate(over="ignore"):  # an infinity is refused just below
            matrix = np.array(flat.to_numpy(), np.float32).reshape(len(values), values.type.list_size)
    else:
        widths = {len(row) for row in values}
        if len(widths) > 1:
            raise Refusal("bad-body", f"{name}: rows have {min(widths)} to {max(widths)} columns: give each as many")
        with np.errstate(over="ignore"):
            matrix = np.array(values, np.float32).reshape(len(values), *(widths or {0}))
    finite = np.isfinite(matrix).all(axis=1)
    if not finite.all():
        raise Refusal("bad-body", f"{name}: row {int(np.argmin(finite))} is not finite as float32")
    return matrix


def check_count(name: str, count: int, limit: int) -> None:
    """Refuse more than this server takes in one request."""
    if count > limit:
        raise Refusal("too-large", f"{count} {name} are more than this server takes at once, {limit}")
