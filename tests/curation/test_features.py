"""Features of ``datasets``: read from files, written with a dataset, and refused early where it lacks a type."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation.dataset.writer import kept_table, shard_schema, write_dataset_files, write_shard
from curation.errors import SourceError
from curation.features import datasets_features, told, with_features
from curation.recipe import FileSource
from curation.sources import open_source

PNG = b"\x89PNG\r\n"
FEATURES = datasets.Features(
    {
        "text": datasets.Value("string"),
        "image": datasets.Image(),
        "sound": datasets.Audio(sampling_rate=16_000),
        "label": datasets.ClassLabel(names=["neg", "pos"]),
        "pixels": datasets.Array2D(shape=(2, 2), dtype="float32"),
        "pages": datasets.List({"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=["x"])}),
        "small": datasets.Value("int16"),
    }
)


def table(rows: int = 4) -> pa.Table:
    """Rows as ``datasets`` stores them; made without encoding, which would need more packages."""
    blob = {"bytes": PNG, "path": None}
    values: dict[str, list[Any]] = {
        "text": [f"row {row}" for row in range(rows)],
        "image": [blob] * rows,
        "sound": [blob] * rows,
        "label": [row % 2 for row in range(rows)],
        "pixels": [[[row, 1.0], [2.0, 3.0]] for row in range(rows)],
        "pages": [[{"image": blob, "label": 0}] * (row % 3) for row in range(rows)],
        "small": list(range(rows)),
    }
    columns = []
    for field in FEATURES.arrow_schema:
        stored = isinstance(field.type, pa.ExtensionType)
        array = pa.array(values[field.name], field.type.storage_type if stored else field.type)
        columns.append(pa.ExtensionArray.from_storage(field.type, array) if stored else array)
    return pa.Table.from_arrays(columns, schema=FEATURES.arrow_schema)


@pytest.fixture(autouse=True)
def _quiet() -> None:
    datasets.disable_progress_bars()


def sources(folder: Path) -> dict[str, FileSource]:
    """The rows as a saved dataset, and as Parquet that carries the features."""
    datasets.Dataset(table()).save_to_disk(folder / "saved")
    datasets.Dataset(table()).to_parquet(folder / "rows.parquet")
    return {
        "saved": FileSource(format="dataset", path=str(folder / "saved")),
        "parquet": FileSource(format="parquet", path=str(folder / "rows.parquet")),
        "arrow": FileSource(format="arrow", path=str(folder / "saved")),
    }


@pytest.mark.parametrize("kind", ["saved", "parquet", "arrow"])
def test_features_survive(tmp_path: Path, kind: str) -> None:
    source = open_source(sources(tmp_path)[kind])
    rows, bad = source.read(source.blocks(10)[0])
    assert bad == []
    out = tmp_path / "out"
    out.mkdir()
    schema = shard_schema(source.schema, ["score"])
    kept = kept_table(rows, np.arange(4), {"score": np.ones(4)})
    write_shard(out / "data-00000-of-00001.arrow", schema, [kept])
    write_dataset_files(out, schema, ["data-00000-of-00001.arrow"], "0" * 16)
    back = datasets.load_from_disk(str(out))
    ours = {"_index": datasets.Value("int64"), "_weight": datasets.Value("float32"), "score": datasets.Value("float64")}
    assert dict(back.features) == {**FEATURES, **ours}
    assert back.data.table.select(list(FEATURES)).cast(FEATURES.arrow_schema).equals(table())
    assert back.features["label"].int2str(back["label"][1]) == "pos"
    assert back.cast_column("image", datasets.Image(decode=False))["image"][0]["bytes"] == PNG
    again = open_source(FileSource(format="dataset", path=str(out)))
    assert told(again.schema.metadata) == told(source.schema.metadata), "and again, from what was written"


def test_a_column_keeps_its_feature_under_another_name(tmp_path: Path) -> None:
    spec = sources(tmp_path)["parquet"].model_copy(update={"columns": {"picture": "image", "text": "text"}})
    assert told(open_source(spec).schema.metadata) == {"picture": {"_type": "Image"}}


def test_plain_features_leave_no_trace(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": ["a"], "tags": [["b"]]}).to_parquet(tmp_path / "rows.parquet")
    assert open_source(FileSource(format="parquet", path=str(tmp_path / "rows.parquet"))).schema.metadata is None


def test_files_whose_features_do_not_meet(tmp_path: Path) -> None:
    for number, names in enumerate((["no", "yes"], ["no", "yes"], ["yes", "no"])):
        features = datasets.Features({"label": datasets.ClassLabel(names=names)})
        datasets.Dataset.from_dict({"label": [0]}, features=features).to_parquet(tmp_path / f"{number}.parquet")
    with pytest.raises(SourceError, match=r"2.parquet: column 'label' is the feature .*yes.*no.*0.parquet it is"):
        open_source(FileSource(format="parquet", path=str(tmp_path)))
    pq.write_table(pa.table({"label": [1]}), tmp_path / "2.parquet")
    assert told(open_source(FileSource(format="parquet", path=str(tmp_path))).schema.metadata) == {
        "label": {"names": ["no", "yes"], "_type": "ClassLabel"}
    }


def test_saved_datasets_whose_features_do_not_meet(tmp_path: Path) -> None:
    for number, names in enumerate((["no", "yes"], ["yes", "no"])):
        schema = with_features(pa.schema({"label": pa.int64()}), {"label": {"names": names, "_type": "ClassLabel"}})
        (tmp_path / f"{number}").mkdir()
        write_shard(tmp_path / f"{number}" / "data-00000-of-00001.arrow", schema, [pa.table({"label": [0]})])
        write_dataset_files(tmp_path / f"{number}", schema, ["data-00000-of-00001.arrow"], "0")
    with pytest.raises(SourceError, match=r"1/data-00000-of-00001.arrow: column 'label' is the feature"):
        open_source(FileSource(format="dataset", path=str(tmp_path / "*")))


def test_types_that_datasets_lacks_are_named() -> None:
    datasets_features(pa.schema({"a": pa.int64(), "b": pa.list_(pa.struct([("c", pa.time32("s"))]))}))
    for kind in (pa.month_day_nano_interval(), pa.dense_union([pa.field("x", pa.int8())])):
        with pytest.raises(SourceError, match=rf"column 'b' is {kind}, a type that `datasets` lacks.*`columns`"):
            datasets_features(pa.schema([("a", pa.int64()), ("b", kind)]))
    unknown = with_features(pa.schema({"a": pa.int64()}), {"a": {"_type": "Hologram"}})
    with pytest.raises(SourceError, match="column 'a' is marked as the feature .*Hologram"):
        datasets_features(unknown)


EVERYDAY = (
    *(pa.int8(), pa.uint64(), pa.float16(), pa.float32(), pa.float64(), pa.bool_()),
    *(pa.string(), pa.large_string(), pa.binary(), pa.large_binary()),
    *(pa.list_(pa.float16()), pa.large_list(pa.list_(pa.string())), pa.struct([])),
    pa.list_(pa.struct([("a", pa.int32()), ("b", pa.large_list(pa.float64()))])),
)


def test_everyday_types_are_called_what_datasets_calls_them() -> None:
    schema = pa.schema([(f"c{number}", kind) for number, kind in enumerate(EVERYDAY)])
    assert datasets_features(schema) == datasets.Features.from_arrow_schema(schema).to_dict()


def test_a_dataset_of_everyday_types_is_written_without_an_import_of_datasets(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nimport pyarrow as pa\n"
        "from curation.dataset.writer import write_dataset_files\n"
        "write_dataset_files(Path(sys.argv[1]), pa.schema({'text': pa.string(), 'x': pa.list_(pa.int8())}), [], '0')\n"
        "print('datasets' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    info = datasets.DatasetInfo.from_directory(str(tmp_path))
    features = datasets.Features({"text": datasets.Value("string"), "x": datasets.List(datasets.Value("int8"))})
    assert info == datasets.DatasetInfo(features=features)


@pytest.mark.parametrize("metadata", [None, {}, {b"huggingface": b"{"}, {b"huggingface": b"[]"}, {b"pandas": b"{}"}])
def test_metadata_without_features(metadata: dict[bytes, bytes] | None) -> None:
    assert told(metadata) == {}


def test_a_dataset_info_that_cannot_be_read(tmp_path: Path) -> None:
    spec = sources(tmp_path)["saved"]
    (tmp_path / "saved" / "dataset_info.json").write_text(json.dumps(["nonsense"]))
    with pytest.raises(SourceError, match=r"dataset_info.json: cannot be read"):
        open_source(spec)
    (tmp_path / "saved" / "dataset_info.json").unlink()
    assert set(told(open_source(spec).schema.metadata)) == {"image", "sound", "label", "pixels", "pages"}
