"""Configurations that nobody chose for us: whatever a config.json says, our model computes what
transformers computes of the same directory, or names the key that it does not support."""

import json
import random

import pytest
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError

from mindspeed_llm.errors import ModelError
from mindspeed_llm.models.registry import FAMILIES

# Of transformers; what it refuses is not compared.
REFUSALS = (AttributeError, KeyError, RuntimeError, TypeError, ValueError, StrictDataclassError)
GONE = object()  # the key is left out of the file
BASE = {"vocab_size": 67, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 64, "bos_token_id": 2, "eos_token_id": 1}  # fmt: skip
LLAMA3 = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}  # fmt: skip
LONG = {"short_factor": [1.0, 1.1, 1.3, 2.0], "long_factor": [1.5, 3.0, 4.0, 8.0]}
LOCAL_GLOBAL = ["sliding_attention", "full_attention"]
CHANGES = {  # what one key, or one feature, may be: in files of any family
    "num_key_value_heads": [GONE, None, 1, 4],
    "head_dim": [GONE, None, 16, 6],
    "num_attention_heads": [3, 8],
    "rms_norm_eps": [GONE, 1e-5, 1e-2],
    "vocab_size": [97],
    "tie_word_embeddings": [GONE, True, False],
    "hidden_act": [GONE, "silu", "gelu", "gelu_pytorch_tanh", "gelu_new", "relu", "quick_gelu"],
    "hidden_activation": [None, "gelu_pytorch_tanh", "silu", "gelu"],
    "attention_bias": [True, False],
    "mlp_bias": [True],
    "qkv_bias": [True],
    "use_qkv_bias": [True],
    "rope_theta": [500.0, 1000000, 10000],
    "rope_scaling": [
        None, {"type": "linear", "factor": 4.0}, {"rope_type": "llama3", **LLAMA3},
        {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
        {"rope_type": "yarn", "factor": 2.0, "beta_fast": 16, "beta_slow": 2, "mscale": 0.7,
         "mscale_all_dim": 0.5, "original_max_position_embeddings": 16},
        {"rope_type": "yarn", "factor": 4.0, "attention_factor": 0.8, "truncate": False},
        {"rope_type": "dynamic", "factor": 2.0}, {"rope_type": "longrope", "factor": 4.0, **LONG},
        {"rope_type": "proportional"}, {"mrope_section": [1, 1, 2], "type": "default"},
    ],
    "rope_parameters": [
        None, {"rope_type": "default", "rope_theta": 700.0},
        {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
        {"rope_type": "llama3", "rope_theta": 500.0, **LLAMA3},
        {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0,
         "original_max_position_embeddings": 16},
        {"rope_type": "default", "rope_theta": 700.0, "partial_rotary_factor": 0.5},
        {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 900.0},
         "sliding_attention": {"rope_type": "default", "rope_theta": 100.0}},
        {"full_attention": {"rope_type": "default", "rope_theta": 900.0}},
    ],
    "rope_local_base_freq": [100.0],
    "partial_rotary_factor": [0.5, 1.0],
    "sliding_window": [GONE, None, 4, 40],
    "use_sliding_window": [True, False],
    "max_window_layers": [0, 1, 5],
    "layer_types": [LOCAL_GLOBAL, LOCAL_GLOBAL[::-1], ["full_attention"] * 2,
                    ["sliding_attention"] * 2, ["chunked_attention", "full_attention"]],
    "sliding_window_pattern": [2],
    "_sliding_window_pattern": [2],
    "query_pre_attn_scalar": [GONE, 3, 100],
    "attn_logit_softcapping": [GONE, None, 0.5],
    "final_logit_softcapping": [GONE, None, 0.5],
    "use_bidirectional_attention": [True],
    "attention_dropout": [0.5],
    "original_max_position_embeddings": [16],
    "num_experts": [3], "num_local_experts": [3], "num_experts_per_tok": [1, 2],
    "norm_topk_prob": [True, False], "decoder_sparse_step": [2], "mlp_only_layers": [[0], []],
    "moe_intermediate_size": [20], "router_jitter_noise": [0.5],
    "no_rope_layers": [[0, 1]], "attention_multiplier": [0.2], "logits_scaling": [3.0],
    "residual_multiplier": [0.3], "embedding_multiplier": [9.0], "logit_scale": [0.1],
    "layer_norm_eps": [0.3], "attention_chunk_size": [4], "scale_embedding": [True],
    "pretraining_tp": [2], "initializer_range": [0.7],
}  # fmt: skip
OWN = {  # keys that every published file of the family has, at this size
    "gemma2": {"query_pre_attn_scalar": 20, "attn_logit_softcapping": 2.0, "sliding_window": 6,
               "final_logit_softcapping": 1.0, "hidden_activation": "gelu_pytorch_tanh"},
    "gemma3": {"query_pre_attn_scalar": 20, "sliding_window": 6, "sliding_window_pattern": 2},
    "mistral": {"sliding_window": 6},
    "phi3": {"original_max_position_embeddings": 64, "pad_token_id": 0},
    "qwen2": {"sliding_window": 6, "max_window_layers": 1},
    "qwen3": {"sliding_window": 6, "max_window_layers": 1},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
}  # fmt: skip


def values_of(family, changes):
    out = {"model_type": FAMILIES[family].hf_model_types[0]} | BASE | OWN.get(family, {}) | changes
    return {key: value for key, value in out.items() if value is not GONE}


def single(family):
    """Every change alone."""
    return [{key: value} for key, choices in CHANGES.items() for value in choices]


def read(family, changes):
    """Whether our reading of config.json takes these changes."""
    try:
        FAMILIES[family].parse(values_of(family, changes))
    except ModelError:
        return False
    return True


def drawn(family, count, seed):
    """Several changes together, each of which is taken alone."""
    draw = random.Random(f"{family} {seed}")
    taken = [change for change in single(family) if read(family, change)]
    keys = sorted({key for change in taken for key in change})
    choices = {key: [c[key] for c in taken if key in c] for key in keys}
    return [
        {key: draw.choice(choices[key]) for key in draw.sample(keys, draw.randint(2, 5))}
        for _ in range(count)
    ]


def write(directory, values):
    """A random model of transformers under exactly this config.json; False: it refuses it."""
    directory.mkdir(parents=True)
    path = directory / "config.json"
    path.write_text(json.dumps(values))
    try:
        config = transformers.AutoConfig.from_pretrained(directory)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                weight.normal_(0, 0.3, generator=generator)
                if "norm" in name and not values["model_type"].startswith("gemma"):
                    weight.add_(1.0)
            model(torch.arange(3, 35)[None])
        model.save_pretrained(directory)
    except REFUSALS:
        return False
    path.write_text(json.dumps(values))
    return True


def answers(directories):
    """What our model does with each directory: the distance from transformers, or what it says."""
    from pathlib import Path

    import torch
    import transformers
    from megatron.core import parallel_state, tensor_parallel

    from mindspeed_llm.checkpoint.state import load_weights
    from mindspeed_llm.config.parallel import ParallelConfig
    from mindspeed_llm.errors import UserError
    from mindspeed_llm.models.build import build_model
    from mindspeed_llm.models.registry import read_model

    transformers.logging.set_verbosity_error()
    parallel_state.initialize_model_parallel()
    tensor_parallel.model_parallel_cuda_manual_seed(1)
    out = {}
    for name, directory in directories.items():
        theirs = transformers.AutoModelForCausalLM.from_pretrained(
            directory, attn_implementation="eager", dtype=torch.float32
        )
        try:
            model = read_model(Path(directory))
            gpt = build_model(model, ParallelConfig(), dtype=torch.float32,
                              perform_initialization=False)  # fmt: skip
            load_weights(Path(directory), [gpt])
        except UserError as err:
            out[name] = str(err)
            continue
        ids = torch.randint(3, model.vocab_size, (2, 32), generator=torch.manual_seed(5))
        positions = torch.arange(32)[None].expand_as(ids)
        with torch.no_grad():
            out[name] = (gpt.eval()(ids, positions, None) - theirs(ids).logits).abs().max().item()
    return out


def compare(run_ranks, folder, rows):
    """Hold that our model is transformers' at each (family, changes), or says which key it is not;
    the number of models that were the same, and of those that were refused."""
    transformers.logging.disable_progress_bar()
    directories, changed = {}, {}
    for number, (family, changes) in enumerate(rows):
        directory = folder / str(number)
        if write(directory, values_of(family, changes)):
            directories[number], changed[str(number)] = str(directory), (family, changes)
    (found,) = run_ranks(1, answers, directories, timeout=900)
    wrong, same = [], 0
    for name, answer in found.items():
        family, changes = changed[name]
        same += isinstance(answer, float)
        right = answer < 1e-4 if isinstance(answer, float) else any(k in answer for k in changes)
        if not right:
            wrong.append((family, {k: v for k, v in changes.items() if v is not GONE}, answer))
    assert wrong == []
    return same, len(found) - same


def test_a_few_changes_together(run_ranks, tmp_path):
    rows = [(family, changes) for family in sorted(FAMILIES) for changes in drawn(family, 4, 0)]
    same, refused = compare(run_ranks, tmp_path, rows)
    assert same > 24, (same, refused)


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_change_alone_and_many_together(family, run_ranks, tmp_path):
    rows = [(family, changes) for changes in (*single(family), *drawn(family, 60, 1))]
    same, refused = compare(run_ranks, tmp_path, rows)
    assert same > 60 and refused > 20, (same, refused)
