"""What comes of a shard while it is being made, for those who ask meanwhile."""

from schemas.errors import RowError
from schemas.job import Failures, InMaking, joined


class Making:
    """Of one shard. One thread writes, others read."""

    def __init__(self) -> None:
        self.images = 0
        self._unforeseen: dict[str, Failures] = {}

    def failed(self, problem: RowError) -> None:
        """Count a row with which the plan had found nothing wrong."""
        more = {problem.code: Failures(num_rows=1, message=problem.message)}
        self._unforeseen = joined([self._unforeseen, more])

    def told(self) -> InMaking:
        """All of it so far."""
        return InMaking(images=self.images, unforeseen=self._unforeseen)
