"""A ranker's replica on Serve, and the router's calls on it through its handle.

A reply is ranked once, not once per token: Serve's own calls are fast enough, and it batches them.
"""

from __future__ import annotations

import asyncio
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from cluster.errors import CuveeError, Unavailable
from cluster.rankers.base import Measures, RankRequest
from cluster.spec import RankerSpec

MAX_RANKINGS = 64  # that wait for one replica or are under way on it

_BATCH = 16
_NUM_TRIES = 5
_RETRY_S = 0.2


class RankerDeployment:
    """What Serve runs for each replica of a ranker."""

    async def __init__(self, spec: dict[str, Any]) -> None:  # type: ignore[misc]  # Serve awaits it
        # Here, since it brings torch along: the driver and the router do without.
        import torch

        from cluster.rankers.model import RankerModel

        parsed = RankerSpec.model_validate(spec)
        torch.set_num_threads(max(1, round(parsed.resources.num_cpus)))
        self._model = await asyncio.to_thread(RankerModel, parsed)

    async def ready(self) -> None:
        """The model is loaded when this can be called."""

    @serve.batch(max_batch_size=_BATCH, batch_wait_timeout_s=0)
    async def measure(self, requests: list[RankRequest]) -> list[Measures]:
        """What the model says of each request's replies."""
        return await asyncio.to_thread(self._model.measure, requests)


class ServeRanker:
    """A ranker behind its Serve deployment."""

    def __init__(self, name: str, handle: DeploymentHandle[Any]) -> None:
        self._name = name
        self._handle = handle

    async def ready(self) -> None:
        """Return once a replica has its model."""
        await self._call("ready")

    async def measure(self, request: RankRequest) -> Measures:
        """What the model says of the replies."""
        found: Measures = await self._call("measure", request)
        return found

    async def _call(self, method: str, *args: Any) -> Any:
        """Ask a replica; another one where it is lost, since nothing is lost with it."""
        for _ in range(_NUM_TRIES):
            try:
                return await self._handle.options(method_name=method).remote(*args)
            except CuveeError:
                raise
            except (RayError, RayServeException) as error:
                last = error
                await asyncio.sleep(_RETRY_S)
        words = str(last).splitlines()[-1]
        raise Unavailable(
            "RANKER_UNAVAILABLE", f"ranker {self._name!r} does not answer: {words}"
        ) from last
