# Latent knowledge: probes on every layer of a trained model (3.1.3, A.4.3).


rule probe:
    input:
        base_model=f"{plan.results}/base_model",
        split=f"{plan.results}/{{task}}/split.parquet",
        delta=plan.delta_for,
        prompts=plan.config.prompts.file,
    output:
        f"{plan.results}/{{task}}/{{objective}}/{{localization}}/seed{{seed}}/probes.parquet",
    log:
        f"logs/{plan.config.run}/{{task}}/{{objective}}/{{localization}}/seed{{seed}}/probe.log",
    benchmark:
        f"logs/{plan.config.run}/{{task}}/{{objective}}/{{localization}}/seed{{seed}}/probe.tsv"
    conda:
        "../../envs/cpu.yaml"
    threads: plan.config.compute.threads
    resources:
        mem_mb=plan.memory("probe"),
        runtime=plan.runtime("probe"),
    params:
        config=plan.resolved,
        settings=plan.seen("probe"),
        code=plan.code("probe"),
    message:
        "probe {wildcards.localization} ({wildcards.task}, {wildcards.objective}, seed {wildcards.seed})"
    shell:
        "localized-unlearning probe --config {params.config} --task {wildcards.task}"
        " --objective {wildcards.objective} --localization {wildcards.localization} --seed {wildcards.seed}"
        " --base-model {input.base_model} --split {input.split} --delta '{input.delta}'"
        " --prompts {input.prompts} --out-probes {output} 2> {log}"
