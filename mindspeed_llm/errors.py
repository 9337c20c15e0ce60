"""Owns the errors a user can cause or mend; knows nothing of what raised them or who prints them.

Every message says where (flag, or file and line), the value found, what was expected, the mend.
Programming errors stay `assert` or built-in exceptions and keep their traceback.
"""


class UserError(Exception):
    """A mistake the user can mend; printed as one paragraph, without a traceback."""

    exit_code = 2


class ConfigError(UserError):
    """A flag, or a combination of flags, that is wrong."""


class DataError(UserError):
    """Training data or a prepared data set that is wrong; names file, row and field."""


class TemplateError(UserError):
    """A chat template that does not fit the tokenizer or the conversation."""


class ModelError(UserError):
    """A config.json or a model that is not supported or contradicts itself."""


class CheckpointError(UserError):
    """A checkpoint that is missing, incomplete, damaged, or of another model."""


class TrainingError(UserError):
    """Training that cannot go on: numbers that are not finite, a batch with nothing to learn."""

    exit_code = 3


class DeviceError(UserError):
    """A device that was asked for and cannot be used; keeps the cause as `__cause__`."""


class PatchError(UserError):
    """A patch whose target is missing or does not fit the installed megatron-core."""


class KernelError(UserError):
    """A fused kernel that was demanded and is not there, or cannot do what the model needs."""
