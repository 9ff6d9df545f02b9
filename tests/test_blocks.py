"""Steps and lines of texts with code and environments in them."""

from __future__ import annotations

import random
import subprocess
import sys
from itertools import accumulate, pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tool_tokenizers import single_digits
from treepref.blocks import lines_and_blocks, step_end, steps_of
from treepref.config import TaskConfig
from treepref.models.steps import split_steps
from treepref.models.text import decode, encode_solution
from treepref.tasks.task import load_task
from treepref.types import Problem

CODE = "```python\ndef total(n):\n    s = 0\n\n    for i in range(n):\n        s += i\n    return s\n```"
ALIGN = "\\begin{align*}\n  x &= 1 \\\\\n\n  y &= \\begin{cases} 2 \\\\ 3 \\end{cases}\n\\end{align*}"
DRAWING = "[asy]\n  draw((0,0)--(1,1));\n\n[/asy]"


@pytest.mark.parametrize("block", [CODE, ALIGN, DRAWING, CODE.replace("`", "~"), CODE.replace("```", "````")])
def test_a_block_is_one_line_as_it_is_written(block: str) -> None:
    assert lines_and_blocks(f"  First. \n\n{block}\n\n  Last. ") == ["First.", block, "Last."]
    assert lines_and_blocks(block) == [block]


@pytest.mark.parametrize("delimiter", ["\n", "\n\n"])
@pytest.mark.parametrize("block", [CODE, ALIGN, DRAWING])
def test_no_step_ends_in_a_block(block: str, delimiter: str) -> None:
    whole = f"{block}{delimiter}"
    assert step_end(f"{whole}Next.", delimiter) == len(whole)
    assert all(step_end(whole[:cut], delimiter) is None for cut in range(len(whole)))


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("```\nnever closed\n  x", ["```", "never closed", "x"]),
        ("Use \\begin{align}.\n```\na\n  b\n```\nd", ["Use \\begin{align}.", "```\na\n  b\n```", "d"]),
        ("a ```b``` c\n  d", ["a ```b``` c", "d"]),
        ("```x = 1``` is code\nd", ["```x = 1``` is code", "d"]),
        (" Let $\\begin{pmatrix} 1 \\end{pmatrix}$. \n d", ["Let $\\begin{pmatrix} 1 \\end{pmatrix}$.", "d"]),
        (
            "So\n\\begin{align}\n1\n\\end{align} and \\begin{align}\n2\n\\end{align}.\nd",
            ["So", "\\begin{align}\n1\n\\end{align} and \\begin{align}\n2\n\\end{align}.", "d"],
        ),
        ("```\na\n```\n```output\nb\n```", ["```\na\n```", "```output\nb\n```"]),
        ("````\n```\n````\nx", ["````\n```\n````", "x"]),
    ],
)
def test_what_is_a_block(text: str, lines: list[str]) -> None:
    assert lines_and_blocks(text) == lines


def test_a_delimiter_before_a_block_ends_the_step() -> None:
    assert step_end("Compute.\n```python\n", "\n") == len("Compute.\n")
    assert steps_of(f"Compute.\n{CODE}\nSo 3", "\n") == ["Compute.\n", f"{CODE}\n", "So 3"]
    assert step_end("```", "```") == 3, "a delimiter that opens a block itself"


@given(st.text(st.sampled_from("a \n`~[]asy/\\begin{}d*")))
def test_nothing_is_lost_and_what_is_made_of_it_stays(text: str) -> None:
    lines = lines_and_blocks(text)
    assert "".join("".join(lines).split()) == "".join(text.split())
    assert lines_and_blocks("\n".join(lines)) == lines


@pytest.mark.parametrize("delimiter", ["\n", "\n\n"])
def test_the_warm_up_teaches_programs_that_run(tmp_path: Path, delimiter: str) -> None:
    """25 rationales with programs, as the warm-up writes them, to tokens and back: each is one step, and runs."""
    tokenizer, draw = single_digits(), random.Random(0)
    task = load_task(TaskConfig(kind="jsonl", path="rows.jsonl", delimiter=delimiter))
    programs, sums = [], []
    for _ in range(25):
        last, divisor = draw.randint(3, 20), draw.randint(2, 9)
        body = f"    if i % {divisor} == 0:\n\n        s += i\n    else:\n        s += 1"
        program = f"s = 0\nfor i in range({last}):\n{body}\nprint(s)\n"
        sums.append(sum(i if i % divisor == 0 else 1 for i in range(last)))
        rationale = f"Compute.\n\n```python\n{program}```\nThe answer is {sums[-1]}."
        text = task.solution_text(Problem("a", "q", str(sums[-1]), rationale), random.Random(0))
        ids = encode_solution(tokenizer, text)
        cuts = list(accumulate(split_steps(tokenizer, ids, delimiter), initial=0))
        steps = [decode(tokenizer, ids[a:b]) for a, b in pairwise(cuts)]
        assert [s.strip() for s in steps] == ["Compute.", f"```python\n{program}```", f"The answer is {sums[-1]}."]
        programs.append(steps[1].removeprefix("```python\n").rstrip().removesuffix("```"))
    done = subprocess.run([sys.executable, "-I", "-c", "".join(programs)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(s) for s in sums]
