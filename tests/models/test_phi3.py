"""models.phi3: the published config.json files in both spellings, longrope, what is refused."""

import math

import pytest

from mindspeed_llm.config.model import RopeConfig
from mindspeed_llm.errors import ModelError
from mindspeed_llm.models.phi3 import FAMILY, PUBLISHED_CODE, parse

PHI3_MINI_4K = {
    "architectures": ["Phi3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config",
                 "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"},
    "bos_token_id": 1, "embd_pdrop": 0.0, "eos_token_id": 32000, "hidden_act": "silu",
    "hidden_size": 3072, "initializer_range": 0.02, "intermediate_size": 8192,
    "max_position_embeddings": 4096, "model_type": "phi3", "num_attention_heads": 32,
    "num_hidden_layers": 32, "num_key_value_heads": 32, "original_max_position_embeddings": 4096,
    "pad_token_id": 32000, "resid_pdrop": 0.0, "rms_norm_eps": 1e-05, "rope_scaling": None,
    "rope_theta": 10000.0, "sliding_window": 2047, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16", "transformers_version": "4.40.2", "use_cache": True,
    "vocab_size": 32064,
}  # fmt: skip
SHORT, LONG = [1.0 + i / 96 for i in range(48)], [1.0 + i for i in range(48)]
SU = {"type": "su", "short_factor": SHORT, "long_factor": LONG}
PHI3_MINI_128K = PHI3_MINI_4K | {
    "max_position_embeddings": 131072, "rope_scaling": SU, "sliding_window": 262144}  # fmt: skip
LONGROPE = RopeConfig(
    theta=10000.0, scaling="longrope", original_max_position=4096, short_factors=tuple(SHORT),
    long_factors=tuple(LONG), amplitude=math.sqrt(1 + math.log(32) / math.log(4096)),
)  # fmt: skip


def test_phi3():
    model = parse(PHI3_MINI_4K)
    assert (model.head_dim, model.rotary_dim, model.turning_dim) == (96, None, 96)
    assert model.rope == RopeConfig(theta=10000.0)
    assert model.layer_types == ("sliding",) * 32 and model.sliding_window == 2047
    assert not model.tie_word_embeddings and model.eos_token_ids == (32000,)


@pytest.mark.parametrize("kind", ["su", "longrope", "yarn"])
def test_longrope(kind):
    assert parse(PHI3_MINI_128K | {"rope_scaling": SU | {"type": kind}}).rope == LONGROPE


def test_both_spellings_say_the_same():
    gone = ("rope_scaling", "rope_theta", "auto_map")
    new = {k: v for k, v in PHI3_MINI_128K.items() if k not in gone}
    table = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": SHORT,
             "long_factor": LONG, "original_max_position_embeddings": 4096,
             "partial_rotary_factor": 1.0}  # fmt: skip
    assert parse(new | {"rope_parameters": table}) == parse(PHI3_MINI_128K)


def test_a_part_of_a_head_turns():
    """Phi-4-mini: 96 of 128 dimensions."""
    model = parse(PHI3_MINI_128K | {"partial_rotary_factor": 0.75, "num_attention_heads": 24,
                                    "num_key_value_heads": 8})  # fmt: skip
    assert (model.head_dim, model.rotary_dim) == (128, 96)
    assert len(model.rope.short_factors) == 48


def test_fused_tensors_have_their_own_rows():
    rows = {rule.mcore.split("{i}.")[-1]: (rule.op, rule.hf) for rule in
            FAMILY.rules(parse(PHI3_MINI_4K))}  # fmt: skip
    assert rows["self_attention.linear_qkv.weight"] == (
        "fused_qkv", ("model.layers.{i}.self_attn.qkv_proj.weight",))  # fmt: skip
    assert rows["mlp.linear_fc1.weight"] == ("copy", ("model.layers.{i}.mlp.gate_up_proj.weight",))


@pytest.mark.parametrize(("changes", "message"), [
    ({"auto_map": PUBLISHED_CODE | {"AutoConfig": "evil.Config"}}, "auto_map is .*evil"),
    ({"auto_map": {"AutoModel": "modeling_phi3.Phi3Model"}}, "auto_map is .*Phi3Model"),
    ({"embd_pdrop": 0.1}, "embd_pdrop is 0.1"),
    ({"resid_pdrop": 0.1}, "resid_pdrop is 0.1"),
    ({"rope_scaling": SU | {"short_factor": SHORT[:-1]}}, "short_factor has 47 .* expected 48"),
    ({"rope_scaling": SU | {"long_factor": [0.0] * 48}}, "long_factor has 0 .* in 48"),
    ({"rope_scaling": {"type": "su", "short_factor": SHORT}}, "long_factor has 0 "),
    ({"rope_scaling": SU | {"beta_fast": 32}}, "no 'beta_fast' for longrope"),
    ({"rope_scaling": SU | {"original_max_position_embeddings": 8192}}, "original_max_pos.* 4096"),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type default or longrope"),
    ({"rope_scaling": "su"}, "rope_scaling is 'su'; expected a JSON object"),
    ({"partial_rotary_factor": 1.5}, "partial_rotary_factor is 1.5; .*at most 1"),
    ({"partial_rotary_factor": 0.27}, "an even part of a head of 96"),
    ({"partial_rotary_factor": 0.5, "rope_scaling": SU | {"partial_rotary_factor": 0.75}},
     "partial_rotary_factor is 0.5; expected the 0.75 of rope_scaling"),
])  # fmt: skip
def test_what_is_not_supported(changes, message):
    with pytest.raises(ModelError, match=message):
        parse(PHI3_MINI_128K | changes)
