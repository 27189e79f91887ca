"""What ends a program by a signal must end it wherever it lands, and say nothing but that.

Python raises KeyboardInterrupt, or the SystemExit of a handler of SIGTERM, in whatever the main thread does just then:

- in a callback from C, as the compiler's, or in a finalizer it cannot be raised: Python shows a traceback and forgets
  it, and the compiler fails for want of the callback's result;
- between a lock taken back and the block that holds it, as in `threading.Condition.wait`, the block's end raises a
  RuntimeError of its own over it.
"""

from __future__ import annotations

import _thread
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from localmoe.errors import LocalMoeError

Ending = KeyboardInterrupt | SystemExit


@contextmanager
def no_lost_signals() -> Iterator[None]:
    """Let every Ctrl-C in the block end in a KeyboardInterrupt, and every handled SIGTERM in its SystemExit.

    One that cannot be raised is sent again a moment later; a failure that comes first, or over it, is that ending too.
    To be used in the main thread.
    """
    again: list[threading.Timer] = []
    lost: list[Ending] = []

    def on_unraisable(args: Any) -> None:
        ending = args.exc_value or args.exc_type()
        if not isinstance(ending, Ending):
            sys.__unraisablehook__(args)
            return
        number = signal.SIGINT if isinstance(ending, KeyboardInterrupt) else signal.SIGTERM
        lost.append(ending)
        again.append(threading.Timer(0.05, _send_again, [number]))
        again[-1].daemon = True
        again[-1].start()

    before, sys.unraisablehook = sys.unraisablehook, on_unraisable
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        ending = error if isinstance(error, KeyboardInterrupt) else _raised_over(error) or (lost[0] if lost else None)
        if ending is None:
            raise
        sys.unraisablehook = lambda _: None  # objects of the compiler's that were cut off half made
        traceback.clear_frames(error.__traceback__)
        raise ending.with_traceback(None) from None
    finally:
        for timer in again:
            timer.cancel()
        sys.unraisablehook = before


def _send_again(number: signal.Signals) -> None:
    """Have the main thread handle a signal, also where it waits."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, number)
    else:
        _thread.interrupt_main(number)


def _raised_over(error: BaseException) -> Ending | None:
    """The ending that was on its way when `error`, which tells nothing to the user, was raised."""
    if isinstance(error, LocalMoeError | OSError | MemoryError):
        return None
    context = error.__context__
    while context is not None and not isinstance(context, Ending):
        context = context.__context__
    return context
