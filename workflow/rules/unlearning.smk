# Localized fine-tuning (sections 2.4 and A.3): a delta for each model.


rule finetune:
    input:
        base_model=f"{plan.results}/base_model",
        card=f"{plan.results}/model_card.json",
        split=f"{plan.results}/{{task}}/split.parquet",
        selection=f"{plan.results}/{{task}}/selections/{{localization}}.json",
        prompts=plan.config.prompts.file,
        text=plan.source("text.train"),
        loss=plan.loss_for,
    output:
        delta=f"{plan.results}/{{task}}/{{objective}}/{{localization}}/seed{{seed}}/delta.safetensors",
        history=f"{plan.results}/{{task}}/{{objective}}/{{localization}}/seed{{seed}}/history.csv",
    log:
        f"logs/{plan.config.run}/{{task}}/{{objective}}/{{localization}}/seed{{seed}}/finetune.log",
    benchmark:
        f"logs/{plan.config.run}/{{task}}/{{objective}}/{{localization}}/seed{{seed}}/finetune.tsv"
    conda:
        "../../envs/cpu.yaml"
    threads: plan.config.compute.threads
    resources:
        mem_mb=plan.memory("finetune"),
        runtime=plan.runtime("finetune"),
    params:
        config=plan.resolved,
        settings=plan.seen("finetune"),
        code=plan.code("finetune"),
    message:
        "fine-tune {wildcards.localization} ({wildcards.task}, {wildcards.objective}, seed {wildcards.seed})"
    shell:
        "localized-unlearning finetune --config {params.config} --task {wildcards.task}"
        " --objective {wildcards.objective} --localization {wildcards.localization} --seed {wildcards.seed}"
        " --base-model {input.base_model} --split {input.split} --selection {input.selection}"
        " --prompts {input.prompts} --text {input.text} --loss '{input.loss}'"
        " --out-delta {output.delta} --out-history {output.history} 2> {log}"
