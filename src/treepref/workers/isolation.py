"""A function that runs in a process of its own, so that a call can be cut short.

Knows pipes and time limits; not what is checked. A call that outlasts its limit costs that limit and nothing else:
its process is killed and the next one is started at once, in the background.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from dataclasses import asdict
from typing import Any

from treepref.errors import RecipeError, TreeprefError
from treepref.types import Problem

START_SECONDS = 180.0
"""Longest start of a worker: its imports alone, on a busy machine."""

TOO_SLOW, DIED = "the check took longer than", "the checking process died"
"""How a call without an answer is told; all other failures are the function's own."""

_BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[2]); from {module} import main; main()"


class IsolatedFunction:
    """`function(text, problem) -> bool | float`, named as `module:function`, called in a worker process.

    A fresh interpreter is started instead of a fork or `multiprocessing`'s spawn: it carries no threads, no torch and
    no second run of the caller's main script. Calls from several threads wait for one another.
    """

    def __init__(self, function: str, *, key: str, seconds: float, memory_mb: int | None = None) -> None:
        self._setup = json.dumps({"function": function, "key": key, "memory_mb": memory_mb})
        self._seconds = seconds
        self._lock = threading.Lock()
        self._worker: WorkerProcess | None = None

    def start(self) -> None:
        """Start the worker if there is none. Returns at once; `wait` finds out how it went."""
        if self._worker is None:
            self._worker = WorkerProcess("treepref.workers.worker", self._setup)

    def wait(self) -> None:
        """Wait until the worker can take a call. Raises RecipeError where the function cannot be imported."""
        self.start()
        assert self._worker is not None
        try:
            self._worker.wait()
        except TreeprefError:
            self.close()
            raise

    def __call__(self, text: str, problem: Problem) -> tuple[float, str | None]:
        """(score, error): True is 1, False 0; error says why there is no score, and then it is 0.

        Its first line says it all; where the function raised, its traceback follows.
        """
        with self._lock:
            self.wait()
            assert self._worker is not None
            request = {"text": text, "problem": {**asdict(problem), "meta": dict(problem.meta)}}
            try:
                answer = self._worker.ask(request, self._seconds)
            except TimeoutError:
                error = f"{TOO_SLOW} {self._seconds:g} s"
            except EOFError:
                error = DIED
            else:
                return float(answer["score"]), answer["error"] and _printable(answer["error"])
            self.close()
            self.start()
            return 0.0, error

    def close(self) -> None:
        """Kill the worker."""
        if self._worker is not None:
            self._worker.kill()
            self._worker = None


def _printable(text: str) -> str:
    """The text without characters that move a terminal's cursor: what a checker raises may quote a model's words."""
    return "".join(c if c.isprintable() or c == "\n" else " " if c == "\t" else repr(c)[1:-1] for c in text)


class WorkerProcess:
    """One process and the thread that reads what it writes (a pipe can be waited for with a limit nowhere else).

    It runs `main()` of `module`, with `setup` as its first argument, which answers one JSON line with another; its
    first line is {"ready": true}, or {"ready": false, "error": why}.
    """

    def __init__(self, module: str, setup: str) -> None:
        self.ready = False
        self.module = module
        self.lines: queue.Queue[str | None] = queue.Queue()
        self.process = subprocess.Popen(
            [sys.executable, "-c", _BOOT.format(module=module), setup, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C is for the parent; a kill takes the checker's own children along
        )
        threading.Thread(target=self._read, daemon=True).start()

    def wait(self) -> None:
        """Wait for the first line. Raises RecipeError where it says why not, TreeprefError where none comes."""
        if self.ready:
            return
        try:
            answer = self._receive(START_SECONDS)
        except (TimeoutError, EOFError) as error:
            why = "did not start in time" if isinstance(error, TimeoutError) else "died while starting"
            raise TreeprefError(f"a worker process ({self.module}) {why}; its own messages stand above") from error
        if not answer["ready"]:
            raise RecipeError(answer["error"])
        self.ready = True

    def ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """The answer. Raises TimeoutError or EOFError; the process is then to be killed."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except OSError as error:
            raise EOFError from error
        return self._receive(seconds)

    def kill(self) -> None:
        """End the process and its children, whatever they are at."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if hasattr(os, "killpg"):
                os.killpg(self.process.pid, signal.SIGKILL)
            else:
                self.process.kill()
        self.process.wait()
        with contextlib.suppress(OSError):
            assert self.process.stdin is not None
            self.process.stdin.close()

    def _receive(self, seconds: float) -> dict[str, Any]:
        try:
            line = self.lines.get(timeout=seconds)
        except queue.Empty:
            raise TimeoutError from None
        if line is None:
            raise EOFError
        return json.loads(line)

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self.lines.put(line)
        self.lines.put(None)
