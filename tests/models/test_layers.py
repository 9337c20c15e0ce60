"""models.layers: rotary tables per kind of layer, attention's refusals, masks, dropout and the
KV cache's edges. Whole models are compared with transformers in test_build."""

import pytest
import torch
from transformers import AutoConfig
from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding


def pieces(directory):
    import copy
    from pathlib import Path

    import torch
    from megatron.core import parallel_state, tensor_parallel
    from megatron.core.inference import utils
    from megatron.core.inference.contexts import StaticInferenceContext

    from mindspeed_llm.config.parallel import ParallelConfig
    from mindspeed_llm.models import layers
    from mindspeed_llm.models.build import build_model
    from mindspeed_llm.models.registry import read_model

    parallel_state.initialize_model_parallel()
    tensor_parallel.model_parallel_cuda_manual_seed(1)
    model = read_model(Path(directory))
    torch.manual_seed(0)
    gpt = build_model(model, ParallelConfig(), dtype=torch.float32, init_method_std=0.3).eval()
    ids = torch.randint(0, 131, (2, 12))
    positions = torch.arange(12)[None].expand(2, -1)
    tables = gpt.rotary_pos_emb
    out = {"table": tables(20)[:, 0, 0].tolist(), "shorter": tables(7).shape[0]}
    with torch.no_grad():
        plain = gpt(ids, positions, None)
        hidden = torch.zeros(2, 1, 12, 12, dtype=torch.bool)
        out["empty mask"] = torch.equal(gpt(ids, positions, hidden), plain)
        other = ids.clone()
        other[:, 4] = (other[:, 4] + 1) % 131
        hidden[..., 4] = True
        hidden[:, :, 4, 4] = False
        masked = [gpt(i, positions, hidden)[:, 5:] for i in (ids, other)]
        out["a hidden token has no influence"] = torch.equal(*masked)
        out["masks do something"] = not torch.equal(masked[0], plain[:, 5:])

        if hasattr(utils, "InferenceMode"):  # 0.18 and later ask it, not the context alone
            utils.InferenceMode.set_active()
        context = StaticInferenceContext(2, 8)
        cached = gpt(ids[:, :8], positions[:, :8], None, inference_context=context,
                     runtime_gather_output=True)  # fmt: skip
        out["only the last token's logits"] = list(cached.shape)
        out["layers cached"] = sorted(context.key_value_memory_dict)
        out["cache shape"] = list(context.key_value_memory_dict[1][0].shape)
        context.increment_sequence_len_offset(8)
        try:
            gpt(ids[:, 8:9], positions[:, 8:9], None, inference_context=context,
                runtime_gather_output=True)  # fmt: skip
        except ValueError as err:
            out["full"] = str(err)

        layers.CACHE_BLOCK = 2
        context, last, sizes = StaticInferenceContext(2, 11), [], []
        for first, end in ((0, 3), (3, 4), (4, 9), (9, 11)):
            step = gpt(ids[:, first:end], positions[:, first:end], None, inference_context=context,
                       runtime_gather_output=True)  # fmt: skip
            context.increment_sequence_len_offset(end - first)
            last.append((step[:, 0] - plain[:, end - 1]).abs().max().item())
            sizes.append(len(context.key_value_memory_dict[1][0]))
        out["cache sizes"], out["grown cache differs by"] = sizes, max(last)
    core = gpt.decoder.layers[0].self_attention.core_attention
    q = torch.randn(4, 1, 4, 24)
    out["windows"] = [layer.self_attention.core_attention.window for layer in gpt.decoder.layers]

    noisy = build_model(model, ParallelConfig(), dtype=torch.float32, attention_dropout=0.5)
    core = noisy.decoder.layers[0].self_attention.core_attention
    args = (q, q[:, :, :2], q[:, :, :2], None)
    out["dropout in training"] = not torch.equal(core.train()(*args), core(*args))
    out["no dropout in evaluation"] = torch.equal(core.eval()(*args), core(*args))
    out["copied"] = copy.deepcopy(gpt.config).decoder == model
    out["after cast"] = str(gpt.bfloat16().rotary_pos_emb(20).dtype)
    return out


