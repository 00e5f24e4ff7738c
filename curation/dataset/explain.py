"""Why was this row kept, or dropped?

The answer is read off ``decisions.arrow`` in two streaming passes; nothing is scored again.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curation.dataset.decisions import Cut, Decisions, Standing, step_of
from curation.dataset.lookup import Row, find_rows
from curation.dataset.manifest import BAD_ROW, QUARANTINE, Manifest
from curation.errors import SourceError


@dataclass(frozen=True)
class Explanation:
    """All that is known of one candidate.

    Args:
        index: its position in the source.
        kept: whether it stands in the shards.
        reason: as in ``decisions.arrow``.
        sentence: the reason in words, with the numbers that decided.
        weight: its loss weight.
        pick: its place in the last draw, from 0, or None.
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


def explain(folder: Path, index: int) -> Explanation:
    """Explain the decision on the candidate at position ``index``.

    Raises:
        SourceError: the folder is no finished dataset, or has no such candidate.
    """
    manifest = Manifest.load(folder)
    decisions = Decisions(folder, manifest)
    found = decisions.row(index) if index >= 0 else None
    if found is None:
        raise SourceError(f"{folder}: no candidate {index}: positions go from 0 to {manifest.rows_in - 1:,}")
    reached = step_of(found["reason"])
    scores = [name for name in manifest.scores if found[name] is not None]
    cuts = [cut for cut in decisions.cuts() if cut.number <= reached and cut.score in scores]
    places = [(name, 0) for name in scores] + [(cut.score, cut.number) for cut in cuts]
    standings = decisions.standings(found, places)
    placed = list(zip(cuts, standings[len(scores) :], strict=True))
    rows, note = find_rows(folder, manifest, [index])
    return Explanation(
        index=index,
        kept=found["kept"],
        reason=found["reason"],
        sentence=_sentence(folder, found, placed, manifest),
        weight=found["weight"],
        pick=found["pick"],
        duplicate_of=found["duplicate_of"],
        scores=dict(zip(scores, standings[: len(scores)], strict=True)),
        cuts=placed,
        row=rows.get(index),
        note=note,
    )


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


def _sentence(folder: Path, found: dict[str, Any], cuts: list[tuple[Cut, Standing]], manifest: Manifest) -> str:
    if found["reason"] == BAD_ROW:
        return f"It was set aside as a bad row: {_quarantined(folder, found['index'])}."
    if not found["kept"]:
        step, _, why = found["reason"].partition(": ")
        number, _, name = step.partition(". ")
        sentence = f"It was dropped at step {number} ({name}): {why}."
    elif found["pick"] is not None:
        sentence = f"It was kept: number {found['pick'] + 1:,} in the order of the last draw."
    else:
        sentence = f"It was kept: it passed all {len(manifest.steps)} steps."
    if found["duplicate_of"] is not None:
        sentence += f" The earlier row is at position {found['duplicate_of']:,}."
    for cut, own in cuts:
        sentence += (
            f" Its {cut.score} is {own.value:.6g}, rank {own.rank:,} of the {own.of:,} that reached step {cut.number}; "
            f"{describe_cut(cut)}."
        )
    return sentence


def _quarantined(folder: Path, index: int) -> str:
    try:
        with (folder / QUARANTINE).open(encoding="utf-8") as file:
            for line in file:
                entry = json.loads(line)
                if entry["index"] == index:
                    return str(entry["reason"])
    except (OSError, ValueError, KeyError):
        return f"{QUARANTINE} cannot be read"
    return f"{QUARANTINE} does not say why"
