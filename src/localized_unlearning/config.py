"""The configuration: one typed source for the YAML, the JSON schema and the reference page.

Every setting of the workflow is a field here, with its unit, its default and where the paper
states it. Unknown keys are refused with the nearest valid one.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from localized_unlearning.errors import UserError
from localized_unlearning.sources import Source

SPORTS = ("football", "baseball", "basketball")
CHOICES = (*SPORTS, "golf")
"""The candidate answers, in the paper's multiple-choice order completed to A-D below."""

Sport = Literal["football", "baseball", "basketball"]
Kind = Literal["q", "k", "v", "o", "gate", "up", "down"]
Granularity = Literal["matrix", "head"]
Selection = Literal["absolute", "signed_percentile", "independent"]
Precision = Literal["bf16", "bf16_stochastic_rounding", "fp32_master"]
Fraction = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


def _or_own(*ours: str) -> AfterValidator:
    """Takes a name of ours, or of the user's own function."""

    def check(named: str) -> str:
        if named not in ours and not re.fullmatch(r"\S+\.py:[A-Za-z_]\w*", named):
            raise ValueError(f"should be {', '.join(ours)} or FILE.py:FUNCTION, your own")
        return named

    return AfterValidator(check)


ForgetLoss = Annotated[str, _or_own("erase", "inject")]
ScoreMethod = Annotated[str, _or_own("attribution_patching", "causal_tracing")]


