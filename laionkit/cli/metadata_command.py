"""metadata: apart from the other commands, so that it starts without their stages."""

from typing import Annotated

from cyclopts import Parameter

from laionkit.cli import show
from laionkit.cli.options import HowToRun
from laionkit.core.errors import ConfigError
from laionkit.stages.metadata import MetadataConfig
from laionkit.stages.metadata import metadata as metadata_stage
from laionkit.stages.metadata.inspection import inspect as inspect_sources

flat = Parameter(name="*")


def metadata(
    *paths: Annotated[
        str, Parameter(help="SOURCE… DATASET: what to read, then the dataset's folder.")
    ],
    inspect: Annotated[
        bool, Parameter(help="Show what every SOURCE (no DATASET then) is seen as; write nothing.")
    ] = False,
    config: Annotated[MetadataConfig, flat] = MetadataConfig(),
    how: HowToRun = HowToRun(),
) -> None:
    """Read link tables or a folder of pictures into a clean work list."""
    if inspect:
        found = inspect_sources(paths, config)
        if how.json:
            show.as_json(found)
        else:
            show.inspection(found)
        return
    if len(paths) < 2:
        raise ConfigError("give SOURCE… DATASET, such as: laionkit metadata links.parquet my-set")
    *sources, dataset = paths
    show.report(metadata_stage(sources, dataset, config, runner=how.runner()), how.json)
