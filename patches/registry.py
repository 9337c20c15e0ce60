"""Owns the register, as data: every change to megatron-core or torch, why, and until when."""

from __future__ import annotations

from mindspeed_llm.patches.record import Patch
from mindspeed_llm.patches.versions import BELOW

_DEVICE = "mindspeed_llm.patches.device"
_FIXES = "mindspeed_llm.patches.fixes"
_NPU = "mindspeed_llm.patches.npu"
_FUSIONS = "mindspeed_llm.patches.fusions"
_LAYERS = "mindspeed_llm.patches.layers"
_ASSUMES_CUDA = "none: megatron-core is written for CUDA"
_CPU_SUPPORT = "megatron-core takes its device from one place instead of saying `cuda`"

_DEVICES = (
    Patch(
        target="torch.*:cuda",
        adapter=f"{_NPU}:transfer_from_cuda",
        kind="switch",
        why="megatron asks torch.cuda for everything; torch_npu.contrib.transfer_to_npu, the "
        "vendor's own switch, lets torch.cuda mean the NPU.",
        upstream="https://gitee.com/ascend/pytorch (torch_npu.contrib)",
        remove_when=_CPU_SUPPORT,
        devices=("npu",),
    ),
    Patch(
        target="megatron.*:torch",
        adapter=f"{_DEVICE}:torch_facade",
        kind="inject",
        why="megatron asks torch.cuda for devices, streams, events and generators, and makes "
        "tensors on 'cuda'. Its modules see a look-alike of torch in which that is the CPU; "
        "torch and torch.cuda stay as they are for everyone else.",
        upstream=_ASSUMES_CUDA,
        remove_when=_CPU_SUPPORT,
        devices=("cpu",),
    ),
    *(
        Patch(
            target=f"torch:{method}",
            adapter=f"{_DEVICE}:stay",
            kind="wrap",
            why=f"megatron calls {method} on tensors and modules that are to stay on the CPU. A "
            "method cannot be exchanged for one caller only, so the new one looks who calls: "
            "megatron's modules get the object back, all others the original.",
            upstream=_ASSUMES_CUDA,
            remove_when=_CPU_SUPPORT,
            devices=("cpu",),
        )
        for method in ("Tensor.cuda", "nn.Module.cuda", "Tensor.pin_memory")
    ),
)

_TYPE_NAMES = tuple(
    Patch(
        target=target,
        adapter=adapter,
        kind="wrap",
        why="It tells dtypes apart by 'torch.cuda.FloatTensor' and its like, so that parameters "
        "elsewhere are a TypeError. The names are constants of the function and are read for this "
        "device here; Tensor.type() itself is not changed.",
        upstream=_ASSUMES_CUDA,
        remove_when="megatron-core compares dtypes",
        devices=(device,),
    )
    for device, adapter in (
        ("cpu", f"{_DEVICE}:cpu_type_names"),
        ("npu", f"{_NPU}:type_names"),
    )
    for target in (
        "megatron.core.optimizer.optimizer:Float16OptimizerWithFloat16Params.__init__",
        "megatron.core.optimizer.distrib_optimizer:"
        "DistributedOptimizer._build_model_and_main_param_groups",
        "megatron.core.optimizer.distrib_optimizer:DistributedOptimizer.__init__",
        "megatron.core.optimizer.clip_grads:clip_grad_by_total_norm_fp32",
    )
)

_RANDOM = (
    Patch(
        target="megatron.core.tensor_parallel.random:_get_cuda_rng_state",
        adapter=f"{_FIXES}:get_rng_state",
        kind="replace",
        why="Reads the CUDA generator, for which the CPU's stands.",
        upstream=_ASSUMES_CUDA,
        remove_when=_CPU_SUPPORT,
        devices=("cpu",),
    ),
    Patch(
        target="megatron.core.tensor_parallel.random:_set_cuda_rng_state",
        adapter=f"{_FIXES}:set_rng_state",
        kind="replace",
        why="Queues the change until CUDA is initialised, that is for ever: without an error no "
        "fork draws from its own state, and tensor-parallel ranks share weights and dropout.",
        upstream=_ASSUMES_CUDA,
        remove_when=_CPU_SUPPORT,
        devices=("cpu",),
    ),
    Patch(
        target="megatron.core.tensor_parallel.random:CudaRNGStatesTracker.fork",
        adapter=f"{_FIXES}:fork",
        kind="wrap",
        why="Warns at every fork that the CPU generator moved; here it is the device's and must.",
        upstream=_ASSUMES_CUDA,
        remove_when=_CPU_SUPPORT,
        devices=("cpu",),
    ),
    Patch(
        target="megatron.core.jit:jit_fuser",
        adapter=f"{_FIXES}:no_jit",
        kind="replace",
        why="jit_fuser is torch.compile. On the CPU the first step waits for a C++ compiler (23 s "
        "measured) and fails without one; for the NPU inductor has no code to make.",
        upstream="none: a choice of speed",
        remove_when="megatron-core leaves its fusers off without a GPU",
        devices=("cpu", "npu"),
    ),
    Patch(
        target="megatron.core.inference.communication_utils:_is_cuda",
        adapter=f"{_FIXES}:any_device",
        kind="replace",
        why="Asserts that tensors sent between pipeline stages lie on a GPU; gloo sends others.",
        upstream=_ASSUMES_CUDA,
        remove_when=_CPU_SUPPORT,
        devices=("cpu", "npu"),
    ),
)

