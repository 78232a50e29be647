"""Near pairs: none is missed, within clusters or across their borders."""

import os
import signal

import faiss
import numpy as np
import pytest

from laionkit.backends import near, near_borders, near_cells
from laionkit.core.errors import StageFailed
from laionkit.ops.vectors import unit_rows


def vectors(rows: int, dim: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(20, dim))
    points = centres[rng.integers(0, 20, rows)] + 0.7 * rng.normal(size=(rows, dim))
    copies = points[: rows // 10] + 0.12 * rng.normal(size=(rows // 10, dim))
    return unit_rows(np.concatenate([points, copies]).astype(np.float32))


def pairs_of(found) -> set[tuple[int, int]]:
    each = [tuple(sorted(pair)) for pair_P2 in found for pair in pair_P2.tolist()]
    assert len(each) == len(set(each)), "no pair comes twice"
    return set(each)


def brute_force(emb_ND: np.ndarray, min_cosine: float) -> set[tuple[int, int]]:
    cosine_NN = np.triu(emb_ND @ emb_ND.T, 1)
    return {tuple(pair) for pair in np.argwhere(cosine_NN >= min_cosine).tolist()}


@pytest.fixture
def one_thread():
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(before)


@pytest.fixture
def two_processes(monkeypatch):
    monkeypatch.setattr(near, "ONE_CLUSTER", 100)
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(2)
    yield
    faiss.omp_set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("min_cosine", "limits"),
    [
        (0.9, {}),
        (0.97, {}),
        (0.9, {"ONE_CLUSTER": 10_000}),
        (0.9, {"_STEP": 3, "_SIDE": 7, "_COSINES": 49}),  # many small blocks
        (0.9, {"_GROUP_ROWS": 100, "_DISTANCES": 200, "_ROWS": 500}),  # a cluster a group
        (0.9, {"_DIRECTIONS": 12, "_FIRST": 8}),  # looks that tell little
        (0.9, {"_DIRECTIONS": 6}),  # fewer than the first look has
    ],
)
def test_every_pair_of_brute_force_is_found_across_borders_too(monkeypatch, min_cosine, limits):
    for name, value in {"ONE_CLUSTER": 100, **limits}.items():
        for module in (near, near_borders, near_cells):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)
    emb_ND = vectors(3000, 32, 1)
    rows = len(emb_ND)
    found = pairs_of(near.near_pairs(lambda which: emb_ND[which], rows, min_cosine, reach=1))
    wanted = brute_force(emb_ND, min_cosine)
    assert len(wanted) > 100
    assert found == wanted
    _, own_N = near_cells.cluster(lambda which: emb_ND[which], rows, 27, 0)
    assert any(own_N[a] != own_N[b] for a, b in wanted)


@pytest.mark.usefixtures("two_processes")
def test_processes_find_the_same_and_the_usual_reach_misses_none_of_these():
    emb_ND, told = vectors(3000, 32, 1), []
    found = pairs_of(
        near.near_pairs(
            lambda which: emb_ND[which], len(emb_ND), 0.9, tell=lambda *parts: told.append(parts)
        )
    )
    assert found == brute_force(emb_ND, 0.9)
    assert told == [(done, told[0][1]) for done in range(1, told[0][1] + 1)]


@pytest.mark.usefixtures("one_thread")
def test_what_is_missed_points_straighter_across_a_border_than_the_reach(monkeypatch, tmp_path):
    monkeypatch.setattr(near, "ONE_CLUSTER", 100)
    emb_ND = vectors(3000, 32, 1)
    read, reach, min_cosine = (lambda which: emb_ND[which]), 0.1, 0.9
    found = pairs_of(near.near_pairs(read, len(emb_ND), min_cosine, reach))
    missed = sorted(brute_force(emb_ND, min_cosine) - found)
    cells = near_cells.Cells.sort(tmp_path, read, len(emb_ND), round(len(emb_ND) ** 0.5 / 2), 0)
    place_N = np.argsort(cells.row_N)
    own_N = np.searchsorted(cells._edge_K, place_N, side="right") - 1
    assert missed
    for pair in missed:
        x_P, y_P = cells._sketch_NP[place_N[list(pair)]]
        one, other = cells._centroid_KP[own_N[list(pair)]]
        across = (x_P - y_P) @ (one - other) / np.linalg.norm(one - other)
        assert own_N[pair[0]] != own_N[pair[1]]
        assert across > reach * (2 - 2 * min_cosine) ** 0.5


@pytest.mark.usefixtures("two_processes")
def test_thousands_of_the_same_vector_are_all_pairs():
    emb_ND = np.repeat(vectors(10, 32, 2)[:3], 200, axis=0)
    found = pairs_of(near.near_pairs(lambda which: emb_ND[which], len(emb_ND), 0.99))
    assert len(found) == 3 * 200 * 199 // 2


@pytest.mark.usefixtures("two_processes")
def test_a_process_that_dies_is_told_of_and_the_others_are_ended(monkeypatch):
    started = []
    popen = near.subprocess.Popen

    def start(*given, **named):
        started.append(popen(*given, **named))
        if len(started) == 2:
            os.kill(started[0].pid, signal.SIGKILL)
        return started[-1]

    monkeypatch.setattr(near.subprocess, "Popen", start)
    emb_ND = vectors(3000, 32, 1)
    with pytest.raises(StageFailed, match=r"died \(exit code -9\); nothing was written"):
        list(near.near_pairs(lambda which: emb_ND[which], len(emb_ND), 0.9))
    assert [process.poll() is not None for process in started] == [True, True]


@pytest.mark.usefixtures("two_processes")
def test_who_wants_no_more_ends_the_processes(monkeypatch):
    started = []
    popen = near.subprocess.Popen
    monkeypatch.setattr(
        near.subprocess, "Popen", lambda *a, **n: started.append(popen(*a, **n)) or started[-1]
    )
    emb_ND = np.repeat(vectors(10, 32, 2)[:3], 2000, axis=0)
    pairs = near.near_pairs(lambda which: emb_ND[which], len(emb_ND), 0.99)
    assert len(next(pairs)) > 0
    pairs.close()
    assert [process.poll() is not None for process in started] == [True, True]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("rows", [0, 1, 2])
def test_few_vectors(rows):
    emb_ND = np.ones((rows, 4), np.float32) / 2
    found = pairs_of(near.near_pairs(lambda which: emb_ND[which], rows, 0.9))
    assert found == ({(0, 1)} if rows == 2 else set())
