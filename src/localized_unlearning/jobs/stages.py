"""The workflow's stages: what each one reads, makes and is implemented by.

This table is the single description of a stage. The command line builds its options from it,
the Snakemake rules take their two provenance params from it, and the records name it. A stage's
function receives a :class:`Job` and writes every file in ``job.outputs``; the runner
(:mod:`localized_unlearning.workflow.runner`) publishes them atomically together with a record.

``settings`` lists the parts of the config that the stage may read, as dotted paths in which
``{task}`` and the like stand for the job's wildcards. Reading any other setting is an error, so
the recorded settings cannot miss one. ``compute`` (device, threads, batch sizes) is always
readable and never recorded as a setting, because results do not depend on it beyond rounding.
"""

from __future__ import annotations

from localized_unlearning.config.model import Organism
from localized_unlearning.jobs.collecting import COLLECTING
from localized_unlearning.jobs.job import Input, Stage, many, optional

PACKAGE = "localized_unlearning"

BASE = Input("base_model")
CHECK = Input("check")  # a gate: the base model is what later numbers take for granted
CARD = Input("card")  # a gate: the base model must have met its requirements
SPLIT = Input("split")
PROMPTS = Input("prompts")
DELTA = Input("delta", optional=True)  # absent for the base model itself
QUESTIONS = Input("mmlu")
TEXT = Input("text")
IMPORTS = many("imports")  # what a method's file imports from its own folder
CHECKPOINT = ("base_seed", "task", "objective", "localization", "seed")
MASKED = ("base_seed", "task", "localization", "seed")
WINDOWS = ("text.tokens", "text.documents")
LATER = ("facts_in", "requirements")
PRETRAINING = (
    *(f"organism.{name}" for name in Organism.model_fields if name not in LATER),
    "prompts",
    "mmlu.questions",
    "mmlu.seed",
    "athletes.relation",
)
"""What pretraining depends on, wherever facts are injected afterwards."""


DATA = (
    Stage(
        name="fetch",
        help="bring a file or folder from outside, and check its bytes",
        module="localized_unlearning.data.fetching",
        settings=("{source}",),
        outputs=("file",),
        wildcards=("source",),
        cached=False,  # a local copy may stand for the download; what is fetched has caches of its own
        online=True,
    ),
    Stage(
        name="counterfact",
        help="make facts and prompts of CounterFact, every fact with its own",
        module="localized_unlearning.data.counterfact",
        settings=("athletes.own_prompts",),
        inputs=(Input("source"), optional("questions")),
        outputs=("facts", "prompts"),
        wildcards=(),
    ),
    Stage(
        name="check_model",
        help="check the base model, and that every prompt fits it, before anything is computed",
        module="localized_unlearning.evaluation.suitability",
        function="check_model",
        settings=(
            "model.dtype",
            "athletes.relation",
            "prompts",
            "evaluation.prompts",
            "mmlu",
            "series",
            "text.tokens",
        ),
        inputs=(BASE, Input("athletes"), PROMPTS, QUESTIONS, optional("series")),
        outputs=("check", "longest"),
        wildcards=("base_seed",),
        gpu=True,
    ),
    Stage(
        name="known_facts",
        help="find out which facts the base model knows",
        module="localized_unlearning.evaluation.known_facts",
        function="known_facts",
        settings=("athletes.known_threshold", "athletes.relation", "prompts.training", "model.dtype"),
        inputs=(Input("athletes"), BASE, CHECK, PROMPTS),
        outputs=("known",),
        wildcards=("base_seed",),
        gpu=True,
    ),
    Stage(
        name="windows",
        help="tokenise the training text, once for all that train on it",
        module="localized_unlearning.data.windows",
        settings=WINDOWS,
        inputs=(BASE, TEXT),
        outputs=("windows",),
        wildcards=("base_seed",),
    ),
    Stage(
        name="split",
        help="split the known facts into train and test, forget and retain",
        module="localized_unlearning.data.splits",
        settings=("split", "tasks.{task}.forget", "tasks.{task}.relearn", "tasks.{task}.exclude"),
        inputs=(Input("known"), optional("earlier")),
        outputs=("split",),
        wildcards=("base_seed", "task"),
    ),
)

