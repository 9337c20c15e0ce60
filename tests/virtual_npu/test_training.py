"""Fine-tuning on virtual NPUs against the same command on the CPU: losses, which fused operator ran
in which layer, resuming, layouts, and chat."""

import collections
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CPU_PYTHON = os.environ.get("CPU_PYTHON", "")  # of an environment without torch_npu
LAYERS = 4


def argv(model, data, *more, iterations=3, save="{out}"):
    return ["--load", str(model), "--data-path", str(data), "--seq-length", "32", "--lr", "1e-3",
            "--train-iters", str(iterations), "--micro-batch-size", "2", "--global-batch-size", "4",
            "--lr-decay-style", "constant", "--save", save, *more]  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_hf_model, tiny_tokenizer_dir, tiny_sft_data):
    """Every run on both devices, and the fused operators of each on the NPU."""
    folder = tmp_path_factory.mktemp("runs")

    def model(family, name, **changes):
        directory = folder / name
        tiny_hf_model(family, directory, vocab_size=480, **changes)
        for path in tiny_tokenizer_dir.iterdir():
            shutil.copy(path, directory)
        return directory

    rows = tiny_sft_data(folder / "rows", tiny_tokenizer_dir)
    packed = tiny_sft_data(folder / "packed", tiny_tokenizer_dir, capacity=32)
    gemma, qwen = model("gemma2", "gemma2"), model("qwen3", "qwen3")
    uncapped = {"attn_logit_softcapping": None}
    windows = {w: model("gemma2", f"window{w}", sliding_window=w, **uncapped) for w in (7, 8, 9)}
    plan = [
        ("gemma2", 1, argv(gemma, packed)),
        ("gemma2-rows", 1, argv(gemma, rows, iterations=2)),
        ("gemma2-bf16", 1, argv(gemma, packed, "--bf16")),
        ("gemma2-cap2", 1, argv(model("gemma2", "cap2", attn_logit_softcapping=2.0), packed,
                                iterations=1)),
        ("qwen3", 1, argv(qwen, packed)),
        ("qwen3-bf16", 1, argv(qwen, packed, "--bf16")),
        ("lora", 1, argv(qwen, packed, "--lora-r", "4", "--lora-alpha", "8", iterations=2)),
        ("first-half", 1, argv(qwen, packed, iterations=2)),
        ("resumed", 1, argv("{half}", packed, iterations=3)),
        ("qwen3-moe", 1, argv(model("qwen3_moe", "moe"), packed, "--require-fused", iterations=2)),
        *((f"window{w}", 1, argv(windows[w], packed, iterations=1)) for w in windows),
        ("tp2", 2, argv(gemma, packed, "--tensor-model-parallel-size", "2",
                        "--sequence-parallel", iterations=2)),
        ("dp2", 2, argv(qwen, packed, "--use-distributed-optimizer", "--micro-batch-size", "1",
                        iterations=2)),
    ]  # fmt: skip
    (folder / "plan.json").write_text(json.dumps([
        {"name": name, "ranks": ranks, "argv": [
            w.replace("{half}", f"{folder}/{{device}}-first-half") for w in words]}
        for name, ranks, words in plan]), encoding="utf-8")  # fmt: skip
    alone = [name for name, ranks, _ in plan if ranks == 1]
    groups = [(1, alone), *((ranks, [name]) for name, ranks, _ in plan if ranks > 1)]
    found = {"folder": folder, "journal": {}}
    for device, python in (("npu", sys.executable), ("cpu", CPU_PYTHON)):
        for ranks, names in groups:
            start(folder, device, python, ranks, names)
        found[device] = {
            name: json.loads((folder / f"{device}-{name}.json").read_text()) for name, _, _ in plan
        }
    for _, names in groups:
        lines = (folder / f"journal-{names[0]}.0.jsonl").read_text().splitlines()
        found["journal"] |= by_run(map(json.loads, lines))
    return found


