"""One real API server for the lane; each test has pods of its own and begins with the rights of the manifest."""

from collections.abc import Iterator

import pytest

from tests.cluster.apiserver import Admin, ApiServer, build, manifest


@pytest.fixture(scope="session")
def _server(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[ApiServer]:
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():  # it takes minutes the first time, and says so
        build()
    with ApiServer(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.fixture
async def server(_server: ApiServer) -> ApiServer:
    """Running, also where a test before this one has left it dead."""
    _server.start()
    for raw in manifest():
        await Admin(_server).apply(raw)
    return _server


@pytest.fixture
def admin(server: ApiServer) -> Admin:
    return Admin(server)
