"""The schema of a recipe: one class a method, with the keys that it uses and no others.

Every key is documented here and, with its default, in the method's template (`recipes/svpo.yaml`, `mcts_dpo.yaml`,
`dpo_st.yaml`).

Reading YAML, overrides and line numbers live in `recipes/reading.py`; this file knows only what a recipe may say.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
"""A user's function, as `module:function`."""


class Section(BaseModel, frozen=True):
    """Unknown keys are errors; values are checked when they are set.

    Every number has both bounds, and none may be infinite. The outer ones lie far beyond what any run needs: what they
    keep out is what would end in an overflow, in NaN or in all of the memory, hours after the recipe was read.
    """

    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)


class LoraConfig(Section, frozen=True):
    """Low-rank adapters instead of full fine-tuning; merged when a round's folder is saved."""

    rank: int = Field(default=16, ge=1, le=16_384)
    alpha: float = Field(default=32.0, gt=0, le=1e6)
    targets: list[str] | Literal["all-linear"] = "all-linear"


class ModelConfig(Section, frozen=True):
    path: str = "builtin:tiny-base"
    """A Hugging Face hub id, a local folder, or `builtin:tiny-base`, the base model that ships with treepref."""
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    device: str = "auto"
    lora: LoraConfig | None = None


class SplitConfig(Section, frozen=True):
    """How many problems each split holds; disjoint by normalised question text."""

    labelled: int = Field(default=0, ge=0, le=10_000_000)
    """Problems with rationales, for the warm-up SFT."""
    train: int = Field(default=1000, ge=1, le=10_000_000)
    """Problems with answers only, for search."""
    eval: int = Field(default=500, ge=1, le=10_000_000)


class TaskConfig(Section, frozen=True):
    kind: Literal[
        "reasoning_gym", "gsm8k", "math", "svamp", "jsonl", "arc_easy", "arc_challenge", "openbookqa", "commonsense_qa",
        "sciq", "aqua", "verifiers",
    ] = "reasoning_gym"  # fmt: skip
    name: str = "chain_sum"
    """reasoning_gym: the task's name; verifiers: the module whose load_environment() makes the task."""
    params: dict[str, Any] = Field(default_factory=dict)
    """reasoning_gym, verifiers: the task's own parameters."""
    path: str | list[str] | None = None
    """Hub id, local folder with a file a split (train.jsonl, validation.csv …), a file, a pattern with `*`, or several
    files: JSON lines, a JSON array, CSV or Parquet, each perhaps gzipped."""
    eval_path: str | list[str] | None = None
    """jsonl: files of their own for evaluation. Without them evaluation problems are split off `path`."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Kinds from files: our name of a column → the file's, e.g. {question: prompt, answer: label}."""
    train_split: str = "train"
    eval_split: str = "validation"
    granularity: list[Annotated[int, Field(le=1000)]] = Field(default_factory=lambda: [1])
    """Arithmetic rationales: how many operations a step may merge; one is drawn at random for each step."""
    slips: float = Field(default=0.0, ge=0, lt=1)
    """chain_sum's rationales: chance that an operation merged with others gets the wrong sign (a person's slip)."""
    splits: SplitConfig = SplitConfig()
    prompt: str | None = None
    """Text with `{question}` or `module:function`; None takes the task's own."""
    chat: bool = False
    """Wrap the prompt in the tokenizer's chat template."""
    system: str | None = None
    """chat: the system message."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """chat: what the template is given besides messages, e.g. {enable_thinking: false}."""
    examples: int = Field(default=0, ge=0, le=100)
    """Solved problems shown before every prompt (few-shot): of the labelled split, or of `examples_path`."""
    examples_path: str | list[str] | None = None
    """Files with rows as `path`'s, whose first `examples` are shown."""
    stop: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list)
    """Texts that end a solution, such as the next question of a base model that runs on; what is read ends before."""
    delimiter: str = Field(default="\n", min_length=1)
    """The text that ends a step."""
    checker: str | None = None
    """`module:function(text, problem) -> bool | float`; None takes the task's own."""
    pass_score: float = Field(default=1.0, gt=0, le=1e6)
    """checker: from which number on a solution is right; below it is the better the nearer it comes."""
    answer: Literal["auto", "number", "math", "text", "boxed"] = "auto"
    """How answers of gsm8k, math, svamp and jsonl are read. `auto`: the kind's own way, for jsonl a number where the
    problem's answer is one and text elsewhere; `math`: LaTeX compared by value; `boxed`: the same, in a box alone."""
    check_seconds: float = Field(default=5.0, ge=0.01, le=86_400)
    """A hung answer check costs this long, and counts as wrong."""
    tool: Literal["calculator", "python"] | None = None
    """A tool inside decoding, in search and evaluation alike: its results are forced into the text."""


