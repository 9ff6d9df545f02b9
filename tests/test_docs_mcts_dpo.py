"""Whether docs/mcts_dpo.md speaks of code and recipe keys that exist, and its recipes keep to the paper."""

from __future__ import annotations

import re

import pytest

from test_public_api import ROOT, SOURCE, definitions
from treepref.keys import known_keys
from treepref.recipes.reading import load_recipe

PAGE = (ROOT / "docs" / "mcts_dpo.md").read_text(encoding="utf-8")
REFERENCES = sorted(set(re.findall(r"`([\w/]+\.py)::([\w.]+)`", PAGE)))


def test_the_page_names_its_places() -> None:
    assert len(REFERENCES) > 40
    assert PAGE.count("::") == len(re.findall(r"`[\w/]+\.py::[\w.]+`", PAGE)) + PAGE.count("`path::name`")


@pytest.mark.parametrize(("path", "name"), REFERENCES, ids=["::".join(pair) for pair in REFERENCES])
def test_every_place_of_the_page_exists(path: str, name: str) -> None:
    assert name in definitions(SOURCE / path)


def test_every_recipe_key_of_the_page_exists() -> None:
    sections = {key.partition(".")[0] for key in known_keys() if "." in key}
    named = {key for key in re.findall(r"`([a-z_]+\.[a-z_]+)(?:: \w+)?`", PAGE) if key.partition(".")[0] in sections}
    assert len(named) > 25
    assert named <= known_keys().keys()


@pytest.mark.parametrize("name", ["mcts_dpo", "mcts_dpo_smollm2"])
def test_the_recipes_keep_the_papers_constants(name: str) -> None:
    recipe = load_recipe(name).recipe
    assert (recipe.search.root_children, recipe.search.children) == (5, 3)
    assert (recipe.train.objective, recipe.train.beta, recipe.train.smoothing) == ("cdpo", 0.1, "visits")
    assert (recipe.train.schedule, recipe.train.warmup_ratio, recipe.train.clip) == ("cosine", 0.03, 1.0)
    assert (recipe.train.reference, recipe.pairs.rule) == ("initial", "trace")
    for override in ("online.enabled=false", "pairs.level=solution", "train.objective=ipo", "train.reference=previous"):
        load_recipe(name, [override])
