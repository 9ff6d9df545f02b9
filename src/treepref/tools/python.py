"""Python steps: where a fenced block of code closes, it runs in a sandbox and its output is forced (```output …```).

Blocks that the same solution wrote before run again first, so variables carry over along a path and along no other.
Knows fences and tokens' bytes; knows no engine, no model and no interpreter.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from treepref.tools.base import Forced
from treepref.tools.sandbox import Run, Sandbox
from treepref.tools.text import TokenText

LANGUAGES = (b"python", b"py", b"python3")
"""What stands behind the opening fence of a block that runs."""
MAX_CODE_BYTES = 20_000
"""A longer block does not run."""
MAX_OUTPUT_CHARS = 500
MAX_OUTPUT_TOKENS = 256
"""Of everything that is forced, fences included."""
_FENCE = b"```"
_FENCES = re.compile(r"`[^\x00-\x7f]*`[^\x00-\x7f]*`")
_BACKTICKS = {0x1FEF: "'", 0xFF40: "'"}
"""Characters that are a backtick in one of Unicode's normal forms."""
_FENCE_LINE_BYTES = 32
"""A longer line is no fence: nothing else of a line outside a block is kept."""


class PythonTool:
    """See `tools.base.Tool`. Raises RecipeError where pydantic-monty is not installed."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, sandbox: Sandbox | None = None) -> None:
        self._sandbox = sandbox or Sandbox()
        self.text = TokenText(tokenizer)

    def begin(self, written: Sequence[int]) -> PythonState:
        return PythonState(self, written)

    def run(self, blocks: Sequence[str]) -> Run:
        """Start a program of one or more blocks; does not wait."""
        return self._sandbox.submit(blocks)

    def force(self, observation: str, fresh_line: bool) -> Forced | None:
        """The observation between fences, cut to the limits. None where the tokenizer cannot say it."""
        before, opening = ("\n", "```output\n") if fresh_line else ("```", "\n```output\n")
        shown = tidy(observation)
        while True:
            tokens = self.text.encode_after(before, f"{opening}{shown}\n```\n")
            if tokens is None and not shown.isascii():
                shown = shown.encode("ascii", "replace").decode()
            elif tokens is not None and len(tokens) > MAX_OUTPUT_TOKENS and len(shown) > 3:
                shown = f"{shown[: len(shown) // 2].rstrip()}..."
            else:
                return Forced(tokens, ends_step=True) if tokens else None

    def close(self) -> None:
        self._sandbox.close()


class PythonState:
    """One sample: the line that is being written, and the block that it belongs to."""

    __slots__ = (
        "_blocks",
        "_code",
        "_fresh_line",
        "_line",
        "_other",
        "_own",
        "_run",
        "_too_long",
        "_tool",
        "busy",
        "open",
    )

    def __init__(self, tool: PythonTool, written: Sequence[int]) -> None:
        self.open = False
        self.busy = False
        self._tool = tool
        self._line = bytearray()
        self._code: bytearray | None = None
        """The open block's lines; None outside a block that runs."""
        self._too_long = False
        self._other = False
        """Inside a fence that does not run, such as an output."""
        self._blocks: list[str] = []
        self._own = 0
        """Forced tokens that are still to be fed."""
        self._run: Run | None = None
        self._fresh_line = False
        for token in written:
            self._read(token)

    @property
    def stops(self) -> tuple[str, ...]:
        return ("`", "\n") if b"`" in self._line else ("`",)  # a line that may be a fence is one when it ends

    def feed(self, token: int) -> Forced | None:
        """Never forces at once: a block that closes makes the state busy."""
        if self._own:
            self._own -= 1
            self.open = self._own > 0
            return None
        if self._read(token):
            # The step must not end before the output: `open` stays True until its last token.
            self.open = self.busy = True
            self._fresh_line = not self._line
            self._line.clear()
            self._run = self._tool.run(self._blocks)
        return None

    def result(self) -> Forced | None:
        """The output, once the block has run. Raises TreeprefError where the sandbox could not be started."""
        if self._run is None or not self._run.done.is_set():
            return None
        run, self._run, self.busy = self._run, None, False
        if run.failure is not None:
            raise run.failure
        forced = self._tool.force(run.observation, self._fresh_line)
        self._own = len(forced.tokens) if forced else 0
        self.open = self._own > 0
        return forced

    def close(self) -> None:
        if self._run is not None:
            self._run.cancelled = True

    def _read(self, token: int) -> bool:
        """Take a token's text; True if a block that runs closes with it."""
        added = self._tool.text.added(token)
        if added is None:  # a special token: nothing goes on across it
            self._line.clear()
            self._code, self._other, self.open = None, False, False
            return False
        *whole_lines, rest = added.split(b"\n")
        closed = False
        for end in whole_lines:
            self._append(end)
            closed |= self._end_line()
        self._append(rest)
        # Without waiting for the line's end: what comes next is the output. Not if this line goes on in this token.
        if self._code is not None and len(self._line) <= _FENCE_LINE_BYTES and self._line.strip() == _FENCE:
            closed |= self._end_line(keep=True)
        return closed

    def _append(self, part: bytes) -> None:
        room = (MAX_CODE_BYTES if self._code is not None else _FENCE_LINE_BYTES) + 1 - len(self._line)
        self._line += part[: max(0, room)]

    def _end_line(self, keep: bool = False) -> bool:
        """The line is complete; True if it closes a block that runs. `keep`: its newline is still to come."""
        line = self._line.strip()
        closed = False
        if self._code is not None:
            if line == _FENCE:
                closed = True
                code = "raise ValueError('the block is too long')" if self._too_long else _decode(self._code)
                self._blocks.append(code)
                self._code, self.open = None, False
            elif len(self._code) + len(self._line) > MAX_CODE_BYTES:
                self._too_long = True
            else:
                self._code += self._line + b"\n"
        elif self._other:
            self._other = line != _FENCE
        elif len(self._line) <= _FENCE_LINE_BYTES and line.startswith(_FENCE):
            if line.removeprefix(_FENCE).strip().lower() in LANGUAGES:
                self._code, self._too_long, self.open = bytearray(), False, True
            else:
                self._other = True
        self._line.clear()
        if keep:
            self._line += b"."  # so that the rest of this line is no fence of its own
        return closed


def tidy(observation: str) -> str:
    """Printable text of at most MAX_OUTPUT_CHARS characters, without fences and outer blank lines.

    What can join the characters of a fence goes before fences are looked for: what is shown holds none, and nothing
    that a tokenizer turns into one, be it by Unicode's normal forms or by leaving out what it does not know.
    """
    text = observation.replace("\r\n", "\n").expandtabs(4)
    text = "".join(c for c in text.translate(_BACKTICKS) if c == "\n" or c.isprintable())
    text = re.sub(r"[^\S\n]+$", "", text, flags=re.MULTILINE).strip("\n")
    if len(text) > MAX_OUTPUT_CHARS:
        text = f"{text[: MAX_OUTPUT_CHARS - 3].rstrip()}..."
    while _FENCES.search(text):
        text = _FENCES.sub(lambda fence: fence.group().replace("`", "'"), text)
    return text or "(no output)"


def _decode(code: bytes | bytearray) -> str:
    return bytes(code).decode(errors="replace")
