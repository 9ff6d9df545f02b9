"""Where a run's policies are kept, and whether they are still what its stages made of them.

Policy k ≥ 0 is what round k ended with, in `round-k`; policy 0 is the recipe's model where there is no warm-up.
Policy −k is the DPO model of round k, in `round-k-dpo`. A policy counts from the row that says that its stage is
done: a folder without that row is what a killed attempt left. Knows folders, fingerprints and the store; knows no stage
from inside.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from treepref.config import Recipe
from treepref.errors import StoreError
from treepref.fingerprint import Fingerprint, differences, fingerprint
from treepref.models.policy import local_folder
from treepref.run_folder import disk_errors
from treepref.store import Store

_WAY_OUT = "put its files back as they were, or start another run with another --out"


def begun(store: Store) -> bool:
    """Whether the run has computed anything."""
    done = any(stage.status == "done" for stage in store.stages())
    return done or bool(store.costs()) or (store.folder / "checkpoints").exists()


class Policies:
    """The policies of the run in `store` under `recipe`."""

    def __init__(self, store: Store, recipe: Recipe) -> None:
        self._store, self._recipe = store, recipe

    def folder(self, version: int) -> Path:
        """Where policy `version` is kept once it exists."""
        return self._store.folder / (f"round-{version}" if version >= 0 else f"round-{-version}-dpo")

    def source(self, version: int) -> tuple[str, str | None]:
        """What policy `version` is loaded from: a path or hub id, and the hub's commit where one is known.

        Raises StoreError where it was not made yet, is gone, or is not what it was.
        """
        stage = self._stage(version)
        if stage is None:
            return self.base()
        if not self._store.stage_done(stage):
            name, option = stage.rpartition("/")[2], f" --round {abs(version)}" if version else ""
            command = f"treepref {name} {self._store.folder}{option}"
            raise StoreError(f"{stage} is not done, so its model is not there yet: run `{command}` first")
        self._check(version, stage)
        return str(self.folder(version)), None

    def base(self) -> tuple[str, str | None]:
        """The recipe's model, before any warm-up: its path or hub id, and the commit that the run was begun with.

        Raises StoreError where it is not what the run was begun with.
        """
        path, known = self._recipe.model.path, self._known("base") if begun(self._store) else None
        folder = local_folder(path)
        if folder is None:
            if known and "files" in known:
                raise StoreError(f"the model {path} that this run was begun with is not there any more: {_WAY_OUT}")
            return path, known["commit"] if known else None
        found = _fingerprint(folder)
        if known is None:
            self._remember("base", {"files": found}, f"the model {path}")
        elif changes := differences(known.get("files", {}), found):
            raise StoreError(f"the model {path} is not the one that this run was begun with ({changes}): {_WAY_OUT}")
        return path, None

    def remember_commit(self, commit: str | None) -> None:
        """The hub's commit that the recipe's model was loaded at; later lives load that one."""
        if commit is not None and not (begun(self._store) and self._known("base")):
            self._remember("base", {"commit": commit}, f"the model {self._recipe.model.path}")

    def remember(self, version: int, found: Fingerprint) -> None:
        """The fingerprint of a policy that was saved just now; write it with the row that says that it is there."""
        self._store.set_meta(f"policy/{self.folder(version).name}", {"files": dict(found)})

    def check_all(self) -> None:
        """Raises StoreError where the recipe's model or a policy that a stage made is gone or changed."""
        self.base()
        for version, stage in self._stages():
            if self._store.stage_done(stage):
                self._check(version, stage)

    def check_tokenizer(self, folder: Path) -> None:
        """Raises StoreError where a policy's folder, which may serve for its tokenizer alone, is not what it was."""
        known = self._known(folder.name)
        if known and (changes := differences(known.get("files", {}), _fingerprint(folder))):
            raise StoreError(f"{folder} is not what the run made of it ({changes}): {_WAY_OUT}")

    def _stage(self, version: int) -> str | None:
        """The stage that makes the policy; None: none does, it is the recipe's model."""
        if version == 0:
            return "round-0/sft" if self._recipe.warmup.epochs else None
        return f"round-{version}/train" if version > 0 else f"round-{-version}/dpo"

    def _stages(self) -> Iterator[tuple[int, str]]:
        for version in range(self._recipe.rounds + 1):
            for each in {version, -version}:
                if (stage := self._stage(each)) is not None:
                    yield each, stage

    def _check(self, version: int, stage: str) -> None:
        folder = self.folder(version)
        if not folder.is_dir():
            raise StoreError(f"{folder}, which {stage} made, is not there any more: {_WAY_OUT}")
        found, known = _fingerprint(folder), self._known(folder.name)
        if known is None:
            self._remember(folder.name, {"files": found}, str(folder))
        elif changes := differences(known.get("files", {}), found):
            raise StoreError(f"{folder} is not what {stage} made ({changes}): {_WAY_OUT}")

    def _known(self, name: str) -> dict[str, Any] | None:
        known = self._store.meta(f"policy/{name}")
        if known is not None and not (isinstance(known, dict) and known.keys() in ({"files"}, {"commit"})):
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


def _fingerprint(folder: Path) -> dict[str, str]:
    with disk_errors(folder):
        return fingerprint(folder)
