"""Shards are given to workers until every one has an outcome."""

import os

from rich.console import Console

from jobs.dispatch.budget import Budget
from jobs.dispatch.cluster import connected, lay_out
from jobs.dispatch.dispatcher import Dispatcher
from jobs.dispatch.pool import WorkerPool
from jobs.dispatch.progress import display
from jobs.output.lease import Lease
from jobs.output.tally import Tally
from jobs.planning.plan import Plan


def make_shards(
    plan: Plan,
    dispatcher: Dispatcher,
    tally: Tally,
    lease: Lease,
    console: Console,
    engine: str,
    budget: Budget | None = None,
) -> None:
    """All of the dispatcher's shards, on the Ray there is or on one that is started."""
    place = os.environ.get("RAY_ADDRESS")
    console.print(f"joining the Ray at {place}" if place else "starting Ray", highlight=False)
    with connected():
        layout = lay_out(plan.job.spec.workers, dispatcher.num_waiting)
        console.print(layout.describe(), highlight=False)
        with display(console) as shown, WorkerPool(plan.job, layout, engine=engine) as pool:
            shown.show(tally)
            for tick in pool.run(dispatcher):
                if tick.report:
                    tally.add(tick.report)
                tally.tick(sum(made.images for made in tick.unfinished), tick.num_workers)
                shown.show(tally)
                lease.renew(tally)
                if budget:
                    budget.watch(tick)
