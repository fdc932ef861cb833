"""Every architecture: where its components are, and the check of a base model that a user brings."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers

from architectures import CONFIGS, GROUPED, SIZES, build, tokenizer, written
from localized_unlearning.config.localization import Components
from localized_unlearning.errors import UserError
from localized_unlearning.interpretability import ablation
from localized_unlearning.models import activations, checking, components, derivation, folders, loading
from localized_unlearning.models.components import ADAPTERS

MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe")


def test_every_adapter_has_a_tiny_model() -> None:
    """Catches an architecture that is promised and never run."""
    made = {config().model_type for config in CONFIGS.values()}
    assert set(ADAPTERS) == made


@pytest.mark.parametrize("name", CONFIGS)
def test_the_adapter_is_what_depends_on_what(name: str) -> None:
    """Catches a head's weights looked for in the wrong rows, whatever the modules are called."""
    config = CONFIGS[name]()
    found = derivation.derive(derivation.tiny(config), layer=1)
    adapter, geometry = components.adapter_of(config), components.geometry_of(config)
    assert derivation.agrees(adapter, found, geometry)
    entry = derivation.adapter(found, geometry)
    if name in MIXTURES:
        assert adapter.experts and not set(adapter.modules) - {"q", "k", "v", "o"}
    elif not name.startswith("opt"):  # whose adapter lists what one of its sizes lacks
        assert entry == adapter


@pytest.mark.parametrize(
    "name", [n for n in CONFIGS if n != "opt_projected"]
)  # it normalises the stream itself
def test_ablated_attention_adds_its_mean_to_the_residual_stream(name: str) -> None:
    """Catches an output of W_O that a norm rescales before it is added (Gemma 2 and 3, OLMo 2)."""
    model = build(name)
    for path, parameter in model.named_parameters():  # an MLP that adds nothing
        if ".mlp." in path or ".fc" in path or "_moe." in path:
            parameter.zero_()
    windows = torch.tensor([[3, 9, 30, 12, 7], [3, 41, 5, 5, 8]])

    def added() -> list[torch.Tensor]:
        states = model.base_model(windows, use_cache=False, output_hidden_states=True).hidden_states
        return [after - before for before, after in itertools.pairwise(states[:-1])]  # the last is normalised

    plain, means = added(), ablation.mean_attention_outputs(model, windows, 0)
    with activations.attention_replaced(model, {1: means[1]}):
        replaced = added()
    wanted = plain[1].mean((0, 1)).expand_as(replaced[1])
    torch.testing.assert_close(replaced[1], wanted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(plain[1], wanted, atol=1e-3) and torch.equal(replaced[0], plain[0])


@pytest.mark.parametrize("name", CONFIGS)
def test_the_check_passes(name: str, tmp_path: Path) -> None:
    """Catches masks, positions, output layers and slices that are not the architecture's own."""
    folder = written(name, tmp_path)
    model, own = loading.load(folder, "float32", "cpu")
    assert checking.check_tokenizer(model, own)["bos"]
    assert checking.check_packing(model, own)["packing_difference"] < 1e-5
    found = checking.check_components(model)
    assert 0 < found["parameters_of_components"] < found["parameters"]
    headers = loading.from_folder(folder, "float32", "meta")
    assert {n: p.shape for n, p in headers.named_parameters()} == {
        n: p.shape for n, p in model.named_parameters()
    }


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("gpt2", {"transposed": False}),
        ("gpt2", {"layout": "separate"}),
        ("gpt_neox", {"layout": "separate"}),
        ("phi3", {"halves": False}),
        ("falcon_groups", {"layout": "separate"}),
    ],
)
def test_a_wrong_adapter_is_refused(
    name: str, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches an entry that is believed: components of the wrong rows, or more of them than there are weights."""
    model = build(name)
    kind = model.config.model_type
    monkeypatch.setitem(ADAPTERS, kind, dataclasses.replace(ADAPTERS[kind], **change))
    with pytest.raises(UserError, match=r"correct (the|its) adapter"):
        checking.check_components(model)


def test_a_mask_of_the_wrong_kind_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches sliding windows that are left out (a Mistral says nothing of layer types)."""
    model = build("mistral")
    monkeypatch.setattr("localized_unlearning.models.packing.window_of", lambda config: None)
    with pytest.raises(UserError, match="do not give what each prompt alone gives"):
        checking.check_packing(model, tokenizer())


def test_experts_are_refused_by_name() -> None:
    """Catches a KeyError where a mixture of experts has no up and down."""
    config = CONFIGS["mixtral"]()
    found = components.list_components(config, Components(include_gate=True))
    assert {c.kind for c in found} == {"q", "k", "v", "o"}
    with pytest.raises(UserError, match="its MLPs are a mixture of experts"):
        components.weight_of(components.Component(0, "up"), config)


# ---- folders that must not be used


def _config(folder: Path, **change: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))


