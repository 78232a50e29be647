"""push: what the hub receives, over real HTTP to a server that answers as the hub does."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from laionkit.core.errors import InputError
from laionkit.stages.subset import SubsetConfig, subset
from laionkit.stages.subset.publish import push
from tests.small_dataset import SmallDataset, laion_rows


class Hub(BaseHTTPRequestHandler):
    """Takes every file inline, as the hub does with small ones."""

    received: dict[str, bytes] = {}
    created: list[dict] = []

    def do_POST(self) -> None:
        body = self.body()
        if self.path == "/api/repos/create":
            self.created.append(json.loads(body))
            return self.answer({"url": f"{self.server.url}/datasets/me/best"})
        if self.path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            files = json.loads(body)["files"]
            modes = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files
            ]
            return self.answer({"files": modes})
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                content = base64.b64decode(entry["value"]["content"])
                self.received[entry["value"]["path"]] = content
        url = f"{self.server.url}/datasets/me/best/commit/abc"
        return self.answer({"success": True, "commitOid": "abc", "commitUrl": url})

    def body(self) -> bytes:
        if "Content-Length" in self.headers:
            return self.rfile.read(int(self.headers["Content-Length"]))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def do_GET(self) -> None:
        self.answer({"id": "me/best", "sha": "abc", "siblings": []})

    def answer(self, value: dict) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch):
    Hub.received, Hub.created = {}, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    yield Hub
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def dataset(tmp_path) -> SmallDataset:
    return SmallDataset(tmp_path / "laion", laion_rows(12)).write_metadata().write_shards()


def test_every_file_of_the_subset_arrives_as_it_is(dataset, hub):
    subset(dataset.url, SubsetConfig(name="best"))
    url = push(dataset.url, "best", "me/best")
    folder = dataset.path / "subsets/best"
    assert hub.received == {p.name: p.read_bytes() for p in folder.iterdir()}
    assert "private" in json.dumps(hub.created[0])
    assert url.endswith("/commit/abc")


def test_a_view_and_a_changed_subset_are_not_pushed(dataset, hub):
    subset(dataset.url, SubsetConfig(name="view", as_="view"))
    with pytest.raises(InputError, match="is a view"):
        push(dataset.url, "view", "me/best")
    subset(dataset.url, SubsetConfig(name="best"))
    with (dataset.path / "subsets/best/sizes.json").open("a") as file:
        file.write(" ")
    with pytest.raises(InputError, match="is not what was written"):
        push(dataset.url, "best", "me/best")
    assert not hub.received


def test_a_hub_that_cannot_be_reached_is_one_line(dataset, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    subset(dataset.url, SubsetConfig(name="best"))
    with pytest.raises(InputError, match="me/best cannot be written on the hub") as caught:
        push(dataset.url, "best", "me/best")
    assert "\n" not in str(caught.value)
