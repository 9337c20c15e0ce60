"""Owns how a broken rule is said and how a kernel's arguments are read; knows no operator."""

import torch

FLOATS = (torch.float16, torch.bfloat16, torch.float32)
HALVES = (torch.float16, torch.bfloat16)


class ContractError(RuntimeError):
    """A call that the vendor's documents forbid, or whose result they call undefined."""


def demand(holds, operator, rule, source):
    """Raise ContractError unless `holds`; `rule` says what was found and what is allowed."""
    if not holds:
        raise ContractError(f"{operator}: {rule} ({source})")


class Arguments:
    """Arguments of one call by their schema's names, defaults filled in."""

    def __init__(self, schema, positional, named):
        for argument in schema.arguments:
            if argument.has_default_value():
                setattr(self, argument.name, argument.default_value)
        for argument, value in zip(schema.arguments, positional, strict=False):
            setattr(self, argument.name, value)
        for name, value in named.items():
            setattr(self, name, value)
