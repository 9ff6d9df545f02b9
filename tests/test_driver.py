"""The driver: same trees whatever the order, the concurrency, the failures and the restarts."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from stored import count_journal
from treepref.driver import DriveReport, Job, Progress, drive, sample_seed
from treepref.engines.scripted import ScriptedEngine
from treepref.engines.with_tools import WithTools
from treepref.runs.codec import digest_tree
from treepref.runs.store import Store
from treepref.search.base import Expansion, node_path
from treepref.search.limits import Limits
from treepref.search.mcts import Mcts
from treepref.search.sampling import Sampling
from treepref.tools.base import Forced
from treepref.types import Choice, Completion, Cost, Request, Result, Tree, new_tree

WORLD = ScriptedEngine().world
SEARCH = Mcts(simulations=8, children=3, leaves_in_flight=3, limits=Limits(max_depth=4, max_step_tokens=12))


def judge(tree: Tree, solution: tuple[int, ...]) -> float:
    return WORLD.reward(tree.prompt + solution)


def make_jobs(n: int, search=SEARCH, judge=judge) -> list[Job]:
    return [Job(new_tree(f"p{i}", f"p{i}", (5, 2 + i, 1)), search, judge) for i in range(n)]


def run(jobs: Iterable[Job], engine, **keywords) -> tuple[dict[str, bytes], DriveReport]:
    """Digest of each finished tree, and the report."""
    done: dict[str, bytes] = {}

    def keep(job: Job) -> None:
        assert job.tree.key not in done, "a tree was finished twice"
        done[job.tree.key] = digest_tree(job.tree)

    settings = {"run_seed": 0, "trees_in_flight": 4, "journal": None, "on_done": keep} | keywords
    return done, drive(jobs, engine, **settings)


class Watched(ScriptedEngine):
    """Counts what is sent, and can break off."""

    def __init__(self, *args, polls: int | None = None, **keywords) -> None:
        super().__init__(*args, **keywords)
        self.sent: list[Request] = []
        self.polls = polls
        self.stopped = False

    def submit(self, requests: Iterable[Request]) -> None:
        requests = list(requests)
        self.sent += requests
        super().submit(requests)

    def poll(self, timeout: float | None = None) -> list[Result]:
        if self.polls is not None:
            self.polls -= 1
            if self.polls < 0:
                raise ConnectionError("the engine died")
        assert not self.stopped, "polled although the call was stopped"
        return super().poll(timeout)


def where(request: Request) -> str:
    return request.id.rpartition("/")[0]


REFERENCE, _ = run(make_jobs(12), ScriptedEngine(), trees_in_flight=1)


# -- seeds


def test_sample_seeds_are_pinned_and_differ_by_everything_they_stand_for() -> None:
    # blake2b-64 of "7\0p1\x000.2\x003", little-endian, without its lowest bit: a run of last month resumes by it.
    assert sample_seed(7, "p1", "0.2", 3) == 8040939944179429801
    places = [
        (run, key, path, i) for run in (0, 1) for key in ("a", "b") for path in ("", "0", "0.1") for i in range(4)
    ]
    seeds = {sample_seed(*place) for place in places}
    assert len(seeds) == len(places) and all(0 <= seed < 2**63 for seed in seeds)


def test_requests_carry_prefix_and_seeds_of_their_node() -> None:
    engine = Watched()
    job = make_jobs(1)[0]
    run([job], engine, run_seed=3)
    paths = {node_path(n): n for n in job.tree.nodes}
    assert len(engine.sent) == job.tree.simulations > 3
    for request in engine.sent:
        path = where(request).partition("/")[2].replace("root", "")
        node, prefix = paths[path], ()
        while node.parent is not None:
            node, prefix = node.parent, node.tokens + prefix
        assert request.prefix == job.tree.prompt + prefix
        assert request.seeds == tuple(sample_seed(3, "p0", path, i) for i in range(3))
    assert len({r.id for r in engine.sent}) == len(engine.sent)


# -- order


@pytest.mark.parametrize("trees_in_flight", [1, 3, 50])
@pytest.mark.parametrize("batch, shuffle", [(None, None), (1, None), (5, 1), (2, 2)])
def test_trees_do_not_depend_on_concurrency_or_order_of_results(trees_in_flight, batch, shuffle) -> None:
    done, report = run(
        make_jobs(12), ScriptedEngine(batch=batch, shuffle=shuffle), trees_in_flight=trees_in_flight, total=12
    )
    assert done == REFERENCE
    assert report.trees == 12 and report.stopped is None and report.unfinished == 0 and report.set_aside == 0


class Recording:
    """Asks for `width` leaves at once and notes what it is told; done after one generation."""

    def __init__(self, width: int) -> None:
        self.width, self.told = width, []

    def ask(self, tree: Tree) -> list[Expansion]:
        if tree.simulations or self.told:
            return []
        tree.simulations = 1
        return [Expansion(tree.root, i + 1, 1.0, 8) for i in range(self.width)]

    def tell(self, tree, expansion, completions, rewards, prefix_value) -> None:
        self.told.append((expansion.n, len(completions)))

    def done(self, tree: Tree) -> bool:
        return len(self.told) == self.width


def test_tells_come_in_ask_order_though_results_do_not() -> None:
    for shuffle in range(5):
        search = Recording(6)
        run([Job(new_tree("p", "p", (5, 1)), search, judge)], ScriptedEngine(batch=1, shuffle=shuffle))
        assert search.told == [(n, n) for n in range(1, 7)]


def test_expansions_of_one_node_have_seeds_of_their_own() -> None:
    """E.g. a rollout of a leaf and then its expansion: the second must not draw the first's samples again."""
    engine = Watched()
    run([Job(new_tree("p", "p", (5, 1)), Recording(3), judge)], engine)
    firsts = [r.seeds[0] for r in engine.sent]
    assert len(set(firsts)) == 3 and [where(r) for r in engine.sent] == ["p/root", "p/#1", "p/#2"]


