"""Does this interpreter's numpy invert the matrices that NAVSIM inverts? A script: prints one JSON object.

Runs alone, on Python 3.9 or later, with any numpy. NAVSIM follows a trajectory by two regularised
least-squares fits per proposal, velocity and curvature, and solves both with np.linalg.pinv, i.e. with the
singular value decomposition of the BLAS library inside numpy. Where that is wrong every proposal is simulated
wrongly and scores about zero, without any error.

Here the same normal matrices are inverted by numpy, and by elimination in extended precision, which uses no
BLAS. Each case also says what NAVSIM would believe of a car whose motion is known.

Source of the matrices: batch_lqr_utils.py in NAVSIM's pdm_planner/simulation. With numpy's pinv captured, the
official fit was seen to invert these very matrices (difference below 1e-12).
"""

import ctypes
import json
import os
import platform
import sys

import numpy as np

SIZE = 40
STEP_S = 0.1
JERK_PENALTY = 1e-4
CURVATURE_RATE_PENALTY = 1e-2
INITIAL_CURVATURE_PENALTY = 1e-10
SPEEDS_MPS = (0.5, 5.0, 10.0, 30.0)


def velocity_matrix():
    """(40, 40) normal matrix of the velocity fit; its unknowns are the first speed and 39 accelerations.

    A displacement is 0.1 s times the speed, and speeds sum up accelerations, so the square of the design is
    a count of common rows times the columns' scales. The penalty is on accelerations: all but the last by
    themselves, the last but one also against the last (NAVSIM overwrites the rest of its difference matrix).
    """
    scale = np.full(SIZE, STEP_S**2)
    scale[0] = STEP_S
    index = np.arange(SIZE)
    matrix = (SIZE - np.maximum.outer(index, index)) * np.multiply.outer(scale, scale)
    for row in range(1, SIZE - 1):
        matrix[row, row] += JERK_PENALTY
    matrix[SIZE - 1, SIZE - 1] += JERK_PENALTY
    matrix[SIZE - 2, SIZE - 1] -= JERK_PENALTY
    matrix[SIZE - 1, SIZE - 2] -= JERK_PENALTY
    return matrix


def curvature_design(speed_mps):
    """(40, 40) design of the curvature fit at a constant speed; unknowns: first curvature and 39 rates."""
    design = np.tri(SIZE) * (speed_mps * STEP_S**2)
    design[:, 0] = speed_mps * STEP_S
    return design


def curvature_matrix(speed_mps):
    """(40, 40) normal matrix of the curvature fit."""
    design = curvature_design(speed_mps)
    matrix = np.einsum("ij,ik->jk", design, design)
    penalty = np.full(SIZE, CURVATURE_RATE_PENALTY)
    penalty[0] = INITIAL_CURVATURE_PENALTY
    matrix[np.arange(SIZE), np.arange(SIZE)] += penalty
    return matrix


def exact_inverse(matrix):
    """Inverse by Gauss-Jordan elimination with pivots, in extended precision, without BLAS."""
    size = len(matrix)
    work = np.concatenate([matrix, np.eye(size)], axis=1).astype(np.longdouble)
    for column in range(size):
        pivot = column + int(np.argmax(np.abs(work[column:, column])))
        work[[column, pivot]] = work[[pivot, column]]
        work[column] = work[column] / work[column, column]
        factor = work[:, column].copy()
        factor[column] = 0
        work = work - np.multiply.outer(factor, work[column])
    return work[:, size:]


def self_test(pinv=np.linalg.pinv, svd=np.linalg.svd):
    """Largest errors of numpy's results, and what NAVSIM would believe.

    Args:
      pinv: in place of numpy's; takes (N, 40, 40), as NAVSIM gives it.
      svd: in place of numpy's; takes (40, 40).

    Returns:
      pinv_error: of the inverses, relative to their largest entry. svd_error: of the product of the factors,
      relative, and of the factors' orthogonality. believed_speed_mps: what the velocity fit makes of a car
      that drives 10 m/s. believed_curvature: what the curvature fit makes of a turn of 0.05 1/m at 10 m/s.
      An error that is no number is infinite; so is one of results that numpy gives up on.
    """
    try:
        return errors_and_beliefs(pinv, svd)
    except np.linalg.LinAlgError:  # "SVD did not converge" is another face of the same fault
        worst = float("inf")
        return {
            "pinv_error": worst,
            "svd_error": worst,
            "believed_speed_mps": None,
            "believed_curvature": None,
        }


