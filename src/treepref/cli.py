"""The command line: parse, call, print. What a command needs is imported when it runs, so that `--help` is quick."""

from __future__ import annotations

import sys
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from treepref.errors import TreeprefError


class _Stopped(Exception):
    """Ctrl-C, kept from typer, which would end the process without a word."""


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise _Stopped from None


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Make a language model reason better with preference data that it makes itself by tree search.",
    epilog="Start with: treepref estimate quickstart, then treepref run quickstart.",
)

RecipeArg = Annotated[str, typer.Argument(metavar="RECIPE", help="A built-in recipe's name or a YAML file.")]
OverridesArg = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Values that replace the recipe's, e.g. train.lr=1e-5 rounds=3."),
]
RunArg = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, e.g. runs/quickstart.")]
RoundOption = Annotated[int | None, typer.Option("--round", min=0, help="The round; without it, the next one due.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"treepref {package_version('treepref')}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def run(
    recipe: RecipeArg,
    overrides: OverridesArg = None,
    out: Annotated[Path | None, typer.Option("--out", help="Run directory; default runs/NAME.")] = None,
    quiet: QuietOption = False,
) -> None:
    """Run a recipe, or go on with a run that was stopped."""
    from treepref.recipes.reading import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    _quieten(quiet)
    from treepref.loops.run import run as run_recipe

    run_recipe(loaded, out or Path("runs") / loaded.recipe.name)


@app.command()
def estimate(recipe: RecipeArg, overrides: OverridesArg = None) -> None:
    """Print the expected tokens, FLOPs, time and disk of a recipe, before anything is spent."""
    from treepref.recipes.reading import load_recipe

    loaded = load_recipe(recipe, overrides or []).recipe
    from treepref.loops.estimate import at_real_size, measured_assumptions
    from treepref.loops.estimate import estimate as estimate_recipe
    from treepref.recipes.estimate import render
    from treepref.recipes.sizing import measure_rates, model_info

    loaded, cut = at_real_size(loaded)
    info = model_info(loaded.model.path, loaded.model.dtype)
    rates = measure_rates(loaded.model.device, loaded.model.dtype)
    result = estimate_recipe(loaded, model_info=info, rates=rates, assumptions=measured_assumptions(loaded))
    _console().print(render(loaded, result, info))
    if cut:
        print(f"! {cut}")


@app.command()
def check(recipe: RecipeArg, overrides: OverridesArg = None) -> None:
    """Show what a run would see: split sizes, rows set aside, one whole prompt, a few solutions with verdicts."""
    from treepref.recipes.reading import load_recipe

    loaded = load_recipe(recipe, overrides or []).recipe
    from treepref.loops.check import check as check_recipe

    check_recipe(loaded, _console())


@app.command()
def status(run_dir: RunArg) -> None:
    """Where a run stands: its stages, what goes on or stopped it, its best round. Also while it goes on."""
    _refuse_missing(run_dir)
    from treepref.loops.look import status as print_status

    print_status(run_dir, _console())


@app.command()
def runs(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder of run directories.")] = Path("runs"),
) -> None:
    """List the runs in a folder: how far they are, and their accuracy."""
    from treepref.loops.look import runs as print_runs

    print_runs(folder, _console())


@app.command()
def show(run_dir: RunArg, problem: Annotated[str, typer.Argument(metavar="PROBLEM", help="A problem's id.")]) -> None:
    """Show a problem of a run: its question, its searches, and what each evaluation answered."""
    _refuse_missing(run_dir)
    from treepref.loops.look import show as print_problem

    print_problem(run_dir, problem, _console())


@app.command()
def sft(run_dir: RunArg, quiet: QuietOption = False) -> None:
    """Stage: the warm-up on solutions of the labelled split (round 0 is what comes out of it)."""
    _stage(run_dir, "sft", None, quiet)


@app.command()
def search(run_dir: RunArg, round: RoundOption = None, quiet: QuietOption = False) -> None:
    """Stage: search the training problems with the current policy."""
    _stage(run_dir, "search", round, quiet)


@app.command()
def pairs(run_dir: RunArg, round: RoundOption = None, quiet: QuietOption = False) -> None:
    """Stage: turn a round's trees into preferences."""
    _stage(run_dir, "pairs", round, quiet)


@app.command()
def train(run_dir: RunArg, round: RoundOption = None, quiet: QuietOption = False) -> None:
    """Stage: train the policy and the value head on a round's trees and preferences."""
    _stage(run_dir, "train", round, quiet)


@app.command()
def dpo(run_dir: RunArg, round: RoundOption = None, quiet: QuietOption = False) -> None:
    """Stage of dpo_st: tune the SFT model on a round's preferences; the result samples the pseudo-labels."""
    _stage(run_dir, "dpo", round, quiet)


@app.command()
def labels(run_dir: RunArg, round: RoundOption = None, quiet: QuietOption = False) -> None:
    """Stage of dpo_st: sample a round's pseudo-labels."""
    _stage(run_dir, "labels", round, quiet)


@app.command("eval")
def evaluate(run_dir: RunArg, round: RoundOption = None, quiet: QuietOption = False) -> None:
    """Stage: evaluate a round's policy on the held-out problems."""
    _stage(run_dir, "eval", round, quiet)


@app.command()
def report(run_dir: RunArg, quiet: QuietOption = False) -> None:
    """Write results.json and report.html from what the run has stored, also while it goes on."""
    _refuse_missing(run_dir)
    _quieten(quiet)
    from treepref.loops.run import report_run

    report_run(run_dir)


@app.command()
def fork(
    run_dir: RunArg,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The new run directory.")],
    overrides: OverridesArg = None,
    quiet: QuietOption = False,
) -> None:
    """Run on from a copy of a run's first search, with other pairs or training: the same samples, learned from anew."""
    _quieten(quiet)
    from treepref.loops.fork import fork as copy_run
    from treepref.loops.run import resume

    copy_run(run_dir, out, overrides or [])
    resume(out)


@app.command()
def rejudge(
    run_dir: RunArg,
    overrides: OverridesArg = None,
    out: Annotated[Path | None, typer.Option("--out", help="The new run directory; default RUN-rejudged.")] = None,
    quiet: QuietOption = False,
) -> None:
    """Judge a run's stored solutions anew, e.g. with task.checker=…, in a copy; go on there from its first search."""
    _refuse_missing(run_dir)
    _quieten(quiet)
    from treepref.loops.rejudge import rejudge as judge_anew
    from treepref.loops.run import resume

    target = out or run_dir.with_name(f"{run_dir.resolve().name}-rejudged")
    judge_anew(run_dir, target, overrides or [])
    resume(target)


@app.command()
def compare(
    run_dirs: Annotated[list[Path], typer.Argument(metavar="RUN …", help="Run directories, of any method.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for compare.json and compare.html.")] = Path(
        "runs/compare"
    ),
    baseline: Annotated[
        str | None,
        typer.Option("--baseline", metavar="RUN", help="The run that others are set against; default the first."),
    ] = None,
    group: Annotated[
        bool, typer.Option("--group/--no-group", help="Join runs of one recipe that differ in their seed alone.")
    ] = True,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the tables as markdown.")] = False,
) -> None:
    """Set runs side by side: accuracy against tokens of training and of inference, with paired intervals."""
    from rich.console import Console

    from treepref.loops.compare import compare as compare_runs

    console = Console(width=None if sys.stdout.isatty() else 140)
    compare_runs(run_dirs, out, baseline=baseline, group=group, markdown=markdown, console=console)


@app.command()
def prune(
    run_dir: RunArg, dry: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False
) -> None:
    """Remove a run's models that nothing needs any more; the first, the best and the last round's stay."""
    _refuse_missing(run_dir)
    from treepref.loops.prune import prune as remove

    gone, size = remove(run_dir, dry=dry)
    would = "would be removed" if dry else "removed"
    print(f"{', '.join(gone)} {would}: {size / 1e9:.3g} GB" if gone else "nothing to remove")


@app.command()
def digest(run_dir: RunArg) -> None:
    """Print one hash of what a run found: trees, outcomes and pairs, no floats."""
    from treepref.runs.store import Store

    with Store(run_dir, read_only=True) as store:
        print(store.digest())


@app.command()
def export(
    run_dir: RunArg,
    to: Annotated[str, typer.Option("--to", help="trl: JSON lines with prompt, chosen, rejected.")] = "trl",
    out: Annotated[Path | None, typer.Option("--out", help="File to write; default RUN/trl.jsonl.")] = None,
    round: Annotated[int | None, typer.Option("--round", min=1, help="One round's pairs; default all.")] = None,
) -> None:
    """Write a run's preferences for another trainer."""
    if to != "trl":
        raise TreeprefError(f"--to {to}: the only format is trl")
    from treepref.loops.export import export_run

    file = out or run_dir / "trl.jsonl"
    written, warning = export_run(run_dir, file, round=round)
    print(f"{written.pairs:,} pairs written to {file}")
    if warning:
        _warn(warning)


@app.command("import-gguf")
def import_gguf(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A model in GGUF form.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The Hugging Face folder to make.")],
    dtype: Annotated[str, typer.Option("--dtype", help="float32, bfloat16 or float16.")] = "float32",
) -> None:
    """Make a Hugging Face model folder of a GGUF file."""
    from treepref.models.gguf import import_gguf

    print(f"model folder written to {import_gguf(file, out, dtype=dtype, tell=_warn)}")


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Print this recipe's text instead.")] = None,
) -> None:
    """List the built-in recipes, or print one: `treepref recipes svpo > my.yaml`."""
    from treepref.recipes.reading import builtin_recipes, load_recipe

    if name is not None:
        print(load_recipe(name).text, end="")
        return
    found = builtin_recipes()
    for recipe, purpose in found.items():
        print(f"{recipe:<{max(map(len, found))}}  {purpose}")


def _stage(run_dir: Path, stage: str, round: int | None, quiet: bool) -> None:
    _refuse_missing(run_dir)
    _quieten(quiet)
    from treepref.loops.run import run_stage

    run_stage(run_dir, stage, round)


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)


def _refuse_missing(run_dir: Path) -> None:
    if not run_dir.is_dir():
        raise TreeprefError(
            f"{run_dir}: there is no such run directory; `treepref run RECIPE --out {run_dir}` makes one"
        )


def _console() -> Any:
    """A terminal's width, or wide lines in a file."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 110)


def _quieten(quiet: bool) -> None:
    from treepref.progress import set_quiet

    set_quiet(quiet)


def main() -> None:
    """Entry point. Exits with an error's `exit_code`, with 130 after Ctrl-C."""
    if sys.platform == "win32":
        sys.exit("error: treepref runs on Linux and macOS; on Windows use it inside WSL")
    try:
        app(prog_name="treepref")
    except TreeprefError as error:
        from rich.console import Console
        from rich.text import Text

        Console(stderr=True).print(Text(f"error: {error}", style="red"), soft_wrap=True)
        sys.exit(error.exit_code)
    except (_Stopped, KeyboardInterrupt):
        print("\nstopped; run the same command to go on", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
