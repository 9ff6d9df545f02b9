"""Bad input, end to end: each case gets a clear error or a reported skip, and no finished work is lost.

A toy task in the style of a user's own: one-digit sums as JSON lines, a rationale of two lines, a model of a few
thousand weights that has learned their form (so that solutions end) but not their results (so that outcomes are mixed).
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import transformers as hf

from impatience import no_patience_with
from treepref import cli, progress
from treepref.errors import DataError, ModelError, RecipeError, StoreError
from treepref.loops.run import run as run_recipe
from treepref.models.policy import Policy, load_tokenizer, save_policy
from treepref.models.tiny import build_tiny_model, build_tiny_tokenizer
from treepref.models.value_head import ValueHead
from treepref.recipes.reading import load_recipe
from treepref.runs import store as store_module
from treepref.runs.store import Store

Row = dict[str, object] | str
CONTEXT = 40
RUN = Path("run")
"""Every test works in a folder of its own, where the recipe is sums.yaml and its data rows.jsonl."""

RECIPE = """\
extends: svpo
name: sums
rounds: {rounds}
model: {{path: {model}, device: cpu}}
task:
  kind: jsonl
  path: rows.jsonl
  splits: {{labelled: 0, train: 8, eval: 4}}
engine: {{threads: 1, max_rows: 32, cache_mb: 8, batch_invariant: true}}
search: {{simulations: 4, children: 4, max_depth: 3, max_step_tokens: 8, trees_in_flight: 4}}
pairs: {{min_problems: 1}}
train: {{batch_trees: 4, row_tokens: 256, lr: 1e-3}}
value: {{problems: 0}}
eval: {{samples: 2, samples_between: 2, sbs: [[1, 2]], max_tokens: 12}}
"""


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield


def sums(n: int) -> list[Row]:
    """`n` different one-digit sums; the first line of a rationale repeats the question, the second is the answer."""
    pairs = [(a, b) for a in range(10) for b in range(10) if a + b < 10][:n]
    return [{"question": f"{a} + {b}", "answer": a + b, "rationale": f"{a} + {b}\n{a + b}"} for a, b in pairs]


def write_rows(file: str, rows: list[Row]) -> None:
    """JSON lines; a row that is text stands in the file as it is."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    Path(file).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def write_recipe(model: Path | str, rounds: int = 0) -> None:
    Path("sums.yaml").write_text(RECIPE.format(rounds=rounds, model=model), encoding="utf-8")


def run(*overrides: str) -> dict:
    """Run sums.yaml in RUN, or go on; the results."""
    run_recipe(load_recipe("sums.yaml", overrides), RUN)
    return json.loads((RUN / "results.json").read_text())


def run_command(*arguments: str) -> int:
    """`treepref ARGUMENTS` in this process; its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["treepref", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    return int(ended.value.code or 0)


def warnings() -> list[str]:
    with Store(RUN, read_only=True) as store:
        return [event.message for event in store.events() if event.level == "warning"]


def kept() -> tuple[str, int, str]:
    """What must not be lost: the run's digest, the tokens that it paid for, its results."""
    with Store(RUN, read_only=True) as store:
        return store.digest(), store.cost().generated_tokens, json.dumps(store.meta("summary/0"))


@pytest.fixture(scope="module", autouse=True)
def quietly() -> Iterator[None]:
    progress.set_quiet(True)
    yield
    progress.set_quiet(False)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy model's folder, made by a warm-up of the loop itself."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = build_tiny_tokenizer(0, 9, ["Question", "Answer"])
    model = build_tiny_model(len(tokenizer), hidden=32, layers=2, heads=2, intermediate=64, context=CONTEXT, seed=0)
    save_policy(Policy(model, tokenizer, ValueHead(32)), folder / "raw")
    with inside(folder):
        write_rows("rows.jsonl", sums(55))
        write_recipe(folder / "raw")
        run(
            "task.splits.labelled=40", "task.splits.train=1", "warmup.epochs=20", "warmup.lr=1e-2",
            "warmup.batch_tokens=128",
        )  # fmt: skip
    return folder / RUN / "round-0"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    """A folder with a finished run of one round."""
    folder = tmp_path_factory.mktemp("whole")
    with inside(folder):
        write_rows("rows.jsonl", sums(40))
        write_recipe(base, rounds=1)
        run()
        with Store(RUN, read_only=True) as store:
            assert store.count_pairs(1) > 0
    return folder


@pytest.fixture
def finished(whole: Path, place: Path) -> tuple[str, int, str]:
    """A copy of that run to do harm to; what it has found."""
    shutil.copytree(whole, place, dirs_exist_ok=True)
    return kept()


# --- data


