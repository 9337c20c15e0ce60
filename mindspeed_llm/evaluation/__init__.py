"""Multi-turn recall and loss, offline."""
