# Tables and figures, drawn from tidy rows alone, and the targets by name.


from localized_unlearning.paper.artefacts import FIGURES, TABLES


rule table:
    """Write a table of the paper."""
    input:
        unpack(plan.inputs("table")),
    output:
        **plan.outputs("table", directory),
    log:
        plan.log("table"),
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=plan.memory("table"),
        runtime=plan.runtime("table"),
    params:
        **plan.params("table"),
    message:
        "write {wildcards.table}"
    shell:
        plan.command("table")


rule comparisons:
    """Compare a table's localizations with one another and with random ones."""
    input:
        unpack(plan.inputs("comparisons")),
    output:
        **plan.outputs("comparisons", directory),
    log:
        plan.log("comparisons"),
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=plan.memory("comparisons"),
        runtime=plan.runtime("comparisons"),
    params:
        **plan.params("comparisons"),
    message:
        "compare the localizations of {wildcards.table}"
    shell:
        plan.command("comparisons")


rule supplement:
    """Write every prompt of a table, and every letter."""
    input:
        unpack(plan.inputs("supplement")),
    output:
        **plan.outputs("supplement", directory),
    log:
        plan.log("supplement"),
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=plan.memory("supplement"),
        runtime=plan.runtime("supplement"),
    params:
        **plan.params("supplement"),
    message:
        "every prompt of {wildcards.table}"
    shell:
        plan.command("supplement")


rule figure:
    """Draw a figure of the paper."""
    input:
        unpack(plan.inputs("figure")),
    output:
        **plan.outputs("figure", directory),
    log:
        plan.log("figure"),
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=plan.memory("figure"),
        runtime=plan.runtime("figure"),
    params:
        **plan.params("figure"),
    message:
        "draw {wildcards.figure}"
    shell:
        plan.command("figure")


rule claims:
    """Judge the paper's claims on a run's rows."""
    input:
        unpack(plan.inputs("claims")),
    output:
        **plan.outputs("claims", directory),
    log:
        plan.log("claims"),
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=plan.memory("claims"),
        runtime=plan.runtime("claims"),
    params:
        **plan.params("claims"),
    message:
        "judge the paper's claims"
    shell:
        plan.command("claims")


rule study:
    """Write a table of one's own: any objectives on any forget sets."""
    input:
        unpack(plan.inputs("study")),
    output:
        **plan.outputs("study", directory),
    log:
        plan.log("study"),
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=plan.memory("study"),
        runtime=plan.runtime("study"),
    params:
        **plan.params("study"),
    message:
        "write the study {wildcards.study}"
    shell:
        plan.command("study")


rule faithfulness_report:
    """Write and draw the faithfulness of all localizations."""
    input:
        unpack(plan.inputs("faithfulness_report")),
    output:
        **plan.outputs("faithfulness_report", directory),
    log:
        plan.log("faithfulness_report"),
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=plan.memory("faithfulness_report"),
        runtime=plan.runtime("faithfulness_report"),
    params:
        **plan.params("faithfulness_report"),
    message:
        "draw the faithfulness of the localizations"
    shell:
        plan.command("faithfulness_report")


for name in [*TABLES, *FIGURES]:

    rule:
        name:
            name
        input:
            plan.target(name),
        localrule: True


for name in plan.config.studies:

    rule:
        name:
            name
        input:
            plan.studies(name),
        localrule: True


rule studies:
    """Write the tables that the config names as studies."""
    input:
        plan.studies(),
    localrule: True


rule tables:
    """Make every table."""
    input:
        plan.targets(TABLES),
    localrule: True


rule figures:
    """Draw every figure."""
    input:
        plan.targets(FIGURES),
    localrule: True


rule statistics:
    """Compare the localizations of every table."""
    input:
        plan.statistics(),
    localrule: True


rule report:
    """Write one HTML page of what is there."""
    log:
        f"{plan.layout.logs}/report.log",
    localrule: True
    conda:
        "../../envs/cpu.yaml"
    params:
        config=plan.layout.resolved,
    message:
        "one page of what is there"
    shell:
        "localized-unlearning report --config {params.config:q} 2> {log:q}"


rule preflight:
    """Say what the run takes and what it lacks."""
    log:
        f"{plan.layout.logs}/preflight.log",
    localrule: True
    conda:
        "../../envs/cpu.yaml"
    params:
        config=plan.layout.resolved,
    message:
        "the plan, and all that it lacks"
    shell:
        "localized-unlearning preflight --config {params.config:q} | tee {log:q}"


rule audit:
    """Verify every file against its record."""
    log:
        f"{plan.layout.logs}/audit.log",
    localrule: True
    conda:
        "../../envs/cpu.yaml"
    params:
        config=plan.layout.resolved,
        folders=lambda _: plan.folders(),
    message:
        "compare every file with its record, and every record with what would be done now"
    shell:
        "localized-unlearning audit verify {params.folders:q} --config {params.config:q} | tee {log:q}"


rule write_attacks:
    """Write the matrix of attacks."""
    input:
        unpack(plan.inputs("attack_table")),
    output:
        **plan.outputs("attack_table", directory),
    log:
        plan.log("attack_table"),
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=plan.memory("attack_table"),
        runtime=plan.runtime("attack_table"),
    params:
        **plan.params("attack_table"),
    message:
        "write the matrix of attacks"
    shell:
        plan.command("attack_table")


rule grade:
    """Grade the localizations against the truth."""
    input:
        unpack(plan.inputs("localizers")),
    output:
        **plan.outputs("localizers", directory),
    log:
        plan.log("localizers"),
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=plan.memory("localizers"),
        runtime=plan.runtime("localizers"),
    params:
        **plan.params("localizers"),
    message:
        "grade the localizations against the truth ({wildcards.task})"
    shell:
        plan.command("localizers")


for name in ("attacks", "table_attacks"):

    rule:
        name:
            name
        input:
            plan.attack_matrix(),
        localrule: True


rule grade_places:
    """Write how well localizers find facts at places that were moved."""
    input:
        unpack(plan.inputs("places_page")),
    output:
        **plan.outputs("places_page", directory),
    log:
        plan.log("places_page"),
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=plan.memory("places_page"),
        runtime=plan.runtime("places_page"),
    params:
        **plan.params("places_page"),
    message:
        "localizers against the truth, place by place"
    shell:
        plan.command("places_page")


rule localizers:
    """Localizers against the truth: the bed's own place, and places that were moved."""
    input:
        plan.moved(),
    localrule: True


rule answer:
    """Write the page of the question."""
    input:
        unpack(plan.inputs("question_page")),
    output:
        **plan.outputs("question_page", directory),
    log:
        plan.log("question_page"),
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=plan.memory("question_page"),
        runtime=plan.runtime("question_page"),
    params:
        **plan.params("question_page"),
    message:
        "does localization inform unlearning?"
    shell:
        plan.command("question_page")


rule question:
    """Does localization inform unlearning?"""
    input:
        plan.question(),
    localrule: True
