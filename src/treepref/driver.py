"""Keeps many trees going on one engine, journals what comes back, and replays the journal after a restart.

    jobs ──ask──▶ requests ──▶ engine ──▶ results ──judge──▶ journal ──tell (in ask order)──▶ trees ──▶ on_done

No tree waits for another; within a tree the sequence is always ask, tell, ask, tell …, in ask order, whatever the
order in which results arrive. So with a deterministic engine a tree is the same however many grow beside it and however
often the run was killed. This file does not know how a tree is searched, what a problem is, nor how anything is stored.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Protocol

from treepref.engines.base import Engine
from treepref.errors import CheckerError, TreeprefError
from treepref.search.base import Expansion, Judge, Search, node_path, path_nodes, solution_tokens
from treepref.types import BASE, Completion, Cost, JournalEntry, Node, Request, Result, SoFar, Tree

WRONG = -1.0
"""Reward of a solution whose judge raised an error."""
MESSAGES_KEPT = 20
_request_numbers = itertools.count()
"""Request ids are unique in the process: what a stopped call left in the engine is never taken for an answer."""


@dataclass(slots=True, eq=False)
class Job:
    """A tree to grow: fresh from `new_tree` (a restart replays the journal into it), its search and its judge."""

    tree: Tree
    search: Search
    judge: Judge
    question_id: str = ""
    """Named in messages; empty takes the tree's problem id."""
    tool: str | None = None
    """Name of the tool that watches its samples (`treepref.tools`)."""
    ends: tuple[str, ...] = ()
    """Texts that end a solution, beside EOS."""

    def __post_init__(self) -> None:
        self.question_id = self.question_id or self.tree.problem_id


class Journal(Protocol):
    """Where expansions of unfinished trees are kept (`store.StageJournal`)."""

    def load(self, tree: str) -> dict[str, JournalEntry]:
        """What is known of a tree, by node path."""
        ...

    def record(self, entries: Sequence[JournalEntry], cost: Cost, events: Sequence[tuple[str, str]] = ()) -> None:
        """Keep entries that arrived together, their cost and (level, message) events: all or nothing."""
        ...


@dataclass(frozen=True, slots=True)
class Progress:
    trees: int
    """Finished in this call."""
    total: int | None
    in_flight: int
    expansions: int
    """Told to trees, replayed ones included."""
    replayed: int
    """Expansions that came from the journal."""
    tokens: int
    """Generated in this call."""
    seconds: float


@dataclass(slots=True)
class DriveReport:
    """What one call of `drive` did."""

    trees: int = 0
    expansions: int = 0
    replayed: int = 0
    samples: int = 0
    tokens: int = 0
    retried: int = 0
    """Requests sent again after an error."""
    set_aside: int = 0
    """Expansions given up: told as zero completions."""
    judge_errors: int = 0
    unfinished: int = 0
    """Trees in progress when the call was stopped; their journalled expansions are replayed next time."""
    cost: Cost = field(default_factory=Cost)
    seconds: float = 0.0
    stopped: str | None = None
    """Why not all jobs were done; None when they were."""
    messages: list[str] = field(default_factory=list)
    """The first of what was skipped or failed (all of it is in the journal's events)."""


@dataclass(slots=True, eq=False)
class _Asked:
    """An expansion between ask and tell."""

    growing: _Growing
    expansion: Expansion
    path: str
    request: Request | None = None
    fingerprint: str = ""
    attempts: int = 0
    completions: tuple[Completion, ...] = ()
    rewards: tuple[float | None, ...] = ()
    prefix_value: float | None = None
    answered: bool = False


@dataclass(slots=True, eq=False)
class _Growing:
    """A tree in progress."""

    job: Job
    known: dict[str, JournalEntry]
    queue: deque[_Asked] = field(default_factory=deque)
    """In ask order; the head is told first."""
    times_asked: dict[str, int] = field(default_factory=dict)


def sample_seed(run_seed: int, tree_key: str, path: str, sample: int) -> int:
    """Seed of one sample, in [0, 2^63): it depends on nothing but where in which tree the sample stands."""
    name = f"{run_seed}\0{tree_key}\0{path}\0{sample}".encode()
    return int.from_bytes(blake2b(name, digest_size=8).digest(), "little") >> 1


