# Tables and figures, drawn from tidy rows alone, and the targets by name.


from localized_unlearning.paper.artefacts import FIGURES, TABLES


rule table:
    """Write a table of the paper."""
    input:
        unpack(directives.inputs("table")),
    output:
        **directives.outputs("table", directory),
    log:
        directives.log("table"),
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=directives.memory("table"),
        runtime=directives.runtime("table"),
    params:
        **directives.params("table"),
    message:
        "write {wildcards.table}"
    shell:
        directives.command("table")


rule comparisons:
    """Compare a table's localizations with one another and with random ones."""
    input:
        unpack(directives.inputs("comparisons")),
    output:
        **directives.outputs("comparisons", directory),
    log:
        directives.log("comparisons"),
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=directives.memory("comparisons"),
        runtime=directives.runtime("comparisons"),
    params:
        **directives.params("comparisons"),
    message:
        "compare the localizations of {wildcards.table}"
    shell:
        directives.command("comparisons")


rule supplement:
    """Write every prompt of a table, and every letter."""
    input:
        unpack(directives.inputs("supplement")),
    output:
        **directives.outputs("supplement", directory),
    log:
        directives.log("supplement"),
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=directives.memory("supplement"),
        runtime=directives.runtime("supplement"),
    params:
        **directives.params("supplement"),
    message:
        "every prompt of {wildcards.table}"
    shell:
        directives.command("supplement")


rule figure:
    """Draw a figure of the paper."""
    input:
        unpack(directives.inputs("figure")),
    output:
        **directives.outputs("figure", directory),
    log:
        directives.log("figure"),
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=directives.memory("figure"),
        runtime=directives.runtime("figure"),
    params:
        **directives.params("figure"),
    message:
        "draw {wildcards.figure}"
    shell:
        directives.command("figure")


rule claims:
    """Judge the paper's claims on a run's rows."""
    input:
        unpack(directives.inputs("claims")),
    output:
        **directives.outputs("claims", directory),
    log:
        directives.log("claims"),
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=directives.memory("claims"),
        runtime=directives.runtime("claims"),
    params:
        **directives.params("claims"),
    message:
        "judge the paper's claims"
    shell:
        directives.command("claims")


rule study:
    """Write a table of one's own: any objectives on any forget sets."""
    input:
        unpack(directives.inputs("study")),
    output:
        **directives.outputs("study", directory),
    log:
        directives.log("study"),
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=directives.memory("study"),
        runtime=directives.runtime("study"),
    params:
        **directives.params("study"),
    message:
        "write the study {wildcards.study}"
    shell:
        directives.command("study")


rule faithfulness_report:
    """Write and draw the faithfulness of all localizations."""
    input:
        unpack(directives.inputs("faithfulness_report")),
    output:
        **directives.outputs("faithfulness_report", directory),
    log:
        directives.log("faithfulness_report"),
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=directives.memory("faithfulness_report"),
        runtime=directives.runtime("faithfulness_report"),
    params:
        **directives.params("faithfulness_report"),
    message:
        "draw the faithfulness of the localizations"
    shell:
        directives.command("faithfulness_report")


rule overlap:
    """Count the weights that localizations share."""
    input:
        unpack(directives.inputs("overlap")),
    output:
        **directives.outputs("overlap", directory),
    log:
        directives.log("overlap"),
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=directives.memory("overlap"),
        runtime=directives.runtime("overlap"),
    params:
        **directives.params("overlap"),
    message:
        "count the weights that localizations share (base {wildcards.base_seed}, {wildcards.task})"
    shell:
        directives.command("overlap")


rule overlap_table:
    """Write how much localizations share with one another and with mechanisms."""
    input:
        unpack(directives.inputs("overlap_table")),
    output:
        **directives.outputs("overlap_table", directory),
    log:
        directives.log("overlap_table"),
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=directives.memory("overlap_table"),
        runtime=directives.runtime("overlap_table"),
    params:
        **directives.params("overlap_table"),
    message:
        "write the overlap of the localizations"
    shell:
        directives.command("overlap_table")