def _tensors(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def _truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _adapter_only(folder: Path) -> None:
    for file in folder.glob("*"):
        file.unlink()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"")


def _lacking_shard(folder: Path) -> None:
    index = {"weight_map": {"lm_head.weight": "model.safetensors", "x": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _evil(folder: Path, **change: Any) -> None:
    marker = folder / "ran"
    code = f"open({str(marker)!r}, 'w').close()\nfrom transformers import LlamaConfig as Own, LlamaForCausalLM as OwnModel\n"
    (folder / "evil.py").write_text(code)
    places = {"AutoConfig": "evil.Own", "AutoModelForCausalLM": "evil.OwnModel"}
    _config(folder, auto_map=places, **change)


def _no_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (_truncate, "model.safetensors has .* bytes where its header says"),
    "garbage": (
        lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 4000),
        "model.safetensors has no safetensors header",
    ),
    "pointer": (
        lambda f: (f / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid x\n"),
        "Git LFS pointer.*git lfs pull",
    ),
    "pickle": (_pickle, r"as pickles only \(pytorch_model.bin\).*save_pretrained"),
    "empty": (lambda f: (f / "model.safetensors").unlink(), "holds no .safetensors weights"),
    "adapter only": (_adapter_only, r"holds only an adapter \(adapter_config.json\): merge it"),
    "adapter beside": (lambda f: (f / "adapter_config.json").write_text("{}"), "holds an adapter .*: merge it"),
    "lacking shard": (_lacking_shard, "lacks model-00002-of-00002.safetensors, which model.safetensors.index.json names"),
    **{
        method: (
            functools.partial(_config, quantization_config={"quant_method": method}),
            f"is quantized .*method {method}",
        )
        for method in ("bitsandbytes", "gptq", "awq", "fp8", "mxfp4")
    },
    "prefix": (
        lambda f: _tensors(f, lambda d: {f"_orig_mod.{n}": v for n, v in d.items()}),
        r"lacks tensors .*drawn at random \(.*\) *and|lacks tensors .*drawn at random",
    ),
    "missing": (
        lambda f: _tensors(f, lambda d: {n: v for n, v in d.items() if n != "lm_head.weight"}),
        r"lacks tensors .*\(lm_head.weight\)",
    ),
    "unexpected": (
        lambda f: _tensors(f, lambda d: {**d, "extra.weight": torch.zeros(2)}),
        r"has tensors that no part of the model takes \(extra.weight\)",
    ),
    "width": (lambda f: _config(f, intermediate_size=24), r"tensors of another shape .* and 8 more\)"),
    "own code": (lambda f: _evil(f, model_type="evil"), "needs code of its own .*auto_map"),
    "unknown": (lambda f: _config(f, model_type="nothing"), "config.json of llama cannot be used"),
    "no adapter": (lambda f: _config(f, model_type="bloom"), "no component adapter for model type 'bloom' .there are"),
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "broken config": (lambda f: (f / "config.json").write_text("{"), "config.json is no JSON"),
    "no tokenizer": (_no_tokenizer, "has no tokenizer .*put the model's tokenizer files there"),
}  # fmt: skip


@pytest.mark.parametrize("fault", BAD)
@pytest.mark.parametrize("device", ["cpu", "cpu:0", "meta"], ids=["load", "straight to a device", "headers"])
def test_a_bad_folder_is_one_sentence(
    fault: str, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches weights drawn at random, code of a folder that runs, and tracebacks; from headers too."""
    folder = written("llama", tmp_path)
    spoil, sentence = BAD[fault]
    spoil(folder)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on stdin"))
    with pytest.raises(UserError, match=sentence) as error:
        loading.from_folder(folder, "float32", device)
    assert "\n" not in str(error.value) and not (folder / "ran").exists()


class _Unknown(NamedTuple):
    """An architecture of transformers that has no adapter, and what its entry must say."""

    config: Any
    said: str


UNKNOWN = {
    "separate": _Unknown(
        transformers.StableLmConfig(**GROUPED), "'q': 'self_attn.q_proj', 'k': 'self_attn.k_proj'"
    ),
    "no gate": _Unknown(transformers.Starcoder2Config(**GROUPED), "'up': 'mlp.c_fc', 'down': 'mlp.c_proj'"),
    "state space": _Unknown(transformers.MambaConfig(**SIZES), "no entry could be derived for it"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_the_entry_that_is_missing_is_derived(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches an entry that names other modules, does not pass the check, or is a traceback where there is none."""
    config, said = UNKNOWN[name]
    (tmp_path / "config.json").write_text(config.to_json_string())
    sentence = derivation.entry_for(tmp_path)
    assert said in sentence and "\n" not in sentence
    if name == "state space":
        return
    kind, _, entry = sentence.partition("for ADAPTERS: ")[2].partition(": ")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no component adapter"):
        loading.from_folder(tmp_path, "float32")
    written_out = eval(entry, {"Adapter": components.Adapter})  # as a user pastes it
    monkeypatch.setitem(ADAPTERS, kind.strip("'"), written_out)
    checked = checking.check(loading.from_folder(tmp_path, "float32"), tokenizer())
    assert checked["packing_difference"] < 1e-5


def test_weights_that_go_straight_to_a_device_are_the_same(tmp_path: Path) -> None:
    """Catches another type, hooks around the modules, or a tied head that is loaded apart."""
    folder = written("gemma", tmp_path)
    host, device = (loading.from_folder(folder, "bfloat16", where) for where in ("cpu", "cpu:0"))
    assert host.state_dict().keys() == device.state_dict().keys()
    assert all(torch.equal(value, device.state_dict()[name]) for name, value in host.state_dict().items())
    assert device.get_output_embeddings().weight is device.get_input_embeddings().weight
    assert not any(p.requires_grad for p in device.parameters()) and device.dtype == torch.bfloat16


def test_code_beside_a_known_architecture_is_not_run(tmp_path: Path) -> None:
    """Catches auto_map that takes the place of transformers' own class."""
    folder = written("llama", tmp_path)
    _evil(folder)
    model = loading.from_folder(folder, "float32")
    assert type(model).__module__.startswith("transformers.") and not (folder / "ran").exists()


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    """Catches ids beyond the embedding, which fail after hours, and an end-of-text token behind every prompt."""
    from tokenizers import processors

    model, own = build("llama"), tokenizer()
    checking.check_tokenizer(model, own)
    model.resize_token_embeddings(100)
    with pytest.raises(UserError, match="bring the tokenizer of this very model"):
        checking.check_tokenizer(model, own)
    ending = type(own)(
        tokenizer_object=type(own._tokenizer).from_str(own._tokenizer.to_str()), eos_token="<eos>"
    )
    ending._tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", own.convert_tokens_to_ids("<eos>"))]
    )
    with pytest.raises(UserError, match="changes the tokens of a prompt"):
        checking.check_tokenizer(build("llama"), ending)


def test_faults_are_all_named(tmp_path: Path) -> None:
    """Catches a preflight that says one fault at a time."""
    folder = written("llama", tmp_path)
    _truncate(folder)
    _no_tokenizer(folder)
    assert len(list(folders.faults(folder))) == 2
    assert not list(folders.faults(written("gpt2", tmp_path)))


# ---- against TransformerLens


def _entries(model: Any, component: components.Component) -> set[int]:
    part = components.weight_of(component, model.config)
    weight = model.get_parameter(part.parameter)
    index = slice(None) if part.index is None else list(part.index)
    return set((weight[index] if part.dim == 0 else weight[:, index]).flatten().long().tolist())


@pytest.mark.parametrize("name", [n for n in CONFIGS if n not in ("falcon_groups", "opt_projected")])
def test_components_are_transformer_lens_own(name: str) -> None:
    """Catches a matrix or a head that TransformerLens finds elsewhere: each weight is a number of its own.

    Left out: Falcon's groups, which TransformerLens reads as one key head and cannot build.
    """
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    model = build(name)
    first = 1
    with torch.no_grad():
        for parameter in model.parameters():
            numbers = torch.arange(first, first + parameter.numel(), dtype=torch.float64)
            parameter.copy_(numbers.view(parameter.shape))
            first += parameter.numel()
    geometry = components.geometry_of(model.config)
    listed = components.list_components(model.config, Components(granularity="head", include_gate=True))
    expected = {c: _entries(model, c) for c in listed if c.layer == 1}
    bridge = build_bridge_from_module(model, type(model).__name__, hf_config=model.config, tokenizer=None)
    found: dict[components.Component, set[int]] = {}
    for kind, names in {"q": "W_Q", "k": "W_K", "v": "W_V", "o": "W_O"}.items():
        values = getattr(bridge, names)[1]
        for head in range(geometry.kv_heads if kind in "kv" else geometry.heads):
            found[components.Component(1, kind, head)] = set(values[head].flatten().long().tolist())  # type: ignore[arg-type]
    for kind, path in {"up": "in", "gate": "gate", "down": "out"}.items():
        if components.Component(1, kind) in expected:  # type: ignore[arg-type]
            weight = getattr(bridge.blocks[1].mlp, path).weight
            found[components.Component(1, kind)] = set(weight.flatten().long().tolist())  # type: ignore[arg-type]
    assert found == expected
