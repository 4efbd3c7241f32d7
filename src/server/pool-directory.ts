/**
 * Every pool of the worker: static ones for the users of users.toml, provisioned ones for the roles of tokens. A
 * pool is made by the first login that needs it and forgotten when nobody uses it; nothing here reads a token.
 */
import { backendIdentityOf } from '../auth/backend-identity.ts';
import type { Identity } from '../auth/identity.ts';
import { checkRoleAttributes, roleRefused } from '../auth/role-policy.ts';
import type { ScramKeys } from '../auth/scram-keys.ts';
import type { Logger } from '../base/log.ts';
import type { BackendIdentity, Config, DatabaseConfig, PoolOverrides, UserConfig } from '../config/config.ts';
import { PgError, SqlState } from '../protocol/pg-error.ts';
import type { ParameterSets } from '../session/parameters.ts';
import { Pool, type PoolSettings } from './pool.ts';
import { ServerCapacity } from './server-capacity.ts';
import type { OpenedServer } from './server-login.ts';
import { hasOwnLogin, isProvisioned, serverTarget, serverTlsOf } from './server-target.ts';
import type { ServerTls } from './server-tls.ts';

export interface PoolDirectoryOptions {
  readonly config: Config;
  readonly scramKeys: ScramKeys;
  readonly parameterSets: ParameterSets;
  readonly now: () => number;
  readonly log: Logger;
}

/** Invariant: a provisioned pool is in the map from its first login attempt until its last use. */
export class PoolDirectory {
  readonly capacity: ServerCapacity;
  readonly #options: PoolDirectoryOptions;
  readonly #pools = new Map<string, Pool>();
  /** Roles that PostgreSQL or the policy refused a moment ago, so that retries cost nothing. */
  readonly #refused = new Map<string, { error: PgError; untilMs: number }>();
  /** Forgotten, with connections that are still lent or being cleaned. */
  readonly #closing = new Set<Pool>();
  readonly #tls: ServerTls;
  #warnedPrivileged = false;
  #warnedSetRole = false;

  /** Throws the system's error when a certificate, its key or the CA file cannot be read. */
  constructor(options: PoolDirectoryOptions) {
    const { general, turnstile } = options.config;
    this.#options = options;
    this.capacity = new ServerCapacity(
      turnstile.maxServerConnections,
      turnstile.maxServerConnectionsPerDatabase,
    );
    this.#tls = serverTlsOf(general);
  }

  pools(): Iterable<Pool> {
    return this.#pools.values();
  }

