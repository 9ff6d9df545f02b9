"""A run's pairs as rows for another trainer."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from treepref.cli import app
from treepref.config import SvpoRecipe
from treepref.errors import StoreError
from treepref.loops.export import Exported, export_run, export_trl, text_decoder, trl_rows
from treepref.runs.store import Store
from treepref.types import Node, Pair, PolicyId, Tree, new_tree


def decode(ids) -> str:
    """Token ids are the bytes of a UTF-8 text."""
    return bytes(ids).decode("utf-8", errors="replace")


def grow(tree: Tree, parent: int, step) -> int:
    """Add a step, given as text or as token ids; its index."""
    tokens = tuple(step.encode() if isinstance(step, str) else step)
    above = tree.nodes[parent]
    node = Node(len(tree.nodes), above, tokens, (-0.5,) * len(tokens), depth=above.depth + 1)
    above.children.append(node)
    tree.nodes.append(node)
    return node.index


def sums() -> tuple[Tree, list[Pair]]:
    """One shared step, then a right and a wrong second step; and a pair of whole paths from the root."""
    tree = new_tree("p1", "p1", tuple(b"1+2+3=?\n"), policy=PolicyId("p4"))
    first = grow(tree, 0, "1+2=3\n")
    right, wrong = grow(tree, first, "3+3=6\x00"), grow(tree, first, "3+3=7\x00")
    other = grow(tree, 0, "2+3=6\n")
    last = grow(tree, other, "6+1=7\x00")
    return tree, [
        Pair("p1", (right,), (wrong,), 0.9, -0.5, 30, 10),
        Pair("p1", (first, right), (other, last), 0.5, -1.0, 4, 8),
    ]


def test_a_step_pair_has_the_shared_steps_in_its_prompt() -> None:
    tree, pairs = sums()
    row, whole = trl_rows({"p1": tree}, pairs, decode, round=2)
    assert row == {
        "prompt": "1+2+3=?\n1+2=3\n",
        "chosen": "3+3=6\x00",
        "rejected": "3+3=7\x00",
        "alpha": 0.25,
        "weight": 0.75,
        "q_chosen": 0.9,
        "q_rejected": -0.5,
        "visits_chosen": 30,
        "visits_rejected": 10,
        "round": 2,
        "problem_id": "p1",
        "policy": "p4",
        "eos_chosen": False,
        "eos_rejected": False,
    }
    assert whole["prompt"] == "1+2+3=?\n"
    assert (whole["chosen"], whole["rejected"]) == ("1+2=3\n3+3=6\x00", "2+3=6\n6+1=7\x00")
    assert whole["alpha"] == 0.5  # the loser was visited more: no more than half


@settings(max_examples=60, deadline=None)
@given(
    text=st.text(min_size=1, max_size=12), winner=st.text(max_size=8), loser=st.text(max_size=8), cut=st.integers(0, 48)
)
def test_prompt_and_answer_join_to_the_exact_text_wherever_a_token_cuts_a_character(text, winner, loser, cut) -> None:
    a, b = (text + winner).encode(), (text + loser).encode()
    shared = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    cut = min(cut, shared, len(a) - 1, len(b) - 1)
    tree = new_tree("t", "t", tuple(a[:cut]))
    pair = Pair("t", (grow(tree, 0, a[cut:]),), (grow(tree, 0, b[cut:]),), 1, 0, 1, 1)
    (row,) = trl_rows({"t": tree}, [pair], decode)
    assert row["prompt"] + row["chosen"] == text + winner
    assert row["prompt"] + row["rejected"] == text + loser


def test_a_pair_without_its_tree_is_refused() -> None:
    tree, pairs = sums()
    with pytest.raises(StoreError, match="pairs stage again"):
        list(trl_rows({}, pairs, decode))
    with pytest.raises(StoreError, match="lacks its nodes"):
        list(trl_rows({"p1": tree}, [Pair("p1", (99,), (1,), 1, 0, 1, 1)], decode))


def fill(folder) -> None:
    tree, pairs = sums()
    recipe = SvpoRecipe.model_validate({"name": "a", "model": {"path": str(folder / "model")}})
    with Store(folder) as store:
        store.set_meta("recipe", recipe.model_dump(mode="json"))
        for round in (1, 3):
            store.finish_tree(f"round-{round}/search", tree)
            store.put_pairs(round, pairs[: 1 + (round == 3)])
        store.finish_tree("round-2/search", tree)


def test_a_runs_pairs_land_in_one_file_round_by_round(tmp_path) -> None:
    fill(tmp_path / "run")
    file = tmp_path / "out" / "pairs.jsonl"
    with Store(tmp_path / "run", read_only=True) as store:
        assert export_trl(store, file, decode) == Exported(pairs=3, open_sides=6)
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        assert [row["round"] for row in rows] == [1, 3, 3]
        assert {row["prompt"] for row in rows} == {"1+2+3=?\n", "1+2+3=?\n1+2=3\n"}
        assert export_trl(store, file, decode, round=1).pairs == 1
        with pytest.raises(StoreError, match="no pairs of round 2"):
            export_trl(store, file, decode, round=2)
        blocked = tmp_path / "blocked"
        blocked.write_text("a file, no folder")
        with pytest.raises(StoreError, match="cannot be written"):
            export_trl(store, blocked / "x.jsonl", decode)
    assert len(file.read_text(encoding="utf-8").splitlines()) == 1  # what failed left the old file alone
    assert list(file.parent.iterdir()) == [file]


def byte_tokenizer(bos: bool):
    """A real tokenizer with one token a character, EOS `</s>`, and BOS `<s>` in front where asked."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("bos", [True, False])
