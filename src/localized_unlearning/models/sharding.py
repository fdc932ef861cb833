"""One model over several processes, a GPU each: every decoder layer in parts, put together while it runs.

This is fully sharded data parallelism (Zhao et al. 2023) as PyTorch has it. Every process runs the whole stage on the
whole data, so that stages need not know of each other; only where a batch costs most do they divide the work
(:func:`share`). What a stage reads of a layer's weights outside a forward pass, it reads through :func:`held` and
:func:`whole`. Embeddings, norms between layers, the output layer and adapters added later are whole everywhere.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from localized_unlearning import computing
from localized_unlearning import memory as memory_module
from localized_unlearning.errors import UserError
from localized_unlearning.models import components, room

if TYPE_CHECKING:
    from torch import Tensor

    from localized_unlearning.jobs.job import Job


T = TypeVar("T")


# ---- processes


def run(job: Job, function: Callable[[Job], None], processes: int) -> dict[str, float] | None:
    """Run a stage's ``function`` in ``processes`` processes of this machine, and take over the first one's outputs.

    Returns:
        The memory of the first, as :class:`records.Record` has it; its facts are added to the job's.

    Raises:
        UserError: what a process reports, or that one of them was killed.
    """
    from torch.multiprocessing.spawn import ProcessExitedException, start_processes

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        arguments = (processes, job, function, place)
        running = start_processes(_work, arguments, processes, join=False, start_method="spawn")
        try:
            while not running.join():
                pass
        except ProcessExitedException as error:
            reported = [p.read_text(encoding="utf-8") for p in sorted(place.glob("*.error"))]
            ended = f"process {error.error_index + 1} of the {processes} that share the model ended ({error.msg}): "
            remedy = "see the log above; if it was killed for its memory, ask for more"
            raise UserError(reported[0] if reported else ended + remedy) from error
        finally:  # one that fails leaves the others waiting for it
            for process in running.processes:
                process.kill()
                process.join()
        found = json.loads((place / "report.json").read_text(encoding="utf-8"))
    job.facts.update(found["facts"])
    job.written.update(found["written"])
    memory: dict[str, float] | None = found["memory"]
    return memory


def _work(rank: int, processes: int, job: Job, function: Callable[[Job], None], place: Path) -> None:
    """One of the processes; those after the first say nothing and write where nobody looks."""
    import torch
    from torch import distributed

    before = memory_module.resident()
    waits = timedelta(hours=2)  # for the others to load; should one of them end, `run` ends the rest
    gpu = job.config.compute.device != "cpu" and torch.cuda.is_available()
    if gpu and torch.cuda.device_count() >= processes:  # else models.setup says so
        torch.cuda.set_device(rank)
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if gpu else "gloo",
        init_method=f"file://{place}/meeting",
        rank=rank,
        world_size=processes,
        timeout=waits,
    )
    try:
        if rank == 0:
            with computing.noting():
                function(job)
                compute = computing.compute(job.config.compute.model_dump())
            memory = memory_module.peak_memory(before)
            facts = {**job.facts, "compute": compute}
            report = {"facts": facts, "written": job.written, "memory": memory}
            (place / "report.json").write_text(json.dumps(report), encoding="utf-8")
        else:
            sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
            elsewhere = place / str(rank)
            elsewhere.mkdir()
            function(replace(job, outputs={n: elsewhere / p.name for n, p in job.outputs.items()}))
    except Exception as error:
        told = str(error) if isinstance(error, UserError) else room.exhausted(error, job.stage.name)
        if told is None:
            raise
        (place / f"{rank}.error").write_text(told, encoding="utf-8")
        raise SystemExit(1) from error
    distributed.destroy_process_group()


def sharded(load: Callable[[], Any], kind: str) -> Any:
    """The model that ``load`` gives on the CPU, its layers divided over the processes of this job.

    They load it one after the other, so that the host holds one whole copy at a time.

    Args:
        load: gives the model, frozen.
        kind: ``cuda`` or ``cpu``.
    """
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(kind, (distributed.get_world_size(),))
    model: Any = None
    for turn in range(distributed.get_world_size()):
        if turn == distributed.get_rank():
            model = load()
            for layer in components.layers_of(model):
                fully_shard(layer, mesh=mesh, reshard_after_forward=True)
                layer.set_gradient_divide_factor(1.0)  # gradients are added up, not averaged: see share
                layer.set_force_sum_reduction_for_comms(True)
            model.to(kind)
        distributed.barrier()
    for layer in components.layers_of(model):  # its buffers are made here, not in a stage's inference mode
        layer.unshard()
        layer.reshard()
    return model


# ---- parts of a parameter


def held(parameter: Tensor) -> Tensor:
    """What this process holds of a parameter or of its gradient, detached, sharing its memory; all of it if whole."""
    found = parameter.detach()
    local: Tensor = found.to_local() if hasattr(found, "to_local") else found
    return local


def part(parameter: Tensor, values: Tensor) -> Tensor:
    """Of ``values``, which broadcast against ``parameter`` and are whole, the rows that :func:`held` holds."""
    if not hasattr(parameter, "device_mesh") or values.shape[0] == 1:
        return values
    start = first_row(parameter)
    return values[start : start + len(held(parameter))]


def first_row(parameter: Tensor) -> int:
    """The first row of a parameter that this process holds."""
    if not hasattr(parameter, "device_mesh"):
        return 0
    mesh = parameter.device_mesh
    rows = -(-parameter.shape[0] // mesh.size())
    return int(min(parameter.shape[0], rows * mesh.get_local_rank()))


def whole(parameter: Any, values: Tensor) -> Tensor:
    """``values`` of the rows that each process holds, put together on the first one's CPU; on the others nothing.

    For a parameter that is whole, ``values`` as they are. All processes must call it.
    """
    if not hasattr(parameter, "device_mesh"):
        return values
    from torch.distributed.tensor import DTensor

    mesh = parameter.device_mesh
    parts = DTensor.from_local(
        values, mesh, parameter.placements, shape=parameter.shape, stride=parameter.stride()
    )
    found: Tensor = parts.full_tensor().cpu()
    return found if mesh.get_local_rank() == 0 else found[:0]


# ---- work


def share(items: Sequence[T], model: Any) -> Iterator[tuple[T, bool]]:
    """Of batches for ``model``, this process's: one in as many as there are processes, and whether it counts.

    All processes run as many, since every forward pass needs them all: a process that has run all of its own repeats
    the last one, which does not count. Losses of those that do count are added up over the processes by the layers'
    gradients, and by :func:`total`.
    """
    mesh = _mesh(model)
    rank = 0 if mesh is None else mesh.get_local_rank()
    for start in range(0, len(items), count(model)):
        index = start + rank
        yield items[min(index, len(items) - 1)], index < len(items)


def count(model: Any) -> int:
    """How many processes share ``model``."""
    mesh = _mesh(model)
    return 1 if mesh is None else int(mesh.size())


def total(values: Tensor, model: Any) -> Tensor:
    """``values`` added up over the processes that share ``model``."""
    return _reduced(values, model, "SUM")


def largest(values: Tensor, model: Any) -> Tensor:
    """The largest of ``values`` over the processes that share ``model``."""
    return _reduced(values, model, "MAX")


def take_gradients(parameters: Mapping[str, Tensor], parts: Mapping[str, Tensor]) -> None:
    """Move the gradient of each parameter to what :func:`held` gave of it."""
    for name, parameter in parameters.items():
        if parameter.grad is not None:
            parts[name].grad, parameter.grad = held(parameter.grad), None


def clip(parts: Sequence[Tensor], limit: float | None, model: Any) -> float:
    """Scale the gradients of ``parts`` down to an L2 norm of ``limit``, over all processes; returns their norm before."""
    from torch.nn.utils import clip_grads_with_norm_, get_total_norm

    norm = get_total_norm([p.grad for p in parts if p.grad is not None])
    if _mesh(model) is not None:
        norm = total(norm.double() ** 2, model).sqrt().to(norm.dtype)
    if limit is not None:
        clip_grads_with_norm_(parts, limit, norm)
    return float(norm)


def _reduced(values: Tensor, model: Any, operation: str) -> Tensor:
    from torch import distributed

    if _mesh(model) is None:
        return values
    values = values.clone()
    distributed.all_reduce(values, getattr(distributed.ReduceOp, operation))
    return values


def _mesh(model: Any) -> Any:
    """The processes over which a model is sharded; None for a whole one, and where None stands for undivided work."""

    return (
        None
        if model is None
        else getattr(next(components.layers_of(model)[0].parameters()), "device_mesh", None)
    )
