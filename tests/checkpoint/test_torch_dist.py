"""Checkpoints of plain megatron-core are read, and plain megatron-core reads what is written."""

import json
import pickle

import pytest
import torch
import transformers
from safetensors.torch import load_file

from mindspeed_llm.checkpoint.convert import hf_to_mcore, mcore_to_hf
from mindspeed_llm.checkpoint.torch_dist import TorchDistReader
from mindspeed_llm.errors import CheckpointError

# A model of megatron-core's own local spec, at a layout; nothing of ours makes it.
_PLAIN = '''
import shutil
import torch
from megatron.core import dist_checkpointing, parallel_state, tensor_parallel
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer.transformer_config import TransformerConfig


def plain(config, tp, pp):
    parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(tp, pp)
    tensor_parallel.model_parallel_cuda_manual_seed(1)
    made = TransformerConfig(
        num_layers=config["num_hidden_layers"], hidden_size=config["hidden_size"],
        ffn_hidden_size=config["intermediate_size"], kv_channels=config["head_dim"],
        num_attention_heads=config["num_attention_heads"],
        num_query_groups=config["num_key_value_heads"], normalization="RMSNorm",
        layernorm_epsilon=config["rms_norm_eps"], gated_linear_unit=True,
        activation_func=torch.nn.functional.silu, add_bias_linear=False, hidden_dropout=0.0,
        attention_dropout=0.0, tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp,
        pipeline_dtype=torch.float32, use_cpu_initialization=True, persist_layer_norm=False,
        masked_softmax_fusion=False, bias_activation_fusion=False, bias_dropout_fusion=False,
        apply_rope_fusion=False)
    return GPTModel(
        made, get_gpt_layer_local_spec(normalization="RMSNorm"),
        vocab_size=-(-config["vocab_size"] // tp) * tp, max_sequence_length=64,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        share_embeddings_and_output_weights=False, position_embedding_type="rope",
        rotary_base=config["rope_parameters"]["rope_theta"]).eval()


def metadata():
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    return {"singleton_local_shards": False, "dp_cp_group": group}


def load(model, directory):
    state = {"model": model.sharded_state_dict(metadata=metadata())}
    loaded = dist_checkpointing.load(state, str(directory))
    model.load_state_dict(loaded["model"], strict=True)
    return loaded


def save(model, root, iteration):
    directory = Path(root) / f"iter_{iteration:07d}"
    if dist.get_rank() == 0:
        directory.mkdir(parents=True)
    dist.barrier()
    kept = {key: value for key, value in metadata().items() if key != "dp_cp_group"}
    state = {"model": model.sharded_state_dict(metadata=metadata()), "iteration": iteration,
             "checkpoint_version": 3.0, "args": {"lr": 1e-4},
             "optimizer": {"step": dist_checkpointing.ShardedTensor.from_rank_offsets(
                 "optimizer.state.step", torch.ones(2), (0, dist.get_rank(), 2))}}
    dist_checkpointing.save(state, str(directory), content_metadata=kept)
    if dist.get_rank() == 0:
        (Path(root) / "latest_checkpointed_iteration.txt").write_text(str(iteration))


def main(config, source, root):
    """Load at TP 2 and at PP 2, save from both; logits of each of the last stage."""
    out = []
    for number, (tp, pp) in enumerate([(2, 1), (1, 2)]):
        model = plain(config, tp, pp)
        loaded = load(model, source)
        assert loaded["checkpoint_version"] == 3.0
        save(model, f"{root}{number}", 7 + number)
        if pp == 1:
            ids = torch.arange(20)[None]
            logits = model(ids, ids, None)
            gathered = tensor_parallel.gather_from_tensor_model_parallel_region(logits)
            out.append(gathered[0, :, : config["vocab_size"]].tolist())
    return out
'''


@pytest.fixture(scope="module")
def llama(tmp_path_factory, tiny_hf_model):
    return tiny_hf_model(
        "llama",
        tmp_path_factory.mktemp("plain") / "hf",
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    )


@pytest.fixture(scope="module")
def written(llama, tmp_path_factory):
    """Our torch_dist checkpoint of `llama`."""
    root = tmp_path_factory.mktemp("torch_dist") / "ckpt"
    return hf_to_mcore(llama, root, ckpt_format="torch_dist").path


def contents(directory):
    """The table of contents, unpickled: this file's own."""
    return pickle.loads((directory / ".metadata").read_bytes())


