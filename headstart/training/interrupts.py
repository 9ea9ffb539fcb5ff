"""Let a signal stop a training between two steps, never inside one."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class WholeSteps:
    """Holds SIGTERM and SIGINT back during a step, so that a model is never half updated.

    Use `with WholeSteps() as whole:` around a training and `with whole.step():` around each step. The previous handler
    still gets each signal, at once or at the end of the step. Outside the main thread, which alone gets signals, this
    class does nothing.
    """

    def __init__(self) -> None:
        self.inside = False
        self._held: tuple[int, FrameType | None] | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> WholeSteps:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        held, self._held = self._held, None
        if held is not None:  # the signal came during a step that failed
            signal.raise_signal(held[0])

    def step(self) -> _Step:
        """Return the context in which signals wait."""
        return _Step(self)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.inside:
            self._held = (number, frame)
            return
        handler = self._before[number]
        if handler == signal.SIG_IGN:
            return
        if not callable(handler):  # SIG_DFL would end the process before anything is saved
            raise SystemExit(128 + number)
        handler(number, frame)

    def release(self) -> None:
        """Handle the signal that was held back, if any."""
        held, self._held = self._held, None
        if held is not None:
            self._handle(*held)


class _Step:
    def __init__(self, whole: WholeSteps) -> None:
        self.whole = whole

    def __enter__(self) -> None:
        self.whole.inside = True

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:  # after an error the step is incomplete: `inside` stays set
            self.whole.inside = False
            self.whole.release()
