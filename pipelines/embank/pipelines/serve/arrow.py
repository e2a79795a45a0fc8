"""Arrow streams of requests and answers."""

import struct
from collections.abc import Collection, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embank.pipelines.serve.refused import RefusedRequestError, malformed
from embank.pipelines.serve.rows import refuse_columns, refuse_too_many

ARROW = "application/vnd.apache.arrow.stream"

_SIMPLE = (
    *(pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary),
    *(pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_boolean, pa.types.is_null),
    *(pa.types.is_date, pa.types.is_time, pa.types.is_timestamp),
)
_VIEWS = (pa.types.is_string_view, pa.types.is_binary_view)
"""What polars writes of text, unless it is asked for another form."""

_COMPRESSION_FIELD = 3  # of RecordBatch, in Arrow's Message.fbs
_HEADER_FIELD = 2  # of Message
_DATA_FIELD = 1  # of DictionaryBatch: its RecordBatch


def read_table(body: bytes, *, columns: Collection[str], most: int) -> pa.Table:
    """The table of an Arrow stream, checked in full: offsets and texts too, so that nothing reads past a buffer.

    Args:
        body: the stream.
        columns: that the model reads.
        most: rows.

    Raises:
        RefusedRequestError: no stream, other columns, types that no column can have, or too many rows.
    """
    try:
        _refuse_compressed(body)
        with pa.ipc.open_stream(pa.py_buffer(body)) as reader:
            refuse_columns(reader.schema.names, columns=columns)
            for field in reader.schema:
                _refuse_type(field)
            batches, num_rows = [], 0
            for batch in reader:
                num_rows += batch.num_rows
                refuse_too_many(num_rows, most=most)
                batch.validate(full=True)
                batches.append(batch)
            table = pa.Table.from_batches(batches, schema=reader.schema)
        return _decoded(table, most=16 * len(body))
    except (pa.ArrowException, OSError, ValueError, TypeError, struct.error) as error:
        raise malformed(f"the body is no whole Arrow stream: {error}", expected="an Arrow IPC stream") from error


def write_scores(scores_N: np.ndarray, *, metadata: Mapping[str, str]) -> bytes:
    """A stream of one column, `score`; the metadata is that of its schema."""
    table = pa.table({"score": scores_N}).replace_schema_metadata(dict(metadata))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def _refuse_type(field: pa.Field) -> None:
    kind = field.type
    if pa.types.is_dictionary(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
    is_view = kind == field.type and any(is_one(kind) for is_one in _VIEWS)
    if not is_view and not any(is_one(kind) for is_one in _SIMPLE):
        raise malformed(
            f"column '{field.name}' has the type {field.type}; send strings, numbers, dates, or lists of them",
            field=field.name,
            value=str(field.type),
            expected="string, binary, integer, floating, decimal, boolean, date, time, timestamp, null, or a "
            "dictionary or a list of one of them",
        )


def _decoded(table: pa.Table, *, most: int) -> pa.Table:
    """The table without dictionaries and views, which may be a long text for each of many rows: it is measured
    first."""
    for place, field in enumerate(table.schema):
        if any(is_one(field.type) for is_one in _VIEWS):
            column = table.column(place)
            _refuse_long(field.name, sum(_viewed_nbytes(chunk) for chunk in column.chunks), most=most)
            plain = pa.large_string() if pa.types.is_string_view(field.type) else pa.large_binary()
            table = table.set_column(place, field.name, column.cast(plain))
            continue
        if not pa.types.is_dictionary(field.type):
            continue
        column = table.column(place)
        if pa.types.is_string(field.type.value_type) or pa.types.is_large_string(field.type.value_type):
            _refuse_long(field.name, sum(_decoded_nbytes(chunk) for chunk in column.chunks), most=most)
        table = table.set_column(place, field.name, column.cast(field.type.value_type))
    return table


def _refuse_long(name: str, nbytes: int, *, most: int) -> None:
    if nbytes > most:
        raise RefusedRequestError(413, "body", f"column '{name}' has {nbytes:,} bytes of text, row by row")


def _viewed_nbytes(chunk: pa.Array) -> int:
    """Bytes of all texts of an array of views, each of which begins with its length."""
    views = np.frombuffer(chunk.buffers()[1], dtype=np.int32).reshape(-1, 4)
    return int(views[chunk.offset : chunk.offset + len(chunk), 0].astype(np.int64).sum())


def _decoded_nbytes(chunk: pa.DictionaryArray) -> int:
    lengths = pc.binary_length(chunk.dictionary).cast(pa.int64())
    return int(pc.sum(lengths.take(chunk.indices)).as_py() or 0)


def _refuse_compressed(body: bytes) -> None:
    """A few bytes may be gigabytes once they are unpacked, and Arrow has no limit for that."""
    for message in pa.ipc.MessageReader.open_stream(pa.py_buffer(body)):
        if message.type in ("record batch", "dictionary") and _is_compressed(
            bytes(message.metadata), dictionary=message.type == "dictionary"
        ):
            raise RefusedRequestError(
                415, "compression", "the Arrow stream is compressed; write it without `compression`"
            )


def _is_compressed(metadata: bytes, *, dictionary: bool) -> bool:
    """Whether a message's flatbuffer has a BodyCompression."""
    (root,) = struct.unpack_from("<I", metadata, 0)
    table = _field(metadata, root, _HEADER_FIELD)
    if dictionary and table is not None:
        table = _field(metadata, table, _DATA_FIELD)
    return table is not None and _field(metadata, table, _COMPRESSION_FIELD) is not None


def _field(metadata: bytes, table: int, number: int) -> int | None:
    """Where the table begins that is a table's field of this number; None if it is absent."""
    vtable = table - struct.unpack_from("<i", metadata, table)[0]
    (size,) = struct.unpack_from("<H", metadata, vtable)
    if 4 + 2 * number + 2 > size:
        return None
    (offset,) = struct.unpack_from("<H", metadata, vtable + 4 + 2 * number)
    return None if offset == 0 else table + offset + struct.unpack_from("<I", metadata, table + offset)[0]