def drive(
    jobs: Iterable[Job],
    engine: Engine,
    *,
    run_seed: int,
    trees_in_flight: int,
    journal: Journal | None,
    on_done: Callable[[Job], None],
    on_progress: Callable[[Progress], None] | None = None,
    stop: Callable[[], str | None] | None = None,
    retries: int = 2,
    total: int | None = None,
) -> DriveReport:
    """Grow each job's tree to its end on `engine`, `trees_in_flight` at a time, and hand it to `on_done`.

    Jobs are taken as there is room and forgotten when done, so memory does not grow with their number. Tree keys must
    be unique. `on_done` should store the tree in the transaction that ends its journal (`Store.finish_tree`); leave out
    jobs whose tree is stored. `stop` is asked before anything is sent: once it gives a reason, nothing more is sent or
    awaited, and what is journalled stays.

    A request with an error is sent again `retries` times, then set aside; it is not journalled, so a restart tries
    once more. Results that the search refuses are set aside too. When errors alone come back, for at least 100
    results and twice `trees_in_flight`, the call stops and says so, rather than void every tree. A judge that raises
    makes the reward −1, but for a CheckerError, which is passed on, as are errors of the journal (StoreError), of
    `on_done` and of a crashing engine.
    Raises ValueError for `trees_in_flight` below 1.
    """
    if trees_in_flight < 1:
        raise ValueError(f"trees_in_flight is {trees_in_flight}; it must be at least 1")
    run = _Drive(engine, run_seed, journal, on_done, stop, retries, give_up_after=max(100, 2 * trees_in_flight))
    source = iter(jobs)
    while run.report.stopped is None:
        run.admit(source, trees_in_flight)
        run.submit()
        if on_progress is not None:
            on_progress(run.progress(total))
        if not run.waiting or run.report.stopped is not None:
            break
        run.receive(engine.poll())
    run.record([])
    run.report.unfinished = run.in_flight
    run.report.seconds = run.seconds()
    return run.report


