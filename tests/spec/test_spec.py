"""Facts about a job's YAML: what is read, what is refused, and what the refusal says."""

import json
import math
import os
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.sweeps.expansion import read_expansion
from schemas.errors import SpecError
from schemas.spec.job_spec import JobSpec
from schemas.spec.spec_file import load_spec
from schemas.spec.spec_schema import spec_json_schema
from schemas.spec.strict_yaml import MAX_BYTES, MAX_DEPTH, MAX_VALUES, parse_yaml, read_yaml
from schemas.systems.parameters import PARAMETERS, Parameters
from tests.support.running import ROOT

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
TEXT = st.text(st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"]))
"""PyYAML leaves what JSON escapes as two surrogates in two pieces."""
KEY = TEXT.filter(lambda text: len(json.dumps(text)) <= 1000)
"""In YAML a key has 1,024 characters at most."""
GOOD = """\
version: 1
name: job
input:
  path: rows.parquet
models:
  sd: {checkpoint: "demo:sd"}
routes:
  text2img: {model: sd, num_inference_steps: 10}
  img2img: {model: sd}
output:
  path: out/job
"""
DAMAGE = [
    *"[]{}|>'\"#&*!@`%~\\\t\n\r\x85\ufeff\0",
    *("- ", "? ", ": ", "<<", "...\n", "---\n", "!<%FF>", "1e999", "9" * 5000, "int", "\\x", "\\ud800"),
    *("\\U00110000", '"\\UFFFFFFFF"', f"%YAML 1.{'9' * 5000}\n---\n"),
]


@pytest.fixture
def spec_path(tmp_path: Path) -> Path:
    return tmp_path / "job.yaml"


def load(path: Path, text: str = GOOD, *overrides: str) -> JobSpec:
    path.write_text(text, encoding="utf-8")
    return load_spec(path, overrides)


def refusal(path: Path, text: str = GOOD, *overrides: str) -> str:
    """Return what the refusal says, the file's folder left out."""
    with pytest.raises(SpecError) as refused:
        load(path, text, *overrides)
    return str(refused.value).replace(f"{path.parent}/", "")


def test_a_small_spec_gets_every_default(spec_path: Path) -> None:
    """Five sections are enough; the rest has values of its own."""
    spec = load(spec_path)

    assert spec.models["sd"].dtype == "auto"
    assert spec.routes["text2img"].set_parameters() == {"num_inference_steps": 10}
    assert (spec.batching.shard_rows, spec.batching.max_batch_rows) == (256, 16)
    assert (spec.workers.num, spec.errors.max_rate, spec.seed) == ("auto", 0.01, 0)
    assert (spec.safety.checker, spec.safety.flagged) == ("on", "drop")
    assert (spec.output.images, spec.output.format) == ("parquet", "png")
    assert spec.errors.stall_timeout_s > spec.errors.storage_deadline_s


@pytest.mark.parametrize("name", [name for name in PARAMETERS if "number" in PARAMETERS[name].kind])
def test_a_route_and_a_row_have_the_same_bounds(name: str) -> None:
    """They include their ends, and the next number beyond is refused in a route as in a row."""
    bounds = PARAMETERS[name]
    if bounds.kind == "pair of whole numbers":
        assert (bounds.minimum, bounds.maximum) == (0, 65_504)
        return
    whole = bounds.kind == "whole number"
    low, high = (int(end) if whole else end for end in (bounds.minimum, bounds.maximum))
    beyond = (
        (low - 1, high + 1) if whole else (math.nextafter(low, -math.inf), math.nextafter(high, math.inf))
    )

    for end in (low, high):
        assert Parameters.model_validate({name: end}).set_parameters() == {name: end}
    for number in beyond:
        with pytest.raises(ValueError, match=name):
            Parameters.model_validate({name: number})


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_of_the_repository_loads(path: Path) -> None:
    """configs/ holds specs that are valid, for darkroom and for an editor with the JSON schema."""
    spec = load_spec(path)
    jsonschema.validate(yaml.safe_load(path.read_text()), json.loads(spec_json_schema()))

    assert spec.name == path.stem


def test_the_json_schema_is_current() -> None:
    """docs/job-spec.schema.json is what `darkroom schema` writes now."""
    written = (ROOT / "docs" / "job-spec.schema.json").read_text(encoding="utf-8")

    assert written == spec_json_schema()


def test_the_json_schema_refuses_an_unknown_key() -> None:
    """An editor marks the same typing mistakes that darkroom refuses."""
    document = yaml.safe_load(GOOD)
    document["models"]["sd"]["revison"] = "main"

    with pytest.raises(jsonschema.ValidationError, match="revison"):
        jsonschema.validate(document, json.loads(spec_json_schema()))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("sede: 1", "job.yaml:12: sede: unknown key (did you mean `seed`?)"),
        ("  formt: png", "job.yaml:12: output.formt: unknown key (did you mean `format`?)"),
        ("shard_rows: 4", "job.yaml:12: shard_rows: unknown key; `shard_rows` belongs under `batching`"),
        ("strength: 0.5", "job.yaml:12: strength: unknown key; `strength` belongs under `routes.NAME`"),
        ("  seed: 4", "job.yaml:12: output.seed: unknown key; it belongs at the top level"),
        ("  zzz: 1", "job.yaml:12: output.zzz: unknown key; keys here are path, images, format"),
        ("model: sd", "model: unknown key (did you mean `models`?); `model` belongs under `routes.NAME`"),
        ("<<: {seed: 1}", "job.yaml:12: <<: unknown key"),
        ("int: 1", "job.yaml:12: int: unknown key (did you mean"),
        ("  bool: 1", "job.yaml:12: output.bool: unknown key; keys here are path"),
    ],
)
def test_an_unknown_key_is_named_with_its_line_and_the_right_one(
    spec_path: Path, line: str, says: str
) -> None:
    """Whether misspelt or in the wrong section, the message says which key is meant."""
    assert says in refusal(spec_path, GOOD + line)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("seed=1.5", "seed: must be a whole number, not 1.5"),
        ("seed=true", "seed: must be a whole number, not true"),
        ("seed='1'", 'seed: must be a whole number, not "1"'),
        ("name=", "name: must be text, not nothing"),
        ("name=my job", "name: must be up to 100 letters, digits, dots, dashes and underscores"),
        ("name=12", "name: must be text, not 12; put it in quotes"),
        (
            "models.sd.revision=12345e7",
            "models.sd.revision: must be text, not 123450000000.0; put it in quotes",
        ),
        ("models.sd.dtype=fp16", "models.sd.dtype: must be 'auto', 'float32', 'float16' or 'bfloat16'"),
        ("models.sd=demo:sd", 'models.sd: must be a mapping, such as {checkpoint: ...}, not "demo:sd"'),
        ("models={}", "models: must be a value with at least one entry, not {}"),
        ("models={'': {checkpoint: x}}", 'models."": must be a text that is not empty'),
        ("input.path=[]", "input.path: must be a value with at least one entry, not []"),
        ("input.path=3", "input.path: must be text or a list, not 3"),
        ("input.keep=category", 'input.keep: must be a list, not "category"'),
        ("output.path=''", 'output.path: must be a text that is not empty, not ""'),
        ("routes.text2img.guidance_scale=yes", 'guidance_scale: must be a number, not "yes"'),
        ("routes.text2img.guidance_scale=1e999", "guidance_scale: must be a finite number"),
        ("routes.text2img.guidance_scale=.nan", 'guidance_scale: must be a number, not ".nan"'),
        ("routes.text2img.guidance_scale=-1", "guidance_scale: must be a value greater than or equal to 0"),
        ("routes.text2img.num_inference_steps=0", "must be a value greater than or equal to 1, not 0"),
        ("errors.max_rate=5%", 'errors.max_rate: must be a number, not "5%"'),
        ("workers.num=2.5", "workers.num: must be a whole number or 'auto', not 2.5"),
        ("workers.num=0", "workers.num: 0 is too few; give 1 or more, or auto"),
        ("workers.num_gpus=-1", "workers.num_gpus: -1 is negative; give 0 or more, or auto"),
        (
            "workers.num_gpus=2",
            "workers.num_gpus: a worker computes on one GPU, so 2 would leave the others idle; give 1",
        ),
        ("workers.num_gpus=0.00001", "workers.num_gpus: 1e-05 is less than Ray can give"),
        ("workers.model_cache_gb=1e+308", "1e+308 is more than any machine has; give 1,000,000 or less"),
        ("workers.notice_s=1e+308", "workers.notice_s: must be a value less than or equal to 86400"),
        ("version=2", "version: must be 1, not 2"),
        ("version=true", "version: must be 1, not true"),
        ("version=1.0", "version: must be 1, not 1.0"),
        (f"version={'9' * 400}", "version: must be 1, not 999"),
        (f"seed={'9' * 400}", "seed: must be a value less than 9223372036854775808, not 999"),
        ("routes.img2img.keep_steps=yes", 'routes.img2img.keep_steps: must be true or false, not "yes"'),
        (
            "routes.img2img.scheduler_options={a: [b]}",
            "scheduler_options.a: must be true or false or a whole number or a number or text, not [",
        ),
        (
            "routes.img2img.original_size=[1, 2, 3]",
            "original_size: must be a list of two entries, not [1, 2, 3]",
        ),
        ("routes.img2img.original_size=[1]", "original_size: must be a list of two entries, not [1]"),
    ],
)
def test_a_value_that_does_not_fit_is_shown_beside_what_is_wanted(
    spec_path: Path, override: str, says: str
) -> None:
    """Types are strict and bounds are checked; the message has both the value and what would do."""
    assert says in refusal(spec_path, GOOD, override)


