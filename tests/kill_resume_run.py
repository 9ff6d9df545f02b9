"""One life of a search that tests/test_kill_resume.py kills: ScriptedEngine + Mcts into a Store.

    python kill_resume_run.py FOLDER LOG [LATENCY]

Every request that is sent goes to LOG, one line each, before the engine sees it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator

from treepref.driver import Job, drive
from treepref.engines.scripted import ScriptedEngine
from treepref.search.mcts import Mcts
from treepref.store import Store
from treepref.types import Request, Tree, new_tree

STAGE = "round-1/search"
TREES = 60


class LoggingEngine(ScriptedEngine):
    log: int

    def submit(self, requests: Iterable[Request]) -> None:
        requests = list(requests)
        lines = "".join(request.id.rpartition("/")[0] + "\n" for request in requests)
        os.write(self.log, lines.encode())
        super().submit(requests)


def main(folder: str, log: str, latency: float) -> None:
    engine = LoggingEngine(batch=4, shuffle=os.getpid(), latency=latency)
    engine.log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    search = Mcts(simulations=12, children=3, max_depth=5, leaves_in_flight=2, max_step_tokens=12)

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
                store.put_outcomes("round-1/eval/mcts", [(job.question_id, 0, {"correct": correct})])

        store.start_stage(STAGE)
        journal = store.journal(STAGE, policy_version=0)
        drive(jobs(), engine, run_seed=7, trees_in_flight=8, journal=journal, on_done=keep)
        store.finish_stage(STAGE)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]) if len(sys.argv) > 3 else 0.0)
