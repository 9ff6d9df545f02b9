"""A chat template in use: messages as token ids, the token that ends a turn, whether a prompt opens the thinking.

Special tokens come from the template, never from a message. Knows tokenizers; knows no model, no task and no step.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from itertools import pairwise
from typing import Any

from transformers import PreTrainedTokenizerBase

from treepref.errors import ModelError
from treepref.models.text import encode_plain, encode_text, special_strings

Example = tuple[str, str]
"""The prompt of a problem, and its solution."""
OPENS_THINKING = "<think>"
_DATE = re.compile(r"strftime_now\(\s*(?P<quote>['\"])(?P<form>[^'\"]*)(?P=quote)\s*\)")
"""Where a template asks for today's date; `form` as in strftime."""
_MARK = "\ue000"
"""Stands for a message where the template's own text around it is looked for."""


@dataclass(frozen=True, slots=True)
class PromptForm:
    """How a question's prompt becomes what the model is given."""

    chat: bool = False
    """In the tokenizer's chat template; else as text."""
    system: str | None = None
    """The system message of a chat."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What the template is given besides messages, such as `enable_thinking`."""
    today: date | None = None
    """The date that templates write which ask for today's; None: the machine's."""


PLAIN = PromptForm()


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, text: str, chat: bool | PromptForm, examples: Sequence[Example] = ()
) -> tuple[int, ...]:
    """The ids that generation starts from.

    Without `chat`: the text behind the BOS that the tokenizer puts in front, if it puts one; `examples` come before,
    each with an empty line behind it. With `chat` (True, or a form): the text as the user's message in the chat
    template, which writes its own BOS, up to where the assistant's turn begins; `examples` are turns before it.
    Raises ModelError: `chat` without a chat template, or with one that fails or loses a message.
    """
    form = chat if isinstance(chat, PromptForm) else PromptForm(chat=chat)
    if not form.chat:
        return encode_text(tokenizer, "".join(f"{prompt}{solution}\n\n" for prompt, solution in examples) + text)
    return _encode_messages(tokenizer, _messages(form, text, examples), form)


def end_of_turn(tokenizer: PreTrainedTokenizerBase, form: PromptForm) -> int | None:
    """The token that the template writes behind the assistant's message; None where it writes none, or is no chat."""
    if not form.chat or not tokenizer.chat_template:
        return None
    messages = [("user", "a"), ("assistant", _MARK)]
    try:
        rendered = _apply(tokenizer, _as_text(messages), form, opens_turn=False)
    except Exception:  # a template that takes no answer
        return None
    behind = rendered.rpartition(_MARK)[2].lstrip()
    tokens = {token.content: id for id, token in tokenizer.added_tokens_decoder.items()}
    found = max((text for text in tokens if text and behind.startswith(text)), key=len, default=None)
    return None if found is None else tokens[found]


def opens_thinking(tokenizer: PreTrainedTokenizerBase, form: PromptForm, prompt: str | None = None) -> bool:
    """Whether the model begins inside a `<think>` block, as its prompt has opened one. `prompt`: of a plain text."""
    if form.chat:
        prompt = _render(tokenizer, _messages(form, "a", ()), form)
    return (prompt or "").rstrip().endswith(OPENS_THINKING)


def _messages(form: PromptForm, text: str, examples: Sequence[Example]) -> list[tuple[str, str]]:
    """(role, text) of each."""
    system = [] if form.system is None else [("system", form.system)]
    shown = [turn for prompt, solution in examples for turn in (("user", prompt), ("assistant", solution))]
    return [*system, *shown, ("user", text)]


