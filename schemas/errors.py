"""Every error that darkroom raises on purpose.

DarkroomError                  exit code 1: our bug
├── SpecError                  2: the spec or the input is wrong; nothing has started
├── BudgetError                3: more rows failed than `errors.max_rate` allows
├── RefusedError               4: this output belongs to another job, or cannot be trusted
├── StorageError               5: storage stayed unreachable past its deadline
└── RowError                   one row's fault: recorded in the output, the job goes on

ReclaimedError stands apart: a worker that was asked to go gives its shard back, and nothing is wrong.

Exceptions take positional arguments only: one with required keyword arguments does not
survive pickling between a worker and the driver.
"""


class DarkroomError(Exception):
    """The root; `exit_code` is what the command line returns for it."""

    exit_code = 1


class SpecError(DarkroomError):
    """The spec or its input cannot be used; the message names the value and the way out."""

    exit_code = 2


class BudgetError(DarkroomError):
    """The job finished with more failed rows than its error budget, or is plainly going to."""

    exit_code = 3


class RefusedError(DarkroomError):
    """Going on could damage somebody's output."""

    exit_code = 4


class StorageError(DarkroomError):
    """Storage did not answer properly until the deadline."""

    exit_code = 5


class RowError(DarkroomError):
    """One row cannot be made; `code` and the message become its recorded outcome."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class ReclaimedError(Exception):
    """The process was asked to end (SIGTERM, as spot machines send it): the shard is not made here."""
