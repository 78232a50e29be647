"""Steps over more than one row: duplicates, evaluation sets, caps, the best n, other subsets."""

import json

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laionkit.core.errors import ConfigError, InputError, StaleOutput
from laionkit.core.progress import Step
from laionkit.core.runner import Runner
from laionkit.ops.vectors import unit_rows
from laionkit.stages.subset import SubsetConfig, subset
from tests import small_dataset
from tests.small_dataset import SmallDataset, laion_rows

ROWS = 25
LOST = {3: "timeout"}


def scene(row: int) -> bytes:
    """Rows 20-24 show what rows 0-4 show, at another size."""
    rng = np.random.default_rng(row % 20)
    small = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    px = 64 if row < 20 else 48
    done, data = cv2.imencode(".jpg", cv2.resize(small, (px, px), interpolation=cv2.INTER_CUBIC))
    assert done
    return data.tobytes()


def embeddings() -> np.ndarray:
    """Row 20 is nearly row 5, row 21 nearly row 6; the others are far apart."""
    emb_ND = np.random.default_rng(0).normal(size=(ROWS, 64))
    emb_ND[20] = emb_ND[5] + 0.05 * emb_ND[7]
    emb_ND[21] = emb_ND[6] + 0.05 * emb_ND[8]
    return unit_rows(emb_ND.astype(np.float32))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> SmallDataset:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small_dataset, "picture", scene)
        made = SmallDataset(tmp_path_factory.mktemp("steps") / "laion", laion_rows(ROWS))
        made.write_metadata().write_shards(LOST)
    made.write_score("aesthetic_v2", {i: (i * 7 % 25) / 4 for i in range(ROWS) if i not in LOST})
    return made.write_embeddings("clip", embeddings(), LOST)


def run(dataset: SmallDataset, name: str, **settings: object):
    settings = {"as_": "parquet", **settings}
    return subset(dataset.url, SubsetConfig.build({"name": name, **settings}, "subset"))


class Watch:
    """Keeps the steps."""

    def __init__(self) -> None:
        self.steps = []

    def emit(self, event) -> None:
        if isinstance(event, Step):
            self.steps.append((event.step, event.done, event.total, event.unit))


def kept(dataset: SmallDataset, name: str) -> list[str]:
    return pq.read_table(dataset.path / f"subsets/{name}/kept.parquet")["key"].to_pylist()


def dropped(dataset: SmallDataset, name: str, reason: str) -> dict[str, str]:
    rows = pq.read_table(dataset.path / f"subsets/{name}/dropped.parquet").to_pylist()
    return {row["key"]: row["value"] for row in rows if row["reason"] == reason}


def test_of_the_same_bytes_one_stays_and_the_others_name_it(dataset):
    run(dataset, "exact", dedup=("exact",))
    lost = dropped(dataset, "exact", "duplicate-of")
    assert lost[dataset.key(7)] == dataset.key(0)
    assert lost[dataset.key(17)] == lost[dataset.key(24)] == dataset.key(10)
    assert kept(dataset, "exact") == [dataset.key(i) for i in (0, 1, 2, 4, 5, 6, 10)]


@pytest.mark.parametrize("keep", ["largest", "aesthetic_v2"])
def test_who_stays_is_the_best_by_the_rule(dataset, keep):
    name = f"exact-{keep}"
    run(dataset, name, dedup=("exact",), dedup_keep=keep)
    rows = {i: (small_dataset.original_size(i), (i * 7 % 25) / 4) for i in range(ROWS)}
    worth = {i: (w * h if keep == "largest" else score) for i, ((w, h), score) in rows.items()}
    best = {}
    for i in sorted(set(range(ROWS)) - set(LOST), key=lambda i: (-worth[i], i)):
        best.setdefault(i % 7, i)
    assert kept(dataset, name) == sorted(dataset.key(i) for i in best.values())


def test_a_picture_at_another_size_is_a_perceptual_duplicate(dataset):
    run(dataset, "perceptual", dedup=("perceptual",), as_="shards")
    assert dropped(dataset, "perceptual", "duplicate-of") == {
        dataset.key(20 + i): dataset.key(i) for i in (0, 1, 2, 4)
    }


def test_nearly_the_same_embedding_is_a_semantic_duplicate(dataset):
    run(dataset, "semantic", dedup=("semantic",), dedup_cosine=0.98)
    assert dropped(dataset, "semantic", "duplicate-of") == {
        dataset.key(20): dataset.key(5),
        dataset.key(21): dataset.key(6),
    }


def test_what_is_near_an_evaluation_set_is_dropped(dataset, tmp_path):
    np.save(tmp_path / "eval.npy", embeddings()[[9, 5]] * 3)
    report = run(dataset, "clean", decontaminate=str(tmp_path / "eval.npy"))
    lost = dropped(dataset, "clean", "near-evaluation")
    assert set(lost) == {dataset.key(i) for i in (5, 9, 20)}
    assert lost[dataset.key(9)].startswith("row 0, cosine 1.0")
    assert report.counts.adds_up()
    with pytest.raises(InputError, match="holds vectors of 3 dimensions"):
        np.save(tmp_path / "bad.npy", np.ones((2, 3)))
        run(dataset, "bad", decontaminate=str(tmp_path / "bad.npy"))
    with pytest.raises(InputError, match="24 dropped by decontaminate"):
        run(dataset, "none", decontaminate=dataset.url, decontaminate_cosine=0.999)


