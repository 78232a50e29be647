"""query: find images by text, image or vector, filtered by SQL inside the search."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import ArrayLike
from pydantic import Field

from laionkit.core.config import Effort, StageConfig
from laionkit.core.errors import ConfigError, InputError
from laionkit.core.runner import Runner

if TYPE_CHECKING:
    from laionkit.search.hits import Hits
    from laionkit.search.planner import Found
    from laionkit.search.queries import Image
    from laionkit.search.searcher import Searcher

SHEET_HITS = 100


class QueryConfig(StageConfig):
    """What to look for is TEXT, image or vector; this says how many, and which."""

    k: int = Field(10, ge=1, le=100_000)
    """Count of hits. There are fewer only where fewer rows match."""
    where: str | None = None
    """SQL over the dataset's columns that every hit meets, such as aesthetic_v2 > 6."""
    threshold: float | None = Field(None, ge=-1, le=1)
    """Least cosine of a hit; none: no limit. For CLIP, 0.2 to 0.3 separates likely from not."""
    plus: tuple[str, ...] = ()
    """What hits should be like too, as WEIGHT:TEXT; the query itself has weight 1. Also
    WEIGHT:image=FILE or URL, WEIGHT:key=KEY and WEIGHT:vector=FILE.npy."""
    minus: tuple[str, ...] = ()
    """What hits should not be like, in the same form; 0.5:cartoon is a gentle push away."""
    boost: tuple[str, ...] = ()
    """Scores that rank hits higher, as COLUMN=WEIGHT (aesthetic_v2=0.3) or HEADFILE=WEIGHT: the
    head's unit direction is added to the query with that weight. Affine heads only."""
    like: str | None = None
    """Key of a sample to find others like."""
    dedup: float | None = Field(None, ge=-1, le=1)
    """Cosine from which a hit counts as another's duplicate and makes room for the next;
    none: all are shown. 0.95 catches resized and recompressed copies."""
    page: int | None = Field(None, ge=1)
    """Which k hits, 1 the best; none: the best k, found with the least work."""
    exact: bool = False
    """Score every matching row, however long it takes."""
    latency_ms: float = Field(50.0, gt=0)
    """Milliseconds that a search of lists may score rows for: where that ends it before it has
    reached the recall that the index was built for, the plan says so. Scans are never cut."""
    as_name: str | None = None
    """Short name of the model whose index is searched; none: the only one there is."""
    allow_private: bool = False
    """Take a query image from a private address too, such as a server of your own network."""
    sheet: Effort[str | None] = None
    """PNG file to draw a contact sheet of the first 100 hits into; none: no sheet."""


def query(
    dataset: str,
    text: str | None = None,
    config: QueryConfig = QueryConfig(),
    *,
    image: "Image | None" = None,
    vector: ArrayLike | None = None,
    runner: Runner = Runner(),
) -> "Hits":
    """Find the k rows nearest to a text, an image (path, URL or bytes), a vector, or a blend."""
    from laionkit.search.hits import make_hits

    searcher = open_searcher(dataset, config.as_name, runner, config.allow_private)
    return make_hits(answer(searcher, config, text, image=image, vector=vector))


def open_searcher(
    dataset: str,
    as_name: str | None = None,
    runner: Runner = Runner(),
    allow_private: bool = False,
) -> "Searcher":
    """Open a dataset's index once, for several queries (`answer`)."""
    from laionkit.search.searcher import Searcher

    return Searcher(dataset, as_name, device=runner.device, allow_private=allow_private)


def answer(
    searcher: "Searcher",
    config: QueryConfig,
    text: str | None = None,
    *,
    image: "Image | None" = None,
    vector: ArrayLike | None = None,
) -> "Found":
    """Answer one query of an open Searcher, and draw its sheet where one is asked for."""
    if config.sheet is not None:
        _check_sheet(config.sheet)
    found = searcher.find(text, image=image, vector=vector, **_settings(config))
    if config.sheet is not None:
        words = ", ".join(filter(None, [text, *(f"+ {w}" for w in config.plus)]))
        _draw(searcher, found, words or "Nearest pictures", config)
    return found


def _settings(config: QueryConfig) -> dict[str, Any]:
    """What a Searcher calls by the same names."""
    names = QueryConfig.model_fields.keys() - {"as_name", "allow_private", "sheet"}
    return {name: getattr(config, name) for name in names}


def _check_sheet(path: str) -> None:
    if Path(path).suffix.lower() != ".png":
        raise ConfigError(f"sheet={path!r}: a contact sheet is a PNG file, such as hits.png")
    if not Path(path).absolute().parent.is_dir():
        raise InputError(f"sheet={path!r}: there is no folder {Path(path).absolute().parent}")


def _draw(searcher: "Searcher", found: "Found", title: str, config: QueryConfig) -> None:
    import cv2

    from laionkit.ops.sheet import Tile, contact_sheet
    from laionkit.search.pictures import load_pictures

    shown = found.table.slice(0, SHEET_HITS).to_pydict()
    pictures = load_pictures(searcher.dataset, shown["shard"], shown["key"])
    tiles = [
        Tile(picture, f"{match:.3f}", caption or "")
        for picture, match, caption in zip(pictures, shown["match"], shown["caption"], strict=True)
    ]
    note = f"{found.plan.matches:,} of {found.plan.rows:,} pictures searched"
    note += f", where {config.where}" if config.where else ""
    sheet = contact_sheet(tiles, title, note)
    done, data = cv2.imencode(".png", sheet[:, :, ::-1])
    assert done
    Path(str(config.sheet)).write_bytes(data.tobytes())


def query_file(
    dataset: str,
    queries: str,
    out: str,
    config: QueryConfig = QueryConfig(),
    *,
    runner: Runner = Runner(),
) -> int:
    """Answer every query of a file (.txt lines, .parquet texts, .npy vectors) into a parquet.

    Returns how many hits were written.
    """
    from laionkit.search.batch import read_queries, search_many

    if Path(out).suffix.lower() != ".parquet":
        raise ConfigError(f"out={out!r}: hits of many queries go to a .parquet file")
    if not Path(out).absolute().parent.is_dir():
        raise InputError(f"out={out!r}: there is no folder {Path(out).absolute().parent}")
    if config.sheet is not None:
        raise ConfigError(f"sheet={config.sheet!r}: a sheet is drawn of the hits of one query")
    wanted = read_queries(queries)
    searcher = open_searcher(dataset, config.as_name, runner, config.allow_private)
    return search_many(searcher, wanted, _settings(config), out)
