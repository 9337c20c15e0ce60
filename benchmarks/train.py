"""Training on the same conversations, with the same supervised tokens and weights, here and in TRL:
supervised tokens a CPU second, peak memory, and the share of the machine's own matmul rate.

    pip install trl datasets
    python benchmarks/train.py --load HF --data DIALOGUES.parquet --rows 24 --threads 1

Each contender is a process of its own, one after the other, in fp32: packed rows here, two a step;
TRL's SFTTrainer with its defaults (padded batches of 8, gradient checkpointing), without
checkpointing, and with its packing (two packs a step). The first step of each warms up and is not
counted. CPU seconds are those of the process, so that other programs disturb little. The matmul
rate is torch's own, in fp32, that of the kernel of our linear layers, and torch's in bf16.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

OURS = "packed, here"
CONTENDERS: dict[str, dict[str, Any]] = {
    OURS: {},
    "TRL, padded": {},
    "TRL, padded, no checkpointing": {"gradient_checkpointing": False},
    "TRL, packed, no checkpointing": {"gradient_checkpointing": False, "packing": True},
}


def prepare(load: str, data: str, rows: int, capacity: int, folder: Path) -> None:
    """`rows` conversations as a packed and as an unpacked data set."""
    import pyarrow.parquet as parquet

    from mindspeed_llm.cli.preprocess import main as preprocess

    parquet.write_table(parquet.read_table(data).slice(0, rows), folder / "rows.parquet")
    common = ["--input", str(folder / "rows.parquet"), "--tokenizer-name-or-path", load,
              "--prompt-type", "smollm2", "--handler-name", "AlpacaStyleInstructionHandler",
              "--map-keys", '{"history": "histories"}', "--seq-length", str(capacity)]  # fmt: skip
    assert preprocess([*common, "--output-prefix", str(folder / "one")]) == 0
    assert preprocess([*common, "--output-prefix", str(folder / "packed"), "--pack"]) == 0


def matmul_rates(dtype: torch.dtype) -> tuple[float, float]:
    """GFLOP a CPU second of the product of two square matrices: torch's own, and the one that
    linear layers take here; each the best of five."""
    from mindspeed_llm.kernels.table import kernel

    a, b = torch.randn(2048, 2048).to(dtype), torch.randn(2048, 2048).to(dtype)
    best = []
    for multiply in (torch.matmul, kernel("linear", "cpu", dtype=dtype)):
        rates = []
        for _ in range(5):
            begin = time.process_time()
            multiply(a, b)
            rates.append(2 * 2048**3 / (time.process_time() - begin) / 1e9)
        best.append(max(rates))
    return best[0], best[1]


def here(load: str, folder: Path, capacity: int) -> dict[str, Any]:
    """Packed rows, two a step."""
    import mindspeed_llm.megatron_adaptor  # noqa: F401  before anything of megatron-core

    # isort: split
    from mindspeed_llm.cli.train import read_settings
    from mindspeed_llm.device.detect import detect
    from mindspeed_llm.device.runtime import init_distributed
    from mindspeed_llm.training.inputs import read_inputs
    from mindspeed_llm.training.setup import prepare as prepare_run
    from mindspeed_llm.training.step import train_batch

    init_distributed(detect("cpu"))
    settings, architecture = read_settings(
        ["--load", load, "--data-path", str(folder / "packed"), "--seq-length", str(capacity),
         "--epochs", "1", "--lr", "1e-5", "--global-batch-size", "2"]
    )  # fmt: skip
    inputs = read_inputs(settings, architecture, check_tokenizer=False)
    job = prepare_run(settings, inputs, torch.device("cpu"))
    steps = []
    for index in range(min(job.total, job.feed.batches)):
        begin = time.process_time()
        totals, _ = train_batch(job.replica, job.feed.micro_batches(index * 2, once=True))
        job.replica.schedule.step(2)
        steps.append([totals.supervised, time.process_time() - begin, totals.tflop])
    return {"steps": steps}


def trl(load: str, folder: Path, capacity: int, changes: dict[str, Any]) -> dict[str, Any]:
    """SFTTrainer on the same ids and labels."""
    import datasets
    import transformers
    from trl import SFTConfig, SFTTrainer

    from mindspeed_llm.data.dataset import SFTDataset

    rows = SFTDataset(str(folder / "one"), tokenizer_sha256=None)
    table = {"input_ids": [], "assistant_masks": []}
    for index in range(len(rows)):
        row = rows[index]
        table["input_ids"].append(row["input_ids"].tolist())
        table["assistant_masks"].append((row["labels"] != -100).int().tolist())
    packed = changes.get("packing", False)
    config = SFTConfig(
        output_dir=str(folder / "trl"), use_cpu=True, bf16=False, fp16=False, report_to="none",
        save_strategy="no", logging_strategy="no", max_length=capacity, num_train_epochs=1,
        learning_rate=1e-5, max_grad_norm=1.0, disable_tqdm=True,
        **({"per_device_train_batch_size": 2} if packed else {}), **changes,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_pretrained(load, dtype=torch.float32)
    steps: list[list[float]] = []

    class Timed(transformers.TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.begin = time.process_time()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            steps[-1][1] = time.process_time() - self.begin

    class Counting(SFTTrainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **options: Any) -> Any:
            steps.append([int((inputs["labels"][:, 1:] != -100).sum()), 0.0, 0.0])
            return super().compute_loss(model, inputs, *args, **options)

    trainer = Counting(
        model=model, args=config, train_dataset=datasets.Dataset.from_dict(table),
        processing_class=transformers.AutoTokenizer.from_pretrained(load), callbacks=[Timed()],
    )  # fmt: skip
    trainer.train()
    return {"steps": steps}


def main() -> None:
    """Run all contenders, or, started by itself, one of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--load", required=True, help="Hugging Face directory of SmolLM2-135M")
    parser.add_argument("--data", help="Alpaca-style parquet with histories")
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--capacity", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--one", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.one:
        load, folder, capacity = options.load, options.folder, options.capacity
        result = here(load, folder, capacity) if options.one == OURS else trl(
            load, folder, capacity, CONTENDERS[options.one])  # fmt: skip
        result["gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        (folder / "result.json").write_text(json.dumps(result))
        return
    rate, ours = matmul_rates(torch.float32)
    print(f"matmul, {options.threads} threads: fp32 {rate:.0f} GFLOP / CPU s, {ours:.0f} as linear "
          f"layers do it; bf16 {matmul_rates(torch.bfloat16)[0]:.0f}", flush=True)  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        prepare(options.load, options.data, options.rows, options.capacity, Path(name))
        environment = os.environ | {"OMP_NUM_THREADS": str(options.threads), "DEVICE": "cpu"}
        speeds: dict[str, float] = {}
        for contender in CONTENDERS:
            command = [sys.executable, "-W", "ignore", __file__, "--load", options.load, "--one",
                       contender, "--folder", name, "--capacity", str(options.capacity),
                       "--threads", str(options.threads)]  # fmt: skip
            subprocess.run(command, check=True, env=environment)
            result = json.loads((Path(name) / "result.json").read_text())
            whole, counted = result["steps"], result["steps"][1:]
            seconds = sum(step[1] for step in counted)
            share = sum(step[2] for step in counted) * 1000 / seconds / rate
            speeds[contender] = sum(step[0] for step in counted) / seconds
            print(
                f"{contender:30} | {sum(step[0] for step in whole)} supervised tokens | "
                f"{speeds[contender]:.1f} a CPU s | {speeds[OURS] / speeds[contender]:.2f} x | "
                f"{result['gib']:.2f} GiB"
                + (
                    f" | {share:.0%} of matmul, {share * rate / ours:.0%} of the other"
                    if share
                    else ""
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()
