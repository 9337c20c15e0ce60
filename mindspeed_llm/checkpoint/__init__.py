"""Checkpoints: safetensors and JSON, any layout in, any layout out."""
