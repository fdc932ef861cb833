# Robust Knowledge Unlearning via Mechanistic Localizations (Guo et al. 2024), rebuilt.
# A table of contents: the config, the stages in workflow/rules, and the targets by name.
import os
import sys
from pathlib import Path

from snakemake.scheduling.job_scheduler import JobScheduler
from snakemake.utils import min_version

from localized_unlearning.cli import starting, warm
from localized_unlearning.config.reading import overlays
from localized_unlearning.errors import UserError
from localized_unlearning.workflow import ending, targets
from localized_unlearning.workflow.snakefile import (
    Rules,
    calm,
    config_files,
    unsupported,
)

min_version("9.27")

if said := unsupported(workflow):
    ending.refuse(said)
calm(JobScheduler)


configfile: "config.yaml"


try:
    files = config_files(workflow.config_settings.configfiles)
    directives = Rules([*overlays(map(Path, files)), ("--config", workflow.config_settings.config)])
except UserError as error:
    ending.refuse(error)

if directives.config.compute.warm_start:
    if socket := starting.begin(sys.argv, os.environ):
        os.environ[warm.STARTER] = socket

shell.prefix(directives.shell_prefix)


wildcard_constraints:
    **directives.constraints(),


include: "workflow/rules/data.smk"
include: "workflow/rules/base_model.smk"
include: "workflow/rules/localization.smk"
include: "workflow/rules/unlearning.smk"
include: "workflow/rules/evaluation.smk"
include: "workflow/rules/attacks.smk"
include: "workflow/rules/interpretability.smk"
include: "workflow/rules/collect.smk"


# Here and not in an included file, whose default target Snakemake forgets.
rule all:
    """Make every table, figure, statistic, claim and model card."""
    default_target: True
    input:
        directives.target("all"),
    localrule: True
    message:
        "everything is there"


try:
    targets.check(sys.argv[1:], [rule.name for rule in workflow.rules], directives.graph)
except UserError as error:
    ending.refuse(error)


onstart:
    directives.write_resolved()


onsuccess:
    shell(directives.verify)


onerror:
    ending.say_last(log)
