"""The evaluation stage: decode held-out questions in every way that the recipe names, check, and sum up.

Decoding sees questions without answers; problems come in only when the finished text is checked.
"""

from __future__ import annotations

from collections.abc import Iterable

from treepref.config import GuidedEvalConfig, TreeRecipe
from treepref.driver import Job
from treepref.evaluation import decoding
from treepref.evaluation.decoding import Decoder
from treepref.evaluation.scores import Solution, round_summary
from treepref.loops.grow import grow, job
from treepref.loops.session import Session
from treepref.loops.stored import stored_solutions
from treepref.runs.results import RoundResult, plain
from treepref.runs.stage import Stage, round_policy
from treepref.types import Join, Problem, Tree


def evaluate(session: Session, round: int) -> None:
    """Decode and check the eval split with a round's policy; its summary becomes a round of results.json.

    Resumes at the expansion. Raises BudgetError where a limit stops it.
    """
    stage = Stage(round, "eval")
    if not session.begin(stage):
        return
    recipe, engine = session.recipe, session.serving.serve(round_policy(round))
    last = round == recipe.rounds
    todo = decoding.decoders(
        recipe.eval,
        recipe.search if isinstance(recipe, TreeRecipe) else None,
        n=recipe.eval.samples if last else recipe.eval.samples_between,
        values="value" in engine.limits.scores,
        context=engine.limits.max_context,
        delimiter=recipe.task.delimiter,
        join=session.serving.join(),
    )
    for decoder in todo:
        _run_decoder(session, stage.of(decoder.name), decoder)
    summary = summarise(session, round, [d.name for d in todo], session.serving.join())
    with session.store.transaction():
        session.store.set_meta(f"summary/{round}", plain(summary))
        session.store.finish_stage(stage)


def _run_decoder(session: Session, stage: Stage, decoder: Decoder) -> None:
    """One decoder over all questions that have no stored outcome yet."""
    store, policy = session.store, round_policy(stage.round)
    if store.stage_done(stage):
        return
    session.serving.serve(policy)
    store.start_stage(stage)
    session.working_on = stage
    problems = {p.id: p for p in session.problems("eval")}
    todo = [p.question for p in problems.values() if not store.has_outcome(stage, p.id)]

    def keep(job: Job) -> None:
        rows = [s.as_row() for s in _check(job.tree, decoder, problems[job.tree.problem_id], session, stage)]
        with store.transaction():
            store.put_outcomes(stage, [(job.tree.problem_id, row["sample"], row) for row in rows])
            store.finish_tree(stage, job.tree, keep=False)

    jobs = (
        job(session, tree, decoder.search, lambda tree, tokens: None)
        for tree in decoding.trees(decoder, todo, session.text.encode, policy)
    )
    grow(
        session, stage, jobs, policy=policy, seed=0, at_once=max(1, session.recipe.engine.max_rows), unit="problems",
        title=f"round {stage.round}: {decoder.name}", total=len(problems), done=len(problems) - len(todo), keep=keep,
    )  # fmt: skip
    store.finish_stage(stage)


def _check(tree: Tree, decoder: Decoder, problem: Problem, session: Session, stage: Stage) -> Iterable[Solution]:
    """The tree's answers against the problem's."""
    for sample, answer in enumerate(decoding.answers(decoder, tree)):
        if answer is None or answer.finish != "eos":
            generated, scored = (answer.generated, answer.scored) if answer else decoding.tree_tokens(tree)
            forced = answer.forced if answer else 0
            text = session.text.decode(answer.tokens) if answer else None
            yield Solution(
                problem.id, sample, False, None, generated, scored, finish="length", text=text, forced=forced,
                strict=False,
            )  # fmt: skip
            continue
        text, verdict = session.answers.check(answer.tokens, problem, stage=stage, policy=tree.policy)
        yield Solution(
            problem.id, sample, verdict.correct, verdict.answer, answer.generated, answer.scored, answer.value,
            answer.finish, text, answer.forced, verdict.strict, answer.logprob,
        )  # fmt: skip


def solutions(session: Session, round: int, decoder: str) -> list[Solution]:
    """Stored solutions of a decoder, by problem and sample."""
    return stored_solutions(session.store, Stage(round, "eval", decoder))


def summarise(session: Session, round: int, names: list[str], join: Join | None) -> RoundResult:
    """What a round's stored solutions say; `join`: of the policy's V and log-probs."""
    config = session.recipe.eval
    widths = config.sbs if isinstance(config, GuidedEvalConfig) else []
    beams = {width: decoding.beam_name(*width) for width in widths}
    return round_summary(
        solutions(session, round, "greedy"),
        solutions(session, round, "samples") if "samples" in names else None,
        {width: solutions(session, round, name) if name in names else None for width, name in beams.items()},
        solutions(session, round, "mcts") if "mcts" in names else None,
        solutions(session, round - 1, "greedy") or None if round else None,
        number=round,
        first=solutions(session, 0, "greedy") or None if round else None,
        tools=session.recipe.task.tool is not None,
        join=join,
    )
