"""Trains a classifier of textures eagerly, compiled, and with sketches, and compares the three.

Run from the checkout: `python -m demos.textures`. Reads its options, shows the progress and
prints the table; the data, the training and the wording are in the modules beside it.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import xconv_fx
from demos.devices import device_option
from demos.texture_data import TextureData, check_crop_size, load_photographs, split
from demos.texture_report import raw_figures, results_table, sentences
from demos.training import (
    EAGER,
    Settings,
    WayResult,
    build_model,
    num_test_crops,
    train_ways,
)
from xconv_fx.options import parse_options

_DEFAULTS = Settings()
_POSITIVE = click.IntRange(min=1)


@click.command(context_settings={"show_default": True})
@click.option("--model", default=_DEFAULTS.model, help="Classifier in models_zoo.")
@click.option("--steps", type=_POSITIVE, default=_DEFAULTS.steps, help="Steps of each training.")
@click.option("--batch-size", type=click.IntRange(min=2), default=_DEFAULTS.batch_size)
@click.option("--image-size", type=_POSITIVE, default=_DEFAULTS.image_size, help="Side of a crop.")
@click.option(
    "--width", type=_POSITIVE, help="Base width of the model.  [default: 16 where it has one]"
)
@click.option("--seeds", type=_POSITIVE, default=1, help="Trainings of each way.")
@click.option("--ways", default=",".join(_DEFAULTS.ways), help="Ways to run the model, by commas.")
@device_option
@click.option(
    "--options",
    "options",
    multiple=True,
    metavar="KEY=VALUE",
    help="An option of the xconv backend; may be given several times.",
)
@click.option("--report", is_flag=True, help="Print the report of the xconv backend.")
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Raw figures."
)
def main(
    model: str,
    steps: int,
    batch_size: int,
    image_size: int,
    width: int | None,
    seeds: int,
    ways: str,
    device: str,
    options: tuple[str, ...],
    report: bool,
    json_path: Path | None,
) -> None:
    """Train a classifier of textures in several ways and compare memory, time and accuracy.

    The classes are photographs that scikit-image carries; nothing is downloaded. Every way starts
    from the same weights and sees the same batches.
    """
    # The profiler that counts the bytes writes a line at each start and stop; only read once, and
    # later than this.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    settings = Settings(
        model=model,
        ways=_parse_ways(ways),
        steps=steps,
        batch_size=batch_size,
        image_size=image_size,
        width=width,
        num_seeds=seeds,
        backend_options=_parse_options(options),
        device=device,
    )
    data = split(load_photographs())
    _check(settings, data)
    console = Console()
    results = _train(settings, data, console)
    console.print(results_table(results, settings))
    for sentence in sentences(results, settings, num_test_crops(data)):
        console.print(sentence, highlight=False)
    if report:
        console.print(str(xconv_fx.last_report()), markup=False, highlight=False, soft_wrap=True)
    if json_path is not None:
        figures = raw_figures(results, settings, num_test_crops(data))
        json_path.write_text(json.dumps(figures, indent=2) + "\n")


def _parse_ways(text: str) -> tuple[str, ...]:
    ways = tuple(way.strip() for way in text.split(",") if way.strip())
    known = [EAGER, *torch.compiler.list_backends()]
    unknown = [way for way in ways if way not in known]
    if unknown:
        hint = ' Install the checkout: pip install -e ".[demo]".' if "xconv" in unknown else ""
        raise click.BadParameter(
            f"unknown way {', '.join(unknown)}; known: {', '.join(known)}.{hint}",
            param_hint="--ways",
        )
    if not ways or len(set(ways)) < len(ways):
        raise click.BadParameter(
            f"expected one or more different ways, got {text!r}.", param_hint="--ways"
        )
    return ways


def _parse_options(pairs: tuple[str, ...]) -> Mapping[str, int | float | bool | str]:
    options: dict[str, int | float | bool | str] = {}
    for pair in pairs:
        key, separator, text = pair.partition("=")
        if not (key and separator):
            raise click.BadParameter(f"expected KEY=VALUE, got {pair!r}.", param_hint="--options")
        options[key] = _parse_value(text)
    return options


def _parse_value(text: str) -> int | float | bool | str:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def _check(settings: Settings, data: TextureData) -> None:
    """Refuses what could only fail after minutes of training."""
    try:
        check_crop_size(data, settings.image_size)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--image-size") from error
    try:
        build_model(settings, len(data.names), seed=0)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--model") from error
    try:
        parse_options(settings.backend_options)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--options") from error


def _train(settings: Settings, data: TextureData, console: Console) -> list[WayResult]:
    bar = Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
        console=console,
        transient=True,
    )
    with bar:
        task = bar.add_task("", total=settings.steps * settings.num_seeds)
        return train_ways(
            settings,
            data,
            lambda num_done, text: bar.update(task, completed=num_done, description=text),
        )


if __name__ == "__main__":
    main()
