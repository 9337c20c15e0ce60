"""Fixtures every folder of tests may use; owns no test."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

MARKERS = ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>", "<|im_start|>",
           "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
           "<|eot_id|>")  # fmt: skip
_CORPUS = (
    "user\nmodel\nassistant\n\nsystem\n\nHi\nHello, how are you?\n\nYou are a helpful assistant.",
    "My sister's birthday is tomorrow and I need a birthday bouquet.\n\nShe likes pink roses.",
    "Remember why I came to buy flowers yesterday? Yes, I do remember.\n\n\n1 2 3 4 5 6 7 8 9 0",
)  # fmt: skip
MakeTokenizer = Callable[..., Path]


def _write_tokenizer(directory: Path, *, markers: tuple[str, ...] = MARKERS,
                     bos: str | None = "<bos>", eos: str = "<eos>", pad: str | None = "<pad>",
                     chat_template: str | None = None,
                     generation_eos: list[int] | None = None) -> Path:  # fmt: skip
    """A byte-level BPE with merged line ends, so that a wrong cut between turns shows."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(tokenizers.Regex(r"\n+|[^\n\w]?\w+|[^\w\n]+"), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])  # fmt: skip
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=480, special_tokens=list(markers), show_progress=False,
                                  initial_alphabet=sorted(alphabet))  # fmt: skip
    bpe.train_from_iterator(_CORPUS * 3, trainer)
    directory.mkdir(parents=True, exist_ok=True)
    bpe.save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": eos, "pad_token": pad,
              "bos_token": bos, "clean_up_tokenization_spaces": False}  # fmt: skip
    if chat_template is not None:
        config["chat_template"] = chat_template
    (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    if generation_eos is not None:
        (directory / "generation_config.json").write_text(
            json.dumps({"eos_token_id": generation_eos}), encoding="utf-8")  # fmt: skip
    return directory


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a GPU where there is none; torch is imported only to ask for one."""
    if item.get_closest_marker("cuda") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("torch finds no CUDA device")


@pytest.fixture(scope="session")
def make_tokenizer_dir() -> MakeTokenizer:
    """Factory: `make_tokenizer_dir(directory, markers=, bos=, eos=, pad=, chat_template=, ...)`."""
    return _write_tokenizer


@pytest.fixture(scope="session")
def tiny_tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a tokenizer of under 500 tokens that has every template's markers; read only."""
    return _write_tokenizer(tmp_path_factory.mktemp("tiny") / "tokenizer")


_SIZES = {"vocab_size": 131, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
          "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 24,
          "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 2,
          "eos_token_id": 1}  # fmt: skip
_LOCAL_GLOBAL = ["sliding_attention", "full_attention"] * 2
_TINY = {  # family -> transformers' config class and what makes its peculiarities act at this size
    "llama": ("LlamaConfig", {"rope_parameters": {
        "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 64}}),
    "gemma": ("GemmaConfig", {}),
    "mistral": ("MistralConfig", {"sliding_window": 8}),
    "qwen2": ("Qwen2Config", {"use_sliding_window": True, "sliding_window": 8,
                              "max_window_layers": 2}),
    "qwen3": ("Qwen3Config", {"use_sliding_window": True, "sliding_window": 8,
                              "max_window_layers": 2}),
    "phi3": ("Phi3Config", {  # 32 tokens are beyond the original 16: the long factors act
        "head_dim": 16, "sliding_window": 8, "original_max_position_embeddings": 16,
        "rope_parameters": {
            "rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.75,
            "short_factor": [1.0, 1.1, 1.2, 1.3, 1.5, 2.0],
            "long_factor": [1.5, 2.0, 3.0, 4.0, 6.0, 8.0]}}),
    "gemma2": ("Gemma2Config", {
        "sliding_window": 8, "query_pre_attn_scalar": 20, "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 3.0}),
    "gemma3": ("Gemma3TextConfig", {
        "sliding_window": 8, "query_pre_attn_scalar": 20, "layer_types": _LOCAL_GLOBAL,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}}),
    "qwen3_moe": ("Qwen3MoeConfig", {
        "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 40}),
    "mixtral": ("MixtralConfig", {
        "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8}),
}  # fmt: skip


def _write_hf_model(family: str, directory: Path, *, seed: int = 0, **changes: object) -> Path:
    """Random float32 weights wide enough that attention is sharp and soft caps are exceeded."""
    import torch
    import transformers

    kind, peculiar = _TINY[family]
    config = getattr(transformers, kind)(**(_SIZES | peculiar | changes))
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(0, 0.3 if "norm" in name else 0.15, generator=generator)
            if "norm" in name and not family.startswith("gemma"):
                weight.add_(1.0)
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_hf_model() -> Callable[..., Path]:
    """Factory: `tiny_hf_model(family, directory, **changes)` writes a random Hugging Face model.

    `changes` override config.json (`vocab_size=300`, `tie_word_embeddings=True`, ...); the
    vocabulary of 131 is not divisible by 2, sequences longer than 8 cross the window.
    """
    return _write_hf_model


@pytest.fixture(scope="session")
def tiny_chat_dir(tiny_tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hugging Face directory of a random Llama model with the tiny tokenizer; read only."""
    directory = tmp_path_factory.mktemp("chat") / "hf"
    _write_hf_model("llama", directory, vocab_size=480, max_position_embeddings=512)
    for path in tiny_tokenizer_dir.iterdir():
        shutil.copy(path, directory)
    return directory


_RANK_RUNNER = """
import mindspeed_llm.megatron_adaptor  # noqa: F401  at the top: spawned writers import it too
import json, os, sys
from pathlib import Path
import torch.distributed as dist
from mindspeed_llm.device.detect import detect
from mindspeed_llm.device.runtime import init_distributed, shutdown_distributed

{source}

if __name__ == "__main__":
    init_distributed(detect("cpu"), timeout_minutes=2)
    result = {name}(*json.loads(sys.argv[1]))
    Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")
    dist.barrier()
    shutdown_distributed()
"""


@pytest.fixture
def run_ranks(tmp_path: Path) -> Callable[..., list[Any]]:
    """`run_ranks(world_size, function, *args, timeout=120, env={})` -> each rank's result.

    N gloo processes call `function(*args)`; arguments and results go through JSON. `function` is a
    self-contained function (it imports what it needs), or source text that defines `main`. The
    adaptor is applied and the process group stands. A rank that fails or hangs fails the test,
    with the end of its output.
    """
    count = 0

    def launch(world_size: int, function: Callable[..., Any] | str, *args: Any,
               timeout: float = 120, env: dict[str, str] | None = None) -> list[Any]:  # fmt: skip
        nonlocal count
        count += 1
        folder = tmp_path / f"ranks_{count}"
        folder.mkdir()
        name = "main" if isinstance(function, str) else function.__name__
        source = function if isinstance(function, str) else inspect.getsource(function)
        script = folder / "rank.py"
        text = _RANK_RUNNER.replace("{name}", name)
        script.write_text(text.replace("{source}", textwrap.dedent(source)), encoding="utf-8")
        return _run_processes(script, world_size, list(args), timeout, env or {})

    return launch


def _run_processes(
    script: Path, world_size: int, args: list[Any], timeout: float, env: dict[str, str]
) -> list[Any]:
    import torch.distributed as dist

    # the parent's store holds the port, so that parallel tests cannot take each other's
    store = dist.TCPStore("127.0.0.1", 0, world_size, is_master=True, wait_for_workers=False)
    common = {**os.environ, "WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size),
              "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "OMP_NUM_THREADS": "1",
              "TORCHELASTIC_USE_AGENT_STORE": "True", "DEVICE": "cpu", **env}  # fmt: skip
    results = [script.parent / f"{rank}.json" for rank in range(world_size)]
    logs = [script.parent / f"{rank}.log" for rank in range(world_size)]
    processes = []
    for rank in range(world_size):
        with logs[rank].open("wb") as log:
            processes.append(subprocess.Popen(
                [sys.executable, "-W", "ignore", str(script), json.dumps(args), str(results[rank])],
                env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=log, stderr=subprocess.STDOUT))  # fmt: skip
    deadline = time.monotonic() + timeout
    try:
        while any(process.poll() is None for process in processes):
            failed = [r for r, process in enumerate(processes) if process.poll() not in (None, 0)]
            if failed or time.monotonic() > deadline:
                break
            time.sleep(0.05)
        codes = [process.poll() for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()
    bad = [rank for rank, code in enumerate(codes) if code != 0]
    if bad:
        tails = "\n".join(f"--- rank {r}, exit {codes[r]} (None: killed)\n"
                          + logs[r].read_text(errors="replace")[-3000:] for r in bad)  # fmt: skip
        pytest.fail(f"ranks {bad} of {world_size} failed within {timeout} s\n{tails}")
    return [json.loads(path.read_text(encoding="utf-8")) for path in results]


def _write_sft_data(prefix: Path, tokenizer_dir: Path, *, rows: int = 24, longest: int = 30,
                    seed: int = 0, template: str = "gemma", capacity: int | None = None,
                    multiple: int = 1) -> Path:  # fmt: skip
    """A prepared data set of random ids; rows are supervised behind a random cut, row 3 never."""
    import random

    from mindspeed_llm.data.manifest import DatasetFiles, Manifest
    from mindspeed_llm.data.packing import Packing, best_fit_decreasing
    from mindspeed_llm.data.tokenizer import load_tokenizer
    from mindspeed_llm.data.writer import (
        Shard,
        exclusive_scratch,
        row_lengths,
        write_packed,
        write_six,
    )

    tokenizer, files = load_tokenizer(tokenizer_dir), DatasetFiles(prefix)
    draw, tokens, supervised, seen = random.Random(seed), 0, 0, 0
    with exclusive_scratch(files) as scratch:
        with Shard(scratch / "rows") as shard:
            for row in range(rows):
                length = draw.randint(6, longest)
                ids = [draw.randrange(1, tokenizer.vocab_size) for _ in range(length)]
                cut = length if row == 3 else draw.randint(1, length - 1)
                shard.add(ids, [-100] * cut + ids[cut:])
                tokens, supervised = tokens + length, supervised + length - cut
                seen = max(seen, length)
        packing = None
        if capacity is None:
            described = write_six(files, [shard], scratch)
        else:
            packs = best_fit_decreasing(row_lengths([shard]), capacity, multiple)
            packing = Packing(capacity=capacity, multiple=multiple, rows=len(packs), segments=rows,
                              efficiency=tokens / (len(packs) * capacity))  # fmt: skip
            pad_id, rows = tokenizer.pad_id, len(packs)
            described, supervised = write_packed(files, [shard], packs, packing, pad_id, scratch)
    Manifest(
        rows=rows, tokens=tokens, supervised_tokens=supervised, longest=seen,
        tokenizer_sha256=tokenizer.sha256, vocab_size=tokenizer.vocab_size,
        eos_id=tokenizer.eos_id, pad_id=tokenizer.pad_id, template=template, template_sha256="0",
        seq_length=capacity, packed=capacity is not None, seed=seed, settings={}, counts={},
        inputs=[], files=described, versions={}, packing=packing,
    ).write(files.manifest)  # fmt: skip
    return prefix


@pytest.fixture(scope="session")
def tiny_sft_data() -> Callable[..., Path]:
    """Factory: `tiny_sft_data(prefix, tokenizer_dir, rows=, longest=, seed=)` -> the prefix.

    The same rows, packed into rows of `capacity` tokens, where that is given (`multiple=` aligns).
    """
    return _write_sft_data


@pytest.fixture(scope="session")
def tiny_chat_model(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_tokenizer_dir: Path,
    tiny_hf_model: Callable[..., Path],
) -> Callable[[str], Path]:
    """Factory: `tiny_chat_model(family)` -> Hugging Face directory with tokenizer; read only."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp("chat_model") / family
            tiny_hf_model(family, made[family], vocab_size=481)  # odd: padded at TP 2
            for file in tiny_tokenizer_dir.iterdir():
                shutil.copy(file, made[family] / file.name)
        return made[family]

    return make
