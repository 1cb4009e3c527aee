"""pandas is not there, as on a machine where darkroom is installed without the tests' packages.

pyarrow 26 imports it for its first array if it can, which takes each process a fifth of a second.
"""

raise ImportError("programs under test run without pandas")
