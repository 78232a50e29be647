"""Stage configs: one pydantic model for flags, recipe keys, API arguments and fingerprint.

A default is written once.

Fields are of two kinds. *What* (the default) changes results and is fingerprinted; *effort*
(``Effort[...]``: timeouts, retries, rates, concurrency) is recorded, never compared. The third
kind of setting, *how* a stage runs (workers, device), belongs to the Runner.
"""

import hashlib
import inspect
import json
import re
from collections.abc import Collection, Mapping
from typing import Annotated, Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from laionkit.core.errors import ConfigError, did_you_mean

T = TypeVar("T")


class _EffortMarker:
    """Marks a field that changes how hard a stage tries, never what it computes."""


Effort = Annotated[T, _EffortMarker()]


def split_names(value: Any) -> Any:
    """Split names at commas outside double quotes: ``a,b`` is two, ``prompt:"a, b"`` is one.

    >>> split_names(["a,b", 'prompt:"x, y" vs "z"'])
    ('a', 'b', 'prompt:"x, y" vs "z"')
    """
    if not isinstance(value, str | list | tuple):
        return value
    texts = [value] if isinstance(value, str) else value
    if not all(isinstance(text, str) for text in texts):
        return value
    parts = [re.split(r',(?=(?:[^"]*"[^"]*")*[^"]*$)', text) for text in texts]
    return tuple(name.strip() for some in parts for name in some if name.strip())


# Several names in one setting: a list in a recipe, ``A,B`` or a repeated flag in a shell.
Names = Annotated[tuple[str, ...], BeforeValidator(split_names)]


class StageConfig(BaseModel):
    """Base of every stage's config: frozen, no unknown keys, each field documented.

    A field's docstring states meaning, unit, bounds and where the default comes from; it becomes
    ``--help``. `format_version` is raised when the same config starts to mean other bytes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    format_version: ClassVar[int] = 1

    def __init__(self, **values: Any) -> None:
        """Check `values`. Raises ConfigError, in one line, for the first that does not fit."""
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(_first_problem(error, type(self).model_fields)) from error

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """Let ``help(FetchConfig)`` list the settings, as ``laionkit fetch --help`` does."""
        lines = (f"    {n}: {' '.join((f.description or '').split())}"
                 for n, f in cls.model_fields.items())  # fmt: skip
        cls.__doc__ = "\n".join([inspect.cleandoc(cls.__doc__ or ""), "", "Settings:", *lines])

    @classmethod
    def effort_fields(cls) -> frozenset[str]:
        """Names of the fields that are recorded but never compared."""
        return frozenset(
            name
            for name, field in cls.model_fields.items()
            if any(isinstance(mark, _EffortMarker) for mark in field.metadata)
        )

    def what(self) -> dict[str, Any]:
        """The settings that change results, as JSON values."""
        return self.model_dump(mode="json", exclude=set(self.effort_fields()))

    def effort(self) -> dict[str, Any]:
        """The settings that change only how hard the stage tries, as JSON values."""
        return self.model_dump(mode="json", include=set(self.effort_fields()))

    @classmethod
    def build(cls, values: Mapping[str, Any], where: str) -> Self:
        """Validate `values`; an error names `where` they stood.

        A field that Python makes end in ``_`` (``as_``) is also known without it.
        """
        values = {f"{k}_" if f"{k}_" in cls.model_fields else k: v for k, v in values.items()}
        values = {cls._field(key): value for key, value in values.items()}
        try:
            return cls(**values)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error

    @classmethod
    def _field(cls, key: str) -> str:
        """The field a key means: ``as``, a Python keyword, is spelt ``as_`` or ``as_name``."""
        named = (name for name in ("as_", "as_name") if key == "as" and name in cls.model_fields)
        return next(named, key)


def _first_problem(error: ValidationError, fields: Collection[str]) -> str:
    """Turn pydantic's many lines into one: the first field, what is wrong, the value seen."""
    problems = error.errors(include_url=False)
    problem = problems[0]
    # A setting of two kinds ("auto" or a number) has a problem with each of them.
    same = [
        p for p in problems if (p["loc"][:1], p["input"]) == (problem["loc"][:1], problem["input"])
    ]
    field = ".".join(str(part) for part in problem["loc"][: 1 if len(same) > 1 else None])
    if problem["type"] == "extra_forbidden":
        return f"no setting is called {field!r}{did_you_mean(field, fields)}"
    messages = [p["msg"].removeprefix("Value error, ") for p in same]
    said = " or ".join([messages[0], *(m.removeprefix("Input should be ") for m in messages[1:])])
    return f"{field}={problem['input']!r}: {said}" if field else said


def fingerprint(values: Mapping[str, Any]) -> str:
    """Hash JSON-able values to 16 hex digits, independent of the order of keys."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
