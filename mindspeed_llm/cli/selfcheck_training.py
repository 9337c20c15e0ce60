"""Owns the last check of `mindspeed-llm selfcheck`: a tiny random Gemma 2, soft caps and window,
is trained on packed conversations for a few steps, by the `train` command in processes of their
own, on the device and in fp32 on the CPU; the losses are compared. It knows no kernel."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from mindspeed_llm.kernels.parity import Result

STEPS = 3
ALLOWED = {"float32": 1e-4, "bfloat16": 3e-2}  # of a loss, as a part of it; see kernels.parity
_LIMIT = 1800  # seconds of one run: an NPU compiles its operators in the first step
_CONFIG = {
    "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "vocab_size": 320,
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 128, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
    "sliding_window": 16, "query_pre_attn_scalar": 32, "attn_logit_softcapping": 2.0,
    "final_logit_softcapping": 3.0, "attention_bias": False, "tie_word_embeddings": True,
    "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0, "torch_dtype": "float32",
}  # fmt: skip
_MARKERS = ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>")


def compare(device: str) -> Iterator[Result]:
    """One result for each precision on `device` ("npu", "cuda" or "cpu")."""
    with tempfile.TemporaryDirectory(prefix="selfcheck-") as place:
        folder = Path(place)
        _write_model(folder / "model")
        _write_conversations(folder / "talk.jsonl")
        wanted = _losses(folder, "cpu", "float32")
        for dtype in ALLOWED:
            if (device, dtype) != ("cpu", "float32"):
                yield result(device, dtype, wanted, _losses(folder, device, dtype))


def result(device: str, dtype: str, wanted: list[float] | str, found: list[float] | str) -> Result:
    """What came of one run: losses, or the last words of a run that failed."""
    error, reason = None, ""
    if isinstance(wanted, str) or isinstance(found, str):
        reason = wanted if isinstance(wanted, str) else str(found)
    else:
        differences = [abs(a - b) / abs(b) for a, b in zip(found, wanted, strict=True)]
        error = max(differences, key=lambda part: (math.isnan(part), part))
        if not error <= ALLOWED[dtype]:
            reason = f"losses {found} differ from the CPU's {wanted} in fp32"
    state: Literal["pass", "fail"] = "fail" if reason else "pass"
    name = f"training a packed Gemma 2, {STEPS} steps"
    return Result(name, dtype, f"train --device {device}", state, error, reason)


def _losses(folder: Path, device: str, dtype: str) -> list[float] | str:
    save = folder / f"{device}-{dtype}"
    command = [
        sys.executable, "-m", "mindspeed_llm.cli.main", "train", "--load", folder / "model",
        "--data-path", folder / "talk.jsonl", "--handler-name", "OpenAIInstructionHandler",
        "--prompt-type", "gemma", "--pack",
        "--seq-length", "64", "--micro-batch-size", "2", "--global-batch-size", "4",
        "--train-iters", STEPS, "--lr", "1e-3", "--lr-decay-style", "constant", "--no-shuffle",
        "--save", save, "--device", device, *(["--bf16"] if dtype == "bfloat16" else []),
    ]  # fmt: skip
    env = {name: value for name, value in os.environ.items() if name not in _LAUNCHED}
    try:
        done = subprocess.run([str(word) for word in command], env=env, text=True, check=False,
                              capture_output=True, timeout=_LIMIT)  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"no end within {_LIMIT} s"
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines() or ["nothing said"]
        return f"exit code {done.returncode}: {said[-1]}"
    rows = (save / "logs/train.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [row["loss"] for row in map(json.loads, rows) if "loss" in row]
    return losses if len(losses) == STEPS else f"{len(losses)} losses of {STEPS} steps"


_LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def _write_model(directory: Path) -> None:
    """A Hugging Face directory: random weights wide enough that both soft caps act, a tokenizer."""
    import torch
    from safetensors.torch import save_file

    from mindspeed_llm.models.registry import read_model, rules_of

    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(_CONFIG), encoding="utf-8")
    _write_tokenizer(directory)
    generator, weights = torch.Generator().manual_seed(0), {}
    for name, shape in _shapes(_CONFIG).items():
        scale = 0.3 if "norm" in name else 0.15
        weights[name] = torch.randn(shape, generator=generator) * scale
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    assert rules_of(read_model(directory))


def _shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a Gemma2ForCausalLM's weights, tied."""
    hidden, middle, dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = (config[f"num_{kind}_heads"] * dim for kind in ("attention", "key_value"))
    layer = {
        "self_attn.q_proj": (queries, hidden), "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden), "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (middle, hidden), "mlp.up_proj": (middle, hidden),
        "mlp.down_proj": (hidden, middle), "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,), "pre_feedforward_layernorm": (hidden,),
        "post_feedforward_layernorm": (hidden,),
    }  # fmt: skip
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], hidden),
              "model.norm.weight": (hidden,)}  # fmt: skip
    for number in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{number}.{name}.weight": shape for name, shape in layer.items()}
    return shapes


def _write_tokenizer(directory: Path) -> None:
    """Bytes and the markers of Gemma's template."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    words = tokenizers.Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + len(_MARKERS),
        special_tokens=list(_MARKERS),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    words.train_from_iterator([], trainer)
    words.save(str(directory / "tokenizer.json"))
    described = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>",
                 "eos_token": "<eos>", "bos_token": "<bos>"}  # fmt: skip
    (directory / "tokenizer_config.json").write_text(json.dumps(described), encoding="utf-8")


def _write_conversations(path: Path) -> None:
    """Two to three of them share a row of 64 tokens."""
    talks = (
        [{"role": "user", "content": f"Is {number} odd?"},
         {"role": "assistant", "content": "yes" if number % 2 else "no"}]
        for number in range(24)
    )  # fmt: skip
    lines = (json.dumps({"messages": talk}) + "\n" for talk in talks)
    path.write_text("".join(lines), encoding="utf-8")
