"""What an engine raises about itself. What was given wrongly is a `ValueError`."""


class EngineClosed(ValueError, RuntimeError):
    """The engine was used after `close()`. A RuntimeError, as nothing was given wrongly; also a ValueError, as of a closed file."""

    def __init__(self) -> None:
        super().__init__("the engine is closed")
