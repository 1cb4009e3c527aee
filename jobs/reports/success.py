"""`_SUCCESS`: the sign that every part exists, and that the reports are those of just these parts."""

from actors.storage.output import Output
from schemas.output_layout import SUCCESS


def is_finished(output: Output) -> bool:
    """Whether `finish` has written `_SUCCESS`, and nothing has been generated since."""
    return output.has(SUCCESS)


def unfinish(output: Output) -> None:
    """Take `_SUCCESS` away; for use before the first part or report changes.

    A driver that is killed from then on leaves reports that nothing believes, and the next one writes them.
    """
    # It is looked for first: only who changes a finished job needs the right to delete.
    if is_finished(output):
        output.storage.delete(output.uri(SUCCESS))
