"""Checkpoints of the Hub: downloaded once, no more than is needed, and shared as folders are."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import huggingface_hub
import pytest
import torch

from actors.checkpoints.component_files import LocalFile, components_with_weights, files_in
from actors.checkpoints.idle_revisions import refuse_idle_revisions
from actors.checkpoints.model_files import bytes_shared
from actors.engine.diffusers_engine import make_engine
from actors.engine.pipelines.loaded_model import LoadedModel
from actors.engine.pipelines.loading import LoadOptions, on_this_machine
from actors.engine.pipelines.model_cache import ModelCache
from actors.storage.output import open_output
from jobs.output.job_record import claim
from jobs.output.resumption import plan_of, survey_of
from jobs.planning.plan import make_plan
from jobs.survey.survey import make_survey
from schemas.errors import RefusedError, SpecError, StorageError
from schemas.spec.job_spec import JobSpec, ModelSpec
from tests.support.checkpoints import demo, paper_checkpoint
from tests.support.fake_hub import commit_of, put_in_cache, serve_hub
from tests.support.in_process import job_spec, plan_for, read_output, worker_for
from tests.support.running import Started, darkroom_here, parts, text_rows, write_rows, write_spec
from tests.support.simulation.in_process_driver import InProcessDriver

CPU = torch.device("cpu")
NOBODY = "http://127.0.0.1:1"
"""An address that refuses."""


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """demo:sd with another UNet: text encoder and VAE are the same."""
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(demo("sd"), use_safetensors=True)
    with torch.no_grad():
        pipeline.unet.conv_out.weight.mul_(1.01)
    folder = tmp_path_factory.mktemp("tuned")
    pipeline.save_pretrained(folder)
    return folder


def size_of(folder: Path, components: Sequence[str]) -> int:
    """Bytes of the weights of some components."""
    return sum(file.stat().st_size for name in components for file in (folder / name).glob("*.safetensors"))


def test_repositories_and_folders_with_the_same_component_hold_it_once(hub_cache: Path, tuned: Path) -> None:
    """Two repositories and a folder: one VAE and one text encoder for all, and the plan says how much."""
    put_in_cache(hub_cache, "studio/base", demo("sd"))
    put_in_cache(hub_cache, "studio/tuned", tuned)
    specs = {
        "base": ModelSpec(checkpoint="studio/base"),
        "tuned": ModelSpec(checkpoint="studio/tuned", revision=commit_of(tuned)),
        "folder": ModelSpec(checkpoint=str(tuned)),
    }
    models = ModelCache(specs, LoadOptions(device=CPU), 10**9)
    base, other, folder = (models.get(name).components for name in specs)

    assert base["vae"] is other["vae"] is folder["vae"]
    assert base["text_encoder"] is other["text_encoder"] is folder["text_encoder"]
    assert base["unet"] is not other["unet"] is folder["unet"]
    twice = size_of(tuned, ["vae", "text_encoder"])
    assert bytes_shared(specs) == 2 * twice + size_of(tuned, ["unet"])


def test_a_file_in_the_hubs_cache_is_known_by_its_name(hub_cache: Path) -> None:
    """Gigabytes are not read to learn what the cache calls them, also where repositories share a store that
    calls them otherwise."""
    put_in_cache(hub_cache, "studio/base", demo("sd"))
    link = next(hub_cache.glob("*/snapshots/*/vae/*.safetensors"))
    blob, stored = link.resolve(), hub_cache / "blobs" / "ab" / ("ab" * 32)
    stored.parent.mkdir(parents=True)
    stored.write_bytes(b"not read")
    blob.unlink()
    blob.symlink_to(stored)

    known = LocalFile(link).sha256()

    assert known == LocalFile(demo("sd") / "vae" / link.name).sha256()


def test_workers_load_the_commit_that_was_planned(hub_cache: Path, tuned: Path, tmp_path: Path) -> None:
    """A repository that moves on between plan and work does not change the job's images."""
    put_in_cache(hub_cache, "studio/sd", tuned)
    rows = write_rows(tmp_path / "rows.parquet", text_rows(1))
    job = plan_for(job_spec(rows, tmp_path / "out", models={"sd": {"checkpoint": "studio/sd"}})).job
    put_in_cache(hub_cache, "studio/sd", demo("sd"))

    loaded = ModelCache(job.checkpoints, LoadOptions(device=CPU), 10**9).get("sd").components
    planned = LoadedModel("sd", ModelSpec(checkpoint=str(tuned)), LoadOptions(device=CPU)).components

    assert torch.equal(loaded["unet"].conv_out.weight, planned["unet"].conv_out.weight)


