"""The store keeps what it was given, exactly, or says for people why it cannot."""

from __future__ import annotations

import errno
import math
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stored import count_journal
from tree_columns import columns
from treepref.engines.base import generate
from treepref.engines.scripted import ScriptedEngine
from treepref.errors import StoreError
from treepref.runs import codec, run_folder
from treepref.runs import store as store_module
from treepref.runs.codec import digest_tree
from treepref.runs.landing import new_folder
from treepref.runs.run_folder import land_file, mount_type
from treepref.runs.store import Store
from treepref.search.base import solution_tokens
from treepref.search.limits import Limits
from treepref.search.mcts import Mcts
from treepref.types import Completion, Cost, JournalEntry, Node, Pair, PolicyId, Problem, Request, Tree, new_tree

FOUND = Completion((4, 5, 1), (-0.1, -1e-17, -2.5), "step", value=0.25)


@pytest.fixture()
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "run") as opened:
        yield opened


def searched(key: str, seed: int = 0) -> Tree:
    """A tree of a few simulations."""
    engine, tree = ScriptedEngine(), new_tree(key, key.upper(), (5, seed, 1), policy=PolicyId("p2"))
    search = Mcts(simulations=6, children=3, limits=Limits(max_depth=4))
    while asked := search.ask(tree):
        for number, expansion in enumerate(asked):
            prefix = tree.prompt + solution_tokens(expansion.node)
            seeds = tuple(range(number, number + expansion.n))
            (result,) = generate(engine, [Request("r", prefix, expansion.n, seeds, 16, want_value=True)])
            rewards = [engine.world.reward(prefix + c.tokens) for c in result.completions]
            search.tell(tree, expansion, result.completions, rewards, result.prefix_value)
    return tree


def entry(tree: str, path: str, *completions: Completion) -> JournalEntry:
    return JournalEntry(tree, path, "asked", completions, (None,) * len(completions), 0.5)


# -- codec

floats = st.floats(allow_nan=False)
tokens = st.integers(0, 2**31 - 1)


@st.composite
def completions(draw) -> Completion:
    n = draw(st.integers(0, 6))

    def row(items):
        return st.lists(items, min_size=n, max_size=n).map(tuple)

    return Completion(
        draw(row(tokens)),
        draw(row(floats)),
        draw(st.sampled_from(["step", "eos", "length"])),
        draw(st.none() | row(floats)),
        draw(st.none() | row(st.booleans())),
        draw(st.none() | floats),
        draw(st.none() | st.lists(floats, max_size=3).map(tuple)),
    )


@given(st.lists(st.tuples(completions(), st.none() | floats), max_size=5), st.none() | floats)
def test_expansions_round_trip_exactly(rows, prefix_value) -> None:
    given_completions, rewards = tuple(c for c, _ in rows), tuple(r for _, r in rows)
    blob = codec.pack_expansion(given_completions, rewards, prefix_value)
    back = codec.unpack_expansion(blob)
    assert back == (given_completions, rewards, prefix_value)
    assert repr(back) == repr((given_completions, rewards, prefix_value))  # −0.0, True and 1 are told apart


def test_an_absent_value_is_not_a_nan() -> None:
    cut = Completion((1,), (math.nan,), "length", value=math.nan)
    (back,), (reward,), prefix = codec.unpack_expansion(codec.pack_expansion([cut], [None], None))
    assert math.isnan(back.value) and math.isnan(back.logprobs[0])
    assert reward is None and prefix is None


@given(st.data())
@settings(max_examples=60)
def test_damaged_blobs_are_errors(data) -> None:
    blob = codec.pack_tree(searched("a"))
    short = blob[: data.draw(st.integers(0, len(blob) - 1))]
    with pytest.raises(ValueError, match="damaged"):
        codec.unpack_tree(short)
    with pytest.raises(ValueError, match="damaged"):
        codec.unpack_tree(b"PK" + blob)
    with pytest.raises(ValueError, match="damaged"):
        codec.unpack_expansion(blob)


# -- rows


