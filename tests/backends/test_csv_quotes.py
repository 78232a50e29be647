"""Quotes of a csv file that nobody closed are found, however its bytes come."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laionkit.backends import csv_quotes
from laionkit.backends.csv_quotes import QuoteCheck
from laionkit.core.errors import InputError

CELL = st.text(alphabet='ab",\n', max_size=8)


def read(text: str, step: int) -> bytes:
    check, found = QuoteCheck(io.BytesIO(text.encode()), "links.csv", ","), b""
    while data := check.read(step):
        found += data
    return found


@given(rows=st.lists(st.lists(CELL, min_size=1, max_size=3)), step=st.integers(1, 9),
       bare=st.booleans())  # fmt: skip
def test_what_a_csv_writer_writes_passes_as_it_is(rows, step, bare):
    sink = io.StringIO()
    csv.writer(sink, quoting=csv.QUOTE_MINIMAL if bare else csv.QUOTE_ALL).writerows(rows)
    assert read(sink.getvalue(), step) == sink.getvalue().encode()


@given(before=st.lists(CELL, max_size=5), after=st.lists(st.text(alphabet="ab,\n", max_size=8)),
       step=st.integers(1, 9))  # fmt: skip
def test_a_quote_that_nobody_closes_is_told_with_its_line(before, after, step):
    sink = io.StringIO()
    csv.writer(sink, lineterminator="\n").writerows([cell] for cell in before)
    text = sink.getvalue()
    line = text.count("\n") + 1
    with pytest.raises(InputError, match=rf"opened in line {line} is"):
        read(text + '"' + "".join(after), step)


def test_a_cell_without_end_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(csv_quotes, "MAX_CELL_BYTES", 100)
    file = io.BytesIO(b'url\n"' + b"x" * 1000 + b'"')
    with pytest.raises(InputError, match="line 2"):
        QuoteCheck(file, "links.csv", ",").read(500)
