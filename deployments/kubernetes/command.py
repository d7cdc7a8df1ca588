"""`cuvee render k8s`: a blend file's objects, as a stream, as JSON, or as a Kustomize folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cluster.cli.options import JsonOption
from deployments.kubernetes.options import PARTS, RenderOptions

render = typer.Typer(
    help="Write a blend file as what other systems run.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_DEFAULTS = RenderOptions()


@render.callback()
def _root() -> None:
    """Write a blend file as what other systems run."""


@render.command("k8s")
def render_k8s(
    file: Annotated[Path, typer.Argument(help="The blend file.")],
    out: Annotated[
        Path | None, typer.Option(help="A folder for Kustomize. Default: all to stdout.")
    ] = None,
    name: Annotated[str, typer.Option(help="Of the RayService.")] = _DEFAULTS.name,
    namespace: Annotated[str, typer.Option(help="Where it runs.")] = _DEFAULTS.namespace,
    image: Annotated[str, typer.Option(help="With a tag or a digest.")] = _DEFAULTS.image,
    parts: Annotated[
        list[str] | None,
        typer.Option("--with", metavar="PART", help=f"One of {', '.join(PARTS)}; repeat it."),
    ] = None,
    host: Annotated[str, typer.Option(help="That clients outside call.")] = _DEFAULTS.host,
    gateway_class: Annotated[str, typer.Option(help="Whose gateway.")] = _DEFAULTS.gateway_class,
    issuer: Annotated[str, typer.Option(help="cert-manager's ClusterIssuer.")] = _DEFAULTS.issuer,
    redis_address: Annotated[str, typer.Option(help="host:port.")] = _DEFAULTS.redis_address,
    api_server: Annotated[
        str, typer.Option(metavar="CIDR", help="Where the head finds the API server.")
    ] = _DEFAULTS.api_server,
    storage: Annotated[str, typer.Option(help="Of the volume for models.")] = _DEFAULTS.storage,
    node_idle_s: Annotated[
        int, typer.Option(min=1, help="Seconds after which an empty pod goes.")
    ] = _DEFAULTS.node_idle_s,
    as_json: JsonOption = False,
) -> None:
    """Write the Kubernetes objects that run a blend file with KubeRay."""
    from cluster.cli.call import print_error, say
    from cluster.errors import CuveeError, SpecError
    from cluster.spec import load_spec
    from deployments.kubernetes.pools import guessed_memory
    from deployments.kubernetes.render import files_of, to_yaml, write_folder
    from deployments.kubernetes.render import render as objects_of

    try:
        spec = load_spec(file)
        options = RenderOptions(
            name=name,
            namespace=namespace,
            image=image,
            parts=frozenset(parts or ()),
            host=host,
            gateway_class=gateway_class,
            issuer=issuer,
            redis_address=redis_address,
            api_server=api_server,
            storage=storage,
            node_idle_s=node_idle_s,
        )
        objects = objects_of(spec, options)
    except SpecError as error:
        if as_json:
            print_error(error, as_json=True)
        else:  # its lines begin with the file's name and the line
            typer.echo(error.message, err=True)
        raise typer.Exit(2) from None
    except CuveeError as error:
        error.message = f"{error.field}: {error.message}"
        print_error(error, as_json=as_json)
        raise typer.Exit(1) from None
    for field in guessed_memory(spec):
        say(f"{field}: not given; pods are ended when they take more than is guessed")
    if out is not None:
        write_folder(out, files_of(objects))
    elif as_json:
        typer.echo(json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}, indent=2))
    else:
        typer.echo(to_yaml(objects), nl=False)
