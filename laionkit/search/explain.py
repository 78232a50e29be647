"""Say why an index is laid out as it is: the choice, its bytes, its recall, the alternatives.

Times are of one core, from the costs that the planner goes by; recall is 1 where every row is
scanned, and elsewhere what was measured (``--evaluate``), or what probes are tuned for.
"""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from laionkit.core.files import Folder
from laionkit.core.schemas import MEASURED
from laionkit.search.build import Shape, code_bytes, default_lists
from laionkit.search.layout import ROWS, Pointer, SegmentInfo, segment_file
from laionkit.search.planner import probe_ms, scan_ms
from laionkit.search.reach import K, Reach
from laionkit.search.searcher import Searcher
from laionkit.search.segment import Segment

_EXACT = (1.0, "is exact")
_ROW_BYTES = 120  # key, caption, url, shard and row of LAION's rows, on average


class Option(BaseModel):
    """One way to lay an index out. `milliseconds`: an unfiltered text query for ten hits."""

    model_config = ConfigDict(frozen=True)

    name: str
    lists: int
    chosen: bool
    vector_bytes: int
    code_bytes: int
    milliseconds: float
    recall: float
    recall_is: str
    build_mib: int


class Explanation(BaseModel):
    """What an index of so many rows is, why, and what else it could be.

    `segments` and `measured` (cells of an evaluation) are those of the index that is there.
    """

    model_config = ConfigDict(frozen=True)

    model: str
    rows: int
    dim: int
    why: str
    options: tuple[Option, ...]
    row_bytes: int
    segments: tuple[dict[str, Any], ...] = ()
    measured: tuple[dict[str, Any], ...] = ()


def explain_options(
    rows: int, dim: int, shape: Shape, reach: Reach, measured: Sequence[dict[str, Any]]
) -> tuple[Option, ...]:
    """The layout chosen for `rows` vectors of `dim`, then the others."""
    found = _worst(measured)
    options = []
    some, chosen = shape.lists or min(rows, default_lists(rows)), (shape.lists, shape.code_bits)
    for lists, bits in dict.fromkeys([chosen, (0, shape.code_bits), (some, 8), (some, 4)]):
        known = (shape.recall, "is what probes are tuned for") if lists else _EXACT
        if lists and (lists, bits) == chosen and found is not None:
            known = (found, "as measured under the worst filter")
        options.append(
            Option(
                name=f"{lists:,} lists, {bits}-bit codes" if lists else "scan",
                lists=lists,
                chosen=(lists, bits) == chosen,
                vector_bytes=2 * dim * rows,
                code_bytes=code_bytes(rows, dim, bits) if lists else 0,
                milliseconds=round(_milliseconds(rows, dim, lists, bits, reach), 2),
                recall=known[0],
                recall_is=known[1],
                build_mib=shape.memory_mib,
            )
        )
    return tuple(options)


def is_laid_out_so(info: SegmentInfo, shape: Shape) -> bool:
    """Whether what was measured of a segment holds of one that is laid out anew."""
    if not info.lists or not shape.lists:
        return info.lists == shape.lists
    return (info.code_bits, info.reach.target) == (shape.code_bits, shape.recall)


def _milliseconds(rows: int, dim: int, lists: int, bits: int, reach: Reach) -> float:
    """What the planner's costs say that a query takes."""
    scan = scan_ms(rows, rows, dim)
    scored = round(reach.scored_of(1.0, K) * rows)
    return min(scan, probe_ms(rows, rows, scored, lists, dim, bits)) if lists else scan


def _worst(measured: Sequence[dict[str, Any]]) -> float | None:
    """The least recall of text queries that was measured, of image queries where there are none."""
    texts = [cell["recall"] for cell in measured if cell["queries"] == "texts"]
    return min(texts or [cell["recall"] for cell in measured], default=None)


def row_bytes(folder: Folder, pointer: Pointer | None, rows: int) -> int:
    """Bytes of what an index knows of its rows: as they are, or as LAION's usually are."""
    if pointer is None:
        return _ROW_BYTES * rows
    return sum(folder.size(segment_file(info.name, ROWS)) for info in pointer.segments)


def read_measured(folder: Folder) -> tuple[dict[str, Any], ...]:
    """The cells of an index's last evaluation; none where it was never evaluated."""
    return tuple(folder.read_json(MEASURED)["cells"]) if folder.exists(MEASURED) else ()


def describe_index(searcher: Searcher) -> dict[str, object]:
    """What an open index is: its segments, their bytes, what a probe goes by."""
    segments = []
    for segment in searcher.segments:
        info = segment.info
        vectors = 2 * searcher.dim * info.rows
        choice = {
            "segment": info.name,
            "rows": info.rows,
            "dead": info.dead,
            "kind": _lists_kind(info.code_bits) if info.lists else "exact scan",
            "lists": info.lists,
            "vector_bytes": vectors,
            "code_bytes": info.lists and code_bytes(info.rows, searcher.dim, info.code_bits),
        }
        if isinstance(segment, Segment) and info.lists:
            choice["learnt_from"] = info.reach.learnt_from
            at = (f"{100 * s:g} %" for s in info.reach.selectivities)
            choice["share_of_matches_scored"] = dict(zip(at, info.reach.scored, strict=True))
        segments.append(choice)
    return {"rows": searcher.count, "dimension": searcher.dim, "segments": segments}


def _lists_kind(code_bits: int) -> str:
    return f"lists, {code_bits}-bit codes, re-ranked as float16"
