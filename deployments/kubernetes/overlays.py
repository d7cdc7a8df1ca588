"""The installations that the repository ships in `k8s/`, each rendered from its own blend file.

python -m deployments.kubernetes.overlays          # write them again; `make k8s` does
"""

from __future__ import annotations

from pathlib import Path

from cluster.spec import load_spec
from deployments.kubernetes.options import PARTS, RenderOptions
from deployments.kubernetes.render import environment, files_of, installation, write_folder

FOLDER = Path(__file__).parents[2] / "k8s"
BLEND_FILE = "blend.yaml"
OVERLAYS = {
    "local": RenderOptions(),
    "gpu": RenderOptions(),
    "production": RenderOptions(parts=frozenset(PARTS)),
}


def rendered() -> dict[str, str]:
    """Every file by its path below `k8s/`, from the blend files that lie there."""
    files = {f"base/{name}": text for name, text in files_of(environment(RenderOptions())).items()}
    for overlay, options in OVERLAYS.items():
        spec = load_spec(FOLDER / "overlays" / overlay / BLEND_FILE)
        own = files_of(installation(spec, options), resources=["../../base"])
        files |= {f"overlays/{overlay}/{name}": text for name, text in own.items()}
    return files


def main() -> None:
    """Write all files."""
    for path, text in rendered().items():
        write_folder((FOLDER / path).parent, {Path(path).name: text})


if __name__ == "__main__":
    main()
