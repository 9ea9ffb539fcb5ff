"""Headstart: transfer learning from a folder of images, at the speed of cached activations."""

import os as _os


def _let_threads_sleep() -> None:
    """Have OpenMP's threads sleep after a short while of waiting: those that spin for long take the cores from other work,
    and from each other. Read when torch is imported; what the user has set stays (docs/decisions.md, bench/neighbours.py).
    """
    if "OMP_WAIT_POLICY" not in _os.environ:
        _os.environ.setdefault("GOMP_SPINCOUNT", "10000")


_let_threads_sleep()
