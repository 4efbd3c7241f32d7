/** Combinations that must be refused or called out, and the ones beside them that must not. */
import { generateKeyPairSync } from 'node:crypto';
import { describe } from 'vitest';
import { makeCertificate } from '../support/certificates.ts';
import { DATABASE, type Given, pem, runCases, USER } from './support.ts';

const JWKS = 'jwt_jwks_url = "https://id.example.com/jwks"\n';
const AUDIENCE = 'jwt_audience = "app"\n';
const JWT = `[general]\nhost = "127.0.0.1"\nauth_type = "jwt"\n${AUDIENCE}`;

describe('tokens', () => {
  runCases([
    { name: 'a sound configuration has nothing to say', main: `${JWT}${JWKS}${DATABASE}` },
    {
      name: 'no key to verify with',
      main: `${JWT}${DATABASE}`,
      faults: ['pgdog.toml:3: general.auth_type: jwt needs jwt_public_key_file, jwt_jwks_url or a row'],
    },
    {
      name: 'the key set may come from the environment',
      main: `${JWT}${DATABASE}`,
      env: { PGDOG_JWT_JWKS_URL: 'https://id/jwks' },
    },
    {
      name: 'a refused URL is not also reported as missing',
      main: `${JWT}jwt_jwks_url = "ftp://id/jwks"\n${DATABASE}`,
      faults: ['pgdog.toml:5: general.jwt_jwks_url: must be an absolute https:// or http:// URL'],
    },
    {
      name: 'http to a host that is not loopback',
      main: `${JWT}jwt_jwks_url = "http://127.0.0.1.example.com/jwks"\n${DATABASE}`,
      faults: [
        'general.jwt_jwks_url: must be https: allow_http_issuers permits http for loopback hosts only',
      ],
    },
    { name: 'http to loopback', main: `${JWT}jwt_jwks_url = "http://[::1]:8080/jwks"\n${DATABASE}` },
    {
      name: 'http to loopback when http is never permitted',
      main: `${JWT}jwt_jwks_url = "http://localhost/jwks"\n[turnstile]\nallow_http_issuers = "never"\n${DATABASE}`,
      faults: ['must be https: allow_http_issuers permits http for no host'],
    },
    {
      name: 'http to any host when asked for is a warning',
      main: `${JWT}jwt_jwks_url = "http://id/jwks"\n[turnstile]\nallow_http_issuers = "always"\n${DATABASE}`,
      warnings: ['turnstile.allow_http_issuers: always: '],
    },
    {
      name: 'no audience',
      main: `[general]\nhost = "127.0.0.1"\nauth_type = "jwt"\n${JWKS}${DATABASE}`,
      warnings: ['pgdog.toml:1: general.jwt_audience: is not set'],
    },
    {
      name: 'provisioning without a service user',
      main: `${JWT}${JWKS}jwt_user_auto_provision = true\n${DATABASE}`,
      faults: ['pgdog.toml:6: general.jwt_user_auto_provision: needs jwt_server_user'],
    },
    {
      name: 'an empty suffix, which would match everybody',
      main: `${JWT}${JWKS}jwt_user_suffix = ""\n${DATABASE}`,
      faults: ['general.jwt_user_suffix: must not be empty'],
    },
    {
      name: 'a claim path with a hole',
      main: `${JWT}${JWKS}jwt_username_claim = "a..b"\n${DATABASE}`,
      faults: ['general.jwt_username_claim: has an empty part'],
    },
    {
      name: 'keys without effect',
      main: `${JWT}${JWKS}jwt_user_auto_provision_read_only = true\njwt_server_password = "x"\n${DATABASE}`,
      warnings: [
        'jwt_user_auto_provision_read_only: has no effect',
        'jwt_server_password: has no effect without jwt_server_user',
      ],
    },
    {
      name: 'jwt keys under another auth_type',
      main: `[general]\n${JWKS}${DATABASE}`,
      warnings: ['pgdog.toml:2: general.jwt_jwks_url: has no effect while auth_type is scram'],
    },
    {
      name: 'tokens that could only ever come from this machine',
      main: `[general]\nauth_type = "jwt"\n${AUDIENCE}${JWKS}${DATABASE}`,
      warnings: ['general.tls_certificate: is not set: tokens are accepted from this machine only'],
    },
    {
      name: 'tokens that could never be presented',
      main: `${JWT}${JWKS}[turnstile]\nallow_plaintext_tokens = "never"\n${DATABASE}`,
      faults: ['pgdog.toml:7: turnstile.allow_plaintext_tokens: never, but there is no tls_certificate'],
    },
    {
      name: 'every weakening is called by its name',
      main: `${JWT}${JWKS}jwt_server_user = "auth"\n[turnstile]\nallow_plaintext_tokens = "always"
allow_privileged_server_user = true\nmissing_role = "server_user"\nallowed_privileged_roles = ["postgres"]\n${DATABASE}`,
      warnings: [
        'allow_plaintext_tokens: always',
        'allow_privileged_server_user: true',
        'missing_role: server_user',
        'allowed_privileged_roles: "postgres" is also in reserved_roles',
      ],
    },
    {
      name: 'a missing role that should run as nobody in particular',
      main: `${JWT}${JWKS}[turnstile]\nmissing_role = "server_user"\n${DATABASE}`,
      faults: ['turnstile.missing_role: server_user needs jwt_server_user'],
      warnings: ['turnstile.missing_role: server_user: a token'],
    },
    {
      name: 'two service users for one host',
      main: `${JWT}${JWKS}jwt_server_user = "auth"\n${DATABASE}user = "root"\n`,
      faults: ['databases[0].user: differs from jwt_server_user'],
    },
    {
      name: 'a placeholder that is a reserved role, or the admin user',
      main: `[turnstile]\nplaceholder_users = ["jwt", "postgres", "admin"]\n${DATABASE}`,
      faults: ['placeholder_users: "postgres" is a reserved', 'placeholder_users: "admin" is a reserved'],
    },
    {
      name: 'a user that is a placeholder, and users that are reserved',
      main: `${JWT}${JWKS}jwt_server_user = "auth"\n${DATABASE}`,
      users: ['jwt', 'postgres', 'auth', 'fine']
        .map((user) => `[[users]]\nname = "${user}"\nall_databases = true\n`)
        .join(''),
      faults: ['users.toml:2: users[0].name: "jwt" is in placeholder_users'],
      warnings: [
        'users.toml:5: users[1].name: "postgres" is reserved',
        'users.toml:8: users[2].name: "auth"',
      ],
    },
    {
      name: 'a user whom the suffix shuts out of tokens, with no password either',
      main: `${JWT}${JWKS}jwt_user_suffix = "@x"\n${DATABASE}`,
      users: '[[users]]\nname = "a@x"\ndatabase = "app"\n[[users]]\nname = "b"\ndatabase = "app"\n',
      warnings: ['users.toml:4: users[1].password: is missing'],
    },
  ]);

  const rsa = pem(generateKeyPairSync('rsa', { modulusLength: 2048 }));
  const withKey = (text: string, more = ''): Given => ({
    main: `${JWT}jwt_public_key_file = "key.pem"\n${more}${DATABASE}`,
    files: { 'key.pem': text },
  });
  runCases([
    { name: 'an RSA public key', ...withKey(rsa.publicKey) },
    {
      name: 'a public key beats a key set',
      ...withKey(rsa.publicKey, JWKS),
      warnings: ['jwt_jwks_url: has no effect'],
    },
    {
      name: 'a private key',
      ...withKey(rsa.privateKey),
      faults: ['jwt_public_key_file: holds a private key'],
    },
    {
      name: 'a certificate in place of its key',
      ...withKey(makeCertificate({ name: 'issuer' }).cert),
      faults: ['jwt_public_key_file: holds a certificate'],
    },
    {
      name: 'two keys in one file',
      ...withKey(rsa.publicKey + rsa.publicKey),
      faults: ['jwt_public_key_file: holds more than one PEM block'],
    },
    {
      name: 'a short RSA key',
      ...withKey(pem(generateKeyPairSync('rsa', { modulusLength: 1024 })).publicKey),
      faults: ['is an RSA key of 1024 bits'],
    },
    {
      name: 'a curve that no algorithm allows',
      ...withKey(pem(generateKeyPairSync('ec', { namedCurve: 'P-384' })).publicKey),
      faults: ['is a key that none of the algorithms (RS256, ES256, EdDSA, Ed25519) can use'],
    },
    { name: 'an Ed25519 key', ...withKey(pem(generateKeyPairSync('ed25519')).publicKey) },
    { name: 'half a key', ...withKey(rsa.publicKey.slice(0, 90)), faults: ['the file key.pem is not PEM'] },
    {
      name: 'no file',
      main: `${JWT}jwt_public_key_file = "nowhere.pem"\n${DATABASE}`,
      faults: ['pgdog.toml:5: general.jwt_public_key_file: the file nowhere.pem: cannot be read (ENOENT)'],
    },
  ]);
});