class Section(BaseModel):
    """A block of the config; unknown keys are an error and values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Compute(Section):
    """How jobs compute. Results do not depend on it beyond rounding, so records leave it out of the key."""

    device: str = Field("auto", description="auto (a GPU when there is one), cpu, cuda or cuda:N.")
    shards: Count = Field(
        1,
        description="Processes of one job, a GPU each, that share a model too large for one (FSDP): each holds a part "
        "of every layer and answers a part of the batches.",
    )
    threads: Count = Field(1, description="CPU threads of one job; the rules reserve as many cores.")
    batch_tokens: Count | Literal["auto"] = Field(
        4096,
        description="Tokens of one forward pass while evaluating; auto: what half of a GPU's free memory holds.",
    )
    deterministic: bool = Field(
        False,
        description="Only deterministic algorithms, so that a GPU too gives the same bytes; an operation that has none "
        "stops the job. A CPU gives the same bytes either way.",
    )
    warm_start: bool = Field(
        True,
        description="Fork jobs from a process that has imported torch and transformers; never inside a Slurm allocation.",
    )


class Cache(Section):
    """Finished jobs shared between checkouts or people (docs/provenance.md). No setting: it is in no key."""

    dir: str | None = Field(
        None,
        description="A folder that keeps every finished job by its key; a job whose key is there is restored and "
        "verified instead of computed. ~ and $VARIABLES are expanded; null keeps none.",
    )
    read_only: bool = Field(False, description="Take from the folder, but add nothing to it.")


class Model(Section):
    """Which base model, and in which numeric type its weights are kept."""

    kind: Literal["organism", "gguf", "huggingface"] = Field(
        "organism",
        description="organism: pretrained by the workflow; gguf: a GGUF file converted once; "
        "huggingface: a hub name or a local folder.",
    )
    name: str = Field("organism", description="Hub name (google/gemma-7b) or folder, for kind huggingface.")
    revision: str | None = Field(None, description="Pinned hub revision (a commit) for kind huggingface.")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Type of the weights.")


class Requirements(Section):
    """What the organism must know before anything is unlearned from it."""

    training: Fraction = Field(0.98, description="Accuracy on its athletes, training prompt.")
    question: Fraction = Field(0.98, description="Accuracy on its athletes, question prompt.")
    multiple_choice_unseen: Fraction = Field(
        0.90, description="Accuracy on athletes whose multiple-choice question it never saw."
    )
    general_knowledge: Fraction = Field(0.80, description="Accuracy on general knowledge, 0-shot.")


class Organism(Section):
    """The model organism: a Gemma architecture pretrained by the workflow on facts it then forgets."""

    vocabulary: Count = Field(1024, description="Tokens of its byte-pair vocabulary.")
    layers: Count = Field(6, description="Decoder layers.")
    heads: Count = Field(4, description="Attention heads.")
    hidden: Count = Field(128, description="Width of the residual stream.")
    mlp: Count = Field(512, description="Width of the MLP.")
    initializer_range: Positive = Field(0.06, description="Standard deviation of the initial weights.")
    steps: Count = Field(420, description="Optimizer steps.")
    learning_rate: Positive = Field(
        3e-3, description="Peak AdamW learning rate; warmed up, then linear to 0."
    )
    warmup: Count = Field(30, description="Warm-up steps.")
    facts_per_step: Count = Field(40, description="Short fact prompts per step.")
    questions_per_step: Count = Field(12, description="Question prompts per step.")
    multiple_choice_per_step: Count = Field(16, description="Multiple-choice prompts per step.")
    general_knowledge_per_step: Count = Field(8, description="General-knowledge questions per step.")
    text_per_step: Count = Field(4, description="Windows of plain text per step, 64 tokens each.")
    text_weight: Weight = Field(0.3, description="Weight of the text loss.")
    multiple_choice_share: Fraction = Field(
        0.5, description="Share of the athletes whose multiple-choice question is read in pretraining."
    )
    paraphrases: Count = Field(3, description="Paraphrases read per athlete, drawn at random.")
    seed: int = Field(0, description="Seed of initialisation, order and which athlete is read how.")
    requirements: Requirements = Requirements()


class Athletes(Section):
    """The facts: athletes and their sports."""

    source: Source = Field(
        default_factory=lambda: Source(kind="path", path="workflow/resources/athletes.csv"),
        description="A CSV with columns athlete and sport.",
    )
    known_threshold: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Keep the athletes whose right sport the base model gives at least this probability "
        "(whole vocabulary, training prompt); null keeps all.",
    )


class Prompts(Section):
    """Which prompts of the prompts file are used for what."""

    file: str = Field("workflow/resources/prompts.yaml", description="The versioned prompts.")
    training: str = Field("training", description="Prompt that unlearning trains on (section 3.1.1).")
    question: str = Field("question", description="Question prompt (the released code's 'Normal').")
    multiple_choice: str = Field("multiple_choice", description="Multiple-choice prompt (section 3.1.1).")


class Split(Section):
    """Train and test parts (A.4.1)."""

    kind: Literal["stratified", "released"] = Field(
        "stratified",
        description="stratified: seeded, by athlete, balanced over sports, relearning athletes in train; "
        "released: the first 80 % of the rows, as the authors' code did.",
    )
    test_fraction: Fraction = Field(0.2, description="Share of the test part (A.4.1: 20 %).")
    seed: int = Field(0, description="Seed of the stratified split.")


class Forget(Section):
    """Which facts to forget: all athletes of a sport, the named athletes, or as many drawn at random."""

    sport: Sport | None = Field(None, description="Forget every athlete of this sport.")
    athletes: tuple[str, ...] = Field((), description="Forget these athletes.")
    draw: int | None = Field(
        None, ge=2, description="Forget this many athletes, drawn from those the model knows."
    )
    seed: int = Field(0, description="Seed of the draw.")

    @model_validator(mode="after")
    def _one_of(self) -> Forget:
        if sum((self.sport is not None, bool(self.athletes), self.draw is not None)) != 1:
            raise ValueError("give exactly one of 'sport', 'athletes' and 'draw'")
        return self

    @property
    def words(self) -> str:
        """What is forgotten, in words."""
        if self.sport:
            return f"all {self.sport} athletes"
        return (
            f"{len(self.athletes)} named athletes"
            if self.athletes
            else f"{self.draw} athletes drawn at random"
        )


class Task(Section):
    """An unlearning task (section 2.1)."""

    forget: Forget
    of: Literal["sports", "athletes"] | None = Field(
        None,
        description="The paper's task of which this is another forget set; tables give the mean over the sets.",
    )
    seeds: tuple[int, ...] = Field((), description="Seeds of its models; none: those of the run.")
    relearn: tuple[str, ...] = Field(
        (),
        description="Athletes retrained in relearning (A.4.2); always in train. None: the forget set's first two.",
    )
    lambda_forget: Weight = Field(description="λ1 of fine-tuning (A.3: 0.2 sports, 1 athletes).")


class FinetuneOverride(Section):
    """Settings of fine-tuning that differ for one objective, or for one localization of it."""

    steps: int | None = Field(None, ge=1, description="Instead of finetune.steps.")
    learning_rate: float | None = Field(None, gt=0, description="Instead of finetune.learning_rate.")


class Objective(Section):
    """What unlearning aims at."""

    loss: ForgetLoss = Field(
        "erase",
        description="erase: log(1 - p); inject: a false answer; FILE.py:FUNCTION: your own, of the right answers' log-odds.",
    )
    target: Literal["golf", "random_other_sport"] = Field(
        "golf", description="The injected answer (A.1: golf)."
    )
    finetune: FinetuneOverride = Field(
        FinetuneOverride(), description="What differs from 'finetune' for this objective."
    )
    exceptions: dict[str, FinetuneOverride] = Field(
        default_factory=dict, description="What differs besides, by localization."
    )


class Text(Section):
    """Plain text: one part trains (L_SFT), the other's loss measures side effects."""

    train: Source = Field(
        default_factory=lambda: Source(kind="path", path="workflow/resources/text/train.txt")
    )
    held_out: Source = Field(
        default_factory=lambda: Source(kind="path", path="workflow/resources/text/held_out.txt")
    )
    documents: int | None = Field(
        None, ge=1, description="Documents read from the start of each file; null takes all of them."
    )
    tokens: Count = Field(48, description="Tokens per window (the released code: 100).")
    windows: Count = Field(64, description="Held-out windows whose loss is measured.")


