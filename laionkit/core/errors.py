"""The exceptions laionkit raises on purpose.

    LaionkitError
    ├── ConfigError    a setting is wrong: a flag, a key, a name          exit 2
    ├── InputError     something the user named is wrong: a file, a URL   exit 2
    ├── StaleOutput    what is on disk was made with another config       exit 2
    └── StageFailed    the work itself failed                             exit 1

A message is one line: what, where, the value seen, and what to do. The CLI prints it as it is.
"""

import difflib
import errno
from collections.abc import Iterable, Mapping
from typing import Any


class LaionkitError(Exception):
    """Base of every error that laionkit raises on purpose."""

    exit_code = 1


class ConfigError(LaionkitError):
    """A setting is wrong; nothing was started."""

    exit_code = 2


class InputError(LaionkitError):
    """A file, folder, URL or value that the user named is missing, unreadable or malformed."""

    exit_code = 2


class StaleOutput(LaionkitError):
    """The output on disk was made with a config that differs in what it computes.

    `settings` are those that differ, as they were.
    """

    exit_code = 2

    def __init__(self, message: str, settings: Mapping[str, Any] | None = None) -> None:
        """Say what differs and how to go on."""
        super().__init__(message)
        self.settings = dict(settings or {})


class StageFailed(LaionkitError):
    """The stage could not do its work."""

    exit_code = 1


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return ``" (did you mean X?)"`` for the nearest choice, or an empty string.

    >>> did_you_mean("imge_size", ["image_size", "quality"])
    ' (did you mean image_size?)'
    """
    near = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return f" (did you mean {near[0]}?)" if near else ""


def is_disk_full(error: BaseException) -> bool:
    """Tell whether an error, or the one that caused it, means that no space is left."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        seen = seen.__cause__ or seen.__context__
    return False
