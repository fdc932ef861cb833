# Evaluations branch off each checkpoint, each a job of its own (3.1.1); a sweep asks at ever larger edits (3.2).
# They go before other work, so that those of one checkpoint follow one another and its model is loaded once; and the text
# before the others, since it reads the base model before the delta is put over it.


rule facts:
    """Ask a model for the facts, in every configured prompt."""
    input:
        unpack(plan.inputs("facts")),
    output:
        **plan.outputs("facts", directory),
    log:
        plan.log("facts"),
    conda:
        "../../envs/cpu.yaml"
    priority: 1
    threads: plan.config.compute.threads
    resources:
        mem_mb=plan.memory("facts"),
        runtime=plan.runtime("facts"),
    params:
        **plan.params("facts"),
    message:
        "ask {wildcards.localization} for the facts (base {wildcards.base_seed}, {wildcards.task}, {wildcards.objective}, seed {wildcards.seed})"
    shell:
        plan.command("facts")


rule multiple_choice:
    """Ask a model for the facts by multiple choice."""
    input:
        unpack(plan.inputs("multiple_choice")),
    output:
        **plan.outputs("multiple_choice", directory),
    log:
        plan.log("multiple_choice"),
    conda:
        "../../envs/cpu.yaml"
    priority: 1
    threads: plan.config.compute.threads
    resources:
        mem_mb=plan.memory("multiple_choice"),
        runtime=plan.runtime("multiple_choice"),
    params:
        **plan.params("multiple_choice"),
    message:
        "ask {wildcards.localization} by multiple choice (base {wildcards.base_seed}, {wildcards.task}, {wildcards.objective}, seed {wildcards.seed})"
    shell:
        plan.command("multiple_choice")


rule mmlu:
    """Ask a model general-knowledge questions in MMLU's format."""
    input:
        unpack(plan.inputs("mmlu")),
    output:
        **plan.outputs("mmlu", directory),
    log:
        plan.log("mmlu"),
    conda:
        "../../envs/cpu.yaml"
    priority: 1
    threads: plan.config.compute.threads
    resources:
        mem_mb=plan.memory("mmlu"),
        runtime=plan.runtime("mmlu"),
    params:
        **plan.params("mmlu"),
    message:
        "ask {wildcards.localization} general knowledge (base {wildcards.base_seed}, {wildcards.task}, {wildcards.objective}, seed {wildcards.seed})"
    shell:
        plan.command("mmlu")


rule text:
    """Measure a model's loss on held-out plain text."""
    input:
        unpack(plan.inputs("text")),
    output:
        **plan.outputs("text", directory),
    log:
        plan.log("text"),
    conda:
        "../../envs/cpu.yaml"
    priority: 2
    threads: plan.config.compute.threads
    resources:
        mem_mb=plan.memory("text"),
        runtime=plan.runtime("text"),
    params:
        **plan.params("text"),
    message:
        "read held-out text with {wildcards.localization} (base {wildcards.base_seed}, {wildcards.task}, {wildcards.objective}, seed {wildcards.seed})"
    shell:
        plan.command("text")


rule sweep:
    """Ask a model again and again as ever more of its weights are edited."""
    input:
        unpack(plan.inputs("sweep")),
    output:
        **plan.outputs("sweep", directory),
    log:
        plan.log("sweep"),
    conda:
        "../../envs/cpu.yaml"
    threads: plan.config.compute.threads
    resources:
        mem_mb=plan.memory("sweep"),
        runtime=plan.runtime("sweep"),
    params:
        **plan.params("sweep"),
    message:
        "sweep the edit sizes of {wildcards.localization} (base {wildcards.base_seed}, {wildcards.task}, seed {wildcards.seed})"
    shell:
        plan.command("sweep")


rule teachers:
    """Ask a model for the facts of pretraining."""
    input:
        unpack(plan.inputs("teachers")),
    output:
        **plan.outputs("teachers", directory),
    log:
        plan.log("teachers"),
    conda:
        "../../envs/cpu.yaml"
    priority: 1
    threads: plan.config.compute.threads
    resources:
        mem_mb=plan.memory("teachers"),
        runtime=plan.runtime("teachers"),
    params:
        **plan.params("teachers"),
    message:
        "ask {wildcards.localization} for the facts of pretraining (base {wildcards.base_seed}, {wildcards.task}, {wildcards.objective}, seed {wildcards.seed})"
    shell:
        plan.command("teachers")
