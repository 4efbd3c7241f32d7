/**
 * What the doctor finds in pg_hba.conf and pg_ident.conf as PostgreSQL reads them. Both views are a superuser's unless
 * granted; where they cannot be read, only a login tells whether a line is missing.
 */
import { PgError, SqlState } from '../protocol/pg-error.ts';
import type { DoctorReport } from './doctor-report.ts';
import { quoted } from './doctor-roles.ts';
import type { DoctorSession, Row } from './doctor-session.ts';

const RULES_SQL = `SELECT h.line_number::pg_catalog.text, h.type, h.auth_method,
 pg_catalog.array_to_string(h.user_name, ','), pg_catalog.array_to_string(h.options, ','), h.error
 FROM pg_catalog.pg_hba_file_rules AS h ORDER BY h.line_number USING OPERATOR(pg_catalog.<) LIMIT 1000`;

/** Since PostgreSQL 15. */
const MAPS_SQL = `SELECT i.line_number::pg_catalog.text, i.map_name, i.sys_name, i.pg_username, i.error
 FROM pg_catalog.pg_ident_file_mappings AS i ORDER BY i.line_number USING OPERATOR(pg_catalog.<) LIMIT 1000`;

const VERSION_15 = 150_000;

interface HbaExpectation {
  /** Login by certificate is expected for members of this group. */
  readonly mapGroup: string | null;
  /** Common name of the pooler's certificate, where it is known. */
  readonly commonName: string | null;
  /** The session is nobody's but the pooler's, so that more rights of it are not a client's. */
  readonly isServiceUser: boolean;
}

/** Says what is wrong with the lines, as far as they may be read. */
export async function checkHba(
  session: DoctorSession,
  { mapGroup, commonName, isServiceUser }: HbaExpectation,
  report: DoctorReport,
): Promise<void> {
  let rules: Row[];
  let maps: Row[] | null;
  try {
    rules = await session.ask(RULES_SQL);
    maps = session.opened.serverVersionNumber >= VERSION_15 ? await session.ask(MAPS_SQL) : null;
  } catch (error) {
    if (!(error instanceof PgError) || error.code !== SqlState.InsufficientPrivilege) throw error;
    const { sessionUser: user } = session.opened;
    report.note(
      `pg_hba.conf cannot be read as "${user}": only the logins below tell of its lines`,
      isServiceUser
        ? `to have it read, and the passwords that its options may hold: ${grantsFor(session)}`
        : 'to see it, as a superuser: SELECT * FROM pg_hba_file_rules',
    );
    return;
  }
  for (const [line, , , , , error] of rules) {
    if (error !== null && error !== undefined) {
      report.wrong(
        `pg_hba.conf, line ${line}: ${error}`,
        'mend the line, or PostgreSQL ignores the whole file',
      );
    }
  }
  const open = rules.filter(([, type, method]) => method === 'trust' && type !== 'local');
  if (open.length > 0) {
    report.wrong(
      `pg_hba.conf, line ${open[0]![0]}: trust lets whoever reaches the server be anybody`,
      'another method, or no such line',
    );
  }
  if (mapGroup === null) return;
  checkMapLines(rules, mapGroup, report);
  if (maps !== null) checkIdentLines(maps, commonName, report);
}

/** SQL that lets the user of the session see both files. */
function grantsFor({ opened }: DoctorSession): string {
  const views = ['pg_hba_file_rules'];
  if (opened.serverVersionNumber >= VERSION_15) views.push('pg_ident_file_mappings');
  const calls = views.map((name) => `${name}()`).join(', ');
  const to = `TO ${quoted(opened.sessionUser)}`;
  return `GRANT SELECT ON ${views.join(', ')} ${to}; GRANT EXECUTE ON FUNCTION ${calls} ${to}`;
}

function checkMapLines(rules: readonly Row[], group: string, report: DoctorReport): void {
  const isFor = (row: Row): boolean => (row[3] ?? '').split(',').includes(`+${group}`);
  const at = rules.findIndex((row) => row[2] === 'cert' && isFor(row));
  if (at < 0) {
    report.wrong(
      `pg_hba.conf has no line with cert for +${group}`,
      `hostssl all +${group} <address of the pooler> cert map=turnstile, above the others`,
    );
    return;
  }
  report.fine(`pg_hba.conf, line ${rules[at]![0]}: members of ${group} log in by certificate`);
  const closes = rules.slice(at + 1).some((row) => row[2] === 'reject' && isFor(row));
  const opens = rules.some((row) => isFor(row) && row[2] !== 'cert' && row[2] !== 'reject');
  if (!closes || opens) {
    report.wrong(
      `members of ${group} may log in by other ways too: a role can give itself a password`,
      `host all +${group} all reject, behind that line`,
    );
  }
}

function checkIdentLines(maps: readonly Row[], commonName: string | null, report: DoctorReport): void {
  for (const [line, , , , error] of maps) {
    if (error !== null && error !== undefined)
      report.wrong(`pg_ident.conf, line ${line}: ${error}`, 'mend the line');
  }
  if (commonName === null) return;
  if (!maps.some((row) => row[2] === commonName)) {
    report.wrong(
      `pg_ident.conf maps nothing from "${commonName}", the common name of tls_server_certificate`,
      'pgturnstile sql provision --role <role> prints the line',
    );
  }
}
