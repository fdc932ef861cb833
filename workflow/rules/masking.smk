# Weight masking: a mask over the selected weights, and ever larger edits made from it (2.4, 3.2).


rule mask:
    input:
        base_model=f"{plan.results}/base_model",
        split=f"{plan.results}/{{task}}/split.parquet",
        selection=plan.mask_selection_for,
        prompts=plan.config.prompts.file,
        text=plan.source("text.train"),
    output:
        mask=f"{plan.results}/{{task}}/mask/{{localization}}/seed{{seed}}/mask.safetensors",
        history=f"{plan.results}/{{task}}/mask/{{localization}}/seed{{seed}}/history.csv",
    log:
        f"logs/{plan.config.run}/{{task}}/mask/{{localization}}/seed{{seed}}/mask.log",
    benchmark:
        f"logs/{plan.config.run}/{{task}}/mask/{{localization}}/seed{{seed}}/mask.tsv"
    conda:
        "../../envs/cpu.yaml"
    threads: plan.config.compute.threads
    resources:
        mem_mb=plan.memory("mask"),
        runtime=plan.runtime("mask"),
    params:
        config=plan.resolved,
        settings=plan.seen("mask"),
        code=plan.code("mask"),
    message:
        "mask {wildcards.localization} ({wildcards.task}, seed {wildcards.seed})"
    shell:
        "localized-unlearning mask --config {params.config} --task {wildcards.task}"
        " --localization {wildcards.localization} --seed {wildcards.seed}"
        " --base-model {input.base_model} --split {input.split} --selection {input.selection}"
        " --prompts {input.prompts} --text {input.text}"
        " --out-mask {output.mask} --out-history {output.history} 2> {log}"


rule sweep:
    input:
        base_model=f"{plan.results}/base_model",
        split=f"{plan.results}/{{task}}/split.parquet",
        mask=f"{plan.results}/{{task}}/mask/{{localization}}/seed{{seed}}/mask.safetensors",
        prompts=plan.config.prompts.file,
        mmlu=plan.series_questions,
    output:
        facts=f"{plan.results}/{{task}}/mask/{{localization}}/seed{{seed}}/sweep/facts.parquet",
        multiple_choice=f"{plan.results}/{{task}}/mask/{{localization}}/seed{{seed}}/sweep/multiple_choice.parquet",
        mmlu=f"{plan.results}/{{task}}/mask/{{localization}}/seed{{seed}}/sweep/mmlu.parquet",
    log:
        f"logs/{plan.config.run}/{{task}}/mask/{{localization}}/seed{{seed}}/sweep.log",
    benchmark:
        f"logs/{plan.config.run}/{{task}}/mask/{{localization}}/seed{{seed}}/sweep.tsv"
    conda:
        "../../envs/cpu.yaml"
    threads: plan.config.compute.threads
    resources:
        mem_mb=plan.memory("sweep"),
        runtime=plan.runtime("sweep"),
    params:
        config=plan.resolved,
        settings=plan.seen("sweep"),
        code=plan.code("sweep"),
    message:
        "sweep the edit sizes of {wildcards.localization} ({wildcards.task}, seed {wildcards.seed})"
    shell:
        "localized-unlearning sweep --config {params.config} --task {wildcards.task}"
        " --localization {wildcards.localization} --seed {wildcards.seed}"
        " --base-model {input.base_model} --split {input.split} --mask {input.mask}"
        " --prompts {input.prompts} --mmlu {input.mmlu}"
        " --out-facts {output.facts} --out-multiple-choice {output.multiple_choice} --out-mmlu {output.mmlu} 2> {log}"
