"""A small pool of processes that run model-written Python, for callers that must not wait.

Knows processes, threads and time limits; the interpreter is known to sandbox_worker.py alone.
"""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec

from treepref.errors import RecipeError, TreeprefError
from treepref.workers.isolation import WorkerProcess

GRACE_SECONDS = 2.0
"""The interpreter ends a program at the time limit by itself; where it does not, its process is killed this much later.
"""


@dataclass(slots=True, eq=False)
class Run:
    """A program handed in. `observation` is what it showed, once `done` is set."""

    blocks: tuple[str, ...]
    done: threading.Event = field(default_factory=threading.Event)
    observation: str = ""
    failure: TreeprefError | None = None
    """The sandbox itself could not be started."""
    cancelled: bool = False
    """Nobody waits for it: it is not started any more."""


class Sandbox:
    """Up to `workers` programs at once, each in a process of its own; processes start when they are first needed.

    `seconds`: for a program with all its blocks. `memory_mb`: for its values. `output_chars`: of what it prints.
    Raises RecipeError where pydantic-monty is not installed.
    """

    def __init__(
        self, *, workers: int = 2, seconds: float = 3.0, memory_mb: int = 64, output_chars: int = 4000
    ) -> None:
        if find_spec("pydantic_monty") is None:
            raise RecipeError(
                "task.tool: python runs model-written code in pydantic-monty, which is not installed: "
                "pip install 'treepref[tools]'"
            )
        self._setup = json.dumps({"seconds": seconds, "memory_mb": memory_mb, "output_chars": output_chars})
        self._seconds = seconds
        self._workers = workers
        self._threads: list[threading.Thread] = []
        self._waiting: queue.SimpleQueue[Run | None] = queue.SimpleQueue()

    def submit(self, blocks: Sequence[str]) -> Run:
        """Run the blocks one after the other in one session; the observation is the last one's. Returns at once."""
        run = Run(tuple(blocks))
        self._waiting.put(run)
        if len(self._threads) < self._workers:
            self._threads.append(threading.Thread(target=self._serve, daemon=True))
            self._threads[-1].start()
        return run

    def close(self) -> None:
        """End the processes as soon as they are done with what they are at. A later `submit` starts new ones."""
        for _ in self._threads:
            self._waiting.put(None)
        self._threads.clear()

    def _serve(self) -> None:
        """Run what waits, one program after the other, on one process at a time."""
        worker: WorkerProcess | None = None
        while (run := self._waiting.get()) is not None:
            if run.cancelled:
                continue
            worker = worker or WorkerProcess("treepref.tools.sandbox_worker", self._setup)
            try:
                worker.wait()
                run.observation = worker.ask({"blocks": run.blocks}, self._seconds + GRACE_SECONDS)["observation"]
            except (TimeoutError, EOFError, TreeprefError) as error:
                worker.kill()
                worker = None
                if isinstance(error, TreeprefError):
                    run.failure = error
                else:
                    run.observation = _LOST[type(error)]
            run.done.set()
        if worker is not None:
            worker.kill()


_LOST = {TimeoutError: "TimeoutError: time limit exceeded", EOFError: "MemoryError: memory limit exceeded"}
"""What a program shows that took its process with it."""
