"""Owns what is installed and what it needs; versions of tools live in pyproject.toml.

`mindspeed_llm/patches` is a symbolic link to the top-level `patches/`, so the package is complete
in a checkout, in an editable install and in a wheel, whatever the working directory.
"""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent

PLOT = ["matplotlib>=3.8"]
GGUF = ["gguf>=0.17"]
TENSORBOARD = ["tensorboard>=2.14"]
CHAT = ["prompt-toolkit>=3.0.36"]
# megatron-core's own torch_dist saver, which the tests compare with, asks it for the memory in use.
PSUTIL = "psutil"
# The oracle for LoRA: its gradients, and that it opens what is exported. Both are under a megabyte.
PEFT = ["peft>=0.15", "accelerate"]
SERVE = ["fastapi>=0.110", "uvicorn>=0.29"]
TESTS = ["pytest>=8", "pytest-xdist>=3.5", "hypothesis>=6.100", "ruff>=0.8", PSUTIL]

setup(
    name="mindspeed-llm",
    version="0.1.0",
    description="Multi-turn fine-tuning and chat on Megatron-Core: Ascend NPU, NVIDIA GPU and CPU",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["mindspeed_llm", "mindspeed_llm.*"]),
    package_data={"mindspeed_llm": ["py.typed", "inference/page/*"]},
    install_requires=[
        "torch>=2.6",
        "megatron-core>=0.12.3,<0.20",
        "transformers>=4.51",
        "jinja2>=3.1.6",  # earlier ones let a chat template out of the sandbox
        "numpy>=1.26",
        "safetensors>=0.4.3",
        "pyarrow>=14",
        "rich>=13",
    ],
    extras_require={
        "plot": PLOT,
        "gguf": GGUF,
        "quickstart": PLOT + GGUF,
        "chat": CHAT,
        "tensorboard": TENSORBOARD,
        "npu": ["torch_npu"],
        "cuda": [],
        "serve": SERVE,
        "dev": [*PLOT, *TENSORBOARD, *GGUF, *CHAT, *SERVE, *PEFT, *TESTS, "openai>=1.40"],
    },
    entry_points={"console_scripts": ["mindspeed-llm = mindspeed_llm.cli.main:main"]},
)
