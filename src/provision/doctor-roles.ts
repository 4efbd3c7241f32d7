/**
 * What the doctor finds in PostgreSQL's catalog: the service user's rights, and the members of the login group. Every
 * name is pg_catalog-qualified and every value a parameter, since search_path may come from the role's own settings.
 */
import type { Config } from '../config/config.ts';
import { VALID_UNTIL_SQL } from '../server/role-facts.ts';
import { type DoctorReport, listed } from './doctor-report.ts';
import type { DoctorSession, Row } from './doctor-session.ts';

/** Each answer is bounded; a cluster with more roles than this gets the first of them by name. */
const ROWS_MAX = 500;

const PRIVILEGED = 'r.rolsuper OR r.rolbypassrls OR r.rolreplication OR r.rolcreaterole';

/** $1 is a user, $2 the privilege `SET` or `MEMBER`: the roles that it can become. */
const REACHABLE_SQL = `SELECT r.rolname::pg_catalog.text, ${PRIVILEGED}, r.rolcanlogin, ${VALID_UNTIL_SQL}
 FROM pg_catalog.pg_roles AS r
 WHERE r.rolname OPERATOR(pg_catalog.<>) $1::pg_catalog.name
 AND pg_catalog.pg_has_role($1::pg_catalog.name, r.oid, $2::pg_catalog.text)
 ORDER BY r.rolname USING OPERATOR(pg_catalog.<) LIMIT ${ROWS_MAX}`;

/** $1 is a user: the roles whose rights it has without becoming them, and whether it may grant them on. */
const HELD_SQL = `SELECT r.rolname::pg_catalog.text,
 COALESCE((pg_catalog.to_jsonb(m) OPERATOR(pg_catalog.->>) 'inherit_option')::pg_catalog.bool, u.rolinherit), m.admin_option
 FROM pg_catalog.pg_auth_members AS m
 JOIN pg_catalog.pg_roles AS u ON u.oid OPERATOR(pg_catalog.=) m.member
 JOIN pg_catalog.pg_roles AS r ON r.oid OPERATOR(pg_catalog.=) m.roleid
 WHERE u.rolname OPERATOR(pg_catalog.=) $1::pg_catalog.name
 ORDER BY r.rolname USING OPERATOR(pg_catalog.<) LIMIT ${ROWS_MAX}`;

/** $1 is a group: its members, and those of its members, as pg_hba.conf's `+group` counts them. */
const MEMBERS_SQL = `WITH RECURSIVE members (oid, direct) AS (
 SELECT m.member, true FROM pg_catalog.pg_auth_members AS m
 JOIN pg_catalog.pg_roles AS g ON g.oid OPERATOR(pg_catalog.=) m.roleid
 WHERE g.rolname OPERATOR(pg_catalog.=) $1::pg_catalog.name
 UNION
 SELECT m.member, false FROM pg_catalog.pg_auth_members AS m
 JOIN members ON members.oid OPERATOR(pg_catalog.=) m.roleid)
 SELECT r.rolname::pg_catalog.text, ${PRIVILEGED}, r.rolcanlogin, ${VALID_UNTIL_SQL},
 (SELECT pg_catalog.bool_or(members.direct) FROM members WHERE members.oid OPERATOR(pg_catalog.=) r.oid)
 FROM pg_catalog.pg_roles AS r
 WHERE EXISTS (SELECT FROM members WHERE members.oid OPERATOR(pg_catalog.=) r.oid)
 ORDER BY r.rolname USING OPERATOR(pg_catalog.<) LIMIT ${ROWS_MAX}`;

const ROLE_EXISTS_SQL = `SELECT r.rolcanlogin FROM pg_catalog.pg_roles AS r
 WHERE r.rolname OPERATOR(pg_catalog.=) $1::pg_catalog.name`;

/** Roles that are as good as superuser: files and programs of the server (manual, "Predefined Roles"). */
const SERVER_ROLES = ['pg_execute_server_program', 'pg_read_server_files', 'pg_write_server_files'];
const VERSION_16 = 160_000;

