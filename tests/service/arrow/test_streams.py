"""Bodies of Arrow that stand for more than they are: what each unfolds to is known before pyarrow reads it."""

import struct
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pytest

from curation.service.arrow import read_batches, read_table, write_table
from curation.service.arrow.flatbuffers import find_field, follow
from curation.service.errors import Refusal

MIB = 1 << 20
END = b"\xff\xff\xff\xff\0\0\0\0"


def compressed(table: pa.Table, codec: str = "zstd") -> bytearray:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=codec)) as writer:
        writer.write_table(table)
    return bytearray(sink.getvalue())


def metadata_of(body: bytearray, message: int) -> tuple[memoryview, int]:
    """The flatbuffer of a message, to write in, and where its body starts."""
    at = 0
    for _ in range(message + 1):
        (size,) = struct.unpack_from("<i", body, at + 4)
        meta, end = memoryview(body)[at + 8 : at + 8 + size], at + 8 + size
        length = find_field(meta, follow(meta, 0), 3)
        at = end + (0 if length is None else struct.unpack_from("<q", meta, length)[0])
    return meta, end


def buffers_of(body: bytearray, message: int = 1) -> tuple[memoryview, list[int], int]:
    """As :func:`metadata_of`, with the places of the descriptions (offset, length) of the batch's buffers."""
    meta, start = metadata_of(body, message)
    header = find_field(meta, follow(meta, 0), 2)
    assert header is not None
    field = find_field(meta, follow(meta, header), 2)
    assert field is not None
    vector = follow(meta, field)
    (count,) = struct.unpack_from("<I", meta, vector)
    return meta, [vector + 4 + 16 * number for number in range(count)], start


def refused(body: bytes, max_rows: int | None = None, max_bytes: int = MIB) -> Refusal:
    with pytest.raises(Refusal) as refusal:
        read_batches(bytes(body), max_bytes, max_rows)
    return refusal.value


