"""Facts about the rows that a sweep becomes."""

import io
import re
import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.storage.stores import open_storage
from jobs.sweeps.field_values import FieldValues
from jobs.sweeps.value_names import value_names
from schemas.columns.fields import FIELD_KINDS
from tests.support.running import ROOT, Finished, Record, darkroom_here
from tests.support.s3.s3_server import S3Server


def expanded(folder: Path, sweep: str, *options: str) -> Finished:
    """What `darkroom expand` does with this YAML in a folder, where it writes rows.parquet."""
    (folder / "sweep.yaml").write_text(f"version: 1\n{sweep}\n")
    return darkroom_here("expand", "sweep.yaml", "rows.parquet", *options, cwd=folder)


def rows_of(folder: Path, sweep: str) -> list[Record]:
    """The rows that a sweep becomes."""
    finished = expanded(folder, sweep)
    assert finished.code == 0, finished.err
    rows: list[Record] = pq.read_table(folder / "rows.parquet").to_pylist()
    (folder / "rows.parquet").unlink()
    return rows


def refusal(folder: Path, sweep: str) -> str:
    """The message about a sweep that is refused, and writes nothing."""
    finished = expanded(folder, sweep)
    assert finished.code == 2, finished.out + finished.err
    assert {path.name for path in folder.iterdir()} <= {"sweep.yaml", "prompts.txt", "words", "a.txt"}
    return finished.err.removeprefix("darkroom: ").strip()


def test_every_combination_is_a_row_named_by_its_values(tmp_path: Path) -> None:
    """The last list varies fastest. The columns of the sweep have the values, with the fields' types."""
    finished = expanded(
        tmp_path,
        "product: {prompt: [a red circle, A blue square!], guidance_scale: [2, 7.5], seed: [0, 1, 2]}\n"
        "set: {num_inference_steps: 4}",
    )

    table = pq.read_table(tmp_path / "rows.parquet")
    assert table["row_id"].to_pylist() == [
        f"{prompt}.g{scale}.seed{seed}"
        for prompt in ("a-red-circle", "a-blue-square")
        for scale in (2, 7.5)
        for seed in range(3)
    ]
    assert table.slice(11).to_pylist() == [
        {
            "row_id": "a-blue-square.g7.5.seed2",
            "prompt": "A blue square!",
            "seed": 2,
            "num_inference_steps": 4,
            "guidance_scale": 7.5,
            "sweep_prompt": "A blue square!",
            "sweep_guidance_scale": 7.5,
            "sweep_seed": 2,
        }
    ]
    assert table.schema.types[2:5] == [pa.int64(), pa.int64(), pa.float64()]
    assert finished.out.splitlines()[:3] == [
        "rows.parquet: 12 rows (2 values of prompt x 2 values of guidance_scale x 3 values of seed)",
        "row ids: a-red-circle.g2.seed0, a-red-circle.g2.seed1, a-red-circle.g2.seed2, ...",
        "the output keeps sweep_prompt, sweep_guidance_scale, sweep_seed",
    ]
    assert "darkroom init rows.parquet" in finished.out


def test_zipped_lists_are_walked_together(tmp_path: Path) -> None:
    """One group may be written without a list; mappings and pairs are lists' values as well."""
    rows = rows_of(
        tmp_path,
        "set: {prompt: owl}\n"
        "zip: {width: [64, 128], height: [128, 64]}\n"
        "product: {loras: [{}, {chalk: 0.5}], original_size: [[64, 64], null]}",
    )

    assert [row["row_id"] for row in rows[:2]] == [
        "no-loras.original-size64-64.w64.h128",
        "no-loras.original-size64-64.w128.h64",
    ]
    assert len(rows) == 8
    assert rows[7] == {
        "row_id": "chalk0.5.no-original-size.w128.h64",
        "prompt": "owl",
        "height": 64,
        "width": 128,
        "original_size": None,
        "loras": '{"chalk": 0.5}',
        "sweep_loras": '{"chalk": 0.5}',
        "sweep_original_size": None,
        "sweep_width": 128,
        "sweep_height": 64,
    }
    assert rows[0]["original_size"] == [64, 64]
    assert rows[0]["sweep_original_size"] == "[64, 64]"


def test_a_range_has_numbers_at_equal_distances(tmp_path: Path) -> None:
    """As people write them: 0.1 three times is 0.3."""
    rows = rows_of(
        tmp_path,
        "set: {prompt: owl}\n"
        "product: {strength: {from: 0.1, count: 3, step: 0.1}, seed: {from: 5, count: 2, step: 3}}",
    )

    assert [(row["strength"], row["seed"]) for row in rows] == [
        (0.1, 5), (0.1, 8), (0.2, 5), (0.2, 8), (0.3, 5), (0.3, 8)
    ]  # fmt: skip
    assert rows[-1]["row_id"] == "strength0.3.seed8"


