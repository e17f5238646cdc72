"""Every exception that nestling raises for something a caller can fix.

    NestlingError                 catch this to catch them all
    ├── UsageError                a parameter with a wrong value (exit code 2, HTTP 400)
    │   └── InputError            one item of a list cannot be embedded; `index` says which
    │       ├── TextError         a text
    │       │   ├── EmptyTextError    a text that is empty or only whitespace
    │       │   └── TextLengthError   a text with more tokens than the limit
    │       └── ImageError        an image
    │           └── ImageSizeError    an image over a size limit (HTTP 413)
    ├── FileFormatError           a file that is damaged or of another kind; names file and field
    │   ├── CheckpointError       safetensors, configuration or adapters of a checkpoint
    │   └── GGUFError             a GGUF file
    ├── ModelNotFoundError        a model reference to which no file belongs
    ├── BuildError                a file cannot be built or written
    └── EngineError               the engine failed, or returned NaN, infinity or a zero vector

Every message is one line: what was wrong and what is expected. This module imports nothing.
"""


class NestlingError(Exception):
    """Base of every error that a caller can fix."""


class UsageError(NestlingError):
    """A parameter with a wrong value; `param` is its name as the caller wrote it."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class InputError(UsageError):
    """One item of a list cannot be embedded; `index` is its index in the list, `reason` the message without it."""

    def __init__(self, message: str, *, index: int) -> None:
        super().__init__(f"input {index}: {message}", param="input")
        self.index, self.reason = index, message

    def at(self, index: int) -> "InputError":
        """The same error for another index of the list."""
        return type(self)(self.reason, index=index)

    def __reduce__(self) -> tuple[object, ...]:
        """For pickling between processes: pickle cannot pass keyword-only parameters."""
        return _rebuilt, (type(self), self.reason, self.index)


def _rebuilt(kind: type[InputError], message: str, index: int) -> InputError:
    return kind(message, index=index)


class TextError(InputError):
    """One text of a list cannot be embedded."""


class EmptyTextError(TextError):
    """A text of nothing but blanks."""


class TextLengthError(TextError):
    """A text of more tokens than the model or the caller's own limit allows."""


class ImageError(InputError):
    """One image of a list cannot be embedded."""


class ImageSizeError(ImageError):
    """An image with more pixels or bytes than the limit allows."""


class FileFormatError(NestlingError):
    """A file that is damaged or of another kind than expected."""


class CheckpointError(FileFormatError):
    """A checkpoint that cannot be read: names the file and the tensor or field."""


class GGUFError(FileFormatError):
    """A GGUF file that cannot be read: names the file and the field or byte offset."""


class ModelNotFoundError(NestlingError):
    """A model reference to which no file on this machine belongs."""


class BuildError(NestlingError):
    """A file cannot be built or written."""


class EngineError(NestlingError):
    """The engine failed, or returned NaN, infinity or a zero vector."""
