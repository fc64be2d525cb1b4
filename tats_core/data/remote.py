"""Decoding on any CPUs of a Ray cluster, for trainers whose own machine cannot decode fast enough.

Ray actors, not Ray Data: a request is answered by the same call as in a decoding process, whole and in order,
so the samples are the same bits, and nothing is converted to Arrow's columns and back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import ray
import torch
from torch import Tensor
from torch.utils.data import Dataset

Answer = TypeVar("Answer")

_AHEAD = 2  # requests that each decoder holds: one in work, one that waits


class RemoteDecoders(Generic[Answer]):
    """Yields `source[request]` of all `requests` in order, whatever the list holds when this is iterated.

    A decoder is an actor with a CPU of its own, on any machine. One that is lost with its machine starts
    elsewhere, and what it had not answered is asked again.
    """

    def __init__(self, source: Dataset[Answer], requests: Sequence[Any], count: int) -> None:
        self._requests = requests
        self._source = ray.put(source)  # held, since a decoder that starts again reads it again
        options = {"num_cpus": 1, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": "SPREAD"}
        self._decoders = [_Decoder.options(**options).remote(self._source) for _ in range(count)]  # type: ignore[attr-defined]

    def __iter__(self) -> Iterator[Answer]:
        waiting: deque[Any] = deque()
        for number, request in enumerate(self._requests):
            waiting.append(self._decoders[number % len(self._decoders)].answer.remote(request))
            if len(waiting) == _AHEAD * len(self._decoders):
                yield ray.get(waiting.popleft())
        while waiting:
            yield ray.get(waiting.popleft())


@ray.remote
class _Decoder:
    def __init__(self, source: Dataset[Any]) -> None:
        # Ray would copy a tensor's bytes through pickle; an array's go to shared memory as they are.
        ray.util.register_serializer(Tensor, serializer=Tensor.numpy, deserializer=_copied)
        torch.set_num_threads(1)
        self._source = source

    def answer(self, request: Any) -> Any:
        return self._source[request]


def _copied(shared: np.ndarray[Any, Any]) -> Tensor:
    """A copy: an array that Ray hands out is read-only, and stays in the object store while it is used."""
    return torch.tensor(shared)
