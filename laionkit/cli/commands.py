"""One thin function per command: flags in, a stage's function, its report out."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from laionkit.cli import show
from laionkit.cli.options import HowToRun
from laionkit.core.errors import ConfigError, LaionkitError, StageFailed
from laionkit.core.status import status as dataset_status
from laionkit.core.table import columns as dataset_columns
from laionkit.recipe import load_recipe
from laionkit.recipe import run as run_recipe
from laionkit.stages.adopt import AdoptConfig
from laionkit.stages.adopt import adopt as adopt_stage
from laionkit.stages.embed import EmbedConfig
from laionkit.stages.embed import embed as embed_stage
from laionkit.stages.fetch import FetchConfig
from laionkit.stages.fetch import fetch as fetch_stage
from laionkit.stages.head_fit import HeadFitConfig, fit_head
from laionkit.stages.index import IndexConfig
from laionkit.stages.index import index as index_stage
from laionkit.stages.metadata import MetadataConfig
from laionkit.stages.metadata import metadata as metadata_stage
from laionkit.stages.query import QueryConfig, answer, open_searcher
from laionkit.stages.query import query as query_stage
from laionkit.stages.score import ScoreConfig
from laionkit.stages.score import score as score_stage
from laionkit.stages.subset import SubsetConfig
from laionkit.stages.subset import subset as subset_stage
from laionkit.stages.subset.manifest import verify as verify_subset

flat = Parameter(name="*")


def metadata(
    *paths: str,
    config: Annotated[MetadataConfig, flat] = MetadataConfig(),
    how: HowToRun = HowToRun(),
) -> None:
    """Read link tables or a folder of pictures into a clean work list.

    laionkit metadata links.parquet my-set
    laionkit metadata hf://datasets/laion/laion2B-en-aesthetic my-set
    laionkit metadata ~/Pictures album

    Parameters
    ----------
    paths: SOURCE… DATASET: what to read, then the dataset's folder.
    """
    if len(paths) < 2:
        raise ConfigError("give SOURCE… DATASET, such as: laionkit metadata links.parquet my-set")
    *sources, dataset = paths
    show.report(metadata_stage(sources, dataset, config, runner=how.runner()), how.json)


def fetch(
    dataset: str,
    /,
    *,
    config: Annotated[FetchConfig, flat] = FetchConfig(),
    how: HowToRun = HowToRun(),
) -> None:
    """Download, check and resize the images of DATASET into webdataset shards.

    laionkit fetch my-set --image-size 384
    laionkit fetch my-set --part 1/4        (on the first of four machines)
    """
    show.report(fetch_stage(dataset, config, runner=how.runner()), how.json)


def adopt(
    folder: str,
    dataset: str,
    /,
    *,
    config: Annotated[AdoptConfig, flat] = AdoptConfig(),
    how: HowToRun = HowToRun(),
) -> None:
    """Register existing shards or embeddings of FOLDER in DATASET, in place and read-only.

    laionkit adopt ../laion400m-shards my-set
    laionkit adopt ../clip-retrieval-run/embeddings my-set --model ViT-B-32-quickgelu/openai
    """
    show.report(adopt_stage(folder, dataset, config, runner=how.runner()), how.json)


def embed(
    dataset: str,
    /,
    *,
    config: Annotated[EmbedConfig, flat] = EmbedConfig(),
    how: HowToRun = HowToRun(),
) -> None:
    """Compute CLIP vectors of DATASET's images and captions, and scores on the way.

    laionkit embed my-set --model ViT-L-14-quickgelu/openai --heads aesthetic-v2
    """
    show.report(embed_stage(dataset, config, runner=how.runner()), how.json)


def head_fit(
    ratings: str,
    dataset: str,
    /,
    *,
    config: Annotated[HeadFitConfig, flat],
    how: HowToRun = HowToRun(),
) -> None:
    """Fit a linear head on RATINGS (a table with key, url or hash, and rating) of DATASET.

    laionkit head fit ratings.csv my-set -o heads/my-taste
    """
    show.report(fit_head(ratings, dataset, config, runner=how.runner()), how.json)


def score(
    dataset: str,
    /,
    *,
    config: Annotated[ScoreConfig, flat] = ScoreConfig(),
    how: HowToRun = HowToRun(),
) -> None:
    """Add score columns to DATASET from stored vectors alone: no images, no CLIP.

    laionkit score my-set --heads aesthetic-v1,aesthetic-v2
    """
    show.report(score_stage(dataset, config, runner=how.runner()), how.json)


def index(
    dataset: str,
    /,
    *,
    config: Annotated[IndexConfig, flat] = IndexConfig(),
    how: HowToRun = HowToRun(),
) -> None:
    """Build DATASET's search index, or add what is new to it."""
    show.report(index_stage(dataset, config, runner=how.runner()), how.json)


