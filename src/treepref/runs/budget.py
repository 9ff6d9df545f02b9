"""Hard limits on what a whole run may cost. Knows no stage: whoever spends asks between two pieces of work."""

from __future__ import annotations

from treepref.config import BudgetConfig
from treepref.types import Cost

GIGABYTE = 10**9


def budget_tokens(cost: Cost) -> int:
    """Tokens that count against `budget.tokens`: generated, prefilled, scored and trained; cached ones are free."""
    return cost.generated_tokens + cost.prefill_tokens + cost.scored_tokens + cost.training_tokens


class Budget:
    """The limits of `config` over all lives of a run.

    `spent` is what earlier lives cost, as stored; `cost` in the calls below is what this life has cost so far, and
    `disk_bytes` what the run's directory holds now (`Store.disk_bytes`).
    """

    def __init__(self, config: BudgetConfig, spent: Cost | None = None) -> None:
        self.config = config
        self.spent = spent or Cost()

    def check(self, cost: Cost, disk_bytes: int = 0) -> str | None:
        """Why the run must stop now: the limits reached and the keys to raise. None while there is room."""
        total = self.spent + cost
        limits = self.config
        reached = []
        if limits.tokens is not None and budget_tokens(total) >= limits.tokens:
            reached.append(f"budget.tokens: {budget_tokens(total):,} of {limits.tokens:,} tokens")
        if limits.seconds is not None and total.seconds >= limits.seconds:
            reached.append(f"budget.seconds: {total.seconds:,.0f} of {limits.seconds:,.0f} seconds")
        if limits.disk_gb is not None and disk_bytes >= limits.disk_gb * GIGABYTE:
            reached.append(f"budget.disk_gb: {disk_bytes / GIGABYTE:.3g} of {limits.disk_gb:g} GB")
        if not reached:
            return None
        return (
            "budget reached: "
            + "; ".join(reached)
            + ". Everything done so far is stored: raise the limit and run the same command again to go on"
        )