def test_rollouts_replay_from_the_journal(tmp_path: Path) -> None:
    rolling = replace(SEARCH, evaluate="rollout")
    expected, _ = run(make_jobs(4, rolling), ScriptedEngine())
    with Store(tmp_path / "run") as store, pytest.raises(ConnectionError):
        run(make_jobs(4, rolling), Watched(batch=3, polls=12), journal=store.journal("s", 0))
    with Store(tmp_path / "run") as store:
        again, report = run(make_jobs(4, rolling), ScriptedEngine(), journal=store.journal("s", 0))
    assert report.replayed > 10 and again == expected


# -- failures


def test_failed_requests_are_retried_with_the_same_seeds() -> None:
    failed: dict[str, int] = {}

    def flaky(request: Request) -> str | None:
        failed[where(request)] = failed.get(where(request), 0) + 1
        return "out of memory" if failed[where(request)] <= 2 else None

    engine = Watched(fail=flaky, shuffle=3, batch=4)
    done, report = run(make_jobs(12), engine)
    assert done == REFERENCE and report.set_aside == 0
    assert report.retried == 2 * len(failed) and len(engine.sent) == 3 * len(failed)
    assert len({(where(r), r.seeds) for r in engine.sent}) == len(failed)


def test_a_request_that_always_fails_costs_its_leaf_and_is_reported(tmp_path: Path) -> None:
    def broken(request: Request) -> str | None:
        return "out of memory" if where(request) in ("p3/root", "p5/0") else None

    engine = Watched(fail=broken)
    with Store(tmp_path / "run") as store:
        done, report = run(make_jobs(12), engine, journal=store.journal("s", 0), retries=2)
        events = [e.message for e in store.events()]
    assert set(done) == set(REFERENCE) and report.stopped is None
    changed = {key for key in done if done[key] != REFERENCE[key]}
    assert changed == {"p3", "p5"} and report.set_aside == 2
    assert sum(where(r) == "p3/root" for r in engine.sent) == 3
    assert sorted(report.messages) == sorted(events)
    assert any(e.startswith("problem p3: node root was set aside: 3 attempts failed") for e in events)
    assert any("problem p5: node 0 was set aside" in e and "out of memory" in e for e in events)


def test_an_engine_that_only_fails_stops_the_call_before_it_voids_every_tree() -> None:
    done, report = run(make_jobs(500), ScriptedEngine(fail=lambda request: "no device"), trees_in_flight=64)
    assert "requests all failed" in report.stopped and "no device" in report.stopped
    assert not done and report.unfinished == 64


def test_lost_requests_are_sent_again() -> None:
    class Forgetful(Watched):
        def submit(self, requests: Iterable[Request]) -> None:
            requests = list(requests)
            self.sent += requests
            ScriptedEngine.submit(self, requests[len(self.sent) % 2 :])

    done, report = run(make_jobs(2), Forgetful(), trees_in_flight=2, retries=10)
    assert done == {key: REFERENCE[key] for key in ("p0", "p1")}
    assert report.retried > 0 and report.set_aside == 0


