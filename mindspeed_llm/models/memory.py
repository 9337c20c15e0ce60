"""Owns the arithmetic of a training run's memory, rank by rank, from architecture and layout alone.

It follows what our modules and megatron-core allocate; it builds nothing and knows no device.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from mindspeed_llm.config.model import ExpertsConfig, ModelConfig
from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.kernels.attention import BLOCK
from mindspeed_llm.kernels.cross_entropy import CHUNK
from mindspeed_llm.models.shapes import stage_shapes

Recompute = Literal["none", "selective", "full"]
WIDE = 4  # bytes of a float32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What besides the model decides the memory of a rank.

    Attributes:
        parallel: TP, PP, SP, CP, EP, and which stage has which layers.
        data_parallel: replicas, of all but the experts; see `expert_replicas`.
        seq_length, micro_batch_size: tokens of a row, rows of a forward pass.
        bf16: bfloat16 parameters and activations with float32 main weights, else all float32.
        distributed_optimizer: optimizer state is split over the replicas.
        recompute: of activations: none, the core of attention, or whole layers one by one.
    """

    parallel: ParallelConfig
    data_parallel: int
    seq_length: int
    micro_batch_size: int = 1
    bf16: bool = True
    distributed_optimizer: bool = True
    recompute: Recompute = "none"

    @property
    def replicas(self) -> int:
        """Ranks that have the same parameters, but for experts: those of CP count as well."""
        return self.data_parallel * self.parallel.context_parallel_size

    @property
    def expert_replicas(self) -> int:
        """Replicas of each expert, over which the state of their optimizer is split."""
        parallel = self.parallel
        ranks = self.replicas * parallel.tensor_model_parallel_size
        return ranks // (parallel.expert_tensor_size * parallel.expert_model_parallel_size)

    @property
    def item(self) -> int:
        """Bytes of a parameter or activation."""
        return 2 if self.bf16 else WIDE


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one rank.

    `activations` are those that wait for the backward pass, at their most; `passing` is the larger
    of what a backward pass and an optimizer step need for a moment.
    """

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    passing: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(dataclasses.astuple(self))


def peak(model: ModelConfig, run: Run) -> Memory:
    """Memory of the rank that needs most: the one of the fullest pipeline stage."""
    stages = range(run.parallel.pipeline_model_parallel_size)
    return max((stage_memory(model, run, stage) for stage in stages), key=lambda m: m.total)


def stage_memory(model: ModelConfig, run: Run, stage: int) -> Memory:
    """Memory of a rank of pipeline stage `stage` (0-based)."""
    sizes = {
        of_experts: [
            math.prod(shape)
            for shape in stage_shapes(model, run.parallel, stage, of_experts=of_experts)
        ]
        for of_experts in (False, True)
    }
    count = sum(map(sum, sizes.values()))
    share = count
    if run.distributed_optimizer:
        replicas = {False: run.replicas, True: run.expert_replicas}
        share = sum(-(-sum(sizes[kind]) // replicas[kind]) for kind in sizes)
    states = 3 if run.bf16 else 2  # main weights, and Adam's two averages
    own = run.parallel.layers_of(model.num_layers, stage)
    layers = len(own)
    whole = [layer_bytes(model, run, layer) for layer in own]
    kept = sum(whole)
    working = 0
    if run.recompute == "full":
        kept, working = layers * _stream(run) * run.item * model.hidden_size, max(whole)
    elif run.recompute == "selective":
        cores = [core_bytes(model, run, windowed=_is_windowed(model, run, layer)) for layer in own]
        kept -= sum(cores) - layers * _core_inputs(model, run)
        working = max(cores)
    if model.attention_softcap is not None and run.seq_length > BLOCK:
        working += _scores(model, run)
    head = 0
    if stage == run.parallel.pipeline_model_parallel_size - 1:
        head = head_bytes(model, run)
    gradient = run.item * max(
        map(max, filter(None, sizes.values()))
    )  # of one parameter, until it is added to its buffer
    update = WIDE * share  # AdamW's roots of the second average
    chunks = run.parallel.virtual_stages(model.num_layers)
    activations = _waiting(run.parallel, stage, chunks) * kept // chunks + head
    return Memory(
        parameters=run.item * count,
        gradients=WIDE * count,
        optimizer=WIDE * states * share,
        activations=activations,
        passing=max(working + gradient, update - activations, 0),
    )


def _waiting(parallel: ParallelConfig, stage: int, chunks: int) -> int:
    """Passes of a model chunk through a stage whose backward passes are still to come, at most.

    One forward, one backward: later stages are ahead by one micro-batch each. Interleaved
    (megatron-core's schedule), a rank sends all chunks but the last ahead for as many
    micro-batches as there are stages, and is two passes ahead of the next rank.
    """
    stages = parallel.pipeline_model_parallel_size
    if chunks == 1:
        return stages - stage
    return 2 * (stages - stage - 1) + (chunks - 1) * stages + 1


def _tokens(run: Run) -> int:
    """Tokens of a micro-batch on a rank: context parallelism splits rows."""
    return run.seq_length * run.micro_batch_size // run.parallel.context_parallel_size


def _stream(run: Run) -> int:
    """Tokens of the residual stream on a rank: sequence parallelism splits them."""
    parallel = run.parallel
    return _tokens(run) // (
        parallel.tensor_model_parallel_size if parallel.sequence_parallel else 1
    )


def _norm(run: Run, width: int, vectors: int = 1) -> int:
    """Bytes an RMSNorm keeps for each token of `vectors` vectors, `width` numbers in all: its input
    and a float32 of each vector (`kernels.rms_norm`)."""
    return run.item * width + WIDE * vectors


def layer_bytes(model: ModelConfig, run: Run, layer: int) -> int:
    """What layer `layer` (0-based) keeps of one micro-batch for its backward pass.

    Of experts it is what they keep where the router spreads tokens evenly over ranks.
    """
    tp, item, tokens = run.parallel.tensor_model_parallel_size, run.item, _tokens(run)
    norms = 4 if model.post_norms else 2
    # the norms, and the input of attention
    outside = _stream(run) * (norms * _norm(run, model.hidden_size) + model.hidden_size * item)
    if model.is_sparse(layer):
        assert model.experts is not None
        outside, mlp = outside + _expert_bytes(model, model.experts, run), 0
    else:
        outside += _stream(run) * model.hidden_size * item  # the MLP's input
        mlp = 3 * item * model.ffn_hidden_size  # gate and up, product
    q, kv = model.num_attention_heads * model.head_dim, model.num_query_groups * model.head_dim
    inside = mlp
    if model.attention_softcap is not None or _is_windowed(model, run, layer):
        inside += item * q  # the output projection's input; one fused call keeps it itself
    if model.qk_norm:  # the queries, and the projection's whole output with the keys in it
        inside += _norm(run, 2 * (q + kv), model.num_attention_heads + model.num_query_groups)
    turns = 4 * item * model.turning_dim * run.seq_length  # cosine and sine, of queries and of keys
    core = core_bytes(model, run, windowed=_is_windowed(model, run, layer))
    return outside + tokens * inside // tp + turns + core


def _expert_bytes(model: ModelConfig, experts: ExpertsConfig, run: Run) -> int:
    """The router, in float32, and experts; `models.layers` has megatron-core's all-to-all."""
    item, hidden = run.item, model.hidden_size
    # its input; the weights of all experts as chosen, which of them, and their softmax
    softmax = 0 if experts.renormalized else WIDE
    router = WIDE * hidden + experts.num_experts * (WIDE + 1 + softmax)
    # for each expert of a token: the input, gate and up, activated gate, up again, product, product
    # weighted, its weight, and where it came from
    etp = run.parallel.expert_tensor_size  # ranks that each have all of their tokens, and a part
    wide = item * (hidden * etp + 6 * experts.ffn_hidden_size)
    return _stream(run) * (router + experts.top_k * (wide + etp * (WIDE + 8)))


def _is_windowed(model: ModelConfig, run: Run, layer: int) -> bool:
    window = model.sliding_window
    return model.is_sliding(layer) and window is not None and window < run.seq_length


def _core_inputs(model: ModelConfig, run: Run) -> int:
    """Turned queries and keys, and values, which are a view of the projection's whole output (which
    norms of queries and keys keep as well)."""
    heads, groups = model.num_attention_heads, model.num_query_groups
    whole = 0 if model.qk_norm else heads + 2 * groups
    rows = (heads + groups + whole) * model.head_dim
    return _tokens(run) * run.item * rows // run.parallel.tensor_model_parallel_size


def core_bytes(model: ModelConfig, run: Run, *, windowed: bool) -> int:
    """What the core of attention keeps (`kernels.attention`).

    With context parallelism a rank has the keys and values of whole rows, beside its own queries.
    The fused kernel keeps queries, keys and values, the latter two repeated for every query head,
    its output and a float32 a row; under a window nothing is repeated. With a soft cap the scores
    are written out: their tanh and their softmax in float32, the weights, and a mask; rows of more
    than one block (of an accelerator) keep none of them.
    """
    tp, item, tokens = run.parallel.tensor_model_parallel_size, run.item, _tokens(run)
    heads = model.num_attention_heads
    cp = run.parallel.context_parallel_size
    others = (
        2 * tokens * (cp - 1) * item * model.num_query_groups * model.head_dim // tp
    )  # gathered
    if model.attention_softcap is not None:
        mask = run.seq_length * run.seq_length // cp
        written = 0 if run.seq_length > BLOCK else _scores(model, run) + mask
        return _core_inputs(model, run) + others + written
    repeated = 2 * (1 + cp) * tokens * item * heads * model.head_dim // tp + others
    if model.num_query_groups == heads or windowed:  # values keep all they are a view of
        repeated = _core_inputs(model, run) + tokens * item * heads * model.head_dim // tp + others
    return repeated + tokens * heads * WIDE // tp


def _scores(model: ModelConfig, run: Run) -> int:
    """Written-out scores of the queries that are looked at together (`kernels.attention`)."""
    kept = 2 * WIDE + (run.item if run.bf16 else 0)
    own = run.seq_length // run.parallel.context_parallel_size
    rows = run.micro_batch_size * min(own, BLOCK)
    heads = model.num_attention_heads // run.parallel.tensor_model_parallel_size
    return rows * run.seq_length * heads * kept


def head_bytes(model: ModelConfig, run: Run) -> int:
    """Final norm, output layer and loss, where every position is trained.

    The loss computes its gradients at once and a chunk of logits at a time
    (`kernels.cross_entropy`): there are the hidden states and their gradient, the gradient of the
    output layer in float32 and that of a chunk, and a chunk's logits.
    """
    tp, tokens, narrow = run.parallel.tensor_model_parallel_size, _tokens(run), run.item
    rows = run.parallel.padded_vocab_size(model.vocab_size) // tp
    copies = narrow if run.bf16 else 0
    chunk = min(max(1, CHUNK // rows), tokens) * rows
    logits = chunk * (WIDE * (1 if model.logit_softcap is None else 2) + copies)
    hidden = 2 * tokens * narrow
    final = _stream(run) * _norm(run, model.hidden_size)
    return final + model.hidden_size * (hidden + rows * (WIDE + copies)) + logits
