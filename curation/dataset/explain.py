"""Candidates of a finished dataset: why each was kept or dropped, and what stands in it.

The answer is read off ``decisions.arrow`` in two streaming passes; nothing is scored again.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from curation.dataset.decisions import Cut, Standing, step_of
from curation.dataset.manifest import BAD_ROW, QUARANTINE, sha256_of
from curation.dataset.writer import INDEX, WEIGHT
from curation.errors import CurationError, SourceError
from curation.sources.blocks import block_at

if TYPE_CHECKING:
    from curation.dataset.reader import Dataset


@dataclass(frozen=True)
class Row:
    """A candidate's columns, and where it stands."""

    values: dict[str, Any]
    where: str


@dataclass(frozen=True)
class Explanation:
    """All that is known of one candidate.

    Args:
        index: its position in the source.
        kept: whether it stands in the shards.
        reason: as in ``decisions.arrow``.
        sentence: the reason in words, with the numbers that decided.
        weight: its loss weight.
        pick: its number in the order of the last draw, from 0, or None.
        duplicate_of: the position of the earlier row with the same text, or None.
        scores: where it stands in each score that it has, among all rows that have it.
        cuts: each ``acquire`` step that it reached, and where it stands among the rows that reached it too.
        row: its columns, or None where they cannot be read.
        note: why they cannot be read, or None.
    """

    index: int
    kept: bool
    reason: str
    sentence: str
    weight: float
    pick: int | None
    duplicate_of: int | None
    scores: dict[str, Standing]
    cuts: list[tuple[Cut, Standing]]
    row: Row | None
    note: str | None


def explain(dataset: "Dataset", index: int) -> Explanation:
    """Explain the decision on the candidate at position ``index`` of the source.

    Raises:
        SourceError: there is no such candidate, or a file cannot be read.
    """
    manifest, decisions = dataset.manifest, dataset.decisions
    decision = decisions.row(index)
    if decision is None:
        raise SourceError(f"{dataset.folder}: no candidate {index}: positions go from 0 to {manifest.rows_in - 1:,}")
    reached = step_of(decision["reason"])
    scores = [name for name in manifest.scores if decision[name] is not None]
    cuts = [cut for cut in decisions.cuts() if cut.number <= reached and cut.score in scores]
    fields = [(name, 0) for name in scores] + [(cut.score, cut.number) for cut in cuts]
    standings = decisions.standings(decision, fields)
    ranked = list(zip(cuts, standings[len(scores) :], strict=True))
    rows, note = find_rows(dataset, [index])
    return Explanation(
        index=index,
        kept=decision["kept"],
        reason=decision["reason"],
        sentence=_sentence(dataset, decision, ranked),
        weight=decision["weight"],
        pick=decision["pick"],
        duplicate_of=decision["duplicate_of"],
        scores=dict(zip(scores, standings[: len(scores)], strict=True)),
        cuts=ranked,
        row=rows.get(index),
        note=note,
    )


def find_rows(dataset: "Dataset", indices: Sequence[int], *, trust: bool = False) -> tuple[dict[int, Row], str | None]:
    """Read candidates by position in the source: from the shards where they were kept, else from the source.

    Args:
        dataset: where they were candidates.
        indices: positions in the source.
        trust: do not hash the source's files again to see whether they are still the ones that were read.

    Returns:
        The rows that could be read, and why others could not, or None.

    Raises:
        SourceError: a shard cannot be read.
    """
    wanted = np.unique(np.asarray(indices, np.int64))
    positions = dataset.positions(wanted)
    kept = positions >= 0
    added = {INDEX, WEIGHT, *dataset.score_names}
    names = [name for name in dataset.schema.names if name not in added]
    rows = {
        index: Row(values, "{}, row {}".format(*dataset.locate(position)))
        for index, position, values in zip(
            wanted[kept].tolist(),
            positions[kept].tolist(),
            dataset.rows(positions[kept], names or None).to_pylist(),
            strict=True,
        )
    }
    if kept.all():
        return rows, None
    try:
        others, note = _from_source(dataset, wanted[~kept].tolist(), trust)
    except (CurationError, IndexError, ValueError) as error:
        return rows, f"the source cannot be read any more: {error}"
    return rows | others, note


def describe_cut(cut: Cut) -> str:
    """A cut in words."""
    if cut.value is None:
        return f"nothing passed step {cut.number}"
    if cut.kind == "threshold":
        return f"the threshold on {cut.score} is {cut.value:.6g}"
    if cut.sharp:
        return f"the cut on {cut.score} is {cut.value:.6g}"
    if cut.beta is not None:
        why = f"a stochastic draw ({cut.kind}, beta {cut.beta:g}) has no single cut"
    elif cut.per is not None:
        why = f"the cut on {cut.score} differs by {cut.per}"
    else:
        why = "rows with equal scores lie on both sides of the cut"
    return f"{why}; the lowest {cut.score} that passed is {cut.value:.6g}"


def _sentence(dataset: "Dataset", decision: dict[str, Any], cuts: list[tuple[Cut, Standing]]) -> str:
    if decision["reason"] == BAD_ROW:
        return f"It was set aside as a bad row: {_quarantined(dataset, decision['index'])}."
    if not decision["kept"]:
        step, _, why = decision["reason"].partition(": ")
        number, _, name = step.partition(". ")
        sentence = f"It was dropped at step {number} ({name}): {why}."
    elif decision["pick"] is not None:
        sentence = f"It was kept: number {decision['pick'] + 1:,} in the order of the last draw."
    else:
        sentence = f"It was kept: it passed all {len(dataset.manifest.steps)} steps."
    if decision["duplicate_of"] is not None:
        sentence += f" The earlier row is at position {decision['duplicate_of']:,}."
    for cut, standing in cuts:
        sentence += (
            f" Its {cut.score} is {standing.value:.6g}, rank {standing.rank:,} of the {standing.of:,} that reached "
            f"step {cut.number}; {describe_cut(cut)}."
        )
    return sentence


def _quarantined(dataset: "Dataset", index: int) -> str:
    try:
        with dataset.file(QUARANTINE).open(encoding="utf-8") as file:
            for line in file:
                entry = json.loads(line)
                if entry["index"] == index:
                    return str(entry["reason"])
    except (OSError, ValueError, KeyError):
        return f"{QUARANTINE} cannot be read"
    return f"{QUARANTINE} does not say why"


def _from_source(dataset: "Dataset", indices: list[int], trust: bool) -> tuple[dict[int, Row], str | None]:
    manifest = dataset.manifest
    source, blocks = dataset.candidates()
    total = sum(block.rows for block in blocks)
    if total != manifest.rows_in:
        return {}, f"the source has {total:,} rows now and had {manifest.rows_in:,} when it was read"
    recorded = {record.path: record.fingerprint for record in manifest.inputs}
    rows: dict[int, Row] = {}
    note = None
    for number, inside in groupby(sorted(indices), lambda index: block_at(blocks, index).number):
        block = blocks[number]
        table, _ = source.read(block)
        for index in inside:
            path, row = source.locate(index)
            if not trust and _changed(path, recorded.get(path)):
                note = f"{path} has changed since it was read"
                continue
            rows[index] = Row(table.slice(index - block.start, 1).to_pylist()[0], f"{path}, row {row}")
    return rows, note


def _changed(path: str, fingerprint: str | None) -> bool:
    if fingerprint is None or not fingerprint.startswith("sha256:") or not Path(path).is_file():
        return False
    return sha256_of(Path(path)) != fingerprint.removeprefix("sha256:")