class _Drive:
    """The state of one call of `drive`."""

    def __init__(
        self,
        engine: Engine,
        run_seed: int,
        journal: Journal | None,
        on_done: Callable[[Job], None],
        stop: Callable[[], str | None] | None,
        retries: int,
        give_up_after: int,
    ) -> None:
        self.engine, self.run_seed, self.journal, self.on_done = engine, run_seed, journal, on_done
        self.stop, self.retries, self.give_up_after = stop, retries, give_up_after
        self.report = DriveReport()
        self.waiting: dict[str, _Asked] = {}
        self.outbox: list[_Asked] = []
        self.in_flight = 0
        self.errors_in_a_row = 0
        self.events: list[tuple[str, str]] = []
        self.cost = Cost()
        """Of results that are not on record yet."""
        self.started = time.monotonic()

    # -- the loop's three parts

    def admit(self, source: Iterator[Job], trees_in_flight: int) -> None:
        """Begin trees while there is room. One that the journal holds whole is done at once."""
        while self.in_flight < trees_in_flight and not self.should_stop():
            job = next(source, None)
            if job is None:
                return
            self.in_flight += 1
            growing = _Growing(job, self.journal.load(job.tree.key) if self.journal else {})
            self.ask(growing)
            self.advance(growing)

    def submit(self) -> None:
        """Send what was asked."""
        if self.should_stop() or not self.outbox:
            return
        requests = []
        for asked in self.outbox:
            assert asked.request is not None
            asked.attempts += 1
            self.waiting[asked.request.id] = asked
            requests.append(asked.request)
        self.outbox.clear()
        self.engine.submit(requests)

    def receive(self, results: Sequence[Result]) -> None:
        """Judge, journal and tell what came back; it arrived together and shares a transaction."""
        if not results:
            results = [Result(name, (), error="the engine lost the request") for name in self.waiting]
        answered: dict[_Growing, None] = {}  # a tree with several answers advances once
        entries = []
        for result in results:
            self.cost = self.cost + result.cost
            asked = self.waiting.pop(result.request_id, None)
            if asked is None:  # left in the engine by a call that was stopped
                continue
            error = result.error or _wrong_policy(asked.growing.job.tree, result)
            if error is not None:
                self.failed(asked, error)
            else:
                self.errors_in_a_row = 0
                entries.append(self.answer(asked, result))
            if asked.answered:
                answered[asked.growing] = None
        self.record(entries)
        for growing in answered:
            self.advance(growing)

    # -- one tree

    def ask(self, growing: _Growing) -> None:
        job = growing.job
        if job.search.done(job.tree):
            return
        growing.queue.extend(self.prepare(growing, expansion) for expansion in job.search.ask(job.tree))

    def prepare(self, growing: _Growing, expansion: Expansion) -> _Asked:
        """An expansion as a request, or with its answer where the journal has it."""
        tree, path = growing.job.tree, node_path(expansion.node)
        times = growing.times_asked.get(path, 0)
        growing.times_asked[path] = times + 1
        if times:  # e.g. a rollout of a leaf, then its expansion: samples of their own, entries of their own
            path = f"{path}#{times}"
        asked = _Asked(growing, expansion, path)
        prefix = tree.prompt + solution_tokens(expansion.node)
        room = self.engine.limits.max_context - len(prefix)
        if room < 1:
            limit = self.engine.limits.max_context
            self.set_aside(asked, f"its {len(prefix)} tokens leave no room in the engine's context of {limit}")
            return asked
        asked.request = Request(
            id=_request_id(tree, path),
            prefix=prefix,
            n=expansion.n,
            seeds=tuple(sample_seed(self.run_seed, tree.key, path, i) for i in range(expansion.n)),
            max_tokens=min(expansion.max_tokens, room),
            temperature=expansion.temperature,
            top_p=expansion.top_p,
            delimiter=expansion.delimiter,
            want_value=expansion.want_value,
            choice=expansion.choice,
            given=expansion.given,
            ends=growing.job.ends,
            tool=growing.job.tool,
            prompt_tokens=len(tree.prompt),
            group=tree.key,
            so_far=so_far(expansion.node),
        )
        asked.fingerprint = _fingerprint(asked.request)
        entry = growing.known.pop(path, None)
        if entry is not None and entry.request == asked.fingerprint:
            asked.completions, asked.rewards, asked.prefix_value = entry.completions, entry.rewards, entry.prefix_value
            asked.answered = True
            self.report.replayed += 1
        else:
            self.outbox.append(asked)
        return asked

    def advance(self, growing: _Growing) -> None:
        """Tell what stands answered at the head of the queue. One ask follows each tell, so arrival never shows."""
        while growing.queue and growing.queue[0].answered:
            self.tell(growing.queue.popleft())
            self.ask(growing)
        if not growing.queue:
            self.finish(growing.job)

    def tell(self, asked: _Asked) -> None:
        job, told = asked.growing.job, (asked.completions, asked.rewards, asked.prefix_value)
        try:
            job.search.tell(job.tree, asked.expansion, *told)
        except TreeprefError as error:  # the search refused it before it touched the tree, e.g. a log-prob that is NaN
            self.count_error(str(error))
            self.set_aside(asked, str(error))
            job.search.tell(job.tree, asked.expansion, (), (), None)
        self.report.expansions += 1

    def finish(self, job: Job) -> None:
        if len(job.tree.nodes) == 1 and not job.tree.failed:
            room = self.engine.limits.max_context - len(job.tree.prompt)
            self.note(job, "nothing was searched" + (": its prompt fills the context" if room < 1 else ""))
        elif not job.search.done(job.tree):
            self.note(job, "the search ended before it was done: it asks for nothing and waits for nothing")
        if self.events:
            self.record([])  # what went wrong is on record before the tree is
        self.in_flight -= 1
        self.report.trees += 1
        self.on_done(job)

    # -- one answer

    def answer(self, asked: _Asked, result: Result) -> JournalEntry:
        job = asked.growing.job
        asked.completions, asked.prefix_value, asked.answered = result.completions, result.prefix_value, True
        asked.rewards = self.judge(asked, result.completions)
        self.report.samples += len(result.completions)
        sampled = result.completions[: asked.expansion.n]
        self.report.tokens += sum(len(c.tokens) - sum(c.forced or ()) for c in sampled)
        told = (asked.completions, asked.rewards, asked.prefix_value)
        return JournalEntry(job.tree.key, asked.path, asked.fingerprint, *told)

    def judge(self, asked: _Asked, completions: Sequence[Completion]) -> tuple[float | None, ...]:
        """A reward for each finished solution; equal ones are judged once."""
        job, start = asked.growing.job, solution_tokens(asked.expansion.node)
        found: dict[tuple[int, ...], float | None] = {}
        for completion in completions:
            if completion.finish == "eos" and completion.tokens not in found:
                try:
                    found[completion.tokens] = job.judge(job.tree, start + completion.tokens)
                except CheckerError:  # going on would store wrong outcomes; what was paid so far is on record
                    self.record([])
                    raise
                except Exception as error:  # a checker may be the user's own code
                    found[completion.tokens] = WRONG
                    self.report.judge_errors += 1
                    where = f"a solution below node {asked.path or 'root'} counts as wrong"
                    self.note(job, f"{where}: its answer could not be checked: {type(error).__name__}: {error}")
        return tuple(found[c.tokens] if c.finish == "eos" else None for c in completions)

    def failed(self, asked: _Asked, error: str) -> None:
        """Send again, or set aside."""
        assert asked.request is not None
        self.count_error(error)
        if asked.attempts > self.retries:
            self.set_aside(asked, f"{asked.attempts} attempts failed, the last with: {error}")
            return
        asked.request = replace(asked.request, id=_request_id(asked.growing.job.tree, asked.path))
        self.report.retried += 1
        self.outbox.append(asked)

    def set_aside(self, asked: _Asked, why: str) -> None:
        asked.completions, asked.rewards, asked.prefix_value, asked.answered = (), (), None, True
        self.report.set_aside += 1
        self.note(asked.growing.job, f"node {asked.path or 'root'} was set aside: {why}")

    def count_error(self, error: str) -> None:
        self.errors_in_a_row += 1
        if self.errors_in_a_row >= self.give_up_after and self.report.stopped is None:
            self.report.stopped = f"the last {self.errors_in_a_row} requests all failed, the last with: {error}"

    # -- the whole call

    def should_stop(self) -> bool:
        if self.report.stopped is None and self.stop is not None:
            self.report.stopped = self.stop()
        return self.report.stopped is not None

    def note(self, job: Job, message: str) -> None:
        message = f"problem {job.question_id}: {message}"
        self.events.append(("warning", message))
        if len(self.report.messages) < MESSAGES_KEPT:
            self.report.messages.append(message)

    def record(self, entries: Sequence[JournalEntry]) -> None:
        """Journal entries with the events and the cost of what came back since the last time."""
        cost, self.cost = self.cost, Cost()
        if self.journal is not None and (entries or self.events or cost != Cost()):
            self.journal.record(entries, cost, self.events)
        self.report.cost = self.report.cost + cost
        self.events = []

    def seconds(self) -> float:
        return time.monotonic() - self.started

    def progress(self, total: int | None) -> Progress:
        r = self.report
        return Progress(r.trees, total, self.in_flight, r.expansions, r.replayed, r.tokens, self.seconds())


