"""Errors for people: what was wrong, where, and what to do. The command line prints them without a traceback."""


class TreeprefError(Exception):
    """Base of every error that a user can cause or mend."""

    exit_code = 2
    """What the command line ends with; docs/recipes.md lists them."""


class RecipeError(TreeprefError):
    """A recipe has an unknown key, a wrong type or an impossible value."""


class DataError(TreeprefError):
    """Problems could not be read, or splits overlap."""


class ModelError(TreeprefError):
    """A model folder is incomplete, or the model cannot be used as asked."""


class StoreError(TreeprefError):
    """The run directory cannot be used: locked, full, unsafe file system, or made by another recipe."""


class BudgetError(TreeprefError):
    """A hard limit of the recipe was reached. Everything done so far is stored; raise the limit and run again."""

    exit_code = 3


class EngineError(TreeprefError):
    """The engine fails request after request. Everything done so far is stored; mend the cause and run again."""

    exit_code = 5


class TooFewPairs(TreeprefError):
    """A round found too few problems with mixed outcomes to learn from."""

    exit_code = 4


class CheckerError(TreeprefError):
    """A user's checker fails time and again. What it could not check is not kept; mend it and run again."""

    exit_code = 6
