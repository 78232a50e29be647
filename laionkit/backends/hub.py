"""Datasets of the Hugging Face hub: ``hf://datasets/OWNER/NAME[@REVISION][/PATH or glob]``.

The revision is pinned to a commit before anything is read; HF_ENDPOINT and HF_TOKEN count.
"""

import fnmatch
import os
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, HfFileSystem
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from laionkit.core.errors import InputError

DEFAULT_REVISION = "main"
# The root of what the hub's HTTP client raises, whichever client this release of it has.
_HttpError: type[Exception] = HfHubHTTPError.__mro__[1]


def find_hub_files(url: str) -> tuple[Any, list[str]]:
    """The file system and the paths (``datasets/OWNER/NAME@COMMIT/PATH``) of what `url` names."""
    repository, revision, pattern = split_hub_url(url)
    endpoint = os.environ.get("HF_ENDPOINT") or None
    api = HfApi(endpoint=endpoint)
    try:
        info = api.dataset_info(repository, revision=revision, files_metadata=False)
        commit = str(info.sha)
        names = [str(s.rfilename) for s in info.siblings or []]
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        why = " ".join(str(error).split())[:200]
        raise InputError(f"{url} cannot be read from the hub: {why}") from error
    chosen = [name for name in names if _matches(name, pattern)]
    if not chosen:
        raise InputError(f"{url}: no file of {repository}@{commit[:12]} matches {pattern!r}")
    fs = HfFileSystem(endpoint=endpoint)
    return fs, [f"datasets/{repository}@{commit}/{name}" for name in chosen]


def split_hub_url(url: str) -> tuple[str, str, str]:
    """Split into repository, revision and path.

    >>> split_hub_url("hf://datasets/laion/aesthetics@v1.0/data/*.parquet")
    ('laion/aesthetics', 'v1.0', 'data/*.parquet')
    """
    parts = url.removeprefix("hf://").split("/")
    if len(parts) < 3 or parts[0] != "datasets" or not all(parts[:3]):
        raise InputError(f"{url}: write hf://datasets/OWNER/NAME[@REVISION][/PATH]")
    name, _, revision = parts[2].partition("@")
    return f"{parts[1]}/{name}", revision or DEFAULT_REVISION, "/".join(parts[3:])


def _matches(name: str, pattern: str) -> bool:
    if not pattern:
        return True
    return name == pattern or name.startswith(pattern + "/") or fnmatch.fnmatch(name, pattern)


def upload_folder(folder: Path, repository: str, *, private: bool, message: str) -> str:
    """Upload a folder as a dataset repository, made where it is not there; the commit's address."""
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)
    try:
        api.create_repo(repository, repo_type="dataset", private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            repo_type="dataset",
            commit_message=message,
            ignore_patterns=[".*"],
        )
    except (_HttpError, HFValidationError, OSError) as error:
        why = " ".join(str(error).split())[:200]
        raise InputError(f"{repository} cannot be written on the hub: {why}") from error
    return str(done.commit_url)
