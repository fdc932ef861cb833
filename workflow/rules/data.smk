# Files from outside, what the base model knows of them, and the split of the facts.


localrules:
    fetch_folder,  # as fetch is: `use rule` does not hand that on


rule fetch:
    """Bring a file or folder from outside, and check its bytes."""
    input:
        unpack(plan.inputs("fetch")),
    output:
        **plan.outputs("fetch", str),
    log:
        plan.log("fetch"),
    wildcard_constraints:
        source=plan.fetched(folders=False),
    localrule: True
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=plan.memory("fetch"),
        runtime=plan.runtime("fetch"),
    params:
        **plan.params("fetch"),
    message:
        "fetch {wildcards.source}"
    shell:
        plan.command("fetch")


use rule fetch as fetch_folder with:
    output:
        **plan.outputs("fetch", directory, all_folders=True),
    wildcard_constraints:
        source=plan.fetched(folders=True),


rule counterfact:
    """Make facts and prompts of CounterFact, every fact with its own."""
    input:
        unpack(plan.inputs("counterfact")),
    output:
        **plan.outputs("counterfact", directory),
    log:
        plan.log("counterfact"),
    localrule: True
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=plan.memory("counterfact"),
        runtime=plan.runtime("counterfact"),
    params:
        **plan.params("counterfact"),
    message:
        "facts and prompts of CounterFact"
    shell:
        plan.command("counterfact")


rule check_model:
    """Check the base model, and that every prompt fits it, before anything is computed."""
    input:
        unpack(plan.inputs("check_model")),
    output:
        **plan.outputs("check_model", directory),
    log:
        plan.log("check_model"),
    conda:
        "../../envs/cpu.yaml"
    threads: plan.config.compute.threads
    resources:
        mem_mb=plan.memory("check_model"),
        runtime=plan.runtime("check_model"),
    params:
        **plan.params("check_model"),
    message:
        "check the base model (base {wildcards.base_seed})"
    shell:
        plan.command("check_model")


rule known_facts:
    """Find out which facts the base model knows."""
    input:
        unpack(plan.inputs("known_facts")),
    output:
        **plan.outputs("known_facts", directory),
    log:
        plan.log("known_facts"),
    conda:
        "../../envs/cpu.yaml"
    threads: plan.config.compute.threads
    resources:
        mem_mb=plan.memory("known_facts"),
        runtime=plan.runtime("known_facts"),
    params:
        **plan.params("known_facts"),
    message:
        "which facts the base model knows (base {wildcards.base_seed})"
    shell:
        plan.command("known_facts")


rule windows:
    """Tokenise the training text, once for all that train on it."""
    input:
        unpack(plan.inputs("windows")),
    output:
        **plan.outputs("windows", directory),
    log:
        plan.log("windows"),
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=plan.memory("windows"),
        runtime=plan.runtime("windows"),
    params:
        **plan.params("windows"),
    message:
        "the training text as windows of tokens (base {wildcards.base_seed})"
    shell:
        plan.command("windows")


rule split:
    """Split the known facts into train and test, forget and retain."""
    input:
        unpack(plan.inputs("split")),
    output:
        **plan.outputs("split", directory),
    log:
        plan.log("split"),
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=plan.memory("split"),
        runtime=plan.runtime("split"),
    params:
        **plan.params("split"),
    message:
        "split the facts (base {wildcards.base_seed}, {wildcards.task})"
    shell:
        plan.command("split")
