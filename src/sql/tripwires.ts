/**
 * Regular expressions for text that the parser cannot see into: bodies of DO and of functions, and texts that it
 * refused or that were too large. A tripwire catches the plain cases and says so; code that builds its SQL at run
 * time walks past it. All patterns run in time linear to the text.
 */

/** What may stand between two words. */
export const GAP: string = '(?:\\s|--[^\\n]{0,200}\\n|/\\*[^*]{0,200}\\*/)';

/** Where a statement begins inside a body or a string, so that UPDATE users SET role = … is not taken for one. */
export const BEGINNING: string = `(?:^|[;'$>]|\\b(?:begin|then|else|loop|atomic)\\b)${GAP}*`;

const ROLE_CHANGE = new RegExp(
  `${BEGINNING}(?:set|reset)${GAP}+(?:(?:session|local)${GAP}+)?` +
    `"?(?:role\\b|session_authorization\\b|session${GAP}+authorization\\b)|` +
    `\\bset_config"?${GAP}*\\(${GAP}*(?:setting_name${GAP}*[:=]?[=>]${GAP}*)?` +
    `'+(?:role|session_authorization)\\b|` +
    `\\bupdate${GAP}+(?:only${GAP}+)?(?:pg_catalog${GAP}*\\.${GAP}*)?"?pg_settings\\b`,
  'i',
);

const MAYBE_ESCAPE =
  /\brole\b|\bauthorization\b|session_authorization|set_config|pg_settings|request|turnstile|standard_conforming_strings|client_encoding|\bnames\b|u&|\0/i;
const MAYBE_WIDEN = /read_only|\b(?:write|do|call)\b|set_config|pg_settings|u&|\0/i;
const MAYBE_SETTING = /\b(?:set|reset|discard)\b|set_config|setseed|pg_settings|u&/i;
const MAYBE_PIN =
  /\b(?:temp|temporary|listen|prepare|hold|load|role|authorization)\b|pg_temp|advisory_lock|u&/i;
const MAYBE_TRANSACTION = /\b(?:begin|start|commit|end|rollback|abort|savepoint|release|prepare)\b/i;

/** True when a body plainly holds a statement that changes the role. */
export function holdsRoleChange(body: string): boolean {
  return ROLE_CHANGE.test(body);
}

/** True when a text that could not be parsed has a word without which there is no escape. */
export function mayEscape(text: string): boolean {
  return MAYBE_ESCAPE.test(text);
}

/** True when a text that could not be parsed has a word without which a read-only session stays one. */
export function mayWiden(text: string): boolean {
  return MAYBE_WIDEN.test(text);
}

/** True when a text that could not be parsed has a word without which no setting changes. */
export function mayChangeSettings(text: string): boolean {
  return MAYBE_SETTING.test(text);
}

/** True when a text that could not be parsed has a word without which nothing is bound to a server connection. */
export function mayPin(text: string): boolean {
  return MAYBE_PIN.test(text);
}

/** True when a text that could not be parsed has a word of transaction control. */
export function mayControlTransaction(text: string): boolean {
  return MAYBE_TRANSACTION.test(text);
}
