"""What a turn of a chat costs: tokens a second after the first against transformers' `generate` and
against the memory that has to be read, and time to the first token against the length of the
history, in the same run, with the same weights.

    python benchmarks/chat.py
    python benchmarks/chat.py --load HF --bf16

Without --load a Llama of SmolLM2-135M's sizes is made with random weights, which cost what trained
ones cost. Variants take turns; the least time of the repeats counts, because what other programs of
a shared machine add is never negative. CPU seconds are shown beside the clock's.
"""

from __future__ import annotations

import mindspeed_llm.megatron_adaptor  # noqa: F401  before anything of megatron-core

# isort: split
import argparse
import functools
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import transformers
from megatron.core import parallel_state, tensor_parallel

from mindspeed_llm.checkpoint.state import load_weights
from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.device.detect import detect
from mindspeed_llm.device.runtime import init_distributed, shutdown_distributed
from mindspeed_llm.inference.engine import Engine
from mindspeed_llm.inference.ranks import Ranks
from mindspeed_llm.inference.stages import Stages
from mindspeed_llm.models.build import build_model
from mindspeed_llm.models.registry import read_model

Seconds = tuple[float, float]  # of the wall's clock, of the processor


def least(variants: dict[str, Callable[[], object]], repeat: int) -> dict[str, Seconds]:
    """Least seconds of each variant; they take turns, and a first round warms up."""
    seen: dict[str, list[Seconds]] = {name: [] for name in variants}
    for turn in range(repeat + 1):
        for name, work in variants.items():
            wall, processor = time.perf_counter(), time.process_time()
            work()
            spent = time.perf_counter() - wall, time.process_time() - processor
            if turn:
                seen[name].append(spent)
    return {name: (min(w for w, _ in part), min(p for _, p in part)) for name, part in seen.items()}


def made(folder: Path) -> Path:
    """A random model of SmolLM2-135M's sizes."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3, head_dim=64, max_position_embeddings=8192,
        rope_theta=100000.0, rms_norm_eps=1e-5, tie_word_embeddings=True, bos_token_id=1,
        eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    return folder


def start(directory: Path, dtype: torch.dtype) -> tuple[Engine, int]:
    """(the engine of a whole model in this process, bytes of its matrices); nothing ends a reply
    but its length."""
    parallel_state.initialize_model_parallel(1, 1)
    tensor_parallel.model_parallel_cuda_manual_seed(1)
    config = read_model(directory)
    model = build_model(config, ParallelConfig(), dtype=dtype, perform_initialization=False)
    load_weights(directory, [model])
    model.eval().requires_grad_(False)
    size = sum(w.numel() * w.element_size() for w in model.parameters() if w.dim() == 2)
    context = min(config.max_position_embeddings, 8192)
    return Engine(Stages(model, torch.device("cpu"), context), Ranks(0), stop_ids=()), size


class Theirs:
    """transformers' `generate`, greedy, always `count` tokens."""

    def __init__(self, directory: Path, dtype: torch.dtype) -> None:
        self.model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
        self.model.eval()

    @torch.inference_mode()
    def __call__(self, prompts: Sequence[list[int]], count: int) -> list[list[int]]:
        """Ids of each reply; prompts are of one length."""
        ids = torch.tensor(prompts)
        out = self.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=count,
            min_new_tokens=count, pad_token_id=0,
        )  # fmt: skip
        return out[:, ids.shape[1] :].tolist()