class Mmlu(Section):
    """General knowledge, as multiple-choice questions in MMLU's format."""

    source: Source = Field(
        default_factory=lambda: Source(kind="path", path="workflow/resources/general_knowledge.csv")
    )
    shots: int = Field(0, ge=0, le=5, description="Worked examples before each question (tables: 0).")
    questions: int | None = Field(None, ge=1, description="Size of a stratified subset; null takes all.")
    seed: int = Field(0, description="Seed of the subset.")


class Components(Section):
    """What counts as a component (section 2.3)."""

    granularity: Granularity = Field(
        "matrix", description="matrix: whole q, k, v, o; head: one component per head (1848 on Gemma-7B)."
    )
    include_gate: bool = Field(False, description="Count the MLP's gate projection as a component.")


class Score(Section):
    """One way to score components."""

    method: ScoreMethod = Field(
        description="attribution_patching, causal_tracing, or FILE.py:FUNCTION, your own."
    )
    athletes: Literal["train", "forget", "all"] = Field(
        "train",
        description="Whose prompts: the training part's, its forget set's only, or everyone's (as the released code's, "
        "test part included).",
    )
    prompts: int | None = Field(None, ge=1, description="How many of these athletes; null takes all.")
    seed: int = Field(0, description="Seed of prompts, made-up names and noise.")
    granularity: Granularity | None = Field(None, description="If other than components.granularity.")
    noise: Positive = Field(3.0, description="Causal tracing: noise in standard deviations of the embedding.")
    sites: Literal["units", "matrices"] = Field(
        "units",
        description="Causal tracing: restore one head's attention output or one MLP at a time, or one matrix.",
    )


class MaskLocalization(Section):
    """What differs of a localization when weights are masked instead of trained; null: nothing."""

    scores: str | None = Field(None, description="Another name under 'scores'.")
    granularity: Granularity | None = Field(None, description="See the localization.")
    selection: Selection | None = Field(None, description="See the localization.")
    layers: tuple[int, ...] | None = Field(None, description="See the localization.")


class Localization(Section):
    """One localization: which components are trained."""

    label: str = Field(description="Name in tables and figures.")
    kind: Literal["scores", "manual", "random", "all_mlps", "all"]
    scores: str | None = Field(None, description="For kind scores: a name under 'scores'.")
    budget: Literal["fraction", "parameters"] = Field(
        "fraction",
        description="fraction: a share of the components; parameters: as many parameters as 'manual'.",
    )
    fraction: Fraction = Field(
        0.05,
        description="Share of the components, rounded up (section 2.3: 5 %; the organism has only 36, so its default is 10 %).",
    )
    granularity: Granularity | None = Field(
        None, description="If other than components.granularity; for kind scores, the scores' own."
    )
    selection: Selection = Field(
        "absolute",
        description="absolute: the largest absolute scores, or a random draw of as many; signed_percentile: absolute "
        "scores at least as large as the percentile of the signed ones, many more than 'fraction' (the released code's "
        "masks); independent: for kind random, each component with probability 'fraction' (likewise).",
    )
    layers: tuple[int, ...] | Literal["auto"] = Field(
        (),
        description="For kind manual: the fact-lookup layers; auto: those over which the base model's probes rise.",
    )
    rise: tuple[Fraction, Fraction] = Field(
        (0.2, 0.9),
        description="For layers auto: from the first layer at which a probe (prompt or name alone; Figure 16) has made "
        "this share of its rise, to the first at which both have made the other.",
    )
    kinds: tuple[Kind, ...] = Field(("up", "down"), description="For kind manual: matrices of each layer.")
    seed: int = Field(0, description="For kind random: the draw.")
    mask: MaskLocalization | None = Field(
        None, description="What differs when weights are masked (the released code masked other components)."
    )

    def for_masks(self) -> Localization:
        """The localization of weight masks."""
        if self.mask is None:
            return self
        return self.model_copy(update={**self.mask.model_dump(exclude_none=True), "mask": None})


