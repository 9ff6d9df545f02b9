"""One life of a search that tests/test_kill_resume.py kills: ScriptedEngine + Mcts into a Store. No model, no torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

from treepref.driver import Job, drive
from treepref.engines.scripted import ScriptedEngine
from treepref.runs.store import Store
from treepref.search.limits import Limits
from treepref.search.mcts import Mcts
from treepref.types import BASE, Tree, new_tree

STAGE = "round-1/search"
OUTCOMES = "round-1/eval/mcts"
TREES = 60


def main(folder: str) -> None:
    engine = ScriptedEngine(batch=4, shuffle=os.getpid())  # results come in another order in every life
    search = Mcts(simulations=12, children=3, leaves_in_flight=2, limits=Limits(max_depth=5, max_step_tokens=12))

    def judge(tree: Tree, solution: tuple[int, ...]) -> float:
        return engine.world.reward(tree.prompt + solution)

    with Store(folder) as store:

        def jobs() -> Iterator[Job]:
            for i in range(TREES):
                if not store.has_tree(STAGE, f"p{i:03d}"):
                    yield Job(new_tree(f"p{i:03d}", f"p{i:03d}", (5, 2 + i, 1)), search, judge)

        def keep(job: Job) -> None:
            with store.transaction():
                store.finish_tree(STAGE, job.tree)
                correct = any(node.reward == 1 for node in job.tree.nodes)
                store.put_outcomes(OUTCOMES, [(job.question_id, 0, {"correct": correct})])

        store.start_stage(STAGE)
        journal = store.journal(STAGE, policy=BASE)
        drive(jobs(), engine, run_seed=7, trees_in_flight=8, journal=journal, on_done=keep)
        store.finish_stage(STAGE)


def hold(folder: str) -> None:
    """Open the run, say so, and keep it until standard input ends."""
    with Store(folder) as store:
        store.start_stage(STAGE)
        print("held", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    hold(sys.argv[1])
