"""The embedded engine: continuous batching of samples in this process, on any decoder of transformers.

Each round of the scheduler samples one token for every row in flight, runs the rows that go on through the model once,
and fills free rows with waiting requests. Prefixes come from a radix tree of keys and values into slots that their
samples share; a step's value and the first logits of whatever follows it come from the pass that closes the step. A
choice put to the policy after a sample passes through a slot: its answer is read off what the cache lacks of it.
Tools and given continuations take the place of the sampler row by row (`guide.py`). Knows no tree search and no
problem.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from treepref.engines.attention import can_share, decode, fill, slot_cache
from treepref.engines.base import Asked, EngineLimits
from treepref.engines.guide import Guide, score_guide
from treepref.engines.jobs import Job, Placement, Question, Row
from treepref.engines.kernels import HANDED_BACK, PackedLinear, Precision, pack
from treepref.engines.kv_cache import Match, PrefixTree, cut_passes
from treepref.engines.sampling import advanced, sample, uniforms
from treepref.engines.values import ValueReader
from treepref.models.policy import Policy
from treepref.models.steps import SampleEnd, StepEnd
from treepref.tools import Tool, load_tool
from treepref.types import Choice, Completion, Cost, Request, Result

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from treepref.models.weights import Weights

PREFILL_TOKENS = 4096
"""Most prompt tokens run through the model at once: bounds the memory of a prefill."""
SPARE_TOKENS = 256
"""Most padding of a prefill's pass on a CPU, in tokens: more takes longer than another pass. A GPU has room for it."""
BUSY_SECONDS = 0.001
"""Pause before asking again, where every row awaits a tool."""


