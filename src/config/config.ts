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
  tlsVerify: ServerTlsMode;
  tlsServerCaCertificate: string | null;
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
}
