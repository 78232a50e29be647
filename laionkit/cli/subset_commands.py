"""subset, verify and push: apart from the other commands, so that they start without torch."""

from typing import Annotated

from cyclopts import Parameter

from laionkit.cli import show
from laionkit.cli.options import Dataset, HowToRun, Json
from laionkit.core.errors import StageFailed
from laionkit.stages.subset import SubsetConfig
from laionkit.stages.subset import subset as subset_stage

flat = Parameter(name="*")
SubsetName = Annotated[str, Parameter(help="The subset's name, as subset --name gave it.")]


def subset(
    dataset: Dataset,
    /,
    *,
    config: Annotated[SubsetConfig, flat],
    how: HowToRun = HowToRun(),
) -> None:
    """Write a filtered training subset of DATASET, with a reason for every drop."""
    result = subset_stage(dataset, config, runner=how.runner())
    show.report(result, how.json)
    if config.dry_run and not how.json:
        show.what_if(result.extra)


def verify(dataset: Dataset, name: SubsetName, /, *, json: Json = False) -> None:
    """Check every file and sample of DATASET's subset NAME against its manifest."""
    from laionkit.stages.subset.manifest import verify as verify_subset

    found = verify_subset(dataset, name)
    if json:
        show.as_json(found)
    else:
        what = f"{len(found.problems):,} problems" if found.problems else "as it was written"
        show.line(f"{name}: {found.samples:,} samples, {what}; root {found.root or 'unknown'}")
        for problem in found.problems:
            show.line(f"  {problem}")
    if found.problems:
        raise StageFailed(f"subset {name} of {dataset} is not what was written: make it again")


def push(
    dataset: Dataset,
    name: SubsetName,
    repository: Annotated[str, Parameter(help="Where to, as OWNER/NAME; made where it is not.")],
    /,
    *,
    public: Annotated[bool, Parameter(help="Let everybody see it; otherwise only you.")] = False,
    json: Json = False,
) -> None:
    """Upload DATASET's subset NAME to the Hugging Face hub as OWNER/NAME."""
    from laionkit.stages.subset.publish import push as push_subset

    address = push_subset(dataset, name, repository, private=not public)
    show.said({"address": address}, address, json)
