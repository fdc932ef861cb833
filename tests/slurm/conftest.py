"""The simulated cluster, a site's set-up of it, and a tiny run that went through it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from checkout import Checkout, set_up
from cluster import Cluster, Unavailable


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
    checkout = set_up(tmp_path_factory.mktemp("site"))
    edited = checkout.profile.read_text()
    again = checkout.run("localized-unlearning install-profile")
    assert "is kept" in again.stdout and checkout.profile.read_text() == edited
    done = checkout.run("snakemake --profile slurm all")
    assert done.returncode == 0, done.stdout + done.stderr
    return checkout
