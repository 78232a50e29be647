"""A Recipe is an ordered list of stage configs; ``run`` takes a dataset through them.

A recipe is a YAML file. Its keys are the stages' own settings, so that whatever a flag can say a
recipe can. ``{dataset}`` in a value stands for the dataset's path.

    stages:
      - metadata: {shard_size: 100}
      - fetch: {image_size: 256}
      - subset: {name: best, where: "aesthetic_v2 >= 6"}
"""

import functools
import importlib
import inspect
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from laionkit.core.config import StageConfig
from laionkit.core.errors import ConfigError, InputError, StaleOutput, did_you_mean
from laionkit.core.runner import Runner, StageReport

# Stage name → its function, in flow order. Each is loaded when first used.
STAGES = {
    "metadata": "laionkit.stages.metadata:metadata",
    "fetch": "laionkit.stages.fetch:fetch",
    "adopt": "laionkit.stages.adopt:adopt",
    "embed": "laionkit.stages.embed:embed",
    "head": "laionkit.stages.head_fit:fit_head",
    "score": "laionkit.stages.score:score",
    "index": "laionkit.stages.index:index",
    "subset": "laionkit.stages.subset:subset",
}
# What a stage needs besides dataset and config, given in a recipe under the same key.
_OPERANDS = {"metadata": "sources", "adopt": "folder", "head": "ratings"}
# Stages whose shards several machines can share; every other one is one piece of work.
_SHARED = ("fetch", "embed", "score")
_WRONG_TYPE = "give `stages:` a list of one-key maps, such as `- fetch: {image_size: 256}`"


@dataclass(frozen=True)
class Step:
    """One stage of a recipe: its name, its operand where it has one, its checked config."""

    stage: str
    config: StageConfig
    operand: Any = None


@dataclass(frozen=True)
class Recipe:
    """An ordered list of steps, and where it was read."""

    name: str
    steps: tuple[Step, ...]


def stage_function(stage: str) -> Callable[..., StageReport]:
    """A stage's function. Raises ConfigError for a name that is none."""
    if stage not in STAGES:
        raise ConfigError(
            f"no stage is called {stage!r}{did_you_mean(stage, STAGES)}; "
            f"there are {', '.join(STAGES)}"
        )
    module, _, function = STAGES[stage].partition(":")
    return getattr(importlib.import_module(module), function)  # type: ignore[no-any-return]


def config_class(stage: str) -> type[StageConfig]:
    """The config model of a stage."""
    found = get_type_hints(stage_function(stage))["config"]
    assert inspect.isclass(found) and issubclass(found, StageConfig)
    return found


