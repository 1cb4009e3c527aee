"""Facts about the contact sheet in a real browser: what a person sees, clicks and types."""

import base64
import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from actors.storage.output import open_output
from jobs.output.figures import Totals
from jobs.reports.sheet.contact_sheet import Sheet, make_sheet, render
from jobs.reports.sheet.frames import Failure, Frame
from jobs.trial.trial_run import Choice, run_trial
from tests.browser.chromium import Browser, installed
from tests.support.checkpoints import paper_checkpoint
from tests.support.in_process import Record, job_spec, write_rows
from tests.support.running import output_rows

PROGRAM = installed()
pytestmark = pytest.mark.skipif(
    PROGRAM is None, reason="there is no Chromium, which looks at the contact sheet"
)

MAX_PAUSE_MS = 2000
"""Many times what was measured on two idle cores, because other tests run beside this one."""
SCALES, SEEDS = ("1.5", "2.5", "10"), ("0", "1")
PROMPTS = ("a red circle", "a blue square")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for all tests."""
    with Browser(PROGRAM or "") as browser:
        yield browser


def picture(colour: tuple[int, int, int]) -> str:
    """A small picture as a data: URI."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(file, "png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def frame(number: int, keep: Mapping[str, str] | None = None, **changes: Any) -> Frame:
    """A frame with values of its own."""
    values: Record = {"row_id": f"r{number}", "image_index": 0, "task": "text2img", "model": "sd"}
    values |= {"status": "ok", "prompt": f"prompt {number}", "negative_prompt": "", "seed": str(number)}
    values |= {"width": 64, "height": 64, "parameters": {"guidance_scale": "2.5"}, "keep": keep or {}}
    values |= {"thumbnail": picture((number % 256, number // 256, 7)), "depth": None, "problem": ""}
    values |= {
        "steps": (),
        "kept_images": (),
        "place": f"train-0, row {number}",
        "line": f'{{"row_id": "r{number}"}}',
    }
    return Frame(**(values | changes))


def swept() -> list[Frame]:
    """The frames of a sweep of prompts, scales and seeds, without the last one."""
    cells = [(prompt, scale, seed) for prompt in PROMPTS for scale in SCALES for seed in SEEDS]
    return [
        frame(
            number,
            {"sweep_prompt": prompt, "sweep_guidance_scale": scale, "sweep_seed": seed},
            prompt=prompt,
            seed=seed,
            parameters={"guidance_scale": scale},
        )
        for number, (prompt, scale, seed) in enumerate(cells[:-1])
    ]


def sheet_of(frames: list[Frame], failures: tuple[Failure, ...] = ()) -> Sheet:
    """A finished job's sheet."""
    totals = Totals(
        ok=len(frames), failed=len(failures), images=len(frames), error_codes=(("bad", len(failures)),)
    )
    return Sheet(
        name="job",
        output="/out",
        fingerprint="f",
        checkpoints={"sd": "some/checkpoint"},
        random_models=(),
        num_rows=totals.rows,
        num_shards=1,
        num_parts=1,
        num_searched=1,
        totals=totals,
        size="1 MB",
        finished_at="",
        last_run="",
        frames=tuple(frames),
        failures=failures,
    )


@pytest.fixture
def opened(browser: Browser, tmp_path: Path) -> Callable[..., Browser]:
    """A function that opens a sheet."""

    def open_sheet(sheet: Sheet, fragment: str = "", **size: int) -> Browser:
        path = tmp_path / "contact-sheet.html"
        path.write_text(render(sheet), encoding="utf-8")
        browser.open(f"file://{path}{fragment}", **size)
        return browser

    return open_sheet


Opened = Callable[..., Browser]
VISIBLE = "[...document.querySelectorAll('.frame')].filter((each) => !each.hidden).length"
CELLS = (
    "[...document.querySelectorAll('#grid-table tbody tr')].map((row) =>"
    " [...row.querySelectorAll('td')].map((cell) =>"
    " [...cell.querySelectorAll('.cell')].map((each) => each.title)))"
)


def test_a_sweep_opens_as_a_grid(opened: Opened) -> None:
    """Prompts are the rows, numbers the columns in their order, and the seed is a filter."""
    page = opened(sheet_of(swept()))

    assert page.ask(
        "[...document.querySelectorAll('#grid-table thead th')].map((each) => each.textContent)"
    ) == [*SCALES]
    assert page.ask(
        "[...document.querySelectorAll('#grid-table tbody th')].map((each) => each.textContent)"
    ) == [*PROMPTS]
    assert page.ask(CELLS) == [[["r0"], ["r2"], ["r4"]], [["r6"], ["r8"], ["r10"]]]
    assert page.ask("document.querySelector('#frames').hidden")
    assert page.problems() == []
    assert page.requests() == []


def test_axes_are_chosen_and_kept_in_the_address(opened: Opened) -> None:
    """A filter that is `all` puts several images into a cell; values that no row has are an empty cell."""
    page = opened(sheet_of(swept()))
    choose = "((label, value) => { const select = [...document.querySelectorAll('.axis')].find((each) => "
    choose += "each.firstChild.textContent === label).querySelector('select'); select.value = value; "
    choose += "select.dispatchEvent(new Event('change')); })"
    page.ask(f"{choose}('rows', 'sweep_seed')")
    page.ask(f"{choose}('prompt', '')")
    both = page.ask(CELLS)
    address = page.ask("location.hash")
    page.ask(f"{choose}('prompt', 'a blue square')")
    one = page.ask(CELLS)
    page.click(".swap")

    assert both == [[["r0", "r6"], ["r2", "r8"], ["r4", "r10"]], [["r1", "r7"], ["r3", "r9"], ["r5"]]]
    assert one == [[["r6"], ["r8"], ["r10"]], [["r7"], ["r9"], []]]
    assert page.ask(CELLS) == [[["r6"], ["r7"]], [["r8"], ["r9"]], [["r10"], []]]
    assert opened(sheet_of(swept()), address).ask(CELLS) == both


def test_a_failed_row_is_in_its_cell(opened: Opened) -> None:
    """With its error code."""
    failure = Failure(
        row_id="r11",
        task="text2img",
        model="sd",
        prompt=PROMPTS[1],
        error_code="bad",
        error_message="why",
        place="train-0, row 11",
        keep={"sweep_prompt": PROMPTS[1], "sweep_guidance_scale": SCALES[2], "sweep_seed": SEEDS[1]},
    )
    page = opened(
        sheet_of(swept(), (failure,)),
        "#x=sweep_guidance_scale&y=sweep_seed&is.sweep_prompt=a%20blue%20square",
    )

    assert page.ask("document.querySelector('#grid-table .failure').textContent") == "bad"
    assert page.ask(CELLS)[1][2] == ["r11: why"]


def test_values_whose_rows_have_all_failed_are_on_the_axes(opened: Opened) -> None:
    """So that a scale that no device can generate is seen. Of other properties failed rows have no value."""
    keep = [{"sweep_guidance_scale": scale, "sweep_seed": "0"} for scale in ("2.5", "9", "10")]
    failures = tuple(
        Failure(
            row_id=f"f{number}",
            task="text2img",
            model="sd",
            prompt="p",
            error_code="out_of_memory",
            error_message="why",
            place="",
            keep=each,
        )
        for number, each in enumerate(keep[1:])
    )
    page = opened(sheet_of([frame(0, keep[0]), frame(1, {**keep[0], "sweep_seed": "1"})], failures))

    assert page.ask(CELLS) == [[["r0"], ["r1"]], [["f0: why"], []], [["f1: why"], []]]


def test_arrows_go_from_cell_to_cell_and_open_the_large_view(opened: Opened) -> None:
    """There they go on in the order of the grid, and Escape returns to the cell of the image."""
    page = opened(sheet_of(swept()))
    page.ask("document.querySelector('.cell').focus()")
    page.press("ArrowRight")
    page.press("ArrowDown")
    focused = page.ask("document.activeElement.title")
    page.press("Enter", text="\r")
    page.wait_for("document.querySelector('#large').open")
    page.press("ArrowRight")
    values = page.ask("document.querySelector('#large-values').innerText")
    page.press("Escape")

    assert focused == "r8"
    page.wait_for("document.activeElement.title === 'r10'")
    assert all(text in values for text in ("guidance_scale", "10", "some/checkpoint", "train-0, row 10"))


def test_frames_are_searched_and_filtered(opened: Opened) -> None:
    """`/` goes to the search; the count tells how many of them are shown."""
    frames = [frame(n, model="sd" if n % 2 else "xl") for n in range(20)]
    page = opened(sheet_of(frames))

    assert page.ask("document.querySelector('#grid').hidden")
    page.press("/", text="/")
    for letter in "prompt 1":
        page.press(letter, text=letter)
    assert page.ask(VISIBLE) == 11
    page.ask(
        "[...document.querySelectorAll('.chip')].find((each) => each.textContent.startsWith('xl')).click()"
    )
    assert page.ask(VISIBLE) == 5
    assert "5 of 20 frames" in page.ask("document.querySelector('#count').textContent")
    page.click("#clear")
    assert page.ask(VISIBLE) == 20


def test_frames_without_a_sweep_have_a_grid_too(opened: Opened) -> None:
    """The key g shows it."""
    frames = [
        frame(n, task="text2img" if n < 4 else "img2img", model=f"m{n % 2}", prompt="p") for n in range(8)
    ]
    page = opened(sheet_of(frames))
    page.press("g", text="g")

    assert page.ask("document.querySelector('#grid').hidden") is False
    assert page.ask("document.querySelectorAll('#grid-table .cell').length") == 8


def test_hostile_texts_stay_texts(opened: Opened) -> None:
    """Nothing in a row runs, and nothing is requested."""
    texts = (
        "<script>document.title = 'run'</script>",
        "<img src=http://example.com/x onerror=alert(1)>",
        "م" * 10_000,
    )
    frames = [frame(n, {"sweep_prompt": text}, prompt=text, row_id=text) for n, text in enumerate(texts)]
    page = opened(sheet_of(frames))

    assert page.ask("document.title").startswith("job")
    assert page.ask("document.querySelectorAll('#grid-table tbody th')[1].textContent") == texts[1]
    assert page.requests() == []
    assert page.problems() == []


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("view", ["grid", "frames"])
def test_the_page_is_as_wide_as_the_window(opened: Opened, width: int, view: str) -> None:
    """A wide grid scrolls in itself."""
    frames = [
        frame(n, {"sweep_prompt": f"{'long ' * 30}{n // 40}", "sweep_seed": str(n % 40)}) for n in range(480)
    ]
    page = opened(sheet_of(frames), f"#view={view}", width=width)

    assert page.ask("document.documentElement.scrollWidth") <= width
    assert page.ask("document.querySelector('#grid').hidden") is (view == "frames")


def test_two_thousand_frames_scroll_without_a_stutter(opened: Opened) -> None:
    """The screen is never long without a new picture, from the top to the bottom."""
    page = opened(sheet_of([frame(n) for n in range(2000)]))
    longest = page.ask(
        """new Promise((done) => {
          let last = performance.now(), longest = 0, count = 0;
          const step = (now) => {
            longest = Math.max(longest, now - last); last = now;
            scrollTo(0, (document.documentElement.scrollHeight - innerHeight) * ++count / 60);
            if (count < 60) requestAnimationFrame(step); else done(longest);
          };
          requestAnimationFrame((now) => { last = now; requestAnimationFrame(step); });
        })"""
    )

    assert longest < MAX_PAUSE_MS
    assert page.ask("scrollY") > 10_000


def test_a_copied_row_is_a_row_again(opened: Opened, tmp_path: Path) -> None:
    """The line of one image is input of another job, which gives the same image with the same parameters."""
    checkpoint = {"sd": {"checkpoint": str(paper_checkpoint(tmp_path / "sd"))}}
    rows: list[Record] = [
        {"row_id": f"r{n}", "prompt": f'prompt "{n}"', "guidance_scale": 1.23456789 + n} for n in range(3)
    ]
    spec = job_spec(write_rows(tmp_path / "rows.parquet", rows), tmp_path / "out", models=checkpoint)
    engine, console = "tests.support.engines:quick", Console(file=io.StringIO())
    first = run_trial(spec, Choice(), console, engine=engine).output
    page = opened(make_sheet(open_output(first), max_images=10))
    page.ask("navigator.clipboard.writeText = (text) => { window.copied = text; return Promise.resolve(); }")
    page.ask("document.querySelectorAll('.film')[1].click()")
    page.click("#large-line button")
    (tmp_path / "copied.jsonl").write_text(page.ask("window.copied") + "\n")

    again = job_spec(tmp_path / "copied.jsonl", tmp_path / "again", models=checkpoint)
    second = run_trial(again, Choice(), console, engine=engine).output

    (copied,) = output_rows(Path(second))
    original = next(row for row in output_rows(Path(first)) if row["row_id"] == copied["row_id"])
    for row in (copied, original):
        del row["image"]["path"]
    assert copied == original
