"""The embedded engine: continuous batching of samples in this process, on any decoder of transformers.

Each round of the scheduler samples one token for every row in flight, runs the rows that go on through the model once,
and fills free rows with waiting requests. Prefixes come from a radix tree of keys and values; a step's value and the
first logits of whatever follows it come from the pass that closes the step. Knows no tree search and no problem.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from treepref.engines.base import generate
from treepref.engines.kv_cache import Match, PrefixTree, RowCache
from treepref.engines.sampling import sample, uniforms
from treepref.errors import ModelError
from treepref.models.policy import Policy
from treepref.models.steps import StepEnd
from treepref.types import Completion, Cost, Finish, Request, Result

PREFILL_TOKENS = 4096
"""Most prompt tokens run through the model at once: bounds the memory of a prefill."""


@dataclass(slots=True, eq=False)
class _Job:
    """A request in flight and what has come back of it."""

    request: Request
    max_tokens: int
    version: int
    completions: list[Completion | None]
    missing: int
    admitted: int = 0
    """Rows that it has been given so far."""
    prefix_value: float | None = None

    @property
    def rows(self) -> int:
        """A row a sample; a request for the prefix's value alone has a row too, which samples nothing."""
        return max(1, self.request.n)


@dataclass(frozen=True, slots=True, eq=False)
class _Placement:
    """Samples of one request that get their rows together, and what the cache holds of their prefix."""

    job: _Job
    first: int
    rows: int
    match: Match
    held: int
    """Tokens of the prefix that need not be computed."""


@dataclass(slots=True, eq=False)
class _Row:
    """One sample being decoded. The row's place in the batch is its index in the engine's list of rows."""

    job: _Job
    sample: int
    step_end: StepEnd | None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    behaviour: list[float] = field(default_factory=list)
    finish: Finish | None = None

    @property
    def length(self) -> int:
        return len(self.job.request.prefix) + len(self.tokens)


