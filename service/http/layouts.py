"""Layouts of the Arrow bodies and answers: columns, their types, and what stands in the schema's metadata.

They are shown in OpenAPI (``x-arrow``) and by ``GET /v1/capabilities``; tests compare them with what is really sent.
"""

from collections.abc import Mapping

from pydantic import BaseModel


class ArrowColumn(BaseModel):
    """One column. ``type`` is the Arrow type that the service sends; D is the width of the embeddings."""

    name: str
    type: str
    required: bool = True
    about: str = ""


class ArrowLayout(BaseModel):
    """An Arrow IPC stream: its columns, and the keys of its schema's metadata, whose values are text."""

    about: str
    columns: list[ArrowColumn]
    metadata: dict[str, str]


def _column(name: str, type: str, about: str = "", *, required: bool = True) -> ArrowColumn:
    return ArrowColumn(name=name, type=type, required=required, about=about)


def _request(about: str, *columns: ArrowColumn) -> ArrowLayout:
    text = "a JSON object: the fields of the JSON body, without those that are columns"
    return ArrowLayout(about=about, columns=list(columns), metadata={"request": text})


def _sides(*models: str) -> list[ArrowColumn]:
    about = {"a": "[n, D] embeddings; any floats are taken", "b": "the other side: as wide as a"}
    return [
        _column(f"{model}_{side}", "fixed_size_list<float32>[D]", about[side], required=False)
        for model in models
        for side in "ab"
    ]


_NUMBERS = "decimal digits; empty where there is none"
_FLAG = "1 or 0"
_WHERE = {
    "epoch": _NUMBERS,
    "step": _NUMBERS,
    "epoch_end": "the step after the epoch's last",
    "end_of_epoch": _FLAG,
    "end_of_session": _FLAG,
    "generation": "decimal digits",
}

LAYOUTS: Mapping[str, ArrowLayout] = {
    "Created": _request(
        "A session, and the table of its method: a plan, or scores. One of the columns, or none.",
        _column("indices", "large_list<int64>", "method plan: the positions of each batch", required=False),
        _column("scores", "float32", "method acquisition: one for each candidate", required=False),
    ),
    "StepBody": ArrowLayout(
        about="What a rank asks for, and a row for each report. Without reports the schema has no columns.",
        columns=[
            _column("step", "int64", "the step that is reported", required=False),
            _column("losses", "list<float32>", "one for each row of its batch, in its order", required=False),
        ],
        metadata={
            "rank": "decimal digits; 0 where it is left out",
            "step": "the step asked for; left out where there are only reports",
            "generation": "left out where any generation will do",
            "wait": "seconds to wait for other ranks where the epoch is not open; left out: none",
        },
    ),
    "StepAnswer": ArrowLayout(
        about="A rank's batch.",
        columns=[_column("indices", "int64"), _column("weights", "float32")],
        metadata={**_WHERE, "ignored": "JSON: the steps that were reported before with other losses; else left out"},
    ),
    "BatchesBody": _request(
        "What some ranks ask for, and a row for each report.",
        _column("report_ranks", "int64", required=False),
        _column("report_steps", "int64", required=False),
        _column("losses", "list<float32>", "of each report, in the order of its batch", required=False),
    ),
    "BatchesAnswer": ArrowLayout(
        about="The batches by step and rank, a row for each, all of one epoch.",
        columns=[
            _column("rank", "int64"),
            _column("step", "int64"),
            _column("indices", "list<int64>"),
            _column("weights", "list<float32>"),
        ],
        metadata={name: _WHERE[name] for name in ("epoch", "epoch_end", "end_of_session", "generation")},
    ),
    "ChoiceBody": _request(
        "What a rank sends of its rows of a super-batch: embeddings, or scores.",
        *_sides("learner", "reference"),
        _column("scores", "float64", "each row's own logit, in place of embeddings", required=False),
    ),
    "ChoiceAnswer": ArrowLayout(
        about="A rank's share of what was chosen, in pick order.",
        columns=[
            _column("indices", "int64"),
            _column("weights", "float32"),
            _column("positions", "int64", "in the super-batch of all ranks"),
            _column("scores", "float32", "the logits, in nats, that the rows were drawn at"),
        ],
        metadata=_WHERE,
    ),
    "StepTrace": ArrowLayout(
        about="The rows of a step on all ranks, by rank and position.",
        columns=[
            _column("rank", "int32"),
            _column("position", "int64", "in the rank's batch"),
            _column("row", "int64"),
            _column("weight", "float32"),
            _column("loss", "float32", "null where none was reported"),
            _column("reported", "bool"),
            _column("score", "float32", "the logit that the row was drawn at, in sessions that choose", required=False),
        ],
        metadata={
            "epoch": "decimal digits",
            "step": "decimal digits",
            "chosen": f"{_FLAG}; empty in sessions that do not choose",
            "generation": "decimal digits",
        },
    ),
    "Checkpoint": ArrowLayout(
        about="A session from its present epoch on, a row for each of its parts. Import takes it as it is.",
        columns=[
            _column("kind", "string", "table:NAME, epoch, state, report or choice"),
            _column("number", "int64", "its epoch or step"),
            _column("rank", "int64"),
            _column("data", "large_binary"),
        ],
        metadata={
            "format": "the version of this layout",
            "spec": "JSON: the session's parameters",
            "size": "N",
            "digest": "of what the session was created from; left out where that is not known",
        },
    ),
    "ZipFitBody": _request("Candidates of a choice by compression.", _column("texts", "large_string")),
    "AcquireBody": _request("Candidates of a draw.", _column("scores", "float64", "any floats are taken")),
    "JestBody": _request("A super-batch of B pairs.", *_sides("learner", "reference")),
    "B3Body": _request(
        "Queries and their positives.",
        _column("queries", "fixed_size_list<float32>[D]"),
        _column("positives", "fixed_size_list<float32>[D]"),
    ),
    "SelectionAnswer": ArrowLayout(
        about="Positions in pick order.",
        columns=[
            _column("indices", "int64"),
            _column("weights", "float32"),
            _column("scores", "float64", "left out where the method has none", required=False),
        ],
        metadata={},
    ),
    "PlanAnswer": ArrowLayout(
        about="A row for each batch.",
        columns=[
            _column("indices", "large_list<int64>", "positions"),
            _column("clusters", "large_list<int64>", "the cluster of each row", required=False),
            _column("negatives", "large_list<fixed_size_list<int64>[K]>", "hard negatives of each row", required=False),
            _column("apart", "large_list<fixed_size_list<int64>[2]>", "pairs (row, row) set apart", required=False),
            _column("datasets", "int64", "the data set of each batch", required=False),
        ],
        metadata={},
    ),
}
"""By the name of the JSON model that stands for the same in OpenAPI."""
