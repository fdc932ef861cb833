# Unlearning (2.4, A.3): a delta for each fine-tuned model, a mask for each masked one.


rule finetune:
    """Train the chosen weights until the facts are gone."""
    input:
        unpack(directives.inputs("finetune")),
    output:
        **directives.outputs("finetune", directory),
    log:
        directives.log("finetune"),
    conda:
        "../../envs/cpu.yaml"
    threads: directives.config.compute.threads
    resources:
        mem_mb=directives.memory("finetune"),
        runtime=directives.runtime("finetune"),
    params:
        **directives.params("finetune"),
    message:
        "fine-tune {wildcards.localization} (base {wildcards.base_seed}, {wildcards.task}, {wildcards.objective}, seed {wildcards.seed})"
    shell:
        directives.command("finetune")


rule mask:
    """Train a mask over the chosen weights."""
    input:
        unpack(directives.inputs("mask")),
    output:
        **directives.outputs("mask", directory),
    log:
        directives.log("mask"),
    conda:
        "../../envs/cpu.yaml"
    threads: directives.config.compute.threads
    resources:
        mem_mb=directives.memory("mask"),
        runtime=directives.runtime("mask"),
    params:
        **directives.params("mask"),
    message:
        "mask {wildcards.localization} (base {wildcards.base_seed}, {wildcards.task}, seed {wildcards.seed})"
    shell:
        directives.command("mask")
