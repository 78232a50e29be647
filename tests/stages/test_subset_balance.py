"""Evening a subset out: caps per cluster and per entry; pictures of an evaluation kept out."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from laionkit.backends.clip import load_model
from laionkit.core.errors import ConfigError, InputError, StaleOutput
from laionkit.ops.images import decode
from laionkit.ops.vectors import unit_rows
from laionkit.stages.subset import SubsetConfig, subset
from tests import small_dataset
from tests.small_dataset import SmallDataset, laion_rows

ROWS = 60


def embeddings() -> np.ndarray:
    """Three tight groups: 40, 15 and 5 rows."""
    rng = np.random.default_rng(0)
    middle_3D = np.eye(3, 32) * 10
    group_N = np.repeat([0, 1, 2], [40, 15, 5])
    return unit_rows((middle_3D[group_N] + rng.normal(size=(ROWS, 32)) * 0.1).astype(np.float32))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> SmallDataset:
    rows = laion_rows(ROWS)
    for number, row in enumerate(rows):
        row["caption"] = f"a photo of a dog {number}" if number < 50 else f"one red fox {number}"
    rows[0]["caption"] = None
    made = SmallDataset(tmp_path_factory.mktemp("balance") / "laion", rows)
    made.write_metadata().write_shards()
    made.write_score("aesthetic_v2", {i: i / 10 for i in range(ROWS)})
    return made.write_embeddings("clip", embeddings())


def run(dataset: SmallDataset, name: str, **settings: object):
    settings = {"as_": "parquet", **settings}
    return subset(dataset.url, SubsetConfig.build({"name": name, **settings}, "subset"))


def kept(dataset: SmallDataset, name: str) -> list[int]:
    keys = pq.read_table(dataset.path / f"subsets/{name}/kept.parquet")["key"].to_pylist()
    numbers = {dataset.key(i): i for i in range(ROWS)}
    return [numbers[key] for key in keys]


def test_at_most_so_many_of_each_cluster_stay_the_best_first(dataset):
    report = run(dataset, "spread", cap=4, cap_by="cluster", clusters=3, by="aesthetic_v2")
    assert kept(dataset, "spread") == [*range(36, 40), *range(51, 55), *range(56, 60)]
    assert report.counts.reasons == {"over 4 per cluster": 48}
    with pytest.raises(ConfigError, match="only 60 pictures are left"):
        run(dataset, "many", cap=4, cap_by="cluster", clusters=61)
    with pytest.raises(InputError, match="nothing is left"):
        run(dataset, "none", cap=4, cap_by="cluster", where="aesthetic_v2 > 1000")


@pytest.mark.parametrize("form", ["txt", "json"])
def test_captions_are_balanced_by_a_list_of_entries(dataset, tmp_path, form):
    entries = ["dog", "red fox", "never seen"]
    listed = tmp_path / f"metadata.{form}"
    listed.write_text(json.dumps(entries) if form == "json" else "\n".join(entries))
    report = run(dataset, f"even-{form}", balance=str(listed), balance_cap=10)
    assert report.counts.reasons["no entry of the list"] == 1
    over = report.counts.reasons["over 10 per entry"]
    left = kept(dataset, f"even-{form}")
    assert set(range(50, 60)) <= set(left) and 0 not in left
    # Of 49 dogs each stays with a chance of 10/49: 10 are expected, with a deviation of 2.8.
    assert 2 <= 49 - over <= 19
    ledger = pq.read_table(dataset.path / f"subsets/even-{form}/dropped.parquet").to_pylist()
    assert {row["value"] for row in ledger if row["reason"].startswith("over")} == {"dog"}
    other = run(dataset, f"seed-{form}", balance=str(listed), balance_cap=10, shuffle_seed=5)
    assert kept(dataset, f"seed-{form}") != left
    assert other.counts.adds_up()


def test_a_changed_list_is_another_recipe(dataset, tmp_path):
    listed = tmp_path / "entries.txt"
    listed.write_text("dog")
    run(dataset, "dogs", balance=str(listed))
    listed.write_text("fox")
    with pytest.raises(StaleOutput, match="content of balance"):
        run(dataset, "dogs", balance=str(listed))


def test_a_list_that_is_none_says_so(dataset, tmp_path):
    (tmp_path / "m.json").write_text('{"dog": 1}')
    with pytest.raises(InputError, match="must hold a JSON list of texts"):
        run(dataset, "bad", balance=str(tmp_path / "m.json"))
    with pytest.raises(ConfigError, match="caption='nothing' is no column"):
        run(dataset, "bad", balance=str(tmp_path / "m.json"), caption="nothing")


def test_pictures_near_those_of_a_folder_are_dropped(tmp_path):
    """The folder is embedded by the model that embedded the dataset."""
    model = load_model("tiny")
    shown = [decode(small_dataset.picture(i)).rgb for i in range(7)]
    made = SmallDataset(tmp_path / "laion", laion_rows(7)).write_metadata().write_shards()
    made.write_embeddings("tiny", model.encode_images(shown))
    (tmp_path / "eval/deep").mkdir(parents=True)
    (tmp_path / "eval/deep/three.jpg").write_bytes(small_dataset.picture(3))
    run(made, "clean", decontaminate=str(tmp_path / "eval"), decontaminate_cosine=0.9999)
    ledger = pq.read_table(made.path / "subsets/clean/dropped.parquet").to_pylist()
    assert [(row["key"], row["reason"]) for row in ledger] == [(made.key(3), "near-evaluation")]
    assert ledger[0]["value"].startswith("deep/three.jpg, cosine 1.0")
    (tmp_path / "eval/broken.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"broken.png is no usable picture"):
        run(made, "bad", decontaminate=str(tmp_path / "eval"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds neither pictures nor embeddings"):
        run(made, "bad", decontaminate=str(tmp_path / "empty"))
