"""Facts about the choices in prompts."""

from collections import Counter
from pathlib import Path

import pytest

from jobs.sweeps.prompt_templates import parsed
from tests.sweeps.test_expand import refusal, rows_of

SEEDS = "seed: {from: 0, count: 65}"


def prompts_of(folder: Path, sweep: str) -> list[str]:
    return [row["prompt"] for row in rows_of(folder, sweep)]


def test_each_row_has_one_of_the_options(tmp_path: Path) -> None:
    """Also of nested ones, and nothing where an option is empty. Each place has a choice of its own."""
    options = {f"a {size}{colour} owl" for size in ("", "very big ", "small ") for colour in ("red", "blue")}

    prompts = prompts_of(
        tmp_path, f'product: {{prompt: ["a {{|{{very big|small}} }}{{red|blue}} owl"], {SEEDS}}}'
    )

    assert {*prompts} == options
    assert min(Counter(prompts).values()) > 2


def test_a_choice_depends_on_the_seed_and_the_prompt_alone(tmp_path: Path) -> None:
    """Rows that differ in another value can be compared, and rows that are added change no others."""
    prompt = '"a {red|blue|green} owl"'
    before = prompts_of(tmp_path, f"product: {{prompt: [{prompt}], {SEEDS}}}")

    rows = rows_of(
        tmp_path,
        f"product: {{guidance_scale: [2, 3], prompt: [a cat, {prompt}], seed: {{from: 0, count: 130}}}}",
    )

    for scale in (2, 3):
        of_scale = [row for row in rows if row["guidance_scale"] == scale and row["prompt"] != "a cat"]
        assert [row["prompt"] for row in of_scale][:65] == before
        assert {row["sweep_prompt"] for row in of_scale} == {"a {red|blue|green} owl"}


def test_prompts_of_a_table_have_choices_of_their_own(tmp_path: Path) -> None:
    """Equal prompts in two rows too; `choices: off` leaves all of them as they are."""
    (tmp_path / "prompts.txt").write_text("a {red|blue} owl\n" * 65)

    prompts = prompts_of(tmp_path, "rows: prompts.txt")

    assert {*prompts} == {"a red owl", "a blue owl"}
    assert {*prompts_of(tmp_path, "rows: prompts.txt\nchoices: off")} == {"a {red|blue} owl"}


def test_a_list_of_words_is_a_file_or_in_the_sweep(tmp_path: Path) -> None:
    """Beside the sweep, or in a folder. Its lines may have choices, and name other lists."""
    (tmp_path / "words" / "sizes").mkdir(parents=True)
    (tmp_path / "words" / "birds.txt").write_text("\ufeff__sizes/all__ owl\r\n\n  {grey|white} crow \n")
    (tmp_path / "words" / "sizes" / "all.txt").write_text("big\nsmall\n")
    (tmp_path / "a.txt").write_text("owl\ncrow")

    folder = prompts_of(tmp_path, f"words: words\nproduct: {{prompt: [a __birds__], {SEEDS}}}")
    inline = prompts_of(tmp_path, f"words: {{b: [one __a__]}}\nproduct: {{prompt: [see __b__], {SEEDS}}}")

    assert {*folder} == {"a big owl", "a small owl", "a grey crow", "a white crow"}
    assert {*inline} == {"see one owl", "see one crow"}


def test_a_swept_list_has_each_of_its_words(tmp_path: Path) -> None:
    """The same wherever a prompt of the row has it, with an axis of its own."""
    rows = rows_of(
        tmp_path,
        "words: {birds: [owl, crow]}\nset: {prompt: a __hue__ __birds__ and a __hue__ cat, seed: 1}\n"
        "product: {__hue__: [red, blue], __birds__: all}",
    )

    assert [(row["row_id"], row["prompt"], row["sweep_hue"], row["sweep_birds"]) for row in rows] == [
        (f"{hue}.{bird}", f"a {hue} {bird} and a {hue} cat", hue, bird)
        for hue in ("red", "blue")
        for bird in ("owl", "crow")
    ]
    assert "hue" not in rows[0]


@pytest.mark.parametrize(
    ("text", "read"),
    [
        (r"an \{open\} \| door \__a__", "an {open} | door __a__"),
        (r"(owl)1.2 \(nest\) a|b snake_case __init", r"(owl)1.2 \(nest\) a|b snake_case __init"),
    ],
)
def test_a_backslash_makes_a_sign_plain_text(text: str, read: str) -> None:
    """Other backslashes stay, as weights of prompts have them."""
    assert parsed(text).plain_text == read
    assert parsed(text).is_plain


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ("product:\n  prompt:\n  - owl\n  - a {red|blue", "sweep.yaml:5: the prompt 'a {red|blue': the"),
        ('set: {prompt: "a red} owl"}\nproduct: {seed: [1]}', "the `}` at character 6 closes nothing"),
        ('product: {prompt: ["a {} owl"]}', "`{}` at character 3 has no options"),
        ('product: {prompt: ["a {|} owl"]}', "`{|}` at character 3 has no options"),
        ('product: {prompt: ["{2$$a|b}"]}', "`{2$$` at character 1 is not supported"),
        ('product: {prompt: ["{0.5::a|b}"]}', "to make an option likelier, write it several times"),
        (f'product: {{prompt: ["{"{a|" * 17}{"}" * 17}"]}}', "nested more than 16 deep"),
        ("product: {prompt: [a __birds__]}", "the prompt 'a __birds__': birds.txt does not exist; write it"),
        ("product: {prompt: [a __bird__]}\nwords: {birds: [owl]}", "(did you mean `birds`?)"),
        ("product: {prompt: [a __birds__]}\nwords: {birds: []}", "sweep.yaml:3: words.birds: the list is"),
        ('product: {prompt: [__a__]}\nwords: {a: [owl, "{x"]}', "sweep.yaml:3: '{x': the `{` at character 1"),
        ("product: {prompt: [__a__]}\nwords: {a: [a __b__], b: [__a__]}", "itself: __a__ -> __b__ -> __a__"),
        ("product: {prompt: [__a__], __a__: [__b__]}\nwords: {b: [__a__]}", "need each other without end"),
        ("product: {prompt: [owl], __a__: [b]}", "product.__a__: no prompt has __a__"),
        ("product: {prompt: [__a__], __a__: b}", "product.__a__: must be `all`, or a list of words"),
        ("product: {__seed__: [a]}", "product.__seed__: is the name of a field"),
        ("rows: prompts.txt", "row 1 of "),
    ],
)  # fmt: skip
def test_what_cannot_be_chosen_is_refused(tmp_path: Path, sweep: str, message: str) -> None:
    """With the file and line, or the row of the table, and the way out."""
    (tmp_path / "prompts.txt").write_text("owl\n{red|blue\n")

    assert message in refusal(tmp_path, sweep)


def test_lists_cannot_grow_a_prompt_without_bounds(tmp_path: Path) -> None:
    """Twelve lists of a line each are enough to make 4,096 words."""
    words = ", ".join(f"w{i}: [__w{i + 1}__ __w{i + 1}__]" for i in range(12))

    said = refusal(tmp_path, f"words: {{{words}, w12: [owl]}}\nproduct: {{prompt: [__w0__]}}")

    assert "more than 1,000 choices are made for it" in said
