# The base model: pretrained here, converted from GGUF, or downloaded; and its card.

if plan.config.model.kind == "organism":

    rule pretrain:
        input:
            athletes=plan.source("athletes.source"),
            prompts=plan.config.prompts.file,
            general_knowledge=plan.source("mmlu.source"),
            text=plan.source("text.train"),
        output:
            directory(f"{plan.results}/base_model"),
        log:
            f"logs/{plan.config.run}/pretrain.log",
        benchmark:
            f"logs/{plan.config.run}/pretrain.tsv"
        conda:
            "../../envs/cpu.yaml"
        threads: workflow.resource_settings.cores or 2
        resources:
            mem_mb=plan.memory("pretrain"),
            runtime=plan.runtime("pretrain"),
        params:
            config=plan.resolved,
            settings=plan.seen("pretrain"),
            code=plan.code("pretrain"),
        message:
            "pretrain the organism"
        shell:
            "localized-unlearning pretrain --config {params.config} --athletes {input.athletes}"
            " --prompts {input.prompts} --general-knowledge {input.general_knowledge}"
            " --text {input.text} --out-model {output} 2> {log}"

elif plan.config.model.kind == "gguf":

    rule convert:
        input:
            gguf=plan.source("gguf"),
        output:
            directory(f"{plan.results}/base_model"),
        log:
            f"logs/{plan.config.run}/convert.log",
        benchmark:
            f"logs/{plan.config.run}/convert.tsv"
        conda:
            "../../envs/cpu.yaml"
        resources:
            mem_mb=plan.memory("convert"),
            runtime=plan.runtime("convert"),
        params:
            config=plan.resolved,
            settings=plan.seen("convert"),
            code=plan.code("convert"),
        message:
            "convert the GGUF model"
        shell:
            "localized-unlearning convert --config {params.config} --gguf {input.gguf} --out-model {output} 2> {log}"

else:

    rule download:
        output:
            directory(f"{plan.results}/base_model"),
        log:
            f"logs/{plan.config.run}/download.log",
        benchmark:
            f"logs/{plan.config.run}/download.tsv"
        localrule: True
        conda:
            "../../envs/cpu.yaml"
        resources:
            mem_mb=plan.memory("download"),
            runtime=plan.runtime("download"),
        params:
            config=plan.resolved,
            settings=plan.seen("download"),
            code=plan.code("download"),
        message:
            "fetch the base model"
        shell:
            "localized-unlearning download --config {params.config} --out-model {output} 2> {log}"


rule model_card:
    input:
        base_model=f"{plan.results}/base_model",
        known=f"{plan.results}/known.parquet",
        prompts=plan.config.prompts.file,
        mmlu=plan.source("mmlu.source"),
    output:
        json=f"{plan.results}/model_card.json",
        markdown=f"{plan.results}/model_card.md",
    log:
        f"logs/{plan.config.run}/model_card.log",
    benchmark:
        f"logs/{plan.config.run}/model_card.tsv"
    conda:
        "../../envs/cpu.yaml"
    threads: plan.config.compute.threads
    resources:
        mem_mb=plan.memory("model_card"),
        runtime=plan.runtime("model_card"),
    params:
        config=plan.resolved,
        settings=plan.seen("model_card"),
        code=plan.code("model_card"),
    message:
        "measure the base model"
    shell:
        "localized-unlearning model_card --config {params.config} --base-model {input.base_model}"
        " --known {input.known} --prompts {input.prompts} --mmlu {input.mmlu}"
        " --out-json {output.json} --out-markdown {output.markdown} 2> {log}"
