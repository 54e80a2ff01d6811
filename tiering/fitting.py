"""Sums of costs from few and noisy observations: coefficients that are never negative, and that stalls do not move."""

import itertools
from typing import Final

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

_ROUNDS: Final = 10
_L1_ROUNDS: Final = 5
"""Of these, the first: they find the middle of the observations whatever a few of them say ..."""
_FAR: Final = 4.685
"""... and the rest leave out what is further from it than so many deviations: Tukey's biweight, 95 % efficient."""
_LEAST_DEVIATION: Final = 0.01
_NEAR: Final = 0.05
"""By absolute values, what is within such a part counts alike: else what is met exactly would be all that counts."""
_LEAST: Final = 1e-300


def fit(terms: Numbers, seconds: Numbers, weights: Numbers, doubts: Numbers) -> Numbers:
    """Coefficients >= 0, [p], for which `terms @ coefficients` is what was measured, within the same part of it everywhere.

    terms: [n, p], >= 0, n >= 1; of each row one is above 0.   seconds: [n], > 0.   weights: [n], > 0.   doubts: [p], how little a
    term is believed in where the observations do not tell it from another: of two that would do, the one with less doubt is
    taken. Iteratively reweighted least squares of the relative errors, at first by absolute values and then by Tukey's
    biweight (Holland and Welsch 1977).
    """
    near = np.ones_like(seconds)
    predicted = seconds
    coefficients = np.zeros(terms.shape[1])
    for number in range(_ROUNDS):
        coefficients = _least_squares(terms, seconds, predicted, weights * near, doubts)
        predicted = np.maximum(terms @ coefficients, 1e-6 * seconds)
        distance = np.abs(np.log(seconds / predicted))
        if number < _L1_ROUNDS:
            near = 1.0 / np.maximum(distance, _NEAR)
        else:
            deviation = max(_LEAST_DEVIATION, 1.4826 * weighted_median(distance, weights))
            near = np.square(np.maximum(0.0, 1.0 - np.square(distance / (_FAR * deviation)))) + 1e-9
    return coefficients


def weighted_median(values: Numbers, weights: Numbers) -> float:
    """The value below and above which lies half of the weight."""
    order = np.argsort(values)
    below = np.cumsum(weights[order])
    return float(values[order[np.searchsorted(below, below[-1] / 2)]])


def _least_squares(
    terms: Numbers, seconds: Numbers, scale: Numbers, weights: Numbers, doubts: Numbers
) -> Numbers:
    rows = terms / scale[:, None]
    weighted = rows * (weights / weights.sum())[:, None]
    gram = weighted.T @ rows
    gram += np.diag(np.square(weighted.sum(axis=0)) * doubts + _LEAST)
    return _not_negative(gram, weighted.T @ (seconds / scale))


def _not_negative(gram: Numbers, moments: Numbers) -> Numbers:
    """The minimum of x' gram x - 2 moments' x over x >= 0: of all choices of what is not 0, the best that is feasible."""
    best, best_x = 0.0, np.zeros(len(moments))
    unit = np.sqrt(np.diag(gram))
    for size in range(len(moments), 0, -1):
        for some in map(list, itertools.combinations(range(len(moments)), size)):
            scales = unit[some]
            x = np.linalg.solve(gram[np.ix_(some, some)] / np.outer(scales, scales), moments[some] / scales)
            x /= scales
            gained = float(moments[some] @ x)
            if gained > best and (x >= 0).all():
                best, best_x = gained, np.zeros(len(moments))
                best_x[some] = x
        if size == len(moments) and best:
            break  # the minimum without bounds is within them
    return best_x
