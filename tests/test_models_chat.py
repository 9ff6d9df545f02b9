"""Chat templates as models have them: what they are given, what must come out, what ends a turn."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import pytest
from tokenizers import AddedToken

from small_runs import copy_model, run_command, treepref_command
from test_models_text import byte_level
from treepref.errors import ModelError, RecipeError
from treepref.loops.session import Session
from treepref.models.chat import PromptForm, encode_prompt, end_of_turn, opens_thinking
from treepref.models.text import finished_text
from treepref.recipes.reading import load_recipe
from treepref.runs.store import Store

TURNS = (
    "<s>{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
PARTS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}{% if c['type'] == 'text' %}"
    "{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DATE = "Today is {{ strftime_now('%d %B %Y') }}.\n{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
THINK = (
    "{% for m in messages %}{{ m['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% else %}<think>\n{% endif %}"
    "{% endif %}"
)
CHAT = PromptForm(chat=True)


def tokenizer_with(template: str):
    tokenizer = byte_level.__wrapped__()
    tokenizer.chat_template = template
    return tokenizer


def shown(template: str, text: str = "Tom has 12", form: PromptForm = CHAT, examples=()) -> str:
    tokenizer = tokenizer_with(template)
    return tokenizer.decode(encode_prompt(tokenizer, text, form, examples))


def test_a_template_that_wants_parts_keeps_the_question() -> None:
    assert shown(PARTS) == "<|im_start|>user\nTom has 12<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("lost", ["{{ messages[0]['role'] }}", "{% for m in messages %}x{% endfor %}"])
def test_a_template_that_loses_the_question_is_refused(lost: str) -> None:
    with pytest.raises(ModelError, match="leaves out the user's message"):
        shown(lost)


def test_system_and_examples_are_turns_before_the_question() -> None:
    form = PromptForm(chat=True, system="Be brief.")
    assert shown(TURNS, form=form, examples=[("1 + 1", "2")]) == (
        "<s><start_of_turn>system\nBe brief.<end_of_turn>\n<start_of_turn>user\n1 + 1<end_of_turn>\n"
        "<start_of_turn>model\n2<end_of_turn>\n<start_of_turn>user\nTom has 12<end_of_turn>\n<start_of_turn>model\n"
    )
    without = "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}"
    with pytest.raises(ModelError, match="leaves out the system's message"):
        shown(without, form=form)
    assert shown("", form=PromptForm(), examples=[("Q: 1 + 1\nA: ", "2")]) == "<s>Q: 1 + 1\nA: 2\n\nTom has 12"


def test_the_date_of_the_run_is_kept() -> None:
    form = PromptForm(chat=True, today=date(2026, 11, 27))
    assert "Today is 27 November 2026." in shown(DATE, form=form)
    assert date.today().strftime("%d %B %Y") in shown(DATE)


def test_options_reach_the_template_and_thinking_that_a_prompt_opens_is_known() -> None:
    off = PromptForm(chat=True, options={"enable_thinking": False})
    tokenizer = tokenizer_with(THINK)
    assert shown(THINK).endswith("<think>\n") and opens_thinking(tokenizer, CHAT)
    assert shown(THINK, form=off).endswith("</think>\n\n") and not opens_thinking(tokenizer, off)
    assert opens_thinking(tokenizer, PromptForm(), "Q: {question}\n<think>\n")
    assert not opens_thinking(tokenizer, PromptForm())


def test_what_ends_a_turn_is_the_templates() -> None:
    tokenizer = tokenizer_with(TURNS)
    tokenizer.add_tokens([AddedToken("<end_of_turn>", special=False)])  # some models have it so
    end = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    assert end_of_turn(tokenizer, CHAT) == end != tokenizer.eos_token_id
    assert end_of_turn(tokenizer, PromptForm()) is None
    assert end_of_turn(byte_level(), CHAT) == byte_level().eos_token_id
    assert end_of_turn(tokenizer_with("{{ messages[0]['content'] }}"), CHAT) is None


def test_a_finished_text_ends_before_what_ended_it() -> None:
    tokenizer = byte_level()
    ids = tokenizer("The answer is 9.\n\nQuestion:", add_special_tokens=False)["input_ids"]
    assert finished_text(tokenizer, ids, ["\nQuestion:"]) == "The answer is 9.\n"
    assert finished_text(tokenizer, [*ids, tokenizer.eos_token_id], ["\nProblem:"]) == "The answer is 9.\n\nQuestion:"


# ---- in a run


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a model whose template ends turns in another token than the tokenizer's EOS, and opens thinking."""
    copy_model(tmp_path / "model")
    template = (
        "{% for m in messages %}{{ m['content'] }}\n{% if m['role'] == 'assistant' %}<pad>\n{% endif %}{% endfor %}"
    )
    (tmp_path / "model" / "chat_template.jinja").write_text(template)
    return tmp_path


