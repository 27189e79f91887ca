"""What holds for the whole suite."""

import signal
import subprocess
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# A shell that starts the suite in the background lets it ignore Ctrl-C, and so would every program that it starts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples every time, however slowly; `--hypothesis-profile=default` searches for others.
settings.register_profile("same", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("same")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(call: pytest.CallInfo[None]) -> Iterator[None]:
    """Where a test fails because a program that it ran did, what that said is shown."""
    outcome = yield
    error = call.excinfo.value if call.excinfo else None
    if isinstance(error, subprocess.CalledProcessError | subprocess.TimeoutExpired):
        said = error.stderr or b""
        text = said if isinstance(said, str) else said.decode(errors="replace")
        outcome.get_result().sections.append(("what the program said on stderr", text[-4000:]))
