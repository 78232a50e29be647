"""query: find images by text, image or vector, filtered by SQL inside the search."""

from pathlib import Path
from typing import TYPE_CHECKING

from numpy.typing import ArrayLike
from pydantic import Field

from laionkit.core.config import Effort, StageConfig
from laionkit.core.errors import ConfigError, InputError
from laionkit.core.runner import Runner

if TYPE_CHECKING:
    from laionkit.search.hits import Hits
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
    exact: bool = False
    """Score every matching row, however long it takes."""
    as_name: str | None = None
    """Short name of the model whose index is searched; none: the only one there is."""
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
    """Find the k rows nearest to a text, an image or a vector."""
    searcher = open_searcher(dataset, config.as_name, runner)
    return answer(searcher, config, text, image=image, vector=vector)


def open_searcher(
    dataset: str, as_name: str | None = None, runner: Runner = Runner()
) -> "Searcher":
    """Open a dataset's index once, for several queries (`answer`)."""
    from laionkit.search.searcher import Searcher

    return Searcher(dataset, as_name, device=runner.device)


def answer(
    searcher: "Searcher",
    config: QueryConfig,
    text: str | None = None,
    *,
    image: "Image | None" = None,
    vector: ArrayLike | None = None,
) -> "Hits":
    """Answer one query of an open Searcher, and draw its sheet where one is asked for."""
    if config.sheet is not None:
        _check_sheet(config.sheet)
    hits = searcher.search(
        text,
        image=image,
        vector=vector,
        k=config.k,
        where=config.where,
        threshold=config.threshold,
        exact=config.exact,
    )
    if config.sheet is not None:
        _draw(searcher, hits, text or "Nearest pictures", config)
    return hits


def _check_sheet(path: str) -> None:
    if Path(path).suffix.lower() != ".png":
        raise ConfigError(f"sheet={path!r}: a contact sheet is a PNG file, such as hits.png")
    if not Path(path).absolute().parent.is_dir():
        raise InputError(f"sheet={path!r}: there is no folder {Path(path).absolute().parent}")


def _draw(searcher: "Searcher", hits: "Hits", title: str, config: QueryConfig) -> None:
    import cv2

    from laionkit.ops.sheet import Tile, contact_sheet
    from laionkit.search.pictures import load_pictures

    shown = hits.head(SHEET_HITS)
    pictures = load_pictures(searcher.dataset, shown["shard"].tolist(), shown["key"].tolist())
    tiles = [
        Tile(picture, f"{match:.3f}", caption or "")
        for picture, match, caption in zip(pictures, shown["match"], shown["caption"], strict=True)
    ]
    assert hits.plan is not None
    note = f"{hits.plan.matches:,} of {hits.plan.rows:,} pictures searched"
    note += f", where {config.where}" if config.where else ""
    sheet = contact_sheet(tiles, title, note)
    done, data = cv2.imencode(".png", sheet[:, :, ::-1])
    assert done
    Path(str(config.sheet)).write_bytes(data.tobytes())
