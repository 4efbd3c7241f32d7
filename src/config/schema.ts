/**
 * Every key that pgturnstile reads: name, type, unit, default, one sentence. The tables are typed by `Config`, so a
 * field without a key does not compile. PgDog's keys keep PgDog's names, types, defaults and units; our own stand
 * in [turnstile] alone. PgDog's keys that do nothing here are in unsupported.ts. Reads no file.
 */
import type { Secret } from '../base/secret.ts';
import type {
  DatabaseConfig,
  GeneralConfig,
  JwtConfig,
  PoolOverrides,
  TcpConfig,
  TurnstileConfig,
} from './config.ts';
import {
  boolean,
  choice,
  integer,
  type KeySpec,
  milliseconds,
  optionalBoolean,
  optionalChoice,
  optionalInteger,
  optionalString,
  pattern,
  requiredString,
  type Section,
  secret,
  secrets,
  string,
  strings,
} from './key-spec.ts';

/** `[[databases]]` as written: an absent database_name is not yet the row's name. */
export type DatabaseRow = Omit<DatabaseConfig, 'databaseName'> & { databaseName: string | null };

/** `[[users]]` as written: PgDog has two ways to give passwords and three to give databases. */
export interface UserRow extends PoolOverrides {
  name: string;
  password: Secret | null;
  passwords: Secret[];
  database: string | null;
  databases: string[];
  allDatabases: boolean;
  serverUser: string | null;
  serverPassword: Secret | null;
}

/** `[admin]` as written. */
export interface AdminRow {
  name: string;
  user: string;
  password: Secret | null;
}

const POOL_SIZE_MAX = 100_000;
/** PostgreSQL's own largest value for a timeout in milliseconds (guc_tables.c, INT_MAX). */
const SERVER_TIMEOUT_MAX = 2_147_483_647;
const FOREVER = Number.POSITIVE_INFINITY;

