"""Linear fits: what they recover, and what they agree with."""

import numpy as np
import pytest

from laionkit.ops.linear import (
    area_under_curve,
    choose_l2,
    correlation,
    fit_logistic,
    fit_ridge,
    log_loss,
    squared_error,
)

RNG = np.random.default_rng(0)
X = RNG.normal(size=(400, 6))
TRUE = np.array([1.0, -2, 0.5, 0, 0, 3])


def test_ridge_without_penalty_recovers_an_affine_map():
    fitted = fit_ridge(X, X @ TRUE + 4, 0.0)
    np.testing.assert_allclose(fitted.weight_D, TRUE, atol=1e-9)
    assert fitted.bias == pytest.approx(4)


def test_a_strong_penalty_says_the_mean():
    fitted = fit_ridge(X, X @ TRUE + 4, 1e12)
    np.testing.assert_allclose(fitted(X), (X @ TRUE + 4).mean(), atol=1e-6)


def test_logistic_ends_where_the_gradient_is_zero():
    y = (RNG.random(400) < 1 / (1 + np.exp(-(X @ TRUE)))).astype(float)
    fitted = fit_logistic(X, y, 1.0)
    p = 1 / (1 + np.exp(-fitted(X)))
    np.testing.assert_allclose(X.T @ (p - y) + fitted.weight_D, 0, atol=1e-6)
    assert (p - y).sum() == pytest.approx(0, abs=1e-5)


def test_logistic_stays_finite_on_separable_labels():
    y = (X[:, 0] > 0).astype(float)
    fitted = fit_logistic(X, y, 1e-3)
    assert np.isfinite(fitted.weight_D).all()
    assert area_under_curve(y, fitted(X)) > 0.999


def test_noise_wants_a_penalty_and_signal_does_not():
    folds = np.arange(400) % 5
    clean = choose_l2(X, X @ TRUE, folds, fit_ridge, squared_error)
    noise = choose_l2(X, RNG.normal(size=400), folds, fit_ridge, squared_error)
    assert clean < 1 < noise


def test_area_under_curve_counts_ties_half():
    y = np.array([0.0, 1, 0, 1])
    assert area_under_curve(y, np.array([0.0, 1, 0, 1])) == 1
    assert area_under_curve(y, np.zeros(4)) == 0.5
    assert area_under_curve(np.ones(4), np.arange(4.0)) == 0.5


def test_a_constant_correlates_with_nothing():
    assert correlation(np.ones(3), np.arange(3.0)) == 0


def test_log_loss_of_a_coin_is_log_two():
    assert log_loss(np.array([0.0, 1]), np.zeros(2)) == pytest.approx(np.log(2))
