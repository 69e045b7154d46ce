"""The tables beside activations on disk, as the bytes of Parquet files: equal tables give equal bytes."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from interp.texts import SPLITS, Column, Corpus


def manifest_bytes(columns: dict[str, np.ndarray], labels: Mapping[str, Column]) -> bytes:
    """A manifest as Parquet; split and labels, which come as codes, as their values."""
    import pyarrow as pa

    arrays: dict[str, Any] = {}
    for name, values in columns.items():
        if name == "split":
            arrays[name] = pa.DictionaryArray.from_arrays(pa.array(values.astype(np.int8)), pa.array(list(SPLITS)))
        elif name in labels:
            arrays[name] = _label_array(values, labels[name])
        else:
            arrays[name] = pa.array(values.astype(np.int32))
    return _table_bytes(pa.table(arrays))


def _label_array(codes: np.ndarray, column: Column) -> Any:
    import pyarrow as pa

    types = {"bool": pa.bool_(), "int": pa.int64(), "float": pa.float64(), "string": pa.string()}
    convert = {"bool": bool, "int": int, "float": float, "string": str}[column.kind]
    values = pa.array([convert(value) for value in column.values], type=types[column.kind])
    known = pa.array(codes.astype(np.int32), mask=codes < 0)
    coded = pa.DictionaryArray.from_arrays(known, values)
    return coded if column.kind == "string" else coded.dictionary_decode()


def texts_bytes(corpus: Corpus) -> bytes:
    import pyarrow as pa

    split = pa.DictionaryArray.from_arrays(pa.array(corpus.split.astype(np.int8)), pa.array(list(SPLITS)))
    tokens = pa.array(np.diff(corpus.starts).astype(np.int32))
    number = pa.array(np.arange(len(corpus.ids), dtype=np.int32))
    return _table_bytes(pa.table({"text": number, "id": pa.array(corpus.ids), "split": split, "tokens": tokens}))


def _table_bytes(table: Any) -> bytes:
    import pyarrow.parquet as parquet

    stream = io.BytesIO()
    parquet.write_table(table, stream, compression="zstd")
    return stream.getvalue()