def test_a_prefix_that_fills_the_context_is_set_aside_not_sent() -> None:
    engine = Watched(max_context=9)
    jobs = make_jobs(6)
    jobs.append(Job(new_tree("long", "long-problem", (5,) * 9), SEARCH, judge))
    done, report = run(jobs, engine)
    assert len(done) == 7 and report.stopped is None
    assert engine.sent and all(len(r.prefix) + r.max_tokens <= 9 for r in engine.sent)
    assert any(
        "problem long-problem: node root was set aside: its 9 tokens leave no room" in m for m in report.messages
    )
    assert jobs[-1].tree.failed == 3


def test_a_prompt_that_a_search_declines_is_reported() -> None:
    search = Sampling(n=2, limits=Limits(max_context=8, max_tokens=512))
    done, report = run([Job(new_tree("a", "a", (5,) * 8), search, judge)], ScriptedEngine(max_context=8))
    assert list(done) == ["a"]
    assert report.messages == ["problem a: nothing was searched: its prompt fills the context"]


def test_a_judge_that_raises_makes_the_solution_wrong_and_is_reported_once(tmp_path: Path) -> None:
    def bad(tree: Tree, solution: tuple[int, ...]) -> float:
        if tree.key == "p1":
            raise ZeroDivisionError("of the checker")
        return judge(tree, solution)

    jobs = make_jobs(3, judge=bad)
    with Store(tmp_path / "run") as store:
        done, report = run(jobs, ScriptedEngine(), journal=store.journal("s", 0))
        # Not on_done's finish_tree here: the journal is still there, and a replay judges nothing again.
        before = store.events()
        _, again = run(make_jobs(3, judge=bad), ScriptedEngine(), journal=store.journal("s", 0))
        assert store.events() == before and again.judge_errors == 0
    assert {k for k in done if done[k] != REFERENCE[k]} <= {"p1"}
    finished = [n for n in jobs[1].tree.nodes if n.finish == "eos" and n.parent]
    assert finished and all(n.reward == -1.0 for n in finished)
    assert report.judge_errors >= len(finished) and "ZeroDivisionError: of the checker" in before[0].message
    assert all("problem p1" in e.message for e in before)


def test_only_finished_solutions_are_judged_and_equal_ones_once() -> None:
    judged: list[tuple[int, ...]] = []

    def script(prefix: tuple[int, ...], seed: int, request: Request) -> Completion:
        kind = request.seeds.index(seed)
        return Completion((7, 0), (-0.1, -0.1), "eos") if kind < 3 else Completion((7, 8), (-0.1, -0.1), "length")

    def count(tree: Tree, solution: tuple[int, ...]) -> float:
        judged.append(solution)
        return 1.0

    job = Job(new_tree("a", "a", (5,)), Sampling(n=4), count)
    run([job], ScriptedEngine(script))
    assert judged == [(7, 0)] and job.tree.root.children[0].samples == 3


def test_numbers_that_cannot_be_are_set_aside(tmp_path: Path) -> None:
    def script(prefix: tuple[int, ...], seed: int, request: Request) -> Completion:
        found = WORLD.complete(prefix, seed, request)
        bad = prefix[1] == 3 and len(prefix) == 3  # the root of p1
        return replace(found, logprobs=(math.nan,) * len(found.tokens)) if bad else found

    done, report = run(make_jobs(3), ScriptedEngine(script, value=WORLD.value))
    assert {k for k in done if done[k] != REFERENCE[k]} == {"p1"}
    assert report.set_aside == 1 and "problem p1: node root was set aside" in report.messages[0]


# -- journal, stop and resume


@pytest.mark.parametrize("polls", [0, 1, 5, 17, 30])
def test_a_crash_resumes_to_the_same_trees_and_asks_for_nothing_twice(tmp_path: Path, polls: int) -> None:
    first = Watched(batch=3, shuffle=polls, polls=polls)
    stage, spent = "s", Cost()
    with Store(tmp_path / "run") as store, pytest.raises(ConnectionError):
        run(
            make_jobs(12),
            first,
            journal=store.journal(stage, 0),
            on_done=lambda job: store.finish_tree(stage, job.tree),
        )
    with Store(tmp_path / "run") as store:
        kept, had = count_journal(store, stage), {r.key for r in store.tree_rows(stage)}
        spent = store.cost(stage)
        assert spent == first.cost
        second = Watched(batch=3)
        jobs = [job for job in make_jobs(12) if not store.has_tree(stage, job.tree.key)]
        _, report = run(
            jobs, second, journal=store.journal(stage, 0), on_done=lambda job: store.finish_tree(stage, job.tree)
        )
        assert {r.key: r.digest for r in store.tree_rows(stage)} == {k: d.hex() for k, d in REFERENCE.items()}
        assert report.replayed == kept and report.trees == 12 - len(had)
        assert count_journal(store, stage) == 0
        whole = ScriptedEngine()
        run(make_jobs(12), whole)
        assert store.cost(stage).generated_tokens == whole.cost.generated_tokens
        assert report.cost == second.cost


