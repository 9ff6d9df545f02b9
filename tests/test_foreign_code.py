"""Code that comes with a model never runs, and nobody is asked: neither `auto_map` nor pickled weights."""

from __future__ import annotations

import json
import os
import pickle
import re
from pathlib import Path

import pytest
import torch

from small_runs import METHODS, copy_model, treepref_command
from test_models_gguf import file, model, write_gguf  # noqa: F401
from treepref.errors import ModelError
from treepref.models.policy import load_policy, load_tokenizer

ROOT = Path(__file__).parents[1]
YES = "y\nyes\n" * 50
AUTO = {
    "AutoConfig": "evil.Config", "AutoModel": "evil.Model", "AutoModelForCausalLM": "evil.Model",
    "AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"],
}  # fmt: skip


def hostile(folder: Path, *, kind: str, known: bool = True) -> Path:
    """A model folder whose `config` or `tokenizer` names Python of its own, which leaves the file `ran` if imported."""
    copy_model(folder)
    (folder / "evil.py").write_text(f"open({str(folder.parent / 'ran')!r}, 'w').write('ran')\n")
    path = folder / ("config.json" if kind == "config" else "tokenizer_config.json")
    settings = json.loads(path.read_text()) | {"auto_map": AUTO}
    if not known and kind == "config":
        settings |= {"model_type": "strange"}
    if not known and kind == "tokenizer":
        settings |= {"tokenizer_class": "StrangeTokenizer"}
    path.write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize("kind", ["config", "tokenizer"])
@pytest.mark.parametrize("command", ["estimate", "run"])
def test_commands_run_no_code_of_a_model_and_ask_nothing(tmp_path: Path, kind: str, command: str) -> None:
    hostile(tmp_path / "model", kind=kind, known=False)
    more = (
        [
            "-q",
            "rounds=0",
        ]
        if command == "run"
        else []
    )
    done = treepref_command(command, *METHODS["svpo"], *more, cwd=tmp_path, said=YES)
    assert not (tmp_path / "ran").exists()
    assert "y/N" not in done.stdout + done.stderr
    if command == "run" or kind == "config":
        assert done.returncode in (0, 2)
        assert done.returncode == 0 or ("never runs" in done.stderr and "trust_remote_code" not in done.stderr)
    if kind == "config":
        assert done.returncode == 2


def test_a_known_architecture_loads_without_the_code_that_lies_beside_it(tmp_path: Path) -> None:
    folder = hostile(tmp_path / "model", kind="config")
    assert load_policy(folder, device="cpu").n_parameters > 0
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("known", [True, False])
def test_a_tokenizer_runs_no_code(tmp_path: Path, known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = hostile(tmp_path / "model", kind="tokenizer", known=known)
    monkeypatch.setattr("builtins.input", lambda *_: "yes")
    try:
        load_tokenizer(folder)
    except ModelError as error:
        assert "never runs" in str(error)
    assert not (tmp_path / "ran").exists()


def test_importing_a_gguf_file_runs_no_code_beside_it(tmp_path: Path, model) -> None:  # noqa: F811
    folder = hostile(tmp_path / "model", kind="tokenizer", known=False)
    write_gguf(folder / "m.gguf", model)
    done = treepref_command("import-gguf", "model/m.gguf", "out", cwd=tmp_path, said=YES)
    assert not (tmp_path / "ran").exists()
    assert "y/N" not in done.stdout + done.stderr


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.target),)


def test_pickled_weights_run_no_code(tmp_path: Path) -> None:
    folder = copy_model(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Bomb(tmp_path / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_policy(folder, device="cpu")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_policy(folder, device="cpu")
    assert not (tmp_path / "ran").exists()


def test_every_line_that_loads_says_that_code_is_not_trusted() -> None:
    bare = []
    for path in (p for part in ("src", "benchmarks") for p in (ROOT / part).rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        for call in re.finditer(r"\bAuto\w+\.from_(?:pretrained|config)\(", text):
            depth, end = 1, call.end()
            while depth:
                depth += {"(": 1, ")": -1}.get(text[end], 0)
                end += 1
            if "trust_remote_code=False" not in text[call.start() : end]:
                bare.append(f"{path.relative_to(ROOT)}:{text.count(chr(10), 0, call.start()) + 1}")
    assert bare == []


def test_nothing_of_ours_reads_stdin() -> None:
    """But the worker processes, whose stdin is a pipe from us."""
    allowed = {"workers/worker.py", "tools/sandbox_worker.py", "workers/isolation.py"}
    source = ROOT / "src" / "treepref"
    reading = {
        p.relative_to(source).as_posix()
        for p in source.rglob("*.py")
        if re.search(r"\binput\(|\bstdin\b", p.read_text())
    }
    assert reading <= allowed