def ids_of(length: int, seed: int) -> list[int]:
    """Random ids without the smallest, which are markers."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(5, 400, (length,), generator=generator).tolist()


def decoding(engine: Engine, theirs: Theirs, rows: int, new: int, repeat: int) -> float:
    """Print tokens a second after each row's first one, and whether the ids are the same.

    What a reply of one token takes, prefill of 32 tokens and all that is done once, is taken off.

    Returns:
        Our seconds for one step of all rows.
    """
    prompts = [ids_of(32, seed) for seed in range(rows)]
    kept: dict[str, list[list[int]]] = {}

    def ours(count: int) -> None:
        engine.forget()
        replies = (
            engine.generate_batch(prompts, max_new_tokens=count, batch_size=rows)
            if rows > 1
            else [engine.generate(prompts[0], max_new_tokens=count)]
        )
        kept["here"] = [reply.ids for reply in replies]

    def hugging_face(count: int) -> None:
        kept["transformers"] = theirs(prompts, count)

    work = {"here": ours, "transformers": hugging_face}
    spent = least(
        {f"{name} {count}": functools.partial(one, count)
         for count in (1, new + 1) for name, one in work.items()}, repeat,
    )  # fmt: skip
    same = "same ids" if kept["here"] == kept["transformers"] else "other ids"
    steps: dict[str, float] = {}
    for name in work:
        wall, processor = (
            (long - short) / new
            for long, short in zip(spent[f"{name} {new + 1}"], spent[f"{name} 1"], strict=True)
        )
        steps[name] = wall
        print(f"decode, {rows:2} rows  {name:12} {rows / wall:7.1f} tokens/s  "
              f"{rows / processor:7.1f} tokens/CPU s  {wall * 1e3:6.1f} ms a step  ({same})",
              flush=True)  # fmt: skip
    print(f"decode, {rows:2} rows  {steps['transformers'] / steps['here']:.2f} times transformers")
    return steps["here"]


def memory_speed(size: int, repeat: int) -> float:
    """Bytes a second at which memory of `size` bytes is read."""
    block = torch.ones(size // 4)
    ((wall, _),) = least({"read": block.sum}, repeat).values()
    return size / wall


def first_tokens(engine: Engine, histories: Sequence[int], repeat: int) -> None:
    """Time to the first token of a turn of 32 tokens, with its history in the cache and without."""
    for length in histories:
        history, turn = ids_of(length, 1), ids_of(32, 2)

        def cached(history: list[int] = history, turn: list[int] = turn) -> None:
            # Another turn each time, or the last one's tokens would be in the cache as well.
            turn[0] = 401 + turn[0] % 400
            assert engine.generate(history + turn, max_new_tokens=1).cached_tokens >= len(history)

        def fresh(history: list[int] = history, turn: list[int] = turn) -> None:
            engine.forget()
            engine.generate(history + turn, max_new_tokens=1)

        (without,) = least({"fresh": fresh}, 1 if length > 1000 else repeat).values()
        (kept,) = least({"cached": cached}, repeat).values()
        print(f"first token after {length:5} tokens of history: cached {kept[0] * 1e3:7.1f} ms "
              f"({kept[1] * 1e3:7.1f} CPU ms), without the cache {without[0] * 1e3:7.1f} ms "
              f"({without[1] * 1e3:7.1f} CPU ms)", flush=True)  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="What a turn of a chat costs.")
    parser.add_argument("--load", type=Path, help="Hugging Face directory")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 instead of float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--new", type=int, default=32, help="tokens a reply")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--history", type=int, nargs="+", default=[0, 512, 2048, 4096])
    parser.add_argument("--repeat", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    transformers.logging.set_verbosity_error()
    dtype = torch.bfloat16 if given.bf16 else torch.float32
    init_distributed(detect("cpu"), timeout_minutes=2)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        directory = given.load or made(Path(folder))
        (engine, size), theirs = start(directory, dtype), Theirs(directory, dtype)
        print(f"{dtype}, {given.threads} threads, transformers {transformers.__version__}")
        steps = {
            rows: decoding(engine, theirs, rows, given.new, given.repeat) for rows in given.rows
        }
        if 1 in steps:
            limit = size / memory_speed(size, 5 * given.repeat)
            print(f"{size / 1e6:.0f} MB of matrices are read in {limit * 1e3:.1f} ms: "
                  f"{limit / steps[1]:.0%} of a step of one row")  # fmt: skip
            for rows in steps.keys() - {1}:
                print(f"{rows} rows: {rows * steps[1] / steps[rows]:.1f} times the tokens of one")
        first_tokens(engine, given.history, given.repeat)
    shutdown_distributed()


if __name__ == "__main__":
    main()