class EngineConfig(Section, frozen=True):
    kind: Literal["torch"] = "torch"
    max_rows: int = Field(default=256, ge=1, le=1_000_000)
    """Samples decoded together."""
    cache_mb: int = Field(default=1024, ge=0, le=1_000_000_000)
    """Memory for the key-value cache of shared prefixes; the least recently used goes first."""
    batch_invariant: bool = False
    """One row and one token at a time: same result whatever the concurrency and however often killed. Slow."""
    weights: Literal["float32", "bfloat16", "int8"] = "float32"
    """What the engine multiplies with on a CPU. Below float32 it is faster, and its log-probs are those of another
    policy by a little: training recomputes the reference's. Training itself never runs in it."""
    threads: int | None = Field(default=None, ge=1, le=1024)


class WarmupConfig(Section, frozen=True):
    """SFT on the labelled split before the first round (round 0 is what comes out of it)."""

    epochs: int = Field(default=0, ge=0, le=10_000)
    lr: float = Field(default=1e-3, gt=0, le=1)
    batch_tokens: int = Field(default=4096, ge=1, le=1_000_000_000)
    """Trained tokens an optimizer step."""
    warmup_ratio: float = Field(default=0.03, ge=0, le=1)
    weight_decay: float = Field(default=0.01, ge=0, le=1)


class SelfEvaluationConfig(Section, frozen=True):
    """The policy weighs each step by a two-choice question about it (MCTS-DPO, arXiv 2405.00451): reward O + C."""

    weight: float = Field(default=1.0, ge=0, le=100)
    """Factor on C; 0 asks and records C (for its AUC) but leaves the reward to the outcome."""
    question: str | None = None
    """Text put after the solution so far, ending right before the letter; None takes the task's own."""
    right: str = Field(default="A", min_length=1)
    """The letter that means "right"."""
    wrong: str = Field(default="B", min_length=1)
    example: str | None = None
    """A worked example put before the question; None: none."""
    hint: bool = False
    """Ground truth in the search: the question shows the problem's reference answer. Never in evaluation."""


class SearchConfig(Section, frozen=True):
    """What every tree search over steps has; beam search and MCTS in evaluation take their steps from it."""

    simulations: int = Field(default=40, ge=1, le=1_000_000)
    children: int = Field(default=5, ge=1, le=10_000)
    """Steps sampled at each expansion."""
    root_children: int | None = Field(default=None, ge=1, le=10_000)
    """The same at the root; None takes `children`."""
    c: float = Field(default=1.5, ge=0, le=1e6)
    """Exploration constant of PUCT."""
    temperature: float = Field(default=1.0, ge=0.01, le=100)
    first_temperature: float | None = Field(default=None, ge=0.01, le=100)
    """Sampling temperature of the first round; None takes `temperature`."""
    top_p: float = Field(default=1.0, ge=1e-6, le=1)
    max_depth: int = Field(default=8, ge=1, le=100_000)
    max_step_tokens: int = Field(default=64, ge=1, le=10_000_000)
    trees_in_flight: int = Field(default=64, ge=1, le=1_000_000)


class MctsConfig(SearchConfig, frozen=True):
    """svpo: MCTS over steps, as in AlphaMath (arXiv 2405.03553)."""

    leaves_in_flight: int = Field(default=1, ge=1, le=10_000)
    """Leaves of one tree that may be expanded at once (virtual loss above 1)."""
    score: Literal["puct"] | FunctionName = "puct"
    """By what a child is selected: AlphaMath's PUCT, or a user's own function."""
    evaluate: Literal["value", "rollout"] = "value"
    """How an unfinished leaf is scored: the value head's V (0 while there is none), or one sampled continuation."""


