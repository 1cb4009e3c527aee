"""From opened rows to pixels: chains run step by step, and each step runs model by model, in cohorts."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import replace

import torch

from actors import machine_limits
from actors.engine.batching.merged_modules import CallCount
from actors.engine.calls.chains import decode_latents, step_results, withhold
from actors.engine.calls.decode_ahead import DecodeAhead
from actors.engine.calls.prompt_reader import PromptReader
from actors.engine.cohort_runner import CohortRunner
from actors.engine.cohorts import cut_into_cohorts, samples_of
from actors.engine.compiling.compiler import Backend, Compiler, num_compiler_events
from actors.engine.engine import DeviceUse, Generated, ModelSeconds
from actors.engine.pipelines.kernels import kernel_settings
from actors.engine.pipelines.loading import LoadOptions
from actors.engine.pipelines.model_cache import ModelCache
from actors.engine.quirks.library_messages import hide_library_messages
from actors.engine.quirks.torch_errors import device_errors
from actors.engine.samples import Sample
from actors.images.encoding import Pixels
from actors.rows.opened_rows import OpenedRow
from schemas.job import Job
from schemas.spec.job_spec import JobSpec
from schemas.systems.control_parameters import controls_of
from schemas.systems.image_prompts import image_prompt_of

COHORTS_A_BATCH = 4
"""How many cohorts fit in a batch, at least: pieces of a quarter always fill it to three quarters."""


class DiffusersEngine:
    """Generates the images of shards with diffusers, one shard after the other."""

    def __init__(self, models: ModelCache, spec: JobSpec, backend: Backend = "inductor") -> None:
        """`backend`: what compiles the graphs with `batching.compile`."""
        self._models = models
        self._batching = spec.batching
        self._kernels = spec.kernels
        self._compiler = Compiler(spec.batching.decoded_images, backend) if spec.batching.compile else None
        self._flagged = spec.safety.flagged
        self.counts: dict[str, CallCount] = {}
        """The counts of each merge point so far, over all models."""
        self._seconds: dict[str, ModelSeconds] = {}
        """By model, how long it was at work, without what its cache counts as loading."""
        self._runner: CohortRunner | None = None
        self._prompts = PromptReader(
            models, chunk=spec.long_prompts == "chunk", weighted=spec.prompt_weights == "compel"
        )

    @property
    def num_loads(self) -> int:
        """How many checkpoints have been loaded so far."""
        return self._models.num_loads

    @property
    def models_loaded(self) -> tuple[str, ...]:
        """The names of the models in memory."""
        return self._models.names

    @property
    def heartbeats(self) -> int:
        """The module calls so far, and the signs that a model is being loaded or compiled."""
        calls: int = sum(count.batches for _, count in self._counts_so_far())
        return calls + self._models.signs.count + num_compiler_events()

    @property
    def phase(self) -> str:
        """`loading MODEL`, or the stage of the module that runs; empty while nothing is generated."""
        runner = self._runner
        return self._models.signs.phase or (runner.phase if runner else "")

    @property
    def num_steps(self) -> int:
        """How many denoising steps of single images were run so far; `exact` calls are not counted."""
        return sum(count.images for name, count in self._counts_so_far() if name == "unet")

    def _counts_so_far(self) -> list[tuple[str, CallCount]]:
        """(merge point, count), with those of the runner that is at work."""
        # A runner's counts are added to the engine's at its end: for a moment they count twice or not at all.
        runner = self._runner
        return [*self.counts.items(), *(runner.counts.items() if runner else ())]

    @property
    def use(self) -> DeviceUse:
        """The device, and what it has done so far. The thread that generates asks."""
        loading = self._models.load_seconds
        seconds = {name: each + ModelSeconds(loading=loading[name]) for name, each in self._seconds.items()}
        if self._models.device.type == "cuda":
            name = torch.cuda.get_device_properties(self._models.device).name
            return DeviceUse(name=name, peak_bytes=torch.cuda.max_memory_allocated(), seconds=seconds)
        return DeviceUse(name=machine_limits.cpu_name(), num_cpus=torch.get_num_threads(), seconds=seconds)

    def generate(self, rows: Sequence[OpenedRow], decoders: Executor) -> Iterator[Generated]:
        """Yield the result of every sample of the rows; DeviceError if the device can compute nothing more.

        The first steps of all chains run first, then the second steps, and so on.
        """
        with device_errors():
            yield from self._run_chains(samples_of(rows), decoders)

    def _run_chains(self, waiting: Sequence[Sample], decoders: Executor) -> Iterator[Generated]:
        while waiting:
            following: list[Sample] = []
            for generated in self._run_step(waiting, decoders):
                if self._is_last(generated):
                    yield withhold(generated, self._flagged) if generated.nsfw else generated
                else:
                    following.append(self._next(generated))
            waiting = following

    def _is_last(self, generated: Generated) -> bool:
        """Whether the row's chain ends with this result.

        A flagged image ends it only if nothing of the image is stored. A black image needs the other steps,
        because it has the size of the last step's result.
        """
        dropped = generated.nsfw and self._flagged == "drop"
        return bool(generated.sample.following is None or generated.problem or dropped)

    def _run_step(self, samples: Sequence[Sample], decoders: Executor) -> Iterator[Generated]:
        """Run one step of each sample, model by model."""
        by_model: dict[str, list[Sample]] = {}
        for sample in self._prompts.read(samples):
            by_model.setdefault(sample.route.model, []).append(sample)
        for name, group in by_model.items():
            nets = {each.controlnet for sample in group for each in controls_of(sample.parameters)}
            prompts = (image_prompt_of(sample.parameters) for sample in group)
            model = self._models.get(name, nets, {prompt.ip_adapter for prompt in prompts if prompt})
            exact = self._batching.exact or model.needs_plain_calls
            largest = 1 if exact else max(1, self._batching.max_batch_rows // COHORTS_A_BATCH)
            ahead = DecodeAhead(cut_into_cohorts(group, largest), decoders)
            compiler = None if exact else self._compiler
            runner = CohortRunner(model, ahead, self._batching, exact=exact, compiler=compiler)
            self._runner, begun = runner, time.monotonic()
            with kernel_settings(model.device, self._kernels):
                yield from runner.run()
            self._runner = None
            self._count_seconds(name, runner, begun)
            for module, count in runner.counts.items():
                self.counts[module] = self.counts.get(module, CallCount()) + count

    def _count_seconds(self, model: str, runner: CohortRunner, begun: float) -> None:
        """Count the time of a runner that has ended. Until a model's first module runs, it is loaded."""
        is_new = model not in self._seconds
        first_at = (is_new and runner.seconds.first_at) or begun
        images = runner.seconds.total()
        # The stages overlap with nothing but the host's work, so what they leave is the denoiser's.
        steps = max(0.0, time.monotonic() - first_at - images)
        seconds = ModelSeconds(loading=first_at - begun, steps=steps, images=images)
        self._seconds[model] = self._seconds.get(model, ModelSeconds()) + seconds

    def _next(self, generated: Generated) -> Sample:
        """The sample at its next step, with the results of this one."""
        sample = generated.sample
        step_images = sample.step_images
        if sample.opened.route.keep_steps:
            step_images += (self._pixels(generated),)
        return replace(
            sample,
            step=sample.step + 1,
            previous_results=step_results(generated),
            step_images=step_images,
            nsfw=generated.nsfw,
        )

    def _pixels(self, generated: Generated) -> Pixels:
        """The step's image; if the step gave latents, they are decoded only to be stored."""
        if generated.pixels is not None:
            return generated.pixels
        pipeline = self._models.get(generated.sample.route.model).pipeline(generated.sample.system, None)
        return decode_latents(pipeline, generated.latents)


