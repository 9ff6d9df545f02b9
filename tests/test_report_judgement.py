"""What a report adds for self-evaluation, tools, costs by kind, long training and runs that stopped."""

from __future__ import annotations

import math

import pytest
from msgspec import structs

from test_report import NASTY, Page, node, printed, synthetic_report, synthetic_results
from treepref.config import EvalConfig
from treepref.evaluation import decoding
from treepref.evaluation.scores import JudgedNode, Solution, round_summary, self_evaluation_quality, tool_use
from treepref.loops.searches import judged_nodes, text_pieces
from treepref.loops.summary import training_steps, unfinished_stages
from treepref.models.tiny import build_tiny_tokenizer
from treepref.report import html, plots, table
from treepref.report.tree_view import MAX_TEXT, clip_pieces, tree_view
from treepref.runs.results import RoundInference, ToolUse
from treepref.runs.store import Store
from treepref.types import Cost, Node, Tree, new_tree


def grow(tree: Tree, parent: int, **values: object) -> Node:
    above = tree.nodes[parent]
    child = Node(index=len(tree.nodes), parent=above, depth=above.depth + 1, **values)
    tree.nodes.append(child)
    above.children.append(child)
    return child


# ---------------- self-evaluation


def judged_tree() -> Tree:
    """Root: 1 (C .6) with ends 3 (right, .9) and 4 (wrong, .2) and 5 (right, .7); 2 (C .5) with end 6 (cut, no C)."""
    tree = new_tree("t", "p", (1,))
    grow(tree, 0, confidence=0.6)
    grow(tree, 0, confidence=0.5)
    for parent, reward, c in ((1, 1.0, 0.9), (1, -1.0, 0.2), (1, 1.0, 0.7), (2, -1.0, None)):
        grow(tree, parent, terminal=True, reward=reward, confidence=c, visits=9)
    grow(tree, 0, confidence=0.4)  # nothing finished below it: no outcome
    return tree


def test_outcomes_of_judged_nodes_by_hand() -> None:
    ends, steps = judged_nodes(judged_tree())
    assert [(n.confidence, n.outcome) for n in ends] == [(0.9, 1.0), (0.2, -1.0), (0.7, 1.0)]
    assert [(n.confidence, n.outcome) for n in steps] == [(0.6, pytest.approx(1 / 3)), (0.5, -1.0)]
    assert judged_nodes(new_tree("t", "p", (1,))) == ([], [])


def test_quality_of_self_evaluation_by_hand() -> None:
    ends = [JudgedNode("p", 0.9, 1.0), JudgedNode("p", 0.6, -1.0), JudgedNode("q", 0.3, 1.0), JudgedNode("q", 0.1, -1)]
    steps = [JudgedNode("p", 0.4, 0.2), JudgedNode("p", 0.5, 0.0), JudgedNode("q", 0.2, -0.5)]
    found = self_evaluation_quality(ends, steps)
    assert found.auc == 0.75 and found.auc_within == 1.0  # .3 is above .1, not above .6, of another problem
    assert found.auc_steps == 0.5  # an even outcome is no right one
    assert (found.n, found.n_steps) == (4, 3)
    assert found.mean_right == pytest.approx(0.6) and found.mean_wrong == pytest.approx(0.35)
    assert [(b.predicted, b.observed) for b in found.calibration] == [
        (pytest.approx(p), o) for p, o in ((0.1, 0.0), (0.3, 1.0), (0.6, 0.0), (0.9, 1.0))
    ]
    assert self_evaluation_quality([], []) is None
    one_kind = self_evaluation_quality([JudgedNode("p", 0.5, 1.0)], [])
    assert one_kind.auc is None and one_kind.mean_wrong is None and one_kind.auc_steps is None


def test_page_shows_self_evaluation_only_where_it_was_asked() -> None:
    plain_page = html.render_report(synthetic_report(trees=[], steps=[]))
    assert "Self-evaluation" not in "".join(Page(plain_page).words)
    results = synthetic_results(rounds=2)
    judged = self_evaluation_quality([JudgedNode("p", 0.9, 1.0), JudgedNode("p", 0.125, -1.0)], [])
    results.rounds[1] = structs.replace(results.rounds[1], self_evaluation=judged)
    assert "AUC 1.00 over 2 finished solutions, – over 0 steps" in " ".join(printed(results, []).split())
    words = "".join(Page(html.render_report(synthetic_report(results=results, trees=[], steps=[]))).words)
    assert "Self-evaluation" in words and "0.12" in words and "Calibration of the policy's own judgement" in words


