"""bench-store: many trees written, resumed from and read back; constant memory; what the journal costs a search.

    python benchmarks/store.py [--trees 100000] [--model FOLDER] [--quick]

A stage of that many trees is journalled expansion by expansion and finished tree by tree, as a search does it. Half way
the store is closed and opened again, as after a kill, with an unfinished tree in the journal, which is replayed. Then
all trees are read back and must be those that were written, by their digests. Memory must not grow with their number.

Last, a real search on a model: the journal's time per expansion against the model's.
"""

from __future__ import annotations

import hashlib
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from common import alternate, finish, parser, peak_mb, reset_peak, rounded, rss_mb, runs_of, same
from tree import CHILDREN, copied, step_pool
from treepref.driver import Job, drive
from treepref.runs.codec import digest_tree
from treepref.runs.store import JournalEntry, Store
from treepref.search.base import Expansion, node_path
from treepref.search.limits import Limits
from treepref.search.mcts import Mcts
from treepref.types import Completion, Cost, Tree, new_tree

STAGE = "bench/search"
SIMULATIONS = 4
POOL = step_pool()
Told = tuple[Expansion, list[Completion]]


def mcts(simulations: int = SIMULATIONS) -> Mcts:
    return Mcts(simulations=simulations, children=CHILDREN, limits=Limits(max_depth=8, max_step_tokens=64))


def growing(tree: Tree, number: int) -> Iterator[Told]:
    """Expansions of a tree with what an engine would have sent; told before the next is asked."""
    search = mcts()
    while expansions := search.ask(tree):
        (expansion,) = expansions
        completions = [copied(c) for c in POOL[(number * SIMULATIONS + tree.simulations) % len(POOL)]]
        yield expansion, completions
        search.tell(tree, expansion, completions, [None] * CHILDREN, 0.0)


def fresh(number: int) -> Tree:
    return new_tree(f"t{number:08d}", f"p{number}", range(1000, 1100))


def entry(tree: Tree, told: Told) -> JournalEntry:
    expansion, completions = told
    return JournalEntry(tree.key, node_path(expansion.node), "request", tuple(completions), (None,) * CHILDREN, 0.0)


def write(store: Store, numbers: range, digest: Any, together: int = 64) -> None:
    """Grow, journal and finish trees, `together` side by side: one transaction for what arrives at the same time."""
    journal = store.journal(STAGE, 0)
    for batch in itertools.batched(numbers, together) if hasattr(itertools, "batched") else _batched(numbers, together):
        trees = [fresh(n) for n in batch]
        steps = [growing(tree, n) for tree, n in zip(trees, batch, strict=True)]
        while True:
            told = [(tree, next(s, None)) for tree, s in zip(trees, steps, strict=True)]
            entries = [entry(tree, t) for tree, t in told if t is not None]
            if not entries:
                break
            journal.record(entries, Cost(generated_tokens=1))
        for tree in trees:
            store.finish_tree(STAGE, tree)
            digest.update(digest_tree(tree))


def _batched(numbers: range, size: int) -> Iterator[tuple[int, ...]]:
    walk = iter(numbers)
    while batch := tuple(itertools.islice(walk, size)):
        yield batch


def leave_one_open(store: Store, number: int) -> None:
    """What a kill leaves: a tree of which two expansions are journalled."""
    journal, tree = store.journal(STAGE, 0), fresh(number)
    for told in itertools.islice(growing(tree, number), 2):
        journal.record([entry(tree, told)], Cost())


def replayed(store: Store, number: int) -> int:
    """Expansions of the open tree that the journal gives back, as they were."""
    tree, found = fresh(number), 0
    known = store.journal(STAGE, 0).load(tree.key)
    for expansion, completions in growing(tree, number):
        kept = known.get(node_path(expansion.node))
        found += kept is not None and kept.completions == tuple(completions)
    return found


