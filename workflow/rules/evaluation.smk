# Evaluations: one process and one model load for all four, one row per item.


rule evaluate:
    input:
        base_model=f"{plan.results}/base_model",
        card=f"{plan.results}/model_card.json",
        split=f"{plan.results}/{{task}}/split.parquet",
        delta=plan.delta_for,
        prompts=plan.config.prompts.file,
        mmlu=plan.source("mmlu.source"),
        text=plan.source("text.held_out"),
    output:
        facts=f"{plan.results}/{{task}}/{{objective}}/{{localization}}/seed{{seed}}/facts.parquet",
        multiple_choice=f"{plan.results}/{{task}}/{{objective}}/{{localization}}/seed{{seed}}/multiple_choice.parquet",
        mmlu=f"{plan.results}/{{task}}/{{objective}}/{{localization}}/seed{{seed}}/mmlu.parquet",
        text=f"{plan.results}/{{task}}/{{objective}}/{{localization}}/seed{{seed}}/text.parquet",
    log:
        f"logs/{plan.config.run}/{{task}}/{{objective}}/{{localization}}/seed{{seed}}/evaluate.log",
    benchmark:
        f"logs/{plan.config.run}/{{task}}/{{objective}}/{{localization}}/seed{{seed}}/evaluate.tsv"
    conda:
        "../../envs/cpu.yaml"
    threads: plan.config.compute.threads
    resources:
        mem_mb=plan.memory("evaluate"),
        runtime=plan.runtime("evaluate"),
    params:
        config=plan.resolved,
        settings=plan.seen("evaluate"),
        code=plan.code("evaluate"),
    message:
        "evaluate {wildcards.localization} ({wildcards.task}, {wildcards.objective}, seed {wildcards.seed})"
    shell:
        "localized-unlearning evaluate --config {params.config} --task {wildcards.task}"
        " --objective {wildcards.objective} --localization {wildcards.localization} --seed {wildcards.seed}"
        " --base-model {input.base_model} --split {input.split} --delta '{input.delta}'"
        " --prompts {input.prompts} --mmlu {input.mmlu} --text {input.text}"
        " --out-facts {output.facts} --out-multiple-choice {output.multiple_choice}"
        " --out-mmlu {output.mmlu} --out-text {output.text} 2> {log}"