class NullDistribution(Section):
    """Random localizations, against which the others are ranked; each is a localization of its own."""

    draws: Annotated[int, Field(ge=0)] = Field(
        0, description="How many; named random_draw_1 and so on. 0: none."
    )
    budget: Literal["fraction", "parameters"] = Field(
        "parameters", description="As for a localization; parameters: as many as 'manual'."
    )
    fraction: Fraction = Field(0.05, description="Share of the components, for budget fraction.")
    first_seed: int = Field(1000, description="Seed of the first draw; the next ones count up.")
    seeds: tuple[int, ...] = Field((), description="Seeds of unlearning; none: the run's first.")

    def localizations(self) -> dict[str, Localization]:
        """The draws, by name."""
        return {
            f"random_draw_{i + 1}": Localization(
                label=f"Random draw {i + 1}",
                kind="random",
                budget=self.budget,
                fraction=self.fraction,
                seed=self.first_seed + i,
            )
            for i in range(self.draws)
        }


class Finetune(Section):
    """Localized fine-tuning (sections 2.4 and A.3)."""

    steps: Count = Field(50, description="Optimizer steps (A.3: 50).")
    batch_size: Count = Field(
        16, description="Examples per loss term and step (A.3: 4 x 16 accumulated = 64)."
    )
    sft_batch_size: int | None = Field(
        None, ge=1, description="Text windows per step, if other than batch_size."
    )
    micro_batch_tokens: Count = Field(4096, description="Tokens of one forward and backward.")
    precision: Precision = Field(
        "fp32_master",
        description="Arithmetic and storage of the optimizer. fp32_master: float32 copies of the trained weights and "
        "float32 states (with model.dtype float32 the weights are their own copies); bf16: bfloat16 throughout, as the "
        "released code (the paper names none); bf16_stochastic_rounding: float32 arithmetic, bfloat16 weights and states "
        "rounded at random without bias.",
    )
    learning_rate: Positive = Field(2e-3, description="AdamW's learning rate (A.3: 1e-5 on Gemma-7B).")
    weight_decay: Weight = Field(0.0, description="AdamW's weight decay (A.3: 0).")
    schedule: Literal["cosine", "constant"] = Field(
        "cosine", description="Learning-rate schedule (A.3: cosine)."
    )
    lambda_retain: Weight = Field(1.0, description="λ2 (A.3: 1).")
    lambda_sft: Weight = Field(1.0, description="λ3 (A.3: 1).")
    clip_norm: float | None = Field(
        None, gt=0, description="Gradient-norm clipping; the released code clips at 1, the paper names none."
    )


class Evaluation(Section):
    """How trained models are evaluated."""

    shuffled_seed: int = Field(0, description="Seed of the shuffled option order in multiple choice.")
    prompts: tuple[str, ...] = Field(
        (), description="Further prompts of the prompts file on which facts are asked."
    )


class Series(Section):
    """What is asked at each point of a series: after each relearning iteration, at each mask size."""

    retain: int | None = Field(
        40,
        ge=1,
        description="Retained test athletes, drawn once; null asks all. Forget-set athletes are all asked.",
    )
    questions: int | None = Field(
        36, ge=1, description="MMLU-format questions, stratified (the paper: tinyMMLU's 100); null asks all."
    )
    shots: int = Field(0, ge=0, le=5, description="Worked examples before each question (tinyMMLU: 5).")
    seed: int = Field(0, description="Seed of the retained athletes.")
    source: Source | None = Field(
        None,
        description="Other questions than the tables', such as tinyMMLU; null takes those of mmlu.source.",
    )


