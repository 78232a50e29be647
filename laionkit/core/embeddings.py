"""A dataset's embeddings and scores, found through their records: ours and adopted ones alike.

``embeddings/MODEL/`` follows clip-retrieval: img_emb/img_emb_SHARD.npy and
text_emb/text_emb_SHARD.npy (float16 [N, D], C order, unit rows) and
metadata/metadata_SHARD.parquet (``image_path`` = the sample's key, caption, …), aligned by row.
``scores/COLUMN/SHARD.parquet`` holds key and value (SCORE_SCHEMA).
"""

from dataclasses import dataclass

from laionkit.core.errors import ConfigError, InputError, did_you_mean
from laionkit.core.files import Folder
from laionkit.core.records import ShardRecord, StageMade, StageRecords
from laionkit.core.schemas import RECORDS

EMBED_RECORDS = "embed"
SCORE_RECORDS = "score"


@dataclass(frozen=True)
class EmbeddingRef:
    """One finished shard of embeddings. Paths are what ``dataset.open`` takes.

    `text` is None where captions were not embedded. `content` names the bytes.
    """

    name: str
    image: str
    text: str | None
    metadata: str
    rows: int
    content: str

    @classmethod
    def of(cls, record: ShardRecord) -> "EmbeddingRef":
        """The reference an embed or adopt record stands for."""
        text = record.files.get("text_emb")
        return cls(
            name=record.shard,
            image=record.files["img_emb"].path,
            text=text.path if text else None,
            metadata=record.files["metadata"].path,
            rows=record.counts.ok,
            content=record.content(),
        )


def model_folder_name(spec: str, as_name: str | None = None) -> str:
    """The short name of a model, as folders spell it; `as_name` where the user gave it one.

    Raises ConfigError where that is none that a folder below ``embeddings/`` can have.

    >>> model_folder_name("ViT-L-14-quickgelu/openai")
    'ViT-L-14-quickgelu_openai'
    """
    name = as_name or spec
    clean = "".join(c if c.isalnum() or c in "-._" else "_" for c in name).strip("_.")
    if as_name and clean != as_name:
        raise ConfigError(
            f"as={as_name!r} cannot be a folder's name: letters, digits, - . and _ can, as in "
            f"{clean or 'mine'}"
        )
    return clean


def embed_stage(model: str) -> str:
    """The name under which a model's embeddings are recorded."""
    return f"{EMBED_RECORDS}/{model}"


def score_stage(column: str) -> str:
    """The name under which a score column is recorded."""
    return f"{SCORE_RECORDS}/{column}"


def embedded_models(dataset: Folder) -> list[str]:
    """Short names of the models that this dataset has embeddings of, one shard at least."""
    begun = dataset.folders(f"{RECORDS}/{EMBED_RECORDS}")
    return [model for model in begun if StageRecords(dataset, embed_stage(model)).names()]


def choose_model(dataset: Folder, model: str | None) -> str:
    """The model meant: the one named, or the only one there. Raises InputError otherwise."""
    models = embedded_models(dataset)
    if not models:
        raise InputError(f"{dataset} has no embeddings: run laionkit embed {dataset} first")
    if model is None:
        if len(models) > 1:
            raise InputError(
                f"{dataset} has embeddings of {', '.join(models)}: choose with --as NAME"
            )
        return models[0]
    if model not in models:
        raise InputError(
            f"{dataset} has no embeddings of {model}{did_you_mean(model, models)}; "
            f"it has {', '.join(models)}"
        )
    return model


def model_made(dataset: Folder, model: str) -> StageMade:
    """What a model's embeddings were made with; `facts` hold its identity and dimension."""
    made = StageRecords(dataset, embed_stage(model)).made()
    if made is None:
        raise InputError(f"{dataset} has no embeddings of {model}")
    return made


def list_embeddings(dataset: Folder, model: str) -> list[EmbeddingRef]:
    """Every finished shard of a model's embeddings, in name order."""
    return [EmbeddingRef.of(record) for record in StageRecords(dataset, embed_stage(model)).all()]


def score_columns(dataset: Folder) -> dict[str, StageMade]:
    """Every score column of a dataset with its provenance."""
    found = {}
    for column in dataset.folders(f"{RECORDS}/{SCORE_RECORDS}"):
        made = StageRecords(dataset, score_stage(column)).made()
        if made is not None:
            found[column] = made
    return found


def score_files(dataset: Folder, column: str) -> list[str]:
    """Paths of a score column's finished files, in shard order."""
    records = StageRecords(dataset, score_stage(column)).all()
    return [record.files["scores"].path for record in records]