def make_engine(job: Job, num_cpus: int) -> DiffusersEngine:
    """The engine of one worker process: on the GPU that Ray gave the process, or else on `num_cpus` CPUs."""
    hide_library_messages()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # Ray sets OMP_NUM_THREADS=1 in actors, and more threads than cores are ten times slower.
    torch.set_num_threads(num_cpus)
    capacity = _capacity_bytes(job, device, num_cpus)
    options = LoadOptions.of(job.spec, device, job.embeddings)
    models = ModelCache(job.checkpoints, options, capacity, job.loras, job.controlnets, job.ip_adapters)
    return DiffusersEngine(models, job.spec)


def _capacity_bytes(job: Job, device: torch.device, num_cpus: int) -> int:
    """The most bytes of weights in memory; the rest of the memory is for activations."""
    model_cache_gb = job.spec.workers.model_cache_gb
    if model_cache_gb != "auto":
        return int(model_cache_gb * 1e9)
    if device.type == "cuda":
        return int(0.8 * _gpu_share(job) * torch.cuda.get_device_properties(device).total_memory)
    workers_per_machine = max(1, machine_limits.num_cpus() // num_cpus)
    return machine_limits.memory_bytes() // 2 // workers_per_machine


def _gpu_share(job: Job) -> float:
    """The share of its GPU that a worker has: other workers use the rest."""
    num_gpus = job.spec.workers.num_gpus
    return 1.0 if num_gpus == "auto" else num_gpus or 1.0
