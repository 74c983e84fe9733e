#!/bin/sh
# What a container of placement runs: `tables` makes or upgrades the tables and ends; `serve` serves.
#
# DATABASE_HOST           where PostgreSQL is; its user and its database are called placement
# DATABASE_PASSWORD_FILE  holds the password, in letters and digits: it becomes a part of a URL
# WORKERS, THREADS        of gunicorn
set -eu

password=$(cat "${DATABASE_PASSWORD_FILE:-/run/secrets/database-password}")
# The environment, not an argument, which every process may read; it comes before placement.conf.
export OS_PLACEMENT_DATABASE__CONNECTION="postgresql+psycopg2://placement:$password@${DATABASE_HOST:-postgres}/placement"

case ${1:-serve} in
tables)
    exec placement-manage --config-file "$OS_PLACEMENT_CONFIG_DIR/placement.conf" db sync
    ;;
serve)
    # gunicorn's workers tell it that they live through files: in memory, a slow disk kills none.
    exec gunicorn --bind "${BIND:-0.0.0.0:8080}" --workers "${WORKERS:-3}" --threads "${THREADS:-8}" \
        --worker-class gthread --keep-alive 65 --worker-tmp-dir /dev/shm --no-control-socket \
        placement.wsgi.api:application
    ;;
*)
    echo "usage: placement tables | serve" >&2
    exit 2
    ;;
esac
