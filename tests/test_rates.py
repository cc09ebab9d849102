"""Bounds on rates against the rule of three and printed tables."""

from __future__ import annotations

import pytest

from conformance.rates import rate_bounds


@pytest.mark.parametrize(
    ("seen", "runs", "bounds"),
    # Without a failure the bound is 1 - 0.05 ** (1 / n), the rule of three; five in ten from the
    # tables.
    [
        (0, 1, (0.0, 0.95)),
        (0, 10, (0.0, 0.2589)),
        (10, 10, (0.7411, 1.0)),
        (0, 300, (0.0, 0.00994)),
        (0, 500, (0.0, 0.00597)),
        (1, 2, (0.0253, 0.9747)),
        (5, 10, (0.2224, 0.7776)),
        # Poisson's bounds for three, 0.818 and 7.754 (Pearson and Hartley, table 40), at many runs;
        # all of many.
        (3, 20_000, (4.09e-5, 38.77e-5)),
        (10_000, 10_000, (0.9997, 1.0)),
    ],
)
def test_bounds_on_rates(seen: int, runs: int, bounds: tuple[float, float]) -> None:
    assert rate_bounds(seen, runs) == pytest.approx(bounds, abs=5e-5 if seen != 3 else 1e-7)


@pytest.mark.parametrize("rate", [(-1, 3), (4, 3), (0, 0)])
def test_what_is_no_rate_is_refused(rate: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="not an observed rate"):
        rate_bounds(*rate)
