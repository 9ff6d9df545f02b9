"""The command line as a user meets it: real processes for what only a process shows, typer's runner for the rest."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from treepref import cli
from treepref.errors import RecipeError, TreeprefError

STAGES = ["sft", "search", "pairs", "train", "eval", "report"]
COMMANDS = ["run", *STAGES, "estimate", "compare", "digest", "export", "import-gguf", "recipes"]
ENV = os.environ | {"COLUMNS": "200", "NO_COLOR": "1", "OMP_NUM_THREADS": "1", "TERM": "dumb"}


def treepref(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "treepref.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=ENV, timeout=600)


def output(*arguments: str) -> str:
    result = CliRunner().invoke(cli.app, list(arguments), env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return re.sub(r"\x1b\[[0-9;]*m", "", result.output)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from treepref import cli; sys.argv = ['treepref', '--help']\n"
        "try: cli.main()\nexcept SystemExit as stop: assert stop.code == 0\n"
        "heavy = {'torch', 'transformers', 'yaml', 'pydantic', 'numpy'} & set(sys.modules); assert not heavy, heavy"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENV)
    assert result.returncode == 0, result.stderr
    for command in COMMANDS:
        assert re.search(rf"\b{command}\b", result.stdout)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    text = output(command, "--help")
    assert "Usage:" in text


def test_reading_recipes_needs_no_torch() -> None:
    code = "import sys, treepref.recipes.reading as r; r.load_recipe('svpo'); assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], env=ENV).returncode == 0


def test_version_and_recipes() -> None:
    assert re.fullmatch(r"treepref \d+\.\d+\S*\n", output("--version"))
    listed = output("recipes")
    assert {line.split()[0] for line in listed.splitlines()} >= {"quickstart", "svpo", "svpo_smollm2_gsm8k"}
    from treepref.recipes.reading import load_recipe

    assert output("recipes", "svpo") == load_recipe("svpo").text


def test_a_users_mistake_is_one_message_on_stderr_and_exit_2(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("name: r\nrounds: two\nsearch:\n  simulation: 3\n")
    result = treepref("run", "r.yaml", "train.lr=fast", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        'error: r.yaml:2: rounds: must be a valid integer (got "two"); write the number without quotes or unit',
        "r.yaml:4: search.simulation: unknown key; did you mean search.simulations?",
        "override 'train.lr=fast': train.lr: must be a valid number (got \"fast\"); "
        "write the number without quotes or unit",
    ]
    assert list(tmp_path.iterdir()) == [tmp_path / "r.yaml"]  # nothing was begun


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "quickstrat"], "did you mean quickstart?"),
        (["digest", "nowhere"], "holds no run"),
        (["export", "nowhere", "--to", "csv"], "the only format is trl"),
        (["search", "nowhere"], "no such run directory"),
        (["import-gguf", "nowhere.gguf", "out"], "nowhere.gguf"),
    ],
)
def test_each_command_reports_what_is_not_there(arguments: list[str], message: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli.app, arguments)
    assert isinstance(result.exception, TreeprefError)
    assert message in str(result.exception)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_command_line_shows_its_usage() -> None:
    result = treepref("run")
    assert result.returncode == 2
    assert "Missing argument 'RECIPE'" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """Records the calls of the loop in place of running it."""
    import types

    calls: list[tuple] = []
    stand_in = types.ModuleType("treepref.loops.run")
    stand_in.run = lambda loaded, out: calls.append((loaded.recipe.name, loaded.recipe.rounds, out))
    stand_in.run_stage = lambda out, stage, round: calls.append((out, stage, round))
    stand_in.report_run = lambda out: calls.append(("report", out))
    monkeypatch.setitem(sys.modules, "treepref.loops.run", stand_in)
    monkeypatch.setattr("treepref.loops.run", stand_in, raising=False)
    return calls


def test_run_passes_recipe_overrides_and_folder(loop: list[tuple]) -> None:
    output("run", "quickstart", "rounds=5")
    output("run", "quickstart", "--out", "elsewhere", "name=other", "rounds=1")
    output("run", "--out", "elsewhere", "quickstart", "rounds=4", "--quiet")
    assert loop == [
        ("quickstart", 5, Path("runs/quickstart")),
        ("other", 1, Path("elsewhere")),
        ("quickstart", 4, Path("elsewhere")),
    ]
    from treepref import progress

    assert progress._quiet is True
    progress.set_quiet(False)


def test_stages_pass_their_name_and_round(loop: list[tuple], tmp_path: Path) -> None:
    run = str(tmp_path)
    for stage in ("search", "pairs", "train", "eval"):
        output(stage, run, "--round", "2")
        output(stage, run)
    output("sft", run)
    output("report", run)
    expected = [(tmp_path, stage, round) for stage in ("search", "pairs", "train", "eval") for round in (2, None)]
    assert loop == [*expected, (tmp_path, "sft", None), ("report", tmp_path)]


def test_ctrl_c_stops_with_130_and_says_how_to_go_on(tmp_path: Path) -> None:
    code = (
        # Where the tests run in the background, as under nohup, a child would start with Ctrl-C ignored.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import sys, time, types; from treepref import cli\n"
        "def run(loaded, out):\n"
        "    print('going', flush=True)\n"
        "    while True: time.sleep(0.01)\n"
        "stand_in = types.ModuleType('run'); stand_in.run = run\n"
        "import treepref.loops; treepref.loops.run = sys.modules['treepref.loops.run'] = stand_in\n"
        "sys.argv = ['treepref', 'run', 'quickstart']; cli.main()"
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], **pipes, text=True, cwd=tmp_path, env=ENV) as process:
        assert process.stdout is not None and process.stdout.readline() == "going\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=600)
    assert process.returncode == 130
    assert errors.strip() == "stopped; run the same command to go on"


def test_main_prints_errors_literally(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(**_: object) -> None:
        raise RecipeError("a [bold]key[/bold] of " + "x" * 200)

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: a [bold]key[/bold] of " + "x" * 200 + "\n"


def test_digest_of_a_run(tmp_path: Path) -> None:
    from treepref.runs.store import Store

    with Store(tmp_path) as store:
        expected = store.digest()
    assert output("digest", str(tmp_path)) == f"{expected}\n"


def test_windows_is_refused_in_words() -> None:
    code = (
        "import sys; from treepref import cli\nsys.platform = 'win32'; sys.argv = ['treepref', 'recipes']; cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENV)
    assert (
        done.returncode == 1
        and done.stderr == "error: treepref runs on Linux and macOS; on Windows use it inside WSL\n"
    )
    code = "import sys; sys.platform = 'win32'; import treepref.runs.run_folder"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENV)
    assert "ImportError: treepref runs on Linux and macOS" in done.stderr