def test_a_negative_size_does_not_make_room_for_others() -> None:
    body = compressed(pa.table({"a": np.zeros(MIB // 4), "b": np.zeros(MIB // 4)}))
    meta, places, start = buffers_of(body)
    offset, length = struct.unpack_from("<qq", meta, places[1])
    assert length > 0
    struct.pack_into("<q", body, start + offset, -(2**40))
    assert "declares" in refused(body).detail
    struct.pack_into("<q", body, start + offset, 2**62)
    assert refused(body).kind == "too-large"


@pytest.mark.parametrize(("offset", "length"), [(-8, 64), (0, -64), (1 << 40, 8), (8, 1 << 62), (2**63 - 1, 2**63 - 1)])
@pytest.mark.parametrize("codec", ["zstd", "lz4", None])
def test_buffers_outside_of_the_body_are_refused(codec: str | None, offset: int, length: int) -> None:
    table = pa.table({"a": np.arange(100.0)})
    body = compressed(table, codec) if codec else bytearray(write_table(table))
    meta, places, _ = buffers_of(body)
    struct.pack_into("<qq", meta, places[1], offset, length)
    assert refused(body).kind == "bad-body"


def test_columns_that_share_a_buffer_are_refused() -> None:
    words = pa.array(["x" * 1000])
    body = bytearray(write_table(pa.table({str(number): words for number in range(60)})))
    meta, places, _ = buffers_of(body)
    first = struct.unpack_from("<qq", meta, places[2])
    for place in places[5::3]:
        struct.pack_into("<qq", meta, place, *first)
    assert read_table(write_table(pa.table({"0": words})), MIB).num_rows == 1
    struct.pack_into("<qq", meta, places[2], 0, 50_000)
    for place in places[5::3]:
        struct.pack_into("<qq", meta, place, 0, 50_000)
    assert "buffers lie on each other" in refused(body).detail


def bomb_of_metadata(entries: int, size: int) -> bytearray:
    """A schema whose entries of metadata all are the one of ``size`` bytes."""
    message = bytearray(pa.schema([], {f"{i:06}": "" for i in range(entries)} | {"zz": "x" * size}).serialize())
    meta, _ = metadata_of(message, 0)
    header = find_field(meta, follow(meta, 0), 2)
    assert header is not None
    field = find_field(meta, follow(meta, header), 2)
    assert field is not None
    vector = follow(meta, field)
    places = [vector + 4 + 4 * number for number in range(entries + 1)]

    def length(place: int) -> int:
        value = find_field(meta, follow(meta, place), 1)
        assert value is not None
        return int(struct.unpack_from("<I", meta, follow(meta, value))[0])

    target = follow(meta, max(places, key=length))
    for place in places:
        if place < target:
            struct.pack_into("<I", meta, place, target - place)
    return message + END


@pytest.mark.parametrize(("entries", "said"), [(30, "strings of its schema overlap"), (2000, "2001 entries")])
def test_metadata_that_unfolds_is_refused(entries: int, said: str) -> None:
    assert said in refused(bomb_of_metadata(entries, 100_000)).detail
    read_batches(bytes(bomb_of_metadata(2, 100)), MIB)  # too little to matter


def test_a_long_schema_of_a_real_client_is_read() -> None:
    table = pa.table({"scores": np.arange(4.0)}).replace_schema_metadata({"request": "x" * 100_000, "other": "y"})
    assert read_table(write_table(table), MIB).equals(table)
    many = pa.table({"a" * 1000 + str(number): pa.array([[1.0]]) for number in range(30)})
    assert read_table(write_table(many), MIB).equals(many)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (pa.table([pa.array([1]), pa.array([2])], names=["a", "a"]), "two columns have one name"),
        (pa.table({str(number): [1] for number in range(65)}), "columns"),
        (pa.table({"a" * 1000 + str(number): [1] for number in range(65)}), "65 entries"),
        (pa.table({"a": pa.array([[[1]]])}), "send numbers, strings, binary, or lists of them"),
        (pa.table({"a" * 5000: pa.array([[[1]]])}), "send numbers, strings, binary, or lists of them"),
        (pa.table({"a": pa.array([{"b": 1}])}), "send numbers, strings, binary, or lists of them"),
        (pa.table({"a": pa.array([0], pa.timestamp("s", tz="x" * 5000))}), "of a type that is not taken"),
    ],
)
def test_schemas_that_are_refused(table: pa.Table, said: str) -> None:
    assert said in refused(write_table(table)).detail


def test_a_name_or_text_that_is_not_utf8_is_refused() -> None:
    body = write_table(pa.table({"abcdef": ["ghijkl"]}))
    assert refused(body.replace(b"abcdef", b"\xff\xfe\xfd\xfc\xfb\xfa")).kind == "bad-body"
    assert refused(body.replace(b"ghijkl", b"\xff\xfe\xfd\xfc\xfb\xfa")).kind == "bad-body"


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_rows_are_limited_before_they_are_expanded(codec: str) -> None:
    nothing = pa.ListArray.from_arrays(pa.array(np.zeros(100_001, np.int32)), pa.array([], pa.float32()))
    body = compressed(pa.table({"step": np.zeros(100_000, np.int64), "losses": nothing}), codec)
    assert len(body) < 20_000
    before = pa.default_memory_pool().max_memory()
    assert refused(body, max_rows=1000, max_bytes=64 * MIB).kind == "too-large"
    assert pa.default_memory_pool().max_memory() == before
    assert len(read_batches(bytes(body), 64 * MIB, 100_000)[1]) > 0


def test_batches_are_limited() -> None:
    schema = pa.schema([("a", pa.int8())])
    empty = pa.record_batch([pa.array([], pa.int8())], schema=schema).serialize().to_pybytes()
    assert "record batches" in refused(schema.serialize().to_pybytes() + 5000 * empty).detail


def test_messages_of_other_kinds_are_refused() -> None:
    schema = pa.schema([("a", pa.int8())]).serialize().to_pybytes()
    tensor = pa.BufferOutputStream()
    pa.ipc.write_tensor(pa.Tensor.from_numpy(np.zeros(4)), tensor)
    batch = pa.record_batch({"a": pa.array([1], pa.int8())}).serialize().to_pybytes()
    for body in (tensor.getvalue().to_pybytes(), schema + tensor.getvalue().to_pybytes(), schema + schema, batch):
        assert refused(body).kind == "bad-body"


def test_no_number_of_a_long_schema_makes_more_than_a_refusal() -> None:
    table = pa.table({"a": [1.0]}).replace_schema_metadata({"request": "x" * 5000})
    body = write_table(table)
    meta, _ = metadata_of(bytearray(body), 0)
    places = [at for at in range(0, len(meta) - 4, 2) if meta[at : at + 4] != b"xxxx"]
    for at in places:
        for value in (0, 1, 0x7F, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0xFFFFFF00):
            changed = bytearray(body)
            struct.pack_into("<I", changed, 8 + at, value)
            with suppress(Refusal):
                read_table(bytes(changed), MIB)


def test_big_endian_numbers_are_refused() -> None:
    """A server that took them for its own would store other losses than were sent."""
    body = bytearray(write_table(pa.table({"step": [1, 2], "losses": [[0.5], [1.5]]})))
    meta, _ = metadata_of(body, 0)
    header = find_field(meta, follow(meta, 0), 2)
    assert header is not None
    schema = follow(meta, header)
    (back,) = struct.unpack_from("<i", meta, schema)
    one = next(at for at in range(schema + 4, len(meta), 2) if struct.unpack_from("<h", meta, at)[0] == 1)
    struct.pack_into("<H", meta, schema - back + 4, one - schema)
    with pytest.raises(Refusal, match="big-endian: send them little-endian") as refused:
        read_table(bytes(body), MIB)
    assert refused.value.kind == "bad-body"
    assert read_table(write_table(pa.table({"step": [1]})), MIB)["step"].to_pylist() == [1]
