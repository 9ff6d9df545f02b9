"""One optimizer step over packed examples: the same update however its work is cut into rows, passes and ranks.

Every loss comes already divided by the counts of the whole step (`objectives.Counts`), so gradients of passes and ranks
simply add up. Knows no schedule of examples and no file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from treepref.errors import DataError, ModelError
from treepref.training.examples import Example
from treepref.training.forward import PackedModel, loss_batch, place, scatter_index
from treepref.training.objectives import (
    OBJECTIVES,
    Counts,
    LossBatch,
    health,
    known,
    needs_reference,
    objective_of,
    total,
    untrained_preference_loss,
)
from treepref.training.optimizer import FloatAdamW
from treepref.training.packing import Flat, check_context, collate, max_positions, renumbered
from treepref.training.schedule import lr_factor
from treepref.training.settings import LearnerSettings
from treepref.training.tally import Metrics, Tally


class Stepper:
    """A packed model, its trained parameters by name, and how a step changes them.

    `flops_per_token`: of a forward pass; a training token costs three times this, four with `recompute`.
    """

    def __init__(
        self, packed: PackedModel, settings: LearnerSettings, accelerator: Accelerator, flops_per_token: float
    ) -> None:
        self.packed, self.settings, self.accelerator = packed, settings, accelerator
        self.flops_per_token = flops_per_token
        self.parameters = {name: p for name, p in packed.named_parameters() if p.requires_grad}

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    def run(
        self, batch: Sequence[Flat], step: int, total_steps: int, optimizer: torch.optim.Optimizer, check: bool
    ) -> Metrics:
        """One update from the sum of all passes' and ranks' gradients; an empty batch leaves everything as it is."""
        factor = lr_factor(step, total_steps, self.settings.warmup_ratio, self.settings.schedule)
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        means, norm = self._update(batch, step, optimizer, check) if batch else ({}, 0.0)
        tokens = sum(flat.tokens for flat in batch)
        again = sum(flat.tokens for flat in batch if flat.split)  # split trees run forward twice
        return means | {
            "step": step,
            "lr": self.settings.lr * factor,
            "grad_norm": norm,
            "trees": len(batch),
            "pairs": sum(len(flat.example.pairs) for flat in batch),
            "tokens": tokens,
            "flops": self.flops_per_token * ((4 if self.settings.recompute else 3) * tokens + again),
        }

    def _update(
        self, batch: Sequence[Flat], step: int, optimizer: torch.optim.Optimizer, check: bool
    ) -> tuple[Metrics, float]:
        """Gradient, checks, optimizer. (mean losses and health, gradient norm)"""
        counts = sum((flat.example.counts for flat in batch), Counts())
        optimizer.zero_grad(set_to_none=True)
        tally = Tally(self.device)
        passed: list[tuple[Tensor, list[str]]] = []
        for flats, loss in self._passes(self._share(batch), counts, tally):
            passed.append((loss, [flat.example.id for flat in flats]))
        self._sum_gradients()
        means = tally.means(self.accelerator)
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        total_norm = nn.utils.get_total_norm(gradients)
        norm = total_norm.item()
        if not (math.isfinite(means["loss"]) and math.isfinite(norm)):
            raise ModelError(_not_finite(step, means["loss"], norm, passed))
        if check:
            self._check_reference(means, counts)
        if norm > self.settings.clip:  # a pass over all gradients: only where it is due
            nn.utils.clip_grads_with_norm_(self.parameters.values(), self.settings.clip, total_norm)
        optimizer.step()
        return means, norm

    def _passes(self, flats: Sequence[Flat], counts: Counts, tally: Tally) -> Iterator[tuple[Sequence[Flat], Tensor]]:
        """Forward and backward of this rank's examples, group by group: (examples, their part of the loss)."""
        whole = [flat for flat in flats if not flat.split]
        for rows in self.packed.passes(
            [flat.tokens for flat in whole], self.settings.row_tokens, self.settings.rows_per_pass
        ):
            members = [whole[i] for row in rows for i in row]
            yield members, self._whole(members, rows, counts, tally)
        for flat in flats:
            if flat.split:
                yield [flat], self._split(flat, counts, tally)

    def _whole(self, flats: Sequence[Flat], rows: list[list[int]], counts: Counts, tally: Tally) -> Tensor:
        passage = collate([flat.pieces[0] for flat in flats], renumbered(rows), self.device)
        index = scatter_index(flats, self.device)
        with self.accelerator.autocast():
            logp_T, value_S = self.packed(passage)
        value_N = None if value_S is None else place(value_S, index.node_S)
        loss = self._loss(loss_batch(flats, place(logp_T, index.token_T), value_N), counts, tally)
        loss.backward()
        return loss.detach()

    def _split(self, flat: Flat, counts: Counts, tally: Tally) -> Tensor:
        """A tree in pieces: ∂L/∂log-prob and ∂L/∂V first, without the model's graph; then each piece's share."""
        lengths = [len(piece) for piece in flat.pieces]
        parts = []
        for rows in self.packed.passes(lengths, self.settings.row_tokens, self.settings.rows_per_pass):
            pieces = [flat.pieces[i] for row in rows for i in row]
            tokens_T = torch.cat([torch.from_numpy(p.slots) for p in pieces]).to(self.device)
            nodes_S = torch.cat([torch.from_numpy(p.segments) for p in pieces]).to(self.device)
            parts.append((collate(pieces, renumbered(rows), self.device), tokens_T, nodes_S))

        logp_T: Tensor | None = None
        value_N: Tensor | None = None
        for passage, tokens_T, nodes_S in parts:
            with torch.no_grad(), self.accelerator.autocast():
                logp, value = self.packed(passage)
            logp_T = _filled(logp_T, len(flat.node_T), tokens_T, logp)
            if value is not None:
                value_N = _filled(value_N, len(flat.example.nodes) + 1, nodes_S, value)
        outputs = [x.requires_grad_() for x in (logp_T, value_N) if x is not None]
        loss = self._loss(loss_batch([flat], known(logp_T), value_N), counts, tally)
        slopes = torch.autograd.grad(loss, outputs, materialize_grads=True)

        for passage, tokens_T, nodes_S in parts:
            with self.accelerator.autocast():
                computed = [x for x in self.packed(passage) if x is not None]
            places = (tokens_T, nodes_S)[: len(computed)]
            torch.autograd.backward(computed, [s[at] for s, at in zip(slopes, places, strict=True)])
        return loss.detach()

    def _loss(self, batch: LossBatch, counts: Counts, tally: Tally) -> Tensor:
        """The group's part of the step's loss; adds it and the group's health to the tally."""
        c = self.settings.coefficients
        terms = objective_of(self.settings.objective)(batch, c)
        loss = total(terms, counts)
        tally.add_loss("loss", loss)
        for name, term in terms.items():
            if getattr(counts, term.per) > 0:
                tally.add_loss(f"loss_{name}", term.sum / getattr(counts, term.per))
        tally.add_health(health(batch, c))
        return loss

    def check_examples(self, examples: Sequence[Example]) -> None:
        """Ids are unique, references are there where the objective needs them, and no path is too long."""
        for one, two in pairwise(sorted(e.id for e in examples)):
            if one == two:
                raise DataError(f"two examples have the id {one!r}; training order needs unique ids")
        if needs_reference(self.settings.objective):
            for example in examples:
                if any(example.nodes[n].ref is None for pair in example.pairs for n in (*pair.winner, *pair.loser)):
                    raise ModelError(
                        f"example {example.id!r} has no reference log-probs, and objective "
                        f"{self.settings.objective!r} needs them: call attach_reference first"
                    )
        check_context(examples, max_positions(self.packed.model))

    def _share(self, batch: Sequence[Flat]) -> Sequence[Flat]:
        """This rank's examples: dealt out by size, largest first."""
        ranks = self.accelerator.num_processes
        if ranks == 1:
            return batch
        dealt = sorted(range(len(batch)), key=lambda i: (-batch[i].tokens, i))[self.accelerator.process_index :: ranks]
        return [batch[i] for i in dealt]

    def _sum_gradients(self) -> None:
        """Add up the ranks' gradients; a rank without examples adds zeros."""
        if self.accelerator.num_processes == 1:
            return
        for parameter in self.parameters.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            reduced: Any = self.accelerator.reduce(parameter.grad, "sum")
            parameter.grad = reduced

    def _check_reference(self, means: Metrics, counts: Counts) -> None:
        name = self.settings.objective
        if name not in OBJECTIVES or not needs_reference(name) or not counts.pairs:
            return
        expected = untrained_preference_loss(self.settings.objective, self.settings.coefficients)
        found = means["loss_preference"]
        # In half precision another kind of attention or order of summation moves every log-prob.
        coarse = next(self.packed.parameters()).dtype.itemsize < 4 or self.accelerator.mixed_precision != "no"
        if abs(found - expected) > (2e-2 if coarse else 1e-3) * max(1.0, expected):
            raise ModelError(
                f"the preference loss is {found:.6f}, but it must be {expected:.6f} where the reference is the "
                "policy itself: the reference log-probs are those of other weights, another precision or other tokens. "
                "Recompute them with attach_reference and a scorer of this very model"
            )

    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW over the trained parameters: the value head at its own rate, matrices alone decayed."""
        s = self.settings
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for name, parameter in self.parameters.items():
            groups.setdefault((name.startswith("value_head."), parameter.ndim >= 2), []).append(parameter)
        value_lr = s.lr if s.value_lr is None else s.value_lr
        return FloatAdamW(
            [
                {
                    "params": parameters,
                    "base_lr": value_lr if of_value_head else s.lr,
                    "weight_decay": s.weight_decay if is_matrix else 0.0,
                }
                for (of_value_head, is_matrix), parameters in sorted(groups.items(), key=lambda item: item[0])
            ],
            lr=s.lr,
            betas=s.betas,
            eps=s.eps,
            fused=self.device.type in ("cpu", "cuda"),  # one pass over memory: several times as fast as op by op
        )


def _not_finite(step: int, loss: float, norm: float, passed: Sequence[tuple[Tensor, list[str]]]) -> str:
    guilty = [i for value, ids in passed if not math.isfinite(value.item()) for i in ids]
    ids = guilty or [i for _, members in passed for i in members]
    listed = ", ".join(map(repr, ids[:8])) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
    return (
        f"step {step}: loss {loss}, gradient norm {norm}: not finite. Examples: {listed or 'on another rank'}. "
        "The weights are as before this step; lower the learning rate or use a wider precision"
    )


def _filled(whole: Tensor | None, size: int, places: Tensor, part: Tensor) -> Tensor:
    """A part put into its places of the whole, which begins as zeros."""
    whole = part.new_zeros(size) if whole is None else whole
    whole[places] = part
    return whole
