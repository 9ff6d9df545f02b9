"""The schema of recipes, flat: every key by its dotted name, and which methods know it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel

from treepref.config import (
    DEFAULT_METHOD,
    RECIPES,
    SECTIONS,
    EpochsConfig,
    Recipe,
    Section,
    SelfTrainingConfig,
    TaskConfig,
)


class Switch(NamedTuple):
    """Keys that do nothing while another key stands at one of some values."""

    keys: tuple[str, ...]
    """Keys, or sections of them."""
    by: str
    off: tuple[Any, ...]
    """The values of `by` that switch them off."""


_PREFERENCES = (
    "pairs.min_problems",
    *(f"train.{name}" for name in EpochsConfig.model_fields if name not in ("row_tokens", "attention", "recompute")),
)
"""dpo_st: what its DPO step alone uses."""
_KINDS = get_args(TaskConfig.model_fields["kind"].annotation)
SWITCHES = (
    Switch(
        ("train.value_weight", "train.value_target", "train.margin_weight", "train.margin", "train.sft_weight",
         "train.value_lr", "value"),
        "train.objective", ("dpo", "cdpo", "cdpo_mean", "ipo", "ipo_mean", "sft"),
    ),
    Switch(("train.smoothing",), "train.objective", ("dpo", "ipo", "ipo_mean", "sft")),
    Switch(("train.beta", "train.reference"), "train.objective", ("sft",)),
    Switch(("value.problems",), "value.fit", (False,)),
    Switch(("pairs.rule", "pairs.max_per_parent"), "pairs.level", ("solution",)),
    Switch(("pairs.max_per_parent",), "pairs.rule", ("trace",)),
    Switch(("warmup.lr", "warmup.batch_tokens", "warmup.warmup_ratio", "warmup.weight_decay"), "warmup.epochs", (0,)),
    Switch(
        ("task.path", "task.eval_path", "task.columns", "task.train_split", "task.eval_split"),
        "task.kind", ("reasoning_gym", "verifiers"),
    ),
    Switch(("task.name",), "task.kind", tuple(kind for kind in _KINDS if kind not in ("reasoning_gym", "verifiers"))),
    Switch(("task.granularity",), "task.kind", tuple(kind for kind in _KINDS if kind != "reasoning_gym")),
    Switch(("task.slips",), "task.granularity", ([1],)),
    Switch(("task.system", "task.chat_template_kwargs"), "task.chat", (False,)),
    Switch(("task.examples_path",), "task.examples", (0,)),
    Switch(("eval.sbs_likelihood",), "eval.sbs", ([],)),
    Switch(
        ("self_training.dpo_samples", "self_training.pairs_per_problem", "self_training.gold_positive", *_PREFERENCES),
        "self_training.dpo", (False,),
    ),
    Switch(
        (*(f"self_training.{name}" for name in SelfTrainingConfig.model_fields if name != "pseudo_labels"),
         *_PREFERENCES),
        "self_training.pseudo_labels", (False,),
    ),
)  # fmt: skip
"""Which keys which values of others leave without effect. What few readers would take for such a case is left out."""

_OFF_ONCE = {"eval.sbs": [], "eval.mcts": False, "search.leaves_in_flight": 1}
"""Values beside the default under which keys of other methods did nothing when recipes still took them."""


def keys_of(section: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """The keys of a recipe class, in order, each with its default.

    Sections have no entry of their own, except those that may be null, such as `model.lora`. Required keys have the
    default `...`.
    """
    found: dict[str, Any] = {}
    fields = section.model_fields
    for name in sorted(fields, key=SECTIONS.index) if issubclass(section, Recipe) else fields:
        info = fields[name]
        kinds = (info.annotation, *get_args(info.annotation))
        inner = next((t for t in kinds if isinstance(t, type) and issubclass(t, Section)), None)
        default = ... if info.is_required() else info.get_default(call_default_factory=True, validated_data={})
        if inner is None or default is None:
            found[prefix + name] = default
        if inner is not None:
            found.update(keys_of(inner, f"{prefix}{name}."))
    return found


@cache
def known_keys() -> dict[str, Any]:
    """The keys of all methods. `method` has the default that a recipe without one takes."""
    found = {key: default for cls in RECIPES.values() for key, default in keys_of(cls).items()}
    found["method"] = DEFAULT_METHOD
    return dict(sorted(found.items(), key=lambda item: SECTIONS.index(item[0].partition(".")[0])))


@cache
def methods_with(key: str) -> tuple[str, ...]:
    """The methods that know a key, or a section."""

    def knows(cls: type[Recipe]) -> bool:
        return any(known == key or known.startswith(f"{key}.") for known in keys_of(cls))

    return tuple(method for method, cls in RECIPES.items() if knows(cls))


def foreign_keys(data: Mapping[str, Any], method: str) -> Iterator[tuple[str, Any]]:
    """The keys of a recipe's data that other methods know and this one does not, with their values."""
    own, known = keys_of(RECIPES[method]), known_keys()
    for key, value in flatten(data).items():
        parents = (key.rsplit(".", cut)[0] for cut in range(key.count(".") + 1))
        nearest = next((k for k in parents if k in known or k in own), None)
        if nearest is not None and nearest not in own and not any(k.startswith(f"{nearest}.") for k in own):
            yield key, value


def is_idle(key: str, value: Any) -> bool:
    """Whether a key of another method stands at a value that nobody chose: its default, or one that switches it off."""
    defaults = known_keys()
    if key not in defaults:  # in a section that is null at its default
        return False
    return value == json.loads(json.dumps(defaults[key])) or (key in _OFF_ONCE and value == _OFF_ONCE[key])


def switched_off(recipe: Recipe) -> dict[str, str]:
    """The keys that stand at another value than their default and do nothing, each with the key that is why.

    Not those at 0, false or null: what is off may be said to be off.
    """
    data, defaults, found = plain(recipe), keys_of(type(recipe)), {}
    for keys, by, off in SWITCHES:
        if by not in defaults or value_at(data, by) not in off:
            continue
        for key, default in defaults.items():
            within = key in keys or key.startswith(tuple(f"{section}." for section in keys))
            value = value_at(data, key) if within else None
            if value and value != default:
                found.setdefault(key, by)
    return found


def value_at(data: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key; None in a section that is null."""
    value: Any = data
    for part in key.split("."):
        value = value[part] if isinstance(value, Mapping) else None
    return value


def without(data: Mapping[str, Any], keys: set[str], prefix: str = "") -> dict[str, Any]:
    """The data without some keys, and without sections that are empty for want of them."""
    left: dict[str, Any] = {}
    for name, value in data.items():
        key = prefix + name
        if key in keys:
            continue
        if isinstance(value, Mapping) and any(gone.startswith(f"{key}.") for gone in keys):
            if inner := without(value, keys, f"{key}."):
                left[name] = inner
        else:
            left[name] = value
    return left


def flatten(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys; an empty mapping stays a value."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def plain(recipe: Recipe) -> dict[str, Any]:
    """A recipe as JSON-able data, its sections in the order in which they are written."""
    data = recipe.model_dump(mode="json")
    return {name: data[name] for name in SECTIONS if name in data}
