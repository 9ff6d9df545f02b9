"""Tools for an engine that cannot watch its samples: it stops where a tool may act, and goes on behind what is forced.

A sample with a tool becomes a chain of requests: up to a text that the tool stops at, then, where it forces tokens, one
that scores them as a given continuation, and on from there. What comes of it are the tokens that `TorchEngine` gives,
which asks the tool after every token, if the engine heeds `Request.begun`; one that is not deterministic need not.
Knows tools and the engine's contract; knows no model, and of text only whether a token ends a step.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from treepref.engines.base import Engine, EngineLimits
from treepref.engines.guide import Guide
from treepref.errors import RecipeError
from treepref.models.steps import step_end
from treepref.tools import TOOLS, Tool, ToolState, load_tool
from treepref.tools.masks import forced_mask
from treepref.types import Completion, Cost, Finish, PolicyId, Request, Result, SoFar

if TYPE_CHECKING:
    from treepref.models.weights import Weights

BUSY_SECONDS = 0.001
"""Pause before a tool that is busy is asked again."""
_part_numbers = itertools.count()


@dataclass(slots=True, eq=False)
class _Pending:
    """A request with a tool, and what has come back of it."""

    request: Request
    tool: Tool
    most: int
    """Tokens that a sample may come to have."""
    sums: bool
    """Whether values may be of sums over a sample (`Completion.score`): then one over too many tokens is made anew."""
    scores: bool
    """Whether the engine scores given continuations."""
    ends_step: Callable[[Sequence[int]], bool]
    """Whether the last of these tokens completes the request's delimiter."""
    samples: list[_Sample] = field(default_factory=list)
    completions: list[Completion | None] = field(default_factory=list)
    parts: int = 0
    """Requests to the engine that are in flight for it."""
    prefix_value: float | None = None
    policy: PolicyId | None = None
    cost: Cost = field(default_factory=Cost)
    error: str | None = None


