"""Finds the quote of a csv file that nobody closed, which would swallow the rows after it.

A parser takes all lines up to the next quote for one cell, and says nothing. So what passes to it
is looked at: a cell of several lines has to end where its quote ends, and before the file does.
"""

import io
from typing import BinaryIO, NamedTuple

import numpy as np

from laionkit.core.errors import InputError

# The longest text known of is of 61,192 characters (LAION-400M); arrow takes a block at most.
MAX_CELL_BYTES = 1 << 20
_QUOTE, _LINE_END = ord('"'), ord("\n")


class QuoteCheck(io.RawIOBase):
    """A csv file on its way to a parser; reading raises InputError at a quote left open."""

    def __init__(self, file: BinaryIO, name: str, delimiter: str) -> None:
        """Pass on `file`, which is called `name` in errors."""
        self._file, self._file_name = file, name
        self._ends = np.frombuffer(delimiter.encode() + b'\r\n"', np.uint8)
        self._line, self._offset = 1, 0  # of the first byte that is looked at next
        self._opened: _Place | None = None  # where the present cell was opened, if in quotes
        self._before, self._held = b"\n", b""

    def readable(self) -> bool:
        """It is."""
        return True

    def read(self, size: int = -1) -> bytes:
        """Bytes of the file, as they are."""
        data = self._file.read(size)
        self._look(data)
        return data

    def _look(self, data: bytes) -> None:
        """Follow the quotes of the next bytes; those at their end wait for what comes after."""
        at_end = not data
        data, self._held = self._held + data, b""
        if not at_end:
            data, whole = data.rstrip(b'"'), data
            self._held = whole[len(data) :]
        text = np.frombuffer(self._before + data + (self._held or b"\n")[:1], np.uint8)
        places = 1 + np.flatnonzero(text[1:-1] == _QUOTE)
        if len(places) and not self._follow_regular(text, places):
            self._follow_each(text, places)
        self._line += int(np.count_nonzero(text[1:-1] == _LINE_END))
        self._offset += len(data)
        self._before = text[-2:-1].tobytes()
        if self._opened and (at_end or self._offset - self._opened.offset > MAX_CELL_BYTES):
            raise self._left_open(self._opened)

    def _follow_regular(self, text: np.ndarray, places: np.ndarray) -> bool:
        """Follow quotes that open, close and double in turn, all at once; False where some don't.

        A doubled quote reads as one that closes and one that opens again.
        """
        inside = self._opened is not None
        opening, closing = places[int(inside) :: 2], places[int(not inside) :: 2]
        beside = np.concatenate([text[opening - 1], text[closing + 1]])
        if not np.isin(beside, self._ends).all():
            return False
        if (len(places) + inside) % 2 == 0:
            self._opened = None
        elif len(first := opening[text[opening - 1] != _QUOTE]):
            (self._opened,) = self._places(text, first[-1:])
        return True

    def _follow_each(self, text: np.ndarray, places: np.ndarray) -> None:
        """Follow quotes one by one: some stand within a cell, or have text after them."""
        doubles = text[places + 1] == _QUOTE
        may_close = np.isin(text[places + 1], self._ends)
        may_open = np.isin(text[places - 1], self._ends) & (text[places - 1] != _QUOTE)
        told = zip(doubles.tolist(), may_close.tolist(), may_open.tolist(), strict=True)
        was_doubled = False
        for (double, closes, opens), place in zip(told, self._places(text, places), strict=True):
            if was_doubled:
                was_doubled = False
            elif self._opened is None:
                self._opened = place if opens else None
            elif double:
                was_doubled = True
            elif not closes and place.line > self._opened.line:
                raise self._left_open(self._opened)
            else:
                self._opened = None

    def _places(self, text: np.ndarray, at: np.ndarray) -> list["_Place"]:
        line_ends = 1 + np.flatnonzero(text[1:-1] == _LINE_END)
        lines = self._line + np.searchsorted(line_ends, at)
        offsets = self._offset + at - 1
        return list(map(_Place, lines.tolist(), offsets.tolist()))

    def _left_open(self, opened: "_Place") -> InputError:
        return InputError(
            f"{self._file_name}: the quote opened in line {opened.line} is not closed where its "
            'cell ends: close it, or double it ("") where it belongs to the text'
        )


class _Place(NamedTuple):
    line: int
    offset: int
