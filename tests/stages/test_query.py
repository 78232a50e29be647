"""The query stage: text and image queries with a real model, the contact sheet."""

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from laionkit.backends.heads import Head, Layer, save_head
from laionkit.backends.knn import Neighbours
from laionkit.core.errors import ConfigError, InputError
from laionkit.core.runner import Runner
from laionkit.search.hits import Hits, make_hits
from laionkit.stages.embed import EmbedConfig, embed
from laionkit.stages.index import index
from laionkit.stages.query import QueryConfig, open_searcher, query, query_file
from laionkit.stages.query import answer as find
from laionkit.stages.score import ScoreConfig, score
from tests.fault_server import FaultServer
from tests.stages.shards import shard_of, write_shards

CPU = Runner(device="cpu")


def answer(*asked: object, **more: object) -> Hits:
    return make_hits(find(*asked, **more))


@pytest.fixture(scope="module")
def samples():
    return [sample for number in range(2) for sample in shard_of(number, 8)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, small_clip, samples):
    place = tmp_path_factory.mktemp("query")
    write_shards(place, {f"{number:05d}": samples[8 * number :][:8] for number in range(2)})
    config = EmbedConfig(model=f"local-dir:{small_clip}", precision="fp32", as_name="small")
    embed(str(place), config, runner=CPU)
    index(str(place))
    return str(place)


@pytest.fixture(scope="module")
def searcher(dataset):
    return open_searcher(dataset, runner=CPU)


def test_a_picture_finds_itself(searcher, samples, tmp_path):
    key, data, caption = samples[11]
    file = tmp_path / "query.jpg"
    file.write_bytes(data)
    for image in (data, str(file), file):
        hits = answer(searcher, QueryConfig(k=3), image=image)
        assert hits.key[0] == key
        assert hits.match[0] == pytest.approx(1, abs=2e-3)
        assert (hits.caption[0], hits.url[0]) == (caption, f"http://x/{key}")


def test_a_picture_behind_a_url_is_fetched_as_guarded_as_links_are(
    dataset, searcher, samples, tmp_path
):
    key, data, _ = samples[11]
    with FaultServer({"11.jpg": data}) as server:
        url = f"{server.url}/img/11.jpg"
        with pytest.raises(InputError, match="not a public address; --allow-private"):
            answer(searcher, QueryConfig(k=1), image=url)
        assert not server.requests
        hits = query(dataset, None, QueryConfig(k=1, allow_private=True), image=url, runner=CPU)
        assert hits.key[0] == key
        near = open_searcher(dataset, runner=CPU, allow_private=True)
        wish = QueryConfig(k=16, plus=(f"image={url}",))
        assert answer(near, wish).key[0] == key
        away = QueryConfig(k=16, minus=(f"image={url}",))
        assert answer(near, away).key.iloc[-1] == key
        server.requests.clear()
        (tmp_path / "texts.txt").write_text("a\nb\nc\n")
        many = QueryConfig(k=1, plus=(f"9:image={url}",), allow_private=True)
        out = str(tmp_path / "hits.parquet")
        assert query_file(dataset, f"{tmp_path}/texts.txt", out, many, runner=CPU) == 3
        assert server.requests.total() == 1
        for path, reason in (
            ("/missing", "http_not_found"),
            ("/html", "no usable picture"),
            ("/endless", "too_many_bytes"),
        ):
            with pytest.raises(InputError, match=reason):
                near.search(image=server.url + path)
    with pytest.raises(InputError, match="only http and https"):
        near.search(image="file:///etc/passwd")


def test_text_and_picture_together_rank_by_the_sum_of_their_cosines(searcher, samples):
    both = answer(searcher, QueryConfig(k=16), samples[2][2], image=samples[5][1])
    text, image = (
        answer(searcher, QueryConfig(k=16), samples[2][2]).set_index("key").match,
        answer(searcher, QueryConfig(k=16), image=samples[5][1]).set_index("key").match,
    )
    wanted = (text + image)[both.key]
    assert np.allclose(wanted, wanted.sort_values(ascending=False), atol=1e-5)


def test_a_text_is_ranked_by_its_cosine_with_each_picture(dataset, searcher, samples):
    hits = query(dataset, samples[3][2], runner=CPU)
    assert len(hits) == 10
    assert hits.match.is_monotonic_decreasing
    scored = hits.set_index("key")
    own = scored[scored.caption == samples[3][2]]
    assert np.allclose(own.match, own.clip_similarity, atol=2e-3)


def test_a_filter_applies_inside_the_search(searcher):
    config = QueryConfig(k=5, where="caption like '% of 1' and clip_similarity > -2")
    hits = answer(searcher, config, "anything")
    assert len(hits) == 5
    assert set(hits["shard"]) == {"00001"}


