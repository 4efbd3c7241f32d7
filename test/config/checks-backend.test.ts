/** How a token's role is had at PostgreSQL: what each way needs, and what does nothing without it. */
import { describe } from 'vitest';
import { makeCertificate } from '../support/certificates.ts';
import { DATABASE, runCases } from './support.ts';

const ISSUER =
  '[[turnstile.issuers]]\nissuer = "https://id.example.com"\ndiscovery = true\naudiences = ["app"]\n';
const KEY = 'backend_password_key = "0123456789abcdef"\n';
const certificate = makeCertificate({ name: 'pooler' });
const other = makeCertificate({ name: 'pooler' });
const files = { 'p.crt': certificate.cert, 'p.key': certificate.key, 'o.key': other.key };
const PAIR = 'tls_server_certificate = "p.crt"\ntls_server_private_key = "p.key"\n';
const TWO = `${DATABASE}[[databases]]\nname = "other"\nhost = "h"\n`;

/** A pooler that makes pools for the roles of tokens. */
const main = (turnstile: string, general = '', databases = DATABASE): string =>
  `[general]\nhost = "127.0.0.1"\nauth_type = "jwt"\njwt_user_auto_provision = true\n${general}[turnstile]\ndatabase_claim_required = true\n${turnstile}${ISSUER}${databases}`;
const row = (section: string, text: string): string => `[[turnstile.${section}]]\n${text}`;

describe('logging in by one certificate for all roles', () => {
  const MAP = 'backend_identity = "login_map"\n';
  runCases([
    { name: 'needs no service user', main: main(MAP, PAIR), files },
    {
      name: 'without a certificate',
      main: main(MAP),
      faults: ['pgdog.toml:7: turnstile.backend_identity: login_map needs tls_server_certificate'],
    },
    {
      name: 'asked for by one role or one database alone, without a certificate',
      main: main(row('databases', 'name = "app"\nbackend_identity = "login_map"\n')),
      faults: ['turnstile.databases[0].backend_identity: login_map needs'],
    },
    {
      name: 'half a pair',
      main: main(MAP, 'tls_server_private_key = "p.key"\n'),
      files,
      faults: ['general.tls_server_private_key: is given without tls_server_certificate'],
    },
    {
      name: 'a pair that does not fit',
      main: main(MAP, PAIR.replace('p.key', 'o.key')),
      files,
      faults: ['general.tls_server_private_key: is not the key of tls_server_certificate'],
    },
    {
      name: 'without TLS',
      main: main(MAP, `${PAIR}tls_verify = "disabled"\n`),
      files,
      faults: ['general.tls_verify: disabled, but login_map logs in by TLS'],
      warnings: ['general.tls_server_certificate: has no effect while tls_verify is disabled'],
    },
    {
      name: 'over a Unix socket',
      main: main(MAP, PAIR, '[[databases]]\nname = "app"\nhost = "/run/postgresql"\n'),
      files,
      faults: ['databases[0].host: is a Unix socket, which has no TLS'],
    },
    {
      name: 'words that belong to SET ROLE',
      main: main(`${MAP}nologin_roles = "allow"\nmissing_role = "server_user"\n`, PAIR),
      files,
      faults: ['missing_role: server_user: without set_role no session'],
      warnings: ['nologin_roles: has no effect: without set_role each role logs in itself'],
    },
    {
      name: 'a certificate that is shown to PostgreSQL for users of users.toml',
      main: `[general]\n${PAIR}${DATABASE}`,
      files,
    },
    {
      name: 'a user of users.toml who has no login of its own logs in by it too',
      main: main(MAP).replace('jwt_user_auto_provision = true\n', ''),
      users: '[[users]]\nname = "alice"\ndatabase = "app"\n',
      faults: ['turnstile.backend_identity: login_map needs tls_server_certificate'],
    },
    {
      name: 'nobody whom a token makes',
      main: main(MAP).replace('jwt_user_auto_provision = true\n', ''),
      warnings: ['backend_identity: has no effect without jwt_user_auto_provision'],
    },
  ]);
});