def test_each_row_of_a_table_is_multiplied(tmp_path: Path) -> None:
    """Its ids begin the names, its other columns stay, and the sweep's values win over its own."""
    table = {"row_id": [*range(130)], "cfg": [1.0] * 130, "title": ["owl"] * 130, "source": ["web"] * 130}
    pq.write_table(pa.table(table), tmp_path / "table.parquet")

    rows = rows_of(
        tmp_path,
        "rows: {path: table.parquet, columns: {prompt: title}}\n"
        "product: {guidance_scale: [3, 4], seed: [7, 8]}",
    )

    assert [row["row_id"] for row in rows[-3:]] == ["129.g3.seed8", "129.g4.seed7", "129.g4.seed8"]
    assert len({row["row_id"] for row in rows}) == len(rows) == 520
    assert rows[-1] == {
        "row_id": "129.g4.seed8",
        "prompt": "owl",
        "seed": 8,
        "guidance_scale": 4.0,
        "source": "web",
        "sweep_row": "129",
        "sweep_guidance_scale": 4.0,
        "sweep_seed": 8,
    }
    again = expanded(tmp_path, "rows: table.parquet\nset: {guidance_scale: 3}")
    assert "replaced columns of the table: guidance_scale" in again.out


def test_the_rows_of_a_sweep_can_be_multiplied_again(tmp_path: Path) -> None:
    """Their names grow, and the columns of the first sweep stay; without lists, all of them do."""
    (tmp_path / "prompts.txt").write_text("owl\ncrow\n")
    assert expanded(tmp_path, "rows: prompts.txt\nproduct: {seed: [1, 2]}").code == 0
    (tmp_path / "rows.parquet").rename(tmp_path / "first.parquet")

    rows = rows_of(tmp_path, "rows: first.parquet\nproduct: {guidance_scale: [3]}")

    assert rows[3] == {
        "row_id": "crow-1.seed2.g3",
        "prompt": "crow",
        "seed": 2,
        "guidance_scale": 3.0,
        "sweep_row": "crow-1.seed2",
        "sweep_seed": 2,
        "sweep_guidance_scale": 3.0,
    }
    assert rows_of(tmp_path, "rows: first.parquet\nset: {eta: 0}")[3]["sweep_row"] == "crow-1"


def test_a_table_of_text_is_typed_by_its_fields(tmp_path: Path) -> None:
    """Rows without an id are named by their prompt and number. A cell that does not fit is refused."""
    (tmp_path / "table.csv").write_text("prompt,seed,note\nA red circle,7,007\n,8,\n")

    rows = rows_of(tmp_path, "rows: table.csv")

    assert [(row["row_id"], row["seed"], row["note"]) for row in rows] == [
        ("a-red-circle-0", 7, "007"), ("row-1", 8, "")
    ]  # fmt: skip
    (tmp_path / "table.csv").write_text("prompt,seed\nowl,7\nowl,x\n")
    assert "row 1 of" in (said := expanded(tmp_path, "rows: table.csv").err)
    assert "`seed` is 'x', and it needs whole numbers" in said


