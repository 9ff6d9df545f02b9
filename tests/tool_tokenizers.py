"""Small tokenizers of the three kinds that tools meet, made on the spot, and ways to cut a text into their tokens."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from random import Random

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from treepref.models.tiny import TINY_WORDS, build_tiny_tokenizer
from treepref.tools.text import TokenText

_CORPUS = [
    "She sold 48/2 = <<48/2=24>>24 clips in May.\nShe sold 48+24 = <<48+24=72>>72 clips altogether.\n#### 72",
    "Weng earns 12/60 = $<<12/60=0.2>>0.2 per minute.\nShe earned 0.2 x 50 = $<<0.2*50=10>>10.\n#### 10",
    "20% of 1,500 is <<20*.01*1500=300>>300, so (1,500-300)*2 = <<(1500-300)*2=2400>>2400.\n",
    "```python\nprint(sum(range(10)))\n```\n```output\n45\n```\n",
] * 3


@cache
def byte_level() -> PreTrainedTokenizerFast:
    """Byte-level BPE without a regex: its tokens span digits, `=`, `>>` and spaces as the corpus has them."""
    return _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))


@cache
def single_digits() -> PreTrainedTokenizerFast:
    """Byte-level BPE that sets every digit apart, as SmolLM2's does."""
    digits, rest = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    return _byte_level(pre_tokenizers.Sequence([digits, rest]))


def _byte_level(pre_tokenizer: pre_tokenizers.PreTokenizer) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizer
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=450,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<eos>"],
        show_progress=False,
    )
    backend.train_from_iterator((line[a:b] for line in _CORPUS for a, b in pairwise(range(0, 200, 7))), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")


@cache
def metaspace() -> PreTrainedTokenizerFast:
    """Sentencepiece's way, as Llama 2's tokenizer has it: `▁` for a space, one in front, bytes for what is unknown."""
    pairs = ["2 4", "> >", "< <", "▁ <<", "4 8", "= 2", ". 0", "▁ =", "` `", "`` `", "o u"]
    merges = [(a, b) for a, b in (pair.split() for pair in pairs)]
    characters = sorted({c for line in _CORPUS for c in line.replace(" ", "▁") if c != "\n"} | {"▁"})
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *characters, *(a + b for a, b in merges)]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    backend = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@cache
def word_level() -> PreTrainedTokenizerFast:
    """The tiny model's: whole numbers are tokens; with the calculator's marks among its words."""
    return build_tiny_tokenizer(-20, 200, (*TINY_WORDS, "<<", ">>"))


TOKENIZERS = {
    "byte_level": byte_level,
    "single_digits": single_digits,
    "metaspace": metaspace,
    "word_level": word_level,
}


@cache
def _tokens_by_bytes(kind: str) -> dict[bytes, int]:
    text = TokenText(TOKENIZERS[kind]())
    added = {id: text.added(id) for id in sorted(TOKENIZERS[kind]().get_vocab().values())}
    return {piece: id for id, piece in reversed(added.items()) if piece}


def cut_at_random(kind: str, text: str, seed: int) -> list[int]:
    """One of the many ways to write the text in tokens; longer tokens come up more often than single bytes."""
    random, known, ids, rest = Random(seed), _tokens_by_bytes(kind), [], text.encode()
    while rest:
        fitting = [n for n in range(1, min(len(rest), 20) + 1) if rest[:n] in known]
        assert fitting, f"{kind} cannot say {rest!r}"
        length = random.choice(fitting)
        ids.append(known[rest[:length]])
        rest = rest[length:]
    return ids
