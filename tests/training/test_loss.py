"""Choosing positions before the output layer changes neither loss nor gradients."""


def compare():
    """Runs in a rank: the summed loss with and without choosing, and with nothing to choose."""
    import torch
    from megatron.core import parallel_state

    from mindspeed_llm.training.loss import SupervisedPositions, summed_loss

    parallel_state.initialize_model_parallel()
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(7, 3, 16, generator=generator)  # [length, rows, hidden]
    targets = torch.randint(0, 50, (3, 7), generator=generator)
    targets[torch.rand(3, 7, generator=generator) < 0.5] = -100
    results = {}
    for name, wanted in {"some": targets, "none": torch.full_like(targets, -100)}.items():
        layer = torch.nn.Linear(16, 50)
        layer.sequence_parallel = False
        with torch.no_grad():
            layer.weight.copy_(torch.arange(800).view(50, 16).sin())
        whole = hidden.clone().requires_grad_()
        logits = layer(whole).transpose(0, 1).reshape(-1, 50)
        expected = torch.nn.functional.cross_entropy(
            logits, wanted.reshape(-1), ignore_index=-100, reduction="sum"
        )
        expected.backward()
        expected_grad = layer.weight.grad.clone()
        layer.zero_grad()
        part = hidden.clone().requires_grad_()
        positions = SupervisedPositions(layer)
        chosen = positions.choose(wanted)
        loss = summed_loss(layer(part).squeeze(1), chosen)
        loss.backward()
        positions.remove()
        results[name] = [
            len(chosen) == int((wanted != -100).sum()),
            torch.allclose(loss, expected, rtol=1e-6),
            torch.allclose(part.grad, whole.grad, rtol=1e-5, atol=1e-6),
            torch.allclose(layer.weight.grad, expected_grad, rtol=1e-5, atol=1e-6),
            layer(hidden).shape == (7, 3, 50),
        ]
    return results


def test_chosen_positions_equal_the_whole(run_ranks):
    for found in run_ranks(1, compare)[0].values():
        assert found == [True] * 5
