"""What a recipe names by path: told apart by content, since a file may change under its name."""

from laionkit.core.config import fingerprint
from laionkit.core.embeddings import choose_model, embedded_models, list_embeddings
from laionkit.core.files import Folder
from laionkit.stages.subset.config import SubsetConfig

_FILES = ("keys", "queries", "balance")


def given_contents(config: SubsetConfig) -> dict[str, str]:
    """Setting → hash of the file, or of the evaluation set, that it names by path.

    Raises InputError where there is none.
    """
    paths = {name: getattr(config, name) for name in _FILES if getattr(config, name)}
    found = {name: _file_content(path) for name, path in paths.items()}
    if config.decontaminate:
        found["decontaminate"] = _evaluation_content(config.decontaminate, config.model or None)
    return found


def _file_content(path: str) -> str:
    folder, _, name = path.rpartition("/")
    return Folder(folder or ".").sha256(name)


def _evaluation_content(path: str, model: str | None) -> str:
    """Content of an .npy file, of another dataset's embeddings, or of a folder of pictures."""
    if path.endswith(".npy"):
        return _file_content(path)
    other = Folder(path)
    if embedded_models(other):
        refs = list_embeddings(other, choose_model(other, model))
        return fingerprint({ref.name: ref.content for ref in refs})
    return fingerprint({name: other.sha256(name) for name in other.walk()})
