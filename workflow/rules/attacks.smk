# Is it gone, or only hidden? Relearning with LoRA (3.1.2, A.4.2) and probes on every layer (3.1.3, A.4.3).


rule relearn:
    """Retrain a few of the forgotten facts and ask for the others."""
    input:
        unpack(directives.inputs("relearn")),
    output:
        **directives.outputs("relearn", directory),
    log:
        directives.log("relearn"),
    conda:
        "../../envs/cpu.yaml"
    threads: directives.config.compute.threads
    resources:
        mem_mb=directives.memory("relearn"),
        runtime=directives.runtime("relearn"),
    params:
        **directives.params("relearn"),
    message:
        "relearn {wildcards.localization} (base {wildcards.base_seed}, {wildcards.task}, {wildcards.objective}, seed {wildcards.seed})"
    shell:
        directives.command("relearn")


rule probe:
    """Read the facts off a model's activations, layer by layer."""
    input:
        unpack(directives.inputs("probe")),
    output:
        **directives.outputs("probe", directory),
    log:
        directives.log("probe"),
    priority: 1
    conda:
        "../../envs/cpu.yaml"
    threads: directives.config.compute.threads
    resources:
        mem_mb=directives.memory("probe"),
        runtime=directives.runtime("probe"),
    params:
        **directives.params("probe"),
    message:
        "probe {wildcards.localization} (base {wildcards.base_seed}, {wildcards.task}, {wildcards.objective}, seed {wildcards.seed})"
    shell:
        directives.command("probe")


rule attack:
    """Attack a model."""
    input:
        unpack(directives.inputs("attack")),
    output:
        **directives.outputs("attack", directory),
    log:
        directives.log("attack"),
    conda:
        "../../envs/cpu.yaml"
    threads: directives.config.compute.threads
    resources:
        mem_mb=directives.memory("attack"),
        runtime=directives.runtime("attack"),
    params:
        **directives.params("attack"),
    message:
        "attack {wildcards.localization}: {wildcards.attack} (base {wildcards.base_seed}, {wildcards.task}, {wildcards.objective}, seed {wildcards.seed})"
    shell:
        directives.command("attack")


rule place:
    """Inject facts at one place, hold it to its requirements and grade the localizers."""
    input:
        unpack(directives.inputs("place")),
    output:
        **directives.outputs("place", directory),
    log:
        directives.log("place"),
    conda:
        "../../envs/cpu.yaml"
    threads: directives.config.compute.threads
    resources:
        mem_mb=directives.memory("place"),
        runtime=directives.runtime("place"),
    params:
        **directives.params("place"),
    message:
        "facts at {wildcards.place}, found by localizers (base {wildcards.base_seed})"
    shell:
        directives.command("place")


rule ask_place:
    """Inject facts at one place and unlearn them by many selections."""
    input:
        unpack(directives.inputs("question")),
    output:
        **directives.outputs("question", directory),
    log:
        directives.log("question"),
    conda:
        "../../envs/cpu.yaml"
    threads: directives.config.compute.threads
    resources:
        mem_mb=directives.memory("question"),
        runtime=directives.runtime("question"),
    params:
        **directives.params("question"),
    message:
        "facts at {wildcards.place}, unlearned by many selections (base {wildcards.base_seed})"
    shell:
        directives.command("question")
