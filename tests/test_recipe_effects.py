"""Every key of every method's recipe changes what a run does: a request to the engine, how or on what a policy is
trained, a stored row, or a file. Each key is changed alone, in a run whose engine plays a script (golden_runs.py).
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from golden_runs import Script, scripted_engine
from small_runs import copy_model, treepref_command
from treepref.config import RECIPES, Recipe
from treepref.engines import torch_engine
from treepref.keys import SWITCHES, Switch, keys_of, methods_with, plain
from treepref.recipes.reading import dump_recipe, load_recipe
from treepref.recipes.yaml_text import Document, build, compose
from treepref.runs.store import Store
from treepref.training import learner

SIZE = [
    "seed=5", "rounds=1", "engine.threads=1", "task.splits.train=4", "task.splits.eval=2", "task.splits.labelled=3",
    "warmup.epochs=1", "eval.samples=2", "eval.samples_between=1", "pairs.min_problems=1", "model.device=cpu",
    "task.params={min_terms: 4, max_terms: 5, min_digits: 1, max_digits: 1}", "engine.max_rows=8", "engine.cache_mb=8",
    "budget.seconds=null", "budget.disk_gb=null", "train.row_tokens=128",
]  # fmt: skip
SEARCH = ["search.simulations=6", "search.children=3", "search.trees_in_flight=3"]
START = {
    "svpo": [*SIZE, *SEARCH, "value.problems=0", "eval.sbs=[[1, 2]]", "train.objective=svpo"],
    "mcts_dpo": [*SIZE, *SEARCH, "online.batch_problems=2", "eval.sbs=[[1, 2]]", "train.objective=svpo"],
    "dpo_st": [*SIZE, "self_training.dpo_samples=4", "self_training.label_samples=3", "train.objective=svpo"],
}
RUNNABLE = {"svpo": "quickstart", "mcts_dpo": "mcts_dpo", "dpo_st": "dpo_st"}
VALUES = ["value.problems=4", "value.samples=6", "task.splits.train=8"]
PLAIN = ["task.params={}", "task.slips=0.0", "task.granularity=[1]"]
ROWS = ["task.kind=jsonl", "task.path=rows.jsonl", *PLAIN]
FOLDER = ["task.kind=gsm8k", "task.path=folder", *PLAIN]
ASKED = ["search.self_evaluation={right: '1', wrong: '2'}"]

CHANGED: dict[str, tuple[str, list[str]]] = {
    # key: the other value, and what must be set for it to matter
    "method": ("dpo_st", []),
    "seed": ("6", []),
    "rounds": ("2", []),
    "model.path": ("./model", []),
    "model.dtype": ("float64", []),
    "model.lora": ("{rank: 4}", []),
    "model.lora.rank": ("2", ["model.lora={rank: 4}"]),
    "model.lora.alpha": ("8.0", ["model.lora={rank: 4}"]),
    "model.lora.targets": ("[q_proj]", ["model.lora={rank: 4}"]),
    "task.kind": ("gsm8k", ["task.kind=jsonl", "task.path=folder", *PLAIN]),
    "task.name": ("countdown", PLAIN),
    "task.params": ("{min_terms: 2, max_terms: 3, min_digits: 1, max_digits: 1}", []),
    "task.path": ("others.jsonl", ROWS),
    "task.eval_path": ("held.jsonl", ROWS),
    "task.columns": ("{answer: other}", ROWS),
    "task.train_split": ("second", FOLDER),
    "task.eval_split": ("second", FOLDER),
    "task.granularity": ("[2]", []),
    "task.slips": ("0.9", ["task.granularity=[3]"]),
    "task.splits.labelled": ("4", []),
    "task.splits.train": ("5", []),
    "task.splits.eval": ("3", []),
    "task.prompt": ("'{question} Now: '", []),
    "task.chat": ("true", ["model.path=./model"]),
    "task.system": ("Think.", ["task.chat=true", "model.path=./model"]),
    "task.chat_template_kwargs": ("{mood: 1 + 1}", ["task.chat=true", "model.path=./model"]),
    "task.examples": ("2", []),
    "task.examples_path": ("held.jsonl", ["task.examples=2", *ROWS]),
    "task.stop": ("[' - ']", []),
    "task.delimiter": ("' '", []),
    "task.pass_score": ("0.25", ["task.checker=mychecks:share"]),
    "task.checker": ("mychecks:check", []),
    "task.answer": ("boxed", ROWS),
    "task.tool": ("calculator", []),
    "engine.max_rows": ("3", []),
    "engine.cache_mb": ("9", []),
    "engine.batch_invariant": ("true", []),
    "engine.weights": ("bfloat16", []),
    "warmup.epochs": ("2", []),
    "warmup.lr": ("2e-3", []),
    "warmup.batch_tokens": ("8", []),
    "warmup.warmup_ratio": ("0.5", []),
    "warmup.weight_decay": ("0.5", []),
    "search.simulations": ("8", []),
    "search.children": ("2", []),
    "search.root_children": ("4", []),
    "search.c": ("0.0", ["search.simulations=20"]),
    "search.temperature": ("0.5", []),
    "search.first_temperature": ("0.5", []),
    "search.top_p": ("0.5", []),
    "search.max_depth": ("2", []),
    "search.max_step_tokens": ("5", []),
    "search.trees_in_flight": ("1", []),
    "search.leaves_in_flight": ("2", []),
    "search.score": ("mychecks:fewest", []),
    "search.evaluate": ("rollout", []),
    "search.length_power": ("-4.0", ["search.simulations=12"]),
    "search.self_evaluation": (ASKED[0].partition("=")[2], []),
    "search.self_evaluation.weight": ("9.0", [*ASKED, "search.simulations=12"]),
    "search.self_evaluation.question": ("'Is it so? '", ASKED),
    "search.self_evaluation.right": ("'3'", ASKED),
    "search.self_evaluation.wrong": ("'3'", ASKED),
    "search.self_evaluation.example": ("'1 + 1 = 2. 1'", ASKED),
    "search.self_evaluation.hint": ("true", ASKED),
    "search.inject_reference": ("true", []),
    "pairs.min_problems": ("12", ["task.splits.train=12", "search.simulations=5", "self_training.dpo_samples=2"]),
    "pairs.min_gap": ("1.9", []),
    "pairs.min_visits": ("3", []),
    "pairs.max_per_parent": ("5", ["pairs.max_per_tree=20", "search.simulations=12", "pairs.rule=siblings"]),
    "pairs.max_per_tree": ("1", []),
    "pairs.winner_reaches_answer": (
        "false",
        [
            *ASKED,
            "search.simulations=4",
            "search.children=4",
            "pairs.min_gap=0.001",
            "pairs.rule=siblings",
            "pairs.max_per_parent=50",
            "pairs.max_per_tree=500",
            "task.splits.train=12",
        ],
    ),
    "pairs.level": ("solution", []),
    "pairs.rule": ("trace", ["pairs.rule=siblings", "search.simulations=12"]),
    "pairs.max_tokens": ("3", []),
    "train.objective": ("dpo", []),
    "train.row_tokens": ("64", []),
    "train.smoothing": ("none", []),
    "train.reference": ("initial", ["rounds=2", "train.lr=1e-3", "train.reference=previous"]),
    "train.value_target": ("best", ["search.simulations=12", "train.value_target=mean"]),
    "value.fit": ("false", VALUES),
    "value.problems": ("6", VALUES),
    "value.samples": ("4", VALUES),
    "value.layers": ("[1.0]", VALUES),
    "value.pools": ("[last]", VALUES),
    "value.ranking": ("5.0", VALUES),
    "value.most_steps": ("16", VALUES),
    "online.enabled": ("false", ["train.reference=previous"]),
    "online.batch_problems": ("4", []),
    "online.checkpoint_every": ("1", ["online.checkpoint_every=9"]),
    "self_training.dpo": ("false", ["self_training.dpo_samples=5"]),
    "self_training.pseudo_labels": ("false", []),
    "self_training.dpo_samples": ("5", []),
    "self_training.label_samples": ("2", []),
    "self_training.temperature": ("0.3", []),
    "self_training.max_tokens": ("20", []),
    "self_training.similarity": ("0.1", []),
    "self_training.pairs_per_problem": ("1", ["self_training.similarity=1.0"]),
    "self_training.cap_percentile": ("1.0", ["self_training.similarity=1.0", "self_training.label_samples=8"]),
    "self_training.gold_positive": ("false", []),
    "self_training.patience": ("0", ["rounds=2", "self_training.patience=1"]),
    "eval.samples": ("3", []),
    "eval.samples_between": ("2", []),
    "eval.temperature": ("0.3", []),
    "eval.top_p": ("0.5", []),
    "eval.max_tokens": ("6", []),
    "eval.sbs": ("[[2, 2]]", []),
    "eval.sbs_likelihood": ("50.0", ["eval.sbs_likelihood=0", "eval.sbs=[[1, 4]]", "task.splits.eval=8"]),
    "eval.mcts": ("true", []),
    "budget.tokens": ("1", []),
    "budget.seconds": ("1e-6", []),
    "budget.disk_gb": ("1e-9", []),
}
NO_EFFECT_HERE = {
    "name": "names the run's folder where --out does not",
    "model.device": "there is one device where tests run",
    "task.check_seconds": "a limit that only a hung check reaches: test_tasks_checking.py",
    "engine.kind": "has one value",
    "engine.threads": "sets the speed",
}
IN_SETTINGS = re.compile(r"train\.(?!objective|smoothing|reference|value_target)")
"""Constants of training, whose other value is made of the default."""


def other(key: str, default: Any) -> tuple[str, list[str]]:
    """Another value of a key, and its surroundings."""
    if key in CHANGED:
        return CHANGED[key]
    assert IN_SETTINGS.match(key), f"no other value of {key} is named here"
    known = {"train.attention": "mask", "train.schedule": "constant", "train.epochs": "3", "train.batch_trees": "1"}
    if key in known:
        return known[key], []
    return json.dumps(not default if isinstance(default, bool) else default * 0.75 if default else 0.5), []


def read_value(text: str) -> object:
    """A value as an override has it."""
    node = compose(text, "")
    assert node is not None
    return build(node, (), str, Document())


class Enough(BaseException):
    """A run differs already; what is left of it would only take time."""


@dataclass
class Trace:
    """What a run did."""

    requests: list[object] = field(default_factory=list)
    settings: list[object] = field(default_factory=list)
    """Of the engine and of every learner; every saved training state."""
    rows: dict[str, object] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)

    against: Trace | None = field(default=None, compare=False)

    def note(self, what: str, item: object) -> None:
        """Keep a request or a setting. Raises Enough where it is not the one that `against` has there."""
        ours = getattr(self, what)
        ours.append(item)
        if self.against is not None and getattr(self.against, what)[len(ours) - 1 : len(ours)] != [item]:
            raise Enough

    def differs_in(self, one: Trace) -> list[str]:
        return [name for name in ("requests", "settings", "rows", "files") if vars(self)[name] != vars(one)[name]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with rows, a checker and a model that knows chats."""
    folder = tmp_path_factory.mktemp("effects")
    rows = [{"question": f"{a} + {b} = ?", "answer": str(a + b), "other": "7",
             "rationale": f"{a} + {b} = {a + b}\n#### {a + b}"}
            for a in range(2, 9) for b in range(2, 9)]  # fmt: skip
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    held = [row | {"question": f"How much is {row['question']}"} for row in rows]
    (folder / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held))
    (folder / "others.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[::-1][:40]))
    (folder / "folder").mkdir()
    for part, (name, start) in enumerate((("train", 0), ("validation", 20), ("second", 35))):
        kept = [
            r | {"question": r["question"] + "?" * part, "answer": r["rationale"]} for r in rows[start : start + 14]
        ]
        (folder / "folder" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    (folder / "mychecks.py").write_text(
        "def check(text, problem):\n    return '1' in text or problem.answer in text\n\n"
        "def share(text, problem):\n    return 0.5 if '1' in text else 0\n\n"
        "def fewest(parent, child, c):\n    return -child.visits\n"
    )
    copy_model(folder / "model")
    (folder / "model" / "chat_template.jinja").write_text(
        "{{ mood }}{% for m in messages %}{{ m['content'] }} + {% endfor %}"
    )
    return folder


def traced(
    folder: Path, method: str, around: tuple[str, ...], changed: dict[str, Any], against: Trace | None = None
) -> Trace:
    """A run under `method` with `around` upon its start and other values of keys, until it differs from `against`.

    It is of a recipe as run, whose keys may have no effect.
    """
    data = plain(load_recipe(RUNNABLE[method], [*START[method], *around]).recipe)
    for key, value in changed.items():
        _set(data, key, value)
    recipe = RECIPES[method].model_validate_json(json.dumps(data))
    (folder / "as_run.yaml").write_text(dump_recipe(recipe))
    trace, arguments = Trace(against=against), [str(folder / "as_run.yaml")]
    engine = scripted_engine(Script(arguments, folder))

    class Engine(engine):
        def __init__(self, policy, **settings) -> None:
            trace.note("settings", ("engine", str(policy.model.dtype), settings))
            super().__init__(policy, **settings)

        def submit(self, requests) -> None:
            requests = list(requests)
            trace.note("requests", [asdict(replace(r, id="")) for r in requests])
            super().submit(requests)

    class Learner(learner.Learner):
        def __init__(self, model, value_head, settings, **more) -> None:
            trace.note("settings", ("learner", repr(settings)))
            super().__init__(model, value_head, settings, **more)

    def save(*given, _real=learner.save_checkpoint, **more):
        trace.note("settings", "a training state is saved")
        return _real(*given, **more)

    shutil.rmtree(folder / "run", ignore_errors=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setattr(torch_engine, "TorchEngine", Engine)
        for module in LEARNERS:
            patch.setattr(f"{module}.Learner", Learner)
        patch.setattr(learner, "save_checkpoint", save)
        with suppress(Enough):
            treepref_command("run", *arguments, "-q", "--out", "run", cwd=folder)
    trace.rows = dict(stored(folder / "run"))
    trace.files = sorted(str(p.relative_to(folder / "run")) for p in (folder / "run").glob("round-*"))
    return trace


LEARNERS = ("treepref.loops.fit",)


def stored(run: Path) -> Iterator[tuple[str, object]]:
    """What the run's database holds, without times, names and the recipe itself."""
    with Store(run, read_only=True) as store:
        yield "problems", [list(store.problems(split)) for split in ("labelled", "train", "eval")]
        for stage in store.stages():
            yield stage.name, (stage.status, stage.info)
            yield f"{stage.name} found", (store.digest(stage.name), list(store.outcomes(stage.name)))
            steps = store.meta(f"steps/{stage.name}", [])
            yield f"{stage.name} steps", [{k: v for k, v in s.items() if k != "seconds"} for s in steps]
        for number in (1, 2):
            yield f"pairs {number}", sorted(pair.id for pair in store.pairs(number))
        yield "policies", [store.meta(f"policy/{name}") for name in ("base", "round-0", "round-1")]
        yield "events", [(e.stage, e.level, re.sub(r"[\d.e+-]+", "#", e.message)) for e in store.events()]


@cache
def start(folder: Path, method: str, around: tuple[str, ...]) -> Trace:
    return traced(folder, method, around, {})


@pytest.mark.parametrize("method", RECIPES)
def test_a_run_is_the_same_twice(world: Path, method: str) -> None:
    assert start(world, method, ()).differs_in(traced(world, method, (), {})) == []


def every_key() -> Iterator[object]:
    """Keys of sections that all methods share are tried with one method, and with the others in the long run."""
    for method, cls in RECIPES.items():
        for key in keys_of(cls):
            again = method != "svpo" and key.partition(".")[0] in ("model", "task", "engine", "warmup", "budget")
            yield pytest.param(method, key, marks=[pytest.mark.long] if again else [])


@pytest.mark.parametrize(("method", "key"), list(every_key()))
def test_every_key_does_something(world: Path, method: str, key: str) -> None:
    if key in NO_EFFECT_HERE:
        return
    if key == "method":
        assert keys_of(RECIPES["svpo"]).keys() != keys_of(RECIPES["mcts_dpo"]).keys()
        return
    value, around = other(key, keys_of(RECIPES[method])[key])
    around = [o for o in around if method in methods_with(o.partition("=")[0])]
    before = start(world, method, tuple(around))
    changed = traced(world, method, tuple(around), {key: read_value(value)}, against=before)
    assert changed.rows.get("problems"), "the run was refused"
    assert before.differs_in(changed), f"{key}={value} changes nothing of a run of {method}"


def _under(switch: Switch, cls: type[Recipe]) -> list[str]:
    sections = tuple(f"{key}." for key in switch.keys)
    return [key for key in keys_of(cls) if key in switch.keys or key.startswith(sections)]


OF_KIND = {"reasoning_gym": [], "jsonl": ROWS, "gsm8k": FOLDER}
"""Kinds that the world has rows of, and what they need."""
SWITCHED = [
    pytest.param(switch, method, off, id=f"{method}-{switch.by}={off}")
    for switch in SWITCHES
    for method, cls in RECIPES.items()
    for off in switch.off
    if switch.by in keys_of(cls) and _under(switch, cls) and (method, off) != ("dpo_st", 0)
    if switch.by != "task.kind" or off in OF_KIND
]


@pytest.mark.long
@pytest.mark.parametrize(("switch", "method", "off"), SWITCHED)
def test_what_is_switched_off_does_nothing(world: Path, switch: Switch, method: str, off: object) -> None:
    """All keys under a switch are changed together. Such recipes are refused, but not where a run wrote them."""
    around = (*(VALUES if method == "svpo" else ()), *(OF_KIND[str(off)] if switch.by == "task.kind" else ()))
    under, traces = _under(switch, RECIPES[method]), []
    others = {key: read_value(other(key, keys_of(RECIPES[method])[key])[0]) for key in under}
    for changed in ({}, others):
        traces.append(traced(world, method, around, {switch.by: off} | changed))
        traces[-1].settings = [setting for setting in traces[-1].settings if setting[0] != "learner"]
    assert traces[0].rows.get("problems") and traces[1].differs_in(traces[0]) == []


def _set(data: dict[str, Any], key: str, value: object) -> None:
    *sections, name = key.split(".")
    for section in sections:
        data = data[section]
    data[name] = value
