"""One thin function per command: flags in, a stage's function, its report out."""

from typing import Annotated

from cyclopts import Parameter

from laionkit.cli import show
from laionkit.cli.options import (
    Dataset,
    HowToCompute,
    HowToForget,
    HowToShare,
    HowToShow,
    HowToWork,
)
from laionkit.recipe import load_recipe
from laionkit.recipe import run as run_recipe
from laionkit.stages.adopt import AdoptConfig
from laionkit.stages.adopt import adopt as adopt_stage
from laionkit.stages.embed import EmbedConfig
from laionkit.stages.embed import embed as embed_stage
from laionkit.stages.forget import ForgetConfig
from laionkit.stages.forget import forget as forget_stage
from laionkit.stages.head_fit import HeadFitConfig, fit_head
from laionkit.stages.score import ScoreConfig
from laionkit.stages.score import score as score_stage

flat = Parameter(name="*")


def adopt(
    folder: Annotated[
        str,
        Parameter(help="A folder of tars, of img_emb/*.npy, of pictures or of parquet with them."),
    ],
    dataset: Dataset,
    /,
    *,
    config: Annotated[AdoptConfig, flat] = AdoptConfig(),
    how: HowToWork = HowToWork(),
) -> None:
    """Register existing shards or embeddings of FOLDER in DATASET, in place and read-only."""
    show.report(adopt_stage(folder, dataset, config, runner=how.runner()), how.json)


def embed(
    dataset: Dataset,
    /,
    *,
    config: Annotated[EmbedConfig, flat] = EmbedConfig(),
    how: HowToCompute = HowToCompute(),
) -> None:
    """Compute CLIP vectors of DATASET's images and captions, and scores on the way."""
    show.report(embed_stage(dataset, config, runner=how.runner()), how.json)


def head_fit(
    ratings: Annotated[
        str, Parameter(help="A csv or parquet file with key, url or hash, and rating.")
    ],
    dataset: Dataset,
    /,
    *,
    config: Annotated[HeadFitConfig, flat] = HeadFitConfig(),
    how: HowToShow = HowToShow(),
) -> None:
    """Fit a linear head on RATINGS (a table with key, url or hash, and rating) of DATASET."""
    show.report(fit_head(ratings, dataset, config, runner=how.runner()), how.json)


def score(
    dataset: Dataset,
    /,
    *,
    config: Annotated[ScoreConfig, flat] = ScoreConfig(),
    how: HowToShare = HowToShare(),
) -> None:
    """Add score columns to DATASET from stored vectors alone: no images, no CLIP."""
    show.report(score_stage(dataset, config, runner=how.runner()), how.json)


def forget(
    dataset: Dataset,
    /,
    *,
    config: Annotated[ForgetConfig, flat] = ForgetConfig(),
    how: HowToForget = HowToForget(),
) -> None:
    """Take samples of DATASET down: no search, filter or subset has them from now on."""
    show.report(forget_stage(dataset, config, runner=how.runner()), how.json)


def run(
    recipe: Annotated[str, Parameter(help="A YAML file, or the name of a shipped recipe.")],
    dataset: Dataset,
    /,
    *sources: Annotated[str, Parameter(help="What metadata reads, over what the recipe says.")],
    set_: Annotated[
        tuple[str, ...],
        Parameter(
            name=("--set", "-s"),
            help="STAGE.KEY=VALUE, over what the recipe says; may be given many times.",
        ),
    ] = (),
    how: HowToCompute = HowToCompute(),
) -> None:
    """Run RECIPE, a YAML file or the name of a shipped one, on DATASET."""
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


def demo(
    dataset: Annotated[str, Parameter(help="The folder to make it in.")] = "demo",
    /,
    *,
    pictures: Annotated[int, Parameter(help="How many to draw.")] = 1500,
    how: HowToCompute = HowToCompute(),
) -> None:
    """Draw, serve, fetch, embed, score, index, filter and query pictures, offline."""
    from laionkit.cli.demo import run_demo

    reports = run_demo(dataset, pictures, how)
    if how.json:
        show.as_json(reports)
