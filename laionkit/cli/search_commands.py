"""index and query: apart from the other commands, so that a query starts without their stages."""

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from laionkit.cli import show, show_search
from laionkit.cli.options import Dataset, HowToAsk, HowToRun
from laionkit.core.errors import ConfigError, LaionkitError
from laionkit.stages.index import IndexConfig, explain_index
from laionkit.stages.index import index as index_stage
from laionkit.stages.query import QueryConfig, answer, open_searcher, query_file

if TYPE_CHECKING:
    from laionkit.search.planner import Found

flat = Parameter(name="*")


def index(
    dataset: Dataset,
    /,
    *,
    explain: Annotated[
        bool,
        Parameter(
            help="Show what would be built, its bytes and expected recall, and the alternatives; "
            "build nothing."
        ),
    ] = False,
    config: Annotated[IndexConfig, flat] = IndexConfig(),
    how: HowToRun = HowToRun(),
) -> None:
    """Build DATASET's search index, or add what is new to it."""
    if explain:
        found = explain_index(dataset, config)
        if how.json:
            show.as_json(found)
        else:
            show_search.explanation(found)
        return
    show.report(index_stage(dataset, config, runner=how.runner()), how.json)


def query(
    dataset: Dataset,
    text: Annotated[str | None, Parameter(help="What the pictures should show.")] = None,
    /,
    *,
    image: Annotated[str | None, Parameter(help="A picture's file or URL to search by.")] = None,
    vector: Annotated[str | None, Parameter(help="A .npy file of one vector to search by.")] = None,
    queries: Annotated[
        str | None,
        Parameter(
            help="A file of many queries: .txt (a text a line), .parquet (texts) or .npy (vectors)."
        ),
    ] = None,
    output: Annotated[
        str, Parameter(help="Where the hits of --queries go, a .parquet file.")
    ] = "hits.parquet",
    explain: Annotated[
        bool, Parameter(help="Also show how the hits were found: each segment, the time.")
    ] = False,
    config: Annotated[QueryConfig, flat] = QueryConfig(),
    how: HowToAsk = HowToAsk(),
) -> None:
    """Find images of DATASET by TEXT, --image and more, filtered by SQL. Without any: a prompt."""
    if queries is not None:
        _alone({"TEXT": text, "--image": image, "--vector": vector, "--explain": explain or None})
        written = query_file(dataset, queries, output, config, runner=how.runner())
        show.said({"hits": written, "output": output}, f"{written:,} hits → {output}", how.json)
        return
    given = (text, image, vector, config.like, *config.plus, *config.minus, *config.boost)
    if not any(part is not None for part in given) and sys.stdin.isatty():
        _prompt(dataset, config, how, explain)
        return
    searcher = open_searcher(dataset, config.as_name, how.runner(), config.allow_private)
    found = answer(searcher, config, text, image=image, vector=vector)
    if how.json:
        show.as_json(found.as_json())
    else:
        _show(found, config, explain)


def _alone(others: Mapping[str, object]) -> None:
    """Raise ConfigError where --queries comes with what is for one query."""
    given = [name for name, value in others.items() if value is not None]
    if given:
        raise ConfigError(f"--queries says what to look for: leave out {' and '.join(given)}")


def _show(found: "Found", config: QueryConfig, explain: bool) -> None:
    if not found.plan.matches:
        where = f": none meets {config.where}" if config.where else ""
        show.console.print(f"no hits among {found.plan.rows:,} rows{where}", markup=False)
    else:
        show_search.hits(found.table, " ".join([config.where or "", *config.boost]))
    if explain:
        show_search.plan(found.plan)


def _prompt(dataset: str, config: QueryConfig, how: HowToAsk, explain: bool) -> None:
    """Answer one text a line until the input ends."""
    searcher = open_searcher(dataset, config.as_name, how.runner(), config.allow_private)
    show.console.print("A text a line; an empty line ends.", style="dim")
    while text := _ask():
        try:
            _show(answer(searcher, config, text), config, explain)
        except LaionkitError as error:
            show.console.print(str(error), style="red", markup=False)


def _ask() -> str:
    """The next line; empty at the input's end (Ctrl-D)."""
    try:
        return show.console.input("[bold]query>[/bold] ").strip()
    except EOFError:
        show.console.print()
        return ""
