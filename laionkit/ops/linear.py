"""Linear heads fitted on embeddings: ridge for ratings, logistic for yes and no. Pure numpy.

Shapes: N rows, D dimensions. The bias is never penalised.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
NEWTON_STEPS = 50
NEWTON_TOLERANCE = 1e-8
# Strengths tried: from no shrinking to a head that says the mean, on unit rows.
L2_GRID = tuple(float(x) for x in np.logspace(-3, 3, 13))
FOLDS = 5


@dataclass(frozen=True)
class Fitted:
    """A linear map: weight [D] and bias."""

    weight_D: Vector
    bias: float

    def __call__(self, x_ND: NDArray[np.floating]) -> Vector:
        """Apply it to rows."""
        return np.asarray(x_ND, dtype=np.float64) @ self.weight_D + self.bias


Fit = Callable[[NDArray[np.floating], Vector, float], Fitted]
Loss = Callable[[Vector, Vector], float]


def fit_ridge(x_ND: NDArray[np.floating], y_N: Vector, l2: float) -> Fitted:
    """Minimise the squared error plus `l2` times the weight's squared length."""
    x = np.asarray(x_ND, dtype=np.float64)
    mean_x, mean_y = x.mean(axis=0), float(y_N.mean())
    centred = x - mean_x
    gram = centred.T @ centred + l2 * np.eye(x.shape[1])
    weight = np.linalg.solve(gram, centred.T @ (y_N - mean_y))
    return Fitted(weight, mean_y - float(mean_x @ weight))


def fit_logistic(x_ND: NDArray[np.floating], y_N: Vector, l2: float) -> Fitted:
    """Minimise the log loss of 0/1 labels plus half of `l2` times the weight's squared length.

    Newton's method with halved steps; the problem is convex.
    """
    x = np.column_stack([np.asarray(x_ND, dtype=np.float64), np.ones(len(y_N))])
    penalty = np.full(x.shape[1], l2)
    penalty[-1] = 1e-9  # keeps the bias finite where all labels agree
    theta = np.zeros(x.shape[1])
    for _ in range(NEWTON_STEPS):
        p = 1 / (1 + np.exp(-np.clip(x @ theta, -30, 30)))
        gradient = x.T @ (p - y_N) + penalty * theta
        hessian = (x.T * (p * (1 - p))) @ x + np.diag(penalty)
        step = np.linalg.solve(hessian, gradient)
        theta = _descend(x, y_N, penalty, theta, step)
        if np.abs(step).max() < NEWTON_TOLERANCE:
            break
    return Fitted(theta[:-1], float(theta[-1]))


def _descend(
    x: NDArray[np.float64], y_N: Vector, penalty: Vector, theta: Vector, step: Vector
) -> Vector:
    """Go along the Newton step, halved until the objective does not rise."""

    def objective(at: Vector) -> float:
        z = x @ at
        return float(np.logaddexp(0, z).sum() - y_N @ z + 0.5 * penalty @ (at * at))

    before, scale = objective(theta), 1.0
    while scale > 1e-6 and objective(theta - scale * step) > before:
        scale /= 2
    return theta - scale * step


def squared_error(y_N: Vector, predicted_N: Vector) -> float:
    """Mean squared error."""
    return float(np.mean((y_N - predicted_N) ** 2))


def log_loss(y_N: Vector, logit_N: Vector) -> float:
    """Mean log loss of 0/1 labels, from logits."""
    return float(np.mean(np.logaddexp(0, logit_N) - y_N * logit_N))


def choose_l2(
    x_ND: NDArray[np.floating], y_N: Vector, folds_N: NDArray[np.integer], fit: Fit, loss: Loss
) -> float:
    """The strength of L2_GRID with the least loss on rows left out, fold by fold."""
    losses = []
    for l2 in L2_GRID:
        total = 0.0
        for fold in np.unique(folds_N):
            out = folds_N == fold
            fitted = fit(x_ND[~out], y_N[~out], l2)
            total += loss(y_N[out], fitted(x_ND[out])) * int(out.sum())
        losses.append(total)
    return L2_GRID[int(np.argmin(losses))]


def correlation(a_N: Vector, b_N: Vector) -> float:
    """Pearson's correlation; 0 where either is constant."""
    if a_N.std() == 0 or b_N.std() == 0:
        return 0.0
    return float(np.corrcoef(a_N, b_N)[0, 1])


def area_under_curve(y_N: Vector, score_N: Vector) -> float:
    """Probability that a yes scores above a no, ties counting half; 0.5 without both kinds."""
    yes, no = int(y_N.sum()), int(len(y_N) - y_N.sum())
    if not yes or not no:
        return 0.5
    _, place, counts = np.unique(score_N, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return float((ranks[y_N == 1].sum() - yes * (yes + 1) / 2) / (yes * no))
