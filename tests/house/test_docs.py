"""The documents keep up with the code."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from jobs.planning.prompt_signs import SIGNS
from models.demo_adapters import KINDS as ADAPTERS
from models.demo_cache import KINDS
from schemas.columns.fields import FIELD_KINDS
from schemas.errors import FOUND_BY_PLAN
from schemas.spec.job_spec import (
    BatchingSpec,
    ErrorsSpec,
    InputSpec,
    JobSpec,
    KernelsSpec,
    ModelSpec,
    OutputSpec,
    SafetySpec,
    WorkersSpec,
)
from schemas.spec.spec_file import load_spec
from schemas.systems.adapter_weights import NO_WEIGHTS
from schemas.systems.parameters import PARAMETERS, SLD_PRESETS, ParameterValue
from schemas.systems.sampler_names import ENDINGS, NAMES, Sampler
from schemas.systems.schedulers import Settings
from schemas.systems.system_table import SYSTEMS, TASKS, System
from schemas.wording.foreign_names import FOREIGN_NAMES
from tests.support.running import ROOT

SPEC_PAGE = (ROOT / "docs" / "job-spec.md").read_text()


@pytest.mark.parametrize(
    ("prefix", "model"),
    [
        ("input.", InputSpec),
        ("models.NAME.", ModelSpec),
        ("output.", OutputSpec),
        ("safety.", SafetySpec),
        ("batching.", BatchingSpec),
        ("kernels.", KernelsSpec),
        ("workers.", WorkersSpec),
        ("errors.", ErrorsSpec),
    ],
)
def test_every_key_of_a_spec_is_documented(prefix: str, model: type) -> None:
    """A key that the page lacks does not exist for its users; nor one that the code lacks."""
    documented = set(re.findall(rf"^\| `{re.escape(prefix)}(\w+)`", SPEC_PAGE, re.MULTILINE))

    assert documented == set(model.model_fields)


def test_the_codes_that_the_plan_finds_are_documented_as_such() -> None:
    """`darkroom retry` looks at rows with these codes, and at no others, before it generates them again."""
    found_by_plan = re.findall(r"^\| `(\w+)` \| plan(?:, worker)? \|", SPEC_PAGE, re.MULTILINE)

    assert {*found_by_plan} == FOUND_BY_PLAN


def test_every_default_is_documented_as_it_is() -> None:
    """The table's second column is the code's default."""
    sections = {
        "safety": SafetySpec(),
        "batching": BatchingSpec(),
        "kernels": KernelsSpec(),
        "workers": WorkersSpec(),
        "errors": ErrorsSpec(),
    }
    for name, section in sections.items():
        for key, value in section:
            shown = f"{value:g}" if isinstance(value, float) else json.dumps(value).strip('"')
            assert f"| `{name}.{key}` | `{shown}` |" in SPEC_PAGE


def test_every_column_and_foreign_name_is_documented() -> None:
    """Also every key at the top of the YAML."""
    for name in [
        *FIELD_KINDS,
        *FOREIGN_NAMES,
        *PARAMETERS,
        "version",
        "name",
        "default_route",
        "seed",
        "long_prompts",
        "prompt_weights",
    ]:
        assert f"`{name}`" in SPEC_PAGE, name
    assert {"version", "name", "input", "models", "routes", "default_route", "output", "seed"} <= set(
        JobSpec.model_fields
    )


def test_every_demo_checkpoint_and_adapter_is_documented() -> None:
    """`demo:` and one of these, or a kind that `demo-model` builds."""
    section = SPEC_PAGE[SPEC_PAGE.index("## Demo checkpoints") :]

    words = set(re.findall(r"`([\w-]+)`", section)) | set(re.findall(r"\"demo:([\w-]+)\"", section))
    assert {*KINDS, *ADAPTERS} <= words


def test_every_error_code_is_documented() -> None:
    """Each code in the source stands in the table of codes, and the other way round."""
    source = "\n".join(path.read_text() for path in (ROOT / "actors").rglob("*.py"))
    codes = set(re.findall(r"RowError\(\s*\"(\w+)\"", source))
    codes |= set(re.findall(r"_unroutable\(\s*\w*,?\s*\"?\w*\"?,?\s*\"(\w+)\"", source))
    table = SPEC_PAGE[SPEC_PAGE.index("| error_code |") :]
    documented = set(re.findall(r"`(\w+)`", table))

    assert codes - documented == set()


def parameter_rows() -> list[str]:
    """What docs/systems.md must say of parameters; families with the same ones share an entry."""
    families: dict[tuple[str, str], list[str]] = {}
    for system in SYSTEMS:
        shown = ", ".join(
            f"`{name}` {_shown(name, value, system)}" for name, value in system.defaults.items()
        )
        families.setdefault((system.task, shown), []).append(system.family)
    return [f"- `{task}` of {', '.join(names)}: {shown}." for (task, shown), names in families.items()]


def _shown(name: str, value: ParameterValue | None, system: System) -> str:
    if name in ("height", "width") and system.resizes_image:
        return "the image's"
    if value == NO_WEIGHTS:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "own" if name in ("height", "width", "scheduler") else "none"
    return str(list(value)) if isinstance(value, tuple) else f"{value:g}"


def test_every_system_is_documented_with_its_parameters() -> None:
    """Each task of each family, every parameter with its published default."""
    page = (ROOT / "docs" / "systems.md").read_text()
    unfolded = " ".join(page.split())

    assert [row for row in parameter_rows() if row not in unfolded] == []
    assert {task for task in TASKS if f"`{task}`" not in page[: page.index("## Parameters")]} == set()


def test_every_preset_of_safe_is_documented_with_its_numbers() -> None:
    """In the order of the table's head."""
    page = (ROOT / "docs" / "systems.md").read_text()

    head = "| " + " | ".join(f"`{name}`" for name in ("sld_preset", *SLD_PRESETS["medium"])) + " |"
    rows = [
        f"| `{preset}` | {' | '.join(f'{number:g}' for number in numbers.values())} |"
        for preset, numbers in SLD_PRESETS.items()
    ]
    assert "\n".join([head, "|---|---|---|---|---|---|", *rows]) in page


