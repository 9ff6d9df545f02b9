"""Runs of all three methods with an engine that plays a script in the place of the model, and what they found.

Training is real, but nothing that is sampled depends on it: so what a run finds is the same on every machine, and any
change of it comes from the rules, the seeds, the order of asking or what is stored.
"""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import pytest

from small_runs import treepref_command
from treepref.engines import torch_engine
from treepref.engines.scripted import ScriptedEngine
from treepref.models.chat import encode_prompt
from treepref.models.policy import BUILTIN, load_tokenizer
from treepref.models.steps import split_steps
from treepref.models.text import encode_solution
from treepref.recipes.reading import load_recipe
from treepref.runs.store import Store
from treepref.tasks.loading import load_splits
from treepref.tasks.task import load_task
from treepref.types import Completion, Request

SIZE = [
    "seed=5", "rounds=2", "engine.threads=1", "engine.max_rows=32", "budget.seconds=null", "task.splits.train=12",
    "task.splits.eval=6", "eval.samples=3", "eval.samples_between=2", "pairs.min_problems=1",
    "task.params={min_terms: 4, max_terms: 5, min_digits: 1, max_digits: 1}", "model.path=builtin:tiny-base",
    "task.granularity=[1]",
]  # fmt: skip
SEARCH = ["search.simulations=9", "search.children=3", "search.trees_in_flight=5"]
METHODS = {
    "svpo": [
        "quickstart", *SIZE, *SEARCH, "value.problems=0", "value.samples=3", "eval.sbs=[[1, 2], [2, 3]]",
        "eval.sbs_likelihood=1", "value.fit=false", "eval.mcts=true", "search.root_children=4",
        "search.first_temperature=0.9", "task.splits.labelled=6", "warmup.epochs=1",
    ],
    "mcts_dpo": [
        "mcts_dpo", *SIZE, *SEARCH, "online.batch_problems=5",
        "search.self_evaluation={weight: 1.0, right: '1', wrong: '2'}", "search.inject_reference=true",
    ],
    "dpo_st": [
        "dpo_st", *SIZE, "task.splits.labelled=6", "warmup.epochs=1", "self_training.dpo_samples=4",
        "self_training.label_samples=3", "self_training.max_tokens=120",
    ],
}  # fmt: skip


class Script:
    """Solutions of the run's problems as their tasks write them, each step right with chance 0.7, else another's."""

    def __init__(self, recipe_and_overrides: list[str], folder: Path = Path()) -> None:
        """`folder`: what the recipe's paths are relative to."""
        name, *overrides = recipe_and_overrides
        recipe = load_recipe(name, overrides).recipe
        self.tokenizer = load_tokenizer(str(BUILTIN["builtin:tiny-base"]))
        task, self.steps = load_task(recipe.task), {}
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            splits = load_splits(recipe.task, recipe.seed, train_rationales=True)
        for problem in [*splits.labelled, *splits.train, *splits.eval]:
            prompt = encode_prompt(self.tokenizer, task.prompt(problem.question), chat=False)
            if problem.rationale is None:
                written = f"0 + 0 = 0\n0 + 0 = 0\n0 + {problem.answer} = {problem.answer}"
            else:
                written = task.solution_text(problem, random.Random(0))
            tokens = encode_solution(self.tokenizer, written)
            ends, steps = 0, []
            for length in split_steps(self.tokenizer, tokens, "\n"):
                steps.append(tokens[ends : ends + length])
                ends += length
            self.steps[prompt] = steps
        self.prompts = sorted(self.steps)

    def __call__(self, prefix: tuple[int, ...], seed: int, request: Request) -> Completion:
        prompt = next(p for p in self.prompts if prefix[: len(p)] == p)
        done = len(split_steps(self.tokenizer, prefix[len(prompt) :], "\n")) if len(prefix) > len(prompt) else 0
        tokens: list[int] = []
        while True:
            tokens += self._step(prompt, done, seed)
            done += 1
            if request.delimiter is not None or done >= len(self.steps[prompt]):
                break
        taken = tuple(tokens[: request.max_tokens])
        finish = "length" if len(taken) < len(tokens) else "eos" if done >= len(self.steps[prompt]) else "step"
        return Completion(taken, self.logprobs(prefix, taken), finish, value=self.value(prefix + taken))

    def _step(self, prompt: tuple[int, ...], number: int, seed: int) -> tuple[int, ...]:
        own = self.steps[prompt]
        number = min(number, len(own) - 1)
        draw = _hashed("step", seed, number)
        if draw < 0.7:
            return own[number]
        others = [p for p in self.prompts if len(self.steps[p]) == len(own)]
        return self.steps[others[int(draw * 1e6) % len(others)]][number]

    def logprobs(self, prefix: tuple[int, ...], tokens: tuple[int, ...]) -> tuple[float, ...]:
        return tuple(-2 * _hashed("logprob", prefix, i, token) - 0.01 for i, token in enumerate(tokens))

    def value(self, prefix: tuple[int, ...]) -> float:
        return 2 * _hashed("value", prefix) - 1


def _hashed(*material: object) -> float:
    """A number in [0, 1)."""
    return int.from_bytes(hashlib.sha256(repr(material).encode()).digest()[:6], "little") / (1 << 48)


def scripted_engine(script: Script) -> type[ScriptedEngine]:
    """What a run makes in the place of the torch engine."""

    class Engine(ScriptedEngine):
        def __init__(self, policy, **_) -> None:
            super().__init__(
                script, value=script.value, score=script.logprobs, has_values=True,
                choice=lambda prefix, choice: (_hashed("choice", prefix) / 2, 0.25), max_context=policy.max_context,
            )  # fmt: skip
            self.tokenizer, self.policy_id = policy.tokenizer, policy.id

    return Engine


def play(method: str, folder: Path) -> Path:
    """The method's run, to its end."""
    engine = scripted_engine(Script(METHODS[method]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_engine, "TorchEngine", engine)
        recipe, *overrides = METHODS[method]
        done = treepref_command("run", recipe, "-q", "--out", "run", *overrides, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def found(run: Path) -> dict[str, str]:
    """What the run found, stage by stage, as one hash each: trees, outcomes and pairs; no floats, no policy's name."""
    with Store(run, read_only=True) as store:
        rows: dict[str, list[object]] = {}
        for stage in sorted(stage.name for stage in store.stages()):
            rows[stage] = [_plain(tree) for tree in store.trees(stage)]
            rows[stage] += [[*name, row["correct"], row["answer"]] for *name, row in store.outcomes(stage)]
        for round in (1, 2):
            rows[f"round-{round}/pairs"] = [pair.id for pair in store.pairs(round)]
    return {k: hashlib.sha256(json.dumps(v).encode()).hexdigest()[:16] for k, v in rows.items() if v}


def _plain(tree) -> list[object]:
    nodes = [
        [
            -1 if n.parent is None else n.parent.index, n.tokens, n.finish, n.reward and n.reward > 0, n.visits,
            n.samples, n.terminal, n.expanded,
        ]
        for n in tree.nodes
    ]  # fmt: skip
    return [tree.key, tree.problem_id, tree.prompt, tree.simulations, tree.failed, nodes]