def test_malformed_rows_are_named_by_file_and_line_and_the_others_serve(base: Path) -> None:
    bad: list[Row] = [
        '{"question": "1 + 1", "answer": ',
        '["a", "list"]',
        {"question": "no answer"},
        {"question": " ", "answer": 3},
        {"question": "1 + 1", "answer": 2, "rationale": 7},
    ]
    good = sums(12)
    write_rows("rows.jsonl", [*good[:4], *bad, *good[4:]])
    with open("rows.jsonl", "ab") as stream:
        stream.write(b'{"question": "\xff", "answer": 1}\n')
    write_recipe(base)
    assert run()["rounds"][0]["eval"]["greedy"]["n"] == 4
    told = warnings()
    for line, why in (
        (5, "is not JSON"),
        (6, "is list, not an object"),
        (7, "has no 'answer'"),
        (8, "'question' is empty"),
        (9, "'rationale' is int, not text"),
        (18, "is not UTF-8"),
    ):
        assert any(message.startswith(f"rows.jsonl:{line}: {why}") for message in told), (line, told)
    assert len(told) == 6
    assert "rows.jsonl:5: is not JSON" in (RUN / "report.html").read_text()
    with Store(RUN, read_only=True) as store:
        assert {p.text for split in ("train", "eval") for p in store.problems(split)} == {r["question"] for r in good}


def test_an_empty_file_is_refused_and_the_same_run_starts_once_it_is_filled(base: Path) -> None:
    write_recipe(base)
    write_rows("rows.jsonl", [])
    with pytest.raises(DataError, match=r"rows\.jsonl: is empty"):
        run()
    write_rows("rows.jsonl", sums(12))
    assert run()["rounds"][0]["eval"]["greedy"]["n"] == 4


def test_a_run_that_is_begun_does_without_its_files(finished: tuple) -> None:
    write_rows("rows.jsonl", [])
    assert len(run()["rounds"]) == 2
    assert kept() == finished


def test_duplicate_ids_are_refused_with_both_places_or_skipped_where_the_rows_are_equal(base: Path) -> None:
    write_recipe(base)
    rows = [{**row, "id": f"s{i}"} for i, row in enumerate(sums(14))]  # type: ignore[dict-item]
    write_rows("rows.jsonl", [*rows, {"id": "s3", "question": "9 + 9", "answer": 18}])
    with pytest.raises(DataError, match=r"rows\.jsonl:15: id 's3' is that of rows\.jsonl:4 too"):
        run()
    write_rows("rows.jsonl", [*rows, rows[3]])
    assert run()["rounds"]
    assert warnings() == ["rows.jsonl:15: same row as rows.jsonl:4"]


def test_questions_in_training_and_evaluation_are_refused_by_name(base: Path) -> None:
    write_recipe(base)
    rows = sums(20)
    write_rows("rows.jsonl", rows[:12])
    write_rows("held_out.jsonl", [*rows[12:], {"question": "0  +  3", "answer": 3}])  # row 4, with other blanks
    with pytest.raises(DataError, match=r"1 of its questions are in rows\.jsonl too.*held_out\.jsonl:9"):
        run("task.eval_path=held_out.jsonl")
    write_rows("held_out.jsonl", rows[12:])
    assert run("task.eval_path=held_out.jsonl")["rounds"]
    with Store(RUN, read_only=True) as store:
        assert {p.text for p in store.problems("eval")} <= {r["question"] for r in rows[12:]}  # type: ignore[index]


def test_a_rationale_longer_than_the_context_is_reported_and_left_out(base: Path) -> None:
    long = {"id": "long", "question": "9 + 0", "answer": 9, "rationale": "9 + 0\n" * CONTEXT + "9"}
    rows = sums(12)
    write_rows("rows.jsonl", [*rows[:6], long])
    write_rows("held_out.jsonl", rows[6:])
    write_recipe(base)
    run("task.eval_path=held_out.jsonl", "task.splits.labelled=6", "task.splits.train=1", "warmup.epochs=2")
    with Store(RUN, read_only=True) as store:
        assert store.problem("labelled", "long") is not None
        assert store.stage("round-0/sft").info["examples"] == 2 * 5
    assert any(re.match(rf"problem long: left out, \d+ tokens are .*context of {CONTEXT}", m) for m in warnings())
    assert (RUN / "round-0" / "model.safetensors").is_file()


# --- the checker


