# Files from outside, what the base model knows of them, and the split of the facts.


localrules:
    fetch_folder,  # as fetch is: `use rule` does not hand that on


rule fetch:
    """Bring a file or folder from outside, and check its bytes."""
    input:
        unpack(directives.inputs("fetch")),
    output:
        **directives.outputs("fetch", str),
    log:
        directives.log("fetch"),
    wildcard_constraints:
        source=directives.fetched(folders=False),
    localrule: True
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=directives.memory("fetch"),
        runtime=directives.runtime("fetch"),
    params:
        **directives.params("fetch"),
    message:
        "fetch {wildcards.source}"
    shell:
        directives.command("fetch")


use rule fetch as fetch_folder with:
    output:
        **directives.outputs("fetch", directory, all_folders=True),
    wildcard_constraints:
        source=directives.fetched(folders=True),


rule counterfact:
    """Make facts and prompts of CounterFact, every fact with its own."""
    input:
        unpack(directives.inputs("counterfact")),
    output:
        **directives.outputs("counterfact", directory),
    log:
        directives.log("counterfact"),
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=directives.memory("counterfact"),
        runtime=directives.runtime("counterfact"),
    params:
        **directives.params("counterfact"),
    message:
        "facts and prompts of CounterFact"
    shell:
        directives.command("counterfact")


rule check_model:
    """Check the base model, and that every prompt fits it, before anything is computed."""
    input:
        unpack(directives.inputs("check_model")),
    output:
        **directives.outputs("check_model", directory),
    log:
        directives.log("check_model"),
    conda:
        "../../envs/cpu.yaml"
    threads: directives.config.compute.threads
    resources:
        mem_mb=directives.memory("check_model"),
        runtime=directives.runtime("check_model"),
    params:
        **directives.params("check_model"),
    message:
        "check the base model (base {wildcards.base_seed})"
    shell:
        directives.command("check_model")


rule known_facts:
    """Find out which facts the base model knows."""
    input:
        unpack(directives.inputs("known_facts")),
    output:
        **directives.outputs("known_facts", directory),
    log:
        directives.log("known_facts"),
    conda:
        "../../envs/cpu.yaml"
    threads: directives.config.compute.threads
    resources:
        mem_mb=directives.memory("known_facts"),
        runtime=directives.runtime("known_facts"),
    params:
        **directives.params("known_facts"),
    message:
        "which facts the base model knows (base {wildcards.base_seed})"
    shell:
        directives.command("known_facts")


rule windows:
    """Tokenise the training text, once for all that train on it."""
    input:
        unpack(directives.inputs("windows")),
    output:
        **directives.outputs("windows", directory),
    log:
        directives.log("windows"),
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=directives.memory("windows"),
        runtime=directives.runtime("windows"),
    params:
        **directives.params("windows"),
    message:
        "the training text as windows of tokens (base {wildcards.base_seed})"
    shell:
        directives.command("windows")


rule split:
    """Split the known facts into train and test, forget and retain."""
    input:
        unpack(directives.inputs("split")),
    output:
        **directives.outputs("split", directory),
    log:
        directives.log("split"),
    conda:
        "../../envs/cpu.yaml"
    resources:
        mem_mb=directives.memory("split"),
        runtime=directives.runtime("split"),
    params:
        **directives.params("split"),
    message:
        "split the facts (base {wildcards.base_seed}, {wildcards.task})"
    shell:
        directives.command("split")
