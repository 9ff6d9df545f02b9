"""An engine that is far away needs nothing but the contract: the same trees, the same costs, whatever happens to it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

import server_like_engine
from server_like_engine import ServerLikeEngine
from treepref.driver import DriveReport, Job, drive
from treepref.engines.base import generate
from treepref.engines.scripted import ScriptedEngine, World
from treepref.runs.codec import digest_tree
from treepref.search.episodes import EpisodeMcts
from treepref.search.limits import Limits
from treepref.search.mcts import Mcts
from treepref.types import Choice, PolicyId, Request, Result, Tree, new_tree

LIMITS = Limits(max_depth=4, max_step_tokens=9)
SEARCHES = {
    "values": Mcts(simulations=9, children=3, leaves_in_flight=2, limits=LIMITS),
    "choices and given steps": EpisodeMcts(
        simulations=6, choice=Choice((2,), ((3,), (4,))), weight=1.0, reference=((2, 1), (3, 0)), limits=LIMITS
    ),
}


@pytest.fixture
def far() -> Iterator[ServerLikeEngine]:
    engine = ServerLikeEngine(seed=3)
    yield engine
    engine.close()


def grow(
    engine, search, policy: str = "base", count: int = 8, tool: str | None = None, **more
) -> tuple[list[Tree], DriveReport]:
    trees: list[Tree] = []
    world = World(seed=3)
    trees_to_grow = (new_tree(f"t{i}", f"t{i}", (5, i), PolicyId(policy)) for i in range(count))
    jobs = (Job(tree, search, lambda t, s: world.reward(t.prompt + s), tool=tool) for tree in trees_to_grow)
    report = drive(
        jobs, engine, run_seed=1, trees_in_flight=4, journal=None, on_done=lambda job: trees.append(job.tree), **more
    )
    return sorted(trees, key=lambda tree: tree.key), report


def digests(trees: list[Tree]) -> list[bytes]:
    return [digest_tree(tree) for tree in trees]


@pytest.mark.parametrize("search", SEARCHES.values(), ids=list(SEARCHES))
def test_a_server_grows_the_same_trees_at_the_same_cost(far: ServerLikeEngine, search) -> None:
    near_trees, near = grow(ScriptedEngine(world=World(seed=3)), search)
    far_trees, report = grow(far, search)
    assert digests(far_trees) == digests(near_trees)
    assert [n.value for t in far_trees for n in t.nodes] == [n.value for t in near_trees for n in t.nodes]
    assert replace(report.cost, seconds=0) == replace(near.cost, seconds=0) and report.cost.generated_tokens > 0


def test_a_server_that_is_killed_costs_nothing_but_time(far: ServerLikeEngine) -> None:
    search, polls = SEARCHES["values"], 0
    real = far.poll

    def poll(timeout: float | None = None):
        nonlocal polls
        polls += 1
        if polls in (3, 20, 41):
            far.process.kill()
        return real(timeout)

    far.poll = poll
    trees, report = grow(far, search)
    assert far.starts == 4 and report.retried > 0 and report.set_aside == 0
    assert digests(trees) == digests(grow(ScriptedEngine(world=World(seed=3)), search)[0])


def test_new_weights_answer_under_their_name(far: ServerLikeEngine) -> None:
    search = SEARCHES["values"]
    far.load(SimpleNamespace(id=PolicyId("round-1"), world={"seed": 9}))
    trees, report = grow(far, search, policy="round-1")
    assert report.set_aside == 0 and {tree.policy for tree in trees} == {"round-1"}
    here = ScriptedEngine(world=World(seed=9), policy_id=PolicyId("round-1"))
    assert digests(trees) == digests(grow(here, search, policy="round-1")[0])


def test_what_is_in_flight_is_answered_under_the_old_weights(far: ServerLikeEngine) -> None:
    requests = [Request(f"r{i}", (5, i), 2, (i, i + 1), 9) for i in range(6)]
    wanted = generate(ScriptedEngine(world=World(seed=3)), requests)
    far.submit(requests)
    far.load(SimpleNamespace(id=PolicyId("round-1"), world={"seed": 9}))
    found: list[Result] = []
    while len(found) < len(requests):
        found += far.poll()
    assert sorted(found, key=lambda r: r.request_id) == wanted and {r.policy for r in found} == {"base"}
    search = SEARCHES["values"]
    trees, report = grow(far, search, policy="round-1")  # a run goes on under the new ones, and across a kill
    far.process.kill()
    again, after = grow(far, search, policy="round-1")
    assert digests(again) == digests(trees) and report.set_aside == after.set_aside == 0 < after.retried


def test_answers_of_another_policy_are_not_taken(far: ServerLikeEngine) -> None:
    trees, report = grow(far, SEARCHES["values"], policy="round-7", count=2, retries=1)
    assert all(len(tree.nodes) == 1 for tree in trees)
    assert report.retried == 2 and "policy base answered, and the tree is grown by round-7" in report.messages[0]


def test_a_poll_may_be_given_little_time(far: ServerLikeEngine) -> None:
    assert far.poll(timeout=0) == [] and ScriptedEngine().poll(timeout=0) == []


def test_the_server_like_engine_knows_the_contract_alone() -> None:
    tree = ast.parse(Path(server_like_engine.__file__).read_text())
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {m for m in modules if m and m.startswith("treepref")} == {
        "treepref.engines.base", "treepref.engines.scripted", "treepref.types",
    }  # fmt: skip