def test_a_complete_journal_needs_no_engine(tmp_path: Path) -> None:
    with Store(tmp_path / "run") as store:
        run(make_jobs(12), ScriptedEngine(), journal=store.journal("s", 0))
        engine = Watched(polls=0)
        done, report = run(make_jobs(12), engine, journal=store.journal("s", 0))
    assert done == REFERENCE and not engine.sent and report.replayed == report.expansions and report.tokens == 0


def test_entries_of_another_prompt_seed_or_setting_are_not_replayed(tmp_path: Path) -> None:
    with Store(tmp_path / "run") as store:
        run(make_jobs(2), ScriptedEngine(), journal=store.journal("s", 0))
        cases: list[tuple[list[Job], int]] = [
            (make_jobs(2), 1),
            (make_jobs(2, replace(SEARCH, limits=replace(SEARCH.limits, temperature=0.5))), 0),
            ([Job(new_tree("p0", "p0", (9, 9, 1)), SEARCH, judge)], 0),
        ]
        for jobs, seed in cases:
            fresh, _ = run(
                [Job(new_tree(j.tree.key, j.tree.key, j.tree.prompt), j.search, judge) for j in jobs],
                ScriptedEngine(),
                run_seed=seed,
            )
            done, report = run(jobs, ScriptedEngine(), run_seed=seed, journal=store.journal("s", 0))
            assert done == fresh and report.replayed == 0


QUESTION = Choice((2, 3), ((2,), (3,)))


class Asking:
    """A search that puts a choice after every sample, has continuations scored, and keeps what it hears."""

    def __init__(self, question: Choice = QUESTION, given: tuple[tuple[int, ...], ...] = ((4, 5, 1), (4, 0))) -> None:
        self.question, self.given = question, given
        self.heard: list[tuple[Completion, ...]] = []

    def ask(self, tree: Tree) -> list[Expansion]:
        return [replace(e, choice=self.question, given=self.given) for e in SEARCH.ask(tree)]

    def tell(self, tree, expansion, completions, rewards, prefix_value) -> None:
        self.heard.append(tuple(completions))
        SEARCH.tell(tree, expansion, completions, rewards, prefix_value)

    def done(self, tree: Tree) -> bool:
        return SEARCH.done(tree)


class TwoTwos:
    """A tool: after a sampled 3 come two 2s."""

    def begin(self, written):
        return self

    open = busy = False
    stops = ("3",)

    def feed(self, token: int) -> Forced | None:
        return Forced((2, 2)) if token == 3 else None

    def close(self) -> None: ...


@pytest.mark.parametrize("polls", [0, 4, 13])
def test_choices_given_and_forced_tokens_survive_a_crash(tmp_path: Path, polls: int) -> None:
    def jobs(search: Asking) -> list[Job]:
        return [replace(job, tool="twos") for job in make_jobs(5, search)]

    whole, first, second = Asking(), Asking(), Asking()
    tools = {"twos": TwoTwos()}
    wanted, report = run(jobs(whole), WithTools(ScriptedEngine(), tools), trees_in_flight=1)
    told = [c for completions in whole.heard for c in completions]
    assert any(c.choice_probs for c in told) and any(c.forced and any(c.forced) for c in told)
    assert report.tokens == sum(
        len(c.tokens) - sum(c.forced or ()) for completions in whole.heard for c in completions[:-2]
    )
    for completions in whole.heard:
        assert [c.tokens for c in completions[-2:]] == [(4, 5, 1), (4, 0)]
        assert [c.finish for c in completions[-2:]] == ["step", "eos"]
    with Store(tmp_path / "run") as store, pytest.raises(ConnectionError):
        run(jobs(first), WithTools(Watched(batch=2, polls=polls), tools), journal=store.journal("s", 0))
    with Store(tmp_path / "run") as store:
        kept = count_journal(store, "s")
        done, again = run(jobs(second), WithTools(ScriptedEngine(), tools), journal=store.journal("s", 0))
    assert again.replayed == kept and done == wanted
    assert sorted(map(repr, second.heard)) == sorted(map(repr, whole.heard)), "floats and masks came back as they were"


