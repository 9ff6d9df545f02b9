"""What no recipe needs is refused in a sentence, at once: hostile YAML, endless `extends`, numbers beyond use."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from treepref.config import RECIPES, Recipe
from treepref.errors import RecipeError
from treepref.keys import known_keys, methods_with
from treepref.loops.estimate import estimate
from treepref.recipes.estimate import render
from treepref.recipes.reading import dump_recipe, load_recipe
from treepref.recipes.sizing import ModelInfo, Rates


def refusal(tmp_path: Path, text: str, *overrides: str) -> str:
    file = tmp_path / "r.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe(file, overrides)
    return str(caught.value).replace(f"{tmp_path}/", "")


# ---- YAML


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("name: a\nmodel: &x {path: b}\n", 2, "anchors (&name) are not used"),
        ("&x\nname: a\n", 1, "anchors (&name) are not used"),
        ("!x\nname: a\n", 1, "YAML tag !x is not used in recipes"),
        ("!!omap\nname: a\n", 1, "tag:yaml.org,2002:omap is not used in recipes"),
        ("!!omap\n- name: a\n", 1, "tag:yaml.org,2002:omap is not used in recipes"),
        ("!!set {name}\n", 1, "tag:yaml.org,2002:set is not used in recipes"),
        ("name: !!binary aGVsbG8=\n", 1, "name: YAML tag tag:yaml.org,2002:binary is not used"),
        ("name: a\nseed: !!timestamp 2024-01-01\n", 2, "seed: YAML tag tag:yaml.org,2002:timestamp is not used"),
        ('name: a\nx: "\\UFFFFFFFF"\n', 2, "out of range"),
        ('name: a\nx: "\\U00110000"\n', 2, "out of range"),
        ("name: a\nx: " + "[" * 40 + "]" * 40, 2, "nested too deeply (more than 32 levels)"),
        ("name: a\nx: " + "{a: " * 300 + "1" + "}" * 300, 2, "nested too deeply"),
        ("name: a\ntask: {params: {a: " + "9" * 401 + "}}\n", 2, "task.params.a: is a number of more than 400 digits"),
        ('name: a\ntask: {prompt: "{question}\\ud800"}\n', 2, "task.prompt: is not valid Unicode text"),
        ('name: a\ntask: {params: {"k\\ud800": 1}}\n', 2, "task.params: a key is not valid Unicode text"),
        ('name: a\n"k\\ud800": 1\n', 2, "a key is not valid Unicode text"),
        ('name: a\ntask: {kind: jsonl, path: "a\\0b"}\n', 2, "task.path: holds the character NUL"),
        ('name: a\ntask: {params: {"k\\0": 1}}\n', 2, "task.params: a key holds the character NUL"),
        ("name: " + "b" * 201 + "\n", 1, "name: is longer than 200 bytes"),
        ("name: " + "é" * 101 + "\n", 1, "name: is longer than 200 bytes"),
    ],
)
def test_yaml_that_no_recipe_needs_is_refused_with_its_line(tmp_path: Path, text: str, line: int, what: str) -> None:
    message = refusal(tmp_path, text)
    assert message.startswith(f"r.yaml:{line}: ")
    assert what in message
    assert len(message) < 300


def test_a_recipe_that_is_too_long_is_not_read_and_one_that_grows_too_long_is_not_taken(tmp_path: Path) -> None:
    assert "longer than 250,000 bytes" in refusal(tmp_path, "name: a\n#" + "x" * 250_000)
    (tmp_path / "r.yaml").write_text("task: {prompt: '{question}" + "x" * 200_000 + "'}\n")
    load_recipe(tmp_path / "r.yaml")
    with pytest.raises(RecipeError, match="longer than 250,000 bytes when written out"):
        load_recipe(tmp_path / "r.yaml", ["task.params.a=" + "x" * 100_000])


def test_many_problems_are_counted_and_not_all_listed(tmp_path: Path) -> None:
    message = refusal(tmp_path, "".join(f"k{i}: 1\n" for i in range(1000)))
    assert message.count("\n") == 50
    assert re.search(r"… and \d+ more$", message)


# ---- files and what they extend


@pytest.mark.parametrize("through", ["sub/../r.yaml", "./sub/.././r.yaml", "link.yaml", "LOOP/r.yaml"])
def test_a_circle_is_found_by_whatever_path_it_is_closed(tmp_path: Path, through: str) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "link.yaml").symlink_to("r.yaml")
    (tmp_path / "LOOP").symlink_to(".")
    message = refusal(tmp_path, f"extends: {through}\n")
    assert "extends itself" in message
    assert message.startswith("r.yaml:1: ")


def test_a_long_chain_is_cut(tmp_path: Path) -> None:
    for i in range(40):
        (tmp_path / f"c{i}.yaml").write_text(f"extends: c{i + 1}.yaml\n")
    with pytest.raises(RecipeError, match="more than 16 recipes that extend one another"):
        load_recipe(tmp_path / "c0.yaml")


@pytest.mark.parametrize("name", ["a" * 5000 + ".yaml", "a/" * 5000 + ".yaml", "a" * 5000])
def test_a_path_that_no_system_takes_is_refused(tmp_path: Path, name: str) -> None:
    message = refusal(tmp_path, f"extends: {name}\n")
    assert re.match(r"r\.yaml:1: extends: .*(cannot be read: File name too long|no recipe 'aaa)", message, re.DOTALL)
    assert len(message) < 600
    with pytest.raises(RecipeError) as caught:
        load_recipe(name)
    assert len(str(caught.value)) < 600


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_may_not_be_entered_is_named(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    assert "cannot be read: Permission denied" in refusal(tmp_path, "extends: closed/x.yaml\n")


def test_a_file_whose_name_is_no_text_asks_for_a_name(tmp_path: Path) -> None:
    file = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.yaml"))
    file.write_text("extends: svpo\n")
    with pytest.raises(RecipeError, match=r"name: is missing, and the file's name is not valid Unicode"):
        load_recipe(file)
    assert load_recipe(file, ["name=a"]).recipe.name == "a"


# ---- overrides


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("." * 1000 + "=1", "write it as key=value"),
        (".".join("a" * 1000) + "=1", "its key has 1000 parts"),
        ("task.params." + ".".join("a" * 200) + "=1", "its key has 202 parts"),
        ("task.params.a.b=" + "[" * 30 + "]" * 30, "nested too deeply"),
        ("task.\ud800=1", "its key is not valid Unicode text"),
        ("task.params.\udcff=1", "its key is not valid Unicode text"),
        ('task.prompt="{question}\\ud800"', "task.prompt: is not valid Unicode text"),
        ('task.path="a\\0b"', "task.path: holds the character NUL"),
        ("task=!x {kind: jsonl}", "task: YAML tag !x is not used"),
        ('name="\\UFFFFFFFF"', "out of range"),
        ("task.prompt=" + "x" * 300_000, "its value is longer than"),
    ],
)
def test_overrides_that_cannot_be_are_refused(tmp_path: Path, override: str, what: str) -> None:
    message = refusal(tmp_path, "extends: svpo\n", override)
    assert message.startswith("override ")
    assert what in message
    assert len(message) < 300


# ---- numbers


def numeric_keys(
    whole: dict[str, Any], schema: dict[str, Any] | None = None, prefix: str = ""
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every numeric key of a recipe with its JSON schema."""
    for name, field in (schema or whole)["properties"].items():
        for form in field.get("anyOf", [field]):
            if "$ref" in form:
                yield from numeric_keys(whole, whole["$defs"][form["$ref"].rpartition("/")[2]], f"{prefix}{name}.")
            elif form.get("type") in ("integer", "number"):
                yield prefix + name, form