def start(folder, device, python, ranks, names):
    env = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "DEVICE": device,
        "VIRTUAL_NPU": str(ranks) if device == "npu" else "0",
        "VIRTUAL_NPU_JOURNAL": str(folder / f"journal-{names[0]}"),
    }
    command = [str(HERE / "scenarios.py"), str(folder), device, *names]
    if ranks > 1:
        launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        command = ["-m", *launcher, *command]
    done = subprocess.run([python, "-W", "ignore", *command], env=env, cwd=folder, text=True,
                          capture_output=True, timeout=900, check=False)  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]


def by_run(entries):
    """The calls of each run."""
    runs, name = {}, None
    for entry in entries:
        if "run" in entry:
            name = entry["run"]
            runs[name] = []
        else:
            runs[name].append(entry)
    return runs


FP32 = ["gemma2", "gemma2-rows", "gemma2-cap2", "qwen3", "qwen3-moe", "lora", "first-half",
        "resumed", "window7", "window8", "window9", "tp2", "dp2"]  # fmt: skip


@pytest.mark.parametrize("name", FP32)
def test_losses_are_the_cpus(name, runs):
    expected = runs["cpu"][name]
    assert len(expected) >= 1
    assert runs["npu"][name] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["gemma2-bf16", "qwen3-bf16"])
def test_losses_in_bf16(name, runs):
    assert runs["npu"][name] == pytest.approx(runs["cpu"][name], rel=2e-2)


def test_a_soft_cap_of_two_changes_the_loss(runs):
    for device in ("cpu", "npu"):
        capped, wide = (runs[device][name][0] for name in ("gemma2-cap2", "gemma2"))
        assert abs(capped - wide) > 1e-3


def test_a_window_differs_from_its_neighbours(runs):
    for device in ("cpu", "npu"):
        seven, eight, nine = (runs[device][f"window{w}"][0] for w in (7, 8, 9))
        assert min(abs(eight - seven), abs(eight - nine)) > 1e-5 * eight


def count(entries, op, layer, backward):
    return sum(e["op"] == op and e["layer"] == layer and e["backward"] == backward for e in entries)


def ran_in_every_layer(calls, *operators, lowest=1):
    """Asserts how often each (forward, backward, times) ran in each layer, for every pass of the
    first; backward passes from layer `lowest` on. Returns the passes."""
    first, _, times = operators[0]
    passes, rest = divmod(count(calls, first, 1, False), times)
    assert passes > 0 and rest == 0
    for layer in range(1, LAYERS + 1):
        for op, back, times in operators:
            assert count(calls, op, layer, False) == times * passes, (op, layer)
            if layer >= lowest:
                assert count(calls, back, layer, True) == times * passes, (back, layer)
    return passes


@pytest.mark.parametrize("name", ["qwen3", "qwen3-bf16", "lora", "dp2"])
def test_every_layer_of_qwen3_runs_on_fused_operators(name, runs):
    calls = runs["journal"][name]
    ran_in_every_layer(
        calls,
        ("npu_fusion_attention", "npu_fusion_attention_grad", 1),
        ("npu_rotary_mul", "npu_rotary_mul_backward", 2),
        ("npu_rms_norm", "npu_rms_norm_backward", 4),
        ("npu_swiglu", "npu_swiglu_backward", 1),
        # below the first adapter nothing wants a gradient
        lowest=2 if name == "lora" else 1,
    )
    attention = [e for e in calls if e["op"] == "npu_fusion_attention"]
    assert {e["input_layout"] for e in attention} == {"TND"} and all(e["masked"] for e in attention)
    # two of the four layers have a window of 8
    assert {(e["sparse_mode"], e["pre_tockens"]) for e in attention} == {(2, 2**31 - 1), (4, 7)}


def test_experts_run_on_fused_operators(runs):
    calls = runs["journal"]["qwen3-moe"]
    passes = count(calls, "npu_fusion_attention", 1, False)
    for layer in range(1, LAYERS + 1):
        for op, back in (("npu_swiglu", False), ("npu_swiglu_backward", True)):
            # two of four experts a token, and all of a micro-batch's tokens rarely take the same
            assert passes < count(calls, op, layer, back) <= 4 * passes, (op, layer)


