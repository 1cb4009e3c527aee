"""Facts about the command line: what it says to a person who made a mistake, and what it returns."""

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from rich.console import Console

from actors.parts.part import LIBRARIES
from jobs.__main__ import COMMANDS, main
from jobs.output.figures import RunFigures, Totals
from jobs.reports.run_result import RunResult, print_result
from models.demo_cache import KINDS
from schemas import __version__
from tests.support.checkpoints import paper_checkpoint
from tests.support.running import ROOT, darkroom_here

Spec = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


class Desk:
    """A folder with a good spec and its input, and the program at hand."""

    def __init__(
        self, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.folder = folder
        self._capsys = capsys
        self._monkeypatch = monkeypatch
        self.checkpoint = paper_checkpoint(folder / "sd")
        self.write_rows({"row_id": ["a", "b"], "prompt": ["a fox", "an owl"]})
        self.spec: Spec = {
            "version": 1,
            "name": "job",
            "input": {"path": str(self.rows)},
            "models": {"sd": {"checkpoint": str(self.checkpoint)}},
            "routes": {"text2img": {"model": "sd"}},
            "output": {"path": str(self.output)},
        }

    @property
    def rows(self) -> Path:
        """The input."""
        return self.folder / "rows.parquet"

    @property
    def output(self) -> Path:
        """Where parts would go."""
        return self.folder / "out"

    def write_rows(self, columns: dict[str, Any]) -> None:
        """Replace the input."""
        pq.write_table(pa.table(columns), self.rows)

    def copy_rows(self, number: int) -> Path:
        """The input once more, under another name."""
        path = self.folder / f"rows-{number}.parquet"
        path.write_bytes(self.rows.read_bytes())
        return path

    def ask(self, command: str, *arguments: str) -> Ended:
        """Run `darkroom COMMAND job.yaml ARGUMENTS` in this process."""
        path = self.folder / "job.yaml"
        path.write_text(yaml.safe_dump(self.spec, sort_keys=False))
        return self.call(command, str(path), *arguments)

    def call(self, *arguments: str) -> Ended:
        """Run `darkroom ARGUMENTS` in this process."""
        self._monkeypatch.setattr(sys, "argv", ["darkroom", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        said = self._capsys.readouterr()
        return Ended(code=int(ended.value.code or 0), out=said.out, err=said.err)


@pytest.fixture
def desk(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Desk:
    return Desk(tmp_path, capsys, monkeypatch)


def test_a_good_spec_is_planned(desk: Desk) -> None:
    """The plan shows models, routes, shards and size, and nothing is written."""
    ended = desk.ask("plan")

    assert (ended.code, ended.err) == (0, "")
    assert "sd (StableDiffusionPipeline), 512x512" in ended.out
    assert "2 rows in 1 file become 1 part of up to 256 rows (1 model)" in ended.out
    assert not desk.output.exists()


def test_a_recognised_column_is_printed(desk: Desk) -> None:
    """A column that went by a foreign name is never used silently."""
    desk.write_rows({"Caption": ["x"], "cfg": [5.0]})

    ended = desk.ask("plan")

    assert "column `Caption` is read as `prompt`" in ended.out
    assert "column `cfg` is read as `guidance_scale`" in ended.out


def test_a_plan_with_many_sizes_stays_readable(desk: Desk) -> None:
    """Rows may each ask for a size of their own; the commonest are listed and the others added up."""
    sizes = [64 + 8 * size for size in range(100)]
    desk.write_rows({"prompt": ["x"] * 101, "height": [*sizes, sizes[99]], "width": [*sizes, sizes[99]]})

    ended = desk.ask("plan")

    assert "856x856 │    2 │" in ended.out
    assert "70 more" in ended.out
    assert len(ended.out.splitlines()) < 60


def test_brackets_in_names_are_printed_as_they_are(desk: Desk) -> None:
    """Names and paths are data, not a markup of the terminal's."""
    desk.spec["models"]["[red]"] = dict(desk.spec["models"]["sd"])
    desk.spec["output"]["path"] = str(desk.folder / "[/bold]")

    ended = desk.ask("plan")

    assert ended.code == 0
    assert "[red]" in ended.out
    assert "[/bold]" in ended.out


Mistake = Callable[[Desk], None]


def unknown_key(desk: Desk) -> None:
    desk.spec["input"]["colums"] = {"prompt": "text"}


def wrong_type(desk: Desk) -> None:
    desk.spec["routes"]["text2img"]["num_inference_steps"] = "many"


def unknown_model(desk: Desk) -> None:
    desk.spec["routes"]["text2img"]["model"] = "sdd"


def missing_column(desk: Desk) -> None:
    desk.write_rows({"row_id": ["a"], "title": ["a fox"]})


def misspelt_column(desk: Desk) -> None:
    desk.spec["input"]["columns"] = {"prompt": "captoin"}
    desk.write_rows({"caption": ["a fox"]})


def column_of_a_useless_type(desk: Desk) -> None:
    desk.write_rows({"prompt": ["a fox"], "seed": ["one"]})


def empty_input(desk: Desk) -> None:
    desk.write_rows({"prompt": pa.array([], pa.string())})


def no_input(desk: Desk) -> None:
    desk.spec["input"]["path"] = str(desk.folder / "rosw.parquet")


def unreadable_file(desk: Desk) -> None:
    desk.rows.write_bytes(desk.rows.read_bytes()[:100])


def foreign_store(desk: Desk) -> None:
    desk.spec["input"]["path"] = "https://example.com/rows.parquet"


def output_of_an_unknown_user(desk: Desk) -> None:
    desk.spec["output"]["path"] = "~nobody-of-that-name/out"


def foreign_output(desk: Desk) -> None:
    desk.spec["output"]["path"] = "gs://bucket/out"


def output_inside_input(desk: Desk) -> None:
    desk.spec["input"]["path"] = str(desk.folder)


def task_the_model_cannot_do(desk: Desk) -> None:
    paper_checkpoint(desk.checkpoint, channels=9)


def no_checkpoint(desk: Desk) -> None:
    desk.spec["models"]["sd"]["checkpoint"] = "/no/such/checkpoint"


def no_repository(desk: Desk) -> None:
    desk.spec["models"]["sd"]["checkpoint"] = "nobody/nothing"


def no_safetensors(desk: Desk) -> None:
    unet = desk.checkpoint / "unet" / "diffusion_pytorch_model"
    unet.with_suffix(".safetensors").rename(unet.with_suffix(".bin"))


def half_copied_weights(desk: Desk) -> None:
    weights = desk.checkpoint / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])


def a_ckpt(desk: Desk) -> None:
    (desk.folder / "sd.ckpt").write_bytes(b"x")
    desk.spec["models"]["sd"]["checkpoint"] = str(desk.folder / "sd.ckpt")


def a_single_file(desk: Desk) -> None:
    (desk.folder / "merged").mkdir()
    (desk.folder / "merged" / "model.safetensors").write_bytes(b"x")
    desk.spec["models"]["sd"]["checkpoint"] = str(desk.folder / "merged")


def another_architecture(desk: Desk) -> None:
    (desk.checkpoint / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))


def damaged_checkpoint(desk: Desk) -> None:
    (desk.checkpoint / "unet" / "config.json").write_text("{}")


def unknown_demo_kind(desk: Desk) -> None:
    desk.spec["models"]["sd"]["checkpoint"] = "demo:sd3"


def all_rows_bad(desk: Desk) -> None:
    desk.write_rows({"row_id": ["a", "b"], "prompt": ["a fox", "an owl"], "height": [500, 512]})


def more_than_the_disk_holds(desk: Desk) -> None:
    """Petabytes."""
    num_rows = 1_000
    columns = {"height": 8192, "width": 8192, "num_images_per_prompt": 64, "prompt": "a fox"}
    desk.write_rows({name: [value] * num_rows for name, value in columns.items()})
    desk.spec["routes"]["text2img"]["num_inference_steps"] = 1
    desk.spec["input"]["max_pixels"] = 8192 * 8192
    desk.spec["input"]["path"] = [str(desk.copy_rows(i)) for i in range(50)]


def output_where_a_file_is(desk: Desk) -> None:
    (desk.folder / "file").write_bytes(b"x")
    desk.spec["output"]["path"] = str(desk.folder / "file" / "out")


def output_behind_a_link_to_nothing(desk: Desk) -> None:
    (desk.folder / "link").symlink_to("/no/such/place")
    desk.spec["output"]["path"] = str(desk.folder / "link")


def output_behind_a_link_to_itself(desk: Desk) -> None:
    (desk.folder / "loop").symlink_to("loop")
    desk.spec["output"]["path"] = str(desk.folder / "loop" / "out")


def output_that_is_a_pipe(desk: Desk) -> None:
    os.mkfifo(desk.folder / "pipe")
    desk.spec["output"]["path"] = str(desk.folder / "pipe")


def output_where_no_files_are_kept(desk: Desk) -> None:
    desk.spec["output"]["path"] = "/proc/out"


def a_checkpoint_of_no_possible_name(desk: Desk) -> None:
    desk.spec["models"]["sd"]["checkpoint"] = "a/" + "x" * 5_000


MISTAKES: list[tuple[Mistake, str]] = [
    (unknown_key, "input.colums: unknown key (did you mean `columns`?)"),
    (wrong_type, 'routes.text2img.num_inference_steps: must be a whole number, not "many"'),
    (unknown_model, "`sdd` is not a model (did you mean `sd`?)"),
    (
        missing_column,
        "the input has no column `prompt`; it has row_id, title. Name the one to use with input.columns",
    ),
    (misspelt_column, "the input has no column `captoin` (did you mean `caption`?)"),
    (column_of_a_useless_type, "column `seed` is string, but the field `seed` needs whole numbers"),
    (empty_input, "input.path: no rows in"),
    (no_input, "input.path: there is no file with rows at "),
    (unreadable_file, "rows.parquet is not a readable Parquet file"),
    (foreign_store, "input.path: 'https://example.com/rows.parquet': https:// is not supported; use s3://"),
    (
        foreign_output,
        "'gs://bucket/out': gs:// is not supported; use s3://, file:/// or a local path",
    ),
    (
        output_of_an_unknown_user,
        "the home folder of ~nobody-of-that-name is not known here; write it out, or ./~n",
    ),
    (output_inside_input, "so the job would read its own parts; choose a folder beside the input"),
    (
        task_the_model_cannot_do,
        "model `sd` (sd-inpaint) does inpaint, not text2img; no model of this job can",
    ),
    (no_checkpoint, "models.sd.checkpoint: the folder /no/such/checkpoint does not exist"),
    (no_repository, "models.sd.checkpoint: nobody/nothing is neither a folder here nor a"),
    (no_safetensors, "has no .safetensors in unet; weights of other kinds are not read"),
    (
        no_safetensors,
        "or, if you trust it here, set DARKROOM_ALLOW_PICKLES=1 for the driver and all workers",
    ),
    (half_copied_weights, "vae/diffusion_pytorch_model.safetensors is damaged, half copied, or a Git LFS"),
    (a_ckpt, "sd.ckpt is a pickle, which can run code, and is not read. Name the same checkpoint's"),
    (
        a_single_file,
        "merged has no readable model_index.json; it must be a diffusers folder as `save_pretrained`",
    ),
    (another_architecture, "is a FluxPipeline; darkroom runs StableDiffusionPipeline (4 channels), "),
    (
        damaged_checkpoint,
        "is damaged: sample_size, in_channels, blocks or layers_per_block of its UNet or VAE, its max_",
    ),
    (
        unknown_demo_kind,
        "models.sd.checkpoint: unknown kind of demo checkpoint 'sd3'; choose one of sd, sd-safety",
    ),
    (more_than_the_disk_holds, "out will need about 322.1 TB, and its disk has"),
    (output_where_a_file_is, "not a folder; move it away or name another place"),
    (output_behind_a_link_to_nothing, "not a folder; move it away or name another place"),
    (output_behind_a_link_to_itself, "not a folder; move it away or name another place"),
    (output_that_is_a_pipe, "not a folder; move it away or name another place"),
    (
        output_where_no_files_are_kept,
        "/proc/out is on a file system without a size, such as /proc; choose another",
    ),
    (a_checkpoint_of_no_possible_name, "xxx cannot be a folder: File name too long"),
    (all_rows_bad, "rows.parquet row 0 (a): invalid_size: height is 500, not a multiple of 8; 496 would do"),
]


@pytest.mark.parametrize("command", ["plan", "run"])
@pytest.mark.parametrize(("mistake", "says"), MISTAKES, ids=[mistake.__name__ for mistake, _ in MISTAKES])
def test_a_mistake_ends_with_code_2_and_the_way_out(
    desk: Desk, command: str, mistake: Mistake, says: str
) -> None:
    """Nothing was started and nothing written; the message names the value and what to do."""
    mistake(desk)

    ended = desk.ask(command)

    assert ended.code == 2
    assert ended.err.startswith("darkroom: ")
    # `plan` lists bad rows where it shows the plan.
    assert (ended.err + ended.out).count(says) == 1
    assert "Traceback" not in ended.err
    assert not desk.output.exists()


def test_a_row_cannot_command_the_terminal(desk: Desk) -> None:
    """Its id and values are shown with their control characters written out."""
    desk.write_rows({"row_id": ["\x1b[2J\u202ea"], "prompt": ["a fox"], "task": ["\x1b]0;title\x07"]})

    ended = desk.ask("plan")

    assert ended.code == 2
    assert "row 0 (\\x1b[2J\\u202ea)" in ended.out
    assert not set("\x1b\x07\u202e") & set(ended.out + ended.err)


@pytest.mark.parametrize("sign", ["\x1b", "\u202e"])
def test_a_spec_cannot_command_the_terminal(desk: Desk, sign: str) -> None:
    """Neither by what it says nor by what it is called."""
    good = desk.folder / f"{sign}.yaml"
    good.write_text(yaml.safe_dump(desk.spec))
    desk.spec["routes"][f"{sign}]0;x"] = {"task": "text2img", "model": "sd"}

    named, planned = desk.call("validate", str(good)), desk.ask("plan")

    assert (named.code, planned.code) == (0, 2)
    assert sign not in named.out + planned.out + planned.err


def test_a_mistake_is_found_without_ray_or_torch(desk: Desk) -> None:
    """`run` refuses a bad input before it starts anything heavy: no Ray, no model."""
    missing_column(desk)
    desk.ask("validate")
    code = (
        "import sys; from jobs.__main__ import main; sys.argv = ['darkroom', 'run', sys.argv[1]]\n"
        "try: main()\n"
        "finally:\n"
        "    import ray; assert not ray.is_initialized() and 'torch' not in sys.modules"
    )

    done = subprocess.run(
        [sys.executable, "-c", code, str(desk.folder / "job.yaml")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("darkroom: the input has no column `prompt`")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("plan", "no.yaml"), "darkroom: no.yaml: cannot be read: No such file or directory"),
        (("plan",), "Missing argument 'SPEC'"),
        (("plna", "x"), "No such command 'plna'"),
        (("plan", "x", "--sett", "a=1"), "No such option: --sett"),
        (("status", "/no/such/output"), "/no/such/output is not a darkroom output"),
        (("verify", "ftp://x/y"), "ftp:// is not supported"),
        (("report", "/no/such/output"), "/no/such/output is not a darkroom output"),
        (
            ("schema", "/no/such/folder/schema.json"),
            "/no/such/folder/schema.json: cannot be written: No such file",
        ),
    ],
)
def test_a_mistaken_command_ends_with_code_2(desk: Desk, arguments: tuple[str, ...], says: str) -> None:
    """Misspelt commands, files and folders are named."""
    ended = desk.call(*arguments)

    assert ended.code == 2
    assert says in ended.err