NUMERIC = {key: form for cls in RECIPES.values() for key, form in numeric_keys(cls.model_json_schema())}
FLOATS = [key for key, form in NUMERIC.items() if form["type"] == "number"]
EXTREMES = (
    "0",
    "-1",
    "1e-300",
    "1e300",
    "-1e300",
    str(2**31),
    str(2**63),
    str(10**30),
    "-" + str(10**30),
    "1" + "0" * 310,
)


def test_all_numeric_keys_are_known_and_have_both_bounds() -> None:
    numbers = {key for key, value in known_keys().items() if type(value) in (int, float)}
    assert numbers <= set(NUMERIC)
    assert len(FLOATS) > 25
    for key, form in NUMERIC.items():
        assert {"minimum", "exclusiveMinimum"} & set(form), f"{key} has no lower bound"
        assert {"maximum", "exclusiveMaximum"} & set(form), f"{key} has no upper bound"


@pytest.mark.parametrize("key", NUMERIC)
def test_an_extreme_number_is_taken_or_refused_with_its_line(tmp_path: Path, key: str) -> None:
    *sections, name = key.split(".")
    lines = [f"extends: {methods_with(key)[0]}"]
    for depth, section in enumerate(sections):
        lines.append("  " * depth + f"{section}:")
    for text in EXTREMES:
        file = tmp_path / "r.yaml"
        file.write_text("\n".join([*lines, "  " * len(sections) + f"{name}: {text}\n"]))
        try:
            recipe = load_recipe(file).recipe
        except RecipeError as error:
            found = str(error).replace(str(file), "r.yaml").splitlines()
            assert any(line.startswith(f"r.yaml:{len(lines) + 1}: {key}: ") for line in found) or "is above" in found[0]
            assert all(len(line) < 300 for line in found)
        else:
            assert_reads_back(recipe, tmp_path)