def test_trees_come_back_whole_by_key_with_their_counts(store: Store) -> None:
    trees = {key: searched(key, seed) for seed, key in enumerate(["b", "a", "10", "é"])}
    for tree in trees.values():
        store.finish_tree("s", tree)
    back = list(store.trees("s"))
    assert [t.key for t in back] == ["10", "a", "b", "é"]
    for tree in back:
        original = trees[tree.key]
        assert tree.problem_id == tree.key.upper() and tree.policy == "p2"
        assert repr(columns(tree)) == repr(columns(original))
    for row in store.tree_rows("s"):
        rewards = [n.reward for n in trees[row.key].nodes if n.terminal]
        assert (row.right, row.wrong) == (rewards.count(1.0), rewards.count(-1.0))
        assert row.digest == digest_tree(trees[row.key]).hex()
    assert store.tree("s", "a").key == "a" and store.tree("s", "nobody") is None
    assert store.has_tree("s", "a") and not store.has_tree("other", "a")


def test_mixed_trees_are_those_with_right_and_wrong_solutions(store: Store) -> None:
    outcomes = {"mixed": (1.0, None, -1.0), "right": (1.0, 1.0), "wrong": (-1.0, 0.0), "unknown": (None,)}
    for key, rewards in outcomes.items():
        tree = new_tree(key, key, (5,))
        for i, reward in enumerate(rewards, start=1):
            node = Node(i, tree.root, (i,), (-0.5,), finish="eos", depth=1, reward=reward, terminal=True)
            tree.root.children.append(node)
            tree.nodes.append(node)
        store.finish_tree("s", tree)
    assert [t.key for t in store.trees("s", mixed=True)] == ["mixed"]
    assert [r.key for r in store.tree_rows("s") if r.mixed] == ["mixed"]
    assert store.count_trees("s") == 4 and store.count_trees("s", mixed=True) == 1


def test_finishing_a_tree_ends_its_journal_and_pays_in_one_transaction(store: Store) -> None:
    journal = store.journal("s", 0)
    journal.record([entry("a", "", FOUND, FOUND), entry("a", "0.1"), entry("b", "", FOUND)], Cost(generated_tokens=9))
    assert journal.load("a")["0.1"] == entry("a", "0.1") and journal.load("a")[""].completions == (FOUND, FOUND)
    with pytest.raises(RuntimeError), store.transaction():
        store.finish_tree("s", searched("a"), cost=Cost(generated_tokens=1))
        raise RuntimeError("the caller's own error")
    assert count_journal(store, "s") == 3 and not store.has_tree("s", "a")  # nothing of it landed
    store.finish_tree("s", searched("a"), cost=Cost(generated_tokens=1, seconds=0.1))
    assert count_journal(store, "s") == 1 and store.cost("s") == Cost(generated_tokens=10, seconds=0.1)
    with pytest.raises(StoreError, match="already"):
        store.finish_tree("s", searched("a"), cost=Cost(generated_tokens=1))
    assert store.cost("s").generated_tokens == 10
    store.finish_tree("s", searched("b"), keep=False)
    assert count_journal(store, "s") == 0 and not store.has_tree("s", "b")


def test_another_policy_discards_the_journal_of_its_stage(store: Store) -> None:
    store.journal("s", 0).record([entry("a", "", FOUND)], Cost())
    store.journal("other", 0).record([entry("a", "", FOUND)], Cost())
    assert store.journal("s", 0).load("a")
    assert not store.journal("s", 1).load("a")
    assert count_journal(store, "s") == 0 and count_journal(store, "other") == 1


