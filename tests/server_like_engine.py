"""An engine in another process, as a server would be one: requests and results are lines of JSON over a pipe.

It knows the contract of `engines/base.py` and nothing of loops, stores or searches. Run as a program it is the server,
which plays a `ScriptedEngine`.
"""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import sys
import threading
from collections.abc import Iterable
from dataclasses import asdict
from typing import IO, Any

from treepref.engines.base import EngineLimits
from treepref.engines.scripted import ScriptedEngine, World
from treepref.types import BASE, Choice, Completion, Cost, PolicyId, Request, Result, SoFar


class ServerLikeEngine:
    """The client. A server that dies is started again: what it had not answered comes back as errors."""

    tokenizer: Any = None

    def __init__(self, **world: Any) -> None:
        self.policy_id: PolicyId = BASE
        self.limits = EngineLimits(4096, deterministic=True, scores=frozenset({"value", "choice", "given"}))
        self.starts = 0
        self._world = world
        self._in_flight: set[str] = set()
        self._start()

    def _start(self) -> None:
        self.starts += 1
        arguments = [sys.executable, __file__, json.dumps([self._world, self.policy_id])]
        self.process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=_read, args=(self.process.stdout, self._lines), daemon=True).start()

    def submit(self, requests: Iterable[Request]) -> None:
        for request in requests:
            self._in_flight.add(request.id)
            self._tell({"request": asdict(request)})

    def poll(self, timeout: float | None = None) -> list[Result]:
        if not self._in_flight:
            return []
        try:
            line = self._lines.get(timeout=timeout)
        except queue.Empty:
            return []
        if not line:
            lost, self._in_flight = self._in_flight, set()
            self.process.wait()
            self._start()
            return [Result(name, (), error="the server ended") for name in sorted(lost)]
        result = _result(json.loads(line))
        self._in_flight.discard(result.request_id)
        return [result]

    def load(self, weights: Any) -> None:
        """What is in flight is answered under the old weights, for the server takes one thing after the other."""
        self._world, self.policy_id = weights.world, weights.id
        self._tell({"load": [self._world, self.policy_id]})

    def close(self) -> None:
        self.process.kill()
        self.process.wait()

    def _tell(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # told by the next poll
            self.process.stdin.write(json.dumps(message) + "\n")


def _read(stream: IO[str], lines: queue.SimpleQueue[str]) -> None:
    """Every line that comes, and an empty one at the end."""
    for line in stream:
        lines.put(line)
    lines.put("")


def _request(plain: dict[str, Any]) -> Request:
    ids = {"prefix", "seeds", "stops", "ends"}
    plain |= {name: tuple(plain[name]) for name in ids} | {"given": tuple(map(tuple, plain["given"]))}
    plain["so_far"] = SoFar(**plain["so_far"])
    if plain["choice"] is not None:
        choice = plain["choice"]
        options = tuple(map(tuple, choice["options"]))
        plain["choice"] = Choice(tuple(choice["suffix"]), options, tuple(choice["after_eos"]))
    return Request(**plain)


def _result(plain: dict[str, Any]) -> Result:
    def completion(found: dict[str, Any]) -> Completion:
        return Completion(**{k: tuple(v) if isinstance(v, list) else v for k, v in found.items()})

    completions = tuple(map(completion, plain["completions"]))
    return Result(**plain | {"completions": completions, "cost": Cost(**plain["cost"])})


def serve(world: dict[str, Any], policy_id: str) -> None:
    """Answer what comes in, in order, until the pipe ends."""

    class Loaded:
        def __init__(self, world: dict[str, Any], policy_id: str) -> None:
            self.world, self.id = World(**world), policy_id

    engine = ScriptedEngine(world=World(**world), policy_id=PolicyId(policy_id))
    for line in sys.stdin:
        message = json.loads(line)
        if "load" in message:
            engine.load(Loaded(*message["load"]))
            continue
        engine.submit([_request(message["request"])])
        for result in engine.poll():
            print(json.dumps(asdict(result)), flush=True)


if __name__ == "__main__":
    serve(*json.loads(sys.argv[1]))
