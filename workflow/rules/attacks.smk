# Is it gone, or only hidden? Relearning with LoRA (3.1.2, A.4.2) and probes on every layer (3.1.3, A.4.3).


rule relearn:
    """Retrain a few of the forgotten facts and ask for the others."""
    input:
        unpack(plan.inputs("relearn")),
    output:
        **plan.outputs("relearn", directory),
    log:
        plan.log("relearn"),
    conda:
        "../../envs/cpu.yaml"
    threads: plan.config.compute.threads
    resources:
        mem_mb=plan.memory("relearn"),
        runtime=plan.runtime("relearn"),
    params:
        **plan.params("relearn"),
    message:
        "relearn {wildcards.localization} (base {wildcards.base_seed}, {wildcards.task}, {wildcards.objective}, seed {wildcards.seed})"
    shell:
        plan.command("relearn")


rule probe:
    """Read the facts off a model's activations, layer by layer."""
    input:
        unpack(plan.inputs("probe")),
    output:
        **plan.outputs("probe", directory),
    log:
        plan.log("probe"),
    conda:
        "../../envs/cpu.yaml"
    priority: 1
    threads: plan.config.compute.threads
    resources:
        mem_mb=plan.memory("probe"),
        runtime=plan.runtime("probe"),
    params:
        **plan.params("probe"),
    message:
        "probe {wildcards.localization} (base {wildcards.base_seed}, {wildcards.task}, {wildcards.objective}, seed {wildcards.seed})"
    shell:
        plan.command("probe")


rule attack:
    """Attack a model."""
    input:
        unpack(plan.inputs("attack")),
    output:
        **plan.outputs("attack", directory),
    log:
        plan.log("attack"),
    conda:
        "../../envs/cpu.yaml"
    threads: plan.config.compute.threads
    resources:
        mem_mb=plan.memory("attack"),
        runtime=plan.runtime("attack"),
    params:
        **plan.params("attack"),
    message:
        "attack {wildcards.localization}: {wildcards.attack} (base {wildcards.base_seed}, {wildcards.task}, {wildcards.objective}, seed {wildcards.seed})"
    shell:
        plan.command("attack")


rule place:
    """Inject facts at one place, hold it to its requirements and grade the localizers."""
    input:
        unpack(plan.inputs("place")),
    output:
        **plan.outputs("place", directory),
    log:
        plan.log("place"),
    conda:
        "../../envs/cpu.yaml"
    threads: plan.config.compute.threads
    resources:
        mem_mb=plan.memory("place"),
        runtime=plan.runtime("place"),
    params:
        **plan.params("place"),
    message:
        "facts at {wildcards.place}, found by localizers (base {wildcards.base_seed})"
    shell:
        plan.command("place")


rule ask_place:
    """Inject facts at one place and unlearn them by many selections."""
    input:
        unpack(plan.inputs("question")),
    output:
        **plan.outputs("question", directory),
    log:
        plan.log("question"),
    conda:
        "../../envs/cpu.yaml"
    threads: plan.config.compute.threads
    resources:
        mem_mb=plan.memory("question"),
        runtime=plan.runtime("question"),
    params:
        **plan.params("question"),
    message:
        "facts at {wildcards.place}, unlearned by many selections (base {wildcards.base_seed})"
    shell:
        plan.command("question")
