"""The table at the end of a run, in at most 100 columns of a terminal. Reads results.json's content alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from treepref.report import numbers
from treepref.report.data import group_events
from treepref.report.reading import example_line, summary_line

WIDTH = 100
SHOWN_EVENTS = 6
EXAMPLE_CHARS = 60
"""Of a solution that is shown as an example."""


def print_results(
    results: Mapping[str, Any],
    events: Iterable[Mapping[str, Any]] = (),
    console: Console | None = None,
    *,
    unfinished: Sequence[str] = (),
    stopped: str | None = None,
    readings: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Rounds, what was read of solutions, cost, and what was skipped, failed or left `unfinished` (names of stages).

    `readings` are those of `ReportData`; `stopped` is what ended the run.
    """
    console = console or Console()
    if results["rounds"]:
        console.print(results_table(results))
    for line in footnotes(results):
        console.print(Text(line, style="dim"))
    for reading in readings:
        for line in reading_lines(reading):
            console.print(Text(line), overflow="fold")
    console.print(Text(cost_line(results["cost"])))
    if split := kind_line(results.get("cost_by_kind")):
        console.print(Text(split))
    for line in event_lines(events, unfinished, stopped):
        console.print(Text(line), overflow="fold")


def results_table(results: Mapping[str, Any]) -> Table:
    """A round a row: accuracy in percent, beneath it the interval or the tokens a problem."""
    rounds = results["rounds"]
    sbs = numbers.sbs_method(rounds)
    methods = ["sc@8", "bon@8", "wvote@8", sbs]
    if any(entry["eval"].get("mcts") for entry in rounds):
        methods.append("mcts")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, title_justify="left", title_style="bold")
    table.title = "Accuracy in % on held-out problems (beneath: 95 % interval; tokens a problem)"
    table.add_column("round", justify="right", no_wrap=True)
    table.add_column("greedy", justify="right", no_wrap=True)
    for method in methods:
        table.add_column(method, justify="right", no_wrap=True)
    table.add_column("pass@1/8", justify="right", no_wrap=True)
    table.add_column("Δ greedy", justify="right", no_wrap=True)
    for entry in rounds:
        greedy = entry["eval"].get("greedy")
        passed = entry["pass@k"]
        change = entry["paired"].get("greedy_vs_previous")
        tokens = f"{numbers.count(greedy['tokens_per_problem'])} tok" if greedy else numbers.NONE
        interval = numbers.percent_interval(greedy["interval"]) if greedy else numbers.NONE
        table.add_row(
            str(entry["round"]),
            _cell(numbers.percent(greedy and greedy["accuracy"]), interval, tokens, style="bold"),
            *(_method_cell(entry["eval"].get(method)) for method in methods),
            f"{numbers.percent(passed.get('1'))}/{numbers.percent(passed.get('8'))}" if passed else numbers.NONE,
            _cell(
                numbers.points(change),
                numbers.points_interval(change) if change else "",
                style=_change_style(change),
            ),
        )
    return table


def footnotes(results: Mapping[str, Any]) -> list[str]:
    """What the last row adds up to: the whole run's change, and step beam search at equal tokens."""
    if not results["rounds"]:
        return ["No round was evaluated."]
    last = results["rounds"][-1]
    lines = ["Δ greedy: percentage points against the round before, on the same problems, 95 % paired interval."]
    lines += strict_and_unread(results)
    whole = last["paired"].get("greedy_vs_first")
    if whole and len(results["rounds"]) > 2:
        lines.append(f"Over all rounds: greedy {numbers.points(whole)} {numbers.points_interval(whole)}.")
    if judged := last.get("self_evaluation"):
        lines.append(
            f"Self-evaluation in the last search: AUC {numbers.decimal(judged['auc'])} over {judged['n']} finished "
            f"solutions, {numbers.decimal(judged['auc_steps'])} over {judged['n_steps']} steps before the end."
        )
    if fit := last.get("fit"):
        lines.append(_fit_line(fit))
    if used := (last.get("tool_use") or {}).get("greedy"):
        lines.append(f"Tool use: {numbers.percent(used['share'])} % of the last round's greedy solutions.")
    for point in last["curves"].get("sbs") or []:
        equal = point["equal_tokens"]
        if equal and f"sbs({point['b1']},{point['b2']})" == numbers.sbs_method(results["rounds"]):
            lines.append(
                f"sbs({point['b1']},{point['b2']}) against self-consistency at equal tokens "
                f"({numbers.count(point['tokens_per_problem'])} a problem): "
                f"{numbers.points(equal)} {numbers.points_interval(equal)}."
            )
    return lines


