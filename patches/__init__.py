"""Adapters that put this library's kernels and fixes into megatron-core, and their register."""

if __name__ == "patches":
    raise ImportError(
        "import mindspeed_llm.patches instead: under the name `patches` this would be a second "
        "copy of the register, and every patch would be applied twice"
    )
