"""What reading YAML that somebody else wrote can raise: beside PyYAML's own errors those of its constructors.

`!!int ''`, `!!bool x`, `!!timestamp x`, `2024-13-45` and `!!map [a]` each raise another of Python's.
"""

from __future__ import annotations

import yaml

YAML_FAULTS = (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)
