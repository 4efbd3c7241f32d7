/**
 * One statement of the console → what it answers and does. Holds the list of commands; it knows no message and no
 * socket. What drivers send by themselves (SET, BEGIN, SELECT 1) is answered so that they get through.
 */
import { describeConfig } from '../config/describe.ts';
import type { PgErrorLike } from '../protocol/message-writer.ts';
import { PgError, SqlState } from '../protocol/pg-error.ts';
import { ADMIN_TABLES } from './admin-tables.ts';
import type { Token } from './command-text.ts';
import type { AdminView } from './snapshot.ts';
import type { Column, Row } from './table.ts';

/** What a command changes in its own session. */
export type SessionEffect =
  | { readonly kind: 'begin' }
  | { readonly kind: 'end' }
  /** Prepared statements go: the one of that name, or all (null). */
  | { readonly kind: 'deallocate'; readonly name: string | null };

export interface AdminCommand {
  /** As CommandComplete carries it. */
  readonly tag: string;
  /** Null for a command without rows. */
  readonly columns: readonly Column[] | null;
  /** Does what the command does; null when it has no rows. Throws PgError. */
  run(): IterableIterator<Row> | null;
  readonly notice: PgErrorLike | null;
  readonly effect: SessionEffect | null;
}

export interface CommandContext {
  readonly view: AdminView;
  /** What SHOW says of PostgreSQL's settings, by their names as PostgreSQL spells them. */
  readonly settings: ReadonlyMap<string, string>;
}

/** Throws PgError 42601 for what is no command, and the command's own error where its words are wrong. */
export function parseCommand(tokens: readonly Token[], context: CommandContext): AdminCommand {
  const words = new Words(tokens);
  const parse = words.tokens[0]?.kind === 'word' ? PARSERS.get(words.next()) : undefined;
  const command = parse?.(words, context) ?? null;
  if (command === null || !words.atEnd) throw unknownCommand(tokens);
  return command;
}

/** A cursor over the words of one statement. Keywords are compared in lower case, names as they are. */
class Words {
  readonly tokens: readonly Token[];
  #at = 0;

  constructor(tokens: readonly Token[]) {
    this.tokens = tokens;
  }

  get atEnd(): boolean {
    return this.#at >= this.tokens.length;
  }

