"""Python steps for real: a small model that learned to write a program, the engine, and the sandbox that runs it."""

from __future__ import annotations

import pytest
import torch

from tool_tokenizers import byte_level
from treepref.engines.base import Engine, generate
from treepref.engines.torch_engine import TorchEngine
from treepref.engines.with_tools import WithTools
from treepref.models.policy import Policy
from treepref.models.tiny import build_tiny_model
from treepref.tools.python import PythonTool
from treepref.tools.sandbox import Sandbox
from treepref.types import Request

pytest.importorskip("pydantic_monty")

FIRST = "```python\nx = 6\nprint(x * 7)\n```"
SEEN = "\n```output\n42\n```\n"
SECOND = "```python\nprint(x + 1)\n```"
PROMPT = "Q:\n"


@pytest.fixture(scope="module")
def writer() -> Policy:
    """Memorised: after the prompt the first program, after its output the second one."""
    tokenizer = byte_level()
    parts = [tokenizer.encode(text, add_special_tokens=False) for text in (PROMPT, FIRST, SEEN, SECOND)]
    ids = torch.tensor([[token for part in parts for token in part]])
    model = build_tiny_model(len(tokenizer), hidden=64, layers=2, heads=4, intermediate=128, context=256, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1, "it did not learn its text"
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    return Policy(model.eval(), tokenizer, None)


@pytest.mark.parametrize("watched", [True, False], ids=["in the loop", "before the engine"])
def test_a_block_is_one_step_that_ends_in_its_output_and_variables_carry_over(writer: Policy, watched: bool) -> None:
    tokenizer = writer.tokenizer
    patient = {"python": PythonTool(tokenizer, Sandbox(seconds=600.0))}  # a limit that no machine reaches
    engine: Engine = TorchEngine(writer, max_rows=4, tools=patient if watched else None)
    engine = engine if watched else WithTools(engine, patient)
    prompt = tuple(tokenizer.encode(PROMPT, add_special_tokens=False))

    def step(prefix: tuple[int, ...], tool: str | None = "python"):
        request = Request("r", prefix, 2, (0, 1), 120, 0.0, delimiter="\n", tool=tool, prompt_tokens=len(prompt))
        (result,) = generate(engine, [request])
        assert result.error is None
        assert result.completions[0].tokens == result.completions[1].tokens
        return result.completions[0]

    first = step(prompt)
    assert tokenizer.decode(first.tokens) == FIRST + SEEN
    assert first.finish == "step" and first.forced is not None
    assert tokenizer.decode([t for t, forced in zip(first.tokens, first.forced, strict=True) if forced]) == SEEN
    second = step(prompt + first.tokens)
    assert tokenizer.decode(second.tokens) == SECOND + "\n```output\n7\n```\n"
    without = step(prompt, tool=None)
    assert tokenizer.decode(without.tokens).startswith(f"{FIRST}\n") and without.forced is None
    engine.close()