@pytest.mark.parametrize(
    ("rows", "images", "says"),
    [
        (0, 0, "nothing to do; total: 0 rows ok"),
        (3, 0, "generated 0 images in 5 s; total: 0 rows ok"),
        (3, 2, "generated 2 images in 5 s (2.5 s/image); total: 0 rows ok"),
    ],
)
def test_a_run_tells_what_it_has_made(rows: int, images: int, says: str) -> None:
    """A run whose rows all failed has done something."""
    printed = io.StringIO()
    run = RunFigures(rows=rows, images=images, working_seconds=5.0, images_per_second=images / 5)
    result = RunResult(output="out", totals=Totals(), run=run)

    print_result(result, Console(file=printed), "job.yaml")

    assert printed.getvalue().startswith(says)


def test_set_changes_the_plan(desk: Desk) -> None:
    """`--set` may be given several times and reaches any key."""
    ended = desk.ask("plan", "--set", "batching.shard_rows=1", "--set", "output.format=webp")

    assert "2 rows in 1 file become 2 parts of up to 1 row" in ended.out
    assert "of webp in" in ended.out


@pytest.mark.parametrize(
    ("arguments", "num_named"), [((), 20), (("--bad-rows", "2"), 2), (("--bad-rows", "99"), 25)]
)
def test_a_plan_names_as_many_bad_rows_as_it_is_asked_for(
    desk: Desk, arguments: tuple[str, ...], num_named: int
) -> None:
    """Of each kind of mistake 20 unless more or fewer are wanted, from whichever files."""
    desk.write_rows({"prompt": ["a fox"] * 5, "height": [500] * 5})
    desk.spec["input"]["path"] = [str(desk.copy_rows(i)) for i in range(5)]

    ended = desk.ask("plan", *arguments)

    assert ended.out.count(": invalid_size: height is 500") == num_named
    assert ("--bad-rows N lists more of them" in ended.out) == (num_named < 25)