export const GENERAL: Section<GeneralConfig> = {
  host: string('host', '0.0.0.0', 'Address to listen on.'),
  port: integer('port', 6432, { max: 65_535 }, 'Port to listen on; 0 picks a free one and logs it.'),
  defaultPoolSize: integer(
    'default_pool_size',
    10,
    { min: 1, max: POOL_SIZE_MAX },
    'Server connections at most per pool, a pool being one role on one database host.',
    { alias: 'max_pool_size' },
  ),
  minPoolSize: integer(
    'min_pool_size',
    1,
    { max: POOL_SIZE_MAX },
    'Server connections kept open per pool; pools that a token provisioned keep none.',
  ),
  poolerMode: choice(
    'pooler_mode',
    ['transaction', 'session'],
    'transaction',
    'For how long a client keeps its server connection.',
    { foreign: ['statement'] },
  ),
  checkoutTimeoutMs: milliseconds(
    'checkout_timeout',
    5000,
    {},
    'How long a client waits for a server connection before 53300.',
  ),
  connectTimeoutMs: milliseconds(
    'connect_timeout',
    5000,
    {},
    'How long connecting and logging in to PostgreSQL may take.',
  ),
  connectAttempts: integer(
    'connect_attempts',
    1,
    { min: 1, max: 1000 },
    'Attempts to connect before the waiting clients get the error.',
  ),
  connectAttemptDelayMs: milliseconds(
    'connect_attempt_delay',
    0,
    { min: 0 },
    'Pause between those attempts.',
  ),
  idleTimeoutMs: milliseconds(
    'idle_timeout',
    60_000,
    { noLimit: 'largest' },
    'An idle server connection above min_pool_size is closed after this time.',
  ),
  serverLifetimeMs: milliseconds(
    'server_lifetime',
    86_400_000,
    { noLimit: 'largest' },
    'A server connection older than this is closed when it is next idle.',
  ),
  serverLifetimeJitterMs: milliseconds(
    'server_lifetime_jitter',
    0,
    { min: 0 },
    'Random time up to this is added to or taken from server_lifetime, so that connections do not all end at once.',
  ),
  clientLoginTimeoutMs: milliseconds(
    'client_login_timeout',
    60_000,
    {},
    'A client that has not logged in by then is disconnected.',
    { extraEnv: ['PGDOG_CLIENT_LOG_TIMEOUT'] },
  ),
  clientIdleTimeoutMs: milliseconds(
    'client_idle_timeout',
    FOREVER,
    { noLimit: 'largest' },
    'A client idle outside a transaction for this long is disconnected.',
  ),
  clientIdleInTransactionTimeoutMs: milliseconds(
    'client_idle_in_transaction_timeout',
    FOREVER,
    { noLimit: 'largest' },
    'A client idle inside a transaction for this long is disconnected and its transaction rolled back.',
  ),
  queryTimeoutMs: milliseconds(
    'query_timeout',
    FOREVER,
    { noLimit: 'largest' },
    'A request that runs longer is cancelled.',
  ),
  rollbackTimeoutMs: milliseconds(
    'rollback_timeout',
    5000,
    {},
    'How long cleaning up after a client that left may take before the server connection is closed instead.',
  ),
  shutdownTimeoutMs: milliseconds(
    'shutdown_timeout',
    60_000,
    { min: 0 },
    'How long SIGTERM and SIGINT wait for running transactions.',
  ),
  preparedStatements: choice(
    'prepared_statements',
    ['disabled', 'extended', 'extended_anonymous'],
    'extended',
    'Which prepared statements follow a client from server to server: none, the named ones, or the unnamed one too.',
    { foreign: ['full'] },
  ),
  preparedStatementsLimit: integer(
    'prepared_statements_limit',
    FOREVER,
    { min: 1, noLimit: 'largest' },
    'Prepared statements kept per server connection; the least recently used goes first.',
  ),
  authType: choice(
    'auth_type',
    ['jwt', 'scram', 'md5', 'plain', 'trust'],
    'scram',
    'How clients prove who they are.',
    { foreign: ['plugin'] },
  ),
  tlsCertificate: optionalString(
    'path',
    'tls_certificate',
    'server.crt',
    'Certificate chain (PEM) shown to clients; without it clients cannot use TLS.',
  ),
  tlsPrivateKey: optionalString('path', 'tls_private_key', 'server.key', 'Its private key (PEM).'),
  tlsClientRequired: boolean('tls_client_required', false, 'Refuse clients that do not use TLS.'),
  tlsVerify: choice(
    'tls_verify',
    ['disabled', 'prefer', 'verify_ca', 'verify_full'],
    'prefer',
    'TLS to PostgreSQL: never, if offered (unverified), with a trusted certificate, with the host name checked too.',
  ),
  tlsServerCaCertificate: optionalString(
    'path',
    'tls_server_ca_certificate',
    'ca.crt',
    "Certificates (PEM) to trust for PostgreSQL, instead of the system's.",
  ),
  logFormat: choice(
    'log_format',
    ['text', 'json', 'json_flattened'],
    'text',
    'One line per event for people, or JSON with the fields nested or at the top level.',
  ),
  logLevel: choice(
    'log_level',
    ['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'],
    'info',
    'Least severity that is logged.',
    { extraEnv: ['RUST_LOG'] },
  ),
  logConnections: boolean('log_connections', true, 'Log every login.'),
  logDisconnections: boolean('log_disconnections', true, 'Log every disconnection.'),
};

