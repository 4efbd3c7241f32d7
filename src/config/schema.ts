/**
 * Every key that pgturnstile reads: name, type, unit, default, one sentence. The tables are typed by `Config`, so a
 * field without a key does not compile. PgDog's keys keep PgDog's names, types, defaults and units; our own stand
 * in [turnstile] alone. PgDog's keys that do nothing here are in unsupported.ts. Reads no file.
 */
import type { Secret } from '../base/secret.ts';
import type {
  BackendIdentity,
  ClaimSettingConfig,
  DatabaseConfig,
  GeneralConfig,
  IssuerConfig,
  JwtConfig,
  LoginMethod,
  LoginRuleConfig,
  PoolOverrides,
  RoleRuleConfig,
  TcpConfig,
  TurnstileConfig,
  TurnstileDatabaseConfig,
  TurnstileUserConfig,
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
  identity: string | null;
  tlsClientCertificateRequired: boolean | null;
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
  tlsClientCaCertificate: optionalString(
    'path',
    'tls_client_ca_certificate',
    'clients-ca.crt',
    'Certificates (PEM) that the certificates of clients are checked against; without it they are not asked for.',
  ),
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
  tlsServerCertificate: optionalString(
    'path',
    'tls_server_certificate',
    'pooler.crt',
    'Certificate chain (PEM) shown to PostgreSQL; login_map logs in with it.',
  ),
  tlsServerPrivateKey: optionalString(
    'path',
    'tls_server_private_key',
    'pooler.key',
    'Its private key (PEM).',
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

const BACKEND_IDENTITIES = ['set_role', 'login_map', 'login_password'] as const;
const LOGIN_METHODS = ['jwt', 'oauth', 'scram', 'md5', 'plain', 'cert', 'trust', 'reject'] as const;

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
  jwtIssuer: optionalString(
    'string',
    'jwt_issuer',
    'https://id.example.com',
    'Tokens that jwt_public_key_file or jwt_jwks_url verify must carry this issuer (iss); without it any.',
  ),
  maxTokenLifetimeSeconds: integer(
    'max_token_lifetime',
    86_400,
    { max: 315_360_000, noLimit: 'zero' },
    'Longest time from iat (or now) to exp of a token that is accepted; 0 is no limit.',
    { unit: 's' },
  ),
  allowMissingKid: boolean(
    'allow_missing_kid',
    false,
    'Accept a token without kid when its issuer has exactly one key.',
  ),
  requireJti: boolean('require_jti', false, 'Refuse a token without an id (jti).'),
  singleUseJti: boolean(
    'single_use_jti',
    false,
    'Refuse a token id (jti) that has logged in at this process before.',
  ),
  databaseClaims: strings(
    'database_claims',
    ['ns', 'db', 'id'],
    'Claims that name the databases a token may enter, as a string or a list; each that is there must allow it.',
  ),
  databaseClaimRequired: boolean(
    'database_claim_required',
    false,
    'Refuse a token that has none of database_claims.',
  ),
  accessClaim: string(
    'access_claim',
    'a',
    'Claim that is "ro" for read-only access or "rw"; it narrows and never widens.',
  ),
  permissionsClaim: string(
    'permissions_claim',
    'p',
    'Claim with databases by access: {"ro": {"ns": [...]}, "rw": {"ns": [...]}}.',
  ),
  delegation: choice(
    'delegation',
    ['actor', 'reject'],
    'actor',
    'A token with act is for the role of its actor (act.sub), its subject being kept for audit; or is refused.',
  ),
  claimsSetting: string(
    'claims_setting',
    'request.jwt.claims',
    'Setting that carries the whole payload of the token, as JSON, for policies to read; "none" sends none.',
  ),
  claimsMacKey: secret(
    'claims_mac_key',
    'change-me-to-32-random-bytes',
    'Key of the signature over the claims that turnstile.claims() checks in the database.',
  ),
  claimsMacKeyId: string('claims_mac_key_id', 'k1', 'Name of that key, so that two can overlap.'),
  authRequired: boolean('auth_required', true, 'Let nobody in without a proof.'),
  anonymousRole: optionalString(
    'string',
    'anonymous_role',
    'anon',
    'Role of anonymous_users, who are asked for no proof while auth_required is false.',
  ),
  anonymousUsers: strings(
    'anonymous_users',
    [],
    'Startup users that become anonymous_role when auth_required is false.',
  ),
  adminClaim: optionalString(
    'string',
    'admin_claim',
    'pooler_admin',
    'Claim that must be true for a token to open the console, where a login rule lets tokens try.',
  ),
  oauthIssuer: optionalString(
    'string',
    'oauth_issuer',
    'https://id.example.com',
    'Issuer that OAUTHBEARER clients are sent to; the first of turnstile.issuers when absent.',
  ),
  oauthScope: string('oauth_scope', 'openid', 'Scope that they are told to ask it for.'),
  maxLoginsPerAddress: integer(
    'max_logins_per_address',
    1000,
    { max: 1_000_000, noLimit: 'zero' },
    'Clients of one address that have not finished logging in; one more gets 53300; 0 is no limit.',
  ),
  failedLoginsPerAddress: integer(
    'failed_logins_per_address',
    100,
    { max: 1_000_000, noLimit: 'zero' },
    'Failed logins of one address in a minute, after which passwords and tokens not seen before get 53300; 0 is no limit.',
  ),
  tokenChecksPerSecond: integer(
    'token_checks_per_second',
    2000,
    { max: 1_000_000, noLimit: 'zero' },
    'Signature checks that may come to nothing in a second, over all addresses; 0 is no limit.',
  ),
  onTokenExpiry: choice(
    'on_token_expiry',
    ['drain', 'immediate', 'ignore'],
    'drain',
    'When its token expires a session ends outside of a transaction, at once, or never.',
  ),
  expiryGraceMs: milliseconds(
    'expiry_grace',
    30_000,
    { min: 0 },
    'How long a transaction may go on after that before it is cancelled.',
  ),
  maxSessionMs: milliseconds(
    'max_session',
    FOREVER,
    { noLimit: 'largest' },
    'Longest life of a session that a token opened, whatever its exp.',
  ),
  revocationFile: optionalString(
    'path',
    'revocation_file',
    'revoked.json',
    'List of revoked tokens, JSON: [{"jti": ...}, {"sub": ..., "before": ...}, {"sid": ...}, {"kid": ...}]; watched.',
  ),
  onKeyRemoved: choice(
    'on_key_removed',
    ['drain', 'ignore'],
    'drain',
    'What becomes of sessions whose key its issuer has withdrawn.',
  ),
  roleCheckIntervalMs: milliseconds(
    'role_check_interval',
    5000,
    { min: 100 },
    'How often the roles with live sessions are looked up, so that those of a disabled one end.',
  ),
  nologinRoles: choice(
    'nologin_roles',
    ['reject', 'allow'],
    'reject',
    'Whether a token may become a NOLOGIN role; only set_role could do it.',
  ),
  loginGroup: optionalString(
    'string',
    'login_group',
    'jwt_users',
    'Role of which every role of a token must be a member.',
  ),
  backendIdentity: choice<BackendIdentity>(
    'backend_identity',
    BACKEND_IDENTITIES,
    'set_role',
    "How a token's role is had at PostgreSQL: SET ROLE by jwt_server_user, or a login as the role itself.",
  ),
  backendPasswordKey: secret(
    'backend_password_key',
    'change-me-to-32-random-bytes',
    'Key from which login_password derives the password of each role.',
  ),
  backendPasswordGeneration: integer(
    'backend_password_generation',
    1,
    { min: 1, max: 1_000_000 },
    'Part of the derivation; a new number makes new passwords.',
  ),
  backendCluster: string(
    'backend_cluster',
    'main',
    'Part of the derivation too, so that clusters do not share passwords.',
  ),
};

export const ISSUERS: Section<IssuerConfig> = {
  issuer: requiredString('issuer', 'https://id.example.com', 'Compared with iss of the token byte for byte.'),
  jwksUrl: optionalString('url', 'jwks_url', 'https://id.example.com/.well-known/jwks.json', 'Its key set.'),
  jwksFile: optionalString('path', 'jwks_file', 'jwks.json', 'Its key set as a file; watched for change.'),
  publicKeyFile: optionalString(
    'path',
    'public_key_file',
    'issuer.pem',
    'Its one public key (PEM); watched for change.',
  ),
  discovery: boolean(
    'discovery',
    false,
    "Find the key set by the issuer's OpenID Connect document. One of these four is needed.",
  ),
  jwksOrigins: strings(
    'jwks_origins',
    [],
    "Origins besides the issuer's own that the document may name for its key set.",
  ),
  jwksCacheTtlSeconds: integer(
    'jwks_cache_ttl',
    300,
    { min: 1, max: 31_536_000 },
    'For how long a fetched key set is fresh.',
    { unit: 's' },
  ),
  audiences: strings(
    'audiences',
    [],
    'Audiences (aud) of which a token must carry one; jwt_audience when empty.',
  ),
  algorithms: strings('algorithms', [], 'Signature algorithms accepted; jwt_algorithms when empty.', {
    choices: JWT_ALGORITHMS,
  }),
  usernameClaim: optionalString(
    'string',
    'username_claim',
    'sub',
    'Claim that names the role; jwt_username_claim when absent.',
  ),
  allowedRoles: strings(
    'allowed_roles',
    [],
    'Roles that its tokens may become: names, or regular expressions after a slash; all when empty.',
  ),
  databases: strings('databases', [], 'Databases that its tokens may enter; all when empty.'),
  typ: optionalString(
    'string',
    'typ',
    'at+jwt',
    'Type (typ) that the header of its tokens must have (RFC 9068 section 4).',
  ),
  allowedClients: strings(
    'allowed_clients',
    [],
    'Clients (azp or client_id) for which its tokens must be; all when empty.',
  ),
  requireVerifiedEmail: boolean(
    'require_verified_email',
    true,
    'A role from the claim email needs email_verified to be true.',
  ),
  maxTokenLifetimeSeconds: optionalInteger(
    'max_token_lifetime',
    3600,
    { min: 1, max: 315_360_000 },
    'Overrides max_token_lifetime for the issuer.',
    { unit: 's' },
  ),
  caFile: optionalString(
    'path',
    'ca_file',
    'idp-ca.crt',
    "Certificates (PEM) to trust for it, instead of the system's.",
  ),
};

export const LOGIN_RULES: Section<LoginRuleConfig> = {
  database: strings('database', [], 'Databases; all when empty.', { isBareAllowed: true }),
  user: strings('user', [], 'Startup users: names, or regular expressions after a slash; all when empty.', {
    isBareAllowed: true,
  }),
  address: strings('address', [], 'Addresses or CIDR ranges; all when empty.', { isBareAllowed: true }),
  tls: choice('tls', ['any', 'on', 'off'], 'any', 'With or without TLS.'),
  method: choice<LoginMethod>(
    'method',
    LOGIN_METHODS,
    'reject',
    'What the client has to prove itself by; auth_type says it for those whom no rule fits.',
  ),
};

export const ROLE_RULES: Section<RoleRuleConfig> = {
  issuer: optionalString(
    'string',
    'issuer',
    'https://id.example.com',
    'Issuer that the rule is for; every one when absent.',
  ),
  claim: requiredString('claim', 'email', 'Claim that becomes the role; dots lead into nested objects.'),
  list: boolean(
    'list',
    false,
    'The claim may be a list, of which exactly one entry becomes an allowed role.',
  ),
  stripPrefix: optionalString(
    'string',
    'strip_prefix',
    'user:',
    'Taken off; a value without it does not fit.',
  ),
  stripSuffix: optionalString(
    'string',
    'strip_suffix',
    '@example.com',
    'Taken off; a value without it does not fit.',
  ),
  match: optionalString(
    'string',
    'match',
    'team-([a-z]+)',
    'Regular expression for all of the rest: literal text around one group, which is what remains.',
  ),
  addPrefix: optionalString('string', 'add_prefix', 'jwt_', 'Put in front of what remains.'),
  addSuffix: optionalString('string', 'add_suffix', '_rw', 'Put behind it.'),
};

export const CLAIM_SETTINGS: Section<ClaimSettingConfig> = {
  claim: requiredString('claim', 'sub', 'Claim (text, number or boolean); dots lead into nested objects.'),
  setting: requiredString(
    'setting',
    'request.jwt.claim.sub',
    'Setting that carries it; cleared when the token has none.',
  ),
};

export const TURNSTILE_DATABASES: Section<TurnstileDatabaseConfig> = {
  name: requiredString('name', 'app', 'Name of the database in [[databases]].'),
  audiences: strings(
    'audiences',
    [],
    'Audiences (aud) of which a token must carry one to enter it; those of the issuer when empty.',
  ),
  backendIdentity: optionalChoice<BackendIdentity>(
    'backend_identity',
    BACKEND_IDENTITIES,
    'login_map',
    'Overrides backend_identity for the database.',
  ),
  backendCluster: optionalString(
    'string',
    'backend_cluster',
    'main',
    'Overrides backend_cluster for the database.',
  ),
};

export const TURNSTILE_USERS: Section<TurnstileUserConfig> = {
  name: requiredString('name', 'alice', 'Role of a token.'),
  backendIdentity: optionalChoice<BackendIdentity>(
    'backend_identity',
    BACKEND_IDENTITIES,
    'login_password',
    'Overrides backend_identity for the role.',
  ),
  disabled: boolean('disabled', false, 'No token enters as it, nor on its behalf.'),
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
  identity: optionalString(
    'string',
    'identity',
    'billing.services.example.com',
    "Common name or subject alternative name of the user's certificate, for the login method cert.",
  ),
  tlsClientCertificateRequired: optionalBoolean(
    'tls_client_certificate_required',
    true,
    'Whether the user needs that certificate with a password too; true when it has an identity and there is a client CA.',
  ),
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
    name: 'turnstile.issuers',
    isArray: true,
    file: 'pgdog.toml',
    title:
      'One row per issuer. With rows here a token whose iss is in none of them is refused unread; the `jwt_*` keys, if given, are one more issuer.',
    specs: Object.values(ISSUERS),
  },
  {
    name: 'turnstile.login_rules',
    isArray: true,
    file: 'pgdog.toml',
    title: 'How a client has to prove itself; the first row that fits decides.',
    specs: Object.values(LOGIN_RULES),
  },
  {
    name: 'turnstile.role_rules',
    isArray: true,
    file: 'pgdog.toml',
    title:
      'How claims become roles; the first row whose claim is there and fits decides. Without rows the username claim is the role.',
    specs: Object.values(ROLE_RULES),
  },
  {
    name: 'turnstile.claim_settings',
    isArray: true,
    file: 'pgdog.toml',
    title: 'Claims that policies can read as settings.',
    specs: Object.values(CLAIM_SETTINGS),
  },
  {
    name: 'turnstile.databases',
    isArray: true,
    file: 'pgdog.toml',
    title: 'Our own words on rows of [[databases]], since PgDog refuses keys that it does not know there.',
    specs: Object.values(TURNSTILE_DATABASES),
  },
  {
    name: 'turnstile.users',
    isArray: true,
    file: 'pgdog.toml',
    title: 'Our own words on roles.',
    specs: Object.values(TURNSTILE_USERS),
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
