"""The learner: optimizer steps over packed examples, the same trajectory however a step's work is cut.

Knows packing, objectives and accelerate (devices, ranks, mixed precision), but no search, no tokenizer and no loop.

A step's examples are dealt to ranks, packed into rows, and run some rows a forward. Every loss comes already divided by
the counts of the whole step (`objectives.Counts`), so gradients of passes and ranks simply add up: 1×8 ≡ 8×1. Each rank
holds a full replica; gradients are summed explicitly at the end of the step, because ranks may need different numbers
of passes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn

from treepref.config import TrainConfig, WarmupConfig
from treepref.errors import DataError, ModelError, RecipeError, StoreError
from treepref.training.checkpoints import Checkpoint, latest_checkpoint, save_checkpoint, step_folder, told_if_damaged
from treepref.training.choosing import settle_attention
from treepref.training.examples import Example, fingerprint
from treepref.training.forward import PackedModel, loss_batch, place, scatter_index
from treepref.training.objectives import (
    OBJECTIVES,
    PREFERENCE_OBJECTIVES,
    Coefficients,
    Counts,
    LossBatch,
    health,
    total,
    untrained_preference_loss,
)
from treepref.training.optimizer import FloatAdamW
from treepref.training.packing import Flat, check_context, collate, flatten, max_positions, renumbered
from treepref.training.schedule import lr_factor, plan_steps
from treepref.training.tally import Metrics, Tally


@dataclass(frozen=True, slots=True)
class LearnerSettings:
    """Constants of a training run. The first group defines the result, the second only how the work is cut."""

    objective: Literal["sft", "dpo", "cdpo", "cdpo_mean", "ipo", "ipo_mean", "svpo"] = "svpo"
    coefficients: Coefficients = field(default_factory=Coefficients)
    lr: float = 1e-5
    value_lr: float | None = None
    """Learning rate of the value head; None takes `lr`."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: float = 0.03
    """Share of the steps in which the learning rate rises linearly."""
    clip: float = 1.0
    """Largest gradient norm, over policy and value head together."""
    weight_decay: float = 0.0
    """On matrices alone: norms and biases are spared."""
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    seed: int = 0
    """Of the order of the examples."""

    row_tokens: int = 2048
    """Length of a packed row, at most; larger trees are split. Attention's cost grows with it, but not in blocks."""
    rows_per_pass: int = 1
    """Rows in one forward."""
    chunk_tokens: int = 4096
    """Positions whose logits are held at once."""
    recompute: bool = False
    """Recompute each layer's activations in the backward pass (gradient checkpointing): less memory, a third slower."""
    attention: Literal["auto", "mask", "blocks", "flex"] = "auto"
    """How packed rows are attended to; auto takes what is fastest here (`choosing.py`)."""

    def __post_init__(self) -> None:
        """Raises RecipeError for a name that stands for nothing."""
        for name in ("objective", "schedule", "attention"):
            known = get_args(get_type_hints(LearnerSettings)[name])
            if getattr(self, name) not in known:
                raise RecipeError(f"{name} {getattr(self, name)!r}: choose one of {', '.join(known)}")

    @classmethod
    def from_train(cls, config: TrainConfig, **changes: Any) -> LearnerSettings:
        """The settings that a recipe's `train` section names; `changes` override."""
        names = ("beta", "value_weight", "margin_weight", "margin", "sft_weight")
        result = ("objective", "lr", "value_lr", "schedule", "warmup_ratio", "clip", "weight_decay")
        same = (*result, "row_tokens", "attention", "recompute")
        settings: dict[str, Any] = {name: getattr(config, name) for name in same}
        settings["coefficients"] = Coefficients(**{name: getattr(config, name) for name in names})
        return cls(**settings | changes)

    @classmethod
    def from_warmup(cls, config: WarmupConfig, **changes: Any) -> LearnerSettings:
        """SFT with a recipe's `warmup` section; `changes` override."""
        same = ("lr", "warmup_ratio", "weight_decay")
        return cls(**{"objective": "sft"} | {name: getattr(config, name) for name in same} | changes)

    def identity(self) -> dict[str, Any]:
        """What must not change when a run is resumed."""
        cut = {"row_tokens", "rows_per_pass", "chunk_tokens", "recompute", "attention"}
        return {name: value for name, value in asdict(self).items() if name not in cut}


@dataclass(slots=True)
class TrainResult:
    """What a training run did, earlier sessions of a resumed one included."""

    steps: int = 0
    total_steps: int = 0
    tokens: int = 0
    """Packed tokens trained on, of all ranks; prefixes repeated by splitting count."""
    flops: float = 0.0
    seconds: float = 0.0
    """Spent in steps and on checkpoints; what the caller does between two steps does not count."""
    stopped: bool = False
    """It was ended early."""
    last: Metrics | None = None
    """Metrics of the last step."""


