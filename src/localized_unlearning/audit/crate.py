"""A run as a Workflow Run RO-Crate: a folder that says in JSON-LD what made each of its files.

The crate follows the Provenance Run Crate profile 0.5 (https://w3id.org/ro/wfrun/provenance/0.5): the
workflow and its stages, every job with its settings, environment, inputs and outputs, every file with
its SHA-256. Files keep the places that their records know, and records come along, so that ``audit
verify`` works inside an unpacked crate.

A file that stays outside is named by its content (``ni:`` URIs, RFC 6920) or by the address where it can
be had. Only files that are what their records say are exported.
"""

from __future__ import annotations

import base64
import io
import mimetypes
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from localized_unlearning import __version__, files
from localized_unlearning.audit.findings import Audit
from localized_unlearning.audit.index import Entry
from localized_unlearning.audit.runs import SIGNED
from localized_unlearning.audit.words import shown
from localized_unlearning.errors import UserError
from localized_unlearning.provenance import cache, hashing, pages, records
from localized_unlearning.workflow.layout import Layout

if TYPE_CHECKING:
    from rocrate.model.entity import Entity
    from rocrate.rocrate import ROCrate


PROFILES = {
    "https://w3id.org/ro/wfrun/process/0.5": "Process Run Crate",
    "https://w3id.org/ro/wfrun/workflow/0.5": "Workflow Run Crate",
    "https://w3id.org/ro/wfrun/provenance/0.5": "Provenance Run Crate",
    "https://w3id.org/workflowhub/workflow-ro-crate/1.0": "Workflow RO-Crate",
}

CONTEXT = "https://w3id.org/ro/terms/workflow-run/context"

COMPLETED = "http://schema.org/CompletedActionStatus"

LICENCE = "https://spdx.org/licenses/MIT"

ENGINE = "https://snakemake.github.io"

WORKFLOW_FILES = ("config.yaml", "envs/*", "workflow/rules/*.smk")

ENCODINGS = {
    ".parquet": "application/vnd.apache.parquet", ".safetensors": "application/octet-stream",
    ".md": "text/markdown", ".yaml": "application/yaml", ".tex": "application/x-tex", ".smk": "text/plain",
}  # fmt: skip


README = """# A run of localized-unlearning

Run {runs}: {jobs} jobs, their results, data and records, and the workflow that they are of, as a Workflow Run RO-Crate.

`ro-crate-metadata.json` says what made each file. Files lie where their records name them, a record beside each job's
outputs. With the workflow's package installed, `localized-unlearning audit verify` here compares every file with its
record.
"""


class Summary(NamedTuple):
    """What an export holds: jobs, files copied into the crate, files it only refers to."""

    jobs: int
    copied: int
    referred: int


def export(
    audit: Audit,
    out: Path,
    files_up_to: int | None = None,
    url: str | None = None,
    licence: str = LICENCE,
    author: str | None = None,
) -> Summary:
    """Write what was asked for, and everything behind it, as a crate.

    Args:
        audit: what to export, and where its workflow lies.
        out: a new folder, or a new ``.zip``.
        files_up_to: size in bytes up to which results and data are copied; None copies all. Records and the
            workflow's own files always come along.
        url: where files that are not copied can be had, under the names that they have in the crate.
        licence: the licence of the results, as an address.
        author: who ran the workflow and publishes the results; without it, the project's contributors.

    Raises:
        UserError: when ``out`` exists, the workflow is not here, there is no job, or a file is not what its
            record says.
    """
    from rocrate.rocrate import ROCrate

    if out.exists():
        raise UserError(f"{shown(out)} exists: name a new folder or .zip file")
    for address in filter(None, (url, licence)):
        if {"@", "?", "#"} & set(address):
            raise UserError(
                "an address in a crate is for everybody: give --url and --licence without a user, password, query or #"
            )
    if not (audit.root / "Snakefile").is_file():
        raise UserError(
            f"there is no Snakefile in {shown(audit.root)}: name the workflow's folder with --root"
        )
    entries = _behind(audit)
    if not any(map(_is_job, entries)):
        raise UserError("no record of a job here: there is nothing to export")
    _refuse_modified(audit, entries)
    builder = _Builder(ROCrate(version="1.1"), audit, files_up_to, url)
    builder.build(entries, licence, author)
    out.parent.mkdir(parents=True, exist_ok=True)
    part = files.temporary(out)
    try:
        (builder.crate.write_zip if out.suffix == ".zip" else builder.crate.write)(part)
        os.replace(part, out)
    finally:
        cache.remove(part)
    return Summary(sum(map(_is_job, entries)), builder.copied, builder.referred)


def _is_job(entry: Entry) -> bool:
    return entry.record.adopted is None and entry.record.stage not in pages.STAGES


