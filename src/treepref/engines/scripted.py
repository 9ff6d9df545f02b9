"""An engine without a model: completions are a deterministic function of the prefix and the sample's seed.

For tests and for studying search alone. Knows no text: the world's token 0 is EOS, token 1 ends a step whatever
delimiter a request names, the others are words. A request's stops and ends name tokens by numbers ("4"). It has no
tools: `engines/with_tools.py` runs them.
"""

from __future__ import annotations

import hashlib
import math
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from treepref.engines.base import Asked, EngineLimits
from treepref.errors import ModelError
from treepref.types import BASE, Choice, Completion, Cost, Finish, PolicyId, Request, Result

Script = Callable[[tuple[int, ...], int, Request], Completion]
"""(prefix, the sample's seed, the request) → one sample."""

ValueScript = Callable[[tuple[int, ...]], "float | None"]
"""V of a prefix."""

ChoiceScript = Callable[[tuple[int, ...], Choice], tuple[float, ...]]
"""(prefix through the completion, EOS included; the choice) → probability mass of each option."""

ScoreScript = Callable[[tuple[int, ...], tuple[int, ...]], Sequence[float]]
"""(prefix, a given continuation) → log-prob of each of its tokens."""

EOS = 0
DELIMITER = 1


@dataclass(frozen=True, slots=True)
class World:
    """A made-up policy with problems to solve: every number is hashed from the tokens before it and the world's seed.

    Next-token probabilities are a softmax of hashed logits. Every finished step has a hashed quality in [-1, 1]; a
    solution is right when the qualities of its steps sum above zero; V is a noisy view of the sum so far. So values
    carry information about outcomes, as a trained head's do, and `noise` sets how much.
    """

    seed: int = 0
    words: int = 4
    """Tokens besides EOS and the delimiter; at most 30."""
    sharpness: float = 1.5
    """Logits lie in [-sharpness, sharpness]."""
    eos_bias: float = -1.0
    """Added to the logit of EOS; lower means longer solutions."""
    noise: float = 0.5
    """Of the values; 0 makes V tell right from wrong at every finished solution."""

    def __post_init__(self) -> None:
        if not 1 <= self.words <= 30:
            raise ValueError(f"World.words is {self.words}; it must be between 1 and 30")

    def complete(self, prefix: tuple[int, ...], seed: int, request: Request) -> Completion:
        """One sample as the request asks for it: to the step's end, to EOS, to a stop, or to the length limit."""
        history = self._history(prefix)
        tokens: list[int] = []
        logprobs: list[float] = []
        behaviour: list[float] = []
        finish: Finish | None = None
        while finish is None and len(tokens) < request.max_tokens:
            policy = self._log_softmax(history)
            sampler = _sampler(policy, request.temperature, request.top_p)
            token = _draw(sampler, _uniform(f"{seed}:{request.begun + len(tokens)}".encode()))
            tokens.append(token)
            logprobs.append(policy[token])
            behaviour.append(math.log(sampler[token]))
            history.update(_bytes(token))
            finish = _ended(token, request)
        tempered = request.temperature != 1.0 or request.top_p < 1.0
        return Completion(
            tokens=tuple(tokens),
            logprobs=tuple(logprobs),
            finish=finish or "length",
            behaviour=tuple(behaviour) if tempered else None,
            value=self.value(prefix + tuple(tokens)),
        )

    def logprobs(self, prefix: tuple[int, ...], tokens: tuple[int, ...]) -> list[float]:
        """Log-prob of each of the tokens behind a prefix. Raises ModelError for a token that the world has not."""
        history, found = self._history(prefix), []
        for token in tokens:
            policy = self._log_softmax(history)
            if not 0 <= token < len(policy):
                raise ModelError(f"token {token} is not in this world, whose tokens are 0 to {len(policy) - 1}")
            found.append(policy[token])
            history.update(_bytes(token))
        return found

    def choice_probs(self, prefix: Sequence[int], choice: Choice) -> tuple[float, ...]:
        """Mass of each option, as if the first meant "right" of the solution so far: a noisy view as V is.

        Between a half and all of the probability lies on the options; the others share what the first leaves.
        """
        noise = self.noise * (2 * _uniform(self._history(prefix, "choice").digest()) - 1)
        mass = 0.5 + 0.5 * _uniform(self._history(prefix, "mass").digest())
        right = mass * (1 + math.tanh(self._quality(prefix) + noise)) / 2
        others = len(choice.options) - 1
        return (right, *[(mass - right) / max(1, others)] * others)

    def value(self, prefix: Sequence[int]) -> float:
        """V at the last token of `prefix`, in [-1, 1]."""
        noise = self.noise * (2 * _uniform(self._history(prefix, "noise").digest()) - 1)
        return math.tanh(self._quality(prefix) + noise)

    def reward(self, prefix: Sequence[int]) -> float:
        """+1 for a right solution, −1 for a wrong or an unfinished one; `prefix` is prompt and solution."""
        return 1.0 if prefix and prefix[-1] == EOS and self._quality(prefix) > 0 else -1.0

    def _quality(self, prefix: Sequence[int]) -> float:
        history, total = self._history((), "quality"), 0.0
        for token in prefix:
            history.update(_bytes(token))
            if token in (EOS, DELIMITER):
                total += 2 * _uniform(history.digest()) - 1
        return total

    def _history(self, tokens: Sequence[int], of: str = "policy") -> hashlib.blake2b:
        """A running hash of the tokens so far: what the world's next number depends on."""
        history = hashlib.blake2b(f"{of}:{self.seed}:".encode(), digest_size=64)
        history.update(b"".join(map(_bytes, tokens)))
        return history

    def _log_softmax(self, history: hashlib.blake2b) -> list[float]:
        """Log-probs of the next token, shape (2 + words,)."""
        noise = history.digest()
        logits = []
        for i in range(2 + self.words):
            uniform = int.from_bytes(noise[2 * i : 2 * i + 2], "little") / 0xFFFF
            logits.append(self.sharpness * (2 * uniform - 1))
        logits[EOS] += self.eos_bias
        log_total = math.log(math.fsum(map(math.exp, logits)))
        return [logit - log_total for logit in logits]


