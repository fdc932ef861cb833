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

from localized_unlearning.jobs.job import Stage

STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage(
            "fetch",
            "localized_unlearning.data.fetching",
            ("{source}",),
            (),
            ("file",),
            ("source",),
            online=True,
        ),
        Stage(
            "pretrain",
            "localized_unlearning.models.organism",
            ("organism", "prompts"),
            ("athletes", "prompts", "general_knowledge", "text"),
            ("model",),
        ),
        Stage("convert", "localized_unlearning.models.gguf", (), ("gguf",), ("model",)),
        Stage(
            "download",
            "localized_unlearning.models.download",
            ("model",),
            (),
            ("model",),
            function="download",
            cached=False,  # a local folder is copied as it is; the hub has its own cache
            online=True,
        ),
        Stage(
            "known_facts",
            "localized_unlearning.evaluation.known_facts",
            ("athletes.known_threshold", "prompts.training", "model.dtype"),
            ("athletes", "base_model", "prompts"),
            ("known",),
            function="known_facts",
            gpu=True,
        ),
        Stage(
            "model_card",
            "localized_unlearning.evaluation.card",
            (
                "model.kind",
                "model.dtype",
                "organism.requirements",
                "prompts",
                "evaluation.shuffled_seed",
                "mmlu",
                "statistics",
            ),
            ("base_model", "known", "prompts", "mmlu"),
            ("json", "markdown"),
            gpu=True,
        ),
        Stage(
            "split",
            "localized_unlearning.data.splits",
            ("split", "tasks.{task}.forget", "tasks.{task}.relearn"),
            ("known",),
            ("split",),
            ("task",),
        ),
        Stage(
            "score",
            "localized_unlearning.localization.scoring",
            ("scores.{scores}", "components", "prompts.training", "model.dtype"),
            ("base_model", "split", "prompts", "method?"),
            ("scores",),
            ("task", "scores"),
            function="score",
            gpu=True,
        ),
        Stage(
            "select",
            "localized_unlearning.localization.selecting",
            ("localizations.{localization}", "components"),
            ("base_model", "scores?", "manual?", "probes?"),
            ("selection",),
            ("task", "localization", "method"),
            function="select",
        ),
        Stage(
            "finetune",
            "localized_unlearning.unlearning.finetune",
            (
                "finetune",
                "tasks.{task}.lambda_forget",
                "objectives.{objective}",
                "prompts.training",
                "text.tokens",
                "text.documents",
                "model.dtype",
            ),
            ("base_model", "split", "selection", "prompts", "text", "loss?"),
            ("delta", "history"),
            ("task", "objective", "localization", "seed"),
            gpu=True,
        ),
        Stage(
            "evaluate",
            "localized_unlearning.evaluation.evaluate",
            ("evaluation", "mmlu", "prompts", "text.tokens", "text.documents", "text.windows", "model.dtype"),
            ("base_model", "split", "delta?", "prompts", "mmlu", "text"),
            ("facts", "multiple_choice", "mmlu", "text"),
            ("task", "objective", "localization", "seed"),
            gpu=True,
        ),
        Stage(
            "relearn",
            "localized_unlearning.attacks.relearning",
            (
                "relearning",
                "series",
                "evaluation",
                "mmlu",
                "prompts",
                "text.tokens",
                "text.documents",
                "model.dtype",
            ),
            ("base_model", "split", "delta", "prompts", "mmlu", "text"),
            ("facts", "multiple_choice", "mmlu"),
            ("task", "objective", "localization", "seed"),
            gpu=True,
        ),
        Stage(
            "mask",
            "localized_unlearning.unlearning.masking",
            ("masking", "prompts.training", "text.tokens", "text.documents", "model.dtype"),
            ("base_model", "split", "selection", "prompts", "text"),
            ("mask", "history"),
            ("task", "localization", "seed"),
            function="mask",
            gpu=True,
        ),
        Stage(
            "sweep",
            "localized_unlearning.evaluation.sweep",
            ("masking.edit_sizes", "series", "evaluation", "mmlu", "prompts", "model.dtype"),
            ("base_model", "split", "mask", "prompts", "mmlu"),
            ("facts", "multiple_choice", "mmlu"),
            ("task", "localization", "seed"),
            function="sweep",
            gpu=True,
        ),
        Stage(
            "probe",
            "localized_unlearning.attacks.probing",
            ("probing", "split.kind", "prompts.training", "model.dtype"),
            ("base_model", "split", "delta?", "prompts"),
            ("probes",),
            ("task", "objective", "localization", "seed"),
            gpu=True,
        ),
        Stage(
            "head_ablation",
            "localized_unlearning.interpretability.ablation",
            ("interpretability", "prompts.training", "text.tokens", "text.documents", "model.dtype"),
            ("base_model", "known", "prompts", "text"),
            ("ablation",),
            function="head_ablation",
            gpu=True,
        ),
        Stage(
            "layer_probes",
            "localized_unlearning.interpretability.layers",
            ("interpretability", "prompts", "text.tokens", "text.documents", "model.dtype"),
            ("base_model", "known", "prompts", "text"),
            ("probes",),
            function="layer_probes",
            gpu=True,
        ),
        Stage(
            "table",
            "localized_unlearning.reporting.tables",
            ("run", "model", "prompts", "statistics", "measures", "tasks.{task}.forget"),
            ("facts*", "multiple_choice*", "mmlu*", "text*", "selections*"),
            ("csv", "markdown", "latex"),
            ("table", "task"),
        ),
        Stage(
            "supplement",
            "localized_unlearning.reporting.supplement",
            ("run", "statistics"),
            ("facts*", "multiple_choice*", "selections*"),
            ("csv", "letters", "markdown"),
            ("table", "task"),
        ),
        Stage(
            "comparisons",
            "localized_unlearning.reporting.comparisons",
            ("run", "prompts", "statistics", "measures", "null_distribution"),
            ("facts*", "multiple_choice*", "mmlu*", "text*", "selections*"),
            ("comparisons_csv", "comparisons_markdown", "null_csv", "null_markdown"),
            ("table", "task"),
        ),
        Stage(
            "claims",
            "localized_unlearning.reporting.claims",
            ("run", "tasks", "statistics", "prompts", "measures"),
            ("claims", "rows*", "selection?"),
            ("json", "markdown"),
        ),
        Stage(
            "figure",
            "localized_unlearning.reporting.figures.drawing",
            ("statistics", "localizations", "prompts", "measures"),
            ("data*", "overlay?"),
            ("csv", "pdf", "png"),
            ("figure",),
        ),
    )
}