def test_a_run_trains_and_stops_at_the_end_of_a_turn(place: Path) -> None:
    assert (
        run_command(
            "svpo", "rounds=0", "task.splits.labelled=8", "warmup.epochs=1", "task.chat=true", cwd=place
        ).returncode
        == 0
    )
    with Session(place / "run") as session:
        policy = session.serving.policy("round-0")
        pad = session.text.tokenizer.convert_tokens_to_ids("<pad>")
        assert policy.eos_id == pad and pad in policy.eos_ids and session.text.tokenizer.eos_token_id in policy.eos_ids


def test_prompts_are_tried_before_anything_is_spent(place: Path) -> None:
    (place / "model" / "chat_template.jinja").write_text("{{ raise_exception('one message only') }}")
    done = run_command("svpo", "task.chat=true", cwd=place)
    assert done.returncode == 2 and "one message only" in done.stderr
    with Store(place / "run", read_only=True) as store:
        assert store.costs() == {} and not any(stage.done for stage in store.stages())


def test_examples_come_from_the_labelled_split_and_never_are_the_question_itself(place: Path) -> None:
    loaded = load_recipe(
        "quickstart",
        [
            "task.examples=2",
            "task.splits.labelled=5",
            "task.splits.train=3",
            "task.splits.eval=3",
            "pairs.min_problems=1",
        ],
    )
    with Session(place / "run", loaded) as session:
        first, second, third = list(session.problems("labelled"))[:3]

        def text(problem) -> str:
            return session.text.tokenizer.decode(session.text.encode(problem.question))

        for problem in session.problems("train"):
            for example in (first, second):
                assert session.task.prompt(example.question) in text(problem)
        prompts = [session.task.prompt(p.question) for p in (first, second, third)]
        assert prompts[1] in text(first) and prompts[2] in text(first) and text(first).count(prompts[0]) == 1
    with pytest.raises(RecipeError, match=r"task\.splits\.labelled must be larger"):
        load_recipe("quickstart", ["task.examples=2"])


def test_examples_from_a_file_are_kept_with_the_run_and_are_no_problems(place: Path) -> None:
    rows = [{"question": f"{a} + 1 = ?", "label": str(a + 1)} for a in range(40)]
    (place / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    solved = {"question": "9 + 9 = ?", "answer": "18", "rationale": "9 + 9 = 18"}
    shown_rows = [{"question": rows[0]["question"], "answer": "1"}, solved]
    (place / "shown.jsonl").write_text("".join(json.dumps(r) + "\n" for r in shown_rows))
    size = [
        "task.splits.train=10",
        "task.splits.eval=5",
        "task.splits.labelled=0",
        "task.slips=0",
        "task.granularity=[1]",
    ]
    kind = ["task.kind=jsonl", f"task.path={place / 'rows.jsonl'}", "task.params={}", "task.prompt=null"]
    kind += ["task.columns={answer: label}"]  # of the rows, not of the examples
    more = ["task.examples=2", f"task.examples_path={place / 'shown.jsonl'}", "pairs.min_problems=1"]
    with Session(place / "run", load_recipe("quickstart", [*size, *kind, *more])) as session:
        assert [p.text for p in session.problems("examples")] == ["0 + 1 = ?", "9 + 9 = ?"]
        assert "0 + 1 = ?" not in {p.text for split in ("train", "eval") for p in session.problems(split)}
    (place / "shown.jsonl").unlink()
    with Session(place / "run") as session:
        (problem,) = list(session.problems("train"))[:1]
        text = session.text.tokenizer.decode(session.text.encode(problem.question))
        assert "0 + 1 = ?" in text and "9 + 9 = 18" in text
    done = treepref_command(
        "run", "quickstart", *size, *kind, "task.examples=3", *more[1:], "--out", "other", cwd=place
    )
    assert done.returncode == 2 and "shown.jsonl" in done.stderr
