"""What every benchmark needs: two sides timed in turn, peak memory, versions, the machine, and the last line of JSON.

A benchmark first checks that both sides compute the same, then calls `alternate`, and ends with `finish`, whose last
line of output is one JSON object that `benchmarks/table.py` collects. Knows nothing of what is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RUNS = 5
"""How often each side runs, at least, where figures are to be kept."""


TOLD = 10.0
"""Seconds from which a single run of a side is told."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Seconds of two sides that ran in turn: first theirs, then ours, and again."""

    theirs: tuple[float, ...]
    ours: tuple[float, ...]
    peak_theirs: float
    """Most memory that the process held while their side ran, MiB."""
    peak_ours: float

    @property
    def ratios(self) -> list[float]:
        """Their seconds over ours, of each turn: above 1 we are faster."""
        return [a / b for a, b in zip(self.theirs, self.ours, strict=True)]

    @property
    def ratio(self) -> float:
        """Median of the turns' ratios: what slows a turn down slows both of its sides."""
        return statistics.median(self.ratios)

    @property
    def spread(self) -> tuple[float, float]:
        return min(self.ratios), max(self.ratios)

    def scaled(self, factor: float) -> Comparison:
        """The same with their seconds multiplied, for sides that did unequal amounts of work."""
        return Comparison(tuple(a * factor for a in self.theirs), self.ours, self.peak_theirs, self.peak_ours)

    def as_dict(self) -> dict[str, Any]:
        return {
            "ratio": rounded(self.ratio),
            "spread": [rounded(r) for r in self.spread],
            "runs": len(self.ours),
            "seconds_theirs": rounded(statistics.median(self.theirs)),
            "seconds_ours": rounded(statistics.median(self.ours)),
            "peak_mb_theirs": round(self.peak_theirs),
            "peak_mb_ours": round(self.peak_ours),
        }

    def __str__(self) -> str:
        low, high = self.spread
        seconds = f"{statistics.median(self.theirs):.3g} s against {statistics.median(self.ours):.3g} s"
        return f"{self.ratio:.2f}x [{low:.2f}, {high:.2f}] over {len(self.ours)} turns; {seconds}"


def alternate(
    theirs: Callable[[], Any],
    ours: Callable[[], Any],
    *,
    runs: int = RUNS,
    warmup: int = 1,
    before: Callable[[], Any] | None = None,
) -> Comparison:
    """Run both sides in turn, `warmup` times untimed and `runs` times timed; `before` runs untimed before each side."""
    return take_turns({"theirs": theirs}, ours, runs=runs, warmup=warmup, before=before)["theirs"]


def take_turns(
    theirs: Mapping[str, Callable[[], Any]],
    ours: Callable[[], Any],
    *,
    runs: int = RUNS,
    warmup: int = 1,
    before: Callable[[], Any] | None = None,
) -> dict[str, Comparison]:
    """The same with several sides to compare ours with: each turn runs all of theirs, then ours once.

    Peak memory is that of the first turn, before which each side gives back what the one before it had freed.
    """
    sides, names = [*theirs.values(), ours], [*theirs, "ours"]
    seconds: list[list[float]] = [[] for _ in sides]
    peaks = [0.0] * len(sides)
    for turn in range(warmup + runs):
        for side, work in enumerate(sides):
            if before is not None:
                before()
            if turn == 0:
                trim()
            took, peak = timed(work)
            if took > TOLD:  # a long benchmark says how far it is, and what a cut one had found
                print(f"turn {turn + 1} of {warmup + runs}: {names[side]} {took:.1f} s", flush=True)
            if turn >= warmup:
                seconds[side].append(took)
            if turn == 0:
                peaks[side] = peak
    return {
        name: Comparison(tuple(took), tuple(seconds[-1]), peak, peaks[-1])
        for name, took, peak in zip(theirs, seconds, peaks, strict=False)
    }


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds that `work` takes and the process's peak memory meanwhile (MiB)."""
    gc.collect()
    reset_peak()
    started = time.perf_counter()
    work()
    return time.perf_counter() - started, peak_mb()


def _status(key: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) / 1024
    return 0.0


def trim() -> None:
    """Give freed memory back to the system where it can be asked for, so that it is not counted as the next one's."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def reset_peak() -> None:
    """Forget the process's peak memory (Linux; elsewhere, or where forbidden, the peak is the whole process's)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_mb() -> float:
    """Most memory resident since `reset_peak`, MiB; 0 where the system does not say."""
    return _status("VmHWM") if Path("/proc/self/status").exists() else 0.0


def rss_mb() -> float:
    """Memory resident now, MiB; 0 where the system does not say."""
    return _status("VmRSS") if Path("/proc/self/status").exists() else 0.0


def machine(threads: int | None = None) -> dict[str, Any]:
    """What kind of machine this is: processor, cores, the instruction sets that matter, memory. No names."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []

    def field(name: str) -> str:
        return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), "")

    flags = set(field("flags").split())
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    found: dict[str, Any] = {
        "cpu": field("model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "isa": [name for name in wanted if name in flags],
        "memory_gb": round(memory),
        "load": round(os.getloadavg()[0], 1),
    }
    return found | ({"threads": threads} if threads is not None else {})


def versions(*packages: str) -> dict[str, str]:
    """Installed versions by package name, Python's first; `missing` where it is not installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "missing"
    return found


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has: --quick and --runs."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--quick", action="store_true", help="a few seconds at toy sizes: shows that it works, no figure")
    made.add_argument("--runs", type=int, default=None, help=f"turns of both sides (default {RUNS}; 1 with --quick)")
    return made


def runs_of(options: argparse.Namespace) -> int:
    return options.runs if options.runs is not None else 1 if options.quick else RUNS


def same(what: str, largest_difference: float, allowed: float) -> None:
    """Stop unless both sides compute the same."""
    verdict = "same" if largest_difference <= allowed else "NOT THE SAME"
    print(f"check: {what}: largest difference {largest_difference:.2g}, allowed {allowed:.2g}: {verdict}", flush=True)
    if not largest_difference <= allowed:
        raise SystemExit(f"{what} differs between the two sides: nothing was timed")


def command() -> str:
    """How this process was started, from the folder of the repository."""
    script = Path(sys.argv[0])
    with contextlib.suppress(ValueError):
        script = script.resolve().relative_to(Path(__file__).resolve().parent.parent)
    return " ".join(["python", str(script), *sys.argv[1:]])


def finish(
    name: str,
    *,
    ratio: float | None,
    spread: Sequence[float] | None,
    ideal: float | None = None,
    packages: Sequence[str] = (),
    quick: bool = False,
    threads: int | None = None,
    **more: Any,
) -> None:
    """Print the last line: one JSON object. `ratio` above 1 means that ours is faster; None where nothing is compared.

    `rows` among `more` may list further comparisons of the benchmark, each a dict with "name", "ratio" and "spread".
    """
    result: dict[str, Any] = {"name": name, "ratio": rounded(ratio), "ideal": rounded(ideal)}
    result["spread"] = None if spread is None else [rounded(s) for s in spread]
    result |= more
    result |= {"versions": versions("treepref", "torch", *packages), "machine": machine(threads), "command": command()}
    if quick:
        result["quick"] = True
    print(json.dumps(result), flush=True)


def rounded(number: float | None, digits: int = 4) -> float | None:
    """To significant digits: a benchmark knows no more."""
    return None if number is None else float(f"{number:.{digits}g}")