@pytest.mark.parametrize("revision", [None, "main"])
@pytest.mark.parametrize("names_commit", [False, True])
def test_a_job_goes_on_with_the_commit_that_it_began_with(
    hub_cache: Path, tmp_path: Path, revision: str | None, names_commit: bool
) -> None:
    """Where a branch is now does not count, and its user may name the commit to be sure."""
    first, second = (
        paper_checkpoint(tmp_path / name, sample_size=size) for name, size in (("a", 32), ("b", 64))
    )
    put_in_cache(hub_cache, "studio/sd", first)
    rows = write_rows(tmp_path / "rows.parquet", text_rows(1))

    def spec(revision: str | None) -> JobSpec:
        return job_spec(
            rows, tmp_path / "out", models={"sd": {"checkpoint": "studio/sd", "revision": revision}}
        )

    output = open_output(str(tmp_path / "out"))
    record = claim(output, *make_plan(survey_of(spec(revision), None)))
    put_in_cache(hub_cache, "studio/sd", second)
    present = spec(commit_of(first) if names_commit else revision)

    plan = plan_of(record, survey_of(present, record), output.path)

    assert plan.job.fingerprint == record.fingerprint
    assert plan.job.models == record.models
    assert plan.job.checkpoints["sd"].revision == commit_of(first)
    assert make_survey(spec(revision)).job.models["sd"].revision == commit_of(second)


@pytest.mark.parametrize("present", [{"checkpoint": "studio/other"}, {"revision": "other"}])
def test_another_repository_or_branch_is_another_job(
    hub_cache: Path, tmp_path: Path, present: dict[str, str]
) -> None:
    """The refusal says what differs, also where nobody published the recorded commit under that name."""
    folder, other = (paper_checkpoint(tmp_path / name) for name in ("a", "b"))
    put_in_cache(hub_cache, "studio/sd", folder)
    put_in_cache(hub_cache, "studio/other", other)
    (hub_cache / "models--studio--sd" / "refs" / "other").write_text(commit_of(folder))
    rows = write_rows(tmp_path / "rows.parquet", text_rows(1))
    output = open_output(str(tmp_path / "out"))
    models = {"sd": {"checkpoint": "studio/sd"}}
    record = claim(output, *make_plan(make_survey(job_spec(rows, tmp_path / "out", models=models))))
    changed = job_spec(rows, tmp_path / "out", models={"sd": models["sd"] | present})

    with pytest.raises(RefusedError, match=f"models.sd.{next(iter(present))}: was "):
        plan_of(record, survey_of(changed, record), output.path)


def test_a_job_is_resumed_after_its_branch_has_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use_hub: Callable[[str], None]
) -> None:
    """Also on a machine whose cache has neither commit, and as long as the Hub has the first."""
    first, second = (paper_checkpoint(tmp_path / name) for name in ("a", "b"))
    rows = write_rows(tmp_path / "rows.parquet", text_rows(2))
    driver = InProcessDriver(
        job_spec(
            rows,
            tmp_path / "out",
            models={"sd": {"checkpoint": "studio/sd"}},
            batching={"shard_rows": 1},
        )
    )
    commits = [first]

    def come_to_another_machine() -> None:
        parts(tmp_path / "out")[1].unlink()
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / f"hub-{len(commits)}"))

    with serve_hub({"studio/sd": commits}) as (address, _):
        use_hub(address)
        begun = driver.run()
        commits.append(second)
        come_to_another_machine()
        resumed = driver.run()
        commits.remove(first)
        come_to_another_machine()
        with pytest.raises(SpecError) as gone:
            driver.run()

    assert (begun.totals.ok, resumed.totals.ok) == (2, 2)
    assert "resuming: 1 of 2 parts already saved" in driver.printed
    assert f"models.sd.revision: studio/sd has no branch, tag or commit {commit_of(first)} on the Hub" in str(
        gone.value
    )