  /** The pool of an identity in a database; a PgError when there is none or cannot be one. */
  acquire(identity: Identity, databaseName: string): Pool | PgError {
    const database = this.#primary(databaseName);
    if (database === undefined) {
      return new PgError({
        code: SqlState.InvalidCatalogName,
        message: `database "${databaseName}" does not exist`,
        severity: 'FATAL',
      });
    }
    const backend = isProvisioned(identity)
      ? backendIdentityOf(this.#options.config, identity.role, databaseName)
      : null;
    // What makes two logins of one role different at PostgreSQL keeps their connections apart.
    const access = identity.readOnly ? 'ro' : 'rw';
    const key = `${backend ?? 'user'}\0${access}\0${databaseName}\0${identity.role}`;
    const known = this.#pools.get(key);
    if (known !== undefined) return known;
    const refused = this.#refused.get(key);
    if (refused !== undefined) {
      if (this.#options.now() < refused.untilMs) return refused.error;
      this.#refused.delete(key);
    }
    if (backend !== null && !this.#makeRoom()) {
      return new PgError({
        code: SqlState.TooManyConnections,
        message: 'too many roles are logged in through this pooler',
        severity: 'FATAL',
        reason: 'max_roles',
      });
    }
    const pool = this.#make(database, identity, backend);
    this.#pools.set(key, pool);
    return pool;
  }

  /**
   * The first connection of a pool was refused. A role that may not enter (class 28) goes, and that is remembered
   * for a while; after anything else the pool stays, since its back-off is what keeps logins from a storm.
   */
  reject(pool: Pool, error: PgError): void {
    if (!error.code.startsWith('28') || pool.welcome !== null || pool.sessions.size > 0) return;
    for (const [key, known] of this.#pools) {
      if (known !== pool) continue;
      this.#pools.delete(key);
      pool.close(error);
      this.#remember(key, error);
      return;
    }
  }

  /**
   * The role may not enter this host (`Pool.hostKey`) any more: its provisioned pools go, and logins that come soon
   * are told the same. Connections that are still lent are looked after until they come back.
   */
  forgetRole(role: string, hostKey: string, error: PgError): void {
    for (const [key, pool] of this.#pools) {
      if (!pool.options.provisioned || pool.options.role !== role || pool.hostKey !== hostKey) continue;
      this.#pools.delete(key);
      this.#closing.add(pool);
      pool.close(error);
      this.#remember(key, error);
    }
  }

  /**
   * Why the identity may not use a pool that has come up, or null. A row of users.toml may say how its user logs in
   * at PostgreSQL; a token must not come by that into a role that the policy keeps it out of.
   */
  refusal(identity: Identity, pool: Pool): PgError | null {
    const role = pool.roleAttributes;
    const isStranger = identity.token !== null || identity.method === 'anonymous';
    if (!isStranger || pool.options.provisioned || role === null) return null;
    const refusal = checkRoleAttributes(role.name, role, this.#options.config.turnstile, Date.now());
    return refusal === null ? null : roleRefused(identity.role, refusal);
  }

  /** Makes the pools of users.toml that keep connections warm. */
  warm(): void {
    for (const user of this.#options.config.users) {
      if (!hasOwnLogin(user)) continue;
      for (const name of this.#databasesOf(user)) {
        const database = this.#primary(name);
        if (database === undefined || this.#settings(database, user, false).sizeMin === 0) continue;
        const pool = this.acquire(this.#staticIdentity(user, name), name);
        if (!(pool instanceof PgError)) pool.warm(this.#options.now());
      }
    }
  }

  tick(nowMs: number): void {
    for (const [key, pool] of this.#pools) {
      pool.tick(nowMs);
      if (!pool.options.provisioned || !isUnused(pool) || pool.failedRecently(nowMs)) continue;
      this.#pools.delete(key);
      pool.close();
    }
    for (const pool of this.#closing) {
      pool.tick(nowMs);
      if (pool.serverCount + pool.connectingCount === 0) this.#closing.delete(pool);
    }
    for (const [key, refused] of this.#refused) if (nowMs >= refused.untilMs) this.#refused.delete(key);
  }

  /** New connections for one database or all of them. */
  reconnect(databaseName: string | null): void {
    for (const pool of this.#pools.values()) {
      if (databaseName === null || pool.options.databaseName === databaseName) pool.retireAll('reconnect');
    }
  }

  close(error: PgError): void {
    for (const pool of this.#pools.values()) pool.close(error);
  }

  destroy(): void {
    for (const pool of [...this.#pools.values(), ...this.#closing]) pool.destroy();
  }

  // ---- inside ----------------------------------------------------------------------------------------------

  #remember(key: string, error: PgError): void {
    if (this.#refused.size >= REFUSED_MAX) this.#refused.clear();
    this.#refused.set(key, { error, untilMs: this.#options.now() + REFUSED_MS });
  }

  #primary(name: string): DatabaseConfig | undefined {
    const rows = this.#options.config.databases.filter((row) => row.name === name);
    return rows.find((row) => row.role !== 'replica') ?? rows[0];
  }

  #databasesOf(user: UserConfig): string[] {
    if (!user.allDatabases) return user.databases;
    return [...new Set(this.#options.config.databases.map((row) => row.name))];
  }

  /** The identity that a login of this user comes with: a pool that is made ahead must be the very one. */
  #staticIdentity(user: UserConfig, databaseName: string): Identity {
    const hosts = this.#options.config.databases.filter((row) => row.name === databaseName);
    const readOnly = user.readOnly ?? hosts.some((row) => row.readOnly === true);
    return { role: user.name, method: 'trust', user, readOnly, token: null };
  }

  /** Room for one more role: below `max_roles`, or by letting go of the one unused for longest. */
  #makeRoom(): boolean {
    let count = 0;
    let oldest: [string, Pool] | null = null;
    for (const [key, pool] of this.#pools) {
      if (!pool.options.provisioned) continue;
      count++;
      if (pool.sessions.size > 0 || pool.waitingCount > 0 || pool.connectingCount > 0) continue;
      if (oldest === null || pool.lastUsedMs < oldest[1].lastUsedMs) oldest = [key, pool];
    }
    if (count < this.#options.config.turnstile.maxRoles) return true;
    if (oldest === null) return false;
    this.#pools.delete(oldest[0]);
    // A session may have left a connection behind that is still being cleaned: its deadline is looked after.
    this.#closing.add(oldest[1]);
    oldest[1].close();
    return true;
  }

  #make(database: DatabaseConfig, identity: Identity, backend: BackendIdentity | null): Pool {
    const { config, parameterSets, scramKeys, now, log } = this.#options;
    const provisioned = backend !== null;
    return new Pool({
      databaseName: database.name,
      role: identity.role,
      target: serverTarget(config, database, identity, backend, this.#tls),
      settings: this.#settings(database, identity.user, provisioned),
      provisioned,
      readOnly: identity.readOnly,
      capacity: this.capacity,
      parameterSets,
      scramKeys,
      stayWhenRoleMissing: config.turnstile.missingRole === 'server_user',
      vet: (opened, pool) => (provisioned ? this.#vet(opened, pool) : null),
      now,
      log,
    });
  }

  #settings(database: DatabaseConfig, user: UserConfig | null, provisioned: boolean): PoolSettings {
    const { general } = this.#options.config;
    const pick = <K extends keyof PoolOverrides>(key: K): PoolOverrides[K] => user?.[key] ?? database[key];
    return {
      sizeMax: pick('poolSize') ?? general.defaultPoolSize,
      sizeMin: provisioned ? 0 : (pick('minPoolSize') ?? general.minPoolSize),
      mode: pick('poolerMode') ?? general.poolerMode,
      checkoutTimeoutMs: general.checkoutTimeoutMs,
      connectAttempts: general.connectAttempts,
      connectAttemptDelayMs: general.connectAttemptDelayMs,
      idleTimeoutMs: pick('idleTimeoutMs') ?? general.idleTimeoutMs,
      serverLifetimeMs: pick('serverLifetimeMs') ?? general.serverLifetimeMs,
      serverLifetimeJitterMs: pick('serverLifetimeJitterMs') ?? general.serverLifetimeJitterMs,
      rollbackTimeoutMs: general.rollbackTimeoutMs,
      preparedStatementsLimit: general.preparedStatementsLimit,
    };
  }

  /** What a role may be, and what the service user behind it may be. */
  #vet(opened: OpenedServer, pool: Pool): PgError | null {
    const { role } = opened.attributes;
    const { role: wanted, target } = pool.options;
    if (target.backendIdentity === 'set_role') {
      const refused = this.#vetServiceUser(opened);
      // `missing_role`: it runs as the service user.
      if (refused !== null || role.name !== wanted) return refused;
    }
    const refusal = checkRoleAttributes(role.name, role, this.#options.config.turnstile, Date.now());
    return refusal === null ? null : roleRefused(role.name, refusal);
  }

  #vetServiceUser(opened: OpenedServer): PgError | null {
    const { config, log } = this.#options;
    const { sessionUser } = opened.attributes;
    const privileged =
      sessionUser.superuser || sessionUser.bypassRls || sessionUser.replication || sessionUser.createRole;
    if (privileged && !config.turnstile.allowPrivilegedServerUser) {
      log.error(
        { server_user: sessionUser.name },
        'the server user is a superuser or has BYPASSRLS, REPLICATION or CREATEROLE: refused (allow_privileged_server_user)',
      );
      return new PgError({
        code: SqlState.InvalidAuthorizationSpecification,
        message: 'the pooler is not set up to log anybody in with a token: its server user is privileged',
        severity: 'FATAL',
        reason: 'privileged_server_user',
      });
    }
    if (privileged && !this.#warnedPrivileged) {
      this.#warnedPrivileged = true;
      log.warn(
        { server_user: sessionUser.name },
        'the server user is privileged: a session that leaves its role by a function has all of its rights',
      );
    }
    if (!this.#warnedSetRole) {
      this.#warnedSetRole = true;
      log.warn(
        { server_user: sessionUser.name },
        'backend_identity is set_role: who can send any SQL can become every role granted to the server user (login_map and login_password prevent it)',
      );
    }
    return null;
  }
}

function isUnused(pool: Pool): boolean {
  return (
    pool.sessions.size === 0 &&
    pool.serverCount === 0 &&
    pool.connectingCount === 0 &&
    pool.waitingCount === 0
  );
}

const REFUSED_MS = 5_000;
const REFUSED_MAX = 10_000;
