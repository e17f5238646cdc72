"""Every exception that nestling raises for something a caller can mend.

    NestlingError                 catch this to catch them all
    ├── UsageError                a parameter that cannot be honoured (exit code 2, HTTP 400)
    │   └── InputError            one item of a list cannot be embedded; `index` says which
    │       ├── TextError         a text
    │       │   ├── EmptyTextError    a text of nothing but blanks
    │       │   └── TextLengthError   a text of more tokens than the model takes
    │       └── ImageError        an image
    │           └── ImageSizeError    an image over a limit of size (HTTP 413)
    ├── FileFormatError           a file that is not what it should be; names file and field
    │   ├── CheckpointError       safetensors, configuration or adapters of a checkpoint
    │   └── GGUFError             a GGUF file
    ├── ModelNotFoundError        a model reference that leads to no file
    ├── BuildError                the pipeline cannot make the file that was asked for
    └── EngineError               the engine failed, or answered with something that is not a vector

A message says what was wrong and what would be right, in one line. This module imports nothing.
"""


class NestlingError(Exception):
    """Base of every error that a caller can mend."""


class UsageError(NestlingError):
    """A parameter that cannot be honoured; `param` is its name as the caller wrote it."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class InputError(UsageError):
    """One item of a list cannot be embedded; `index` is its place in the list, `reason` the message without it."""

    def __init__(self, message: str, *, index: int) -> None:
        super().__init__(f"input {index}: {message}", param="input")
        self.index, self.reason = index, message

    def at(self, index: int) -> "InputError":
        """The same error of another place in the list."""
        return type(self)(self.reason, index=index)

    def __reduce__(self) -> tuple[object, ...]:
        """How it goes from process to process: pickle knows no parameters by name."""
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
    """An image with more pixels or bytes than the limit."""


class FileFormatError(NestlingError):
    """A file that is not what it should be."""


class CheckpointError(FileFormatError):
    """A checkpoint that cannot be read: names the file and the tensor or field."""


class GGUFError(FileFormatError):
    """A GGUF file that cannot be read: names the file and the field or byte offset."""


class ModelNotFoundError(NestlingError):
    """A model reference that leads to no file on this machine."""


class BuildError(NestlingError):
    """The pipeline cannot make the file that was asked for."""


class EngineError(NestlingError):
    """The engine failed, or answered with something that is not a vector."""