_OPTIMIZER_MODULE = "megatron.core.optimizer.distrib_optimizer"
_RESUME = (
    "Without apex and Transformer Engine, resuming with the distributed optimizer fails "
    "(assertion on an empty state, KeyError 'step') or goes on with one step count shared by all "
    "parameters, advanced once for each of them: silently other weights. "
)
_RESUME_END = "megatron-core saves and loads torch.optim.AdamW's state, step included"
_RESUME_LINK = "https://github.com/NovaSky-AI/SkyRL/pull/1403 (relatives of it)"
_OPTIMIZER = (
    Patch(
        target="megatron.core.optimizer:Adam",
        adapter=f"{_FIXES}:fused_adam",
        kind="wrap",
        why=_RESUME + "Our AdamW has FusedAdam's contract, for which that code is written.",
        upstream=_RESUME_LINK,
        remove_when=_RESUME_END,
        rebind=(f"{_OPTIMIZER_MODULE}:Adam",),
    ),
    Patch(
        target="megatron.core.optimizer:USING_PYTORCH_OPTIMIZER",
        adapter=f"{_FIXES}:using_pytorch_optimizer",
        kind="wrap",
        why="It would pass over the Adam above and take torch.optim's.",
        upstream=_RESUME_LINK,
        remove_when=_RESUME_END,
        mcore=f">=0.15,{BELOW}",
    ),
    Patch(
        target=f"{_OPTIMIZER_MODULE}:HAVE_APEX_OR_TE",
        adapter=f"{_FIXES}:have_fused_adam",
        kind="wrap",
        why="Says which layout the optimizer's state has: FusedAdam's, with the Adam above.",
        upstream=_RESUME_LINK,
        remove_when=_RESUME_END,
    ),
    Patch(
        target=f"{_OPTIMIZER_MODULE}:USING_APEX_OPTIMIZER",
        adapter=f"{_FIXES}:using_apex_optimizer",
        kind="wrap",
        why="Says where the step count is: in the parameter group, with the Adam above.",
        upstream=_RESUME_LINK,
        remove_when=_RESUME_END,
        mcore=f">=0.14,{BELOW}",
    ),
    Patch(
        target=f"{_OPTIMIZER_MODULE}:DistributedOptimizer._set_main_param_and_optimizer_states",
        adapter=f"{_FIXES}:without_grad",
        kind="wrap",
        why="Copies loaded values into leaves that require a gradient: RuntimeError in fp32.",
        upstream=_RESUME_LINK,
        remove_when="megatron-core does it under no_grad",
    ),
)

