"""Users' own functions, named `module:function` in a recipe. Knows nothing of what they do."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable
from typing import Any

from treepref.errors import RecipeError

_NAME = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def is_function_name(text: str) -> bool:
    """Whether `text` has the form `module:function`."""
    return _NAME.fullmatch(text) is not None


def load_function(name: str, key: str) -> Callable[..., Any]:
    """The function that `name` (`module:function`) means; modules in the working directory are found too.

    `key` is the recipe's key, for the message. Raises RecipeError where it cannot be imported.
    """
    if not is_function_name(name):
        raise RecipeError(f"{key}: {name!r} is not of the form module:function")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    module_name, _, function_name = name.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except AttributeError:
        raise RecipeError(f"{key}: module {module_name!r} has no {function_name!r}") from None
    except Exception as error:  # a user's module may fail in any way while it is imported
        raise RecipeError(f"{key}: cannot import {module_name!r}: {type(error).__name__}: {error}") from error
    if not callable(function):
        raise RecipeError(f"{key}: {name!r} is not a function")
    return function
