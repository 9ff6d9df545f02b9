"""Step ends against brute force: decode every prefix and look for the delimiter."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from test_models_text import TOKENIZERS, byte_level, tiny, unigram
from treepref import blocks
from treepref.errors import ModelError
from treepref.models.steps import SampleEnd, StepEnd, split_steps, step_end
from treepref.models.text import encode_solution

DELIMITERS = ["\n", "\n\n", " ;", "é", ". ", "é\n"]


def first_end(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int], delimiter: str) -> int | None:
    for k in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:k], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if blocks.step_end(text, delimiter) is not None:
            return k
    return None


@pytest.mark.parametrize("delimiter", DELIMITERS)
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_step_ends_where_brute_force_finds_the_delimiter(kind: str, delimiter: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    ends = step_end(tokenizer, delimiter)
    near = {t for text in ("\n", "\n\n", "a ;b", "é", ". \né é\n\n;\n") for t in encode_solution(tokenizer, text)}
    near |= {i for i in range(len(tokenizer)) if ends.candidate[i]}
    token = st.sampled_from(sorted(near)) | st.integers(0, len(tokenizer) - 1)

    @given(st.lists(token, max_size=12))
    @settings(max_examples=60, deadline=None, database=None)
    def check(ids: list[int]) -> None:
        ours = next((k for k in range(1, len(ids) + 1) if ends.ends(ids[:k])), None)
        assert ours == first_end(tokenizer, ids, delimiter)

    check()


def test_a_delimiter_inside_a_token_ends_the_step_with_that_token() -> None:
    tokenizer = byte_level()
    token = next(t for t, s in ((i, tokenizer.decode([i])) for i in range(len(tokenizer))) if "\n" in s[:-1])
    assert StepEnd(tokenizer, "\n").ends([token])


def test_a_delimiter_may_begin_before_the_sample_and_a_stop_may_not() -> None:
    tokenizer = unigram()
    first, second = tokenizer.convert_tokens_to_ids(["<0xC3>", "<0xA9>"])
    ends = StepEnd(tokenizer, "é")
    assert SampleEnd(ends, [first], []).finish([second]) == "step" and SampleEnd(ends, [], []).finish([second]) is None
    assert SampleEnd(None, [first], [ends]).finish([second]) is None
    both = SampleEnd(ends, [], [ends])
    assert both.finish([first, second]) == "step", "the delimiter goes before a stop"
    assert SampleEnd(None, [], [ends]).finish([first, second]) == "stop" and both.candidate[second]


def test_a_character_that_comes_in_bytes_ends_the_step_with_its_last_byte() -> None:
    tokenizer = unigram()
    first, second = tokenizer.convert_tokens_to_ids(["<0xC3>", "<0xA9>"])
    ends = StepEnd(tokenizer, "é")
    assert not ends.ends([first]) and ends.ends([first, second]) and not ends.ends([second])


def test_few_tokens_need_decoding_and_ids_beyond_the_vocabulary_end_nothing() -> None:
    ends = StepEnd(byte_level(), "\n")
    assert ends.candidate.dtype == bool and len(ends.candidate) == len(byte_level())
    assert 1 <= ends.candidate.sum() <= 10
    assert not ends.ends([len(byte_level()) + 5])


def test_unusable_delimiters_are_refused() -> None:
    for delimiter in ("", "�"):
        with pytest.raises(ModelError, match="delimiter"):
            StepEnd(tiny(), delimiter)


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_splitting_a_solution_repeats_the_step_rule(kind: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[kind]()
    text = data.draw(st.text(alphabet="Tom 12;é\n", max_size=30))
    ids = encode_solution(tokenizer, text, tokenizer.eos_token_id)
    lengths = split_steps(tokenizer, ids, "\n")
    assert sum(lengths) == len(ids) and all(lengths)
    start = 0
    for length in lengths[:-1]:
        assert first_end(tokenizer, ids[start:], "\n") == length
        start += length
    assert first_end(tokenizer, ids[start:], "\n") is None


def test_eos_belongs_to_the_last_step() -> None:
    ids = encode_solution(tiny(), "12 - 7 + 5\n5 + 5\n10")
    assert split_steps(tiny(), ids, "\n") == [6, 4, 2]
    assert split_steps(tiny(), ids[:-2], "\n") == [6, 4]
    assert split_steps(tiny(), [], "\n") == []
