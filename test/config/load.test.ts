/** What a file says is what the Config says; and every fault of a file comes with its place. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { inspect } from 'node:util';
import { describe, expect, test } from 'vitest';
import { describeConfig } from '../../src/config/describe.ts';
import { loadConfig } from '../../src/config/load.ts';
import { makeCertificate } from '../support/certificates.ts';
import { DATABASE, load, USER } from './support.ts';

describe('values', () => {
  test('two missing files are PgDog defaults with a warning each', () => {
    const { config, faults, warnings } = load({ missing: ['main', 'users'] });
    expect(faults).toEqual([]);
    expect(warnings).toContain('pgdog.toml: the file does not exist; defaults are used');
    expect(warnings).toContain('users.toml: the file does not exist; defaults are used');
    expect(config?.general).toMatchObject({
      host: '0.0.0.0',
      port: 6432,
      defaultPoolSize: 10,
      checkoutTimeoutMs: 5000,
      queryTimeoutMs: Number.POSITIVE_INFINITY,
      authType: 'scram',
    });
    expect(config?.admin).toMatchObject({ name: 'admin', user: 'admin' });
    expect(config?.admin.password.reveal().length).toBeGreaterThan(40);
  });

  test('a random admin password differs from load to load', () => {
    const [one, two] = [load({}), load({})].map((loaded) => loaded.config?.admin.password.reveal());
    expect(one).not.toBe(two);
  });

  test('a relative path starts at the directory of the file that holds it', () => {
    const { config, faults, directory } = load({
      main: `[general]\ntls_verify = "verify_ca"\ntls_server_ca_certificate = "./x/../ca.crt"\n${DATABASE}`,
      files: { 'ca.crt': makeCertificate({ name: 'ca', authority: true }).cert },
    });
    expect(faults).toEqual([]);
    expect(config?.general.tlsServerCaCertificate).toBe(path.join(directory, 'ca.crt'));
  });

  test('names, aliases, units, the largest integer as "no limit", rows in their order', () => {
    const { config, faults } = load({
      main: `[general]\nmax_pool_size = 7\nquery_timeout = 9223372036854775807\n[turnstile]\nmax_server_connections = 0
jwt_leeway = 5\n[tcp]\ntime = 30000\n${DATABASE}max_pool_size = 3\nread_only = true
[[databases]]\nname = "app"\nhost = "h2"\nrole = "replica"\ndatabase_name = "real"\n`,
    });
    expect(faults).toEqual([]);
    expect(config?.general).toMatchObject({ defaultPoolSize: 7, queryTimeoutMs: Number.POSITIVE_INFINITY });
    expect(config?.turnstile).toMatchObject({
      maxServerConnections: Number.POSITIVE_INFINITY,
      jwtLeewaySeconds: 5,
    });
    expect(config?.tcp).toEqual({
      keepalive: true,
      timeMs: 30_000,
      intervalMs: null,
      retries: null,
      userTimeoutMs: null,
    });
    expect(config?.databases.map((row) => [row.host, row.databaseName, row.role, row.poolSize])).toEqual([
      ['h', 'app', 'primary', 3],
      ['h2', 'real', 'replica', null],
    ]);
    expect(config?.databases[0]?.readOnly).toBe(true);
  });

  test('the three ways to name databases and the two to give passwords become one list each', () => {
    const { config, faults } = load({
      users: `[[users]]\nname = "a"\npassword = "p1"\npasswords = ["p2", "p3"]\ndatabases = ["app"]
[[users]]\nname = "b"\npassword = "p"\nall_databases = true\nstatement_timeout = 5\n`,
    });
    expect(faults).toEqual([]);
    expect(config?.users[0]?.passwords.map((password) => password.reveal())).toEqual(['p1', 'p2', 'p3']);
    expect(config?.users[0]).toMatchObject({ databases: ['app'], allDatabases: false });
    expect(config?.users[1]).toMatchObject({ databases: [], allDatabases: true, statementTimeoutMs: 5 });
    expect(config?.users[0]).not.toHaveProperty('password');
  });

  test('a role pattern matches whole names only, though it has no anchors', () => {
    const { config } = load({ main: `[turnstile]\nrole_pattern = "app_[a-z]+|x"\n${DATABASE}` });
    const pattern = config!.turnstile.rolePattern;
    expect(['app_a', 'x'].map((name) => pattern.test(name))).toEqual([true, true]);
    expect(['app_a;', 'my_app_a', 'xx', 'app_a\n', 'app_\u017f'].map((name) => pattern.test(name))).toEqual([
      false,
      false,
      false,
      false,
      false,
    ]);
  });

  test('the admin user and the service user are reserved whatever the list says', () => {
    const { config } = load({
      main: `[general]\njwt_server_user = "auth"\n[turnstile]\nreserved_roles = []\n[admin]\nuser = "root"\n${DATABASE}`,
    });
    expect(config?.turnstile.reservedRoles).toEqual(['root', 'auth']);
  });

  test('[admin] of users.toml wins as a whole, and the other one is named', () => {
    const { config, warnings } = load({
      main: `[admin]\nname = "old"\npassword = "x"\n${DATABASE}`,
      users: `${USER}[admin]\npassword = "console"\n`,
    });
    expect(config?.admin.password.reveal()).toBe('console');
    expect(config?.admin.name).toBe('admin');
    expect(warnings).toEqual([expect.stringMatching(/^pgdog.toml:1: admin: is also in users.toml/)]);
  });
});

describe('environment', () => {
  test('fills what the file leaves out of [general]; the file wins', () => {
    const { config, faults } = load({
      main: `[general]\nport = 1111\n${DATABASE}`,
      env: {
        PGDOG_PORT: '2222',
        PGDOG_HOST: '127.0.0.9',
        PGDOG_CLIENT_LOG_TIMEOUT: '77',
        PGDOG_LOG_CONNECTIONS: 'off',
        PGDOG_QUERY_TIMEOUT: '9223372036854775807',
        PGDOG_CHECKOUT_TIMEOUT: '',
        PGDOG_MAX_CLIENTS: '5',
        RUST_LOG: 'DEBUG',
      },
    });
    expect(faults).toEqual([]);
    expect(config?.general).toMatchObject({
      port: 1111,
      host: '127.0.0.9',
      clientLoginTimeoutMs: 77,
      logConnections: false,
      queryTimeoutMs: Number.POSITIVE_INFINITY,
      checkoutTimeoutMs: 5000,
      logLevel: 'debug',
    });
    expect(config?.turnstile.maxClients).toBe(10_000);
  });

  test('the PGDOG_PORT of a Kubernetes service link and a RUST_LOG filter are somebody else’s', () => {
    const { config, faults } = load({
      env: { PGDOG_PORT: 'tcp://10.0.0.1:6432', RUST_LOG: 'pgdog=debug,info' },
    });
    expect(faults).toEqual([]);
    expect(config?.general).toMatchObject({ port: 6432, logLevel: 'info' });
  });

  test('a bad variable is a fault that names the variable, never a silent default', () => {
    const { faults } = load({ env: { PGDOG_PORT: '70000', PGDOG_TLS_CLIENT_REQUIRED: 'maybe' } });
    expect(faults).toEqual([
      'environment: PGDOG_PORT: must be at most 65535',
      'environment: PGDOG_TLS_CLIENT_REQUIRED: must be true or false',
    ]);
  });
});

describe('secrets', () => {
  const SECRETS = ['s3cret-a', 's3cret-b', 's3cret-c', 's3cret-d', 's3cret-e', 's3cret-f'];

  test('each has a file twin; one line end is taken off and nothing else', () => {
    const { config, faults } = load({
      main: `[general]\njwt_server_password_file = "a"\n${DATABASE}user = "u"\npassword_file = "b"\n`,
      users: `[[users]]\nname = "alice"\ndatabase = "app"\npassword_file = "c"\npasswords_file = "d"
server_password_file = "e"\n[admin]\npassword_file = "f"\n`,
      files: {
        a: 's3cret-a\n',
        b: ' s3cret-b \r\n',
        c: 's3cret-c\n\n',
        d: 's3cret-d\nx\n',
        e: 's3cret-e',
        f: 'f',
      },
    });
    expect(faults).toEqual([]);
    expect(config?.jwt.serverPassword?.reveal()).toBe('s3cret-a');
    expect(config?.databases[0]?.password?.reveal()).toBe(' s3cret-b ');
    expect(config?.users[0]?.passwords.map((secret) => secret.reveal())).toEqual([
      's3cret-c\n',
      's3cret-d',
      'x',
    ]);
    expect(config?.users[0]?.serverPassword?.reveal()).toBe('s3cret-e');
    expect(config?.admin.password.reveal()).toBe('f');
  });

  test('the environment has the twin too', () => {
    const { config } = load({ env: { PGDOG_JWT_SERVER_PASSWORD_FILE: 'pw' }, files: { pw: 'from-file\n' } });
    expect(config?.jwt.serverPassword?.reveal()).toBe('from-file');
  });

  test('both ways at once, a missing file, an empty file and a directory are faults', () => {
    const { faults } = load({
      users: `[[users]]\nname = "a"\ndatabase = "app"\npassword = "s3cret-a"\npassword_file = "a"
[[users]]\nname = "b"\ndatabase = "app"\npassword_file = "nowhere"
[[users]]\nname = "c"\ndatabase = "app"\npassword_file = "empty"
[[users]]\nname = "d"\ndatabase = "app"\npassword_file = "."
[[users]]\nname = "e"\ndatabase = "app"\npassword_file = 5\n`,
      files: { a: 's3cret-a', empty: '\n' },
    });
    expect(faults).toEqual([
      'users.toml:4: users[0].password: is given together with password_file; keep one of them',
      'users.toml:9: users[1].password_file: the file nowhere: cannot be read (ENOENT)',
      'users.toml:13: users[2].password_file: the file empty is empty',
      expect.stringMatching(
        /^users.toml:17: users\[3\].password_file: the file .*: is not an ordinary file$/,
      ),
      'users.toml:21: users[4].password_file: must be the name of a file',
    ]);
  });

  test('none shows in the console rows, in JSON, in inspect, in faults or in a syntax error', () => {
    const [a, b, c] = SECRETS;
    const loaded = load({
      main: `[general]\njwt_server_password = "${a}"\n${DATABASE}user = "u"\npassword = "${b}"\n`,
      users: `[[users]]\nname = "x"\ndatabase = "app"\npasswords = ["${c}"]\n[admin]\npassword = "${a}"\n`,
    });
    const rows = describeConfig(loaded.config!);
    expect(rows).toContainEqual({ key: 'jwt_server_password', value: '****', defaultValue: '' });
    expect(rows).toContainEqual({ key: 'admin.password', value: '****', defaultValue: '' });
    const shown = [JSON.stringify(rows), JSON.stringify(loaded.config), inspect(loaded.config, { depth: 9 })];
    const broken = load({
      main: `[general]\njwt_server_password = ["${a}"]\n`,
      users: `[[users]]\npassword = "${b}"\npasswords = [1, "${c}"]\nname = \n`,
    });
    shown.push(...broken.faults, ...broken.warnings);
    expect(broken.faults).toHaveLength(2);
    for (const text of shown) for (const secret of SECRETS) expect(text).not.toContain(secret);
  });
});

describe('console rows', () => {
  test('text without quotes, no limit as PgDog writes it, an unset key as nothing', () => {
    const rows = new Map(describeConfig(load({}).config!).map((row) => [row.key, row]));
    expect(rows.get('host')).toEqual({ key: 'host', value: '0.0.0.0', defaultValue: '0.0.0.0' });
    expect(rows.get('query_timeout')?.value).toBe('9223372036854775807');
    expect(rows.get('tls_certificate')?.value).toBe('');
    expect(rows.get('turnstile.role_pattern')?.value).toBe('[A-Za-z0-9_][A-Za-z0-9_$.@+-]{0,62}');
    expect(rows.get('turnstile.placeholder_users')?.value).toBe('["jwt"]');
    expect(rows.get('turnstile.reserved_roles')?.value).toContain('"admin"');
    expect(rows.get('admin.password')?.value).toBe('****');
  });

  test('a row of a list by its index, in the order of the file; keys and passwords stay hidden', () => {
    const { config, faults } = load({
      main: `[general]\nauth_type = "jwt"\n[turnstile]\nclaims_mac_key = "0123456789abcdef"
[[turnstile.issuers]]\nissuer = "https://a.example.com"\ndiscovery = true\nallowed_roles = ["x", "/y"]
[[turnstile.issuers]]\nissuer = "https://b.example.com"\njwks_url = "https://b.example.com/jwks"
[[turnstile.login_rules]]\ndatabase = "app"\nmethod = "jwt"\n[[turnstile.users]]\nname = "z"\ndisabled = true\n${DATABASE}`,
    });
    expect(faults).toEqual([]);
    const rows = describeConfig(config!);
    const shown = (key: string): string | undefined => rows.find((row) => row.key === key)?.value;
    expect(shown('turnstile.issuers[0].issuer')).toBe('https://a.example.com');
    expect(shown('turnstile.issuers[0].allowed_roles')).toBe('["x", "/y"]');
    expect(shown('turnstile.issuers[1].jwks_url')).toBe('https://b.example.com/jwks');
    expect(shown('turnstile.issuers[1].max_token_lifetime')).toBe('');
    expect(shown('turnstile.login_rules[0].database')).toBe('["app"]');
    expect(shown('turnstile.users[0].disabled')).toBe('true');
    expect(shown('turnstile.claims_mac_key')).toBe('****');
    expect(shown('turnstile.role_rules[0].claim')).toBeUndefined();
    expect(new Set(rows.map((row) => row.key)).size).toBe(rows.length);
  });
});

describe('the command line', () => {
  const main = `[general]\nhost = "127.0.0.1"\nauth_type = "jwt"\njwt_audience = "app"\n${DATABASE}`;

  test('an issuer becomes a row behind those of the file, with discovery and every default', () => {
    const { config, faults, warnings } = load({
      main: `${main}[[turnstile.issuers]]\nissuer = "https://a.example.com"\ndiscovery = true\nallowed_roles = ["a"]\n`,
      allowedOidcIssuers: ['https://b.example.com', 'https://a.example.com', 'https://b.example.com'],
    });
    expect(faults).toEqual([]);
    expect(config?.issuers.map((row) => [row.issuer, row.discovery, row.allowedRoles])).toEqual([
      ['https://a.example.com', true, ['a']],
      ['https://b.example.com', true, []],
    ]);
    expect(config?.issuers[1]).toMatchObject({ jwksUrl: null, audiences: [], requireVerifiedEmail: true });
    expect(warnings).toEqual([
      expect.stringMatching(/^command line: turnstile.issuers\[1\].allowed_roles: may name the same roles/),
    ]);
  });

  test.each([
    [
      'http://id.example.com',
      'must be https: allow_http_issuers permits http for loopback hosts only; discovery asks it',
    ],
    ['id.example.com', 'must be an https:// URL; discovery asks it'],
    ['', 'must not be empty; leave the key out instead'],
    ['https://id.example.com/#x', 'must have neither ? nor #; discovery asks it'],
  ])('the issuer %j is refused by name', (issuer, message) => {
    const { config, faults } = load({ main, allowedOidcIssuers: [issuer] });
    expect([config, faults]).toEqual([null, [`command line: turnstile.issuers[0].issuer: ${message}`]]);
  });

  test('issuers where no login takes a token say so', () => {
    const { warnings } = load({ allowedOidcIssuers: ['https://id.example.com'] });
    expect(warnings).toEqual([
      expect.stringMatching(
        /^command line: turnstile.issuers\[0\].issuer: has no effect while auth_type is scram/,
      ),
    ]);
  });

  test('it can require a proof, and never waive one', () => {
    const open = `[general]\njwt_server_user = "u"\n[turnstile]\nauth_required = false\nanonymous_role = "anon"\nanonymous_users = ["g"]\n${DATABASE}`;
    const required = (given: object): boolean | undefined => load(given).config?.turnstile.authRequired;
    expect(required({ main: open })).toBe(false);
    expect(required({ main: open, authRequired: true })).toBe(true);
    expect(required({ authRequired: false })).toBe(true);
  });
});

describe('weaknesses', () => {
  test('are warnings that are marked; other warnings and faults are not', () => {
    const text = `[general]\nhost = "127.0.0.1"\nauth_type = "trust"\nworkers = 9\nprot = 1\n${DATABASE}`;
    const directory = mkdtempSync(path.join(tmpdir(), 'pgturnstile-weak-'));
    try {
      writeFileSync(path.join(directory, 'pgdog.toml'), text);
      writeFileSync(path.join(directory, 'users.toml'), USER);
      const [configPath, usersPath] = ['pgdog.toml', 'users.toml'].map((name) => path.join(directory, name));
      const { faults, warnings } = loadConfig({ configPath: configPath!, usersPath: usersPath!, env: {} });
      expect(warnings.map((warning) => [warning.key, warning.isWeakness])).toEqual([
        ['general.auth_type', true],
        ['general.workers', false],
      ]);
      expect(faults.map((fault) => [fault.key, fault.isWeakness])).toEqual([['general.prot', false]]);
    } finally {
      rmSync(directory, { recursive: true });
    }
  });
});

describe('faults', () => {
  test('all of them are reported at once, each with its line, in the order of the files', () => {
    const { config, faults } = load({
      main: `# a comment
[general]
prot = 6432
default_pool_size = 0
pooler_mode = "statement"
auth_type = "oauth"
checkout_timeout = "5s"
log_connections = 1
max_clients = 5
query_timeout = -1

[[databases]]
host = "h"
port = 0
[[databases]]
name = ""
host = "h"
`,
      users: '[[users]]\nname = "a"\npasword = "x"\npassword = ""\n[general]\nport = 1\n',
    });
    expect(config).toBeNull();
    expect(faults).toEqual([
      'pgdog.toml:3: general.prot: unknown key; did you mean "port"?',
      'pgdog.toml:4: general.default_pool_size: must be at least 1',
      'pgdog.toml:5: general.pooler_mode: PgDog\'s "statement" is not supported here; it must be one of transaction, session',
      'pgdog.toml:6: general.auth_type: must be one of jwt, scram, md5, plain, trust, not "oauth"',
      'pgdog.toml:7: general.checkout_timeout: must be a whole number',
      'pgdog.toml:8: general.log_connections: must be true or false',
      'pgdog.toml:9: general.max_clients: unknown key; it belongs in [turnstile] of pgdog.toml',
      'pgdog.toml:10: general.query_timeout: must be at least 1',
      'pgdog.toml:12: databases[0].name: is required',
      'pgdog.toml:14: databases[0].port: must be at least 1',
      'pgdog.toml:16: databases[1].name: must not be empty; leave the key out instead',
      'users.toml:3: users[0].pasword: unknown key; did you mean "password"?',
      'users.toml:4: users[0].password: must not be empty; leave the key out instead',
      'users.toml:5: general: belongs in pgdog.toml',
    ]);
  });

  const SINGLE: { name: string; main?: string; users?: string; fault: string }[] = [
    {
      name: 'a syntax error is one fault with its line and quotes nothing',
      main: '[general]\nport = 1\nhost = = "x"\nprot = 2\n',
      fault: 'pgdog.toml:3: Invalid TOML document: ',
    },
    {
      name: 'a key twice',
      main: '[general]\nport = 1\nport = 2\n',
      fault: 'pgdog.toml:3: Invalid TOML document: ',
    },
    {
      name: 'an array where a table belongs',
      main: `[[general]]\nport = 1\n${DATABASE}`,
      fault: 'pgdog.toml:1: general: must be one table: write [general]',
    },
    {
      name: 'a table where an array belongs',
      main: '[databases]\nname = "app"\nhost = "h"\n',
      fault: 'pgdog.toml:1: databases: must be a list of tables: write [[databases]]',
    },
    {
      name: 'an unknown section',
      main: `[turnstyle]\n${DATABASE}`,
      fault: 'pgdog.toml:1: turnstyle: unknown section; did you mean "turnstile"?',
    },
    {
      name: 'a key above all sections',
      main: `port = 1\n${DATABASE}`,
      fault: 'pgdog.toml:1: port: stands outside of any section; it belongs in [general]',
    },
    {
      name: 'users in the wrong file',
      main: `${USER}${DATABASE}`,
      fault: 'pgdog.toml:1: users: belongs in users.toml',
    },
    {
      name: 'a bad regular expression, also one that only the anchors would close',
      main: `[turnstile]\nrole_pattern = "a)(?:b"\n${DATABASE}`,
      fault: 'pgdog.toml:2: turnstile.role_pattern: is not a valid regular expression',
    },
    {
      name: 'a symmetric algorithm',
      main: `[turnstile]\njwt_algorithms = ["RS256", "HS256"]\n${DATABASE}`,
      fault: 'pgdog.toml:2: turnstile.jwt_algorithms: "HS256" is not one of RS256,',
    },
    {
      name: 'no algorithm at all',
      main: `[turnstile]\njwt_algorithms = []\n${DATABASE}`,
      fault: 'pgdog.toml:2: turnstile.jwt_algorithms: must not be empty',
    },
    {
      name: 'a list item of the wrong type',
      main: `[turnstile]\nreserved_roles = ["a", 5]\n${DATABASE}`,
      fault: 'pgdog.toml:2: turnstile.reserved_roles: item 2 must be a string',
    },
    {
      name: 'a zero byte, which the protocol could not carry',
      main: `[general]\njwt_server_user = "a\\u0000b"\n${DATABASE}`,
      fault: 'pgdog.toml:2: general.jwt_server_user: must not hold a zero byte',
    },
    {
      name: 'a user in the URL of the key set, whose password would be shown',
      main: `[general]\njwt_jwks_url = "https://u:p@id/jwks"\n${DATABASE}`,
      fault: 'pgdog.toml:2: general.jwt_jwks_url: must not hold a user or password',
    },
    {
      name: 'an alias beside its key',
      main: `[general]\ndefault_pool_size = 1\nmax_pool_size = 2\n${DATABASE}`,
      fault:
        'pgdog.toml:2: general.default_pool_size: is given together with max_pool_size; keep one of them',
    },
    {
      name: 'a number past the range of the largest integer key that has no such thing',
      main: `[general]\ncheckout_timeout = 9223372036854775807\n${DATABASE}`,
      fault: 'pgdog.toml:2: general.checkout_timeout: must be at most 9007199254740991',
    },
    {
      name: 'control characters in a key are not handed to the terminal',
      main: `[general]\n"\\u001b[31m" = 1\n${DATABASE}`,
      fault: 'pgdog.toml:2: general.?[31m: unknown key',
    },
    {
      name: 'a key that every JavaScript object has',
      main: `[general]\nconstructor = 1\n${DATABASE}`,
      fault: 'pgdog.toml:2: general.constructor: unknown key',
    },
  ];

  for (const { name, fault, ...given } of SINGLE) {
    test(name, () => {
      const { config, faults } = load(given);
      expect(config).toBeNull();
      expect(faults).toHaveLength(1);
      expect(faults[0]!.startsWith(fault), faults[0]).toBe(true);
    });
  }
});

describe('keys of PgDog that do nothing here', () => {
  test('are named in a warning, sections too, and the file still loads', () => {
    const { config, faults, warnings } = load({
      main: `[general]\nworkers = 4\nmirror_exposure = 0.5\npassthrough_auth = "enabled_plain"\n[rewrite]\nenabled = true
[[plugins]]\nname = "p"\n[otel]\n${DATABASE}shard = 1\n[tcp]\nretries = 3\ncongestion_control = "bbr"\n`,
      users: `${USER}server_auth = "rds_iam"\n`,
    });
    expect(faults).toEqual([]);
    expect(config).not.toBeNull();
    const plain = "is PgDog's and not supported here; it has no effect";
    expect(warnings).toEqual([
      `pgdog.toml:2: general.workers: ${plain}`,
      `pgdog.toml:3: general.mirror_exposure: ${plain}`,
      `pgdog.toml:4: general.passthrough_auth: ${plain}: passwords are never passed through`,
      `pgdog.toml:5: rewrite: ${plain}`,
      `pgdog.toml:7: plugins: ${plain}`,
      `pgdog.toml:9: otel: ${plain}`,
      `pgdog.toml:13: databases[0].shard: ${plain}`,
      expect.stringMatching(/^pgdog.toml:15: tcp.retries: has no effect: Node.js/),
      `pgdog.toml:16: tcp.congestion_control: ${plain}`,
      `users.toml:5: users[0].server_auth: ${plain}: PostgreSQL is given server_password or password`,
    ]);
  });

  test("PgDog's own default is passed over in silence", () => {
    const { warnings, faults } = load({
      main: `[general]\nworkers = 2\nban_replica_lag = 9223372036854775807\ncross_shard_disabled = false\n${DATABASE}lb_weight = 255\n`,
    });
    expect([faults, warnings]).toEqual([[], []]);
  });
});
