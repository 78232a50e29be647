"""fetch: apart from the other commands, so that it starts without their stages."""

from typing import Annotated

from cyclopts import Parameter

from laionkit.cli import show
from laionkit.cli.options import Dataset, HowToShare
from laionkit.stages.fetch import FetchConfig
from laionkit.stages.fetch import fetch as fetch_stage

flat = Parameter(name="*")


def fetch(
    dataset: Dataset,
    /,
    *,
    config: Annotated[FetchConfig, flat] = FetchConfig(),
    how: HowToShare = HowToShare(),
) -> None:
    """Download, check and resize the images of DATASET into webdataset shards."""
    show.report(fetch_stage(dataset, config, runner=how.runner()), how.json)
