"""Estimators and intervals on plain numbers: each is a short pure function with its source beside the formula.

This file does not know what a solution, a method or a round is (`scores.py` does), and it never runs a model.
Every interval is 95 %, two-sided, as `(low, high)`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from treepref.runs.results import CalibrationBin, Difference

Z95 = 1.959963984540054
"""The 97.5 % quantile of the standard normal distribution."""

_T95 = (12.706205, 4.302653, 3.182446, 2.776445, 2.570582, 2.446912, 2.364624, 2.306004, 2.262157)
"""97.5 % quantiles of Student's t for 1 to 9 degrees of freedom."""


def wilson(successes: float, n: float, z: float = Z95) -> tuple[float, float]:
    """Score interval of a proportion; good near 0 and 1, where p ± z·SE is not.

    Both counts may be fractional (an effective sample size). Raises ValueError unless 0 <= successes <= n and n > 0.
    """
    if not (n > 0 and 0 <= successes <= n):
        raise ValueError(f"a proportion needs 0 <= successes <= n and n > 0, not {successes} of {n}")
    # Wilson 1927: centre (p + z²/2n) / (1 + z²/n), half width z·√(p(1−p)/n + z²/4n²) / (1 + z²/n)
    p = successes / n
    scale = 1 + z * z / n
    centre = (p + z * z / (2 * n)) / scale
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / scale
    # The bounds at 0 and n are exactly 0 and 1; rounding may miss them by 1e-17.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return low, high


def score_interval(scores: Sequence[float], draws: int | None = None) -> tuple[float, float]:
    """Interval of the mean of per-problem scores in [0, 1]; for 0/1 scores it is `wilson` exactly.

    A score that is itself a mean over several draws varies less than a coin, so Wilson's interval is taken at the
    effective sample size n* = p(1−p) / Var(mean) (Kish 1965, design effect; Franco et al. 2019 for Wilson), at most
    `draws`, the number of draws behind all scores together (None: one a score).
    """
    n = len(scores)
    mean = math.fsum(scores) / n if n else 0.0
    variance = math.fsum((s - mean) ** 2 for s in scores) / n if n else 0.0
    most = float(max(n, draws or n))
    effective = min(most, mean * (1 - mean) * n / variance) if variance > 0 else most
    mean = min(1.0, max(0.0, mean))
    return wilson(mean * effective, effective)


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Unbiased chance that at least one of k samples is right, from `correct` right ones among n.

    Raises ValueError unless 1 <= k <= n and 0 <= correct <= n.
    """
    if not (1 <= k <= n and 0 <= correct <= n):
        raise ValueError(f"pass@k needs 1 <= k <= n and 0 <= correct <= n, not k={k}, n={n}, correct={correct}")
    # Chen et al. 2021 (arXiv 2107.03374) eq. 1: 1 − C(n−c, k) / C(n, k)
    return 1 - math.comb(n - correct, k) / math.comb(n, k)


def paired_difference(a: Mapping[str, float], b: Mapping[str, float]) -> Difference | None:
    """b − a on the problems that both scored (keys are problem ids); None where they share none.

    The interval is the normal one of a mean of independent per-problem differences: d̄ ± z·s/√n.
    """
    shared = sorted(a.keys() & b.keys())
    if not shared:
        return None
    differences = [b[key] - a[key] for key in shared]
    better = sum(d > 0 for d in differences)
    worse = sum(d < 0 for d in differences)
    binary = all(score in (0, 1) for key in shared for score in (a[key], b[key]))
    mean = math.fsum(differences) / len(differences)
    half = Z95 * _standard_error(differences)
    return Difference(
        difference=mean,
        interval=(max(-1.0, mean - half), min(1.0, mean + half)),
        n=len(shared),
        better=better,
        worse=worse,
        mcnemar_p=mcnemar_exact(better, worse) if binary else None,
    )


def mcnemar_exact(better: int, worse: int) -> float:
    """Two-sided exact p of McNemar's test: are the problems on which two methods differ split evenly?

    Those on which they agree say nothing. Without any that differ, p = 1.
    """
    n = better + worse
    # McNemar 1947, exact form: under H0 better ~ Binomial(n, ½); p = 2·Σ_{i ≤ min} C(n, i) / 2ⁿ, at most 1
    tail = sum(math.comb(n, i) for i in range(min(better, worse) + 1))
    return min(1.0, 2 * tail / 2**n)


def bootstrap_interval(differences: Sequence[float], seed: int = 0, resamples: int = 10_000) -> tuple[float, float]:
    """Percentile bootstrap of the mean (Efron 1979): problems drawn with replacement, the same for the same seed.

    For skewed or few differences, where the normal interval of `paired_difference` is in doubt.
    """
    if not differences:
        raise ValueError("a bootstrap needs at least one difference")
    values = np.asarray(differences, dtype=np.float64)
    generator = np.random.default_rng(seed)
    # A chunk at a time: resamples × problems indices would not fit for many problems.
    chunk = max(1, 2_000_000 // len(values))
    means: list[np.ndarray] = []
    for start in range(0, resamples, chunk):
        rows = min(chunk, resamples - start)
        means.append(values[generator.integers(0, len(values), (rows, len(values)))].mean(axis=1))
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return float(low), float(high)


@dataclass(frozen=True, slots=True)
class SeedMean:
    """Paired difference averaged over training seeds, with an interval for each of two questions."""

    difference: float
    interval: tuple[float, float]
    """Other problems, these trained models: problems are the sampling unit, also where seeds share them."""
    seed_interval: tuple[float, float] | None
    """Other seeds: Student's t over the seeds' differences. None for a single seed."""
    per_seed: tuple[float, ...]
    n: int
    """Distinct problems."""


def mean_over_seeds(seeds: Sequence[tuple[Mapping[str, float], Mapping[str, float]]]) -> SeedMean:
    """Mean of b − a over runs that differ in their seed; each run gives (a, b), scores by problem id.

    Seeds may share their problems or not. Raises ValueError without a seed or where a and b share no problem.
    """
    if not seeds:
        raise ValueError("a mean over seeds needs at least one seed")
    per_seed: list[float] = []
    # Cluster-robust variance (Liang & Zeger 1986): a problem's residuals are summed over the seeds before squaring,
    # so a problem evaluated under three seeds does not count as three problems.
    residuals: dict[str, float] = {}
    for number, (a, b) in enumerate(seeds):
        shared = sorted(a.keys() & b.keys())
        if not shared:
            raise ValueError(f"seed {number}: the two methods share no problem")
        differences = {key: b[key] - a[key] for key in shared}
        mean = math.fsum(differences.values()) / len(shared)
        per_seed.append(mean)
        for key, d in differences.items():
            residuals[key] = residuals.get(key, 0.0) + (d - mean) / (len(shared) * len(seeds))
    n = len(residuals)
    error = math.sqrt(n / (n - 1) * math.fsum(u * u for u in residuals.values())) if n > 1 else 0.0
    centre = math.fsum(per_seed) / len(per_seed)
    seed_interval = None
    if len(per_seed) > 1:
        half = t_quantile(len(per_seed) - 1) * _standard_error(per_seed)
        seed_interval = (centre - half, centre + half)
    return SeedMean(centre, (centre - Z95 * error, centre + Z95 * error), seed_interval, tuple(per_seed), n)


def t_quantile(degrees: int) -> float:
    """97.5 % quantile of Student's t, to four digits. Raises ValueError below one degree of freedom."""
    if degrees < 1:
        raise ValueError("Student's t needs at least one degree of freedom: two seeds")
    if degrees <= len(_T95):
        return _T95[degrees - 1]
    z, d = Z95, degrees
    # Abramowitz & Stegun 26.7.5, the first three terms
    return (
        z
        + (z**3 + z) / (4 * d)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * d**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * d**3)
    )


