/**
 * `pgturnstile doctor`: connects to each database as the pooler would and reports what stands between a token and its
 * role, and what leads past it. Reads, tries and undoes; changes nothing. No secret is printed.
 */
import { backendIdentityOf } from '../auth/backend-identity.ts';
import type { ScramKeys } from '../auth/scram-keys.ts';
import { findInsecureReasons } from '../auth/token-rules.ts';
import type { BackendIdentity, Config, DatabaseConfig } from '../config/config.ts';
import { hasFlatKeySource, usesTokens } from '../config/token-use.ts';
import { PgError } from '../protocol/pg-error.ts';
import type { ServerTarget } from '../server/server-login.ts';
import { ServerLoginError } from '../server/server-login-error.ts';
import { serverTarget, serverTlsOf } from '../server/server-target.ts';
import type { ServerTls } from '../server/server-tls.ts';
import { tryEscapes } from './doctor-escapes.ts';
import { checkHba } from './doctor-hba.ts';
import { DoctorReport, listed } from './doctor-report.ts';
import { checkLoginGroup, checkServiceUser, quoted } from './doctor-roles.ts';
import { DoctorSession } from './doctor-session.ts';
import { certificateName, SUGGESTED_GROUP } from './provision-sql.ts';

export interface DoctorOptions {
  readonly config: Config;
  /** Null: every database. */
  readonly database: string | null;
  /** Roles to try; those found in PostgreSQL when empty. */
  readonly roles: readonly string[];
  readonly scramKeys: ScramKeys;
}

/** The report. Throws RangeError for a database that the configuration does not have, and the system's error for a file. */
export async function runDoctor(options: DoctorOptions): Promise<DoctorReport> {
  const { config, database } = options;
  const report = new DoctorReport();
  const rows = primaries(config).filter((row) => database === null || row.name === database);
  if (rows.length === 0) throw new RangeError('there is no such database in the configuration');
  checkTokens(config, report);
  const tls = serverTlsOf(config.general);
  for (const row of rows) await new DatabaseVisit(options, row, tls, report).run();
  return report;
}

function primaries(config: Config): DatabaseConfig[] {
  const rows = new Map<string, DatabaseConfig>();
  for (const row of config.databases) {
    const first = rows.get(row.name);
    if (first === undefined || (first.role === 'replica' && row.role !== 'replica')) rows.set(row.name, row);
  }
  return [...rows.values()];
}

/** What the configuration lets through that a token should be asked for. */
function checkTokens(config: Config, report: DoctorReport): void {
  if (!usesTokens(config)) {
    report.note(
      'no login is by token here',
      'auth_type = "jwt", or a login rule with the method jwt or oauth',
    );
    return;
  }
  const { issuers, turnstile, jwt } = config;
  const flat = hasFlatKeySource(config);
  if (flat && turnstile.jwtIssuer === null) {
    report.wrong(
      'no issuer is pinned for the jwt_* keys: every token that their key verifies is taken',
      'jwt_issuer below [turnstile], or rows of [[turnstile.issuers]]',
    );
  }
  // Where every database has audiences of its own, they stand in for the issuers'.
  const isAnyTaken = findInsecureReasons(config).includes('any_audience');
  if (isAnyTaken && flat && jwt.audience === null) {
    report.wrong(
      'any audience is taken: a token that was made for another application opens this one',
      'jwt_audience below [general]',
    );
  }
  for (const row of issuers) {
    if (!isAnyTaken || row.audiences.length > 0 || jwt.audience !== null) continue;
    report.wrong(`any audience is taken from ${row.issuer}`, 'audiences in its row of [[turnstile.issuers]]');
  }
  if (!isAnyTaken && (!flat || turnstile.jwtIssuer !== null)) {
    report.fine('tokens are taken from named issuers, for named audiences');
  }
}

/** Everything about one database. Lives for one run. */
class DatabaseVisit {
  readonly #options: DoctorOptions;
  readonly #row: DatabaseConfig;
  readonly #tls: ServerTls;
  readonly #report: DoctorReport;
  /** Roles found, to be tried when none was named. */
  #found: string[] = [];
  #hasLookedAround = false;
  #hasTriedLogin = false;

  constructor(options: DoctorOptions, row: DatabaseConfig, tls: ServerTls, report: DoctorReport) {
    this.#options = options;
    this.#row = row;
    this.#tls = tls;
    this.#report = report;
  }

