"""Loading a subset: each sample once, the same for shards and views, split, shuffled, resumed."""

import gc

import fsspec
import pytest
import torch.utils.data
import webdataset
from fsspec.implementations.memory import MemoryFileSystem

from laionkit.core.errors import InputError
from laionkit.stages.subset import SubsetConfig, subset
from laionkit.stages.subset.loading import load
from tests.small_dataset import SmallDataset, laion_rows, picture

ROWS = 45


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> SmallDataset:
    made = SmallDataset(tmp_path_factory.mktemp("load") / "laion", laion_rows(ROWS))
    made.write_metadata().write_shards({3: "timeout"})
    for name, form in (("tars", "shards"), ("view", "view"), ("list", "parquet")):
        config = SubsetConfig(name=name, as_=form, samples_per_shard=10, shuffle_seed=5)
        subset(made.url, config)
    subset(made.url, SubsetConfig(name="ordered", as_="view"))
    return made


def stream(dataset: SmallDataset, name: str, **settings: int) -> list[dict]:
    found = list(load(dataset.url, name, **settings))
    gc.collect()
    return found


def keys(samples: list[dict]) -> list[str]:
    return [sample["__key__"] for sample in samples]


def test_shards_and_views_give_the_same_samples_in_the_same_order(dataset):
    tars, view = stream(dataset, "tars", shuffle=0), stream(dataset, "view", shuffle=0)
    for sample in (*tars, *view):
        del sample["__url__"]
    assert tars == view
    assert len(tars) == ROWS - 1
    row = next(s for s in tars if s["__key__"] == dataset.key(7))
    assert row["jpg"] == picture(7)
    assert row["txt"] == b"picture number 7 of a series"


@pytest.mark.parametrize("name", ["tars", "view"])
def test_a_shuffle_gives_each_sample_once_and_another_order_each_epoch(dataset, name):
    pipeline = load(dataset.url, name, shuffle=8, seed=1)
    first, second = keys(list(pipeline)), keys(list(pipeline))
    assert sorted(first) == sorted(second) == sorted(set(first))
    assert first != second
    assert keys(stream(dataset, name, shuffle=8, seed=1)) == first
    assert keys(stream(dataset, name, shuffle=8, seed=2)) != first


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_nodes_share_the_samples_between_them(dataset, monkeypatch, world):
    found = []
    for rank in range(world):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(world))
        found += keys(stream(dataset, "view", shuffle=8))
    assert len(found) == ROWS - 1
    assert len(set(found)) == ROWS - 1


def test_loader_workers_share_the_samples_between_them(dataset):
    loader = torch.utils.data.DataLoader(
        load(dataset.url, "tars", shuffle=8), batch_size=None, num_workers=2
    )
    found = keys(list(loader))
    assert len(found) == len(set(found)) == ROWS - 1


@pytest.mark.parametrize("taken", [0, 1, 9, 10, 43])
def test_a_resumed_run_goes_on_where_it_stopped(dataset, taken):
    whole = load(dataset.url, "tars", shuffle=8)
    wanted = [keys(list(whole)), keys(list(whole))]
    stopped = load(dataset.url, "tars", shuffle=8)
    running = iter(stopped)
    begun = [next(running)["__key__"] for _ in range(taken)]
    state = stopped.state_dict()
    running.close()
    again = load(dataset.url, "tars", shuffle=8)
    again.load_state_dict(state)
    assert begun + keys(list(again)) == wanted[0]
    assert keys(list(again)) == wanted[1]


def test_webdataset_s_own_steps_follow(dataset):
    pipeline = load(dataset.url, "view").decode("rgb8").to_tuple("jpg", "txt", "json").batched(4)
    images, texts, rows = next(iter(pipeline))
    assert images.shape == (4, 32, 32, 3)
    assert texts[0].startswith("picture number")
    assert rows[0]["status"] == "success"
    gc.collect()


@pytest.mark.parametrize(("name", "most"), [("tars", 0), ("view", 24), ("ordered", 6)])
def test_an_object_store_is_asked_for_many_samples_at_a_time(dataset, monkeypatch, name, most):
    """No range is asked for where tars are read whole, few where pictures lie side by side."""
    memory = fsspec.filesystem("memory")
    memory.put(dataset.url, "/laion", recursive=True)
    asked = []
    cat_file = MemoryFileSystem.cat_file

    def counted(self, path, start=None, end=None, **settings):
        asked.append((path, start))
        return cat_file(self, path, start, end, **settings)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", counted)
    try:
        found = list(load("memory://laion", name, shuffle=0))
    finally:
        memory.rm("/laion", recursive=True)
    here = stream(dataset, name, shuffle=0)
    assert [{**s, "__url__": ""} for s in found] == [{**s, "__url__": ""} for s in here]
    assert len([start for path, start in asked if path.endswith(".tar")]) <= most
    gc.collect()


def test_a_list_of_links_has_no_pictures_to_load(dataset):
    with pytest.raises(InputError, match="it has no pictures"):
        load(dataset.url, "list")
    with pytest.raises(InputError, match="no subset 'tar'"):
        load(dataset.url, "tar")


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves them open
def test_plain_webdataset_reads_the_same_samples(dataset):
    urls = sorted(str(p) for p in (dataset.path / "subsets/tars").glob("*.tar"))
    plain = list(webdataset.WebDataset(urls, shardshuffle=False))
    ours = stream(dataset, "tars", shuffle=0)
    assert [(s["__key__"], s["jpg"], s["json"]) for s in plain] == [
        (s["__key__"], s["jpg"], s["json"]) for s in ours
    ]
    gc.collect()
