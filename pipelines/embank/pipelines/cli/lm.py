"""The commands `embank lm ...`: small language models with memory tables."""

from pathlib import Path
from typing import Annotated

import typer

from embank.pipelines.cli import show

app = typer.Typer(help="Small language models with Engram and STEM memory tables.", no_args_is_help=True)


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="The YAML configuration.")],
    out: Annotated[Path, typer.Option(help="The run directory.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE, for example memory.kind=engram; may be repeated.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")] = False,
) -> None:
    """Train a language model; the best checkpoint by validation is evaluated once on the test split.

    Example: `embank lm train examples/lm.yaml --set memory.kind=engram --out runs/engram`
    """
    from embank.pipelines.lm.config import load_lm_config
    from embank.pipelines.lm.trainer import LmTrainer
    from embank.pipelines.train.launch import joined_processes

    loaded = load_lm_config(config, overrides=set_ or [])
    with joined_processes() as processes, show.training() as reporter:
        result = LmTrainer(loaded, out, reporter=reporter, processes=processes).train(resume=resume)
    if processes.is_first:
        show.lm_result(out, result)


@app.command("eval")
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run directory of `embank lm train`.")],
    split: Annotated[str, typer.Option(help="train, valid or test.")] = "test",
    input: Annotated[
        list[Path] | None, typer.Option(help="Text files or folders instead of a split; may be repeated.")
    ] = None,
    tokens: Annotated[int | None, typer.Option(help="Tokens to read at most; all of them without it.")] = None,
) -> None:
    """Show the bits per byte of a run's best checkpoint, on a split of its corpus or on other text.

    Example: `embank lm eval runs/engram --input notes.txt`
    """
    from embank.pipelines.lm.corpus import SPLITS
    from embank.pipelines.lm.opened import evaluate_run
    from embank.tables.errors import ConfigError

    if split not in SPLITS:
        raise ConfigError(f"there is no split '{split}'; give one of {', '.join(SPLITS)}")
    if tokens is not None and tokens < 1:
        raise ConfigError(f"--tokens is {tokens}; it must be at least 1")
    show.lm_evaluation(evaluate_run(run, split=split, paths=input, most=tokens))


@app.command()
def generate(
    run: Annotated[Path, typer.Argument(help="A run directory of `embank lm train`.")],
    prompt: Annotated[str, typer.Option(help="What the text begins with.")] = "",
    tokens: Annotated[int, typer.Option(help="New tokens at most.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token, 1 draws as the model says.")] = 0.0,
    top: Annotated[int | None, typer.Option(help="Draw from this many of the likeliest tokens only.")] = None,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
) -> None:
    """Print text that goes on from a prompt, the prompt included.

    Example: `embank lm generate runs/engram --prompt "def main("`
    """
    from embank.pipelines.lm.generation import generate as go_on
    from embank.pipelines.lm.opened import opened_lm

    with opened_lm(run) as lm:
        made = go_on(lm.model, lm.corpus.tokenizer, prompt, most=tokens, temperature=temperature, top=top, seed=seed)
    show.out.print(prompt + made, markup=False)
