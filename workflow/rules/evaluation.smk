# Evaluations branch off each checkpoint, each a job of its own (3.1.1); a sweep asks at ever larger edits (3.2).
# They go before other work, so that those of one checkpoint follow one another and its model is loaded once; and the text
# before the others, since it reads the base model before the delta is put over it.


rule facts:
    """Ask a model for the facts, in every configured prompt."""
    input:
        unpack(directives.inputs("facts")),
    output:
        **directives.outputs("facts", directory),
    log:
        directives.log("facts"),
    priority: 1
    conda:
        "../../envs/cpu.yaml"
    threads: directives.config.compute.threads
    resources:
        mem_mb=directives.memory("facts"),
        runtime=directives.runtime("facts"),
    params:
        **directives.params("facts"),
    message:
        "ask {wildcards.localization} for the facts (base {wildcards.base_seed}, {wildcards.task}, {wildcards.objective}, seed {wildcards.seed})"
    shell:
        directives.command("facts")


rule multiple_choice:
    """Ask a model for the facts by multiple choice."""
    input:
        unpack(directives.inputs("multiple_choice")),
    output:
        **directives.outputs("multiple_choice", directory),
    log:
        directives.log("multiple_choice"),
    priority: 1
    conda:
        "../../envs/cpu.yaml"
    threads: directives.config.compute.threads
    resources:
        mem_mb=directives.memory("multiple_choice"),
        runtime=directives.runtime("multiple_choice"),
    params:
        **directives.params("multiple_choice"),
    message:
        "ask {wildcards.localization} by multiple choice (base {wildcards.base_seed}, {wildcards.task}, {wildcards.objective}, seed {wildcards.seed})"
    shell:
        directives.command("multiple_choice")


rule mmlu:
    """Ask a model general-knowledge questions in MMLU's format."""
    input:
        unpack(directives.inputs("mmlu")),
    output:
        **directives.outputs("mmlu", directory),
    log:
        directives.log("mmlu"),
    priority: 1
    conda:
        "../../envs/cpu.yaml"
    threads: directives.config.compute.threads
    resources:
        mem_mb=directives.memory("mmlu"),
        runtime=directives.runtime("mmlu"),
    params:
        **directives.params("mmlu"),
    message:
        "ask {wildcards.localization} general knowledge (base {wildcards.base_seed}, {wildcards.task}, {wildcards.objective}, seed {wildcards.seed})"
    shell:
        directives.command("mmlu")


rule text:
    """Measure a model's loss on held-out plain text."""
    input:
        unpack(directives.inputs("text")),
    output:
        **directives.outputs("text", directory),
    log:
        directives.log("text"),
    priority: 2
    conda:
        "../../envs/cpu.yaml"
    threads: directives.config.compute.threads
    resources:
        mem_mb=directives.memory("text"),
        runtime=directives.runtime("text"),
    params:
        **directives.params("text"),
    message:
        "read held-out text with {wildcards.localization} (base {wildcards.base_seed}, {wildcards.task}, {wildcards.objective}, seed {wildcards.seed})"
    shell:
        directives.command("text")


rule sweep:
    """Ask a model again and again as ever more of its weights are edited."""
    input:
        unpack(directives.inputs("sweep")),
    output:
        **directives.outputs("sweep", directory),
    log:
        directives.log("sweep"),
    conda:
        "../../envs/cpu.yaml"
    threads: directives.config.compute.threads
    resources:
        mem_mb=directives.memory("sweep"),
        runtime=directives.runtime("sweep"),
    params:
        **directives.params("sweep"),
    message:
        "sweep the edit sizes of {wildcards.localization} (base {wildcards.base_seed}, {wildcards.task}, seed {wildcards.seed})"
    shell:
        directives.command("sweep")


rule teachers:
    """Ask a model for the facts of pretraining."""
    input:
        unpack(directives.inputs("teachers")),
    output:
        **directives.outputs("teachers", directory),
    log:
        directives.log("teachers"),
    priority: 1
    conda:
        "../../envs/cpu.yaml"
    threads: directives.config.compute.threads
    resources:
        mem_mb=directives.memory("teachers"),
        runtime=directives.runtime("teachers"),
    params:
        **directives.params("teachers"),
    message:
        "ask {wildcards.localization} for the facts of pretraining (base {wildcards.base_seed}, {wildcards.task}, {wildcards.objective}, seed {wildcards.seed})"
    shell:
        directives.command("teachers")