describe('TLS', () => {
  const one = makeCertificate({ name: 'localhost' });
  const other = makeCertificate({ name: 'localhost' });
  const files = { 'a.crt': one.cert, 'a.key': one.key, 'b.key': other.key };
  const pair = '[general]\ntls_certificate = "a.crt"\n';
  runCases([
    { name: 'a pair that fits', main: `${pair}tls_private_key = "a.key"\n${DATABASE}`, files },
    {
      name: 'a key of another certificate',
      main: `${pair}tls_private_key = "b.key"\n${DATABASE}`,
      files,
      faults: ['pgdog.toml:3: general.tls_private_key: is not the key of tls_certificate'],
    },
    {
      name: 'a certificate without a key',
      main: `${pair}${DATABASE}`,
      files,
      faults: ['pgdog.toml:2: general.tls_certificate: is given without tls_private_key'],
    },
    {
      name: 'a key without a certificate',
      main: `[general]\ntls_private_key = "a.key"\n${DATABASE}`,
      files,
      faults: ['general.tls_private_key: is given without tls_certificate'],
    },
    {
      name: 'the two mixed up',
      main: `[general]\ntls_certificate = "a.key"\ntls_private_key = "a.crt"\n${DATABASE}`,
      files,
      faults: ['tls_certificate: the file a.key is not PEM', 'tls_private_key: the file a.crt is not PEM'],
    },
    {
      name: 'an expired certificate',
      main: `${pair}tls_private_key = "a.key"\n${DATABASE}`,
      files,
      nowMs: Date.now() + 7 * 86_400_000,
      warnings: ['general.tls_certificate: expired on '],
    },
    {
      name: 'TLS required of clients that cannot have it',
      main: `[general]\ntls_client_required = true\n${DATABASE}`,
      faults: ['general.tls_client_required: is true, but there is no tls_certificate'],
    },
    {
      name: 'a CA that nothing is verified against',
      main: `[general]\ntls_server_ca_certificate = "a.crt"\n${DATABASE}`,
      files,
      warnings: ['tls_server_ca_certificate: has no effect while tls_verify is prefer'],
    },
    {
      name: 'passwords as they are over a network',
      main: `[general]\nauth_type = "plain"\n${DATABASE}`,
      warnings: ['auth_type: plain sends passwords as they are'],
    },
    {
      name: 'trust',
      main: `[general]\nauth_type = "trust"\n${DATABASE}`,
      warnings: ['auth_type: trust asks nobody'],
    },
  ]);
});

