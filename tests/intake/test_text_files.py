"""Facts about inputs that are text: which rows they have, of which types, and what is refused."""

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from jobs.planning.plan import make_plan
from jobs.planning.plan_text import describe_bad_row
from jobs.survey.survey import make_survey
from schemas.errors import SpecError
from tests.intake.text_rows import read_cells, rows_of
from tests.support.in_process import job_spec

PROMPTS = [f"owl {number}, grey" for number in range(40)]


def zstd(data: bytes) -> bytes:
    return pa.compress(data, "zstd", asbytes=True)


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_line_of_text_is_a_prompt(tmp_path: Path, ending: str, mark: str) -> None:
    """Also one with `#` and quotes, after a byte order mark and before any line end; blank lines are none."""
    prompts = [*PROMPTS, '# "two", three', "  a\u2028b\x0bc"]
    text = mark + ending.join([*prompts[:20], "", "  ", *prompts[20:]]) + 2 * ending

    rows = rows_of(tmp_path / "prompts.txt", text.encode())

    assert [row["prompt"] for row in rows] == prompts


@pytest.mark.parametrize(
    ("ending", "pack"), [("", bytes), (".gz", gzip.compress), (".bz2", bz2.compress), (".ZST", zstd)]
)
@pytest.mark.parametrize("separator", [",", "\t"])
def test_a_table_has_a_row_for_each_record(
    tmp_path: Path, separator: str, ending: str, pack: Callable[[bytes], bytes]
) -> None:
    """Quotes may hold separators, quotes and line ends. Cells have the types of the fields that they fill."""
    lines = [
        ["id", "prompt", "seed", "guidance_scale", "note"],
        ["007", '"an ""owl"", "', "", "", ""],
        ["008", '"two\r\nlines"', "9007199254740993", " 7.50 ", "caf\u00e9"],
        ["009", '"a\tb,c"', "12.0", "3", "null"],
        *(
            [f"{number:03d}", f'"{prompt}"', str(number), "1e0", "x"]
            for number, prompt in enumerate(PROMPTS, 10)
        ),
    ]
    text = "\ufeff" + "\r\n".join(separator.join(line) for line in lines) + "\r\n\r\n"
    name = f"rows.{'csv' if separator == ',' else 'tsv'}{ending}"

    first, second, third, *others = rows_of(tmp_path / name, pack(text.encode()), keep=["note"])

    assert first == {
        "row_id": "007",
        "prompt": 'an "owl", ',
        "seed": None,
        "guidance_scale": None,
        "note": "",
    }
    assert second["prompt"] == "two\r\nlines"
    assert (second["seed"], second["guidance_scale"], second["note"]) == (2**53 + 1, 7.5, "caf\u00e9")
    assert (third["prompt"], third["seed"], third["guidance_scale"]) == ("a\tb,c", 12, 3.0)
    assert [(row["prompt"], row["seed"]) for row in others] == [*zip(PROMPTS, range(10, 50), strict=True)]


def test_a_line_of_json_is_a_row(tmp_path: Path) -> None:
    """A key may be missing, or come late. Nested values fill fields of options, and are kept."""
    objects: list[dict[str, Any]] = [
        {"prompt": "an owl", "seed": 7, "score": 1, "extra": {"a": [1, "\u00e9"]}},
        {"prompt": None, "score": None, "new": True},
        {"seed": 2**60, "prompt": 2024, "score": 0.5, "crops_coords_top_left": [0, 64]},
        {"scheduler_options": {"use_karras_sigmas": True}, "scheduler": "DPMSolverMultistepScheduler"},
    ]
    text = "\n".join([*map(json.dumps, objects), "", '{"score": NaN, "prompt": "\\ud800"}', ""])
    keep = ["score", "extra", "new"]

    rows = rows_of(tmp_path / "rows.jsonl", text.encode(), keep=keep)

    assert [row["prompt"] for row in rows] == ["an owl", None, "2024", None, "?"]
    assert [row["seed"] for row in rows] == [7, None, 2**60, None, None]
    assert [row["score"] for row in rows] == [1.0, None, 0.5, None, None]
    assert [row["new"] for row in rows] == [None, True, None, None, None]
    assert json.loads(rows[0]["extra"]) == objects[0]["extra"]
    assert json.loads(rows[3]["scheduler_options"]) == {"use_karras_sigmas": True}


