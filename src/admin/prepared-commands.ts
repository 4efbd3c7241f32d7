/**
 * The console's half of the extended query protocol (PostgreSQL manual, section 55.2.3): prepared statements and
 * portals of one session, within a fixed number of each. It decodes bodies and keeps the books; answers are
 * written by the session.
 */
import { DescribeTarget } from '../protocol/codes.ts';
import { decodeParse, decodeStatementOrPortal } from '../protocol/frontend-messages.ts';
import { MessageReader } from '../protocol/message-reader.ts';
import { PgError, SqlState } from '../protocol/pg-error.ts';
import type { AdminCommand } from './admin-command.ts';
import type { ResultFormats, Row } from './table.ts';

/** A statement bound and ready to run. */
export interface Portal {
  /** Null for a statement without words. */
  readonly command: AdminCommand | null;
  readonly formats: ResultFormats;
  /** What is left to send, once it was executed. */
  rows: IterableIterator<Row> | null;
  executed: boolean;
}

/** What a Describe asks for; formats are null for a statement, whose formats nobody knows yet. */
export interface Described {
  readonly command: AdminCommand | null;
  readonly formats: ResultFormats | null;
}

/** Invariant: neither map ever holds more than its maximum. Names are the client's; '' is the unnamed one. */
export class PreparedCommands {
  readonly #statements = new Map<string, AdminCommand | null>();
  readonly #portals = new Map<string, Portal>();
  readonly #parse: (text: string) => AdminCommand | null;

  /** `parse` makes a command of a text with at most one statement; null when there is none. Throws PgError. */
  constructor(parse: (text: string) => AdminCommand | null) {
    this.#parse = parse;
  }

  /** A Parse. Declared types of parameters are of no use: no command has parameters. */
  prepare(buffer: Buffer, start: number, end: number): void {
    const { name, sql } = decodeParse(buffer, start, end);
    if (name === '') this.#statements.delete('');
    const command = this.#parse(sql);
    if (this.#statements.has(name)) {
      throw new PgError({
        code: DUPLICATE_STATEMENT,
        message: `prepared statement "${name}" already exists`,
      });
    }
    assertRoom(this.#statements, 'prepared statements');
    this.#statements.set(name, command);
  }

  /** A Bind. */
  bind(buffer: Buffer, start: number, end: number): void {
    const reader = new MessageReader('Bind', buffer, start, end);
    const name = reader.cstring();
    const statement = reader.cstring();
    for (let count = reader.uint16(); count > 0; count--) reader.uint16();
    const values = reader.uint16();
    for (let count = values; count > 0; count--) {
      const byteCount = reader.int32();
      if (byteCount !== -1) reader.bytes(byteCount);
    }
    const formats: number[] = [];
    for (let count = reader.uint16(); count > 0; count--) formats.push(reader.uint16());
    reader.finish();
    const command = this.#statement(statement);
    if (values > 0) {
      throw bindFault(`bind message supplies ${values} parameters, but the command requires 0`);
    }
    const columns = command?.columns?.length ?? 0;
    if (formats.length > 1 && formats.length !== columns) {
      throw bindFault(
        `bind message has ${formats.length} result formats but the command has ${columns} columns`,
      );
    }
    if (!formats.every((format): format is 0 | 1 => format === 0 || format === 1)) {
      throw new PgError({ code: SqlState.InvalidParameterValue, message: 'unsupported format code' });
    }
    if (name === '') this.#portals.delete('');
    if (this.#portals.has(name)) {
      throw new PgError({ code: DUPLICATE_CURSOR, message: `portal "${name}" already exists` });
    }
    assertRoom(this.#portals, 'portals');
    this.#portals.set(name, { command, formats, rows: null, executed: false });
  }

  /** A Describe. */
  describe(buffer: Buffer, start: number, end: number): { isStatement: boolean } & Described {
    const { target, name } = decodeStatementOrPortal(buffer, start, end);
    if (target.charCodeAt(0) === DescribeTarget.Statement) {
      return { isStatement: true, command: this.#statement(name), formats: null };
    }
    const { command, formats } = this.portal(name);
    return { isStatement: false, command, formats };
  }

  /** A Close; what does not exist is closed already. */
  close(buffer: Buffer, start: number, end: number): void {
    const { target, name } = decodeStatementOrPortal(buffer, start, end);
    if (target.charCodeAt(0) === DescribeTarget.Statement) this.#statements.delete(name);
    else this.#portals.delete(name);
  }

  /** Throws PgError 34000. */
  portal(name: string): Portal {
    const portal = this.#portals.get(name);
    if (portal !== undefined) return portal;
    throw new PgError({ code: INVALID_CURSOR_NAME, message: `portal "${name}" does not exist` });
  }

  /** Portals end with their transaction. */
  dropPortals(): void {
    this.#portals.clear();
  }

  /** A simple query takes the unnamed statement and portal away (manual, section 55.2.3). */
  dropUnnamed(): void {
    this.#statements.delete('');
    this.#portals.delete('');
  }

  /** DEALLOCATE; null means all. Throws PgError 26000 for a name that is not there. */
  deallocate(name: string | null): void {
    if (name === null) this.#statements.clear();
    else if (!this.#statements.delete(name)) throw missingStatement(name);
  }

  #statement(name: string): AdminCommand | null {
    const command = this.#statements.get(name);
    if (command === undefined) throw missingStatement(name);
    return command;
  }
}

function assertRoom(map: ReadonlyMap<string, unknown>, what: string): void {
  if (map.size < PREPARED_MAX) return;
  throw new PgError({
    code: SqlState.ProgramLimitExceeded,
    message: `a console session may have ${PREPARED_MAX} ${what}`,
  });
}

function missingStatement(name: string): PgError {
  return new PgError({
    code: SqlState.InvalidSqlStatementName,
    message: `prepared statement "${name}" does not exist`,
  });
}

function bindFault(message: string): PgError {
  return new PgError({ code: SqlState.ProtocolViolation, message });
}

/** Statements, and portals, of one session. */
export const PREPARED_MAX = 100;
const DUPLICATE_STATEMENT = '42P05';
const DUPLICATE_CURSOR = '42P03';
const INVALID_CURSOR_NAME = '34000';