@pytest.mark.parametrize(
    ("override", "key", "values"),
    [
        ("routes.text2img.guidance_scale=[2, 3, 5]", "guidance_scale", "[2, 3, 5]"),
        ("routes.text2img.scheduler=[Euler, DDIM]", "scheduler", '["Euler", "DDIM"]'),
        ("routes.text2img.loras=[{}, {a: 1}]", "loras", '[{}, {"a": 1}]'),
        ("routes.text2img.seed=[1, 2]", "seed", "[1, 2]"),
        ("seed=[1, 2]", "seed", "[1, 2]"),
    ],
)
def test_a_list_for_one_value_is_answered_with_a_sweep(
    spec_path: Path, override: str, key: str, values: str
) -> None:
    """The two lines of it can be copied, and `darkroom expand` reads them."""
    said = refusal(spec_path, GOOD, override)

    assert said.splitlines()[1:] == [
        "  version: 1",
        f"  product: {{{key}: {values}}}",
        "and run: darkroom expand sweep.yaml rows.parquet (docs/sweeps.md)",
    ]
    sweep = spec_path.with_name("sweep.yaml")
    sweep.write_text("\n".join(said.splitlines()[1:3]))
    assert [len(axis) for axis in read_expansion(sweep).axes] == [values.count(",") + 1]


