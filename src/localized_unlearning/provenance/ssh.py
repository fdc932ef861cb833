"""Signatures over a text, made and checked by ``ssh-keygen``: no key ever passes through this process."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from localized_unlearning.errors import UserError


class Verdict(NamedTuple):
    """Who signed, or why the signature does not hold ("" when it does)."""

    signer: str
    fault: str


def sign(text: str, key: Path, namespace: str) -> str:
    """A detached signature.

    Args:
        text: what is signed.
        key: a private key, or a public one whose private part an agent holds.
        namespace: the purpose of the signature.

    Raises:
        UserError: when ``ssh-keygen`` is missing or refuses.
    """
    answer = _ssh_keygen("sign", "-n", namespace, "-f", str(key), text=text)
    if answer.returncode:
        raise UserError(f"ssh-keygen does not sign with {key}: {_words(answer)}")
    return answer.stdout


def verify(text: str, seal: Path, signers: Path, namespace: str) -> Verdict:
    """Whether one of the trusted keys signed ``text`` for this purpose.

    Args:
        text: what should have been signed.
        seal: the file of the signature.
        signers: an allowed-signers file of SSH, as git uses it; a key may stand there several times.
        namespace: the purpose.

    Raises:
        UserError: when ``ssh-keygen`` is missing.
    """
    named = _ssh_keygen("find-principals", "-s", str(seal), "-f", str(signers), text="")
    principals = list(dict.fromkeys(named.stdout.splitlines()))
    if named.returncode or not principals:
        return Verdict("", f"it was not signed by a key that {signers.name} trusts")
    common = ("-n", namespace, "-s", str(seal))
    for signer in dict.fromkeys([*principals, *_listed(signers)]):  # only the first line of a key was named
        if not _ssh_keygen("verify", *common, "-I", signer, "-f", str(signers), text=text).returncode:
            return Verdict(signer, "")
    if not _ssh_keygen("check-novalidate", *common, text=text).returncode:
        return Verdict(
            "",
            f"{signers.name} trusts the key of {principals[0]}, but not for this purpose ({namespace}) or not at "
            "this time: see its options namespaces, valid-after and valid-before",
        )
    return Verdict("", "the signature is not one over these contents, or was made for another purpose")


def _listed(signers: Path) -> list[str]:
    """The first name in each line of an allowed-signers file."""
    lines = signers.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line.split()[0].strip('"').split(",")[0] for line in lines if line.strip() and line[0] != "#"]


def _ssh_keygen(action: str, *options: str, text: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("ssh-keygen") is None:
        raise UserError("signatures are made and checked by ssh-keygen, which is not here: install OpenSSH")
    return subprocess.run(["ssh-keygen", "-Y", action, *options], input=text, capture_output=True, text=True)


def _words(answer: subprocess.CompletedProcess[str]) -> str:
    return " ".join(answer.stderr.split()) or f"exit status {answer.returncode}"