def test_an_answer_that_hangs_the_checker_costs_its_limit_and_nothing_else(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo("hanging")  # opened by both sides at once
    Path("slow_checker.py").write_text(
        "def check(text, problem):\n"
        "    if problem.id == 'e1':\n"
        "        open('hanging', 'w').close()\n"
        "        while True:\n"
        "            pass\n"
        "    return True\n"
    )
    asked = no_patience_with(monkeypatch, lambda r: r["problem"]["id"] == "e1", lambda: open("hanging").close())
    rows = sums(16)
    write_rows("rows.jsonl", rows[:12])
    write_rows("held_out.jsonl", [{**row, "id": f"e{i}"} for i, row in enumerate(rows[12:])])  # type: ignore[dict-item]
    write_recipe(base)
    run("task.eval_path=held_out.jsonl", "task.checker=slow_checker:check", "task.check_seconds=300")
    with Store(RUN, read_only=True) as store:
        right = {name: row["correct"] for name, _, row in store.outcomes("round-0/eval/greedy")}
    assert right == {"e0": True, "e1": False, "e2": True, "e3": True}
    assert warnings() == ["problem e1: the check took longer than 300 s"]
    assert {seconds for *_, seconds in asked} == {300}
    hung = [text for problem, text, _ in asked if problem == "e1"]
    assert len(hung) == len(set(hung)), "an answer that hung is not checked again for every sample that repeats it"


# --- models


def test_a_model_folder_without_tokenizer_is_refused_and_what_was_done_with_it_stays(base: Path, whole: Path) -> None:
    model = Path("model").absolute()
    shutil.copytree(base, model)
    write_rows("rows.jsonl", sums(40))
    write_recipe(model, rounds=1)
    run("rounds=0")
    before = kept()
    tokenizer = (model / "tokenizer.json").rename("tokenizer.json")
    with pytest.raises(StoreError, match=r"model is not the one .* \(missing: tokenizer\.json\): put its files back"):
        run()
    assert kept() == before
    tokenizer.rename(model / "tokenizer.json")
    assert len(run()["rounds"]) == 2
    with inside(whole):
        uninterrupted = kept()
    assert kept() == uninterrupted


def tiny_config(kind: type, **more: object) -> hf.PretrainedConfig:
    return kind(
        num_hidden_layers=2, hidden_size=16, vocab_size=96, bos_token_id=None, eos_token_id=1, pad_token_id=0, **more
    )


ATTENTION = {"num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 16}


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (tiny_config(hf.MambaConfig, state_size=4), "'mamba' cannot be trained on packed trees: .*state-space"),
        (tiny_config(hf.MistralConfig, sliding_window=8, **ATTENTION), "'mistral' cannot .* window of 8 tokens"),
    ],
    ids=["mamba", "window"],
)
def test_a_model_that_cannot_be_packed_is_refused_before_anything_is_spent(
    config: hf.PretrainedConfig, reason: str, base: Path
) -> None:
    hf.AutoModelForCausalLM.from_config(config, trust_remote_code=False).save_pretrained("model")
    load_tokenizer(base).save_pretrained("model")
    write_rows("rows.jsonl", sums(40))
    write_recipe("./model", rounds=1)
    with pytest.raises(ModelError, match=reason):
        run()
    with Store(RUN, read_only=True) as store:
        assert store.cost().generated_tokens == 0
    write_recipe(base, rounds=1)  # nothing was computed yet, so the same run may start with another model
    assert len(run()["rounds"]) == 2


# --- the disk


