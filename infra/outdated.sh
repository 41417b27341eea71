#!/bin/sh
# Names the stack's containers, and those of runs at work, of whose image there is a newer build: infra/outdated.sh ENGINE
set -eu
engine=$1
for container in $(
    "$engine" ps --all --quiet --filter label=com.docker.compose.project=cifar10-classifier
    "$engine" ps --quiet --filter label=cifar10-classifier=run
); do
    "$engine" inspect --format '{{.Name}} {{.Image}} {{.Config.Image}}' "$container"
done | while read -r name build image; do
    latest=$("$engine" image inspect --format '{{.Id}}' "$image" 2>/dev/null) || continue
    [ "$build" = "$latest" ] || echo "${name#/}"
done
