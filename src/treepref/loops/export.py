"""A run's pairs as rows for other trainers: JSON lines with `prompt`, `chosen`, `rejected`, as TRL's DPOTrainer reads.

The rows keep treepref's numbers as further columns, which TRL passes over. In one point TRL does with a row what
treepref does not with a pair: it ends every side with EOS, steps within a solution too; `Exported.warning` says so.
Knows trees and pairs; `export_trl` also the run's store and tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from treepref.errors import StoreError
from treepref.runs.landing import new_file
from treepref.runs.stage import Stage
from treepref.runs.store import Store
from treepref.runs.view import open_view
from treepref.training.pairs import visit_smoothing
from treepref.types import Pair, Tree

Decode = Callable[[Sequence[int]], str]
_OURS = {"prompt", "chosen", "rejected", "problem_id", "policy"}
"""Keys by which a file's first row is known to be of an export."""

_ROW_BYTES = 64 * 2**20
"""No row of an export is longer; more of somebody's file is not read."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written."""

    pairs: int
    open_sides: int
    """Sides, of two a pair, that do not end in EOS: steps after which the solution goes on, or that were cut."""

    def warning(self, eos: str) -> str | None:
        """What a user of TRL must know of these rows; None where it changes nothing."""
        if not self.open_sides:
            return None
        return (
            f"{self.open_sides:,} of {2 * self.pairs:,} sides are steps that do not end in {eos!r}. TRL's DPOTrainer "
            "appends it to every side of such rows, and so trains the policy to stop after these steps. Leave it out "
            "where the columns eos_chosen, eos_rejected are false (tokenise the rows yourself), or export whole "
            "solutions (pairs.level: solution)"
        )


def trl_rows(
    trees: Mapping[str, Tree] | Callable[[str], Tree | None],
    pairs: Iterable[Pair],
    decode: Decode,
    *,
    round: int | None = None,
    eos: str | None = None,
) -> Iterator[dict[str, Any]]:
    """One row a pair. `trees` gives a tree by its key; `decode` gives the text of token ids.

    `prompt` is all that comes before the two sides part (the problem's prompt and the shared steps), so that
    `prompt + chosen` and `prompt + rejected` are exactly the decoded sequences, also where a token boundary cuts a
    character. Further columns: `alpha` (label smoothing by visits, MCTS-DPO, arXiv 2405.00451; see
    `preferences.visit_smoothing`) and `weight` = 1 − alpha, Q and visits of both sides, `round`, `problem_id`,
    `policy`, and `eos_chosen`, `eos_rejected`: whether the side ends in the text `eos` (None: never).
    Raises StoreError for a pair whose tree or nodes are not there.
    """
    find = trees.get if isinstance(trees, Mapping) else trees
    for pair in pairs:
        tree = find(pair.tree)
        if tree is None or max(*pair.winner, *pair.loser) >= len(tree.nodes):
            raise StoreError(
                f"pair {pair.id}: its tree is not in the run or lacks its nodes; run the pairs stage again"
            )
        shared = _shared_prefix(tree, pair)
        before = decode(shared)
        winner, loser = (decode([*shared, *_tokens(tree, side)]) for side in (pair.winner, pair.loser))
        prompt = _common_start(before, winner, loser)
        alpha = visit_smoothing(pair.visits_winner, pair.visits_loser)
        yield {
            "prompt": prompt,
            "chosen": winner[len(prompt) :],
            "rejected": loser[len(prompt) :],
            "alpha": alpha,
            "weight": 1 - alpha,
            "q_chosen": pair.q_winner,
            "q_rejected": pair.q_loser,
            "visits_chosen": pair.visits_winner,
            "visits_rejected": pair.visits_loser,
            "round": round,
            "problem_id": tree.problem_id,
            "policy": tree.policy,
            "eos_chosen": eos is not None and winner[len(prompt) :].endswith(eos),
            "eos_rejected": eos is not None and loser[len(prompt) :].endswith(eos),
        }


def _common_start(*texts: str) -> str:
    """The longest text that all of `texts` start with."""
    low, high = min(texts), max(texts)  # in sorted order the first and the last differ earliest
    length = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    return low[:length]


def _shared_prefix(tree: Tree, pair: Pair) -> list[int]:
    """Token ids of the prompt and of every step above the winner's first node."""
    steps: list[tuple[int, ...]] = []
    node = tree.nodes[pair.winner[0]].parent
    while node is not None:
        steps.append(node.tokens)
        node = node.parent
    return [*tree.prompt, *(token for step in reversed(steps) for token in step)]


