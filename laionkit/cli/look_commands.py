"""status and columns: apart from the other commands, so that they start without any stage."""

from laionkit.cli import show
from laionkit.cli.options import Dataset, Json


def status(dataset: Dataset, /, *, json: Json = False) -> None:
    """Tell what is done in DATASET, what was lost and why."""
    from laionkit.core.status import status as dataset_status

    stages = dataset_status(dataset)
    if json:
        show.as_json(stages)
    else:
        show.stages(stages)


def columns(dataset: Dataset, /, *, json: Json = False) -> None:
    """List every column of DATASET that --where can name: type, origin, nulls, range."""
    from laionkit.core.table import columns as dataset_columns

    found = dataset_columns(dataset)
    if json:
        show.as_json(found)
    else:
        show.columns(found)
