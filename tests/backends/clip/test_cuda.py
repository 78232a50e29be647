"""The GPU path, where there is a GPU: the same vectors, overlapped copies, little memory."""

import numpy as np
import pytest
import torch

from laionkit.backends.clip import load_model
from laionkit.backends.clip.batch import GPU_BATCH, choose_batch
from laionkit.backends.clip.device import utilization
from laionkit.core.runner import Runner
from laionkit.stages.embed import EmbedConfig, embed
from tests.stages.shards import shard_of, write_shards
from tests.stages.test_embed import vectors

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
CAPTIONS = ["a cat", "two dogs on a red sofa", "no " * 100]


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize(("precision", "least"), [("fp32", 0.9999), ("bf16", 0.999)])
def test_a_gpu_gives_what_the_cpu_gives(precision, least, small_clip, pictures):
    spec = f"local-dir:{small_clip}"
    cpu = load_model(spec, device="cpu", precision="fp32")
    gpu = load_model(spec, device="cuda", precision=precision)
    for name, given in (("encode_images", pictures), ("encode_texts", CAPTIONS)):
        rows = getattr(gpu, name)(given)
        assert (rows * getattr(cpu, name)(given)).sum(axis=1).min() > least
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)


def test_two_runs_on_one_gpu_give_the_same_bytes(small_clip, tmp_path):
    found = []
    for name in ("a", "b"):
        folder = write_shards(tmp_path / name, {f"{n:05d}": shard_of(n, 7) for n in range(3)})
        config = EmbedConfig(model=f"local-dir:{small_clip}", batch_size=4, as_name="small")
        embed(folder.url, config, runner=Runner(device="cuda", workers=1))
        found.append((vectors(folder).tobytes(), vectors(folder, "text").tobytes()))
    assert found[0] == found[1]


def test_a_batch_is_found_and_l14_in_bf16_stays_below_8_gb(tmp_path):
    """Seeded random weights of the real ViT-L/14."""
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(0)
    torch.save(open_clip.create_model("ViT-L-14").state_dict(), tmp_path / "w.pt")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    model = load_model(f"ViT-L-14/{tmp_path}/w.pt", device="cuda", precision="bf16")
    assert choose_batch(model) == GPU_BATCH
    model.encode_texts(CAPTIONS * 100, GPU_BATCH)
    assert torch.cuda.max_memory_reserved() < 8e9


def test_utilization_is_a_share_or_unknown():
    share = utilization(torch.device("cuda"))
    assert share is None or 0 <= share <= 1
