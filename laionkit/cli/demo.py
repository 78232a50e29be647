"""The demo: the whole way in about two minutes, on pictures it draws and serves itself."""

import time
from pathlib import Path

from laionkit.cli import show, show_search
from laionkit.cli.app import program
from laionkit.cli.demo_world import draw_world, serve
from laionkit.cli.options import HowToCompute
from laionkit.core.errors import ConfigError
from laionkit.core.runner import StageReport
from laionkit.recipe import load_recipe, run
from laionkit.stages.query import QueryConfig, answer, open_searcher

QUERIES = (("a red star on grass", None), ("a large striped heart", "demo_taste >= 6"))


def run_demo(dataset: str, pictures: int, how: HowToCompute) -> list[StageReport]:
    """Draw, serve, run the demo recipe, and ask two questions; a second call finds it all done."""
    if "://" in dataset:
        raise ConfigError(f"{dataset}: the demo wants a local folder")
    started = time.monotonic()
    world = draw_world(Path(dataset) / "world", pictures)
    say = (lambda text: None) if how.json else _say
    say(f"{pictures:,} pictures drawn in {world.folder}, about one link in ten broken on purpose")
    recipe = load_recipe("demo", dataset)
    with serve(world):
        reports = run(
            recipe,
            dataset,
            sources=[str(world.links)],
            runner=how.runner(),
            on_report=lambda report: None if how.json else show.report(report),
        )
    if not how.json:
        ask(dataset, how)
        say(f"\nDone in {time.monotonic() - started:.0f} s. Look around:")
        say(f"  {program()} status {dataset}\n  {program()} columns {dataset}")
        say(f'  {program()} query {dataset} "two blue rings" --where "width > height"')
    return reports


def ask(dataset: str, how: HowToCompute) -> None:
    """Put the demo's two questions, print the hits, draw a contact sheet of each."""
    searcher = open_searcher(dataset, None, how.runner())
    for number, (text, where) in enumerate(QUERIES, 1):
        sheet = str(Path(dataset) / f"hits-{number}.png")
        config = QueryConfig(k=12, where=where, sheet=sheet)
        found = answer(searcher, config, text)
        _say(f'\n"{text}"' + (f" where {where}" if where else "") + f"   → {sheet}")
        show_search.hits(found.table.slice(0, 5))


def _say(text: str) -> None:
    show.console.print(text, markup=False)
