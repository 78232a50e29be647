"""What a recipe names by path: told apart by content, since a file may change under its name."""

from laionkit.core.config import fingerprint
from laionkit.core.embeddings import choose_model, list_embeddings
from laionkit.core.files import Folder
from laionkit.stages.subset.config import SubsetConfig


def given_contents(config: SubsetConfig) -> dict[str, str]:
    """Setting → hash of the file, or of the other dataset's embeddings, that it names by path.

    Raises InputError where there is none.
    """
    found: dict[str, str] = {}
    for name in ("keys", "queries", "decontaminate"):
        path = getattr(config, name)
        if not path:
            continue
        if name == "decontaminate" and not path.endswith(".npy"):
            other = Folder(path)
            refs = list_embeddings(other, choose_model(other, config.model or None))
            found[name] = fingerprint({ref.name: ref.content for ref in refs})
        else:
            folder, _, base = path.rpartition("/")
            found[name] = Folder(folder or ".").sha256(base)
    return found