@pytest.mark.parametrize("override", ["seed=x", "models.sd.dtype=[1, 2]", "routes.img2img.original_size=[1]"])
def test_what_no_sweep_helps_names_none(spec_path: Path, override: str) -> None:
    """A single value, a key of a model, and a list that is only too short."""
    assert "expand" not in refusal(spec_path, GOOD, override)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("routes.text2img.model=sdd", "`sdd` is not a model (did you mean `sd`?); models are sd"),
        ("routes.txt2img.model=sd", "`txt2img` is not a task, so the route needs `task:` (one of text2img,"),
        (
            "routes.text2img.task=txt2img",
            "`txt2img` is not a task (did you mean `text2img`?); tasks are text2img,",
        ),
        ("routes.text2img.scheduler=Eulr", "`Eulr` is not a scheduler"),
        (
            "routes.text2img.scheduler=EulerDiscretes",
            "(did you mean `EulerDiscreteScheduler`?); schedulers are DDIM",
        ),
        ("routes.text2img.steps=9", "unknown key; darkroom calls it `num_inference_steps`"),
        ("routes.text2img.strength=0.5", "the task text2img has no such parameter"),
        (
            "default_route=tex2img",
            "`tex2img` is not a route (did you mean `text2img`?); routes are text2img, img2img",
        ),
    ],
)
def test_a_name_that_means_nothing_is_answered_with_those_that_do(
    spec_path: Path, override: str, says: str
) -> None:
    """Models, tasks, schedulers, parameters and routes are checked against what there is."""
    key = override.partition("=")[0].removesuffix(".model")

    said = refusal(spec_path, GOOD, override)

    assert says in said
    assert f": {key}" in said


def test_a_route_with_a_task_may_have_any_name(spec_path: Path) -> None:
    """A route of one's own says what it does, and rows call it by its name."""
    spec = load(spec_path, GOOD, "routes.poster={task: text2img, model: sd, height: 768}")

    assert spec.task_of("poster") == "text2img"
    assert spec.task_of("img2img") == "img2img"


