"""The settings of conversion check themselves and know MindSpeed-LLM's flags."""

from pathlib import Path

import pytest

from mindspeed_llm.config.convert import ALWAYS, REFUSED, ConvertConfig
from mindspeed_llm.config.flags import parse
from mindspeed_llm.errors import ConfigError

HF2MG = "--load-model-type hf --save-model-type mg --load-dir a --save-dir b"
MG2HF = "--load-model-type mg --save-model-type hf --load-dir a --save-dir b"


def read(text):
    return parse(
        text.split(), ConvertConfig, prog="convert_ckpt.py", always=ALWAYS, refused=REFUSED
    )[0]


def test_the_guides_flags(tmp_path):
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text("{}")
    settings = read(
        f"--use-mcore-models --model-type GPT {HF2MG} --model-type-hf gemma2 "
        f"--target-tensor-parallel-size 8 --target-pipeline-parallel-size 2 --params-dtype bf16 "
        f"--tokenizer-model {tokenizer} --post-norm --add-qkv-bias "
        "--spec mindspeed_llm.tasks.models.spec.gemma2_spec layer_spec"
    )
    assert (settings.load_dir, settings.save_dir) == (Path("a"), Path("b"))
    assert (settings.target_tensor_parallel_size, settings.target_pipeline_parallel_size) == (8, 2)
    assert settings.model_type_hf == "gemma2" and settings.params_dtype == "bf16"
    assert settings.spec == ("mindspeed_llm.tasks.models.spec.gemma2_spec", "layer_spec")
    assert settings.tokenizer_directory == tmp_path and not settings.overwrite


def test_tokenizer_directory(tmp_path):
    assert read(f"{HF2MG} --tokenizer-model {tmp_path}").tokenizer_directory == tmp_path
    assert read(HF2MG).tokenizer_directory is None


@pytest.mark.parametrize(("flags", "words"), [
    ("--load-model-type hf --save-model-type hf --load-dir a --save-dir b", "both hf"),
    (f"{MG2HF} --ckpt-format torch_dist", "--ckpt-format torch_dist"),
    (f"{HF2MG} --ckpt-format zarr", "zarr"),
    (f"{MG2HF} --target-tensor-parallel-size 2", "no layout"),
    (f"{HF2MG} --tokenizer-model /nowhere/tokenizer.json", "/nowhere/tokenizer.json"),
    (f"{HF2MG} --max-shard-gb 0", "--max-shard-gb"),
    (f"{HF2MG} --max-shard-gb nan", "--max-shard-gb"),
    (f"{HF2MG} --model-type BERT", "BERT"),
    (f"{MG2HF} --target-expert-parallel-size 2", "no layout"),
    (f"{HF2MG} --params-dtype int8", "int8"),
    (f"{HF2MG} --load-directory c", "--load-dir"),
    ("--load-model-type hf --save-model-type mg --load-dir a", "--save-dir"),
])  # fmt: skip
def test_wrong_settings_name_their_flag(flags, words):
    with pytest.raises(ConfigError, match=words):
        read(flags)


@pytest.mark.parametrize("flag", sorted(REFUSED))
def test_refused_flags_say_why(flag):
    with pytest.raises(ConfigError, match=f"{flag} cannot be honoured here: .{{10,}}"):
        read(f"{HF2MG} {flag}")


def test_only_an_export_is_compared(tmp_path):
    both = {"load_dir": tmp_path, "save_dir": tmp_path}
    ConvertConfig(load_model_type="mg", save_model_type="hf", verify=False, **both)
    with pytest.raises(ConfigError, match="--no-verify"):
        ConvertConfig(load_model_type="hf", save_model_type="mg", verify=False, **both)
