"""Problems, prompts, step-by-step solutions and answer checks. Imports no torch: its workers start in a moment."""

from treepref.tasks.checking import Checker, Verdict
from treepref.tasks.loading import Splits, load_splits
from treepref.tasks.task import Task, load_task

__all__ = ["Checker", "Splits", "Task", "Verdict", "load_splits", "load_task"]