def test_rows_without_a_task_take_the_only_route_or_the_default_one(spec_path: Path) -> None:
    """Of several routes none is taken unless default_route says so."""
    one = load(spec_path, GOOD.replace("  img2img: {model: sd}\n", ""))
    two = load(spec_path)
    named = load(spec_path, GOOD, "default_route=img2img")

    assert (one.fallback_route(), two.fallback_route(), named.fallback_route()) == (
        "text2img",
        None,
        "img2img",
    )


CHAIN = "routes.text2img.then=[img2img]"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ((CHAIN,), ""),
        (
            (CHAIN, "routes.long={task: text2img, model: sd, then: [text2img]}"),
            "routes.long.then: `text2img` has a `then` of its own; write the chain out here",
        ),
        (("errors.stall_timeout_s=9", "errors.storage_deadline_s=8.5"), ""),
        (("errors.stall_timeout_s=9", "errors.storage_deadline_s=9"), "`stall_timeout_s` (9) must be more"),
        (("workers.num_gpus=1",), ""),
        (("workers.num_gpus=2",), "workers.num_gpus: a worker computes on one GPU"),
        (("workers.num_gpus=0.0001",), ""),
        (("workers.num_gpus=1.5",), "workers.num_gpus: a worker computes on one GPU"),
        (("workers.num_gpus=0.00009",), "workers.num_gpus: 9e-05 is less than Ray can give"),
        (("workers.num_gpus=-1",), "workers.num_gpus: -1 is negative"),
        (("workers.num=0",), "workers.num: 0 is too few"),
        (("version=true",), "version: must be 1, not true"),
        (("routes.text2img.strength=0.5",), "routes.text2img.strength: the task text2img has no such"),
        (("routes.img2img.strength=0.5",), ""),
        (("input.pictures=[/a, s3://b/c]",), ""),
        (("input.pictures=[a]",), "input.pictures: 'a' is relative"),
        (("batching.exact=true", "batching.compile=true"), "`exact` and `compile` exclude each other"),
        (("batching.exact=true",), ""),
        (
            ("batching.exact=true", "kernels.attention=flash", "kernels.fuse_qkv=true"),
            "`batching.exact` leaves no choice of kernels: remove attention, fuse_qkv, because",
        ),
        (("batching.exact=true", "kernels.channels_last=false", "kernels.float32=auto"), ""),
        (("kernels.cudnn_benchmark=true", "kernels.vae_dtype=bfloat16"), ""),
    ],
)
def test_values_that_contradict_each_other_are_refused(
    spec_path: Path, overrides: tuple[str, ...], says: str
) -> None:
    """Bounds include their ends where both could hold."""
    if says:
        assert says in refusal(spec_path, GOOD, *overrides)
    else:
        load(spec_path, GOOD, *overrides)


