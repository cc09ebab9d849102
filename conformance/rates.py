"""How certain an observed rate is: Clopper and Pearson's bounds. Knows no torch."""

from __future__ import annotations


def rate_bounds(seen: int, runs: int, confidence: float = 0.95) -> tuple[float, float]:
    """Clopper and Pearson's one-sided bounds, lower and upper, each at ``confidence``, on a rate of which ``seen`` in
    ``runs`` were observed (Biometrika 26, 1934)."""
    if not 0 <= seen <= runs or runs < 1:
        raise ValueError(f"{seen} in {runs} is no observed rate")
    miss = 1 - confidence
    lower = 0.0 if seen == 0 else _beta_quantile(miss, seen, runs - seen + 1)
    upper = 1.0 if seen == runs else _beta_quantile(1 - miss, seen + 1, runs - seen)
    return lower, upper


def beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function. mpmath comes with torch, which needs sympy, which needs it."""
    import mpmath

    return float(mpmath.betainc(a, b, 0, x, regularized=True))


def _beta_quantile(probability: float, a: float, b: float) -> float:
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if beta(a, b, middle) < probability else (low, middle)
    return (low + high) / 2
