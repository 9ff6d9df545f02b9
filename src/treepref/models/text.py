"""Text to token ids and back. Special tokens come from us, never from a problem's text.

Knows tokenizers; knows no model, no task, no step and no chat template (`chat.py`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Any

from transformers import PreTrainedTokenizerBase

from treepref.errors import ModelError
from treepref.types import Choice


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    """The ids of a text that generation starts from.

    Behind the BOS that the tokenizer puts in front, if it puts one (never an EOS behind it).
    """
    return (*_opening(tokenizer), *encode_plain(tokenizer, text))


def own_eos_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The tokenizer's EOS; None where it has none."""
    found: Any = tokenizer.eos_token_id
    return found


def encode_solution(tokenizer: PreTrainedTokenizerBase, text: str, eos_id: int | None = None) -> tuple[int, ...]:
    """The whole text tokenised once, without special tokens, and EOS behind it (`eos_id`, or the tokenizer's)."""
    eos = own_eos_id(tokenizer) if eos_id is None else eos_id
    if eos is None:
        raise ModelError("the tokenizer has no EOS token: set eos_token in its tokenizer_config.json")
    return (*encode_plain(tokenizer, text), eos)


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
    return Choice(tuple(encode_plain(tokenizer, text)), variants, tuple(encode_plain(tokenizer, after_eos)))


def _variants(tokenizer: PreTrainedTokenizerBase, letters: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """For each letter the ids of the tokens that show nothing else."""
    special = set(tokenizer.all_special_ids)
    ids = sorted(set(tokenizer.get_vocab().values()) - special)
    texts = tokenizer.batch_decode([[i] for i in ids], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    shown = [text.strip().strip("()[]").strip() for text in texts]
    return tuple(tuple(i for i, text in zip(ids, shown, strict=True) if text == letter) for letter in letters)


def finished_text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], stops: Sequence[str] = ()) -> str:
    """The text of a finished solution: up to the text of `stops` that ended it, or without its last token, an EOS.

    (Whichever of the model's EOS tokens that is.)
    """
    if stops:
        whole = decode(tokenizer, ids, (-1,))  # no token is dropped
        if places := [place for text in stops if (place := whole.find(text)) >= 0]:
            return whole[: min(places)]
    return decode(tokenizer, ids, ids[-1:])


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


def encode_plain(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a text in which `<eos>` is five characters.

    `split_special_tokens` keeps the tokenizer from cutting special tokens out of the text. Its model may still know
    such a string as an ordinary piece (Unigram vocabularies do): then the string is cut behind its first character.
    """
    ids = _encode_pieces(tokenizer, [text])
    if _has_special(tokenizer, ids):
        pattern = "|".join(re.escape(s[0]) + f"(?={re.escape(s[1:])})" for s in special_strings(tokenizer) if s[1:])
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


def special_strings(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Every string that the tokenizer would read as a special token, the longest first."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return sorted(added | set(tokenizer.all_special_tokens), key=len, reverse=True)
