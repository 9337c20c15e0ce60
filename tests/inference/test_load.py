"""Model, tokenizer, template and flags belong together, or one error says which does not."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mindspeed_llm.config.architecture import ArchitectureFlags
from mindspeed_llm.config.inference import LoadSettings
from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.errors import CheckpointError, ConfigError, UserError

ONE = ParallelConfig()


def _parts(load: Path, parallel: ParallelConfig = ONE, **settings: object) -> object:
    from mindspeed_llm.inference.load import read_parts

    architecture = ArchitectureFlags(num_layers=settings.pop("num_layers", None))
    return read_parts(LoadSettings(load=load, **settings), parallel, architecture)


def test_reads_everything_from_the_directory(tiny_chat_dir: Path) -> None:
    parts = _parts(tiny_chat_dir, prompt_type="chatml")
    assert parts.model.family == "llama" and parts.context == 512
    assert parts.renderer is not None and parts.renderer.template.name == "chatml"
    assert _parts(tiny_chat_dir).renderer is None
    assert _parts(tiny_chat_dir, seq_length=100).context == 100


def test_the_tokenizer_of_another_model_is_one_error(
    tiny_chat_dir: Path, make_tokenizer_dir: Callable, tmp_path: Path
) -> None:
    other = make_tokenizer_dir(tmp_path / "other", markers=("<pad>", "<eos>", "<bos>", "<x>"))
    with pytest.raises(ConfigError, match="is not the tokenizer of the model"):
        _parts(tiny_chat_dir, tokenizer_name_or_path=other)
    same = shutil.copytree(tiny_chat_dir, tmp_path / "same")
    assert _parts(tiny_chat_dir, tokenizer_name_or_path=same).context == 512


def test_the_template_may_be_mindspeed_llms(tiny_chat_dir: Path) -> None:
    for compat in (None, "mindspeed"):
        parts = _parts(tiny_chat_dir, prompt_type="gemma", template_compat=compat)
        assert parts.renderer.template.eos_label == (compat is not None)
    with pytest.raises(UserError, match="chatml knows no thinking"):
        _parts(tiny_chat_dir, prompt_type="chatml", thinking="keep")


def test_a_template_that_is_not_the_tokenizers_own_is_told(
    tiny_hf_model: Callable, make_tokenizer_dir: Callable, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    heard: list[str] = []
    monkeypatch.setattr("mindspeed_llm.inference.load._log.warning",
                        lambda form, *args: heard.append(form % args))  # fmt: skip
    chatml = ("{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + "
              "message['content'] + '<|im_end|>\n' }}{% endfor %}")  # fmt: skip
    load = tiny_hf_model("llama", tmp_path / "model", vocab_size=480)
    make_tokenizer_dir(load, chat_template=chatml)
    assert _parts(load, prompt_type="chatml").renderer.template.name == "chatml"
    assert heard == []
    assert _parts(load, prompt_type="gemma").renderer.template.name == "gemma"  # it goes on
    (said,) = heard
    assert "template gemma differs from the tokenizer's own chat template" in said
    assert "Right only if the model was tuned with it" in said and "--no-verify" not in said
    monkeypatch.setenv("RANK", "1")
    _parts(load, prompt_type="gemma")
    assert len(heard) == 1  # once in a job


def test_a_tokenizer_with_more_tokens_than_the_model(
    tiny_hf_model: Callable, tiny_tokenizer_dir: Path, tmp_path: Path
) -> None:
    small = tiny_hf_model("llama", tmp_path / "small")
    with pytest.raises(ConfigError, match=r"has \d+ tokens, the model of --load has 131"):
        _parts(small, tokenizer_name_or_path=tiny_tokenizer_dir)
    with pytest.raises(ConfigError, match="give --tokenizer-name-or-path"):
        _parts(small)


@pytest.mark.parametrize(
    "settings,message",
    [({"seq_length": 513}, "--seq-length 513 is beyond the model's 512"),
     ({"num_layers": 7}, "--num-layers is 7, the model has 4"),
     ({"prompt_type": "nonsense"}, "--prompt-type nonsense"),
     ({"hf_chat_template": True}, "no chat template")],
)  # fmt: skip
def test_wrong_flags_are_named(tiny_chat_dir: Path, settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        _parts(tiny_chat_dir, **settings)


def test_layouts_that_cannot_be(tiny_chat_dir: Path) -> None:
    with pytest.raises(ConfigError, match="--tensor-model-parallel-size 3"):
        _parts(tiny_chat_dir, ParallelConfig(tensor_model_parallel_size=3))
    split = ParallelConfig(tensor_model_parallel_size=2, sequence_parallel=True)
    with pytest.raises(ConfigError, match="--sequence-parallel"):
        _parts(tiny_chat_dir, split)
    with pytest.raises(ConfigError, match="--context-parallel-size cannot be honoured here"):
        _parts(tiny_chat_dir, ParallelConfig(context_parallel_size=2))
    chunks = ParallelConfig(pipeline_model_parallel_size=2, num_layers_per_virtual_pipeline_stage=1)
    with pytest.raises(ConfigError, match="interleaved pipelines cannot be honoured here"):
        _parts(tiny_chat_dir, chunks)


def test_a_missing_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="--load .*no such directory"):
        _parts(tmp_path / "absent")


def _wrong_world(directory: str) -> str:
    from pathlib import Path

    import torch

    from mindspeed_llm.config.architecture import ArchitectureFlags
    from mindspeed_llm.config.inference import LoadSettings
    from mindspeed_llm.config.parallel import ParallelConfig
    from mindspeed_llm.errors import ConfigError
    from mindspeed_llm.inference.load import read_parts, start_engine

    settings = LoadSettings(load=Path(directory))
    parts = read_parts(settings, ParallelConfig(), ArchitectureFlags())
    try:
        start_engine(settings, parts, ParallelConfig(), torch.device("cpu"))
    except ConfigError as err:
        return str(err)
    return "no error"


def test_replicas_are_refused(tiny_chat_dir: Path, run_ranks: Callable) -> None:
    answers = run_ranks(2, _wrong_world, str(tiny_chat_dir))
    assert all("2 processes, but TP 1 x PP 1 needs 1" in answer for answer in answers)