def test_every_mistake_is_told_at_once(spec_path: Path) -> None:
    """One line per mistake, each with its own place."""
    text = GOOD.replace("name: job\n", "").replace("{model: sd}", "{modl: sd}") + "seed: x\n"

    said = refusal(spec_path, text).splitlines()

    assert said == [
        "job.yaml:1: name: is missing",
        "job.yaml:8: routes.img2img.model: is missing",
        "job.yaml:8: routes.img2img.modl: unknown key (did you mean `model`?)",
        'job.yaml:11: seed: must be a whole number, not "x"',
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (GOOD + "input: {path: x}\n", "job.yaml:12: the key `input` appears twice (first on line 3)"),
        (GOOD + "seed: &a 1\n", "job.yaml:12: anchors and aliases (& and *) are not allowed"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n", "job.yaml:1: anchors and aliases"),
        (GOOD + "seed: *a\n", "job.yaml:12: anchors and aliases"),
        ("seed: *.parquet\n", "job.yaml:1: is not YAML"),
        (
            GOOD + "seed: !!python/object/apply:os.getcwd []\n",
            "job.yaml:12: the tag tag:yaml.org,2002:python",
        ),
        (GOOD + "seed: !!int '3'\n", "job.yaml:12: the tag tag:yaml.org,2002:int is not allowed"),
        (GOOD + "---\nversion: 1\n", "job.yaml:12: is not YAML: but found another document"),
        (GOOD + "1: x\n", "job.yaml:12: a key must be text, not 1; put it in quotes"),
        (GOOD + "? [a]\n: b\n", "job.yaml:12: a key must be text, not a list or a mapping"),
        ("a: b: c\n", "job.yaml:1: is not YAML: mapping values are not allowed here"),
        ("a:\n\t- b\n", "job.yaml:2: is not YAML"),
        ("a: 'b\n", "job.yaml:2: is not YAML"),
        (GOOD + "seed: \0\n", "job.yaml:12: the character U+0000 is not allowed in YAML"),
        (
            GOOD.replace("{checkpoint: ", '{revision: "\\ud800", checkpoint: '),
            "job.yaml:6: U+D800 is half a character",
        ),
        (GOOD + 'x: {"\\udfff": 1}\n', "job.yaml:12: U+DFFF is half a character"),
        (GOOD + f"seed: {'9' * 5000}\n", "job.yaml:12: 99999999999999999999... is too long for a number"),
        ('a: "\\UFFFFFFFF"\n', "job.yaml:1: is not YAML: found a number that is too large"),
        ('a: 1\nb: "\\U00110000"\n', "job.yaml:2: is not YAML: found a number that is too large"),
        (f"%YAML 1.{'9' * 5000}\n---\n", "job.yaml:1: is not YAML: found a number that is too large"),
        (GOOD + f"seed: !{'x' * 100_000}\n", "job.yaml:12: the tag !xxx"),
        (f"? {'x' * 100_000}\n: 1\n? {'x' * 100_000}\n: 2\n", "job.yaml:3: the key `xxx"),
        (
            GOOD + f"x: [{'a,' * MAX_VALUES}]\n",
            "job.yaml:12: more than 20,000 keys and values; to name many files, use a folder or a pattern",
        ),
        (
            GOOD + f"seed: {'[' * 5000}{']' * 5000}\n",
            f"job.yaml:12: is nested more than {MAX_DEPTH} levels deep",
        ),
        ("", "job.yaml:1: a spec is a mapping that begins with `version: 1`"),
        ("- version: 1\n", "job.yaml:1: a spec is a mapping"),
        ("#" * (MAX_BYTES + 1), "job.yaml: is longer than the 1,000,000 bytes that a spec may"),
    ],
    ids=lambda value: None if "job.yaml" in value and len(value) < 200 else "text",
)
def test_what_is_not_plain_yaml_is_refused(spec_path: Path, text: str, says: str) -> None:
    """Duplicates, aliases, tags and damage are refused with their line, before anything is built of them."""
    said = refusal(spec_path, text)

    assert says in said
    assert len(said) < 300


def test_a_text_may_have_the_most_of_everything(tmp_path: Path) -> None:
    """One value, level or byte more is refused."""
    values = [f"[{','.join('1' * num)}]" for num in (MAX_VALUES - 1, MAX_VALUES)]
    levels = [f"{'[' * depth}{']' * depth}" for depth in (MAX_DEPTH, MAX_DEPTH + 1)]
    path = tmp_path / "job.yaml"

    path.write_text("a: 1\n".ljust(MAX_BYTES, "#"))
    assert read_yaml(path)[0] == {"a": 1}
    path.write_text("a: 1\n".ljust(MAX_BYTES + 1, "#"))
    with pytest.raises(SpecError, match="is longer than"):
        read_yaml(path)
    assert parse_yaml(values[0], "x")[0] == [1] * (MAX_VALUES - 1)
    with pytest.raises(SpecError, match="keys and values"):
        parse_yaml(values[1], "x")
    parse_yaml(levels[0], "x")
    with pytest.raises(SpecError, match="is nested more than"):
        parse_yaml(levels[1], "x")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A missing file and text in another encoding are told apart."""
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("name: Zürich".encode("latin-1"))

    with pytest.raises(SpecError, match=r"none.yaml: cannot be read: No such file"):
        load_spec(tmp_path / "none.yaml")
    with pytest.raises(SpecError, match=r"latin.yaml: is not UTF-8 text"):
        load_spec(latin)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", [".", "pipe", "/dev/zero", "/dev/urandom"])
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, name: str) -> None:
    """Nobody writes into the pipe, and the devices never end."""
    os.mkfifo(tmp_path / "pipe")
    path = tmp_path / name

    with pytest.raises(SpecError, match=f"^{path}: is a folder, a pipe or a device; a spec is a file$"):
        load_spec(path)


def test_a_byte_order_mark_does_no_harm(spec_path: Path) -> None:
    """Some editors write one in front of UTF-8."""
    assert load(spec_path, "\ufeff" + GOOD).name == "job"


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("1e-3", 0.001),
        ("-1.5E+3", -1500.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("1_000", 1000),
        ("-7", -7),
        ("true", True),
        ("False", False),
        ("~", None),
        ("null", None),
        ("", None),
        ("on", "on"),
        ("yes", "yes"),
        ("NO", "NO"),
        ("017", "017"),
        ("0x1F", "0x1F"),
        ("1:30", "1:30"),
        (".inf", ".inf"),
        ("2026-11-01", "2026-11-01"),
        ("1.2.3", "1.2.3"),
        ("451f4fe", "451f4fe"),
    ],
)
def test_plain_values_are_what_people_mean(written: str, meant: object) -> None:
    """YAML 1.1's surprises are gone: no `yes` for true, no octal, no base 60, and 1e-3 is a number."""
    value, _ = parse_yaml(f"a: {written}", "x")

    assert value == {"a": meant}
    assert isinstance(value, dict)
    assert type(value["a"]) is type(meant)


