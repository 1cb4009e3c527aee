"""One job through everything that fails, longer than a test suite may take.

See `python -m tests.support.simulation.soak --help`.

It exits with 0 when every row has one outcome in the end, and `verify` agrees.
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
from tests.support.ray_nodes import RayNodes
from tests.support.running import Record, Started, text_rows, wait_until, write_spec
from tests.support.s3.fault_proxy import FaultProxy, fault_proxy
from tests.support.s3.on_s3 import assert_whole_on_s3, env_of, upload
from tests.support.s3.s3_server import S3Server

RATE = 0.4
"""Share of requests that go wrong."""
LIVES_AT_MOST_S = 4.0
"""A driver, after its start or its first part."""
LEASE_VALID_S = 60.0
AWAY_S = 12.0
OUTPUT = "s3://out/soak"


def kill_drivers(
    start: Callable[[], Started], num: int, moments: random.Random, num_parts: Callable[[], int]
) -> int:
    """Start so many drivers, one after the other, and kill -9 each; how many were met alive.

    By turns at some moment after its start, and at some moment after its first part.
    """
    met = 0
    for i in range(num):
        before = num_parts()
        with start() as run:
            if i % 2 == 0:
                wait_until(lambda run=run, before=before: not run.is_alive or num_parts() > before)
            time.sleep(moments.uniform(0, LIVES_AT_MOST_S))  # the moment itself is what varies
            met += run.is_alive
        say(f"driver {i + 1} of {num} killed, parts {before} to {num_parts()}")
    return met


@dataclass(frozen=True, slots=True, kw_only=True)
class Soak:
    """One job, and where it runs."""

    spec: Path
    env: dict[str, str]
    """Of its drivers."""
    node: Started
    """The Ray node of its workers."""
    server: S3Server
    store: Storage
    """Without faults."""
    random: random.Random

    def driver(self, engine: str = "slow") -> Started:
        """`with soak.driver() as run:`"""
        return Started("-m", "tests.support.engines", engine, self.spec, **self.env)

    def num_parts(self) -> int:
        """How many are committed."""
        return len(list(self.store.list(f"{OUTPUT}/data")))

    def driver_pid(self) -> int:
        """Of the driver that has the lease."""
        lease = read_lease(Output(self.store, OUTPUT))
        return lease.pid if lease else 0

    def kill_workers(self, num: int) -> None:
        """SIGKILL, as when memory runs out, and SIGTERM, as on spot machines, in turn."""
        with self.driver() as run:
            for i in range(num):
                number = (signal.SIGKILL, signal.SIGTERM)[i % 2]
                pids = run.wait_until(lambda: self.node.pids("ray::WorkerProcess"))
                time.sleep(self.random.uniform(0, 3))  # the moment itself is what varies
                send(self.random.choice(pids), number)
                say(f"worker gets {number.name}, {self.num_parts()} parts")
            before = self.num_parts()
            run.wait_until(lambda: self.num_parts() > before)

    def suspend_driver(self) -> None:
        """SIGSTOP until its lease is void and another driver works; going on it must end with code 4."""
        with self.driver() as suspended:
            before = self.num_parts()
            suspended.wait_until(lambda: self.num_parts() > before)
            suspended.signal(signal.SIGSTOP)
            time.sleep(LEASE_VALID_S + 1)  # the lease's own clock is what is waited for
            with self.driver() as successor:
                successor.wait_until(lambda: self.driver_pid() in successor.pids())
                say(f"another driver has the lease, {self.num_parts()} parts")
                # The suspended one's workers hold the node's CPUs as long as it lives.
                suspended.signal(signal.SIGCONT)
                code = suspended.wait().code
                assert code == 4, f"the suspended driver ended with {code}"
                before = self.num_parts()
                successor.wait_until(lambda: self.num_parts() > before)
                say(f"the suspended driver has stopped and the other one goes on, {self.num_parts()} parts")

    def kill_store(self) -> None:
        """It is away for AWAY_S, under a driver that goes on."""
        with self.driver() as run:
            before = self.num_parts()
            run.wait_until(lambda: self.num_parts() > before)
            self.server.kill()
            time.sleep(AWAY_S)  # how long it is away is what is tested
            self.server.restart()
            before = self.num_parts()
            run.wait_until(lambda: self.num_parts() > before)
            say(f"store was away, {self.num_parts()} parts")


@contextmanager
def soak(rows: list[Record], rate: float, seed: int, folder: Path) -> Iterator[tuple[Soak, FaultProxy]]:
    """Everything that a job needs, on this machine."""
    with ExitStack() as stack:
        server = stack.enter_context(S3Server())
        os.environ |= env_of(server)
        store = open_storage(OUTPUT)
        proxy = stack.enter_context(fault_proxy(server.env["AWS_ENDPOINT_URL"]))
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
    """The program."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.simulation.soak", description=__doc__)
    parser.add_argument("--rows", type=int, default=2000, help="of the job; it must outlast the faults")
    parser.add_argument("--kills", type=int, default=20, help="drivers that are killed, one after the other")
    parser.add_argument("--rate", type=float, default=RATE, help="share of requests that go wrong")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and the faults")
    arguments = parser.parse_args()
    rows = text_rows(arguments.rows)
    with (
        tempfile.TemporaryDirectory() as folder,
        soak(rows, arguments.rate, arguments.seed, Path(folder)) as (job, proxy),
    ):
        met = kill_drivers(job.driver, arguments.kills, job.random, job.num_parts)
        job.kill_workers(6)
        job.suspend_driver()
        job.kill_store()
        say(f"{met} drivers were killed at work; {job.num_parts()} parts before the last run")
        with job.driver("quick") as run:
            finished = run.wait(timeout_s=600)
        say(finished.out)
        assert finished.code == 0, finished.err
        say(f"{proxy.injected.total()} of {len(proxy.requests)} requests went wrong: {dict(proxy.injected)}")
        assert_whole_on_s3(job.store, OUTPUT, rows, Path(folder), env_of(job.server))
        say(f"verified: {len(rows)} rows, each once")


def send(pid: int, number: int) -> None:
    """A signal, to one that may have ended already."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        say(f"{pid} had ended")


def say(text: str) -> None:
    """With the time."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


if __name__ == "__main__":
    main()
