/**
 * Walks the syntax trees of a text and collects what they do to a session. It owns the meaning of each statement
 * and function for session state; it sees neither the text nor the session. Deep trees are walked with a list, not
 * by recursion.
 */
import { type ClaimNames, claimMessage } from './claim-names.ts';
import { asList, asNode, constantFlag, constantText, namesOf } from './constants.ts';
import { EffectsBuilder, type StatementEffects } from './effects.ts';
import type { TreeNode } from './parser.ts';
import {
  changesHowSqlIsRead,
  isRoleSetting,
  protectedMessage,
  READ_ONLY_MESSAGE,
  settingName,
  TRANSACTION_SETTINGS,
  widensAccess,
} from './settings.ts';
import { holdsRoleChange } from './tripwires.ts';
import { ADVISORY_LOCKS, flagsOfName, QUERY_RUNNERS, WordFlag } from './words.ts';

/** CURSOR_OPT_HOLD in parsenodes.h. */
const CURSOR_WITH_HOLD = 0x20;
const TEMP_SCHEMA = /^pg_temp(?:_\d+)?$/;
const BODY_MESSAGE = 'code that changes the role cannot be run or defined through this pooler';
const CLAIMS_MESSAGE = "code that changes a token's claims cannot be run or defined through this pooler";

/** The effects of all statements that the parser found in one text; `claims` are the settings that carry claims. */
export function effectsOfTree(statements: readonly unknown[], claims: ClaimNames): StatementEffects {
  const walk = new TreeWalk(claims);
  for (const statement of statements) walk.add(asNode(statement)?.['stmt']);
  return walk.effects.finish(statements.length);
}

/** Sees the body of a node; true: look at what is below it too. */
type Visitor = (walk: TreeWalk, body: TreeNode) => boolean;

class TreeWalk {
  readonly effects = new EffectsBuilder();
  readonly claims: ClaimNames;
  readonly #pending: unknown[] = [];

  constructor(claims: ClaimNames) {
    this.claims = claims;
  }

  /** Walks one statement, in the order in which it is written. */
  add(root: unknown): void {
    const pending = this.#pending;
    pending.push(root);
    while (pending.length > 0) {
      const value = pending.pop();
      if (typeof value !== 'object' || value === null) continue;
      if (Array.isArray(value)) {
        for (let index = value.length - 1; index >= 0; index--) pending.push(value[index]);
      } else this.#node(value as TreeNode);
    }
  }

  /** Has a value visited later. */
  later(value: unknown): void {
    this.#pending.push(value);
  }

  #node(node: TreeNode): void {
    const dropsAtCommit = node['onCommit'] === 'ONCOMMIT_DROP' || node['oncommit'] === 'ONCOMMIT_DROP';
    if (node['relpersistence'] === 't') this.effects.pin('temp table');
    const schema = node['schemaname'];
    if (typeof schema === 'string' && TEMP_SCHEMA.test(schema)) this.effects.pin('temp table');
    const keys = Object.keys(node);
    for (let index = keys.length - 1; index >= 0; index--) {
      const key = keys[index]!;
      const value = node[key];
      if (typeof value !== 'object' || value === null) continue;
      if (dropsAtCommit && (key === 'rel' || key === 'relation')) continue;
      const visitor = VISITORS.get(key);
      if (visitor === undefined || visitor(this, value as TreeNode)) this.#pending.push(value);
    }
  }
}

const VISITORS: ReadonlyMap<string, Visitor> = new Map<string, Visitor>([
  ['VariableSetStmt', visitSet],
  ['TransactionStmt', visitTransaction],
  ['FuncCall', visitFunctionCall],
  ['funccall', visitFunctionCall],
  ['String', visitName],
  ['UpdateStmt', visitUpdate],
  ['MergeStmt', visitUpdate],
  ['DefineStmt', visitDefine],
  ['AlterRoleSetStmt', visitStoredSetting],
  ['AlterDatabaseSetStmt', visitStoredSetting],
  ['AlterSystemStmt', visitStoredSetting],
  ['CreateFunctionStmt', visitFunctionDefinition],
  ['AlterFunctionStmt', visitFunctionDefinition],
  ['DoStmt', visitDo],
  ['CallStmt', visitCall],
  ['ExecuteStmt', visitOpaque],
  ['CreateExtensionStmt', visitOpaque],
  ['AlterExtensionStmt', visitOpaque],
  ['CopyStmt', visitCopy],
  ['DiscardStmt', visitDiscard],
  ['DeallocateStmt', visitDeallocate],
  ['PrepareStmt', (walk) => pinned(walk, 'prepare')],
  ['ListenStmt', (walk) => pinned(walk, 'listen')],
  ['LoadStmt', (walk) => pinned(walk, 'load')],
  ['DeclareCursorStmt', visitCursor],
]);

function pinned(walk: TreeWalk, reason: string): boolean {
  walk.effects.pin(reason);
  return true;
}

function visitOpaque(walk: TreeWalk): boolean {
  walk.effects.opaque = true;
  return true;
}

