"""An open run: its recipe, store, task and models, each made when it is first needed.

Knows where things are kept and which of them are done; the stages (collect.py, learn.py, evaluate.py and the methods'
own) know what to do with them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import torch

from treepref.config import Recipe
from treepref.driver import DriveReport
from treepref.errors import BudgetError, CheckerError, DataError, EngineError, StoreError
from treepref.loops.policies import Policies, begun
from treepref.loops.unchecked import note_failure, take_back
from treepref.models.policy import Policy, load_policy, load_tokenizer, merged_state_dict, save_policy
from treepref.models.text import decode, encode_prompt
from treepref.models.value_head import head_from_plain
from treepref.recipes.reading import LoadedRecipe, check_resume, dump_recipe
from treepref.recipes.stored import stored_recipe
from treepref.runs.budget import Budget
from treepref.runs.fingerprint import Fingerprint, fingerprint
from treepref.runs.run_folder import disk_errors, land_file
from treepref.runs.store import Store
from treepref.search.base import Judge
from treepref.tasks.checking import Checker, Verdict
from treepref.tasks.loading import load_splits
from treepref.tasks.task import Task, load_task
from treepref.tasks.trial import PROBLEMS, try_own_checker
from treepref.tools import Tool, load_tool
from treepref.tools.masks import forced_mask
from treepref.training.checkpoints import remove_checkpoints
from treepref.training.probe import attention_window, probe_packing
from treepref.types import Cost, Join, Problem, Question, Tree

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from treepref.engines.torch_engine import TorchEngine

READER = 2
"""Which rules read answers; a run keeps the number that it began with. Raise it where a change reads them otherwise."""
_READING = re.compile(r"round-\d+/(search|labels|eval(/.+)?)")
"""Stages that read answers."""
DISK_CHECK_TREES = 64
"""The run's size on disk is measured once in so many stops asked for: walking the folder costs more than a token."""


