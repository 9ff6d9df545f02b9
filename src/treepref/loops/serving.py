"""A run's policies in use: loaded for training, or in the engine that samples with them."""

from __future__ import annotations

from pathlib import Path

from treepref.config import Recipe
from treepref.engines.base import Engine
from treepref.errors import StoreError
from treepref.loops.policies import Policies
from treepref.loops.text import Text
from treepref.models.policy import Policy, load_policy, save_policy
from treepref.models.value_head import head_from_plain
from treepref.models.weights import PolicyWeights
from treepref.runs.fingerprint import Fingerprint, fingerprint
from treepref.runs.run_folder import disk_errors
from treepref.runs.stage import round_policy
from treepref.runs.store import Store
from treepref.training.probe import attention_window, probe_packing
from treepref.types import Join, PolicyId

FIRST_VALUES = "values/0"
"""Where the store keeps the value head of policy 0, whose folder may be the user's own."""


def join_of(policy: Policy) -> Join | None:
    return policy.value_head.join if policy.value_head is not None and policy.values_trained else None


class Serving:
    """One engine serves a run; it holds one policy at a time. Close it."""

    def __init__(self, store: Store, recipe: Recipe, policies: Policies, text: Text) -> None:
        self._store, self._recipe, self._policies, self._text = store, recipe, policies, text
        self._engine: Engine | None = None
        self._join: Join | None = None
        self._eos_id: int | None = None

    @property
    def engine(self) -> Engine:
        """`serve` says which policy it holds."""
        if self._engine is None:
            raise RuntimeError("no engine is serving: call serve(policy) first")
        return self._engine

    def serve(self, policy_id: PolicyId) -> Engine:
        """The engine with a policy in it, loaded from its folder unless it is there already.

        Raises ModelError where packing is not exact for the model: before anything is searched, not when its trees are
        to be trained on. (The engine's batches rest on the same: mask and position ids decide what a token sees.)
        """
        if self._engine is None or self._engine.policy_id != policy_id:
            from treepref.engines.torch_engine import TorchEngine

            config, policy = self._recipe.engine, self.policy(policy_id)
            if self._engine is None:
                probe_packing(policy.model, longest_path=self._longest_path(policy))
            else:
                self._engine.close()
            self._engine = TorchEngine(
                policy,
                max_rows=config.max_rows,
                cache_mb=config.cache_mb,
                batch_invariant=config.batch_invariant,
                weights=config.weights,
            )
            self._join, self._eos_id = join_of(policy), policy.eos_id
        return self._engine

    @property
    def eos_id(self) -> int:
        """The token that the run's policies end a solution with."""
        assert self._eos_id is not None, "no engine is serving: call serve(policy) first"
        return self._eos_id

    def publish(self, policy: Policy, policy_id: PolicyId | None = None) -> None:
        """Hand a policy's weights as they are now to the engine, if one is serving. None: the policy's id."""
        if self._engine is not None:
            self._engine.load(PolicyWeights(policy, policy_id))
            self._join = join_of(policy)

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()

    # -- policies

    def policy(self, policy_id: PolicyId, *, lora: bool = False) -> Policy:
        """A policy of the run, freshly loaded. Raises StoreError where it is gone or not the same."""
        policy = self._load(*self._policies.source(policy_id), lora)
        policy.id = policy_id
        if policy_id == round_policy(0):
            self._with_first_values(policy)
        return policy

    def base(self, *, lora: bool = False) -> Policy:
        """The recipe's model as it came, before any warm-up, freshly loaded. Raises StoreError as `policy` does."""
        return self._load(*self._policies.base(), lora)

    def _load(self, path: str, commit: str | None, lora: bool) -> Policy:
        model = self._recipe.model
        policy = load_policy(
            path, dtype=model.dtype, device=model.device, lora=model.lora if lora else None, revision=commit
        )
        self._policies.remember_commit(policy.commit)
        policy.end_of_turn = self._text.end_of_turn
        return policy

    def keep(self, policy: Policy) -> Fingerprint:
        """Save a trained policy in its folder. `policies.remember` its fingerprint with the stage's last row."""
        folder: Path = self._policies.folder(policy.id)
        with disk_errors(folder.parent):
            return fingerprint(save_policy(policy, folder))

    # -- values

    def join(self) -> Join | None:
        """How the serving policy's V is joined with log-probs; None where nothing learned it."""
        return self._join

    def take_first_values(self) -> None:
        """Give the engine that serves policy 0 the value head that was fitted for it."""
        if self._engine is not None and self._engine.policy_id == round_policy(0):
            self.publish(self.policy(round_policy(0)))

    def _with_first_values(self, policy: Policy) -> None:
        plain = self._store.meta(FIRST_VALUES)
        if plain is None:
            return
        try:
            head = head_from_plain(plain)
        except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
            raise StoreError(f"{self._store.folder}/run.db: the first value head is damaged ({error})") from error
        policy.value_head, policy.values_trained = head.to(policy.device), True

    def _longest_path(self, policy: Policy) -> int | None:
        """The most tokens that a prompt and its solution can have; None where the model has no attention window.

        Only there does the bound decide anything, and it costs a tokenisation of all prompts.
        """
        if attention_window(policy.model.config) is None:
            return None
        prompts = (
            self._text.encode(problem.question)
            for split in ("labelled", "train", "eval")
            for problem in self._store.problems(split)
        )
        return min(policy.max_context, max(map(len, prompts), default=1) + self._recipe.longest_solution)
