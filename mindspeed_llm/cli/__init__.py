"""Command lines: parse, apply patches, call; the only importers of mindspeed_llm.patches."""
