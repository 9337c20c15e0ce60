"""Owns putting a run together: process groups' layout, model, weights, optimizer, schedule, data,
continuation. Knows neither flags nor iterations; `inputs` has read and checked everything before.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state, tensor_parallel
from megatron.core.models.gpt import GPTModel

from mindspeed_llm.checkpoint.adapter import facts as lora_facts
from mindspeed_llm.checkpoint.directory import find_checkpoint, is_checkpoint_root
from mindspeed_llm.checkpoint.retention import Retention, retain
from mindspeed_llm.checkpoint.state import load_training, save_training
from mindspeed_llm.checkpoint.tracker import TRACKER, read_tracker
from mindspeed_llm.config.train import Settings
from mindspeed_llm.data.blend import Ordering
from mindspeed_llm.device.measure import most_memory, peak_tflops
from mindspeed_llm.device.runtime import seed_everything
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.logging import get_logger
from mindspeed_llm.models.build import build_model
from mindspeed_llm.training.balance import Balance
from mindspeed_llm.training.board import Board
from mindspeed_llm.training.feed import Batching, Feed
from mindspeed_llm.training.flops import Work
from mindspeed_llm.training.inputs import Inputs
from mindspeed_llm.training.loop import Best, Job, Position
from mindspeed_llm.training.loss import SupervisedLoss
from mindspeed_llm.training.optimizer import build_optimizer, wrap_model
from mindspeed_llm.training.profile import Trace
from mindspeed_llm.training.rows import order_fact, ordering, say_passes
from mindspeed_llm.training.schedule import (
    build_schedule,
    check_schedule,
    restore_schedule,
    schedule_state,
)
from mindspeed_llm.training.step import Replica
from mindspeed_llm.training.trained import load_chosen, table

_log = get_logger(__name__)
_OPTIMIZER_FACTS = (
    "optimizer", "adam_beta1", "adam_beta2", "adam_eps", "weight_decay", "clip_grad",
)  # fmt: skip


def prepare(settings: Settings, inputs: Inputs, device: torch.device) -> Job:
    """A job that is ready to go; the process group exists, megatron-core is patched.

    Raises:
        ConfigError: a batch or schedule that does not fit, or a run that cannot be continued with
            these settings; before the model is built.
        CheckpointError: see `load_training` and `load_chosen`.
    """
    began = time.monotonic()
    start_groups(settings, inputs.model.num_layers)
    data_parallel = parallel_state.get_data_parallel_world_size()
    batch_size = settings.train.batch_size(data_parallel)
    _check_interleaved(settings, inputs, batch_size // data_parallel)
    fill = batch_size if settings.data.padded_samples else 1
    total = settings.train.iterations(inputs.rows.train.epoch(fill), batch_size)
    how = ordering(settings, batch_size, total)
    say_passes(settings, inputs.rows.train, total * batch_size)
    check_schedule(settings.optimizer, total)
    dtype = torch.bfloat16 if settings.train.bf16 else torch.float32
    replica, state, lora = _replica(settings, inputs, device, dtype, total, batch_size)
    start = Position(0, 0)
    if state is not None:
        start = _continued(settings, replica, state, _facts(settings, inputs, batch_size, how))
    train, validation, test = _feeds(settings, inputs, batch_size, how)
    retention = _retention(settings, inputs)
    _open_place(settings, inputs, start.iteration)

    def save(at: Position) -> Path:
        assert settings.checkpoint.save is not None
        facts = _facts(settings, inputs, batch_size, how)
        path = save_training(
            settings.checkpoint.save,
            at.iteration,
            model=replica.model,
            optimizer=replica.optimizer,
            lora=lora,
            state=facts
            | {
                "iteration": at.iteration,
                "consumed_samples": at.consumed,
                "best": dataclasses.asdict(at.best) if at.best.iteration else None,
                "schedule": schedule_state(replica.schedule),
            },
            hf_assets=inputs.hf_dir,
            chat=inputs.chat,
        ).path
        best = at.best.iteration if settings.checkpoint.save_best else None
        retain(settings.checkpoint.save, retention, at.iteration, best or None)
        return path

    def restore() -> Position:
        assert settings.checkpoint.save is not None
        state = load_training(settings.checkpoint.save, replica.model, replica.optimizer)
        return _stand(settings, replica, state)

    return Job(
        replica=replica,
        feed=train,
        validation=validation,
        test=test,
        batch_size=batch_size,
        start=start,
        total=total,
        is_saved=_is_saved(settings, inputs),
        log_interval=settings.log.log_interval,
        eval_interval=settings.log.eval_interval,
        eval_iters=settings.log.eval_iters,
        save_interval=settings.checkpoint.save_interval,
        save=save if settings.checkpoint.save is not None else None,
        restore=restore,
        save_best=settings.checkpoint.save_best,
        control=settings.control,
        began=began,
        devices=torch.distributed.get_world_size(),
        peak=settings.log.device_peak_tflops or peak_tflops(device, dtype),
        memory=lambda: most_memory(device),
        **_watchers(settings, device, total, start.iteration),
        log_dir=settings.log_dir,
        speaks=torch.distributed.get_rank() == 0,
    )


def _continued(
    settings: Settings, replica: Replica, state: Mapping[str, Any], now: Mapping[str, Any]
) -> Position:
    """Where a run goes on that left `state`; `now` are the facts of this one."""
    whole = settings.checkpoint.load_optim
    same = [name for name in now if whole or name not in _OPTIMIZER_FACTS]
    _check_continues(state, {name: now[name] for name in same})
    return _stand(settings, replica, state, with_schedule=whole)


def _stand(
    settings: Settings, replica: Replica, state: Mapping[str, Any], *, with_schedule: bool = True
) -> Position:
    """Where the run stands that left `state`; sets its schedule."""
    if with_schedule:
        restore_schedule(
            replica.schedule,
            state["schedule"],
            override=settings.optimizer.override_opt_param_scheduler,
        )
    best = state.get("best")
    return Position(
        state["iteration"], state["consumed_samples"], Best() if best is None else Best(**best)
    )


def _open_place(settings: Settings, inputs: Inputs, start: int) -> None:
    """Make the directory of checkpoints and write into it once, hours before the first of them;
    `start` is the iteration this run begins behind.

    Raises:
        OSError: it cannot be made or written to.
        CheckpointError: its tracker says nonsense.
    """
    save = settings.checkpoint.save
    if save is not None and torch.distributed.get_rank() == 0:
        save.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=save) as probe:
            probe.write(b"\0")
        _say_other_run(save, inputs, start)


def _say_other_run(save: Path, inputs: Inputs, start: int) -> None:
    """Warn that --save holds a run that is not continued from its end: often the --load SAVE of a
    second start was forgotten."""
    if not (save / TRACKER).is_file():
        return
    place = inputs.choice.place
    latest, root = read_tracker(save), (place.adapter or place.base).resolve()
    goes_on = inputs.continues and save.resolve() in (root, root.parent)
    if latest is None or (goes_on and latest <= start):
        return
    _log.warning(
        "--save %s has a run up to iteration %d, which this one, from iteration %d on, does not "
        "continue: checkpoints of the same iterations will be replaced, and so is its train.jsonl. "
        "--load %s would go on with it", save, latest, start, save,
    )  # fmt: skip


def _is_saved(settings: Settings, inputs: Inputs) -> bool:
    """Whether the run continues, with the optimizer's state, from a checkpoint in the directory
    where it saves."""
    place, save = inputs.choice.place, settings.checkpoint.save
    root = place.adapter or place.base
    whole = inputs.continues and settings.checkpoint.load_optim
    return whole and save is not None and root.resolve() == save.resolve()


def _watchers(settings: Settings, device: torch.device, total: int, start: int) -> dict[str, Any]:
    """What looks on, as fields of a `Job`: TensorBoard on the first rank, a trace where asked."""
    log, rank = settings.log, torch.distributed.get_rank()
    found: dict[str, Any] = {}
    if log.tensorboard_dir is not None and rank == 0:
        found["sinks"] = [Board(log.tensorboard_dir, after=start)]
    if log.profile:
        first, last = log.profiled
        leaves = settings.control.exit_interval
        end = total if leaves is None else min(total, (start // leaves + 1) * leaves)
        if not start <= first < last <= end:
            raise ConfigError(
                f"--profile: iterations {first + 1} to {last} are not all among those of this run, "
                f"{start + 1} to {end}; set --profile-step-start and --profile-step-end"
            )
        assert settings.log_dir is not None  # Settings
        ranks, last_rank = log.profile_ranks or (0,), torch.distributed.get_world_size() - 1
        if not all(0 <= number <= last_rank for number in ranks):
            raise ConfigError(
                f"--profile-ranks {' '.join(map(str, ranks))}: the ranks of this run are 0 to "
                f"{last_rank}"
            )
        if rank in ranks:
            folder = settings.log_dir / "profile"
            trace = Trace(folder, start=first, end=last, rank=rank, device=device)
            found["around"] = trace.around
    return found


def _retention(settings: Settings, inputs: Inputs) -> Retention:
    """What stays of --save: never is a checkpoint removed that adapters stand on, nor, while it
    runs, the one that the run continues, whose config and tokenizer it copies."""
    base = inputs.choice.place.base
    spared = [inputs.hf_dir.parent]
    if inputs.choice.lora is not None and is_checkpoint_root(base):
        spared.append(find_checkpoint(base).path)
    return Retention(
        last=settings.checkpoint.keep_last,
        interval=settings.checkpoint.save_retain_interval,
        spared=spared,
    )


def _check_interleaved(settings: Settings, inputs: Inputs, rows: int) -> None:
    """Raise ConfigError unless `rows`, those of a replica, are whole rounds of the pipeline."""
    parallel, micro = settings.parallel, settings.train.micro_batch_size
    stages = parallel.pipeline_model_parallel_size
    if parallel.virtual_stages(inputs.model.num_layers) > 1 and rows // micro % stages:
        raise ConfigError(
            f"an interleaved pipeline takes micro-batches in rounds of its {stages} stages, and "
            f"{rows // micro} come to each replica; change --global-batch-size or "
            "--micro-batch-size"
        )


def start_groups(settings: Settings, num_layers: int) -> None:
    """Cut the processes into megatron-core's groups and seed every generator.

    Raises:
        ConfigError: the number of processes does not fit the layout.
    """
    parallel = settings.parallel
    chunks = parallel.virtual_stages(num_layers)
    parallel.data_parallel_size(torch.distributed.get_world_size())
    parallel_state.initialize_model_parallel(
        parallel.tensor_model_parallel_size,
        parallel.pipeline_model_parallel_size,
        chunks if chunks > 1 else None,
        context_parallel_size=parallel.context_parallel_size,
        expert_model_parallel_size=parallel.expert_model_parallel_size,
        expert_tensor_parallel_size=parallel.expert_tensor_size,
        distributed_timeout_minutes=settings.runtime.distributed_timeout_minutes,
    )
    # As in Megatron: stages differ, tensor-parallel ranks share the default generator and have
    # another one each for what is split over them.
    seed = settings.train.seed + 100 * parallel_state.get_pipeline_model_parallel_rank()
    seed_everything(seed)
    tensor_parallel.model_parallel_cuda_manual_seed(seed)


def _replica(
    settings: Settings,
    inputs: Inputs,
    device: torch.device,
    dtype: torch.dtype,
    total: int,
    batch_size: int,
) -> tuple[Replica, dict[str, Any] | None, dict[str, Any] | None]:
    """Model, optimizer and schedule with the weights of --load; the state of a continued run; what
    the checkpoints of a LoRA run say of it."""
    train, sharded = settings.train, settings.optimizer.use_distributed_optimizer
    model = _chunks(settings, inputs, dtype, device)
    choice = inputs.choice
    base = load_chosen(
        choice,
        model,
        continues=inputs.continues,
        seed=train.seed,
        recomputes=train.recompute_granularity == "full"
        or settings.parallel.pipeline_model_parallel_size > 1,
    )
    lora = None if choice.lora is None or base is None else lora_facts(choice.lora, base)
    loss = SupervisedLoss(model[-1]) if model[-1].post_process else None
    wrapped = wrap_model(model, sharded_state=sharded)
    optimizer = build_optimizer(wrapped, settings.optimizer, dtype)
    schedule = build_schedule(
        optimizer, settings.optimizer, iterations=total, batch_size=batch_size
    )
    state = None
    if inputs.continues:
        state = load_training(
            choice.place.adapter or choice.place.base,
            wrapped,
            optimizer,
            with_optimizer=settings.checkpoint.load_optim,
            with_rng=settings.checkpoint.load_rng,
        )
    count = sum(p.numel() for p in wrapped.parameters())
    _log.info("%s: %.1f M parameters on this rank, %s", inputs.model.family, count / 1e6, dtype)
    if choice.said != "all":
        _log.info("%s", "\n".join(table(choice, inputs.model)))
    work = Work(inputs.model, trains_weights=choice.said == "all")
    coefficient = train.moe_aux_loss_coeff
    balance = Balance(model, coefficient) if coefficient else None
    return Replica(wrapped, optimizer, schedule, loss, device, work, balance), state, lora


def _chunks(
    settings: Settings, inputs: Inputs, dtype: torch.dtype, device: torch.device
) -> list[GPTModel]:
    """This rank's part of the model; several of an interleaved pipeline."""
    train, count = settings.train, settings.parallel.virtual_stages(inputs.model.num_layers)
    chunks = [
        build_model(
            inputs.model,
            settings.parallel,
            dtype=dtype,
            kernel_device=device.type,
            chunk=number if count > 1 else None,
            perform_initialization=False,
            calculate_per_token_loss=True,
            attention_dropout=train.attention_dropout,
            hidden_dropout=train.hidden_dropout,
            recompute_granularity=train.recompute_granularity,
            recompute_method=train.recompute_method,
            recompute_num_layers=train.recompute_num_layers,
        )
        for number in range(count)
    ]
    for chunk in chunks:
        # Set behind megatron-core's own check, which confuses it with mixtures of experts.
        chunk.config.variable_seq_lengths = settings.data.variable_seq_lengths and count == 1
        chunk.to(device)
    return chunks


