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
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from treepref.evaluation import Samples, Scores, Solution, sampled_scores, single_scores
from treepref.statistics import SeedMean, mean_over_seeds
from treepref.store import Store

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


def rows(run: Path, round: int, decoder: str) -> list[Solution]:
    with Store(run, read_only=True) as store:
        return [Solution.from_row(row) for _, _, row in store.outcomes(f"round-{round}/eval/{decoder}")]


def last_round(run: Path) -> int:
    return json.loads((run / "results.json").read_text())["rounds"][-1]["round"]


def greedy(run: Path, round: int) -> Scores:
    found = single_scores(rows(run, round, "greedy"), needs_value=False)
    assert found is not None
    return found


def sampled(run: Path, round: int, method: str, k: int) -> Scores | None:
    return sampled_scores(Samples(rows(run, round, "samples")), method, k)  # type: ignore[arg-type]


def comparisons(out: Path, seeds: list[int]) -> Iterator[tuple[str, SeedMean]]:
    """Named mean differences over the seeds, each on the same problems."""

    def paired(one: Callable[[int], Scores | None], two: Callable[[int], Scores | None]) -> SeedMean | None:
        both = [(one(s), two(s)) for s in seeds]
        if any(a is None or b is None for a, b in both):
            return None
        return mean_over_seeds([(a.score, b.score) for a, b in both])  # type: ignore[union-attr]

    def of(name: str, round: int | None = None) -> Callable[[int], Scores]:
        def scores(seed: int) -> Scores:
            run = out / (f"seed-{seed}-{name}" if name else f"seed-{seed}")
            return greedy(run, last_round(run) if round is None else round)

        return scores

    def method(decoder: str, k: int = 0) -> Callable[[int], Scores | None]:
        def scores(seed: int) -> Scores | None:
            run = out / f"seed-{seed}"
            if k:
                return sampled(run, last_round(run), decoder, k)
            return single_scores(rows(run, last_round(run), decoder))

        return scores

    table = {
        "greedy, last round − start": paired(of("", 0), of("")),
        "greedy, round 1 − start": paired(of("", 0), of("", 1)),
        "RFT − start": paired(of("", 0), of("rft")),
        "solution-level DPO − start": paired(of("", 0), of("solution_dpo")),
        "SVPO round 1 − RFT": paired(of("rft"), of("", 1)),
        "SVPO round 1 − solution-level DPO": paired(of("solution_dpo"), of("", 1)),
        **{f"sbs({w}) − greedy": paired(of(""), method(f"sbs({w})")) for w in ("1,2", "1,4", "2,4", "4,4")},
        **{f"sbs({w}) − sc@{k}": paired(method("sc", k), method(f"sbs({w})")) for w, k in (("1,2", 2), ("1,4", 4))},
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
    found: dict[str, Any] = {}
    for name, mean in comparisons(options.out, options.seeds):
        found[name] = mean.as_dict()
        low, high = mean.interval
        each = " ".join(f"{100 * d:+.1f}" for d in mean.per_seed)
        print(f"{name:<36} {100 * mean.difference:+6.1f}  [{100 * low:+.1f}, {100 * high:+.1f}]  seeds: {each}")
    print(json.dumps({"name": "seeds", "recipe": options.recipe, "seeds": options.seeds, "differences": found}))


if __name__ == "__main__":
    main()