/** A procedure may commit, and change before that what the next transaction is. */
function visitCall(walk: TreeWalk): boolean {
  walk.effects.opaque = true;
  walk.effects.widen('CALL cannot be used in a read-only session of this pooler');
  return true;
}

/** The modes of BEGIN, SET TRANSACTION and SET SESSION CHARACTERISTICS; READ ONLY is the number 1. */
function checkTransactionModes(walk: TreeWalk, modes: unknown): void {
  for (const item of asList(modes)) {
    const mode = asNode(asNode(item)?.['DefElem']);
    if (mode?.['defname'] !== 'transaction_read_only') continue;
    const value = asNode(asNode(mode['arg'])?.['A_Const'])?.['ival'];
    if (asNode(value)?.['ival'] !== 1) walk.effects.widen(READ_ONLY_MESSAGE);
  }
}

function visitName(walk: TreeWalk, body: TreeNode): boolean {
  const name = body['sval'];
  if (typeof name === 'string' && TEMP_SCHEMA.test(name)) walk.effects.pin('temp table');
  return false;
}

function visitTransaction(walk: TreeWalk, body: TreeNode): boolean {
  const effects = walk.effects;
  checkTransactionModes(walk, body['options']);
  switch (body['kind']) {
    case 'TRANS_STMT_BEGIN':
    case 'TRANS_STMT_START':
      effects.transaction = 'begin';
      break;
    case 'TRANS_STMT_COMMIT':
    case 'TRANS_STMT_ROLLBACK':
    case 'TRANS_STMT_PREPARE':
      // COMMIT AND CHAIN ends one and begins the next.
      if (body['chain'] !== true) effects.transaction = 'end';
      break;
    default:
      break;
  }
  effects.hasTransactionControl = true;
  return false;
}

function visitDiscard(walk: TreeWalk, body: TreeNode): boolean {
  if (body['target'] === 'DISCARD_ALL') walk.effects.discardsAll = true;
  return false;
}

function visitDeallocate(walk: TreeWalk, body: TreeNode): boolean {
  const name = body['name'];
  if (typeof name === 'string') walk.effects.deallocate(name);
  else walk.effects.deallocatesAll = true;
  return false;
}

/** A file or a program is read by the server itself. */
function visitCopy(walk: TreeWalk, body: TreeNode): boolean {
  if (body['is_from'] === true && body['filename'] === undefined) walk.effects.copiesIn = true;
  return true;
}

function visitCursor(walk: TreeWalk, body: TreeNode): boolean {
  if ((Number(body['options'] ?? 0) & CURSOR_WITH_HOLD) !== 0) walk.effects.pin('with hold cursor');
  return true;
}

/** The rule on pg_settings turns an UPDATE into set_config (manual, 53.24). */
function visitUpdate(walk: TreeWalk, body: TreeNode): boolean {
  if (asNode(body['relation'])?.['relname'] === 'pg_settings') {
    walk.effects.escape('pg_settings cannot be updated through this pooler');
    walk.effects.widen(READ_ONLY_MESSAGE);
    walk.effects.unknownSettings = true;
    walk.effects.touchesLocalSettings = true;
  }
  return true;
}

/** set_config as the state function of an aggregate runs with names that no text shows. */
function visitDefine(walk: TreeWalk, body: TreeNode): boolean {
  if (JSON.stringify(body).includes('"set_config"')) {
    walk.effects.escape('set_config cannot be used in a definition through this pooler');
  }
  return true;
}

/** SET, RESET and their special forms; the parser has already turned those into names. */
function visitSet(walk: TreeWalk, body: TreeNode): boolean {
  const effects = walk.effects;
  effects.touchesLocalSettings = true;
  const kind = body['kind'];
  if (kind === 'VAR_RESET_ALL') {
    effects.resetsAll = true;
    return false;
  }
  const rawName = typeof body['name'] === 'string' ? body['name'] : '';
  if (kind === 'VAR_SET_MULTI') {
    checkTransactionModes(walk, body['args']);
    if (rawName === 'SESSION CHARACTERISTICS') {
      for (const item of asList(body['args'])) {
        const mode = asNode(asNode(item)?.['DefElem'])?.['defname'];
        if (typeof mode === 'string') effects.setting(`default_${mode}`);
      }
    }
    return false;
  }
  const resets = kind === 'VAR_RESET' || kind === 'VAR_SET_DEFAULT';
  const values = asList(body['args']).map((value) => constantText(value));
  const value = resets ? undefined : kind === 'VAR_SET_VALUE' && values.length === 1 ? values[0]! : null;
  changeSetting(walk, settingName(rawName), value, body['is_local'] === true);
  if (values.some((each) => each?.includes('pg_temp'))) effects.pin('temp table');
  return false;
}

/** One named setting changes to `value` (null: not a constant; undefined: its default). */
function changeSetting(walk: TreeWalk, name: string, value: string | null | undefined, local: boolean): void {
  const effects = walk.effects;
  checkSetting(walk, name, value);
  if (value === undefined && !local) effects.reset(name);
  if (name === 'seed') effects.unknownSettings = true;
  else if (name === 'role' || name === 'session_authorization') {
    if (!local && value !== undefined)
      effects.pin(name === 'role' ? 'set role' : 'set session authorization');
  } else if (!local && !TRANSACTION_SETTINGS.has(name)) effects.setting(name);
}

