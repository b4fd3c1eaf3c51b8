"""labkit against the field: the same random weights in timm, torch, onnxruntime, torchao and labkit, in turns.

    python bench/run.py field [--quick]

Three sizes of DeiT, four batches; one thread by processor time, all cores by wall clock, a GPU by its own events if
torch sees one. Whoever cannot take part is kept with the reason. A group (a size, a place, a batch) is set aside in
build/ as soon as it is measured, and an interrupted run goes on behind it.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from bench import field_summary, rivals
from bench.field_ways import TIMM, WAYS, Case, Half, Way, ours, rivals_of
from bench.outcome import Outcome
from bench.rivals import Model, images, missing
from labkit import clock, files, machine, paths
from labkit.cost import count
from labkit.operations import inference

UNFINISHED = paths.ROOT / "build" / "bench-field.json"
FEW = 4  # images that warm up
TOO_MANY = "measured up to batch {}, for it takes long"
EXTRAS = ("onnx", "onnxruntime", "torchao")  # pip install them


@dataclass(frozen=True)
class Place:
    """Where and by which clock."""

    device: str
    threads: int
    clock: str  # "cpu": processor time; "wall": the time that passes

    @property
    def name(self) -> str:
        return "GPU" if self.device == "cuda" else f"{self.threads} thread{'s' * (self.threads != 1)}"


@dataclass(frozen=True)
class Plan:
    sizes: tuple[str, ...] = ("tiny", "small", "base")
    batches: tuple[int, ...] = (1, 8, 16, 32)
    rounds: int = 25
    seconds: float = 12.0  # of a group; five rounds are run even if they take longer
    judged: int = 8  # images whose logits are compared with timm's
    quick: bool = False


FULL, QUICK = Plan(), Plan(("small",), (1, 8), 5, 0.0, 2, quick=True)


def places(gpu: bool | None = None) -> list[Place]:
    gpu = torch.cuda.is_available() if gpu is None else gpu
    all_cores = [Place("cpu", machine.cores(), "wall")] if machine.cores() > 1 else []
    return [Place("cpu", 1, "cpu"), *all_cores, *([Place("cuda", 1, "wall")] if gpu else [])]


def ways(device: str, quick: bool) -> dict[str, Way]:
    """Those that are measured there."""
    return {name: way for name, way in WAYS.items() if (way.gpu or device == "cpu") and (way.quick or not quick)}


def made(size: str, device: str, chosen: Mapping[str, Way], folder: Path) -> tuple[dict[str, Model], dict[str, str]]:
    """Name → model, and name → why there is none."""
    torch.manual_seed(0)
    case = Case(timm.create_model(model_name(size), img_size=rivals.SIZE).eval().to(device), folder)
    models: dict[str, Model] = {}
    absent: dict[str, str] = {}
    for name, way in chosen.items():
        found = _attempt(way.make, case)
        if isinstance(found, str):
            absent[name] = found
        else:
            models[name] = found
    return models, absent


def model_name(size: str) -> str:
    return f"deit_{size}_patch16_224"


def described(models: dict[str, Model], absent: dict[str, str], size: str, x: Tensor) -> dict[str, Any]:
    """The errors of the logits and the GMACs; who fails here is taken out of `models`."""
    exact, errors = models[TIMM](x), {}
    for name, model in models.items():
        logits = _attempt(model, x)
        if isinstance(logits, str):
            absent[name] = logits
        elif not logits.isfinite().all():
            absent[name] = "its logits are not finite"
        else:
            errors[name] = float((logits - exact).norm() / exact.norm())
    for name in absent:
        models.pop(name, None)
    macs = {name: count(inner).macs for name, model in models.items() if (inner := countable(name, model))}
    return {"model": model_name(size), "errors": errors, "macs": macs, "absent": absent}


def countable(name: str, model: Model) -> nn.Module | None:
    """timm's and ours: `labkit.cost` knows the operations that they run."""
    inner = model.model if isinstance(model, Half) else model
    return inner if isinstance(inner, nn.Module) and (name == TIMM or ours(name)) else None