def test_small_rows_round_trip(store: Store) -> None:
    problems = [Problem("z", "1+1?", "2", None, {"level": 3}), Problem("a", "é", "4", "2+2=4\n4")]
    store.put_problems("train", problems)
    store.put_problems("train", problems)  # a redone stage replaces
    assert list(store.problems("train")) == problems and store.problem("train", "a") == problems[1]
    assert store.count_problems("train") == 2 and store.problem("eval", "a") is None
    with pytest.raises(StoreError, match="already"):
        store.put_problems("train", [problems[0], problems[0]])
    assert list(store.problems("train")) == problems

    pairs = [Pair("b", (3, 4), (2,), 0.1, -1 / 3, 4, 2), Pair("a", (1,), (2,), 1.0, -1.0, 1, 1)]
    store.put_pairs(1, pairs)
    assert list(store.pairs(1)) == pairs[::-1] and list(store.pairs(2)) == []
    store.put_pairs(1, pairs[:1])
    assert list(store.pairs(1)) == pairs[:1] and store.count_pairs(1) == 1

    rows = [(f"p{i:03d}", sample, {"correct": True, "x": 0.1 + i}) for i in range(50) for sample in range(3)]
    store.put_outcomes("eval", reversed(rows), cost=Cost(scored_tokens=1))
    store.put_outcomes("eval", rows[:1])
    assert list(store.outcomes("eval")) == rows and store.cost().scored_tokens == 1
    assert store.has_outcome("eval", "p000") and not store.has_outcome("eval", "q")

    assert store.start_stage("warm-up", {"a": 1}).status == "running"
    store.finish_stage("warm-up", {"b": 2})
    again = store.start_stage("warm-up", {"a": 9})
    assert again.status == "done" and again.info == {"a": 1, "b": 2} and store.stage_done("warm-up")
    with pytest.raises(StoreError, match="never started"):
        store.finish_stage("train")

    for message in ("x", "y", "x"):
        store.event("s", "warning", message)
    assert [(e.stage, e.level, e.message) for e in store.events()] == [("s", "warning", "x"), ("s", "warning", "y")]
    store.set_meta("recipe", {"seed": 1})
    assert store.meta("recipe") == {"seed": 1} and store.meta("none", 5) == 5


def test_pages_hold_more_than_one(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "PAGE", 2)
    for key in "edcba":
        store.finish_tree("s", searched(key))
    store.put_problems("train", [Problem(str(i), "t", "a") for i in range(5)])
    seen = []
    for tree in store.trees("s"):
        store.set_meta("last", tree.key)  # writing meanwhile disturbs nothing
        seen.append(tree.key)
    assert seen == list("abcde")
    assert [p.id for p in store.problems("train")] == list("01234")


def test_digest_sees_tokens_and_outcomes_but_no_order_and_no_float(tmp_path: Path) -> None:
    def digest(name: str, keys: str, *, correct: bool = True, pair: int = 1, x: float = 0.0, visits: int = 0) -> str:
        with Store(tmp_path / name) as store:
            for key in keys:
                tree = searched(key)
                tree.nodes[1].prior += x
                tree.nodes[1].visits += visits
                store.finish_tree("s", tree)
            store.put_outcomes("e", [("p", 0, {"correct": correct, "answer": "7", "seconds": x})])
            store.put_pairs(1, [Pair("a", (pair,), (2,), x, 0.0, 1, 1)])
            store.add_cost("s", Cost(seconds=x))
            return store.digest()

    base = digest("one", "ab")
    assert digest("two", "ba", x=0.5) == base
    others = [
        digest("3", "a"),
        digest("4", "ab", correct=False),
        digest("5", "ab", pair=3),
        digest("6", "ab", visits=1),
    ]
    assert len({base, *others}) == 5


# -- the folder


