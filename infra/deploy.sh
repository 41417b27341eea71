#!/bin/sh
# Makes a work pool where there is none, and deploys what runs in it: infra/deploy.sh POOL TYPE
set -eu
pool=$1 type=$2
shown=${PREFECT_API_URL:-}
[ "$type" = process ] || shown="$shown ${MLFLOW_TRACKING_URI:-}"  # which infra/prefect.yaml hands to the containers
case $shown in *://*@*)
    echo "error: Prefect would show the password in the address PREFECT_API_URL or MLFLOW_TRACKING_URI" >&2
    echo "Set PREFECT_API_AUTH_STRING=USER:PASSWORD instead; docs/containers.md says where MLflow's password belongs." >&2
    exit 2 ;;
esac
prefect work-pool inspect "$pool" >/dev/null 2>&1 || prefect work-pool create --type "$type" "$pool"
# Who moves the champion holds it: flows/rollback.py.
prefect gcl inspect champion >/dev/null 2>&1 || prefect gcl create champion --limit 1
prefect automation inspect crash-what-does-not-answer >/dev/null 2>&1 ||
    prefect automation create --from-file infra/automations.yaml
exec python -m infra.deployments pool="$pool"