def test_a_relative_checkpoint_is_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers on a cluster work in other folders than the driver that joined it."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "sd").symlink_to(demo("sd"))
    rows = write_rows(tmp_path / "rows.parquet", text_rows(1))
    monkeypatch.chdir(tmp_path)
    plan = plan_for(job_spec(rows, tmp_path / "out", models={"sd": {"checkpoint": "./models/sd"}}))
    monkeypatch.chdir(tmp_path / "elsewhere")

    with worker_for(plan, make_engine(plan.job, torch.get_num_threads())) as worker:
        made = read_output(plan, [worker.run(shard) for shard in plan.shards()])

    assert [row["status"] for row in made.rows] == ["ok"]
    assert plan.job.identity()["spec"]["models"]["sd"]["checkpoint"] == "./models/sd"


def test_a_folder_that_a_worker_lacks_is_the_specs_fault() -> None:
    """The message names the folder and the machine, and is not about a repository of that name."""
    with pytest.raises(SpecError, match=r"the folder /no/such does not exist on .*every machine"):
        LoadedModel("sd", ModelSpec(checkpoint="/no/such"), LoadOptions(device=CPU))


def job_of_three(folder: Path, tuned: Path) -> Path:
    """A spec over two repositories and a folder."""
    models = {"base": "studio/base", "tuned": "studio/tuned", "folder": str(tuned)}
    return write_spec(
        folder / "job.yaml",
        write_rows(folder / "rows.parquet", text_rows(2)),
        folder / "out",
        models={name: {"checkpoint": checkpoint} for name, checkpoint in models.items()},
        routes={"text2img": {"model": "base"}},
    )


def test_a_plan_tells_what_repositories_share_before_any_is_downloaded(
    tmp_path: Path, tuned: Path, use_hub: Callable[[str], None]
) -> None:
    """The Hub knows the hashes of its files: no weights are fetched for it."""
    spec = job_of_three(tmp_path, tuned)
    shared = 2 * size_of(tuned, ["vae", "text_encoder"]) + size_of(tuned, ["unet"])

    with serve_hub({"studio/base": demo("sd"), "studio/tuned": tuned}) as (address, asked):
        use_hub(address)
        planned = darkroom_here("plan", spec)

    assert planned.code == 0, planned.err
    assert f"{shared / 1e6:.1f} MB of weights are the same in two checkpoints" in planned.out
    assert not [request for request in asked if request.endswith(".safetensors")]
    assert sum("blobs=" in request for request in asked) == 2


@pytest.mark.parametrize("offline", [True, False])
@pytest.mark.parametrize("weights", [True, False])
def test_a_plan_needs_no_hub(
    hub_cache: Path, tmp_path: Path, tuned: Path, use_hub: Callable[[str], None], weights: bool, offline: bool
) -> None:
    """Forbidden or out of reach: it says what downloaded repositories share, and of others nothing."""
    spec = job_of_three(tmp_path, tuned)
    put_in_cache(hub_cache, "studio/base", demo("sd"), weights=weights)
    put_in_cache(hub_cache, "studio/tuned", tuned, weights=weights)
    if not offline:
        use_hub(NOBODY)

    planned = darkroom_here("plan", spec)

    assert planned.code == 0, planned.err
    assert ("of weights are the same in two checkpoints" in planned.out) is weights


@pytest.mark.parametrize(
    ("suffix", "way_out"),
    [
        (".bin", "save it again with diffusers' `save_pretrained`"),
        (".fp16.safetensors", "set `variant: fp16`"),
    ],
)
def test_a_repository_without_safetensors_is_refused_by_the_plan(
    tmp_path: Path, tuned: Path, use_hub: Callable[[str], None], suffix: str, way_out: str
) -> None:
    """Before anything is downloaded or started; a variant that has them is named."""
    published = tmp_path / "published"
    shutil.copytree(tuned, published)
    for weights in published.glob("*/*.safetensors"):
        weights.rename(weights.with_suffix(suffix))
    spec = job_of_three(tmp_path, tuned)

    with serve_hub({"studio/base": tuned, "studio/tuned": published}) as (address, _):
        use_hub(address)
        planned = darkroom_here("plan", spec)

    assert planned.code == 2
    assert (
        "models.tuned.checkpoint: studio/tuned has no .safetensors in text_encoder, unet, vae" in planned.err
    )
    assert way_out in planned.err


