"""Which published set a table is, and which of its columns is which.

Decided by names, types and content, never assumed. The sets and their traps are documented by
LAION (https://laion.ai/blog/laion-5b/, laion-400-open-dataset, laion-aesthetics, relaion-5b) and
DataComp (https://github.com/mlfoundations/datacomp). WIDTH and HEIGHT are swapped in LAION-400M
and in the raw laion2B-en, laion2B-multi and laion1B-nolang files; the joined sets are right.
DataComp's sha256 is that of the picture its makers saw, not of what a fetch finds: it becomes
src_sha256, which is where fetch looks for the hash to expect.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from laionkit.core.errors import ConfigError, InputError, did_you_mean
from laionkit.core.schemas import (
    EXTRA_FETCHED_COLUMNS,
    FETCHED_COLUMNS,
    PUBLISHED_COLUMNS,
    RESERVED_COLUMNS,
)

# What laionkit itself computes and names; a published column of such a name becomes src_NAME.
INNER_PREFIX = "_laionkit_"  # of columns that only a run sees
_COMPUTED = frozenset({"clip_similarity", "aesthetic_v1", "aesthetic_v2", "nsfw_b32", "nsfw_l14"})
_RAW = frozenset({"sample_id", "url", "text", "height", "width", "license", "nsfw", "similarity"})
_JOINED = frozenset(
    {"url", "text", "height", "width", "similarity", "hash", "pwatermark", "punsafe"}
)
_FETCHED = frozenset(
    {"key", "status", "width", "height", "original_width", "original_height", "exif", "md5"}
)
# A cosine lies in [-1, 1]; LAION-400M's shifted rows hold values up to 6016 there.
_COSINE_LIMIT = 1.01


@dataclass(frozen=True)
class LaionSet:
    """A published set: the columns (lower case) that tell it and what is special about it."""

    name: str
    required: frozenset[str]
    absent: frozenset[str] = frozenset()
    renames: Mapping[str, str] = field(default_factory=dict)
    swapped: bool = False
    least_aesthetic: float | None = None


# In order of decision: the first whose required columns are there and absent ones are not.
SETS = (
    LaionSet(
        "datacomp",
        frozenset({"uid", "url", "text", "clip_b32_similarity_score"}),
        renames={"original_width": "width_published", "original_height": "height_published"},
    ),
    LaionSet(
        "re-laion",
        _FETCHED | {"url", "error_message", "similarity", "hash", "pwatermark", "punsafe"},
        renames={"original_width": "width_published", "original_height": "height_published"},
    ),
    LaionSet(
        "laion5b-embeddings",
        _FETCHED | {"image_path", "caption", "url", "similarity"},
        renames={"original_width": "width_published", "original_height": "height_published"},
    ),
    LaionSet("laion-coco", frozenset({"url", "text", "top_caption", "all_captions"})),
    LaionSet(
        "improved-aesthetics",
        frozenset({"url", "text", "width", "height", "similarity", "aesthetic_score", "hash"}),
        renames={"aesthetic_score": "aesthetic_v2_published"},
    ),
    LaionSet(
        "laion-aesthetic-v1",
        _JOINED | {"aesthetic"},
        renames={"aesthetic": "aesthetic_v1_published"},
        # laion2B-*-aesthetic holds v1 > 7, laion-art v1 > 8.
        least_aesthetic=7.0,
    ),
    LaionSet("laion-joined", _JOINED, absent=frozenset({"aesthetic", "aesthetic_score"})),
    LaionSet(
        "laion2b-multi", _RAW | {"language"}, absent=frozenset({"hash", "punsafe"}), swapped=True
    ),
    LaionSet("laion-raw", _RAW, absent=frozenset({"hash", "punsafe", "language"}), swapped=True),
)
GENERIC = LaionSet("generic", frozenset())
_BY_NAME = {known.name: known for known in (*SETS, GENERIC)}

# Our column → the names (lower case) that mean it, most telling first.
_ALIASES: dict[str, tuple[str, ...]] = {
    "url": ("url", "image_url", "img_url", "imageurl", "image_link", "link", "uri", "img", "src"),
    "path": ("path", "file_name", "filename", "file", "filepath", "file_path", "image_path"),
    "caption": (
        "caption", "text", "txt", "alt_text", "alttext", "alt", "description", "title", "prompt",
        "label",
    ),
    "language": ("language", "lang"),
    "license": ("license", "licence"),
    "hash": ("hash",),
    "uid": ("uid",),
    "similarity": ("similarity",),
    "punsafe": ("punsafe",),
    "pwatermark": ("pwatermark",),
    "width_published": ("width_published", "original_width", "width"),
    "height_published": ("height_published", "original_height", "height"),
    "aesthetic_v1_published": ("aesthetic_v1_published",),
    "aesthetic_v2_published": ("aesthetic_v2_published", "aesthetic_score_laion_v2"),
    "aesthetic_published": ("aesthetic_published", "aesthetic", "aesthetic_score"),
}  # fmt: skip
_URL = r"^\s*[A-Za-z][A-Za-z0-9+.-]*://[^\s/?#]+"


@dataclass(frozen=True)
class Reading:
    """How one table is read: the set it is, our column → its column, what is repaired.

    `similarity_limit` bounds a believable similarity; rows beyond it are malformed.
    """

    set_name: str
    columns: Mapping[str, str]
    notes: tuple[str, ...] = ()
    similarity_limit: float = 100.0


def detect(
    schema: pa.Schema,
    head: pa.Table,
    where: str,
    *,
    forced: str = "auto",
    url_column: str = "",
    caption_column: str = "",
) -> Reading:
    """Decide how a table is read, from its schema and first rows.

    Raises InputError where no column holds links (or paths), naming those that are there, and
    ConfigError for a set or column name that does not exist.
    """
    if forced != "auto" and forced not in _BY_NAME:
        hint = did_you_mean(forced, _BY_NAME)
        raise ConfigError(f"schema={forced}: no such set{hint}; known: {', '.join(_BY_NAME)}")
    names = list(schema.names)
    known = _BY_NAME[forced] if forced != "auto" else _which_set(names, head)
    _require(known, names, where)
    columns: dict[str, str] = {}
    for ours, named, flag in (
        ("url", url_column, "--url-column"),
        ("caption", caption_column, "--caption-column"),
    ):
        if named:
            if named not in names:
                hint = did_you_mean(named, names)
                raise ConfigError(
                    f"{flag} {named}: {where} has no such column{hint}; it has {', '.join(names)}"
                )
            columns[ours] = named
    _by_names(known, names, columns, schema)
    _by_content(head, columns)
    if "url" not in columns and "path" not in columns:
        raise InputError(
            f"{where} has no column of links; it has {', '.join(names)}: name it with --url-column"
        )
    if "url" in columns and columns.get("path"):
        del columns["path"]
    _carry_through(names, columns)
    return Reading(
        known.name,
        columns,
        tuple(_notes(known, columns, where, names)),
        100.0 if known is GENERIC else _COSINE_LIMIT,
    )


def carried_columns(table: pa.Table) -> dict[str, str]:
    """Our name → its name of each column that came with the link, in a table fetched elsewhere.

    img2dataset's own columns are left out: they mean what they are called. It renames link and
    caption, and drops the published sides, so that the set is told by what else there is.
    """
    own = FETCHED_COLUMNS.keys() | EXTRA_FETCHED_COLUMNS.keys()
    names = [name for name in table.column_names if name not in own]
    known = _which_set([*names, "url", "text", "width", "height"], table)
    columns: dict[str, str] = {}
    _by_names(known, names, columns, table.schema)
    _carry_through(names, columns)
    return columns


def _which_set(names: list[str], head: pa.Table) -> LaionSet:
    lower = {name.lower() for name in names}
    for known in SETS:
        if known.required <= lower and not known.absent & lower and _content_fits(known, head):
            return known
    return GENERIC


def _content_fits(known: LaionSet, head: pa.Table) -> bool:
    if known.least_aesthetic is None:
        return True
    column = next(name for name in head.column_names if name.lower() == "aesthetic")
    if not pa.types.is_floating(head[column].type):
        return False
    least = pc.min(head[column]).as_py()
    return least is not None and least >= known.least_aesthetic


def _require(known: LaionSet, names: list[str], where: str) -> None:
    missing = known.required - {name.lower() for name in names}
    if missing:
        raise InputError(
            f"{where} is no {known.name}: it lacks {', '.join(sorted(missing))}; "
            f"it has {', '.join(names)}"
        )


def _by_names(
    known: LaionSet, names: list[str], columns: dict[str, str], schema: pa.Schema
) -> None:
    by_lower: dict[str, str] = {}
    for name in names:
        by_lower.setdefault(name.lower(), name)
    taken = set(columns.values())
    wanted = {ours: (theirs,) for theirs, ours in known.renames.items()}
    for ours, aliases in {**_ALIASES, **wanted}.items():
        for alias in aliases:
            found = by_lower.get(alias)
            if found is None or ours in columns or found in taken:
                continue
            if _type_fits(ours, found, schema):
                columns[ours] = found
                taken.add(found)
    width, height = columns.get("width_published"), columns.get("height_published")
    if known.swapped and width and height:
        columns["width_published"], columns["height_published"] = height, width


def _type_fits(ours: str, name: str, schema: pa.Schema) -> bool:
    kind = schema.field(name).type
    if ours in ("hash", "width_published", "height_published"):
        return bool(_is_text(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind))
    if PUBLISHED_COLUMNS[ours] == pa.string():
        unlabelled = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
        return bool(_is_text(kind) or unlabelled or ours == "uid" or pa.types.is_null(kind))
    return not (pa.types.is_nested(kind) or pa.types.is_binary(kind))


def _by_content(head: pa.Table, columns: dict[str, str]) -> None:
    """Find links, then captions, by what the first rows hold, where no name told them."""
    free = [
        name
        for name in head.column_names
        if name not in columns.values() and _is_text(head.schema.field(name).type)
    ]
    if "url" not in columns and "path" not in columns:
        links = [name for name in free if _share(head[name], _URL) > 0.5]
        if len(links) == 1:
            columns["url"] = links[0]
            free.remove(links[0])
    if "caption" not in columns and "url" in columns:
        texts = [name for name in free if _share(head[name], r"\S\s+\S") > 0.5]
        if len(texts) == 1:
            columns["caption"] = texts[0]


def _share(column: pa.ChunkedArray, pattern: str) -> float:
    texts = column.cast(pa.string())
    matches = pc.sum(pc.match_substring_regex(texts, pattern)).as_py() or 0
    return float(matches) / max(1, len(column))


def _carry_through(names: list[str], columns: dict[str, str]) -> None:
    """Give every other column a name that collides, case-insensitively, with none of ours."""
    reserved = RESERVED_COLUMNS | _COMPUTED | set(columns)
    taken = {name.lower() for name in columns}
    used = set(columns.values())
    for number, name in enumerate(names, 1):
        if name in used:
            continue
        lower = name.lower()
        ours = lower in reserved or lower.startswith(INNER_PREFIX)
        out = f"src_{name}" if ours else name or f"column_{number}"
        while out.lower() in taken:
            out += "_2"
        taken.add(out.lower())
        columns[out] = name


def _notes(known: LaionSet, columns: Mapping[str, str], where: str, names: list[str]) -> list[str]:
    notes = []
    if known.swapped:
        notes.append(f"{known.name}: WIDTH and HEIGHT are swapped in this set; swapped back")
    if "caption" not in columns:
        notes.append(
            f"{where}: no column of captions among {', '.join(names)}: captions are null "
            "(name it with --caption-column)"
        )
    if any(name.lower() == "nsfw" for name in names) and known.swapped:
        notes.append(f"{known.name}: its NSFW string is unreliable; filter by punsafe instead")
    return notes


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return any(
        is_kind(kind)
        for is_kind in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    )