def query(
    dataset: str,
    text: str | None = None,
    /,
    *,
    image: str | None = None,
    config: Annotated[QueryConfig, flat] = QueryConfig(),
    how: HowToRun = HowToRun(),
) -> None:
    """Find images of DATASET by TEXT or --image, filtered by SQL. Without either: a prompt.

    laionkit query my-set "a red fox in snow" --where "width >= 512" -k 20
    laionkit query my-set --image fox.jpg --sheet hits.png

    Parameters
    ----------
    image: A picture to search by: a path.
    """
    picture = Path(image) if image is not None else None
    if text is None and picture is None and sys.stdin.isatty():
        _prompt(dataset, config, how)
        return
    hits = query_stage(dataset, text, config, image=picture, runner=how.runner())
    if how.json:
        show.as_json(hits.as_json())
    else:
        show.hits(hits)


def _prompt(dataset: str, config: QueryConfig, how: HowToRun) -> None:
    """Answer one text a line until the input ends."""
    searcher = open_searcher(dataset, config.as_name, how.runner())
    show.console.print("A text a line; an empty line ends.", style="dim")
    while text := show.console.input("[bold]query>[/bold] ").strip():
        try:
            show.hits(answer(searcher, config, text))
        except LaionkitError as error:
            show.console.print(str(error), style="red", markup=False)


def subset(
    dataset: str,
    /,
    *,
    config: Annotated[SubsetConfig, flat],
    how: HowToRun = HowToRun(),
) -> None:
    """Write a filtered training subset of DATASET, with a reason for every drop.

    laionkit subset my-set --name best --where "aesthetic_v2 >= 6 AND punsafe < 0.1"
    laionkit subset my-set --name sd --preset sd-v2 --as parquet
    """
    show.report(subset_stage(dataset, config, runner=how.runner()), how.json)


def run(
    recipe: str,
    dataset: str,
    *sources: str,
    set_: Annotated[tuple[str, ...], Parameter(name="--set")] = (),
    how: HowToRun = HowToRun(),
) -> None:
    """Run RECIPE, a YAML file or the name of a shipped one, on DATASET.

    laionkit run laion-aesthetics my-set links.parquet -s fetch.image_size=384

    Parameters
    ----------
    sources: What metadata reads, where the recipe does not say.
    set_: stage.key=value, over what the recipe says; may be given many times.
    """
    loaded = load_recipe(recipe, dataset, set_)
    reports = run_recipe(
        loaded,
        dataset,
        sources=sources,
        runner=how.runner(),
        on_report=lambda report: None if how.json else show.report(report),
    )
    if how.json:
        show.as_json(reports)


def status(dataset: str, /, *, json: bool = False) -> None:
    """Tell what is done in DATASET, what was lost and why."""
    stages = dataset_status(dataset)
    if json:
        show.as_json(stages)
    else:
        show.stages(stages)


def columns(dataset: str, /, *, json: bool = False) -> None:
    """List every column of DATASET that --where can name: type, origin, nulls, range."""
    found = dataset_columns(dataset)
    if json:
        show.as_json(found)
    else:
        show.columns(found)


def verify(dataset: str, name: str, /, *, json: bool = False) -> None:
    """Check every file and sample of DATASET's subset NAME against its manifest.

    laionkit verify my-set best
    """
    found = verify_subset(dataset, name)
    if json:
        show.as_json(found)
    else:
        show.console.print(f"{name}: {found.samples:,} samples, root {found.root or 'unknown'}")
        for problem in found.problems:
            show.console.print(f"  {problem}", markup=False)
    if found.problems:
        raise StageFailed(f"subset {name} of {dataset} is not what was written: make it again")


def demo(
    dataset: str = "demo",
    /,
    *,
    pictures: int = 1500,
    how: HowToRun = HowToRun(),
) -> None:
    """Draw, serve, fetch, embed, score, index, filter and query pictures, offline.

    Parameters
    ----------
    dataset: The folder to make it in.
    pictures: How many to draw.
    """
    from laionkit.cli.demo import run_demo

    reports = run_demo(dataset, pictures, how)
    if how.json:
        show.as_json(reports)