def test_whole_numbers_of_json_are_whole_numbers(tmp_path: Path) -> None:
    """As ids and as kept values; one that no column of numbers can hold makes the column text."""
    text = '{"id": 7, "small": 1, "large": 9007199254740993, "huge": 18446744073709551616, "prompt": "x"}\n'
    text += '{"id": 8, "small": 0.5, "large": 0.5, "huge": 1, "prompt": "x"}\n'

    rows = rows_of(tmp_path / "rows.ndjson", text.encode(), keep=["small", "large", "huge"])

    assert [row["row_id"] for row in rows] == [7, 8]
    assert [row["small"] for row in rows] == [1.0, 0.5]
    assert [row["large"] for row in rows] == ["9007199254740993", "0.5"]
    assert [row["huge"] for row in rows] == ["18446744073709551616", "1"]


@pytest.mark.parametrize(
    ("field", "cells", "values"),
    [
        ("seed", ["+7", " 8 ", "9.0", ""], [7, 8, 9, None]),
        ("guidance_scale", [".5", "1e1", "nan", " "], [0.5, 10.0, float("nan"), None]),
        ("prompt", ["", " x", "007", "null"], ["", " x", "007", "null"]),
        ("task", ["", "text2img", " ", "7"], [None, "text2img", None, "7"]),
        ("row_id", ["", "007", " "], [None, "007", None]),
        ("loras", ['{"a": 1}', '[{"name": "a", "weight": 1, "more": 2}]', "[1]", ""], None),
    ],
)
def test_a_field_decides_what_its_cells_mean(field: str, cells: list[str], values: list[Any] | None) -> None:
    """An empty cell is null, but for a prompt, which may be empty."""
    read, problems = read_cells(field, cells)

    assert str(read) == str(values or ['{"a": 1}', '{"a":1}', "[1]", None])
    assert not problems


@pytest.mark.parametrize(
    ("field", "cell"),
    [
        ("seed", "abc"),
        ("seed", "1.5"),
        ("seed", "1_000"),
        ("seed", str(2**63)),
        ("guidance_scale", "7,5"),
        ("guidance_scale", "1_0.0"),
    ],
)
def test_a_cell_that_does_not_fit_is_an_error_of_its_row(field: str, cell: str) -> None:
    """The message has the field, the cell and what it needs; the other rows keep their values."""
    read, problems = read_cells(field, ["1", cell, "2"])

    assert read == [1, None, 2]
    assert [*problems] == [1]
    assert problems[1].code == "invalid_parameter"
    assert problems[1].message.startswith(f"`{field}` is {cell!r}, and it needs ")


