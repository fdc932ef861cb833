"""Before anything is queued: the plan of a run, and everything that it lacks, at once, each with its remedy.

Nothing is downloaded and nothing need be there: neither weights nor a network. What could not be checked is said too.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from localized_unlearning.config.source import Source
from localized_unlearning.costs import devices, sizes, stages
from localized_unlearning.costs.devices import Device
from localized_unlearning.costs.sizes import GB
from localized_unlearning.costs.stages import LIGHT
from localized_unlearning.data.fetching import address_of, describe, hub_address, hub_refusal, sha256_of
from localized_unlearning.errors import UserError
from localized_unlearning.models import derivation, folders, loading
from localized_unlearning.models.room import remedy
from localized_unlearning.workflow import contents, given
from localized_unlearning.workflow.findings import Requirement
from localized_unlearning.workflow.plan import Plan, add_targets, device_of, lines_of, open_plan
from localized_unlearning.workflow.profile import installed_profile

SPARE = 1.1
"""Disk asked for, over the sum of the outputs."""


class Unreachable(Exception):
    """The network did not answer, or may not be asked."""


class Environment:
    """All that the checks ask of the machine and the network; tests put another in its place."""

    def hub(self, source: Source) -> str | None:
        """Why the hub would refuse a repository's files at a revision; None if it would not.

        Raises:
            Unreachable: when the hub does not answer.
        """
        from huggingface_hub import HfApi, errors

        place: dict[str, Any] = {"repo_id": source.repo_id, "repo_type": source.repo_type}
        try:
            HfApi().auth_check(**place)
            HfApi().repo_info(**place, revision=source.revision, timeout=10)
        except errors.HFValidationError as error:
            return f"{describe(source)} has a malformed name ({error}): correct repo_id"
        except errors.HfHubHTTPError as error:
            return hub_refusal(error, describe(source), hub_address(source))
        except Exception as error:  # whatever its HTTP library raises for a network that is not there
            raise Unreachable(type(error).__name__) from error
        return None

    def cached(self, source: Source) -> bool:
        """Whether the Hugging Face cache holds the files, so that no network is needed."""
        from huggingface_hub import scan_cache_dir
        from huggingface_hub.errors import CacheNotFound

        try:
            repositories = scan_cache_dir().repos
        except CacheNotFound:
            return False
        return any(
            r.repo_id == source.repo_id
            and r.repo_type == source.repo_type
            and any(source.revision in (v.commit_hash, *v.refs) and v.size_on_disk > 1e6 for v in r.revisions)
            for r in repositories
        )

    def reach(self, url: str) -> int:
        """The HTTP status of an address.

        Raises:
            Unreachable: when nothing answers.
        """
        request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "localized-unlearning"})
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError as error:
            raise Unreachable(str(getattr(error, "reason", error))) from error

    def free_disk(self, folder: Path) -> float:
        """Free bytes of the file system of ``folder``."""
        return float(shutil.disk_usage(folder).free)

    def memory(self) -> float | None:
        """Bytes of this machine's memory, where the system tells."""
        try:
            return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        except (ValueError, OSError):
            return None

    def command(self, *words: str) -> str | None:
        """What a command prints; None where there is no such command or it fails."""
        if shutil.which(words[0]) is None:
            return None
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
        except (subprocess.SubprocessError, OSError):
            return None
        return done.stdout


# ---- the checks, each over a plan and an environment


def model(plan: Plan, environment: Environment) -> Iterator[Requirement]:
    """The weights: present, or permitted and reachable."""
    config = plan.config
    if config.model.kind != "huggingface" or plan.places.base_model().is_dir():
        yield Requirement(
            "ok", f"the base model is {'made by the run' if config.model.kind != 'huggingface' else 'there'}"
        )
        return
    name = config.model.name
    local = Path(name).expanduser()
    if local.is_dir():
        faults = list(folders.faults(local))
        if not faults:
            try:
                loading.from_folder(local, "float32", "meta")  # headers alone, by the loader itself
            except UserError as error:
                faults = [str(error)]
        yield from map(_fault, faults)
        if any("no component adapter" in fault for fault in faults):
            yield Requirement("missing", derivation.entry_for(local))
        if not faults:
            yield Requirement("ok", f"the base model is in {name}")
        return
    if name.count("/") != 1 or name.startswith((".", "~", "/")):
        yield Requirement("missing", f"model.name is {name}, neither a folder nor a hub name", "correct it")
        return
    if config.model.revision is None:
        remedy = f"choose a commit at https://huggingface.co/{name}/commits/main"
        yield Requirement("missing", f"model.revision does not pin {name}", remedy)
        return
    yield from _on_hub(
        Source(kind="hub", repo_id=name, files=("*",), revision=config.model.revision), name, environment
    )


