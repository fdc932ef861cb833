# Files from outside, and the split of the athletes.


localrules:
    fetch_folder,  # as fetch is: `use rule` does not hand that on


rule fetch:
    output:
        f"{plan.results}/sources/{{source}}",
    log:
        f"logs/{plan.config.run}/fetch/{{source}}.log",
    benchmark:
        f"logs/{plan.config.run}/fetch/{{source}}.tsv"
    wildcard_constraints:
        source="|".join(map(re.escape, plan.fetched(folders=False))) or "none",
    localrule: True
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=plan.memory("fetch"),
        runtime=plan.runtime("fetch"),
    params:
        config=plan.resolved,
        settings=plan.seen("fetch"),
        code=plan.code("fetch"),
    message:
        "fetch {wildcards.source}"
    shell:
        "localized-unlearning fetch --config {params.config} --source {wildcards.source} --out-file {output} 2> {log}"


use rule fetch as fetch_folder with:
    output:
        directory(f"{plan.results}/sources/{{source}}"),
    wildcard_constraints:
        source="|".join(map(re.escape, plan.fetched(folders=True))) or "none",


rule known_facts:
    input:
        athletes=plan.source("athletes.source"),
        base_model=f"{plan.results}/base_model",
        prompts=plan.config.prompts.file,
    output:
        f"{plan.results}/known.parquet",
    log:
        f"logs/{plan.config.run}/known_facts.log",
    benchmark:
        f"logs/{plan.config.run}/known_facts.tsv"
    conda:
        "../../envs/cpu.yaml"
    threads: plan.config.compute.threads
    resources:
        mem_mb=plan.memory("known_facts"),
        runtime=plan.runtime("known_facts"),
    params:
        config=plan.resolved,
        settings=plan.seen("known_facts"),
        code=plan.code("known_facts"),
    message:
        "which facts the base model knows"
    shell:
        "localized-unlearning known_facts --config {params.config} --athletes {input.athletes}"
        " --base-model {input.base_model} --prompts {input.prompts} --out-known {output} 2> {log}"


rule split:
    input:
        known=rules.known_facts.output,
    output:
        f"{plan.results}/{{task}}/split.parquet",
    log:
        f"logs/{plan.config.run}/{{task}}/split.log",
    benchmark:
        f"logs/{plan.config.run}/{{task}}/split.tsv"
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=plan.memory("split"),
        runtime=plan.runtime("split"),
    params:
        config=plan.resolved,
        settings=plan.seen("split"),
        code=plan.code("split"),
    message:
        "split the athletes ({wildcards.task})"
    shell:
        "localized-unlearning split --config {params.config} --task {wildcards.task}"
        " --known {input.known} --out-split {output} 2> {log}"
