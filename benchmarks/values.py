"""What a fitted value head knows of a policy's solutions, and what it adds to decoding, before any search or training.

    python benchmarks/values.py RECIPE OUT [--tf32-warm-up] [--problems N] [key=value …]

Warms the recipe's policy up, samples and fits its first value head (`round-0/values`), then decodes the evaluation
problems: greedy, 8 samples, step-level beams ranked by V and by both V and log-prob as the fit joined them. Each is set
against greedy, against a plain vote at equal tokens and against the others, on the same problems, with paired 95 %
intervals. Beside V's AUC stands that of a plain logistic regression (the probe) on the same hidden states, fitted on
the same training problems and tried on the same samples. Prints lines as it goes and writes OUT/values.json.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from treepref.driver import Job, drive
from treepref.evaluation import decoding, statistics
from treepref.evaluation.scores import (
    Samples,
    Scores,
    Solution,
    at_equal_tokens,
    by_both,
    by_logprob,
    sampled_scores,
    scores_over_k,
    single_scores,
    value_quality,
)
from treepref.loops.learn import warm_up
from treepref.loops.session import Session
from treepref.loops.values import FIRST, first_values, reads_of
from treepref.recipes.reading import load_recipe
from treepref.runs.results import plain
from treepref.runs.stage import Stage, round_policy
from treepref.training.value_data import ValueData, value_data
from treepref.types import Tree

FIRST_POLICY, BENCHMARK = round_policy(0), Stage(0, "eval", "benchmark")
STARTED = time.monotonic()


def say(*words: object) -> None:
    print(f"[{time.monotonic() - STARTED:6.1f}]", *words, flush=True)


def decode(session: Session, decoder: decoding.Decoder, problems: int) -> tuple[list[Solution], list[Tree]]:
    """The decoder's solutions of the first evaluation problems, checked, and its trees with their outcomes."""
    known = {p.id: p for p in list(session.problems("eval"))[:problems]}
    engine, rows, trees, started = session.serving.engine, [], [], time.monotonic()
    before = engine.cost.generated_tokens

    def keep(job: Job) -> None:
        trees.append(job.tree)

    questions = [p.question for p in known.values()]
    drive(
        (
            Job(tree, decoder.search, judge=lambda tree, tokens: None)
            for tree in decoding.trees(decoder, questions, session.text.encode, FIRST_POLICY)
        ),
        engine, run_seed=session.recipe.seed, trees_in_flight=2 * session.recipe.engine.max_rows, journal=None,
        on_done=keep,
    )  # fmt: skip
    for tree in trees:
        for sample, answer in enumerate(decoding.answers(decoder, tree)):
            if answer is None or answer.finish != "eos":
                rows.append(
                    Solution(tree.problem_id, sample, False, None, decoding.tree_tokens(tree)[0], finish="length")
                )
                continue
            _, verdict = session.answers.check(
                answer.tokens, known[tree.problem_id], stage=BENCHMARK, policy=FIRST_POLICY
            )
            rows.append(
                Solution(
                    tree.problem_id, sample, verdict.correct, verdict.answer, answer.generated, answer.scored,
                    answer.value, answer.finish, logprob=answer.logprob,
                )
            )  # fmt: skip
    for tree in trees:  # outcomes, for the probe
        for node in tree.nodes:
            if node.terminal and node.finish == "eos" and len(tree.root.children) and node.parent is tree.root:
                _, verdict = session.answers.check(
                    node.tokens, known[tree.problem_id], stage=BENCHMARK, policy=FIRST_POLICY
                )
                node.reward = 1.0 if verdict.correct else -1.0
    tokens = engine.cost.generated_tokens - before
    seconds = time.monotonic() - started
    say(f"{decoder.name}: {tokens} tokens, {seconds:.1f} s, {tokens / seconds:.0f} tokens/s")
    return rows, trees