export const JWT: Section<JwtConfig> = {
  publicKeyFile: optionalString(
    'path',
    'jwt_public_key_file',
    'issuer.pem',
    'Public key (PEM; RSA, EC or Ed25519) that verifies tokens; watched for change; beats jwt_jwks_url.',
  ),
  jwksUrl: optionalString(
    'url',
    'jwt_jwks_url',
    'https://id.example.com/.well-known/jwks.json',
    "The issuer's key set; a token must then name its key by kid.",
  ),
  jwksCacheTtlSeconds: integer(
    'jwt_jwks_cache_ttl',
    300,
    { min: 1, max: 31_536_000 },
    'For how long a fetched key set is fresh.',
    { unit: 's' },
  ),
  audience: optionalString(
    'string',
    'jwt_audience',
    'app.db.example.com',
    'Tokens must carry this audience (aud); without it aud is not looked at.',
  ),
  usernameClaim: string(
    'jwt_username_claim',
    'sub',
    'Claim that names the role; dots lead into nested objects.',
  ),
  serverUser: optionalString(
    'string',
    'jwt_server_user',
    'authenticator',
    'Service user that logs in to PostgreSQL and becomes the role; required with jwt_user_auto_provision.',
  ),
  serverPassword: secret('jwt_server_password', 'change-me', 'Password of that service user.'),
  userSuffix: optionalString(
    'string',
    'jwt_user_suffix',
    '@example.com',
    'Only startup users with this ending log in with a token; the others with a password of users.toml (SCRAM).',
  ),
  userAutoProvision: boolean(
    'jwt_user_auto_provision',
    false,
    'Let a token enter as a role that users.toml does not list.',
  ),
  userAutoProvisionReadOnly: boolean(
    'jwt_user_auto_provision_read_only',
    false,
    'Make provisioned roles read-only.',
  ),
};

/** Never a symmetric one: whoever can verify with those can also mint. */
export const JWT_ALGORITHMS: readonly string[] = [
  'RS256',
  'RS384',
  'RS512',
  'PS256',
  'PS384',
  'PS512',
  'ES256',
  'ES384',
  'ES512',
  'EdDSA',
  'Ed25519',
];

const PERMISSION = ['loopback', 'never', 'always'] as const;

export const TURNSTILE: Section<TurnstileConfig> = {
  maxClients: integer(
    'max_clients',
    10_000,
    { min: 1, max: 1_000_000 },
    'Client connections at one time; one more gets 53300.',
  ),
  maxServerConnections: integer(
    'max_server_connections',
    1000,
    { max: 1_000_000, noLimit: 'zero' },
    'Server connections at one time over all pools; 0 is no limit.',
  ),
  maxServerConnectionsPerDatabase: integer(
    'max_server_connections_per_database',
    90,
    { max: 1_000_000, noLimit: 'zero' },
    "Server connections at one time to one database host; below PostgreSQL's default max_connections of 100; 0 is no limit.",
  ),
  maxRoles: integer(
    'max_roles',
    1000,
    { min: 1, max: 1_000_000 },
    'Provisioned roles that have a pool at one time; an idle one makes room.',
  ),
  rolePattern: pattern(
    'role_pattern',
    '[A-Za-z0-9_][A-Za-z0-9_$.@+-]{0,62}',
    'What the name of a role from a token must match as a whole.',
  ),
  reservedRoles: strings(
    'reserved_roles',
    ['postgres', 'streaming_replica', 'cnpg_pooler_pgbouncer'],
    'Roles that no token ever becomes; the admin user and jwt_server_user are always among them.',
  ),
  userMatch: choice(
    'user_match',
    ['exact', 'any'],
    'exact',
    "The startup user must be the token's role or a placeholder, or the claim alone decides.",
  ),
  placeholderUsers: strings(
    'placeholder_users',
    ['jwt'],
    'Startup users that stand for "whoever the token says".',
  ),
  allowPlaintextTokens: choice(
    'allow_plaintext_tokens',
    PERMISSION,
    'loopback',
    'From where a token is accepted without TLS.',
  ),
  allowPrivilegedServerUser: boolean(
    'allow_privileged_server_user',
    false,
    'Accept a superuser as jwt_server_user; every session is then one RESET ROLE away from it.',
  ),
  allowedPrivilegedRoles: strings(
    'allowed_privileged_roles',
    [],
    'Superuser, BYPASSRLS, REPLICATION and CREATEROLE roles that a token may become all the same.',
  ),
  allowHttpIssuers: choice(
    'allow_http_issuers',
    PERMISSION,
    'loopback',
    'Which hosts of jwt_jwks_url may use http instead of https.',
  ),
  missingRole: choice(
    'missing_role',
    ['reject', 'server_user'],
    'reject',
    'A token whose role PostgreSQL does not have is refused, or runs as jwt_server_user with a warning.',
  ),
  jwtLeewaySeconds: integer('jwt_leeway', 0, { max: 300 }, 'Clock difference forgiven in exp, nbf and iat.', {
    unit: 's',
  }),
  jwtAlgorithms: strings(
    'jwt_algorithms',
    ['RS256', 'ES256', 'EdDSA', 'Ed25519'],
    `Signature algorithms accepted, of ${JWT_ALGORITHMS.join(', ')}.`,
    { choices: JWT_ALGORITHMS, isEmptyAllowed: false },
  ),
};

