"""The tiny base: a word-level tokenizer with whole integers as tokens, and a small Llama of random weights.

The tokenizer loses nothing of a text made of its vocabulary: each operator, mark and word also exists with the spaces
that usually stand around it (` + `, `, `, ` the`), so numbers need one token each and decoding is concatenation.
Knows no task and no training.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import product

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<eos>", "<unk>")
TINY_WORDS = ("State", "the", "final", "answer", "to", "following", "arithmetic", "problem", "Calculate")
"""The words of reasoning-gym's questions for chain_sum and basic_arithmetic."""
_OPERATORS = "+-*/="
"""With a space on the left, on the right, on both sides or on none."""
_MARKS = ":,.?"
"""With or without a space on the right."""


def build_tiny_tokenizer(low: int, high: int, words: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer of the integers low..high, `words`, + - * / ( ) = : ? . , newline and space.

    An integer outside the range becomes single digits (and a minus sign), any other character or word `<unk>`. A minus
    sign belongs to the number behind it unless a digit, a letter or `)` stands directly before it: `4 - 3` is `4`,
    ` - `, `3` and `-3 + 5` starts with `-3`. No BOS. `decode(encode(text)) == text` wherever nothing is unknown.
    Raises ValueError: an empty range, or a word with white space or digits.
    """
    if low > high:
        raise ValueError(f"low {low} is above high {high}")
    for word in words:
        if not word or re.search(r"[\s\d]", word) or word in SPECIAL or word in f"{_OPERATORS}{_MARKS}()":
            raise ValueError(f"{word!r} cannot be a word: it is empty, an operator, or has white space or a digit")
    vocab = {token: i for i, token in enumerate(dict.fromkeys(_vocabulary(low, high, words)))}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(_pattern(low, high, words)), "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def build_tiny_model(
    vocab_size: int,
    *,
    hidden: int = 128,
    layers: int = 4,
    heads: int = 4,
    intermediate: int = 352,
    context: int = 512,
    seed: int,
) -> LlamaForCausalLM:
    """A Llama of random weights drawn from `seed`, embeddings tied, float32, in evaluation mode.

    Its ids follow `build_tiny_tokenizer`: padding 0, EOS 1, no BOS.
    """
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        intermediate_size=intermediate,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        pad_token_id=SPECIAL.index("<pad>"),
        eos_token_id=SPECIAL.index("<eos>"),
        bos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


def _vocabulary(low: int, high: int, words: Sequence[str]) -> list[str]:
    numbers = [str(n) for n in range(low, high + 1)]
    operators = [left + op + right for op, left, right in product(_OPERATORS, ("", " "), ("", " "))]
    marks = [mark + right for mark, right in product(_MARKS, ("", " "))]
    spaced = [left + word for word, left in product(words, ("", " "))]
    return [*SPECIAL, "\n", " ", *operators, *marks, "(", " (", ")", *map(str, range(10)), *numbers, *spaced]


def _pattern(low: int, high: int, words: Sequence[str]) -> str:
    """What a token is, as alternatives tried from left to right at each place of the text."""
    known = [str(n) for n in range(max(low, 0), high + 1)]
    negative = [str(-n) for n in range(low, min(high, -1) + 1)]
    symbols = sorted((w for w in words if not re.fullmatch("[A-Za-z]+", w)), key=len, reverse=True)
    sign = r"(?<![0-9A-Za-z)])-"
    alternatives = [
        rf"{sign}(?:{'|'.join(negative)})(?![0-9])" if negative else "",
        rf"(?<![0-9])(?:{'|'.join(known)})(?![0-9])" if known else "",
        "[0-9]",
        *(rf" ?{re.escape(symbol)}" for symbol in symbols),
        rf" ?(?!{sign}[0-9])[{re.escape(_OPERATORS)}] ?",
        rf"[{re.escape(_MARKS)}] ?",
        r" ?\(|\)",
        " ?[A-Za-z]+",
        r"(?:.|\n)",
    ]
    return "|".join(a for a in alternatives if a)
