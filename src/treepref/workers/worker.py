"""The process in which checks run that may hang, eat memory or die. Started by isolation.py, killed at will.

Reads one JSON line a check and writes one JSON line back. Knows one function, given by name, and no timeout.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
import threading
import time
import traceback
from typing import Any

from treepref.errors import TreeprefError
from treepref.types import Problem
from treepref.workers.functions import load_function

MAX_TRACE = 3000
"""Characters of a traceback that are sent; what is left out stands in the middle."""
MAX_FRAMES = 8


def main() -> None:
    """Serve checks until the requests end. `sys.argv[1]`: JSON with `function`, `key` and `memory_mb`."""
    setup = json.loads(sys.argv[1])
    requests, replies = private_channel()
    threading.Thread(target=die_with_parent, daemon=True).start()

    def reply(message: dict[str, Any]) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    try:
        function = load_function(setup["function"], setup["key"])
    except TreeprefError as error:
        reply({"ready": False, "error": str(error)})
        return
    limit_memory(setup["memory_mb"])
    reply({"ready": True})
    for line in requests:
        request = json.loads(line)
        reply(_answer(function, request["text"], Problem(**request["problem"])))


def _answer(function: Any, text: str, problem: Problem) -> dict[str, Any]:
    try:
        result = function(text, problem)
    except BaseException as error:  # nothing that a check raises may end the worker
        return {"score": 0.0, "error": failure(error)}
    if not re.fullmatch(r"bool_?|int\d*|float\d*", type(result).__name__):  # numpy's too
        return {"score": 0.0, "error": f"the checker returned {type(result).__name__}, not True, False or a number"}
    try:
        score = float(result)
    except OverflowError:
        score = math.inf
    if not math.isfinite(score):
        return {"score": 0.0, "error": f"the checker returned {score}, which is no number to compare"}
    return {"score": score, "error": None}


def failure(error: BaseException) -> str:
    """What was raised, on a line of its own; then the traceback from the first frame that is not ours on."""
    own = error.__traceback__.tb_next if error.__traceback__ else None
    told = traceback.TracebackException(type(error), error, own, limit=-MAX_FRAMES)
    lines = list(told.format_exception_only())
    trace = "".join(told.format())
    if len(trace) > MAX_TRACE:
        trace = f"{trace[: MAX_TRACE // 2]}\n…\n{trace[-MAX_TRACE // 2 :]}"
    return f"{' '.join(lines[-1].split())[:300]}\n{trace}".rstrip()


def private_channel() -> tuple[Any, Any]:
    """Keep the pipes to the parent for the serving loop alone: a checker prints to stderr and reads nothing."""
    requests = os.fdopen(os.dup(0), encoding="utf-8")
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    return requests, replies


def die_with_parent() -> None:
    """A check that hangs must not outlive a parent that was killed."""
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def limit_memory(megabytes: int | None) -> None:
    """Limit this process's address space and that of its children. None, or no such limits here: nothing is done."""
    if megabytes is None:
        return
    try:
        import resource
    except ImportError:  # Windows
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