def test_a_sheet_shows_the_hits(searcher, samples, tmp_path):
    path = tmp_path / "hits.png"
    answer(searcher, QueryConfig(k=7, sheet=str(path)), image=samples[0][1])
    sheet = cv2.imread(str(path))[:, :, ::-1].astype(int)
    height, width = sheet.shape[:2]
    assert (height, width) > (600, 1200)
    first = cv2.imdecode(np.frombuffer(samples[0][1], np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    middle = first[first.shape[0] // 2, first.shape[1] // 2].astype(int)
    shown = sheet[94 + 12 + 110, 28 + 12 + 110]
    assert np.abs(shown - middle).max() < 12


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"sheet": "hits.jpg"}, ConfigError, "PNG"),
        ({"sheet": "/nowhere/hits.png"}, InputError, "no folder"),
        ({"where": "caption lik 'a'"}, ConfigError, "--where"),
    ],
)
def test_a_wrong_setting_is_one_clear_line(searcher, settings, error, message):
    with pytest.raises(error, match=message):
        answer(searcher, QueryConfig(**settings), "a")


def test_a_query_image_that_is_none_is_one_clear_line(searcher, tmp_path):
    with pytest.raises(InputError, match="no usable picture"):
        answer(searcher, QueryConfig(), image=b"<html>")
    with pytest.raises(InputError, match="cannot be read"):
        answer(searcher, QueryConfig(), image=tmp_path / "nothing.jpg")


def test_an_empty_text_is_refused(searcher):
    with pytest.raises(ConfigError, match="empty"):
        answer(searcher, QueryConfig(), " ")


def test_words_against_push_hits_down(searcher, samples):
    plain = answer(searcher, QueryConfig(k=16), samples[2][2])
    pushed = answer(searcher, QueryConfig(k=16, minus=(f"0.9:{samples[9][2]}",)), samples[2][2])
    assert sorted(plain.key) == sorted(pushed.key)
    assert plain.key.tolist() != pushed.key.tolist()
    words = answer(searcher, QueryConfig(k=16, plus=(samples[2][2],)))
    assert words.key.tolist() == plain.key.tolist()


def test_a_boost_by_an_affine_head_is_exact(dataset, searcher, samples, tmp_path):
    vectors = searcher.vectors_of(np.arange(16))
    weights = np.random.default_rng(0).standard_normal(32)
    backbone = str(searcher.facts["backbone"])
    layer = Layer(weights[None].astype(np.float32) * 9, np.ones(1, np.float32))
    save_head(tmp_path / "taste.safetensors", Head("taste", backbone, "", (layer,)))
    score(dataset, ScoreConfig(heads=(str(tmp_path / "taste.safetensors"),)), runner=CPU)
    opened = open_searcher(dataset, runner=CPU)
    with pytest.raises(ConfigError, match=r"give the head's file"):
        answer(opened, QueryConfig(boost=("taste=0.7",)), "a")
    boost = f"{tmp_path / 'taste.safetensors'}=0.7"
    hits = answer(opened, QueryConfig(k=16, boost=(boost,)), samples[2][2])
    asked = opened.query_vector(samples[2][2])
    wanted = vectors @ asked + 0.7 * (vectors @ weights) / np.linalg.norm(weights)
    table = opened.describe(Neighbours(np.zeros(16, np.float32), np.arange(16)))
    assert hits.key.tolist() == table["key"].take(np.argsort(-wanted)).to_pylist()


def test_many_queries_go_to_parquet_and_a_bad_one_is_named(dataset, samples, tmp_path):
    (tmp_path / "texts.txt").write_text(f"{samples[3][2]}\n\n{samples[9][2]}\n")
    out = str(tmp_path / "hits.parquet")
    found = query_file(dataset, f"{tmp_path}/texts.txt", out, QueryConfig(k=4), runner=CPU)
    hits = pq.read_table(out).to_pandas()
    assert found == len(hits) == 8
    assert hits["query"].tolist() == [0] * 4 + [1] * 4
    assert hits["rank"].tolist() == [1, 2, 3, 4] * 2
    assert set(hits.text) == {samples[3][2], samples[9][2]}
    np.save(tmp_path / "nan.npy", np.array([np.ones(32), np.full(32, np.nan)], np.float32))
    with pytest.raises(InputError, match=r"query 1 of 2 .*NaN"):
        query_file(dataset, f"{tmp_path}/nan.npy", str(tmp_path / "no.parquet"), runner=CPU)
    assert not (tmp_path / "no.parquet").exists()
    with pytest.raises(InputError, match="there is no folder"):
        query_file(dataset, f"{tmp_path}/texts.txt", "/nowhere/hits.parquet", runner=CPU)
    np.save(tmp_path / "int8.npy", np.ones((2, 32), np.int8))
    with pytest.raises(InputError, match="it holds int8"):
        query_file(dataset, f"{tmp_path}/int8.npy", out, runner=CPU)