def test_validate_reads_the_spec_alone(desk: Desk) -> None:
    """Neither input nor checkpoint need to be there."""
    desk.spec["input"]["path"] = "s3://nowhere/rows"
    no_checkpoint(desk)

    ended = desk.ask("validate")

    assert ended.code == 0
    assert "is a valid spec: models sd; routes text2img" in ended.out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(desk: Desk, command: str) -> None:
    """`--help` says what the command does and what it takes."""
    ended = desk.call(command, "--help")

    assert ended.code == 0
    assert f"Usage: darkroom {command}" in ended.out
    assert len(ended.out.splitlines()) > 5


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_an_example_of_its_own_arguments(desk: Desk, command: str) -> None:
    """The last lines of its description; the examples that need no job run as they are printed."""
    text = " ".join(desk.call(command, "--help").out.split())

    example = re.search(rf"Example: (?:echo .* && )?darkroom ({command}\b.*?) (?:Arguments|Options):", text)
    assert example
    if command in ("validate", "schema", "init", "demo-model"):
        (desk.folder / "prompts.txt").write_text("a big red circle\n")
        paths = {name: ROOT / name for name in example[1].split() if (ROOT / name).is_file()}
        ended = darkroom_here(*[paths.get(name, name) for name in example[1].split()], cwd=desk.folder)
        assert ended.code == 0, ended.err


