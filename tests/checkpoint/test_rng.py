"""After restoring, every generator draws what it would have drawn."""


def draws():
    import random

    import numpy as np
    import torch
    from megatron.core import parallel_state, tensor_parallel

    from mindspeed_llm.checkpoint import rng
    from mindspeed_llm.checkpoint.objects import pack, unpack

    parallel_state.initialize_model_parallel(1, 1)
    tensor_parallel.model_parallel_cuda_manual_seed(3)

    def draw():
        tracker = tensor_parallel.get_cuda_rng_tracker()
        with tracker.fork():
            forked = torch.rand(3).tolist()
        return [random.random(), random.gauss(0, 1), np.random.rand(3).tolist(),
                float(np.random.randn()), torch.rand(3).tolist(), forked]  # fmt: skip

    draw()  # leaves half a pair of normal numbers in Python's and NumPy's generators
    kept = []
    state = pack(rng.capture(), lambda t: (kept.append(t.clone()), str(len(kept) - 1))[1])
    first, second = draw(), draw()
    rng.restore(unpack(state, lambda name: kept[int(name)]))
    again = [draw(), draw()]
    rng.restore(unpack(state, lambda name: kept[int(name)]))
    return [[first, second], again, [draw(), draw()]]


def test_capture_and_restore(run_ranks):
    (result,) = run_ranks(1, draws)
    first, again, third = result
    assert first == again == third
    assert first[0] != first[1]