def _on_hub(source: Source, name: str, environment: Environment) -> Iterator[Requirement]:
    if environment.cached(source):
        yield Requirement("ok", f"{name} is in the Hugging Face cache")
        return
    try:
        refusal = environment.hub(source)
    except Unreachable as error:
        yield Requirement(
            "unchecked",
            f"{name}: the hub does not answer ({error})",
            "run preflight where there is a network",
        )
        return
    if refusal is None:
        yield Requirement("ok", f"{name} may be downloaded")
    else:
        what, _, remedy = refusal.partition(": ")
        yield Requirement("missing", what, remedy)


def sources(plan: Plan, environment: Environment) -> Iterator[Requirement]:
    """Every file from outside: present with the right bytes, or reachable."""
    for name, source in plan.graph.sources.items():
        yield from _source(name, source, plan.places.source(name), environment)


def _source(name: str, source: Source, fetched: Path, environment: Environment) -> Iterator[Requirement]:
    found = sizes.local_path(source, fetched)
    if found is not None:
        if source.sha256 and sha256_of(found) != source.sha256:
            remedy = f"put the right file there, delete it to fetch it again, or correct sha256 of {name}"
            yield Requirement("missing", f"{found} ({name}) has another SHA-256 than the config says", remedy)
        else:
            yield Requirement("ok", f"{name} is {found}")
    elif source.kind == "path":
        yield Requirement(
            "missing", f"{name}: there is no {source.path}", f"put it there, or correct {name} in the config"
        )
    elif source.kind == "hub" and source.revision is None:
        remedy = f"choose a commit at {hub_address(source)}/commits/main and put it under {name}.revision"
        yield Requirement("missing", f"{name} has no revision", remedy)
    elif source.kind == "hub":
        yield from _on_hub(source, f"{name} ({source.repo_id})", environment)
    else:
        try:
            urls = (
                [address_of(source)]
                if source.url
                else [f"https://pypi.org/pypi/{r.split('==')[0]}/json" for r in source.requirements]
            )
        except UserError as error:
            yield Requirement("missing", f"{name}: {error}", "set it in the environment")
            return
        yield _reached(name, [str(url) for url in urls], environment)


def _reached(name: str, urls: list[str], environment: Environment) -> Requirement:
    for url in urls:
        try:
            status = environment.reach(url)
        except Unreachable as error:
            return Requirement(
                "unchecked",
                f"{name}: {url.partition('?')[0]} does not answer ({error})",
                "run preflight where there is a network",
            )
        if status >= 400:
            return Requirement(
                "missing",
                f"{name}: {url.partition('?')[0]} answers {status}",
                "correct the address, or name a local copy",
            )
    return Requirement("ok", f"{name} can be fetched")


def disk(plan: Plan, environment: Environment) -> Iterator[Requirement]:
    """Room for what is still to be written."""
    there = sum(p.stat().st_size for p in Path(plan.graph.layout.results).rglob("*") if p.is_file())
    needed = max(0.0, SPARE * plan.disk() - there)
    free = environment.free_disk(Path.cwd())
    what = f"{needed / GB:.1f} GB of outputs to come, {free / GB:.1f} GB free"
    if needed > free:
        yield Requirement("missing", what, f"free {(needed - free) / GB:.1f} GB, or run where there is room")
    else:
        yield Requirement("ok", what)


