# Relearning two athletes with LoRA, and what else comes back (3.1.2, A.4.2).


rule relearn:
    input:
        base_model=f"{plan.results}/base_model",
        split=f"{plan.results}/{{task}}/split.parquet",
        delta=f"{plan.results}/{{task}}/{{objective}}/{{localization}}/seed{{seed}}/delta.safetensors",
        prompts=plan.config.prompts.file,
        mmlu=plan.series_questions,
        text=plan.source("text.train"),
    output:
        facts=f"{plan.results}/{{task}}/{{objective}}/{{localization}}/seed{{seed}}/relearning/facts.parquet",
        multiple_choice=f"{plan.results}/{{task}}/{{objective}}/{{localization}}/seed{{seed}}/relearning/multiple_choice.parquet",
        mmlu=f"{plan.results}/{{task}}/{{objective}}/{{localization}}/seed{{seed}}/relearning/mmlu.parquet",
    log:
        f"logs/{plan.config.run}/{{task}}/{{objective}}/{{localization}}/seed{{seed}}/relearn.log",
    benchmark:
        f"logs/{plan.config.run}/{{task}}/{{objective}}/{{localization}}/seed{{seed}}/relearn.tsv"
    conda:
        "../../envs/cpu.yaml"
    threads: plan.config.compute.threads
    resources:
        mem_mb=plan.memory("relearn"),
        runtime=plan.runtime("relearn"),
    params:
        config=plan.resolved,
        settings=plan.seen("relearn"),
        code=plan.code("relearn"),
    message:
        "relearn {wildcards.localization} ({wildcards.task}, {wildcards.objective}, seed {wildcards.seed})"
    shell:
        "localized-unlearning relearn --config {params.config} --task {wildcards.task}"
        " --objective {wildcards.objective} --localization {wildcards.localization} --seed {wildcards.seed}"
        " --base-model {input.base_model} --split {input.split} --delta {input.delta}"
        " --prompts {input.prompts} --mmlu {input.mmlu} --text {input.text}"
        " --out-facts {output.facts} --out-multiple-choice {output.multiple_choice} --out-mmlu {output.mmlu} 2> {log}"