def _feeds(
    settings: Settings, inputs: Inputs, batch_size: int, how: Ordering
) -> tuple[Feed, Feed | None, Feed | None]:
    """Training rows in their order of epochs; validation and test rows in file order, if asked."""
    data, parallel = settings.data, settings.parallel
    interleaved = parallel.virtual_stages(inputs.model.num_layers) > 1
    batching = Batching(
        batch_size=batch_size,
        micro_batch_size=settings.train.micro_batch_size,
        dp_rank=parallel_state.get_data_parallel_rank(),
        dp_size=parallel_state.get_data_parallel_world_size(),
        cp_rank=parallel_state.get_context_parallel_rank(),
        cp_size=parallel_state.get_context_parallel_world_size(),
        length=None if data.variable_seq_lengths else settings.train.seq_length,
        multiple=settings.length_multiple,
        rounds=parallel.pipeline_model_parallel_size if interleaved else 1,
        even=interleaved,
        pad_id=inputs.model.pad_token_id or 0,
    )
    rows = inputs.rows
    held_out = [
        None if part is None else Feed(part, part.order(Ordering(shuffle=False)), batching)
        for part in (rows.validation, rows.test)
    ]
    asked = settings.log.eval_iters
    for name, feed in zip(("validation", "test"), held_out, strict=True):
        if feed is not None and feed.batches < asked:
            _log.info("--eval-iters %d: the %s rows make %d batches, and all are evaluated",
                      asked, name, feed.batches)  # fmt: skip
    return Feed(rows.train, rows.train.order(how), batching), held_out[0], held_out[1]


