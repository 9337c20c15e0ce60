"""The loss over chosen positions is that of whole logits, and so are all gradients."""


def compare(directory):
    """Runs in a rank: a model's loss from its logits and from SupervisedLoss, and gradients."""
    from pathlib import Path

    import torch
    from megatron.core import parallel_state, tensor_parallel

    from mindspeed_llm.config.parallel import ParallelConfig
    from mindspeed_llm.models.build import build_model
    from mindspeed_llm.models.registry import read_model
    from mindspeed_llm.training.loss import SupervisedLoss

    parallel_state.initialize_model_parallel()
    tensor_parallel.model_parallel_cuda_manual_seed(1)
    model = read_model(Path(directory))
    gpt = build_model(model, ParallelConfig(), dtype=torch.float32, init_method_std=0.3)
    ids, targets = torch.randint(0, 131, (2, 3, 7))
    targets[torch.rand(3, 7) < 0.5] = -100
    positions = torch.arange(7).expand(3, -1)
    results = {"exceeded": False}
    for name, wanted in {"some": targets, "none": torch.full_like(targets, -100)}.items():
        logits = gpt(ids, positions, None).flatten(0, 1)
        results["exceeded"] |= bool(logits.abs().max() > 0.9 * model.logit_softcap)
        expected = torch.nn.functional.cross_entropy(
            logits, wanted.reshape(-1), ignore_index=-100, reduction="sum"
        )
        parameters = list(gpt.parameters())
        theirs = torch.autograd.grad(expected, parameters)
        loss = SupervisedLoss(gpt)
        loss.choose(wanted)
        answer = gpt(ids, positions, None)
        ours = torch.autograd.grad(answer.sum(), parameters)
        loss.remove()
        results[name] = [
            answer.shape == (1, 1, 1) and answer.dtype == torch.float32,
            torch.allclose(answer.sum(), expected, rtol=1e-6),
            all(torch.allclose(a, b, rtol=1e-4, atol=1e-5)
                for a, b in zip(ours, theirs, strict=True)),
            any(bool(grad.any()) for grad in ours) == (name == "some"),
            torch.equal(gpt(ids, positions, None).flatten(0, 1), logits),
        ]  # fmt: skip
    return results


def test_chosen_positions_equal_the_whole(run_ranks, tiny_hf_model, tmp_path):
    (found,) = run_ranks(1, compare, str(tiny_hf_model("gemma2", tmp_path / "model")))
    assert found == {"exceeded": True, "some": [True] * 5, "none": [True] * 5}
