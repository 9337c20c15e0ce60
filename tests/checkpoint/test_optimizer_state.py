"""What of the optimizer is stored, under which names, and by whom."""


def keys_of(model_dir, cases):
    """For each case: names and sizes of this rank's pieces at DP 2; and what is refused."""
    from pathlib import Path

    import torch
    from megatron.core import parallel_state, tensor_parallel
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
    from megatron.core.transformer.module import Float16Module

    from mindspeed_llm.checkpoint import optimizer_state
    from mindspeed_llm.config.parallel import ParallelConfig
    from mindspeed_llm.models.build import build_model
    from mindspeed_llm.models.registry import read_model

    parallel_state.initialize_model_parallel(1, 1)
    tensor_parallel.model_parallel_cuda_manual_seed(1)
    out = []
    for distributed, bf16, _ in cases:
        dtype = torch.bfloat16 if bf16 else torch.float32
        gpt = build_model(read_model(Path(model_dir)), ParallelConfig(), dtype=dtype)
        ddp = DistributedDataParallelConfig(use_distributed_optimizer=distributed)
        model = DistributedDataParallel(
            gpt.config, ddp, Float16Module(gpt.config, gpt) if bf16 else gpt
        )
        optimizer = get_megatron_optimizer(OptimizerConfig(
            optimizer="adam", lr=1e-3, bf16=bf16, params_dtype=dtype,
            use_distributed_optimizer=distributed), [model])  # fmt: skip
        optimizer.step()
        metadata = {
            "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True)
        }
        share = optimizer_state.to_save(optimizer, {"m": gpt.sharded_state_dict(metadata=metadata)})
        sizes = {}
        for piece in share.pieces:
            key = piece.planned.key
            sizes[key] = sizes.get(key, 0) + piece.data.numel()
        refused = None
        if distributed:
            optimizer.chained_optimizers[0].config.use_precision_aware_optimizer = True
            try:
                optimizer_state.to_save(optimizer, {"m": gpt.sharded_state_dict(metadata=metadata)})
            except optimizer_state.CheckpointError as err:
                refused = str(err)
        numel = sum(p.numel() for p in gpt.parameters())
        kinds = optimizer_state.kinds(optimizer)
        out.append([kinds, sizes, numel, list(share.common), refused])
    return out


CASES = [
    (True, False, "DistributedOptimizer"),
    (True, True, "DistributedOptimizer"),
    (False, True, "Float16OptimizerWithFloat16Params"),
    (False, False, "FP32Optimizer"),
]


def test_every_element_of_the_state_is_stored_once(tmp_path, tiny_hf_model, run_ranks):
    source = tiny_hf_model("llama", tmp_path / "llama")
    ranks = run_ranks(2, keys_of, str(source), CASES)
    for case, *results in zip(CASES, *ranks, strict=True):
        check_case(*case, results)


def check_case(distributed, bf16, kind, results):
    kinds, _, numel, common, refused = results[0]
    assert kinds == [kind] and common == ["parts"]
    names = {"exp_avg", "exp_avg_sq"} | ({"fp32_param"} if distributed or bf16 else set())
    total = dict.fromkeys(names, 0)
    for _, sizes, *_ in results:
        for key, size in sizes.items():
            state = key.split(".")[2]
            assert key.startswith(f"optimizer.state.{state}.")
            total[state] += size
    assert total == dict.fromkeys(names, numel), kind
    holders = sum(bool(sizes) for _, sizes, *_ in results)
    assert holders == (2 if distributed else 1), "each rank its own part, or one rank everything"
    if distributed:
        assert "precision-aware" in refused