def packed_pieces(directory):
    """Runs in a rank: a packed row through the model and through attention, and refusals."""
    import dataclasses
    from pathlib import Path

    import torch
    from megatron.core import parallel_state, tensor_parallel
    from megatron.core.packed_seq_params import PackedSeqParams

    from mindspeed_llm.config.parallel import ParallelConfig
    from mindspeed_llm.models.build import build_model
    from mindspeed_llm.models.registry import read_model

    parallel_state.initialize_model_parallel()
    tensor_parallel.model_parallel_cuda_manual_seed(1)
    gpt = build_model(read_model(Path(directory)), ParallelConfig(), dtype=torch.float32,
                      init_method_std=0.1)  # fmt: skip
    core, out = gpt.decoder.layers[0].self_attention.core_attention, {}
    bounds = torch.tensor([0, 9, 21, 24], dtype=torch.int32)
    row = PackedSeqParams(qkv_format="thd", cu_seqlens_q=bounds, cu_seqlens_kv=bounds,
                          max_seqlen_q=12, max_seqlen_kv=12)  # fmt: skip
    ids, positions = torch.randint(0, 131, (3, 1, 24)), torch.arange(24)[None]
    ids[1:, :, 9:21] = ids[0, :, 9:21]
    with torch.no_grad():
        first, *others = (gpt(i, positions, None, packed_seq_params=row)[0] for i in ids)
        own = gpt(ids[0, :, 9:21], positions[:, :12], None)[0]
    out["neighbours have no influence"] = [torch.equal(o[9:21], first[9:21]) for o in others]
    out["neighbours differ"] = not torch.equal(others[0][:9], first[:9])
    out["differs from alone by"] = (first[9:21] - own).abs().max().item()
    q, hidden = torch.randn(4, 1, 4, 24), torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    t, bounds = q[:, 0], torch.tensor([0, 1, 4], dtype=torch.int32)
    thd = PackedSeqParams(qkv_format="thd", cu_seqlens_q=bounds, cu_seqlens_kv=bounds)
    whole = core(t, t[:, :2], t[:, :2], None, packed_seq_params=thd)
    alone = [core(*(x[:, None] for x in (p, p[:, :2], p[:, :2])), None) for p in (t[:1], t[1:])]
    out["packed is alone"] = torch.equal(whole, torch.cat(alone)[:, 0])
    longer = dataclasses.replace(
        thd, cu_seqlens_q=bounds - 1, cu_seqlens_q_padded=bounds, cu_seqlens_kv_padded=bounds
    )
    padded = core(t, t[:, :2], t[:, :2], None, packed_seq_params=longer)
    out["padded boundaries"] = torch.equal(padded, whole)
    out["packed"] = []
    for mask, changes in (
        (None, {"qkv_format": "sbhd"}),
        (hidden, {}),
        (None, {"cu_seqlens_kv": torch.tensor([0, 2, 4])}),
    ):
        try:
            core(t, t[:, :2], t[:, :2], mask, packed_seq_params=dataclasses.replace(thd, **changes))
        except ValueError as err:
            out["packed"].append(str(err))
    return out


@pytest.fixture(scope="module")
def answers():
    return {}


@pytest.fixture
def found(answers, run_ranks, tiny_hf_model, tmp_path):
    """What one process said of a tiny Gemma 3; started once for the module."""
    if "ours" not in answers:
        directory = tiny_hf_model("gemma3", tmp_path / "model")
        config = AutoConfig.from_pretrained(directory)
        rotary = Gemma3RotaryEmbedding(config)
        answers["theirs"] = [
            torch.outer(torch.arange(20.0), getattr(rotary, f"{kind}_attention_inv_freq"))
            for kind in ("full", "sliding")
        ]
        (answers["ours"],) = run_ranks(1, pieces, str(directory))
    return answers["ours"]


def test_rotary_tables_hold_full_then_sliding(found, answers):
    full, sliding = answers["theirs"]
    assert not torch.equal(full, sliding)
    table = torch.tensor(found["table"])
    assert torch.equal(table, torch.cat([full, full, sliding, sliding], dim=-1))
    assert found["shorter"] == 7


def test_rotary_tables_stay_float32_when_the_model_is_cast(found):
    assert found["after cast"] == "torch.float32"


def test_windows_follow_the_layer_types(found):
    assert found["windows"] == [8, None, 8, None]


def test_an_explicit_mask_adds_to_causality(found):
    assert found["empty mask"]
    assert found["a hidden token has no influence"]
    assert found["masks do something"]


def test_the_cache_has_megatrons_shape_and_an_end(found):
    assert found["only the last token's logits"] == [2, 1, 131]
    assert found["layers cached"] == [1, 2, 3, 4]
    assert found["cache shape"] == [8, 2, 2, 24]
    assert found["full"] == "9 positions do not fit a KV cache of 8"


def test_the_cache_grows_by_blocks_and_keeps_what_it_held(found):
    assert found["cache sizes"] == [4, 4, 10, 11]
    assert found["grown cache differs by"] < 1e-4


def test_packed_sequences_are_each_alone_or_refused(run_ranks, tiny_hf_model, tmp_path):
    directory = tiny_hf_model("gemma3", tmp_path / "model")
    (found,) = run_ranks(1, packed_pieces, str(directory))
    assert found["packed is alone"] and found["padded boundaries"]
    assert found["neighbours have no influence"] == [True, True] and found["neighbours differ"]
    assert found["differs from alone by"] < 1e-5
    assert found["packed"] == [
        "packed sequences have the format 'sbhd'; expected 'thd'",
        "packed sequences take no attention mask besides",
        "packed sequences have keys that are cut elsewhere than their queries",
    ]


def test_dropout_is_honoured_in_training_only(found):
    assert found["dropout in training"]
    assert found["no dropout in evaluation"]


def test_the_configuration_of_a_built_model_can_be_copied(found):
    assert found["copied"]