def _behind(audit: Audit) -> list[Entry]:
    """The entries asked for and all that they were made from, each after its producers."""
    found: dict[Path, Entry] = {}

    def visit(entry: Entry) -> None:
        if entry.place not in found:
            for producer in audit.index.producers(entry):
                visit(producer)
            found[entry.place] = entry

    for path, entry in audit.index.by_output.items():
        if audit.index.in_scope(path):
            visit(entry)
    return list(found.values())


def _refuse_modified(audit: Audit, entries: Sequence[Entry]) -> None:
    audit.take_digests(entries)
    for entry in entries:
        for output in entry.record.outputs:
            if audit.index.by_output.get(entry.folder / output.path, entry) is not entry:
                continue
            integrity, reasons = audit.integrity.of(entry, output)
            if integrity != "ok":
                raise UserError(
                    f"{shown(entry.folder / output.path)} is {integrity} ({reasons[0]}): "
                    "make it again, or adopt it, before exporting"
                )


class _Builder:
    """Fills a crate, one entity at a time."""

    def __init__(self, crate: ROCrate, audit: Audit, files_up_to: int | None, url: str | None) -> None:
        self.crate, self.audit = crate, audit
        self.files_up_to, self.url = files_up_to, url
        self.copied = self.referred = 0
        self._placed: dict[tuple[str, str], Entity] = {}
        self._examples: dict[str, dict[str, Entity]] = {}

    def build(self, entries: Sequence[Entry], licence: str, author: str | None) -> None:
        """Everything: the workflow, the jobs in their order, and the run that they were."""
        jobs = [entry for entry in entries if _is_job(entry)]
        runs = sorted({(e.record.folder or "").split("/")[1] for e in jobs if "/" in (e.record.folder or "")})
        root, ended = self.crate.root_dataset, max(e.record.ended for e in jobs)
        self.crate.metadata.extra_contexts.append(CONTEXT)
        self.crate.name = f"localized-unlearning, run {', '.join(runs) or 'without a name'}"
        self.crate.description = (
            f"{len(jobs)} jobs of the workflow localized-unlearning, with the settings, code digests, environment "
            "and inputs of each. Files are named as their records name them; records lie beside them."
        )
        self.crate.datePublished = ended
        root["license"] = self._add(licence, "CreativeWork", name=licence.rsplit("/", 1)[-1])
        root["conformsTo"] = [
            self._add(uri, "CreativeWork", name=name, version=uri.rsplit("/", 1)[-1])
            for uri, name in PROFILES.items()
        ]
        kind = "Person" if author else "Organization"
        self.agent = self._add("#author", kind, name=author or "localized-unlearning contributors")
        root["author"] = root["publisher"] = self.agent
        text = README.format(runs=", ".join(runs) or "without a name", jobs=len(jobs))
        readme = self.crate.add_file(io.StringIO(text), "README.md", properties={"about": {"@id": "./"}})
        _describe(readme, "README.md", hashing.FileDigest(len(text.encode()), hashing.text(text)))
        workflow = self._workflow()
        for entry in entries:
            self._records_and_outputs(entry)
        actions = [self._job(entry, workflow) for entry in jobs]
        self._whole(jobs, actions, workflow)
        for run in runs:
            for name in ("config.yaml", SIGNED, f"{SIGNED}.sig"):
                self._own(f"{Layout(run).results}/{name}")
            for source in sorted(self.audit.index.resolve(Layout(run).sources).glob("*.py")):
                self._file(f"{Layout(run).sources}/{source.name}", source, hashing.digest(source), own=True)
        for parameter, examples in self._examples.items():
            self.crate.dereference(parameter)["workExample"] = list(examples.values())
        for entity in self.crate.get_entities():
            for name, value in list(entity.properties().items()):
                if isinstance(value, list) and len(value) == 1 and not name.startswith("@"):
                    entity[name] = value[0]  # as RO-Crate recommends

    def _add(self, identifier: str, kind: str | list[str], **properties: Any) -> Entity:
        """A contextual entity, made once."""
        from rocrate.model.contextentity import ContextEntity

        found = self.crate.dereference(identifier)
        if found is None:
            found = self.crate.add(ContextEntity(self.crate, identifier, {"@type": kind, **properties}))
        return found

    # --- the workflow

    def _workflow(self) -> Entity:
        snakefile = self.audit.root / "Snakefile"
        kinds = ["File", "SoftwareSourceCode", "ComputationalWorkflow", "HowTo"]
        workflow: Entity = self.crate.add_workflow(
            snakefile, "Snakefile", main=True, lang="snakemake", properties={"@type": kinds}
        )
        workflow["name"] = "localized-unlearning"
        workflow["version"] = __version__
        _describe(workflow, "Snakefile", hashing.digest(snakefile))
        self.copied += 1
        for pattern in WORKFLOW_FILES:
            for path in sorted(self.audit.root.glob(pattern)):
                self._own(path.relative_to(self.audit.root).as_posix())
        return workflow

    def _own(self, name: str) -> None:
        """One of the workflow's own files, as it is now."""
        path = self.audit.index.resolve(name)
        if path.is_file():
            self._file(name, path, hashing.digest(path), own=True)

    def _stage(self, record: records.Record, workflow: Entity) -> tuple[Entity, Entity]:
        """The tool and the step of a stage; a tool is a stage with one state of its code."""
        name = f"{_named_by(record.code_digest)}?stage={record.stage}"
        tool = self._add(
            name,
            "SoftwareApplication",
            name=record.stage,
            description=f"{record.function or record.stage}; digest of its code {record.code_digest}",
            softwareVersion=f"{__version__}+{record.code_digest[:16]}",
        )
        step = self._add(f"#step/{record.stage}", "HowToStep", name=record.stage)
        _append(step, "workExample", tool)
        _append(workflow, "hasPart", tool)
        _append(workflow, "step", step)
        return tool, step

    def _parameter(self, owner: Entity, way: str, stage: str, name: str, example: Entity) -> None:
        """Let ``example`` be what an input or output of a tool or workflow was."""
        kinds = example["@type"] if isinstance(example["@type"], list) else [example["@type"]]
        kind = next(k for k in kinds if k in ("File", "Dataset", "PropertyValue"))
        parameter = self._add(
            f"#parameter/{stage}/{way}/{name}", "FormalParameter", name=name, additionalType=kind
        )
        _append(owner, way, parameter)
        _append(example, "exampleOfWork", parameter)
        self._examples.setdefault(parameter.id, {})[example.id] = example

    # --- jobs

    def _records_and_outputs(self, entry: Entry) -> None:
        record, folder = entry.record, _folder(self.audit, entry)
        place = hashing.digest(entry.place)
        self._file(
            f"{folder}/{entry.place.name}", entry.place, place, own=True, description="record of a job"
        )
        for output in record.outputs:
            tree = {file.name: hashing.FileDigest(file.size, file.sha256) for file in output.files}
            entity = self._data(f"{folder}/{output.path}", entry.folder / output.path, tree)
            entity["dateModified"] = record.computed.ended
            if record.adopted:
                entity["description"] = f"taken into the record by a person: {record.adopted.reason}"

    def _job(self, entry: Entry, workflow: Entity) -> Entity:
        record, folder = entry.record, _folder(self.audit, entry)
        tool, step = self._stage(record, workflow)
        title = ", ".join([record.stage, *(f"{k} {v}" for k, v in record.wildcards.items())])
        action = self._add(
            f"#job/{record.id}",
            "CreateAction",
            name=title,
            description=f"key {record.key}{_restored(record)}",
            startTime=record.computed.started,
            endTime=record.computed.ended,
            actionStatus=COMPLETED,
            instrument=tool,
            agent=self.agent,
        )
        for i, place in self.audit.index.inputs(entry):
            given = self._input(i, place)
            self._parameter(tool, "input", record.stage, i.name, given)
            _append(action, "object", given)
        for name, value in {**record.settings, **record.wildcards}.items():
            setting = self._value(name, value)
            self._parameter(tool, "input", record.stage, name, setting)
            _append(action, "object", setting)
        for output in record.outputs:
            tree = {file.name: hashing.FileDigest(file.size, file.sha256) for file in output.files}
            made = self._data(f"{folder}/{output.path}", entry.folder / output.path, tree)
            self._parameter(tool, "output", record.stage, output.name, made)
            _append(action, "result", made)
        made_on = record.computed
        around = {**made_on.versions, **made_on.host, **made_on.commit, "lock": record.lock}
        around |= {f"compute.{name}": value for name, value in made_on.compute.items()}
        around["origin"] = record.facts.get("origin")
        for name, value in around.items():
            if value is not None:
                _append(action, "environment", self._value(name, value))
        _append(self.crate.root_dataset, "mentions", action)
        control = self._add(f"#control/{record.id}", "ControlAction", name=f"orchestrate {title}")
        control["instrument"], control["object"], control["actionStatus"] = step, action, COMPLETED
        control["agent"] = self.agent
        return action

    def _value(self, name: str, value: Any) -> Entity:
        plain = value if isinstance(value, str | int | float) else files.canonical_json(value)
        digest = hashing.text(files.canonical_json([name, value]))[:16]
        return self._add(f"#value/{name}/{digest}", "PropertyValue", name=name, value=plain)

    def _input(self, i: records.Input, path: Path | None) -> Entity:
        found = self.audit.digests.tree(path) if path is not None and path.exists() else {}
        if hashing.combined(found) == i.sha256:
            return self._data(i.path, path, found)
        return self._data(i.path, None, {"": hashing.FileDigest(i.size or 0, i.sha256)})

    def _whole(self, jobs: Sequence[Entry], actions: Sequence[Entity], workflow: Entity) -> None:
        """The run of the workflow, and Snakemake which led it."""
        made: dict[str, Entity] = {}
        used: dict[str, Entity] = {}
        for action in actions:
            made |= {entity.id: entity for entity in _as_list(action.get("result"))}
            used |= {entity.id: entity for entity in _as_list(action.get("object"))}
        data = [e for e in used.values() if e.id not in made and e["@type"] != "PropertyValue"]
        last = [e for e in made.values() if e.id not in used]
        run = self._add(
            "#run",
            "CreateAction",
            name="run of localized-unlearning",
            description=f"{len(jobs)} jobs",
            startTime=min(e.record.computed.started for e in jobs),
            endTime=max(e.record.computed.ended for e in jobs),
            actionStatus=COMPLETED,
            instrument=workflow,
            agent=self.agent,
        )
        for way, role, entities in (("input", "object", data), ("output", "result", last)):
            for entity in entities:
                self._parameter(workflow, way, "workflow", "data" if way == "input" else "results", entity)
                _append(run, role, entity)
        _append(self.crate.root_dataset, "mentions", run)
        engine = self._add(ENGINE, "SoftwareApplication", name="Snakemake", url=ENGINE)
        if version := _snakemake():
            engine["softwareVersion"] = version
        organize = self._add("#orchestration", "OrganizeAction", name="orchestration by Snakemake")
        organize["instrument"], organize["result"], organize["agent"] = engine, run, self.agent
        organize["object"] = [self.crate.dereference(f"#control/{e.record.id}") for e in jobs]

    # --- files

    def _data(self, name: str, path: Path | None, tree: Mapping[str, hashing.FileDigest]) -> Entity:
        """An output or input: a file, or a folder with its files."""
        if set(tree) == {""}:
            return self._file(name, path, tree[""])
        identity = (name, hashing.combined(dict(tree)))
        if identity not in self._placed:
            parts = [self._file(f"{name}/{n}", path / n if path else None, d) for n, d in tree.items()]
            folder = self.crate.add_dataset(None, f"{name}/") if _inside(parts) else None
            if folder is None:
                folder = self.crate.add_dataset(_named_by(identity[1]))
            folder["name"], folder["hasPart"], folder["sha256"] = name, parts, identity[1]
            self._placed[identity] = folder
        return self._placed[identity]

    def _file(
        self, name: str, path: Path | None, digest: hashing.FileDigest, own: bool = False, **properties: Any
    ) -> Entity:
        """A file, copied or referred to."""
        identity = (name, digest.sha256)
        if identity in self._placed:
            return self._placed[identity]
        small = self.files_up_to is None or digest.size <= self.files_up_to
        if path is not None and (own or small) and self.crate.dereference(name) is None:
            entity = self.crate.add_file(path, name, properties=properties)
            self.copied += 1
        else:
            address = f"{self.url.rstrip('/')}/{name}" if self.url and path else _named_by(digest.sha256)
            entity = self.crate.dereference(address) or self.crate.add_file(address, properties=properties)
            self.referred += 1
        _describe(entity, name, digest)
        self._placed[identity] = entity
        return entity