const NO_SOCKET_OPTION = 'Node.js has no such socket option; the system setting stays in force';

export const TCP: Section<TcpConfig> = {
  keepalive: boolean('keepalive', true, 'Send TCP keepalive probes, on both sides.'),
  timeMs: optionalInteger('time', 60_000, { min: 1000 }, 'Idle time before the first probe.', { unit: 'ms' }),
  intervalMs: optionalInteger('interval', 1000, { min: 1 }, 'Time between probes.', {
    unit: 'ms',
    warning: NO_SOCKET_OPTION,
  }),
  retries: optionalInteger('retries', 3, { min: 1 }, 'Probes before the connection counts as lost.', {
    warning: NO_SOCKET_OPTION,
  }),
  userTimeoutMs: optionalInteger(
    'user_timeout',
    30_000,
    { min: 1 },
    'How long sent data may stay unacknowledged.',
    {
      unit: 'ms',
      warning: NO_SOCKET_OPTION,
    },
  ),
};

/** `owner` is who the override is for; a user's beats a database's, which beats [general]. */
function overrides(owner: string, poolSizeAlias: string | undefined): Section<PoolOverrides> {
  const like = (key: string): string => `Overrides ${key} for the ${owner}.`;
  const inMs = { unit: 'ms' } as const;
  const alias = poolSizeAlias === undefined ? {} : { alias: poolSizeAlias };
  const timeout = { max: SERVER_TIMEOUT_MAX };
  return {
    poolSize: optionalInteger(
      'pool_size',
      10,
      { min: 1, max: POOL_SIZE_MAX },
      like('default_pool_size'),
      alias,
    ),
    minPoolSize: optionalInteger('min_pool_size', 1, { max: POOL_SIZE_MAX }, like('min_pool_size')),
    poolerMode: optionalChoice('pooler_mode', ['transaction', 'session'], 'session', like('pooler_mode'), [
      'statement',
    ]),
    idleTimeoutMs: optionalInteger(
      'idle_timeout',
      60_000,
      { min: 1, noLimit: 'largest' },
      like('idle_timeout'),
      inMs,
    ),
    serverLifetimeMs: optionalInteger(
      'server_lifetime',
      86_400_000,
      { min: 1, noLimit: 'largest' },
      like('server_lifetime'),
      inMs,
    ),
    serverLifetimeJitterMs: optionalInteger(
      'server_lifetime_jitter',
      60_000,
      {},
      like('server_lifetime_jitter'),
      inMs,
    ),
    statementTimeoutMs: optionalInteger(
      'statement_timeout',
      30_000,
      timeout,
      `PostgreSQL's statement_timeout for the ${owner}, set when a server connection starts.`,
      inMs,
    ),
    lockTimeoutMs: optionalInteger(
      'lock_timeout',
      10_000,
      timeout,
      `PostgreSQL's lock_timeout for the ${owner}, set when a server connection starts.`,
      inMs,
    ),
    readOnly: optionalBoolean('read_only', true, `Makes the ${owner} read-only.`),
  };
}