def so_far(node: Node) -> SoFar:
    """What the value head found on the way to a node; nothing where it reads no mean."""
    read = [n for n in path_nodes(node) if n.score is not None]
    return SoFar(math.fsum(n.score or 0.0 for n in read), sum(len(n.tokens) for n in read)) if read else SoFar()


def _wrong_policy(tree: Tree, result: Result) -> str | None:
    """Why an answer is not for this tree; a tree whose policy has no name takes any."""
    if result.policy in (None, tree.policy) or tree.policy == BASE:
        return None
    return f"policy {result.policy} answered, and the tree is grown by {tree.policy}"


def _request_id(tree: Tree, path: str) -> str:
    return f"{tree.key}/{path or 'root'}/{next(_request_numbers)}"


def _fingerprint(request: Request) -> str:
    """Names what is asked to the letter: an entry that another prompt or other settings left is never replayed."""
    asked = (request.prefix, request.seeds, request.max_tokens, request.temperature, request.top_p)
    asked = (*asked, request.delimiter, request.want_value)
    if request.choice is not None or request.given or request.tool is not None:
        asked = (*asked, request.choice, request.given, request.tool, request.prompt_tokens)
    if request.ends:
        asked = (*asked, request.ends)
    text = repr(asked)
    return blake2b(text.encode(), digest_size=16).hexdigest()
