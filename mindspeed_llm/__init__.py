"""Multi-turn fine-tuning and chat on Megatron-Core; importing this package has no side effect."""

__version__ = "0.1.0"
