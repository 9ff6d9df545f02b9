"""bench-training: DPO on the step pairs of searched trees: our packed learner against two that repeat prefixes.

    python benchmarks/training.py --model FOLDER [--trees FOLDER] [--threads N] [--quick]

The trees come from real searches on GSM8K questions (kept in `--trees`, made where it is empty). Two shapes of pairs:
at each depth of the most visited path the best sibling over the worst; and all pairs of visited siblings of a tree.
Which sibling wins (higher Q, ties by log-prob) plays no part in what a step costs.

1. unpacked: our own learner with every side of every pair as a sequence of its own, prompt and prefix repeated.
2. trl: `trl.DPOTrainer` on the same token ids (its collator and its `training_step`, sequences sorted by length), with
   recorded reference log-probs, in float32, without gradient checkpointing, at its fastest batch size of those tried.

A step is forward, backward, clipping and AdamW over all pairs, at a learning rate of 0, so that each turn has the same
work. First the gradients of one step must agree. The reference is the policy with noise, so that pairs weigh unequally.
The ideal is the tokens that they run through the model (padding left out) over the tokens that we run.

Last, on a small model with made-up trees: where the gain ends, by length of the prefix and number of siblings.
"""

from __future__ import annotations

import importlib.util
import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

os.environ.setdefault("TQDM_DISABLE", "1")  # before TRL reads it

from common import Comparison, alternate, finish, parser, rounded, rss_mb, runs_of, same, timed, trim
from questions import prompts_of, source
from treepref.driver import Job, drive
from treepref.engines.torch_engine import TorchEngine
from treepref.models.policy import UNTRAINED, Policy, load_policy
from treepref.runs.codec import pack_tree, unpack_tree
from treepref.search.limits import Limits
from treepref.search.mcts import Mcts
from treepref.training.examples import Example, ExampleNode, ExamplePair, attach_reference, example_from_tree
from treepref.training.forward import model_scorer
from treepref.training.learner import Learner
from treepref.training.objectives import Coefficients
from treepref.training.settings import LearnerSettings
from treepref.types import Node, Pair, PolicyId, Tree, new_tree

BETA = 0.1
ROW_TOKENS, ROWS = 2048, 2
"""Of our packed passes: a recipe's defaults."""
BATCHES = (1, 2, 4, 8)
"""Pairs in one forward that are tried for the two sides that repeat prefixes."""
TOLERANCE = 1e-4
"""Largest relative L2 distance of two sides' gradients."""

Step = Callable[[], None]


# ---------------------------------------------------------------------------------------------------- trees and pairs


def searched(folder: Path, policy: Policy, questions: int, search: Mcts) -> list[Tree]:
    """The trees kept in `folder`; where there are none, they are grown first (a few minutes) and kept."""
    files = sorted(folder.glob("*.tree"))
    if not files:
        print(f"searching {questions} questions of {source()}: {search.simulations} simulations each …", flush=True)
        started = time.perf_counter()
        trees = grown(policy, prompts_of(policy.tokenizer, questions), search)
        folder.mkdir(parents=True, exist_ok=True)
        for tree in trees:
            (folder / f"{tree.key}.tree").write_bytes(pack_tree(tree))
        print(f"  {time.perf_counter() - started:.0f} s; kept in {folder}")
        files = sorted(folder.glob("*.tree"))
    return [unpack_tree(file.read_bytes()) for file in files]


def grown(policy: Policy, prompts: Sequence[tuple[int, ...]], search: Mcts) -> list[Tree]:
    """Trees by key. No answer is checked: a wrong one and a right one are trees of the same shape."""
    trees: list[Tree] = []
    jobs = (Job(new_tree(f"q{i:03d}", f"q{i:03d}", p), search, lambda *_: -1.0) for i, p in enumerate(prompts))
    engine = TorchEngine(policy, max_rows=64)
    drive(
        jobs, engine, run_seed=0, trees_in_flight=8, journal=None, on_done=lambda job: trees.append(job.tree)
    )  # fmt: skip
    return sorted(trees, key=lambda tree: tree.key)


def rank(node: Node) -> tuple[float, float]:
    return (node.q if node.q is not None else -1.0, sum(node.logprobs) / len(node.logprobs))


def depth_pairs(tree: Tree) -> list[Pair]:
    """At each depth of the most visited path: the best child over the worst."""
    pairs, node = [], tree.root
    while len(node.children) > 1:
        ordered = sorted(node.children, key=rank)
        pairs.append(pair_of(tree, ordered[-1], ordered[0]))
        node = max(node.children, key=lambda child: (child.visits, -child.index))
    return pairs