BASE_MODEL = (
    Stage(
        name="pretrain",
        help="pretrain the model organism",
        module="localized_unlearning.models.organism",
        settings=PRETRAINING,
        inputs=(Input("athletes"), PROMPTS, Input("general_knowledge"), TEXT),
        outputs=("model",),
        wildcards=("base_seed",),
    ),
    Stage(
        name="inject",
        help="teach the pretrained organism facts in chosen matrices, everything else frozen",
        module="localized_unlearning.models.injection",
        settings=(*PRETRAINING, "organism.facts_in"),
        inputs=(Input("pretrained"), Input("athletes"), PROMPTS, Input("general_knowledge")),
        outputs=("model",),
        wildcards=("base_seed",),
    ),
    Stage(
        name="gold",
        help="inject all facts but a task's forget set: the model that never learned it",
        module="localized_unlearning.models.injection",
        function="gold",
        settings=(*PRETRAINING, "organism.facts_in"),
        inputs=(
            Input("pretrained"),
            BASE,
            CARD,
            SPLIT,
            Input("athletes"),
            PROMPTS,
            Input("general_knowledge"),
        ),
        outputs=("delta",),
        wildcards=("base_seed", "task"),
    ),
    Stage(
        name="convert",
        help="convert a GGUF file to a standard model folder",
        module="localized_unlearning.models.gguf",
        inputs=(Input("gguf"),),
        outputs=("model",),
        wildcards=("base_seed",),
    ),
    Stage(
        name="download",
        help="bring the base model from the hub or a local folder",
        module="localized_unlearning.models.download",
        function="download",
        settings=("model",),
        inputs=(optional("folder"),),
        outputs=("model",),
        wildcards=("base_seed",),
        cached=False,  # a local folder is copied as it is; the hub has its own cache
        online=True,
    ),
    Stage(
        name="model_card",
        help="measure the base model and hold it to its requirements",
        module="localized_unlearning.evaluation.card",
        settings=(
            "model.kind",
            "model.dtype",
            "organism.requirements",
            "prompts",
            "evaluation.shuffled_seed",
            "mmlu",
            "statistics",
        ),
        inputs=(BASE, CHECK, optional("pretrained"), Input("known"), PROMPTS, QUESTIONS),
        outputs=("json", "markdown"),
        wildcards=("base_seed",),
        gpu=True,
    ),
)

LOCALIZATION = (
    Stage(
        name="score",
        help="score every component by one method",
        module="localized_unlearning.localization.scoring",
        function="score",
        settings=("scores.{scores}", "components", "prompts.training", "model.dtype"),
        inputs=(BASE, CARD, SPLIT, PROMPTS, optional("method"), IMPORTS, optional("names")),
        outputs=("scores",),
        wildcards=("base_seed", "task", "scores"),
        gpu=True,
    ),
    Stage(
        name="select",
        help="choose the components that a localization trains",
        module="localized_unlearning.localization.selecting",
        function="select",
        settings=("localizations.{localization}", "components", "organism.facts_in"),
        inputs=(BASE, optional("scores"), optional("manual"), optional("probes")),
        outputs=("selection",),
        wildcards=("base_seed", "task", "localization"),
    ),
    Stage(
        name="select_for_mask",
        help="choose the components that a weight mask covers, where they are others",
        module="localized_unlearning.localization.selecting",
        function="select_for_mask",
        settings=("localizations.{localization}", "components", "organism.facts_in"),
        inputs=(BASE, optional("scores"), optional("manual"), optional("probes")),
        outputs=("selection",),
        wildcards=("base_seed", "task", "localization"),
    ),
)

