/**
 * Tries to leave the role, straight at PostgreSQL and with nobody in between, as somebody would who got past the
 * pooler's reading of SQL. Changes nothing but the session, which is closed behind it.
 */
import type { BackendIdentity } from '../config/config.ts';
import { type DoctorReport, listed } from './doctor-report.ts';
import { quoted } from './doctor-roles.ts';
import type { DoctorSession } from './doctor-session.ts';

/** Statements that leave a role where that can be done; `others` are roles that the session should not become. */
function attempts(others: readonly string[]): string[] {
  const plain = [
    'RESET ROLE',
    'SET ROLE NONE',
    'SET SESSION AUTHORIZATION DEFAULT',
    'RESET SESSION AUTHORIZATION',
    'DISCARD ALL',
    'RESET ALL',
    "SELECT pg_catalog.set_config('role', 'none', false)",
    "SELECT pg_catalog.set_config('session_authorization', 'default', false)",
    "DO $$ BEGIN EXECUTE 'RESET ' || 'ROLE'; END $$",
  ];
  const foreign = others
    .map(quoted)
    .flatMap((name) => [
      `SET ROLE ${name}`,
      `SET SESSION AUTHORIZATION ${name}`,
      `DO $$ BEGIN SET ROLE ${name}; END $$`,
    ]);
  return [...plain, ...foreign];
}

/** `role` is who the session has to stay. */
export async function tryEscapes(
  session: DoctorSession,
  identity: BackendIdentity,
  role: string,
  others: readonly string[],
  report: DoctorReport,
): Promise<void> {
  const escaped: string[] = [];
  const begin = await session.who();
  for (const statement of attempts(others)) {
    await session.run(statement);
    const now = await session.who();
    if (now.currentUser === begin.currentUser && now.sessionUser === begin.sessionUser) continue;
    escaped.push(statement);
    await session.run('SET SESSION AUTHORIZATION DEFAULT');
    const back = identity === 'set_role' ? role : 'none';
    await session.ask("SELECT pg_catalog.set_config('role', $1, false)", [back]);
  }
  const words = `${identity}, role "${role}"`;
  if (escaped.length === 0) {
    report.fine(`${words}: no statement tried leaves the role`);
  } else if (identity === 'set_role') {
    report.note(
      `${words}: at PostgreSQL ${escaped.length} statements leave the role (${listed(escaped.slice(0, 3))} …); the pooler refuses those that it can read, and not what a function makes up`,
      'backend_identity = "login_map" or "login_password" for clients that may send any SQL',
    );
  } else {
    report.wrong(
      `${words}: statements leave the role: ${listed(escaped)}`,
      'the role is a member of others or privileged: REVOKE what it is a member of',
    );
  }
}