class Session:
    """A run directory in use by this process alone. A context manager.

    Raises, when opened: StoreError (locked, unsafe or foreign folder), RecipeError (the recipe may not change so),
    DataError (problems that cannot be read).
    """

    def __init__(self, out: Path, loaded: LoadedRecipe | None = None) -> None:
        """Open or begin the run in `out`; without a recipe the run must exist, and its own is used."""
        self._open = ExitStack()
        self.store = self._open.enter_context(Store(out, create=loaded is not None))
        self.out = self.store.folder
        try:
            self.recipe = self._settle_recipe(loaded)
            self.policies = Policies(self.store, self.recipe)
            if self.recipe.engine.threads is not None:
                torch.set_num_threads(self.recipe.engine.threads)
            self.task: Task = load_task(self.recipe.task)
            self._store_problems()
        except BaseException:
            self._open.close()
            raise
        self.budget = Budget(self.recipe.budget)
        self._engine: TorchEngine | None = None
        self._checker: Checker | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._tool: Tool | None = None
        self.working_on: str | None = None
        """The stage that was begun or gone on with last; a method whose stages go by turns says whose turn it is."""
        self._since_disk_check = 0
        self._disk_bytes = self.store.disk_bytes()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    # -- recipe and problems

    def _settle_recipe(self, loaded: LoadedRecipe | None) -> Recipe:
        """The run's recipe; a changed one is taken over where that is allowed, elsewhere refused with a diff."""
        known = stored_recipe(self.store)
        if loaded is None:
            if known is None:
                raise StoreError(f"{self.store.folder} holds no recipe: start it with `treepref run`")
            return known
        if known is not None and begun(self.store):  # until then it may change freely: its first try had a wrong path
            for change in check_resume(known, loaded.recipe):
                self.store.event("run", "info", f"resumed with {change}")
        elif known is not None and known != loaded.recipe:
            self.store.forget_problems()
        scratch = self.store.scratch("recipe") / "recipe.yaml"
        with disk_errors(self.store.folder):
            scratch.write_text(dump_recipe(loaded.recipe), encoding="utf-8")
        land_file(scratch, self.store.folder / "recipe.yaml")
        if known is None:
            self.store.set_meta("reader", READER)
        self.store.set_meta("recipe", loaded.recipe.model_dump(mode="json"))
        return loaded.recipe

    def _store_problems(self) -> None:
        """Read the problems once; the run keeps them, so later lives do not depend on the source."""
        if self.store.meta("problems") is not None:
            return
        splits = load_splits(self.recipe.task, self.recipe.seed, train_rationales=self.recipe.search.inject_reference)
        for name in ("train", "eval"):
            if not getattr(splits, name):
                raise DataError(f"the {name} split has no problems: see task.path and task.splits in the recipe")
        with self.store.transaction():
            for name in ("labelled", "train", "eval"):
                self.store.put_problems(name, getattr(splits, name))
            for line in splits.skipped:
                self.store.event("problems", "warning", line)
            self.store.set_meta("problems", {n: len(getattr(splits, n)) for n in ("labelled", "train", "eval")})

    def problems(self, split: str) -> Iterator[Problem]:
        return self.store.problems(split)

    def note_reader(self) -> None:
        """Say, once, where the run goes on whose answers so far were read by an older version's rules."""
        if self.store.meta("reader") is not None:
            return
        read = [stage.name for stage in self.store.stages() if _READING.fullmatch(stage.name)]
        with self.store.transaction():
            self.store.set_meta("reader", READER)
            if read:
                said = (
                    f"answers of {', '.join(read)} were read by an older reader; accuracy before and after is not "
                    "comparable: start anew with another --out, or compare only what is read from here on"
                )
                self.store.event("run", "warning", said)

    # -- text and tokens

    def check(self, tokens: tuple[int, ...], problem: Problem, *, stage: str, version: int) -> tuple[str, Verdict]:
        """A solution's text and whether it is right. What fails to check is noted with the stage that asked.

        `version`: what the solution's tree calls the policy that grew it.

        Raises CheckerError where the user's checker fails time and again; what it could not check is then taken back.
        """
        policy = self.engine.policy
        text = decode(policy.tokenizer, tokens, policy.eos_ids)
        try:
            verdict = self.checker.check(text, problem)
        except CheckerError as error:
            raise CheckerError(f"{error}\n{_taken_back(*take_back(self.store, version))}") from None
        if verdict.error:
            note_failure(self.store, stage, problem.id, verdict.error)
        return text, verdict

    @property
    def checker(self) -> Checker:
        """One serves the whole run. A user's own is tried first, before anything is spent.

        Raises RecipeError, with the traceback, where it fails on the problems' own answers.
        """
        if self._checker is None:
            checker = self._open.enter_context(self.task.checker())
            if self.task.own_checker is not None:
                problems = (
                    p for split in ("labelled", "train", "eval") for p in islice(self.problems(split), PROBLEMS)
                )
                self.store.forget_events("task.checker")
                if warning := try_own_checker(self.task, checker, problems):
                    self.store.event("task.checker", "warning", warning)
            self._checker = checker
        return self._checker

    def judge(self, stage: str, *splits: str) -> Judge:
        """Outcomes for a stage's search: +1 for a right solution, −1 for a wrong one (AlphaMath, arXiv 2405.03553)."""
        known = {p.id: p for split in splits for p in self.problems(split)}

        def outcome(tree: Tree, tokens: tuple[int, ...]) -> float:
            verdict = self.check(tokens, known[tree.problem_id], stage=stage, version=tree.policy_version)[1]
            return 1.0 if verdict.correct else -1.0

        return outcome

    def encode(self, question: Question) -> tuple[int, ...]:
        """The question's prompt as token ids."""
        return encode_prompt(self.engine.policy.tokenizer, self.task.prompt(question), self.recipe.task.chat)

    # -- policies

    def policy(self, version: int, *, lora: bool = False) -> Policy:
        """Policy `version` (see `policies`), freshly loaded. Raises StoreError where it is gone or not the same."""
        policy = self._load(*self.policies.source(version), lora)
        policy.version = version
        if version == 0:
            self._with_first_values(policy)
        return policy

    def base(self, *, lora: bool = False) -> Policy:
        """The recipe's model as it came, before any warm-up, freshly loaded. Raises StoreError as `policy` does."""
        return self._load(*self.policies.base(), lora)

    def _load(self, path: str, commit: str | None, lora: bool) -> Policy:
        model = self.recipe.model
        policy = load_policy(
            path, dtype=model.dtype, device=model.device, lora=model.lora if lora else None, revision=commit
        )
        self.policies.remember_commit(policy.commit)
        return policy

    def keep(self, policy: Policy) -> Fingerprint:
        """Save a trained policy in its folder. `policies.remember` its fingerprint with the stage's last row."""
        with disk_errors(self.out):
            return fingerprint(save_policy(policy, self.policies.folder(policy.version)))

    @property
    def engine(self) -> TorchEngine:
        """The run's engine; `serve` says which policy it holds."""
        if self._engine is None:
            raise RuntimeError("no engine is serving: call serve(version) first")
        return self._engine

    def join(self) -> Join | None:
        """How the serving policy's V is joined with log-probs; None where nothing learned it."""
        policy = self.engine.policy
        return policy.value_head.join if policy.value_head is not None and policy.values_trained else None

    def take_first_values(self) -> None:
        """Give the engine that serves policy 0 the value head that was fitted for it."""
        if self._engine is not None and self._engine.policy_version == 0:
            self._with_first_values(self._engine.policy)

    def _with_first_values(self, policy: Policy) -> None:
        plain = self.store.meta("values/0")
        if plain is None:
            return
        try:
            head = head_from_plain(plain)
        except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
            raise StoreError(f"{self.store.folder}/run.db: the first value head is damaged ({error})") from error
        policy.value_head, policy.values_trained = head.to(policy.device), True

    def serve(self, version: int) -> TorchEngine:
        """The engine with policy `version` in it, loaded from its folder unless it is there already.

        Raises ModelError where packing is not exact for the model: before anything is searched, not when its trees are
        to be trained on. (The engine's batches rest on the same: mask and position ids decide what a token sees.)
        """
        if self._engine is None or self._engine.policy_version != version:
            from treepref.engines.torch_engine import TorchEngine

            config, policy = self.recipe.engine, self.policy(version)
            if self._engine is None:
                probe_packing(policy.model, longest_path=self._longest_path(policy))
                self._open.callback(lambda: self.engine.close())
            else:
                self._engine.close()
            self._engine = TorchEngine(
                policy,
                max_rows=config.max_rows,
                cache_mb=config.cache_mb,
                batch_invariant=config.batch_invariant,
                weights=config.weights,
            )
        return self._engine

    def _longest_path(self, policy: Policy) -> int | None:
        """The most tokens that a prompt and its solution can have; None where the model has no attention window.

        Only there does the bound decide anything, and it costs a tokenisation of all prompts.
        """
        if attention_window(policy.model.config) is None:
            return None
        recipe = self.recipe
        steps = recipe.search.max_depth * recipe.search.max_step_tokens
        solution = max(steps, recipe.eval.max_tokens, recipe.self_training.max_tokens)
        prompts = (
            encode_prompt(policy.tokenizer, self.task.prompt(problem.question), recipe.task.chat)
            for split in ("labelled", "train", "eval")
            for problem in self.problems(split)
        )
        return min(policy.max_context, max(map(len, prompts), default=1) + solution)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The run's tokenizer, without loading a model."""
        if self._engine is not None:
            return self._engine.policy.tokenizer
        if self._tokenizer is None:
            path, commit = self.policies.tokenizer()
            self._tokenizer = load_tokenizer(path, revision=commit)
        return self._tokenizer

    def forced(self, tokens: tuple[int, ...]) -> tuple[bool, ...] | None:
        """Which tokens of a solution the recipe's tool would have forced: those are not for learning. None: none."""
        name = self.recipe.task.tool
        if name is None:
            return None
        if self._tool is None:
            self._tool = load_tool(name, self.tokenizer())
            self._open.callback(self._tool.close)
        return forced_mask(self._tool, tokens)

    def publish(self, policy: Policy) -> None:
        """Hand a trained policy's weights to the engine in memory, if one is serving."""
        if self._engine is not None:
            self._engine.update(merged_state_dict(policy), policy.version)

    # -- stages and limits

    def begin(self, stage: str) -> bool:
        """Start a stage, or go on with it; False where it is done already.

        Raises RecipeError where the user's checker fails on the problems' own answers.
        """
        if self.task.own_checker is not None and not self.store.stage_done(stage):
            _ = self.checker  # tried before the stage spends anything
        if self.store.start_stage(stage).status != "done":
            self.working_on = stage
            return True
        # The life that ended the stage removes its training state, unless it was killed before it came to that.
        remove_checkpoints(self.out / "checkpoints" / stage.replace("/", "-"))
        return False

    def spent(self) -> Cost:
        return self.store.cost()

    def require_done(self, report: DriveReport, stop: Callable[[], str | None]) -> None:
        """Raises BudgetError or EngineError where `drive` stopped early."""
        if report.stopped:
            raise BudgetError(report.stopped) if stop() else EngineError(report.stopped)

    def stop_reason(self, running: Callable[[], Cost]) -> Callable[[], str | None]:
        """A `stop` for long work: the budget's reason, where stored costs and `running` together reach a limit."""
        stored = self.spent()

        def stop() -> str | None:
            self._since_disk_check += 1
            if self.recipe.budget.disk_gb is not None and self._since_disk_check >= DISK_CHECK_TREES:
                self._since_disk_check, self._disk_bytes = 0, self.store.disk_bytes()
            return self.budget.check(stored + running(), self._disk_bytes)

        return stop


def _taken_back(again: int, kept: int) -> str:
    """What becomes of the solutions that could not be checked (see `take_back`)."""
    said = "Mend the checker and run the same command again: it goes on from here. "
    if not kept:
        return f"{said}No solution that could not be checked was kept as a wrong one ({again} problems are done again)."
    return (
        f"{said}{again} problems are done again. {kept} solutions that could not be checked stay wrong: their stage is "
        "done, or training has gone on from their trees."
    )
