#!/bin/bash
# Copies what can't be made again, or puts it back where nothing is: infra/backup.sh backup|restore state|stack FOLDER
# `state` is STATE_DIR; `stack` is the containers, which $STACK reaches, such as "docker compose -f infra/compose.yaml".
# Left out: caches, checkpoints, copies of the champion, and what people have copied into the volume `state`.
set -euo pipefail

refuse() {
    printf 'error: %s\n%s\n' "$1" "$2" >&2
    exit 2
}

# SQLite's own way to copy a database that others write to.
copy_database() {
    python3 -c 'import contextlib, sqlite3, sys
with contextlib.closing(sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True)) as source:
    with contextlib.closing(sqlite3.connect(sys.argv[2])) as target:
        source.backup(target)' "$1" "$2"
}

# The databases come first: the artifacts that they name are there by then.
backup_state() {
    [[ -e $STATE_DIR/mlflow.db ]] ||
        refuse "there is nothing to back up: no $STATE_DIR/mlflow.db" \
            "Name another state directory with STATE_DIR, or back up the containers: OF=stack."
    copy_database "$STATE_DIR/mlflow.db" "$new/mlflow.db"
    if [[ -e $PREFECT_HOME/prefect.db ]]; then copy_database "$PREFECT_HOME/prefect.db" "$new/prefect.db"; fi
    mkdir -p "$STATE_DIR/mlartifacts"
    # 1: a file changed meanwhile, of a run that is at work.
    tar -C "$STATE_DIR/mlartifacts" --warning no-file-changed -cf "$new/artifacts.tar" . || (($? == 1))
    realpath "$STATE_DIR" > "$new/state_dir"
}

restore_state() {
    local was file
    was=$(cat "$folder/state_dir")
    # MLflow's database holds the artifacts' whole paths.
    [[ $(realpath -m "$STATE_DIR") == "$was" ]] ||
        refuse "the backup is of $was, to which the paths in it lead, and not of $STATE_DIR" \
            "Restore it there: STATE_DIR=$was."
    # What SQLite keeps beside a database would be taken for a part of the restored one.
    for file in "$STATE_DIR"/mlflow.db{,-journal,-wal,-shm} "$STATE_DIR/mlartifacts" \
        "$PREFECT_HOME"/prefect.db{,-journal,-wal,-shm}; do
        [[ ! -e $file ]] ||
            refuse "$file is there already, and is not written over" "Move it away first, with all of $STATE_DIR."
    done
    mkdir -p "$STATE_DIR/mlartifacts" "$PREFECT_HOME"
    tar -C "$STATE_DIR/mlartifacts" -xf "$folder/artifacts.tar"
    if [[ -e $folder/prefect.db ]]; then cp "$folder/prefect.db" "$PREFECT_HOME/"; fi
    cp "$folder/mlflow.db" "$STATE_DIR/"
}

inside() {
    $STACK exec -T "$@"
}

tables() {
    inside postgres psql --username postgres --tuples-only --no-align \
        --command "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'" "$1"
}

backup_stack() {
    inside postgres true 2>/dev/null && inside storage true 2>/dev/null ||
        refuse "there is nothing to back up: the stack's postgres and storage don't run" "Start the stack: make up."
    local database
    for database in mlflow prefect; do
        inside postgres pg_dump --username postgres --no-owner "$database" > "$new/$database.sql"
    done
    inside storage tar -C /data/mlflow --exclude ./.sgwtmp -cf - . > "$new/artifacts.tar"  # uploads that are at work
}

restore_stack() {
    local database mlflow prefect artifacts
    $STACK up --detach postgres storage
    for _ in {60..0}; do  # over TCP, as in infra/compose.yaml
        ! inside postgres pg_isready --quiet --host 127.0.0.1 --username postgres || break
        sleep 1
    done
    inside postgres pg_isready --quiet --host 127.0.0.1 --username postgres ||
        refuse "the stack's postgres does not answer" "See what it says: $STACK logs postgres"
    mlflow=$(tables mlflow) prefect=$(tables prefect)
    artifacts=$(inside storage ls /data/mlflow)
    [[ $mlflow == 0 && $prefect == 0 && -z $artifacts ]] ||
        refuse "the stack's databases or artifacts are not empty, and are not written over" \
            "Restore before the first make up, or after removing the volumes postgres and artifacts."
    inside storage tar -C /data/mlflow -xf - < "$folder/artifacts.tar"
    for database in prefect mlflow; do
        inside postgres psql --username postgres --quiet --output /dev/null --set ON_ERROR_STOP=1 --single-transaction \
            "$database" < "$folder/$database.sql"
    done
}

verb=$1 what=$2 folder=${3%/}
[[ -n $folder ]] || refuse "no folder is named" "Name it: make $verb BACKUP=FOLDER."
case $what in
state) registry=mlflow.db ;;
stack) registry=mlflow.sql ;;
*) refuse "OF=$what is neither state nor stack" "OF=state is STATE_DIR, OF=stack the containers of make up." ;;
esac
case $verb in
backup)
    [[ ! -e $folder ]] || refuse "$folder is there already" "Name another folder: BACKUP=FOLDER."
    mkdir -p "$(dirname "$folder")"
    new=$(mktemp -d "$folder.XXXXXX")  # nothing half-done has its name
    trap 'rm -rf "$new"' EXIT
    "backup_$what"
    mv --no-target-directory "$new" "$folder"
    echo "backed up to $folder ($(du -sh "$folder" | cut -f1))" ;;
restore)
    [[ -e $folder/$registry ]] ||
        refuse "$folder is no backup of the $what" \
            "Name one that make backup wrote, and what it is of: OF=state or OF=stack."
    "restore_$what"
    echo "restored from $folder" ;;
esac
