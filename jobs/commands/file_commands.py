"""The commands that write a file to begin with: a first spec, the schema, demo models and adapters."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from jobs.commands.command_line import console
from models.demo_adapters import KINDS as ADAPTERS
from schemas.errors import SpecError


def init(
    path: Annotated[
        str,
        typer.Argument(
            help="Prompts or rows: a file, folder or pattern, local, s3:// or hf://.", metavar="INPUT"
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            help="A Hub repository, a folder, a .safetensors file or demo:KIND; default demo:shapes.",
            metavar="CHECKPOINT",
        ),
    ] = None,
    spec: Annotated[
        Path | None, typer.Option(help="File to write; by default INPUT's name with .yaml.", metavar="FILE")
    ] = None,
    output: Annotated[
        str | None, typer.Option(help="The job's output; by default out/ and INPUT's name.", metavar="OUTPUT")
    ] = None,
    prompt_column: Annotated[
        str | None,
        typer.Option(help="The column with the prompts, if its name does not tell.", metavar="NAME"),
    ] = None,
) -> None:
    """Write a spec for an input: its columns found, its task told from them. Never overwrites a file.

    Example: echo "a big red circle" > prompts.txt && darkroom init prompts.txt
    """
    from jobs.drafting.first_spec import Wishes, write_first_spec

    wishes = Wishes(path=path, model=model, spec=spec, output=output, prompt_column=prompt_column)
    write_first_spec(wishes, console())


def schema(
    path: Annotated[
        Path | None, typer.Argument(help="File to write; by default the schema is printed.")
    ] = None,
) -> None:
    """Write the JSON schema of specs, which editors use to complete and check the YAML.

    Example: darkroom schema job-spec.schema.json
    """
    from schemas.spec.spec_schema import spec_json_schema

    text = spec_json_schema()
    if path is None:
        sys.stdout.write(text)
        return
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SpecError(f"{path}: cannot be written: {error.strerror or error}") from error


def demo_model(
    folder: Annotated[Path, typer.Argument(help="Folder to write to.")],
    kind: Annotated[
        str,
        typer.Option(
            help=f"Kind of checkpoint; docs/job-spec.md lists all. Or of adapter: {', '.join(ADAPTERS)}."
        ),
    ] = "sd",
    checkpoint: Annotated[
        str, typer.Option(help="What a random adapter is for: a checkpoint's folder, or demo:KIND.")
    ] = "demo:sd",
    seed: Annotated[int, typer.Option(help="Seed of the random weights.")] = 0,
) -> None:
    """Write a small checkpoint or adapter to try darkroom with: a trained one, or one with random weights.

    Example: darkroom demo-model shapes --kind shapes
    """
    from models import demo_adapters, demo_cache

    if kind in demo_adapters.KINDS:
        demo_adapters.build(folder, kind, checkpoint, seed)
        of_random = f" for {checkpoint} with random weights" if kind in demo_adapters.RANDOM_KINDS else ""
        console().print(f"{folder}: the adapter {kind}{of_random}", soft_wrap=True)
        return
    demo_cache.build(folder, kind, seed)
    weights = (
        " with random weights; its images are noise by design" if kind in demo_cache.RANDOM_KINDS else ""
    )
    console().print(f"{folder}: a {kind} checkpoint{weights}", soft_wrap=True)
