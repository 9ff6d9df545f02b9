"""Small models and trees that the training tests share, and the plain way to compute what packing computes."""

from __future__ import annotations

import random
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from treepref.training.examples import Example, ExampleNode, ExamplePair, attach_reference
from treepref.training.forward import model_scorer
from treepref.types import PolicyId

VOCABULARY = 31


def tiny_llama(seed: int = 0, layers: int = 2, context: int = 128) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).double()


def tiny_value_head(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(16, 1, bias=False), nn.Tanh()).double()


def random_example(rng: random.Random, name: str, *, nodes: int = 6, longest: int = 5, forced: bool = True) -> Example:
    """A random tree: sibling pairs (some winners two nodes long), targets, SFT weights, forced tokens."""

    def tokens() -> tuple[int, ...]:
        return tuple(rng.randrange(VOCABULARY) for _ in range(rng.randint(1, longest)))

    def mask(n: int) -> tuple[bool, ...] | None:
        return tuple(rng.random() < 0.3 for _ in range(n)) if forced and rng.random() < 0.4 else None

    made = []
    for index in range(nodes):
        run = tokens()
        target = rng.uniform(-1, 1) if rng.random() < 0.7 else None
        sft = rng.choice((0.0, 0.0, 1.0, 0.5))
        made.append(ExampleNode(run, rng.randrange(-1, index), forced=mask(len(run)), target=target, sft=sft))
    pairs = []
    for one in range(nodes):
        for two in range(one + 1, nodes):
            if made[one].parent == made[two].parent and rng.random() < 0.6:
                below = [n for n in range(nodes) if made[n].parent == one]
                winner = (one, rng.choice(below)) if below and rng.random() < 0.5 else (one,)
                pairs.append(ExamplePair(winner, (two,), alpha=rng.uniform(0, 0.5), weight=rng.choice((1.0, 2.0))))
    return Example(
        name, tokens(), tuple(made), tuple(pairs), root_target=rng.choice((None, 0.3)), policy=PolicyId("p0")
    )


def random_examples(seed: int, n: int, *, reference: nn.Module | None = None, **shape: int) -> list[Example]:
    """`n` random trees with reference log-probs of `reference` (None: random ones)."""
    rng = random.Random(seed)
    examples = [random_example(rng, f"p{i:03d}", **shape) for i in range(n)]
    if reference is not None:
        return attach_reference(examples, model_scorer(reference), reference=PolicyId("p1"))[0]
    return [
        replace(e, nodes=tuple(replace(n, ref=tuple(rng.uniform(-4, 0) for _ in n.tokens)) for n in e.nodes))
        for e in examples
    ]


def path_ids(example: Example, index: int) -> list[int]:
    tokens: list[int] = []
    while index >= 0:
        tokens = [*example.nodes[index].tokens, *tokens]
        index = example.nodes[index].parent
    return [*example.prompt, *tokens]


def separate(model: nn.Module, value_head: nn.Module, example: Example) -> tuple[list[Tensor], list[Tensor]]:
    """Log-probs of every node's tokens, and values of the prompt and every node, by one plain forward each."""
    logps, values = [], []
    for index in range(-1, len(example.nodes)):
        row = torch.tensor([path_ids(example, index)])
        values.append(value_head(model.get_decoder()(input_ids=row).last_hidden_state[0, -1])[0])
        if index >= 0:
            n = len(example.nodes[index].tokens)
            logp = model(input_ids=row).logits[0, -n - 1 : -1].log_softmax(-1)
            logps.append(logp.gather(1, row[0, -n:, None])[:, 0])
    return logps, values
