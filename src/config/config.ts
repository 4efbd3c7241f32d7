/**
 * The configuration as the rest of the house sees it: validated, with defaults filled in, every duration in
 * milliseconds (a key of another unit carries it in its name), every secret wrapped. load.ts makes it from
 * pgdog.toml and users.toml; nothing here reads a file. `Infinity` stands for PgDog's "no limit".
 */
import type { Secret } from '../base/secret.ts';

export type PoolerMode = 'transaction' | 'session';
export type AuthType = 'jwt' | 'scram' | 'md5' | 'plain' | 'trust';
export type PreparedStatements = 'disabled' | 'extended' | 'extended_anonymous';
export type ServerTlsMode = 'disabled' | 'prefer' | 'verify_ca' | 'verify_full';
export type DatabaseRole = 'primary' | 'replica' | 'auto';
/** How a provisioned role is had at PostgreSQL: taken by SET ROLE, or logged in as, with a certificate or a password. */
export type BackendIdentity = 'set_role' | 'login_map' | 'login_password';
export type LoginMethod = 'jwt' | 'oauth' | 'scram' | 'md5' | 'plain' | 'cert' | 'trust' | 'reject';

export interface GeneralConfig {
  host: string;
  /** 0 picks a free port. */
  port: number;
  defaultPoolSize: number;
  minPoolSize: number;
  poolerMode: PoolerMode;
  checkoutTimeoutMs: number;
  connectTimeoutMs: number;
  connectAttempts: number;
  connectAttemptDelayMs: number;
  idleTimeoutMs: number;
  serverLifetimeMs: number;
  serverLifetimeJitterMs: number;
  clientLoginTimeoutMs: number;
  clientIdleTimeoutMs: number;
  clientIdleInTransactionTimeoutMs: number;
  queryTimeoutMs: number;
  rollbackTimeoutMs: number;
  shutdownTimeoutMs: number;
  preparedStatements: PreparedStatements;
  /** Prepared statements kept per server connection. */
  preparedStatementsLimit: number;
  authType: AuthType;
  tlsCertificate: string | null;
  tlsPrivateKey: string | null;
  tlsClientRequired: boolean;
  /** Certificates (PEM) that certificates of clients are checked against; null asks clients for none. */
  tlsClientCaCertificate: string | null;
  tlsVerify: ServerTlsMode;
  tlsServerCaCertificate: string | null;
  /** Shown to PostgreSQL; both or neither. */
  tlsServerCertificate: string | null;
  tlsServerPrivateKey: string | null;
  logFormat: 'text' | 'json' | 'json_flattened';
  logLevel: 'trace' | 'debug' | 'info' | 'warn' | 'error' | 'fatal' | 'silent';
  logConnections: boolean;
  logDisconnections: boolean;
}

/** The `jwt_*` keys of `[general]`. */
export interface JwtConfig {
  publicKeyFile: string | null;
  jwksUrl: string | null;
  jwksCacheTtlSeconds: number;
  audience: string | null;
  usernameClaim: string;
  serverUser: string | null;
  serverPassword: Secret | null;
  userSuffix: string | null;
  userAutoProvision: boolean;
  userAutoProvisionReadOnly: boolean;
}

/** Our own table, `[turnstile]`. */
export interface TurnstileConfig {
  maxClients: number;
  maxServerConnections: number;
  maxServerConnectionsPerDatabase: number;
  /** Roles with a pool at one time, provisioned ones only. */
  maxRoles: number;
  rolePattern: RegExp;
  reservedRoles: string[];
  userMatch: 'exact' | 'any';
  placeholderUsers: string[];
  allowPlaintextTokens: 'loopback' | 'never' | 'always';
  allowPrivilegedServerUser: boolean;
  allowedPrivilegedRoles: string[];
  allowHttpIssuers: 'loopback' | 'never' | 'always';
  missingRole: 'reject' | 'server_user';
  jwtLeewaySeconds: number;
  jwtAlgorithms: string[];
  /** `iss` of the tokens that the `jwt_*` keys verify; null accepts any. */
  jwtIssuer: string | null;
  /** exp − iat at most; Infinity for no limit. */
  maxTokenLifetimeSeconds: number;
  allowMissingKid: boolean;
  requireJti: boolean;
  singleUseJti: boolean;
  databaseClaims: string[];
  databaseClaimRequired: boolean;
  accessClaim: string;
  permissionsClaim: string;
  delegation: 'actor' | 'reject';
  /** The setting that carries the whole payload; `none` sends none. */
  claimsSetting: string;
  claimsMacKey: Secret | null;
  claimsMacKeyId: string;
  authRequired: boolean;
  anonymousRole: string | null;
  anonymousUsers: string[];
  /** Claim that must be true for a token to open the console; null keeps tokens out of it. */
  adminClaim: string | null;
  /** What OAUTHBEARER clients are told; null is the first issuer of the list. */
  oauthIssuer: string | null;
  oauthScope: string;
  /** Clients of one address that have not logged in yet; Infinity for no limit. */
  maxLoginsPerAddress: number;
  /** Failed logins of one address within a minute; Infinity for no limit. */
  failedLoginsPerAddress: number;
  /** Signature checks that may come to nothing in a second, over all addresses; Infinity for no limit. */
  tokenChecksPerSecond: number;
  onTokenExpiry: 'drain' | 'immediate' | 'ignore';
  expiryGraceMs: number;
  maxSessionMs: number;
  revocationFile: string | null;
  onKeyRemoved: 'drain' | 'ignore';
  roleCheckIntervalMs: number;
  nologinRoles: 'reject' | 'allow';
  /** A role that every role of a token must be a member of; null asks for none. */
  loginGroup: string | null;
  backendIdentity: BackendIdentity;
  backendPasswordKey: Secret | null;
  backendPasswordGeneration: number;
  backendCluster: string;
}