export const DATABASES: Section<DatabaseRow> = {
  name: requiredString(
    'name',
    'app',
    'Name that clients connect to; rows of one name are the hosts of one cluster.',
  ),
  host: requiredString('host', '127.0.0.1', 'Host name, address, or directory of a Unix socket.'),
  port: integer('port', 5432, { min: 1, max: 65_535 }, 'Port of PostgreSQL.'),
  databaseName: optionalString(
    'string',
    'database_name',
    'app',
    'Database on the server; `name` when absent.',
  ),
  role: choice(
    'role',
    ['primary', 'replica', 'auto'],
    'primary',
    'What the host is; replicas are kept for the router and get no traffic yet, auto is not detected yet.',
  ),
  user: optionalString(
    'string',
    'user',
    'app',
    'Server user for every client of this host; beats server_user.',
  ),
  password: secret('password', 'change-me', 'Its password; beats server_password.'),
  ...overrides('database', 'max_pool_size'),
};

export const USERS: Section<UserRow> = {
  name: requiredString(
    'name',
    'alice',
    'The user, and the role it runs as unless server_user says otherwise.',
  ),
  password: secret(
    'password',
    'change-me',
    'What the client proves; also used to the server unless overridden.',
  ),
  passwords: secrets(
    'passwords',
    'Further passwords accepted from the client, for a change without a pause.',
  ),
  database: optionalString(
    'string',
    'database',
    'app',
    'The one database the user may enter; beats databases.',
  ),
  databases: strings('databases', [], 'The databases the user may enter.'),
  allDatabases: boolean('all_databases', false, 'The user may enter every database; beats the other two.'),
  serverUser: optionalString('string', 'server_user', 'app', 'User on the server instead of name.'),
  serverPassword: secret('server_password', 'change-me', 'Password on the server instead of password.'),
  ...overrides('user', undefined),
};

export const ADMIN: Section<AdminRow> = {
  name: string('name', 'admin', "Name of the console's database."),
  user: string('user', 'admin', 'The only user it lets in; no token ever becomes this role.'),
  password: secret(
    'password',
    'change-me',
    'Its password; when absent a random one, so that nobody gets in.',
  ),
};

export interface SchemaSection {
  readonly name: string;
  /** `[[name]]` instead of `[name]`. */
  readonly isArray: boolean;
  readonly file: 'pgdog.toml' | 'users.toml';
  readonly title: string;
  readonly specs: readonly KeySpec<unknown>[];
}

/** All sections with all their keys, in the order of the reference. */
export const SCHEMA: readonly SchemaSection[] = [
  {
    name: 'general',
    isArray: false,
    file: 'pgdog.toml',
    title: 'Every key here may also come from the environment as `PGDOG_<KEY>`; the file wins.',
    specs: [...Object.values(GENERAL), ...Object.values(JWT)],
  },
  {
    name: 'turnstile',
    isArray: false,
    file: 'pgdog.toml',
    title: "pgturnstile's own keys. PgDog refuses a file with this table: take it out to move back.",
    specs: Object.values(TURNSTILE),
  },
  {
    name: 'databases',
    isArray: true,
    file: 'pgdog.toml',
    title: 'One row per database and host.',
    specs: Object.values(DATABASES),
  },
  {
    name: 'tcp',
    isArray: false,
    file: 'pgdog.toml',
    title: 'Sockets on both sides.',
    specs: Object.values(TCP),
  },
  {
    name: 'users',
    isArray: true,
    file: 'users.toml',
    title: 'One row per user; a name may have several rows with different databases.',
    specs: Object.values(USERS),
  },
  {
    name: 'admin',
    isArray: false,
    file: 'users.toml',
    title: 'The console. The table may stand in either file; users.toml wins.',
    specs: Object.values(ADMIN),
  },
];
