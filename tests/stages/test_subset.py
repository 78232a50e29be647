"""subset: what stays, why the rest does not, what is written, and what stops it."""

import gc
import io
import json
import re
import shutil
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset

from laionkit.core.errors import ConfigError, InputError, StageFailed, StaleOutput
from laionkit.core.records import StageRecords
from laionkit.core.runner import Runner
from laionkit.core.schemas import SHARD_RECORDS
from laionkit.stages.subset import SubsetConfig, subset
from laionkit.stages.subset.manifest import verify
from tests.small_dataset import SmallDataset, laion_rows, picture

ROWS = 25
LOST = {3: "http_not_found", 12: "timeout", 24: "timeout"}
AESTHETIC = {i: i / 4 for i in range(ROWS) if i not in LOST and i != 10}


@pytest.fixture
def dataset(tmp_path) -> SmallDataset:
    made = SmallDataset(tmp_path / "laion", laion_rows(ROWS)).write_metadata().write_shards(LOST)
    return made.write_score("aesthetic_v2", AESTHETIC, head="aesthetic-v2")


def run(dataset: SmallDataset, runner: Runner | None = None, **settings: object):
    config = SubsetConfig.build({"name": "best", **settings}, "subset")
    return subset(dataset.url, config, runner=runner or Runner())


def kept(dataset: SmallDataset, name: str = "best") -> pa.Table:
    return pq.read_table(dataset.path / f"subsets/{name}/kept.parquet")


def dropped(dataset: SmallDataset, name: str = "best") -> dict[str, tuple[str, str | None]]:
    table = pq.read_table(dataset.path / f"subsets/{name}/dropped.parquet")
    return {row["key"]: (row["reason"], row["value"]) for row in table.to_pylist()}


def members(dataset: SmallDataset, tar: str = "00000", name: str = "best") -> dict[str, bytes]:
    with tarfile.open(dataset.path / f"subsets/{name}/{tar}.tar") as opened:
        return {m.name: opened.extractfile(m).read() for m in opened}


def test_every_sample_is_kept_or_dropped_for_the_first_step_it_failed(dataset):
    report = run(dataset, where="aesthetic_v2 >= 2 AND punsafe < 0.5")
    expected = {}
    for i in range(ROWS):
        if i in LOST:
            expected[dataset.key(i)] = (LOST[i], None)
        elif i == 10:
            expected[dataset.key(i)] = ("null:aesthetic_v2", None)
        elif i / 4 < 2:
            expected[dataset.key(i)] = ("aesthetic_v2 >= 2", str(i / 4))
        elif i % 5 == 4:
            expected[dataset.key(i)] = ("null:punsafe", None)
        elif i / ROWS >= 0.5:
            expected[dataset.key(i)] = ("punsafe < 0.5", str(i / ROWS))
    assert dropped(dataset) == expected
    assert kept(dataset)["key"].to_pylist() == [
        dataset.key(i) for i in range(ROWS) if dataset.key(i) not in expected
    ]
    assert report.counts.adds_up()
    assert report.counts.seen == ROWS
    assert report.counts.reasons["null:punsafe"] == 3
    assert report.extra["funnel"][0] == ["picture fetched", ROWS, 3]
    assert [step[0] for step in report.extra["funnel"]] == [
        "picture fetched",
        "aesthetic_v2 >= 2",
        "punsafe < 0.5",
    ]


def test_tars_hold_the_pictures_own_bytes_captions_and_every_score(dataset):
    run(dataset, where="aesthetic_v2 >= 5.5")
    found = members(dataset)
    keys = [dataset.key(i) for i in (22, 23)]
    assert list(found) == [f"{key}.{e}" for key in keys for e in ("jpg", "txt", "json")]
    assert found[f"{keys[0]}.jpg"] == picture(22)
    assert found[f"{keys[0]}.txt"] == b"picture number 22 of a series"
    line = json.loads(found[f"{keys[0]}.json"])
    assert line["aesthetic_v2"] == 5.5
    assert line["key"] == keys[0]
    assert line["original_width"] == 322
    assert line["exif"] is None
    assert list(line) == list(json.loads(found[f"{keys[1]}.json"]))
    sizes = json.loads((dataset.path / "subsets/best/sizes.json").read_text())
    assert sizes == {"00000.tar": 2}
    assert kept(dataset)["subset_shard"].to_pylist() == ["00000", "00000"]


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves them open
def test_webdataset_reads_what_was_written(dataset):
    run(dataset, where="aesthetic_v2 >= 4", samples_per_shard=3)
    urls = sorted(str(p) for p in (dataset.path / "subsets/best").glob("*.tar"))
    read = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    assert [sample["__key__"] for sample in read] == kept(dataset)["key"].to_pylist()
    assert read[0]["jpg"].shape == (32, 32, 3)
    assert read[0]["json"]["aesthetic_v2"] == 4.0
    gc.collect()


