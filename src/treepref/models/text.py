"""Text to token ids and back. Special tokens come from us and from the chat template, never from a problem's text.

Knows tokenizers; knows no model, no task and no step.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Any

from transformers import PreTrainedTokenizerBase

from treepref.errors import ModelError
from treepref.types import Choice


def encode_prompt(tokenizer: PreTrainedTokenizerBase, text: str, chat: bool) -> tuple[int, ...]:
    """The ids that generation starts from.

    Without `chat`: the text behind the BOS that the tokenizer puts in front, if it puts one (never an EOS behind it).
    With `chat`: the text as the user's message in the chat template, which writes its own BOS, up to where the
    assistant's turn begins. Raises ModelError: `chat` without a chat template, or with one that fails.
    """
    if chat:
        return _encode_chat(tokenizer, text)
    return (*_opening(tokenizer), *_encode_plain(tokenizer, text))


def own_eos_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The tokenizer's EOS; None where it has none."""
    found: Any = tokenizer.eos_token_id
    return found


def encode_solution(tokenizer: PreTrainedTokenizerBase, text: str, eos_id: int | None = None) -> tuple[int, ...]:
    """The whole text tokenised once, without special tokens, and EOS behind it (`eos_id`, or the tokenizer's)."""
    eos = own_eos_id(tokenizer) if eos_id is None else eos_id
    if eos is None:
        raise ModelError("the tokenizer has no EOS token: set eos_token in its tokenizer_config.json")
    return (*_encode_plain(tokenizer, text), eos)


def choice_of(tokenizer: PreTrainedTokenizerBase, text: str, letters: Sequence[str], after_eos: str = "") -> Choice:
    """A multiple-choice question: `text`, which ends right before the letter, and what tokens mean each of `letters`.

    A letter's variants are all single tokens that show it alone but for blanks and brackets: "A", " A", "(A", "A)".
    `after_eos`: text put before the question where the solution ended in EOS, such as the delimiter that it lacks.
    Raises ModelError: a letter that is no single token, two equal letters, or no text.
    """
    if not text:
        raise ModelError("the question put to the model is empty")
    if len(set(letters)) < len(letters):
        raise ModelError(f"two of the choices {', '.join(letters)} are the same")
    variants = _variants(tokenizer, letters)
    for letter, ids in zip(letters, variants, strict=True):
        if not ids:
            raise ModelError(
                f"the tokenizer has no single token for the choice {letter!r}: its probability cannot be read. Choose "
                "other letters (for self-evaluation: search.self_evaluation.right and .wrong)"
            )
    return Choice(tuple(_encode_plain(tokenizer, text)), variants, tuple(_encode_plain(tokenizer, after_eos)))


def _variants(tokenizer: PreTrainedTokenizerBase, letters: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """For each letter the ids of the tokens that show nothing else."""
    special = set(tokenizer.all_special_ids)
    ids = sorted(set(tokenizer.get_vocab().values()) - special)
    texts = tokenizer.batch_decode([[i] for i in ids], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    shown = [text.strip().strip("()[]").strip() for text in texts]
    return tuple(tuple(i for i, text in zip(ids, shown, strict=True) if text == letter) for letter in letters)


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], eos_ids: Collection[int] = ()) -> str:
    """The text of `ids`: nothing is skipped but a final EOS (one of `eos_ids`, or the tokenizer's), no space moved."""
    end = eos_ids or {own_eos_id(tokenizer)}
    kept = ids[:-1] if len(ids) and ids[-1] in end else ids
    return str(tokenizer.decode(list(kept), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _opening(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer puts before a text: what precedes the letter's own ids when special tokens are added."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a", add_special_tokens=True)["input_ids"]
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start]
    return []


def _encode_plain(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a text in which `<eos>` is five characters.

    `split_special_tokens` keeps the tokenizer from cutting special tokens out of the text. Its model may still know
    such a string as an ordinary piece (Unigram vocabularies do): then the string is cut behind its first character.
    """
    ids = _encode_pieces(tokenizer, [text])
    if _has_special(tokenizer, ids):
        pattern = "|".join(re.escape(s[0]) + f"(?={re.escape(s[1:])})" for s in _special_strings(tokenizer) if s[1:])
        cuts = [0, *(match.end() for match in re.finditer(pattern, text)), len(text)]
        ids = _encode_pieces(tokenizer, [text[a:b] for a, b in pairwise(cuts)])
    if _has_special(tokenizer, ids):
        raise ModelError(f"the tokenizer reads a special token out of the plain text {text[:80]!r}; leave it out")
    return ids


def _encode_pieces(tokenizer: PreTrainedTokenizerBase, pieces: Sequence[str]) -> list[int]:
    encoded = (tokenizer(p, add_special_tokens=False, split_special_tokens=True)["input_ids"] for p in pieces if p)
    return [id for ids in encoded for id in ids]


def _has_special(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> bool:
    """True where `ids` holds a special token; the unknown token stands for ordinary characters."""
    special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    special.update(tokenizer.all_special_ids)
    unknown: Any = tokenizer.unk_token_id
    return not (special - {unknown}).isdisjoint(ids)


def _special_strings(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Every string that the tokenizer would read as a special token, the longest first."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return sorted(added | set(tokenizer.all_special_tokens), key=len, reverse=True)


def _encode_chat(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    """Render the template as text, then tokenise it once.

    A message that holds special-token strings is rendered with a private-use character in the place of each. The
    rendered text is cut at the template's own special tokens, and the stretch between two of them that holds the
    message goes through `_encode_plain` with the strings put back.
    """
    if not tokenizer.chat_template:
        raise ModelError(
            "task.chat is true, but the tokenizer has no chat template: use an instruct model, or chat: false"
        )
    specials = _special_strings(tokenizer)
    special = re.compile("|".join(map(re.escape, specials)))
    hostile = sorted(set(special.findall(text))) if specials else []
    marks = dict(zip(_unused_characters(text, len(hostile)), hostile, strict=True))
    for mark, string in marks.items():
        text = text.replace(string, mark)
    rendered = _render(tokenizer, text)
    if not marks:
        return tuple(tokenizer(rendered, add_special_tokens=False)["input_ids"])
    ids: list[int] = []
    for piece in _cut(rendered, special, "".join(marks)):
        if any(mark in piece for mark in marks):
            ids += _encode_plain(tokenizer, "".join(marks.get(character, character) for character in piece))
        else:
            ids += tokenizer(piece, add_special_tokens=False, split_special_tokens=False)["input_ids"]
    return tuple(ids)


def _render(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """The user's message in the chat template. Raises ModelError where the template cannot take it."""
    try:
        messages = [{"role": "user", "content": text}]
        return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
    except Exception as error:  # a template is a program: it fails in every way there is
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"the tokenizer's chat template cannot write a user's message ({said}): mend chat_template in its "
            "tokenizer_config.json or chat_template.jinja, or set task.chat: false"
        ) from error


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
