"""Heads: the golden scores of the published files, and files that are refused."""

import csv
import functools
import hashlib
import json
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from laionkit.backends.heads import PUBLISHED, Head, Layer, files, load_head, published, save_head
from laionkit.backends.heads.scorers import open_scorers
from laionkit.core.errors import ConfigError, InputError
from laionkit.ops.vectors import unit_rows

# column of the golden files → our name
NAMES = {
    "laion_v1_vit_b_32": "aesthetic-v1-b32",
    "simulacra_vit_b_32": "simulacra-b32",
    "nsfw_vit_b_32": "nsfw-b32",
    "laion_v1_vit_l_14": "aesthetic-v1",
    "simulacra_vit_l_14": "simulacra-l14",
    "nsfw_vit_l_14": "nsfw-l14",
    "laion_v2_sac+logos+ava1-l14-linearMSE": "aesthetic-v2",
    "laion_v2_ava+logos-l14-linearMSE": "aesthetic-v2-ava-logos",
    "laion_v2_ava+logos-l14-reluMSE": "aesthetic-v2-ava-logos-relu",
}
VECTORS = {
    "flickr8k_rows_0-399": "clip/flickr8k-vitb32-rows-0-399/image_embs_fp16.npy",
    "clip-retrieval-vitb32": "clip/clip-retrieval-vitb32/image_embs_fp16.npy",
    "fashion9": "clip/fashion9-clip-retrieval-run/embeddings/img_emb/img_emb_0.npy",
    "rating_vectors_vit_b_32": "heads/laion-aesthetic-v1/rating_vectors_vit_b_32",
    "rating_vectors_vit_l_14": "heads/laion-aesthetic-v1/rating_vectors_vit_l_14",
}


def no_model():
    raise AssertionError("no words to embed")


def read_vectors(path):
    if path.is_dir():
        return np.concatenate([np.load(f).reshape(1, -1) for f in sorted(path.glob("*.npy"))])
    return np.load(path)


@pytest.mark.parametrize("golden", VECTORS)
def test_published_heads_give_the_golden_scores(golden, heads_cache, real_data):
    rows = unit_rows(read_vectors(real_data / VECTORS[golden]))
    with (real_data / "expected" / f"scores_{golden}.csv").open() as file:
        table = list(csv.DictReader(file))
    checked = 0
    for column in table[0].keys() - {"row", "name"}:
        expected = np.array([float(row[column]) for row in table])
        scores = load_head(NAMES[column]).score(rows)
        np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4)
        checked += 1
    assert checked >= 3


def test_aesthetic_v2_is_one_affine_map(heads_cache):
    affine = load_head("aesthetic-v2").affine()
    assert affine is not None
    w, b = affine
    assert np.linalg.norm(w) == pytest.approx(17.9956, abs=1e-3)
    assert b == pytest.approx(5.23665, abs=1e-4)
    assert len(load_head("aesthetic-v2").layers) == 1
    assert load_head("aesthetic-v2-ava-logos-relu").affine() is None
    assert load_head("nsfw-l14").affine() is None


def test_collapsing_a_stack_changes_no_score():
    rng = np.random.default_rng(0)
    shapes = [(16, 8), (5, 16), (1, 5)]
    layers = tuple(
        Layer(rng.normal(size=s).astype(np.float32), rng.normal(size=s[0]).astype(np.float32))
        for s in shapes
    )
    head = Head("h", "b", "0", layers)
    rows = unit_rows(rng.normal(size=(50, 8)))
    np.testing.assert_allclose(head.collapsed().score(rows), head.score(rows), atol=1e-5)


def test_unnormalised_input_is_why_scores_are_made_of_unit_rows(heads_cache, real_data):
    rows = unit_rows(read_vectors(real_data / VECTORS["rating_vectors_vit_l_14"]))
    assert (np.diff(load_head("aesthetic-v1").score(rows)) > 0).all()


def test_a_file_with_another_hash_is_refused(heads_cache):
    file = heads_cache / PUBLISHED["aesthetic-v2"].file
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match="is another file, delete it"):
        load_head("aesthetic-v2")