def test_shards_are_cut_at_their_size_and_row_groups_with_them(dataset):
    report = run(dataset, samples_per_shard=10)
    assert report.counts.ok == 22
    sizes = json.loads((dataset.path / "subsets/best/sizes.json").read_text())
    assert sizes == {"00000.tar": 10, "00001.tar": 10, "00002.tar": 2}
    file = pq.ParquetFile(dataset.path / "subsets/best/kept.parquet")
    assert [file.metadata.row_group(i).num_rows for i in range(3)] == [10, 10, 2]


def test_a_shuffle_moves_samples_across_shards_and_is_the_same_for_a_seed(dataset):
    orders = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(dataset, name=name, shuffle_seed=seed, samples_per_shard=10)
        orders[name] = kept(dataset, name)["key"].to_pylist()
    assert orders["a"] == orders["b"] != orders["c"]
    assert sorted(orders["a"]) == sorted(orders["c"]) != orders["a"]
    first = members(dataset, "00000", "a")
    assert list(first)[::3] == [f"{key}.jpg" for key in orders["a"][:10]]
    assert first == members(dataset, "00000", "b")


def test_the_same_recipe_gives_the_same_bytes(dataset):
    for name in ("a", "b"):
        run(dataset, name=name, where="punsafe < 0.5")
    for file in ("kept.parquet", "dropped.parquet", "00000.tar", "sizes.json"):
        one, other = (dataset.path / f"subsets/{name}/{file}" for name in ("a", "b"))
        assert one.read_bytes() == other.read_bytes(), file


def test_a_view_copies_nothing_and_says_where_pictures_lie(dataset):
    run(dataset, where="aesthetic_v2 >= 4", as_="view")
    assert not list((dataset.path / "subsets/best").glob("*.tar"))
    for row in pq.read_table(dataset.path / "subsets/best/view.parquet").to_pylist():
        with (dataset.path / f"shards/{row['shard']}.tar").open("rb") as file:
            file.seek(row["image_offset"])
            assert file.read(row["image_size"]) == picture(int(row["key"][-6:]) % 1000)


@pytest.mark.parametrize("form", ["shards", "view", "parquet"])
def test_a_subset_is_verified_and_a_change_anywhere_is_found(dataset, form):
    run(dataset, where="aesthetic_v2 >= 2", as_=form, shuffle_seed=3, samples_per_shard=4)
    manifest = json.loads((dataset.path / "subsets/best/manifest.json").read_text())
    found = verify(dataset.url, "best")
    assert found.ok, found.problems
    assert (found.root, found.samples) == (manifest["root"], manifest["samples"])
    for file in sorted((dataset.path / "subsets/best").iterdir()):
        before = file.read_bytes()
        file.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        assert not verify(dataset.url, "best").ok, file.name
        file.write_bytes(before)
    assert verify(dataset.url, "best").ok


def test_a_view_notices_that_the_pictures_below_it_changed(dataset):
    run(dataset, where="aesthetic_v2 >= 2", as_="view")
    tar = dataset.path / "shards/00001.tar"
    tar.write_bytes(tar.read_bytes().replace(picture(15), picture(16)[: len(picture(15))]))
    (problem,) = verify(dataset.url, "best").problems
    assert problem == f"sample {dataset.key(15)} is not what was written"


def test_the_root_depends_on_content_alone(dataset, tmp_path):
    roots = set()
    copy = shutil.copytree(dataset.path, tmp_path / "elsewhere")
    for url, name, settings in (
        (dataset.path, "a", {}),
        (dataset.path, "b", {"samples_per_shard": 3, "as_": "view"}),
        (copy, "c", {}),
    ):
        config = SubsetConfig.build({"name": name, "where": "punsafe < 0.5", **settings}, "subset")
        subset(str(url), config)
        roots.add(json.loads((url / f"subsets/{name}/manifest.json").read_text())["root"])
    assert len(roots) == 1
    run(dataset, name="d", where="punsafe < 0.4")
    assert verify(dataset.url, "d").root not in roots


