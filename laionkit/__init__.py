"""laionkit: image links in; training sets you can search and trust out.

The public names, loaded on first use so that ``import laionkit`` stays light.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from laionkit.core.errors import (
        ConfigError,
        InputError,
        LaionkitError,
        StageFailed,
        StaleOutput,
    )
    from laionkit.core.runner import Runner, StageReport
    from laionkit.core.status import status
    from laionkit.core.table import columns, table
    from laionkit.recipe import Recipe, load_recipe, run
    from laionkit.search.hits import Hits
    from laionkit.search.searcher import Searcher
    from laionkit.stages.adopt import AdoptConfig, adopt
    from laionkit.stages.embed import EmbedConfig, embed
    from laionkit.stages.fetch import FetchConfig, fetch
    from laionkit.stages.forget import ForgetConfig, forget
    from laionkit.stages.head_fit import HeadFitConfig, fit_head
    from laionkit.stages.index import IndexConfig, explain_index, index
    from laionkit.stages.metadata import MetadataConfig, metadata
    from laionkit.stages.metadata.inspection import inspect
    from laionkit.stages.query import QueryConfig, query
    from laionkit.stages.score import ScoreConfig, score
    from laionkit.stages.subset import SubsetConfig, subset
    from laionkit.stages.subset.loading import load
    from laionkit.stages.subset.manifest import verify
    from laionkit.stages.subset.publish import push

_NAMES = {
    "core.errors": ("ConfigError", "InputError", "LaionkitError", "StageFailed", "StaleOutput"),
    "core.runner": ("Runner", "StageReport"),
    "core.status": ("status",),
    "core.table": ("columns", "table"),
    "recipe": ("Recipe", "load_recipe", "run"),
    "search.hits": ("Hits",),
    "search.searcher": ("Searcher",),
    "stages.adopt": ("AdoptConfig", "adopt"),
    "stages.embed": ("EmbedConfig", "embed"),
    "stages.fetch": ("FetchConfig", "fetch"),
    "stages.head_fit": ("HeadFitConfig", "fit_head"),
    "stages.forget": ("ForgetConfig", "forget"),
    "stages.index": ("IndexConfig", "explain_index", "index"),
    "stages.metadata": ("MetadataConfig", "metadata"),
    "stages.metadata.inspection": ("inspect",),
    "stages.query": ("QueryConfig", "query"),
    "stages.score": ("ScoreConfig", "score"),
    "stages.subset": ("SubsetConfig", "subset"),
    "stages.subset.loading": ("load",),
    "stages.subset.manifest": ("verify",),
    "stages.subset.publish": ("push",),
}
_HOMES = {name: home for home, names in _NAMES.items() for name in names}

__all__ = [
    "AdoptConfig",
    "ConfigError",
    "EmbedConfig",
    "FetchConfig",
    "ForgetConfig",
    "HeadFitConfig",
    "Hits",
    "IndexConfig",
    "InputError",
    "LaionkitError",
    "MetadataConfig",
    "QueryConfig",
    "Recipe",
    "Runner",
    "ScoreConfig",
    "Searcher",
    "StageFailed",
    "StageReport",
    "StaleOutput",
    "SubsetConfig",
    "__version__",
    "adopt",
    "columns",
    "embed",
    "explain_index",
    "fetch",
    "fit_head",
    "forget",
    "index",
    "inspect",
    "load",
    "load_recipe",
    "metadata",
    "push",
    "query",
    "run",
    "score",
    "status",
    "subset",
    "table",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Load a public name from its home."""
    if name not in _HOMES:
        raise AttributeError(f"laionkit has no public name {name!r}")
    return getattr(importlib.import_module(f"laionkit.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*_HOMES, "__version__"])
