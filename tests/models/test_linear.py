"""models.linear: which layer has a bias, and the norm behind a row-parallel layer, at TP 2."""


def layers():
    import dataclasses

    import torch
    from megatron.core import parallel_state, tensor_parallel

    from mindspeed_llm.config.model import ModelConfig, RopeConfig
    from mindspeed_llm.config.parallel import ParallelConfig
    from mindspeed_llm.kernels.rms_norm import rms_norm
    from mindspeed_llm.models import linear
    from mindspeed_llm.models.decoder_config import transformer_config

    parallel_state.initialize_model_parallel(2)
    tensor_parallel.model_parallel_cuda_manual_seed(1)
    rank = parallel_state.get_tensor_model_parallel_rank()
    model = ModelConfig(
        family="test", num_layers=2, hidden_size=8, ffn_hidden_size=12, num_attention_heads=2,
        num_query_groups=2, head_dim=4, vocab_size=11, max_position_embeddings=8,
        norm_epsilon=1e-3, activation="silu", tie_word_embeddings=True, rope=RopeConfig(theta=1e4),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(4, 1, 12, generator=generator), torch.randn(8, 12, generator=generator)
    gamma = torch.randn(8, generator=generator)

    def make(kind, sizes, layout, **options):
        config = transformer_config(model_now, layout, dtype=torch.float32)
        side = {"input_is_parallel": True} if kind.endswith(("OutputLinear", "DownLinear",
                "RowParallelLinear")) else {"gather_output": False}  # fmt: skip
        return getattr(linear, kind)(
            *sizes, config=config, init_method=config.init_method, bias=True, skip_bias_add=True,
            **side, **options,
        )  # fmt: skip

    out = {"bias": {}}
    tp2 = ParallelConfig(tensor_model_parallel_size=2)
    for name in ("qkv_bias", "output_bias", "mlp_bias"):
        model_now = dataclasses.replace(model, **{name: True})
        kinds = {"QKVLinear": (8, 24), "GateUpLinear": (8, 24), "OutputLinear": (8, 8),
                 "DownLinear": (12, 8)}  # fmt: skip
        out["bias"][name] = [k for k, s in kinds.items() if make(k, s, tp2).bias is not None]
    model_now = model
    for sp in (False, True):
        layout = ParallelConfig(tensor_model_parallel_size=2, sequence_parallel=sp)
        layer = make("PostNormRowParallelLinear", (12, 8), layout)
        with torch.no_grad():
            layer.weight.copy_(weight.chunk(2, 1)[rank])
            layer.post_layernorm.weight.copy_(gamma)
            got, bias = layer(x.chunk(2, -1)[rank])
        want = rms_norm(x @ weight.T, gamma, 1e-3, zero_centered=False)
        want = want.chunk(2)[rank] if sp else want
        group = parallel_state.get_data_parallel_group(with_context_parallel=True)
        shards = layer.sharded_state_dict("proj.", metadata={"dp_cp_group": group})
        out[f"sp {sp}"] = {
            "error": (got - want).abs().max().item(),
            "bias": bias,
            "marked": layer.post_layernorm.weight.sequence_parallel,
            "keys": {k: list(v.global_shape) for k, v in shards.items() if k.endswith("weight")},
            "replicas": shards["proj.post_layernorm.weight"].replica_id[1],
        }
    model_now = dataclasses.replace(model, mlp_bias=True)
    try:
        make("PostNormRowParallelLinear", (12, 8), tp2)
        out["refused"] = ""
    except AssertionError as err:
        out["refused"] = str(err)
    return out


def test_linear_layers_at_tp_2(run_ranks):
    ranks = run_ranks(2, layers)
    for rank, found in enumerate(ranks):
        assert found["bias"] == {
            "qkv_bias": ["QKVLinear"],
            "output_bias": ["OutputLinear"],
            "mlp_bias": ["GateUpLinear", "DownLinear"],
        }
        for sp in (False, True):
            answer = found[f"sp {sp}"]
            assert answer["error"] < 1e-5
            assert answer["bias"] is None
            assert answer["marked"] is sp
            assert answer["keys"] == {"proj.weight": [8, 12], "proj.post_layernorm.weight": [8]}
            assert answer["replicas"] == rank
        assert found["refused"] == "test: bias before a norm"