class EpisodeConfig(SearchConfig, frozen=True):
    """mcts_dpo: MCTS whose simulations run to the end of a solution (MCTS-DPO, arXiv 2405.00451)."""

    length_power: float = Field(default=1.0, ge=-10, le=10)
    """λ of the prior π(a|s) / |a|^λ."""
    self_evaluation: SelfEvaluationConfig | None = None
    """null leaves C out."""
    inject_reference: bool = False
    """Ground truth in the search: the reference rationale's steps are children too. Never in evaluation."""


class FewestPairsConfig(Section, frozen=True):
    min_problems: int = Field(default=32, ge=1, le=20_000_000)
    """Fewer problems with a pair than this, and the round stops with advice."""


class PairConfig(FewestPairsConfig, frozen=True):
    """svpo, mcts_dpo: which siblings become preferences (methods: SVPO)."""

    min_gap: float = Field(default=0.2, ge=0, le=10_000)
    """Smallest Q(winner) − Q(loser)."""
    min_visits: int = Field(default=1, ge=1, le=1_000_000)
    max_per_parent: int = Field(default=1, ge=1, le=1_000_000)
    max_per_tree: int = Field(default=8, ge=1, le=1_000_000)
    winner_reaches_answer: bool = True
    """The winner must lie on a path to a right answer."""
    level: Literal["step", "solution"] = "step"
    """solution: whole right solutions over whole wrong ones (solution-level DPO)."""
    rule: Literal["siblings", "trace"] = "siblings"
    """Step pairs: any siblings by gap (svpo), or at each depth of the selected trace the highest against the lowest Q
    (mcts_dpo)."""
    max_tokens: int | None = Field(default=None, ge=1, le=10_000_000)
    """Longest side of a pair in tokens; None: no limit."""


class TrainConfig(Section, frozen=True):
    """How preferences are learned from; `row_tokens`, `attention` and `recompute` serve the warm-up too."""

    objective: Literal["svpo", "dpo", "cdpo", "cdpo_mean", "ipo", "ipo_mean", "sft"] | FunctionName = "svpo"
    """sft on the right solutions of the trees is rejection-sampling fine-tuning; `module:function` is a user's own."""
    beta: float = Field(default=0.1, ge=1e-4, le=100)
    value_weight: float = Field(default=0.1, ge=0, le=10_000)
    """a in L: the value head's regression on its targets."""
    value_target: Literal["mean", "best"] = "mean"
    """mean: Q, as published; best: the best outcome found below a step, which is ours."""
    margin_weight: float = Field(default=0.1, ge=0, le=10_000)
    """b in L: the ranking loss on the pair's values."""
    margin: float = Field(default=0.5, ge=0, le=100)
    """m in L."""
    sft_weight: float = Field(default=0.1, ge=0, le=10_000)
    """c in L: NLL of the winner, per token."""
    smoothing: Literal["none", "visits"] = "visits"
    """visits: label smoothing 1 / (N_w / N_l + 1), at most 0.5 (MCTS-DPO)."""
    reference: Literal["initial", "previous"] = "previous"
    """The frozen policy of the DPO terms: the first round's start, or this round's."""
    lr: float = Field(default=1e-5, gt=0, le=1)
    value_lr: float | None = Field(default=None, gt=0, le=1)
    """Learning rate of the value head; None takes `lr`."""
    row_tokens: int = Field(default=2048, ge=16, le=10_000_000)
    """Length of a packed row."""
    attention: Literal["auto", "mask", "blocks", "flex"] = "auto"
    """How packed rows are attended to; auto: blocks on a CPU, the mask on a GPU, or what a resumed training had."""
    recompute: bool = False
    """Gradient checkpointing: each layer's activations are computed again in the backward pass."""
    warmup_ratio: float = Field(default=0.03, ge=0, le=1)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    clip: float = Field(default=1.0, gt=0, le=1e6)
    weight_decay: float = Field(default=0.0, ge=0, le=1)


