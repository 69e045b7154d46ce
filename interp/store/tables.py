"""The tables beside activations on disk, as the bytes of Parquet files: equal tables give equal bytes."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet

from interp.store.texts import SPLITS, Column, Corpus


def manifest_bytes(columns: dict[str, np.ndarray], labels: Mapping[str, Column]) -> bytes:
    """A manifest as Parquet; split and labels, which come as codes, as their values."""
    arrays: dict[str, Any] = {name: values.astype(np.int32) for name, values in columns.items()}
    arrays |= {name: _label_array(columns[name], column) for name, column in labels.items()}
    return _table_bytes(arrays | {"split": _split_array(columns["split"])})


def _split_array(codes: np.ndarray) -> Any:
    return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int8)), pa.array(SPLITS))


def _label_array(codes: np.ndarray, column: Column) -> Any:
    types = {"bool": pa.bool_(), "int": pa.int64(), "float": pa.float64(), "string": pa.string()}
    convert = {"bool": bool, "int": int, "float": float, "string": str}[column.kind]
    values = pa.array([convert(value) for value in column.values], type=types[column.kind])
    known = pa.array(codes.astype(np.int32), mask=codes < 0)
    coded = pa.DictionaryArray.from_arrays(known, values)
    return coded if column.kind == "string" else coded.dictionary_decode()


def texts_bytes(corpus: Corpus) -> bytes:
    number, tokens = np.arange(len(corpus.ids), dtype=np.int32), np.diff(corpus.starts).astype(np.int32)
    return _table_bytes({"text": number, "id": corpus.ids, "split": _split_array(corpus.split), "tokens": tokens})


def _table_bytes(columns: dict[str, Any]) -> bytes:
    stream = io.BytesIO()
    parquet.write_table(pa.table(columns), stream, compression="zstd")
    return stream.getvalue()