class Learner:
    """Trains a causal LM (and its value head, where the objective is `svpo`) in place.

    Args:
        model: a Hugging Face causal LM, or a peft model around one: only parameters with `requires_grad` are trained.
        value_head: [.., H] → [..] or [.., 1], values in [-1, 1]; None where there is none.
        accelerator: devices, ranks and mixed precision; None makes a plain one on the model's device.
        flops_per_token: of a forward pass, for `TrainResult.flops` (a training token costs three times this, four with
            `recompute`); None counts two for each parameter.

    Raises:
        ModelError: `svpo` with value terms but no value head; an accelerator that shards the model (FSDP, DeepSpeed) or
            scales gradients (fp16).
    """

    def __init__(
        self,
        model: nn.Module,
        value_head: nn.Module | None,
        settings: LearnerSettings,
        *,
        accelerator: Accelerator | None = None,
        flops_per_token: float | None = None,
    ) -> None:
        c = settings.coefficients
        self.trains_values = settings.objective == "svpo" and (c.value_weight > 0 or c.margin_weight > 0)
        if self.trains_values and value_head is None:
            raise ModelError(
                "objective 'svpo' trains a value head, but the model was loaded without one; "
                "set value_weight and margin_weight to 0 or load it with value_head=True"
            )
        on_cpu = next(model.parameters()).device.type == "cpu"
        self.accelerator = accelerator or Accelerator(cpu=on_cpu)
        _check_accelerator(self.accelerator)
        self.settings = settings
        packed = PackedModel(model, value_head if self.trains_values else None, chunk_tokens=settings.chunk_tokens)
        self.packed = packed.to(self.accelerator.device)
        self.packed.recompute = settings.recompute
        self.parameters = {name: p for name, p in self.packed.named_parameters() if p.requires_grad}
        self.flops_per_token = flops_per_token or 2.0 * sum(p.numel() for p in self.packed.parameters())

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    def train(
        self,
        examples: Sequence[Example],
        *,
        epochs: int = 1,
        batch_trees: int | None = None,
        batch_tokens: int | None = None,
        reference_is_policy: bool = False,
        on_step: Callable[[Metrics], None] | None = None,
        stop: Callable[[Metrics], bool] | None = None,
        before_save: Callable[[], None] | None = None,
        checkpoints: Path | None = None,
        checkpoint_every: int = 100,
    ) -> TrainResult:
        """Run, or resume, all optimizer steps of `epochs` passes over the examples.

        A step takes `batch_trees` examples, or examples up to `batch_tokens` trained tokens. Order: sorted ids, then a
        seeded shuffle for each epoch.

        Args:
            reference_is_policy: the reference is the policy as it stands before the first step. Then the first step's
                preference loss must be ln 2 (1/(4β²) for IPO), and this is checked before any weight changes.
            on_step: called on every rank after each step with its metrics.
            before_save: as in `start`.
            stop: asked after each step; True saves a checkpoint and ends the run. Must agree on all ranks.
            checkpoints: a folder. The whole training state is saved there every `checkpoint_every` steps and at the
                end, the last two are kept, and a run that finds one there goes on from it.

        Raises:
            DataError: no example, duplicate ids, or a path longer than the model's context.
            ModelError: reference log-probs are missing or not those of the policy; a loss or gradient is not finite
                (names the step and the examples; the weights are as before the step).
            StoreError: a checkpoint belongs to other data or settings, or the disk is full.
        """
        ordered = sorted(examples, key=lambda e: e.id)
        self._check_examples(ordered)
        self._check_useful(ordered)
        plan = plan_steps(ordered, epochs, self.settings.seed, batch_trees=batch_trees, batch_tokens=batch_tokens)
        identity = {
            "epochs": epochs,
            "batch_trees": batch_trees,
            "batch_tokens": batch_tokens,
            "data": fingerprint(ordered),
        }
        run = self.start(
            len(plan),
            identity=identity,
            checkpoints=checkpoints,
            checkpoint_every=checkpoint_every,
            on_step=on_step,
            before_save=before_save,
        )
        while run.steps < len(plan) and not run.result.stopped:
            planned = plan[run.steps]
            metrics = run.step(
                [ordered[index] for index in planned.members],
                reference_is_policy=reference_is_policy and run.steps == 0,
                labels={"epoch": planned.epoch},
            )
            if stop is not None and stop(metrics):
                run.stop()
        return run.result

    def start(
        self,
        total_steps: int,
        *,
        identity: Mapping[str, Any],
        checkpoints: Path | None = None,
        checkpoint_every: int = 100,
        on_step: Callable[[Metrics], None] | None = None,
        before_save: Callable[[], None] | None = None,
    ) -> LearnerRun:
        """Begin, or resume, a run whose examples the caller brings step by step.

        Args:
            total_steps: of the whole run: the learning rate's schedule ends there.
            identity: what must not change when the run is resumed, beside the settings; plain JSON values.
            checkpoints: a folder. The whole training state is saved there every `checkpoint_every` steps, after the
                last one and on `LearnerRun.stop`; the last two are kept. If there is one already, the weights, the
                optimizer and `LearnerRun.steps` are as they were then.
            on_step: called on every rank with each step's metrics.
            before_save: called on every rank before a checkpoint is saved, after `on_step`: what it writes down is
                never behind the checkpoint that a resumed run starts from.

        Raises:
            StoreError: a checkpoint belongs to another run (names what differs), or cannot be read.
        """
        return LearnerRun(
            self,
            total_steps,
            self.settings.identity() | dict(identity),
            checkpoints,
            checkpoint_every,
            on_step,
            before_save,
        )

    # -----------------------------------------------------------------------------------------------------------------
    # One step
    # -----------------------------------------------------------------------------------------------------------------

    def _step(
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

        logp_T = value_N = None
        for passage, tokens_T, nodes_S in parts:
            with torch.no_grad(), self.accelerator.autocast():
                logp, value = self.packed(passage)
            logp_T = logp.new_zeros(len(flat.node_T)) if logp_T is None else logp_T
            logp_T[tokens_T] = logp
            if value is not None:
                value_N = value.new_zeros(len(flat.example.nodes) + 1) if value_N is None else value_N
                value_N[nodes_S] = value
        outputs = [x.requires_grad_() for x in (logp_T, value_N) if x is not None]
        loss = self._loss(loss_batch([flat], logp_T, value_N), counts, tally)
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
        terms = OBJECTIVES[self.settings.objective](batch, c)
        loss = total(terms, counts)
        tally.add_loss("loss", loss)
        for name, term in terms.items():
            if getattr(counts, term.per) > 0:
                tally.add_loss(f"loss_{name}", term.sum / getattr(counts, term.per))
        tally.add_health(health(batch, c))
        return loss

    # -----------------------------------------------------------------------------------------------------------------
    # Around the steps
    # -----------------------------------------------------------------------------------------------------------------

    def _check_examples(self, examples: Sequence[Example]) -> None:
        """Ids are unique, references are there where the objective needs them, and no path is too long."""
        for one, two in pairwise(sorted(e.id for e in examples)):
            if one == two:
                raise DataError(f"two examples have the id {one!r}; training order needs unique ids")
        if self.settings.objective in PREFERENCE_OBJECTIVES:
            for example in examples:
                if any(example.nodes[n].ref is None for pair in example.pairs for n in (*pair.winner, *pair.loser)):
                    raise ModelError(
                        f"example {example.id!r} has no reference log-probs, and objective "
                        f"{self.settings.objective!r} needs them: call attach_reference first"
                    )
        check_context(examples, max_positions(self.packed.model))

    def _check_useful(self, examples: Sequence[Example]) -> None:
        objective, counts = self.settings.objective, sum((e.counts for e in examples), Counts())
        useful = {"sft": counts.tokens, "svpo": counts.pairs + counts.values + counts.tokens}
        if not useful.get(objective, counts.pairs):
            raise DataError(f"{len(examples)} examples hold nothing that objective {objective!r} can learn from")

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
            parameter.grad = self.accelerator.reduce(parameter.grad, "sum")

    def _check_reference(self, means: Metrics, counts: Counts) -> None:
        if self.settings.objective not in PREFERENCE_OBJECTIVES or not counts.pairs:
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

    def _optimizer(self) -> torch.optim.Optimizer:
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


class LearnerRun:
    """A run in progress (made by `Learner.start`): one optimizer step a call, with examples known only then.

    For loops that search with the weights of the step before. The model is in evaluation mode inside a step and in the
    mode it was in outside.
    """

    def __init__(
        self,
        learner: Learner,
        total_steps: int,
        identity: Mapping[str, Any],
        checkpoints: Path | None,
        checkpoint_every: int,
        on_step: Callable[[Metrics], None] | None,
        before_save: Callable[[], None] | None,
    ) -> None:
        self.learner = learner
        self.result = TrainResult(total_steps=total_steps)
        self._optimizer = learner._optimizer()
        self._identity = identity
        self._checkpoints = checkpoints
        self._checkpoint_every = checkpoint_every
        self._on_step = on_step
        self._before_save = before_save
        self._saved = -1
        self._settled = False
        if checkpoints is not None:
            self._resume(checkpoints)

    @property
    def steps(self) -> int:
        """Optimizer steps done so far, those before a resume included."""
        return self.result.steps

    def step(
        self,
        examples: Sequence[Example],
        *,
        reference_is_policy: bool = False,
        labels: Mapping[str, float] | None = None,
    ) -> Metrics:
        """One optimizer step; saves a checkpoint where one is due.

        A step without examples counts, and changes nothing but the place in the schedule; its metrics hold no loss.
        Where kinds of attention were tried before a session's first step, its metrics tell what each took
        (`attention_KIND_seconds`).

        Args:
            reference_is_policy: the reference is the policy as it stands before this very step. Then the preference
                loss must be ln 2 (1/(4β²) for IPO), and this is checked before any weight changes.
            labels: put into the metrics as they are (an epoch, a round).

        Raises:
            DataError: duplicate ids, or a path longer than the model's context.
            ModelError: reference log-probs are missing or not those of the policy; a loss or gradient is not finite
                (names the step and the examples; the weights are as before the step).
            StoreError: the checkpoint cannot be written.
            ValueError: all steps are done.
        """
        result, learner = self.result, self.learner
        if result.steps >= result.total_steps:
            raise ValueError(f"all {result.total_steps} steps of this run are done")
        started = time.monotonic()
        learner._check_examples(examples)
        flats = [flatten(example, learner.settings.row_tokens) for example in examples]
        tried: Metrics = {}
        if flats and not self._settled:
            packed, s, autocast = learner.packed, learner.settings, learner.accelerator.autocast
            tried = settle_attention(packed, flats, s.row_tokens, s.rows_per_pass, s.attention, autocast=autocast)
            self._settled = not all(flat.split for flat in flats)  # a trial needs a whole tree
        with learner.packed.running():
            metrics = learner._step(flats, result.steps, result.total_steps, self._optimizer, reference_is_policy)
        result.steps += 1
        result.tokens += int(metrics["tokens"])
        result.flops += metrics["flops"]
        result.seconds += time.monotonic() - started
        metrics |= {f"attention_{kind}_seconds": seconds for kind, seconds in tried.items()}
        metrics |= dict(labels or {}) | {"total_tokens": result.tokens, "seconds": result.seconds}
        result.last = metrics
        if self._on_step is not None:
            self._on_step(metrics)
        if result.steps % self._checkpoint_every == 0 or result.steps == result.total_steps:
            self._save()
        return metrics

    def stop(self) -> None:
        """End the run before its last step, with a checkpoint to go on from."""
        self.result.stopped = True
        self._save()

    def _save(self) -> None:
        if self._checkpoints is None or self._saved == self.steps:
            return
        if self._before_save is not None:
            self._before_save()
        started = time.monotonic()
        learner = self.learner
        if learner.accelerator.is_main_process:
            weights = {name: p.detach() for name, p in learner.parameters.items()}
            state = Checkpoint(self._identity, asdict(self.result), weights, self._optimizer.state_dict())
            save_checkpoint(self._checkpoints, state)
        learner.accelerator.wait_for_everyone()
        self._saved = self.steps
        self.result.seconds += time.monotonic() - started

    def _resume(self, folder: Path) -> None:
        found = latest_checkpoint(folder, self._identity, self.learner.device)
        if found is None:
            return
        total = found.progress.get("total_steps")
        if total != self.result.total_steps:
            raise StoreError(
                f"the checkpoints in {folder} are of a run of {total} steps, not {self.result.total_steps}: the "
                "learning rate's schedule would break. Restore what made them so many, or remove the folder"
            )
        with torch.no_grad(), told_if_damaged(step_folder(folder, found.progress["steps"])):
            for name, parameter in self.learner.parameters.items():
                parameter.copy_(found.weights[name])
            self._optimizer.load_state_dict(found.optimizer)
            self.result = TrainResult(**found.progress | {"stopped": False})
        self._saved = self.steps


def _not_finite(step: int, loss: float, norm: float, passed: Sequence[tuple[Tensor, list[str]]]) -> str:
    guilty = [i for value, ids in passed if not math.isfinite(value.item()) for i in ids]
    ids = guilty or [i for _, members in passed for i in members]
    listed = ", ".join(map(repr, ids[:8])) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
    return (
        f"step {step}: loss {loss}, gradient norm {norm}: not finite. Examples: {listed or 'on another rank'}. "
        "The weights are as before this step; lower the learning rate or use a wider precision"
    )


def _check_accelerator(accelerator: Accelerator) -> None:
    if accelerator.distributed_type not in (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU):
        raise ModelError(
            f"the learner keeps a full replica on each rank; {accelerator.distributed_type.value} is not supported"
        )
    if accelerator.mixed_precision == "fp16":
        raise ModelError("mixed precision fp16 needs loss scaling, which is not supported; use bf16 or no")