def test_the_plan_names_the_line_and_the_cell_at_fault(tmp_path: Path) -> None:
    """By the name of the file that somebody wrote, and by the line in it: blank lines and quoted cells of
    several lines count."""
    path = tmp_path / "rows.csv"
    path.write_text('prompt,seed\n"an\nowl",1\n\n\na fox,abc\n')

    plan, findings = make_plan(make_survey(job_spec(path, tmp_path / "out")))

    (bad,) = findings.bad_rows
    assert (bad.uri, bad.row) == (str(path), 1)
    assert describe_bad_row(bad) == (
        "rows.csv line 6: invalid_parameter: `seed` is 'abc', and it needs whole numbers"
    )
    assert plan.file_names == {str(path): "rows.csv"}
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        (
            "rows.csv",
            b"prompt,seed\nan owl, grey,1\n",
            "line 2 has 3 cells, and the first line names 2 columns",
        ),
        ("rows.csv", b'prompt,seed\n"a\nb",1\nx\n', "line 4 has 1 cell, and the first line names 2"),
        ("rows.csv", b'prompt\nx\n"never\nclosed\n', "line 3 cannot be read: a quote is never closed"),
        ("rows.csv", b'prompt\n"x"y\n', "line 2 cannot be read: text follows a closing quote"),
        ("rows.csv", b"prompt\nx\ra\nb\n", "line 2 cannot be read: a cell without quotes has a carriage"),
        ("rows.csv", b"prompt\rx\ry\r", r"carriage returns alone.* tr '\\r' '\\n'"),
        ("prompts.txt", b"an owl\ra fox", "carriage returns alone"),
        ("rows.csv", b"prompt;seed\nx;1\n", "seems to have semicolons between .* write commas"),
        ("rows.csv", b"prompt\tseed\nx\t1\n", "seems to have tabs between .* name the file .tsv"),
        ("rows.tsv", b"prompt,seed\nx,1\n", "seems to have commas between .* name the file .csv"),
        (
            "rows.csv",
            gzip.compress(b"prompt\nx\n", mtime=0),
            "is compressed with gzip.* rename it to rows.csv.gz",
        ),
        ("rows.csv.gz", bz2.compress(b"prompt\nx\n"), "compressed with bz2.* rename it to rows.csv.bz2"),
        ("rows.csv.bz2", b"prompt\nx\n", "is not compressed, unlike its name; rename it to rows.csv$"),
        (
            "rows.csv.gz",
            gzip.compress(gzip.compress(b"prompt\nx\n", mtime=0), mtime=0),
            "compressed twice; unpack it once",
        ),
        ("rows.csv", lzma.compress(b"prompt\nx\n"), "is compressed with xz.* unxz"),
        ("rows.csv", b"PK\x03\x04" + bytes(40), "is a ZIP archive or a workbook.* save it as CSV"),
        ("rows.txt", b"PAR1\x15\x04" + bytes(40), "is a Parquet file without its end"),
        ("rows.json", b'[{"prompt": "x"}]', "not a Parquet file.* .jsonl file, for example with jq -c"),
        ("rows.xlsx", b"PK\x03\x04", "darkroom reads .txt, .csv, .* save the sheet as CSV in UTF-8"),
        ("rows", b"prompt\nx\n", "no text file by its name; darkroom reads .txt, .csv, .tsv, .jsonl"),
        ("rows.csv", b"_darkroom_line,prompt\n1,x\n", "a name that is taken; rename it"),
        ("rows.csv", b"id,prompt\na,x\n\n,y\n", r"column `id` has 1 null in .* \(line 4 is the first\)"),
        ("rows.jsonl", b'{"id": "", "prompt": "x"}\n', r"column `id` has 1 null in .* \(line 1 is the first"),
        ("rows.csv", b"prompt,seed,prompt\nx,1,y\n", "more than one column of the name prompt"),
        (
            "rows.csv",
            b"an owl,1\na fox,2\n",
            "the input has no column `prompt`; it has an owl, 1.* If this is a row, put a line",
        ),
        ("rows.csv", b"prompt\n", "no rows in "),
        ("rows.csv", b"", "no rows in "),
        ("prompts.txt", b"\n\n", "no rows in "),
        ("prompts.txt", b"a\nb\nd\xe9j\xe0\n", "line 3 is not UTF-8 .*iconv -f latin1 -t UTF-8"),
        ("prompts.txt", "an owl\n".encode("utf-16"), "is in UTF-16.*iconv -f UTF-16 -t UTF-8"),
        ("prompts.txt", "an owl".encode("utf-16-le"), "line 1 has a zero byte; .*iconv -f UTF-16 -t UTF-8"),
        ("prompts.txt", b"a\n" + b"x" * ((16 << 20) + 1) + b"\nb\n", "line 2 has more than 16.8 MB"),
        (
            "rows.csv",
            b'prompt\n"' + b"x\n" * (9 << 20) + b'"\n',
            "line 2 cannot be read: a cell has more than",
        ),
        ("rows.jsonl", b'{"prompt": "a"}\n{"prompt": \n', "line 2 is not JSON"),
        ("rows.jsonl", b'{"prompt": "a", "seed": Infinity}\n', "line 1 is not JSON"),
        ("rows.jsonl", b'\n["a"]\n', "line 2 is not a JSON object"),
        ("rows.jsonl", b'{"prompt": 1e3}\n', "column `prompt` is double, but the field `prompt` needs text"),
        (
            "rows.jsonl",
            b'{"row_id": 1.0, "prompt": "x"}\n',
            "column `row_id` is double, but the field `row_id` needs text",
        ),
        ("rows.jsonl", b"[" * 100_000, "line 1 is not JSON"),
        ("rows.csv.gz", gzip.compress(b"prompt\nx\n", mtime=0)[:-9], "cannot be unpacked"),
        (
            "rows.jsonl",
            b"".join(b'{"prompt": "a", "key%d": 1}\n' % i for i in range(60_000)),
            "more than 1,000 columns",
        ),
        ("rows.csv", b",".join(b"a%d" % i for i in range(1001)), "more than 1,000 columns"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    """The message has the file, the line where there is one, and what to do."""
    path = tmp_path / name
    path.write_bytes(data)

    with pytest.raises(SpecError, match=message) as refused:
        make_plan(make_survey(job_spec(path, tmp_path / "out")))

    assert str(path) in str(refused.value) or "column `" in message


def test_a_number_of_json_is_a_prompt_as_it_is_written(tmp_path: Path) -> None:
    """`1e3` beside texts is `1e3`, and a whole number is its digits."""
    rows = rows_of(tmp_path / "rows.jsonl", b'{"prompt": 1e3}\n{"prompt": "x"}\n{"prompt": 1.50}\n')

    assert [row["prompt"] for row in rows] == ["1e3", "x", "1.50"]


def test_a_value_of_the_wrong_type_is_the_mistake_of_its_row(tmp_path: Path) -> None:
    """Whatever the type of the others is: a list, an object, a text or a number out of range."""
    values = [1, "x", [1], {"a": 1}, True, 2**64, 1e999, -1, 1.5, [[1] * 3], "7"]
    (path := tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"prompt": "x", "seed": value}) + "\n" for value in values).replace(
            "Infinity", "1e999"
        )
    )

    _, findings = make_plan(make_survey(job_spec(path, tmp_path / "out")))

    assert {bad.problem.code for bad in findings.bad_rows} == {"invalid_parameter"}
    assert sorted(bad.row for bad in findings.bad_rows) == [1, 2, 3, 4, 5, 6, 7, 8, 9]


def test_a_key_that_only_a_late_block_has_is_a_column(tmp_path: Path) -> None:
    """Blocks are read one by one; rows of the earlier ones have null there."""
    long = "x" * 60_000
    lines = [json.dumps({"prompt": long, "seed": number}) for number in range(150)]
    lines += [json.dumps({"prompt": "last", "late": "yes"})]

    rows = rows_of(tmp_path / "rows.jsonl", "\n".join(lines).encode(), keep=["late"])

    assert len(rows) == 151
    assert [row["seed"] for row in rows] == [*range(150), None]
    assert {row["late"] for row in rows[:150]} == {None}
    assert (rows[150]["prompt"], rows[150]["late"]) == ("last", "yes")


def test_records_run_across_blocks(tmp_path: Path) -> None:
    """A quoted cell may begin in one block of a file and end in the next."""
    prompts = [f"{number}\n" + "y" * 60_000 for number in range(400)]
    text = "prompt,seed\n" + "".join(f'"{prompt}",{number}\n' for number, prompt in enumerate(prompts))

    rows = rows_of(tmp_path / "rows.csv", text.encode())

    assert [row["prompt"] for row in rows] == prompts
    assert [row["seed"] for row in rows] == [*range(400)]
