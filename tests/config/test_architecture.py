"""Flags that agree with the checkpoint pass; each that contradicts it is named with both values."""

import dataclasses

import pytest

from mindspeed_llm.config.architecture import ArchitectureFlags
from mindspeed_llm.config.model import ExpertsConfig, ModelConfig, RopeConfig
from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.errors import ConfigError

GEMMA2_9B = ModelConfig(
    family="gemma2", num_layers=42, hidden_size=3584, ffn_hidden_size=14336,
    num_attention_heads=16, num_query_groups=8, head_dim=256, vocab_size=256000,
    max_position_embeddings=8192, norm_epsilon=1e-6, activation="gelu_tanh",
    tie_word_embeddings=True, rope=RopeConfig(theta=10000.0),
    layer_types=("sliding", "full") * 21, sliding_window=4096, attention_scale=256**-0.5,
    attention_softcap=50.0, logit_softcap=30.0, embedding_scale=3584**0.5,
    zero_centered_norm=True, post_norms=True,
)  # fmt: skip
STATED = {
    "num_layers": 42, "hidden_size": 3584, "ffn_hidden_size": 14336, "num_attention_heads": 16,
    "group_query_attention": True, "num_query_groups": 8, "kv_channels": 256,
    "max_position_embeddings": 8192, "normalization": "RMSNorm", "norm_epsilon": 1e-6,
    "add_rmsnorm_offset": True, "position_embedding_type": "rope", "rotary_base": 10000.0,
    "geglu": True, "attn_logit_softcapping": 50.0, "output_logit_softcapping": 30.0,
    "query_pre_attn_scalar": 256.0, "interleave_sliding_window": 4096, "post_norm": True,
    "input_embeds_norm": True, "disable_bias_linear": True, "vocab_size": 256000,
    "padded_vocab_size": 256000, "make_vocab_size_divisible_by": 1,
}  # fmt: skip
WRONG = {
    "num_layers": 26, "hidden_size": 2304, "ffn_hidden_size": 9216, "num_attention_heads": 8,
    "num_query_groups": 4, "kv_channels": 128, "max_position_embeddings": 4096,
    "normalization": "LayerNorm", "norm_epsilon": 1e-5, "position_embedding_type": "none",
    "rotary_base": 1e6, "swiglu": True, "attn_logit_softcapping": 30.0,
    "output_logit_softcapping": 50.0, "query_pre_attn_scalar": 224.0,
    "interleave_sliding_window": 1024, "qk_layernorm": True, "add_qkv_bias": True,
    "untie_embeddings_and_output_weights": True, "vocab_size": 256128,
    "padded_vocab_size": 256128, "make_vocab_size_divisible_by": 3000, "num_experts": 8,
    "moe_router_topk": 2, "moe_ffn_hidden_size": 768, "moe_router_pre_softmax": True,
    "norm_topk_prob": True,
}  # fmt: skip
# Statements that Gemma2 agrees with, and a model that does not.
LLAMA = dataclasses.replace(
    GEMMA2_9B, family="llama", num_query_groups=16, layer_types=(), sliding_window=None,
    attention_scale=None, attention_softcap=None, logit_softcap=None, embedding_scale=None,
    zero_centered_norm=False, post_norms=False, activation="silu", mlp_bias=True,
)  # fmt: skip


def test_the_guides_flags_agree_with_gemma2():
    ArchitectureFlags(**STATED).check(GEMMA2_9B, ParallelConfig(tensor_model_parallel_size=8))
    ArchitectureFlags().check(GEMMA2_9B, ParallelConfig())


def test_every_flag_is_checked_somewhere():
    names = {field.name for field in dataclasses.fields(ArchitectureFlags)}
    assert names == STATED.keys() | WRONG.keys()


@pytest.mark.parametrize("name", WRONG)
def test_a_contradiction_names_flag_and_both_values(name):
    with pytest.raises(ConfigError) as error:
        ArchitectureFlags(**{name: WRONG[name]}).check(GEMMA2_9B, ParallelConfig())
    text = str(error.value)
    assert "--" + name.replace("_", "-") in text and "gemma2" in text
    if WRONG[name] is not True and name in STATED:
        assert str(WRONG[name]) in text
        assert name == "make_vocab_size_divisible_by" or str(STATED[name]) in text


@pytest.mark.parametrize(
    "name",
    ["group_query_attention", "add_rmsnorm_offset", "geglu", "post_norm", "input_embeds_norm",
     "disable_bias_linear", "attn_logit_softcapping", "output_logit_softcapping",
     "interleave_sliding_window"],
)  # fmt: skip
def test_a_statement_about_a_part_that_the_model_lacks(name):
    with pytest.raises(ConfigError, match="--" + name.replace("_", "-")):
        ArchitectureFlags(**{name: STATED[name]}).check(LLAMA, ParallelConfig())


def test_all_contradictions_are_told_at_once():
    with pytest.raises(ConfigError, match=r"--num-layers is 26, the model has 42; --hidden-size"):
        ArchitectureFlags(num_layers=26, hidden_size=2304).check(GEMMA2_9B, ParallelConfig())


@pytest.mark.parametrize("name", ["num_experts", "moe_router_topk", "moe_ffn_hidden_size"])
def test_statements_about_experts(name):
    experts = ExpertsConfig(
        num_experts=16, top_k=4, ffn_hidden_size=96, renormalized=True, layers=(0,)
    )
    model = dataclasses.replace(LLAMA, mlp_bias=False, experts=experts)
    said = {"num_experts": 16, "moe_router_topk": 4, "moe_ffn_hidden_size": 96,
            "norm_topk_prob": True}  # fmt: skip
    ArchitectureFlags(**said).check(model, ParallelConfig())
    with pytest.raises(ConfigError, match=f"is 3, the model has {said[name]}"):
        ArchitectureFlags(**said | {name: 3}).check(model, ParallelConfig())
    with pytest.raises(ConfigError, match="--moe-router-pre-softmax is given"):
        ArchitectureFlags(moe_router_pre_softmax=True).check(model, ParallelConfig())
