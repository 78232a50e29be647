"""The pictures that a report shows: a few from each band of a score, safe ones only."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from laionkit.ops.images import PictureError, decode
from laionkit.ops.predicates import quote_name
from laionkit.ops.presets import PUNSAFE
from laionkit.ops.resize import Resize, encode, resize
from laionkit.stages.subset.pictures import PLACE_COLUMNS, Pictures
from laionkit.stages.subset.selection import Selection

BANDS = 4
PER_BAND = 8
# What LAION's own search page showed; anything above it, or never measured, is not drawn.
SHOWN_PUNSAFE = 0.1
_THUMBNAIL = Resize("keep_ratio_largest", 112)


@dataclass(frozen=True)
class Band:
    """A quarter of what is kept, by a score: key, caption and a small JPEG of some."""

    title: str
    pictures: Sequence[tuple[str, str, bytes]]


def pick_bands(selection: Selection, by: str, caption: str) -> tuple[list[Band], str]:
    """Pictures from each quarter of the score `by`, the lowest first; what to say of them."""
    table = selection.table
    safety = [name for name in PUNSAFE if name in table.columns]
    if not safety:
        return [], "No pictures are shown: no safety score (punsafe, nsfw_l14) was measured."
    if not by:
        return [], "No pictures are shown: there is no score to show them by."
    names, name = list(map(quote_name, safety)), quote_name(by)
    safe = f"greatest({', '.join(names)})"  # null only where all of them are
    found: list[Any] = table.execute(
        f"SELECT min(v), max(v), arg_min(key, chance, {PER_BAND}) FROM ("
        f"SELECT key, {name} AS v, md5(key) AS chance, ntile({BANDS}) OVER (ORDER BY {name}, key) "
        f"AS band FROM ({selection.left(dict.fromkeys(['key', by, *safety]))}) "
        f"WHERE {safe} < {SHOWN_PUNSAFE} AND {name} IS NOT NULL) GROUP BY band ORDER BY band"
    ).fetchall()
    keys = [key for *_, some in found for key in some]
    thumbnails = {shown[0]: shown for shown in _thumbnails(selection, keys, caption)}
    bands = [
        Band(f"{by} {low:.3g} to {high:.3g}", [thumbnails[k] for k in some if k in thumbnails])
        for low, high, some in found
    ]
    below = " and ".join(safety)
    return bands, f"Shown are kept pictures with {below} below {SHOWN_PUNSAFE} only."


def _thumbnails(
    selection: Selection, keys: Sequence[str], caption: str
) -> Iterator[tuple[str, str, bytes]]:
    """Key, caption and a small JPEG of each; broken pictures are left out."""
    table, places = selection.table, ", ".join(f"p.{name}" for name in PLACE_COLUMNS)
    said = f"coalesce(s.{quote_name(caption)}::VARCHAR, '')" if caption in table.columns else "''"
    columns = dict.fromkeys(["key", *({caption} & set(table.columns))])
    found = table.execute(
        f"SELECT j.key, {said}, j.shard, {places} FROM places p JOIN judged j ON j.key = p.key "
        f"JOIN ({table.select(columns)}) s ON s.key = p.key WHERE list_contains(?, p.key)",
        [list(keys)],
    ).fetchall()
    with contextlib.closing(Pictures(table.folder)) as pictures:
        for key, text, shard, _, offset, size in found:
            with contextlib.suppress(PictureError):
                data = pictures.read(shard, offset, size)
                picture = decode(data, shrink_to=_THUMBNAIL.scaled)
                original = picture.original_width, picture.original_height
                small = resize(picture.rgb, _THUMBNAIL, original)
                yield key, text, encode(small, "jpg", 80)