def test_a_subset_that_is_not_there_gets_a_suggestion(dataset):
    run(dataset)
    with pytest.raises(InputError, match=r"no subset 'bst' \(did you mean best\?\)"):
        verify(dataset.url, "bst")


def test_a_list_needs_no_pictures(tmp_path):
    links = SmallDataset(tmp_path / "links", laion_rows(ROWS)).write_metadata()
    report = run(links, preset="relaion-safe", as_="parquet")
    assert report.counts.reasons == {"null:punsafe": 5, "punsafe <= 0.45": 10}
    assert kept(links)["url"].to_pylist()[0].startswith("http://")
    with pytest.raises(ConfigError, match="has no pictures: run laionkit fetch, or add --as"):
        run(links, name="pictures", preset="relaion-safe")


def test_links_not_tried_yet_are_dropped_as_not_fetched(tmp_path):
    half = SmallDataset(tmp_path / "half", laion_rows(ROWS)).write_metadata()
    half.write_shards(LOST, only=["00000"])
    report = run(half)
    assert report.counts.reasons == {"http_not_found": 1, "not_fetched": 15}


def test_nulls_can_be_kept(dataset):
    report = run(dataset, where="punsafe < 0.5", keep_nulls=True)
    assert set(report.counts.reasons) == {"http_not_found", "timeout", "punsafe < 0.5"}


def test_raising_a_threshold_never_adds_samples(dataset):
    before = None
    for name, least in (("a", 1), ("b", 3), ("c", 5)):
        run(dataset, name=name, where=f"aesthetic_v2 >= {least}")
        now = set(kept(dataset, name)["key"].to_pylist())
        assert before is None or now < before
        before = now


def test_the_best_share_is_a_step_after_the_filters(dataset):
    report = run(dataset, preset="clip-top-30", where="punsafe < 0.5")
    # of rows 0-12, 3 and 12 were not had and 4 and 9 have no punsafe: 9 are left, 3 stay
    assert kept(dataset)["key"].to_pylist() == [dataset.key(i) for i in (8, 10, 11)]
    assert report.counts.reasons["top 30 % by similarity"] == 6
    assert dropped(dataset)[dataset.key(0)] == ("top 30 % by similarity", "0.2")


def test_a_preset_tests_original_sides_and_refuses_pictures_stored_smaller(dataset):
    with pytest.raises(ConfigError, match="sides of 512 px, and 2 of 2 pictures are stored"):
        run(dataset, preset="sd-v1")
    report = run(dataset, preset="sd-v1", allow_small=True)
    assert kept(dataset)["key"].to_pylist() == [dataset.key(i) for i in (21, 23)]
    assert report.counts.reasons["original_width >= 512"] == 1
    assert dropped(dataset)[dataset.key(22)] == ("original_width >= 512", "322")


def test_a_preset_that_has_no_column_fails_before_any_work(tmp_path):
    links = SmallDataset(tmp_path / "links", laion_rows(3)).write_metadata()
    with pytest.raises(ConfigError, match="aesthetic_v2 or aesthetic_v2_published"):
        run(links, preset="laion-aesthetics-v2-6plus", as_="parquet")
    assert not (links.path / "subsets").exists()


def test_the_same_command_again_does_nothing(dataset):
    first = run(dataset, where="punsafe < 0.5")
    stamp = (dataset.path / "subsets/best/00000.tar").stat().st_mtime_ns
    again = run(dataset, where="punsafe < 0.5")
    assert (first.skipped, again.skipped) == (0, 1)
    assert again.counts == first.counts
    assert (dataset.path / "subsets/best/00000.tar").stat().st_mtime_ns == stamp


def test_another_recipe_under_the_same_name_is_refused(dataset):
    run(dataset, where="punsafe < 0.5")
    with pytest.raises(StaleOutput, match=r"where='punsafe < 0\.5'"):
        run(dataset, where="punsafe < 0.2")
    run(dataset, Runner(fresh=True, yes=True), where="punsafe < 0.2")
    assert all(p < 0.2 for p in kept(dataset)["punsafe"].to_pylist())


def test_scores_that_came_later_make_the_subset_again(dataset):
    assert run(dataset, where="punsafe < 0.5").skipped == 0
    dataset.write_score("nsfw_l14", {i: 0.1 for i in range(ROWS)})
    assert run(dataset, where="punsafe < 0.5").skipped == 0
    assert "nsfw_l14" in kept(dataset).column_names
    assert not [p.name for p in (dataset.path / "subsets").iterdir() if p.name != "best"]