def test_help_lists_commands_and_exit_codes(desk: Desk) -> None:
    """The first thing a new user types."""
    ended = desk.call("--help")

    assert all(command in ended.out for command in COMMANDS)
    assert "Exit codes: 0 done" in ended.out


def test_the_version_names_what_decides_the_images(desk: Desk) -> None:
    """darkroom's own version, and those of the libraries that a part's footer names."""
    ended = desk.call("--version")

    assert ended.code == 0
    assert ended.out.startswith(f"darkroom {__version__} (")
    assert all(f"{name} {version(name)}" in ended.out for name in LIBRARIES)


def test_the_schema_is_printed_or_written(desk: Desk) -> None:
    """Editors want a file; a person may look at it first."""
    path = desk.folder / "schema.json"

    printed = desk.call("schema")
    written = desk.call("schema", str(path))

    assert (printed.code, written.code) == (0, 0)
    assert printed.out == path.read_text()


def test_a_demo_model_is_built_where_nothing_is(desk: Desk) -> None:
    """`demo-model` makes the folders on the way, and never writes where something is already."""
    folder = desk.folder / "models" / "demo"

    built = desk.call("demo-model", str(folder))
    again = desk.call("demo-model", str(folder))

    assert built.code == 0, built.err
    assert "its images are noise by design" in built.out
    assert (folder / "model_index.json").is_file()
    assert again.code == 2
    assert "already exists; choose a new folder for the demo checkpoint" in again.err
    assert "Traceback" not in again.err


def test_an_unknown_kind_of_demo_model_is_answered_with_those_there_are(desk: Desk) -> None:
    """The kinds are listed, and nothing is built."""
    ended = desk.call("demo-model", str(desk.folder / "new"), "--kind", "sd3")

    assert (ended.code, ended.err) == (
        2,
        f"darkroom: unknown kind of demo checkpoint 'sd3'; choose one of {', '.join(KINDS)}\n",
    )
    assert not (desk.folder / "new").exists()