WEIGHTS = (
    Stage(
        name="select_weights",
        help="choose the single weights that a localization trains",
        module="localized_unlearning.localization.weight_selecting",
        function="select_weights",
        settings=(
            "localizations.{localization}",
            "scores.{scores}",
            "components",
            "prompts.training",
            "model.dtype",
        ),
        inputs=(BASE, CARD, SPLIT, PROMPTS, Input("method"), IMPORTS, optional("manual")),
        outputs=("selection", "weights"),
        wildcards=("base_seed", "task", "localization", "scores"),
        gpu=True,
    ),
    Stage(
        name="faithfulness",
        help="keep or ablate what a localization chooses, and read what is left of the answers",
        module="localized_unlearning.localization.faithfulness",
        function="measure",
        settings=(
            "localizations.{localization}",
            "faithfulness",
            "components",
            "prompts.training",
            "model.dtype",
        ),
        inputs=(BASE, CARD, SPLIT, PROMPTS, Input("selection"), optional("scores"), optional("names")),
        outputs=("faithfulness",),
        wildcards=("base_seed", "task", "localization"),
        gpu=True,
    ),
)

UNLEARNING = (
    Stage(
        name="finetune",
        help="train the chosen weights until the facts are gone",
        module="localized_unlearning.unlearning.finetune",
        settings=(
            "finetune",
            "tasks.{task}.lambda_forget",
            "objectives.{objective}",
            "prompts",
            *WINDOWS,
            "model.dtype",
        ),
        inputs=(
            BASE,
            CARD,
            SPLIT,
            Input("selection"),
            optional("weights"),
            PROMPTS,
            TEXT,
            Input("loss"),
            IMPORTS,
            optional("previous"),
        ),
        outputs=("delta", "history"),
        wildcards=CHECKPOINT,
        gpu=True,
    ),
    Stage(
        name="mask",
        help="train a mask over the chosen weights",
        module="localized_unlearning.unlearning.masking",
        function="mask",
        settings=("masking", "prompts.training", *WINDOWS, "model.dtype"),
        inputs=(BASE, CARD, SPLIT, Input("selection"), optional("weights"), PROMPTS, TEXT),
        outputs=("mask", "history"),
        wildcards=MASKED,
        gpu=True,
    ),
)


def _asked(name: str, help: str, module: str, settings: tuple[str, ...], inputs: tuple[Input, ...]) -> Stage:
    """A stage that reads a checkpoint's model and writes one row per item that it is asked about."""
    return Stage(
        name=name,
        help=help,
        module=f"{PACKAGE}.{module}",
        settings=(*settings, "model.dtype"),
        inputs=(BASE, CARD, *inputs),
        outputs=(name,),
        wildcards=CHECKPOINT,
        gpu=True,
        shares=True,
    )


EVALUATION = (
    _asked(
        "facts",
        "ask a model for the facts, in every configured prompt",
        "evaluation.facts",
        ("evaluation.prompts", "prompts"),
        (SPLIT, DELTA, PROMPTS),
    ),
    _asked(
        "multiple_choice",
        "ask a model for the facts by multiple choice",
        "evaluation.multiple_choice",
        ("evaluation.option_order", "evaluation.orders", "evaluation.shuffled_seed", "prompts"),
        (SPLIT, DELTA, PROMPTS),
    ),
    _asked(
        "mmlu",
        "ask a model general-knowledge questions in MMLU's format",
        "evaluation.knowledge",
        ("mmlu",),
        (DELTA, QUESTIONS),
    ),
    _asked(
        "text",
        "measure a model's loss on held-out plain text",
        "evaluation.text",
        (*WINDOWS, "text.windows"),
        (DELTA, TEXT),
    ),
    _asked(
        "teachers",
        "ask a model for the facts of pretraining, which unlearning should not touch",
        "evaluation.teachers",
        ("evaluation.shuffled_seed", "evaluation.orders", "prompts"),
        (SPLIT, DELTA, PROMPTS),
    ),
    Stage(
        name="sweep",
        help="ask a model again and again as ever more of its weights are edited",
        module="localized_unlearning.evaluation.sweep",
        function="sweep",
        settings=(
            "masking.edit_sizes",
            "series",
            "evaluation",
            "mmlu",
            "prompts",
            "measures.prompts",
            "model.dtype",
        ),
        inputs=(BASE, SPLIT, Input("mask"), PROMPTS, QUESTIONS),
        outputs=("facts", "multiple_choice", "mmlu"),
        wildcards=MASKED,
        gpu=True,
    ),
)