@dataclass(slots=True, eq=False)
class _Sample:
    """A sample on its way: its tokens so far, and what is known of the first `len(logprobs)` of them."""

    asked: _Pending
    index: int
    seed: int
    state: ToolState
    guide: Guide
    held: bool
    """Whether the delimiter was left out of what is in flight (`Guide.holds`)."""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    behaviour: list[float] | None = field(default_factory=list)
    score: float | None = None
    known: tuple[int, float | None] = 0, None
    """Of how many tokens the log-probs were known before the last part came, and `score` then."""
    finish: Finish | None = None
    value: float | None = None
    choice_probs: tuple[float, ...] | None = None

    @property
    def left(self) -> int:
        return self.asked.most - len(self.tokens)

    def take(self, found: Completion) -> None:
        """Show the tool what was sampled; what is behind the token where it acts was sampled for nothing."""
        i, self.known = 0, (len(self.logprobs), self.score)
        for i, token in enumerate(found.tokens, start=1):
            ended = i == len(found.tokens) and found.finish == "eos"
            self.tokens.append(token)
            self.finish = self.guide.took(token, False, (token,) if ended else (), self.left)
            if self.finish or self.guide.dictates or self.state.busy or self.guide.holds != self.held:
                break
        if self.finish is None and self.held and not self.guide.holds:
            # The call closed, so the delimiter counts again, also in the token that closed it: it was sampled without.
            self.finish = "step" if self.asked.ends_step(self.tokens[self.guide.checked :]) else None
        ended_here = self.finish == "step"
        whole = i == len(found.tokens)
        self.logprobs += found.logprobs[:i]
        self.behaviour = _joined(self.behaviour, None if found.behaviour is None else found.behaviour[:i])
        if whole and self.finish is None and (found.finish == "length" or not self.guide.holds):
            self.finish = found.finish if found.finish in ("step", "length") else None
        if not whole and self.asked.sums:
            del self.logprobs[-i:]  # they are scored with what follows
        else:
            self.learn(found if whole else None)
        if ended_here:
            self.end_step()

    def end_step(self) -> None:
        """The step ends with what was sampled as if it went on: what is asked with an end is asked with it again."""
        if self.asked.sums:
            count, self.score = self.known
            del self.logprobs[count:]
        elif self.asked.request.choice is not None and self.asked.scores:
            del self.logprobs[-1:]

    def learn(self, found: Completion | None) -> None:
        """What the engine says of the sample's last token: nothing, where it went on."""
        self.value = found.value if found else None
        self.choice_probs = found.choice_probs if found else None
        if found is not None and found.score is not None:
            self.score = (self.score or 0.0) + found.score

    def force(self) -> None:
        """Take what the tool has for it."""
        while self.finish is None and self.guide.dictates:
            token = self.guide.next()
            self.tokens.append(token)
            self.behaviour = _joined(self.behaviour, (0.0,))
            self.finish = self.guide.took(token, True, (), self.left)
        if self.finish is None and not self.left:
            self.finish = "length"

    def more(self) -> Request:
        """For the tokens behind those that it has."""
        request, count, checked = self.asked.request, len(self.tokens), self.guide.checked
        self.held = self.guide.holds
        return self._part(
            request, count, n=1, seeds=(self.seed,), max_tokens=self.left, given=(), stops=self.state.stops,
            begun=request.begun + count, step_tokens=count - checked + (0 if checked else request.step_tokens),
            delimiter=None if self.held else request.delimiter,
        )  # fmt: skip

    def to_score(self) -> Request:
        """For the log-probs that are missing, and, where it ends with them, its value and its choice."""
        request, known = self.asked.request, len(self.logprobs)
        return self._part(
            request, known, n=0, seeds=(), given=(tuple(self.tokens[known:]),), delimiter=None,
            want_value=request.want_value and self.finish != "length",
            choice=request.choice if self.finish == "step" else None,
        )  # fmt: skip

    def _part(self, request: Request, count: int, **asked: Any) -> Request:
        so_far = SoFar(request.so_far.score + (self.score or 0.0), request.so_far.tokens + count)
        prefix = request.prefix + tuple(self.tokens[:count])
        return replace(request, id=_part_id(request), prefix=prefix, tool=None, so_far=so_far, **asked)

    def completion(self) -> Completion:
        cut, forced = self.finish == "length", self.guide.forced
        assert self.finish is not None
        return Completion(
            tokens=tuple(self.tokens),
            logprobs=tuple(self.logprobs),
            finish=self.finish,
            behaviour=None if self.behaviour is None else tuple(self.behaviour),
            forced=tuple(forced) if any(forced) else None,
            value=None if cut else self.value,
            choice_probs=None if cut else self.choice_probs,
            score=None if cut else self.score,
        )


