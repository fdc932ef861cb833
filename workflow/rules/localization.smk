# Scores of components and the selections made from them (section 2.3).


rule score:
    """Score every component by one method."""
    input:
        unpack(directives.inputs("score")),
    output:
        **directives.outputs("score", directory),
    log:
        directives.log("score"),
    conda:
        "../../envs/cpu.yaml"
    threads: directives.config.compute.threads
    resources:
        mem_mb=directives.memory("score"),
        runtime=directives.runtime("score"),
    params:
        **directives.params("score"),
    message:
        "score components: {wildcards.scores} (base {wildcards.base_seed}, {wildcards.task})"
    shell:
        directives.command("score")


rule select:
    """Choose the components that a localization trains."""
    input:
        unpack(directives.inputs("select")),
    output:
        **directives.outputs("select", directory),
    log:
        directives.log("select"),
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=directives.memory("select"),
        runtime=directives.runtime("select"),
    params:
        **directives.params("select"),
    message:
        "select components: {wildcards.localization} (base {wildcards.base_seed}, {wildcards.task})"
    shell:
        directives.command("select")


rule select_for_mask:
    """Choose the components that a weight mask covers, where they are others."""
    input:
        unpack(directives.inputs("select_for_mask")),
    output:
        **directives.outputs("select_for_mask", directory),
    log:
        directives.log("select_for_mask"),
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=directives.memory("select_for_mask"),
        runtime=directives.runtime("select_for_mask"),
    params:
        **directives.params("select_for_mask"),
    message:
        "select components to mask: {wildcards.localization} (base {wildcards.base_seed}, {wildcards.task})"
    shell:
        directives.command("select_for_mask")


rule select_weights:
    """Choose the single weights that a localization trains."""
    input:
        unpack(directives.inputs("select_weights")),
    output:
        **directives.outputs("select_weights", directory),
    log:
        directives.log("select_weights"),
    conda:
        "../../envs/cpu.yaml"
    threads: directives.config.compute.threads
    resources:
        mem_mb=directives.memory("select_weights"),
        runtime=directives.runtime("select_weights"),
    params:
        **directives.params("select_weights"),
    message:
        "select single weights: {wildcards.localization} (base {wildcards.base_seed}, {wildcards.task})"
    shell:
        directives.command("select_weights")


rule faithfulness:
    """Keep or ablate what a localization chooses, and read what is left of the answers."""
    input:
        unpack(directives.inputs("faithfulness")),
    output:
        **directives.outputs("faithfulness", directory),
    log:
        directives.log("faithfulness"),
    conda:
        "../../envs/cpu.yaml"
    threads: directives.config.compute.threads
    resources:
        mem_mb=directives.memory("faithfulness"),
        runtime=directives.runtime("faithfulness"),
    params:
        **directives.params("faithfulness"),
    message:
        "keep and ablate: {wildcards.localization} (base {wildcards.base_seed}, {wildcards.task})"
    shell:
        directives.command("faithfulness")
