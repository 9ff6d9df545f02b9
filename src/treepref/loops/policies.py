"""Where a run's policies are kept, and whether they are still what its stages made of them.

A policy's folder has its name (`runs/stage.py`); `round-0` is the recipe's model where there is no warm-up. A policy
counts from the row that says that its stage is done: a folder without that row is what a killed attempt left. Knows
folders, fingerprints and the store; knows no stage from inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from treepref.config import Recipe
from treepref.errors import StoreError
from treepref.models.policy import local_folder
from treepref.runs.fingerprint import TOKENIZER, Fingerprint, differences, fingerprint, tokenizer_part
from treepref.runs.run_folder import disk_errors
from treepref.runs.stage import Stage, dpo_policy, round_policy
from treepref.runs.store import Store
from treepref.types import PolicyId

_WAY_OUT = "put its files back as they were, or start another run with another --out"


def begun(store: Store) -> bool:
    """Whether the run has computed anything."""
    done = any(stage.status == "done" for stage in store.stages())
    return done or bool(store.costs()) or (store.folder / "checkpoints").exists()


class Policies:
    """The policies of the run in `store` under `recipe`."""

    def __init__(self, store: Store, recipe: Recipe) -> None:
        self._store, self._recipe = store, recipe

    def folder(self, policy: PolicyId) -> Path:
        """Where a policy is kept once it exists."""
        return self._store.folder / policy

    def source(self, policy: PolicyId) -> tuple[str, str | None]:
        """What a policy is loaded from: a path or hub id, and the hub's commit where one is known.

        Raises StoreError where it was not made yet, is gone, or is not what it was.
        """
        stage = self._makers().get(policy)
        if stage is None:
            return self.base()
        if not self._store.stage_done(stage):
            option = f" --round {stage.round}" if stage.round else ""
            command = f"treepref {stage.name} {self._store.folder}{option}"
            raise StoreError(f"{stage} is not done, so its model is not there yet: run `{command}` first")
        if policy in self._removed():
            raise StoreError(f"{self.folder(policy)} was removed by `treepref prune`: only another run makes it again")
        if change := self._change(policy, stage):
            raise StoreError(f"{change}: {_WAY_OUT}")
        return str(self.folder(policy)), None

    def base(self) -> tuple[str, str | None]:
        """The recipe's model, before any warm-up: its path or hub id, and the commit that the run was begun with.

        Raises StoreError where it is not what the run was begun with.
        """
        if change := self._base_change():
            raise StoreError(f"{change}: {_WAY_OUT}")
        return self._base_source()

    def remember_commit(self, commit: str | None) -> None:
        """The hub's commit that the recipe's model was loaded at; later lives load that one."""
        if commit is not None and not (begun(self._store) and self._known("base")):
            self._remember("base", {"commit": commit}, f"the model {self._recipe.model.path}")

    def remember(self, policy: PolicyId, found: Fingerprint) -> None:
        """The fingerprint of a policy that was saved just now; write it with the row that says that it is there."""
        self._store.set_meta(f"policy/{policy}", {"files": dict(found)})

    def check_all(self) -> None:
        """Raises StoreError where the recipe's model or a policy that a stage made is gone or changed.

        One that nothing would load, neither a stage nor a further round nor a fork, is only warned of.
        """
        self._tell(self._base_change(), needed=self._base_needed())
        removed = self._removed()
        for policy, stage in self._makers().items():
            if self._store.stage_done(stage) and policy not in removed:
                self._tell(self._change(policy, stage), needed=self._needed(policy, stage))

    def unneeded(self) -> list[PolicyId]:
        """Those with a folder that no stage, further round or fork would load."""
        done = ((policy, stage) for policy, stage in self._makers().items() if self._store.stage_done(stage))
        return [policy for policy, stage in done if self.folder(policy).is_dir() and not self._needed(policy, stage)]

    def note_removed(self, policies: Sequence[PolicyId]) -> None:
        """Their folders go: nobody is to miss them."""
        self._store.set_meta("removed", sorted({*self._removed(), *policies}))

    def _removed(self) -> list[str]:
        return self._store.meta("removed", [])

    def tokenizer(self) -> tuple[str, str | None]:
        """What the run's tokenizer is loaded from, as `source` says it: every policy of a run has the same.

        The first folder that is there: round 0, a later round, the recipe's model. Weights are not looked at. Raises
        StoreError where none is there, or the first one's tokenizer is not what it was.
        """
        for policy in self._makers():
            folder = self.folder(policy)
            if found := _fingerprint(folder, TOKENIZER):
                self._compare_tokenizer(folder.name, found, str(folder))
                return str(folder.absolute()), None
        path, folder = self._recipe.model.path, local_folder(self._recipe.model.path)
        if folder is None:
            return self.base()
        self._compare_tokenizer("base", _fingerprint(folder, TOKENIZER), f"the model {path}")
        return path, None

    def _compare_tokenizer(self, name: str, found: Fingerprint, shown: str) -> None:
        known = self._known(name) if begun(self._store) else None
        if known and (changes := differences(tokenizer_part(known.get("files", {})), found)):
            raise StoreError(f"the tokenizer of {shown} is not what it was ({changes}): {_WAY_OUT}")

    def _tell(self, change: str | None, *, needed: bool) -> None:
        if change and needed:
            raise StoreError(f"{change}: {_WAY_OUT}")
        if change:
            self._store.event("run", "warning", f"{change}. Nothing will load it any more, so the run goes on")

    def _base_needed(self) -> bool:
        """Whether the recipe's model is still to be loaded: after a warm-up only what is trained anew starts there."""
        recipe, done = self._recipe, self._store.stage_done
        if not (recipe.warmup.epochs and done(Stage(0, "sft"))):
            return True
        rounds = range(1, recipe.rounds + 1) if recipe.retrains_base else ()
        return not all(done(Stage(round, "train")) for round in rounds)

    def _needed(self, policy: PolicyId, made_by: Stage) -> bool:
        """Whether a stage that is not done, a further round or a fork would load a policy that was made."""
        done = self._store.stage_done
        if made_by.name == "dpo":
            return not done(Stage(made_by.round, "labels"))
        last = max((stage.round for stage in self._makers().values() if stage.name != "dpo" and done(stage)), default=0)
        return made_by.round in (0, last) or not done(Stage(made_by.round, "eval"))

    def _makers(self) -> dict[PolicyId, Stage]:
        """The stage that makes each policy of the run, by round; the recipe's model is made by none."""
        makers = {round_policy(0): Stage(0, "sft")} if self._recipe.warmup.epochs else {}
        for number in range(1, self._recipe.rounds + 1):
            makers[round_policy(number)] = Stage(number, "train")
            makers[dpo_policy(number)] = Stage(number, "dpo")
        return makers

    def _base_source(self) -> tuple[str, str | None]:
        known = self._known("base") if begun(self._store) else None
        return self._recipe.model.path, known.get("commit") if known else None

    def _base_change(self) -> str | None:
        """What became of the recipe's model since the run began; its fingerprint is taken where none is known."""
        path, known = self._recipe.model.path, self._known("base") if begun(self._store) else None
        folder = local_folder(path)
        if folder is None:
            gone = known and "files" in known
            return f"the model {path} that this run was begun with is not there any more" if gone else None
        found = _fingerprint(folder)
        if known is None:
            self._remember("base", {"files": found}, f"the model {path}")
        elif changes := differences(known.get("files", {}), found):
            return f"the model {path} is not the one that this run was begun with ({changes})"
        return None

    def _change(self, policy: PolicyId, stage: Stage) -> str | None:
        """What became of a policy since its stage made it; its fingerprint is taken where none is known."""
        folder = self.folder(policy)
        if not folder.is_dir():
            return f"{folder}, which {stage} made, is not there any more"
        found, known = _fingerprint(folder), self._known(folder.name)
        if known is None:
            self._remember(folder.name, {"files": found}, str(folder))
        elif changes := differences(known.get("files", {}), found):
            return f"{folder} is not what {stage} made ({changes})"
        return None

    def _known(self, name: str) -> dict[str, Any] | None:
        known = self._store.meta(f"policy/{name}")
        if known is not None and not _sound(known):
            raise StoreError(f"{self._store.folder}/run.db: the fingerprint of {name} is damaged: {_WAY_OUT}")
        return known

    def _remember(self, name: str, value: dict[str, Any], shown: str) -> None:
        """At first use; said where the run went on for a while without it, as those of older versions did."""
        if self._store.read_only:
            return
        with self._store.transaction():
            self._store.set_meta(f"policy/{name}", value)
            if any(stage.status == "done" for stage in self._store.stages()):
                said = f"{shown}: its fingerprint was taken now; whether it was another before, nobody can tell"
                self._store.event("run", "info", said)


def _sound(known: Any) -> bool:
    """Whether it is a fingerprint as it is stored: of a folder's files, or a hub's commit."""
    if not isinstance(known, dict) or len(known) != 1:
        return False
    files = known.get("files")
    return isinstance(known.get("commit"), str) or (
        isinstance(files, dict) and all(isinstance(value, str) for value in files.values())
    )


def _fingerprint(folder: Path, *kinds: Sequence[str]) -> dict[str, str]:
    with disk_errors(folder):
        return fingerprint(folder, *kinds)