function checkSetting(walk: TreeWalk, name: string, value: string | null | undefined): void {
  if (widensAccess(name, value)) walk.effects.widen(READ_ONLY_MESSAGE);
  if (isRoleSetting(name)) walk.effects.escapeRole(protectedMessage(name));
  else if (walk.claims.has(name)) walk.effects.escape(claimMessage(name));
  else if (changesHowSqlIsRead(name, value)) walk.effects.escape(protectedMessage(name));
}

/** ALTER ROLE, DATABASE or SYSTEM … SET: it changes later sessions, not this one. */
function visitStoredSetting(walk: TreeWalk, body: TreeNode): boolean {
  checkStoredSetting(walk, asNode(body['setstmt']));
  return false;
}

function checkStoredSetting(walk: TreeWalk, set: TreeNode | null): void {
  if (set === null || typeof set['name'] !== 'string') return;
  const name = settingName(set['name']);
  const values = asList(set['args']);
  const value = set['kind'] === 'VAR_SET_VALUE' ? constantText(values[0]) : undefined;
  checkSetting(walk, name, value);
}

/** SET clauses hold only while the function runs; its body is looked at by the tripwire. */
function visitFunctionDefinition(walk: TreeWalk, body: TreeNode): boolean {
  const defines = body['actions'] === undefined;
  if (defines) walk.effects.opaque = true;
  for (const item of [...asList(body['options']), ...asList(body['actions'])]) {
    const option = asNode(asNode(item)?.['DefElem']);
    if (option?.['defname'] === 'set') {
      checkStoredSetting(walk, asNode(asNode(option['arg'])?.['VariableSetStmt']));
    } else if (option?.['defname'] === 'as') checkBody(walk, option['arg']);
  }
  for (const key of ['sql_body', 'parameters', 'funcname', 'func', 'returnType']) walk.later(body[key]);
  return false;
}

function visitDo(walk: TreeWalk, body: TreeNode): boolean {
  walk.effects.opaque = true;
  walk.effects.widen('DO cannot be used in a read-only session of this pooler');
  for (const item of asList(body['args'])) {
    const option = asNode(asNode(item)?.['DefElem']);
    if (option?.['defname'] === 'as') checkBody(walk, option['arg']);
  }
  return false;
}

/** A body is a String node or a list of them (an object file and a symbol). */
function checkBody(walk: TreeWalk, body: unknown): void {
  const list = asNode(asNode(body)?.['List'])?.['items'];
  for (const text of namesOf(list ?? [body])) checkCode(walk, text);
}

function checkCode(walk: TreeWalk, text: string): void {
  if (holdsRoleChange(text)) walk.effects.escapeRole(BODY_MESSAGE);
  if (walk.claims.changedIn(text)) walk.effects.escape(CLAIMS_MESSAGE);
}

function visitFunctionCall(walk: TreeWalk, body: TreeNode): boolean {
  const effects = walk.effects;
  const names = namesOf(body['funcname']);
  const name = names.at(-1) ?? '';
  if (name === 'set_config') {
    callSetConfig(walk, body);
    return true;
  }
  if (ADVISORY_LOCKS.has(name)) effects.pin('advisory lock');
  else if (name === 'setseed') effects.unknownSettings = true;
  else if (body['funcformat'] !== 'COERCE_SQL_SYNTAX') {
    const builtIn = names.length === 1 || (names.length === 2 && names[0] === 'pg_catalog');
    if (!builtIn || (flagsOfName(name) & WordFlag.Harmless) === 0) effects.opaque = true;
  }
  if (QUERY_RUNNERS.has(name)) {
    for (const argument of asList(body['args'])) {
      const text = constantText(asNode(asNode(argument)?.['NamedArgExpr'])?.['arg'] ?? argument);
      if (text !== null) checkCode(walk, text);
    }
  }
  return true;
}

/** set_config(setting_name, new_value, is_local), by position or by name. */
function callSetConfig(walk: TreeWalk, body: TreeNode): void {
  const effects = walk.effects;
  effects.touchesLocalSettings = true;
  const given: unknown[] = [undefined, undefined, undefined];
  asList(body['args']).forEach((argument, position) => {
    const named = asNode(asNode(argument)?.['NamedArgExpr']);
    const index =
      named === null ? position : ['setting_name', 'new_value', 'is_local'].indexOf(String(named['name']));
    if (index >= 0 && index < 3) given[index] = named === null ? argument : named['arg'];
  });
  const rawName = body['func_variadic'] === true ? null : constantText(given[0]);
  if (rawName === null) {
    effects.unknownSettings = true;
    effects.escape('set_config with a name that is not a constant cannot be used through this pooler');
    effects.widen(READ_ONLY_MESSAGE);
    return;
  }
  const local = constantFlag(given[2]);
  if (local === null) effects.unknownSettings = true;
  const value = constantText(given[1]);
  changeSetting(walk, settingName(rawName), value, local === true);
  if (value?.includes('pg_temp') === true) effects.pin('temp table');
}