def sampler_rows() -> list[str]:
    """The table of samplers' names."""
    return [
        f"| {_quoted(names)} | `{sampler.scheduler}` |{_options(sampler.options)} |"
        for names, sampler in NAMES.items()
    ]


def ending_rows() -> list[str]:
    """The table of the endings that such a name may have."""
    return [f"| {_quoted(names)} |{_options(options)} |" for names, options in ENDINGS.items()]


def sign_rows() -> list[str]:
    """The list of signs that the plan looks for in prompts."""
    return [f"- `{sign}`: {meaning}" for sign, (_, meaning) in SIGNS.items()]


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _options(options: Settings) -> str:
    pairs = str(Sampler(scheduler="", options=options)).removeprefix(" with ")
    return f" `{{{pairs}}}`" if options else ""


@pytest.mark.parametrize(
    "rows", [sampler_rows(), ending_rows(), sign_rows()], ids=["names", "endings", "signs"]
)
def test_samplers_and_signs_of_other_tools_are_documented_row_by_row(rows: list[str]) -> None:
    """The page has every row of the code's table, and no other row."""
    block = next(block for block in SPEC_PAGE.split("\n\n") if rows[0] in block.splitlines())

    assert [
        line for line in block.splitlines() if not line.startswith(("| names", "| endings", "|---"))
    ] == rows


def test_the_readmes_job_is_a_valid_spec(tmp_path: Path) -> None:
    """A newcomer copies it."""
    readme = (ROOT / "README.md").read_text()
    found = re.search(r"```yaml\n(.*?)```", readme, re.DOTALL)
    assert found is not None
    spec = tmp_path / "job.yaml"
    spec.write_text(found[1])

    assert load_spec(spec).routes.keys() == {"text2img", "img2img"}
    assert len(found[1].splitlines()) <= 12


def test_links_in_documents_lead_somewhere() -> None:
    """Files that are named are there."""
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / ".github").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), (page.name, target)


MAP = (ROOT / "docs" / "architecture.md").read_text()


def test_every_folder_is_on_the_map() -> None:
    """With a sentence; and the map names no folder that is gone."""
    tree = MAP[MAP.index("```") : MAP.index("## Who may import whom")]
    folders = {
        path.parent.name
        for top in ("schemas", "models", "actors", "jobs", "demo")
        for path in (ROOT / top).rglob("__init__.py")
    }

    assert set(re.findall(r"^ *(\w+)/ +\S", tree, re.MULTILINE)) == folders | {"configs", "tests"}


def test_every_file_and_function_that_the_map_names_is_there() -> None:
    """A reader follows them one by one."""
    files = set(re.findall(r"`((?:schemas|actors|jobs|models|demo)/[\w/]+\.py)`", MAP))
    steps = re.findall(r"`([\w/]+\.py)`, `(\w+)`(?: and `(\w+)`)?", MAP)

    assert [file for file in files if not (ROOT / file).is_file()] == []
    assert len(steps) > 15
    for file, *functions in steps:
        source = (ROOT / file).read_text()
        assert [name for name in functions if name and f"def {name}(" not in source] == [], file
