"""A score of one's own: it selects, and its failures are told for people."""

from __future__ import annotations

from pathlib import Path

import pytest

from treepref.errors import RecipeError
from treepref.loops.scores import score_of
from treepref.search.rules import puct_alphamath
from treepref.types import Node, new_tree

MODULE = """
def visits(parent, child, c):
    return c * child.visits

def fails(parent, child, c):
    return 1 / child.visits

def endless(parent, child, c):
    return float("nan")
"""


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Node, Node]:
    (tmp_path / "scores_of_mine.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    root = new_tree("p", "t", (1,)).root
    return root, Node(1, root, (2,))


def test_the_published_score_and_a_user_s_own(nodes: tuple[Node, Node]) -> None:
    parent, child = nodes
    assert score_of("puct") is puct_alphamath
    child.visits = 3
    assert score_of("scores_of_mine:visits")(parent, child, 0.5) == 1.5


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("scores_of_mine:fails", "fails: ZeroDivisionError"),
        ("scores_of_mine:endless", "gives nan: it must be a finite number"),
    ],
)
def test_a_score_that_fails_is_told(nodes: tuple[Node, Node], name: str, words: str) -> None:
    with pytest.raises(RecipeError, match=f"search.score {name} {words}"):
        score_of(name)(*nodes, 1.0)


def test_a_score_that_is_not_there_is_told(nodes: tuple[Node, Node]) -> None:
    with pytest.raises(RecipeError, match=r"search\.score: module .scores_of_mine. has no .none."):
        score_of("scores_of_mine:none")
