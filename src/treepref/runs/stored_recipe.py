"""The recipe that a run was begun with, read back from its store."""

from __future__ import annotations

import json

from pydantic import ValidationError

from treepref.config import Recipe
from treepref.errors import StoreError
from treepref.runs.store import Store


def stored_recipe(store: Store) -> Recipe | None:
    """The run's recipe; None where it has none yet. Raises StoreError where this version cannot make sense of it."""
    known = store.meta("recipe")
    if known is None:
        return None
    try:
        return Recipe.model_validate_json(json.dumps(known))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise StoreError(
            f"{store.folder}/run.db: its recipe is damaged, or of another version of treepref ({where}: "
            f"{first['msg']}): use that version, restore run.db from a copy, or start another run with another --out"
        ) from error
