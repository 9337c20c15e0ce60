"""Settings of chat and generation: no flag is accepted and without effect."""

from pathlib import Path

import pytest

from mindspeed_llm.config.inference import (
    ChatSettings,
    GenerationSettings,
    LoadSettings,
    TaskSettings,
)
from mindspeed_llm.errors import ConfigError


def test_one_template_only() -> None:
    with pytest.raises(ConfigError, match="two templates"):
        LoadSettings(load=Path("x"), prompt_type="gemma", hf_chat_template=True)
    assert not LoadSettings(load=Path("x")).has_template
    assert LoadSettings(load=Path("x"), prompt_type="gemma").has_template
    assert LoadSettings(load=Path("x"), hf_chat_template=True).has_template


def test_what_is_said_of_a_template_needs_its_name() -> None:
    for flag in ("template_compat", "thinking"):
        for rest in ({}, {"hf_chat_template": True}):
            with pytest.raises(ConfigError, match="for the templates of --prompt-type"):
                LoadSettings(load=Path("x"), **{flag: "keep"}, **rest)
    assert LoadSettings(load=Path("x"), prompt_type="qwen3", thinking="keep").thinking == "keep"


@pytest.mark.parametrize(
    "given,task,temperature",
    [({}, "chat", 0.0), ({}, "greedy", 0.0), ({}, "do_sample", 1.0),
     ({"temperature": 0.7}, "chat", 0.7), ({"top_k": 5}, "chat", 1.0),
     ({"temperature": 0.7, "top_p": 0.9}, "do_sample", 0.7), ({"temperature": 0.0}, "chat", 0.0),
     ({"temperature": 0.0}, "greedy", 0.0)],
)  # fmt: skip
def test_temperature(given: dict, task: str, temperature: float) -> None:
    assert GenerationSettings(**given).temperature_of(task) == temperature


@pytest.mark.parametrize(
    "given,task",
    [({"temperature": 0.7}, "greedy"), ({"top_k": 5}, "greedy"), ({"top_p": 0.9}, "greedy"),
     ({"min_p": 0.1}, "greedy"),
     ({"temperature": 0.0}, "do_sample"), ({"temperature": 0.0, "top_k": 5}, "chat")],
)  # fmt: skip
def test_flags_without_effect_are_refused(given: dict, task: str) -> None:
    with pytest.raises(ConfigError, match="no effect|does not"):
        GenerationSettings(**given).temperature_of(task)


@pytest.mark.parametrize(
    "given,flag",
    [({"max_new_tokens": 0}, "--max-new-tokens"), ({"temperature": -0.1}, "--temperature"),
     ({"min_p": 1.5}, "--min-p"), ({"stop": ("",)}, "--stop"),
     ({"top_k": -1}, "--top-k"), ({"top_p": 0.0}, "--top-p")],
)  # fmt: skip
def test_wrong_numbers_name_their_flag(given: dict, flag: str) -> None:
    with pytest.raises(ConfigError, match=flag):
        GenerationSettings(**given)


@pytest.mark.parametrize(
    "task", ["beam_search", "beam_search_with_sampling", "return_output_log_probs"]
)
def test_tasks_that_are_not_offered_say_why(task: str) -> None:
    with pytest.raises(ConfigError, match=f"--task {task} cannot be honoured"):
        TaskSettings(task=task)


def test_inputs_fit_the_task() -> None:
    with pytest.raises(ConfigError, match="--prompt have no effect with --task chat"):
        TaskSettings(task="chat", prompt="x")
    with pytest.raises(ConfigError, match="one of --prompt and --prompts-file"):
        TaskSettings(prompt="x", prompts_file=Path("y"))
    with pytest.raises(ConfigError, match="--history-turns"):
        ChatSettings(history_turns=-1)
    assert TaskSettings(task="sample").kind == "do_sample"
    with pytest.raises(ConfigError, match="--seq-length"):
        LoadSettings(load=Path("x"), seq_length=1)


def test_settings_of_the_chat_need_a_chat() -> None:
    ChatSettings().check_task("greedy")
    ChatSettings(stats=True, overflow="error").check_task("chat")
    with pytest.raises(ConfigError, match="--overflow, --no-history-file: only --task chat"):
        ChatSettings(overflow="error", keep_history=False).check_task("greedy")
    with pytest.raises(ConfigError, match="contradict"):
        ChatSettings(history_file=Path("x"), keep_history=False)