class ScriptedEngine:
    """Answers requests from a script, deterministically, however they are batched, ordered or repeated.

    Without arguments it plays `World()`. Arguments that make life hard for a driver, none of which changes a result:
    `batch` requests finish a poll (None: all); `shuffle` seeds a random choice of which finish first; `latency` seconds
    pass in every poll; `fail(request)` returns the error text of a request that is to fail, or None.
    """

    tokenizer: Any = None

    def __init__(
        self,
        script: Script | None = None,
        *,
        value: ValueScript | None = None,
        choice: ChoiceScript | None = None,
        score: ScoreScript | None = None,
        world: World | None = None,
        has_values: bool = True,
        max_context: int = 4096,
        policy_id: PolicyId = BASE,
        batch: int | None = None,
        shuffle: int | None = None,
        latency: float = 0.0,
        fail: Callable[[Request], str | None] | None = None,
    ) -> None:
        """`world` is played where no script is.

        What a script says beside its samples: `value` is V of a prefix (none without it), `choice` answers choices
        (without it, the completions' own `choice_probs` stand), `score` weighs given continuations (without it they
        are an error). A script may force tokens as it likes.
        """
        if batch is not None and batch < 1:
            raise ValueError(f"batch is {batch}; it must be at least 1")
        self.world = world or World()
        self.has_values = has_values
        self.max_context = max_context
        self.policy_id = policy_id
        self.cost = Cost()
        self._script = script
        self._value = value
        self._choice = choice
        self._score = score
        self._batch = batch
        self._order = None if shuffle is None else random.Random(shuffle)
        self._latency = latency
        self._fail = fail
        self._waiting: list[Request] = []
        self._ready: list[Result] = []

    @property
    def in_flight(self) -> int:
        return len(self._waiting) + len(self._ready)

    def submit(self, requests: Iterable[Request]) -> None:
        """Raises ValueError for a request whose id is in flight already or whose seeds are not one a sample."""
        known = {r.id for r in self._waiting} | {r.request_id for r in self._ready}
        for request in requests:
            if request.id in known:
                raise ValueError(f"request {request.id!r} is in flight already")
            if len(request.seeds) != request.n:
                raise ValueError(f"request {request.id!r}: {len(request.seeds)} seeds for {request.n} samples")
            known.add(request.id)
            self._waiting.append(request)

    def poll(self, timeout: float | None = None) -> list[Result]:
        if self._latency and self.in_flight:
            time.sleep(self._latency)
        results, self._ready = self._ready, []
        if not results and self._waiting:
            count = min(self._batch or len(self._waiting), len(self._waiting))
            chosen = list(range(count))
            if self._order is not None:
                count = self._order.randint(1, count)
                chosen = self._order.sample(range(len(self._waiting)), count)
            results = [self._answer(self._waiting[i]) for i in chosen]
            finished = set(chosen)
            self._waiting = [r for i, r in enumerate(self._waiting) if i not in finished]
        return results

    @property
    def limits(self) -> EngineLimits:
        scores: set[Asked] = {"choice", "given", "value"}
        scores -= set() if self.has_values else {"value"}
        return EngineLimits(self.max_context, True, frozenset(scores))

    def load(self, weights: Any) -> None:
        """Finish what is in flight under the old policy; `weights.world`, if there, is played from here on."""
        self._ready += [self._answer(request) for request in self._waiting]
        self._waiting = []
        self.policy_id = weights.id
        self.world = getattr(weights, "world", self.world)

    def close(self) -> None:
        self._waiting, self._ready = [], []

    def _answer(self, request: Request) -> Result:
        error = self._fail(request) if self._fail else None
        room = self.max_context - len(request.prefix)
        if error is None and room < 1:
            error = f"the prefix of {len(request.prefix)} tokens fills the context of {self.max_context}"
        if error is not None:
            return Result(request.id, (), error=error)
        want_value = request.want_value and self.has_values
        limited = replace(request, max_tokens=min(request.max_tokens, room))
        try:
            sampled = [self._sample(limited, seed) for seed in request.seeds]
            given = [self._scored(request, tokens, room) for tokens in request.given]
        except ModelError as error:
            return Result(request.id, (), error=str(error))
        asked = [self._asked(request, completion) for completion in (*sampled, *given)]
        completions = tuple(replace(completion, value=completion.value if want_value else None) for completion in asked)
        forced = sum(sum(c.forced or ()) for c in sampled)
        asking = 0 if request.choice is None else len(request.choice.suffix) * sum(map(_was_asked, asked))
        cost = Cost(
            prefill_tokens=len(request.prefix) + forced,
            generated_tokens=sum(len(c.tokens) for c in sampled) - forced,
            scored_tokens=sum(len(c.tokens) for c in given) + asking,
        )
        self.cost = self.cost + cost
        prefix_value = self._prefix_value(request.prefix) if want_value else None
        return Result(request.id, completions, prefix_value, policy=self.policy_id, cost=cost)

    def _sample(self, request: Request, seed: int) -> Completion:
        if self._script is not None:
            return self._script(request.prefix, seed, request)
        if request.tool is not None:
            raise ModelError(f"a scripted engine has no tool {request.tool!r}: put WithTools(engine, …) before it")
        return self.world.complete(request.prefix, seed, request)

    def _scored(self, request: Request, given: tuple[int, ...], room: int) -> Completion:
        """A given continuation as a completion; one that does not fit the context is cut."""
        if not given:
            raise ModelError("a given continuation is empty: at least one token must be scored")
        score = self._score or (self.world.logprobs if self._script is None else None)
        if score is None:
            raise ModelError("this scripted engine scores no given continuations: give it score=…")
        tokens = given[:room]
        finish: Finish = "length" if len(given) > room else "eos" if given[-1] == EOS else "step"
        value = self._prefix_value(request.prefix + tokens)
        return Completion(tokens, tuple(score(request.prefix, tokens)), finish, value=value)

    def _asked(self, request: Request, completion: Completion) -> Completion:
        """The completion with the answer to the request's choice."""
        if request.choice is None or completion.finish not in ("step", "eos"):
            return replace(completion, choice_probs=None)
        answer = self._choice or (self.world.choice_probs if self._script is None else None)
        if answer is None:
            return completion
        return replace(completion, choice_probs=answer(request.prefix + completion.tokens, request.choice))

    def _prefix_value(self, prefix: tuple[int, ...]) -> float | None:
        if not self.has_values:
            return None
        if self._value is not None:
            return self._value(prefix)
        return self.world.value(prefix) if self._script is None else None


