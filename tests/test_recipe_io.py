"""Reading, checking, writing and comparing recipes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from treepref.config import RECIPES, SvpoRecipe
from treepref.errors import RecipeError
from treepref.keys import SWITCHES, keys_of, known_keys, methods_with
from treepref.recipes.reading import RESUMABLE, builtin_recipes, check_resume, dump_recipe, load_recipe, recipe_changes

DOCS = Path(__file__).resolve().parents[1] / "docs" / "recipes.md"
TEMPLATE_OWN = {"name": "svpo", "model.path": "./models/my-model", "task.kind": "jsonl", "task.path": "problems.jsonl"}
"""What the template sets otherwise than the schema's defaults: its lines marked (*)."""


def problems_of(tmp_path: Path, text: str, *overrides: str) -> list[str]:
    file = tmp_path / "r.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe(file, overrides)
    return str(caught.value).replace(str(file), "r.yaml").splitlines()


# ---- built-in recipes


def test_every_builtin_recipe_loads_and_is_described() -> None:
    assert set(builtin_recipes()) >= {"quickstart", "svpo", "svpo_smollm2_gsm8k"}
    for name, purpose in builtin_recipes().items():
        assert load_recipe(name).recipe.name == name
        assert len(purpose) > 20


def documented_lines(method: str) -> dict[str, str]:
    """Dotted key → comment, for every line of the template that names a key (also the commented ones of lora)."""
    section: dict[int, str] = {}
    found = {}
    for line in load_recipe(method).text.splitlines():
        match = re.match(r"( *)(?:# )?([a-z_]+):(?: |$)", line)
        if not match or line.startswith("#"):
            continue
        depth = len(match[1]) // 2
        section[depth] = match[2]
        comment = line.partition(" # ")[2].strip()
        found[".".join(section[d] for d in range(depth + 1))] = comment.rpartition(" # ")[2]
    return found


@pytest.mark.parametrize("method", RECIPES)
def test_the_template_explains_every_key_on_its_line(method: str) -> None:
    comments = documented_lines(method)
    for key in keys_of(RECIPES[method]):
        assert len(comments.get(key, "")) >= 10, f"{key} is not explained in {method}.yaml"


def test_the_template_states_the_defaults() -> None:
    expected = SvpoRecipe(name="svpo")
    differing = {change.key: change.new for change in recipe_changes(expected, load_recipe("svpo").recipe)}
    assert differing == {key: value for key, value in TEMPLATE_OWN.items() if key != "name"}


@pytest.mark.parametrize("method", RECIPES)
def test_the_template_leaves_no_key_to_its_default_silently(method: str) -> None:
    data = yaml.safe_load(load_recipe(method).text)
    for key in keys_of(RECIPES[method]):
        if key.startswith(("model.lora.", "search.self_evaluation.")):  # sections that are off by default
            continue
        part = data
        for name in key.split("."):
            assert name in part, f"{key} is missing in {method}.yaml"
            part = part[name]


def test_the_documentation_lists_every_key_with_its_default() -> None:
    text = DOCS.read_text(encoding="utf-8")
    table = text.partition("## Every key")[2]
    rows = dict(re.findall(r"^\| `([a-z_.]+)` \| `?(.*?)`? \|", table, re.M))
    for key, default in known_keys().items():
        assert key in rows, f"docs/recipes.md has no row for {key}"
        if default is ...:
            assert rows[key] == "the file's name"
        else:
            shown = json.dumps(default)
            assert json.loads(rows[key]) == json.loads(shown), f"{key}: docs say {rows[key]}, the schema {shown}"
    assert set(rows) == set(known_keys()), "docs/recipes.md lists keys that do not exist"
    for key in RESUMABLE:
        assert f"`{key}`" in text


# ---- YAML


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1.0e-5", 1e-5),
        ("5E-6", 5e-6),
        (".5", 0.5),
        ("1", 1),
        ("+3", 3),
        ("1_000.5", 1000.5),
    ],
)
def test_numbers_are_read_as_people_write_them(text: str, value: float) -> None:
    assert load_recipe("svpo", [f"train.value_weight={text}"]).recipe.train.value_weight == value


