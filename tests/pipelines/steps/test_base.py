"""Steps' names, and the paths in their parameters."""

from pathlib import Path

from pydantic import BaseModel

from curation.pipelines import Acquire, Dedup, FileSource, Step
from curation.pipelines.steps import parse_step


class Louder(Dedup):
    """Made from one of ours, and another step."""

    volume: int = 3


class Loudest(Louder):
    """Made from one that is."""


class Inner(BaseModel):
    """A parameter of parameters."""

    file: FileSource
    number: int = 1


class Nested(Step):
    """Has file sources at any depth."""

    files: list[FileSource]
    named: dict[str, FileSource | None]
    inner: Inner
    plain: tuple[int, ...] = (1, 2)


def test_a_step_made_from_one_of_ours_has_a_name_of_its_own() -> None:
    for made in (Louder(volume=4), Loudest(volume=5)):
        assert made.step == f"{__name__}:{type(made).__name__}"
        again = parse_step(made.model_dump(mode="json"))
        assert type(again) is type(made)
        assert again == made
    assert Dedup().step == "dedup"
    assert type(parse_step({"step": "acquire", "count": 1})) is Acquire


def test_paths_are_resolved_at_any_depth(tmp_path: Path) -> None:
    file = FileSource(format="jsonl", path="rows.jsonl")
    step = Nested(files=[file], named={"one": file, "none": None}, inner=Inner(file=file, number=2))
    whole = FileSource(format="jsonl", path=str(tmp_path / "rows.jsonl"))
    assert step.resolved(tmp_path) == Nested(
        files=[whole], named={"one": whole, "none": None}, inner=Inner(file=whole, number=2)
    )
    assert step.files == [file]
    again = step.resolved(tmp_path)
    assert again.resolved(Path("/elsewhere")) == again
