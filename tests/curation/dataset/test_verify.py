"""Every kind of damage to a finished dataset is found and named."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from curation.dataset import Dataset, verify
from curation.dataset.manifest import DECISIONS, QUARANTINE, FileRecord, Manifest
from curation.dataset.writer import file_record
from curation.errors import VerificationError
from curation.plan import BatchPlan
from curation.recipe import Recipe
from curation.recipe.model import recipe_sha256

from ..conftest import BELOW, DUPLICATE, SCORE, Finished

SHARD = "data-00001-of-00003.arrow"


@pytest.fixture
def out(finished: Finished) -> Path:
    return finished().folder


def seal(out: Path, *names: str) -> None:
    """Record the present bytes of these files, so that only what is in them can be found wrong."""
    manifest = Manifest.load(out)
    for name in names:
        manifest.files[name] = file_record(out / name, manifest.files[name].rows)
    manifest.save(out)


def findings(out: Path) -> list[str]:
    return verify.findings(Dataset(out))


def change(out: Path, **fields: object) -> None:
    Manifest.load(out).model_copy(update=fields).save(out)


def rewrite_shard(out: Path, edit: Callable[[pa.Table], pa.Table]) -> None:
    with pa.memory_map(str(out / SHARD)) as source:
        table = edit(pa.ipc.open_stream(source).read_all())
    data = pa.BufferOutputStream()
    with pa.ipc.new_stream(data, table.schema) as writer:
        writer.write_table(table)
    (out / SHARD).write_bytes(data.getvalue().to_pybytes())
    seal(out, SHARD)


def rewrite_decisions(out: Path, edit: Callable[[pa.Table], pa.Table]) -> None:
    with pa.memory_map(str(out / DECISIONS)) as source:
        table = edit(pa.ipc.open_file(source).read_all())
    data = pa.BufferOutputStream()
    with pa.ipc.new_file(data, table.schema) as writer:
        writer.write_table(table)
    (out / DECISIONS).write_bytes(data.getvalue().to_pybytes())
    seal(out, DECISIONS)


def replaced(table: pa.Table, name: str, values: object) -> pa.Table:
    place = table.schema.get_field_index(name)
    return table.set_column(place, table.schema.field(name), pa.array(values, table.schema.field(name).type))


@pytest.mark.parametrize("kind", ["top-k", "power", "threshold"])
@pytest.mark.parametrize("bad", [None, 7])
def test_a_whole_dataset_has_no_findings(finished: Finished, kind: str, bad: int | None) -> None:
    dataset = finished(kind=kind, bad=bad, plan=True)
    assert verify.findings(dataset) == []
    dataset.verify()


def test_one_changed_byte(out: Path) -> None:
    data = bytearray((out / SHARD).read_bytes())
    data[-40] ^= 1
    (out / SHARD).write_bytes(data)
    assert f"{SHARD}: its contents changed (sha256 differs)" in findings(out)


def test_everything_wrong_is_listed_at_once(out: Path) -> None:
    (out / SHARD).unlink()
    (out / "state.json").write_text("{")
    (out / "notes.txt").write_text("hello")
    found = findings(out)
    assert f"{SHARD}: missing" in found
    assert "notes.txt: not in the manifest" in found
    assert any(line.startswith("state.json: 1 bytes, not") for line in found)
    assert any(line.startswith("state.json: datasets.load_from_disk cannot use it") for line in found)
    assert "40 rows in 3 shards, rows_out is 60" in found
    with pytest.raises(VerificationError, match=rf"{len(found)} things differ") as caught:
        Dataset(out).verify()
    assert all(line in str(caught.value) for line in found)
    assert caught.value.exit_code == 7


def test_a_file_name_that_leads_out_of_the_folder(out: Path) -> None:
    manifest = Manifest.load(out)
    manifest.files["../source.parquet"] = FileRecord(bytes=1, sha256="")
    manifest.save(out)
    assert findings(out) == ["../source.parquet: leads out of the folder"]


def test_a_lost_row_in_a_shard(out: Path) -> None:
    rewrite_shard(out, lambda table: table.slice(1))
    found = findings(out)
    assert f"{SHARD}: 19 rows, the manifest says 20" in found
    assert "59 rows in 3 shards, rows_out is 60" in found
    assert any(line.startswith("1 rows are marked as kept but stand in no shard") for line in found)


def test_a_row_twice(out: Path) -> None:
    def repeat(table: pa.Table) -> pa.Table:
        return table.take(pa.array([0, *range(len(table) - 1)]))

    rewrite_shard(out, repeat)
    assert f"{SHARD}: a row stands in the shards twice" in findings(out)


def test_a_row_that_was_not_kept(out: Path) -> None:
    with pa.memory_map(str(out / DECISIONS)) as source:
        kept = pa.ipc.open_file(source).read_all()["kept"].to_numpy()
    stranger = int(np.flatnonzero(~kept)[0])

    def swap(table: pa.Table) -> pa.Table:
        return replaced(table, "_index", [stranger, *table["_index"].to_pylist()[1:]])

    rewrite_shard(out, swap)
    assert f"{SHARD}: row of position {stranger} stands here but is not marked as kept" in findings(out)


@pytest.mark.parametrize("name", [SCORE, "_weight"])
def test_a_value_that_differs_from_the_decision(out: Path, name: str) -> None:
    rewrite_shard(out, lambda table: replaced(table, name, [9.0, *table[name].to_pylist()[1:]]))
    assert any(f"{SHARD}: {name} of position" in line and DECISIONS in line for line in findings(out))


def test_a_shard_that_is_no_arrow_file(out: Path) -> None:
    (out / SHARD).write_bytes(b"not arrow at all")
    seal(out, SHARD)
    assert any("cannot be read" in line and SHARD in line for line in findings(out))


def test_decisions_out_of_order(out: Path) -> None:
    rewrite_decisions(out, lambda table: table.take(pa.array([1, 0, *range(2, len(table))])))
    assert any("not in source order" in line for line in findings(out))


def test_decisions_that_are_too_few(out: Path) -> None:
    rewrite_decisions(out, lambda table: table.slice(0, 399))
    assert f"{DECISIONS}: 399 rows, rows_in is 400" in findings(out)


def test_decisions_of_another_shape(out: Path) -> None:
    rewrite_decisions(out, lambda table: table.drop_columns(["pick"]))
    assert any(line.startswith(f"{DECISIONS}: columns are index int64") for line in findings(out))


def test_decisions_that_are_no_arrow_file(out: Path) -> None:
    (out / DECISIONS).write_bytes(b"no")
    assert any("rows could not be counted" in line for line in findings(out))


def test_reasons_are_counted_one_by_one(out: Path) -> None:
    steps = Manifest.load(out).steps
    duplicates, below = steps[1].dropped[DUPLICATE], steps[2].dropped[BELOW]
    steps[1] = steps[1].model_copy(update={"dropped": {DUPLICATE: duplicates + 1}})
    steps[2] = steps[2].model_copy(update={"dropped": {BELOW: below - 1}})
    change(out, steps=steps)
    found = findings(out)
    assert (
        f"{DECISIONS}: {duplicates} rows with the reason {DUPLICATE!r}, the manifest counts {duplicates + 1}" in found
    )
    assert f"{DECISIONS}: {below} rows with the reason {BELOW!r}, the manifest counts {below - 1}" in found


def test_bad_rows_that_a_step_found_are_counted_once(out: Path) -> None:
    """A step's NaN scores stand in its own ``dropped`` and in ``bad_rows``."""
    manifest = Manifest.load(out)
    first = manifest.steps[0].model_copy(update={"rows_in": 400, "dropped": {"bad row": 1}})
    change(out, steps=[first, *manifest.steps[1:]])
    assert findings(out) == []