class EpochsConfig(TrainConfig, frozen=True):
    """svpo, dpo_st: passes over a round's trees. (mcts_dpo makes one step a batch of its online loop.)"""

    epochs: int = Field(default=1, ge=1, le=10_000)
    batch_trees: int = Field(default=64, ge=1, le=1_000_000)
    """Trees an optimizer step."""


class ValueConfig(Section, frozen=True):
    """svpo: the value head's fit, by logistic regression on what came of the steps that were searched and sampled.

    After a round's training the head is fitted anew to the policy as it is then; the first one to samples of policy 0.
    """

    fit: bool = True
    """False: the head is only trained beside the policy (train.value_weight, train.margin_weight)."""
    problems: int = Field(default=256, ge=0, le=10_000_000)
    """Training problems sampled for the first fit, before the first search; 0: the first search has no values."""
    samples: int = Field(default=8, ge=1, le=10_000)
    """Solutions sampled a problem there, and solutions of a tree that a fit takes, at most."""
    layers: list[Annotated[float, Field(gt=0, le=1)]] = Field(
        default_factory=lambda: [0.5, 0.67, 0.83, 1.0], min_length=1
    )
    """Where the head may read, as shares of the model's depth; which is best is measured on problems held back."""
    pools: list[Literal["last", "mean"]] = Field(default_factory=lambda: ["last", "mean"], min_length=1)
    """What it may read there: a step's last token, the mean over the solution so far."""
    ranking: float = Field(default=0.0, ge=0, le=1000)
    """Weight of a loss that ranks right over wrong solutions of one problem, beside right or wrong alone."""
    most_steps: int = Field(default=8192, ge=16, le=10_000_000)
    """Steps that a fit looks at, at most."""


class OnlineConfig(Section, frozen=True):
    """mcts_dpo: search a batch of problems, update on it, search the next with the new weights."""

    enabled: bool = True
    """False: all trees come from the round's first policy (offline), in the same batches."""
    batch_problems: int = Field(default=32, ge=1, le=10_000_000)
    """Problems searched between two updates."""
    checkpoint_every: int = Field(default=10, ge=1, le=1_000_000)
    """Updates between two saved training states: what a kill costs at most is that much training, and no search."""


class SelfTrainingConfig(Section, frozen=True):
    """dpo_st (arXiv 2407.18248): each round a DPO step on sampled solutions, then SFT of the base on pseudo-labels."""

    dpo: bool = True
    """False: plain self-training, pseudo-labels come from the SFT model itself."""
    pseudo_labels: bool = True
    """False: SFT alone: no sampling and no rounds, only the warm-up."""
    dpo_samples: int = Field(default=5, ge=1, le=10_000)
    """Solutions sampled a problem for the DPO step."""
    label_samples: int = Field(default=3, ge=1, le=10_000)
    """K: solutions sampled a problem for pseudo-labels."""
    temperature: float = Field(default=0.7, ge=0.01, le=100)
    max_tokens: int = Field(default=300, ge=1, le=10_000_000)
    """Longest sampled solution."""
    similarity: float = Field(default=0.7, ge=0, le=1)
    """A solution is kept only if its Jaccard similarity to all kept ones is at most this."""
    pairs_per_problem: int = Field(default=3, ge=1, le=1_000_000)
    """The least similar right/wrong pairs of a problem are kept."""
    cap_percentile: float = Field(default=90.0, gt=0, le=100)
    """Solutions of a problem in the SFT set, at most this percentile of their number over all problems."""
    gold_positive: bool = True
    """The labelled problems' own rationales are among the right solutions of the DPO step."""
    patience: int = Field(default=1, ge=0, le=1_000_000)
    """Rounds without better greedy accuracy after which the loop stops; 0: never."""


_Width = Annotated[int, Field(le=1000)]


class EvalConfig(Section, frozen=True):
    """Greedy decoding and samples."""

    samples: int = Field(default=32, ge=1, le=10_000)
    """Samples a problem for self-consistency, best-of-n, weighted vote and pass@k, on the last round."""
    samples_between: int = Field(default=8, ge=0, le=10_000)
    """The same on earlier rounds."""
    temperature: float = Field(default=1.0, ge=0.01, le=100)
    top_p: float = Field(default=1.0, ge=1e-6, le=1)
    max_tokens: int = Field(default=512, ge=1, le=10_000_000)
    """Longest solution."""