def test_an_empty_result_is_an_error_and_publishes_nothing(dataset):
    with pytest.raises(InputError, match=r"nothing is left.*25 samples, 3 dropped by picture"):
        run(dataset, where="aesthetic_v2 >= 99")
    assert not list(dataset.path.glob("subsets/*"))
    with pytest.raises(InputError, match="has no subset 'best': it has none"):
        verify(dataset.url, "best")
    assert run(dataset, where="aesthetic_v2 >= 5").counts.ok


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"where": "aestetic_v2 > 5"}, "did you mean aesthetic_v2"),
        ({"where": "width + 1"}, "is no condition"),
        ({"where": "(select 1)"}, "a subquery"),
        ({"preset": "sd-v11"}, "did you mean sd-v1"),
        ({"caption": "captoin"}, "is no column"),
        ({"top": 3}, "^subset: top needs by"),
        ({"top": 3, "top_share": 0.5, "by": "punsafe"}, "exclude each other"),
        ({"top": 3, "by": "caption"}, "by='caption' holds VARCHAR: name a column of numbers"),
        ({"match_above": 0.3}, "match_above needs query or queries"),
        ({"any_of": "a,b"}, "has no subset 'a': it has none"),
        ({"dedup": "exact,fuzzy"}, r"dedup.1='fuzzy'"),
        ({"name": "../x"}, "use letters, digits"),
        ({"samples_per_shard": 0}, "greater than or equal to 1"),
        ({"nam": "x"}, "did you mean name"),
        ({"as": "tar"}, "as_='tar'"),
    ],
)
def test_a_mistake_is_one_line_before_any_work(dataset, settings, said):
    with pytest.raises((ConfigError, InputError), match=said) as caught:
        run(dataset, **settings)
    assert "\n" not in str(caught.value)
    assert not (dataset.path / "subsets").exists()


def test_a_value_that_cannot_be_converted_is_one_line(dataset):
    with pytest.raises(ConfigError, match="Could not convert"):
        run(dataset, where="cast(caption as int) > 1")
    assert not list(dataset.path.glob("subsets/*"))


def test_what_a_tar_does_not_hold_is_dropped_with_its_reason(dataset):
    path = dataset.path / "shards/00001.tar"
    path.write_bytes(path.read_bytes()[:4096])
    report = run(dataset)
    assert report.counts.reasons["corrupt_tar"] > 0
    assert report.counts.adds_up()
    assert dropped(dataset)[dataset.key(19)][0] == "corrupt_tar"


def test_a_tar_that_was_replaced_by_another_is_one_line(dataset):
    path = dataset.path / "shards/00001.tar"
    with tarfile.open(path) as tar:
        members = [(info.name, tar.extractfile(info).read()) for info in tar]
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data) + 1024
            tar.addfile(info, io.BytesIO(data + bytes(1024)))
    with pytest.raises(InputError, match=r"00001\.tar has .* it was replaced since"):
        run(dataset)
    assert not (dataset.path / "subsets/best/kept.parquet").exists()


def test_a_tar_of_the_same_size_with_other_members_is_one_line(dataset):
    path = dataset.path / "shards/00001.tar"
    size = path.stat().st_size
    with tarfile.open(path) as tar:
        members = [(info, tar.extractfile(info).read()) for info in tar]
    with tarfile.open(path, "w") as tar:
        for info, data in members:
            info.name = info.name.replace(dataset.key(10), "x" * len(dataset.key(10)))
            tar.addfile(info, io.BytesIO(data))
    assert path.stat().st_size == size
    with pytest.raises(InputError, match=r"00001\.tar has .* or other members: it was replaced"):
        run(dataset)


def test_tars_are_walked_through_only_where_no_places_were_noted(dataset, monkeypatch):
    run(dataset, name="noted")
    records = StageRecords(dataset.folder, SHARD_RECORDS)
    for record in list(records.all()):
        files = {role: entry for role, entry in record.files.items() if role != "places"}
        records.commit(record.model_copy(update={"files": files}))
    run(dataset, name="walked")
    for name in ("kept.parquet", "00000.tar"):
        noted, walked = (dataset.path / f"subsets/{n}/{name}" for n in ("noted", "walked"))
        assert noted.read_bytes() == walked.read_bytes()
    monkeypatch.delattr("laionkit.stages.subset.pictures.read_images")
    with pytest.raises(NameError, match="read_images"):
        run(dataset, name="again")
    dataset.write_shards(LOST)
    run(dataset, name="again")


