/**
 * Recognises the statements that bring a new access token (`SET turnstile.token = '…'`), which are the pooler's and
 * never PostgreSQL's, and those that want something else with that name. What becomes of the token is not known here.
 */
import { asList, asNode, constantFlag, constantText, namesOf } from './constants.ts';
import { NO_EFFECTS, type StatementEffects, type TokenStatement } from './effects.ts';
import type { ParseOutcome, TreeNode } from './parser.ts';
import { settingName } from './settings.ts';

/** The setting that is none: its value goes to the token verifier and can never be read. */
export const TOKEN_SETTING = 'turnstile.token';

/**
 * True when a text names the setting, so that it must be looked at each time and kept nowhere. Names in Unicode escapes
 * are not recognised: what they set is refused like any other protected setting, and `showsToken` sees the value.
 */
export function mayHoldToken(text: string): boolean {
  return TOKEN_NAME.test(text) || (TOKEN_NAME_APART.test(text) && /token/i.test(text));
}

/** True when something in the text has the look of a token, wherever it stands: nobody may keep such a text. */
export function showsToken(text: string): boolean {
  return TOKEN_LOOK.test(text);
}

/** The effects of a text that may hold a token; `others` are those it has as an ordinary text. */
export function effectsOfTokenText(outcome: ParseOutcome, others: StatementEffects): StatementEffects {
  const token = tokenStatement(outcome);
  if (token !== null) return Object.freeze({ ...NO_EFFECTS, plain: false, token });
  // PostgreSQL would write a text that it refuses into its log, with the token in it.
  const refused = others.unparsed || others.escape !== null;
  if (!refused) return others;
  return Object.freeze({
    ...others,
    token: refusal(`permission denied to set parameter "${TOKEN_SETTING}"`),
  });
}

function refusal(message: string): TokenStatement {
  return Object.freeze({ kind: 'refused', message });
}

/** What the text's only statement wants with the token; null when it is another one. */
function tokenStatement(outcome: ParseOutcome): TokenStatement | null {
  if (outcome.kind !== 'tree') return null;
  const statements = outcome.statements.map((statement) => asNode(asNode(statement)?.['stmt']));
  if (statements.some((statement) => shows(asNode(statement?.['VariableShowStmt'])))) {
    return refusal(`permission denied to examine "${TOKEN_SETTING}"`);
  }
  const only = statements.length === 1 ? statements[0] : null;
  if (only === null || only === undefined) return null;
  const value = setValue(asNode(only['VariableSetStmt']));
  if (value !== null) return Object.freeze({ kind: 'value', token: value });
  return isSetConfig(asNode(only['SelectStmt'])) ? PARAMETER : null;
}

function shows(show: TreeNode | null): boolean {
  return show !== null && isTokenSetting(show['name']);
}

function setValue(set: TreeNode | null): string | null {
  if (set === null || set['kind'] !== 'VAR_SET_VALUE' || set['is_local'] === true) return null;
  const values = asList(set['args']);
  return isTokenSetting(set['name']) && values.length === 1 ? constantText(values[0]) : null;
}

/** `SELECT set_config('turnstile.token', $1, false)` and nothing else. */
function isSetConfig(select: TreeNode | null): boolean {
  if (select === null || Object.keys(select).some((key) => !BARE_SELECT.has(key))) return false;
  const targets = asList(select['targetList']);
  if (targets.length !== 1) return false;
  const call = asNode(asNode(asNode(asNode(targets[0])?.['ResTarget'])?.['val'])?.['FuncCall']);
  if (call === null || call['func_variadic'] === true) return false;
  const names = namesOf(call['funcname']);
  if (names.at(-1) !== 'set_config' || (names.length > 1 && names.join('.') !== 'pg_catalog.set_config')) {
    return false;
  }
  const [name, value, local, ...more] = asList(call['args']);
  if (more.length > 0 || !isTokenSetting(constantText(name)) || constantFlag(local) !== false) return false;
  const cast = asNode(asNode(value)?.['TypeCast']);
  const parameter = asNode(asNode(cast === null ? value : cast['arg'])?.['ParamRef']);
  return parameter?.['number'] === 1;
}

function isTokenSetting(name: unknown): boolean {
  return typeof name === 'string' && settingName(name) === TOKEN_SETTING;
}

const TOKEN_NAME = /turnstile"?\s*\.\s*"?token(?![\w$])/i;
/** A comment may be of any form, so that what stands behind it is not followed. */
const TOKEN_NAME_APART = /turnstile"?\s*(?:\.\s*)?(?:\/\*|--)/i;
/** The claims of a token between its dots: base64url of what begins with a brace. Anchored at a dot, so it is linear. */
const TOKEN_LOOK = /\.e[wy][\w-]*\./;
const PARAMETER: TokenStatement = Object.freeze({ kind: 'parameter' });
/** What a SELECT without FROM, WHERE and the like consists of. */
const BARE_SELECT: ReadonlySet<string> = new Set(['targetList', 'limitOption', 'op', 'groupDistinct', 'all']);