def test_another_choice_continuation_or_tool_is_not_replayed(tmp_path: Path) -> None:
    tools = {"twos": TwoTwos()}
    with Store(tmp_path / "run") as store:
        run(make_jobs(2, Asking()), ScriptedEngine(), journal=store.journal("s", 0))
        others = [
            make_jobs(2),
            make_jobs(2, Asking(question=replace(QUESTION, after_eos=(4,)))),
            make_jobs(2, Asking(given=((4, 5, 1),))),
            [replace(job, tool="twos") for job in make_jobs(2, Asking())],
        ]
        for jobs in others:
            watched = Watched(polls=0)
            with pytest.raises(ConnectionError):
                run(jobs, WithTools(watched, tools), journal=store.journal("s", 0))
            assert len(watched.sent) == 2, "the roots of both trees are asked anew"
            assert {(r.prompt_tokens, r.stops) for r in watched.sent} == {(3, ("3",) if jobs[0].tool else ())}
        _, same = run(make_jobs(2, Asking()), ScriptedEngine(), journal=store.journal("s", 0))
        assert same.replayed == same.expansions


def test_stop_sends_nothing_more_and_everything_resumes(tmp_path: Path) -> None:
    engine, calls = Watched(batch=2), iter(range(1000))

    def stop() -> str | None:
        engine.stopped = engine.cost.generated_tokens > 200 or next(calls) > 900
        return "token budget" if engine.stopped else None

    with Store(tmp_path / "run") as store:
        done, report = run(make_jobs(12), engine, journal=store.journal("s", 0), stop=stop)
        assert report.stopped == "token budget" and 0 < report.unfinished <= 4 and len(done) < 12
        sent, kept = len(engine.sent), count_journal(store, "s")
        assert kept > 0 and report.cost == engine.cost == store.cost("s")
        # The same engine still holds what was in flight: those late results belong to nobody.
        assert engine.in_flight
        engine.stopped = False
        again, second = run(make_jobs(12), engine, journal=store.journal("s", 0))
        assert again == REFERENCE and second.replayed == kept and second.stopped is None
        assert len(engine.sent) > sent
        refused, third = run(make_jobs(12), engine, journal=store.journal("t", 0), stop=lambda: "no")
        assert third.stopped == "no" and not refused and third.expansions == 0


def test_errors_of_the_journal_reach_the_caller_before_the_tree_is_told() -> None:
    class Full:
        def load(self, tree: str) -> dict:
            return {}

        def record(self, entries, cost, events=()) -> None:
            raise OSError("full")

    jobs = make_jobs(1)
    with pytest.raises(OSError, match="full"):
        run(jobs, ScriptedEngine(), journal=Full())
    assert len(jobs[0].tree.nodes) == 1


# -- size and reports


def test_two_thousand_trees_pass_through_constant_memory(tmp_path: Path) -> None:
    def live() -> int:
        gc.collect()  # nodes and their parents refer to each other
        return sum(isinstance(thing, Tree) for thing in gc.get_objects())

    most, before, search = 0, live(), Mcts(simulations=2, children=2, limits=Limits(max_depth=2, max_step_tokens=6))

    def jobs() -> Iterator[Job]:
        nonlocal most
        for i in range(2000):
            tree = new_tree(f"p{i}", f"p{i}", (5, i, 1))
            if i % 250 == 249:
                most = max(most, live() - before)
            yield Job(tree, search, judge)

    with Store(tmp_path / "run") as store:
        engine = ScriptedEngine(batch=8)
        _, report = run(
            jobs(),
            engine,
            trees_in_flight=16,
            journal=store.journal("s", 0),
            on_done=lambda job: store.finish_tree("s", job.tree),
        )
        assert store.count_trees("s") == 2000 and count_journal(store, "s") == 0
    assert report.trees == 2000
    assert 0 < most <= 16 + 1, "finished trees are still held"


def test_progress_and_report_count_the_same() -> None:
    seen: list[Progress] = []
    engine = ScriptedEngine()
    _, report = run(make_jobs(12), engine, on_progress=seen.append, total=12)
    last = seen[-1]
    assert (last.trees, last.total, last.in_flight) == (12, 12, 0)
    assert [p.trees for p in seen] == sorted(p.trees for p in seen)
    assert last.tokens == report.tokens == engine.cost.generated_tokens and last.expansions == report.expansions
    assert report.cost == engine.cost and report.samples == 3 * report.expansions


def test_no_jobs_and_no_room() -> None:
    done, report = run([], ScriptedEngine())
    assert not done and report == DriveReport(seconds=report.seconds)
    with pytest.raises(ValueError, match="trees_in_flight"):
        run([], ScriptedEngine(), trees_in_flight=0)