def test_a_run_that_dies_leaves_what_was_there(dataset, monkeypatch):
    run(dataset, where="punsafe < 0.5")
    before = (dataset.path / "subsets/best/kept.parquet").read_bytes()
    dataset.write_score("nsfw_l14", {i: 0.1 for i in range(ROWS)})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("laionkit.core.files.HashingFile.write", full)
    with pytest.raises(StageFailed, match="no space left on the disk"):
        run(dataset, where="punsafe < 0.5")
    assert (dataset.path / "subsets/best/kept.parquet").read_bytes() == before
    assert [p.name for p in (dataset.path / "subsets").iterdir()] == ["best"]


def test_numbers_that_json_has_not_are_null(dataset):
    dataset.write_score("odd", {i: float("nan") for i in range(ROWS)})
    run(dataset, where="aesthetic_v2 >= 5")
    first = next(v for k, v in members(dataset).items() if k.endswith(".json"))
    assert json.loads(first, parse_constant=pytest.fail)["odd"] is None


def test_a_dry_run_says_what_would_be_kept_and_writes_nothing(dataset):
    settings = {"where": "aesthetic_v2 >= 2 AND punsafe < 0.5 AND length(caption) > 3"}
    guess = run(dataset, dry_run=True, **settings)
    assert not (dataset.path / "subsets").exists()
    assert not (dataset.path / ".laionkit/subset").exists()
    report = run(dataset, **settings)
    assert guess.counts == report.counts
    assert guess.extra["funnel"] == report.extra["funnel"]
    assert guess.extra["bytes"] > 0
    points = guess.extra["thresholds"]["aesthetic_v2 >= 2"]
    assert len(points) == 20
    assert set(guess.extra["thresholds"]) == {"aesthetic_v2 >= 2", "punsafe < 0.5"}
    for number in (0, 7, 19):
        least, count = points[number]
        where = f"aesthetic_v2 >= {least} AND punsafe < 0.5"
        assert run(dataset, dry_run=True, where=where).counts.ok == count


def test_a_dry_run_counts_the_steps_over_more_than_one_row_too(dataset):
    settings = {"dedup": ("exact",), "top": 5, "by": "aesthetic_v2", "as_": "view"}
    guess = run(dataset, dry_run=True, **settings)
    assert guess.counts == run(dataset, **settings).counts


def test_the_card_tells_the_funnel(dataset):
    run(dataset, where="aesthetic_v2 >= 2 AND punsafe < 0.5")
    card = (dataset.path / "subsets/best/README.md").read_text()
    assert "| `picture fetched` | 25 | 3 | 22 |  |" in card
    assert "| `aesthetic_v2 >= 2` | 22 | 8 | 14 | 7 |" in card
    assert "| `null:punsafe` | 3 |" in card
    assert "- `where`: `aesthetic_v2 >= 2 AND punsafe < 0.5`" in card


def test_the_report_stands_alone_escapes_the_data_and_shows_nothing_unsafe(tmp_path):
    rows = [
        {**row, "url": f"http://x<script>alert({i})</script>.example/{i}.jpg"}
        for i, row in enumerate(laion_rows(ROWS))
    ]
    dataset = SmallDataset(tmp_path / "odd", rows).write_metadata().write_shards(LOST)
    dataset.write_score("aesthetic_v2", AESTHETIC, head="aesthetic-v2")
    run(dataset, where="aesthetic_v2 >= 0")
    page = (dataset.path / "subsets/best/report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert 'src="http' not in page
    assert page.count("data:image/jpeg;base64,") == 3
    assert f'alt="{dataset.key(0)}"' in page
    assert "Shown are kept pictures with punsafe below 0.1 only." in page


def test_histograms_leave_nulls_out_and_name_each_threshold(dataset):
    run(dataset, where="aesthetic_v2 >= 2 AND aesthetic_v2 < 5 AND punsafe < 0.9")
    page = (dataset.path / "subsets/best/report.html").read_text()
    assert "<b>aesthetic_v2</b> at 2, 5</span>" in page
    assert "<b>punsafe</b> at 0.9</span>" in page
    chart = page.split("<figure>")[1]
    heights = re.findall(r'class="everyone" [^>]* height="([0-9.]+)"', chart)
    # 21 values 0.25 apart over 24 bins: one or none in each, the four nulls in none
    assert set(heights) == {"0.0", "96.0"}
    assert heights[-1] == "96.0"
