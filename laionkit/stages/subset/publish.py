"""``push``: a subset as a dataset repository of the Hugging Face hub."""

from laionkit.core.errors import InputError
from laionkit.core.files import Folder
from laionkit.core.schemas import SUBSETS
from laionkit.stages.subset.layout import find_record
from laionkit.stages.subset.manifest import verify


def push(dataset: str, name: str, repository: str, *, private: bool = True) -> str:
    """Upload a subset to `repository` (OWNER/NAME) once it is verified; the commit's address.

    HF_TOKEN and HF_ENDPOINT count. A view has no pictures of its own and is refused; so is a
    subset that fails its check. Raises InputError where the hub says no.
    """
    from laionkit.backends.hub import upload_folder

    record = find_record(Folder(dataset), name)
    if "view" in record.files:
        raise InputError(
            f"{name} is a view, without pictures of its own: write it --as shards first"
        )
    checked = verify(dataset, name)
    if not checked.ok:
        raise InputError(f"{name} is not what was written: {checked.problems[0]}")
    folder = Folder(dataset).local_path(f"{SUBSETS}/{name}")
    return upload_folder(folder, repository, private=private, message=f"laionkit {checked.root}")