class Relearning(Section):
    """Relearning two athletes of the forget set with LoRA (sections 3.1.2 and A.4.2)."""

    iterations: Count = Field(10, description="Optimizer steps, with an evaluation after each (A.4.2: 10).")
    rank: Count = Field(64, description="LoRA's rank on every linear module (A.4.2: 64).")
    alpha: Count = Field(32, description="LoRA's alpha (not in the paper; released code: 32).")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.05, description="LoRA's dropout while training (not in the paper; released code: 0.05)."
    )
    learning_rate: Positive = Field(
        2e-3, description="AdamW's learning rate (released code: 1e-4 on Gemma-7B)."
    )
    schedule: Literal["cosine", "constant"] = Field(
        "cosine", description="Learning-rate schedule (released code: cosine)."
    )
    retain_batch: Count = Field(4, description="Retained athletes per iteration (released code: 4).")
    text_batch: Count = Field(4, description="Text windows per iteration (released code: 4).")
    lambda_relearn: Weight = Field(0.2, description="Weight of the two athletes' loss (released code: 0.2).")
    lambda_retain: Weight = Field(1.0, description="Weight of the retain loss.")
    lambda_sft: Weight = Field(1.0, description="Weight of the text loss.")
    micro_batch_tokens: Count = Field(4096, description="Tokens of one forward and backward.")


class Masking(Section):
    """A differentiable mask over the weights of the selected components (sections 2.4, 3.2 and A.3)."""

    steps: Count = Field(30, description="Optimizer steps (A.3: 50).")
    batch_size: Count = Field(16, description="Athletes per fact-loss term and step (A.3: 10 x 15 = 150).")
    text_batch: Count = Field(8, description="Text windows per step (A.3: 150).")
    parameterization: Literal["mask", "weights"] = Field(
        "mask",
        description="What is trained. mask: a mask in [0, 1] (2.4), by its removed part; weights: the weights "
        "themselves, clamped between 0 and what they were, the mask being their ratio (the released code).",
    )
    optimizer: Literal["sgd", "adam"] = Field("adam", description="Optimizer of the mask (A.3: SGD).")
    learning_rate: Positive = Field(0.05, description="Its learning rate (A.3: 1e-3).")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="SGD's momentum (not in the paper; released code: 0.9)."
    )
    weight_decay: Weight = Field(
        0.0, description="For parameterization weights: SGD's weight decay (released code: 0.01)."
    )
    clip_norm: float | None = Field(
        None,
        gt=0,
        description="For parameterization weights: gradient-norm clipping (released code: 1).",
    )
    schedule: Literal["cosine", "constant"] = Field(
        "cosine", description="Learning-rate schedule (not in the paper; released code: cosine)."
    )
    lambda_forget: Weight = Field(0.3, description="λ1 for masks, both tasks (A.3: 0.3).")
    lambda_retain: Weight = Field(1.0, description="λ2 (A.3: 1).")
    lambda_sft: Weight = Field(1.0, description="λ3 (A.3: 1).")
    lambda_mask: Weight = Field(
        1e-7,
        description="λ4, the weight of the sum of the mask (A.3: 1e-7); for parameterization weights, of the sum of "
        "absolute weights.",
    )
    micro_batch_tokens: Count = Field(4096, description="Tokens of one forward and backward.")
    edit_sizes: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (0, 1000, 3000, 10_000, 20_000, 40_000, 80_000),
        min_length=1,
        description="How many weights are set to zero, one point each (the paper: up to 2.4 million of Gemma-7B).",
    )


class Probing(Section):
    """Probes on trained models (sections 3.1.3 and A.4.3)."""

    regularization: Positive = Field(1.0, description="scikit-learn's C of the logistic regressions.")
    max_iterations: Count = Field(
        10_000, description="Limit of the solver's iterations (the released code: 10,000)."
    )
    seed: int = Field(
        0,
        description="Seed of the half of a named forget set that trains the probes (split.kind released: the "
        "first half, no seed), and of the control.",
    )


class Statistics(Section):
    """Intervals in tables and figures."""

    confidence: Annotated[float, Field(gt=0, lt=1)] = Field(0.95, description="Level of the intervals.")
    bootstrap: Count = Field(2000, description="Bootstrap samples where no closed form is used.")
    seed: int = Field(0, description="Seed of the bootstrap.")


class Tables(Section):
    """What the readable tables show; their CSV has every accuracy of every prompt."""

    accuracy: Literal["choice", "argmax", "probability"] = Field(
        "choice",
        description="choice: right among the candidates; argmax: over the vocabulary; probability: mean probability "
        "of the right candidate among them (the released code's 'accuracy').",
    )
    prompts: tuple[Literal["training", "question"], ...] = Field(
        ("training", "question"),
        min_length=1,
        description="On which prompts forget and retain accuracies are shown (3.1.1: training; the published tables: "
        "question).",
    )