class TorchEngine:
    """See `engines.base.Engine`. The policy is the engine's own: `update` overwrites its weights in place.

    With `batch_invariant` rows run alone and token by token, so every number is independent of the batch and of what
    the cache holds: deterministic, and slow.
    """

    def __init__(
        self, policy: Policy, *, max_rows: int = 256, cache_mb: int = 1024, batch_invariant: bool = False
    ) -> None:
        self.policy = policy
        self.deterministic = batch_invariant
        self.max_rows = 1 if batch_invariant else max_rows
        self.policy_version = policy.version
        self.max_context = policy.max_context
        self.cost = Cost()
        self._eos = policy.eos_ids
        self._waiting: deque[_Job] = deque()
        self._rows: list[_Row] = []
        self._done: list[Result] = []
        self._prefixes = PrefixTree(cache_mb << 20)
        self._cache = _row_cache(policy)
        self._hidden_RH = torch.zeros(0, policy.hidden_size, dtype=policy.dtype, device=policy.device)
        self._step_ends: dict[str, StepEnd] = {}

    # --- the engine's contract

    @property
    def has_values(self) -> bool:
        return self.policy.value_head is not None and self.policy.values_trained

    def submit(self, requests: Iterable[Request]) -> None:
        for request in requests:
            room = self.max_context - len(request.prefix)
            if not request.prefix:
                self._done.append(Result(request.id, (), error="the prefix is empty: at least one token must be given"))
            elif request.n and room < 1:
                error = f"the prefix has {len(request.prefix)} tokens, the model's context is {self.max_context}"
                self._done.append(Result(request.id, (), error=error))
            elif len(request.seeds) < request.n:
                self._done.append(Result(request.id, (), error=f"{request.n} samples need as many seeds"))
            else:
                limit = min(request.max_tokens, room)
                self._waiting.append(_Job(request, limit, self.policy_version, [None] * request.n, request.n))

    def poll(self) -> list[Result]:
        started = time.perf_counter()
        with torch.inference_mode():
            while not self._done and (self._waiting or self._rows):
                self._admit()
                if self._rows:
                    self._sample()
                    self._forward()
        self.cost.seconds += time.perf_counter() - started
        done, self._done = self._done, []
        return done

    def values(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """V at the last token of each sequence, in [-1, 1]. Raises ModelError without a trained value head."""
        if not self.has_values:
            raise ModelError(f"{self.policy.name} has no trained value head")
        if self._rows or self._waiting:
            raise RuntimeError("values() needs an idle engine: poll until nothing is in flight")
        requests = [Request(f"value-{i}", tuple(s), 0, (), 0, want_value=True) for i, s in enumerate(sequences)]
        return [r.prefix_value if r.prefix_value is not None else 0.0 for r in generate(self, requests)]

    def update(self, weights: Mapping[str, Any], version: int) -> None:
        """Finish what is in flight, drop the cache, publish the new weights.

        `weights`: the policy's state dict; keys under `value_head.` go to the value head, which then counts as trained.
        """
        finished: list[Result] = []
        while self._rows or self._waiting:
            finished += self.poll()
        self._done = finished + self._done
        self._prefixes.clear()
        self.policy.load_weights(weights)
        self.policy.version = self.policy_version = version

    # --- a round's three parts

    def _admit(self) -> None:
        """Fill free rows with waiting samples; their prefixes come from the cache, or are computed once."""
        while self._waiting and len(self._rows) < self.max_rows:
            batch: list[_Placement] = []
            prefixes: set[tuple[int, ...]] = set()
            free, tokens = self.max_rows - len(self._rows), 0
            while self._waiting and free and tokens < PREFILL_TOKENS:
                job = self._waiting[0]
                prefix = job.request.prefix
                if prefix in prefixes:
                    break  # the next batch finds this prefix in the cache
                rows = min(free, job.rows - job.admitted)
                match = self._prefixes.match(prefix)
                held = match.length if match.hidden_H is not None else min(match.length, len(prefix) - 1)
                batch.append(_Placement(job, job.admitted, rows, match, held))
                prefixes.add(prefix)
                job.admitted += rows
                if job.admitted == job.rows:
                    self._waiting.popleft()
                free -= rows
                tokens += len(prefix) - held
            self._place(batch)

    def _place(self, batch: list[_Placement]) -> None:
        """Give each sample a row that holds its prefix, and the hidden state of the prefix's last token.

        At first one row a request, side by side, those with something to compute in front: one pass serves them all.
        """
        start = len(self._rows)
        stop = start + sum(p.rows for p in batch)
        longest = max(len(p.job.request.prefix) + p.job.max_tokens for p in batch)
        self._cache.reserve(stop, longest)
        self._reserve_hidden(stop)
        batch.sort(key=lambda p: p.held == len(p.job.request.prefix))
        for row, placement in enumerate(batch, start=start):
            at = 0
            for segment, length in placement.match.segments:
                length = min(length, placement.held - at)
                self._cache.write(row, at, segment.kv_LCKTD[..., :length, :])
                at += length
            if placement.match.hidden_H is not None:
                self._hidden_RH[row] = placement.match.hidden_H
            self._count_prefix(placement)
        self._prefill(start, [p for p in batch if p.held < len(p.job.request.prefix)])
        self._spread(start, stop, batch)

    def _prefill(self, start: int, work: list[_Placement]) -> None:
        """Run the uncached ends of the prefixes in the rows from `start` on, and keep them for others."""
        prefixes = [p.job.request.prefix for p in work]
        held = [p.held for p in work]
        while any(h < len(p) for p, h in zip(prefixes, held, strict=True)):
            steps = 1 if self.deterministic else max(len(p) - h for p, h in zip(prefixes, held, strict=True))
            ids_RS = np.zeros((len(work), steps), dtype=np.int64)
            position_RS = np.zeros((len(work), steps), dtype=np.int64)
            for i, (prefix, h) in enumerate(zip(prefixes, held, strict=True)):
                part = prefix[h : h + steps]
                ids_RS[i, : len(part)] = part
                # Padding repeats the last place with the last token: it writes there what stands there.
                ids_RS[i, len(part) :] = part[-1]
                position_RS[i] = np.minimum(np.arange(h, h + steps), len(prefix) - 1)
            hidden_RSH = self._run(slice(start, start + len(work)), ids_RS, position_RS, int(position_RS.max()) + 1)
            self._hidden_RH[start : start + len(work)] = hidden_RSH[:, -1]
            held = [min(h + steps, len(p)) for p, h in zip(prefixes, held, strict=True)]
        for row, prefix in enumerate(prefixes, start=start):
            self._prefixes.insert(prefix, self._cache, row, self._hidden_RH[row].clone())

    def _spread(self, start: int, stop: int, batch: list[_Placement]) -> None:
        """Give the prefix in each request's first row to the rows of its other samples."""
        values = self._values(self._hidden_RH[start : start + len(batch)])
        rows: list[_Row] = []
        target = stop
        # From the last request down: its rows lie highest, so no source is overwritten before it is read.
        for source in range(len(batch) - 1, -1, -1):
            placement, request = batch[source], batch[source].job.request
            target -= placement.rows
            if target + placement.rows > start + source + 1:
                self._cache.fan_out(start + source, slice(target, target + placement.rows), len(request.prefix))
                self._hidden_RH[target : target + placement.rows] = self._hidden_RH[start + source].clone()
            if request.want_value:
                placement.job.prefix_value = values[source]
            step_end = self._step_end(request.delimiter)
            rows[:0] = [_Row(placement.job, placement.first + i, step_end) for i in range(placement.rows)]
        self._rows += rows
        for row in rows:
            if row.job.request.n == 0:
                self._done.append(Result(row.job.request.id, (), row.job.prefix_value))
        self._compact(keep=[row.job.request.n > 0 for row in self._rows])

    def _count_prefix(self, placement: _Placement) -> None:
        prefix, request = len(placement.job.request.prefix), placement.job.request
        computed = prefix - placement.held
        if request.n == 0:
            self.cost.scored_tokens += computed
        else:
            self.cost.prefill_tokens += computed
        self.cost.cached_tokens += prefix * placement.rows - computed
        self.cost.flops += self.policy.flops_per_token * computed

    def _sample(self) -> None:
        """One token for every row, from the hidden state of its last token."""
        rows = self._rows
        logits_BV = self.policy.head(self._hidden_RH[: len(rows)])
        device = logits_BV.device
        seeds = np.array([r.job.request.seeds[r.sample] % 2**64 for r in rows], dtype=np.uint64)
        uniform_B = torch.from_numpy(uniforms(seeds, np.array([len(r.tokens) for r in rows], dtype=np.uint64)))
        temperature_B = torch.tensor([r.job.request.temperature for r in rows], device=device)
        top_p_B = torch.tensor([r.job.request.top_p for r in rows], device=device)
        token_B, logp_B, behaviour_B = sample(logits_BV, temperature_B, top_p_B, uniform_B.to(device))
        for row, token, logp, behaviour in zip(
            rows, token_B.tolist(), logp_B.tolist(), behaviour_B.tolist(), strict=True
        ):
            row.tokens.append(token)
            row.logprobs.append(logp)
            row.behaviour.append(behaviour)
            if token in self._eos:
                row.finish = "eos"
            elif row.step_end is not None and row.step_end.candidate[token] and row.step_end.ends(row.tokens):
                row.finish = "step"
            elif len(row.tokens) >= row.job.max_tokens:
                row.finish = "length"
        self.cost.generated_tokens += len(rows)

    def _forward(self) -> None:
        """Run each row's newest token through the model, then retire the rows that are finished.

        Rows that finish without need of a value leave before the pass; the others close with it, which gives V and
        completes the keys and values that later expansions of the step start from.
        """
        for row in self._rows:
            if row.finish is not None and not self._closes(row):
                self._retire(row, value=None)
        keep = [row.finish is None or self._closes(row) for row in self._rows]
        if not all(keep):
            for index, row in enumerate(self._rows):
                if not keep[index] and row.finish == "step":
                    # Its last token has not been run: whoever continues the step computes that one.
                    self._prefixes.insert(
                        row.job.request.prefix + tuple(row.tokens[:-1]), self._cache, index, hidden_H=None
                    )
            self._compact(keep)
        rows = self._rows
        if not rows:
            return
        ids_B1 = np.array([[row.tokens[-1]] for row in rows], dtype=np.int64)
        position_B1 = np.array([[row.length - 1] for row in rows], dtype=np.int64)
        hidden_B1H = self._run(slice(0, len(rows)), ids_B1, position_B1, int(position_B1.max()) + 1)
        self._hidden_RH[: len(rows)] = hidden_B1H[:, 0]
        self.cost.flops += self.policy.flops_per_token * len(rows)
        closing = [i for i, row in enumerate(rows) if row.finish is not None]
        if not closing:
            return
        values = self._values(self._hidden_RH[closing])
        for index, value in zip(closing, values, strict=True):
            row = rows[index]
            if row.finish == "step":
                state = row.job.request.prefix + tuple(row.tokens)
                self._prefixes.insert(state, self._cache, index, self._hidden_RH[index].clone())
            self._retire(row, value)
        self.cost.scored_tokens += len(closing)
        self._compact(keep=[row.finish is None for row in rows])

    # --- small parts

    def _closes(self, row: _Row) -> bool:
        """Whether a finished row's last token is run for its value."""
        return row.job.request.want_value and self.has_values and row.finish != "length"

    def _retire(self, row: _Row, value: float | None) -> None:
        """Turn a finished row into a completion, and the last one of a request into its result."""
        request, job = row.job.request, row.job
        assert row.finish is not None
        tempered = request.temperature != 1 or request.top_p < 1
        job.completions[row.sample] = Completion(
            tokens=tuple(row.tokens),
            logprobs=tuple(row.logprobs),
            finish=row.finish,
            behaviour=tuple(row.behaviour) if tempered else None,
            value=value,
            policy_version=job.version,
        )
        job.missing -= 1
        if not job.missing:
            self._done.append(Result(request.id, tuple(c for c in job.completions if c), job.prefix_value))

    def _compact(self, keep: Sequence[bool]) -> None:
        """Close the gaps that retired rows leave: the last rows move into them."""
        rows = self._rows
        kept = sum(keep)
        movable = [i for i in range(kept, len(rows)) if keep[i]]
        for hole in (i for i in range(kept) if not keep[i]):
            source = movable.pop()
            rows[hole] = rows[source]
            self._cache.move(source, hole, rows[hole].length)
            self._hidden_RH[hole] = self._hidden_RH[source]
        del rows[kept:]

    def _run(self, rows: slice, ids_RS: np.ndarray, position_RS: np.ndarray, longest: int) -> torch.Tensor:
        """One pass of the transformer body over neighbouring rows; returns post-norm hidden states [R, S, H]."""
        device = self.policy.device
        position = torch.from_numpy(position_RS).to(device)
        self._cache.place(rows, position, longest)
        # A token sees the positions up to its own: what lies behind in the row is another sample's leaving. Additive,
        # for a boolean mask would be turned into this one in every layer.
        unseen_R1SL = (torch.arange(longest, device=device) > position[:, :, None])[:, None]
        mask_R1SL = torch.zeros(unseen_R1SL.shape, dtype=self.policy.dtype, device=device)
        mask_R1SL.masked_fill_(unseen_R1SL, -torch.inf)
        return self.policy.body(
            torch.from_numpy(ids_RS).to(device),
            position_ids=position.clamp(max=self.max_context - 1),
            attention_mask=mask_R1SL,
            past_key_values=self._cache,
        )

    def _values(self, hidden_BH: torch.Tensor) -> list[float | None]:
        if not self.has_values:
            return [None] * len(hidden_BH)
        assert self.policy.value_head is not None
        return self.policy.value_head(hidden_BH).tolist()

    def _step_end(self, delimiter: str | None) -> StepEnd | None:
        if delimiter is None:
            return None
        if delimiter not in self._step_ends:
            self._step_ends[delimiter] = StepEnd(self.policy.tokenizer, delimiter)
        return self._step_ends[delimiter]

    def _reserve_hidden(self, rows: int) -> None:
        if rows > len(self._hidden_RH):
            grown = self._hidden_RH.new_zeros(max(rows, 2 * len(self._hidden_RH)), self.policy.hidden_size)
            grown[: len(self._hidden_RH)] = self._hidden_RH
            self._hidden_RH = grown


def _row_cache(policy: Policy) -> RowCache:
    config = policy.model.config.get_text_config()
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    return RowCache(config.num_hidden_layers, kv_heads, head_size, policy.dtype, policy.device)