@pytest.mark.parametrize("key", FLOATS)
@pytest.mark.parametrize("text", ["1" + "0" * 310, "-1" + "0" * 310, "1" + "0" * 399, ".inf", ".nan", "1e999"])
def test_no_float_is_infinite(tmp_path: Path, key: str, text: str) -> None:
    method = f"method: {methods_with(key)[0]}\n"
    told = refusal(tmp_path, method, f"{key}={text}")
    assert re.search(rf"{re.escape(key)}: must be a (finite|valid) number", told), "in the words of pydantic's version"


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("search.top_p=1e-300", "greater than or equal to 0.000001"),  # no token's probability is so small in float32
        ("eval.top_p=1e-300", "greater than or equal to 0.000001"),
        ("search.length_power=-1e300", "greater than or equal to -10"),  # exp() of it overflows
        ("search.temperature=1e-300", "greater than or equal to 0.01"),  # 0 in float32: greedy
        ("eval.temperature=1e300", "less than or equal to 100"),
        ("task.check_seconds=1e300", "less than or equal to 86400"),  # no clock waits so long
        ("train.beta=1e-300", "greater than or equal to 0.0001"),  # ipo aims at 1 / (2 beta)
        ("train.lr=1e38", "less than or equal to 1"),
        ("engine.threads=2147483648", "less than or equal to 1024"),
        ("model.lora.rank=100000000000", "less than or equal to 16384"),
        ("engine.cache_mb=9223372036854775808", "less than or equal to 1000000000"),
        ("eval.samples=2147483648", "less than or equal to 10000"),
        ("seed=9223372036854775808", "less than 9223372036854775808"),
    ],
)
def test_numbers_that_would_fail_later_are_refused_at_once(tmp_path: Path, override: str, what: str) -> None:
    (method, *_) = methods_with(override.partition("=")[0])
    assert what in refusal(tmp_path, f"name: a\nextends: {method}\n", override)


def test_lists_of_numbers_have_bounds_too(tmp_path: Path) -> None:
    for number in (10**30, 2**63, 1001):
        assert "task.granularity[0]: must be less than" in refusal(tmp_path, f"task: {{granularity: [{number}]}}\n")
        assert "eval.sbs[0][1]: must be less than" in refusal(tmp_path, f"eval: {{sbs: [[1, {number}]]}}\n")


def test_mcts_dpo_has_no_leaves_in_flight_and_says_so_before_anything_is_spent(tmp_path: Path) -> None:
    message = refusal(tmp_path, "extends: mcts_dpo\nsearch: {leaves_in_flight: 2}\n")
    assert message.startswith("r.yaml:2: search.leaves_in_flight: has no effect with mcts_dpo, only with svpo")


# ---- what is accepted can be written and read back


def assert_reads_back(recipe: Recipe, folder: Path) -> None:
    file = folder / "recipe.yaml"
    file.write_text(dump_recipe(recipe), encoding="utf-8")
    again = load_recipe(file).recipe
    assert again == recipe
    assert dump_recipe(again) == dump_recipe(recipe)


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40)
numbers = st.integers(-(10**300), 10**300) | st.floats(allow_nan=False, allow_infinity=False)
plain = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(
    params=st.dictionaries(texts, plain, max_size=3),
    text=texts,
    key=st.sampled_from(list(NUMERIC)),
    number=numbers,
)
def test_any_accepted_recipe_is_read_back_equal(tmp_path_factory, params, text, key, number) -> None:
    folder = tmp_path_factory.mktemp("r")
    data = {
        "method": methods_with(key)[0],
        "task": {"params": params, "prompt": "{question}" + text, "train_split": text},
    }
    section = data
    *sections, name = key.split(".")
    for part in sections:
        section = section.setdefault(part, {})
    section[name] = number
    (folder / "r.yaml").write_text(yaml.safe_dump(data), encoding="utf-8")
    try:
        recipe = load_recipe(folder / "r.yaml").recipe
    except RecipeError:
        return
    assert_reads_back(recipe, folder)


@pytest.mark.parametrize("method", ["svpo", "mcts_dpo", "dpo_st"])
def test_every_bound_can_be_estimated(method: str) -> None:
    """The ends of the numbers' ranges, one key at a time and all of them together."""
    info, rates = ModelInfo(10**9, 10**5, 2048, 50_000, layers=24), Rates(1e12, 1e11, 1e-6)
    start = ["task.splits.train=5000", "task.splits.labelled=5000", "pairs.min_problems=1", "warmup.epochs=1"]
    start += ["search.self_evaluation={}", "pairs.rule=siblings"] if method == "mcts_dpo" else []
    start += ["train.objective=svpo", "task.checker=mine:check"]
    spent_on = re.compile(r"rounds|budget|search|online|self_training|eval")
    for end in ("minimum", "maximum"):
        values = {key: form[end] for key, form in NUMERIC.items() if end in form and method in methods_with(key)}
        for key in [key for key in values if key.startswith(("pairs.min_", "task.splits.", "warmup.epochs"))]:
            del values[key]
        each = [f"{key}={number}" for key, number in values.items() if spent_on.match(key)]
        for override in each:
            estimate(load_recipe(method, [*start, override]).recipe, model_info=info, rates=rates)
        del values["rounds"]  # a table of a thousand rounds takes seconds to lay out
        start += ["eval.sbs=[[1, 2]]"] if method == "mcts_dpo" else []
        recipe = load_recipe(method, [*start, *(f"{key}={number}" for key, number in values.items())]).recipe
        Console(file=io.StringIO()).print(render(recipe, estimate(recipe, model_info=info, rates=rates), info))