def load_recipe(recipe: str, dataset: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by path, or by the name of one that laionkit ships, and check all of it.

    `overrides` are ``stage.key=value`` with a YAML value. Raises ConfigError on any unknown
    stage or key before any work, InputError where the file is missing or no YAML.
    """
    path = find_recipe(recipe)
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    entries = loaded.get("stages") if isinstance(loaded, dict) else None
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"{path}: {_WRONG_TYPE}")
    if unknown := set(loaded) - {"stages"}:
        raise ConfigError(f"{path}: no key {sorted(unknown)[0]!r} in a recipe; {_WRONG_TYPE}")
    changes = _parse_overrides(overrides)
    steps = tuple(_step(entry, changes, dataset, str(path)) for entry in entries)
    if absent := set(changes) - {step.stage for step in steps}:
        raise ConfigError(f"{path} has no stage {sorted(absent)[0]!r} to set")
    return Recipe(path.stem, steps)


def find_recipe(recipe: str) -> Path:
    """The path of a recipe given by path or by the name of a shipped one."""
    if Path(recipe).is_file():
        return Path(recipe)
    package = Path(__file__).parent
    shipped: dict[str, Path] = {}
    for folder in (package / "pipelines", package.parent / "pipelines"):
        shipped |= {p.stem: p for p in sorted(folder.glob("*.yaml"))}
    if recipe in shipped:
        return shipped[recipe]
    raise InputError(
        f"no recipe {recipe!r}{did_you_mean(recipe, shipped)}: give a YAML file, or one of "
        f"{', '.join(sorted(shipped))}"
    )


def run(
    recipe: Recipe | str,
    dataset: str,
    *,
    sources: Sequence[str] = (),
    runner: Runner | None = None,
    on_report: Callable[[StageReport], None] = lambda report: None,
) -> list[StageReport]:
    """Take `dataset` through every step of `recipe`; finished work is found done, not redone.

    `recipe` is a loaded one, or the path or name of one (see `load_recipe` for overrides).
    `sources` are what ``metadata`` reads, whatever the recipe names. `on_report` is called after
    each stage. A `fresh` runner starts those stages over that were made with another config.
    """
    if isinstance(recipe, str):
        recipe = load_recipe(recipe, dataset)
    steps = [_with_sources(step, sources) for step in recipe.steps]
    runner = runner or Runner()
    _check_part(recipe, runner)
    reports = []
    for step in steps:
        report = _run_step(step, dataset, runner)
        on_report(report)
        reports.append(report)
    return reports


def _run_step(step: Step, dataset: str, runner: Runner) -> StageReport:
    operands = () if step.operand is None else (step.operand,)
    work = functools.partial(stage_function(step.stage), *operands, dataset, step.config)
    try:
        return work(runner=replace(runner, fresh=False))
    except StaleOutput as error:
        if runner.fresh:
            return work(runner=runner)
        if not error.settings:
            raise
        keep = [f"{step.stage}.{name}={json.dumps(v)}" for name, v in error.settings.items()]
        said = " ".join(f"-s {shlex.quote(text)}" for text in keep)
        raise StaleOutput(f"{error} A recipe keeps it with {said}", error.settings) from error


def _check_part(recipe: Recipe, runner: Runner) -> None:
    whole = [step.stage for step in recipe.steps if step.stage not in _SHARED]
    if runner.part != (1, 1) and whole:
        raise ConfigError(
            f"{recipe.name}: {whole[0]} is one piece of work, which no --part can do: give "
            f"--part to a recipe of {', '.join(_SHARED)} alone"
        )


def _with_sources(step: Step, sources: Sequence[str]) -> Step:
    if step.stage == "metadata" and sources:
        return replace(step, operand=tuple(sources))
    if step.stage in _OPERANDS and not step.operand:
        raise ConfigError(
            f"{step.stage} needs {_OPERANDS[step.stage]}: name it in the recipe"
            + (", or after the dataset: laionkit run RECIPE DATASET SOURCE…" * bool(not sources))
        )
    return step


def _step(entry: Any, changes: Mapping[str, Mapping[str, Any]], dataset: str, where: str) -> Step:
    if isinstance(entry, str):
        entry = {entry: {}}
    if not isinstance(entry, dict) or len(entry) != 1:
        raise ConfigError(f"{where}: {entry!r} is no stage; {_WRONG_TYPE}")
    ((stage, settings),) = entry.items()
    model = config_class(str(stage))
    values = {**(settings or {}), **changes.get(stage, {})}
    values = {key: _fill(value, dataset) for key, value in values.items()}
    operand = values.pop(_OPERANDS[stage], None) if stage in _OPERANDS else None
    return Step(stage, model.build(values, f"{where}: {stage}"), operand)


def _fill(value: Any, dataset: str) -> Any:
    if isinstance(value, str):
        return value.replace("{dataset}", dataset)
    if isinstance(value, list):
        return [_fill(item, dataset) for item in value]
    return value


def _parse_overrides(overrides: Sequence[str]) -> dict[str, dict[str, Any]]:
    changes: dict[str, dict[str, Any]] = {}
    for text in overrides:
        target, equals, value = text.partition("=")
        stage, dot, key = target.partition(".")
        if not (equals and dot and stage and key):
            raise ConfigError(f"-s {text}: give stage.key=value, such as fetch.image_size=384")
        try:
            changes.setdefault(stage, {})[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(
                f"-s {text}: {value!r} is no YAML value; put text in quotes, such as "
                "subset.where='\"width >= 512\"'"
            ) from error
    return changes
