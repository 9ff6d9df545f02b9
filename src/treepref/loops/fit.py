"""A stage's training: the learner on its policy, its learning curve, its checkpoints, and how it ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from treepref.loops.session import Session
from treepref.models.policy import Policy
from treepref.runs.stage import Stage
from treepref.training.checkpoints import remove_checkpoints
from treepref.training.learner import Learner, TrainResult
from treepref.training.settings import LearnerSettings
from treepref.training.tally import Metrics
from treepref.types import Cost, PolicyId

PASS_TOKENS = 4096
"""Tokens in one forward pass: several short rows cost less than a long one, for attention grows with a row's length."""


def rows_per_pass(session: Session) -> int:
    return max(1, PASS_TOKENS // session.recipe.train.row_tokens)


class Fit:
    """A policy in training. `steps` is its learning curve so far, of the lives before this one too."""

    def __init__(self, session: Session, stage: Stage, policy: Policy, settings: LearnerSettings) -> None:
        self._session, self.stage, self.policy = session, stage, policy
        # Search and training are counted alike.
        flops = float(policy.flops_per_token)
        self.learner = Learner(policy.model, policy.value_head, settings, flops_per_token=flops)
        self.steps: list[Metrics] = session.store.meta(f"steps/{stage}", [])

    def keeping(self, every: int, then: Callable[[Metrics], None] | None = None) -> dict[str, Any]:
        """What `Learner.train` and `Learner.start` are given so that nothing is lost: the training state every so many
        steps, the learning curve never behind it. `then` is called after each step."""

        def on_step(metrics: Metrics) -> None:
            del self.steps[int(metrics["step"]) :]  # those of steps that are done again come anew
            self.steps.append(dict(metrics))
            self._session.log.step(str(self.stage), metrics)
            if then is not None:
                then(metrics)

        return {
            "checkpoints": self._session.checkpoints(self.stage),
            "checkpoint_every": every,
            "on_step": on_step,
            "before_save": lambda: self._session.store.set_meta(f"steps/{self.stage}", self.steps),
        }

    def cost_so_far(self) -> Cost:
        if not self.steps:
            return Cost()
        last = self.steps[-1]
        return Cost(training_tokens=int(last["total_tokens"]), seconds=last["seconds"])

    def finish(
        self,
        makes: PolicyId,
        cost: Cost,
        info: Mapping[str, Any],
        *,
        with_it: Callable[[], None] = lambda: None,
    ) -> None:
        """Save the policy, end the stage, and hand the weights to the engine in memory.

        What `with_it` writes lands in the transaction that says that the stage is done.
        """
        session, policy = self._session, self.policy
        policy.id = makes
        kept = session.serving.keep(policy)
        with session.store.transaction():
            session.policies.remember(makes, kept)
            with_it()
            session.store.add_cost(self.stage, cost)
            session.store.finish_stage(self.stage, info)
        session.serving.publish(policy)
        remove_checkpoints(session.checkpoints(self.stage))


def cost_of(result: TrainResult) -> Cost:
    return Cost(training_tokens=result.tokens, flops=result.flops, seconds=result.seconds)
