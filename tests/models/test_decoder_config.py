"""models.decoder_config: what megatron-core is told of a model; in a process of its own, because
importing megatron-core needs the adaptor."""


def configurations():
    import copy
    import dataclasses
    import pickle

    import torch

    from mindspeed_llm.config.model import ModelConfig, RopeConfig
    from mindspeed_llm.config.parallel import ParallelConfig
    from mindspeed_llm.errors import ConfigError
    from mindspeed_llm.kernels.activation import gelu_tanh
    from mindspeed_llm.models.decoder_config import transformer_config

    model = ModelConfig(
        family="gemma3", num_layers=4, hidden_size=24, ffn_hidden_size=20, num_attention_heads=12,
        num_query_groups=4, head_dim=2, vocab_size=11, max_position_embeddings=32,
        norm_epsilon=1e-5, activation="gelu_tanh", tie_word_embeddings=True,
        rope=RopeConfig(theta=1e4), qk_norm=True, zero_centered_norm=True,
    )  # fmt: skip
    layout = ParallelConfig(tensor_model_parallel_size=2, sequence_parallel=True)
    config = transformer_config(model, layout, dtype=torch.bfloat16, deterministic_mode=True)
    errors = {}
    for name, parallel, override in (
        ("layout", ParallelConfig(tensor_model_parallel_size=5), {}),
        ("override", layout, {"no_such_field": 1}),
    ):
        try:
            transformer_config(model, parallel, dtype=torch.float32, **override)
        except (ConfigError, TypeError) as err:
            errors[name] = f"{type(err).__name__}: {err}"
    fused = [f.name for f in dataclasses.fields(config)
             if "fusion" in f.name and getattr(config, f.name) is True]  # fmt: skip
    again = pickle.loads(pickle.dumps(config))
    plain = transformer_config(model, ParallelConfig(), dtype=torch.float32)
    return {
        "sizes": [config.kv_channels, config.num_query_groups, config.layernorm_epsilon],
        "norm": [config.normalization, config.layernorm_zero_centered_gamma, config.qk_layernorm],
        "activation": config.activation_func is gelu_tanh and again.activation_func is gelu_tanh,
        "parallel": [config.tensor_model_parallel_size, config.sequence_parallel],
        "dtype": [config.bf16, config.fp16, str(config.params_dtype), str(config.pipeline_dtype)],
        "plain": [plain.bf16, plain.fp16, str(plain.params_dtype)],
        "dropout": [config.attention_dropout, config.hidden_dropout],
        "cpu": config.use_cpu_initialization,
        "override": config.deterministic_mode,
        "fused": fused,
        "copied": again.decoder == model and copy.deepcopy(config).decoder == model,
        "errors": errors,
    }


def test_megatron_core_is_told_what_the_model_is(run_ranks):
    (found,) = run_ranks(1, configurations)
    assert found["sizes"] == [2, 4, 1e-5]
    assert found["norm"] == ["RMSNorm", True, True]
    assert found["activation"] and found["copied"] and found["cpu"] and found["override"]
    assert found["parallel"] == [2, True]
    assert found["dtype"] == [True, False, "torch.bfloat16", "torch.bfloat16"]
    assert found["plain"] == [False, False, "torch.float32"]
    assert found["dropout"] == [0.0, 0.0]
    assert found["fused"] == []
    assert found["errors"]["layout"].startswith("ConfigError: --tensor-model-parallel-size 5")
    assert "no_such_field" in found["errors"]["override"]