def errors_and_beliefs(pinv, svd):
    """See self_test; raises LinAlgError where numpy does."""
    velocity = velocity_matrix()
    matrices = np.stack([velocity] + [curvature_matrix(speed) for speed in SPEEDS_MPS])
    inverses = np.asarray(pinv(matrices), dtype=np.float64)
    pinv_error, svd_error = 0.0, 0.0
    for matrix, inverse in zip(matrices, inverses):  # noqa: B905 - Python 3.9 has no strict
        truth = exact_inverse(matrix)
        pinv_error = max(pinv_error, size_of((inverse - truth) / np.abs(truth).max()))
        left, values, right = svd(matrix)
        product = np.einsum("ij,j,jk->ik", left, values, right)
        svd_error = max(svd_error, size_of((product - matrix) / np.abs(matrix).max()))
        for factor in (left, right):
            svd_error = max(svd_error, size_of(np.einsum("ij,ik->jk", factor, factor) - np.eye(SIZE)))

    # 10 m/s straight on: every displacement is 1 m. Right side of the normal equations, then the fit.
    moved = np.full(SIZE, 10.0 * STEP_S)
    column_scale = np.full(SIZE, STEP_S**2)
    column_scale[0] = STEP_S
    right_side = np.cumsum(moved[::-1])[::-1] * column_scale
    speed = np.einsum("ij,j->i", inverses[0], right_side)[0]

    # A turn of 0.05 1/m at 10 m/s: every change of heading is 0.05 rad.
    design = curvature_design(10.0)
    turned = np.full(SIZE, 10.0 * 0.05 * STEP_S)
    curvature_inverse = inverses[1 + SPEEDS_MPS.index(10.0)]
    curvature = np.einsum("ij,kj,k->i", curvature_inverse, design, turned)[0]
    return {
        "pinv_error": pinv_error,
        "svd_error": svd_error,
        "believed_speed_mps": float(speed) if np.isfinite(speed) else None,
        "believed_curvature": float(curvature) if np.isfinite(curvature) else None,
    }


def size_of(difference):
    """Largest absolute entry; infinite where an entry is no number. JSON's null is for the caller."""
    largest = np.abs(difference).max()
    return float(largest) if np.isfinite(largest) else float("inf")


def blas_libraries():
    """The OpenBLAS libraries that this process has loaded: file, version text and kernel (Linux only)."""
    if not os.path.exists("/proc/self/maps"):
        return []
    with open("/proc/self/maps") as file:
        paths = {line.split(None, 5)[5].strip() for line in file if "openblas" in line.lower()}
    return [openblas_facts(path) for path in sorted(paths) if os.path.isfile(path)]


def openblas_facts(path):
    """What one OpenBLAS library says of itself. Builds differ in how they decorate the functions' names."""
    library = ctypes.CDLL(path)
    facts = {"file": os.path.basename(path), "config": None, "kernel": None}
    for key, function in (("config", "openblas_get_config"), ("kernel", "openblas_get_corename")):
        for prefix in ("", "scipy_"):
            for suffix in ("64_", "", "_64", "_"):
                name = prefix + function + suffix
                if facts[key] is None and hasattr(library, name):
                    call = getattr(library, name)
                    call.restype = ctypes.c_char_p
                    facts[key] = call().decode(errors="replace").strip()
    return facts


def has_avx512_bf16():
    """Whether the CPU has what makes OpenBLAS pick its Cooper Lake kernels; None: unknown."""
    if not os.path.exists("/proc/cpuinfo"):
        return None
    with open("/proc/cpuinfo") as file:
        return any(line.startswith("flags") and "avx512_bf16" in line.split() for line in file)


def main():
    """Print the report."""
    result = self_test()
    for key in ("pinv_error", "svd_error"):  # JSON has no infinity
        if result[key] == float("inf"):
            result[key] = None
    result.update(
        python=platform.python_version(),
        executable=sys.executable,
        numpy=np.__version__,
        numpy_file=np.__file__,
        coretype=os.environ.get("OPENBLAS_CORETYPE"),
        libraries=blas_libraries(),
        has_avx512_bf16=has_avx512_bf16(),
    )
    print(json.dumps(result))


if __name__ == "__main__":
    del sys.path[0]  # this folder
    main()