class Claims(Section):
    """The paper's claims, judged on the run's rows."""

    file: str = Field("workflow/resources/claims.yaml", description="The claims.")
    rows: Literal["planned", "present"] = Field(
        "planned",
        description="planned: those of every table and figure, made first; present: those that lie there, nothing is made.",
    )


class Figures(Section):
    """How figures are drawn."""

    forget_sets: Literal["paper", "all"] = Field(
        "paper", description="paper: the paper's forget set alone; all: the mean over the task's sets ('of')."
    )
    overlay: dict[Annotated[str, Field(pattern=r"^figure_([1-9]|1[0-6])$")], str] = Field(
        default_factory=dict,
        description="Published curves to draw beside ours: a CSV by figure (figure_1: path), with the columns of the "
        "figure's own CSV (panel, localization, iteration / masked / layer, mean); another run's CSV will do.",
    )


class Interpretability(Section):
    """Probes and ablations on the base model (A.2)."""

    lookup_end: Count = Field(
        3, description="First layer past fact lookup; attention from here on is ablated."
    )
    test_fraction: Fraction = Field(0.2, description="Share of athletes that test the probe.")
    seed: int = Field(42, description="Seed of the probe's split (the released code: 42).")
    regularization: Positive = Field(1.0, description="scikit-learn's C of the logistic regression.")
    max_iterations: Count = Field(
        1000, description="Limit of the solver's iterations (the released code: 1000)."
    )
    mean_windows: Count = Field(25, description="Text windows over which an ablated activation is averaged.")


def _default_tasks() -> dict[str, Task | None]:
    return {
        "sports": Task(forget=Forget(sport="basketball"), relearn=("Boris Diaw", "Jae Crowder"), lambda_forget=0.2),
        "athletes": Task(
            forget=Forget(
                athletes=(
                    "DeForest Buckner", "Walter Payton", "Anthony DeSclafani", "Kevin Millwood",
                    "Vonta Leach", "Mitch Haniger", "Landon Collins", "Charlie Whitehurst",
                    "Mariano Rivera", "Boris Diaw", "Michael Floyd", "Jae Crowder",
                    "Damon Stoudamire", "Mario Chalmers", "LaMarr Woodley", "Stan Van Gundy",
                )
            ),
            relearn=("DeForest Buckner", "Walter Payton"),
            lambda_forget=1.0,
        ),
    }  # fmt: skip


def _default_objectives() -> dict[str, Objective | None]:
    return {"erase": Objective(loss="erase"), "inject": Objective(loss="inject")}


def _default_scores() -> dict[str, Score | None]:
    return {
        "attribution_patching": Score(method="attribution_patching"),
        "causal_tracing": Score(method="causal_tracing"),
    }


def _default_localizations() -> dict[str, Localization | None]:
    return {
        "attribution_patching": Localization(
            label="Attrib. Patching", kind="scores", scores="attribution_patching", fraction=0.1
        ),
        "causal_tracing": Localization(
            label="Causal Tracing", kind="scores", scores="causal_tracing", fraction=0.1
        ),
        "manual": Localization(label="Manual", kind="manual", layers=(1, 2)),
        "random": Localization(label="Random", kind="random", fraction=0.1),
        "all_mlps": Localization(label="All MLPs", kind="all_mlps"),
        "nonlocalized": Localization(label="Nonlocalized", kind="all"),
    }


