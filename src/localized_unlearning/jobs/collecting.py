"""The stages that collect: tables, figures, comparisons, claims; from rows alone, never from a model."""

from __future__ import annotations

from localized_unlearning.jobs.job import Input, Stage, many, optional

ROWS = tuple(many(name) for name in ("facts", "multiple_choice", "mmlu", "text"))
SELECTIONS = many("selections")

COLLECTING = (
    Stage(
        name="supplement",
        help="write every prompt of a table, and every letter",
        module="localized_unlearning.reporting.supplement",
        settings=("run", "statistics"),
        inputs=(many("facts"), many("multiple_choice"), SELECTIONS),
        outputs=("csv", "letters", "markdown"),
        wildcards=("table", "task"),
    ),
    Stage(
        name="comparisons",
        help="compare a table's localizations with one another and with random ones",
        module="localized_unlearning.reporting.comparisons",
        settings=("run", "prompts", "statistics", "measures", "null_distribution"),
        inputs=(*ROWS, SELECTIONS),
        outputs=("comparisons_csv", "comparisons_markdown", "null_csv", "null_markdown"),
        wildcards=("table", "task"),
    ),
    Stage(
        name="claims",
        help="judge the paper's claims on a run's rows",
        module="localized_unlearning.reporting.claims",
        settings=("run", "tasks.*.of", "statistics", "prompts", "measures"),
        inputs=(Input("claims"), many("rows"), optional("selection"), SELECTIONS),
        outputs=("json", "markdown"),
    ),
    Stage(
        name="table",
        help="write a table of the paper",
        module="localized_unlearning.reporting.tables",
        settings=("run", "model", "prompts", "statistics", "measures", "tasks.{task}.forget"),
        inputs=(*ROWS, many("teachers"), SELECTIONS),
        outputs=("csv", "markdown", "latex"),
        wildcards=("table", "task"),
    ),
    Stage(
        name="study",
        help="write a table of one's own: any objectives on any forget sets",
        module="localized_unlearning.reporting.studies",
        settings=("run", "prompts", "statistics", "measures", "objectives", "studies.{study}"),
        inputs=(*ROWS, SELECTIONS, many("splits"), optional("published")),
        outputs=("csv", "markdown", "latex"),
        wildcards=("study",),
    ),
    Stage(
        name="faithfulness_report",
        help="write and draw the faithfulness of all localizations",
        module="localized_unlearning.reporting.faithfulness",
        settings=("run", "statistics", "localizations"),
        inputs=(many("data"),),
        outputs=("csv", "markdown", "pdf", "png", "svg"),
    ),
    Stage(
        name="attack_table",
        help="write what each attack recovers of what each localization unlearned",
        module="localized_unlearning.reporting.attacks",
        settings=("run", "statistics", "localizations"),
        inputs=(many("rows"),),
        outputs=("csv", "markdown", "latex", "pdf", "png", "svg"),
    ),
    Stage(
        name="question_page",
        help="answer from all places and base models whether localization informs unlearning",
        module="localized_unlearning.reporting.question",
        settings=("run", "statistics"),
        inputs=(many("rows"),),
        outputs=("csv", "markdown", "pdf", "png", "svg"),
    ),
    Stage(
        name="localizers",
        help="grade localizations by the matrices that hold the injected facts",
        module="localized_unlearning.reporting.localizers",
        settings=("run", "localizations", "organism.facts_in"),
        inputs=(many("scores"), SELECTIONS),
        outputs=("csv", "markdown", "latex", "pdf", "png", "svg"),
        wildcards=("task",),
    ),
    Stage(
        name="figure",
        help="draw a figure of the paper",
        module="localized_unlearning.reporting.figures.drawing",
        settings=(
            "statistics",
            "localizations",
            "prompts",
            "measures",
            "tasks.*.forget",
            "seeds",
            "base_seeds",
            "figure_base_seeds",
            "model.kind",
            "masking.optimizer",
            "masking.learning_rate",
            "masking.controls",
            "organism.facts_in",
        ),
        inputs=(many("data"), Input("captions"), optional("overlay")),
        outputs=("csv", "pdf", "png", "svg", "md", "tex"),
        wildcards=("figure",),
    ),
)