# ---------------- tools


def test_tool_use_by_hand() -> None:
    def row(i: int, correct: bool, forced: int) -> Solution:
        return Solution(f"p{i}", 0, correct, "1", 10, forced=forced)

    found = tool_use([row(0, True, 4), row(1, False, 2), row(2, False, 0), row(3, True, 0)])
    assert found == ToolUse(share=0.5, forced_tokens=1.5, accuracy_with=0.5, accuracy_without=0.5, n=4)
    assert tool_use([row(0, True, 0)]).accuracy_with is None and tool_use([]) is None
    greedy = [row(0, True, 3)]
    assert round_summary(greedy, None, None, None, None).tool_use is None
    assert round_summary(greedy, None, None, None, None, tools=True).tool_use["greedy"].share == 1.0
    old = {k: v for k, v in row(0, True, 0).as_row().items() if k != "forced"}
    assert Solution.from_row(old).forced == 0, "rows of older runs lack the key"


def test_forced_tokens_are_not_generated_ones() -> None:
    tree = new_tree("t", "p", (1,))
    step = grow(tree, 0, tokens=(5, 6, 7), logprobs=(0.0,) * 3, forced=(False, True, True), samples=2)
    grow(tree, step.index, tokens=(8, 2), logprobs=(0.0,) * 2, terminal=True, finish="eos", value=0.5)
    assert decoding.tree_tokens(tree) == (2 * 1 + 2, 1)
    whole = new_tree("t", "p", (1,))
    grow(whole, 0, tokens=(5, 6, 2), logprobs=(0.0,) * 3, forced=(False, True, False), terminal=True, finish="eos")
    (answer,) = decoding.answers(decoding.greedy(EvalConfig(), 64), whole)
    assert (answer.generated, answer.forced) == (2, 1)


def test_text_is_cut_where_a_tool_wrote() -> None:
    tokenizer = build_tiny_tokenizer(0, 20, [])
    tokens = tuple(tokenizer("1 + 2 = 3\n", add_special_tokens=False)["input_ids"])
    forced = tuple(i >= len(tokens) - 3 for i in range(len(tokens)))
    step = Node(index=1, parent=None, tokens=tokens, forced=forced)
    pieces = text_pieces(step, tokenizer)
    assert [was for _, was in pieces] == [False, True]
    assert "".join(text for text, _ in pieces) == tokenizer.decode(tokens) and "3" in pieces[1][0]
    assert text_pieces(Node(index=1, parent=None, tokens=tokens), tokenizer) is None
    assert text_pieces(Node(index=1, parent=None, tokens=tokens, forced=(False,) * len(tokens)), tokenizer) is None


def test_pieces_are_clipped_like_the_text() -> None:
    assert clip_pieces({"text": "\n a b \n"}) == [("a b", False)]
    assert clip_pieces({"pieces": [("\n 2*3=", False), ("6>> \n", True)]}) == [("2*3=", False), ("6>>", True)]
    assert clip_pieces({"pieces": [(" \n", False), ("6", True), ("\n", False)]}) == [("6", True)]
    long = clip_pieces({"pieces": [("x" * 600, False), ("y" * 600, True), ("z", False)]})
    assert sum(len(text) for text, _ in long[:-1]) == MAX_TEXT and long[1] == ("y" * 100, True)
    assert long[-1] == (" … (501 more characters)", False)
    assert clip_pieces({"text": "  "}) == []


def test_tree_shows_confidence_and_what_a_tool_wrote() -> None:
    nodes = [node(0, None), node(1, 0, 0.5, text="2*3=6"), node(2, 0, -0.5)]
    nodes[1] |= {"confidence": 0.8125, "pieces": [("2*3=" + NASTY, False), (NASTY, True)]}
    tree = {"question": "q", "nodes": nodes, "pairs": []}
    view = tree_view(tree)
    assert view.judged and view.tools
    text = html.render_report(synthetic_report(trees=[tree], steps=[]))
    page = Page(text)
    assert text.count('<span class="words forced"') == 1 and "0.81" in "".join(page.words)
    assert "".join(page.words).count(NASTY) == 2 and not any("alert(1)" in script for _, script in page.scripts)
    bare = tree_view({"question": "q", "nodes": [node(0, None), node(1, 0)], "pairs": []})
    assert not bare.judged and not bare.tools


