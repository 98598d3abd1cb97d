"""Fixtures of all tests: a private home, and one small Ray cluster a session."""

import logging
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from stores import Store, opened_store


@pytest.fixture(scope="session", autouse=True)
def ichsearch_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keys and caches go to a folder of this session, never to the home of whoever runs the tests."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ICHSEARCH_HOME", str(home))
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        yield home


@pytest.fixture(scope="session")
def store() -> Iterator[Store]:
    """An S3 server of this process; one a session, since file systems are made once for a bucket."""
    with opened_store() as made:
        yield made


@pytest.fixture(scope="session")
def ray_local(ichsearch_home: Path) -> Iterator[Path]:  # noqa: ARG001 - its environment is what Ray's workers inherit
    """An open Ray session on two cores, which `ray_session()` joins; its sockets need a short path."""
    folder = Path(tempfile.mkdtemp(prefix="ich"))
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _temp_dir=str(folder),
    )
    yield folder
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
