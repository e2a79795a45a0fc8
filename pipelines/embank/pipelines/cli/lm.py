"""The commands `embank lm ...`: small language models with memory tables."""

from pathlib import Path
from typing import Annotated

import typer

from embank.pipelines.cli import one_process, show

app = typer.Typer(help="Small language models with Engram and STEM memory tables.", no_args_is_help=True)


@app.callback()
def _options(context: typer.Context) -> None:
    if context.invoked_subcommand != "train":
        one_process.refuse_several(f"embank lm {context.invoked_subcommand}")


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

    with joined_processes() as processes, show.training() as reporter:
        with processes.together():
            loaded = load_lm_config(config, overrides=set_ or [])
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
    overlay: Annotated[
        Path | None, typer.Option(help="Edited rows, as `embank lm edit --overlay` writes them.")
    ] = None,
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
    show.lm_evaluation(evaluate_run(run, split=split, paths=input, most=tokens, overlay=overlay))


@app.command()
def generate(
    run: Annotated[Path, typer.Argument(help="A run directory of `embank lm train`.")],
    prompt: Annotated[str, typer.Option(help="What the text begins with.")] = "",
    tokens: Annotated[int, typer.Option(help="New tokens at most.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token, 1 draws as the model says.")] = 0.0,
    top: Annotated[int | None, typer.Option(help="Draw from this many of the likeliest tokens only.")] = None,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    overlay: Annotated[
        Path | None, typer.Option(help="Edited rows, as `embank lm edit --overlay` writes them.")
    ] = None,
) -> None:
    """Print text that goes on from a prompt, the prompt included.

    Example: `embank lm generate runs/engram --prompt "def main("`
    """
    from embank.pipelines.lm.generation import generate as go_on
    from embank.pipelines.lm.opened import opened_lm

    with opened_lm(run, overlay=overlay) as lm:
        made = go_on(lm.model, lm.corpus.tokenizer, prompt, most=tokens, temperature=temperature, top=top, seed=seed)
    show.out.print(prompt + made, markup=False)


@app.command()
def edit(
    run: Annotated[Path, typer.Argument(help="A run directory of `embank lm train` with memory.kind stem or engram.")],
    prompt: Annotated[str, typer.Option(help="A text that shows the edit.")],
    source: Annotated[str | None, typer.Option(help="STEM: a phrase of the prompt.")] = None,
    target: Annotated[str | None, typer.Option(help="STEM: the phrase whose rows it reads.")] = None,
    strategy: Annotated[
        str, typer.Option(help="STEM: for phrases of unequal length: copy, pad_left, pad_right, subset or average.")
    ] = "copy",
    answer: Annotated[str | None, typer.Option(help="Engram: what the prompt is to be followed by.")] = None,
    overlay: Annotated[
        Path | None,
        typer.Option(
            help="Write the edited rows here, for `embank lm generate --overlay`, over an overlay that is there; "
            "the run stays as it is."
        ),
    ] = None,
    tokens: Annotated[int, typer.Option(help="New tokens to show at most.")] = 24,
) -> None:
    """Edit what a run's memory says, and show what the prompt is followed by before and after.

    STEM: a phrase reads another one's rows, in this prompt alone, or with --overlay wherever it stands.
    Engram: the rows of the prompt's last n-gram are tuned until the answer follows.

    Example: `embank lm edit runs/stem --prompt "import os" --source os --target sys`

    And: `embank lm edit runs/engram --prompt "The door is" --answer " open" --overlay open.safetensors`
    """
    from embank.pipelines.lm.editing import swap_phrase, write_fact
    from embank.pipelines.lm.opened import opened_lm
    from embank.tables.errors import ConfigError
    from embank.tables.memory import save_overlay
    from embank.tables.memory.overlays import refuse_other_files

    is_swap = source is not None and target is not None and answer is None
    if not is_swap and (answer is None or source is not None or target is not None):
        raise ConfigError("give --source and --target for a run with STEM rows, or --answer for one with Engram rows")
    if overlay is not None:
        refuse_other_files(overlay)
    with opened_lm(run) as lm:
        if answer is not None:
            done = write_fact(lm.model, lm.corpus.tokenizer, prompt=prompt, answer=answer, most=tokens)
        else:
            assert source is not None
            assert target is not None
            done = swap_phrase(
                lm.model,
                lm.corpus.tokenizer,
                prompt=prompt,
                source=source,
                target=target,
                strategy=strategy,  # type: ignore[arg-type] # checked where it is used
                everywhere=overlay is not None,
                most=tokens,
            )
        if overlay is not None and done.session is not None:
            save_overlay(done.session, overlay)
    show.lm_edit(prompt, done, overlay)
