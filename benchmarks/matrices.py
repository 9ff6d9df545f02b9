"""bench-kernels: matrix products of a decoding step on a CPU: plain layers against packed ones, by precision.

    python benchmarks/matrices.py --model FOLDER [--rows 1 8 16 32 64] [--threads N] [--quick]

For each number of rows, all linear layers of the model run once, in turn with plain layers: weights stream from memory
as they do in a decoding step. Packed float32 must agree with the plain layers within 1e-5. For bfloat16 and int8 the
mismatch is measured: on solutions sampled in float32, how far log-probs are from those in float32, and how often the
most probable token is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from common import alternate, finish, parser, rounded, runs_of, same
from questions import prompts_of, source
from treepref.engines.base import generate
from treepref.engines.kernels import PackedLinear, pack
from treepref.engines.torch_engine import TorchEngine
from treepref.errors import ModelError
from treepref.models.policy import Policy, clone_policy, load_policy
from treepref.types import Request

PRECISIONS = ("float32", "bfloat16", "int8")


def linear_layers(policy: Policy, packed: bool) -> list[nn.Linear]:
    return [m for m in policy.model.modules() if isinstance(m, PackedLinear if packed else nn.Linear)]


def plain_layers(policy: Policy) -> list[nn.Linear]:
    """The layers that packing takes, in their plain form, on the same weights."""
    found = []
    for layer in linear_layers(policy, packed=True):
        plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        plain.weight, plain.bias = layer.weight, layer.bias
        found.append(plain)
    return found


def run_all(layers: Sequence[nn.Linear], rows: int) -> Callable[[], None]:
    generator = torch.Generator().manual_seed(0)
    inputs = {size: torch.randn(rows, size, generator=generator) for size in {layer.in_features for layer in layers}}

    def run() -> None:
        with torch.inference_mode():
            for layer in layers:
                layer(inputs[layer.in_features])

    return run


def largest_difference(policy: Policy, rows: int) -> float:
    """Of packed and plain layers' outputs, relative to the largest output of the layer."""
    worst = 0.0
    with torch.inference_mode():
        for packed, plain in zip(linear_layers(policy, packed=True), plain_layers(policy), strict=True):
            x = torch.randn(rows, packed.in_features)
            wanted = plain(x)
            worst = max(worst, ((packed(x) - wanted).abs().max() / wanted.abs().max()).item())
    return worst


def sampled(policy: Policy, count: int, tokens: int) -> list[tuple[tuple[int, ...], int]]:
    """(prompt + solution sampled in float32, length of the prompt)."""
    prompts = prompts_of(policy.tokenizer, count)
    requests = [Request(f"q{i}", p, 1, (i,), tokens, delimiter=None) for i, p in enumerate(prompts)]
    results = generate(TorchEngine(clone_policy(policy), max_rows=32), requests)
    return [(p + r.completions[0].tokens, len(p)) for p, r in zip(prompts, results, strict=True)]


@torch.inference_mode()
def scores(policy: Policy, solutions: Sequence[tuple[tuple[int, ...], int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-prob of each solution token, and the most probable token at its place; both [T], end to end."""
    logps, best = [], []
    for ids, start in solutions:
        hidden_TH = policy.body(torch.tensor([ids[:-1]]))[0, start - 1 :]
        logp_TV = policy.head(hidden_TH).float().log_softmax(-1)
        logps.append(logp_TV.gather(-1, torch.tensor(ids[start:])[:, None])[:, 0])
        best.append(logp_TV.argmax(-1))
    return torch.cat(logps), torch.cat(best)


def mismatch(exact: Policy, coarse: Policy, solutions: Sequence[tuple[tuple[int, ...], int]]) -> dict[str, Any]:
    (logp, best), (other, other_best) = scores(exact, solutions), scores(coarse, solutions)
    difference = (logp - other).abs()
    return {
        "tokens": len(logp),
        "mean": rounded(difference.mean().item()),
        "median": rounded(difference.median().item()),
        "p99": rounded(difference.quantile(0.99).item()),
        "largest": rounded(difference.max().item()),
        "same_best_token": rounded((best == other_best).float().mean().item()),
    }


def main() -> None:
    options_parser = parser(__doc__)
    options_parser.add_argument("--model", default=None, help="folder or hub id (default: a made-up one, wide enough)")
    options_parser.add_argument("--rows", type=int, nargs="+", default=None)
    options_parser.add_argument("--threads", type=int, default=2)
    options = options_parser.parse_args()
    quick, runs = options.quick, runs_of(options)
    torch.set_num_threads(options.threads)
    plain = load_policy(options.model, device="cpu") if options.model else made_up()
    solutions = sampled(plain, 2 if quick else 32, 8 if quick else 128)
    rows: list[dict[str, Any]] = []
    far: dict[str, Any] = {}
    for precision in PRECISIONS:
        policy = clone_policy(plain)
        try:
            packed = pack(policy.model, precision)  # type: ignore[arg-type]
        except ModelError as error:
            print(f"{precision}: skipped: {error}")
            continue
        if not packed:
            print(f"{precision}: skipped: nothing to pack here")
            continue
        if precision == "float32":
            same("packed and plain float32", max(largest_difference(policy, n) for n in (1, 7, 32, 65)), 1e-5)
        far[precision] = mismatch(plain, policy, solutions)
        print(f"{precision}: log-probs: {far[precision]}", flush=True)
        for count in options.rows or ([8] if quick else [1, 8, 16, 32, 64, 128]):
            found = alternate(
                run_all(plain_layers(policy), count), run_all(linear_layers(policy, packed=True), count), runs=runs
            )
            print(f"{precision}, {count} rows: {found}", flush=True)
            rows.append({"name": f"kernels {precision}, {count} rows", "rows": count} | found.as_dict())
    at = next((r for r in rows if r["rows"] == (8 if quick else 32)), {"ratio": None, "spread": None})
    finish(
        "kernels",
        ratio=at["ratio"],
        spread=at["spread"],
        packages=("transformers",),
        quick=quick,
        threads=options.threads,
        ours="packed linear layers (float32)",
        theirs="torch.nn.Linear",
        model=options.model,
        questions=source(),
        rows=rows,
        mismatch=far,
    )


def made_up() -> Policy:
    """A model of random weights whose layers are wide enough to be packed, with the tiny model's tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    policy = load_policy("builtin:tiny-untrained", device="cpu")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=policy.model.config.vocab_size, hidden_size=384, intermediate_size=1024, num_hidden_layers=2,
        num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=2048,
    )  # fmt: skip
    policy.model = LlamaForCausalLM(config).eval()
    policy.value_head = None
    return policy


if __name__ == "__main__":
    main()