for name in ("icml_table_2", "icml_table_3"):

    rule:
        name:
            name
        input:
            directives.target(name),
        localrule: True


for name in [*TABLES, *FIGURES]:

    rule:
        name:
            name
        input:
            directives.target(name),
        localrule: True


for name in directives.config.studies:

    rule:
        name:
            name
        input:
            directives.target(name),
        localrule: True


rule studies:
    """Write the tables that the config names as studies."""
    input:
        directives.target("studies"),
    localrule: True


rule tables:
    """Make every table."""
    input:
        directives.target("tables"),
    localrule: True


rule figures:
    """Draw every figure."""
    input:
        directives.target("figures"),
    localrule: True


rule statistics:
    """Compare the localizations of every table."""
    input:
        directives.target("statistics"),
    localrule: True


rule report:
    """Write one HTML page of what is there."""
    log:
        f"{directives.layout.logs}/report.log",
    localrule: True
    conda:
        "../../envs/cpu.yaml"
    params:
        config=directives.layout.resolved,
    message:
        "one page of what is there"
    shell:
        "localized-unlearning report --config {params.config:q} 2> {log:q}"


rule preflight:
    """Say what the run takes and what it lacks."""
    log:
        f"{directives.layout.logs}/preflight.log",
    localrule: True
    conda:
        "../../envs/cpu.yaml"
    params:
        config=directives.layout.resolved,
    message:
        "the plan, and all that it lacks"
    shell:
        "localized-unlearning preflight --config {params.config:q} | tee {log:q}"


rule audit:
    """Verify every file against its record."""
    log:
        f"{directives.layout.logs}/audit.log",
    localrule: True
    conda:
        "../../envs/cpu.yaml"
    params:
        config=directives.layout.resolved,
        folders=lambda _: directives.folders(),
    message:
        "compare every file with its record, and every record with what would be done now"
    shell:
        "localized-unlearning audit verify {params.folders:q} --config {params.config:q} | tee {log:q}"


rule write_attacks:
    """Write the matrix of attacks."""
    input:
        unpack(directives.inputs("attack_table")),
    output:
        **directives.outputs("attack_table", directory),
    log:
        directives.log("attack_table"),
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=directives.memory("attack_table"),
        runtime=directives.runtime("attack_table"),
    params:
        **directives.params("attack_table"),
    message:
        "write the matrix of attacks"
    shell:
        directives.command("attack_table")


rule grade:
    """Grade the localizations against the truth."""
    input:
        unpack(directives.inputs("localizers")),
    output:
        **directives.outputs("localizers", directory),
    log:
        directives.log("localizers"),
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=directives.memory("localizers"),
        runtime=directives.runtime("localizers"),
    params:
        **directives.params("localizers"),
    message:
        "grade the localizations against the truth ({wildcards.task})"
    shell:
        directives.command("localizers")


for name in ("attacks", "table_attacks"):

    rule:
        name:
            name
        input:
            directives.target(name),
        localrule: True


rule grade_places:
    """Write how well localizers find facts at places that were moved."""
    input:
        unpack(directives.inputs("places_page")),
    output:
        **directives.outputs("places_page", directory),
    log:
        directives.log("places_page"),
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=directives.memory("places_page"),
        runtime=directives.runtime("places_page"),
    params:
        **directives.params("places_page"),
    message:
        "localizers against the truth, place by place"
    shell:
        directives.command("places_page")


rule localizers:
    """Localizers against the truth: the bed's own place, and places that were moved."""
    input:
        directives.target("localizers"),
    localrule: True


rule answer:
    """Write the page of the question."""
    input:
        unpack(directives.inputs("question_page")),
    output:
        **directives.outputs("question_page", directory),
    log:
        directives.log("question_page"),
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=directives.memory("question_page"),
        runtime=directives.runtime("question_page"),
    params:
        **directives.params("question_page"),
    message:
        "does localization inform unlearning?"
    shell:
        directives.command("question_page")


rule question:
    """Does localization inform unlearning?"""
    input:
        directives.target("question"),
    localrule: True
