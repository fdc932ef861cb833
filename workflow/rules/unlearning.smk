# Unlearning (2.4, A.3): a delta for each fine-tuned model, a mask for each masked one.


rule finetune:
    """Train the chosen weights until the facts are gone."""
    input:
        unpack(plan.inputs("finetune")),
    output:
        **plan.outputs("finetune", directory),
    log:
        plan.log("finetune"),
    conda:
        "../../envs/cpu.yaml"
    threads: plan.config.compute.threads
    resources:
        mem_mb=plan.memory("finetune"),
        runtime=plan.runtime("finetune"),
    params:
        **plan.params("finetune"),
    message:
        "fine-tune {wildcards.localization} (base {wildcards.base_seed}, {wildcards.task}, {wildcards.objective}, seed {wildcards.seed})"
    shell:
        plan.command("finetune")


rule mask:
    """Train a mask over the chosen weights."""
    input:
        unpack(plan.inputs("mask")),
    output:
        **plan.outputs("mask", directory),
    log:
        plan.log("mask"),
    conda:
        "../../envs/cpu.yaml"
    threads: plan.config.compute.threads
    resources:
        mem_mb=plan.memory("mask"),
        runtime=plan.runtime("mask"),
    params:
        **plan.params("mask"),
    message:
        "mask {wildcards.localization} (base {wildcards.base_seed}, {wildcards.task}, seed {wildcards.seed})"
    shell:
        plan.command("mask")
