"""models.norm: RMSNorm as megatron-core builds, marks and shards it."""


def norms():
    import torch
    from megatron.core import parallel_state
    from megatron.core.transformer.spec_utils import build_module

    from mindspeed_llm.config.model import ModelConfig, RopeConfig
    from mindspeed_llm.config.parallel import ParallelConfig
    from mindspeed_llm.kernels.rms_norm import rms_norm
    from mindspeed_llm.models.decoder_config import transformer_config
    from mindspeed_llm.models.norm import RMSNorm

    parallel_state.initialize_model_parallel()
    out = {}
    for name, zero_centered, sequence_parallel in (("llama", False, False), ("gemma", True, True)):
        model = ModelConfig(
            family=name, num_layers=2, hidden_size=8, ffn_hidden_size=4, num_attention_heads=2,
            num_query_groups=2, head_dim=4, vocab_size=11, max_position_embeddings=8,
            norm_epsilon=1e-3, activation="silu", tie_word_embeddings=True,
            rope=RopeConfig(theta=1e4), zero_centered_norm=zero_centered,
        )  # fmt: skip
        layout = ParallelConfig(
            tensor_model_parallel_size=2 if sequence_parallel else 1,
            sequence_parallel=sequence_parallel,
        )
        config = transformer_config(model, layout, dtype=torch.bfloat16)
        norm = build_module(RMSNorm, config=config, hidden_size=8, eps=config.layernorm_epsilon)
        x = torch.randn(3, 2, 8).bfloat16()
        weight = torch.randn(8).bfloat16()
        fresh = norm(x)
        norm.load_state_dict({"weight": weight})
        out[name] = {
            "neutral": torch.equal(
                fresh, rms_norm(x, torch.full((8,), 1.0 - zero_centered).bfloat16(), 1e-3,
                                zero_centered=zero_centered)),
            "same": torch.equal(norm(x), rms_norm(x, weight, 1e-3, zero_centered=zero_centered)),
            "dtype": str(norm(x).dtype),
            "marked": norm.weight.sequence_parallel,
            "state": sorted(norm.state_dict()),
            "shown": repr(norm),
        }  # fmt: skip
    return out


def test_rms_norm(run_ranks):
    (found,) = run_ranks(1, norms)
    for answer in found.values():
        assert answer["neutral"] and answer["same"]
        assert answer["dtype"] == "torch.bfloat16"
        assert answer["state"] == ["weight"]
    assert found["gemma"]["marked"] is True
    assert found["llama"]["marked"] is False
    assert "1+w=True" in found["gemma"]["shown"]