def auc(scores: Sequence[float], outcomes: Sequence[bool]) -> float | None:
    """Chance that a right solution scores above a wrong one, ties counting half. None where one kind is missing."""
    values = np.asarray(scores, dtype=np.float64)
    right = np.asarray(outcomes, dtype=bool)
    if len(values) != len(right):
        raise ValueError(f"{len(values)} scores but {len(right)} outcomes")
    positives = int(right.sum())
    negatives = len(right) - positives
    if not positives or not negatives:
        return None
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    # Mid-ranks: equal scores share the mean of the ranks that they take up.
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    # Mann & Whitney 1947: U = R₊ − n₊(n₊+1)/2, AUC = U / (n₊·n₋)
    u = float(ranks[right].sum()) - positives * (positives + 1) / 2
    return u / (positives * negatives)


def calibration(values: Sequence[float], outcomes: Sequence[bool], bins: int = 10) -> list[CalibrationBin]:
    """Prediction against outcome in equal bins; V in [-1, 1] predicts a right answer with chance (V + 1) / 2.

    Empty bins are left out; the last bin includes 1.
    """
    if len(values) != len(outcomes):
        raise ValueError(f"{len(values)} values but {len(outcomes)} outcomes")
    members: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for value, right in zip(values, outcomes, strict=True):
        chance = min(1.0, max(0.0, (value + 1) / 2))
        members[min(bins - 1, int(chance * bins))].append((chance, right))
    out = []
    for index, rows in enumerate(members):
        if rows:
            n, right_ones = len(rows), sum(right for _, right in rows)
            predicted = math.fsum(chance for chance, _ in rows) / n
            low, high = index / bins, (index + 1) / bins
            out.append(
                CalibrationBin(
                    low=low,
                    high=high,
                    predicted=predicted,
                    observed=right_ones / n,
                    interval=wilson(right_ones, n),
                    n=n,
                )
            )
    return out


def calibration_error(bins: Sequence[CalibrationBin]) -> float | None:
    """Expected calibration error (Guo et al. 2017, eq. 3): Σ n_b/n · |observed − predicted|. None without a bin."""
    total = sum(b.n for b in bins)
    return math.fsum(b.n * abs(b.observed - b.predicted) for b in bins) / total if total else None


def log_position(tokens: float, grid: Sequence[float]) -> tuple[int, float] | None:
    """Where `tokens` lies between neighbours of an increasing grid: (index of the lower one, weight of the upper one).

    Linear in log tokens. None outside the grid: what was not measured is not guessed.
    """
    if not grid or not (0 < grid[0] <= tokens <= grid[-1]):
        return None
    for index, upper in enumerate(grid[1:]):
        lower = grid[index]
        if tokens <= upper and upper > lower:
            return index, math.log(tokens / lower) / math.log(upper / lower)
    return 0, 0.0


def _standard_error(values: Sequence[float]) -> float:
    """s/√n with the sample variance; 0 for a single value."""
    n = len(values)
    if n < 2:
        return 0.0
    mean = math.fsum(values) / n
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)
