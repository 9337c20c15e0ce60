"""Ranks leave together, whoever heard the signal; time and iterations end a run."""

import signal


def leave_together(signals):
    """Runs in each rank: what `after` says when only this rank, or another, was told to end."""
    import os
    import signal
    import time

    import torch

    from mindspeed_llm.config.run import ControlSettings
    from mindspeed_llm.training.control import Control

    rank, cpu, answers = torch.distributed.get_rank(), torch.device("cpu"), []
    for name in signals:
        before = signal.getsignal(signal.SIGTERM)
        with Control(ControlSettings(), began=time.monotonic(), device=cpu) as control:
            first = control.after(1)
            if rank == 1:
                os.kill(os.getpid(), signal.Signals[name])
            second = control.after(2)
            answers.append([first is None, second.why, second.code])
        assert signal.getsignal(signal.SIGTERM) is before
    late = ControlSettings(exit_duration_in_mins=10.0)
    began = time.monotonic() - (601 if rank == 0 else 0)
    answers.append(Control(late, began=began, device=cpu).after(5).why)
    return answers


def test_one_rank_that_heard_is_enough(run_ranks):
    expected = [
        [True, "SIGTERM", 128 + signal.SIGTERM],
        [True, "SIGUSR1", 128 + signal.SIGUSR1],
        "--exit-duration-in-mins 10",
    ]
    assert run_ranks(2, leave_together, ["SIGTERM", "SIGUSR1"]) == [expected, expected]


def twice():
    """Runs in a process: the same signal again ends it at once."""
    import os
    import signal
    import time

    import torch

    from mindspeed_llm.config.run import ControlSettings
    from mindspeed_llm.training.control import Control

    child = os.fork()
    if child == 0:
        with Control(ControlSettings(), began=0.0, device=torch.device("cpu")):
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_the_same_signal_again_ends_the_process(run_ranks):
    assert run_ranks(1, twice) == [-signal.SIGTERM]


def at_an_iteration():
    import time

    import torch

    from mindspeed_llm.config.run import ControlSettings
    from mindspeed_llm.training.control import Control

    control = Control(ControlSettings(exit_interval=3), began=time.monotonic(),
                      device=torch.device("cpu"))  # fmt: skip
    answers = [control.after(iteration) for iteration in (1, 2, 3, 4)]
    return [answer and [answer.why, answer.code] for answer in answers]


def test_an_interval_ends_the_run_with_success(run_ranks):
    assert run_ranks(1, at_an_iteration) == [[None, None, ["--exit-interval 3", 0], None]]