@given(number=st.one_of(st.integers(-(10**20), 10**20), st.floats(allow_nan=False, allow_infinity=False)))
@settings(deadline=None)
def test_a_number_is_read_as_python_writes_it(number: float) -> None:
    """Whatever repr() gives comes back as the same number."""
    value, _ = parse_yaml(f"a: {number!r}", "x")

    assert value == {"a": number}


@given(
    document=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEY, inner, max_size=3),
        max_leaves=10,
    )
)
@settings(deadline=None)
def test_json_is_read_as_json(document: object) -> None:
    """A spec may be written by a program as JSON."""
    value, _ = parse_yaml(json.dumps(document), "x")

    assert value == document


@given(text=st.text(max_size=200) | st.text(alphabet="[]{}:,&*!|>'\"%@` -?#\n\ta1.~<", max_size=60))
@settings(deadline=None, max_examples=300)
def test_any_text_is_either_read_or_refused(text: str) -> None:
    """No text makes the reader fail in another way than with a message for its author."""
    with suppress(SpecError):
        parse_yaml(text, "x")


def damaged(chance: random.Random) -> str:
    """The good spec with a few places cut, doubled, or written over with what means something in YAML."""
    text = GOOD
    for _ in range(chance.randint(1, 5)):
        place = chance.randrange(len(text))
        piece = chance.choice(["", text[place : place + 20], chr(chance.randrange(0xD800)), *DAMAGE])
        text = text[:place] + piece + text[place + chance.choice([0, 1, len(piece)]) :]
    return text


def test_a_damaged_spec_is_either_read_or_refused(spec_path: Path) -> None:
    """No damage to a good spec comes out as anything but a message for its author."""
    chance = random.Random(7)
    ends: set[bool] = set()
    for _ in range(500):
        try:
            load(spec_path, damaged(chance))
            ends.add(True)
        except SpecError:
            ends.add(False)

    assert ends == {True, False}


def test_of_many_mistakes_the_first_are_told(spec_path: Path) -> None:
    """The others are counted."""
    said = refusal(spec_path, GOOD + "".join(f"key{i}: 1\n" for i in range(5_000))).splitlines()

    assert said[0].startswith("job.yaml:12: key0: unknown key")
    assert said[20:] == ["and 4,980 more mistakes"]


@pytest.mark.parametrize(
    "override",
    [
        "name={}",
        "seed={}",
        "seed=!{}",
        "{}",
        "{}=1",
        "{}.x=[1",
        "version.{}=1",
        "default_route={}",
        "routes.text2img.model={}",
        "routes.text2img.task={}",
        "routes.text2img.then=[{}]",
        "routes.text2img.scheduler={}",
        "routes.text2img.{}=1",
        "routes.{}.model=sd",
        "input.pictures=[{}]",
        "input.pictures=[{}://x]",
    ],
)
def test_a_message_shows_the_beginning_of_a_long_text(spec_path: Path, override: str) -> None:
    """Who is to read the rest?"""
    said = refusal(spec_path, GOOD, override.replace("{}", "x" * 100_000))

    assert "xxx..." in said
    assert len(said) < 2_000


