"""Run on every rank: what the engine makes of tiny models, for comparison with transformers."""


def ended_early(engine: object, prompts: list, limit: int) -> dict:
    """Row 1 is ended from outside after three ids, the others run on."""
    counts, ended = {}, {}

    def ends(row: int, token: int) -> bool:
        counts[row] = counts.get(row, 0) + 1
        return row == 1 and counts[row] == 3

    for done in engine.batches(prompts, max_new_tokens=limit, batch_size=3, ends=ends):
        ended |= done
    return ended


def start(tp: int, pp: int, ep: int = 1, etp: int | None = None) -> object:
    """megatron-core's groups, and the same layout as ours."""
    from megatron.core import parallel_state, tensor_parallel

    from mindspeed_llm.config.parallel import ParallelConfig

    parallel_state.initialize_model_parallel(
        tp, pp, expert_model_parallel_size=ep, expert_tensor_parallel_size=etp
    )
    tensor_parallel.model_parallel_cuda_manual_seed(1)
    return ParallelConfig(
        tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp,
        expert_model_parallel_size=ep, expert_tensor_parallel_size=etp,
    )  # fmt: skip


def main(
    models: dict, tp: int, pp: int, prompts: list, follow_up: list, limit: int, *experts: int | None
) -> dict:
    from pathlib import Path

    import torch

    from mindspeed_llm.checkpoint.state import load_weights
    from mindspeed_llm.inference import memory
    from mindspeed_llm.inference.engine import Engine
    from mindspeed_llm.inference.ranks import Ranks
    from mindspeed_llm.inference.sampling import Sampling
    from mindspeed_llm.inference.stages import Stages
    from mindspeed_llm.models.build import build_model
    from mindspeed_llm.models.registry import read_model

    memory.BLOCK = 16  # so that these short conversations make the cache grow
    layout = start(tp, pp, *experts)
    answers = {}
    for name, directory in models.items():
        config = read_model(Path(directory))
        model = build_model(config, layout, dtype=torch.float32, perform_initialization=False)
        load_weights(Path(directory), [model])
        stages = Stages(model.eval(), torch.device("cpu"), 120)
        ranks = Ranks(layout.replica_size - layout.replica_size // pp)
        engine = Engine(stages, ranks, stop_ids=(), chunk=9)
        if not ranks.is_leader:
            engine.follow()
            answers[name] = {"held": engine.scheduler.last}
            continue
        single = [engine.generate(p, max_new_tokens=limit) for p in prompts]
        batch = engine.generate_batch(prompts, max_new_tokens=limit, batch_size=2)
        engine.forget()
        turns, prompt = [], []
        for text in follow_up:
            prompt = prompt + text
            reply = engine.generate(prompt, max_new_tokens=limit)
            engine_cached = reply.cached_tokens
            engine_ids = list(reply.ids)
            turns.append({"prompt": list(prompt), "ids": engine_ids, "cached": engine_cached})
            prompt = prompt + reply.ids
        again = engine.generate(turns[3]["prompt"], max_new_tokens=limit)
        fresh = []
        for turn in turns:
            engine.forget()
            fresh.append(engine.generate(turn["prompt"], max_new_tokens=limit).ids)
        warm = Sampling(temperature=0.9, top_k=40, top_p=0.95, seed=11)
        drawn = [engine.generate(prompts[0], sampling=warm, max_new_tokens=limit).ids
                 for _ in range(2)]  # fmt: skip
        drawn_batch = engine.generate_batch(prompts, sampling=warm, max_new_tokens=limit)
        told = Sampling(logprobs=2)
        logprobs = engine.generate(prompts[1], sampling=told, max_new_tokens=3).logprobs
        in_batch = engine.generate_batch(prompts[:3], sampling=told, max_new_tokens=3)[1].logprobs
        shy = Sampling(repetition_penalty=2.5)
        penalized = engine.generate(prompts[0], sampling=shy, max_new_tokens=limit).ids
        ended = ended_early(engine, prompts, limit)
        _, tokens = engine.stream(prompts[0], max_new_tokens=limit)
        early = [next(tokens), next(tokens)]
        tokens.close()
        # The last one has targets in its second half alone.
        scores = engine.scores([
            (ids, [-100 if at == 0 or (ids == prompts[-1] and at < len(ids) // 2) else token
                   for at, token in enumerate(ids)]) for ids in prompts
        ])  # fmt: skip
        after = engine.generate(prompts[0], max_new_tokens=limit).ids
        engine.close()
        answers[name] = {
            "single": [r.ids for r in single], "batch": [r.ids for r in batch], "turns": turns,
            "drawn": drawn, "drawn_batch": drawn_batch[0].ids, "early": early, "after": after,
            "again": again.ids, "again cached": again.cached_tokens, "fresh turns": fresh,
            "logprobs": logprobs, "logprobs in a batch": in_batch, "penalized": penalized,
            "ended": [ended[row].ids for row in range(len(prompts))],
            "stops": [ended[row].stop for row in range(len(prompts))],
            "scores": scores, "held": engine.scheduler.last,
        }  # fmt: skip
    return answers
