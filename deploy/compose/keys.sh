#!/bin/sh
# Makes what must not be in a repository, once: passwords, the key pair of the tokens, a TLS certificate.
# Each directory is a volume that only the service of that name mounts; $1 is where they are mounted here.
# User ids: 999 is postgres in the postgres image, 1000 is node in ours.
#
# It runs again before every `docker compose run token`, beside a pooler that reads these files: what is there stays
# untouched, and what is made appears whole or not at all.
set -eu
umask 077
cd "$1"

# keep FILE COMMAND…: what the command prints becomes the file, if there is none.
keep() {
  file=$1
  shift
  [ -s "$file" ] && return
  "$@" > "$file.new"
  mv "$file.new" "$file"
}

# follow FILE COMMAND…: the same, and again when the command prints something else.
follow() {
  file=$1
  shift
  "$@" > "$file.new"
  if cmp -s "$file.new" "$file"; then rm "$file.new"; else mv "$file.new" "$file"; fi
}

keep database/superuser-password openssl rand -hex 24

# The service user's password is needed on both sides of the connection.
keep database/turnstile-password openssl rand -hex 24
follow pooler/turnstile-password cat database/turnstile-password

# ES256: the private half signs tokens and never leaves the issuer's volume.
keep issuer/private.pem openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256
follow pooler/public.pem openssl pkey -in issuer/private.pem -pubout

# Tokens travel as cleartext passwords, so the pooler asks for them over TLS only. The certificate is made anew a
# month before it ends; the pooler reads it when it starts.
keep pooler/tls.key openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256
if ! openssl x509 -noout -checkend 2592000 -in pooler/tls.crt > /dev/null 2>&1; then
  rm -f pooler/tls.crt
fi
keep pooler/tls.crt openssl req -x509 -key pooler/tls.key -days 365 \
  -subj /CN=localhost -addext 'subjectAltName=DNS:localhost,DNS:pgturnstile,IP:127.0.0.1'

if [ "$(id -u)" = 0 ]; then
  chown -R 999:999 database
  chown -R 1000:1000 pooler issuer
fi
echo 'keys and passwords are in place'
