"""bench-tree: what the search tree itself costs: its growth, treequest on the same trees, its share of a real search.

    python benchmarks/tree.py [--model FOLDER] [--nodes 1000000] [--quick]

1. Growth: one tree under SVPO's rules, steps made beforehand (no engine): simulations a second and bytes a node.
2. Against treequest's StandardMCTS through ask and tell: our search with treequest's own rules grows the same tree,
   node by node, which is checked first.
3. A real search on a model: how much of the time passes in ask and tell, in the driver, in the engine.
"""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any

from common import alternate, finish, parser, rss_mb, runs_of, same
from treepref.driver import Job, drive
from treepref.engines.base import Engine, EngineLimits
from treepref.search.limits import Limits
from treepref.search.mcts import Mcts
from treepref.search.rules import backup_mean
from treepref.types import BASE, Completion, Node, Request, Result, Tree, new_tree

CHILDREN = 5
STEP_TOKENS = 16
POOL = 4096
"""Steps made beforehand. Siblings are told apart by their first token, so a tree never merges them."""


# ---------------------------------------------------------------------------------------------------- growth


def step_pool() -> list[list[Completion]]:
    """Sets of children with made-up tokens, log-probs and values; one set is handed to each expansion in turn."""
    return [[_step(i, child) for child in range(CHILDREN)] for i in range(POOL // CHILDREN)]


def _step(i: int, child: int) -> Completion:
    noise = blake2b(f"{i}:{child}".encode(), digest_size=64).digest()
    tokens = (child, *(1000 + noise[k % 64] * 150 for k in range(STEP_TOKENS - 1)))
    logprobs = tuple(-noise[-k % 64] / 128 for k in range(STEP_TOKENS))
    return Completion(tokens, logprobs, "step", value=noise[0] / 128 - 1)


def copied(completion: Completion) -> Completion:
    """With numbers of its own, as they come from an engine: shared ones would make a node look small."""
    tokens = tuple(t + 0 if t < 257 else int(float(t)) for t in completion.tokens)
    return Completion(tokens, tuple(lp * 1.0 for lp in completion.logprobs), "step", value=completion.value)


def grow(nodes: int, marks: Sequence[int]) -> list[dict[str, float]]:
    """One tree to `nodes` nodes; at each mark the speed since the last one, memory, and how deep leaves lie."""
    pool, tree = step_pool(), new_tree("bench", "bench", range(100))
    search = Mcts(simulations=nodes, children=CHILDREN, limits=Limits(max_depth=10**6, max_step_tokens=64))
    found: list[dict[str, float]] = []
    before, started, spent, depth = rss_mb(), time.perf_counter(), 0.0, 0
    last_simulations = 0
    for mark in marks:
        while len(tree.nodes) < mark:
            (expansion,) = search.ask(tree)
            depth += expansion.node.depth
            made_at = time.perf_counter()
            completions = [copied(c) for c in pool[tree.simulations % len(pool)]]
            spent += time.perf_counter() - made_at  # the engine's work, not the tree's
            search.tell(tree, expansion, completions, [None] * CHILDREN, 0.0)
        seconds = time.perf_counter() - started - spent
        simulations = tree.simulations - last_simulations
        found.append(
            {
                "nodes": len(tree.nodes),
                "simulations_per_second": simulations / seconds,
                "bytes_per_node": (rss_mb() - before) * 2**20 / len(tree.nodes),
                "depth": depth / simulations,
                "nanoseconds_per_level": 1e9 * seconds / (simulations + depth),
            }
        )
        last_simulations, depth, spent, started = tree.simulations, 0, 0.0, time.perf_counter()
    return found


# ----------------------------------------------------------------------------------- the same tree as treequest


def uct(parent: Node, child: Node, c: float) -> float:
    """treequest's score: mean + c · prior · √(ln N(parent) / N(child))."""
    n_parent = parent.visits or 1
    return child.total / child.visits + c * child.prior * math.sqrt(math.log(n_parent) / child.visits)


def backup_children(leaf: Node, _: float) -> None:
    """As treequest does: every new child is backed up; priors are a softmax over the siblings' scores."""
    for child in leaf.children:
        assert child.value is not None
        backup_mean(child, child.value)
    scores = [child.value or 0.0 for child in leaf.children]
    largest = max(scores)
    weights = [math.exp(s - largest) for s in scores]
    total = sum(weights)
    for child, weight in zip(leaf.children, weights, strict=True):
        child.prior = weight / total


def score_of(expansion: int, child: int) -> float:
    """In [0, 1], as treequest wants it; the same on both sides."""
    return int.from_bytes(blake2b(f"{expansion}:{child}".encode(), digest_size=6).digest(), "little") / 2**48


def grow_ours(simulations: int) -> list[int]:
    """Parents by order of creation."""
    tree = new_tree("bench", "bench", (1,))
    search = Mcts(
        simulations=simulations,
        children=CHILDREN,
        c=math.sqrt(2),
        score=uct,
        backup=backup_children,
        limits=Limits(max_depth=10**6),
    )
    while expansions := search.ask(tree):
        (expansion,) = expansions
        at = tree.simulations
        completions = [Completion((i,), (-1.0,), "step", value=score_of(at, i)) for i in range(CHILDREN)]
        search.tell(tree, expansion, completions, [None] * CHILDREN, None)
    return [-1 if n.parent is None else n.parent.index for n in tree.nodes]


def grow_treequest(simulations: int) -> list[int]:
    from treequest import StandardMCTS

    search = StandardMCTS(samples_per_action=CHILDREN, exploration_weight=math.sqrt(2))
    state = search.init_tree()
    for at in range(simulations):
        state, trials = search.ask_batch(state, CHILDREN, ["step"])
        for i, trial in enumerate(trials):
            state = search.tell(state, trial.trial_id, ((i,), score_of(at, i)))
    nodes = state.tree.get_nodes()
    return [-1 if n.parent is None else n.parent.expand_idx + 1 for n in nodes]


def against_treequest(sizes: Sequence[int], runs: int) -> list[dict[str, Any]]:
    """A comparison a size. Their cost grows with the square of the size: large trees are worth one turn."""
    rows = []
    for nodes in sizes:
        simulations = nodes // CHILDREN
        ours, theirs = grow_ours(simulations), grow_treequest(simulations)
        same(f"tree of {nodes} nodes", float(sum(a != b for a, b in zip(ours, theirs, strict=True))), 0)
        found = alternate(
            lambda n=simulations: grow_treequest(n), lambda n=simulations: grow_ours(n), runs=runs, warmup=0
        )
        print(f"treequest at {nodes} nodes: {found}", flush=True)
        rows.append({"name": f"tree against treequest, {nodes} nodes"} | found.as_dict())
    return rows


# ---------------------------------------------------------------------------------------- share of a real search


class Timed:
    """An engine or a search whose calls are timed; all else passes through."""

    def __init__(self, inner: Any, names: Sequence[str]) -> None:
        self.inner, self.seconds = inner, 0.0
        for name in names:
            setattr(self, name, self._timed(getattr(inner, name)))

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            started = time.perf_counter()
            try:
                return call(*arguments)
            finally:
                self.seconds += time.perf_counter() - started

        return timed

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def real_search(model: str, questions: int, simulations: int, threads: int) -> dict[str, Any]:
    """Shares of the time of a search on a model; journal and answer check left out, for they are not the tree's."""
    import torch

    from questions import prompts_of
    from treepref.engines.torch_engine import TorchEngine
    from treepref.models.policy import load_policy

    torch.set_num_threads(threads)
    policy = load_policy(model, device="cpu")
    prompts = prompts_of(policy.tokenizer, questions)
    engine = Timed(TorchEngine(policy, max_rows=64), ["submit", "poll"])
    search = Timed(
        Mcts(
            simulations=simulations, children=CHILDREN, limits=Limits(max_depth=8, max_step_tokens=48, max_context=2048)
        ),
        ["ask", "tell", "done"],
    )
    trees: list[Tree] = []
    jobs = [Job(new_tree(f"q{i}", f"q{i}", prompt), search, lambda *_: 1.0) for i, prompt in enumerate(prompts)]
    started = time.perf_counter()
    drive(
        jobs, engine, run_seed=0, trees_in_flight=16, journal=None, on_done=lambda job: trees.append(job.tree)
    )  # fmt: skip
    seconds = time.perf_counter() - started
    nodes = sum(len(t.nodes) for t in trees)
    shares = {
        "tree": search.seconds / seconds,
        "driver": (seconds - search.seconds - engine.seconds) / seconds,
        "engine": engine.seconds / seconds,
    }
    return {"model": model, "questions": questions, "simulations": simulations, "nodes": nodes, "shares": shares}


# ------------------------------------------------------------------------------------------------------- driver


class Instant:
    """An engine that has every answer at once: what is left of a search is driver and tree."""

    tokenizer, policy_id, limits = None, BASE, EngineLimits(1 << 30, True, frozenset({"value"}))

    def __init__(self) -> None:
        self._pool, self._waiting, self._sent = step_pool(), [], 0

    def submit(self, requests: Sequence[Request]) -> None:
        self._waiting.extend(requests)

    def poll(self, timeout: float | None = None) -> list[Result]:
        found = []
        for request in self._waiting:
            self._sent += 1
            found.append(Result(request.id, tuple(self._pool[self._sent % len(self._pool)]), 0.0))
        self._waiting = []
        return found


def driver_cost(trees: int, simulations: int) -> dict[str, float]:
    """Microseconds an expansion that the driver and the tree take, many small trees at once."""
    search = Timed(
        Mcts(simulations=simulations, children=CHILDREN, limits=Limits(max_depth=8)), ["ask", "tell", "done"]
    )
    engine: Engine = Instant()  # type: ignore[assignment]
    jobs = (Job(new_tree(f"t{i}", f"t{i}", range(100)), search, lambda *_: 1.0) for i in range(trees))
    started = time.perf_counter()
    report = drive(jobs, engine, run_seed=0, trees_in_flight=64, journal=None, on_done=lambda job: None)
    seconds = time.perf_counter() - started
    return {
        "tree_us": 1e6 * search.seconds / report.expansions,
        "driver_us": 1e6 * (seconds - search.seconds) / report.expansions,
    }


def main() -> None:
    options_parser = parser(__doc__)
    options_parser.add_argument("--model", default="builtin:tiny-base", help="of the real search: folder or hub id")
    options_parser.add_argument("--nodes", type=int, default=None, help="of the largest tree (default 1000000)")
    options_parser.add_argument("--threads", type=int, default=2)
    options = options_parser.parse_args()
    runs, quick = runs_of(options), options.quick
    largest = options.nodes or (3000 if quick else 10**6)
    marks = [m for m in (10**3, 10**4, 10**5, 10**6) if m < largest] + [largest]

    growth = grow(largest, marks)
    print(f"growth of one tree ({CHILDREN} children of {STEP_TOKENS} tokens an expansion)")
    for row in growth:
        print("  " + "  ".join(f"{name} {value:,.0f}" for name, value in row.items()), flush=True)
    bookkeeping = driver_cost(5 if quick else 400, 40)
    print("many small trees: " + ", ".join(f"{name} {value:.0f}" for name, value in bookkeeping.items()), flush=True)
    rows: list[dict[str, Any]] = []
    if importlib.util.find_spec("treequest") is None:
        print("against treequest: skipped: it is not installed here (pip install treequest)")
        rows.append({"name": "tree against treequest", "ratio": None, "spread": None, "skipped": "not installed"})
    else:
        rows += against_treequest((500,) if quick else (1000, 3000), runs)
        if not quick:
            rows += against_treequest((10_000,), 1)
    share = real_search(options.model, 2 if quick else 8, 4 if quick else 8, options.threads)
    print("real search: " + ", ".join(f"{name} {100 * part:.2f} %" for name, part in share["shares"].items()))

    finish(
        "tree",
        ratio=rows[0]["ratio"],
        spread=rows[0]["spread"],
        packages=("treequest",),
        quick=quick,
        threads=options.threads,
        ours="treepref search (ask/tell)",
        theirs="treequest StandardMCTS (ask/tell)",
        rows=rows,
        growth=growth,
        driver=bookkeeping,
        real_search=share,
    )


if __name__ == "__main__":
    main()