_VERSIONS = (
    Patch(
        target="megatron.core.dist_checkpointing.mapping:np",
        adapter=f"{_FIXES}:numpy_with_product",
        kind="wrap",
        why="Calls numpy.product, which numpy 2 no longer has: saving is an AttributeError.",
        upstream="https://github.com/NVIDIA/Megatron-LM (mended in 0.16)",
        remove_when="megatron-core below 0.16 is no longer supported",
        mcore=">=0.12.3,<0.16",
        rebind=(
            "megatron.core.dist_checkpointing.validation:np",
            "megatron.core.dist_checkpointing.exchange_utils:np",
        ),
    ),
    Patch(
        target="megatron.core.parallel_state:destroy_model_parallel",
        adapter=f"{_FIXES}:forget_position_embedding_ranks",
        kind="wrap",
        why="Keeps the ranks that had position embeddings, so that the next layout in the same "
        "process looks for a group that it has not got: AssertionError in the first step.",
        upstream="https://github.com/NVIDIA/Megatron-LM (mended in 0.13)",
        remove_when="megatron-core 0.12 is no longer supported",
        mcore=">=0.12.3,<0.13",
    ),
    Patch(
        target="megatron.core.transformer.attention:Attention.__init__",
        adapter=f"{_FIXES}:layer_number_of_the_model",
        kind="wrap",
        why="Is given the number of a layer within its pipeline stage, so that layers of a kind of "
        "their own (sliding windows) are others than at one stage: wrong numbers, no error.",
        upstream="https://github.com/NVIDIA/Megatron-LM (mended in 0.13)",
        remove_when="megatron-core 0.12 is no longer supported",
        mcore=">=0.12.3,<0.13",
        needs=("layer_number",),
    ),
    Patch(
        target="megatron.core.fp8_utils:quantize_param_shard",
        adapter=f"{_FIXES}:nothing_to_quantize",
        kind="wrap",
        why="Without Transformer Engine it raises in every step of the distributed optimizer, also "
        "for a model that has no fp8 parameter.",
        upstream="https://github.com/NVIDIA/Megatron-LM (mended in 0.13)",
        remove_when="megatron-core 0.12 is no longer supported",
        mcore=">=0.12.3,<0.13",
        needs=("model_params",),
    ),
    Patch(
        target="megatron.core.dist_checkpointing.strategies.filesystem_async:_write_item",
        adapter=f"{_FIXES}:write_item_as_saved",
        kind="wrap",
        why="torch's function asks for the serialization format since 2.7; it is not given, and "
        "saving is a TypeError in a writer process.",
        upstream="https://github.com/NVIDIA/Megatron-LM (mended in 0.13)",
        remove_when="megatron-core 0.12 is no longer supported",
        mcore=">=0.12.3,<0.13",
    ),
)

_SCHEDULE = (
    "megatron.core.pipeline_parallel.schedules:forward_backward_pipelining_with_interleaving"
)
_DEFECTS = (
    Patch(
        target="megatron.core.tensor_parallel.random:CheckpointWithoutOutput.__init__",
        adapter=f"{_FIXES}:checkpoint_without_fp8",
        kind="wrap",
        why="`self.fp8 = fp8 is not None` takes its own default, False, for fp8: recomputing "
        "layernorm or moe_act is a NameError without Transformer Engine.",
        upstream="none reported: tensor_parallel/random.py",
        remove_when="CheckpointWithoutOutput() has fp8 False",
        mcore=f">=0.13,{BELOW}",
        needs=("fp8",),
    ),
    Patch(
        target="megatron.core.tensor_parallel.random:_get_share_storage",
        adapter=f"{_FIXES}:share_storage_without_compiler",
        kind="replace",
        why="Compiles a C++ extension at the first recomputed layernorm or moe_act: needs ninja, a "
        "compiler and minutes, and waits forever for the lock of a process that was killed.",
        upstream="none reported: tensor_parallel/random.py",
        remove_when="CheckpointWithoutOutput compiles nothing",
        devices=("cpu", "npu"),
        mcore=f">=0.17,{BELOW}",
    ),
    Patch(
        target="megatron.core.transformer.moe.moe_utils:router_gating_linear",
        adapter=f"{_FIXES}:gating_without_transformer_engine",
        kind="wrap",
        why="Asks whether te_general_gemm is None, a name that only exists with Transformer "
        "Engine: every router is a NameError without it.",
        upstream="transformer/moe/moe_utils.py (mended in 0.17)",
        remove_when="megatron-core 0.16 is no longer supported",
        mcore=">=0.13,<0.17",
        needs=("inp", "weight", "router_dtype"),
    ),
    Patch(
        target="megatron.core.transformer.moe.moe_utils:maybe_move_tensor_to_cpu",
        adapter=f"{_FIXES}:counts_on_any_device",
        kind="wrap",
        why="Makes numbers of tokens lists of integers for all_to_all only where they lie on a "
        "GPU: with expert parallelism a TypeError elsewhere.",
        upstream=_ASSUMES_CUDA,
        remove_when=_CPU_SUPPORT,
        devices=("cpu", "npu"),
        needs=("tensor", "as_numpy", "record_stream"),
    ),
    *(
        Patch(
            target=f"megatron.core.tensor_parallel.mappings:{function}",
            adapter=f"{_FIXES}:{adapter}",
            kind="wrap",
            why="gloo exchanges parts of one size only. Experts cut by tensor parallelism and "
            "spread by expert parallelism have parts of any size: a RuntimeError.",
            upstream="none: nccl takes parts of any size",
            remove_when="gloo does",
            devices=("cpu",),
            needs=("input_", "group", sizes),
        )
        for function, adapter, sizes in (
            ("_gather_along_first_dim", "gather_any_sizes", "output_split_sizes"),
            ("_reduce_scatter_along_first_dim", "scatter_any_sizes", "input_split_sizes"),
        )
    ),
    Patch(
        target=_SCHEDULE,
        adapter=f"{_FIXES}:keep_outputs",
        kind="wrap",
        why="With overlap_p2p_comm and deallocate_pipeline_outputs an output is freed before gloo "
        "has sent it: other losses in every run, no error. It is kept here.",
        upstream="none reported: nccl copies at the call, gloo does not",
        remove_when="megatron-core frees outputs after their send has completed",
        devices=("cpu",),
        needs=("model",),
    ),
    Patch(
        target=_SCHEDULE,
        adapter=f"{_FIXES}:refuse_two_stages",
        kind="wrap",
        why="Virtual stages with two pipeline ranks send two messages to the same peer in a batch, "
        "which pair up in the wrong order: wrong gradients, no error. megatron.training refuses "
        "this, megatron.core does not.",
        upstream="https://github.com/NVIDIA/Megatron-LM (validate_args in megatron.training)",
        remove_when="megatron-core refuses it, or orders the messages",
        needs=("model",),
    ),
    Patch(
        target="megatron.core.fusions.fused_softmax:FusedScaleMaskSoftmax.forward_torch_softmax",
        adapter=f"{_FIXES}:both_masks",
        kind="wrap",
        why="With window_size the window's mask replaces the given one, so padding is attended to "
        "and packed documents see each other. (Our own models have another core attention.)",
        upstream="none reported: fusions/fused_softmax.py",
        remove_when="forward_torch_softmax joins both masks",
        mcore=f">=0.15,{BELOW}",
        needs=("input", "mask"),
    ),
)

