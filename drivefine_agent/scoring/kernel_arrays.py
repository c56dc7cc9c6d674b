"""How arrays enter the compiled kernels: contiguous, of one dtype, read-only."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def kernel_input(array: Any, dtype: Any = np.float64) -> NDArray[Any]:
    """A C-contiguous, read-only view (or converted copy) of `array`.

    Numba compiles one version of a kernel per argument type, and a memory-mapped (read-only) array is
    another type than a writable one. Passing only read-only views keeps it at one version, whether a scene
    comes from the cache or not.
    """
    view = np.ascontiguousarray(array, dtype).view(np.ndarray)
    view.flags.writeable = False
    return view