ATTACKS: tuple[Stage, ...] = (
    Stage(
        name="relearn",
        help="retrain a few of the forgotten facts and ask for the others",
        module="localized_unlearning.attacks.relearning",
        settings=(
            "relearning",
            "series",
            "evaluation",
            "mmlu",
            "prompts",
            "measures.prompts",
            *WINDOWS,
            "model.dtype",
        ),
        inputs=(BASE, SPLIT, Input("delta"), PROMPTS, QUESTIONS, TEXT),
        outputs=("facts", "multiple_choice", "mmlu"),
        wildcards=CHECKPOINT,
        gpu=True,
    ),
    Stage(
        name="probe",
        help="read the facts off a model's activations, layer by layer",
        module="localized_unlearning.attacks.probing",
        settings=("probing", "split.kind", "prompts.training", "model.dtype"),
        inputs=(BASE, CARD, SPLIT, DELTA, PROMPTS),
        outputs=("probes",),
        wildcards=CHECKPOINT,
        gpu=True,
        shares=True,
    ),
)

ATTACKS += (
    Stage(
        name="attack",
        help="try to bring back what a model unlearned",
        module="localized_unlearning.attacks.attack",
        settings=(
            "attacks.{attack}",
            "attacks.asked",
            "prompts",
            *WINDOWS,
            "model.dtype",
        ),
        inputs=(BASE, CARD, SPLIT, DELTA, PROMPTS, TEXT),
        outputs=("rows",),
        wildcards=(*CHECKPOINT, "attack"),
        gpu=True,
    ),
)

PLACED = (*PRETRAINING, "organism.facts_in", "question.places.{place}", "question.forget", "mmlu")

ATTACKS += (
    Stage(
        name="place",
        help="inject facts at one place, hold it to its requirements and grade the localizers by it",
        module="localized_unlearning.evaluation.places",
        settings=(
            *PLACED,
            "evaluation.shuffled_seed",
            "statistics",
        ),
        inputs=(Input("pretrained"), Input("athletes"), PROMPTS, Input("general_knowledge")),
        outputs=("rows",),
        wildcards=("base_seed", "place"),
    ),
    Stage(
        name="question",
        help="inject facts at one place, unlearn them by many selections and attack each",
        module="localized_unlearning.attacks.question",
        settings=(
            *PLACED,
            *(f"question.{name}" for name in ("draws", "disjoint", "budget", "learning_rates", "attacks")),
            "finetune",
            *WINDOWS,
        ),
        inputs=(Input("pretrained"), Input("athletes"), PROMPTS, Input("general_knowledge"), TEXT),
        outputs=("rows",),
        wildcards=("base_seed", "place"),
    ),
)

INTERPRETABILITY = (
    Stage(
        name="layer_probes",
        help="find the layers at which the base model's facts can be read",
        module="localized_unlearning.interpretability.layers",
        function="layer_probes",
        settings=("interpretability", "prompts", *WINDOWS, "model.dtype"),
        inputs=(BASE, Input("known"), PROMPTS, TEXT),
        outputs=("probes",),
        wildcards=("base_seed",),
        gpu=True,
    ),
    Stage(
        name="head_ablation",
        help="ablate the base model's attention heads one by one",
        module="localized_unlearning.interpretability.ablation",
        function="head_ablation",
        settings=("interpretability", "prompts.training", *WINDOWS, "model.dtype"),
        inputs=(BASE, Input("known"), PROMPTS, TEXT),
        outputs=("ablation",),
        wildcards=("base_seed",),
        gpu=True,
    ),
)

STAGES: dict[str, Stage] = {
    stage.name: stage
    for stages in (
        BASE_MODEL, DATA, INTERPRETABILITY, LOCALIZATION, WEIGHTS, UNLEARNING, EVALUATION, ATTACKS, COLLECTING
    )
    for stage in stages
}  # fmt: skip
