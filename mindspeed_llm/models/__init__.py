"""Model families: config.json -> megatron-core modules, and the name table of their weights."""
