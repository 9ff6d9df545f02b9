"""By which score a search selects: the published PUCT, or a user's own function. Knows no search and no tree."""

from __future__ import annotations

import math
from functools import cache

from treepref.errors import RecipeError
from treepref.search.rules import Score, puct_alphamath
from treepref.types import Node
from treepref.workers.functions import load_function


@cache
def score_of(name: str) -> Score:
    """A score by name: `puct`, or a user's `module:function` of (parent, child, c), whose failures are told for people.

    Raises RecipeError where it cannot be imported; the score itself raises it where it fails or is no finite number.
    """
    if name == "puct":
        return puct_alphamath
    own = load_function(name, "search.score")

    def score(parent: Node, child: Node, c: float) -> float:
        try:
            found = float(own(parent, child, c))
        except Exception as error:  # a user's function may fail in any way
            raise RecipeError(f"search.score {name} fails: {type(error).__name__}: {error}") from error
        if not math.isfinite(found):
            raise RecipeError(f"search.score {name} gives {found}: it must be a finite number, the largest is selected")
        return found

    return score