def test_a_folder_without_a_run_and_a_file_that_is_no_database(tmp_path: Path) -> None:
    for keywords in ({"create": False}, {"read_only": True}):
        with pytest.raises(StoreError, match="holds no run"):
            Store(tmp_path / "none", **keywords)
    assert not (tmp_path / "none").exists()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "run.db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(StoreError, match="no run of treepref"):
        Store(tmp_path / "bad")
    assert [p.name for p in (tmp_path / "bad").iterdir()] == ["run.db"]
    Store(tmp_path / "damaged").close()
    (tmp_path / "damaged" / "run.db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(StoreError, match="not a sound"):
        Store(tmp_path / "damaged")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file"):
        Store(tmp_path / "file")


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    with Store(tmp_path / "run") as store:
        store.set_meta("schema", 99)
    for read_only in (False, True):
        with pytest.raises(StoreError, match="schema 99, made by a newer"):
            Store(tmp_path / "run", read_only=read_only)
    with sqlite3.connect(tmp_path / "run" / "run.db") as db:  # the refusal let go of the lock and changed nothing
        assert db.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone() == ("99",)


def test_second_store_in_one_process_is_refused_until_the_first_closes(tmp_path: Path) -> None:
    first = Store(tmp_path / "run")
    with pytest.raises(StoreError, match=f"in use by process {os.getpid()} on"):
        Store(tmp_path / "run")
    first.close()
    Store(tmp_path / "run", read_only=False).close()


def test_read_only_sees_commits_and_writes_nothing(tmp_path: Path) -> None:
    with Store(tmp_path / "run") as store, Store(tmp_path / "run", read_only=True) as reader:
        store.set_meta("a", 1)
        assert reader.meta("a") == 1
        with store.transaction():
            store.set_meta("a", 2)
            assert reader.meta("a") == 1  # not before it is committed
        assert reader.meta("a") == 2
        with pytest.raises(StoreError, match="read only"):
            reader.set_meta("a", 3)
    with Store(tmp_path / "run", read_only=True) as reader:
        assert reader.meta("a") == 2


def test_the_file_system_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = "\n".join(
        [
            "/dev/vda / ext4 rw 0 0",
            "srv:/x /mnt/share nfs4 rw 0 0",
            "u@h: /mnt/my\\040disk fuse.sshfs rw 0 0",
            "/dev/b /mnt/share/local xfs rw 0 0",
        ]
    )
    found = {p: mount_type(Path(p), mounts) for p in ("/home", "/mnt/share/a", "/mnt/sharex", "/mnt/my disk/run")}
    assert found == {
        "/home": "ext4",
        "/mnt/share/a": "nfs4",
        "/mnt/sharex": "ext4",
        "/mnt/my disk/run": "fuse.sshfs",
    }
    assert mount_type(Path("/mnt/share/local/run"), mounts) == "xfs"
    monkeypatch.setattr(run_folder, "mount_type", lambda path, mounts: "nfs4")
    with pytest.raises(StoreError, match="type nfs4"):
        Store(tmp_path / "run")


def test_locks_that_keep_nobody_out_are_detected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder.fcntl, "flock", lambda fd, how: None)
    with pytest.raises(StoreError, match="keep nobody out"):
        Store(tmp_path / "run")


def test_a_full_disk_is_an_error_for_people_and_loses_nothing(tmp_path: Path) -> None:
    with Store(tmp_path / "run") as store:
        store.finish_tree("s", searched("a"))
        journal = store.journal("s", 0)
        (pages,) = store._db.execute("PRAGMA page_count").fetchone()
        store._db.execute(f"PRAGMA max_page_count = {pages + 3}")  # SQLite then says what it says on a full disk
        kept = 0
        with pytest.raises(StoreError, match=r"is full.*committed before is kept.*free some space"):
            while kept < 1000:
                journal.record([entry("b", str(kept), *[FOUND] * 20)], Cost(generated_tokens=1))
                kept += 1
        assert 0 < kept < 1000
        assert count_journal(store, "s") == kept == store.cost("s").generated_tokens
        store._db.execute("PRAGMA max_page_count = 1000000")  # space was freed: the same store goes on
        journal.record([entry("b", "more", FOUND)], Cost())
    with Store(tmp_path / "run") as store:
        assert count_journal(store, "s") == kept + 1 and store.tree("s", "a") is not None


def test_enospc_while_files_land(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new = tmp_path / "new.json"
    new.write_text("new")
    (tmp_path / "final.json").write_text("old")

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(run_folder.os, "fsync", full)
        with pytest.raises(StoreError, match="is full"):
            land_file(new, tmp_path / "final.json")
    assert (tmp_path / "final.json").read_text() == "old"
    land_file(new, tmp_path / "final.json")
    assert (tmp_path / "final.json").read_text() == "new" and not new.exists()


def test_folders_land_whole_and_replace_a_killed_attempt(tmp_path: Path) -> None:
    final = tmp_path / "round-1" / "model"
    for content in ("first", "second"):
        with new_folder(final, replace=True) as part:
            (part / "sub").mkdir()
            (part / "sub" / "weights").write_text(content)
        assert (final / "sub" / "weights").read_text() == content and not part.exists()
        assert [p.name for p in final.parent.iterdir()] == ["model"] and [p.name for p in final.iterdir()] == ["sub"]


def test_scratch_is_empty_and_swept_at_the_next_open(tmp_path: Path) -> None:
    with Store(tmp_path / "run") as store:
        (store.scratch("left") / "half").write_text("x" * 1000)
        assert not (store.scratch("left") / "half").exists()
        (store.scratch("left") / "half").write_text("x" * 1000)
        assert store.disk_bytes() > 1000
    with Store(tmp_path / "run") as store:
        assert list((store.folder / "scratch").iterdir()) == []
