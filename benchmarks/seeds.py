"""Several seeds of a recipe, and other objectives on the same samples: mean differences with paired intervals.

    python benchmarks/seeds.py OUT --seeds 0 1 2 [--jobs 2] [key=value …]

For each seed: the recipe as it is, and forks of its first search with rejection-sampling fine-tuning and
solution-level DPO (equal samples to the letter: the same trees). Prints a table and, as its last line, a JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

from treepref.evaluation.comparison import RunScores, difference
from treepref.evaluation.scores import Scores
from treepref.loops.compare import read_run

Difference = dict[str, Any]
Policy = tuple[str, int | None, str]
GREEDY_ONLY = ["rounds=1", "eval.samples=1", "eval.sbs=[]"]
VARIANTS = {
    "rft": ["train.objective=sft", "train.lr={rft_lr}", *GREEDY_ONLY],
    "solution_dpo": ["train.objective=dpo", "pairs.level=solution", *GREEDY_ONLY],
}


def treepref(*arguments: str) -> None:
    command = [sys.executable, "-m", "treepref.cli", *arguments]
    done = subprocess.run(command, env=os.environ | {"OMP_WAIT_POLICY": "passive"}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")


def run_seed(recipe: str, out: Path, seed: int, overrides: list[str], rft_lr: str) -> None:
    """One seed and its forks; what is done already is left alone."""
    main = out / f"seed-{seed}"
    treepref("run", recipe, "--out", str(main), f"seed={seed}", *overrides)
    for name, changes in VARIANTS.items():
        target = out / f"seed-{seed}-{name}"
        changes = [c.format(rft_lr=rft_lr) for c in changes]
        if target.exists():
            treepref("run", str(target / "recipe.yaml"), "--out", str(target))
        else:
            treepref("fork", str(main), str(target), *changes)


def comparisons(out: Path, seeds: list[int]) -> Iterator[tuple[str, Difference]]:
    """Named mean differences over the seeds, each on the same problems."""

    @cache
    def run(name: str, seed: int) -> RunScores:
        return read_run(out / (f"seed-{seed}-{name}" if name else f"seed-{seed}"))

    def paired(one: Policy, two: Policy) -> Difference | None:
        """two − one; None where a seed lacks either. A policy: fork ('' is SVPO), round (None: the last), method."""

        def scores(policy: Policy, seed: int) -> Scores | None:
            found = run(policy[0], seed)
            at = found.last if policy[1] is None else found.round(policy[1])
            return at and at.methods.get(policy[2])

        pairs = [(a, b) for s in seeds if (a := scores(one, s)) is not None and (b := scores(two, s)) is not None]
        return difference(pairs) if len(pairs) == len(seeds) else None

    start, first, last = ("", 0, "greedy"), ("", 1, "greedy"), ("", None, "greedy")
    rft, solution_dpo = ("rft", None, "greedy"), ("solution_dpo", None, "greedy")
    table = {
        "greedy, last round − start": paired(start, last),
        "greedy, round 1 − start": paired(start, first),
        "RFT − start": paired(start, rft),
        "solution-level DPO − start": paired(start, solution_dpo),
        "SVPO round 1 − RFT": paired(rft, first),
        "SVPO round 1 − solution-level DPO": paired(solution_dpo, first),
        **{f"sbs({w}) − greedy": paired(last, ("", None, f"sbs({w})")) for w in ("1,2", "1,4", "2,4", "4,4")},
        **{
            f"sbs({w}) − sc@{k}": paired(("", None, f"sc@{k}"), ("", None, f"sbs({w})"))
            for w, k in (("1,2", 2), ("1,4", 4))
        },
    }
    yield from ((name, found) for name, found in table.items() if found is not None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("overrides", nargs="*", help="key=value overrides of the recipe")
    parser.add_argument("--recipe", default="quickstart")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--rft-lr", default="1e-4")
    options = parser.parse_intermixed_args()
    with ThreadPoolExecutor(options.jobs) as pool:
        jobs = [
            pool.submit(run_seed, options.recipe, options.out, seed, options.overrides, options.rft_lr)
            for seed in options.seeds
        ]
        for job in jobs:
            job.result()
    found: dict[str, Difference] = {}
    for name, mean in comparisons(options.out, options.seeds):
        found[name] = mean
        low, high = mean["interval"]
        each = " ".join(f"{100 * d:+.1f}" for d in mean["per_seed"])
        print(f"{name:<36} {100 * mean['difference']:+6.1f}  [{100 * low:+.1f}, {100 * high:+.1f}]  seeds: {each}")
    print(json.dumps({"name": "seeds", "recipe": options.recipe, "seeds": options.seeds, "differences": found}))


if __name__ == "__main__":
    main()
