"""Every pair of vectors above a cosine, within clusters and across their borders.

SemDeDup (Abbas et al., 2023) compares within k-means clusters alone and misses pairs that a border
separates. Here rows near a border are compared with those near it on its other side too, unless
their difference points straight across it, within 45° (`near_borders`). Such a pair lies at least
0.7 times as far apart as is asked: of cosine 0.95, all pairs from 0.975 on are found for certain.
Of 5,000 pairs across borders among a million vectors like CLIP's, the straightest was at 56°. To
miss none for certain, be they as they may, takes twice as long.

All of that is done on sketches (`near_cells`): a vector's parts along the directions in which the
vectors reach furthest, and the length of what is left of it. Two sketches' cosine is never below
their vectors' (Cauchy-Schwarz), so none is missed, and few pairs need all D.

Shapes: N and M vectors, D dimensions, P pairs.
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path

import faiss
import numpy as np

from laionkit.backends.isolation import child_environment
from laionkit.backends.near_borders import Borders
from laionkit.backends.near_cells import Cells, Float32, Int64, ReadRows
from laionkit.core.errors import StageFailed

ONE_CLUSTER = 20_000
REACH = 0.5**0.5  # the cosine of 45°
_ROWS = 8_192


def nearest_of(x_ND: Float32, other_MD: Float32) -> tuple[Float32, Int64]:
    """For each unit row of `x_ND` the cosine [N] of the nearest of `other_MD`, and which it is."""
    cosine_N1, which_N1 = faiss.knn(x_ND, other_MD, 1, metric=faiss.METRIC_INNER_PRODUCT)
    return cosine_N1[:, 0], which_N1[:, 0]


def near_pairs(
    read: ReadRows,
    rows: int,
    min_cosine: float,
    reach: float = REACH,
    tell: Callable[[int, int], None] = lambda done, parts: None,
    seed: int = 0,
) -> Iterator[Int64]:
    """Every pair of rows whose cosine is at least `min_cosine`, as [P, 2], in no order.

    `tell` is called with how many parts of the comparisons are done, of how many.

    Up to 20,000 rows none is missed. Of more, a pair is missed whose rows are in two clusters and
    whose difference is at an angle to the normal of their border of a cosine above `reach`: with 1
    none. Compares in as many processes as faiss may use threads. Twice 350 bytes a row lie in
    temporary files. Raises StageFailed where a process dies.
    """
    if rows < 2:
        return
    # More clusters leave fewer pairs near their borders, and more borders to look at.
    clusters = max(2, round(rows**0.5 / 2)) if rows > ONE_CLUSTER else 1
    with tempfile.TemporaryDirectory(prefix="laionkit-") as name:
        folder, processes = Path(name), faiss.omp_get_max_threads()
        borders = Borders(Cells.sort(folder, read, rows, clusters, seed), min_cosine, reach)
        if clusters == 1 or processes == 1:
            maybe = borders.maybe_near()
        else:
            maybe = _in_processes(folder, processes, min_cosine, reach)
        for maybe_P2 in _gathered(_telling(maybe, borders.parts, tell)):
            yield _near(maybe_P2, read, min_cosine)


def _in_processes(folder: Path, count: int, min_cosine: float, reach: float) -> Iterator[Int64]:
    """What `count` processes find, each a share. They wait where nobody takes it."""
    crew: dict[Connection, subprocess.Popen[bytes]] = {}
    try:
        for number in range(count):
            ours, theirs = Pipe(duplex=False)
            told = folder, theirs.fileno(), number, count, min_cosine, reach
            command = [sys.executable, "-m", "laionkit.backends.near_borders", *map(str, told)]
            fds, environment = [theirs.fileno()], child_environment()
            crew[ours] = subprocess.Popen(command, pass_fds=fds, env=environment)
            theirs.close()
        while crew:
            for pipe in wait(list(crew)):
                assert isinstance(pipe, Connection)
                try:
                    yield np.frombuffer(pipe.recv_bytes(), np.int64).reshape(-1, 2)
                except EOFError:
                    _check(crew.pop(pipe))
                    pipe.close()
    finally:
        for pipe, process in crew.items():
            process.kill()
            process.wait()
            pipe.close()


def _check(process: "subprocess.Popen[bytes]") -> None:
    """Raise StageFailed where a process did not end by itself."""
    code = process.wait()
    if code:
        raise StageFailed(
            f"a process that compares embeddings died (exit code {code}); nothing was written: "
            "run the same command again"
        )


def _telling(
    maybe: Iterable[Int64], parts: int, tell: Callable[[int, int], None]
) -> Iterator[Int64]:
    """The pairs; what comes empty tells that a part is done."""
    done = 0
    for maybe_P2 in maybe:
        if len(maybe_P2):
            yield maybe_P2
        else:
            done += 1
            tell(done, parts)


def _gathered(maybe: Iterable[Int64]) -> Iterator[Int64]:
    """Pairs, once enough of them wait for a look."""
    waiting: list[Int64] = []
    for maybe_P2 in maybe:
        waiting.append(maybe_P2)
        if sum(map(len, waiting)) >= _ROWS:
            yield np.concatenate(waiting)
            waiting = []
    if waiting:
        yield np.concatenate(waiting)


def _near(maybe_P2: Int64, read: ReadRows, min_cosine: float) -> Int64:
    """Of pairs of rows those that are near, by all dimensions."""
    parts = []
    for some_P2 in np.array_split(maybe_P2, 1 + len(maybe_P2) // _ROWS):
        rows, at_Q = np.unique(some_P2, return_inverse=True)
        x_ND, at_P2 = read(rows), at_Q.reshape(some_P2.shape)
        cosine_P = np.einsum("pd,pd->p", x_ND[at_P2[:, 0]], x_ND[at_P2[:, 1]])
        parts.append(some_P2[cosine_P >= min_cosine])
    return np.concatenate(parts)
