"""Owns unpacking a GGUF file of the Llama family into a normal Hugging Face directory.

Quantised weights are dequantised, one tensor at a time. It does not run the model, and it knows
nothing of megatron-core: the directory is converted like any other.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mindspeed_llm.checkpoint.assets import sync_tree
from mindspeed_llm.checkpoint.directory import staging_beside
from mindspeed_llm.checkpoint.gguf_tokenizer import tokenizer_files
from mindspeed_llm.checkpoint.progress import ByteProgress
from mindspeed_llm.checkpoint.tensor_file import TensorFileWriter
from mindspeed_llm.errors import ConfigError, ModelError

_LAYER = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}  # fmt: skip
_WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def hf_name(name: str) -> str:
    """Hugging Face name of a GGUF tensor: blk.3.attn_q.weight -> model.layers.3.self_attn...

    Raises:
        ModelError: not a tensor of the Llama family.
    """
    parts = name.split(".")
    if len(parts) == 2 and parts[0] in _WHOLE and parts[1] == "weight":
        return f"{_WHOLE[parts[0]]}.weight"
    if len(parts) == 4 and parts[0] == "blk" and parts[1].isdecimal() and parts[2] in _LAYER:
        if parts[3] == "weight":
            return f"model.layers.{int(parts[1])}.{_LAYER[parts[2]]}.weight"
    raise ModelError(f"GGUF tensor {name!r} is not one of the Llama family's; use the model's own "
                     "Hugging Face directory")  # fmt: skip


def hf_config(values: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    """config.json for a GGUF file's key/value pairs; `names` are its tensors, in HF's spelling.

    Raises:
        ModelError: an architecture other than llama, or a setting that would change its meaning.
    """
    kind = values.get("general.architecture")
    if kind != "llama":
        raise ModelError(f"GGUF architecture {kind!r}; expected 'llama'; use the model's own "
                         "Hugging Face directory")  # fmt: skip
    scaled = sorted(key for key in values if key.startswith("llama.rope.scaling"))
    if scaled:
        raise ModelError(f"the GGUF file has {scaled[0]}: scaled rotary positions are not read; "
                         "use the model's own Hugging Face directory")  # fmt: skip
    heads, width = values["llama.attention.head_count"], values["llama.embedding_length"]
    head_dim = values.get("llama.attention.key_length", width // heads)
    if values.get("llama.rope.dimension_count", head_dim) != head_dim:
        raise ModelError("the GGUF file rotates a part of each head only, which is not supported")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": values["llama.feed_forward_length"],
        "num_hidden_layers": values["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": values.get("llama.attention.head_count_kv", heads),
        "head_dim": head_dim,
        "vocab_size": len(values["tokenizer.ggml.tokens"]),
        "max_position_embeddings": values["llama.context_length"],
        # GGUF keeps fp32; its shortest decimal form is the number that was meant (1e-05).
        "rms_norm_eps": _short(values["llama.attention.layer_norm_rms_epsilon"]),
        "rope_theta": _short(values.get("llama.rope.freq_base", 10000.0)),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": "lm_head.weight" not in names,
        "bos_token_id": values.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": values.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": values.get("tokenizer.ggml.padding_token_id"),
        "torch_dtype": "float32",
    }


def _short(value: float) -> float:
    return float(f"{value:.7g}")


def unrotate(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Undo llama.cpp's row order of query and key weights.

    llama.cpp rotates neighbouring rows of a head, Hugging Face rows half a head apart.

    Args:
        weight: (heads * head_dim, hidden), rows of a head in the order 0, d/2, 1, d/2 + 1, ...
        heads: heads of this projection.
    """
    rows, hidden = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, hidden)
    return pairs.transpose(1, 2).reshape(rows, hidden)


def unpack(source: Path, target: Path) -> int:
    """Write the Hugging Face directory `target` from the GGUF file `source`; bytes of weights.

    Weights are float32: the values that the quantised file stands for, without another rounding.
    `target` appears when it is complete.

    Raises:
        ConfigError: no such file, `target` in use, or the `gguf` package is missing.
        ModelError: not a GGUF file, or one of a model that is not supported.
    """
    if not source.is_file():
        raise ConfigError(f"--input {source}: no such file; expected a .gguf file")
    if target.exists():
        raise ConfigError(f"--output {target}: exists already; choose a new directory")
    try:
        gguf = importlib.import_module("gguf")
    except ImportError as err:
        raise ConfigError("reading GGUF files needs the gguf package: "
                          'pip install "mindspeed-llm[gguf]"') from err  # fmt: skip
    try:
        reader = gguf.GGUFReader(source)
    except (ValueError, IndexError, OSError) as err:
        raise ModelError(f"{source}: not a readable GGUF file ({err})") from err
    values = {key: field.contents() for key, field in reader.fields.items()}
    config = hf_config(values, {hf_name(tensor.name) for tensor in reader.tensors})
    documents = tokenizer_files(values)
    ids = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    documents["config.json"] = json.dumps(config, indent=2) + "\n"
    documents["generation_config.json"] = json.dumps(ids, indent=2) + "\n"
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = staging_beside(target)
    staging.mkdir()
    try:
        nbytes = _write_weights(gguf, reader, config, staging / "model.safetensors")
        for name, text in documents.items():
            (staging / name).write_text(text, encoding="utf-8")
        sync_tree(staging)
        os.replace(staging, target)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return nbytes


def _write_weights(gguf: Any, reader: Any, config: Mapping[str, Any], path: Path) -> int:
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    # GGUF lists a shape from the fastest axis; torch from the slowest.
    shapes = {t.name: tuple(int(n) for n in reversed(t.shape)) for t in reader.tensors}
    announced = [(hf_name(name), torch.float32, shape) for name, shape in shapes.items()]
    total = sum(4 * torch.Size(shape).numel() for shape in shapes.values())
    writer = TensorFileWriter(path, announced, {"format": "pt"}, hashed=False)
    try:
        with ByteProgress("dequantising", total) as progress:
            for tensor in reader.tensors:
                array = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
                weight = torch.tensor(array, dtype=torch.float32).reshape(shapes[tensor.name])
                part = tensor.name.split(".")[-2]
                if part in heads:
                    weight = unrotate(weight, heads[part])
                writer.write(hf_name(tensor.name), weight)
                progress.advance(weight.nbytes)
        writer.finish()
    except BaseException:
        writer.abort()
        raise
    return total