def test_arithmetic_of_the_manifest(out: Path) -> None:
    manifest = Manifest.load(out)
    change(out, rows_in=401, steps=[manifest.steps[0].model_copy(update={"rows_out": 398}), *manifest.steps[1:]])
    found = findings(out)
    assert "manifest.json: step 1 (score): 399 in, 0 dropped, but 398 out" in found
    assert "manifest.json: step 1 let 398 rows through, but step 2 got 399" in found
    assert "manifest.json: the inputs have 400 rows, rows_in is 401" in found
    assert "manifest.json: 401 rows in, 1 bad, 339 dropped, but 60 out" in found


def test_another_recipe_than_its_hash(out: Path) -> None:
    recipe = Manifest.load(out).recipe
    recipe["steps"][2]["count"] = 61
    change(out, recipe=recipe, seed=4)
    found = findings(out)
    assert "manifest.json: recipe_sha256 is not the hash of the recipe" in found
    assert "manifest.json: seed 4 is not the recipe's, 3" in found
    change(out, recipe={**recipe, "unknown": 1})
    assert any("not one that this version reads" in line for line in findings(out))


def test_an_infinite_beta_survives_the_manifest(out: Path) -> None:
    raw = Manifest.load(out).recipe
    raw["steps"][2] |= {"kind": "power", "beta": float("inf")}
    recipe = Recipe.model_validate(raw)
    change(out, recipe=recipe.model_dump(mode="json"), recipe_sha256=recipe.sha256())
    assert findings(out) == []


def test_a_recipe_of_a_version_that_knew_fewer_parameters(out: Path) -> None:
    recipe = Manifest.load(out).recipe
    del recipe["steps"][2]["shift"]
    change(out, recipe=recipe, recipe_sha256=recipe_sha256(recipe))
    assert findings(out) == []


def test_a_plan_that_leaves_rows_out(finished: Finished) -> None:
    out = finished(plan=True).folder
    BatchPlan.of_size(np.arange(59), 16).save(out / "batches.arrow")
    seal(out, "batches.arrow")
    assert findings(out) == ["batches.arrow: its 59 indices are not each of 0..59 once"]
    (out / "batches.arrow").write_bytes(b"no")
    assert any("not a batch plan" in line for line in findings(out))


def test_state_that_lists_other_shards(out: Path) -> None:
    (out / "state.json").write_text(json.dumps({"_data_files": [{"filename": SHARD}]}))
    seal(out, "state.json")
    assert findings(out) == ["state.json: lists 1 shards, the manifest 3"]


def test_a_lost_quarantine(out: Path) -> None:
    (out / QUARANTINE).unlink()
    assert findings(out) == [f"{QUARANTINE}: missing", f"{QUARANTINE}: 0 rows, bad_rows is 1"]