def test_a_full_database_stops_with_advice_and_keeps_what_was_finished(
    base: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = store_module.connect_to_write

    def connect_limited(path: Path, pages: int):
        db = connect(path)
        db.execute(f"PRAGMA max_page_count = {pages}")  # SQLite then answers as on a full disk
        return db

    write_rows("rows.jsonl", sums(40))
    write_recipe(base, rounds=1)
    lives, trees = 0, 0
    for pages in (20, 23, 26, 1000):
        monkeypatch.setattr(store_module, "connect_to_write", functools.partial(connect_limited, pages=pages))
        try:
            run()
        except StoreError as error:
            lives += 1
            assert re.search(r"disk .* is full.*committed before is kept.*run the same command again", str(error))
        with Store(RUN, read_only=True) as store:
            now = sum(1 for _ in store.trees("round-1/search"))
        assert now >= trees
        trees = now
    assert lives >= 2
    finished = kept()
    with inside(whole):
        assert kept() == finished


FULL_DISK = """
import json, os, shutil, subprocess, sys
from pathlib import Path

tests, room = sys.argv[1], Path("room").absolute()
room.mkdir()
if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(room)]).returncode:
    sys.exit(77)
sys.path.insert(0, tests)
import test_bad_input as t

t.progress.set_quiet(True)
t.RUN = room / "run"
report = os.fdopen(os.dup(1), "w")
sys.stdout = open(os.devnull, "w")
for left in (0, 60, 200, 300, 500, None):
    (room / "filler").unlink(missing_ok=True)
    if left is not None:
        (room / "filler").write_bytes(bytes(max(0, shutil.disk_usage(room).free - left * 1024)))
    life = {"left": left, "error": None}
    try:
        t.run()
    except Exception as error:
        life |= {"error": type(error).__name__, "message": str(error)}
    (room / "filler").unlink(missing_ok=True)
    try:
        with t.Store(t.RUN, read_only=True) as store:
            life["work"] = store.cost().generated_tokens
            life["trees"] = sum(1 for _ in store.trees("round-1/search"))
    except t.StoreError:  # the run was not there yet
        life["work"] = life["trees"] = 0
    print(json.dumps(life), file=report)
print(json.dumps(t.kept()), file=report)
"""


def test_a_full_disk_stops_with_a_clear_error_wherever_it_strikes(base: Path, whole: Path) -> None:
    if shutil.which("unshare") is None:
        pytest.skip("no unshare command to mount a small disk with")
    write_rows("rows.jsonl", sums(40))
    write_recipe(base, rounds=1)
    apart = ["unshare", "--user", "--map-root-user", "--mount"]
    done = subprocess.run(
        [*apart, sys.executable, "-c", FULL_DISK, str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    if done.returncode == 77 or done.stderr.startswith("unshare:"):
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    *lives, last = map(json.loads, done.stdout.splitlines())
    for life in lives[:-1]:
        assert life["error"] == "StoreError", life
        assert re.search("full|No space left|disk I/O error", life["message"]), life
    assert lives[-1]["error"] is None
    for before, after in itertools.pairwise(lives):
        assert after["work"] >= before["work"] and after["trees"] >= before["trees"], (before, after)
    with inside(whole):
        assert tuple(last) == kept()


# --- runs


HOLD = """
import sys
from treepref.runs.store import Store

store = Store(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


def test_a_second_process_on_a_run_is_refused_with_the_first_ones_name(finished: tuple) -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(RUN)], **pipes, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(StoreError, match=rf"run run is in use by process {holder.pid} on .*wait until it ends"):
            run()
    finally:
        holder.kill()
        holder.communicate()
    assert kept() == finished
    assert len(run()["rounds"]) == 2
    assert kept() == finished


def test_a_recipe_changed_between_two_lives_is_refused_with_the_difference(finished: tuple) -> None:
    with pytest.raises(RecipeError) as refused:
        run("search.children=5", "train.beta=0.5", "budget.tokens=1000000")
    message = str(refused.value)
    assert "  search.children: 4 → 5\n  train.beta: 0.1 → 0.5\n" in message
    assert "budget.tokens:" not in message and "--out" in message
    assert kept() == finished
    assert load_recipe(RUN / "recipe.yaml").recipe.search.children == 4
    assert len(run("budget.tokens=1000000")["rounds"]) == 2
    assert kept() == finished


def test_a_recipe_whose_first_try_failed_may_be_mended(base: Path) -> None:
    write_rows("rows.jsonl", ["not JSON", *sums(12)])
    write_recipe("./no-such-folder")
    with pytest.raises(ModelError, match=r"there is no model folder .*no-such-folder"):
        run()
    write_rows("other.jsonl", sums(20))
    write_recipe(base)
    run("task.path=other.jsonl")
    assert warnings() == [], "what was said of the first file is forgotten with it"
    with Store(RUN, read_only=True) as store:
        assert store.count_problems("train") == 8


def test_unknown_keys_and_wrong_values_are_named_with_their_line_before_anything_is_made(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows("rows.jsonl", sums(12))
    write_recipe(base)
    text = Path("sums.yaml").read_text()
    Path("sums.yaml").write_text(
        text.replace("simulations: 4", "simulatons: 4").replace("lr: 1e-3", "lr: fast") + "seed: -1.5\n"
    )
    line = {text.partition(":")[0]: n for n, text in enumerate(text.splitlines(), 1)}
    assert run_command("run", "sums.yaml", "--out", str(RUN), "eval.samples=0") == 2
    told = capsys.readouterr().err
    assert f"sums.yaml:{line['search']}: search.simulatons: unknown key; did you mean search.simulations?" in told
    assert f'sums.yaml:{line["train"]}: train.lr: must be a valid number (got "fast")' in told
    assert f"sums.yaml:{len(text.splitlines()) + 1}: seed: " in told
    assert "override 'eval.samples=0': eval.samples: " in told
    assert "Traceback" not in told and not RUN.exists()


def test_the_command_line_tells_an_error_in_a_sentence(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_recipe(base)
    assert run_command("run", "sums.yaml", "--out", str(RUN)) == 2
    assert capsys.readouterr().err.strip() == "error: rows.jsonl: no such file or folder"