describe('databases and users', () => {
  runCases([
    {
      name: 'no database at all',
      main: '',
      warnings: ['pgdog.toml: databases: there is none'],
    },
    {
      name: 'the same host twice',
      main: `${DATABASE}[[databases]]\nname = "app"\nhost = "h"\nrole = "replica"\n`,
      faults: ['pgdog.toml:6: databases[1].host: is the same host, port and database as databases[0]'],
    },
    {
      name: 'another port is another host',
      main: `${DATABASE}[[databases]]\nname = "app"\nhost = "h"\nport = 5433\nrole = "replica"\n`,
    },
    {
      name: 'two pooler modes under one name',
      main: `${DATABASE}[[databases]]\nname = "app"\nhost = "h2"\nrole = "replica"\npooler_mode = "session"\n`,
      warnings: ['pgdog.toml:8: databases[1].pooler_mode: differs from databases[0]'],
    },
    {
      name: 'two primaries',
      main: `${DATABASE}[[databases]]\nname = "app"\nhost = "h2"\n`,
      warnings: ['databases[0].role: several hosts of this database are primary'],
    },
    {
      name: 'no primary',
      main: `${DATABASE}role = "replica"\n`,
      warnings: ['pgdog.toml:4: databases[0].role: no host of this database is its primary'],
    },
    {
      name: 'auto beside a fixed role',
      main: `${DATABASE}[[databases]]\nname = "app"\nhost = "h2"\nrole = "auto"\n`,
      warnings: ['databases[0].role: auto beside fixed roles', 'databases[1].role: auto is not detected yet'],
    },
    {
      name: 'a database that hides the console',
      main: '[[databases]]\nname = "admin"\nhost = "h"\n',
      users: '',
      faults: ['databases[0].name: "admin" is the name of the admin console'],
    },
    {
      name: 'a user of a database that is not there',
      users: '[[users]]\nname = "a"\npassword = "p"\ndatabases = ["app", "ap", "zzz"]\n',
      faults: ['users[0].databases: there is no database "ap"; did you mean "app"?', 'no database "zzz"'],
    },
    {
      name: 'a user of no database',
      users: '[[users]]\nname = "a"\npassword = "p"\n',
      warnings: ['users[0].databases: names no database'],
    },
    {
      name: 'keys that another key overrules',
      users: `[[users]]\nname = "a"\npassword = "p"\ndatabase = "app"\ndatabases = ["app"]
[[users]]\nname = "b"\npassword = "p"\ndatabase = "app"\nall_databases = true\n`,
      warnings: ['users[0].databases: has no effect beside database', 'users[1].all_databases: is true'],
    },
    {
      name: 'one user twice in one database',
      users: `${USER}[[users]]\nname = "alice"\npassword = "p"\nall_databases = true\n`,
      faults: ['users.toml:6: users[1].name: "alice" has the same databases in users[0] already'],
    },
    {
      name: 'one user with a row for each of two databases',
      main: `${DATABASE}[[databases]]\nname = "app2"\nhost = "h"\n`,
      users: `${USER}${USER.replace('"app"', '"app2"')}`,
    },
    {
      name: 'a user without a password where one is needed',
      users: '[[users]]\nname = "a"\ndatabase = "app"\n',
      faults: ['users[0].password: is missing, and auth_type scram needs one'],
    },
    {
      name: 'a name that PostgreSQL would cut off',
      users: `[[users]]\nname = "${'ä'.repeat(32)}"\npassword = "p"\ndatabase = "app"\n`,
      faults: ['users[0].name: is longer than 63 bytes'],
    },
    {
      name: 'pool sizes that contradict each other',
      main: `[general]\ndefault_pool_size = 200\nmin_pool_size = 201\n${DATABASE}pool_size = 2\nmin_pool_size = 3\n`,
      users: `${USER}min_pool_size = 300\n`,
      warnings: [
        'general.default_pool_size: is more than',
        'general.min_pool_size: is more than default_pool_size (200)',
        'databases[0].min_pool_size: is more than pool_size (2)',
        'users[0].min_pool_size: is more than pool_size (200)',
      ],
    },
  ]);
});