class GuidedEvalConfig(EvalConfig, frozen=True):
    """svpo, mcts_dpo: and what a value head guides."""

    sbs: list[tuple[_Width, _Width]] = Field(default_factory=lambda: [(1, 2), (1, 4), (2, 4), (4, 4)])
    """Step-level beam search widths (B1, B2)."""
    sbs_likelihood: float | None = Field(default=None, ge=0, le=1e6)
    """How a partial solution's mean log-prob counts when beams are ranked. None: joined with V as the value head's fit
    learned it; a number: V + so much times it; 0: V alone."""
    mcts: bool = False
    """MCTS at inference, with the search section's numbers and c = 1.25."""


class BudgetConfig(Section, frozen=True):
    """Hard limits of the whole run. None: no limit."""

    tokens: int | None = Field(default=None, ge=1, le=10**18)
    """Generated, prefilled, scored and trained tokens together."""
    seconds: float | None = Field(default=None, gt=0, le=1e9)
    disk_gb: float | None = Field(default=None, gt=0, le=1e9)


Method = Literal["svpo", "mcts_dpo", "dpo_st"]
Conflict = tuple[str, str]
"""A key, and what is wrong with its value."""


def _repeated(key: str, values: Sequence[Any]) -> Iterator[Conflict]:
    """A second entry that equals an earlier one would do nothing."""
    for place, value in enumerate(values):
        if value in values[:place]:
            yield key, f"has {value} twice: take one out"
            return


class Recipe(Section, frozen=True):
    """What the recipes of all methods have. A run's is one of `RECIPES`, which add the sections of their method."""

    name: str
    method: Method
    seed: int = Field(default=0, ge=-(2**63), lt=2**63)
    rounds: int = Field(default=2, ge=0, le=1000)
    """Rounds of search, pairs, training and evaluation. 0: warm-up and evaluation alone."""
    model: ModelConfig = ModelConfig()
    task: TaskConfig = TaskConfig()
    engine: EngineConfig = EngineConfig()
    warmup: WarmupConfig = WarmupConfig()
    pairs: FewestPairsConfig
    train: TrainConfig
    eval: EvalConfig
    budget: BudgetConfig = BudgetConfig()

    @model_validator(mode="after")
    def _warmup_has_data(self) -> Recipe:
        if self.warmup.epochs and not self.task.splits.labelled:
            raise ValueError("warmup.epochs is above 0 but task.splits.labelled is 0: there is nothing to train on")
        return self

    @property
    def searched_splits(self) -> tuple[str, ...]:
        """The splits whose problems are searched."""
        return ("train",)

    @property
    def keeps_rationales(self) -> bool:
        """Whether the search of training problems may see their rationales."""
        return False

    @property
    def self_evaluation(self) -> SelfEvaluationConfig | None:
        """The question that the search asks about steps, if it asks one."""
        return None

    @property
    def retrains_base(self) -> bool:
        """Whether every round's policy is trained from the recipe's model anew."""
        return False

    @property
    def makes_pairs(self) -> bool:
        """Whether its rounds look for preferences."""
        return True

    @property
    def longest_solution(self) -> int:
        """Tokens of the longest solution that any stage samples."""
        return self.eval.max_tokens

    def no_first_search(self) -> str | None:
        """Why there is no first search that is over before anything learns from it; None where there is."""
        return None

    def conflicts(self) -> Iterator[Conflict]:
        """Values that are each possible but not together."""
        size = sum(getattr(self.task.splits, split) for split in self.searched_splits)
        source = " + ".join(f"task.splits.{split}" for split in self.searched_splits)
        if self.makes_pairs and self.pairs.min_problems > size:
            yield (
                "pairs.min_problems",
                f"is above {source} ({size}): no round can find that many problems (got {self.pairs.min_problems})",
            )


