"""head fit: a linear head from one's own ratings and a dataset's embeddings.

Ridge for ratings on a scale, logistic for yes and no. Every fifth rated sample, chosen by its
name, is held out: the error reported is on those, of a head that never saw them. The head that
is saved is then fitted on all.
"""

import csv
import io
import time
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from laionkit.core.config import StageConfig
from laionkit.core.embeddings import choose_model, list_embeddings, model_made
from laionkit.core.errors import InputError, did_you_mean
from laionkit.core.files import Folder
from laionkit.core.progress import Counts
from laionkit.core.runner import Runner, StageReport
from laionkit.core.schemas import Reason
from laionkit.ops import linear
from laionkit.ops.vectors import unit_rows

JOIN_COLUMNS = ("key", "url", "hash")
HELD_OUT_EVERY = 5
MIN_ROWS = 20
METHODS = {
    "ridge": (linear.fit_ridge, linear.squared_error),
    "logistic": (linear.fit_logistic, linear.log_loss),
}


class HeadFitConfig(StageConfig):
    """How a head is fitted and where it goes."""

    output: str = "head.safetensors"
    """File of the head; its JSON card is written beside it."""
    method: Literal["ridge", "logistic"] = "ridge"
    """ridge for ratings on a scale, logistic for 0 and 1 (the head then gives probabilities)."""
    rating: str = "rating"
    """Column of the ratings file that holds the rating."""
    on: Literal["auto", "key", "url", "hash"] = "auto"
    """Column that says which sample a rating is of; auto takes the first there is."""
    l2: float | Literal["auto"] = "auto"
    """Strength of the penalty; auto takes the best of 13 by five-fold cross-validation."""
    as_name: str | None = None
    """Short name of the model whose embeddings to use, where the dataset has several."""


def fit_head(
    ratings: str,
    dataset: str,
    config: HeadFitConfig = HeadFitConfig(),
    *,
    runner: Runner = Runner(),
) -> StageReport:
    """Fit a linear head on a dataset's embeddings and a file of ratings, and save it."""
    runner.require_whole("head fit")
    started = time.monotonic()
    folder = Folder(dataset)
    model = choose_model(folder, config.as_name)
    on, rated, malformed = read_ratings(ratings, config)
    names, x_ND = _rated_vectors(folder, model, on, rated)
    y_N = np.array([rated[name] for name in names], dtype=np.float64)
    if len(names) < MIN_ROWS:
        raise InputError(
            f"{len(names)} of {len(rated)} ratings in {ratings} are of samples that {dataset} has "
            f"embeddings of (joined on {on}): a head needs {MIN_ROWS} or more"
        )
    card = _fit_and_save(config, x_ND, y_N, names, model_made(folder, model).facts, ratings)
    runner.note("head fit", _said(card["held_out"]))
    reasons: dict[str, int] = {
        Reason.MALFORMED_ROW: malformed,
        Reason.NOT_EMBEDDED: len(rated) - len(names),
    }
    return StageReport(
        stage="head fit",
        dataset=folder.url,
        counts=Counts.of(len(names), reasons),
        seconds=round(time.monotonic() - started, 3),
        outputs=(config.output, str(Path(config.output).with_suffix(".json"))),
        extra=card,
    )


def _fit_and_save(
    config: HeadFitConfig,
    x_ND: NDArray[np.float32],
    y_N: NDArray[np.float64],
    names: list[str],
    facts: dict[str, Any],
    ratings: str,
) -> dict[str, Any]:
    from laionkit.backends.heads import Head, Layer, save_head

    logistic = config.method == "logistic"
    if logistic and not set(np.unique(y_N)) <= {0.0, 1.0}:
        raise InputError(
            f"{ratings}: method=logistic takes ratings 0 and 1, seen {float(y_N.max()):g}; "
            "use --method ridge"
        )
    fit, loss = METHODS[config.method]
    out_N, folds_N = _held_out(names)
    x_in_ND, y_in_N = x_ND[~out_N], y_N[~out_N]
    l2 = config.l2
    if isinstance(l2, str):
        l2 = linear.choose_l2(x_in_ND, y_in_N, folds_N[~out_N], fit, loss)
    blind, fitted = fit(x_in_ND, y_in_N, l2), fit(x_ND, y_N, l2)
    card: dict[str, Any] = {
        "kind": config.method,
        "model": facts.get("model"),
        "weights_sha256": facts.get("weights_sha256"),
        "rows": len(names),
        "l2": l2,
        "rating_mean": float(y_N.mean()),
        "rating_min": float(y_N.min()),
        "rating_max": float(y_N.max()),
        "held_out": _measure(blind, x_ND[out_N], y_N[out_N], float(y_in_N.mean()), logistic),
    }
    weight_OI = fitted.weight_D.astype(np.float32)[None]
    layer = Layer(weight_OI, np.array([fitted.bias], dtype=np.float32))
    path = Path(config.output)
    output: Literal["probability", "score"] = "probability" if logistic else "score"
    head = Head(path.stem, str(facts["backbone"]), "", (layer,), output=output, card=card)
    save_head(path, head)
    return card


