"""The tiny base: a lossless word-level tokenizer and a seeded small Llama."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from treepref.models.chat import encode_prompt
from treepref.models.text import decode, encode_solution
from treepref.models.tiny import build_tiny_model, build_tiny_tokenizer

WORDS = [
    *("State", "the", "final", "answer", "to", "following", "arithmetic", "problem"),
    *("make", "using", "numbers", "left", "it's", "####"),
]
TEXTS = [
    "State the final answer to the following arithmetic problem: 4 + 3 - 7 =\n",
    "12 - 7 + 5\n10",
    "-3 + 5\n-2 * (4 - -6) / 2 = -10\n",
    "make 139 using numbers: 36, 29, 95 (left: 7).\n\n  4 -3?4-3 1234=007 #### it's",
]
tokenizer = build_tiny_tokenizer(-50, 139, WORDS)


def tokens(text: str) -> list[str]:
    return tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])


@pytest.mark.parametrize("text", TEXTS)
def test_texts_come_back_exactly(text: str) -> None:
    ids = encode_solution(tokenizer, text)
    assert tokenizer.unk_token_id not in ids
    assert decode(tokenizer, ids) == text


@given(st.text(alphabet="0123456789 +-*/=()?:.,\n", max_size=40))
@settings(max_examples=300, deadline=None)
def test_every_arithmetic_text_comes_back_exactly(text: str) -> None:
    ids = encode_solution(tokenizer, text)
    assert tokenizer.unk_token_id not in ids
    assert decode(tokenizer, ids) == text


@given(st.lists(st.sampled_from([*WORDS, "-7", "8", "+", "-", "(", ")", ":", "?"]), max_size=12))
@settings(max_examples=100, deadline=None)
def test_words_with_single_spaces_come_back_exactly(items: list[str]) -> None:
    text = " ".join(items)
    assert decode(tokenizer, encode_solution(tokenizer, text)) == text


def test_numbers_are_single_tokens_wherever_they_stand() -> None:
    assert all(tokens(str(n)) == [str(n)] for n in range(-50, 140))
    assert tokens("12 - 7 + 5\n10") == ["12", " - ", "7", " + ", "5", "\n", "10"]
    assert tokens("-3 + 5") == ["-3", " + ", "5"]
    assert tokens("4 - 3") == ["4", " - ", "3"]
    assert tokens("4 - -3") == ["4", " - ", "-3"]
    assert tokens("(4)-3") == ["(", "4", ")", "-", "3"]
    assert tokens("the answer: 7") == ["the", " answer", ": ", "7"]


def test_numbers_out_of_range_are_single_digits() -> None:
    assert tokens("1234 + 140") == ["1", "2", "3", "4", " + ", "1", "4", "0"]
    assert tokens("-51 + 1") == ["-", "51", " + ", "1"]
    assert tokens("-140") == ["-", "1", "4", "0"]


def test_what_is_unknown_becomes_unk_and_never_a_special_token() -> None:
    assert tokens("zebra £")[0] == "<unk>"
    ids = encode_prompt(tokenizer, "<eos>7<pad>", chat=False)
    assert not set(ids) & {tokenizer.eos_token_id, tokenizer.pad_token_id}


def test_special_ids_and_no_bos() -> None:
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    assert tokenizer.bos_token is None and tokenizer("7")["input_ids"] == tokenizer.convert_tokens_to_ids(["7"])


def test_a_range_without_zero_and_bad_arguments() -> None:
    positive = build_tiny_tokenizer(5, 12, [])
    assert positive.convert_ids_to_tokens(positive("12 - 3 = -4")["input_ids"]) == ["12", " - ", "3", " = ", "-", "4"]
    negative = build_tiny_tokenizer(-12, -5, [])
    assert negative.convert_ids_to_tokens(negative("-12")["input_ids"]) == ["-12"]
    for bad in ((3, 2, []), (0, 1, ["two words"]), (0, 1, ["x1"]), (0, 1, ["+"]), (0, 1, [""])):
        with pytest.raises(ValueError, match=r"above|cannot be a word"):
            build_tiny_tokenizer(*bad)


def test_a_saved_folder_reads_the_same_through_auto_classes(tmp_path: Path) -> None:
    model = build_tiny_model(len(tokenizer), hidden=16, layers=1, heads=2, intermediate=24, seed=3)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=False)
    for text in TEXTS:
        ids = encode_solution(tokenizer, text)
        assert encode_solution(again, text) == ids
        assert decode(again, ids) == text
    assert again.get_vocab() == tokenizer.get_vocab()
    assert (again.eos_token_id, again.pad_token_id, again.bos_token) == (1, 0, None)
    ids = torch.tensor([encode_solution(again, TEXTS[0])])
    with torch.no_grad():
        assert torch.equal(
            AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=False)(ids).logits, model(ids).logits
        )


def test_the_model_follows_its_seed_and_leaves_the_global_one_alone() -> None:
    size = {"hidden": 16, "layers": 1, "heads": 2, "intermediate": 24, "context": 32}
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    a, b, c = (build_tiny_model(40, **size, seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(a.lm_head.weight, b.lm_head.weight) and not torch.equal(a.lm_head.weight, c.lm_head.weight)
    assert a.lm_head.weight is a.model.embed_tokens.weight
    assert a.config.max_position_embeddings == 32 and not a.training