_LINEAR = "linear_with_grad_accumulation_and_async_allreduce"
_KERNELS = (
    *(
        Patch(
            target=f"megatron.core.tensor_parallel.layers:{function}",
            adapter=f"{_FUSIONS}:linear",
            kind="wrap",
            why="Multiplies with torch.matmul, that is in float32 with MKL, which takes AVX2 "
            "kernels on processors with AVX-512 that are not Intel's; oneDNN is twice as fast "
            "there. On others the function does what it did.",
            upstream="none: a choice of torch's",
            remove_when="torch computes float32 with oneDNN on such processors",
            devices=("cpu",),
            needs=(
                "input",
                "weight",
                "bias",
                "gradient_accumulation_fusion",
                "allreduce_dgrad",
                "sequence_parallel",
            ),
            rebind=rebind,
        )
        for function, rebind in (
            (_LINEAR, (f"megatron.core.tensor_parallel:{_LINEAR}",)),
            ("linear_with_frozen_weight", ()),
        )
    ),
    Patch(
        target="megatron.core.models.common.embeddings.rope_utils:_apply_rotary_pos_emb_bshd",
        adapter=f"{_FUSIONS}:rotary",
        kind="wrap",
        why="Rotation has no place in a module spec, and is written out in six operators. Rows and "
        "packed rows, whole and partial, halves and neighbours all come through here.",
        upstream="none: a vendor's operator",
        remove_when="megatron-core takes its rotation from a spec",
        devices=("npu",),
        needs=("t", "freqs", "rotary_interleaved", "multi_latent_attention", "mscale"),
    ),
    Patch(
        target="megatron.core.optimizer.clip_grads:l2_norm_impl",
        adapter=f"{_FUSIONS}:gradient_norm",
        kind="wrap",
        why="Without apex and Transformer Engine it copies the norm of every gradient to the host "
        "and back, waiting for the device each time. Theirs are left as they are.",
        upstream="none reported: local_multi_tensor_l2_norm in megatron/core/utils.py",
        remove_when="local_multi_tensor_l2_norm stays on the device",
        needs=("tensor_lists", "per_tensor"),
    ),
)

