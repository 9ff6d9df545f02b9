"""What a token adds to a text: put together, always what the tokenizer decodes; and ids that say a text exactly."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tool_tokenizers import TOKENIZERS, byte_level, metaspace, word_level
from treepref.tools.text import TokenText

TEXTS = {kind: TokenText(make()) for kind, make in TOKENIZERS.items()}


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["byte_level", "metaspace"]), st.text(max_size=40))
def test_the_pieces_of_any_text_are_its_bytes(kind: str, text: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    ids = tokenizer(f"1{text}", add_special_tokens=False, split_special_tokens=True)["input_ids"]
    pieces = [TEXTS[kind].added(id) for id in ids]
    assert None not in pieces
    assert b"".join(pieces).decode().removeprefix(" ") == f"1{text}"


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(TOKENIZERS)), st.lists(st.integers(0, 200), min_size=1, max_size=12))
def test_the_pieces_of_any_ids_are_what_they_decode_to(kind: str, ids: list[int]) -> None:
    tokenizer, text = TOKENIZERS[kind](), TEXTS[kind]
    start = tokenizer("1", add_special_tokens=False)["input_ids"]
    ids = [*start, *(id for id in ids if text.added(id) is not None)]
    added = b"".join(text.added(id) or b"" for id in ids)
    assert added.decode(errors="replace").removeprefix(" ") == tokenizer.decode(ids).removeprefix(" ") or not _whole(
        added
    )


def _whole(text: bytes) -> bool:
    """False where bytes form no characters: decoders show such bytes each in their own way."""
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def test_special_tokens_and_unknown_ids_have_no_text() -> None:
    for kind, text in TEXTS.items():
        for id in TOKENIZERS[kind]().all_special_ids:
            assert text.added(id) is None
        assert text.added(len(TOKENIZERS[kind]()) + 1000) is None


@pytest.mark.parametrize("kind", ["byte_level", "metaspace"])
def test_text_that_goes_on_is_said_exactly(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    for before, text in [("<<48/2=", "24>>"), ("```", "\n```output\n-3.5 é\n```\n"), ("x", " y"), ("=", "-0.20>>")]:
        ids = TEXTS[kind].encode_after(before, text)
        assert ids is not None
        start = tokenizer(before, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode([*start, *ids]) == before + text


def test_the_space_that_sentencepiece_puts_in_front_is_not_forced() -> None:
    ids = TEXTS["metaspace"].encode_after("=", "24>>")
    assert metaspace().convert_ids_to_tokens(list(ids)) == ["24", ">>"]


def test_the_name_of_a_special_token_is_spelled_out() -> None:
    ids = TEXTS["byte_level"].encode_after("\n", "a <eos> b\n")
    assert ids is not None and byte_level().eos_token_id not in ids
    assert byte_level().decode(list(ids)) == "a <eos> b\n"


def test_what_the_vocabulary_lacks_is_not_said() -> None:
    assert TEXTS["word_level"].encode_after("=", "24 apples>>") is None
    assert word_level().decode(list(TEXTS["word_level"].encode_after("=", "-5>>"))) == "-5>>"