def test_there_and_back_through_plain_megatron_core(tmp_path, llama, written, run_ranks):
    config = json.loads((llama / "config.json").read_text())
    ranks = run_ranks(2, _PLAIN, config, str(written), str(tmp_path / "theirs"))
    model = transformers.AutoModelForCausalLM.from_pretrained(llama)
    with torch.no_grad():
        expected = model(torch.arange(20)[None]).logits[0]
    assert (torch.tensor(ranks[0][0]) - expected).abs().max() < 1e-4
    original = load_file(llama / "model.safetensors")
    for number in range(2):
        root = tmp_path / f"theirs{number}"
        with pytest.raises(CheckpointError, match="does not say what its model is"):
            mcore_to_hf(root, tmp_path / "none", trust_pickle=True)
        (root / "hf").mkdir()
        for name in ("config.json", "generation_config.json"):
            (root / "hf" / name).write_bytes((llama / name).read_bytes())
        with pytest.raises(CheckpointError, match="--trust-pickle"):
            mcore_to_hf(root, tmp_path / "none")
        assert not (tmp_path / "none").exists()
        back = mcore_to_hf(root, tmp_path / f"back{number}", trust_pickle=True)
        result = load_file(back.path / "model.safetensors")
        assert result.keys() == original.keys()
        assert all(torch.equal(result[name], original[name]) for name in original)


def test_keys_are_those_of_transformer_engines_spec_too(written):
    keys = set(contents(written).state_dict_metadata)
    layers = "decoder.layers."
    tensors = {key for key in keys if "_extra_state" not in key}
    assert tensors == {
        "embedding.word_embeddings.weight", "output_layer.weight", "decoder.final_layernorm.weight",
        *(layers + name for name in (
            "self_attention.linear_qkv.layer_norm_weight", "self_attention.linear_qkv.weight",
            "self_attention.linear_proj.weight", "mlp.linear_fc1.layer_norm_weight",
            "mlp.linear_fc1.weight", "mlp.linear_fc2.weight"))}  # fmt: skip
    for module in ("self_attention.core_attention", "self_attention.linear_qkv", "mlp.linear_fc2"):
        assert f"{layers}{module}._extra_state/shard_1_4" in keys


def test_reader_and_writer_agree(llama, written, tmp_path):
    """What we write we read, bit by bit, at any layout, and with the files beside it."""
    mcore_to_hf(written.parent, tmp_path / "back", trust_pickle=True)
    mine, theirs = (load_file(d / "model.safetensors") for d in (tmp_path / "back", llama))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert sorted(p.name for p in written.parent.iterdir()) == [
        "latest_checkpointed_iteration.txt", "release"]  # fmt: skip


EXPERTS = {"mixtral": {}, "qwen3_moe": {"mlp_only_layers": [1]}}


@pytest.mark.parametrize("family", EXPERTS)
def test_experts_there_and_back(family, tiny_hf_model, tmp_path):
    source = tiny_hf_model(family, tmp_path / "hf", **EXPERTS[family])
    hf_to_mcore(source, tmp_path / "mcore", ckpt_format="torch_dist")
    mcore_to_hf(tmp_path / "mcore", tmp_path / "back", trust_pickle=True)
    mine, theirs = (load_file(tmp_path / d / "model.safetensors") for d in ("back", "hf"))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def exchange(directories):
    """megatron-core itself loads what was written, with two ranks that share experts, and saves."""
    from pathlib import Path

    import torch
    import torch.distributed as dist
    from megatron.core import dist_checkpointing, parallel_state, tensor_parallel

    from mindspeed_llm.checkpoint.state import load_weights
    from mindspeed_llm.config.parallel import ParallelConfig
    from mindspeed_llm.models.build import build_model
    from mindspeed_llm.models.registry import read_model

    parallel_state.initialize_model_parallel(expert_model_parallel_size=2)
    tensor_parallel.model_parallel_cuda_manual_seed(1)
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    metadata = {"singleton_local_shards": False, "dp_cp_group": group}
    parallel, same = ParallelConfig(expert_model_parallel_size=2), []
    for source, written, theirs in directories:
        ours, own = (build_model(read_model(Path(source)), parallel, dtype=torch.float32)
                     for _ in range(2))  # fmt: skip
        load_weights(Path(source), [own])
        state = {"model": ours.sharded_state_dict(metadata=metadata)}
        ours.load_state_dict(dist_checkpointing.load(state, written)["model"], strict=True)
        wanted = dict(own.named_parameters())
        same.append(all(torch.equal(w, wanted[name]) for name, w in ours.named_parameters()))
        if dist.get_rank() == 0:
            Path(theirs).mkdir(parents=True)
        dist.barrier()
        dist_checkpointing.save({"model": ours.sharded_state_dict(metadata=metadata)}, theirs)
    return same


