/**
 * The names of settings as PostgreSQL takes them, and which of them decide who a session is. It knows names and
 * values, not syntax trees; the settings that carry claims are claim-names'.
 */

/** Names that guc.c still maps (map_old_guc_names). */
const OLD_NAMES: ReadonlyMap<string, string> = new Map([
  ['sort_mem', 'work_mem'],
  ['vacuum_mem', 'maintenance_work_mem'],
  ['ssl_ecdh_curve', 'ssl_groups'],
]);

/** They hold the current transaction's mode and end with it, also after a plain SET. */
export const TRANSACTION_SETTINGS: ReadonlySet<string> = new Set([
  'transaction_isolation',
  'transaction_read_only',
  'transaction_deferrable',
]);

/** Encodings in which a byte of a character can be an ASCII backslash (manual, 23.3.1: client-only encodings). */
const UNSAFE_ENCODINGS: ReadonlySet<string> = new Set([
  'big5',
  'win950',
  'windows950',
  'gbk',
  'win936',
  'windows936',
  'gb18030',
  'sjis',
  'shiftjis',
  'mskanji',
  'win932',
  'windows932',
  'shiftjis2004',
  'johab',
  'uhc',
  'win949',
  'windows949',
]);

/** The one spelling of a setting's name: setting names are compared without case (guc_name_compare). */
export function settingName(name: string): string {
  const lower = name.toLowerCase();
  return OLD_NAMES.get(lower) ?? lower;
}

/** True for the settings that decide who the session is. */
export function isRoleSetting(name: string): boolean {
  return name === 'role' || name === 'session_authorization';
}

/**
 * True when the value would make PostgreSQL read later texts by other rules than this parser does, so that a
 * refused statement could hide in a literal. `value` null: it is not a constant. Undefined: reset to its default.
 */
export function changesHowSqlIsRead(name: string, value: string | null | undefined): boolean {
  if (value === undefined) return false;
  if (name === 'standard_conforming_strings') {
    return value === null || constantBoolean(value) !== true;
  }
  if (name === 'client_encoding') {
    return value === null || UNSAFE_ENCODINGS.has(value.toLowerCase().replace(/[^a-z0-9]/g, ''));
  }
  return false;
}

/**
 * True when the value would let a read-only session write. `value` as for `changesHowSqlIsRead`; the default of
 * default_transaction_read_only is what the connection began with.
 */
export function widensAccess(name: string, value: string | null | undefined): boolean {
  if (name === 'default_transaction_read_only') {
    return value !== undefined && (value === null || constantBoolean(value) !== true);
  }
  return (
    name === 'transaction_read_only' &&
    (value === undefined || value === null || constantBoolean(value) !== true)
  );
}

/** A boolean as parse_bool takes it, unique prefixes included; null when it is none. */
export function constantBoolean(text: string): boolean | null {
  const value = text.trim().toLowerCase();
  if (value === '') return null;
  if (value === '1' || value === 'on' || 'true'.startsWith(value) || 'yes'.startsWith(value)) return true;
  if (value === '0' || value === 'of' || value === 'off') return false;
  return 'false'.startsWith(value) || 'no'.startsWith(value) ? false : null;
}

/** What a read-only session is told when it asks for more. */
export const READ_ONLY_MESSAGE = 'cannot set read-write mode in a read-only session of this pooler';

/** What the client is told about a protected setting. */
export function protectedMessage(name: string): string {
  return `parameter "${name}" cannot be changed through this pooler`;
}
