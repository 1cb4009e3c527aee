"""One job under all kinds of failures, for longer than a test suite may take.

See `python -m tests.support.simulation.soak --help`.

It exits with 0 if every row has one outcome at the end and `verify` accepts the output.
"""

import argparse
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from actors.storage.objects import Storage
from actors.storage.output import Output
from actors.storage.stores import open_storage
from jobs.output.lease import read_lease
from schemas.wording.amounts import counted
from tests.support.ray_nodes import RayNodes
from tests.support.running import Record, Started, start_with, text_rows, wait_until, write_spec
from tests.support.s3.fault_proxy import FaultProxy, serve_fault_proxy
from tests.support.s3.on_s3 import assert_whole_on_s3, env_of, upload
from tests.support.s3.s3_server import S3Server

RATE = 0.4
"""The share of requests that go wrong."""
MAX_LIFE_S = 4.0
"""The longest life of a driver after its start or its first part."""
LEASE_VALID_S = 60.0
AWAY_S = 12.0
"""How long the store is down."""
OUTPUT = "s3://out/soak"


def kill_drivers(
    start: Callable[[], Started], num: int, moments: random.Random, num_parts: Callable[[], int]
) -> int:
    """Start `num` drivers, one after the other, kill each with SIGKILL, and return how many were still alive.

    Drivers are killed alternately at a random moment after their first part and after their start.
    """
    num_alive = 0
    for i in range(num):
        before = num_parts()
        with start() as run:
            if i % 2 == 0:
                wait_until(lambda run=run, before=before: not run.is_alive or num_parts() > before)
            time.sleep(moments.uniform(0, MAX_LIFE_S))  # the random moment is the purpose
            num_alive += run.is_alive
        log(f"driver {i + 1} of {num} killed, parts {before} to {num_parts()}")
    return num_alive


@dataclass(frozen=True, slots=True, kw_only=True)
class Soak:
    """One job, and the programs that it uses."""

    spec: Path
    env: dict[str, str]
    """The environment of its drivers."""
    node: Started
    """The Ray node of its workers."""
    server: S3Server
    store: Storage
    """The server's storage, without faults."""
    random: random.Random

    def driver(self, engine: str = "slow") -> Started:
        """A driver of the job: `with soak.driver() as run:`."""
        return start_with(engine, self.spec, **self.env)

    def num_parts(self) -> int:
        """How many parts are committed."""
        return len(list(self.store.list(f"{OUTPUT}/data")))

    def driver_pid(self) -> int:
        """The process id of the driver that has the lease; 0 if no driver has it."""
        lease = read_lease(Output(self.store, OUTPUT))
        return lease.pid if lease else 0

    def kill_workers(self, num: int) -> None:
        """Kill workers in turn with SIGKILL, as when memory runs out, and SIGTERM, as on spot machines."""
        with self.driver() as run:
            for i in range(num):
                number = (signal.SIGKILL, signal.SIGTERM)[i % 2]
                pids = run.wait_until(lambda: self.node.pids("ray::RayWorker"))
                time.sleep(self.random.uniform(0, 3))  # the random moment is the purpose
                send(self.random.choice(pids), number)
                log(f"a worker gets {number.name}; {counted(self.num_parts(), 'part')}")
            before = self.num_parts()
            run.wait_until(lambda: self.num_parts() > before)

    def suspend_driver(self) -> None:
        """Suspend a driver until its lease is void and another works; resumed, it must end with code 4."""
        with self.driver() as suspended:
            before = self.num_parts()
            suspended.wait_until(lambda: self.num_parts() > before)
            suspended.signal(signal.SIGSTOP)
            time.sleep(LEASE_VALID_S + 1)  # until the lease is void
            with self.driver() as successor:
                successor.wait_until(lambda: self.driver_pid() in successor.pids())
                log(f"another driver has the lease; {counted(self.num_parts(), 'part')}")
                # The workers of the suspended driver occupy the node's CPUs as long as it lives.
                suspended.signal(signal.SIGCONT)
                code = suspended.wait().code
                assert code == 4, f"the suspended driver ended with {code}"
                before = self.num_parts()
                successor.wait_until(lambda: self.num_parts() > before)
                num_parts = counted(self.num_parts(), "part")
                log(f"the suspended driver has stopped and the other one goes on; {num_parts}")

    def kill_store(self) -> None:
        """Stop the store for AWAY_S while a driver works."""
        with self.driver() as run:
            before = self.num_parts()
            run.wait_until(lambda: self.num_parts() > before)
            self.server.kill()
            time.sleep(AWAY_S)  # this pause is the purpose
            self.server.restart()
            before = self.num_parts()
            run.wait_until(lambda: self.num_parts() > before)
            log(f"the store was down; {counted(self.num_parts(), 'part')}")


@contextmanager
def start_soak(rows: list[Record], rate: float, seed: int, folder: Path) -> Iterator[tuple[Soak, FaultProxy]]:
    """Start all that the job needs on this machine, and yield the soak and its fault proxy."""
    with ExitStack() as stack:
        server = stack.enter_context(S3Server())
        os.environ |= env_of(server)
        store = open_storage(OUTPUT)
        proxy = stack.enter_context(serve_fault_proxy(server.env["AWS_ENDPOINT_URL"]))
        env = env_of(server) | {"AWS_ENDPOINT_URL": proxy.url}
        nodes = stack.enter_context(RayNodes(**env))
        node = nodes.add(num_cpus=2)
        uri = upload(store, "s3://inp/rows.parquet", rows, folder)
        spec = write_spec(folder / "job.yaml", uri, OUTPUT, batching={"shard_rows": 4})
        proxy.break_by_chance(rate, seed)
        yield (
            Soak(
                spec=spec,
                env=env | nodes.env,
                node=node,
                server=server,
                store=store,
                random=random.Random(seed),
            ),
            proxy,
        )


def main() -> None:
    """Run the soak of the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.simulation.soak", description=__doc__)
    parser.add_argument(
        "--rows", type=int, default=2000, help="rows of the job, which must outlast the faults (%(default)s)"
    )
    parser.add_argument(
        "--kills", type=int, default=20, help="drivers to kill, one after the other (%(default)s)"
    )
    parser.add_argument(
        "--rate", type=float, default=RATE, help="share of requests that go wrong (%(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the random moments and faults (%(default)s)"
    )
    arguments = parser.parse_args()
    rows = text_rows(arguments.rows)
    with (
        tempfile.TemporaryDirectory() as folder,
        start_soak(rows, arguments.rate, arguments.seed, Path(folder)) as (soak, proxy),
    ):
        num_alive = kill_drivers(soak.driver, arguments.kills, soak.random, soak.num_parts)
        soak.kill_workers(6)
        soak.suspend_driver()
        soak.kill_store()
        num_parts = counted(soak.num_parts(), "part")
        log(f"drivers killed at work: {num_alive}; {num_parts} before the last run")
        with soak.driver("quick") as run:
            finished = run.wait(timeout_s=600)
        log(finished.out)
        assert finished.code == 0, finished.err
        log(f"{proxy.injected.total()} of {len(proxy.requests)} requests went wrong: {dict(proxy.injected)}")
        assert_whole_on_s3(soak.store, OUTPUT, rows, Path(folder), env_of(soak.server))
        log(f"verified: {counted(len(rows), 'row')}, one outcome each")


def send(pid: int, number: int) -> None:
    """Send a signal to a process, which may have ended already."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        log(f"process {pid} had already ended")


def log(text: str) -> None:
    """Print a line with the time."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


if __name__ == "__main__":
    main()