def test_a_worker_downloads_what_it_loads_and_no_more(
    tmp_path: Path, tuned: Path, use_hub: Callable[[str], None]
) -> None:
    """The variant where there is one, no pickles, no file that holds all, no checker that is off; and what
    is compared with other checkpoints is what was loaded."""
    published = tmp_path / "published"
    shutil.copytree(tuned, published)
    shutil.copytree(demo("sd-safety") / "safety_checker", published / "safety_checker")
    index = json.loads((published / "model_index.json").read_text())
    checker = {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}
    (published / "model_index.json").write_text(json.dumps(index | checker))
    vae = published / "vae" / "diffusion_pytorch_model.safetensors"
    shutil.copy(vae, vae.with_suffix(".fp16.safetensors"))
    for other in (
        vae.with_suffix(".bin"),
        vae.with_suffix(".ema.safetensors"),
        published / "all.safetensors",
    ):
        other.write_bytes(b"not needed")
    spec, options = (
        ModelSpec(checkpoint="studio/sd", variant="fp16"),
        LoadOptions(device=CPU, with_checker=False),
    )

    with serve_hub({"studio/sd": published}) as (address, asked):
        use_hub(address)
        LoadedModel("sd", spec, options)

    fetched = [request.partition("/resolve/")[2].partition("/")[2] for request in asked if "GET" in request]
    weights = {name for name in fetched if name.endswith((".safetensors", ".bin"))}
    assert weights == {
        "text_encoder/model.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
    }
    compared = components_with_weights(files_in(published), "fp16")
    assert [file for part in compared for file in part.weights if part.name != "safety_checker"] == [
        LocalFile(published / name) for name in sorted(weights)
    ]


LOAD = """
import torch
from actors.engine.pipelines.loading import LoadOptions, on_this_machine
from schemas.spec.job_spec import ModelSpec
print("ready", flush=True)
options = LoadOptions(device=torch.device("cpu"), deadline_s=120)
on_this_machine("sd", ModelSpec(checkpoint="studio/sd", revision="{revision}"), options)
"""


