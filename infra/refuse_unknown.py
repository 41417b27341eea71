"""Makes Prefect's API refuse parameters that a flow does not have, for which `prefect deploy` has no setting.

A run that gets one ends before its flow begins, as crashed, with the reason in the worker's log alone.
"""

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentUpdate

if __name__ == "__main__":
    with get_client(sync_client=True) as api:
        for deployment in api.read_deployments():
            if (deployment.entrypoint or "").startswith("flows/"):
                schema = {**(deployment.parameter_openapi_schema or {}), "additionalProperties": False}
                api.update_deployment(deployment.id, DeploymentUpdate(parameter_openapi_schema=schema))
