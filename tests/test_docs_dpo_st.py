"""Whether docs/dpo_st.md speaks of code and recipe keys that exist, and of every key of self-training."""

from __future__ import annotations

import re

import pytest

from test_public_api import ROOT, SOURCE, definitions
from treepref.keys import known_keys

PAGE = (ROOT / "docs" / "dpo_st.md").read_text(encoding="utf-8")
REFERENCES = sorted(set(re.findall(r"`([\w/]+\.py)::([\w.]+)`", PAGE)))


def test_the_page_names_its_places_in_full() -> None:
    assert len(REFERENCES) > 20
    assert PAGE.count("::") == len(re.findall(r"`[\w/]+\.py::[\w.]+`", PAGE)) + PAGE.count("`path::name`")


@pytest.mark.parametrize(("path", "name"), REFERENCES, ids=["::".join(pair) for pair in REFERENCES])
def test_every_place_exists(path: str, name: str) -> None:
    assert name in definitions(SOURCE / path)


def test_every_recipe_key_exists_and_none_of_self_training_is_missing() -> None:
    sections = {key.partition(".")[0] for key in known_keys() if "." in key}
    named = set(re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)", PAGE))
    named = {key for key in named if key.partition(".")[0] in sections and not key.startswith("task.params.")}
    assert named <= known_keys().keys()
    assert {key for key in known_keys() if key.startswith("self_training.")} <= named
