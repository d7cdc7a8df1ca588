"""What a ranker's configuration says before any weight is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cluster.errors import Unsupported
from cluster.spec import RankerSpec

_HEAD = "ForSequenceClassification"


def read_ranker_config(folder: Path, spec: RankerSpec) -> Any:
    """The model's configuration; raises Unsupported where it cannot be a ranker of its kind."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # each architecture checks its file in its own way
        message = f"{folder / 'config.json'} cannot be used: {error}"
        raise Unsupported("RANKER_UNSUPPORTED", message, field="model") from error
    if spec.kind == "embedding":
        return config
    architecture = (config.architectures or [""])[0]
    if not architecture.endswith(_HEAD):
        message = (
            f"{folder} holds a {architecture or config.model_type}; expected a sequence "
            f"classifier (…{_HEAD}) for kind {spec.kind}"
        )
        raise Unsupported("RANKER_UNSUPPORTED", message, field="model")
    if config.num_labels > 2:
        message = f"{folder} tells {config.num_labels} labels apart; expected 1 or 2"
        raise Unsupported("RANKER_UNSUPPORTED", message, field="model")
    return config