def test_values_that_yaml_1_1_would_twist_stay_what_they_look_like() -> None:
    recipe = load_recipe(
        "svpo", ["task.params={a: no, b: 010, c: 1:30, d: 2024-01-01, e: 100_000, f: 0x10, g: ~}"]
    ).recipe
    assert recipe.task.params == {
        "a": "no", "b": 10, "c": "1:30", "d": "2024-01-01", "e": 100_000, "f": "0x10", "g": None
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("name: a\nrounds: [1\nseed: 2\n", 3, "not valid YAML"),
        ("name: a\n\ttrain: 3\n", 2, "not valid YAML"),
        ("- name\n", 1, "a recipe is a mapping"),
        ("name: a\n---\nname: b\n", 2, "not valid YAML"),
        ("name: a\nmodel: {path: *x}\n", 2, "aliases"),
        ("name: a\x07\n", 1, "not valid YAML"),
    ],
)
def test_text_that_is_no_recipe_is_refused_with_its_line(tmp_path: Path, text: str, line: int, what: str) -> None:
    (problem,) = problems_of(tmp_path, text)
    assert problem.startswith(f"r.yaml:{line}: ")
    assert what in problem


@pytest.mark.parametrize("text", ["", "\n\n", "# only a remark\n"])
def test_an_empty_file_is_refused(tmp_path: Path, text: str) -> None:
    assert problems_of(tmp_path, text) == [
        "r.yaml: is empty; start from a built-in recipe, for example `extends: svpo`"
    ]


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="did you mean quickstart"):
        load_recipe("quickstrat")
    with pytest.raises(RecipeError, match="neither a built-in recipe nor a file"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match=r"is a folder.*recipe\.yaml"):
        load_recipe(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    with pytest.raises(RecipeError, match="not UTF-8"):
        load_recipe(tmp_path / "latin.yaml")
    (tmp_path / "deep.yaml").write_text("name: a\nx: " + "[" * 5000)
    with pytest.raises(RecipeError, match="nested too deeply"):
        load_recipe(tmp_path / "deep.yaml")


def test_python_tags_are_refused_and_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    text = f"name: a\ntask:\n  params: !!python/object/apply:os.system ['touch {marker}']\n"
    (problem,) = problems_of(tmp_path, text)
    assert problem.startswith("r.yaml:3: task.params: YAML tag")
    assert not marker.exists()


# ---- checking


def test_every_problem_is_listed_with_key_line_and_value(tmp_path: Path) -> None:
    text = """\
name: a
rounds: two
bogus: 1
train:
  lr: -1
  lrr: 3
  objective: spo
  beta: .inf
  epochs: true
  clip: 1
  clip: 2
search: 3
model:
  lora: {rank: 0, targets: 3}
eval:
  sbs: [[1, 2], [1], [1, 2.5]]
warmup: {epoch: 3}
simulations: 3
seed: 1.0
task: {chat: yes}
"""
    assert problems_of(tmp_path, text, "task.splits.evl=1", "lost", "train.margin=x") == [
        'r.yaml:2: rounds: must be a valid integer (got "two"); write the number without quotes or unit',
        "r.yaml:3: bogus: unknown key; keys here: name, method, seed, rounds, model, task, engine, warmup, search, "
        "pairs, train, value, eval, budget, extends",
        "r.yaml:5: train.lr: must be greater than 0 (got -1)",
        "r.yaml:6: train.lrr: unknown key; did you mean train.lr?",
        "r.yaml:7: train.objective: must be 'svpo', 'dpo', 'cdpo', 'cdpo_mean', 'ipo', 'ipo_mean' or 'sft', "
        'or module:function (got "spo"); did you mean svpo?',
        "r.yaml:8: train.beta: must be a finite number (got .inf)",
        "r.yaml:9: train.epochs: must be a valid integer (got true)",
        "r.yaml:11: train.clip: stands twice (first on line 10)",
        "r.yaml:12: search: must be a section of keys (got 3)",
        "r.yaml:14: model.lora.rank: must be greater than or equal to 1 (got 0)",
        "r.yaml:14: model.lora.targets: must be a list, or must be 'all-linear' (got 3)",
        "r.yaml:16: eval.sbs[1][1]: is missing",
        "r.yaml:16: eval.sbs[2][1]: must be a valid integer (got 2.5)",
        "r.yaml:17: warmup.epoch: unknown key; did you mean warmup.epochs?",
        "r.yaml:18: simulations: unknown key; did you mean search.simulations?",
        "r.yaml:19: seed: must be a valid integer (got 1.0)",
        'r.yaml:20: task.chat: must be a valid boolean (got "yes"); write true or false',
        "override 'lost': write it as key=value, for example train.lr=1e-5",
        "override 'task.splits.evl=1': task.splits.evl: unknown key; did you mean task.splits.eval?",
        "override 'train.margin=x': train.margin: must be a valid number (got \"x\"); write the number without "
        "quotes or unit",
    ]


def test_a_wrong_section_names_the_line_of_its_key(tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path, "name: a\ntrain:\n  lr: 1e-5\npairs:\n\n  level: stepp\n")
    assert problem.startswith("r.yaml:6: pairs.level: ")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: a\nwarmup:\n  epochs: 2\n", "r.yaml:3: warmup.epochs: is above 0 but task.splits.labelled is 0"),
        ("name: a\ntask:\n  kind: jsonl\n", "r.yaml:2: task.path: is missing"),
        ("name: a\ntask:\n  prompt: hello\n", "r.yaml:3: task.prompt: has no {question}"),
        ("name: a/b\n", "r.yaml:1: name: must be usable as a folder's name"),
        ("name: a\npairs: {min_visits: 41}\n", "r.yaml:2: pairs.min_visits: is above search.simulations (40)"),
        ("name: a\ntask:\n  splits:\n    train: 10\n", "r.yaml: pairs.min_problems: is above task.splits.train (10)"),
        ("name: a\neval:\n  sbs: [[0, 2]]\n", "r.yaml:3: eval.sbs: beam widths must be at least 1"),
        ("name: 2024\n", 'r.yaml:1: name: must be a valid string (got 2024); quote it: "2024"'),
        ("extend: svpo\n", "r.yaml:1: extend: unknown key; did you mean extends?"),
        ("train.lr: 3\n", "r.yaml:1: train.lr: unknown key; in a file write `lr:` indented under `train:`"),
    ],
)
def test_impossible_combinations_name_the_key(tmp_path: Path, text: str, expected: str) -> None:
    (problem,) = problems_of(tmp_path, text)
    assert problem.startswith(expected)


