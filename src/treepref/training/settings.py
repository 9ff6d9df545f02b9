"""The constants of a training run. Their defaults are those of a recipe's `train` section."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args, get_type_hints

from treepref.config import TrainConfig, WarmupConfig
from treepref.errors import RecipeError
from treepref.training.objectives import DEFAULTS, OBJECTIVES, Coefficients
from treepref.workers.functions import is_function_name


@dataclass(frozen=True, slots=True)
class LearnerSettings:
    """Constants of a training run. The first group defines the result, the second only how the work is cut."""

    objective: str = DEFAULTS.objective
    """A name in `objectives.OBJECTIVES`, or a user's `module:function`."""
    coefficients: Coefficients = field(default_factory=Coefficients)
    lr: float = DEFAULTS.lr
    value_lr: float | None = DEFAULTS.value_lr
    """Learning rate of the value head; None takes `lr`."""
    schedule: Literal["cosine", "linear", "constant"] = DEFAULTS.schedule
    warmup_ratio: float = DEFAULTS.warmup_ratio
    """Share of the steps in which the learning rate rises linearly."""
    clip: float = DEFAULTS.clip
    """Largest gradient norm, over policy and value head together."""
    weight_decay: float = DEFAULTS.weight_decay
    """On matrices alone: norms and biases are spared."""
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    seed: int = 0
    """Of the order of the examples."""

    row_tokens: int = DEFAULTS.row_tokens
    """Length of a packed row, at most; larger trees are split. Attention's cost grows with it, but not in blocks."""
    rows_per_pass: int = 1
    """Rows in one forward."""
    chunk_tokens: int = 4096
    """Positions whose logits are held at once."""
    recompute: bool = DEFAULTS.recompute
    """Recompute each layer's activations in the backward pass (gradient checkpointing): less memory, a third slower."""
    attention: Literal["auto", "mask", "blocks", "flex"] = DEFAULTS.attention
    """How packed rows are attended to; auto takes what the table in `attention.py` has for the device."""

    def __post_init__(self) -> None:
        """Raises RecipeError for a name that stands for nothing."""
        if self.objective not in OBJECTIVES and not is_function_name(self.objective):
            names = ", ".join(OBJECTIVES)
            raise RecipeError(f"objective {self.objective!r}: choose one of {names}, or module:function")
        for name in ("schedule", "attention"):
            known = get_args(get_type_hints(LearnerSettings)[name])
            if getattr(self, name) not in known:
                raise RecipeError(f"{name} {getattr(self, name)!r}: choose one of {', '.join(known)}")

    @classmethod
    def of(cls, section: TrainConfig | WarmupConfig, **changes: Any) -> LearnerSettings:
        """The settings that a recipe's section names, by their names; a warm-up is SFT. `changes` override."""
        named = {f.name: getattr(section, f.name) for f in fields(cls) if hasattr(section, f.name)}
        constants = {f.name: getattr(section, f.name) for f in fields(Coefficients) if hasattr(section, f.name)}
        sft = {"objective": "sft"} if isinstance(section, WarmupConfig) else {}
        given: dict[str, Any] = {"coefficients": Coefficients(**constants)} | named | sft | changes
        return cls(**given)

    def identity(self) -> dict[str, Any]:
        """What must not change when a run is resumed."""
        cut = {"row_tokens", "rows_per_pass", "chunk_tokens", "recompute", "attention"}
        return {name: value for name, value in asdict(self).items() if name not in cut}