/** One `[[turnstile.issuers]]` row. */
export interface IssuerConfig {
  /** Compared with `iss` byte for byte. */
  issuer: string;
  jwksUrl: string | null;
  jwksFile: string | null;
  publicKeyFile: string | null;
  /** The key set's address comes from the issuer's OpenID Connect document. */
  discovery: boolean;
  /** Origins, beside the issuer's own, that the document may name for its keys. */
  jwksOrigins: string[];
  jwksCacheTtlSeconds: number;
  /** Empty: `jwt_audience`, if that is set. */
  audiences: string[];
  /** Empty: `jwt_algorithms`. */
  algorithms: string[];
  /** Null: `jwt_username_claim`. */
  usernameClaim: string | null;
  /** Names, or patterns that begin with a slash; empty allows all. */
  allowedRoles: string[];
  /** Empty allows all. */
  databases: string[];
  typ: string | null;
  /** `azp` or `client_id`; empty allows all. */
  allowedClients: string[];
  requireVerifiedEmail: boolean;
  /** Null: `max_token_lifetime` of [turnstile]. */
  maxTokenLifetimeSeconds: number | null;
  caFile: string | null;
}

/** One `[[turnstile.login_rules]]` row. The first that matches decides; empty lists match everything. */
export interface LoginRuleConfig {
  /** Names of databases. */
  database: string[];
  /** Names of startup users, or patterns that begin with a slash. */
  user: string[];
  /** Addresses or CIDR ranges. */
  address: string[];
  tls: 'any' | 'on' | 'off';
  method: LoginMethod;
}

/** One `[[turnstile.role_rules]]` row: how a claim becomes a role. The first whose claim is there and fits decides. */
export interface RoleRuleConfig {
  /** The issuer that it is for; null for every one. */
  issuer: string | null;
  /** Dotted path of the claim. */
  claim: string;
  /** The claim may be a list, of which exactly one entry becomes an allowed role. */
  list: boolean;
  /** Taken off the claim's value; a value without it does not fit. */
  stripPrefix: string | null;
  stripSuffix: string | null;
  /** Regular expression for the whole rest, with exactly one group and literal text around it. */
  match: string | null;
  /** Put around what is left. */
  addPrefix: string | null;
  addSuffix: string | null;
}

/** One `[[turnstile.claim_settings]]` row. */
export interface ClaimSettingConfig {
  /** Dotted path. */
  claim: string;
  /** Name of a setting with a dot in it. */
  setting: string;
}

/** One `[[turnstile.databases]]` row: what is ours to say about a database of `[[databases]]`. */
export interface TurnstileDatabaseConfig {
  name: string;
  /** Empty: those of the issuer. */
  audiences: string[];
  backendIdentity: BackendIdentity | null;
  backendCluster: string | null;
}

/** One `[[turnstile.users]]` row: what is ours to say about a role. */
export interface TurnstileUserConfig {
  name: string;
  backendIdentity: BackendIdentity | null;
  /** No token enters as it, and its sessions end. */
  disabled: boolean;
}

export interface TcpConfig {
  keepalive: boolean;
  /** Idle time before the first keepalive probe; null leaves the system's. */
  timeMs: number | null;
  /** Parsed for PgDog's sake; Node.js has no way to set these three, and load.ts warns when they are given. */
  intervalMs: number | null;
  retries: number | null;
  userTimeoutMs: number | null;
}

/** Overrides that a user or a database may carry; user beats database beats general. */
export interface PoolOverrides {
  poolSize: number | null;
  minPoolSize: number | null;
  poolerMode: PoolerMode | null;
  idleTimeoutMs: number | null;
  serverLifetimeMs: number | null;
  serverLifetimeJitterMs: number | null;
  statementTimeoutMs: number | null;
  lockTimeoutMs: number | null;
  readOnly: boolean | null;
}

/** One `[[databases]]` row. Rows of one name are one cluster. */
export interface DatabaseConfig extends PoolOverrides {
  name: string;
  /** A host name, an address, or a directory with a Unix socket. */
  host: string;
  port: number;
  /** The database on the server; `name` when the key is absent. */
  databaseName: string;
  role: DatabaseRole;
  user: string | null;
  password: Secret | null;
}

/** One `[[users]]` row. */
export interface UserConfig extends PoolOverrides {
  name: string;
  /** Every accepted password; empty means the user has none. */
  passwords: Secret[];
  /** Names of databases the user may enter; ignored when `allDatabases`. */
  databases: string[];
  allDatabases: boolean;
  serverUser: string | null;
  serverPassword: Secret | null;
  /** The common name or a subject alternative name of the user's client certificate; null: has none. */
  identity: string | null;
  /** Null: required when a client CA is set. */
  tlsClientCertificateRequired: boolean | null;
}

export interface AdminConfig {
  /** Name of the console's database. */
  name: string;
  user: string;
  /** A random one (nobody gets in) when the file names none. */
  password: Secret;
}

export interface Config {
  general: GeneralConfig;
  jwt: JwtConfig;
  turnstile: TurnstileConfig;
  tcp: TcpConfig;
  databases: DatabaseConfig[];
  users: UserConfig[];
  admin: AdminConfig;
  issuers: IssuerConfig[];
  loginRules: LoginRuleConfig[];
  roleRules: RoleRuleConfig[];
  claimSettings: ClaimSettingConfig[];
  turnstileDatabases: TurnstileDatabaseConfig[];
  turnstileUsers: TurnstileUserConfig[];
}
