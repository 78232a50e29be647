"""The ledger: every dropped row with its one reason, in ``metadata/dropped.parquet``."""

import contextlib
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from laionkit.core.ahead import Behind
from laionkit.core.files import Folder, Written
from laionkit.core.schemas import METADATA, Reason

SCHEMA = pa.schema(
    [
        ("source", pa.dictionary(pa.int32(), pa.string())),
        ("row", pa.int64()),
        ("url", pa.string()),
        ("reason", pa.dictionary(pa.int32(), pa.string())),
        ("value", pa.string()),
    ]
)
GROUP_ROWS = 131_072
# Links are most of a ledger and of the time it takes: lz4 has them in half the time of zstd at its
# fastest, and in up to twice the bytes. The other columns take little of either.
COMPRESSION = {name: "lz4" if name == "url" else "zstd" for name in SCHEMA.names}
COMPRESSION_LEVEL = {name: 1 for name, codec in COMPRESSION.items() if codec == "zstd"}


class Ledger:
    """Counts dropped rows, and writes them down unless only counts are wanted.

    Rows stand in the order in which they were dropped: first what a row itself shows, source by
    source, then what only all rows together could tell.
    """

    def __init__(
        self, folder: Folder, batch: int, sources: Sequence[str], reasons: list[str], full: bool
    ) -> None:
        """Write for run `batch` of the dataset; `reasons` maps codes to names and may grow."""
        self.path = f"{METADATA}/dropped{f'-{batch:05d}' if batch else ''}.parquet"
        self.counts: dict[str, int] = {}
        self.full = full
        self._folder, self._reasons = folder, reasons
        self._sources = pa.array(list(sources), pa.string())
        self._stack = contextlib.ExitStack()
        self._encoder = Behind(3)  # row groups are encoded while the next rows come
        self._waiting: list[pa.Table] = []
        self._rows_waiting = 0

    def __enter__(self) -> "Ledger":
        """Open the file, which appears only once it is finished."""
        if self.full:
            self._file = self._stack.enter_context(self._folder.create(self.path))
            self._writer = self._stack.enter_context(
                pq.ParquetWriter(
                    self._file,
                    SCHEMA,
                    compression=COMPRESSION,
                    compression_level=COMPRESSION_LEVEL,
                    # Sides and rounded scores repeat; where values do not, they are written plain.
                    use_dictionary=["source", "reason", "value"],
                    column_encoding={"row": "DELTA_BINARY_PACKED"},
                    write_statistics=["row"],
                )
            )
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Throw the file away where it was not finished."""
        self._encoder.close()
        self._stack.__exit__(kind, error, trace)  # type: ignore[arg-type]

    def add(
        self,
        sources: pa.Array | int,
        rows: np.ndarray,
        urls: pa.ChunkedArray | pa.Array | None,
        codes: np.ndarray,
        values: pa.ChunkedArray | pa.Array | None,
    ) -> None:
        """Write down rows that were all dropped: source number, row number, link, code, value."""
        if not len(codes):
            return
        self.count({c: n for c, n in enumerate(np.bincount(codes).tolist()) if n})
        if not self.full:
            return
        if isinstance(sources, int):
            sources = pa.array(np.full(len(codes), sources, np.int32))
        table = pa.table(
            [
                pa.DictionaryArray.from_arrays(sources.cast(pa.int32()), self._sources),
                pa.array(rows),
                urls,
                pa.DictionaryArray.from_arrays(
                    pa.array(codes.astype(np.int32)), pa.array(self._reasons)
                ),
                pa.nulls(len(codes), pa.string()) if values is None else values,
            ],
            schema=SCHEMA,
        )
        self._waiting.append(table)
        self._rows_waiting += table.num_rows
        if self._rows_waiting >= GROUP_ROWS:
            whole = self._rows_waiting // GROUP_ROWS * GROUP_ROWS
            waiting = pa.concat_tables(self._waiting)
            self._encoder.hand_over(self._write, waiting.slice(0, whole))
            self._waiting, self._rows_waiting = [waiting.slice(whole)], self._rows_waiting - whole

    def count(self, codes: Mapping[int, int]) -> None:
        """Count dropped rows that nobody writes down: code → rows."""
        for code, rows in codes.items():
            name = self._reasons[code]
            self.counts[name] = self.counts.get(name, 0) + rows

    def add_unreadable(self, source: int, bad: Sequence[tuple[int, str]], code: int) -> None:
        """Write down what was no row at all: (number, text)."""
        numbers = np.array([number for number, _ in bad], np.int64)
        texts = pa.array([text for _, text in bad], pa.string())
        none = pa.nulls(len(bad), pa.string())
        self.add(source, numbers, none, np.full(len(bad), code, np.uint16), texts)

    def finish(self) -> Written | None:
        """Close the file; None where only counts are wanted."""
        if not self.full:
            return None
        if self._rows_waiting:
            self._encoder.hand_over(self._write, pa.concat_tables(self._waiting))
        self._encoder.wait()
        self._stack.close()
        return Written(self.path, self._file.size, self._file.digest.hexdigest())

    def _write(self, rows: pa.Table) -> None:
        """Encode row groups; their bytes hang on the rows alone, not on how they came."""
        for start in range(0, rows.num_rows, GROUP_ROWS):
            group = rows.slice(start, GROUP_ROWS).unify_dictionaries().combine_chunks()
            self._writer.write_table(group, GROUP_ROWS)


UNREADABLE = Reason.MALFORMED_ROW.value
