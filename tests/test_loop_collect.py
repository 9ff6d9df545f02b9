"""How a recipe becomes each problem's search: the question put to the policy, the hint, the injected steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from treepref.config import SelfEvaluationConfig
from treepref.errors import ModelError, RecipeError
from treepref.loops.collect import episode_rules, reference_steps, self_evaluation_text, tree_pairs
from treepref.loops.session import Session
from treepref.loops.text import Text
from treepref.models.policy import load_tokenizer
from treepref.models.text import choice_of, decode
from treepref.recipes.reading import load_recipe
from treepref.runs.stage import Stage, round_policy
from treepref.tasks.task import load_task
from treepref.types import Node, Problem, new_tree

DEFAULT = "Is this right?\n(A) right (B) wrong\nThe answer is ("
PROBLEM = Problem("p", "4 + 3 =", "7")


def test_the_question_takes_the_tasks_text_unless_the_recipe_has_its_own() -> None:
    assert self_evaluation_text(SelfEvaluationConfig(), DEFAULT, None) == DEFAULT
    assert self_evaluation_text(SelfEvaluationConfig(question="Well? "), DEFAULT, None) == "Well? "
    assert self_evaluation_text(SelfEvaluationConfig(example="One.\n"), DEFAULT, None) == "One.\n" + DEFAULT


def test_a_hint_shows_the_answer_and_nothing_else_does() -> None:
    assert self_evaluation_text(SelfEvaluationConfig(), DEFAULT, PROBLEM) == "The correct answer is 7.\n" + DEFAULT
    own = SelfEvaluationConfig(question="It is {answer}. Well? ")
    assert self_evaluation_text(own, DEFAULT, PROBLEM) == "It is 7. Well? "
    with pytest.raises(RecipeError, match=r"shows \{answer\}.*hint is false"):
        self_evaluation_text(own, DEFAULT, None)


def test_a_choice_is_made_of_single_tokens_for_each_letter() -> None:
    tokenizer = load_tokenizer("builtin:tiny-base")
    choice = choice_of(tokenizer, "4 + 3 = ", ("1", "0"), after_eos="\n")
    assert decode(tokenizer, choice.suffix) == "4 + 3 = " and decode(tokenizer, choice.after_eos) == "\n"
    assert [[decode(tokenizer, [i]).strip() for i in ids] for ids in choice.options] == [["1"], ["0"]]
    both = choice_of(tokenizer, " = ", ("the", "to"))
    assert [sorted(decode(tokenizer, [i]) for i in ids) for ids in both.options] == [[" the", "the"], [" to", "to"]]
    with pytest.raises(ModelError, match="no single token for the choice 'A'"):
        choice_of(tokenizer, " = ", ("A", "B"))
    with pytest.raises(ModelError, match="the same"):
        choice_of(tokenizer, " = ", ("1", "1"))
    with pytest.raises(ModelError, match="empty"):
        choice_of(tokenizer, "", ("1", "0"))


SMALL = ["task.splits.train=3", "pairs.min_problems=1", "task.splits.eval=1", "engine.threads=1"]


def opened(tmp_path: Path, *more: str) -> Session:
    session = Session(tmp_path / "run", load_recipe("mcts_dpo", [*SMALL, *more]))
    session.serving.serve(round_policy(0))
    return session


def test_rules_follow_the_recipe_and_leave_room_for_the_question(tmp_path: Path) -> None:
    asked = 'search.self_evaluation={question: " = ", right: "1", wrong: "0", weight: 0.5}'
    with opened(tmp_path, asked, "search.c=2.5", "search.length_power=0.7", "search.root_children=4") as session:
        (problem, *_) = session.problems("train")
        rules = episode_rules(session, 1)(problem)
    assert (rules.c, rules.length_power, rules.root_children, rules.weight) == (2.5, 0.7, 4, 0.5)
    question = len(rules.choice.suffix) + len(rules.choice.after_eos)
    assert rules.limits.max_context == session.serving.engine.max_context - question
    assert rules.reference == () and problem.rationale is None, "no ground truth unless asked for"


def test_injected_steps_are_the_rationale_as_the_policy_would_write_it(tmp_path: Path) -> None:
    with opened(tmp_path, "search.inject_reference=true") as session:
        problems = list(session.problems("train"))
        policy = session.serving.policy(round_policy(0))
        for problem in problems:
            steps = reference_steps(session, problem)
            assert episode_rules(session, 1)(problem).reference == steps
            texts = [decode(policy.tokenizer, step, policy.eos_ids) for step in steps]
            assert all(text.endswith("\n") for text in texts[:-1]) and steps[-1][-1] == policy.eos_id
            tokens = tuple(token for step in steps for token in step)
            assert session.answers.check(tokens, problem, stage=Stage(1, "search"), policy=round_policy(0))[1].correct
        assert all(p.rationale is None for p in session.problems("eval"))


@pytest.mark.parametrize("how", ["pairs.level=step", "pairs.rule=trace", "pairs.level=solution"])
def test_siblings_of_one_text_in_other_tokens_are_no_pair(how: str) -> None:
    recipe = load_recipe("svpo", [how]).recipe
    text = Text(recipe.task, load_task(recipe.task), lambda: tokenizer)
    tokenizer = load_tokenizer("builtin:tiny-base")
    the, space, word, eos = (
        tokenizer.convert_tokens_to_ids(token) for token in (" the", " ", "the", tokenizer.eos_token)
    )
    assert decode(tokenizer, (the,)) == decode(tokenizer, (space, word)) == " the"
    tree = new_tree("t", "p", (word,))
    for tokens, reward in (((the, eos), 1.0), ((space, word, eos), -1.0), ((word, eos), -0.5)):
        node = Node(len(tree.nodes), tree.root, tokens, (-0.5,) * len(tokens), finish="eos", depth=1)
        node.visits, node.total, node.reward, node.terminal = 1, reward, reward, True
        tree.root.children.append(node)
        tree.nodes.append(node)
    tree.root.visits = 3
    assert {(pair.winner, pair.loser) for pair in tree_pairs(tree, recipe.pairs, text.decode)} == {((1,), (3,))}
