"""Supervised fine-tuning on megatron-core's schedules."""
