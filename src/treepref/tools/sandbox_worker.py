"""The process in which model-written Python runs, in pydantic-monty. Started by sandbox.py, killed at will.

Monty is an interpreter of its own without file, network or process access; it runs in a child of this process, and
values come back as plain data to this process, never to the caller's. Knows no token and no model.
"""

from __future__ import annotations

import datetime
import json
import os
import sys
import threading
import time
from typing import Any

import pydantic_monty

from treepref.workers.worker import die_with_parent, limit_memory, private_channel

ADDRESS_SPACE_MB = 512
"""For this process and for its child, besides what the sandbox itself may hold."""
MAX_ERROR_CHARS = 300
_TIME = "TimeoutError: time limit exceeded"
_MEMORY = "MemoryError: memory limit exceeded"
_CLOCK = datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC)
"""A run must not depend on when it is done: the sandbox's clock stands still and its random numbers are seeded."""


def main() -> None:
    """Serve programs until the requests end. `sys.argv[1]`: JSON with `seconds`, `memory_mb` and `output_chars`."""
    setup = json.loads(sys.argv[1])
    requests, replies = private_channel()
    threading.Thread(target=die_with_parent, daemon=True).start()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the interpreter's child reports each memory bomb there
    limit_memory(ADDRESS_SPACE_MB + 2 * setup["memory_mb"])
    limits = pydantic_monty.ResourceLimits(
        max_feed_duration_secs=setup["seconds"],
        max_memory=setup["memory_mb"] * 2**20,
        max_recursion_depth=200,
        max_suspensions=100,
        max_total_sleep_secs=0.0,
    )
    with pydantic_monty.Monty(max_processes=1, request_timeout=setup["seconds"] + 1.0) as pool:
        replies.write(json.dumps({"ready": True}) + "\n")
        replies.flush()
        for line in requests:
            observation = _run(pool, limits, json.loads(line)["blocks"], setup)
            replies.write(json.dumps({"observation": observation}) + "\n")
            replies.flush()


def _run(pool: pydantic_monty.Monty, limits: Any, blocks: list[str], setup: dict[str, Any]) -> str:
    """What the last block shows. The blocks before it run first in the same session, for their variables alone."""
    policy = pydantic_monty.OSPolicy(datetime=_CLOCK, sleep="zero", random_start={"seed": 0})
    printed = error = ""
    try:
        with pool.checkout(limits=limits, os_policy=policy, assert_message_annotations=False) as session:
            deadline = time.monotonic() + setup["seconds"]  # from here on: a process may have had to start
            for block in blocks:
                if time.monotonic() > deadline:
                    error = _TIME
                if error in (_TIME, _MEMORY):  # the session is lost, and with it the variables
                    return f"{error} by an earlier block"
                printed, error = _feed(session, block, setup["output_chars"])
    except pydantic_monty.MontyCrashedError as crash:
        return _TIME if crash.timed_out else _MEMORY
    # How much was printed when a limit struck would depend on the machine.
    return error if error in (_TIME, _MEMORY) else "\n".join(part for part in (printed.rstrip("\n"), error) if part)


def _feed(session: Any, code: str, output_chars: int) -> tuple[str, str]:
    """(what was printed, or else the value of a last expression; one line that names the error, or '')."""
    printed = _Head(output_chars)
    try:
        value = session.feed_run(code, print_callback=printed)
        if value is not None and not printed.text:
            printed("value", str(value))
        return printed.text, ""
    except pydantic_monty.MontyCrashedError:
        raise
    except pydantic_monty.MontyError as error:
        display = getattr(error, "display", None)
        named = display("type-msg") if display else str(error)
    except Exception as error:  # a value that does not convert, or is too deep or too large for this process
        named = f"{type(error).__name__}: {error}"
    if named.startswith("TimeoutError") and "limit" in named:
        named = _TIME
    elif named.startswith("MemoryError"):
        named = _MEMORY
    return printed.text, " ".join(named.split())[:MAX_ERROR_CHARS]


class _Head:
    """Keeps the beginning of what is printed."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.text = ""

    def __call__(self, stream: str, text: str) -> None:
        if len(self.text) < self.limit:
            self.text += text[: self.limit - len(self.text)]