def _facts(settings: Settings, inputs: Inputs, batch_size: int, how: Ordering) -> dict[str, Any]:
    """What must be the same for a run to be continued exactly."""
    optimizer, coefficient = (
        dataclasses.asdict(settings.optimizer), settings.train.moe_aux_loss_coeff)  # fmt: skip
    balanced = {} if inputs.model.experts is None else {"moe_aux_loss_coeff": coefficient}
    return (
        {
            "seed": settings.train.seed,
            "batch_size": batch_size,
            "bf16": settings.train.bf16,
            "attention_dropout": settings.train.attention_dropout,
            "hidden_dropout": settings.train.hidden_dropout,
            "split": settings.data.split,
            "shuffle": order_fact(how, inputs.rows.train),
            "data": inputs.rows.identity,
            "trained": inputs.choice.said,
        }
        | {name: optimizer[name] for name in _OPTIMIZER_FACTS}
        | balanced
    )


def _check_continues(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    names = {
        "batch_size": "--global-batch-size", "data": "the data set at --data-path",
        "trained": "what is trained",
        "shuffle": "the order of rows (--no-shuffle, --padded-samples, "
                   "--full-shuffle-instruction-dataset)",
    }  # fmt: skip
    differing = [
        f"{names[name] if name in names else '--' + name.replace('_', '-')} was "
        f"{saved[name]} and is {value}"
        for name, value in now.items()
        if saved.get(name, value) != value
    ]
    if differing:
        raise ConfigError(
            "this run cannot be continued exactly: " + "; ".join(differing) + ". Use the values of "
            "the checkpoint, or --finetune to start anew from its weights"
        )