def whole_stage(folder: Path, count: int) -> dict[str, Any]:
    written, read = hashlib.blake2b(), hashlib.blake2b()
    marks: dict[str, float] = {}
    half = count // 2
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        reset_peak()
        started = time.perf_counter()
        found = work()
        seconds[name] = time.perf_counter() - started
        marks[name] = peak_mb()
        return found

    with Store(folder) as store:
        write(store, range(min(half, 1000)), written)
        marks["after the first trees"] = rss_mb()
        timed("write", lambda: write(store, range(min(half, 1000), half), written))
        leave_one_open(store, count - 1)
    store = timed("open again", lambda: Store(folder))
    with store:
        if replayed(store, count - 1) != 2:
            raise SystemExit("the journal did not give back what was written")
        present = timed("list", lambda: {row.key for row in store.tree_rows(STAGE)})
        if len(present) != half:
            raise SystemExit(f"{len(present)} trees are there after opening again, not {half}")
        present.clear()
        timed("write on", lambda: write(store, range(half, count), written))
        if replayed(store, count - 1):
            raise SystemExit("a finished stage left journal entries")

        def read_all() -> int:
            found = 0
            for tree in store.trees(STAGE):
                read.update(digest_tree(tree))
                found += 1
            return found

        n_read = timed("read", read_all)
        disk = store.disk_bytes()
    same("trees read back", float(n_read != count or written.digest() != read.digest()), 0)
    return {
        "trees": count,
        "expansions": count * SIMULATIONS,
        "write_trees_per_second": rounded((count - half) / seconds["write on"]),
        "read_trees_per_second": rounded(count / seconds["read"]),
        "open_seconds": rounded(seconds["open again"]),
        "list_seconds": rounded(seconds["list"]),
        "bytes_per_tree": round(disk / count),
        "memory_mb": {name: round(mb) for name, mb in marks.items()},
        "memory_growth_mb": round(max(marks["write on"], marks["read"]) - marks["after the first trees"]),
    }


# ----------------------------------------------------------------------------------------- journal against model


class TimedJournal:
    def __init__(self, journal: Any) -> None:
        self.journal, self.seconds, self.entries = journal, 0.0, 0

    def load(self, tree: str) -> Any:
        return self.journal.load(tree)

    def record(self, entries: Any, cost: Cost, events: Any = ()) -> None:
        started = time.perf_counter()
        self.journal.record(entries, cost, events)
        self.seconds += time.perf_counter() - started
        self.entries += len(entries)


def journal_cost(folder: Path, model: str, questions: int, threads: int) -> dict[str, Any]:
    """Milliseconds an expansion in the journal and in the engine, in a real search."""
    import torch

    from questions import prompts_of
    from treepref.engines.torch_engine import TorchEngine
    from treepref.models.policy import load_policy

    torch.set_num_threads(threads)
    policy = load_policy(model, device="cpu")
    engine = TorchEngine(policy, max_rows=64)
    search = Mcts(simulations=4, children=CHILDREN, limits=Limits(max_depth=8, max_step_tokens=48))
    with Store(folder) as store:
        journal = TimedJournal(store.journal(STAGE, 0))
        jobs = [
            Job(new_tree(f"q{i}", f"q{i}", prompt), search, lambda *_: 1.0)
            for i, prompt in enumerate(prompts_of(policy.tokenizer, questions))
        ]
        drive(jobs, engine, run_seed=0, trees_in_flight=16, journal=journal, on_done=lambda job: None)
    return {
        "model": model,
        "expansions": journal.entries,
        "journal_ms": rounded(1e3 * journal.seconds / journal.entries),
        "model_ms": rounded(1e3 * engine.cost.seconds / journal.entries),
        "share": rounded(journal.seconds / (journal.seconds + engine.cost.seconds)),
    }


def main() -> None:
    options_parser = parser(__doc__)
    options_parser.add_argument("--trees", type=int, default=None, help="default 100000")
    options_parser.add_argument("--model", default="builtin:tiny-base", help="of the real search: folder or hub id")
    options_parser.add_argument("--threads", type=int, default=2)
    options = options_parser.parse_args()
    quick, count = options.quick, options.trees or (300 if options.quick else 100_000)
    with tempfile.TemporaryDirectory() as scratch:
        folders = (Path(scratch) / str(i) for i in itertools.count())
        stage = whole_stage(next(folders), count)
        print("\n".join(f"  {name}: {value}" for name, value in stage.items()), flush=True)

        def grown(journalled: bool) -> Callable[[], None]:
            """The same trees with and without the store: what it costs beside the search's own bookkeeping."""

            def run() -> None:
                numbers = range(100 if quick else 1000)
                if journalled:
                    with Store(next(folders)) as store:
                        write(store, numbers, hashlib.blake2b())
                    return
                for n in numbers:
                    tree = fresh(n)
                    for _ in growing(tree, n):
                        pass
                    digest_tree(tree)

            return run

        found = alternate(grown(True), grown(False), runs=runs_of(options))
        print(f"trees with the store against without: {found}", flush=True)
        journal = journal_cost(next(folders), options.model, 2 if quick else 8, options.threads)
        print(f"journal in a real search: {journal}", flush=True)
    finish(
        "store",
        ratio=found.ratio,
        spread=found.spread,
        quick=quick,
        threads=options.threads,
        ours="the bookkeeping of a search without a store",
        theirs="the same with journal and trees stored",
        rows=[{"name": "store: a search with it over one without"} | found.as_dict()],
        stage=stage,
        journal=journal,
    )


if __name__ == "__main__":
    main()