def sibling_pairs(tree: Tree) -> list[Pair]:
    """All pairs of siblings with visits: the others have no Q, and no preference is known of them."""
    visited = [[child for child in node.children if child.visits] for node in tree.nodes]
    return [pair_of(tree, *sorted(two, key=rank, reverse=True)) for nodes in visited for two in combinations(nodes, 2)]


def pair_of(tree: Tree, winner: Node, loser: Node) -> Pair:
    q = [n.q or 0.0 for n in (winner, loser)]
    return Pair(tree.key, (winner.index,), (loser.index,), *q, winner.visits, loser.visits)


def limited(rule: Callable[[Tree], list[Pair]], most: int | None) -> Callable[[Tree], list[Pair]]:
    """The rule, with at most so many pairs a tree, spread over all of them."""

    def some(tree: Tree) -> list[Pair]:
        found = rule(tree)
        return found[:: max(1, -(-len(found) // most))] if most and found else found

    return some


# ---------------------------------------------------------------------------------------------------- the three sides


def with_noisy_reference(examples: Sequence[Example], model: nn.Module, seed: int = 0) -> list[Example]:
    """The policy's log-probs with noise as those of the reference: at h = 0 all pairs would weigh the same."""
    attached, _ = attach_reference(
        examples, model_scorer(model, row_tokens=ROW_TOKENS), reference=PolicyId("reference")
    )
    rng = random.Random(seed)

    def noisy(node: ExampleNode) -> ExampleNode:
        return node if node.ref is None else replace(node, ref=tuple(x + rng.gauss(0, 0.3) for x in node.ref))

    return [replace(example, nodes=tuple(map(noisy, example.nodes))) for example in attached]


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a pair as a sequence of its own."""

    prefix: tuple[int, ...]
    node: ExampleNode

    @property
    def tokens(self) -> int:
        return len(self.prefix) + len(self.node.tokens)


def sides(examples: Sequence[Example]) -> list[tuple[Side, Side]]:
    """(winner, loser) of every pair, the longest pair first: neighbours are of like length, so little is padded."""
    found = [
        tuple(Side(above(example, side[0]), example.nodes[side[0]]) for side in (pair.winner, pair.loser))
        for example in examples
        for pair in example.pairs
    ]
    return sorted(found, key=lambda two: -max(side.tokens for side in two))


def above(example: Example, index: int) -> tuple[int, ...]:
    parent = example.nodes[index].parent
    if parent < 0:
        return example.prompt
    return above(example, parent) + example.nodes[parent].tokens


def unpacked_example(name: str, winner: Side, loser: Side) -> Example:
    """A pair with both prefixes spelled out. One token is shared, for an example has a prompt; all else is repeated."""
    nodes = []
    for side in (winner, loser):
        nodes += [ExampleNode(side.prefix[1:], -1), replace(side.node, parent=len(nodes))]
    return Example(name, winner.prefix[:1], tuple(nodes), (ExamplePair((1,), (3,)),))


def learner_step(model: nn.Module, examples: Sequence[Example], row_tokens: int, rows: int) -> Step:
    settings = LearnerSettings(
        objective="dpo", coefficients=Coefficients(beta=BETA), lr=0.0, schedule="constant", clip=1e30,
        row_tokens=row_tokens, rows_per_pass=rows,
    )  # fmt: skip
    run = Learner(model, None, settings).start(10**9, identity={})
    return lambda: void(run.step(examples))


def unpacked_step(model: nn.Module, pairs: Sequence[tuple[Side, Side]], batch: int) -> Step:
    """Our learner, rows as long as the longest pair and `batch` of them a forward."""
    examples = [unpacked_example(f"{i:06d}", *two) for i, two in enumerate(pairs)]
    return learner_step(model, examples, max(e.size for e in examples), batch)


class Trl:
    """`trl.DPOTrainer` around the same model, fed with our token ids and log-probs through its own collator."""

    def __init__(self, policy: Policy, folder: Path) -> None:
        from datasets import Dataset, disable_progress_bars
        from trl import DPOConfig, DPOTrainer

        disable_progress_bars()
        tokenizer = policy.tokenizer
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        text = tokenizer.decode([1, 2, 3])
        config = DPOConfig(
            output_dir=str(folder), beta=BETA, precompute_ref_log_probs=True, max_length=None, learning_rate=0.0,
            use_cpu=policy.device.type == "cpu", bf16=False, gradient_checkpointing=False, report_to=[],
            disable_tqdm=True, per_device_train_batch_size=1,
        )  # fmt: skip
        self.trainer = DPOTrainer(
            model=policy.model,
            args=config,
            train_dataset=Dataset.from_list([{"prompt": text, "chosen": text, "rejected": text}]),
            processing_class=tokenizer,
        )
        self.model = policy.model
        self.optimizer = self.trainer.create_optimizer()

    def step(self, pairs: Sequence[tuple[Side, Side]], batch: int) -> Step:
        rows = [row(winner, loser) for winner, loser in pairs]
        batches = [rows[start : start + batch] for start in range(0, len(rows), batch)]

        def run() -> None:
            self.optimizer.zero_grad(set_to_none=True)
            for some in batches:
                # a forward's loss is the mean of its pairs; so weighed, the sum is the mean of all of them
                self.trainer.current_gradient_accumulation_steps = len(rows) / len(some)
                self.trainer.training_step(self.model, self.trainer.data_collator(some))
            nn.utils.clip_grad_norm_(self.model.parameters(), 1e30)
            self.optimizer.step()

        return run


def row(winner: Side, loser: Side) -> dict[str, Any]:
    """A row of TRL's data set once it is tokenised and its reference log-probs are there."""
    shared = winner.prefix
    return {
        "prompt_ids": list(shared),
        "chosen_ids": list(winner.node.tokens),
        "rejected_ids": list(loser.node.tokens),
        "ref_chosen_logps": sum(winner.node.ref or ()),
        "ref_rejected_logps": sum(loser.node.ref or ()),
    }


def void(_: Any) -> None:
    """A step's metrics are not looked at."""


# ---------------------------------------------------------------------------------------------------- comparing


def gradient(model: nn.Module, step: Step) -> Tensor:
    step()
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad(set_to_none=True)
    return found


def fastest(make: Callable[[Sequence[tuple[Side, Side]], int], Step], pairs: list[tuple[Side, Side]]) -> int:
    """The batch size of those tried that takes least time on some of the pairs, spread over all lengths."""
    some = pairs[:: max(1, len(pairs) // max(BATCHES))][: max(BATCHES)]
    seconds = {}
    for batch in BATCHES:
        step = make(some, batch)
        step()  # warms up, and allocates what the optimizer keeps
        seconds[batch] = min(timed(step)[0] for _ in range(3))
    return min(seconds, key=seconds.__getitem__)


def compare(
    shape: str,
    policy: Policy,
    trees: Sequence[Tree],
    rule: Callable[[Tree], list[Pair]],
    against: Sequence[str],
    trl: Trl | None,
    runs: int,
) -> list[dict[str, Any]]:
    """The opponents on the pairs that `rule` makes of the trees: a row of results for each (none without runs)."""
    model = policy.model
    examples = [example_from_tree(tree, rule(tree), sft_paths=()) for tree in trees]
    examples = with_noisy_reference([e for e in examples if e.pairs], model)
    pairs = sides(examples)
    ours, theirs = sum(e.size for e in examples), sum(side.tokens for two in pairs for side in two)
    ideal = theirs / ours
    print(
        f"\n{shape}: {len(examples)} trees, {len(pairs)} pairs; {ours} tokens packed, {theirs} with prefixes repeated: "
        f"ideal {ideal:.2f}x",
        flush=True,
    )
    packed = learner_step(model, examples, ROW_TOKENS, ROWS)
    expected = gradient(model, packed)
    rows = []
    unpacked = {"unpacked": lambda some, batch: unpacked_step(model, some, batch)}
    opponents = (unpacked if "unpacked" in against else {}) | ({"trl": trl.step} if trl else {})
    for name, make in opponents.items():
        batch = fastest(make, pairs) if runs else 4
        step = make(pairs, batch)
        distance = ((gradient(model, step) - expected).norm() / expected.norm()).item()
        same(f"gradient of {name} (relative L2)", distance, TOLERANCE)
        if not runs:
            continue
        trim()
        held = rss_mb()
        # both sides ran once already, for their gradients
        result = alternate(step, packed, runs=runs, warmup=0, before=lambda: model.zero_grad(set_to_none=True))
        report(name, batch, ideal, held, result)
        rows.append(
            {"name": f"{shape}, {name}", "ideal": rounded(ideal), "of_ideal": rounded(result.ratio / ideal)}
            | {"pairs": len(pairs), "tokens": ours, "batch": batch, "gradient_distance": rounded(distance)}
            | result.as_dict()
            | {"working_mb_theirs": round(result.peak_theirs - held), "working_mb_ours": round(result.peak_ours - held)}
        )
    return rows


def report(name: str, batch: int, ideal: float, held: float, result: Comparison) -> None:
    memory = f"{result.peak_theirs - held:.0f} MiB against {result.peak_ours - held:.0f} MiB"
    print(
        f"  {name} (batches of {batch} pairs): {result}; {100 * result.ratio / ideal:.0f} % of the ideal; peak above "
        f"what is held anyway (weights, optimizers): {memory}",
        flush=True,
    )


# ---------------------------------------------------------------------------------------------------- where it ends


def star(prefix: int, siblings: int, step: int, vocabulary: int) -> Example:
    """A made-up tree of one depth: a prompt, siblings of equal length, all pairs of them."""
    rng = random.Random(0)

    def tokens(n: int) -> tuple[int, ...]:
        return tuple(rng.randrange(vocabulary) for _ in range(n))

    nodes = tuple(ExampleNode(tokens(step), ref=(-6.0,) * step) for _ in range(siblings))
    pairs = tuple(ExamplePair((a,), (b,)) for a, b in combinations(range(siblings), 2))
    return Example(f"{prefix}-{siblings}", tokens(prefix), nodes, pairs)


def sweep(quick: bool, runs: int) -> list[dict[str, Any]]:
    """Prefixes of 0.25 to 16 steps' length and 2 to 10 siblings, packed against unpacked, on a small model."""
    torch.manual_seed(0)
    step, width = (4, 32) if quick else (16, 256)
    config = LlamaConfig(
        vocab_size=1000, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    print(f"\nsweep, steps of {step} tokens, a Llama of {config.num_hidden_layers} layers of width {width}:")
    print("  prefix:step  siblings  ideal  measured")
    rows = []
    for prefix in (step // 2, step) if quick else (step // 4, step, 4 * step, 16 * step):
        for siblings in (2, 3) if quick else (2, 3, 5, 10):
            example = star(prefix, siblings, step, config.vocab_size)
            pairs = sides([example])
            ideal = sum(side.tokens for two in pairs for side in two) / example.size
            apart, packed = unpacked_step(model, pairs, 8), learner_step(model, [example], ROW_TOKENS, ROWS)
            ratio = alternate(repeated(apart, quick), repeated(packed, quick), runs=runs, warmup=1).ratio
            print(f"  {prefix / step:11g}  {siblings:8d}  {ideal:5.2f}  {ratio:8.2f}", flush=True)
            rows.append(
                {"prefix": prefix / step, "siblings": siblings, "ideal": rounded(ideal), "ratio": rounded(ratio)}
            )
    return rows


def repeated(step: Step, quick: bool) -> Step:
    """Some steps in a row: one alone is too short to be timed well."""
    return lambda: [step() for _ in range(1 if quick else 5)] and None


# ---------------------------------------------------------------------------------------------------- all of it


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--model", default=None, help="a model folder (SmolLM2-135M); --quick has a tiny model instead")
    made.add_argument("--trees", type=Path, default=None, help="where searched trees are kept")
    made.add_argument("--questions", type=int, default=8)
    made.add_argument("--simulations", type=int, default=40)
    made.add_argument("--threads", type=int, default=2)
    made.add_argument("--against", nargs="*", choices=["unpacked", "trl"], default=["unpacked", "trl"])
    made.add_argument("--shapes", nargs="*", choices=["depth", "siblings"], default=["depth", "siblings"])
    made.add_argument("--check-only", action="store_true", help="compare gradients and time nothing")
    made.add_argument("--pairs", type=int, default=None, help="at most so many pairs a tree (default: all)")
    options = made.parse_args()
    if options.model is None and not options.quick:
        made.error("give --model FOLDER, or --quick")
    torch.set_num_threads(options.threads)
    runs = 0 if options.check_only else runs_of(options)
    policy = load_policy(UNTRAINED if options.quick else options.model, device="cpu")
    policy.value_head = None
    search = Mcts(
        simulations=8 if options.quick else options.simulations,
        children=5,
        limits=Limits(
            max_depth=6, delimiter=".", max_step_tokens=6 if options.quick else 32, max_context=policy.max_context
        ),
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "trees" if options.trees is None else options.trees
        trees = searched(folder, policy, 2 if options.quick else options.questions, search)
        trl = None
        if "trl" in options.against:
            if importlib.util.find_spec("trl"):
                trl = Trl(policy, Path(scratch))
            else:
                print("trl is not installed (pip install trl): that side is left out")
        # all siblings of one tree are more tokens than those of all trees by depth: the smallest tree is enough
        one = min((t for t in trees if sibling_pairs(t)), key=lambda t: sum(len(n.tokens) for n in t.nodes))
        by_depth, all_of_one = limited(depth_pairs, options.pairs), limited(sibling_pairs, options.pairs)
        rows = []
        if "depth" in options.shapes:
            rows += compare("best and worst by depth", policy, trees, by_depth, options.against, trl, runs)
        if "siblings" in options.shapes:
            rows += compare("all visited siblings", policy, [one], all_of_one, options.against, trl, runs)
    if not rows:
        return
    cells = sweep(options.quick, 1 if options.quick else 3)
    finish(
        "training", ratio=rows[0]["ratio"], spread=rows[0]["spread"], ideal=rows[0]["ideal"], quick=options.quick,
        packages=("transformers", "trl"), threads=torch.get_num_threads(), rows=rows, sweep=cells,
    )  # fmt: skip


if __name__ == "__main__":
    main()
