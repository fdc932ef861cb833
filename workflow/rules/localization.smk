# Scores of components and the selections made from them (section 2.3).


rule score:
    """Score every component by one method."""
    input:
        unpack(plan.inputs("score")),
    output:
        **plan.outputs("score", directory),
    log:
        plan.log("score"),
    conda:
        "../../envs/cpu.yaml"
    threads: plan.config.compute.threads
    resources:
        mem_mb=plan.memory("score"),
        runtime=plan.runtime("score"),
    params:
        **plan.params("score"),
    message:
        "score components: {wildcards.scores} (base {wildcards.base_seed}, {wildcards.task})"
    shell:
        plan.command("score")


rule select:
    """Choose the components that a localization trains."""
    input:
        unpack(plan.inputs("select")),
    output:
        **plan.outputs("select", directory),
    log:
        plan.log("select"),
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=plan.memory("select"),
        runtime=plan.runtime("select"),
    params:
        **plan.params("select"),
    message:
        "select components: {wildcards.localization} (base {wildcards.base_seed}, {wildcards.task})"
    shell:
        plan.command("select")


rule select_for_mask:
    """Choose the components that a weight mask covers, where they are others."""
    input:
        unpack(plan.inputs("select_for_mask")),
    output:
        **plan.outputs("select_for_mask", directory),
    log:
        plan.log("select_for_mask"),
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=plan.memory("select_for_mask"),
        runtime=plan.runtime("select_for_mask"),
    params:
        **plan.params("select_for_mask"),
    message:
        "select components to mask: {wildcards.localization} (base {wildcards.base_seed}, {wildcards.task})"
    shell:
        plan.command("select_for_mask")


rule select_weights:
    """Choose the single weights that a localization trains."""
    input:
        unpack(plan.inputs("select_weights")),
    output:
        **plan.outputs("select_weights", directory),
    log:
        plan.log("select_weights"),
    conda:
        "../../envs/cpu.yaml"
    threads: plan.config.compute.threads
    resources:
        mem_mb=plan.memory("select_weights"),
        runtime=plan.runtime("select_weights"),
    params:
        **plan.params("select_weights"),
    message:
        "select single weights: {wildcards.localization} (base {wildcards.base_seed}, {wildcards.task})"
    shell:
        plan.command("select_weights")


rule faithfulness:
    """Keep or ablate what a localization chooses, and read what is left of the answers."""
    input:
        unpack(plan.inputs("faithfulness")),
    output:
        **plan.outputs("faithfulness", directory),
    log:
        plan.log("faithfulness"),
    conda:
        "../../envs/cpu.yaml"
    threads: plan.config.compute.threads
    resources:
        mem_mb=plan.memory("faithfulness"),
        runtime=plan.runtime("faithfulness"),
    params:
        **plan.params("faithfulness"),
    message:
        "keep and ablate: {wildcards.localization} (base {wildcards.base_seed}, {wildcards.task})"
    shell:
        plan.command("faithfulness")
