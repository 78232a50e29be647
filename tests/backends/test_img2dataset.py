"""img2dataset is not believed: what it loses or hides becomes a failure or an error."""

import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laionkit.backends.img2dataset import collect, reason_for, run_img2dataset
from laionkit.core.errors import StageFailed
from laionkit.core.schemas import Reason
from laionkit.core.shards import ShardWriter

# Ends img2dataset's own process at its import, or makes it fail there, or prints and goes on.
_HOOK = """
import os, sys
class Hook:
    def find_spec(self, name, path=None, target=None):
        if name == "img2dataset":
            {does}
sys.meta_path.insert(0, Hook())
"""


@pytest.mark.parametrize(
    ("does", "said"),
    [
        ("os._exit(0)", r"exit code 0\), it said: nothing"),
        ("os.kill(os.getpid(), 9)", r"exit code -9\)"),
        ("raise OSError('disk of another world')", r"exit code 1\), .*disk of another world"),
        (
            "print('shard 0 failed with error'); os._exit(not sys.stdout.flush() and 0)",
            r"exit code 0\), it said: shard 0 failed with error",
        ),
    ],
)
def test_a_run_that_leaves_no_shard_is_an_error_whatever_its_exit_code(
    tmp_path, monkeypatch, does, said
):
    (tmp_path / "sitecustomize.py").write_text(_HOOK.format(does=does))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    links = pa.table({"url": ["http://localhost/x"]})
    with pytest.raises(StageFailed, match=said):
        run_img2dataset(links, tmp_path, {"encode_format": "jpg"})


def test_rows_and_images_that_it_lost_are_failures_that_may_heal(tmp_path):
    """A shard in its layout with rows 0 to 3 of 5, of which row 2 says success without an image."""
    rows = [
        {"key": "000000000", "status": "success", "error_message": None},
        {"key": "000000001", "status": "failed_to_download", "error_message": "HTTP Error 404"},
        {"key": "000000002", "status": "success", "error_message": None},
        {"key": "000000003", "status": "success", "error_message": None},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "00000.parquet")
    tar = tmp_path / "00000.tar"
    with tar.open("wb") as file, ShardWriter(file) as writer:
        for key in ("000000000", "000000003"):
            writer.add(key, {"jpg": key.encode(), "json": b"{}", "txt": b""})
    made = collect(tmp_path / "00000.parquet", tar, 5, "jpg")
    reasons = [reason_for(peer.row) for peer in made]
    lost = Reason.ENGINE_FAILED
    assert reasons == [None, Reason.HTTP_NOT_FOUND, lost, None, lost]
    assert [peer.image for peer in made] == [b"000000000", None, None, b"000000003", None]
    assert lost.may_heal


def test_a_tar_that_was_cut_off_is_an_error(tmp_path):
    pq.write_table(pa.table({"key": ["0"], "status": ["success"]}), tmp_path / "00000.parquet")
    Path(tmp_path, "00000.tar").write_bytes(b"half a header")
    with pytest.raises(StageFailed, match="its tar cannot be read"):
        collect(tmp_path / "00000.parquet", tmp_path / "00000.tar", 1, "jpg")
    with pytest.raises(tarfile.ReadError):
        tarfile.open(tmp_path / "00000.tar")  # noqa: SIM115 - it does not open