_SPEC = "its specifications name this class themselves; our own models have another"
_SPEC_END = "get_gpt_layer_local_spec takes a BackendSpecProvider"
_PLAIN_MODELS = (
    Patch(
        target="megatron.core.transformer.dot_product_attention:DotProductAttention.forward",
        adapter="mindspeed_llm.patches.attention:fused_attention",
        kind="wrap",
        why="Writes its scores out, [b, n, s, s], and asserts that rows are not packed. A GPTModel "
        "of megatron-core's local specification gets the device's fused kernel with this, and "
        "takes PackedSeqParams: no sequence of a row sees another, windows included. "
        "Specifications with Transformer Engine keep its attention, norm and MLP.",
        upstream=f"none: {_SPEC}",
        remove_when=_SPEC_END,
        needs=("attention_mask", "attn_mask_type", "attention_bias", "packed_seq_params"),
    ),
    Patch(
        target="megatron.core.transformer.torch_norm:WrappedTorchNorm.__new__",
        adapter=f"{_LAYERS}:norm",
        kind="wrap",
        why="Makes torch.nn.RMSNorm, eight small kernels on an NPU, and refuses sequence "
        "parallelism and 1 + w. A GPTModel of megatron-core's local specification gets our "
        "RMSNorm with this, which has both and the device's fused kernel.",
        upstream=f"none: {_SPEC}",
        remove_when=_SPEC_END,
        needs=("config", "hidden_size", "eps"),
    ),
    Patch(
        target="megatron.core.transformer.mlp:MLP.forward",
        adapter=f"{_LAYERS}:gated_mlp",
        kind="wrap",
        why="SwiGLU and GeGLU are written out, or compiled for CUDA. With this they are the "
        "device's fused kernel where it has one, in experts too (SequentialMLP makes MLPs). On an "
        "NPU F.gelu computes tanh whatever it is told: an MLP without a gate gets the exact one.",
        upstream="none: a vendor's operator; MLPSubmodules has a place for an activation with "
        "Transformer Engine only",
        remove_when="MLP takes its activation from a specification without Transformer Engine",
        devices=("npu", "cuda"),
        needs=("hidden_states", "per_token_scale"),
    ),
)

_MEGATRON_LM = "mindspeed_llm.training.megatron_lm"
_CHECKOUT = "none: megatron.training has no place for other flags and data sets"
_CHECKOUT_END = "a Megatron-LM script takes data sets and a forward step by name"
_TRAINING = (
    Patch(
        target="megatron.training.arguments:parse_args",
        adapter=f"{_MEGATRON_LM}:with_flags",
        kind="wrap",
        why="Adds --is-instruction-dataset and the flags that go with it, and checks them against "
        "the data sets before anything is built.",
        upstream=_CHECKOUT,
        remove_when=_CHECKOUT_END,
        needs=("extra_args_provider", "ignore_unknown_args"),
    ),
    Patch(
        target="megatron.training.arguments:validate_args",
        adapter=f"{_MEGATRON_LM}:with_token_loss",
        kind="wrap",
        why="The loss of instruction data is divided by the supervised tokens of the whole batch, "
        "not by micro-batches that have more or fewer of them.",
        upstream=_CHECKOUT,
        remove_when=_CHECKOUT_END,
        needs=("args",),
    ),
    Patch(
        target="megatron.training.training:pretrain",
        adapter=f"{_MEGATRON_LM}:with_instruction_data",
        kind="wrap",
        why="Data sets and forward step belong to the script that is run and go through here: with "
        "--is-instruction-dataset ours take their place, else they are handed on as they are.",
        upstream=_CHECKOUT,
        remove_when=_CHECKOUT_END,
        needs=("train_valid_test_dataset_provider", "forward_step_func"),
    ),
    Patch(
        target="megatron.training.initialize:initialize_megatron",
        adapter=f"{_FIXES}:without_cuda",
        kind="wrap",
        why="Asserts that there is a GPU.",
        upstream=_ASSUMES_CUDA,
        remove_when=_CPU_SUPPORT,
        devices=("cpu",),
        needs=("allow_no_cuda",),
    ),
    Patch(
        target="megatron.legacy.fused_kernels:load",
        adapter=f"{_FIXES}:no_fused_kernels",
        kind="replace",
        why="Asks nvcc for its version before it looks whether there is anything to build.",
        upstream=_ASSUMES_CUDA,
        remove_when=_CPU_SUPPORT,
        devices=("cpu", "npu"),
    ),
)

REGISTER: tuple[Patch, ...] = (
    *_DEVICES,
    *_TYPE_NAMES,
    *_RANDOM,
    *_OPTIMIZER,
    *_VERSIONS,
    *_DEFECTS,
    *_KERNELS,
    *_PLAIN_MODELS,
    *_TRAINING,
)
