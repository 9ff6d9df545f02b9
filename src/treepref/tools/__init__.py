"""Tools inside decoding: a calculator, and Python in a sandbox. What a tool is stands in base.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

from treepref.errors import RecipeError
from treepref.tools.base import Forced, Tool, ToolState

if TYPE_CHECKING:  # the sandbox's process imports this package too, and has no use for transformers
    from transformers import PreTrainedTokenizerBase

TOOLS = ("calculator", "python")
"""The names that `load_tool` knows."""

__all__ = ["TOOLS", "Forced", "Tool", "ToolState", "load_tool"]


def load_tool(name: str, tokenizer: PreTrainedTokenizerBase) -> Tool:
    """The tool of that name for that tokenizer. Its processes, if any, start at the first call that needs them.

    Raises RecipeError: an unknown name, or a package that the tool needs is not installed.
    """
    if name == "calculator":
        from treepref.tools.calculator import Calculator

        return Calculator(tokenizer)
    if name == "python":
        from treepref.tools.python import PythonTool

        return PythonTool(tokenizer)
    raise RecipeError(f"there is no tool {name!r}: task.tool is one of {', '.join(TOOLS)}, or null for none")
