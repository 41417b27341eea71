#!/bin/sh
# Makes a work pool where there is none, and deploys what runs in it: infra/deploy.sh POOL TYPE DEPLOYMENT...
set -eu
pool=$1 type=$2
shift 2
prefect work-pool inspect "$pool" >/dev/null 2>&1 || prefect work-pool create --type "$type" "$pool"
prefect automation inspect crash-what-is-silent >/dev/null 2>&1 ||
    prefect automation create --from-file infra/automations.yaml
for name in "$@"; do
    shift
    set -- "$@" --name "$name"
done
exec prefect --no-prompt deploy --prefect-file infra/prefect.yaml "$@"
