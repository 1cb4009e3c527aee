"""The loop of a run: shards are given to workers until every one has an outcome."""

import os
from dataclasses import dataclass

from rich.console import Console

from jobs.dispatch.dispatcher import Dispatcher
from jobs.fleet.budget import Budget
from jobs.fleet.cluster import connected
from jobs.fleet.layout import lay_out
from jobs.fleet.pool import WorkerPool
from jobs.fleet.progress import Display, display
from jobs.output.lease import Lease
from jobs.output.tally import Tally
from jobs.planning.plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class RunWatch:
    """What follows a run tick by tick."""

    tally: Tally
    """Counts the results; it is printed, and written with the lease."""
    lease: Lease
    """Ends the run where another driver has taken over the output."""
    budget: Budget | None = None
    """Ends a hopeless run; None where every row has failed before, as in a retry."""


def generate_shards(
    plan: Plan, dispatcher: Dispatcher, watch: RunWatch, console: Console, engine: str
) -> None:
    """Generate all of the dispatcher's shards, on the Ray cluster at RAY_ADDRESS or on one started here."""
    address = os.environ.get("RAY_ADDRESS")
    console.print(
        f"connecting to the Ray cluster at {address}" if address else "starting Ray", highlight=False
    )
    with connected():
        layout = lay_out(plan.job.spec.workers, dispatcher.num_waiting)
        console.print(f"devices: {layout.describe()}", highlight=False)
        try:
            with display(console) as shown, WorkerPool(plan.job, layout, engine=engine) as pool:
                _follow(pool, dispatcher, watch, shown)
        except KeyboardInterrupt:
            console.print(watch.tally.interrupted_line(), highlight=False)
            raise


def _follow(pool: WorkerPool, dispatcher: Dispatcher, watch: RunWatch, shown: Display) -> None:
    """Run the shards to the end; count and show what comes of them, tick by tick."""
    tally = watch.tally
    shown.show(tally)
    for tick in pool.run(dispatcher):
        for report in tick.reports:
            tally.add(report)
        num_images = sum(snapshot.images for snapshot in tick.unfinished)
        tally.tick(num_images, tick)
        shown.show(tally)
        watch.lease.update(tally)
        if watch.budget:
            watch.budget.watch(tick)