def probe(train: ValueData, test: ValueData) -> dict[str, dict[str, float | None]]:
    """AUC, and its mean within a problem, of a plain logistic regression at every place that a head may read."""
    found, labels = {}, [share > 0.5 for share in test.right_N.tolist()]
    for read, features_NH in train.features_NH.items():
        chosen = train.finished_N
        x_NH, y_N = features_NH[chosen].double(), train.right_N[chosen].double()
        mean_H, std_H = x_NH.mean(0), x_NH.std(0).clamp(min=1e-6)
        x_NH = (x_NH - mean_H) / std_H
        weight_H = torch.zeros(x_NH.shape[1], dtype=torch.float64, requires_grad=True)
        bias = torch.zeros((), dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([weight_H, bias], max_iter=100, line_search_fn="strong_wolfe")

        def closure(x_NH=x_NH, y_N=y_N, weight_H=weight_H, bias=bias, optimizer=optimizer) -> torch.Tensor:
            optimizer.zero_grad()
            loss = binary_cross_entropy_with_logits(x_NH @ weight_H + bias, y_N) + 1e-2 / 2 * weight_H.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        score = ((test.features_NH[read].double() - mean_H) / std_H @ weight_H.detach() + bias.detach()).tolist()
        by_problem: dict[str, list[int]] = {}
        for i, problem in enumerate(test.problem_N):
            by_problem.setdefault(problem, []).append(i)
        within = [
            a
            for rows in by_problem.values()
            if (a := statistics.auc([score[i] for i in rows], [labels[i] for i in rows])) is not None
        ]
        found[str(read)] = {"auc": statistics.auc(score, labels), "auc_within": sum(within) / max(1, len(within))}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("out", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--tf32-warm-up", action="store_true", help="on a GPU: faster, and only there inexact")
    parser.add_argument("--problems", type=int, default=500)
    given = parser.parse_intermixed_args()
    with Session(given.out, load_recipe(given.recipe, given.overrides)) as session:
        torch.set_float32_matmul_precision("high" if given.tf32_warm_up else "highest")
        warm_up(session)
        torch.set_float32_matmul_precision("highest")
        say("warmed up")
        first_values(session)
        stage = session.store.stage(FIRST)
        assert stage is not None
        fit: dict[str, Any] = stage.info["fit"]
        say(
            "fit",
            json.dumps(
                {
                    k: fit[k]
                    for k in ("read", "penalty", "join", "value", "logprob", "joint", "calibration_error", "steps")
                }
            ),
        )
        say("by depth", json.dumps(fit["by_depth"]))
        say("reads", json.dumps(fit["reads_tried"]))
        measure(session, given.out, given.problems, fit)


def measure(session: Session, out: Path, problems: int, fit: dict[str, Any]) -> None:
    recipe, engine = session.recipe, session.serving.serve(FIRST_POLICY)
    join, context, delimiter = session.serving.join(), engine.limits.max_context, recipe.task.delimiter
    assert join is not None
    methods: dict[str, Scores] = {}
    rows, _ = decode(session, decoding.greedy(recipe.eval, context), problems)
    methods["greedy"] = _single(rows)
    say("greedy", f"{methods['greedy'].accuracy:.3f}")
    rows, trees = decode(session, decoding.sampled(recipe.eval, 8, context), problems)
    samples = Samples(rows)
    for name, method, weigh in (
        ("vote", "sc", None), ("bon by V", "bon", None), ("bon by log-prob", "bon", by_logprob),
        ("bon by both", "bon", by_both(join)), ("vote by V", "wvote", None), ("vote by both", "wvote", by_both(join)),
    ):  # fmt: skip
        scores = sampled_scores(samples, method, 8) if weigh is None else sampled_scores(samples, method, 8, weigh)
        assert scores is not None
        methods[f"{name}@8"] = scores
    quality = value_quality(samples)
    say("V on samples", json.dumps({k: plain(quality)[k] for k in ("auc", "auc_within", "calibration_error", "n")}))
    curve = list(scores_over_k(samples, "sc").values())
    table = {name: _row(name, scores, methods, curve) for name, scores in methods.items()}
    probes = _probes(session, trees)
    for b1, b2 in recipe.eval.sbs:
        for name, config, learned in (
            ("both", recipe.eval.model_copy(update={"sbs_likelihood": None}), join),
            ("V", recipe.eval.model_copy(update={"sbs_likelihood": 0.0}), None),
        ):
            decoder = decoding.beam(config, recipe.search, b1, b2, context, delimiter, learned)
            rows, _ = decode(session, replace(decoder, name=f"sbs({b1},{b2}) by {name}"), problems)
            label = f"sbs({b1},{b2}) by {name}"
            methods[label] = _single(rows)
            table[label] = _row(label, methods[label], methods, curve)
    document = {
        "recipe": recipe.name, "seed": recipe.seed, "problems": problems, "fit": fit, "value": plain(quality),
        "probe": probes, "methods": table, "scores": {name: dict(s.score) for name, s in methods.items()},
    }  # fmt: skip
    (out / "values.json").write_text(json.dumps(document), encoding="utf-8")


def _row(name: str, scores: Scores, methods: dict[str, Scores], curve: list[Scores]) -> dict[str, Any]:
    """A method's accuracy, its tokens a problem, and what it has over others: [difference, interval]."""
    entry: dict[str, Any] = {"accuracy": scores.accuracy, "tokens": scores.tokens_per_problem}
    for against in ("greedy", "vote@8", "bon by V@8", "bon by log-prob@8"):
        found = statistics.paired_difference(methods[against].score, scores.score)
        entry[f"over {against}"] = None if found is None else [found.difference, *found.interval]
    if name.startswith("sbs"):
        equal = at_equal_tokens(scores, curve)
        entry["over a vote at equal tokens"] = None if equal is None else plain(equal)
    say(f"{name:24s} {json.dumps({k: _short(v) for k, v in entry.items()})}")
    return entry


def _probes(session: Session, trees: list[Tree]) -> dict[str, dict[str, float | None]]:
    recipe, policy = session.recipe, session.serving.policy(FIRST_POLICY)
    reads = reads_of(policy, recipe.value.layers, recipe.value.pools)
    limits: dict[str, Any] = {"most": 40_000, "rows_per_pass": 2, "row_tokens": recipe.train.row_tokens}
    train = value_data(policy.model, list(session.store.trees(FIRST)), reads, **limits)
    found = probe(train, value_data(policy.model, trees, reads, **limits))
    for read, aucs in found.items():
        say("probe", read, json.dumps(_short(aucs)))
    return found


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, list):
        return [_short(v) for v in value]
    return {k: _short(v) for k, v in value.items()} if isinstance(value, dict) else value


def _single(rows: list[Solution]) -> Scores:
    scores = single_scores(rows)
    assert scores is not None
    return scores


if __name__ == "__main__":
    main()