class TreeRecipe(Recipe, frozen=True):
    """svpo, mcts_dpo: a tree search over steps."""

    search: SearchConfig
    pairs: PairConfig = PairConfig()
    eval: GuidedEvalConfig = GuidedEvalConfig()

    @property
    def longest_solution(self) -> int:
        return max(self.search.max_depth * self.search.max_step_tokens, self.eval.max_tokens)

    def conflicts(self) -> Iterator[Conflict]:
        yield from super().conflicts()
        if self.pairs.min_visits > self.search.simulations:
            yield (
                "pairs.min_visits",
                f"is above search.simulations ({self.search.simulations}): no step can be visited that often "
                f"(got {self.pairs.min_visits})",
            )
        for widths in self.eval.sbs:
            if min(widths) < 1:
                yield "eval.sbs", f"beam widths must be at least 1 (got {list(widths)})"
        yield from _repeated("eval.sbs", [list(widths) for widths in self.eval.sbs])


class SvpoRecipe(TreeRecipe, frozen=True):
    """SVPO (arXiv 2406.10858)."""

    method: Literal["svpo"] = "svpo"
    search: MctsConfig = MctsConfig()
    train: EpochsConfig = EpochsConfig()
    value: ValueConfig = ValueConfig()

    @property
    def has_fits(self) -> bool:
        """Whether value heads are fitted, or held against a fit, in the run's rounds."""
        return self.train.objective == "svpo"

    @property
    def has_first_values(self) -> bool:
        """Whether policy 0 gets a value head, fitted to samples, before the first search."""
        return self.has_fits and self.value.fit and self.value.problems > 0 and self.rounds > 0

    def conflicts(self) -> Iterator[Conflict]:
        yield from super().conflicts()
        yield from _repeated("value.layers", self.value.layers)
        yield from _repeated("value.pools", self.value.pools)


class MctsDpoRecipe(TreeRecipe, frozen=True):
    """MCTS-DPO (arXiv 2405.00451)."""

    method: Literal["mcts_dpo"] = "mcts_dpo"
    search: EpisodeConfig = EpisodeConfig()
    train: TrainConfig = TrainConfig()
    online: OnlineConfig = OnlineConfig()

    @property
    def keeps_rationales(self) -> bool:
        return self.search.inject_reference

    @property
    def self_evaluation(self) -> SelfEvaluationConfig | None:
        return self.search.self_evaluation

    def no_first_search(self) -> str | None:
        if self.online.enabled:
            return "it searches and trains by turns (online.enabled), so its trees already follow from its training"
        return None


class DpoStRecipe(Recipe, frozen=True):
    """DPO-ST (arXiv 2407.18248)."""

    method: Literal["dpo_st"] = "dpo_st"
    pairs: FewestPairsConfig = FewestPairsConfig()
    train: EpochsConfig = EpochsConfig()
    eval: EvalConfig = EvalConfig()
    self_training: SelfTrainingConfig = SelfTrainingConfig()

    @property
    def searched_splits(self) -> tuple[str, ...]:
        return ("labelled", "train")

    @property
    def retrains_base(self) -> bool:
        return True

    @property
    def makes_pairs(self) -> bool:
        return self.self_training.pseudo_labels and self.self_training.dpo

    @property
    def longest_solution(self) -> int:
        return max(self.self_training.max_tokens, self.eval.max_tokens)

    def no_first_search(self) -> str | None:
        if not self.self_training.pseudo_labels:
            return "it samples nothing (self_training.pseudo_labels is false)"
        if not self.self_training.dpo:
            return "it samples nothing for preferences (self_training.dpo is false)"
        return None

    def conflicts(self) -> Iterator[Conflict]:
        yield from super().conflicts()
        if not self.warmup.epochs:
            yield (
                "warmup.epochs",
                "must be at least 1: dpo_st starts from SFT on the labelled problems and repeats it in every round "
                "(got 0)",
            )


RECIPES: dict[str, type[Recipe]] = {"svpo": SvpoRecipe, "mcts_dpo": MctsDpoRecipe, "dpo_st": DpoStRecipe}
DEFAULT_METHOD = "svpo"
SECTIONS = (
    "name", "method", "seed", "rounds", "model", "task", "engine", "warmup", "search", "self_training", "pairs",
    "train", "value", "online", "eval", "budget",
)  # fmt: skip
"""The order in which a recipe is written."""
