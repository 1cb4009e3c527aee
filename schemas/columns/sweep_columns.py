"""The columns that say which values of a sweep a row has. The output keeps them without being told."""

from schemas.columns.input_schemas import InputSchemas
from schemas.spec.job_spec import JobSpec

SWEEP_PREFIX = "sweep_"


def sweep_column(name: str) -> str:
    """The column for a field, or a list of words, of which a sweep has several values."""
    return f"{SWEEP_PREFIX}{name}"


def is_sweep_column(name: str) -> bool:
    """Whether this column of an input or an output says which value of a sweep a row has."""
    return name.startswith(SWEEP_PREFIX)


def keeping_sweeps(spec: JobSpec, found: InputSchemas) -> JobSpec:
    """The spec, which also keeps the columns of a sweep that all files of the input have, with one type."""
    sweeps = [name for name in found.names if is_sweep_column(name) and found.agree_on(name)]
    keep = [*dict.fromkeys([*spec.input.keep, *sweeps])]
    return spec.model_copy(update={"input": spec.input.model_copy(update={"keep": keep})})
