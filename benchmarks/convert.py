"""Time and memory of converting weights, against copying the same bytes.

    python benchmarks/convert.py --family llama --gigabytes 4 --work DIR --repeat 2

Makes a Hugging Face checkpoint of random weights in several files, copies it, and converts it to
megatron-core and back. Everything is a process of its own, start included: a copy ends with the
same flush to the disk as a conversion, and before each the page cache forgets what is read. Peak
memory is what Linux counts (VmHWM). On a shared machine the least of the repeats counts.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from time import perf_counter

# (hidden, heads, groups, head_dim, feed-forward, vocabulary): the published geometries
GEOMETRIES = {
    "llama": ({"model_type": "llama", "hidden_size": 4096, "num_attention_heads": 32,
               "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 14336,
               "vocab_size": 128256, "tie_word_embeddings": False, "rms_norm_eps": 1e-5,
               "max_position_embeddings": 8192, "rope_theta": 500000.0}),
    "gemma2": ({"model_type": "gemma2", "hidden_size": 2304, "num_attention_heads": 8,
                "num_key_value_heads": 4, "head_dim": 256, "intermediate_size": 9216,
                "vocab_size": 256000, "rms_norm_eps": 1e-6, "max_position_embeddings": 8192,
                "sliding_window": 4096, "query_pre_attn_scalar": 256,
                "hidden_activation": "gelu_pytorch_tanh"}),
}  # fmt: skip
_FILE_BYTES = 2 * 10**9


def build(directory: Path, family: str, gigabytes: float) -> None:
    """Write the checkpoint: as many layers as give `gigabytes`, and print facts as JSON."""
    import torch

    from mindspeed_llm.checkpoint.tensor_file import TensorFileWriter
    from mindspeed_llm.models.names import expand, hf_shapes
    from mindspeed_llm.models.registry import read_model, rules_of
    from mindspeed_llm.models.shapes import mcore_shape

    directory.mkdir(parents=True)
    config = GEOMETRIES[family] | {"torch_dtype": "bfloat16", "num_hidden_layers": 1}
    sizes: list[tuple[str, tuple[int, ...]]] = []
    while True:
        (directory / "config.json").write_text(json.dumps(config))
        model = read_model(directory)
        rules = expand(rules_of(model), model.num_layers)
        sizes = [
            entry
            for r in rules
            for entry in zip(r.hf, hf_shapes(r, model, mcore_shape(r, model)), strict=True)
        ]
        if 2 * sum(torch.Size(s).numel() for _, s in sizes) >= gigabytes * 1e9:
            break
        config["num_hidden_layers"] += 1
    largest = sorted((2 * torch.Size(mcore_shape(r, model)).numel() for r in rules), reverse=True)
    shards: list[list[tuple[str, torch.dtype, tuple[int, ...]]]] = [[]]
    room = _FILE_BYTES
    for name, shape in sizes:
        count = 2 * torch.Size(shape).numel()
        if shards[-1] and count > room:
            shards.append([])
            room = _FILE_BYTES
        shards[-1].append((name, torch.bfloat16, shape))
        room -= count
    noise = torch.randn(2**24, generator=torch.Generator().manual_seed(0)).bfloat16()
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        path = directory / f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        writer = TensorFileWriter(path, shard, {"format": "pt"}, hashed=False)
        for name, _, shape in shard:
            count = torch.Size(shape).numel()
            start = len(weight_map) * 4099 % 2**20
            times = -(-(count + start) // noise.numel())
            writer.write(name, noise.repeat(times)[start : start + count].view(shape))
            weight_map[name] = path.name
        writer.finish()
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    nbytes = sum(2 * torch.Size(s).numel() for _, s in sizes)
    print(json.dumps({"bytes": nbytes, "largest": largest[:2], "tensors": len(sizes),
                      "layers": model.num_layers}))  # fmt: skip


def copy(source: Path, target: Path) -> None:
    """Copy the files of a directory and flush each to the disk, as a conversion does."""
    for path in (p for p in sorted(source.rglob("*")) if p.is_file()):
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
        fd = os.open(place, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)


@dataclasses.dataclass(frozen=True)
class Spent:
    """What one process needed: seconds by the clock and of the processor, peak memory in bytes."""

    wall: float
    processor: float
    peak: int


def forget(directory: Path) -> None:
    """Drop a directory's files from the page cache."""
    for path in (p for p in directory.rglob("*") if p.is_file()):
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def run(command: list[str], source: Path, target: Path) -> Spent:
    """Run a process that reads `source` and makes `target`, which is removed first."""
    shutil.rmtree(target, ignore_errors=True)
    forget(source)
    start = perf_counter()
    pid = os.posix_spawn(command[0], command, os.environ)
    _, status, usage = os.wait4(pid, 0)
    wall = perf_counter() - start
    if status:
        sys.exit(f"failed: {' '.join(command)}")
    return Spent(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def least(runs: list[Spent]) -> Spent:
    """The least times, the largest peak."""
    return Spent(min(r.wall for r in runs), min(r.processor for r in runs),
                 max(r.peak for r in runs))  # fmt: skip


def main() -> None:
    """Build, measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", choices=sorted(GEOMETRIES), default="llama")
    parser.add_argument("--gigabytes", type=float, default=4.0, help="10^9 bytes of weights")
    parser.add_argument("--work", type=Path, required=True, help="directory for all files")
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)  # a process of this script
    asked = parser.parse_args()
    hf, mcore, back = (asked.work / name for name in ("hf", "mcore", "back"))
    if asked.part == ["build"]:
        build(hf, asked.family, asked.gigabytes)
        return
    if asked.part:
        copy(Path(asked.part[1]), Path(asked.part[2]))
        return
    own = [sys.executable, str(Path(__file__).resolve()), "--work", str(asked.work)]
    shutil.rmtree(hf, ignore_errors=True)
    made = subprocess.run([*own, "--family", asked.family, "--gigabytes", str(asked.gigabytes),
                           "--part", "build"], check=True, stdout=subprocess.PIPE)  # fmt: skip
    facts = json.loads(made.stdout)
    convert = [sys.executable, "-m", "mindspeed_llm.cli.main", "convert", "--load-model-type"]
    jobs = {
        "copy of Hugging Face": ([*own, "--part", "copy", str(hf), str(back)], hf, back),
        "hf -> mg": ([*convert, "hf", "--save-model-type", "mg", "--load-dir", str(hf),
                      "--save-dir", str(mcore)], hf, mcore),
        "copy of megatron-core": ([*own, "--part", "copy", str(mcore), str(back)], mcore, back),
        "mg -> hf": ([*convert, "mg", "--save-model-type", "hf", "--load-dir", str(mcore),
                      "--save-dir", str(back), "--no-verify"], mcore, back),
    }  # fmt: skip
    spent: dict[str, list[Spent]] = {name: [] for name in jobs}
    for _ in range(asked.repeat):
        for name, job in jobs.items():
            spent[name].append(run(*job))
            last = spent[name][-1]
            print(f"{name}: {last.wall:.1f} s", file=sys.stderr)
    allowed = sum(facts["largest"]) + 500 * 10**6
    print(
        f"{asked.family}: {facts['bytes'] / 1e9:.2f} GB in {facts['tensors']} tensors, "
        f"{facts['layers']} layers; two largest tensors and 0.5 GB: {allowed / 1e9:.2f} GB"
    )
    print("| | s | of a copy | CPU s | peak GB |\n|---|---|---|---|---|")
    best = {name: least(runs) for name, runs in spent.items()}
    for name, one in best.items():
        ratio = one.wall / best["copy of Hugging Face"].wall
        print(f"| {name} | {one.wall:.1f} | {ratio:.2f} | {one.processor:.1f} "
              f"| {one.peak / 1e9:.2f} |")  # fmt: skip


if __name__ == "__main__":
    main()
