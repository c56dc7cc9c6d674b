"""The few exceptions a caller may want to catch.

    DriveFineError
    ├── DataError(ValueError)      a file, record or folder is missing, foreign or damaged
    │   ├── UnsafePickleError      a pickle names a class or function that is not on the allow-list
    │   └── DiskFullError          what is written does not fit on the disk
    ├── SceneError(ValueError)     a scene cannot be prepared for scoring (no route, too few frames, ...)
    │   └── TrafficError           the reactive traffic of a scene cannot be simulated
    ├── TrajectoryError(ValueError)  a trajectory has the wrong shape or non-finite values
    ├── WorkerError(RuntimeError)  a worker process died, or hangs
    └── MissingPackageError(ImportError)  an optional package that was asked for is not installed

Messages have up to four parts, in this order: the rule, what was received, where, what to do.
"""


class DriveFineError(Exception):
    """Base of every exception that this package raises on purpose."""


class DataError(DriveFineError, ValueError):
    """A file, record or folder is missing, foreign or damaged."""


class UnsafePickleError(DataError):
    """A pickle names a class or function that is not on the allow-list; nothing of it was executed."""


class DiskFullError(DataError):
    """A file does not fit on its disk, in the user's quota or under the limit of file sizes."""


class SceneError(DriveFineError, ValueError):
    """A scene cannot be prepared for scoring."""


class TrafficError(SceneError):
    """The reactive traffic of a scene cannot be simulated; NAVSIM fails the token."""


class TrajectoryError(DriveFineError, ValueError):
    """A trajectory has the wrong shape or non-finite values."""


class WorkerError(DriveFineError, RuntimeError):
    """A worker process died, or nothing was heard from the workers for too long."""


class MissingPackageError(DriveFineError, ImportError):
    """An optional package that a setting asks for is not installed."""