@pytest.fixture
def head_server(tmp_path, real_data, monkeypatch):
    """Serve one published head over real HTTP at the path it has on GitHub."""
    head = PUBLISHED["simulacra-b32"]
    root = tmp_path / "www"
    served = root / head.repository / head.branch / head.path
    served.parent.mkdir(parents=True)
    served.write_bytes((real_data / "heads/simulacra" / head.file).read_bytes())
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(root))
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setattr(published, "RAW", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("LAIONKIT_HEADS", str(tmp_path / "cache"))
        yield served
        server.shutdown()
        thread.join()


def test_a_head_is_downloaded_once_and_kept(head_server, tmp_path):
    first = load_head("simulacra-b32")
    head_server.unlink()
    assert load_head("simulacra-b32").sha256 == first.sha256
    kept = tmp_path / "cache" / head_server.name
    assert hashlib.sha256(kept.read_bytes()).hexdigest() == first.sha256


def test_a_download_with_another_hash_is_refused_and_not_kept(head_server, tmp_path):
    head_server.write_bytes(b"something else")
    with pytest.raises(InputError, match="refused"):
        load_head("simulacra-b32")
    assert not (tmp_path / "cache").exists()


def test_no_network_says_where_to_put_the_file(head_server, tmp_path):
    with pytest.raises(InputError, match=r"could not be downloaded.*put the file into"):
        load_head("simulacra-b16")


def test_an_lfs_pointer_is_one_clear_error(real_data):
    with pytest.raises(InputError, match="git-LFS pointer, not the weights"):
        load_head(str(real_data / "heads/bad-heads/lfs_pointer_not_weights.pth"))


def test_an_unknown_head_gets_a_suggestion():
    with pytest.raises(ConfigError, match=r"did you mean aesthetic-v2\?"):
        load_head("asthetic-v2")


def test_a_head_of_another_backbone_is_refused_and_those_that_fit_are_named(heads_cache):
    with pytest.raises(ConfigError, match=r"ViT-L-14.*ViT-B-32: heads that fit: aesthetic-v1-b32"):
        open_scorers(["aesthetic-v2"], "openai/ViT-B-32", has_text=True, encoder=no_model)
    with pytest.raises(ConfigError, match="no published head fits"):
        open_scorers(
            ["aesthetic-v2"], "laion2b_s32b_b82k/ViT-L-14", has_text=True, encoder=no_model
        )


def test_similarity_wants_captions():
    with pytest.raises(ConfigError, match="without captions: embed again with --text"):
        open_scorers(["clip_similarity"], "openai/ViT-B-32", has_text=False, encoder=no_model)


def test_our_own_head_file_travels_with_its_card(tmp_path):
    layer = Layer(np.ones((1, 4), np.float32), np.zeros(1, np.float32))
    head = Head("mine", "tiny/x", "", (layer,), output="probability", card={"rows": 3})
    save_head(tmp_path / "mine.safetensors", head)
    (tmp_path / "mine.json").unlink()
    back = load_head(str(tmp_path / "mine.safetensors"))
    assert (back.name, back.backbone, back.output, back.card["rows"]) == (
        "mine",
        "tiny/x",
        "probability",
        3,
    )
    np.testing.assert_allclose(back.score(np.zeros((1, 4), np.float32)), 0.5)


def test_a_foreign_state_dict_needs_a_card(tmp_path):
    path = tmp_path / "mine.pth"
    torch.save({"weight": torch.ones(1, 4), "bias": torch.zeros(1)}, path)
    with pytest.raises(ConfigError, match=r"write mine\.json beside it"):
        load_head(str(path))
    (tmp_path / "mine.json").write_text(json.dumps({"backbone": "openai/ViT-B-32"}))
    assert load_head(str(path)).score(np.ones((2, 4), np.float32)).tolist() == [4, 4]


def test_a_published_file_is_known_wherever_it_lies(real_data, tmp_path):
    source = real_data / "heads/laion-aesthetic-v2" / PUBLISHED["aesthetic-v2"].file
    (tmp_path / "renamed.pth").write_bytes(source.read_bytes())
    assert load_head(str(tmp_path / "renamed.pth")).backbone == "openai/ViT-L-14"


@pytest.mark.parametrize("content", [b"", b"\x80\x04N.", b"not a pickle"])
def test_what_is_no_head_is_refused_in_one_line(content, tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    with pytest.raises(InputError, match="no state dict of a head") as caught:
        load_head(str(path))
    assert "\n" not in str(caught.value)


FINE = {"weight": torch.ones(1, 4), "bias": torch.zeros(1)}


@pytest.mark.parametrize(
    ("state", "card", "words"),
    [
        ({"weight": torch.full((1, 4), torch.nan)}, {}, "values that are no numbers"),
        ({"bias": torch.zeros(7)}, {}, "do not lead from an embedding to one score"),
        ({"weight": torch.ones(2, 4), "bias": torch.zeros(2)}, {}, "do not lead from"),
        ({"weight": torch.tensor(1.0)}, {}, "do not lead from"),
        ({"weight": "text"}, {}, "no state dict of a head"),
        ({}, {"activation": "gelu"}, "activation='gelu': one of none, relu"),
        ({}, {"output": "stars"}, "output='stars': one of score, probability"),
        ({}, {"backbone": 3}, "does not say whose embeddings"),
    ],
)
def test_a_head_that_lies_is_refused_in_one_line(state, card, words, tmp_path):
    torch.save({**FINE, **state}, tmp_path / "x.pth")
    (tmp_path / "x.json").write_text(json.dumps({"backbone": "me/mine", **card}))
    with pytest.raises((InputError, ConfigError), match=words) as caught:
        load_head(str(tmp_path / "x.pth"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["header", "card", "no output"])
def test_a_safetensors_head_that_lies_is_refused_or_gets_what_it_leaves_out(kind, tmp_path):
    path = tmp_path / "x.safetensors"
    text = "{" if kind == "card" else json.dumps({"backbone": "me/mine"})
    tensors = {name: value.numpy() for name, value in FINE.items()}
    save_file(tensors, path, metadata={"laionkit": text})
    if kind == "no output":
        assert load_head(str(path)).output == "score"
        return
    if kind == "header":
        path.write_bytes((1 << 60).to_bytes(8, "little") + path.read_bytes()[8:])
    with pytest.raises(InputError, match="is no head of laionkit"):
        load_head(str(path))


def test_every_published_address_and_hash_is_whole():
    assert len({head.sha256 for head in PUBLISHED.values()}) == len(PUBLISHED)
    assert all(len(head.sha256) == 64 for head in PUBLISHED.values())
    v2 = PUBLISHED["aesthetic-v2"].url
    assert v2.endswith("/main/sac%2Blogos%2Bava1-l14-linearMSE.pth")
    assert files.MAX_HEAD_BYTES > 4_000_000