  async run(): Promise<void> {
    const { config } = this.#options;
    const { name, host, port } = this.#row;
    this.#report.note(`database "${name}" at ${host}, port ${port}: ${listed(this.#identities())}`);
    const serviceUser = this.#row.user ?? config.jwt.serverUser;
    if (serviceUser !== null) await this.#visitAsService(serviceUser);
    for (const [role, identity] of this.#rolesToTry()) await this.#visitAs(role, identity);
  }

  /** The ways in use: the database's, and those of roles that have their own. */
  #identities(): BackendIdentity[] {
    const { config, roles } = this.#options;
    const names = [...config.turnstileUsers.map((row) => row.name), ...roles, ''];
    return [...new Set(names.map((name) => backendIdentityOf(config, name, this.#row.name)))];
  }

  /** Named ones, else rows of [[turnstile.users]], else the first that PostgreSQL has; for each way one at least. */
  #rolesToTry(): [role: string, identity: BackendIdentity][] {
    const { config, roles } = this.#options;
    const how = (role: string): [string, BackendIdentity] => [
      role,
      backendIdentityOf(config, role, this.#row.name),
    ];
    if (roles.length > 0) return roles.map(how);
    const known = [
      ...config.turnstileUsers.filter((row) => !row.disabled).map((row) => row.name),
      ...this.#found,
    ];
    const chosen: [string, BackendIdentity][] = [];
    for (const identity of this.#identities()) {
      const role = known.find((name) => how(name)[1] === identity);
      if (role !== undefined) chosen.push([role, identity]);
      else {
        const words = `no role was tried by ${identity}`;
        const fix = 'name one: pgturnstile doctor --role <role>';
        // Without a service user there was nobody else to look with, and silence would pass for health.
        if (this.#hasTriedLogin) this.#report.note(words, fix);
        else this.#report.wrong(`${words}, and so nothing was looked at in PostgreSQL`, fix);
      }
    }
    return chosen;
  }

  /** Without becoming anybody: what is there, and what the service user can do. */
  async #visitAsService(user: string): Promise<void> {
    const { config } = this.#options;
    const target = { ...this.#target(user, 'set_role'), setRole: null };
    const session = await this.#open(target, `the service user "${user}"`);
    if (session === null) return;
    await this.#during(session, async () => {
      if (session.opened.sessionUser !== user) return;
      const usesSetRole = this.#identities().includes('set_role');
      if (usesSetRole) this.#found.push(...(await checkServiceUser(session, config, this.#report)));
      await this.#lookAround(session);
    });
  }

  async #visitAs(role: string, identity: BackendIdentity): Promise<void> {
    const { config } = this.#options;
    const session = await this.#open(this.#target(role, identity), `${identity}, role "${role}"`);
    if (session === null) return;
    await this.#during(session, async () => {
      const { role: attributes } = session.opened.attributes;
      if (attributes.validUntilMs !== null && attributes.validUntilMs < Date.now()) {
        this.#report.note(`the VALID UNTIL of "${role}" is past: no token enters as it`);
      }
      if (config.turnstile.loginGroup !== null && attributes.inLoginGroup !== true) {
        this.#report.wrong(
          `"${role}" is no member of ${config.turnstile.loginGroup}: no token enters as it`,
          `GRANT ${quoted(config.turnstile.loginGroup)} TO ${quoted(role)}`,
        );
      }
      if (!this.#hasLookedAround) await this.#lookAround(session);
      const [owner] = await session.ask(
        'SELECT r.rolname::pg_catalog.text FROM pg_catalog.pg_roles AS r WHERE r.oid OPERATOR(pg_catalog.=) 10::pg_catalog.oid',
      );
      const strangers = [owner?.[0] ?? null, this.#found.find((name) => name !== role) ?? null];
      const others = strangers.filter((name): name is string => name !== null && name !== role);
      await tryEscapes(session, identity, role, others, this.#report);
    });
  }

  /** What any role can see: the login group, and pg_hba.conf where it may be read. */
  async #lookAround(session: DoctorSession): Promise<void> {
    this.#hasLookedAround = true;
    const { config } = this.#options;
    const byMap = this.#identities().includes('login_map');
    const group = config.turnstile.loginGroup ?? (byMap ? SUGGESTED_GROUP : null);
    if (group !== null && config.turnstile.loginGroup === null) {
      this.#report.wrong(
        'login_group is not set: a role that leaves the group of pg_hba.conf keeps its sessions',
        `login_group = "${SUGGESTED_GROUP}" below [turnstile]`,
      );
    }
    if (group !== null) this.#found.push(...(await checkLoginGroup(session, group, config, this.#report)));
    const isServiceUser = session.opened.sessionUser === (this.#row.user ?? config.jwt.serverUser);
    const expectation = {
      mapGroup: byMap ? group : null,
      commonName: certificateName(config),
      isServiceUser,
    };
    await checkHba(session, expectation, this.#report);
  }

  #target(role: string, identity: BackendIdentity): ServerTarget {
    const { config } = this.#options;
    return serverTarget(config, this.#row, { role, user: null, readOnly: false }, identity, this.#tls);
  }

  async #open(target: ServerTarget, who: string): Promise<DoctorSession | null> {
    this.#hasTriedLogin = true;
    let session: DoctorSession;
    try {
      session = await DoctorSession.open(target, this.#options.scramKeys);
    } catch (error) {
      if (!(error instanceof ServerLoginError)) throw error;
      this.#report.wrong(`${who} cannot log in: ${error.message}`, loginFix(error, target));
      return null;
    }
    const { serverVersion, serverVersionNumber, encrypted } = session.opened;
    this.#report.fine(`${who} logs in: PostgreSQL ${serverVersion}, ${encrypted ? 'TLS' : 'no TLS'}`);
    this.#checkVersion(serverVersionNumber, target.backendIdentity);
    this.#checkTls(session, target);
    return session;
  }

  #checkVersion(version: number, identity: BackendIdentity | null): void {
    const fixed = FIXED_MINORS.find((minor) => Math.floor(minor / 10_000) === Math.floor(version / 10_000));
    if (identity === 'set_role' && (version < OLDEST || (fixed !== undefined && version < fixed))) {
      this.#report.wrong(
        'this release resets SET ROLE to the wrong user in some cases (CVE-2024-10978)',
        'the newest minor release',
      );
    }
    if (identity === 'login_map' && version < VERSION_16) {
      this.#report.note('before PostgreSQL 16 pg_ident.conf needs a line for each role');
    }
  }

