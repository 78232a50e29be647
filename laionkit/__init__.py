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

_HOMES = {
    "ConfigError": "core.errors",
    "InputError": "core.errors",
    "LaionkitError": "core.errors",
    "Runner": "core.runner",
    "StageFailed": "core.errors",
    "StageReport": "core.runner",
    "StaleOutput": "core.errors",
}

__all__ = [
    "ConfigError",
    "InputError",
    "LaionkitError",
    "Runner",
    "StageFailed",
    "StageReport",
    "StaleOutput",
]


def __getattr__(name: str) -> Any:
    """Load a public name from its home."""
    if name not in _HOMES:
        raise AttributeError(f"laionkit has no public name {name!r}")
    return getattr(importlib.import_module(f"laionkit.{_HOMES[name]}"), name)