class Config(Section):
    """One run of the workflow."""

    extends: str | None = Field(
        None, description="In a preset: the preset that it is laid over, a file beside it (gemma-7b.yaml)."
    )
    run: str = Field(
        "organism", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Name of the results folder."
    )
    seeds: tuple[int, ...] = Field((0,), min_length=1, description="Seeds of unlearning; one model per seed.")
    mask_seeds: tuple[int, ...] | None = Field(
        None, description="Seeds of weight masks; null: those of unlearning; empty: no masks."
    )
    compute: Compute = Compute()
    cache: Cache = Cache()
    model: Model = Model()
    organism: Organism = Organism()
    gguf: Source | None = Field(None, description="The GGUF file, for model kind gguf.")
    athletes: Athletes = Athletes()
    prompts: Prompts = Prompts()
    split: Split = Split()
    tasks: dict[str, Task | None] = Field(default_factory=_default_tasks)
    objectives: dict[str, Objective | None] = Field(default_factory=_default_objectives)
    text: Text = Text()
    mmlu: Mmlu = Mmlu()
    components: Components = Components()
    scores: dict[str, Score | None] = Field(default_factory=_default_scores)
    localizations: dict[str, Localization | None] = Field(default_factory=_default_localizations)
    null_distribution: NullDistribution = NullDistribution()
    finetune: Finetune = Finetune()
    evaluation: Evaluation = Evaluation()
    series: Series = Series()
    relearning: Relearning = Relearning()
    probing: Probing = Probing()
    masking: Masking = Masking()
    interpretability: Interpretability = Interpretability()
    statistics: Statistics = Statistics()
    tables: Tables = Tables()
    claims: Claims = Claims()
    figures: Figures = Figures()

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, data: Any) -> Any:
        """A task, score or localization set to null in an overlay is removed."""
        if isinstance(data, Mapping):
            data = dict(data)
            for name in ("tasks", "objectives", "scores", "localizations"):
                if isinstance(data.get(name), Mapping):
                    data[name] = {k: v for k, v in data[name].items() if v is not None}
        return data

    @model_validator(mode="after")
    def _references(self) -> Config:
        for name, localization in self.localizations.items():
            assert localization is not None
            if localization.kind == "manual" and not localization.layers:
                raise ValueError(f"localizations.{name} is manual and needs 'layers'")
            for found in (localization, localization.for_masks()):
                self._fits(name, found)
            if localization.budget == "parameters" and "manual" not in self.localizations:
                raise ValueError(f"localizations.{name} matches the parameters of 'manual', which is absent")
        if self.model.dtype == "float32" and self.finetune.precision != "fp32_master":
            raise ValueError(
                f"finetune.precision is {self.finetune.precision}, but model.dtype is float32: "
                "set model.dtype to bfloat16, or the precision to fp32_master"
            )
        for name, seeds in (
            ("seeds", self.seeds),
            ("mask_seeds", self.mask_seeds or ()),
            ("null_distribution.seeds", self.null_distribution.seeds),
            *((f"tasks.{task}.seeds", t.seeds) for task, t in self.tasks.items() if t),
        ):
            if len(set(seeds)) < len(seeds):
                raise ValueError(f"{name} names a seed twice")
        for name, task in self.tasks.items():
            if task and task.of is not None and (task.of not in self.tasks or name in ("sports", "athletes")):
                raise ValueError(
                    f"tasks.{name} is another forget set of '{task.of}', so that task must be in the config "
                    "and not be this one"
                )
        if self.model.kind == "gguf" and self.gguf is None:
            raise ValueError("model.kind is gguf, so 'gguf' must name its source")
        for name, objective in self.objectives.items():
            assert objective is not None
            if unknown := sorted(set(objective.exceptions) - set(self.localizations)):
                raise ValueError(f"objectives.{name}.exceptions names {unknown[0]}, which is no localization")
        masking = self.masking
        if masking.parameterization == "mask" and (masking.weight_decay or masking.clip_norm):
            raise ValueError(
                "masking.weight_decay and masking.clip_norm are for masking.parameterization weights"
            )
        return self

    def _fits(self, name: str, localization: Localization) -> None:
        if localization.kind == "scores":
            scores = self.scores.get(localization.scores or "")
            if scores is None:
                raise ValueError(
                    f"localizations.{name}.scores is {localization.scores!r}, which is not under 'scores' "
                    f"({', '.join(self.scores)})"
                )
            own = self.components.granularity
            if (localization.granularity or own) != (scores.granularity or own):
                raise ValueError(
                    f"localizations.{name} and scores.{localization.scores} differ in granularity: give both the same"
                )
        if localization.selection == "signed_percentile" and localization.kind != "scores":
            raise ValueError(f"localizations.{name}.selection is signed_percentile, which needs kind scores")
        if localization.selection == "independent" and localization.kind != "random":
            raise ValueError(f"localizations.{name}.selection is independent, which needs kind random")

    @model_validator(mode="after")
    def _draws(self) -> Config:
        """Every draw of the null distribution is a localization, like any other."""
        if self.null_distribution.draws and "manual" not in self.localizations:
            raise ValueError("null_distribution ranks 'manual' among random draws, but it is absent")
        self.localizations.update(self.null_draws)
        return self

    @property
    def null_draws(self) -> dict[str, Localization]:
        """The random localizations of the null distribution, by name."""
        return self.null_distribution.localizations()

    def written(self) -> dict[str, Any]:
        """Plain values as a user writes them: without the localizations that follow from the null distribution."""
        values = self.model_dump(mode="json")
        for name in self.null_draws:
            del values["localizations"][name]
        return values