def test_workers_of_one_machine_outlast_the_hubs_trouble_and_download_each_file_once(
    tmp_path: Path, tuned: Path, use_hub: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    """At first they are refused in ways that pass, more often than the Hub's client tries again."""
    revision = commit_of(tuned)
    spec, options = (
        ModelSpec(checkpoint="studio/sd", revision=revision),
        LoadOptions(device=CPU, deadline_s=120),
    )

    with (
        serve_hub({"studio/sd": tuned}, lambda number: (503, 429)[number % 2] if number < 16 else 0) as (
            address,
            asked,
        ),
        Started("-c", LOAD.format(revision=revision), **hub_env(tmp_path, address)) as other,
    ):
        use_hub(address)
        other.wait_until(lambda: "ready" in other.out())
        on_this_machine("sd", spec, options)
        ended = other.wait()

    assert ended.code == 0, ended.err
    fetched = [request for request in asked if request.startswith("GET") and ".safetensors" in request]
    assert len(fetched) == len(set(fetched)) == 3
    assert "retry attempt=1" in ended.err + caplog.text


def test_a_hub_in_lasting_trouble_is_the_storages_fault_and_a_missing_repository_the_specs(
    tuned: Path, use_hub: Callable[[str], None]
) -> None:
    """The first is tried until the deadline, the second once."""
    spec = ModelSpec(checkpoint="studio/sd", revision=commit_of(tuned))

    with serve_hub({"studio/sd": tuned}, lambda number: 503) as (address, _):
        use_hub(address)
        with pytest.raises(
            StorageError, match=r"^studio/sd could not be downloaded within 3 s: Server error '503"
        ):
            on_this_machine("sd", spec, LoadOptions(device=CPU, deadline_s=3))
    with serve_hub({}) as (address, asked):
        use_hub(address)
        with pytest.raises(SpecError, match=r"^models\.sd: studio/sd cannot be downloaded"):
            on_this_machine("sd", spec, LoadOptions(device=CPU, deadline_s=60))

    assert len(asked) < 5


def test_a_plan_says_whether_the_hub_or_the_repository_is_at_fault(
    tmp_path: Path, tuned: Path, use_hub: Callable[[str], None]
) -> None:
    """A network that is down must not look like a repository in another format."""
    other = tmp_path / "other"
    shutil.copytree(tuned, other)
    (other / "model_index.json").unlink()
    rows = write_rows(tmp_path / "rows.parquet", text_rows(1))
    spec = write_spec(
        tmp_path / "job.yaml", rows, tmp_path / "out", models={"sd": {"checkpoint": "studio/sd"}}
    )

    use_hub(NOBODY)
    away = darkroom_here("plan", spec)
    with serve_hub({"studio/sd": other}) as (address, _):
        use_hub(address)
        no_checkpoint = darkroom_here("plan", spec)

    assert away.code == no_checkpoint.code == 2
    assert "studio/sd is not a folder here, and the Hub does not answer: it cannot be reached" in away.err
    assert "studio/sd is a repository of the Hub without model_index.json" in no_checkpoint.err


def hub_env(folder: Path, address: str) -> dict[str, str]:
    """The environment of a program that may use the Hub at this address, with a cache in this folder."""
    return {"HF_HUB_CACHE": str(folder / "hub"), "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": address}


@pytest.mark.parametrize(
    ("model", "key"),
    [
        ({"checkpoint": "demo:sd"}, "models.m"),
        ({"checkpoint": "/folders/sd"}, "models.m"),
        ({"checkpoint": "./sd.safetensors"}, "models.m"),
        ({"checkpoint": "s3://bucket/sd.safetensors"}, "models.m"),
        ({"components": {"vae": {"path": "~/vae"}}}, "models.m.components.vae"),
        ({"loras": {"chalk": {"path": "s3://bucket/loras", "weight_name": "x"}}}, "models.m.loras.chalk"),
        ({"loras": {"chalk": {"path": "file:///chalk.safetensors"}}}, "models.m.loras.chalk"),
        ({"controlnets": {"canny": {"path": "own/canny"}}}, "models.m.controlnets.canny"),
        ({"embeddings": {"<cat>": {"path": "s3://bucket/cat.safetensors"}}}, "models.m.embeddings.<cat>"),
        ({"ip_adapters": {"face": {"path": "own/canny"}}}, "models.m.ip_adapters.face"),
    ],
)
def test_a_revision_of_something_that_is_not_on_the_hub_is_refused(
    model: dict[str, Any], key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its key; it would be passed over. A path from here is one if there is something."""
    (tmp_path / "own" / "canny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    entry = next(iter(next(iter(model.values())).values())) if "checkpoint" not in model else model
    entry["revision"] = "main"

    with pytest.raises(SpecError) as raised:
        refuse_idle_revisions("m", ModelSpec.model_validate({"checkpoint": "studio/sd", **model}))

    assert str(raised.value).startswith(f"{key}.revision: ")
    assert "leave `revision` out" in str(raised.value)


def test_a_revision_of_an_image_encoder_that_is_not_on_the_hub_is_refused(tmp_path: Path) -> None:
    """The adapter is on the Hub, its encoder in a folder here."""
    encoder = {"path": str(tmp_path), "revision": "main"}
    adapters = {"face": {"path": "studio/face", "image_encoder": encoder}}

    with pytest.raises(SpecError, match=r"^models\.m\.ip_adapters\.face\.image_encoder\.revision: "):
        refuse_idle_revisions(
            "m", ModelSpec.model_validate({"checkpoint": "studio/sd", "ip_adapters": adapters})
        )


def test_a_revision_of_a_repository_is_not_judged() -> None:
    """Of a whole repository, or of a file of it."""
    of_hub = {"path": "studio/x", "revision": "main"}
    model = {
        "checkpoint": "studio/sd/sd.safetensors",
        "revision": "v1",
        **{section: {"one": of_hub} for section in ("components", "loras", "controlnets")},
    }

    refuse_idle_revisions("m", ModelSpec.model_validate(model))


def test_the_plan_refuses_such_a_revision(tmp_path: Path) -> None:
    """Before anything is read."""
    rows = write_rows(tmp_path / "rows.parquet", [{"prompt": "a fox"}])
    spec = job_spec(rows, tmp_path / "out", models={"sd": {"checkpoint": "demo:sd", "revision": "main"}})

    with pytest.raises(SpecError, match=r"^models\.sd\.revision: demo:sd is not a repository"):
        make_survey(spec)
