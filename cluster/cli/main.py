"""`cuvee`: the typer app, as far as it goes without Ray; `deployments.cli` adds `up` and `demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup

from cluster import __version__
from cluster.cli.blends import blends
from cluster.cli.chat import chat
from cluster.cli.credentials import shows_credentials
from cluster.cli.explain import explain
from cluster.cli.generate import generate
from cluster.cli.keys import keys
from cluster.cli.options import JsonOption
from cluster.cli.perplexity import perplexity
from cluster.cli.processes import member, router
from cluster.cli.status import status

app = typer.Typer(
    name="cuvee",
    help="Several small language models served as one.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # boxes cost more time than all the rest of --help
    context_settings={"help_option_names": ["-h", "--help"]},
)
models = typer.Typer(
    help="Models that blend files can name.", no_args_is_help=True, rich_markup_mode=None
)
evaluate = typer.Typer(
    help="Measure blends and members on texts of yours.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

gate = typer.Typer(
    help="Learned gates of route blends.", no_args_is_help=True, rich_markup_mode=None
)


class MergeByDefault(TyperGroup):
    """`cuvee merge RECIPE OUT` beside `cuvee merge search …`: what is no command is a recipe."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        known = {*self.commands, *ctx.help_option_names}
        named = args if args and args[0] in known else ["run", *args]
        return super().parse_args(ctx, named if args else args)


merges = typer.Typer(
    cls=MergeByDefault,
    help="Merge weights: cuvee merge RECIPE OUT.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

RevisionOption = Annotated[
    str | None, typer.Option(help="A branch, tag or commit of a hub repository.")
]


def _version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"cuvee {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print and exit.")
    ] = False,
) -> None:
    """Several small language models served as one."""


for command in (generate, chat, explain, blends, status):
    app.command()(shows_credentials(command))
for process in (member, router):
    app.command()(process)


@app.command()
def check(file: Annotated[Path, typer.Argument()], as_json: JsonOption = False) -> None:
    """Say what a blend file means, whether it fits, and what looks wrong with it."""
    from rich.console import Console

    from cluster.cli.check import check

    raise typer.Exit(check(file, as_json, Console()))


@models.command("list")
def list_models(as_json: JsonOption = False) -> None:
    """List the models that are here, and those that can be fetched without a hub."""
    from rich.console import Console

    from cluster.cli.models import list_models

    raise typer.Exit(list_models(as_json, Console()))


@models.command("show")
def show_model(
    model: Annotated[str, typer.Argument(help="As a blend file names it.")],
    revision: RevisionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what is known of one model without loading its weights."""
    from rich.console import Console

    from cluster.cli.models import show_model

    raise typer.Exit(show_model(model, revision, as_json, Console()))


@models.command("fetch")
def fetch_model(
    name: Annotated[str, typer.Argument(help="smollm2, or a hub repository org/name.")],
    revision: RevisionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bring a model to this machine."""
    from rich.console import Console

    from cluster.cli.models import fetch_model

    raise typer.Exit(fetch_model(name, revision, as_json, Console()))


@gate.command("train")
def train_gate(
    file: Annotated[Path, typer.Argument(help="The blend file.")],
    data: Annotated[Path, typer.Argument(help="JSONL: prompt or messages, with member or reply.")],
    blend: Annotated[str, typer.Option("--blend", "-b", help="Default: the only one.")] = "",
    hidden: Annotated[int, typer.Option(min=0, help="Hidden units; 0: a linear gate.")] = 0,
    held_out: Annotated[
        float, typer.Option(min=0.05, max=0.5, help="Share of examples to judge it by.")
    ] = 0.2,
    seed: Annotated[int, typer.Option(min=0, help="Of the split and of the start.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Fit the learned gate of a blend and write its file."""
    from rich.console import Console

    from cluster.cli.gate import train_gate

    raise typer.Exit(train_gate(file, data, blend, hidden, held_out, seed, as_json, Console()))


@merges.command("run")
def run_merge(
    recipe: Annotated[Path, typer.Argument(help="A recipe in YAML, as mergekit's files are.")],
    out: Annotated[Path, typer.Argument(help="The folder to make.")],
    compare: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Then compare it with its models and their blends on this text; of reward models, "
            "on JSONL of prompt, chosen, rejected. May be repeated.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Merge checkpoints into a new model folder; `run` may be left out."""
    from rich.console import Console

    from cluster.cli.merge import merge

    raise typer.Exit(merge(recipe, out, compare or [], as_json, Console()))


@merges.command("search")
def search_merge(
    recipe: Annotated[Path, typer.Argument(help="A recipe; its weights are where it starts.")],
    files: Annotated[
        list[Path], typer.Argument(help="Texts, or JSONL with prompt and reply in each line.")
    ],
    out: Annotated[Path | None, typer.Option(help="Write the tuned recipe there.")] = None,
    evaluations: Annotated[int, typer.Option(min=5, help="Most merges to try.")] = 40,
    limit: Annotated[int, typer.Option(min=2, help="Most passages per text.")] = 24,
    as_json: JsonOption = False,
) -> None:
    """Tune a recipe's weights on half of the passages; report both halves."""
    from rich.console import Console

    from cluster.cli.merge import search

    raise typer.Exit(search(recipe, files, out, evaluations, limit, as_json, Console()))


@evaluate.command("rewards")
def eval_rewards(
    pairs: Annotated[Path, typer.Argument(help="JSONL: prompt, chosen and rejected.")],
    model: Annotated[list[str], typer.Option(help="As a blend file names it; repeat for more.")],
    noise: Annotated[float, typer.Option(min=0, max=1, help="Share of letters replaced.")] = 0.1,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Reward models side by side: accuracy, and agreement when their inputs are noised."""
    from rich.console import Console

    from cluster.cli.merge import rewards

    raise typer.Exit(rewards(model, pairs, noise, seed, as_json, Console()))


evaluate.command()(shows_credentials(perplexity))

app.add_typer(models, name="models")
app.add_typer(evaluate, name="eval")
app.add_typer(gate, name="gate")
app.add_typer(merges, name="merge")
app.add_typer(keys, name="keys")
