"""The evaluation stage: decode held-out questions in every way that the recipe names, check, and sum up.

Decoding sees questions without answers; problems come in only when the finished text is checked.
"""

from __future__ import annotations

from collections.abc import Iterable

from treepref.driver import Job, drive
from treepref.evaluation import decoding
from treepref.evaluation.decoding import Decoder
from treepref.evaluation.scores import Solution, round_summary
from treepref.loops.session import Session
from treepref.loops.stored import stored_solutions
from treepref.models.text import decode
from treepref.progress import stage_progress
from treepref.types import Cost, Problem, Tree


def evaluate(session: Session, version: int) -> None:
    """Decode and check the eval split with policy `version`; its summary becomes a round of results.json.

    Resumes at the expansion. Raises BudgetError where a limit stops it.
    """
    stage = f"round-{version}/eval"
    if not session.begin(stage):
        return
    recipe, engine = session.recipe, session.serve(version)
    last = version == recipe.rounds
    todo = decoding.decoders(
        recipe.eval,
        recipe.search,
        n=recipe.eval.samples if last else recipe.eval.samples_between,
        values=engine.has_values,
        context=engine.max_context,
        delimiter=recipe.task.delimiter,
        join=session.join(),
    )
    for decoder in todo:
        _run_decoder(session, version, decoder)
    summary = summarise(session, version, [d.name for d in todo])
    with session.store.transaction():
        session.store.set_meta(f"summary/{version}", summary)
        session.store.finish_stage(stage)


def _run_decoder(session: Session, version: int, decoder: Decoder) -> None:
    """One decoder over all questions that have no stored outcome yet."""
    store, engine, recipe = session.store, session.serve(version), session.recipe
    stage = f"round-{version}/eval/{decoder.name}"
    if store.stage_done(stage):
        return
    store.start_stage(stage)
    session.working_on = stage
    problems = {p.id: p for p in session.problems("eval")}
    todo = [p.question for p in problems.values() if not store.has_outcome(stage, p.id)]
    done = len(problems) - len(todo)
    before = engine.cost + Cost()
    stop = session.stop_reason(lambda: engine.cost - before)

    def keep(job: Job) -> None:
        rows = [s.as_row() for s in _check(job.tree, decoder, problems[job.tree.problem_id], session, stage)]
        with store.transaction():
            store.put_outcomes(stage, [(job.tree.problem_id, row["sample"], row) for row in rows])
            store.finish_tree(stage, job.tree, keep=False)

    trees = decoding.trees(decoder, todo, session.encode, version)
    with stage_progress(f"round {version}: {decoder.name}", len(problems), unit="problems", done=done) as bar:
        report = drive(
            (Job(tree, decoder.search, judge=lambda tree, tokens: None, tool=recipe.task.tool) for tree in trees),
            engine,
            run_seed=recipe.seed,
            trees_in_flight=max(1, recipe.engine.max_rows),
            journal=store.journal(stage, version),
            on_done=keep,
            on_progress=lambda p: bar.update(done=done + p.trees, tokens=p.tokens),
            stop=stop,
        )
    session.require_done(report, stop)
    store.finish_stage(stage)


def _check(tree: Tree, decoder: Decoder, problem: Problem, session: Session, stage: str) -> Iterable[Solution]:
    """The tree's answers against the problem's."""
    for sample, answer in enumerate(decoding.answers(decoder, tree)):
        if answer is None or answer.finish != "eos":
            generated, scored = (answer.generated, answer.scored) if answer else decoding.tree_tokens(tree)
            forced = answer.forced if answer else 0
            text = decode(session.tokenizer(), answer.tokens) if answer else None
            yield Solution(
                problem.id, sample, False, None, generated, scored, finish="length", text=text, forced=forced,
                strict=False,
            )  # fmt: skip
            continue
        text, verdict = session.check(answer.tokens, problem, stage=stage, version=tree.policy_version)
        yield Solution(
            problem.id, sample, verdict.correct, verdict.answer, answer.generated, answer.scored, answer.value,
            answer.finish, text, answer.forced, verdict.strict, answer.logprob,
        )  # fmt: skip


def solutions(session: Session, version: int, decoder: str) -> list[Solution]:
    """Stored solutions of a decoder, by problem and sample."""
    return stored_solutions(session.store, f"round-{version}/eval/{decoder}")


def summarise(session: Session, version: int, names: list[str]) -> dict[str, object]:
    """A round's entry of results.json from its stored solutions."""
    beams = {width: f"sbs({width[0]},{width[1]})" for width in session.recipe.eval.sbs}
    return round_summary(
        solutions(session, version, "greedy"),
        solutions(session, version, "samples") if "samples" in names else None,
        {width: solutions(session, version, name) if name in names else None for width, name in beams.items()},
        solutions(session, version, "mcts") if "mcts" in names else None,
        solutions(session, version - 1, "greedy") or None if version else None,
        number=version,
        first=solutions(session, 0, "greedy") or None if version else None,
        tools=session.recipe.task.tool is not None,
        join=session.join(),
    )
