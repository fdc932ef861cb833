"""The simulated cluster, a site's set-up of it, and a tiny run that went through it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from checkout import Checkout
from cluster import Cluster, Unavailable

from tiny_run import ROOT, workplace

PAUSE = 5
"""Seconds before Snakemake asks Slurm for the first time: the site's edit of the installed profile."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.slurm)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The cluster, fresh; what kept it from coming up is why the tests are skipped."""
    found = Cluster()
    try:
        found.down()
        found.up()
    except Unavailable as error:
        pytest.skip(str(error))
    yield found
    found.down()


@pytest.fixture(scope="session")
def finished(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout set up as docs/running-on-slurm.md says, in which the promised line has run."""
    folder = workplace(tmp_path_factory.mktemp("checkout"))
    for name in ("profiles", "Makefile"):
        (folder / name).symlink_to(ROOT / name)
    checkout = Checkout(folder, tmp_path_factory.mktemp("home"))
    checkout.configure({})
    done = checkout.run("localized-unlearning install-profile")
    assert done.returncode == 0, done.stderr
    profile = checkout.home / "snakemake/slurm/config.yaml"
    first_pause = "slurm-init-seconds-before-status-checks: "
    edited = profile.read_text().replace(f"{first_pause}30", f"{first_pause}{PAUSE}")
    profile.write_text(edited)
    again = checkout.run("localized-unlearning install-profile")
    assert "is kept" in again.stdout and profile.read_text() == edited
    done = checkout.run("snakemake --profile slurm all")
    (folder / "said.txt").write_text(done.stdout + done.stderr)
    assert done.returncode == 0, done.stdout + done.stderr
    return checkout