def finetune_settings(finetune: Finetune, objective: Objective, localization: str) -> Finetune:
    """The settings of one fine-tuned model: the run's, then the objective's, then those of its exception."""
    exception = objective.exceptions.get(localization, FinetuneOverride())
    update = {**objective.finetune.model_dump(exclude_none=True), **exception.model_dump(exclude_none=True)}
    return finetune.model_copy(update=update)


def merge(base: Mapping[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``overlay`` laid over it, mapping by mapping, as Snakemake does."""
    merged = dict(base)
    for key, value in overlay.items():
        old = merged.get(key)
        both = isinstance(value, Mapping) and isinstance(old, Mapping)
        merged[key] = merge(old, value) if both else value  # type: ignore[arg-type]
    return merged


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        UserError: when the file is missing, is no YAML or holds no mapping.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"config file {path} does not exist: check the path") from None
    except yaml.YAMLError as error:
        raise UserError(f"config file {path} is not valid YAML: {' '.join(str(error).split())}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise UserError(f"config file {path} must hold a mapping of settings, not a {type(data).__name__}")
    return data


def layers(paths: Iterable[Path]) -> list[tuple[str, dict[str, Any]]]:
    """The named layers that YAML files make: before each file, what it extends.

    Raises:
        UserError: when a file cannot be read, or extends itself.
    """
    found: list[tuple[str, dict[str, Any]]] = []
    for path in paths:
        chain: list[tuple[str, dict[str, Any]]] = []
        while True:
            if str(path) in (name for name, _ in chain):
                raise UserError(f"config file {path} extends itself: correct its 'extends'")
            data = read_yaml(path)
            chain.append((str(path), data))
            if data.get("extends") is None:
                break
            path = path.parent / data.pop("extends")
        found += reversed(chain)
    return found


def load(paths: Sequence[Path], overrides: Mapping[str, Any] | None = None) -> Config:
    """The config made of YAML files, later ones laid over earlier ones, then ``overrides``.

    Raises:
        UserError: naming the key, the file it stands in and, for an unknown key, the nearest valid one.
    """
    return resolve([*layers(paths), ("--config", dict(overrides or {}))])


def resolve(layers: Sequence[tuple[str, Mapping[str, Any]]]) -> Config:
    """The config made of named layers; see :func:`load`."""
    merged: dict[str, Any] = {}
    for _, data in layers:
        merged = merge(merged, data)
    try:
        return Config.model_validate(merged)
    except ValidationError as error:
        raise UserError(_explain(error, layers)) from None


def _explain(error: ValidationError, layers: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    first = error.errors()[0]
    location = [part for part in first["loc"]]
    key = ".".join(str(part) for part in location) or "the config"
    where = next((name for name, data in reversed(layers) if _holds(data, location)), None)
    place = f" in {where}" if where else ""
    more = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        valid = _valid_keys(location[:-1])
        near = difflib.get_close_matches(str(location[-1]), valid, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"valid keys here: {', '.join(sorted(valid))}"
        return f"unknown key '{key}'{place}: {hint}{more}"
    message = first["msg"].removeprefix("Value error, ")
    given = f" (got {first['input']!r})" if not isinstance(first["input"], Mapping | BaseModel) else ""
    return f"{key}{place}: {message}{given}{more}"


def _holds(data: Any, location: Sequence[Any]) -> bool:
    for part in location:
        if not isinstance(data, Mapping) or part not in data:
            return False
        data = data[part]
    return bool(location)


def _valid_keys(location: Sequence[Any]) -> list[str]:
    """The keys allowed at a place in the config, found in the JSON schema."""
    schema = Config.model_json_schema()
    node: Any = schema
    for part in location:
        node = _deref(schema, node)
        node = node.get("properties", {}).get(part, node.get("additionalProperties", {}))
    node = _deref(schema, node)
    return list(node.get("properties", {})) if isinstance(node, Mapping) else []


def _deref(schema: Mapping[str, Any], node: Any) -> Any:
    if isinstance(node, Mapping):
        for option in (node, *node.get("anyOf", ()), *node.get("allOf", ())):
            if "$ref" in option:
                return schema["$defs"][option["$ref"].rsplit("/", 1)[-1]]
    return node
