"""The update clips by the global norm, and refuses numbers that are not finite before it steps."""

import pytest


def update_with(flags, poison):
    """Runs in two data-parallel ranks: a step, then one with `poison` in one rank's gradients."""
    import torch

    from mindspeed_llm.cli.train import read_settings
    from mindspeed_llm.errors import TrainingError
    from mindspeed_llm.training.inputs import read_inputs
    from mindspeed_llm.training.setup import prepare
    from mindspeed_llm.training.step import train_batch

    settings, architecture = read_settings([*flags, "--weight-decay", "0"])
    job = prepare(settings, read_inputs(settings, architecture, check_tokenizer=False),
                  torch.device("cpu"))  # fmt: skip
    model = job.replica.model[0]
    _, norm = train_batch(job.replica, job.feed.micro_batches(0))
    # Divided by the global norm, the gradients in the buffer have norm --clip-grad.
    clipped = torch.sqrt(sum(p.main_grad.square().sum() for p in model.parameters())).item()
    before = [p.detach().clone() for p in model.parameters()]
    if torch.distributed.get_rank() == 1:
        weight = next(iter(model.parameters()))
        weight.register_hook(lambda grad: torch.full_like(grad, poison))
    message = ""
    try:
        train_batch(job.replica, job.feed.micro_batches(8))
    except TrainingError as error:
        message = str(error)
    same = all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    return [norm, clipped, message, same]


@pytest.mark.parametrize("poison", [float("nan")])
def test_a_poisoned_gradient_stops_every_rank_before_the_step(run_ranks, flags, poison):
    for norm, clipped, message, same in run_ranks(2, update_with, flags, poison):
        assert norm > 1.0  # so that clipping acts
        assert clipped == pytest.approx(1.0, rel=1e-4)
        assert "gradient norm nan" in message and "loss is" in message
        assert same