# ---------------- costs, stops, long training


def test_costs_by_kind_are_shown() -> None:
    kinds = {
        kind: Cost(generated_tokens=10, flops=flops)
        for kind, flops in (("search", 2e12), ("training", 3e12), ("evaluation", 0.0))
    }
    assert table.kind_line(kinds) == "FLOPs: search 2.0×10¹², training 3.0×10¹²"
    assert table.kind_line(None) is None
    asked = RoundInference(flops_per_token=1.0, prompt_tokens=1.0, flops_per_problem={"greedy": 4.2e7})
    results = structs.replace(synthetic_results(rounds=1), cost_by_kind=kinds)
    results.rounds[0] = structs.replace(results.rounds[0], inference=asked)
    words = "".join(Page(html.render_report(synthetic_report(results=results, trees=[], steps=[]))).words)
    assert "Search: training data made" in words and "4.2×10⁷" in words


def test_a_run_that_stopped_is_not_said_to_be_free_of_failures(tmp_path) -> None:
    with Store(tmp_path / "run") as store:
        for stage in ("round-0/eval", "round-0/eval/greedy", "round-1/search"):
            store.start_stage(stage)
        assert unfinished_stages(store) == ["round-0/eval/greedy", "round-1/search"]
        store.finish_stage("round-0/eval/greedy")
        store.finish_stage("round-0/eval")
        assert unfinished_stages(store) == ["round-1/search"]
    assert table.event_lines([], ["round-1/search"]) == ["Not finished: round-1/search."]
    assert table.event_lines([]) == ["Nothing was skipped and nothing failed."]
    page = html.render_report(synthetic_report(events=[], unfinished=["round-1/search"], trees=[], steps=[]))
    words = "".join(Page(page).words)
    assert "The run is not finished: round-1/search" in words and "Nothing was skipped" not in words
    assert "Nothing was skipped" in printed(synthetic_results(rounds=1), [])


def test_running_mean_by_hand() -> None:
    assert plots.running_mean([1.0, 2.0, 6.0, None, 4.0], [0]) == [1.5, 3.0, 4.0, None, 4.0]
    assert plots.running_mean([1.0, 3.0, 10.0, 20.0], [0, 2]) == [2.0, 2.0, 15.0, 15.0]


def test_hundreds_of_steps_are_drawn_with_their_mean() -> None:
    steps = [
        {"round": 1 + i // 300, "stage": f"round-{1 + i // 300}/train", "pairs": i % 5, "loss": i % 2}
        | ({} if i % 5 == 0 else {"reward_margin": 0.5})
        for i in range(600)
    ]
    panels = dict(plots.training_panels(steps))
    raw, mean = panels["Loss and its terms"].data
    assert raw.opacity < 1 and not raw.showlegend and list(raw.y) == [i % 2 for i in range(600)]
    assert all(math.isclose(y, 0.5, abs_tol=0.05) for y in mean.y)
    assert "Pairs of a step" in panels
    margin = panels["Reward margin β·h"].data[1]
    assert margin.connectgaps and sum(y is None for y in margin.y) == 120  # a batch without pairs has no margin
    assert len(panels["Loss and its terms"].layout.shapes) == 1


def test_steps_of_every_stage_are_read_and_the_warm_up_only_for_want_of_others(tmp_path) -> None:
    with Store(tmp_path / "run") as store:
        for stage, losses in (("round-0/sft", [3.0]), ("round-2/train", [0.5]), ("round-1/dpo", [0.7, 0.6])):
            store.start_stage(stage)
            store.set_meta(f"steps/{stage}", [{"loss": loss} for loss in losses])
            if stage == "round-0/sft":
                assert [s["loss"] for s in training_steps(store)] == [3.0]
        found = training_steps(store)
    assert [(s["round"], s["stage"], s["loss"]) for s in found] == [
        (1, "round-1/dpo", 0.7), (1, "round-1/dpo", 0.6), (2, "round-2/train", 0.5)
    ]  # fmt: skip
