"""The bytes that a token adds to a text, and tokens for a text that goes on: for tools that watch a sample.

For any tokenizer of transformers: byte-level BPE, sentencepiece (also with byte fallback), word level. The cost of a
token does not grow with the text before it. Knows tokenizers; knows no tool and no model.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator

from transformers import PreTrainedTokenizerBase

from treepref.errors import ModelError
from treepref.models.text import encode_solution

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""What decoders put for bytes that are not (yet) a character."""
_BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")
_LETTER_OF_BYTE = {
    **{b: chr(b) for b in (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))},
    **{b: chr(256 + n) for n, b in enumerate((*range(0x21), *range(0x7F, 0xA1), 0xAD))},
}
"""Byte-level BPE spells each byte as one letter: printable Latin-1 as itself, the rest from U+0100 on in order."""
_BYTE_OF_LETTER = {letter: byte for byte, letter in _LETTER_OF_BYTE.items()}


class TokenText:
    """What each token of a tokenizer adds to the decoded text, looked up once and kept (at most one entry a token)."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.special.update(tokenizer.all_special_ids)
        self._listed = set(tokenizer.added_tokens_decoder)
        """Ids that are spelled as they are, also in a byte-level vocabulary."""
        self._byte_level = _is_byte_level(tokenizer)
        self._anchor, self._anchor_text = self._find_anchor()
        self._added: dict[int, bytes | None] = {}
        self._heads: dict[tuple[str, str], tuple[int, ...]] = {}

    def added(self, token: int) -> bytes | None:
        """The bytes that the token adds behind other text. None: a special token, or an id that has no text.

        Bytes and not characters, for a character may come in several tokens.
        """
        try:
            return self._added[token]
        except KeyError:
            self._added[token] = found = None if token in self.special else self._look_up(token)
            return found

    def encode_after(self, before: str, text: str) -> tuple[int, ...] | None:
        """Ids that add exactly `text` to a text that ends in `before`, none of them special.

        Tokenised as text written there would be: behind `before`, without a leading space of the tokenizer's own.
        None where the vocabulary cannot say it.
        """
        wanted = text.encode()
        for ids in self._encodings(before, text):
            pieces = [self.added(id) for id in ids]
            if ids and None not in pieces and b"".join(p for p in pieces if p is not None) == wanted:
                return ids
        return None

    def _encodings(self, before: str, text: str) -> Iterator[tuple[int, ...]]:
        """Candidates, the likeliest and cheapest first. The plain way may read special tokens out of the text."""
        for encode in (self._encode_plainly, self._encode):
            with contextlib.suppress(ModelError):  # a special token that cannot be spelled out
                # Where `before` keeps its own ids in front of the text, the rest is what belongs behind it.
                head, whole = self._head(encode, before), encode(before + text)
                if whole[: len(head)] == head:
                    yield whole[len(head) :]
                yield encode(text)

    def _head(self, encode: Callable[[str], tuple[int, ...]], before: str) -> tuple[int, ...]:
        """The ids of `before`, of which a tool has one or two."""
        key = encode.__name__, before
        if key not in self._heads:
            self._heads[key] = encode(before)
        return self._heads[key]

    def _encode_plainly(self, text: str) -> tuple[int, ...]:
        """Ten times as fast as `_encode`, which a result forced while rows are waiting should be."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        return () if backend is None else tuple(backend.encode(text, add_special_tokens=False).ids)

    def _encode(self, text: str) -> tuple[int, ...]:
        return encode_solution(self.tokenizer, text, eos_id=0)[:-1]

    def _look_up(self, token: int) -> bytes | None:
        spelled = self.tokenizer.convert_ids_to_tokens(token)
        if not isinstance(spelled, str):
            return None
        if self._byte_level and token not in self._listed:
            letters = [_BYTE_OF_LETTER.get(letter) for letter in spelled]
            return None if None in letters else bytes(b for b in letters if b is not None)
        text = self._decode([self._anchor, token])
        added = text[len(self._anchor_text) :] if text.startswith(self._anchor_text) else None
        if (added is None or _REPLACEMENT in added or not added) and (byte := _BYTE_TOKEN.fullmatch(spelled)):
            return bytes([int(byte[1], 16)])
        return None if added is None else added.encode()

    def _find_anchor(self) -> tuple[int, str]:
        """An ordinary token, and its text, to decode others behind: a text's first token may lose its space."""
        for text in ("1", "a", "the", "="):
            ids = [id for id in self._encode(text) if id not in self.special]
            if ids and _REPLACEMENT not in self._decode(ids[-1:]):
                return ids[-1], self._decode(ids[-1:])
        raise ModelError("the tokenizer knows none of the texts '1', 'a', 'the', '=': no tool can read its tokens")

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _is_byte_level(tokenizer: PreTrainedTokenizerBase) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.decoder is None:
        return False
    decoder = json.loads(backend.decoder.__getstate__())  # the tokenizer's own to_str() spells out its vocabulary
    return any(part["type"] == "ByteLevel" for part in decoder.get("decoders", [decoder]))
