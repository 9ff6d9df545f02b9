"""Search over reasoning steps: stateless rules in the ask/tell style over trees that the caller owns.

No input or output, no torch, no tokenizer: an engine continues token sequences, a judge scores them, a search only
decides what to expand next and what the answers mean.
"""

from treepref.search.beam import StepBeam
from treepref.search.limits import Limits
from treepref.search.mcts import Mcts
from treepref.search.sampling import Sampling
from treepref.search.tree import best_solution

__all__ = ["Limits", "Mcts", "Sampling", "StepBeam", "best_solution"]