def _tokens(tree: Tree, nodes: Sequence[int]) -> list[int]:
    return [token for index in nodes for token in tree.nodes[index].tokens]


def text_decoder(tokenizer: Any) -> Decode:
    """Decoding that keeps special tokens (the end of a solution is part of the choice) and every space.

    A leading BOS is left out where the tokenizer puts one before any text by itself: it would stand there twice.
    """
    bos = tokenizer.bos_token_id
    adds_bos = bos is not None and tokenizer("")["input_ids"][:1] == [bos]

    def decode(ids: Sequence[int]) -> str:
        kept = list(ids[1:]) if adds_bos and list(ids[:1]) == [bos] else list(ids)
        return tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    return decode


def export_run(run: Path, out_file: Path, *, round: int | None = None) -> tuple[Exported, str | None]:
    """`export_trl` with the run's own tokenizer: a round's folder has it, else the model that the recipe names.

    Returns what was written, and what is to be told of it.

    Raises ModelError where no tokenizer can be loaded, StoreError where it is not the one that the run was made with,
    or where `out_file` is there and holds no such rows.
    """
    from treepref.loops.text import find_tokenizer  # torch, which rows of pairs do not need

    with open_view(run, find_tokenizer) as view:
        _ = view.recipe  # before the file is looked at: a folder that is no run is the first thing to say
        _refuse_foreign(out_file)
        eos: Any = view.tokenizer.eos_token
        written = export_trl(view.store, out_file, text_decoder(view.tokenizer), round=round, eos=eos)
        return written, written.warning(eos) if eos else None


def _refuse_foreign(file: Path) -> None:
    """Raises StoreError where the file is there and was not written by an export: only such a one is replaced."""
    try:
        with file.open("rb") as stream:
            first = stream.readline(_ROW_BYTES)
        row = json.loads(first) if first else dict.fromkeys(_OURS)
    except FileNotFoundError:
        return
    except (OSError, ValueError, RecursionError):
        row = None
    if not (isinstance(row, dict) and row.keys() >= _OURS):
        raise StoreError(f"{file} is there already and holds no exported pairs: give another --out, or move it away")


def export_trl(
    store: Store, out_file: Path, decode: Decode, *, round: int | None = None, eos: str | None = None
) -> Exported:
    """Write the pairs of one round, or of all, to a JSON-lines file; `eos`: the tokenizer's EOS as `decode` writes it.

    The file takes its name when it is complete. Raises StoreError where the run has no pairs, or cannot be written.
    """
    rounds = pair_rounds(store) if round is None else [round]
    count = ended = 0
    try:
        out_file.parent.mkdir(parents=True, exist_ok=True)
        with new_file(out_file) as part:
            with part.open("w", encoding="utf-8") as stream:
                for number in rounds:
                    trees = _TreeReader(store, Stage(number, "search"))
                    for row in trl_rows(trees, store.pairs(number), decode, round=number, eos=eos):
                        stream.write(json.dumps(row, ensure_ascii=False) + "\n")
                        count += 1
                        ended += row["eos_chosen"] + row["eos_rejected"]
            if not count:
                which = "" if round is None else f" of round {round}"
                raise StoreError(f"{store.folder} has no pairs{which}; run `treepref pairs {store.folder}` first")
    except OSError as error:
        raise StoreError(f"{out_file}: cannot be written: {error.strerror or error}") from error
    return Exported(count, 2 * count - ended)


class _TreeReader:
    """Reads a stage's trees as pairs ask for them; pairs come sorted by tree, so the last one is kept."""

    def __init__(self, store: Store, stage: Stage) -> None:
        self._store, self._stage = store, stage
        self._key: str | None = None
        self._tree: Tree | None = None

    def __call__(self, key: str) -> Tree | None:
        if key != self._key:
            self._key, self._tree = key, self._store.tree(self._stage, key)
        return self._tree


def pair_rounds(store: Store) -> list[int]:
    """The rounds that have pairs, in order, as far as rounds follow each other from 1."""
    rounds = []
    number = 1
    while store.count_pairs(number) or store.count_trees(Stage(number, "search")):
        if store.count_pairs(number):
            rounds.append(number)
        number += 1
    return rounds
