"""What each rank does in the parity tests: our model and transformers' on the same weights.

The text of this file is run by `run_ranks`; `main` answers with the largest differences.
"""

import math
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
import transformers
from megatron.core import parallel_state, tensor_parallel
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.inference.contexts import StaticInferenceContext
from megatron.core.pipeline_parallel import get_forward_backward_func
from transformers.core_model_loading import revert_weight_conversion

from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.models.build import build_model
from mindspeed_llm.models.names import expand, to_mcore
from mindspeed_llm.models.registry import read_model, rules_of

TOKENS, EXPERTS = 32, 4


def as_files(model, tensors):
    """Tensors of transformers' model under the names its files have: experts one by one."""
    if hasattr(model.config, "num_experts_per_tok"):
        return revert_weight_conversion(model, dict(tensors))
    return tensors


def whole(model, tensors, padded):
    """Megatron-Core's tensors of the whole model, vocabulary padded with zeros."""
    out = {}
    for rule in expand(rules_of(model), model.num_layers):
        tensor = to_mcore(rule, model, [tensors[name] for name in rule.hf])
        if rule.vocab:
            tensor = F.pad(tensor, (0, 0, 0, padded - tensor.shape[0]))
        out[rule.mcore] = tensor
    if model.tie_word_embeddings:
        out["output_layer.weight"] = out["embedding.word_embeddings.weight"]
    return out


