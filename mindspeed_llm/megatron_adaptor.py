"""`import mindspeed_llm.megatron_adaptor` applies the register for this machine, once a process.

It imports no megatron, reads no command line, and is safe twice and in spawned children. Import it
before the code that builds a Megatron model. What it did: `mindspeed_llm.patches.engine.report()`.
"""

from mindspeed_llm.patches import engine

engine.apply()