def memory(plan: Plan, environment: Environment, device: Device) -> Iterator[Requirement]:
    """Whether each job fits its device: the GPU's memory, or this machine's."""
    room = device.memory
    if not device.gpu:
        room = environment.memory() or 0.0
    if not room:
        yield Requirement("unchecked", "memory: this system does not say how much it has")
        return
    fits = True
    for stage, jobs in plan.by_stage().items():
        if device.gpu and stage in LIGHT:
            continue

        def needs(job: Any, stage: str = stage) -> float:
            if device.gpu:
                return plan.costs[job].device_bytes
            return 1e6 * stages.memory_mb(plan.model, stage, job.named)

        largest = max(jobs, key=needs)
        if needs(largest) > 0.95 * room:
            fits = False
            who = " ".join(
                largest.named.get(n, "") for n in ("task", "objective", "localization", "scores")
            ).split()
            names = f" ({' '.join(who)})" if who else ""
            yield Requirement(
                "missing",
                f"{stage}{names} needs {needs(largest) / GB:.1f} GB of {room / GB:.0f} GB on {device.name}",
                remedy(stage),
            )
    if fits:
        whose = device.name if device.gpu else "this machine's memory"
        yield Requirement("ok", f"every job fits the {room / GB:.0f} GB of {whose}")


def slurm(plan: Plan, environment: Environment) -> Iterator[Requirement]:
    """Whether the cluster knows the partitions and the account that the profile names, and a job gets GPUs enough."""
    listed = environment.command("sinfo", "-h", "-o", "%R")
    if listed is None:
        yield Requirement("unchecked", "Slurm: there is no sinfo here", "run preflight on the login node")
        return
    place = installed_profile()
    if not place.is_file():
        yield Requirement(
            "unchecked", f"Slurm: there is no {place}", "run `make slurm-profile` if the jobs go to Slurm"
        )
        return
    profile = yaml.safe_load(place.read_text(encoding="utf-8")) or {}
    resources = [profile.get("default-resources") or {}, *(profile.get("set-resources") or {}).values()]
    partitions, known = _named(resources, "slurm_partition"), set(listed.split())
    for name in sorted(partitions - known):
        remedy = f"edit slurm_partition in {place}: there are {', '.join(sorted(known))}"
        yield Requirement("missing", f"Slurm has no partition '{name}'", remedy)
    if partitions and partitions <= known:
        yield Requirement("ok", f"Slurm has the partitions {', '.join(sorted(partitions))}")
    shards = plan.config.compute.shards
    for asked in sorted(_named(resources, "gres") | _named(resources, "gpu")):
        count = asked.rpartition(":")[2]
        if (int(count) if count.isdigit() else 1) < shards:
            remedy = f"ask for {shards} in {place}"
            yield Requirement("missing", f"a job gets '{asked}' but compute.shards is {shards}", remedy)
    user = os.environ.get("USER") or str(os.getuid())
    accounts = environment.command("sacctmgr", "-n", "-P", "show", "assoc", f"user={user}", "format=account")
    wanted = _named(resources, "slurm_account")
    if accounts is None or not accounts.split():
        yield Requirement(
            "unchecked",
            "Slurm accounts: sacctmgr lists none for you",
            "ask the site whether one must be named",
        )
        return
    for name in sorted(wanted - set(accounts.split())):
        remedy = f"edit slurm_account in {place}: yours are {', '.join(sorted(set(accounts.split())))}"
        yield Requirement("missing", f"you have no Slurm account '{name}'", remedy)
    if wanted <= set(accounts.split()):
        yield Requirement("ok", f"Slurm account {', '.join(sorted(wanted)) or 'by default'}")


def _named(resources: list[dict[str, Any]], key: str) -> set[str]:
    return {str(r[key]) for r in resources if isinstance(r, dict) and r.get(key)}


def _fault(sentence: str) -> Requirement:
    """A sentence of a fault, which ends with its remedy, as a finding."""
    what, _, remedy = sentence.rpartition(": ")
    return Requirement("missing", what or sentence, remedy if what else "")


