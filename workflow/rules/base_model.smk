# The base model: pretrained here, converted from GGUF, or downloaded; and its card.

if plan.config.model.kind == "organism":

    rule pretrain:
        """Pretrain the model organism."""
        input:
            unpack(plan.inputs("pretrain")),
        output:
            **plan.outputs("pretrain", directory),
        log:
            plan.log("pretrain"),
        conda:
            "../../envs/cpu.yaml"
        threads: plan.config.organism.threads
        resources:
            mem_mb=plan.memory("pretrain"),
            runtime=plan.runtime("pretrain"),
        params:
            **plan.params("pretrain"),
        message:
            "pretrain the organism (base {wildcards.base_seed})"
        shell:
            plan.command("pretrain")

    if plan.config.has_injection:

        rule inject:
            """Teach the organism facts in known matrices."""
            input:
                unpack(plan.inputs("inject")),
            output:
                **plan.outputs("inject", directory),
            log:
                plan.log("inject"),
            conda:
                "../../envs/cpu.yaml"
            threads: plan.config.organism.threads
            resources:
                mem_mb=plan.memory("inject"),
                runtime=plan.runtime("inject"),
            params:
                **plan.params("inject"),
            message:
                "teach the organism facts in known matrices (base {wildcards.base_seed})"
            shell:
                plan.command("inject")

        rule gold:
            """Make the model that never learned the forget set."""
            input:
                unpack(plan.inputs("gold")),
            output:
                **plan.outputs("gold", directory),
            log:
                plan.log("gold"),
            conda:
                "../../envs/cpu.yaml"
            threads: plan.config.organism.threads
            resources:
                mem_mb=plan.memory("gold"),
                runtime=plan.runtime("gold"),
            params:
                **plan.params("gold"),
            message:
                "make the model that never learned the forget set (base {wildcards.base_seed}, {wildcards.task})"
            shell:
                plan.command("gold")

elif plan.config.model.kind == "gguf":

    rule convert:
        """Convert a GGUF file to a standard model folder."""
        input:
            unpack(plan.inputs("convert")),
        output:
            **plan.outputs("convert", directory),
        log:
            plan.log("convert"),
        conda:
            "../../envs/cpu.yaml"
        resources:
            mem_mb=plan.memory("convert"),
            runtime=plan.runtime("convert"),
        params:
            **plan.params("convert"),
        message:
            "convert the GGUF model"
        shell:
            plan.command("convert")

elif plan.config.model.kind == "huggingface":

    rule download:
        """Bring the base model from the hub or a local folder."""
        input:
            unpack(plan.inputs("download")),
        output:
            **plan.outputs("download", directory),
        log:
            plan.log("download"),
        localrule: True
        conda:
            "../../envs/cpu.yaml"
        resources:
            mem_mb=plan.memory("download"),
            runtime=plan.runtime("download"),
        params:
            **plan.params("download"),
        message:
            "fetch the base model"
        shell:
            plan.command("download")


rule model_card:
    """Measure the base model and hold it to its requirements."""
    input:
        unpack(plan.inputs("model_card")),
    output:
        **plan.outputs("model_card", directory),
    log:
        plan.log("model_card"),
    conda:
        "../../envs/cpu.yaml"
    threads: plan.config.compute.threads
    resources:
        mem_mb=plan.memory("model_card"),
        runtime=plan.runtime("model_card"),
    params:
        **plan.params("model_card"),
    message:
        "measure the base model (base {wildcards.base_seed})"
    shell:
        plan.command("model_card")
