"""What decides a sample's next token besides the sampler: a tool that forces its results, or a text to be scored.

Knows token ids and tools; knows no model, no text and no request.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence

from treepref.tools.base import Forced, Tool, ToolState
from treepref.tools.masks import forced_mask
from treepref.types import Finish


def score_guide(given: Sequence[int], room: int, eos: Collection[int], tool: Tool | None) -> Guide:
    """For a given continuation of a prefix: it ends as "eos" or "step", or as "length" where it outgrows `room`.

    What the tool would have forced in it carries the same mask as in a sample.
    """
    ends: Finish = "length" if len(given) > room else "eos" if given[-1] in eos else "step"
    guide = Guide(None, given[:room], ends)
    mask = forced_mask(tool, given[:room]) if tool is not None else None
    guide.forced = list(mask or ())
    return guide


class Guide:
    """The tokens that one sample must take next, and how it ends once they are taken.

    An engine asks `wait` before each token, takes `next()` in place of a sampled token while there is one, and tells
    every token to `took`. A sample without tool and without given tokens needs no guide.
    """

    __slots__ = ("_ends", "_queue", "_tool", "checked", "forced")

    def __init__(self, tool: ToolState | None, given: Sequence[int] = (), ends: Finish | None = None) -> None:
        """`tool` watches a sample; without it `given` is a continuation to score, which ends as `ends` says."""
        self._tool = tool
        self._queue = deque(given)
        self._ends: Finish | None = ends
        self.forced: list[bool] = []
        """Of each token so far, whether the tool forced it."""
        self.checked = 0
        """The step delimiter counts only in the sample's tokens from here on: not in a call, nor in its result."""

    @property
    def scores(self) -> bool:
        """The sample is a given continuation: nothing of it is sampled, and nothing is forced by a tool."""
        return self._tool is None

    @property
    def dictates(self) -> bool:
        """A token waits that takes the place of the next sampled one."""
        return bool(self._queue)

    @property
    def holds(self) -> bool:
        """The sample goes on whatever its text says: inside a call, or with forced tokens to come."""
        return bool(self._queue) or (self._tool is not None and (self._tool.open or self._tool.busy))

    def next(self) -> int:
        return self._queue.popleft()

    def wait(self, left: int) -> Finish | bool:
        """Ask for a result that is awaited. True: it is not there yet, so the sample gets no token now.

        A finish: the result does not fit into the `left` tokens, or ends the step without any. False: go on.
        """
        if self._tool is None or not self._tool.busy:
            return False
        finish = self._take(self._tool.result(), left)
        return finish or self._tool.busy

    def took(self, token: int, was_forced: bool, eos: Collection[int], left: int) -> Finish | None:
        """The sample got `token`, and `left` more may follow; how it ended, if a tool or the given tokens say so.

        None: it goes on, or ends by the step's delimiter or by its length, where `holds` allows that.
        """
        if self._tool is None:
            return None if self._queue else self._ends
        self.forced.append(was_forced)
        if token in eos and not was_forced:
            return "eos"
        finish = self._take(self._tool.feed(token), left)
        if was_forced or self.holds:
            self.checked = len(self.forced)
        return finish

    def close(self) -> None:
        if self._tool is not None:
            self._tool.close()

    def _take(self, told: Forced | None, left: int) -> Finish | None:
        if told is not None:
            self._queue.extend(told.tokens)
            self._ends = "step" if told.ends_step else None
        if len(self._queue) > left:
            return "length"  # a result that does not fit is not begun
        if self._queue or (self._tool is not None and self._tool.busy):
            return None
        return self._ends
