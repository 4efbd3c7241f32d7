#!/bin/sh
# Makes what must not be in a repository, once: passwords, the key pair of the tokens, a TLS certificate.
# Each directory is a volume that only the service of that name mounts; $1 is where they are mounted here.
# User ids: 999 is postgres in the postgres image, 1000 is node in ours.
set -eu
umask 077
cd "$1"

if [ ! -s database/superuser-password ]; then
  openssl rand -hex 24 > database/superuser-password
fi

# The service user's password is needed on both sides of the connection.
if [ ! -s database/turnstile-password ]; then
  openssl rand -hex 24 > database/turnstile-password
fi
cp database/turnstile-password pooler/turnstile-password

# ES256: the private half signs tokens and never leaves the issuer's volume.
if [ ! -s issuer/private.pem ]; then
  openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out issuer/private.pem
fi
openssl pkey -in issuer/private.pem -pubout -out pooler/public.pem

# Tokens travel as cleartext passwords, so the pooler asks for them over TLS only.
if [ ! -s pooler/tls.crt ]; then
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 365 \
    -subj /CN=localhost -addext 'subjectAltName=DNS:localhost,DNS:pgturnstile,IP:127.0.0.1' \
    -keyout pooler/tls.key -out pooler/tls.crt 2>/dev/null
fi

if [ "$(id -u)" = 0 ]; then
  chown -R 999:999 database
  chown -R 1000:1000 pooler issuer
fi
echo 'keys and passwords are in place'