def _was_asked(completion: Completion) -> bool:
    return completion.choice_probs is not None


def _ended(token: int, request: Request) -> Finish | None:
    """How a token that was sampled ends the sample, if it does."""
    if token == EOS or str(token) in request.ends:
        return "eos"
    if token == DELIMITER and request.delimiter is not None:
        return "step"
    return "stop" if str(token) in request.stops else None


def _sampler(policy: Sequence[float], temperature: float, top_p: float) -> list[float]:
    """Probabilities that tokens are drawn with: tempered, cut to the nucleus, renormalised. Temperature 0 is greedy."""
    if temperature == 0:
        best = max(range(len(policy)), key=policy.__getitem__)
        return [float(i == best) for i in range(len(policy))]
    peak = max(policy)
    weights = [math.exp((logprob - peak) / temperature) for logprob in policy]
    if top_p < 1:
        left = top_p * math.fsum(weights)
        for i in sorted(range(len(weights)), key=lambda i: (-weights[i], i)):
            if left <= 0:
                weights[i] = 0.0
            else:
                left -= weights[i]
    total = math.fsum(weights)
    return [w / total for w in weights]


def _draw(probabilities: Sequence[float], uniform: float) -> int:
    """Inverse of the cumulative distribution; the last possible token where rounding leaves a gap."""
    drawn = 0
    for i, p in enumerate(probabilities):
        if p > 0:
            drawn = i
            if uniform < p:
                break
            uniform -= p
    return drawn


def _uniform(material: bytes) -> float:
    """A number in [0, 1) hashed from bytes."""
    return int.from_bytes(hashlib.blake2b(material, digest_size=8).digest()[:6], "little") / (1 << 48)


def _bytes(token: int) -> bytes:
    return token.to_bytes(8, "little", signed=True)
