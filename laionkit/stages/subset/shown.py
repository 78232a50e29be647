"""The pictures that a report shows: a few from each band of a score, safe ones only."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from laionkit.ops.images import PictureError, decode
from laionkit.ops.predicates import quote_name
from laionkit.ops.presets import PUNSAFE
from laionkit.ops.resize import Resize, encode, resize
from laionkit.stages.subset.kept import KeptRows
from laionkit.stages.subset.pictures import Pictures
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


def pick_bands(
    selection: Selection, kept: KeptRows, by: str, caption: str
) -> tuple[list[Band], str]:
    """Pictures from each quarter of the score `by`, the lowest first; what to say of them."""
    table = selection.table
    safety = [name for name in PUNSAFE if name in table.columns]
    if not safety:
        return [], "No pictures are shown: no safety score (punsafe, nsfw_l14) was measured."
    if not by:
        return [], "No pictures are shown: there is no score to show them by."
    names, name = list(map(quote_name, safety)), quote_name(by)
    safe = f"greatest({', '.join(names)})"  # null only where all of them are
    cuts = range(1, BANDS)
    band = " + ".join(f"(v > cut[{i}])::INTEGER" for i in cuts)
    found: list[Any] = kept.execute(
        f"WITH shown AS (SELECT key, {name} AS v FROM kept WHERE {safe} < {SHOWN_PUNSAFE} "
        f"AND {name} IS NOT NULL), "
        f"cuts AS (SELECT quantile_disc(v, {[i / BANDS for i in cuts]}) AS cut FROM shown) "
        f"SELECT min(v), max(v), arg_min(key, hash(key), {PER_BAND}) FROM shown, cuts "
        f"GROUP BY {band} ORDER BY 1"
    ).fetchall()
    keys = [key for *_, some in found for key in some]
    thumbnails = {each[0]: each for each in _thumbnails(selection, kept, keys, caption)}
    bands = [
        Band(f"{by} {low:.3g} to {high:.3g}", [thumbnails[k] for k in some if k in thumbnails])
        for low, high, some in found
    ]
    below = " and ".join(safety)
    return bands, f"Shown are kept pictures with {below} below {SHOWN_PUNSAFE} only."


def _thumbnails(
    selection: Selection, kept: KeptRows, keys: list[str], caption: str
) -> Iterator[tuple[str, str, bytes]]:
    """Key, caption and a small JPEG of each; broken pictures are left out."""
    table = selection.table
    said = f"coalesce({quote_name(caption)}::VARCHAR, '')" if caption in table.columns else "''"
    some = "WHERE list_contains(?, key)"
    texts = dict(kept.execute(f"SELECT key, {said} FROM kept {some}", [keys]).fetchall())
    found = table.execute(
        f"SELECT key, shard, image_offset, image_size FROM places {some}", [keys]
    ).fetchall()
    with contextlib.closing(Pictures(table.folder)) as pictures:
        for key, shard, offset, size in found:
            with contextlib.suppress(PictureError):
                data = pictures.read(shard, offset, size)
                picture = decode(data, shrink_to=_THUMBNAIL.scaled)
                original = picture.original_width, picture.original_height
                small = resize(picture.rgb, _THUMBNAIL, original)
                yield key, texts[key], encode(small, "jpg", 80)