def test_decoding_keeps_eos_and_spaces_and_leaves_out_an_automatic_bos(bos) -> None:
    tokenizer = byte_tokenizer(bos)
    text = " 1 , 2 .  it 's\n</s>"
    ids = tokenizer(text)["input_ids"]
    assert (ids[0] == 0) is bos
    assert ids[-1] == 1
    assert text_decoder(tokenizer)(ids) == text
    assert tokenizer(text_decoder(tokenizer)(ids))["input_ids"] == ids


def test_a_run_is_exported_with_its_own_tokenizer_by_the_command(tmp_path) -> None:
    from typer.testing import CliRunner

    tokenizer = byte_tokenizer(bos=False)
    tree = new_tree("p", "p", tokenizer("2*3=")["input_ids"])
    ends = [grow(tree, 0, tokenizer(f"{answer}</s>")["input_ids"]) for answer in (6, 7)]
    run = tmp_path / "run"
    with Store(run) as store:
        store.set_meta("recipe", SvpoRecipe.model_validate({"name": "a"}).model_dump(mode="json"))
        store.finish_tree("round-1/search", tree)
        store.put_pairs(1, [Pair("p", (ends[0],), (ends[1],), 1.0, -1.0, 1, 1)])
    tokenizer.save_pretrained(run / "round-1")
    result = CliRunner().invoke(app, ["export", str(run)])
    assert (result.exit_code, result.exception) == (0, None)
    assert "1 pairs written" in result.output
    assert "warning" not in result.output
    (row,) = map(json.loads, (run / "trl.jsonl").read_text().splitlines())
    assert (row["prompt"], row["chosen"], row["rejected"]) == ("2*3=", "6</s>", "7</s>")
    assert row["eos_chosen"] and row["eos_rejected"]


def test_the_command_says_which_sides_trl_will_end(tmp_path) -> None:
    from typer.testing import CliRunner

    tokenizer = byte_tokenizer(bos=False)
    tree = new_tree("p", "p", tokenizer("1+2+3=")["input_ids"])
    steps = [grow(tree, 0, tokenizer(text)["input_ids"]) for text in ("3+3\n", "4+3\n", "6</s>")]
    run = tmp_path / "run"
    with Store(run) as store:
        store.set_meta("recipe", SvpoRecipe.model_validate({"name": "a"}).model_dump(mode="json"))
        store.finish_tree("round-1/search", tree)
        pairs = [
            Pair("p", (steps[0],), (steps[1],), 1.0, -1.0, 1, 1),
            Pair("p", (steps[2],), (steps[1],), 1.0, 0, 1, 1),
        ]
        store.put_pairs(1, pairs)
    tokenizer.save_pretrained(run / "round-1")
    result = CliRunner().invoke(app, ["export", str(run)])
    told = " ".join(result.output.split())
    assert "warning: 3 of 4 sides are steps that do not end in '</s>'" in told
    assert "TRL's DPOTrainer appends it to every side" in told
    assert "eos_chosen, eos_rejected" in told
    rows = [json.loads(line) for line in (run / "trl.jsonl").read_text().splitlines()]
    assert [(row["eos_chosen"], row["eos_rejected"]) for row in rows] == [(False, False), (True, False)]


def test_a_folder_that_is_no_run_is_refused(tmp_path) -> None:
    with pytest.raises(StoreError, match="holds no run"):
        export_run(tmp_path, tmp_path / "x.jsonl")
