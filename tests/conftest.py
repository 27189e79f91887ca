"""What holds for the whole suite."""

import signal

# A shell that starts the suite in the background lets it ignore Ctrl-C, and so would every program that it starts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
