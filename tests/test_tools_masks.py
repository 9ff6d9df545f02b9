"""Which tokens of a written solution a tool would have forced, with tools that say plainly what they force."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from treepref.tools.base import Forced
from treepref.tools.masks import forced_mask

CALL, LATE = 9, 8
RESULT = (5, 6)


class Echo:
    """After CALL it forces RESULT at once, after LATE when asked a second time; it must be fed what it forces."""

    def __init__(self) -> None:
        self.closed = 0

    def begin(self, written: Sequence[int]) -> EchoState:
        return EchoState(self)

    def close(self) -> None:
        pass


class EchoState:
    open = False

    def __init__(self, tool: Echo) -> None:
        self.tool, self.owed, self.asked, self.busy = tool, (), 0, False

    def feed(self, token: int) -> Forced | None:
        if self.owed:
            assert token == self.owed[0], "the tool was not fed what it forced"
            self.owed = self.owed[1:]
            return None
        self.busy = token == LATE
        return self._force() if token == CALL else None

    def result(self) -> Forced | None:
        self.asked += 1
        if self.asked == 1:
            return None
        self.busy = False
        return self._force()

    def _force(self) -> Forced:
        self.owed = RESULT
        return Forced(RESULT)

    def close(self) -> None:
        self.tool.closed += 1


def test_a_result_that_stands_in_the_text_is_masked_and_the_call_is_not() -> None:
    assert forced_mask(Echo(), (1, CALL, 5, 6, 2)) == (False, False, True, True, False)
    assert forced_mask(Echo(), (CALL, 5, 6, CALL, 5, 6)) == (False, True, True) * 2


def test_another_result_than_the_tools_is_the_authors_own() -> None:
    assert forced_mask(Echo(), (CALL, 5, 7, 2)) is None
    assert forced_mask(Echo(), (CALL, 5)) is None, "the text ends inside the result"
    assert forced_mask(Echo(), (CALL, 5, 7, CALL, 5, 6)) == (False,) * 4 + (True,) * 2, "the next call counts again"
    assert forced_mask(Echo(), (CALL, CALL, 5, 6)) == (False, False, True, True)


def test_without_a_call_there_is_no_mask() -> None:
    assert forced_mask(Echo(), (1, 2, 5, 6)) is None
    assert forced_mask(Echo(), ()) is None


def test_a_slow_result_is_waited_for() -> None:
    tool = Echo()
    assert forced_mask(tool, (LATE, 5, 6, 1)) == (False, True, True, False)
    assert tool.closed == 1


@given(st.lists(st.sampled_from([1, 5, 6, CALL, LATE]), max_size=12).map(tuple))
def test_masked_tokens_are_whole_results_right_behind_their_calls(tokens: tuple[int, ...]) -> None:
    mask = forced_mask(Echo(), tokens)
    expected = [False] * len(tokens)
    for i in range(len(tokens) - 2):
        if tokens[i] in (CALL, LATE) and tokens[i + 1 : i + 3] == RESULT:
            expected[i + 1 : i + 3] = [True, True]
    assert mask == (tuple(expected) if any(expected) else None)
