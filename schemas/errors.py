"""Every error that darkroom raises on purpose.

DarkroomError                  exit code 1: no worker can work, an output is broken, or our bug
├── SpecError                  2: the spec, the input or what they name is wrong; nothing has started
├── BudgetError                3: more rows failed than `errors.max_rate` allows
├── RefusedError               4: this output belongs to another job, or cannot be trusted
├── StorageError               5: storage refused a request, or stayed unreachable past its deadline
└── RowError                   one row is at fault: recorded in the output, and the job continues

Two errors of a worker are not DarkroomErrors, because they do not end the job. ReclaimedError: it was asked
to end and gives its shard back. DeviceError: its process can compute nothing more and must be replaced.

Exceptions take positional arguments only: one with required keyword arguments does not
survive pickling between a worker and the driver.
"""


class DarkroomError(Exception):
    """The root of the errors; `exit_code` is the exit code of the command line."""

    exit_code = 1


class SpecError(DarkroomError):
    """The spec or its input cannot be used; the message names the value and says how to fix it."""

    exit_code = 2


class BudgetError(DarkroomError):
    """The job ended with more failed rows than its error budget allows, or is clearly going to."""

    exit_code = 3


class RefusedError(DarkroomError):
    """The command refuses to continue, because it could damage an output."""

    exit_code = 4


class StorageError(DarkroomError):
    """Storage did not answer properly before the deadline."""

    exit_code = 5


class RowError(DarkroomError):
    """One row cannot be generated; `code` and `message` are recorded as its outcome."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


DEVICE_DEPENDENT = frozenset({"out_of_memory", "generation_error", "nonfinite_image"})
"""Codes of rows whose failure may be the machine's fault: another worker may be able to generate them."""

FOUND_BY_PLAN = frozenset(
    {
        *("missing_task", "unknown_task", "unknown_model", "unsupported_task", "missing_prompt"),
        *("missing_image", "missing_mask_image", "missing_depth_map", "duplicate_row_id", "invalid_text"),
        *("text_too_long", "corrupt_page", "invalid_parameter", "invalid_size", "invalid_scheduler"),
        *("disallowed_uri", "image_url", "image_as_text", "unknown_lora"),
        *("unknown_controlnet", "missing_control_image", "unknown_ip_adapter", "missing_ip_adapter_image"),
        *("invalid_prompt", "invalid_value"),
    }
)
"""Codes of rows whose values alone may show that they cannot be generated. For some of these codes there are
also reasons that only a worker finds."""


class DeviceError(Exception):
    """The process can no longer use its device (a CUDA fault), so it must end: as good as its death."""


class ReclaimedError(Exception):
    """The worker was asked to end (SIGTERM, as spot machines send it), so it gives its shard back."""