def test_pictures_of_a_table_stay_with_their_rows(tmp_path: Path) -> None:
    """They lie in the file, as in the table's; there may be more rows than a batch of them has."""
    images = [{"bytes": bytes([i]), "path": None} for i in range(65)]
    pq.write_table(pa.table({"prompt": ["owl"] * 65, "image": images}), tmp_path / "table.parquet")

    rows = rows_of(tmp_path, "rows: table.parquet\nproduct: {strength: [0.5, 0.6]}")

    assert [row["image"]["bytes"] for row in rows] == [bytes([i]) for i in range(65) for _ in range(2)]


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ("produkt: {seed: [1]}", "sweep.yaml:2: produkt: unknown key (did you mean `product`?)"),
        ("version: 2", "the key `version` appears twice"),
        ("product:\n  promt: [a]", "sweep.yaml:3: product.promt: unknown field (did you mean `prompt`?)"),
        ("product: {cfg: [1]}", "product.cfg: unknown field; darkroom calls it `guidance_scale`"),
        ("product: {rows: [1]}", "unknown field; the key `rows` belongs at the top level"),
        ("product: {row_id: [a]}", "the ids are made of the values"),
        ("product: {guidance_scale: [2, -1]}", "guidance_scale: must be a value greater than or equal to 0"),
        ("product:\n  seed:\n  - 1\n  - x", 'sweep.yaml:5: seed: must be a whole number, not "x"'),
        ("product: {scheduler: [Eulr]}", "`Eulr` is not a scheduler for Stable Diffusion (did you mean"),
        ("product: {seed: {from: 0, count: 3, step: 0.5}}", "seed: must be a whole number, not 0.5"),
        ("product: {seed: {from: 0, cuont: 3}}", "cuont: unknown key (did you mean `count`?)"),
        ("product: {seed: 3}", "product.seed: must be a list of values, or a range of numbers such as"),
        ("product: {seed: [1, 2], prompt: []}", "product.prompt: must be a list of values"),
        ("product: {guidance_scale: [2, 2.0]}", "product.guidance_scale.1: 2.0 is in the list twice"),
        ("zip: {width: [64, 64], height: [8, 8]}", "zip.0.width.1: 64 is in the lists twice"),
        ("zip: {width: [64], height: [8, 16]}", "zip.0: lists that are walked together must have the same"),
        ("product: {seed: [1]}\nset: {seed: 2}", "product.seed: has values under set too"),
        ("set: {seed: [1, 2]}\nproduct: {prompt: [a]}", "set.seed: has several values; to make rows of each"),
        ("set: {seed: 1}", "sweep.yaml:1: nothing to multiply"),
        ("rows: nope.txt", "sweep.yaml:2: rows.path: there is no file with rows at"),
        ("rows: 5", "rows: must be a path such as prompts.txt, or a list of paths, not 5"),
        ("rows: {pth: x}", "rows.pth: unknown key (did you mean `path`?)"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_line_and_a_way_out(tmp_path: Path, sweep: str, message: str) -> None:
    """And nothing is written."""
    said = refusal(tmp_path, sweep)

    assert message in said
    assert said.startswith("sweep.yaml:")


def test_a_file_that_exists_is_not_overwritten(tmp_path: Path) -> None:
    """Nor is anything but Parquet written."""
    (tmp_path / "rows.parquet").write_bytes(b"precious")

    finished = expanded(tmp_path, "product: {prompt: [owl]}")

    assert finished.code == 4
    assert "exists" in finished.err
    assert (tmp_path / "rows.parquet").read_bytes() == b"precious"
    csv = darkroom_here("expand", "sweep.yaml", "rows.csv", cwd=tmp_path)
    assert "choose a name such as rows.parquet" in csv.err


def test_rows_can_be_written_to_a_bucket(s3_env: S3Server, tmp_path: Path) -> None:
    """And an object is not overwritten either."""
    (tmp_path / "sweep.yaml").write_text("version: 1\nproduct: {prompt: [owl], seed: [1, 2, 3]}")
    uri = f"s3://inp/{uuid.uuid4().hex}/rows.parquet"

    first, second = (darkroom_here("expand", tmp_path / "sweep.yaml", uri) for _ in range(2))

    assert f"{uri}: 3 rows" in first.out
    assert pq.read_table(io.BytesIO(open_storage(uri).read(uri))).num_rows == 3
    assert (second.code, f"{uri} exists" in second.err) == (4, True)


def test_more_than_a_million_rows_must_be_meant(tmp_path: Path) -> None:
    """The refusal shows what is multiplied. No row group has them all."""
    scales = "{from: 0, count: 1001, step: 0.05}"
    sweep = f"product: {{seed: {{from: 0, count: 1000}}, guidance_scale: {scales}}}\nset: {{prompt: owl}}"

    finished = expanded(tmp_path, sweep)

    assert finished.code == 4
    assert "1,001,000 rows: 1,000 values of seed x 1,001 values of guidance_scale." in finished.err
    assert expanded(tmp_path, sweep, "--yes").code == 0
    file = pq.ParquetFile(tmp_path / "rows.parquet")
    assert file.metadata.num_rows == 1_001_000
    assert max(file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)) <= 65_536


def test_names_are_readable_short_and_different() -> None:
    """A value that is added at the end changes none of the others."""
    long = [f"a photograph of a very {word} owl in the style of an old master" for word in ("big", "small")]
    values = ["a red circle", "A red  circle!", "", None, "3 owls", "sd v1.5", "Сова", "🦉", *long]

    names = value_names("prompt", values)

    assert names[0] == "a-red-circle"
    assert re.fullmatch(r"a-red-circle-[0-9a-f]{6}", names[1])
    assert names[2] == "no-prompt"
    assert re.fullmatch(r"no-prompt-[0-9a-f]{6}", names[3])
    assert names[4:7] == ["prompt3-owls", "sd-v1.5", "сова"]
    assert re.fullmatch(r"prompt-[0-9a-f]{6}", names[7])
    assert re.fullmatch(r"a-photograph-of-a-very-big-owl-in-[0-9a-f]{6}", names[8])
    assert len({*names}) == len(values)
    assert value_names("prompt", values[:5]) == names[:5]
    assert value_names("seed", [7, 2**62 + 1]) == ["seed7", f"seed{2**62 + 1}"]
    assert value_names("guess_mode", [True, False]) == ["guess-mode-true", "guess-mode-false"]


def test_a_sweep_may_set_every_field_but_the_id() -> None:
    """The values of all of them are checked."""
    assert {*FieldValues.model_fields} == {*FIELD_KINDS} - {"row_id"}


def test_every_sweep_of_the_documents_is_written_as_printed(tmp_path: Path) -> None:
    """The page's blocks, with the number of rows that each has, and the example that --help names."""
    page = (ROOT / "docs" / "sweeps.md").read_text()
    (tmp_path / "prompts.txt").write_text("a {red|blue} circle\na square\n")

    blocks = re.findall(r"```yaml\nversion: 1\n(.*?)```", page, re.DOTALL)

    assert [len(rows_of(tmp_path, block)) for block in blocks] == [60, 27, 12, 20, 9]
    example = darkroom_here("expand", ROOT / "docs" / "sweep.yaml", tmp_path / "rows.parquet")
    assert "60 rows" in example.out
