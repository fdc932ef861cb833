# Tables and figures, drawn from tidy rows alone, and the targets by name.

from localized_unlearning.paper.artefacts import FIGURES, TABLES


rule table:
    input:
        facts=plan.rows_for("facts"),
        multiple_choice=plan.rows_for("multiple_choice"),
        mmlu=plan.rows_for("mmlu"),
        text=plan.rows_for("text"),
        selections=plan.selections_for,
    output:
        csv=f"{plan.results}/tables/{{table}}.csv",
        markdown=f"{plan.results}/tables/{{table}}.md",
        latex=f"{plan.results}/tables/{{table}}.tex",
    log:
        f"logs/{plan.config.run}/{{table}}.log",
    benchmark:
        f"logs/{plan.config.run}/{{table}}.tsv"
    wildcard_constraints:
        table="|".join(TABLES),
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=plan.memory("table"),
        runtime=plan.runtime("table"),
    params:
        config=plan.resolved,
        task=plan.task_of,
        settings=plan.seen("table"),
        code=plan.code("table"),
    message:
        "write {wildcards.table}"
    shell:
        "localized-unlearning table --config {params.config} --table {wildcards.table} --task {params.task} --facts {input.facts}"
        " --multiple-choice {input.multiple_choice} --mmlu {input.mmlu} --text {input.text}"
        " --selections {input.selections} --out-csv {output.csv} --out-markdown {output.markdown}"
        " --out-latex {output.latex} 2> {log}"


rule comparisons:
    input:
        facts=plan.compared_rows_for("facts"),
        multiple_choice=plan.compared_rows_for("multiple_choice"),
        mmlu=plan.compared_rows_for("mmlu"),
        text=plan.compared_rows_for("text"),
        selections=plan.compared_selections_for,
    output:
        comparisons_csv=f"{plan.results}/statistics/{{table}}/comparisons.csv",
        comparisons_markdown=f"{plan.results}/statistics/{{table}}/comparisons.md",
        null_csv=f"{plan.results}/statistics/{{table}}/null.csv",
        null_markdown=f"{plan.results}/statistics/{{table}}/null.md",
    log:
        f"logs/{plan.config.run}/{{table}}_comparisons.log",
    benchmark:
        f"logs/{plan.config.run}/{{table}}_comparisons.tsv"
    wildcard_constraints:
        table="|".join(TABLES),
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=plan.memory("comparisons"),
        runtime=plan.runtime("comparisons"),
    params:
        config=plan.resolved,
        task=plan.task_of,
        settings=plan.seen("comparisons"),
        code=plan.code("comparisons"),
    message:
        "compare the localizations of {wildcards.table}"
    shell:
        "localized-unlearning comparisons --config {params.config} --table {wildcards.table} --task {params.task}"
        " --facts {input.facts} --multiple-choice {input.multiple_choice} --mmlu {input.mmlu} --text {input.text}"
        " --selections {input.selections} --out-comparisons-csv {output.comparisons_csv}"
        " --out-comparisons-markdown {output.comparisons_markdown} --out-null-csv {output.null_csv}"
        " --out-null-markdown {output.null_markdown} 2> {log}"


rule supplement:
    input:
        facts=plan.rows_for("facts"),
        multiple_choice=plan.rows_for("multiple_choice"),
        selections=plan.selections_for,
    output:
        csv=f"{plan.results}/statistics/{{table}}/supplement.csv",
        letters=f"{plan.results}/statistics/{{table}}/letters.csv",
        markdown=f"{plan.results}/statistics/{{table}}/supplement.md",
    log:
        f"logs/{plan.config.run}/{{table}}_supplement.log",
    benchmark:
        f"logs/{plan.config.run}/{{table}}_supplement.tsv"
    wildcard_constraints:
        table="|".join(TABLES),
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=plan.memory("supplement"),
        runtime=plan.runtime("supplement"),
    params:
        config=plan.resolved,
        task=plan.task_of,
        settings=plan.seen("supplement"),
        code=plan.code("supplement"),
    message:
        "every prompt of {wildcards.table}"
    shell:
        "localized-unlearning supplement --config {params.config} --table {wildcards.table} --task {params.task}"
        " --facts {input.facts} --multiple-choice {input.multiple_choice} --selections {input.selections}"
        " --out-csv {output.csv} --out-letters {output.letters} --out-markdown {output.markdown} 2> {log}"


rule figure:
    input:
        data=plan.data_for,
        overlay=plan.overlay_for,
    output:
        csv=f"{plan.figures}/{{figure}}.csv",
        pdf=f"{plan.figures}/{{figure}}.pdf",
        png=f"{plan.figures}/{{figure}}.png",
    log:
        f"logs/{plan.config.run}/{{figure}}.log",
    benchmark:
        f"logs/{plan.config.run}/{{figure}}.tsv"
    wildcard_constraints:
        figure="|".join(FIGURES),
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=plan.memory("figure"),
        runtime=plan.runtime("figure"),
    params:
        config=plan.resolved,
        settings=plan.seen("figure"),
        code=plan.code("figure"),
    message:
        "draw {wildcards.figure}"
    shell:
        "localized-unlearning figure --config {params.config} --figure {wildcards.figure} --data {input.data} --overlay '{input.overlay}'"
        " --out-csv {output.csv} --out-pdf {output.pdf} --out-png {output.png} 2> {log}"


rule claims:
    input:
        claims=plan.config.claims.file,
        rows=plan.claim_rows,
        selection=plan.claim_selection,
    output:
        json=f"{plan.results}/claims.json",
        markdown=f"{plan.results}/claims.md",
    log:
        f"logs/{plan.config.run}/claims.log",
    benchmark:
        f"logs/{plan.config.run}/claims.tsv"
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=plan.memory("claims"),
        runtime=plan.runtime("claims"),
    params:
        config=plan.resolved,
        settings=plan.seen("claims"),
        code=plan.code("claims"),
    message:
        "judge the paper's claims"
    shell:
        "localized-unlearning claims --config {params.config} --claims {input.claims} --rows {input.rows}"
        " --selection '{input.selection}' --out-json {output.json} --out-markdown {output.markdown} 2> {log}"


for name in [*TABLES, *FIGURES]:

    rule:
        name:
            name
        input:
            plan.target(name),
        localrule: True


rule tables:
    input:
        plan.targets(TABLES),
    localrule: True


rule figures:
    input:
        plan.targets(FIGURES),
    localrule: True


rule statistics:
    input:
        plan.statistics(),
    localrule: True


rule report:
    log:
        f"logs/{plan.config.run}/report.log",
    localrule: True
    conda:
        "../../envs/cpu.yaml"
    params:
        config=plan.resolved,
    message:
        "one page of what is there"
    shell:
        "localized-unlearning report --config {params.config} 2> {log}"


rule preflight:
    log:
        f"logs/{plan.config.run}/preflight.log",
    localrule: True
    conda:
        "../../envs/cpu.yaml"
    params:
        config=plan.resolved,
    message:
        "the plan, and all that it lacks"
    shell:
        "localized-unlearning preflight --config {params.config} | tee {log}"


rule audit:
    log:
        f"logs/{plan.config.run}/audit.log",
    localrule: True
    conda:
        "../../envs/cpu.yaml"
    params:
        config=plan.resolved,
        folders=lambda _: plan.folders(),
    message:
        "compare every file with its record, and every record with what would be done now"
    shell:
        "localized-unlearning audit verify {params.folders} --config {params.config} | tee {log}"