def _describe(entity: Entity, name: str, digest: hashing.FileDigest) -> None:
    entity["name"] = name
    entity["sha256"], entity["contentSize"] = digest.sha256, str(digest.size)
    suffix = Path(name).suffix
    entity["encodingFormat"] = (
        ENCODINGS.get(suffix) or mimetypes.guess_type(name)[0] or "application/octet-stream"
    )


def _inside(parts: Iterable[Entity]) -> bool:
    return all(":" not in part.id for part in parts)


def _folder(audit: Audit, entry: Entry) -> str:
    """The folder of an entry's outputs inside the crate: as recorded."""
    return entry.record.folder or audit.index.recorded_folder(entry.folder) or "outside"


def _restored(record: records.Record) -> str:
    """When a job's outputs were taken from a cache, if they were: the rest is about their computation."""
    return f"; restored from a cache {record.ended}" if record.restored else ""


def _named_by(sha256: str) -> str:
    """The ``ni:`` URI of a digest."""
    return "ni:///sha-256;" + base64.urlsafe_b64encode(bytes.fromhex(sha256)).decode().rstrip("=")


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _append(entity: Entity, name: str, value: Entity) -> None:
    """Add ``value`` to a property, once."""
    if all(v.id != value.id for v in _as_list(entity.get(name))):
        entity.append_to(name, value)


def _snakemake() -> str | None:
    from importlib import metadata

    try:
        return metadata.version("snakemake")
    except metadata.PackageNotFoundError:
        return None