def test_of_many_names_the_first_are_listed(spec_path: Path) -> None:
    """A route of no such model is answered with some of a thousand."""
    models = "".join(f"  m{i}: {{checkpoint: demo:sd}}\n" for i in range(1_000))

    said = refusal(spec_path, GOOD.replace("models:\n", f"models:\n{models}"), "routes.text2img.model=zzz")

    assert said.endswith(
        "`zzz` is not a model; models are " + ", ".join(f"m{i}" for i in range(20)) + " and 981 more"
    )


@pytest.mark.parametrize(
    "sign", ["\x1b", "\x07", "\0", "\n", "\x7f", "\x9b", "\u2028", "\u200f", "\u202e", "\u2066"]
)
@pytest.mark.parametrize(
    "override",
    [
        "models.{}={checkpoint: a}",
        "routes.{}={task: text2img, model: sd}",
        "models.sd.checkpoint={}",
        "models.sd.revision={}",
        "models.sd.variant={}",
        "input.path={}",
        "input.path=[rows, {}]",
        "input.pictures=[{}]",
        "output.path={}",
    ],
)
def test_names_and_paths_hold_nothing_that_a_terminal_obeys(
    spec_path: Path, override: str, sign: str
) -> None:
    """They are shown in plans, logs and reports."""
    key, _, value = override.partition("=")
    name, quoted = f"a{sign}b", f'"a\\u{ord(sign):04x}b"'

    said = refusal(spec_path, GOOD, f"{key.replace('{}', name)}={value.replace('{}', quoted)}")

    assert f"contains U+{ord(sign):04X}, which a terminal obeys and does not show; leave it out" in said


def test_names_and_columns_may_be_of_any_script(spec_path: Path) -> None:
    """Joiners of letters and images, and wide spaces, are shown; a column is called what it is called."""
    family, persian = "\U0001f468\u200d\U0001f469", "\u0645\u06cc\u200c\u0631\u0648\u0645"
    spec = load(
        spec_path,
        GOOD,
        f"models.{family}={{checkpoint: {persian}}}",
        "output.path='out/\u3000'",
        'input.columns={prompt: "caption\\r"}',
    )

    assert spec.models[family].checkpoint == persian
    assert spec.input.columns == {"prompt": "caption\r"}


def test_set_overrides_one_key_of_the_file(spec_path: Path) -> None:
    """Values are YAML, sections that are not there are made, and later ones win."""
    spec = load(
        spec_path,
        GOOD,
        "seed=3",
        "seed=7",
        "batching.shard_rows=8",
        "input.path=[a, b]",
        "routes.text2img.guidance_scale=1e1",
        "models.sd.checkpoint=demo:sdxl",
    )

    assert (spec.seed, spec.batching.shard_rows, spec.input.path) == (7, 8, ["a", "b"])
    assert spec.routes["text2img"].guidance_scale == 10
    assert spec.routes["text2img"].num_inference_steps == 10
    assert spec.models["sd"].checkpoint == "demo:sdxl"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("seed", "--set seed: write it as key.key=value, such as --set seed=7"),
        ("=7", "--set =7: write it as key.key=value"),
        ("output..path=x", "--set output..path=x: write it as key.key=value"),
        ("seed.x=1", "--set seed.x=1: `seed` is a value, not a section with keys"),
        ("seed=[1", "--set seed:1: is not YAML"),
        ("a." * 5000 + "a=1", f"a.a...: is nested more than {MAX_DEPTH} levels deep"),
        ("seed=*a", "anchors and aliases (& and *) are not allowed"),
        ("output={path: x, formt: png}", "--set output={path: x, formt: png}: output.formt: unknown key"),
        ("output={path: 7}", "--set output={path: 7}: output.path: must be text, not 7"),
    ],
)
def test_a_wrong_override_is_named_as_it_was_typed(spec_path: Path, override: str, says: str) -> None:
    """The message points at the command line, not at a line of the file."""
    assert says in refusal(spec_path, GOOD + "seed: 1\n", override)


def test_a_spec_survives_its_own_record(spec_path: Path) -> None:
    """The resolved spec that is written beside an output is a valid spec, and the same one."""
    spec = load(
        spec_path, GOOD, "routes.text2img.guidance_scale=7", "input.columns={prompt: caption, seed: null}"
    )

    dumped: dict[str, Any] = json.loads(json.dumps(spec.model_dump(mode="json")))

    assert JobSpec.model_validate(dumped) == spec
    assert not any(isinstance(value, float) and math.isnan(value) for value in dumped.values())