# ---- overrides and extends


def test_overrides_win_in_order_and_reach_into_sections() -> None:
    recipe = load_recipe(
        "svpo",
        [
            "train.lr=1e-4",
            "train.lr=2e-4",
            "model.lora.rank=8",
            "train={beta: 0.3}",
            'task.delimiter="\\n\\n"',
            "seed = 7",
        ],
    ).recipe
    assert (recipe.train.lr, recipe.train.beta, recipe.train.clip) == (2e-4, 0.3, 1.0)
    assert recipe.model.lora is not None and recipe.model.lora.rank == 8
    assert (recipe.task.delimiter, recipe.seed) == ("\n\n", 7)


def test_an_override_mends_what_the_file_has_wrong(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("rounds: two\n")
    loaded = load_recipe(file, ["rounds=3"])
    assert (loaded.recipe.rounds, loaded.recipe.name, loaded.text) == (3, "r", "rounds: two\n")


def test_overrides_merge_sections_and_replace_a_tasks_parameters(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("train: {lr: 1e-4, beta: 0.2}\ntask: {name: chain_sum, params: {min_terms: 2, max_terms: 9}}\n")
    assert load_recipe(file, ["task.params={min_terms: 5}"]).recipe.task.params == {"min_terms": 5}
    task = load_recipe(file, ["task={slips: 0.1, granularity: [2], params: {min_terms: 5}}"]).recipe.task
    assert (task.name, task.slips, task.params) == ("chain_sum", 0.1, {"min_terms": 5})
    assert load_recipe(file, ["task.params.min_terms=5"]).recipe.task.params == {"min_terms": 5, "max_terms": 9}
    train = load_recipe(file, ["train={lr: 1e-3}"]).recipe.train
    assert (train.lr, train.beta) == (1e-3, 0.2)


def test_extends_merges_sections_and_keeps_lines(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(
        "extends: quickstart\nname: base\ntrain:\n  lr: 1e-4\ntask: {name: countdown, params: {a: 1}}\n"
    )
    child = tmp_path / "child.yaml"
    child.write_text("extends: base.yaml\ntrain:\n  beta: 0.2\n")
    recipe, quickstart = load_recipe(child).recipe, load_recipe("quickstart").recipe
    assert (recipe.name, recipe.train.lr, recipe.train.beta) == ("child", 1e-4, 0.2)
    assert recipe.search == quickstart.search
    assert recipe.task.params == {"a": 1}  # of another task: replaced, not merged

    child.write_text("extends: base.yaml\n\ntrain:\n  betta: 0.2\n")
    (tmp_path / "base.yaml").write_text("name: base\nrounds: -1\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(child)
    assert str(caught.value).splitlines() == [
        f"{tmp_path / 'base.yaml'}:2: rounds: must be greater than or equal to 0 (got -1)",
        f"{child}:4: train.betta: unknown key; did you mean train.beta?",
    ]


def test_extends_in_a_circle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    with pytest.raises(RecipeError, match="extends itself"):
        load_recipe(tmp_path / "a.yaml")


# ---- writing

texts = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=20)
scalars = st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(-1e9, 1e9, allow_nan=False) | texts
tricky = st.sampled_from(
    ["1e5", "no", "1:30", "010", "0x1f", "~", "null", "true", "1_0", "=", "<<", "a: b", "#x", "", ".5"]
)


@settings(max_examples=40, deadline=None)
@given(
    params=st.dictionaries(
        texts | tricky.filter(bool), scalars | tricky | st.lists(scalars | tricky, max_size=3), max_size=4
    ),
    delimiter=st.sampled_from(["\n", "\n\n", " \n", "\t", "。", "1e5", "no"]),
    lr=st.floats(1e-300, 1),
    train_split=texts | tricky,
)
def test_what_is_written_is_read_back_equal(params: dict, delimiter: str, lr: float, train_split: str) -> None:
    recipe = SvpoRecipe.model_validate(
        {
            "name": "a",
            "task": {"params": params, "delimiter": delimiter, "train_split": train_split},
            "train": {"lr": lr},
            "model": {"lora": {"targets": ["q_proj", "v_proj"]}},
        }
    )
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "recipe.yaml"
        file.write_text(dump_recipe(recipe), encoding="utf-8")
        again = load_recipe(file).recipe
    assert again == recipe
    assert dump_recipe(again) == dump_recipe(recipe)


# ---- resuming


def test_only_what_computes_nothing_else_may_change_on_resume() -> None:
    old = load_recipe("svpo").recipe
    new = load_recipe(
        "svpo",
        ["budget.tokens=100", "rounds=3", "engine.max_rows=8", "engine.cache_mb=1", "engine.threads=2",
         "search.trees_in_flight=2", "model.device=cpu"],
    ).recipe  # fmt: skip
    assert [str(change) for change in check_resume(old, new)] == [
        "rounds: 2 → 3",
        'model.device: "auto" → "cpu"',
        "engine.max_rows: 256 → 8",
        "engine.cache_mb: 1024 → 1",
        "engine.threads: null → 2",
        "search.trees_in_flight: 64 → 2",
        "budget.tokens: null → 100",
    ]
    assert check_resume(old, old) == []


def test_other_changes_are_refused_with_a_diff() -> None:
    old = load_recipe("svpo").recipe
    new = load_recipe(
        "svpo", ["rounds=1", "train.lr=1e-4", "model.lora={}", "task.params={n: 3}", "engine.max_rows=8"]
    ).recipe
    with pytest.raises(RecipeError) as caught:
        check_resume(old, new)
    message = str(caught.value)
    assert "  rounds: 2 → 1 (rounds may only grow)\n" in message
    assert "  train.lr: 1e-05 → 0.0001\n" in message
    assert "  model.lora.rank: null → 16\n" in message
    assert "  task.params.n: null → 3\n" in message
    assert "engine.max_rows: 256" not in message
    assert "--out" in message


@given(
    key=st.sampled_from(sorted(k for k, v in known_keys().items() if isinstance(v, int) and not isinstance(v, bool)))
)
@settings(max_examples=15, deadline=None)
def test_every_numeric_key_is_either_resumable_or_refused(key: str) -> None:
    overrides = ["task.splits.labelled=50", "pairs.min_problems=1", "model.lora={}"]
    method = methods_with(key)[0]
    overrides += ["warmup.epochs=1"] if method == "dpo_st" or key.startswith("warmup.") else []
    overrides += ["search.self_evaluation={}"] if method == "mcts_dpo" else []
    old = load_recipe(method, overrides).recipe
    new = load_recipe(method, [*overrides, f"{key}=33"]).recipe
    allowed = key in RESUMABLE or key == "rounds"
    if allowed:
        assert [change.key for change in check_resume(old, new)] == [key]
    else:
        with pytest.raises(RecipeError, match=re.escape(key)):
            check_resume(old, new)


# ---- keys by method


@pytest.mark.parametrize(
    ("method", "text", "line", "key", "knows"),
    [
        ("svpo", "search:\n  length_power: 1.0\n", 3, "search.length_power", "mcts_dpo"),
        ("svpo", "online: {enabled: false}\n", 2, "online", "mcts_dpo"),
        ("mcts_dpo", "train:\n  epochs: 7\n", 3, "train.epochs", "svpo and dpo_st"),
        ("mcts_dpo", "search: {evaluate: rollout}\n", 2, "search.evaluate", "svpo"),
        ("dpo_st", "search: {simulations: 5}\n", 2, "search", "svpo and mcts_dpo"),
        ("dpo_st", "pairs: {min_gap: 1}\n", 2, "pairs.min_gap", "svpo and mcts_dpo"),
    ],
)  # fmt: skip
def test_a_key_that_means_nothing_to_the_method_is_refused(
    tmp_path: Path, method: str, text: str, line: int, key: str, knows: str
) -> None:
    problems = problems_of(tmp_path, f"extends: {method}\n{text}")
    assert problems == [f"r.yaml:{line}: {key}: has no effect with {method}, only with {knows}: take it out"]


@pytest.mark.parametrize(
    ("text", "overrides", "place", "key", "by"),
    [
        ("train: {objective: dpo,\n  margin: 0.7}\n", [], "r.yaml:3", "train.margin", "train.objective is dpo"),
        ("value: {samples: 3}\n", ["train.objective=sft", "value.samples=4"], "override 'value.samples=4'",
         "value.samples", "train.objective is sft"),
        ("", ["task.kind=reasoning_gym", "task.path=a.jsonl"], "override 'task.path=a.jsonl'", "task.path",
         "task.kind is reasoning_gym"),
        ("pairs: {level: solution}\n", ["pairs.max_per_parent=3"], "override 'pairs.max_per_parent=3'",
         "pairs.max_per_parent", "pairs.level is solution"),
        ("method: dpo_st\nwarmup: {epochs: 1}\ntask: {splits: {labelled: 9}}\nself_training:\n  dpo: false\n"
         "  dpo_samples: 9\n", [], "r.yaml:7", "self_training.dpo_samples", "self_training.dpo is false"),
    ],
)  # fmt: skip
def test_a_key_that_another_leaves_without_effect_is_refused(
    tmp_path: Path, text: str, overrides: list[str], place: str, key: str, by: str
) -> None:
    (tmp_path / "r.yaml").write_text(f"name: a\n{text}")
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "r.yaml", overrides)
    assert str(caught.value).replace(f"{tmp_path}/", "") == f"{place}: {key}: has no effect while {by}: take it out"


def test_a_later_text_may_switch_off_what_an_earlier_one_sets(tmp_path: Path) -> None:
    (tmp_path / "first.yaml").write_text("value: {samples: 3}\ntrain: {margin: 0.7}\n")
    (tmp_path / "second.yaml").write_text("extends: first.yaml\ntrain: {objective: dpo}\n")
    assert load_recipe(tmp_path / "second.yaml").recipe.train.margin == 0.7
    loaded = load_recipe(tmp_path / "first.yaml", ["train.objective=sft", "train.value_weight=0"])
    (tmp_path / "as_run.yaml").write_text(dump_recipe(loaded.recipe))
    assert load_recipe(tmp_path / "as_run.yaml").recipe == loaded.recipe, "a run's own recipe has every key"
    (tmp_path / "third.yaml").write_text("extends: as_run.yaml\nname: first\n")
    assert load_recipe(tmp_path / "third.yaml").recipe == loaded.recipe


def test_a_recipe_as_an_older_version_wrote_it_is_read(tmp_path: Path) -> None:
    recipe = load_recipe("svpo", ["name=old"]).recipe
    text = dump_recipe(recipe)
    old = text + "online: {enabled: true, batch_problems: 32}\nself_training: {dpo: true}\n"
    (tmp_path / "recipe.yaml").write_text(old)
    assert load_recipe(tmp_path / "recipe.yaml").recipe == recipe
    (tmp_path / "recipe.yaml").write_text(text + "online: {batch_problems: 7}\n")
    with pytest.raises(RecipeError, match=r":\d+: online: has no effect with svpo, only with mcts_dpo"):
        load_recipe(tmp_path / "recipe.yaml")


MORE = {"jsonl": ["task.path=rows.jsonl"], "verifiers": ["task.splits.labelled=0", "warmup.epochs=0"]}
"""What some kinds of task need."""


def test_every_switch_names_keys_and_values_that_there_are() -> None:
    for keys, by, off in SWITCHES:
        assert all(methods_with(key) for key in keys)
        for value in off:
            load_recipe(
                methods_with(by)["warmup" not in by and value != "verifiers" and -1],
                [f"{by}={json.dumps(value)}", *MORE.get(str(value), [])],
            )


def test_an_unknown_method_is_the_problem_and_not_the_keys_of_others(tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path, "name: a\nmethod: mcts_dpoo\nonline: {enabled: false}\n")
    assert problem == (
        "r.yaml:2: method: must be one of 'svpo', 'mcts_dpo', 'dpo_st' (got \"mcts_dpoo\"); did you mean mcts_dpo?"
    )


def test_every_key_is_known_to_a_method_and_defaults_agree() -> None:
    for key, default in known_keys().items():
        assert methods_with(key), key
        for method in methods_with(key):
            if key != "method":
                assert keys_of(RECIPES[method])[key] == default, f"{key} has another default in {method}"


# ---- what one text lays over another


def test_a_replaced_list_has_its_own_lines(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("extends: svpo\nmodel: {path: x}\neval: {sbs: [[1]]}\n")
    (problem,) = (line for line in refusal(tmp_path / "r.yaml").splitlines())
    assert problem.endswith("r.yaml:3: eval.sbs[0][1]: is missing")


def test_what_an_override_leaves_keeps_its_line(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("extends: quickstart\ntrain:\n  beta: no\n  clip: !x 1\n")
    first, second = refusal(tmp_path / "r.yaml", "train={lr: 1e-4}").splitlines()
    assert "r.yaml:3: train.beta" in first and "r.yaml:4: train.clip" in second
    assert load_recipe(tmp_path / "r.yaml", ["train={beta: 0.1, clip: 1}"]).recipe.train.beta == 0.1


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("extends=svpo", "extends: belongs into a file"),
        ("value={'': 1}", "value: a key must not be empty"),
        ("task.columns={answer: label}", "task.columns: has no effect while task.kind is reasoning_gym"),
        ("task.eval_split=test", "task.eval_split: has no effect while task.kind is reasoning_gym"),
        ("value.pools=[last, last]", "value.pools: has last twice"),
        ("value.layers=[0.5, 1, 0.5]", "value.layers: has 0.5 twice"),
        ("eval.sbs=[[1, 2], [1, 2]]", "eval.sbs: has [1, 2] twice"),
    ],
)
def test_what_does_nothing_is_said_to(override: str, told: str) -> None:
    assert told in refusal("quickstart", override)


@pytest.mark.parametrize(
    ("recipe", "switch", "keys"),
    [
        ("quickstart", "train.objective=sft", ["train.reference=initial", "train.beta=0.2"]),
        ("quickstart", "value.fit=false", ["value.problems=9"]),
        ("mcts_dpo", "eval.sbs=[]", ["eval.sbs_likelihood=9.0"]),
        ("quickstart", "task.granularity=[1]", ["task.slips=0.1"]),
        ("svpo", "task.kind=math", ["task.name=countdown", "task.granularity=[2]"]),
        ("dpo_st", "self_training.dpo=false", ["train.lr=1e-4", "pairs.min_problems=3", "self_training.dpo_samples=9"]),
        (
            "dpo_st",
            "self_training.pseudo_labels=false",
            ["train.lr=1e-4", "self_training.label_samples=9", "self_training.patience=9"],
        ),
    ],
)
def test_keys_that_another_switches_off_are_refused(recipe: str, switch: str, keys: list[str]) -> None:
    told = refusal(recipe, switch, *keys).splitlines()
    found = {line.partition(": has no effect while ")[0].rpartition(" ")[2] for line in told}
    assert found == {key.partition("=")[0] for key in keys}
    load_recipe(recipe, [switch])


def refusal(recipe: str | Path, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe, overrides)
    return str(caught.value)