class TorchEngine:
    """See `engines.base.Engine`. The policy is the engine's own: `load` overwrites its weights in place.

    With `batch_invariant` rows run alone and token by token, so every number is independent of the batch and of what
    the cache holds: deterministic, and slow.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        max_rows: int = 256,
        cache_mb: int = 1024,
        batch_invariant: bool = False,
        weights: Precision = "float32",
        tools: Mapping[str, Tool] | None = None,
    ) -> None:
        """`weights`: what matrix products run in on a CPU (`kernels.py`); ModelError where that cannot be.

        `tools`: by name, in place of those that `load_tool` makes when a request first names them.
        """
        pack(policy.model, weights)
        self.policy = policy
        self.deterministic = batch_invariant
        self.max_rows = 1 if batch_invariant else max_rows
        self.policy_id = policy.id
        self.max_context = policy.max_context
        self.cost = Cost()
        """Of all requests that were answered."""
        self._unpaid_seconds = 0.0
        self._eos = policy.eos_ids
        self._waiting: deque[Job] = deque()
        self._rows: list[Row] = []
        self._some_wait = False
        self._questions: deque[Question] = deque()
        self._done: list[Result] = []
        self._tools: dict[str, Tool] = dict(tools or {})
        self._vocabulary = policy.vocabulary
        self._prefixes = PrefixTree(cache_mb << 20)
        self._cache = slot_cache(policy)
        self._hidden_RH = torch.zeros(0, policy.hidden_size, dtype=policy.dtype, device=policy.device)
        self._values = ValueReader(policy)
        self._logits_BV = self._hidden_RH.new_empty(0, self._vocabulary)
        self._step_ends: dict[str, StepEnd] = {}

    # --- the engine's contract

    @property
    def limits(self) -> EngineLimits:
        scores: set[Asked] = {"choice", "given", "value"}
        scores -= set() if self.has_values else {"value"}
        return EngineLimits(self.max_context, self.deterministic, frozenset(scores))

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.policy.tokenizer

    @property
    def has_values(self) -> bool:
        """Whether there is a trained value head."""
        return self._values.head is not None

    def submit(self, requests: Iterable[Request]) -> None:
        """Raises RecipeError for a tool that there is not."""
        for request in requests:
            room = self.max_context - len(request.prefix)
            if error := self._refusal(request, room):
                self._done.append(Result(request.id, (), error=error))
                continue
            if request.tool is not None and request.tool not in self._tools:
                self._tools[request.tool] = load_tool(request.tool, self.policy.tokenizer)
            count = request.n + len(request.given)
            limit = min(request.max_tokens, room)
            longest = max([limit, *(min(len(given), room) for given in request.given)])
            self._waiting.append(Job(request, limit, self.policy_id, [None] * count, count, longest))

    def poll(self, timeout: float | None = None) -> list[Result]:
        started = time.perf_counter()
        ends = float("inf") if timeout is None else started + timeout
        with torch.inference_mode():
            while not self._done and (self._waiting or self._rows or self._questions) and time.perf_counter() < ends:
                if self._questions and 4 * len(self._questions) >= len(self._rows):
                    self._answer()  # many at once: a pass costs a GPU the same for few and for many
                self._admit()
                if not self._rows:
                    continue
                if self._sample():
                    self._forward()
                else:
                    time.sleep(BUSY_SECONDS)
        done, self._done = self._done, []
        self._unpaid_seconds += time.perf_counter() - started
        return self._priced(done) if done else done

    def close(self) -> None:
        """End what the tools run. The engine can be used again: tools start anew."""
        for tool in self._tools.values():
            tool.close()

    def load(self, weights: Weights) -> None:
        """Finish what is in flight, drop the cache, go on with these weights; they are copied in tensor by tensor."""
        finished: list[Result] = []
        while self._rows or self._waiting or self._questions:
            finished += self.poll()
        self._done = finished + self._done
        self._prefixes.clear()
        self.policy.load_weights(weights.tensors(), weights.value_head)
        self.policy.id = self.policy_id = weights.id

    # --- a round's three parts

    def _admit(self) -> None:
        """Fill free rows with waiting samples; their prefixes come from the cache, or are computed once."""
        while self._waiting and len(self._rows) < self.max_rows:
            batch: list[Placement] = []
            prefixes: set[tuple[int, ...]] = set()
            free, tokens = self.max_rows - len(self._rows), 0
            while self._waiting and free and tokens < PREFILL_TOKENS:
                job = self._waiting[0]
                prefix = job.request.prefix
                if prefix in prefixes:
                    break  # the next batch finds this prefix in the cache
                rows = min(free, job.rows - job.admitted)
                match, held = self._look_up(prefix)
                batch.append(Placement(job, job.admitted, rows, match, held))
                prefixes.add(prefix)
                job.admitted += rows
                if job.admitted == job.rows:
                    self._waiting.popleft()
                free -= rows
                tokens += len(prefix) - held
            self._place(batch)

    def _place(self, batch: list[Placement]) -> None:
        """Fill a slot for each request, those with most to compute in front (`_prefill`)."""
        start = len(self._cache.lengths)
        batch.sort(key=lambda p: _most_to_run(p.job.request.prefix, p.held))
        self._reserve_slots([len(p.job.request.prefix) for p in batch])
        for slot, placement in enumerate(batch, start=start):
            self._load(slot, placement.match, placement.held)
            request = placement.job.request
            computed = len(request.prefix) - placement.held
            cached = len(request.prefix) * placement.rows - computed
            self._count(placement.job, computed, cached, scored=request.n == 0)
        hidden_PH = self._prefill(start, [(p.job.request.prefix, p.match, p.held) for p in batch])
        for slot, placement in enumerate(batch, start=start):
            prefix = placement.job.request.prefix
            if placement.held < len(prefix):  # kept for others
                kept_H = hidden_PH[slot - start].clone()
                self._prefixes.insert(prefix, partial(self._cache.prefixes.read, slot), kept_H)
        self._begin(batch, hidden_PH)

    def _prefill(self, start: int, batch: Sequence[tuple[tuple[int, ...], Match, int]]) -> torch.Tensor:
        """Run all but the first `held` tokens of each text, in the slots from `start` on; those with most come first.

        Texts of similar lengths share a pass. Returns the hidden state of each text's last token [texts, H].
        """
        known = [match.hidden_H for _, match, _ in batch if match.hidden_H is not None]
        texts = [text for text, match, _ in batch if match.hidden_H is None]
        held = [h for _, match, h in batch if match.hidden_H is None]
        spare = SPARE_TOKENS if self.policy.device.type == "cpu" else PREFILL_TOKENS
        cuts = cut_passes([len(text) - h for text, h in zip(texts, held, strict=True)], spare)
        run = [self._run(start + cut.start, texts[cut], held[cut]) for cut in cuts]
        return torch.cat([self._hidden_RH[:0], *run, *(hidden_H[None] for hidden_H in known)])

    def _run(self, start: int, texts: Sequence[tuple[int, ...]], held: list[int]) -> torch.Tensor:
        """One pass over what is not held of the texts, or one a token; returns hidden states of the last [texts, H]."""
        hidden_WH = self._hidden_RH[:0]
        while any(h < len(text) for text, h in zip(texts, held, strict=True)):
            steps = 1 if self.deterministic else max(len(text) - h for text, h in zip(texts, held, strict=True))
            ids_RS = np.zeros((len(texts), steps), dtype=np.int64)
            position_RS = np.zeros((len(texts), steps), dtype=np.int64)
            for i, (text, h) in enumerate(zip(texts, held, strict=True)):
                part = text[h : h + steps]
                ids_RS[i, : len(part)] = part
                # Padding repeats the last place with the last token: it writes there what stands there.
                ids_RS[i, len(part) :] = part[-1]
                position_RS[i] = np.minimum(np.arange(h, h + steps), len(text) - 1)
            slots = slice(start, start + len(texts))
            hidden_WH = fill(self.policy, self._cache, slots, ids_RS, position_RS, copy=self.deterministic)[:, -1]
            held = [min(h + steps, len(text)) for text, h in zip(texts, held, strict=True)]
        return hidden_WH

    def _begin(self, batch: list[Placement], hidden_PH: torch.Tensor) -> None:
        """Give each sample of the placements, whose prefixes stand in the next slots, a row."""
        values = self._values.prefixes(hidden_PH)
        start, counts = len(self._rows), [p.rows for p in batch]
        for placement, value in zip(batch, values, strict=True):
            job, request = placement.job, placement.job.request
            if request.want_value:
                job.prefix_value = value
            step_end = self._sample_end(request)
            self._rows += [self._row(job, placement.first + i, step_end) for i in range(placement.rows)]
            if not job.completions:
                self._done.append(Result(request.id, (), job.prefix_value, policy=job.policy, cost=job.cost))
        self._reserve_rows()
        self._cache.add([len(p.job.request.prefix) for p in batch], counts)
        self._hidden_RH[start : len(self._rows)] = hidden_PH.repeat_interleave(
            torch.tensor(counts, device=hidden_PH.device), dim=0
        )
        self._values.begin(start, len(self._rows))
        self._compact(keep=[bool(row.job.completions) for row in self._rows])

    def _row(self, job: Job, sample: int, step_end: StepEnd | SampleEnd | None) -> Row:
        """The row of a sample, or of one of the request's given continuations behind them."""
        request = job.request
        tool = None if request.tool is None else self._tools[request.tool]
        if sample < request.n:
            guide = None if tool is None else Guide(tool.begin(request.prefix[request.prompt_tokens :]))
            return Row(job, sample, advanced(request.seeds[sample], request.begun), step_end, guide)
        if not job.completions:
            return Row(job, sample, 0, step_end)
        room = self.max_context - len(request.prefix)
        return Row(job, sample, 0, step_end, score_guide(request.given[sample - request.n], room, self._eos, tool))

    def _answer(self) -> None:
        """Put waiting questions to the policy, in slots behind those in use that are free again at once."""
        start, free = len(self._cache.lengths), max(1, self.max_rows - len(self._rows))
        batch: list[tuple[Question, Match, int]] = []
        tokens = 0
        while self._questions and len(batch) < free and tokens < PREFILL_TOKENS:
            question = self._questions.popleft()
            batch.append((question, *self._look_up(question.ids)))
            tokens += len(question.ids) - batch[-1][2]
        batch.sort(key=lambda item: _most_to_run(item[0].ids, item[2]))
        self._reserve_slots([len(question.ids) for question, _, _ in batch])
        for slot, (question, match, held) in enumerate(batch, start=start):
            self._load(slot, match, held)
            self._count(question.job, len(question.ids) - held, held, scored=True)
        hidden_QH = self._prefill(start, [(q.ids, match, held) for q, match, held in batch])
        probs_QV = self.policy.head(hidden_QH).float().softmax(-1)
        for row, (question, match, _) in enumerate(batch):
            options = [torch.tensor(sorted(set(o)), dtype=torch.long) for o in question.choice.options]
            masses = (float(probs_QV[row, ids.to(probs_QV.device)].double().sum()) for ids in options)
            question.answer = tuple(min(1.0, mass) for mass in masses)
            if match.length < len(question.state):  # the state is kept; the suffix is not: it would push prefixes out
                self._prefixes.insert(question.state, partial(self._cache.prefixes.read, start + row), hidden_H=None)
            for number in question.samples:
                self._complete(question.job, number, question.answer)

    def _sample(self) -> bool:
        """One token for every row, from the hidden state of its last token. False: all rows await a tool."""
        rows = self._rows
        guided = [i for i, row in enumerate(rows) if row.guide is not None]
        waiting = self._wait(guided) if guided else set()
        self._some_wait = bool(waiting)
        if len(waiting) == len(rows):
            return any(row.finish is not None for row in rows)
        logits_BV = self._logits(self._hidden_RH[: len(rows)])
        device = logits_BV.device
        seeds = np.array([r.seed for r in rows], dtype=np.uint64)
        uniform_B = torch.from_numpy(uniforms(seeds, np.array([len(r.tokens) for r in rows], dtype=np.uint64)))
        temperature_B = torch.tensor([r.job.request.temperature for r in rows], device=device)
        top_p_B = torch.tensor([r.job.request.top_p for r in rows], device=device)
        drawn = [x_B.tolist() for x_B in sample(logits_BV, temperature_B, top_p_B, uniform_B.to(device))]
        dictated = self._dictate(sorted({*guided} - waiting), logits_BV, drawn) if guided else set()
        for index, (row, token, logp, behaviour) in enumerate(zip(rows, *drawn, strict=True)):
            if index in waiting:
                continue
            row.tokens.append(token)
            row.logprobs.append(logp)
            row.behaviour.append(behaviour)
            start = 0
            if row.guide is not None:
                row.finish = row.guide.took(token, index in dictated, self._eos, row.job.max_tokens - len(row.tokens))
                if row.guide.scores or row.finish is not None:
                    continue
                start = row.guide.checked
            elif token in self._eos:
                row.finish = "eos"
                continue
            if row.step_end is not None and row.step_end.candidate[token] and start < len(row.tokens):
                row.finish = row.step_end.finish(row.tokens[start:], whole=not start)
            if row.finish is None and len(row.tokens) >= row.job.max_tokens:
                row.finish = "length"
        return True

    def _logits(self, hidden_BH: torch.Tensor) -> torch.Tensor:
        """Logits [B, V], in memory that the next call overwrites where they are large."""
        head = self.policy.model.get_output_embeddings()
        size = len(hidden_BH) * self._vocabulary
        if not isinstance(head, PackedLinear) or size * hidden_BH.element_size() < HANDED_BACK:
            return self.policy.head(hidden_BH)
        if len(self._logits_BV) < len(hidden_BH):
            self._logits_BV = hidden_BH.new_empty(len(hidden_BH), self._vocabulary)
        return head.into(hidden_BH, self._logits_BV[: len(hidden_BH)])

    def _wait(self, guided: Sequence[int]) -> set[int]:
        """Rows that get no token in this round: they await a tool, or its result just ended them."""
        waiting = set()
        for index in guided:
            row = self._rows[index]
            assert row.guide is not None
            told = row.guide.wait(row.job.max_tokens - len(row.tokens))
            row.waits = told is not False
            if row.waits:
                waiting.add(index)
                row.finish = None if isinstance(told, bool) else told
        return waiting

    def _dictate(self, guided: Sequence[int], logits_BV: torch.Tensor, drawn: list[list[Any]]) -> set[int]:
        """Put what tools force and what is given in place of what was drawn, with the policy's log-prob of it."""
        chosen = [i for i in guided if (guide := self._rows[i].guide) is not None and guide.dictates]
        if not chosen:
            return set()
        guides = [self._rows[i].guide for i in chosen]
        tokens = [guide.next() for guide in guides if guide is not None]
        token_D1 = torch.tensor(tokens, device=logits_BV.device)[:, None]
        logp_DV = torch.log_softmax(logits_BV[chosen].float(), dim=-1)
        for index, token, logp in zip(chosen, tokens, logp_DV.gather(-1, token_D1)[:, 0].tolist(), strict=True):
            drawn[0][index], drawn[1][index], drawn[2][index] = token, logp, 0.0
        return set(chosen)

    def _forward(self) -> None:
        """Run each row's newest token through the model, then retire the rows that are finished.

        Rows that finish without need of a value or a choice leave before the pass; the others close with it, which
        gives V and completes the keys and values that later expansions of the step, and questions on it, start from.
        """
        for row in self._rows:
            if row.finish is not None and not self._closes(row):
                self._retire(row, value=None)
        keep = [row.finish is None or self._closes(row) for row in self._rows]
        if not all(keep):
            for index, row in enumerate(self._rows):
                if not keep[index] and (row.finish in ("step", "stop") or self._asks(row)):
                    # Its last token has not been run: whoever continues the step computes that one.
                    self._keep_state(index, row.tokens[:-1], hidden_H=None)
            self._compact(keep)
        rows = self._rows
        if not rows:
            return
        newest = [row.tokens[-1] for row in rows], [len(row.tokens) - 1 for row in rows]

        def run() -> torch.Tensor:
            self._hidden_RH[: len(rows)] = decode(self.policy, self._cache, *newest, shared=self._shares)
            return self._hidden_RH[: len(rows)]

        read_RH = self._values.decode(run)
        self._values.add(read_RH, [i for i, row in enumerate(rows) if row.waits] if self._some_wait else [])
        for row in rows:
            row.passes += 1
        closing = [i for i, row in enumerate(rows) if row.finish is not None]
        if not closing:
            return
        values, scores = self._values.close(rows, closing, read_RH)
        for index, value, score in zip(closing, values, scores, strict=True):
            row = rows[index]
            row.score = score
            if row.finish in ("step", "stop"):
                self._keep_state(index, row.tokens, self._hidden_RH[index].clone())
            elif self._asks(row):
                self._keep_state(index, row.tokens[:-1], hidden_H=None)
            row.job.cost.scored_tokens += 1
            self._retire(row, value if row.job.request.want_value else None)
        self._compact(keep=[row.finish is None for row in rows])

    # --- small parts

    def _closes(self, row: Row) -> bool:
        """Whether a finished row's last token is run: for its value, or because a question follows it."""
        if row.finish == "length":
            return False
        return (row.job.request.want_value and self.has_values) or (self._asks(row) and row.finish == "step")

    def _asks(self, row: Row) -> bool:
        return row.job.request.choice is not None and row.finish in ("step", "eos")

    def _keep_state(self, index: int, tokens: Sequence[int], hidden_H: torch.Tensor | None) -> None:
        """Keep a row's prefix and `tokens` for those who continue them."""
        state = self._rows[index].job.request.prefix + tuple(tokens)
        self._prefixes.insert(state, partial(self._cache.read, index), hidden_H)

    def _retire(self, row: Row, value: float | None) -> None:
        """Turn a finished row into a completion; where a choice follows, its request waits for the answer."""
        request, job, guide = row.job.request, row.job, row.guide
        assert row.finish is not None
        tempered = request.temperature != 1 or request.top_p < 1
        if guide is not None:
            guide.close()
        self._charge(row)
        job.completions[row.sample] = Completion(
            tokens=tuple(row.tokens),
            logprobs=tuple(row.logprobs),
            finish=row.finish,
            behaviour=tuple(row.behaviour) if tempered and row.sample < request.n else None,
            forced=tuple(guide.forced) if guide is not None and any(guide.forced) else None,
            value=value,
            score=row.score if request.want_value else None,
        )
        if request.choice is not None and row.finish in ("step", "eos"):
            self._ask(job, row.sample, request.choice, tuple(row.tokens))
        else:
            self._complete(job, row.sample, None)

    def _ask(self, job: Job, sample: int, choice: Choice, tokens: tuple[int, ...]) -> None:
        """Put a choice after a sample, or wait with an equal sample for its answer."""
        question = job.questions.get(tokens)
        if question is None:
            question = self._question(job, job.request.prefix + tokens, choice)
            if len(question.ids) > self.max_context:  # no room: the sample is none the worse for it
                self._complete(job, sample, None)
                return
            job.questions[tokens] = question
            self._questions.append(question)
        if question.answer is None:
            question.samples.append(sample)
        else:
            self._complete(job, sample, question.answer)

    def _question(self, job: Job, prefix: tuple[int, ...], choice: Choice) -> Question:
        ended = bool(prefix) and prefix[-1] in self._eos
        state = prefix[:-1] if ended else prefix
        return Question(state, state + (choice.after_eos if ended else ()) + choice.suffix, choice, job)

    def _complete(self, job: Job, sample: int, choice_probs: tuple[float, ...] | None) -> None:
        """A sample needs nothing more; the last one of a request makes its result."""
        completion = job.completions[sample]
        if choice_probs is not None and completion is not None:
            job.completions[sample] = replace(completion, choice_probs=choice_probs)
        job.missing -= 1
        if not job.missing:
            found = tuple(c for c in job.completions if c)
            self._done.append(Result(job.request.id, found, job.prefix_value, policy=job.policy, cost=job.cost))

    def _charge(self, row: Row) -> None:
        """Add a row's tokens to what its request cost: sampled, given, or forced by a tool."""
        cost, tokens = row.job.cost, len(row.tokens)
        if row.guide is None:
            cost.generated_tokens += tokens
        elif row.guide.scores:
            cost.scored_tokens += tokens
        else:
            forced = sum(row.guide.forced)
            cost.prefill_tokens += forced
            cost.generated_tokens += tokens - forced
        cost.flops += self.policy.flops_per_token * row.passes

    def _priced(self, results: list[Result]) -> list[Result]:
        """Results with their share of the time that passed, and the total brought up to date."""
        share, self._unpaid_seconds = self._unpaid_seconds / len(results), 0.0
        for result in results:
            result.cost.seconds += share
            self.cost = self.cost + result.cost
        return results

    def _refusal(self, request: Request, room: int) -> str | None:
        """Why a request cannot be answered."""
        if not request.prefix:
            return "the prefix is empty: at least one token must be given"
        if (request.n or request.given) and room < 1:
            return f"the prefix has {len(request.prefix)} tokens, the model's context is {self.max_context}"
        if len(request.seeds) < request.n:
            return f"{request.n} samples need as many seeds"
        if not all(request.given):
            return "a given continuation is empty: at least one token must be scored"
        return None if request.choice is None else self._choice_error(request.choice)

    def _choice_error(self, choice: Choice) -> str | None:
        ids = {*choice.suffix, *choice.after_eos}.union(*choice.options)
        wrong = sorted(i for i in ids if not 0 <= i < self._vocabulary)
        return f"the choice names token {wrong[0]}, the vocabulary has {self._vocabulary}" if wrong else None

    def _look_up(self, prefix: tuple[int, ...]) -> tuple[Match, int]:
        """What the cache holds of a prefix, and how many of its tokens need not be computed."""
        match = self._prefixes.match(prefix)
        return match, match.length if match.hidden_H is not None else min(match.length, len(prefix) - 1)

    def _load(self, slot: int, match: Match, held: int) -> None:
        """Copy the first `held` tokens of a match into a slot."""
        at = 0
        for segment, length in match.segments:
            length = min(length, held - at)
            self._cache.prefixes.write(slot, at, segment.kv_LCKTD[..., :length, :])
            at += length

    def _count(self, job: Job, computed: int, cached: int, *, scored: bool) -> None:
        if scored:
            job.cost.scored_tokens += computed
        else:
            job.cost.prefill_tokens += computed
        job.cost.cached_tokens += cached
        job.cost.flops += self.policy.flops_per_token * computed

    def _compact(self, keep: Sequence[bool]) -> None:
        """Close the gaps that retired rows leave: the last rows move into them."""
        rows = self._rows
        kept = sum(keep)
        if kept == len(rows):
            return
        order = list(range(kept))
        movable = [i for i in range(kept, len(rows)) if keep[i]]
        for hole in (i for i in range(kept) if not keep[i]):
            source = order[hole] = movable.pop()
            rows[hole] = rows[source]
            self._hidden_RH[hole] = self._hidden_RH[source]
            self._values.move(source, hole)
        del rows[kept:]
        self._cache.keep(order, [len(row.tokens) for row in rows])

    @cached_property
    def _shares(self) -> bool:
        """Whether siblings read their prefix together. Row by row the numbers do not depend on who else is there."""
        return not self.deterministic and can_share(self.policy)

    def _sample_end(self, request: Request) -> StepEnd | SampleEnd | None:
        """What ends a request's samples in their text."""
        delimiter = self._step_end(request.delimiter)
        step = request.prefix[len(request.prefix) - request.step_tokens :] if delimiter is not None else ()
        if not step and not request.stops and not request.ends:
            return delimiter
        stops, ends = ([self._text_end(text) for text in texts] for texts in (request.stops, request.ends))
        return SampleEnd(delimiter, step, stops, request.prefix[request.prompt_tokens :], ends)

    def _step_end(self, delimiter: str | None) -> StepEnd | None:
        return None if delimiter is None else self._text_end(delimiter)

    def _text_end(self, delimiter: str) -> StepEnd:
        if delimiter not in self._step_ends:
            end = self._step_ends[delimiter] = StepEnd(self.policy.tokenizer, delimiter)
            # A model may have more logits than its tokenizer has tokens.
            end.candidate = np.pad(end.candidate, (0, max(0, self._vocabulary - len(end.candidate))))
        return self._step_ends[delimiter]

    def _reserve_slots(self, lengths: Sequence[int]) -> None:
        """Make room for new prefixes of `lengths` behind those in use."""
        lengths = [*self._cache.lengths, *lengths]
        self._cache.prefixes.reserve(len(lengths), max(lengths))

    def _reserve_rows(self) -> None:
        """Make room for the own tokens and hidden states of all rows."""
        rows = len(self._rows)
        self._cache.own.reserve(rows, max((row.job.longest for row in self._rows), default=0))
        if rows > len(self._hidden_RH):
            grown = self._hidden_RH.new_zeros(max(rows, 2 * len(self._hidden_RH)), self.policy.hidden_size)
            grown[: len(self._hidden_RH)] = self._hidden_RH
            self._hidden_RH = grown
            self._values.reserve(len(grown))


def _most_to_run(text: Sequence[int], held: int) -> tuple[int, int]:
    """Sorts texts by the tokens that must be computed, then by all of them, from the most to the least."""
    return held - len(text), -len(text)