def part(name, tensor, shape):
    """This rank's part of the whole tensor `name`; `shape` is the local one."""
    rank = parallel_state.get_tensor_model_parallel_rank()
    if "local_experts" in name:
        rank = parallel_state.get_expert_tensor_parallel_rank()
    if "linear_fc1" in name and tensor.shape[0] != shape[0]:
        return torch.cat([half.split(shape[0] // 2)[rank] for half in tensor.chunk(2)])
    for dim, (full, local) in enumerate(zip(tensor.shape, shape, strict=True)):
        if full != local:
            return tensor.split(local, dim)[rank]
    return tensor


def globally(name, first_layer):
    """decoder.layers.0.x of a later pipeline stage -> decoder.layers.2.x"""
    if not name.startswith("decoder.layers."):
        return name
    _, _, layer, rest = name.split(".", 3)
    head, experts, tail = rest.partition("local_experts.")
    if experts:  # of those on this rank -> of all
        number, _, tail = tail.partition(".")
        ranks = parallel_state.get_expert_model_parallel_world_size()
        number = int(number) + EXPERTS // ranks * parallel_state.get_expert_model_parallel_rank()
        rest = f"{head}{experts}{number}.{tail}"
    return f"decoder.layers.{int(layer) + first_layer}.{rest}"


def relative(found, wanted):
    """|found - wanted| / |wanted|; a tensor that should be zero must be."""
    size = wanted.norm().item()
    error = (found - wanted).norm().item()
    return error / size if size else error


def decode(gpt, ids, reference):
    """Largest difference of KV-cached logits: two turns in chunks, a rewind, the rest again."""
    context = StaticInferenceContext(ids.shape[0], TOKENS)
    context.materialize_only_last_token_logits = False
    logits = torch.full_like(reference, math.nan)
    worst = 0.0
    chunks = [(0, 9), (9, 10), (10, 11), (11, 20), (20, 21), (14, 20), (20, 32)]
    for start, end in chunks:  # 14 < 21: the third turn takes back the end of the second
        context.sequence_len_offset = start
        logits[:, start:end] = gpt(
            ids[:, start:end], torch.arange(start, end)[None].expand(len(ids), -1), None,
            inference_context=context, runtime_gather_output=True,
        )[..., : reference.shape[-1]]  # fmt: skip
        worst = max(worst, (logits[:, start:end] - reference[:, start:end]).abs().max().item())
    assert logits.isfinite().all()
    return worst


def step(gpt, config, ids, labels):
    """One forward and backward pass through megatron-core's schedule and gradient reduction."""
    seen = {}
    wrapped = DistributedDataParallel(config, DistributedDataParallelConfig(), gpt)
    config.finalize_model_grads_func = finalize_model_grads

    def loss_of(logits):
        seen["logits"] = logits.detach().clone()
        losses = gpt.compute_language_model_loss(labels, logits.transpose(0, 1).contiguous())
        seen["loss"] = losses.mean().item()
        return losses.mean(), {}

    def forward(iterator, stage):
        return stage(next(iterator), torch.arange(TOKENS)[None].expand(len(ids), -1), None), loss_of

    wrapped.train()
    get_forward_backward_func()(
        forward_step_func=forward, data_iterator=iter([ids]), model=[wrapped], num_microbatches=1,
        seq_length=TOKENS, micro_batch_size=len(ids), forward_only=False,
    )  # fmt: skip
    return seen


def case(directory, parallel):
    """Largest differences of one model directory."""
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        directory, attn_implementation="eager", dtype=torch.float32
    )
    model = read_model(Path(directory))
    generator = torch.Generator().manual_seed(5)
    replicas, replica = (parallel_state.get_data_parallel_world_size(),
                         parallel_state.get_data_parallel_rank())  # fmt: skip
    shape = (max(2, replicas), TOKENS)
    ids = torch.randint(3, model.vocab_size, shape, generator=generator)
    labels = torch.randint(0, model.vocab_size, shape, generator=generator)
    reference = theirs(ids).logits
    loss = F.cross_entropy(reference.flatten(0, 1), labels.flatten())
    loss.backward()
    reference = reference.detach()

    gpt = build_model(model, parallel, dtype=torch.float32, perform_initialization=False)
    padded = parallel.padded_vocab_size(model.vocab_size)
    ids, labels, reference = (x.chunk(replicas)[replica] for x in (ids, labels, reference))
    weights = whole(model, as_files(theirs, theirs.state_dict()), padded)
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    gradients = whole(model, as_files(theirs, gradients), padded)
    stage = parallel_state.get_pipeline_model_parallel_rank()
    first = stage * model.num_layers // parallel.pipeline_model_parallel_size
    split = []
    with torch.no_grad():
        for name, weight in gpt.named_parameters():
            full = weights[globally(name, first)]
            weight.copy_(part(name, full, weight.shape))
            if weight.shape != full.shape:
                split.append(name)
                assert weight.tensor_model_parallel, name
        assert replicas == 1 or parallel.expert_model_parallel_size > 1
    out = {"split": len(split)}
    if not parallel.sequence_parallel and parallel.pipeline_model_parallel_size == 1:
        with torch.no_grad():
            out["cached"] = decode(gpt.eval(), ids, reference)
    seen = step(gpt, gpt.config, ids, labels)
    if "logits" in seen:
        reference = F.pad(reference, (0, padded - model.vocab_size), value=-math.inf)
        local = padded // parallel.tensor_model_parallel_size
        rank = parallel_state.get_tensor_model_parallel_rank()
        reference = reference.split(local, dim=-1)[rank]
        real = reference.isfinite()
        assert torch.equal(seen["logits"].isfinite(), real), "-inf exactly on padding"
        out["logits"] = (seen["logits"] - reference)[real].abs().max().item()
        ours = gathered(seen["logits"])[..., : model.vocab_size].log_softmax(-1)
        theirs = gathered(reference)[..., : model.vocab_size].log_softmax(-1)
        out["logprobs"] = (ours - theirs).abs().max().item()
        total = torch.tensor(seen["loss"], dtype=torch.float64)
        dist.all_reduce(total, group=parallel_state.get_data_parallel_group())
        out["loss"] = abs(total.item() / replicas - loss.item()) / loss.item()
    grads = {
        name: relative(
            parameter.main_grad,
            part(name, gradients[globally(name, first)], parameter.shape),
        )
        for name, parameter in gpt.named_parameters()
    }
    out["gradient"] = max(grads.values())
    out["worst"] = max(grads, key=grads.get)
    return out


def gathered(logits):
    """The vocabulary's parts of all tensor-parallel ranks side by side."""
    group = parallel_state.get_tensor_model_parallel_group()
    parts = [torch.empty_like(logits) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, logits.contiguous(), group=group)
    return torch.cat(parts, dim=-1)


def rounded(directory, parallel):
    """Distances of bfloat16 logits from transformers' float32 ones: ours and transformers' own."""
    load = transformers.AutoModelForCausalLM.from_pretrained
    exact = load(directory, attn_implementation="eager", dtype=torch.float32)
    theirs = load(directory, attn_implementation="eager", dtype=torch.bfloat16)
    model = read_model(Path(directory))
    gpt = build_model(model, parallel, dtype=torch.bfloat16, perform_initialization=False)
    weights = whole(model, as_files(theirs, theirs.state_dict()), model.vocab_size)
    # Many tokens: where rounding turns a router's choice, one token weighs as much as dozens.
    ids = torch.randint(3, model.vocab_size, (64, TOKENS), generator=torch.manual_seed(5))
    positions = torch.arange(TOKENS)[None].expand(len(ids), -1)
    with torch.no_grad():
        for name, weight in gpt.named_parameters():
            weight.copy_(weights[name])
        reference = exact(ids).logits
        found = [theirs(ids).logits.float(), gpt.eval()(ids, positions, None).float()]
    size = reference.square().mean().sqrt()
    theirs, ours = [((x - reference).square().mean().sqrt() / size).item() for x in found]
    return {"ours": ours, "theirs": theirs}


def main(directories, tp, pp, sp, bf16=False, ep=1, etp=None):
    """{case: differences on this rank} for the models in {case: directory}."""
    parallel_state.initialize_model_parallel(
        tp, pp, expert_model_parallel_size=ep, expert_tensor_parallel_size=etp
    )
    tensor_parallel.model_parallel_cuda_manual_seed(1)
    parallel = ParallelConfig(
        tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp, sequence_parallel=sp,
        expert_model_parallel_size=ep, expert_tensor_parallel_size=etp,
    )  # fmt: skip
    compare = rounded if bf16 else case
    results = {name: compare(directory, parallel) for name, directory in directories.items()}
    dist.barrier()
    return results