def _attempt(call: Callable[..., Any], *arguments: Any) -> Any:
    """What it gives, or, in words, why it gives nothing."""
    try:
        return call(*arguments)
    except Exception as error:  # rivals fail in their own ways, and a table says how
        return missing(error)


def group(models: Mapping[str, Model], x: Tensor, place: Place, plan: Plan) -> dict[str, Any]:
    """One cell of the plan; a first call on few images warms up and shows who cannot."""
    absent = {name: TOO_MANY.format(WAYS[name].most) for name in models if len(x) > WAYS[name].most}
    with clock.limit_threads(place.threads):
        with inference(*models.values()):
            tried = {name: _attempt(model, x[:FEW]) for name, model in models.items() if name not in absent}
        absent |= {name: found for name, found in tried.items() if isinstance(found, str)}
        able = {name: model for name, model in models.items() if name not in absent}
        timing = clock.compare(able, x, rounds=plan.rounds, warmup=0, seconds=plan.seconds, clocks=(place.clock,))
    rows = {}
    for name in able:
        others = dict.fromkeys([TIMM, *(rivals_of(name) if ours(name) else ())])
        faster = {other: list(timing.ratio(other, to=name)) for other in others if other in able}
        rows[name] = {"ms": 1e3 * timing.median(name), "faster": faster}
    return {"rounds": len(timing.seconds[place.clock][TIMM]), "rows": rows, "absent": absent}


def measure(plan: Plan = FULL, gpu: bool | None = None) -> dict[str, Any]:
    """Everything in `plan`, kept group by group unless it is quick."""
    here = places(gpu)
    found = {"setting": setting(plan, here), "models": {}, "groups": {}}
    if not plan.quick and UNFINISHED.is_file():
        kept = json.loads(UNFINISHED.read_text(encoding="utf-8"))
        found = kept if kept["setting"] == found["setting"] else found
    for size in plan.sizes:
        for device in dict.fromkeys(place.device for place in here):
            _one_model(found, plan, size, [place for place in here if place.device == device])
    return found


def _one_model(found: dict[str, Any], plan: Plan, size: str, here: list[Place]) -> None:
    device = here[0].device
    groups = found["groups"].setdefault(size, {})
    todo = [(place, b) for place in here for b in plan.batches if str(b) not in groups.get(place.name, {})]
    if not todo:
        return
    with tempfile.TemporaryDirectory() as folder:
        models, absent = made(size, device, ways(device, plan.quick), Path(folder))
        judged = images(plan.judged, seed=2).to(device)
        with clock.limit_threads(1), inference(*models.values()):
            found["models"].setdefault(size, {})[device] = described(models, absent, size, judged)
        for place, batch in todo:
            begun = time.perf_counter()
            kept = group(models, images(batch, seed=3).to(device), place, plan)
            groups.setdefault(place.name, {})[str(batch)] = kept
            if not plan.quick:
                UNFINISHED.parent.mkdir(exist_ok=True)
                files.replace(UNFINISHED, json.dumps(found))
            took = f"{kept['rounds']} rounds, {time.perf_counter() - begun:.0f} s"
            print(f"field: {size}, {place.name}, batch {batch}: {took}", file=sys.stderr, flush=True)


def setting(plan: Plan, here: list[Place]) -> dict[str, Any]:
    """What the groups of one result have in common; JSON's own types, for it is compared with a file."""
    versions = {name: _version(name) for name in ("torch", "timm", "labkit", *EXTRAS)}
    told = asdict(plan) | {"places": {place.name: asdict(place) for place in here}, "versions": versions}
    return json.loads(json.dumps(told | {"machine": machine.describe(), "ways": list(WAYS)}))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def forget() -> None:
    """What was set aside is kept elsewhere by now."""
    UNFINISHED.unlink(missing_ok=True)


def bench(quick: bool) -> Outcome:
    found = measure(QUICK if quick else FULL)
    return Outcome("labkit against the field", field_summary.text(found), found, field_summary.bars(found))