@pytest.mark.parametrize("name", ["gemma2", "gemma2-bf16", "tp2"])
def test_gemma2_runs_on_fused_operators_but_for_its_capped_attention(name, runs):
    calls = runs["journal"][name]
    ran_in_every_layer(
        calls,
        ("npu_geglu", "npu_geglu_grad", 1),
        ("npu_rotary_mul", "npu_rotary_mul_backward", 2),
        ("npu_rms_norm", "npu_rms_norm_backward", 4),
    )
    assert not any("attention" in e["op"] for e in calls)
    assert {e["gamma"] for e in calls if e["op"] == "npu_rms_norm"} == {"torch.float32"}
    gates = [e for e in calls if e["op"] == "npu_geglu"]
    assert all(e["activate_left"] and e["approximate"] == 1 for e in gates)


def test_resuming_gives_the_loss_of_the_run_that_never_stopped(runs):
    assert runs["npu"]["resumed"][-1:] == runs["npu"]["qwen3"][-1:]


@pytest.fixture(scope="module")
def chats(runs, tiny_hf_model, tiny_tokenizer_dir):
    """The same conversation with the checkpoint that each device trained, as JSON lines; in bf16
    with heads of 32, since the operator for decoding takes multiples of 16."""
    wide = runs["folder"] / "wide"
    tiny_hf_model("qwen3", wide, vocab_size=480, head_dim=32)
    for path in tiny_tokenizer_dir.iterdir():
        shutil.copy(path, wide)
    trained = runs["folder"] / "cpu-qwen3"
    script = runs["folder"] / "turns.txt"
    script.write_text("hello there\nand again\n/q\n", encoding="utf-8")
    found = {"journal": {}}
    for device, python, load, more in (
        ("cpu", CPU_PYTHON, trained, []),
        ("npu", sys.executable, trained, ["--require-fused"]),
        ("npu-bf16", sys.executable, wide, ["--require-fused", "--bf16"]),
    ):
        journal = runs["folder"] / f"chat-{device}"
        env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT),
                            "DEVICE": device[:3], "VIRTUAL_NPU": "0" if device == "cpu" else "1",
                            "VIRTUAL_NPU_JOURNAL": str(journal)}  # fmt: skip
        done = subprocess.run(
            [python, "-W", "ignore", "-m", "mindspeed_llm.cli.main", "chat", "--load",
             str(load), "--prompt-type", "gemma", "--script", str(script),
             "--json", "--max-new-tokens", "8", "--temperature", "0", *more],
            env=env, text=True, capture_output=True, timeout=600, check=False)  # fmt: skip
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        found[device] = [json.loads(line) for line in done.stdout.splitlines() if line[:1] == "{"]
        if device != "cpu":
            lines = journal.with_name(f"{journal.name}.0.jsonl").read_text().splitlines()
            found["journal"][device] = list(map(json.loads, lines))
    return found


def test_chat_over_several_turns_is_the_cpus(chats):
    for device in ("cpu", "npu"):
        for line in chats[device]:
            line.pop("time", None)
    assert sum("usage" in line for line in chats["cpu"]) == 2
    assert chats["npu"] == chats["cpu"]


@pytest.mark.parametrize(
    ("device", "attention"),
    [("npu", "npu_fusion_attention"), ("npu-bf16", "npu_fused_infer_attention_score")],
)
def test_chat_runs_on_fused_operators(chats, device, attention):
    ran = collections.Counter(entry["op"] for entry in chats["journal"][device])
    passes, rest = divmod(ran[attention], LAYERS)
    assert passes > 8 and rest == 0
    for op, each, more in (("npu_rotary_mul", 1, 0), ("npu_swiglu", 1, 0), ("npu_rms_norm", 4, 1)):
        assert ran[op] == passes * (LAYERS * each + more), (op, ran)