def _fit_line(fit: Mapping[str, Any]) -> str:
    """How well the value head, the log-prob and both tell right from wrong, on problems that the fit did not see."""
    names = {"value": "V", "before": "V as training left it", "logprob": "log-prob", "joint": "V and log-prob joined"}
    shown = [
        f"{name} {numbers.decimal(fit[key]['auc'])} ({numbers.decimal(fit[key]['auc_within'])} within a problem)"
        for key, name in names.items()
        if key in fit
    ]
    layer = fit["read"]["layer"]
    where = f"{'the last layer' if layer < 0 else f'layer {layer}'}, {fit['read']['pool']}"
    return f"AUC on training problems held back: {', '.join(shown)}; V reads {where}."


def strict_and_unread(results: Mapping[str, Any]) -> list[str]:
    """Where the strict reader differs, and how many solutions could not be read or were cut; nothing where none is."""
    lines = []
    for entry in results["rounds"]:
        shown = [(name, e) for name, e in entry["eval"].items() if e]
        strict = [(n, e["strict_accuracy"]) for n, e in shown if numbers.strict_differs(e)]
        if strict:
            lines.append(f"Round {entry['round']}, strict (in the task's own form alone), %: {_listed(strict)}.")
        own = [(n, e) for n, e in shown if numbers.family(n) not in ("bon", "wvote")]  # of the same samples as sc
        if unread := [(n, e["unreadable"]) for n, e in own if e.get("unreadable")]:
            lines.append(f"Round {entry['round']}, finished without an answer that can be read, %: {_listed(unread)}.")
        if cut := [(n, e["cut"]) for n, e in own if e.get("cut")]:
            lines.append(f"Round {entry['round']}, cut before the end, %: {_listed(cut)}.")
    return lines


def _listed(shares: Iterable[tuple[str, float]]) -> str:
    return ", ".join(f"{name} {numbers.percent(share)}" for name, share in shares)


def reading_lines(reading: Mapping[str, Any]) -> list[str]:
    """What was read of some solutions, with the examples among those that are not right."""
    lines = []
    if reading["search"]:
        lines.append(
            f"{reading['title']}: of {reading['trees']} trees {reading['solved']} found a right solution, "
            f"{reading['mixed']} right and wrong ones, {reading['unsolved']} no right one."
        )
    title = "Solutions" if reading["search"] else reading["title"]
    lines.append(f"{title}: {summary_line(reading)}." + (" Not right:" if reading["examples"] else ""))
    return lines + [f"  {example_line(example, EXAMPLE_CHARS)}" for example in reading["examples"]]


def cost_line(cost: Mapping[str, float]) -> str:
    """Tokens by what was done for them, FLOPs, time."""
    tokens = ", ".join(
        f"{numbers.count(cost.get(f'{kind}_tokens'))} {label}"
        for kind, label in (
            ("generated", "generated"),
            ("prefill", "prefilled"),
            ("cached", "cached"),
            ("scored", "scored"),
            ("training", "trained"),
        )
    )
    return f"Cost: {tokens} tokens; {numbers.flops(cost.get('flops'))} FLOPs; {numbers.duration(cost.get('seconds'))}"


def kind_line(kinds: Mapping[str, Mapping[str, float]] | None) -> str | None:
    """FLOPs of search, training and evaluation apart."""
    if kinds is None:
        return None
    parts = (f"{kind} {numbers.flops(cost['flops'])}" for kind, cost in kinds.items() if cost["flops"])
    found = ", ".join(parts)
    return f"FLOPs: {found}" if found else None


def event_lines(
    events: Iterable[Mapping[str, Any]], unfinished: Sequence[str] = (), stopped: str | None = None
) -> list[str]:
    """Skips and failures, equal ones together, the most frequent first; before them, where the run stands still, and
    what stopped it in a line."""
    groups = group_events(e for e in events if e.get("level") not in ("info", "error"))
    lines = [f"Not finished: {', '.join(unfinished)}."] if unfinished else []
    lines += [f"Stopped: {stopped.splitlines()[0]}"] if stopped else []
    if not groups:
        return lines or ["Nothing was skipped and nothing failed."]
    lines += [f"Skipped or failed: {sum(g.count for g in groups)} (all of them are in report.html)"]
    for group in groups[:SHOWN_EVENTS]:
        message = " ".join(group.message.split())
        line = f"  {group.count:>6} × {group.stage}: {message}"
        lines.append(line if len(line) <= WIDTH else line[: WIDTH - 1] + "…")
    if len(groups) > SHOWN_EVENTS:
        lines.append(f"         and {len(groups) - SHOWN_EVENTS} other kinds")
    return lines


def _method_cell(entry: Mapping[str, Any] | None) -> Text:
    if not entry:
        return Text(numbers.NONE, style="dim")
    return _cell(numbers.percent(entry["accuracy"]), "", f"{numbers.count(entry['tokens_per_problem'])} tok")


def _cell(first: str, *below: str, style: str = "") -> Text:
    text = Text(first, style=style)
    for line in below:
        text.append(f"\n{line}", style="not bold dim")
    return text


def _change_style(change: Mapping[str, Any] | None) -> str:
    if change is None or not numbers.is_clear(change):
        return ""
    return "green" if change["difference"] > 0 else "red"
