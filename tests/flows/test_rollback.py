"""The flow that puts the previous champion back, against a real registry and a real Prefect API."""

from collections.abc import Iterator

import pytest
from prefect.client.orchestration import get_client

from flows.rollback import rollback
from serving.model.errors import UserError
from serving.model.registry import CHAMPION, DEFAULT_NAME
from tests.helpers.state import state_in
from training import tracking
from training.release import registry

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with state_in(tmp_path_factory.mktemp("rollback")):
        yield


def test_the_previous_champion_is_put_back_once(prefect_api: None) -> None:
    client, name = tracking.connect(), DEFAULT_NAME
    client.create_registered_model(name)
    first, second = (str(client.create_model_version(name, "s3://models/a").version) for _ in range(2))
    client.set_model_version_tag(name, second, registry.PREVIOUS, first)
    client.set_registered_model_alias(name, CHAMPION, second)

    assert rollback() == first
    champion = registry.champion(DEFAULT_NAME)
    assert champion is not None
    assert str(champion.version) == first
    with get_client(sync_client=True) as api:
        (artifact,) = api.read_artifacts()
    assert f"Version {first} is the champion again" in str(artifact.data)
    with pytest.raises(UserError, match="there is none to go back to"):
        rollback()
