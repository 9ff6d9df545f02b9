"""The learner: optimizer steps over packed examples, the same trajectory however a step's work is cut.

Knows packing, objectives and accelerate (devices, ranks, mixed precision), but no search, no tokenizer and no loop.

A step's examples are dealt to ranks, packed into rows, and run some rows a forward. Every loss comes already divided by
the counts of the whole step (`objectives.Counts`), so gradients of passes and ranks simply add up: 1×8 ≡ 8×1. Each rank
holds a full replica; gradients are summed explicitly at the end of the step, because ranks may need different numbers
of passes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn

from treepref.errors import DataError, ModelError, StoreError
from treepref.training.attention import Kind, choose_attention
from treepref.training.checkpoints import Checkpoint, latest_checkpoint, save_checkpoint, step_folder, told_if_damaged
from treepref.training.examples import Example, fingerprint
from treepref.training.forward import PackedModel
from treepref.training.objectives import Counts
from treepref.training.packing import flatten
from treepref.training.schedule import plan_steps
from treepref.training.settings import LearnerSettings
from treepref.training.step import Stepper
from treepref.training.tally import Metrics


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
    attention: Kind | None = None
    """The kind of attention that its steps use: kept with the training state, for another kind rounds otherwise."""


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
        self.flops_per_token = flops_per_token or 2.0 * sum(p.numel() for p in self.packed.parameters())
        self.stepper = Stepper(self.packed, settings, self.accelerator, self.flops_per_token)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained, by name."""
        return self.stepper.parameters

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
        self.stepper.check_examples(ordered)
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
        run = LearnerRun(
            self.stepper,
            total_steps,
            self.settings.identity() | dict(identity),
            checkpoints,
            checkpoint_every,
            on_step,
            before_save,
        )
        run.resume()
        return run

    def _check_useful(self, examples: Sequence[Example]) -> None:
        objective, counts = self.settings.objective, sum((e.counts for e in examples), Counts())
        useful = {"sft": counts.tokens, "svpo": counts.pairs + counts.values + counts.tokens}
        if not useful.get(objective, counts.pairs):
            raise DataError(f"{len(examples)} examples hold nothing that objective {objective!r} can learn from")


class LearnerRun:
    """A run in progress (made by `Learner.start`): one optimizer step a call, with examples known only then.

    For loops that search with the weights of the step before. The model is in evaluation mode inside a step and in the
    mode it was in outside.
    """

    def __init__(
        self,
        stepper: Stepper,
        total_steps: int,
        identity: Mapping[str, Any],
        checkpoints: Path | None,
        checkpoint_every: int,
        on_step: Callable[[Metrics], None] | None,
        before_save: Callable[[], None] | None,
    ) -> None:
        self._stepper = stepper
        self.result = TrainResult(total_steps=total_steps)
        self.optimizer = stepper.optimizer()
        self._identity = identity
        self._checkpoints = checkpoints
        self._checkpoint_every = checkpoint_every
        self._on_step = on_step
        self._before_save = before_save
        self._saved = -1

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
        result, stepper = self.result, self._stepper
        if result.steps >= result.total_steps:
            raise ValueError(f"all {result.total_steps} steps of this run are done")
        started = time.monotonic()
        stepper.check_examples(examples)
        flats = [flatten(example, stepper.settings.row_tokens) for example in examples]
        with stepper.packed.running():
            metrics = stepper.run(flats, result.steps, result.total_steps, self.optimizer, reference_is_policy)
        result.steps += 1
        result.tokens += int(metrics["tokens"])
        result.flops += metrics["flops"]
        result.seconds += time.monotonic() - started
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
        stepper = self._stepper
        if stepper.accelerator.is_main_process:
            weights = {name: p.detach() for name, p in stepper.parameters.items()}
            state = Checkpoint(self._identity, asdict(self.result), weights, self.optimizer.state_dict())
            save_checkpoint(self._checkpoints, state)
        stepper.accelerator.wait_for_everyone()
        self._saved = self.steps
        self.result.seconds += time.monotonic() - started

    def resume(self) -> None:
        """Read the newest checkpoint, if there is one, and settle which kind of attention the steps use.

        Raises StoreError where the checkpoint is of another run, ModelError where the model does not take the kind.
        """
        if self._checkpoints is not None:
            self._read(self._checkpoints)
        wanted = self._stepper.settings.attention
        kind = choose_attention(self._stepper.packed.model, wanted, self.result.attention)
        self._stepper.packed.attention = self.result.attention = kind

    def _read(self, folder: Path) -> None:
        found = latest_checkpoint(folder, self._identity, self._stepper.device)
        if found is None:
            return
        total = found.progress.get("total_steps")
        if total != self.result.total_steps:
            raise StoreError(
                f"the checkpoints in {folder} are of a run of {total} steps, not {self.result.total_steps}: the "
                "learning rate's schedule would break. Restore what made them so many, or remove the folder"
            )
        with torch.no_grad(), told_if_damaged(step_folder(folder, found.progress["steps"])):
            for name, parameter in self._stepper.parameters.items():
                parameter.copy_(found.weights[name])
            self.optimizer.load_state_dict(found.optimizer)
            progress: dict[str, Any] = found.progress | {"stopped": False}
            self.result = TrainResult(**progress)
        self._saved = self.steps


def _check_accelerator(accelerator: Accelerator) -> None:
    if accelerator.distributed_type not in (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU):
        raise ModelError(
            f"the learner keeps a full replica on each rank; {accelerator.distributed_type.value} is not supported"
        )
    if accelerator.mixed_precision == "fp16":
        raise ModelError("mixed precision fp16 needs loss scaling, which is not supported; use bf16 or no")