/** What the service user of set_role can do beyond becoming the roles of tokens. */
export async function checkServiceUser(
  session: DoctorSession,
  config: Config,
  report: DoctorReport,
): Promise<string[]> {
  const { sessionUser: user, attributes, serverVersionNumber } = session.opened;
  const held = [
    attributes.sessionUser.superuser && 'SUPERUSER',
    attributes.sessionUser.bypassRls && 'BYPASSRLS',
    attributes.sessionUser.replication && 'REPLICATION',
    attributes.sessionUser.createRole && 'CREATEROLE',
  ].filter((attribute) => attribute !== false);
  if (held.length > 0) {
    const allowed = config.turnstile.allowPrivilegedServerUser;
    report.wrong(
      `the service user "${user}" is ${held.join(', ')}: ${allowed ? 'who leaves the role has all of it' : 'every token is refused'}`,
      `ALTER ROLE ${quoted(user)} ${held.map((attribute) => `NO${attribute}`).join(' ')}`,
    );
  } else report.fine(`the service user "${user}" is neither superuser nor otherwise privileged`);
  if (attributes.sessionUser.superuser) return [];

  const grants = await session.ask(HELD_SQL, [user]);
  const inherited = namesWhere(grants, 1);
  if (inherited.length > 0) {
    report.wrong(
      `the service user "${user}" has the rights of ${listed(inherited)} without becoming it`,
      `GRANT ${quoted(inherited[0]!)} TO ${quoted(user)} WITH INHERIT FALSE; before PostgreSQL 16: ALTER ROLE ${quoted(user)} NOINHERIT`,
    );
  }
  const granted = namesWhere(grants, 2);
  if (granted.length > 0) {
    report.wrong(
      `the service user "${user}" may grant ${listed(granted)} to others`,
      `REVOKE ADMIN OPTION FOR ${quoted(granted[0]!)} FROM ${quoted(user)}`,
    );
  }
  const option = serverVersionNumber >= VERSION_16 ? 'SET' : 'MEMBER';
  const reachable = await session.ask(REACHABLE_SQL, [user, option]);
  const names = reachable.map(nameOf);
  if (names.length === 0) {
    report.wrong(`the service user "${user}" can become no role`, 'pgturnstile sql provision --role <role>');
    return [];
  }
  report.note(
    `whoever can send any SQL under set_role can become each of the roles granted to "${user}": ${listed(names)}`,
    'backend_identity = "login_map" or "login_password"',
  );
  const strong = reachable.filter((row) => row[1] === 't' || SERVER_ROLES.includes(nameOf(row))).map(nameOf);
  const strangers = strong.filter((name) => !config.turnstile.allowedPrivilegedRoles.includes(name));
  if (strangers.length > 0) {
    report.wrong(
      `the service user "${user}" can become ${listed(strangers)}, which is privileged`,
      `REVOKE ${quoted(strangers[0]!)} FROM ${quoted(user)}, and from the roles granted to it`,
    );
  }
  if (config.turnstile.loginGroup === null) judgeUsable(reachable, `roles granted to "${user}"`, report);
  return reachable.filter((row) => row[2] === 't' && row[1] === 'f').map(nameOf);
}

/** Who is let in as a member of the group; the names of those who can log in and are not privileged. */
export async function checkLoginGroup(
  session: DoctorSession,
  group: string,
  config: Config,
  report: DoctorReport,
): Promise<string[]> {
  const [found] = await session.ask(ROLE_EXISTS_SQL, [group]);
  if (found === undefined) {
    report.wrong(`the login group "${group}" does not exist`, `CREATE ROLE ${quoted(group)} NOLOGIN`);
    return [];
  }
  const members = await session.ask(MEMBERS_SQL, [group]);
  if (members.length === 0) {
    report.wrong(`the login group "${group}" has no members`, 'pgturnstile sql provision --role <role>');
    return [];
  }
  report.fine(`the login group "${group}" lets in ${listed(members.map(nameOf))}`);
  const { allowedPrivilegedRoles, reservedRoles } = config.turnstile;
  const strong = members
    .filter((row) => row[1] === 't' && !allowedPrivilegedRoles.includes(nameOf(row)))
    .map(nameOf);
  if (strong.length > 0) {
    report.wrong(
      `members of "${group}" are privileged: ${listed(strong)}`,
      `REVOKE ${quoted(group)} FROM ${quoted(strong[0]!)}`,
    );
  }
  const indirect = namesWhere(members, 4, 'f');
  const services = indirect.filter((name) => reservedRoles.includes(name) || isServiceUser(name, config));
  if (services.length > 0) {
    report.wrong(
      `${listed(services)} is let in by "+${group}" too, as a member of members`,
      `a role of its own for login_map: REVOKE the members' roles from ${quoted(services[0]!)}`,
    );
  }
  const others = indirect.filter((name) => !services.includes(name));
  if (others.length > 0) {
    report.note(
      `${listed(others)} are let in by "+${group}" as members of members`,
      'if they should not be: REVOKE the roles between them and the group',
    );
  }
  judgeUsable(members, `members of "${group}"`, report);
  return members.filter((row) => row[2] === 't' && row[1] === 'f').map(nameOf);
}

/** Roles that no token enters, since they are NOLOGIN or their time is over. */
function judgeUsable(rows: readonly Row[], what: string, report: DoctorReport): void {
  const nologin = namesWhere(rows, 2, 'f');
  if (nologin.length > 0) {
    report.note(`${what} that are NOLOGIN: ${listed(nologin)}`, `ALTER ROLE ${quoted(nologin[0]!)} LOGIN`);
  }
  const past = rows.filter((row) => isPast(row[3] ?? null)).map(nameOf);
  if (past.length > 0) {
    report.note(
      `${what} whose VALID UNTIL is past, which PostgreSQL overlooks for certificates: ${listed(past)}`,
      `REVOKE what they are members of, or ALTER ROLE ${quoted(past[0]!)} VALID UNTIL 'infinity'`,
    );
  }
}

function isPast(seconds: string | null): boolean {
  return seconds !== null && Number(seconds) * 1_000 < Date.now();
}

function isServiceUser(name: string, config: Config): boolean {
  return name === config.jwt.serverUser || config.databases.some((row) => row.user === name);
}

function namesWhere(rows: readonly Row[], column: number, flag: 't' | 'f' = 't'): string[] {
  return rows.filter((row) => row[column] === flag).map(nameOf);
}

function nameOf(row: Row): string {
  return row[0] ?? '';
}

/** For SQL that a person copies. */
export function quoted(name: string): string {
  return /^[a-z_][a-z0-9_]*$/.test(name) ? name : `"${name.replaceAll('"', '""')}"`;
}
