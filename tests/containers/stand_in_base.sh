#!/bin/sh
# Where no registry can be reached: a stand-in for the image python:3.11-slim-bookworm, from Debian's own packages of
# the same release and Python: stand_in_base.sh IMAGE
set -eu
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Codename: bookworm' | head -n 1)
debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv,python3-pip \
    bookworm "$root" "${mirror:-http://deb.debian.org/debian}"
ln -s ../../bin/python3 "$root/usr/local/bin/python"
rm -rf "$root"/usr/lib/python3.11/EXTERNALLY-MANAGED "$root"/var/cache/apt/archives/*.deb
tar -C "$root" -c . | podman import - "$1"
