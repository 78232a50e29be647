"""A vector query loads what it needs and nothing else: most of a cold start is imports."""

import json
import subprocess
import sys

import numpy as np

from laionkit.stages.index import index
from tests.search.datasets import add_embeddings, add_scores, clustered

HEAVY = ("torch", "pandas", "duckdb", "sqlglot", "aiohttp", "open_clip", "cv2")


def test_a_vector_query_loads_no_tables_engine_or_model(tmp_path):
    vectors = clustered(200, 16)
    keys = add_embeddings(tmp_path, "00000", vectors)
    add_scores(tmp_path, "taste", "00000", keys[:-1], np.arange(199, dtype=np.float32))
    index(str(tmp_path))
    add_scores(tmp_path, "new", "00000", keys[1:], np.arange(199, dtype=np.float32))
    np.save(tmp_path / "one.npy", vectors[-1])
    code = (
        "import sys\n"
        "from laionkit.cli.app import app\n"
        f"app(['query', {str(tmp_path)!r}, '--vector', {str(tmp_path / 'one.npy')!r}, '--json'])\n"
        f"print('LOADED', sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "LOADED []" in done.stderr
    first = json.loads(done.stdout)["hits"][0]
    assert (first["key"], first["new"], first["taste"], first["row"]) == (keys[-1], 198, None, 199)
    assert list(first) == ["key", "match", "caption", "url", "new", "taste", "shard", "row"]