  /** The next token as a keyword or symbol, '' when it is none, and moves on. */
  next(): string {
    const token = this.tokens[this.#at++];
    return token === undefined || token.kind === 'quoted' || token.kind === 'string'
      ? ''
      : token.text.toLowerCase();
  }

  /** Moves past the next token when it is one of these. */
  take(...keywords: string[]): boolean {
    const before = this.#at;
    if (keywords.includes(this.next())) return true;
    this.#at = before;
    return false;
  }

  /** A name: a word as typed or a quoted one; null when something else comes. */
  name(): string | null {
    const token = this.tokens[this.#at];
    if (token === undefined || (token.kind !== 'word' && token.kind !== 'quoted')) return null;
    this.#at++;
    return token.text;
  }

  /** The texts of all that is left. */
  rest(): string[] {
    const rest = this.tokens.slice(this.#at).map(({ text }) => text);
    this.#at = this.tokens.length;
    return rest;
  }
}

type Parser = (words: Words, context: CommandContext) => AdminCommand | null;

const PARSERS: ReadonlyMap<string, Parser> = new Map<string, Parser>([
  ['show', parseShow],
  ['reconnect', parseReconnect],
  ['select', parseSelect],
  ['set', parseSet],
  ['reset', (words) => (words.rest().length > 0 ? plain('RESET') : null)],
  ['discard', parseDiscard],
  ['deallocate', parseDeallocate],
  ['begin', (words) => begin(words, 'BEGIN')],
  ['start', (words) => (words.take('transaction') ? begin(words, 'START TRANSACTION') : null)],
  ['commit', (words) => endTransaction(words, 'COMMIT')],
  ['end', (words) => endTransaction(words, 'COMMIT')],
  ['rollback', (words) => endTransaction(words, 'ROLLBACK')],
  ['abort', (words) => endTransaction(words, 'ROLLBACK')],
]);

function plain(tag: string, effect: SessionEffect | null = null): AdminCommand {
  return { tag, columns: null, run: () => null, notice: null, effect };
}

function withRows(tag: string, columns: readonly Column[], run: () => IterableIterator<Row>): AdminCommand {
  return { tag, columns, run, notice: null, effect: null };
}

// ---- SHOW ------------------------------------------------------------------------------------------------------

function parseShow(words: Words, { view, settings }: CommandContext): AdminCommand | null {
  if (words.take('help')) return { ...plain('SHOW'), notice: help() };
  if (words.take('transaction')) {
    return words.take('isolation') && words.take('level')
      ? showSetting('transaction_isolation', settings)
      : null;
  }
  if (words.take('time')) return words.take('zone') ? showSetting('timezone', settings) : null;
  const name = words.name()?.toLowerCase() ?? '';
  const table = ADMIN_TABLES.get(name);
  if (table === undefined) return showSetting(name, settings);
  return withRows('SHOW', table.columns, () => table.rows(view));
}

function showSetting(name: string, settings: ReadonlyMap<string, string>): AdminCommand | null {
  for (const [known, value] of settings) {
    if (known.toLowerCase() !== name) continue;
    return withRows('SHOW', [{ name: known, type: 'text' }], () => oneRow([value]));
  }
  return null;
}

function* oneRow(row: Row): IterableIterator<Row> {
  yield row;
}

function help(): PgErrorLike {
  const tables = [...ADMIN_TABLES].map(
    ([name, table]) => `SHOW ${name.toUpperCase().padEnd(18)}${table.help}`,
  );
  return {
    code: '00000',
    message: 'console usage',
    detail: [
      ...tables,
      'RECONNECT [database]   new connections to PostgreSQL, each as soon as it is not in use',
      'SHOW HELP              this text',
    ].join('\n'),
  };
}

// ---- RECONNECT, SELECT -----------------------------------------------------------------------------------------

function parseReconnect(words: Words, { view }: CommandContext): AdminCommand | null {
  const name = words.atEnd ? null : words.name();
  if (!words.atEnd) return null;
  const run = (): null => {
    if (name !== null && !view.config.databases.some((database) => database.name === name)) {
      throw new PgError({ code: SqlState.InvalidCatalogName, message: `database "${name}" does not exist` });
    }
    view.reconnect(name);
    return null;
  };
  return { ...plain('RECONNECT'), run };
}

/** `SELECT 1`, by which clients see whether a connection lives. */
function parseSelect(words: Words): AdminCommand | null {
  const digits = words.next();
  if (!/^\d{1,9}$/.test(digits)) return null;
  return withRows('SELECT 1', [{ name: '?column?', type: 'int4' }], () => oneRow([Number(digits)]));
}

// ---- what drivers send ------------------------------------------------------------------------------------------

/** Settings of a client are taken and mean nothing here; those of the pooler are not changed by it. */
function parseSet(words: Words, context: CommandContext): AdminCommand | null {
  if (words.take('names')) return checkEncoding(words.rest());
  if (words.take('transaction')) return words.rest().length > 0 ? plain('SET') : null;
  if (words.take('session')) {
    if (words.take('characteristics')) return words.rest().length > 0 ? plain('SET') : null;
  } else {
    words.take('local');
  }
  if (words.take('time')) return words.take('zone') && words.rest().length > 0 ? plain('SET') : null;
  const name = words.name()?.toLowerCase();
  if (name === undefined || !words.take('=', 'to')) return null;
  const value = words.rest();
  if (value.length === 0) return null;
  if (name === 'client_encoding') return checkEncoding(value);
  if (describeConfig(context.view.config).some(({ key }) => key === name)) {
    throw new PgError({
      code: CANT_CHANGE_RUNTIME_PARAM,
      message: `parameter "${name}" cannot be changed in the console`,
      hint: 'Change the configuration file and start the pooler again.',
    });
  }
  return plain('SET');
}

function checkEncoding(value: readonly string[]): AdminCommand | null {
  if (value.length !== 1) return null;
  const name = (value[0] as string).toLowerCase().replace(/[^a-z0-9]/g, '');
  if (name === 'utf8' || name === 'unicode' || name === 'default') return plain('SET');
  throw new PgError({
    code: SqlState.FeatureNotSupported,
    message: 'the console speaks no encoding but UTF8',
  });
}

function parseDiscard(words: Words): AdminCommand | null {
  if (words.take('all')) return plain('DISCARD ALL', { kind: 'deallocate', name: null });
  return words.take('plans', 'sequences', 'temp', 'temporary') ? plain('DISCARD') : null;
}

function parseDeallocate(words: Words): AdminCommand | null {
  words.take('prepare');
  if (words.take('all')) return plain('DEALLOCATE ALL', { kind: 'deallocate', name: null });
  const name = words.name();
  return name === null ? null : plain('DEALLOCATE', { kind: 'deallocate', name });
}

function begin(words: Words, tag: string): AdminCommand {
  words.rest();
  return plain(tag, { kind: 'begin' });
}

/** `COMMIT [WORK | TRANSACTION] [AND NO CHAIN]`; there are no savepoints to go back to. */
function endTransaction(words: Words, tag: string): AdminCommand | null {
  words.take('work', 'transaction');
  if (words.take('and') && !(words.take('no') && words.take('chain'))) return null;
  return plain(tag, { kind: 'end' });
}

function unknownCommand(tokens: readonly Token[]): PgError {
  const said = tokens
    .slice(0, SAID_TOKENS_MAX)
    .map(({ text }) => text)
    .join(' ');
  const shown = said.length > SAID_MAX ? `${said.slice(0, SAID_MAX)}…` : said;
  return new PgError({
    code: SqlState.SyntaxError,
    message: `unknown command: ${shown}`,
    hint: 'SHOW HELP lists the commands of this console.',
  });
}

/** PostgreSQL's ERRCODE_CANT_CHANGE_RUNTIME_PARAM. */
const CANT_CHANGE_RUNTIME_PARAM = '55P02';
const SAID_TOKENS_MAX = 8;
const SAID_MAX = 64;