@pytest.mark.slow
def test_megatron_core_loads_and_saves_experts(tiny_hf_model, tmp_path, run_ranks):
    rows = []
    for family, changes in EXPERTS.items():
        source = tiny_hf_model(family, tmp_path / family, **changes)
        done = hf_to_mcore(source, tmp_path / f"{family}_mcore", ckpt_format="torch_dist")
        rows.append(
            [str(source), str(done.path), str(tmp_path / f"{family}_theirs" / "iter_0000001")]
        )
    assert run_ranks(2, exchange, rows) == [[True, True]] * 2
    for family in EXPERTS:
        root = tmp_path / f"{family}_theirs"
        (root / "latest_checkpointed_iteration.txt").write_text("1")
        (root / "hf").symlink_to(tmp_path / family)
        mcore_to_hf(root, tmp_path / f"{family}_back", trust_pickle=True)
        mine, theirs = (load_file(tmp_path / name / "model.safetensors")
                        for name in (f"{family}_back", family))  # fmt: skip
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


@pytest.fixture
def copy(written, tmp_path):
    """Like one of others: without sums, so that what is damaged is found where it is read."""
    import shutil

    directory = shutil.copytree(written, tmp_path / "copy")
    (directory / "SHA256SUMS").unlink()
    return directory


def rewrite(directory, change):
    data = contents(directory)
    change(data)
    (directory / ".metadata").write_bytes(pickle.dumps(data))


class Bomb:
    def __reduce__(self):
        return (open, ("exploded", "w"))


def _planted(directory):
    rewrite(directory, lambda data: data.state_dict_metadata.update(bomb=Bomb()))


def _path(directory):
    def change(data):
        for info in data.storage_data.values():
            info.relative_path = "../" + info.relative_path

    rewrite(directory, change)


def _hole(directory):
    def change(data):
        data.state_dict_metadata["output_layer.weight"].chunks[0].sizes = torch.Size([3, 64])

    rewrite(directory, change)


def _link(directory):
    (file,) = directory.glob("*.distcp")
    file.rename(directory.parent / "elsewhere")
    file.symlink_to(directory.parent / "elsewhere")


def _swapped(directory):
    """A pickle that is no tensor, where a tensor is promised."""

    def change(data):
        index = next(i for i in data.storage_data if i.fqn == "output_layer.weight")
        other = next(i for i in data.storage_data if i.fqn.endswith("shard_0_4"))
        data.storage_data[index] = data.storage_data[other]

    rewrite(directory, change)


@pytest.mark.parametrize(("damage", "words"), [
    (_planted, "not the table of contents"),
    (_path, "name of a .distcp file"),
    (_hole, "elements are there"),
    (_link, "missing"),
    (_swapped, "no tensor of torch.float32"),
    (lambda d: (d / ".metadata").write_bytes((d / ".metadata").read_bytes()[:500]), "inert data"),
    (lambda d: (d / ".metadata").write_bytes(pickle.dumps(Bomb())), "not the table of contents"),
    (lambda d: (d / "metadata.json").write_text("[]"), "malformed"),
    (lambda d: (d / "metadata.json").write_text('{"sharded_backend": "zarr", '
                                                '"sharded_backend_version": 1}'), "zarr"),
    (lambda d: next(d.glob("*.distcp")).write_bytes(b"short"), "not copied to the end"),
])  # fmt: skip
def test_hostile_and_damaged(copy, tmp_path, monkeypatch, damage, words):
    monkeypatch.chdir(tmp_path)
    damage(copy)
    with pytest.raises(CheckpointError, match=words):
        mcore_to_hf(copy, tmp_path / "back", trust_pickle=True)
    assert not (tmp_path / "back").exists()
    assert not (tmp_path / "exploded").exists()


def test_layers_under_names_of_their_own_are_stacked(copy):
    """megatron-core writes them so where `non_homogeneous_layers` is set."""
    before = TorchDistReader(copy, trusted=True)

    def change(data):
        for key in [k for k in data.state_dict_metadata if k.startswith("decoder.layers.")]:
            table = data.state_dict_metadata.pop(key)
            if "_extra_state" in key:
                continue
            for chunk in table.chunks:
                layer, name = chunk.offsets[0], key.removeprefix("decoder.layers.")
                own = f"decoder.layers.{layer}.{name}"
                index = next(i for i in data.storage_data
                             if i.fqn == key and i.offset == chunk.offsets)  # fmt: skip
                info = data.storage_data.pop(index)
                offset = torch.Size(chunk.offsets[1:])
                data.storage_data[type(index)(own, offset)] = info
                data.state_dict_metadata[own] = type(table)(
                    table.properties, torch.Size(table.size[1:]),
                    [type(chunk)(offset, torch.Size(chunk.sizes[1:]))])  # fmt: skip

    rewrite(copy, change)
    after = TorchDistReader(copy, trusted=True)
    assert {k: s.shape for k, s in after.tensors.items()} == {
        k: s.shape for k, s in before.tensors.items()}  # fmt: skip
    key = "decoder.layers.mlp.linear_fc1.weight"
    parts = []
    for reader in (before, after):
        parts.append(torch.empty(2, 5, 64))
        reader.read(key, (1, 3, 0), parts[-1])
    assert torch.equal(*parts)
