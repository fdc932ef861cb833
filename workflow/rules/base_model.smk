# The base model: pretrained here, converted from GGUF, or downloaded; and its card.
# What trains an organism goes first: the longest jobs, and nothing ends before them.

if directives.config.model.kind == "organism":

    rule pretrain:
        """Pretrain the model organism."""
        input:
            unpack(directives.inputs("pretrain")),
        output:
            **directives.outputs("pretrain", directory),
        log:
            directives.log("pretrain"),
        priority: 3
        conda:
            "../../envs/cpu.yaml"
        threads: directives.config.organism.threads
        resources:
            mem_mb=directives.memory("pretrain"),
            runtime=directives.runtime("pretrain"),
        params:
            **directives.params("pretrain"),
        message:
            "pretrain the organism (base {wildcards.base_seed})"
        shell:
            directives.command("pretrain")

    if directives.config.has_injection:

        rule inject:
            """Teach the organism facts in known matrices."""
            input:
                unpack(directives.inputs("inject")),
            output:
                **directives.outputs("inject", directory),
            log:
                directives.log("inject"),
            priority: 3
            conda:
                "../../envs/cpu.yaml"
            threads: directives.config.organism.threads
            resources:
                mem_mb=directives.memory("inject"),
                runtime=directives.runtime("inject"),
            params:
                **directives.params("inject"),
            message:
                "teach the organism facts in known matrices (base {wildcards.base_seed})"
            shell:
                directives.command("inject")

        rule gold:
            """Make the model that never learned the forget set."""
            input:
                unpack(directives.inputs("gold")),
            output:
                **directives.outputs("gold", directory),
            log:
                directives.log("gold"),
            priority: 3
            conda:
                "../../envs/cpu.yaml"
            threads: directives.config.organism.threads
            resources:
                mem_mb=directives.memory("gold"),
                runtime=directives.runtime("gold"),
            params:
                **directives.params("gold"),
            message:
                "make the model that never learned the forget set (base {wildcards.base_seed}, {wildcards.task})"
            shell:
                directives.command("gold")

elif directives.config.model.kind == "gguf":

    rule convert:
        """Convert a GGUF file to a standard model folder."""
        input:
            unpack(directives.inputs("convert")),
        output:
            **directives.outputs("convert", directory),
        log:
            directives.log("convert"),
        conda:
            "../../envs/cpu.yaml"
        resources:
            mem_mb=directives.memory("convert"),
            runtime=directives.runtime("convert"),
        params:
            **directives.params("convert"),
        message:
            "convert the GGUF model"
        shell:
            directives.command("convert")

elif directives.config.model.kind == "huggingface":

    rule download:
        """Bring the base model from the hub or a local folder."""
        input:
            unpack(directives.inputs("download")),
        output:
            **directives.outputs("download", directory),
        log:
            directives.log("download"),
        localrule: True
        conda:
            "../../envs/cpu.yaml"
        resources:
            mem_mb=directives.memory("download"),
            runtime=directives.runtime("download"),
        params:
            **directives.params("download"),
        message:
            "fetch the base model"
        shell:
            directives.command("download")


rule model_card:
    """Measure the base model and hold it to its requirements."""
    input:
        unpack(directives.inputs("model_card")),
    output:
        **directives.outputs("model_card", directory),
    log:
        directives.log("model_card"),
    conda:
        "../../envs/cpu.yaml"
    threads: directives.config.compute.threads
    resources:
        mem_mb=directives.memory("model_card"),
        runtime=directives.runtime("model_card"),
    params:
        **directives.params("model_card"),
    message:
        "measure the base model (base {wildcards.base_seed})"
    shell:
        directives.command("model_card")
