# Scores of components and the selections made from them (section 2.3).


rule score:
    input:
        base_model=f"{plan.results}/base_model",
        card=f"{plan.results}/model_card.json",
        split=f"{plan.results}/{{task}}/split.parquet",
        prompts=plan.config.prompts.file,
        method=plan.method_for,
    output:
        f"{plan.results}/{{task}}/scores/{{scores}}.parquet",
    log:
        f"logs/{plan.config.run}/{{task}}/scores/{{scores}}.log",
    benchmark:
        f"logs/{plan.config.run}/{{task}}/scores/{{scores}}.tsv"
    conda:
        "../../envs/cpu.yaml"
    threads: plan.config.compute.threads
    resources:
        mem_mb=plan.memory("score"),
        runtime=plan.runtime("score"),
    params:
        config=plan.resolved,
        settings=plan.seen("score"),
        code=plan.code("score"),
    message:
        "score components: {wildcards.scores} ({wildcards.task})"
    shell:
        "localized-unlearning score --config {params.config} --task {wildcards.task}"
        " --scores {wildcards.scores} --base-model {input.base_model} --split {input.split}"
        " --prompts {input.prompts} --method '{input.method}' --out-scores {output} 2> {log}"


rule select:
    input:
        base_model=f"{plan.results}/base_model",
        scores=plan.scores_for,
        manual=plan.manual_for,
        probes=plan.probes_for,
    output:
        f"{plan.results}/{{task}}/selections/{{localization}}.json",
    log:
        f"logs/{plan.config.run}/{{task}}/selections/{{localization}}.log",
    benchmark:
        f"logs/{plan.config.run}/{{task}}/selections/{{localization}}.tsv"
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=plan.memory("select"),
        runtime=plan.runtime("select"),
    params:
        config=plan.resolved,
        settings=plan.seen("select"),
        code=plan.code("select"),
    message:
        "select components: {wildcards.localization} ({wildcards.task})"
    shell:
        "localized-unlearning select --config {params.config} --task {wildcards.task}"
        " --localization {wildcards.localization} --method finetune --base-model {input.base_model}"
        " --scores '{input.scores}' --manual '{input.manual}' --probes '{input.probes}'"
        " --out-selection {output} 2> {log}"


rule select_for_mask:
    input:
        base_model=f"{plan.results}/base_model",
        scores=plan.scores_for_mask,
        manual=plan.manual_for,
        probes=plan.probes_for,
    output:
        f"{plan.results}/{{task}}/mask/{{localization}}/selection.json",
    log:
        f"logs/{plan.config.run}/{{task}}/mask/{{localization}}/select.log",
    benchmark:
        f"logs/{plan.config.run}/{{task}}/mask/{{localization}}/select.tsv"
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=plan.memory("select"),
        runtime=plan.runtime("select"),
    params:
        config=plan.resolved,
        settings=plan.seen("select"),
        code=plan.code("select"),
    message:
        "select components to mask: {wildcards.localization} ({wildcards.task})"
    shell:
        "localized-unlearning select --config {params.config} --task {wildcards.task}"
        " --localization {wildcards.localization} --method mask --base-model {input.base_model}"
        " --scores '{input.scores}' --manual '{input.manual}' --probes '{input.probes}'"
        " --out-selection {output} 2> {log}"
