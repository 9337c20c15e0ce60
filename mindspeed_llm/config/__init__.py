"""Typed settings: frozen dataclasses that check themselves, and the one reader of flags."""
