"""Texts that end a solution, and what is read of a model that thinks aloud."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from engine_cases import spread_policy
from small_runs import copy_model, run_command
from treepref.config import TaskConfig
from treepref.driver import Job, drive
from treepref.engines.base import generate
from treepref.engines.scripted import ScriptedEngine
from treepref.engines.torch_engine import TorchEngine
from treepref.engines.with_tools import WithTools
from treepref.models.text import decode
from treepref.runs.store import Store
from treepref.search import Sampling
from treepref.search.base import solution_tokens
from treepref.tasks.task import load_task
from treepref.types import Problem, Request, new_tree


def test_a_sample_ends_with_a_text_whatever_is_asked_with_it() -> None:
    """Each sample is the one without ends, cut at the first token that completes one of the texts."""
    policy = spread_policy()
    plain = Request("r", (5, 6, 7), 24, tuple(range(24)), 40, delimiter=None, want_value=True, prompt_tokens=3)
    engine = TorchEngine(policy, max_rows=7)
    (free,), (ended,) = generate(engine, [plain]), generate(engine, [replace(plain, ends=("+ 1", "1 -"))])
    cut = 0
    for one, other in zip(free.completions, ended.completions, strict=True):
        texts = [decode(policy.tokenizer, one.tokens[: i + 1], (-1,)) for i in range(len(one.tokens))]
        found = next((i for i, text in enumerate(texts) if "+ 1" in text or "1 -" in text), None)
        length = len(one.tokens) if found is None else found + 1
        assert other.tokens == one.tokens[:length] and other.logprobs == pytest.approx(one.logprobs[:length], abs=1e-5)
        assert other.finish == (one.finish if found is None else "eos")
        cut += found is not None
        if found is None or length == 1:
            continue
        # The text may begin in what the solution has before the request, as where steps are sampled one by one.
        rest = replace(
            plain, id="s", prefix=(*plain.prefix, *one.tokens[: length - 1]), n=0, seeds=(), ends=("+ 1", "1 -"),
        )  # fmt: skip
        again = replace(rest, n=1, seeds=(int(plain.seeds[free.completions.index(one)]),), begun=length - 1)
        (last,) = generate(engine, [again])[0].completions
        assert (last.tokens, last.finish) == (one.tokens[length - 1 : length], "eos")
    assert 0 < cut < 24, "some do, some do not"


def test_tools_and_scripted_engines_keep_the_ends(tmp_path: Path) -> None:
    """A far engine is asked for them as the embedded one is; the driver asks for those of the task."""
    asked: list[Request] = []

    class Watched(ScriptedEngine):
        def submit(self, requests) -> None:
            requests = list(requests)
            asked.extend(requests)
            super().submit(requests)

    trees = [new_tree(str(i), str(i), (i,)) for i in range(6)]
    jobs = [Job(tree, Sampling(n=4), lambda tree, tokens: 1.0, ends=("3",)) for tree in trees]
    with Store(tmp_path / "run") as store:
        journal = store.journal("search", "base")
        drive(jobs, WithTools(Watched(), {}), run_seed=0, trees_in_flight=3, journal=journal, on_done=lambda job: None)
    assert {request.ends for request in asked} == {("3",)}
    ends = {solution_tokens(node)[-1] for tree in trees for node in tree.root.children if node.finish == "eos"}
    assert ends == {0, 3}
    assert all(3 not in solution_tokens(node)[:-1] for tree in trees for node in tree.root.children)


def test_a_run_reads_what_stands_before_the_text_that_ended_it(tmp_path: Path) -> None:
    copy_model(tmp_path / "model")
    done = run_command("svpo", "rounds=1", "task.stop=[' = ']", "pairs.min_problems=1", cwd=tmp_path)
    assert done.returncode in (0, 4), done.stderr  # no answer is right, and so nothing is trained
    with Store(tmp_path / "run", read_only=True) as store:
        rows = [row for _, _, row in store.outcomes("round-0/eval/greedy")]
        assert rows and all(row["finish"] == "eos" and " = " not in row["text"] for row in rows)
        for tree in store.trees("round-1/search"):
            assert all(node.depth == 1 for node in tree.nodes if node.terminal and node.finish == "eos")


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("<think>\nIs it 3? The answer is 3.\n</think>\nThe answer is 4.", True),
        ("<think>\nThe answer is 4.\n</think>\nThe answer is 3.", False),
        ("<think>\nThe answer is 4.", False),
        ("Is it 3? #### 3\n</think>\n\n#### 4", True),
        ("<think>\n\n</think>\n\nThe answer is 4.", True),
        ("#### 4", True),
    ],
)
def test_only_what_is_said_after_thinking_is_read(text: str, right: bool) -> None:
    task, problem = load_task(TaskConfig(kind="gsm8k")), Problem("a", "2 + 2?", "4")
    with task.checker() as checker:
        verdict = checker.check(text, problem)
    assert verdict.correct is right and (task.canonical(text, problem) == "4") is right


def test_a_prompt_that_opens_thinking_leaves_unfinished_thoughts_unread(tmp_path: Path) -> None:
    copy_model(tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text("{{ messages[0]['content'] }}<think>\n")
    rows = [{"question": f"{a} + 1", "answer": str(a + 1)} for a in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = ["task.kind=jsonl", "task.path=rows.jsonl", "task.params={}", "task.chat=true", "task.granularity=[1]"]
    task += ["task.slips=0", "task.prompt='{question} = '"]
    done = run_command("svpo", "rounds=0", *task, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with Store(tmp_path / "run", read_only=True) as store:
        rows = [row for _, _, row in store.outcomes("round-0/eval/greedy")]
    finished = [row for row in rows if row["finish"] == "eos"]
    assert finished and all(row["text"].startswith("<think>") and row["answer"] is None for row in finished)