  #checkTls(session: DoctorSession, target: ServerTarget): void {
    const isLocal = target.host.startsWith('/') || /^(localhost|127\.|::1$)/.test(target.host);
    if (!session.opened.encrypted) {
      if (!isLocal) {
        this.#report.wrong(
          'the connection to PostgreSQL is not encrypted',
          'ssl = on at PostgreSQL, and tls_verify = "verify_full" below [general]',
        );
      }
    } else if (target.tls.mode === 'prefer' && !isLocal) {
      this.#report.wrong(
        'nobody checks whether the server is the right one (tls_verify = "prefer")',
        'tls_verify = "verify_full" and tls_server_ca_certificate below [general]',
      );
    }
  }

  /** Runs the checks and closes; an error of PostgreSQL in between is a finding, not the end. */
  async #during(session: DoctorSession, checks: () => Promise<void>): Promise<void> {
    try {
      await checks();
    } catch (error) {
      if (!(error instanceof PgError) && !(error instanceof ServerLoginError)) throw error;
      this.#report.wrong(`a check broke off: ${error.message}`, "see PostgreSQL's log");
    } finally {
      session.close();
    }
  }
}

function loginFix(error: ServerLoginError, { backendIdentity, user, setRole }: ServerTarget): string {
  if (error.kind === 'unreachable' || error.kind === 'timeout')
    return 'host and port of the database, and the way there';
  if (error.kind === 'tls') return 'tls_verify, tls_server_ca_certificate, and ssl at PostgreSQL';
  if (error.code === '3D000') return 'database_name in the row of the database';
  if (backendIdentity === 'set_role' && setRole !== null) {
    return `pgturnstile sql provision --role ${setRole}`;
  }
  if (backendIdentity === 'set_role')
    return 'jwt_server_user and jwt_server_password, and a line of pg_hba.conf for it';
  if (/does not exist|not permitted to log in/.test(error.message))
    return `CREATE ROLE ${quoted(user)} LOGIN`;
  return `pgturnstile sql provision --role ${user} prints what PostgreSQL needs`;
}

/** The first minor release of each major with CVE-2024-10978 fixed, and SET ROLE as before. */
const FIXED_MINORS = [120_022, 130_018, 140_015, 150_010, 160_006, 170_002];
const OLDEST = 120_000;
const VERSION_16 = 160_000;
