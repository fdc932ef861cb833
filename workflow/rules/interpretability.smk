# Where the base model keeps its facts (A.2).


rule layer_probes:
    """Find the layers at which the base model's facts can be read."""
    input:
        unpack(directives.inputs("layer_probes")),
    output:
        **directives.outputs("layer_probes", directory),
    log:
        directives.log("layer_probes"),
    conda:
        "../../envs/cpu.yaml"
    threads: directives.config.compute.threads
    resources:
        mem_mb=directives.memory("layer_probes"),
        runtime=directives.runtime("layer_probes"),
    params:
        **directives.params("layer_probes"),
    message:
        "probe the layers of the base model (base {wildcards.base_seed})"
    shell:
        directives.command("layer_probes")


rule head_ablation:
    """Ablate the base model's attention heads one by one."""
    input:
        unpack(directives.inputs("head_ablation")),
    output:
        **directives.outputs("head_ablation", directory),
    log:
        directives.log("head_ablation"),
    conda:
        "../../envs/cpu.yaml"
    threads: directives.config.compute.threads
    resources:
        mem_mb=directives.memory("head_ablation"),
        runtime=directives.runtime("head_ablation"),
    params:
        **directives.params("head_ablation"),
    message:
        "ablate the heads of the lookup layers (base {wildcards.base_seed})"
    shell:
        directives.command("head_ablation")
