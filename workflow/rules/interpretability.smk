# Where the base model keeps its facts (A.2).


rule layer_probes:
    """Find the layers at which the base model's facts can be read."""
    input:
        unpack(plan.inputs("layer_probes")),
    output:
        **plan.outputs("layer_probes", directory),
    log:
        plan.log("layer_probes"),
    conda:
        "../../envs/cpu.yaml"
    threads: plan.config.compute.threads
    resources:
        mem_mb=plan.memory("layer_probes"),
        runtime=plan.runtime("layer_probes"),
    params:
        **plan.params("layer_probes"),
    message:
        "probe the layers of the base model (base {wildcards.base_seed})"
    shell:
        plan.command("layer_probes")


rule head_ablation:
    """Ablate the base model's attention heads one by one."""
    input:
        unpack(plan.inputs("head_ablation")),
    output:
        **plan.outputs("head_ablation", directory),
    log:
        plan.log("head_ablation"),
    conda:
        "../../envs/cpu.yaml"
    threads: plan.config.compute.threads
    resources:
        mem_mb=plan.memory("head_ablation"),
        runtime=plan.runtime("head_ablation"),
    params:
        **plan.params("head_ablation"),
    message:
        "ablate the heads of the lookup layers (base {wildcards.base_seed})"
    shell:
        plan.command("head_ablation")
