"""Hugging Face -> Megatron-Core -> Hugging Face is bit-exact, and nothing is ever half done."""

import json
import math
import os
import pickle
import shutil
import subprocess
import sys

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from mindspeed_llm.checkpoint import convert, directory, mcore_writer, tensor_file
from mindspeed_llm.checkpoint.convert import hf_to_mcore, mcore_to_hf
from mindspeed_llm.checkpoint.directory import MANIFEST, TRACKER, find_checkpoint
from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.errors import CheckpointError, ConfigError, UserError
from mindspeed_llm.models.registry import FAMILIES

CASES = [(family, {}) for family in sorted(FAMILIES)] + [
    ("llama", {"tie_word_embeddings": True}),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    (
        "llama",
        {"num_key_value_heads": 4, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    ),
    ("gemma2", {"num_key_value_heads": 1}),
]


def weights(directory):
    out = {}
    for path in directory.glob("*.safetensors"):
        out |= load_file(path)
    return out


def assert_same_bytes(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype and a[name].shape == b[name].shape, name
        assert torch.equal(
            a[name].view(-1).view(torch.uint8), b[name].view(-1).view(torch.uint8)
        ), name


@pytest.fixture
def llama(tmp_path, tiny_hf_model, tiny_tokenizer_dir):
    directory = tiny_hf_model("llama", tmp_path / "llama")
    shutil.copytree(tiny_tokenizer_dir, directory, dirs_exist_ok=True)
    return directory


@pytest.mark.parametrize(("family", "changes"), CASES)
def test_there_and_back_is_bit_exact(tmp_path, tiny_hf_model, family, changes):
    source = tiny_hf_model(family, tmp_path / "hf", **changes)
    done = hf_to_mcore(source, tmp_path / "mcore")
    assert done.path == tmp_path / "mcore" / "release"
    back = mcore_to_hf(tmp_path / "mcore", tmp_path / "back")
    assert_same_bytes(weights(source), weights(tmp_path / "back"))
    assert back.tensors == len(weights(source))
    for name in ("config.json", "generation_config.json"):
        assert (source / name).read_bytes() == (back.path / name).read_bytes()


@pytest.mark.parametrize("family", ["llama", "phi3", "qwen2", "qwen3_moe"])
def test_blocks_are_small_and_make_the_same_files(tmp_path, tiny_hf_model, monkeypatch, family):
    """No more than a block is asked of what is read; the last of a span may be shorter."""
    source = tiny_hf_model(family, tmp_path / "hf")
    whole = hf_to_mcore(source, tmp_path / "whole").path
    asked = []

    class Small(tensor_file.Ring):
        def __init__(self):
            super().__init__(nbytes=1000)

        def take(self, shape, dtype):
            asked.append(math.prod(shape) * dtype.itemsize)
            return super().take(shape, dtype)

    monkeypatch.setattr(convert, "Ring", Small)
    done = hf_to_mcore(source, tmp_path / "mcore")
    assert weights_of(done.path) == weights_of(whole)
    mcore_to_hf(tmp_path / "mcore", tmp_path / "back")
    assert_same_bytes(weights(source), weights(tmp_path / "back"))
    assert max(asked) <= 1000 and len(asked) > 2 * done.tensors


def weights_of(checkpoint):
    """Name and hash of its weight files."""
    files = find_checkpoint(checkpoint).files
    return {name: record.sha256 for name, record in files.items() if name.startswith("model-")}


_PEAK = """
import sys
from mindspeed_llm.cli.main import main
code = main(sys.argv[1:])
said = open("/proc/self/status").read()
print("peak", said.split("VmHWM:")[1].split()[0])
sys.exit(code)
"""


def test_torch_keeps_to_one_thread_while_blocks_pass(tmp_path, llama, monkeypatch):
    """Its other threads only spin there: it took twice the processor time."""
    seen = []
    monkeypatch.setattr(convert, "_is_odd", lambda block: seen.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        hf_to_mcore(llama, tmp_path / "m")
        there = len(seen)
        mcore_to_hf(tmp_path / "m", tmp_path / "h")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1}
    assert len(seen) > there > 0


@pytest.mark.slow
def test_memory_does_not_grow_with_the_tensors(tmp_path, tiny_hf_model):
    """Two tensors of 0.5 GB; torch_dist holds the largest twice."""
    vocabulary = 2_000_000
    source = tiny_hf_model("llama", tmp_path / "hf", vocab_size=vocabulary)
    largest = 4 * 64 * vocabulary
    place, target = tmp_path / "mcore", tmp_path / "back"
    to_mcore = ["--load-model-type", "hf", "--save-model-type", "mg"]
    to_hf = ["--load-model-type", "mg", "--save-model-type", "hf", "--no-verify", "--trust-pickle"]
    for kind, allowed in (("safetensors", 500e6), ("torch_dist", 2 * largest + 500e6)):
        for flags, origin, result in ((to_mcore, source, place), (to_hf, place, target)):
            flags = flags + ["--load-dir", str(origin), "--save-dir", str(result)]
            flags += ["--ckpt-format", kind] if result == place else []
            done = subprocess.run([sys.executable, "-c", _PEAK, "convert", *flags], check=True,
                                  capture_output=True, text=True)  # fmt: skip
            peak = int(done.stdout.rsplit("peak", 1)[1]) * 1024
            assert peak < allowed, (kind, flags)
        assert_same_bytes(weights(source), weights(target))
        shutil.rmtree(place)
        shutil.rmtree(target)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_bit_pattern_survives(tmp_path, llama, dtype):
    """NaN payloads, infinities, denormals and minus zero are bytes like any others."""
    path = llama / "model.safetensors"
    tensors = load_file(path)
    generator = torch.Generator().manual_seed(1)
    for name, tensor in tensors.items():
        bits = torch.randint(-(2**15), 2**15, tensor.shape, dtype=torch.int16, generator=generator)
        tensors[name] = bits.view(dtype)
    save_file(tensors, path, metadata={"format": "pt"})
    hf_to_mcore(llama, tmp_path / "mcore")
    mcore_to_hf(tmp_path / "mcore", tmp_path / "back")
    assert_same_bytes(tensors, weights(tmp_path / "back"))


def test_sharded_both_ways_and_opened_by_transformers(tmp_path, llama):
    model = transformers.AutoModelForCausalLM.from_pretrained(llama)
    model.save_pretrained(llama, max_shard_size="60KB")
    (llama / "model.safetensors").unlink()
    hf_to_mcore(llama, tmp_path / "mcore")
    done = mcore_to_hf(tmp_path / "mcore", tmp_path / "back", shard_bytes=60_000)
    files = sorted(p.name for p in done.path.glob("*.safetensors"))
    assert len(files) > 3 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((done.path / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(files)
    assert index["metadata"]["total_size"] == done.nbytes == sum(
        t.numel() * t.element_size() for t in weights(llama).values())  # fmt: skip
    assert_same_bytes(weights(llama), weights(done.path))
    again, info = transformers.AutoModelForCausalLM.from_pretrained(
        done.path, output_loading_info=True
    )
    assert not any(info.values())
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, again(ids).logits)
    tokenizer = transformers.AutoTokenizer.from_pretrained(done.path)
    text = "Hello there, how are you?"
    assert (
        tokenizer(text).input_ids
        == transformers.AutoTokenizer.from_pretrained(llama)(text).input_ids
    )


def test_large_checkpoints_are_cut_into_files(tmp_path, llama, monkeypatch):
    original = mcore_writer.write_chunks
    monkeypatch.setattr(mcore_writer, "write_chunks",
                        lambda *a, **k: original(*a, **k, max_file_bytes=50_000))  # fmt: skip
    done = hf_to_mcore(llama, tmp_path / "mcore")
    assert len(list(done.path.glob("*.safetensors"))) > 3
    mcore_to_hf(tmp_path / "mcore", tmp_path / "back")
    assert_same_bytes(weights(llama), weights(tmp_path / "back"))


@pytest.mark.parametrize("direction", ["to mcore", "to hf"])
def test_every_byte_of_the_weights_is_read_once(tmp_path, llama, monkeypatch, direction):
    """Counted at the system calls, hashing included."""
    source = llama
    if direction == "to hf":
        source = hf_to_mcore(llama, tmp_path / "mcore").path
    files = {str(p): p.stat().st_size for p in source.glob("*.safetensors")}
    read = dict.fromkeys(files, 0)
    preadv, original = os.preadv, open

    def counted(fd, buffers, offset):
        count = preadv(fd, buffers, offset)
        path = os.readlink(f"/proc/self/fd/{fd}")
        if path in read:
            read[path] += count
        return count

    def opened(path, mode="r", *args, **kwargs):
        file = original(path, mode, *args, **kwargs)
        return Counting(file, read) if str(path) in read else file

    monkeypatch.setattr(os, "preadv", counted)
    monkeypatch.setattr(tensor_file, "open", opened, raising=False)
    monkeypatch.setattr(directory, "open", opened, raising=False)
    if direction == "to hf":
        mcore_to_hf(tmp_path / "mcore", tmp_path / "back")
    else:
        hf_to_mcore(llama, tmp_path / "mcore")
    tensors = sum(t.nbytes for t in weights(source).values())
    assert sum(read.values()) == tensors


class Counting:
    """A binary file that counts what is read from it."""

    def __init__(self, file, read):
        self.file, self.read = file, read

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def seek(self, position):
        self.file.seek(position)

    def readinto(self, buffer):
        count = self.file.readinto(buffer)
        self.read[str(self.file.name)] += count
        return count


def test_casting_changes_weights_and_config(tmp_path, llama):
    source = weights(llama)
    hf_to_mcore(llama, tmp_path / "mcore", dtype=torch.bfloat16)
    done = mcore_to_hf(tmp_path / "mcore", tmp_path / "back")
    result = weights(done.path)
    assert all(torch.equal(result[n], source[n].bfloat16()) for n in source)
    assert transformers.AutoConfig.from_pretrained(done.path).dtype == torch.bfloat16
    up = mcore_to_hf(tmp_path / "mcore", tmp_path / "up", dtype=torch.float32)
    assert all(torch.equal(t, source[n].bfloat16().float()) for n, t in weights(up.path).items())
    assert transformers.AutoConfig.from_pretrained(up.path).dtype == torch.float32


def test_values_beyond_fp16_are_refused(tmp_path, llama):
    tensors = load_file(llama / "model.safetensors")
    tensors["model.norm.weight"][0] = 1e6
    save_file(tensors, llama / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="final_layernorm.weight.*fp16"):
        hf_to_mcore(llama, tmp_path / "mcore", dtype=torch.float16)
    assert not (tmp_path / "mcore").exists()


def test_layout_is_checked_and_noted(tmp_path, llama):
    with pytest.raises(ConfigError, match="divide"):
        hf_to_mcore(
            llama, tmp_path / "mcore", parallel=ParallelConfig(tensor_model_parallel_size=4)
        )
    with pytest.raises(ConfigError, match="divide"):
        hf_to_mcore(
            llama, tmp_path / "mcore", parallel=ParallelConfig(pipeline_model_parallel_size=3)
        )
    assert not (tmp_path / "mcore").exists()
    hf_to_mcore(llama, tmp_path / "mcore", parallel=ParallelConfig(tensor_model_parallel_size=2))
    about = find_checkpoint(tmp_path / "mcore").common()["about"]
    assert about["layout"]["tensor_parallel"] == 2 and about["vocab_size"] == 131


def test_target_in_use(tmp_path, llama):
    target = tmp_path / "mcore"
    target.mkdir()
    (target / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="not empty and no checkpoint"):
        hf_to_mcore(llama, target)
    assert [p.name for p in target.iterdir()] == ["notes.txt"]
    (target / "notes.txt").unlink()
    hf_to_mcore(llama, target)
    with pytest.raises(CheckpointError, match="--overwrite"):
        hf_to_mcore(llama, target)
    hf_to_mcore(llama, target, overwrite=True, dtype=torch.bfloat16)
    assert sorted(p.name for p in target.iterdir()) == [TRACKER, "release"]
    mcore_to_hf(target, tmp_path / "back")
    assert weights(tmp_path / "back")["model.norm.weight"].dtype == torch.bfloat16
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(CheckpointError, match="is a file"):
        hf_to_mcore(llama, file)
    with pytest.raises(CheckpointError, match="is a file"):
        mcore_to_hf(target, file)


def test_what_is_read_and_what_is_written_lie_apart(tmp_path, llama):
    linked = tmp_path / "link"
    linked.symlink_to(llama)
    before = sorted(p.name for p in llama.iterdir())
    for target in (llama, llama / "mcore", llama / "a" / "b", linked / "mcore"):
        with pytest.raises(CheckpointError, match="which is read; choose a directory outside"):
            hf_to_mcore(llama, target)
    assert sorted(p.name for p in llama.iterdir()) == before
    hf_to_mcore(llama, tmp_path / "both" / "mcore")
    for target in ("mcore", "mcore/hf", "mcore/release/hf"):
        with pytest.raises(CheckpointError, match="which is read; choose a directory outside"):
            mcore_to_hf(tmp_path / "both" / "mcore", tmp_path / "both" / target)
    # As if a model lay around its own checkpoint: to replace it would delete what is read.
    shutil.copy(llama / "config.json", tmp_path / "both")
    with pytest.raises(CheckpointError, match="would be replaced; choose another"):
        mcore_to_hf(tmp_path / "both" / "mcore", tmp_path / "both", overwrite=True)
    done = mcore_to_hf(tmp_path / "both" / "mcore", tmp_path / "both")  # beside it is allowed
    assert done.path == tmp_path / "both" / "mg2hg"


def test_below_the_original_model(tmp_path, llama, tiny_hf_model):
    """MindSpeed-LLM's habit: --save-dir is the original model, the result goes below it."""
    before = {p: p.read_bytes() for p in llama.iterdir()}
    hf_to_mcore(llama, tmp_path / "mcore")
    done = mcore_to_hf(tmp_path / "mcore", llama)
    assert done.path == llama / "mg2hg"
    assert_same_bytes(weights(llama), weights(done.path))
    assert {p: p.read_bytes() for p in llama.iterdir() if p.is_file()} == before
    with pytest.raises(CheckpointError, match="--overwrite"):
        mcore_to_hf(tmp_path / "mcore", llama)
    other = tiny_hf_model("llama", tmp_path / "other", num_hidden_layers=2)
    with pytest.raises(CheckpointError, match="another shape"):
        mcore_to_hf(tmp_path / "mcore", other)


def test_hf_target_is_replaced_only_when_asked(tmp_path, llama):
    hf_to_mcore(llama, tmp_path / "mcore")
    target = tmp_path / "back"
    target.mkdir()
    (target / "notes.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(CheckpointError, match="not empty"):
            mcore_to_hf(tmp_path / "mcore", target, overwrite=overwrite)
    assert [p.name for p in target.iterdir()] == ["notes.txt"]
    mcore_to_hf(tmp_path / "mcore", tmp_path / "again")
    mcore_to_hf(tmp_path / "mcore", tmp_path / "again", dtype=torch.bfloat16, overwrite=True)
    assert weights(tmp_path / "again")["model.norm.weight"].dtype == torch.bfloat16
    assert not list(tmp_path.glob("again.*"))


@pytest.mark.parametrize("direction", ["to mcore", "to hf"])
def test_failure_in_the_middle_leaves_nothing(tmp_path, llama, monkeypatch, direction):
    if direction == "to hf":
        hf_to_mcore(llama, tmp_path / "mcore")
    before = sorted(tmp_path.rglob("*"))
    calls = []

    def fail(tensor, dtype, name):
        calls.append(name)
        if len(calls) == 9:
            raise CheckpointError("disk full")
        return tensor

    monkeypatch.setattr(tensor_file, "cast", fail)
    with pytest.raises(CheckpointError, match="disk full"):
        if direction == "to hf":
            mcore_to_hf(tmp_path / "mcore", tmp_path / "back")
        else:
            hf_to_mcore(llama, tmp_path / "mcore")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("where", ["model-r00000-000.safetensors", "index.json", "common.json",
                                   "hf/config.json", "hf/tokenizer.json", MANIFEST])  # fmt: skip
def test_flipped_bit_in_any_file_stops_the_export(tmp_path, llama, where):
    path = hf_to_mcore(llama, tmp_path / "mcore").path / where
    data = bytearray(path.read_bytes())
    spot = data.index(b'"sha256": "') + 20 if where == MANIFEST else len(data) // 2
    data[spot] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError):
        mcore_to_hf(tmp_path / "mcore", tmp_path / "back")
    assert not list(tmp_path.glob("back*"))


class Canary:
    """Unpickling one leaves a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_planted_pickles_are_never_read(tmp_path, llama):
    """Pickles beside the weights, in every slot where Megatron or PyTorch would load one."""
    canary = tmp_path / "canary"
    bomb = pickle.dumps(Canary(canary))
    hf_to_mcore(llama, tmp_path / "mcore")
    release = tmp_path / "mcore" / "release"
    names = ("pytorch_model.bin", "model.pt", "training_args.bin", "common.pt", ".metadata",
             "metadata.json", "rng.pt", "optimizer.pt")  # fmt: skip
    for place in (llama, release, tmp_path / "mcore"):
        for name in names:
            (place / name).write_bytes(bomb)
    (release / "mp_rank_00").mkdir()
    (release / "mp_rank_00" / "model_optim_rng.pt").write_bytes(bomb)
    hf_to_mcore(llama, tmp_path / "again")
    mcore_to_hf(tmp_path / "mcore", tmp_path / "back")
    assert_same_bytes(weights(llama), weights(tmp_path / "back"))
    assert not [p for p in (tmp_path / "back").iterdir() if p.name in names]
    (llama / "model.safetensors").write_bytes(bomb)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        hf_to_mcore(llama, tmp_path / "third")
    (llama / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="pickled weights are not read"):
        hf_to_mcore(llama, tmp_path / "third")
    assert not canary.exists()
    pickle.loads(bomb).close()
    assert canary.exists(), "the bomb would have worked"


@pytest.mark.parametrize(("change", "words"), [
    (lambda index: index.pop("decoder.final_layernorm.weight"), "missing: decoder.final_layernorm"),
    (lambda index: index.update(extra=index["decoder.final_layernorm.weight"]), "unknown: extra"),
])  # fmt: skip
def test_checkpoint_that_does_not_fit_its_config(tmp_path, llama, change, words):
    release = hf_to_mcore(llama, tmp_path / "mcore").path
    index = json.loads((release / "index.json").read_text())
    change(index)
    _replace(release, "index.json", json.dumps(index).encode())
    with pytest.raises(CheckpointError, match=words):
        mcore_to_hf(tmp_path / "mcore", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_config_of_another_size(tmp_path, llama):
    release = hf_to_mcore(llama, tmp_path / "mcore").path
    config = json.loads((release / "hf" / "config.json").read_text())
    config["intermediate_size"] += 2
    _replace(release, "hf/config.json", json.dumps(config).encode())
    with pytest.raises(CheckpointError, match=r"linear_fc1.*has shape .*expected"):
        mcore_to_hf(tmp_path / "mcore", tmp_path / "back")


def _replace(release, name, data):
    """Change a file together with its entry in the manifest."""
    import hashlib

    (release / name).write_bytes(data)
    manifest = json.loads((release / MANIFEST).read_text())
    manifest["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (release / MANIFEST).write_text(json.dumps(manifest))