def check(plan: Plan, environment: Environment, device: Device) -> list[Requirement]:
    """All findings, in the order of a run, each once; a check that fails is a finding too."""
    checks: dict[str, Callable[[], Iterable[Requirement]]] = {
        "what the config names": lambda: map(_fault, given.faults(plan.config, plan.places)),
        "the model": lambda: model(plan, environment),
        "the sources": lambda: sources(plan, environment),
        "the data": lambda: contents.findings(plan),
        "the disk": lambda: disk(plan, environment),
        "memory": lambda: memory(plan, environment, device),
        "Slurm": lambda: slurm(plan, environment),
    }
    return list(dict.fromkeys(f for name, found in checks.items() for f in _guarded(name, found)))


def _guarded(name: str, found: Callable[[], Iterable[Requirement]]) -> Iterator[Requirement]:
    """The findings of a check, and what stopped it."""
    try:
        yield from found()
    except UserError as error:
        yield _fault(str(error))
    except Exception as error:  # whatever a file or a system brings: the other checks are still made
        why = str(error).strip().partition("\n")[0]
        yield Requirement(
            "missing", f"{name} could not be checked ({type(error).__name__}: {why})", "see what it names"
        )


def page(plan: Plan, findings: list[Requirement], device: Device, host: Device) -> str:
    """The plan and the findings as text: the verdict last, where a terminal ends."""
    lines = [f"{plan.config.run}: {plan.model.shape.parameters / 1e9:.3g} B parameters ({plan.model.origin})"]
    try:
        lines += lines_of(plan, device, host)
    except Exception as error:  # of a config with a fault that is among the findings
        if _fault(str(error)) not in findings:
            uncounted = f"the plan cannot be counted ({error})"
            findings = [*findings, Requirement("missing", uncounted, "mend what else is missing")]
    if device.gpu:
        lines.append(f"Times assume {device.utilisation:.0%} of {device.name}'s peak; none was measured.")
    for state, title in (("ok", "In order"), ("unchecked", "Not checked"), ("missing", "Missing")):
        chosen = [f for f in findings if f.state == state]
        if chosen:
            lines += ["", f"{title}:"]
            lines += [f"  {f.what}" + (f": {f.remedy}" if f.remedy else "") for f in chosen]
    return "\n".join([*lines, "", verdict(sum(f.state == "missing" for f in findings))])


def verdict(missing: int) -> str:
    """The last line."""
    if not missing:
        return "Verdict: ready. Nothing is missing."
    return f"Verdict: not ready, {missing} {'thing is' if missing == 1 else 'things are'} missing: the run would stop."


def run(arguments: argparse.Namespace, environment: Environment | None = None) -> int:
    """Print plan and findings, and the verdict last; 1 when something is missing."""
    try:
        plan = open_plan(arguments.config, checked=False, names=arguments.targets)
    except UserError as error:
        if not Path("workflow/rules").is_dir():  # not the workflow's folder, which is said with the error
            raise
        found = _fault(str(error))
        print(f"Missing:\n  {found.what}" + (f": {found.remedy}" if found.remedy else ""))
        print(f"\n{verdict(1)}")
        return 1
    device, host = device_of(plan, arguments.device, plan.config.compute.threads, measure=False)
    if arguments.gpu_memory is not None and not device.gpu:
        raise UserError(
            "--gpu-memory is for a run on a GPU, but this one is for the CPU: name the GPU with --device"
        )
    if arguments.gpu_memory is not None:
        from dataclasses import replace

        device = replace(device, memory=arguments.gpu_memory * GB)
    findings = check(plan, environment or Environment(), device)
    print(page(plan, findings, device, host))
    return int(any(f.state == "missing" for f in findings))


def add_commands(commands: Any) -> None:
    """Add ``preflight`` to the parser's subcommands."""
    parser = commands.add_parser(
        "preflight", help="say what a run takes and all that it lacks, before it is queued", settings=True
    )
    add_targets(parser)
    parser.add_argument(
        "--device", help=f"{', '.join(devices.DEVICES)} or cpu (default: what the config is for)"
    )
    parser.add_argument(
        "--gpu-memory", type=float, metavar="GB", help="memory of one GPU, if other than the device's"
    )
    parser.set_defaults(function=run)
