"""What holds for the whole suite."""

import signal

from hypothesis import HealthCheck, settings

# A shell that starts the suite in the background lets it ignore Ctrl-C, and so would every program that it starts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples every time, however slowly; `--hypothesis-profile=default` searches for others.
settings.register_profile("same", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("same")
