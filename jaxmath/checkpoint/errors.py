"""What can be wrong with a checkpoint, a weights file, or the folder around them."""


class CheckpointError(ValueError):
    """A checkpoint or weights folder that cannot be used: what was seen, expected, and the cure."""


class CheckpointMismatch(CheckpointError):
    """Intact on disk, but not what was asked for: other names, shapes or dtypes of arrays."""


class CheckpointLocked(CheckpointError):
    """Another process is writing to the same folder."""
