"""Token ids in, token ids out, with a KV cache; chat on top."""
