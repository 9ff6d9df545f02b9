"""Values: samples for the first policy's, and the fit of a value head after its policy has moved.

    policy 0:        n solutions of some training problems, step by step  → fit → V₀ guides the first search
    policy r ≥ 1:    the round's trees and those samples, read by the policy as it is now → fit → V_r

A policy's head is kept with it; that of policy 0, whose folder may be the user's own, in the store.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import islice
from typing import Any

from treepref.config import SvpoRecipe
from treepref.loops.fit import rows_per_pass
from treepref.loops.grow import grow, search_limits, tree_job
from treepref.loops.serving import FIRST_VALUES
from treepref.loops.session import Session
from treepref.models.hidden import decoder_layers
from treepref.models.policy import Policy
from treepref.models.value_head import LAST_LAYER, POOLS, Read, ValueHead
from treepref.runs.stage import Stage, round_policy
from treepref.search.sampling import StepSampling
from treepref.training.value_data import value_data
from treepref.training.value_fit import ValueFit, fit_values
from treepref.types import Cost, Tree

FIRST = Stage(0, "values")
"""The stage of the first policy's samples and fit."""
FAR = 0.05
"""A head whose AUC within a problem is this far below that of a fit on the same hidden states is told of."""


def first_values(session: Session) -> None:
    """Sample with policy 0, fit its value head, and put it into the engine. Nothing where the recipe wants none.

    A run whose first search was begun without goes on without. Raises BudgetError where a limit stops it.
    """
    recipe, store = session.recipe_of(SvpoRecipe), session.store
    if (
        not recipe.has_first_values
        or (store.stage(FIRST) is None and store.stage(Stage(1, "search")) is not None)
        or not session.begin(FIRST)
    ):
        return
    policy_id = round_policy(0)
    session.serving.serve(policy_id)
    problems = list(islice(session.problems("train"), recipe.value.problems))
    rules = StepSampling(n=recipe.value.samples, limits=search_limits(session, 1))
    judge = session.answers.judge(FIRST, "train")
    grow(
        session, FIRST,
        (tree_job(session, p, rules, judge, policy_id) for p in problems if not store.has_tree(FIRST, p.id)),
        policy=policy_id, seed=999_983,  # draws of their own: no search shares them
        at_once=recipe.search.trees_in_flight, title="round 0: values", total=len(problems),
        done=store.count_trees(FIRST),
    )  # fmt: skip
    policy = session.serving.policy(policy_id)
    fit, cost = fit_on(session, policy, list(store.trees(FIRST)))
    with store.transaction():
        if fit is not None:
            head = ValueHead(policy.hidden_size)
            head.set_fit(fit.weight_H, fit.bias, fit.read, fit.root, fit.join)
            store.set_meta(FIRST_VALUES, head.as_plain())
        store.add_cost(FIRST, cost)
        store.finish_stage(FIRST, _info(fit))
    session.serving.take_first_values()


def refit(session: Session, round: int, policy: Policy) -> tuple[dict[str, Any], Cost]:
    """Fit the head of a policy that was just trained on the round's trees; what the stage's row says of it, the cost.

    Where too little is known, the head stays as training left it. So it does where the recipe wants no fit: then the
    run says how far the head is below one.
    """
    trees = list(session.store.trees(Stage(round, "search")))
    if session.store.stage_done(FIRST):
        trees += session.store.trees(FIRST)
    fit, cost = fit_on(session, policy, trees)
    if fit is not None and not session.recipe_of(SvpoRecipe).value.fit:
        _warn_if_far(session, round, fit)
    elif fit is not None and policy.value_head is not None:
        policy.value_head.set_fit(fit.weight_H, fit.bias, fit.read, fit.root, fit.join)
        policy.values_trained = True
    return _info(fit), cost


def _warn_if_far(session: Session, round: int, fit: ValueFit) -> None:
    own, probe = (fit.quality.get(name, {}).get("auc_within") for name in ("before", "value"))
    if own is not None and probe is not None and own < probe - FAR:
        session.store.event(
            Stage(round, "train"),
            "warning",
            f"the value head tells right from wrong solutions of a problem with an AUC of {own:.2f}, and a regression "
            f"on the hidden states that it reads from with {probe:.2f}: value.fit=true would take that in its place",
        )


def fit_on(session: Session, policy: Policy, trees: Sequence[Tree]) -> tuple[ValueFit | None, Cost]:
    """A head for `policy` from what came of the trees' steps, and what it cost."""
    config, started = session.recipe_of(SvpoRecipe).value, time.perf_counter()
    row_tokens = session.recipe.train.row_tokens
    data = value_data(
        policy.model,
        trees,
        reads_of(policy, config.layers, config.pools),
        value_head=policy.value_head if policy.values_trained else None,
        target=session.recipe.train.value_target,
        solutions=config.samples,
        most=config.most_steps,
        seed=session.recipe.seed,
        row_tokens=row_tokens,
        rows_per_pass=rows_per_pass(session),
    )
    fit = fit_values(data, ranking=config.ranking, seed=session.recipe.seed)
    seconds = time.perf_counter() - started
    return fit, Cost(scored_tokens=data.tokens, flops=float(policy.flops_per_token) * data.tokens, seconds=seconds)


def reads_of(policy: Policy, layers: Sequence[float], pools: Sequence[str]) -> list[Read]:
    """The places that a fit tries: shares of the model's depth as numbers of layers, each with every pool."""
    if all(share >= 1 for share in layers):
        places = [LAST_LAYER]
    else:
        depth = len(decoder_layers(policy.model))
        places = sorted({LAST_LAYER if share >= 1 else max(1, round(share * depth)) for share in layers})
    return [Read(layer, pool) for layer in places for pool in POOLS if pool in pools]


def _info(fit: ValueFit | None) -> dict[str, Any]:
    """What a stage's row says of a fit."""
    return {"fit": None if fit is None else fit.quality}
