"""The recipe that a run was begun with, read back from its store."""

from __future__ import annotations

import json
from typing import Any

from pydantic import ValidationError

from treepref.config import DEFAULT_METHOD, RECIPES, Recipe
from treepref.errors import StoreError
from treepref.keys import foreign_keys, is_idle, methods_with, without
from treepref.runs.store import Store


def stored_recipe(store: Store) -> Recipe | None:
    """The run's recipe; None where it has none yet. Raises StoreError where this version cannot make sense of it.

    Keys that mean nothing to its method, which older versions wrote, are left out (see `dropped_keys`).
    """
    known = store.meta("recipe")
    if known is None:
        return None
    method = known.get("method", DEFAULT_METHOD) if isinstance(known, dict) else None
    if not isinstance(method, str) or method not in RECIPES:
        raise StoreError(f"{_damaged(store)} (method): {_WAY_OUT}")
    dropped = dropped_keys(store)
    try:
        return RECIPES[method].model_validate_json(json.dumps(without(known, set(dropped))))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise StoreError(f"{_damaged(store)} ({where}: {first['msg']}): {_WAY_OUT}") from error


def dropped_keys(store: Store) -> list[str]:
    """The keys of the stored recipe that its method does not know. All of them did nothing.

    Raises StoreError where one stands at a value that somebody chose: what was meant by it cannot be told.
    """
    known: dict[str, Any] = store.meta("recipe")
    method = known.get("method", DEFAULT_METHOD)
    foreign = dict(foreign_keys(known, method))
    chosen = {key: value for key, value in foreign.items() if not is_idle(key, value)}
    if chosen:
        lines = (f"  {key}: {json.dumps(value)} ({' and '.join(methods_with(key))})" for key, value in chosen.items())
        raise StoreError(
            f"{store.folder}: its recipe sets keys that have no effect with {method}, only with other methods:\n"
            + "\n".join(lines)
            + "\nAn older version took them in silence. Start another run without them, with another --out"
        )
    return list(foreign)


_WAY_OUT = "use that version, restore run.db from a copy, or start another run with another --out"


def _damaged(store: Store) -> str:
    return f"{store.folder}/run.db: its recipe is damaged, or of another version of treepref"