class WithTools:
    """An `Engine` before another: it runs the tools that requests name; what names none passes through.

    Where the engine scores no given continuations, the log-probs of forced tokens, which count nowhere, are 0, and a
    sample that ends in them has neither a value nor an answer to a choice.
    """

    def __init__(self, engine: Engine, tools: Mapping[str, Tool] | None = None) -> None:
        """`tools`: by name, in place of those that `load_tool` makes when a request first names them."""
        self._engine = engine
        self._tools: dict[str, Tool] = dict(tools or {})
        self._parts: dict[str, tuple[_Pending, Callable[[Result], None]]] = {}
        self._outbox: list[Request] = []
        self._busy: list[_Sample] = []
        self._came: deque[Result] = deque()
        self._done: list[Result] = []

    @property
    def tokenizer(self) -> Any:
        return self._engine.tokenizer

    @property
    def policy_id(self) -> PolicyId:
        return self._engine.policy_id

    @property
    def limits(self) -> EngineLimits:
        return self._engine.limits

    def submit(self, requests: Iterable[Request]) -> None:
        """Raises RecipeError for a tool that there is not."""
        for request in requests:
            if request.tool is None:
                self._outbox.append(request)
            else:
                self._begin(request, request.tool)
        self._send()

    def poll(self, timeout: float | None = None) -> list[Result]:
        """Passes on what a tool raises. Polled again, it gives that tool's request as an error, and all others."""
        ends = float("inf") if timeout is None else time.monotonic() + timeout
        while not self._done:
            self._ask_tools()
            self._send()
            left = max(0.0, ends - time.monotonic())
            if self._busy:
                left = min(left, BUSY_SECONDS)
            results = [] if self._done else self._engine.poll(None if left == float("inf") else left)
            self._came += results
            while self._came:
                self._take(self._came.popleft())
            self._send()
            if results or self._done:
                continue
            if self._busy and time.monotonic() < ends:
                time.sleep(BUSY_SECONDS)
            elif timeout is None and self._parts:
                self._lose()
            else:
                break
        done, self._done = self._done, []
        return done

    def load(self, weights: Weights) -> None:
        """Finish what is in flight, chains to their ends, then hand the weights on."""
        finished: list[Result] = []
        while self._parts or self._busy:
            finished += self.poll()
        self._engine.load(weights)
        self._done = finished + self._done

    def close(self) -> None:
        for tool in self._tools.values():
            tool.close()
        self._engine.close()

    # --- a request, from its beginning to its end

    def _begin(self, request: Request, name: str) -> None:
        """All samples stop at the same texts at first, so they go out together, and the given ones with them."""
        if name not in self._tools:
            self._tools[name] = self._load_tool(name)
        if request.stops:  # the engine's word "stop" would not say whose
            error = f"a request with the tool {name!r} takes no stops of its own (got {list(request.stops)})"
            self._done.append(Result(request.id, (), error=error))
            return
        tool, most = self._tools[name], min(request.max_tokens, self.limits.max_context - len(request.prefix))
        scores = "given" in self.limits.scores
        sums = scores and request.want_value and "value" in self.limits.scores
        asked = _Pending(request, tool, most, sums, scores, self._ends_step(request.delimiter))
        asked.completions = [None] * (request.n + len(request.given))
        for index, seed in enumerate(request.seeds[: request.n]):
            state = tool.begin(request.prefix[request.prompt_tokens :])
            guide = Guide(state)
            asked.samples.append(_Sample(asked, index, seed, state, guide, held=guide.holds))
        first = replace(request, id=_part_id(request), tool=None)
        if asked.samples:
            sample = asked.samples[0]
            delimiter = None if sample.held else request.delimiter
            first = replace(first, stops=sample.state.stops, delimiter=delimiter)
        self._ask(asked, first, lambda result: self._first(asked, result))

    def _load_tool(self, name: str) -> Tool:
        if self._engine.tokenizer is None and name in TOOLS:
            raise RecipeError(
                f"the engine has no tokenizer, so the tool {name!r} cannot read what it samples: give the tool itself, "
                "WithTools(engine, {name: tool}), or an engine with a tokenizer"
            )
        tokenizer: Any = self._engine.tokenizer  # None: `load_tool` says that there is no such tool
        return load_tool(name, tokenizer)

    def _ends_step(self, delimiter: str | None) -> Callable[[Sequence[int]], bool]:
        tokenizer = self._engine.tokenizer
        if delimiter is None or tokenizer is None:  # ids without text: what closes a call ends no step
            return lambda ids: False
        return lambda ids: step_end(tokenizer, delimiter).ends(ids)

    def _ask(self, asked: _Pending, part: Request, then: Callable[[Result], None]) -> None:
        self._outbox.append(part)
        self._parts[part.id] = asked, then
        asked.parts += 1

    def _first(self, asked: _Pending, result: Result) -> None:
        asked.prefix_value = result.prefix_value
        for sample, found in zip(asked.samples, result.completions, strict=False):
            self._sampled(sample, found)
        for index, found in enumerate(result.completions[asked.request.n :], start=asked.request.n):
            asked.completions[index] = replace(found, forced=forced_mask(asked.tool, found.tokens))

    def _sampled(self, sample: _Sample, found: Completion) -> None:
        sample.take(found)
        self._go_on(sample)

    def _go_on(self, sample: _Sample) -> None:
        """Whatever comes next for a sample."""
        sample.force()
        if sample.finish is None and sample.state.busy:
            self._busy.append(sample)
        elif len(sample.logprobs) == len(sample.tokens):
            self._next(sample)
        elif sample.asked.scores:
            self._ask(sample.asked, sample.to_score(), lambda result: self._scored(sample, result.completions[0]))
        else:
            sample.learn(None)
            sample.logprobs += [0.0] * (len(sample.tokens) - len(sample.logprobs))
            self._next(sample)

    def _scored(self, sample: _Sample, found: Completion) -> None:
        sample.logprobs += found.logprobs
        sample.learn(found)
        self._next(sample)

    def _next(self, sample: _Sample) -> None:
        if sample.finish is None:
            self._ask(sample.asked, sample.more(), lambda result: self._sampled(sample, result.completions[0]))
        else:
            sample.guide.close()
            sample.asked.completions[sample.index] = sample.completion()

    def _settle(self, asked: _Pending) -> None:
        """Make the result of a request that needs nothing more, or nothing more of which can come."""
        if asked.parts or (asked.error is None and None in asked.completions):
            return
        if asked.error is not None:
            unfinished = [s for s in asked.samples if asked.completions[s.index] is None]
            for sample in unfinished:
                sample.guide.close()
            self._busy = [sample for sample in self._busy if sample.asked is not asked]
        found = () if asked.error else tuple(c for c in asked.completions if c is not None)
        value = None if asked.error else asked.prefix_value
        self._done.append(Result(asked.request.id, found, value, asked.error, asked.policy, asked.cost))

    # --- the engine and the tools

    def _send(self) -> None:
        if self._outbox:
            requests, self._outbox = self._outbox, []
            self._engine.submit(requests)

    def _take(self, result: Result) -> None:
        asked, then = self._parts.pop(result.request_id, (None, None))
        if asked is None or then is None:
            self._done.append(result)
            return
        asked.parts -= 1
        asked.cost = asked.cost + result.cost
        asked.error = asked.error or result.error
        if asked.error is None and asked.policy not in (None, result.policy):
            asked.error = f"policies {asked.policy} and {result.policy} answered parts of one request"
        asked.policy = asked.policy or result.policy
        if asked.error is None:
            with self._blamed(asked):
                then(result)
        self._settle(asked)

    def _ask_tools(self) -> None:
        """Go on with the samples whose tools are no longer busy."""
        waiting, self._busy = deque(self._busy), []
        try:
            while waiting:
                self._ask_tool(waiting.popleft())
        finally:
            self._busy += waiting

    def _ask_tool(self, sample: _Sample) -> None:
        if sample.asked.error is not None:  # what is in flight for it is awaited, and nothing more is sent
            return
        with self._blamed(sample.asked):
            told = sample.guide.wait(sample.left)
            if told is True:
                self._busy.append(sample)
                return
            sample.finish = told or None
            if sample.finish == "step":
                sample.end_step()
            self._go_on(sample)
        self._settle(sample.asked)

    @contextmanager
    def _blamed(self, asked: _Pending) -> Iterator[None]:
        """What a tool raises ends its request, and no other."""
        try:
            yield
        except Exception as error:
            asked.error = str(error) or type(error).__name__
            self._settle(asked)
            raise

    def _lose(self) -> None:
        """The engine has nothing in flight although parts are unanswered."""
        lost, self._parts = self._parts, {}
        for asked in dict.fromkeys(asked for asked, _ in lost.values()):
            asked.parts, asked.error = 0, "the engine lost the request"
            self._settle(asked)


def _part_id(request: Request) -> str:
    return f"{request.id}/part/{next(_part_numbers)}"


def _joined(known: list[float] | None, more: Iterable[float] | None) -> list[float] | None:
    """None where one of them is not known."""
    return None if known is None or more is None else [*known, *more]
