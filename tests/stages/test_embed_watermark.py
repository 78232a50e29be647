"""The watermark model of LAION-5B in embed's pass, with seeded weights of its shape."""

import io

import pytest
import timm
import torch
from PIL import Image
from torchvision import transforms

from laionkit.core.embeddings import score_files
from laionkit.core.errors import ConfigError, InputError
from laionkit.core.runner import Runner
from laionkit.stages.embed import EmbedConfig, embed
from laionkit.stages.score import ScoreConfig, score
from tests.stages.shards import shard_of, write_shards


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """The model built as LAION's example does, and its weights file."""
    torch.manual_seed(3)
    model = timm.create_model("efficientnet_b3", pretrained=False, num_classes=2)
    model.classifier = torch.nn.Sequential(
        torch.nn.Linear(1536, 625),
        torch.nn.ReLU(),
        torch.nn.Dropout(p=0.3),
        torch.nn.Linear(625, 256),
        torch.nn.ReLU(),
        torch.nn.Linear(256, 2),
    )
    path = tmp_path_factory.mktemp("watermark") / "watermark_model_v1.pt"
    torch.save(model.state_dict(), path)
    return model.eval(), path


def test_it_gives_what_laions_example_gives(theirs, small_clip, tmp_path):
    model, path = theirs
    samples = shard_of(0, 3)
    folder = write_shards(tmp_path, {"00000": [*samples, ("000000009", b"broken", "x")]})
    config = EmbedConfig(
        model=f"local-dir:{small_clip}", heads=(f"watermark={path}",), batch_size=2
    )
    embed(folder.url, config, runner=Runner(device="cpu"))
    transform = transforms.Compose(
        [
            transforms.Resize((256, 256)),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    batch = torch.stack([transform(Image.open(io.BytesIO(data))) for _, data, _ in samples])
    with torch.inference_mode():
        expected = model(batch).softmax(dim=1)[:, 0].tolist()
    rows = folder.read_table(score_files(folder, "watermark")[0]).to_pylist()
    assert [row["key"] for row in rows] == [key for key, _, _ in samples]
    assert [row["value"] for row in rows] == pytest.approx(expected, abs=1e-4)


def test_missing_weights_say_where_to_put_them(small_clip, tmp_path, monkeypatch):
    monkeypatch.setenv("LAIONKIT_HEADS", str(tmp_path / "none"))
    folder = write_shards(tmp_path, {"00000": shard_of(0, 1)})
    config = EmbedConfig(model=f"local-dir:{small_clip}", heads=("watermark",))
    with pytest.raises(InputError, match=r"put watermark_model_v1\.pt of LAION-AI.* there"):
        embed(folder.url, config)


def test_stored_vectors_cannot_be_looked_at(small_clip, tmp_path):
    folder = write_shards(tmp_path, {"00000": shard_of(0, 1)})
    embed(folder.url, EmbedConfig(model=f"local-dir:{small_clip}"), runner=Runner(device="cpu"))
    with pytest.raises(ConfigError, match="it runs in embed's pass"):
        score(folder.url, ScoreConfig(heads=("watermark",)))