def _encode_messages(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[tuple[str, str]], form: PromptForm
) -> tuple[int, ...]:
    """Render the template as text, then tokenise it once.

    Special-token strings in messages are rendered with a private-use character in the place of each. The rendered text
    is cut at the template's own special tokens, and a stretch between two of them that holds such a character goes
    through `encode_plain` with the strings put back.
    """
    if not tokenizer.chat_template:
        raise ModelError(
            "task.chat is true, but the tokenizer has no chat template: use an instruct model, or chat: false"
        )
    specials = special_strings(tokenizer)
    special = re.compile("|".join(map(re.escape, specials)))
    said = "".join(text for _, text in messages)
    hostile = sorted(set(special.findall(said))) if specials else []
    marks = dict(zip(_unused_characters(said, len(hostile)), hostile, strict=True))
    for mark, string in marks.items():
        messages = [(role, text.replace(string, mark)) for role, text in messages]
    rendered = _render(tokenizer, messages, form)
    if not marks:
        return tuple(tokenizer(rendered, add_special_tokens=False)["input_ids"])
    ids: list[int] = []
    for piece in _cut(rendered, special, "".join(marks)):
        if any(mark in piece for mark in marks):
            ids += encode_plain(tokenizer, "".join(marks.get(character, character) for character in piece))
        else:
            ids += tokenizer(piece, add_special_tokens=False, split_special_tokens=False)["input_ids"]
    return tuple(ids)


def _render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[tuple[str, str]], form: PromptForm) -> str:
    """The messages in the chat template. Raises ModelError where the template cannot take them, or loses one."""
    lost = ""
    for content in (_as_text, _as_parts):  # some templates know only messages in parts, and show others as nothing
        try:
            rendered = _apply(tokenizer, content(messages), form, opens_turn=True)
        except Exception as error:  # a template is a program: it fails in every way there is
            if lost:
                break
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ModelError(
                f"the tokenizer's chat template cannot write {_named(messages)} ({said}): mend chat_template in its "
                "tokenizer_config.json or chat_template.jinja, or set task.chat: false"
            ) from error
        missing = [role for role, text in messages if _shown(role, text) not in rendered]
        if not missing:
            return rendered
        lost = lost or missing[0]
    raise ModelError(
        f"the tokenizer's chat template leaves out the {lost}'s message: mend chat_template in its "
        "tokenizer_config.json or chat_template.jinja, or set task.chat: false"
    )


def _named(messages: Sequence[tuple[str, str]]) -> str:
    roles = list(dict.fromkeys(role for role, _ in messages))
    return "a user's message" if roles == ["user"] else f"messages of {', '.join(roles)}"


def _shown(role: str, text: str) -> str:
    """What must stand in a rendered chat: templates trim messages, and drop the thinking of earlier turns."""
    return (text.rpartition("</think>")[2] if role == "assistant" else text).strip()


def _as_text(messages: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    return [{"role": role, "content": text} for role, text in messages]


def _as_parts(messages: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    return [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in messages]


def _apply(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], form: PromptForm, *, opens_turn: bool
) -> str:
    today, template = form.today or date.today(), tokenizer.get_chat_template()
    # Else a prompt would be another one tomorrow. The library hands templates no function of ours.
    template = _DATE.sub(lambda asked: json.dumps(today.strftime(asked["form"])), template)
    return str(
        tokenizer.apply_chat_template(
            messages, chat_template=template, add_generation_prompt=opens_turn, tokenize=False, **form.options
        )
    )


def _unused_characters(text: str, count: int) -> list[str]:
    """`count` private-use characters that the text does not hold."""
    free = (chr(code) for code in range(0xE000, 0xF900) if chr(code) not in text)
    return [next(free) for _ in range(count)]


def _cut(rendered: str, special: re.Pattern[str], marks: str) -> list[str]:
    """`rendered` in three kinds of pieces: up to a special token, a stretch with marks, from a special token on."""
    edges = [0, *(edge for match in special.finditer(rendered) for edge in match.span()), len(rendered)]
    pieces: list[str] = []
    open_piece = ""
    for a, b in pairwise(edges):
        piece = rendered[a:b]
        if any(mark in piece for mark in marks):
            pieces += [open_piece, piece]
            open_piece = ""
        else:
            open_piece += piece
    return [piece for piece in [*pieces, open_piece] if piece]
