"""Rows in the order of their places, however many times a bucket is thrown again."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from laionkit.stages.metadata import buckets
from laionkit.stages.metadata.buckets import Buckets


@pytest.mark.parametrize("rows", [0, 1, 9, 40, 41, 1000])
def test_rows_come_back_in_the_order_of_their_places(
    rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1,000 rows are thrown four times: into buckets of 640 places, of 160, of 40 and of 10.
    monkeypatch.setattr(buckets, "BUCKET_ROWS", 10)
    monkeypatch.setattr(buckets, "MOST_BUCKETS", 4)
    monkeypatch.setattr(buckets, "THROW_ROWS", 16)
    places = np.random.default_rng(rows).permutation(rows)
    schema = pa.schema([("place_is", pa.int64())])
    sizes = []
    with Buckets(tmp_path, schema, rows) as thrown:
        for start in range(0, rows, 7):
            part = places[start : start + 7]
            thrown.add(pa.table([pa.array(part)], schema=schema), part)
        read = []
        for table in thrown.read():
            assert table.schema == schema
            sizes.append(table.num_rows)
            read += table["place_is"].to_pylist()
    assert read == list(range(rows))
    assert max(sizes, default=0) <= 10
    assert list(tmp_path.iterdir()) == []