def _held_out(names: list[str]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Which samples no fit sees, and the fold of each of the others: by name, not by order."""
    marks_N = np.array([zlib.crc32(name.encode()) for name in names])
    return marks_N % HELD_OUT_EVERY == 0, marks_N // HELD_OUT_EVERY % linear.FOLDS


def _measure(
    fitted: linear.Fitted,
    x_ND: NDArray[np.float32],
    y_N: NDArray[np.float64],
    mean: float,
    logistic: bool,
) -> dict[str, float]:
    """Error on held-out rows, beside that of always saying the mean."""
    said = fitted(x_ND)
    if logistic:
        base = np.full(len(y_N), np.log(np.clip(mean, 1e-6, 1 - 1e-6) / np.clip(1 - mean, 1e-6, 1)))
        values = {
            "log_loss": linear.log_loss(y_N, said),
            "log_loss_of_the_mean": linear.log_loss(y_N, base),
            "accuracy": float(np.mean((said > 0) == (y_N == 1))),
            "area_under_curve": linear.area_under_curve(y_N, said),
        }
    else:
        values = {
            "rmse": linear.squared_error(y_N, said) ** 0.5,
            "rmse_of_the_mean": linear.squared_error(y_N, np.full(len(y_N), mean)) ** 0.5,
            "correlation": linear.correlation(y_N, said),
        }
    return {"rows": len(y_N), **{name: round(value, 6) for name, value in values.items()}}


def _said(held_out: dict[str, float]) -> str:
    """What `_measure` found, in words."""
    found = [f"{name.replace('_', ' ')} {x:.3g}" for name, x in held_out.items() if name != "rows"]
    return f"on {held_out['rows']:,} ratings held out: {', '.join(found)}"


def read_ratings(path: str, config: HeadFitConfig) -> tuple[str, dict[str, float], int]:
    """The column joined on, name → rating (the mean of several), and rows without a rating."""
    table = _read_table(path)
    if config.rating not in table.column_names:
        raise InputError(
            f"{path} has no column {config.rating!r}"
            f"{did_you_mean(config.rating, table.column_names)}: it has "
            f"{', '.join(table.column_names)}; name the rating's with --rating"
        )
    wanted = JOIN_COLUMNS if config.on == "auto" else (config.on,)
    on = next((name for name in wanted if name in table.column_names), None)
    if on is None:
        raise InputError(
            f"{path} has no column {' or '.join(wanted)} to say which sample a rating is of: it "
            f"has {', '.join(table.column_names)}"
        )
    sums: dict[str, tuple[float, int]] = {}
    malformed = 0
    for name, value in zip(table[on].to_pylist(), table[config.rating].to_pylist(), strict=True):
        number = _number(value)
        if name is None or number is None:
            malformed += 1
            continue
        total, count = sums.get(str(name), (0.0, 0))
        sums[str(name)] = (total + number, count + 1)
    return on, {name: total / count for name, (total, count) in sums.items()}, malformed


def _read_table(path: str) -> pa.Table:
    """A csv, tsv or parquet file; the columns joined on stay text."""
    folder = Folder(path.rpartition("/")[0] or ".")
    data = folder.read_bytes(path.rpartition("/")[2])
    try:
        if path.endswith(".parquet"):
            return pq.read_table(io.BytesIO(data))
        sample = data[:10_000].decode("utf-8", errors="replace")
        delimiter = csv.Sniffer().sniff(sample.splitlines()[0], ",\t;").delimiter
        types = dict.fromkeys(JOIN_COLUMNS, pa.string())
        return pyarrow.csv.read_csv(
            io.BytesIO(data),
            parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter),
            convert_options=pyarrow.csv.ConvertOptions(column_types=types),
        )
    except (pa.ArrowInvalid, csv.Error, IndexError) as error:
        raise InputError(f"{path} is no readable csv or parquet: {error}") from error


def _number(value: object) -> float | None:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) else None


def _rated_vectors(
    folder: Folder, model: str, on: str, rated: dict[str, float]
) -> tuple[list[str], NDArray[np.float32]]:
    """Names and unit rows of the rated samples, in the dataset's order, each once."""
    names: list[str] = []
    rows: list[NDArray[np.float32]] = []
    seen: set[str] = set()
    for ref in list_embeddings(folder, model):
        table = folder.read_table(ref.metadata)
        column = "image_path" if on == "key" and "key" not in table.column_names else on
        if column not in table.column_names:
            raise InputError(
                f"{ref.metadata} has no column {on} to join ratings on: it has "
                f"{', '.join(table.column_names)}"
            )
        here = [str(name) for name in table[column].to_pylist()]
        kept = [i for i, name in enumerate(here) if name in rated and name not in seen]
        kept = list({here[i]: i for i in reversed(kept)}.values())[::-1]
        if kept:
            with folder.open(ref.image) as file:
                emb_ND = np.load(file, allow_pickle=False)
            rows.append(unit_rows(emb_ND[kept]))
            names += [here[i] for i in kept]
            seen.update(here[i] for i in kept)
    return names, np.concatenate(rows) if rows else np.empty((0, 0), np.float32)
