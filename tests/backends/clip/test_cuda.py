"""The GPU path, where there is a GPU: the same vectors, overlapped copies, little memory."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from laionkit.backends.clip import load_model
from laionkit.backends.clip.batch import GPU_BATCH, choose_batch
from laionkit.backends.clip.device import Utilization
from laionkit.backends.heads.watermark import WatermarkHead, _build
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


def test_many_batches_in_a_row_do_not_overwrite_each_other(small_clip):
    """Copies run beside the computation: each batch must see its own pixels."""
    pictures = np.random.default_rng(1).integers(0, 256, (600, 64, 64, 3), dtype=np.uint8)
    spec = f"local-dir:{small_clip}"
    expected = load_model(spec, device="cpu", precision="fp32").encode_images(pictures)
    rows = load_model(spec, device="cuda", precision="fp32").encode_images(pictures, batch=7)
    assert (rows * expected).sum(axis=1).min() > 0.9999


def test_a_full_memory_halves_the_batch_and_loses_nothing(small_clip, pictures):
    model = load_model(f"local-dir:{small_clip}", device="cuda", precision="fp32")
    expected = model.encode_images(pictures)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(3e8 / total)
    try:
        rows = model.embed_images(np.tile(pictures, (900, 1, 1, 1))).cpu().numpy()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert model.fits < 8100
    assert (rows.reshape(900, 9, -1) * expected).sum(axis=2).min() > 0.9999


def test_the_watermark_model_gives_what_it_gives_on_the_cpu(tmp_path):
    torch.manual_seed(0)
    torch.save(_build().state_dict(), tmp_path / "w.pt")
    pictures = np.random.default_rng(2).integers(0, 256, (40, 256, 256, 3), dtype=np.uint8)
    head = WatermarkHead(f"watermark={tmp_path}/w.pt")
    expected = head.score(pictures).numpy()
    values = head.to(torch.device("cuda")).score(pictures).cpu().numpy()
    np.testing.assert_allclose(values, expected, atol=1e-2)


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
    share = Utilization(torch.device("cuda")).share()
    assert share is None or 0 <= share <= 1


def test_rows_come_home_as_they_were_whatever_the_gpu_is_given_meanwhile(small_clip):
    """As in embed: a shard's rows are waited for in another thread while the next is computed."""
    model = load_model(f"local-dir:{small_clip}", device="cuda", precision="fp32")
    batches = np.random.default_rng(3).integers(0, 256, (40, 16, 64, 64, 3), dtype=np.uint8)
    expected = [model.embed_images(batch).cpu().numpy() for batch in batches]
    with ThreadPoolExecutor(1) as finisher:
        coming = []
        for first in range(0, 40, 4):
            parts = [model.embed_images(batch) for batch in batches[first : first + 4]]
            coming.append(finisher.submit(model.bring_home(parts)))
            del parts
        for first, rows in zip(range(0, 40, 4), coming, strict=True):
            np.testing.assert_array_equal(
                rows.result(), np.concatenate(expected[first : first + 4])
            )