def test_the_best_n_are_a_prefix_of_the_best_n_plus_one(dataset):
    for n in (3, 4, 10):
        run(dataset, f"top{n}", top=n, by="aesthetic_v2")
    best = sorted(
        (i for i in range(ROWS) if i not in LOST), key=lambda i: (-(i * 7 % 25), dataset.key(i))
    )
    for n in (3, 4, 10):
        assert kept(dataset, f"top{n}") == sorted(dataset.key(i) for i in best[:n])
    assert run(dataset, "share", top_share=0.25, by="aesthetic_v2").counts.ok == 6
    with pytest.raises(ConfigError, match="top needs by"):
        run(dataset, "bad", top=3)


def test_at_most_so_many_of_each_domain_stay(dataset):
    with pytest.raises(InputError, match="no subset 'nothing'"):
        run(dataset, "bad", none_of=("nothing",))
    report = run(dataset, "capped", cap=5, cap_by="pwatermark", by="aesthetic_v2")
    assert report.counts.reasons["over 5 per pwatermark"] == 19
    best = sorted((i for i in range(ROWS) if i not in LOST), key=lambda i: -(i * 7 % 25))[:5]
    assert kept(dataset, "capped") == sorted(dataset.key(i) for i in best)
    assert run(dataset, "domains", cap=7).counts.reasons["over 7 per domain"] == 17


def test_subsets_are_joined_cut_and_taken_away(dataset):
    run(dataset, "low", where="punsafe < 0.4")
    run(dataset, "high", where="punsafe > 0.2")
    low, high = set(kept(dataset, "low")), set(kept(dataset, "high"))
    for name, settings, wanted in (
        ("union", {"any_of": ("low", "high")}, low | high),
        ("intersection", {"all_of": ("low", "high")}, low & high),
        ("difference", {"any_of": ("low",), "none_of": ("high",)}, low - high),
    ):
        report = run(dataset, name, **settings)
        assert set(kept(dataset, name)) == wanted
        assert report.counts.adds_up()
    assert dropped(dataset, "difference", "in high").keys() == low & high


@pytest.mark.parametrize("kind", ["txt", "parquet"])
def test_a_list_of_keys_chooses(dataset, tmp_path, kind):
    wanted = [dataset.key(i) for i in (2, 5, 9)]
    path = tmp_path / f"keys.{kind}"
    if kind == "txt":
        path.write_text("\n".join([*wanted, "999999", ""]))
    else:
        pq.write_table(pa.table({"key": wanted}), path)
    run(dataset, f"listed-{kind}", keys=str(path))
    assert kept(dataset, f"listed-{kind}") == wanted


@pytest.mark.parametrize("setting", ["keys", "decontaminate"])
def test_a_changed_file_under_the_same_path_is_another_recipe(dataset, tmp_path, setting):
    name = f"given-{setting}"
    path = tmp_path / ("keys.txt" if setting == "keys" else "eval.npy")

    def write(rows: list[int]) -> None:
        if setting == "keys":
            path.write_text("\n".join(dataset.key(i) for i in rows))
        else:
            np.save(path, embeddings()[rows])

    write([2, 5, 9])
    first = run(dataset, name, **{setting: str(path)})
    root = json.loads((dataset.path / f"subsets/{name}/manifest.json").read_text())["root"]
    assert run(dataset, name, **{setting: str(path)}).skipped == 1
    write([2, 5])
    with pytest.raises(StaleOutput, match=f"content of {setting}='.*give it what it was made"):
        run(dataset, name, **{setting: str(path)})
    write([2, 5, 9])
    moved = path.rename(tmp_path / f"elsewhere{path.suffix}")
    again = run(dataset, f"{name}-2", **{setting: str(moved)})
    manifest = json.loads((dataset.path / f"subsets/{name}-2/manifest.json").read_text())
    assert (again.counts, manifest["root"]) == (first.counts, root)


def test_the_order_of_steps_is_stored(dataset):
    run(dataset, "all", dedup=("semantic", "exact"), cap=3, top=20, by="aesthetic_v2",
        where="width > 1", as_="shards")  # fmt: skip
    record = json.loads((dataset.path / ".laionkit/subset/all/all.json").read_text())
    assert [step[0] for step in record["extra"]["funnel"]] == [
        "picture fetched",
        "width > 1",
        "dedup exact",
        "dedup semantic",
        "top 20 by aesthetic_v2",
        "at most 3 per domain",
    ]


def test_a_run_tells_what_it_is_at(dataset):
    watch = Watch()
    config = SubsetConfig(name="told", as_="shards", dedup=("perceptual", "semantic"))
    subset(dataset.url, config, runner=Runner(progress=watch))
    steps = list(dict.fromkeys(step for step, *_ in watch.steps))
    assert steps == [
        "judging every sample",
        "finding the pictures",
        "dedup perceptual",
        "dedup semantic",
        "ranking and balancing",
        "writing",
        "hashing and describing",
    ]
    assert ("dedup semantic", 1, 1, "parts") in watch.steps
    rows = len(kept(dataset, "told"))
    assert [step for step in watch.steps if step[0] == "writing"] == [
        ("writing", 0, rows, "samples"),
        ("writing", rows, rows, "samples"),
    ]


def test_exact_semantic_dedup_keeps_the_same_here(dataset):
    run(dataset, "usual", dedup=("semantic",), dedup_cosine=0.98)
    run(dataset, "proved", dedup=("semantic",), dedup_cosine=0.98, dedup_exact=True)
    assert kept(dataset, "proved") == kept(dataset, "usual")