describe('logging in by derived passwords', () => {
  const DERIVED = 'backend_identity = "login_password"\n';
  runCases([
    { name: 'needs a key and no service user', main: main(DERIVED + KEY) },
    {
      name: 'without a key',
      main: main(DERIVED),
      faults: ['turnstile.backend_identity: login_password needs backend_password_key'],
    },
    {
      name: 'for one role alone, without a key; the others need the service user',
      main: main(
        row('users', 'name = "a"\nbackend_identity = "login_password"\n'),
        'jwt_server_user = "auth"\n',
      ),
      faults: ['turnstile.users[0].backend_identity: login_password needs backend_password_key'],
    },
    {
      name: 'a key that can be guessed',
      main: main(`${DERIVED}backend_password_key = "0123456789abcde"\n`),
      faults: ['turnstile.backend_password_key: must have at least 16 bytes'],
    },
    {
      name: 'keys that nothing is derived from',
      main: main(
        `${KEY}backend_password_generation = 2\nbackend_cluster = "x"\n${row('databases', 'name = "app"\nbackend_cluster = "y"\n')}`,
        'jwt_server_user = "auth"\n',
      ),
      warnings: [
        'backend_password_key: has no effect without login_password',
        'backend_password_generation: has no effect',
        'turnstile.backend_cluster: has no effect',
        'databases[0].backend_cluster: has no effect',
      ],
    },
  ]);
});

describe('a service user', () => {
  runCases([
    {
      name: 'is needed as soon as one database takes roles by SET ROLE',
      main: main(
        `backend_identity = "login_password"\n${KEY}${row('databases', 'name = "app"\nbackend_identity = "set_role"\n')}`,
        '',
        TWO,
      ),
      faults: ['general.jwt_user_auto_provision: needs jwt_server_user'],
    },
    {
      name: 'is not needed where every database says otherwise',
      main: main(
        `${KEY}${row('databases', 'name = "app"\nbackend_identity = "login_password"\n')}${row('databases', 'name = "other"\nbackend_identity = "login_password"\n')}`,
        '',
        TWO,
      ),
    },
    {
      name: 'a general word that every database overrules',
      main: main(
        `${KEY}backend_identity = "set_role"\n${row('databases', 'name = "app"\nbackend_identity = "login_password"\n')}`,
      ),
      warnings: ['turnstile.backend_identity: has no effect: every database names its own'],
    },
  ]);
});

describe('rows about databases and roles', () => {
  runCases([
    {
      name: 'names that PostgreSQL would cut off, and the longest that it would not',
      main: main(
        `login_group = "${'é'.repeat(32)}"\n${row('users', `name = "${'a'.repeat(64)}"\ndisabled = true\n`)}${row('users', `name = "${'a'.repeat(63)}"\ndisabled = true\n`)}`,
        'jwt_server_user = "auth"\n',
      ),
      faults: [
        'turnstile.login_group: is longer than 63 bytes',
        'turnstile.users[0].name: is longer than 63 bytes',
      ],
    },
    {
      name: 'twice, of nobody, saying nothing',
      main: main(
        row('databases', 'name = "app"\naudiences = ["a"]\n') +
          row('databases', 'name = "app"\n') +
          row('databases', 'name = "ap"\naudiences = ["a"]\n') +
          row('users', 'name = "a"\ndisabled = true\n') +
          row('users', 'name = "a"\n') +
          row('users', 'name = "postgres"\ndisabled = true\nbackend_identity = "set_role"\n'),
        'jwt_server_user = "auth"\n',
      ),
      faults: [
        'turnstile.databases[1].name: "app" is in turnstile.databases[0] already',
        'turnstile.databases[2].name: there is no database "ap"; did you mean "app"?',
        'turnstile.users[1].name: "a" is in turnstile.users[0] already',
      ],
      warnings: [
        'turnstile.databases[1].name: has no effect: it says nothing',
        'turnstile.users[1].name: has no effect: it says nothing',
        'turnstile.users[2].name: "postgres" is reserved',
        'turnstile.users[2].backend_identity: has no effect beside disabled',
      ],
    },
  ]);
});
