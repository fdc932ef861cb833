"""``localized-unlearning audit``: verify, explain, trace, diff, export, sign, adopt, forget, take-over.

Exit status: 0 when all is clean, 1 when there are findings, 2 when the audit could not do its work.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localized_unlearning.audit import adopt as adopt_module
from localized_unlearning.audit import crate, mending, signing
from localized_unlearning.audit import diff as diff_module
from localized_unlearning.audit import explain as explain_module
from localized_unlearning.audit import trace as trace_module
from localized_unlearning.audit.findings import Audit
from localized_unlearning.audit.runs import TOPS, Run, runs_under
from localized_unlearning.audit.words import absolute, plain, shown
from localized_unlearning.errors import UserError
from localized_unlearning.provenance import pages
from localized_unlearning.provenance.records import SUFFIX
from localized_unlearning.workflow.layout import RESULTS, Layout, checkout_above

if TYPE_CHECKING:
    from localized_unlearning.audit.findings import Finding
    from localized_unlearning.audit.signing import Signature


CLEAN, FINDINGS, USAGE = 0, 1, 2

JSON_VERSION = 1

LISTED = 20  # findings that are listed one by one


def add_commands(commands: Any) -> None:
    """Add ``audit`` and its subcommands."""
    audit = commands.add_parser("audit", help="verify, explain and trace what a run has made")
    inner = audit.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(name: str, function: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        sentence = f"{text[0].upper()}{text[1:]}{'' if text.endswith('?') else '.'}"
        parser: argparse.ArgumentParser = inner.add_parser(name, help=text, description=sentence)
        parser.set_defaults(function=functools.partial(_guarded, function))
        parser.add_argument(
            "--root", type=Path, default=Path(), help="the workflow's folder (default: the current one)"
        )
        return parser

    def judged(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--config",
            type=Path,
            action="append",
            default=[],
            help="judge by this config; repeat to overlay (default: each run's resolved config, then config.yaml)",
        )
        parser.add_argument("--quick", action="store_true", help="trust earlier digests of untouched files")

    parser = add(
        "verify", verify, "are the files what their records say, and would they be made the same way now?"
    )
    parser.add_argument("paths", nargs="*", type=Path, help="files or folders (default: results and figures)")
    parser.add_argument("--all", action="store_true", help="list what is clean too")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--signature",
        type=Path,
        metavar="SIGNERS",
        help="each run must also be as a key in this file signed it (an allowed-signers file of SSH)",
    )
    judged(parser)
    parser = add(
        "explain", explain, "why is a file not ok: the first cause, the chain up to it, what would rerun"
    )
    parser.add_argument("path", type=Path, help="an output")
    judged(parser)
    parser = add("trace", trace, "everything behind a file, down to the data")
    parser.add_argument("path", type=Path, help="an output, or a stray copy of one, found by content")
    parser.add_argument(
        "--among",
        type=Path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="look for a stray copy's origin here (default: results and figures); repeat for more",
    )
    parser.add_argument(
        "--cell",
        nargs="+",
        metavar="WORD",
        help="only what is behind the rows of its CSV that hold all of these values, such as manual mcq_forget",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    judged(parser)
    parser = add(
        "diff", diff, "do two outputs, records or results folders agree in their numbers, and what differs"
    )
    parser.add_argument("one", type=Path, help="a file or folder")
    parser.add_argument("other", type=Path, help="what it is compared with")
    parser.add_argument("--tolerance", type=float, default=1e-6, help="absolute or relative (default: 1e-6)")
    parser = add("export", export, "a run, or a file and all behind it, as a Workflow Run RO-Crate")
    parser.add_argument("paths", nargs="*", type=Path, help="files or folders (default: results and figures)")
    parser.add_argument("--out", type=Path, required=True, help="a new folder, or a new .zip")
    parser.add_argument(
        "--files-up-to",
        type=float,
        metavar="MB",
        help="copy results and data up to this size and name larger ones by content; 0 copies none (default: all)",
    )
    parser.add_argument("--url", help="where files that are not copied can be had")
    parser.add_argument("--licence", help="of the results, as an address (default: MIT)")
    parser.add_argument("--author", help="who ran the workflow and publishes the results")
    parser = add("sign", sign, "sign a run's records with an SSH key")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's name")
    parser.add_argument(
        "--key", type=Path, required=True, help="a private key, or a public one of an agent's or token's key"
    )
    parser = add("adopt", adopt, "take a file into the record as it is, visibly, with a reason")
    parser.add_argument("path", type=Path, help="an output")
    parser.add_argument("--reason", required=True, help="why it can be trusted")
    parser = add(
        "take-over", take_over, "results copied here: verify them, then tell Snakemake not to make them again"
    )
    parser.add_argument("paths", nargs="*", type=Path, help="files or folders (default: results and figures)")
    judged(parser)
    parser = add("forget", forget, "undo an adoption")
    parser.add_argument("path", type=Path, help="an output")


def _guarded(function: Callable[[argparse.Namespace], int], arguments: argparse.Namespace) -> int:
    """Run a subcommand; whatever keeps it from its work ends in status 2, since 1 means findings."""
    try:
        status = function(arguments)
        sys.stdout.flush()
        return status
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
    except BrokenPipeError:  # a reader that has seen enough; what is left goes nowhere, also at the exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        if os.environ.get("LOCALIZED_UNLEARNING_TRACEBACK"):
            raise
        print(
            f"error: the audit could not do its work ({type(error).__name__}: {plain(str(error))}); "
            "LOCALIZED_UNLEARNING_TRACEBACK=1 shows where",
            file=sys.stderr,
        )
    return USAGE


def _audit(arguments: argparse.Namespace, paths: Sequence[Path]) -> Audit:

    return Audit(
        paths,
        arguments.root,
        configs=getattr(arguments, "config", []),
        quick=getattr(arguments, "quick", False),
        progress=sys.stderr.isatty(),
    )


def _default_paths(root: Path) -> list[Path]:
    found = [root / name for name in TOPS if (root / name).is_dir()]
    if not found:
        raise UserError(
            f"there is no results folder in {root.resolve()}: name the files or folders to verify"
        )
    above = checkout_above(root.resolve())
    if above and not any(next(top.rglob(f"*{SUFFIX}"), None) for top in found):
        raise UserError(
            f"no record lies below {root.resolve()}: name the files or folders to verify, or cd {above}"
        )
    return found


def verify(arguments: argparse.Namespace) -> int:
    """Judge every artefact under some paths."""
    audit = _audit(arguments, arguments.paths or _default_paths(arguments.root))
    found = audit.findings()
    signatures = _signatures(arguments, audit)
    clean = all(finding.clean for finding in found) and all(signature.good for signature in signatures)
    if arguments.json:
        print(json.dumps(as_json(found, clean, signatures), indent=1))
    else:
        listed = found if arguments.all else [f for f in found if not f.clean]
        if len(listed) > LISTED and not arguments.all:
            stale = [f for f in listed if f.integrity == "ok" and f.currency == "stale"]
            listed = [f for f in listed if f not in stale]
            print(*by_cause(stale), sep="\n")
        print(*table(listed), sep="\n", end="\n" if listed else "")
        print(summary(found))
        for signature in signatures:
            print(f"Signature: {signature.text}.")
        for line in mending.lines(audit, found):
            print(f"To mend: {line}")
        for note in audit.notes:
            print(f"Note: {note}.")
    return CLEAN if clean else FINDINGS


def _run(root: Path, name: str) -> Run:
    """A run by its name.

    Raises:
        UserError: when there is none.
    """
    above = absolute(root)
    found = Run(name, above / Layout(name).results, above / Layout(name).figures)
    if not found.folders:
        raise UserError(f"there is no run {name} in {root.resolve()}: name a folder of {RESULTS}/")
    return found


def _signatures(arguments: argparse.Namespace, audit: Audit) -> list[Signature]:
    """What is known about the signatures of the audited runs, if that was asked for."""
    if arguments.signature is None:
        return []
    runs = runs_under(audit.index.paths, audit.root)
    found = [signing.check(_audit(arguments, run.folders), run, arguments.signature) for run in runs]
    rest = signing.unchecked(audit, runs)
    return [*found, rest] if rest else found


def as_json(found: Sequence[Finding], clean: bool, signatures: Sequence[Signature] = ()) -> dict[str, Any]:
    """What ``verify --json`` prints."""

    return {
        "schema_version": JSON_VERSION,
        "clean": clean,
        "counts": {
            "integrity": Counter(f.integrity for f in found),
            "currency": Counter(f.currency for f in found),
        },
        "signatures": [dataclasses.asdict(signature) for signature in signatures],
        "artefacts": [
            {
                "path": shown(f.path),
                "integrity": f.integrity,
                "currency": f.currency,
                "reasons": list(f.reasons),
                "stage": f.entry.record.stage if f.entry else None,
                "key": f.entry.record.key if f.entry else None,
                "record": f.entry.record.id if f.entry else None,
                "rests_on_adopted": [shown(path) for path in f.rests_on],
            }
            for f in found
        ],
    }


def table(found: Sequence[Finding]) -> list[str]:
    """Findings as aligned lines: integrity, currency, path, first reason."""

    width = max((len(shown(f.path)) for f in found), default=0)
    lines = [f"{'integrity':11} {'currency':9} {'path':{width}}  why"] if found else []
    for f in found:
        more = f" (and {len(f.reasons) - 1} more)" if len(f.reasons) > 1 else ""
        lines.append(
            f"{f.integrity:11} {f.currency:9} {shown(f.path):{width}}  {(f.reasons or ('',))[0]}{more}".rstrip()
        )
    return [*lines, ""] if lines else []


def by_cause(stale: Sequence[Finding]) -> list[str]:
    """Many stale artefacts as lines: each cause and how many it is a cause of."""
    counted = Counter(cause.text for f in stale for cause in f.causes if cause.kind != "upstream")
    lines = [
        "stale  because (--all lists every artefact)",
        *(f"{n:5}  {text}" for text, n in counted.most_common()),
    ]
    follow = sum(all(cause.kind == "upstream" for cause in f.causes) for f in stale)
    return [*lines, *([f"{follow:5}  only of what they were made from"] if follow else []), ""]


def summary(found: Sequence[Finding]) -> str:
    """One line on everything judged."""
    if not found:
        return "nothing to verify: no artefact and no record here"

    def counted(values: Sequence[str]) -> str:
        return ", ".join(f"{count} {value}" for value, count in Counter(values).most_common())

    jobs = len({f.entry.place for f in found if f.entry and f.entry.record.stage not in pages.STAGES})
    text = f"{len(found)} artefacts of {jobs} jobs. Integrity: {counted([f.integrity for f in found])}."
    text += f" Currency: {counted([f.currency for f in found])}."
    adopted = sum(bool(f.rests_on) for f in found)
    if adopted:
        text += f" {adopted} rest on {len({path for f in found for path in f.rests_on})} adopted."
    unknown = dict.fromkeys(r for f in found if f.currency == "unknown" for r in f.reasons)
    if unknown:
        text += f" Not checked: {'; '.join(list(unknown)[:3])}{' ...' if len(unknown) > 3 else ''}."
    return text


def explain(arguments: argparse.Namespace) -> int:
    """Say why one artefact is not ok."""

    path = absolute(arguments.path)
    audit = _audit(arguments, [path])
    found = audit.findings()
    if not found:
        raise UserError(f"{arguments.path} holds no artefact: name an output file or folder")
    lines = [explain_module.explain(audit, f) for f in found if len(found) == 1 or not f.clean]
    mended = mending.lines(audit, found)
    if mended:
        lines.append(["Mend   " + line for line in mended])
    print("\n\n".join("\n".join(part) for part in lines) or f"all {len(found)} artefacts here are clean")
    return CLEAN if all(f.clean for f in found) else FINDINGS


def trace(arguments: argparse.Namespace) -> int:
    """Show what is behind a file."""

    path = absolute(arguments.path)
    audit = _audit(arguments, [path])
    if audit.index.producer(path) is None:
        if not path.is_file():
            raise UserError(f"no record names {arguments.path}: there is nothing to trace")
        audit = _audit(arguments, arguments.among or _default_paths(arguments.root))
        origin = trace_module.find_by_content(audit, path)
        if origin is None:
            raise UserError(_of_unknown_origin(arguments.path, trace_module.keys_in(path)))
        how = (
            "by its bytes"
            if origin.same_bytes
            else "by the key it carries; its bytes are others, so it was made again or edited since"
        )
        print(f"{arguments.path} is {shown(origin.path)}, {how}", file=sys.stderr)
        path = origin.path
    cell = trace_module.cell(audit, path, arguments.cell) if arguments.cell else None
    node = trace_module.tree(audit, path, cell.inputs if cell else None)
    if cell:
        node["rows"] = cell.rows
    if arguments.json:
        print(json.dumps(node, indent=1))
    else:
        for row in cell.rows if cell else ():
            print(", ".join(f"{name} {value}" for name, value in row.items() if value))
        print("\n".join(trace_module.tree_lines(node)))
    return CLEAN


def _of_unknown_origin(path: Path, keys: set[str]) -> str:
    if len(keys) == 1:
        return (
            f"{path} carries the key {next(iter(keys))}, which no record here has: "
            "name the results folder it may come from with --among"
        )
    return (
        f"{path} is of unknown origin: no record names it, and no recorded output has its bytes or its key; "
        "name other results folders with --among"
    )


def diff(arguments: argparse.Namespace) -> int:
    """Compare two artefacts, records or folders."""

    from localized_unlearning.audit import gallery  # brings pandas, which no other audit needs

    galleries = [gallery.is_gallery(path) for path in (arguments.one, arguments.other)]
    if any(galleries):
        one, other = (arguments.one, arguments.other) if galleries[0] else (arguments.other, arguments.one)
        numbers = gallery.compare(absolute(one), absolute(other))
        print("\n".join(gallery.lines(numbers)))
        return CLEAN if gallery.agrees(numbers) else FINDINGS
    one, other = ((_audit(arguments, [path]), absolute(path)) for path in (arguments.one, arguments.other))
    found = diff_module.compare(one, other, arguments.tolerance)
    print("\n".join(diff_module.lines(found, (str(arguments.one), str(arguments.other)))))
    return CLEAN if found.equivalent else FINDINGS


def export(arguments: argparse.Namespace) -> int:
    """Write a crate."""

    audit = _audit(arguments, arguments.paths or _default_paths(arguments.root))
    up_to = None if arguments.files_up_to is None else int(arguments.files_up_to * 1e6)
    licence = arguments.licence or crate.LICENCE
    done = crate.export(audit, absolute(arguments.out), up_to, arguments.url, licence, arguments.author)
    print(f"{arguments.out}: {done.jobs} jobs, {done.copied} files, {done.referred} more by reference")
    return CLEAN


def sign(arguments: argparse.Namespace) -> int:
    """Sign runs."""

    for name in arguments.runs:
        run = _run(arguments.root, name)
        found = signing.sign(_audit(arguments, run.folders), run, arguments.key)
        print(f"run {name}: {len(found['records'])} records signed, root {found['root']}")
        print(f"the statement is {shown(signing.place(run))}, its signature beside it (.sig)")
    return CLEAN


def adopt(arguments: argparse.Namespace) -> int:
    """Take a file into the record."""

    place = adopt_module.adopt(absolute(arguments.path), arguments.reason, arguments.root)
    print(f"{arguments.path} is adopted; {shown(place)} says so, and so will all that is made from it")
    return CLEAN


def take_over(arguments: argparse.Namespace) -> int:
    """Let Snakemake take over what was copied here."""
    runs = mending.take_over(_audit(arguments, arguments.paths or _default_paths(arguments.root)))
    print(f"{', '.join(runs)}: intact and current; snakemake will not make it again")
    return CLEAN


def forget(arguments: argparse.Namespace) -> int:
    """Undo an adoption."""

    adopt_module.forget(absolute(arguments.path))
    print(f"the adoption of {arguments.path} is forgotten")
    return CLEAN
