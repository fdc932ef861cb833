# Where the base model keeps its facts (A.2).


rule layer_probes:
    input:
        base_model=f"{plan.results}/base_model",
        known=f"{plan.results}/known.parquet",
        prompts=plan.config.prompts.file,
        text=plan.source("text.held_out"),
    output:
        f"{plan.results}/interpretability/layer_probes.parquet",
    log:
        f"logs/{plan.config.run}/layer_probes.log",
    benchmark:
        f"logs/{plan.config.run}/layer_probes.tsv"
    conda:
        "../../envs/cpu.yaml"
    threads: plan.config.compute.threads
    resources:
        mem_mb=plan.memory("layer_probes"),
        runtime=plan.runtime("layer_probes"),
    params:
        config=plan.resolved,
        settings=plan.seen("layer_probes"),
        code=plan.code("layer_probes"),
    message:
        "probe the layers of the base model"
    shell:
        "localized-unlearning layer_probes --config {params.config} --base-model {input.base_model}"
        " --known {input.known} --prompts {input.prompts} --text {input.text} --out-probes {output} 2> {log}"


rule head_ablation:
    input:
        base_model=f"{plan.results}/base_model",
        known=f"{plan.results}/known.parquet",
        prompts=plan.config.prompts.file,
        text=plan.source("text.held_out"),
    output:
        f"{plan.results}/interpretability/head_ablation.parquet",
    log:
        f"logs/{plan.config.run}/head_ablation.log",
    benchmark:
        f"logs/{plan.config.run}/head_ablation.tsv"
    conda:
        "../../envs/cpu.yaml"
    threads: plan.config.compute.threads
    resources:
        mem_mb=plan.memory("head_ablation"),
        runtime=plan.runtime("head_ablation"),
    params:
        config=plan.resolved,
        settings=plan.seen("head_ablation"),
        code=plan.code("head_ablation"),
    message:
        "ablate the heads of the lookup layers"
    shell:
        "localized-unlearning head_ablation --config {params.config} --base-model {input.base_model}"
        " --known {input.known} --prompts {input.prompts} --text {input.text} --out-ablation {output} 2> {log}"
