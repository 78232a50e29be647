"""Where an index lies and which of its segments are alive.

``index/MODEL/segments.json`` is the one pointer: it names the segments that make up the index.
A segment never changes once the pointer has named it; it holds

- ``vectors.index``: its float16 vectors (flat faiss file);
- ``lists.index``: the same rows as an inverted file, where the segment has one;
- ``rows.arrow``: key, caption, url, shard and row in the shard, in the vectors' order;
- ``metadata/``: all that is known of the rows, as parquet, where the segment is shown to others.

A row that is taken down is marked in a file of dead rows of its own, until the next compaction
drops it; the dataset's list of takedowns keeps the keys, so that no build takes them in again.

Beside them lies the view that faiss and clip-retrieval open: ``image.index``, ``image.json``,
``metadata/``.
"""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from laionkit.core.errors import InputError
from laionkit.core.files import Folder
from laionkit.core.schemas import INDEX
from laionkit.search.reach import Reach

POINTER = "segments.json"
SEGMENTS = "segments"
VECTORS = "vectors.index"
LISTS = "lists.index"
ROWS = "rows.arrow"
METADATA = "metadata"


class SegmentInfo(BaseModel):
    """One segment: its name, rows, lists (0 where it is scanned whole) and what it is made of.

    `code_bits` is how many bits a list's codes have for each dimension.
    `drift` is by how much a row's length strays from 1 at most. `dead` rows, whose bits are set
    in `dead_file`, are never shown again. `reach` is what a probe of the lists goes by. `shards`
    maps each shard of embeddings in the segment to that shard's content.
    """

    model_config = ConfigDict(frozen=True)

    # They become paths, of a local copy too: a remote pointer must not lead out of that.
    name: str = Field(pattern=r"^[\w-][\w.-]*$")
    rows: int
    vectors_sha256: str = ""
    lists: int = 0
    code_bits: int = 8
    drift: float = 0.0
    dead: int = 0
    dead_file: str = Field("", pattern=r"^(segments/[\w-]+/dead-\d+\.bits)?$")
    reach: Reach = Reach()
    shards: dict[str, str] = {}


class Pointer(BaseModel):
    """The state of an index: its generation, its model and the segments that are alive.

    `forgotten` names the state of the list of takedowns that it follows.
    """

    model_config = ConfigDict(frozen=True)

    generation: int
    model: str
    dim: int = Field(ge=1)
    segments: tuple[SegmentInfo, ...] = Field(min_length=1)
    forgotten: str = ""

    @model_validator(mode="after")
    def _no_segment_twice(self) -> Self:
        if len({segment.name for segment in self.segments}) < len(self.segments):
            raise ValueError("a segment is named twice")
        return self

    @property
    def rows(self) -> int:
        """Rows of all segments that are alive."""
        return sum(segment.rows - segment.dead for segment in self.segments)


def index_stage(model: str) -> str:
    """The name under which a model's index is recorded."""
    return f"{INDEX}/{model}"


def index_folder(dataset: Folder, model: str) -> Folder:
    """The folder of a model's index."""
    return dataset.folder(f"{INDEX}/{model}")


def segment_file(name: str, file: str) -> str:
    """The path of a segment's file in its index folder."""
    return f"{SEGMENTS}/{name}/{file}"


def read_pointer(folder: Folder) -> Pointer | None:
    """What is alive in an index folder; None where nothing was ever indexed."""
    if not folder.exists(POINTER):
        return None
    try:
        return Pointer.model_validate(folder.read_json(POINTER))
    except (InputError, ValueError) as error:
        raise InputError(
            f"{folder}/{POINTER} is malformed: delete it and run laionkit index --fresh"
        ) from error


def write_pointer(folder: Folder, pointer: Pointer) -> None:
    """Make `pointer` what readers see; one rename."""
    folder.write_json(POINTER, pointer.model_dump(mode="json"))
