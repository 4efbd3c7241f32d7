/**
 * One client of the console behind its login: cuts what it sends into messages, answers them one at a time, and
 * stops working for a client that does not read. What the commands are and show is said elsewhere.
 *
 * Nothing here is hot, but it shares its thread with every client of the pooler: a long answer is written in turns
 * of a few milliseconds.
 */
import type { Wire, WireHandler } from '../net/wire.ts';
import { BackendMessage, FrontendMessage, TxStatus } from '../protocol/codes.ts';
import { decodeExecute, decodeQuery } from '../protocol/frontend-messages.ts';
import {
  BIND_COMPLETE,
  CLOSE_COMPLETE,
  EMPTY_QUERY_RESPONSE,
  encodeAuthenticationOk,
  encodeBackendKeyData,
  encodeCommandComplete,
  encodeErrorResponse,
  encodeNotice,
  encodeParameterStatus,
  encodeReadyForQuery,
  MessageWriter,
  NO_DATA,
  PARSE_COMPLETE,
} from '../protocol/message-writer.ts';
import { PgError, SqlState } from '../protocol/pg-error.ts';
import { type AdminCommand, type CommandContext, parseCommand, type SessionEffect } from './admin-command.ts';
import { splitStatements, type Token } from './command-text.ts';
import { Inbox } from './inbox.ts';
import { type Portal, PreparedCommands } from './prepared-commands.ts';
import { CONSOLE_SERVER_VERSION } from './product.ts';
import type { AdminView } from './snapshot.ts';
import { describeColumns, type ResultFormats, type Row, TEXT_FORMAT, writeRow } from './table.ts';

export interface AdminSessionOptions {
  readonly wire: Wire;
  /** Who proved to be the administrator. */
  readonly user: string;
  readonly view: AdminView;
  /** Called once, however the session ends. */
  readonly onEnd: () => void;
}

/** Rows that are being sent. */
interface Running {
  readonly rows: IterableIterator<Row>;
  readonly formats: ResultFormats;
  readonly tag: string;
  /** Rows that may still be sent before the portal is suspended. */
  rowsLeft: number;
  readonly portal: Portal | null;
}

/**
 * Invariants: at most one answer is under way (`#running`), and nothing behind it is begun before it is whole;
 * while the peer does not read, nothing is computed and nothing is read; after `#ended` the wire is not used.
 */
export class AdminSession implements WireHandler {
  readonly #wire: Wire;
  readonly #view: AdminView;
  readonly #onEnd: () => void;
  readonly #settings: ReadonlyMap<string, string>;
  readonly #context: CommandContext;
  readonly #prepared: PreparedCommands;
  readonly #inbox = new Inbox();
  readonly #out = new MessageWriter(1024);
  /** Statements of the simple query at hand that are still to come; null when none is at hand. */
  #statements: Token[][] | null = null;
  #running: Running | null = null;
  #txStatus: TxStatus = TxStatus.Idle;
  /** An extended request failed: everything up to Sync is dropped. */
  #skipToSync = false;
  #nextTurn: NodeJS.Immediate | null = null;
  #ended = false;

  constructor(options: AdminSessionOptions) {
    this.#wire = options.wire;
    this.#view = options.view;
    this.#onEnd = options.onEnd;
    this.#settings = new Map([...REPORTED, ['session_authorization', options.user]]);
    this.#context = { view: options.view, settings: new Map([...this.#settings, ...UNREPORTED]) };
    this.#prepared = new PreparedCommands((text) => this.#parseOne(text));
  }

  /** Takes the wire over and lets the client in. */
  start(): void {
    if (this.#ended) return;
    this.#wire.setHandler(this);
    const parts = [...this.#settings].map(([name, value]) => encodeParameterStatus(name, value));
    this.#wire.write(
      Buffer.concat([
        encodeAuthenticationOk(),
        ...parts,
        // No session has the process id 0: a cancel request with this key finds nobody.
        encodeBackendKeyData(0, Buffer.alloc(4)),
        encodeReadyForQuery(TxStatus.Idle),
      ]),
    );
    this.#wire.resume();
  }

  /** The pooler is going down. */
  end(): void {
    this.#terminate('terminating connection due to administrator command');
  }

  /** The token that opened the console is no longer good. */
  expire(): void {
    this.#terminate('terminating connection because the access token expired');
  }

  /** The token that opened the console was taken back; the error says how. */
  withdraw(error: PgError): void {
    this.#fail(error);
  }

  #terminate(message: string): void {
    this.#fail(new PgError({ code: SqlState.AdminShutdown, message, severity: 'FATAL' }));
  }

  // ---- WireHandler -----------------------------------------------------------------------------------------

  onBytes(buffer: Buffer, start: number, end: number): void {
    if (this.#ended) return;
    this.#inbox.push(buffer, start, end);
    this.#work();
  }

  onDrain(): void {
    this.#work();
  }

  onClose(): void {
    this.#finish();
  }

  // ---- turns -----------------------------------------------------------------------------------------------

  /** Answers what is there, until the client is slow, the turn is over or nothing is left. */
  #work(): void {
    if (this.#nextTurn !== null) return;
    const turnEndMs = this.#view.clock.precise() + TURN_MS;
    while (!this.#ended) {
      if (this.#wire.writeBlocked) {
        this.#wire.pause();
        return;
      }
      if (this.#out.length >= OUT_BYTES_MAX) {
        this.#flush();
        continue;
      }
      if (this.#view.clock.precise() >= turnEndMs) {
        this.#flush();
        this.#wire.pause();
        this.#nextTurn = setImmediate(() => {
          this.#nextTurn = null;
          this.#work();
        });
        return;
      }
      try {
        if (!this.#step()) break;
      } catch (error) {
        this.#answerError(error);
      }
    }
    if (this.#ended) return;
    this.#flush();
    if (this.#wire.writeBlocked) this.#wire.pause();
    else this.#wire.resume();
  }

  #flush(): void {
    if (this.#out.length > 0) this.#wire.write(this.#out.take());
  }

  /** The next small piece of work; false when there is none. */
  #step(): boolean {
    if (this.#running !== null) this.#sendRows(this.#running);
    else if (this.#statements !== null) this.#nextStatement(this.#statements);
    else return this.#nextMessage();
    return true;
  }

  #nextMessage(): boolean {
    const frame = this.#inbox.next();
    if (frame === null) return false;
    const { type, buffer, start, end } = frame;
    if (this.#skipToSync && type !== FrontendMessage.Sync && type !== FrontendMessage.Terminate) return true;
    switch (type) {
      case FrontendMessage.Query:
        this.#prepared.dropUnnamed();
        this.#beginQuery(decodeQuery(buffer, start, end));
        return true;
      case FrontendMessage.Parse:
        this.#prepared.prepare(buffer, start, end);
        this.#out.bytes(PARSE_COMPLETE);
        return true;
      case FrontendMessage.Bind:
        this.#prepared.bind(buffer, start, end);
        this.#out.bytes(BIND_COMPLETE);
        return true;
      case FrontendMessage.Describe:
        this.#describe(buffer, start, end);
        return true;
      case FrontendMessage.Execute: {
        const { portal, maxRows } = decodeExecute(buffer, start, end);
        this.#execute(this.#prepared.portal(portal), maxRows);
        return true;
      }
      case FrontendMessage.Close:
        this.#prepared.close(buffer, start, end);
        this.#out.bytes(CLOSE_COMPLETE);
        return true;
      case FrontendMessage.Flush:
        return true;
      case FrontendMessage.Sync:
        this.#skipToSync = false;
        this.#ready();
        return true;
      case FrontendMessage.Terminate:
        this.#wire.end(this.#out.take());
        this.#finish();
        return false;
      case FrontendMessage.FunctionCall:
        this.#out.bytes(encodeErrorResponse(noFunctions()));
        this.#ready();
        return true;
      default:
        throw new PgError({
          code: SqlState.ProtocolViolation,
          message: `invalid frontend message type ${type}`,
          severity: 'FATAL',
        });
    }
  }

  // ---- simple queries --------------------------------------------------------------------------------------

  #beginQuery(text: string): void {
    // Until the queue is there, an error of the text itself is one of a simple query all the same.
    this.#statements = [];
    this.#statements = splitStatements(text);
    if (this.#statements.length === 0) this.#out.bytes(EMPTY_QUERY_RESPONSE);
    // Taken from the end, which costs the same for any length.
    this.#statements.reverse();
  }

  #nextStatement(statements: Token[][]): void {
    const tokens = statements.pop();
    if (tokens === undefined) {
      this.#statements = null;
      this.#ready();
      return;
    }
    const command = parseCommand(tokens, this.#context);
    if (command.columns !== null) this.#out.bytes(describeColumns(command.columns, TEXT_FORMAT));
    this.#run(command, TEXT_FORMAT, Number.POSITIVE_INFINITY, null);
  }

  #ready(): void {
    if (this.#txStatus === TxStatus.Idle) this.#prepared.dropPortals();
    this.#out.bytes(encodeReadyForQuery(this.#txStatus));
  }

  // ---- extended queries ------------------------------------------------------------------------------------

  #parseOne(text: string): AdminCommand | null {
    const [tokens, ...more] = splitStatements(text);
    if (more.length > 0) {
      throw new PgError({
        code: SqlState.SyntaxError,
        message: 'cannot insert multiple commands into a prepared statement',
      });
    }
    return tokens === undefined ? null : parseCommand(tokens, this.#context);
  }

  #describe(buffer: Buffer, start: number, end: number): void {
    const { isStatement, command, formats } = this.#prepared.describe(buffer, start, end);
    if (isStatement) this.#out.begin(BackendMessage.ParameterDescription).int16(0).end();
    const columns = command?.columns ?? null;
    this.#out.bytes(columns === null ? NO_DATA : describeColumns(columns, formats ?? TEXT_FORMAT));
  }

  #execute(portal: Portal, maxRows: number): void {
    const { command, formats } = portal;
    const rowsLeft = maxRows > 0 ? maxRows : Number.POSITIVE_INFINITY;
    if (command === null) {
      this.#out.bytes(EMPTY_QUERY_RESPONSE);
    } else if (!portal.executed) {
      portal.executed = true;
      this.#run(command, formats, rowsLeft, portal);
    } else if (portal.rows !== null) {
      this.#running = { rows: portal.rows, formats, tag: command.tag, rowsLeft, portal };
    } else if (command.columns !== null) {
      this.#out.bytes(encodeCommandComplete(command.tag));
    } else {
      throw new PgError({ code: NOT_IN_PREREQUISITE_STATE, message: 'portal cannot be run anymore' });
    }
  }

  // ---- commands --------------------------------------------------------------------------------------------

  #run(command: AdminCommand, formats: ResultFormats, rowsLeft: number, portal: Portal | null): void {
    const rows = command.run();
    if (command.notice !== null) this.#out.bytes(encodeNotice(command.notice));
    if (command.effect !== null) this.#apply(command.effect);
    if (rows === null) {
      this.#out.bytes(encodeCommandComplete(command.tag));
      return;
    }
    if (portal !== null) portal.rows = rows;
    this.#running = { rows, formats, tag: command.tag, rowsLeft, portal };
  }

  #apply(effect: SessionEffect): void {
    switch (effect.kind) {
      case 'begin':
        this.#txStatus = TxStatus.InTransaction;
        return;
      case 'end':
        this.#txStatus = TxStatus.Idle;
        return;
      case 'deallocate':
        this.#prepared.deallocate(effect.name);
        return;
      default:
        effect satisfies never;
    }
  }

  /** A few rows; the loop of the turn looks at the clock and at the peer in between. */
  #sendRows(running: Running): void {
    for (let count = 0; count < ROWS_PER_STEP; count++) {
      if (running.rowsLeft === 0) {
        this.#running = null;
        this.#out.begin(BackendMessage.PortalSuspended).end();
        return;
      }
      const next = running.rows.next();
      if (next.done === true) {
        this.#running = null;
        if (running.portal !== null) running.portal.rows = null;
        this.#out.bytes(encodeCommandComplete(running.tag));
        return;
      }
      writeRow(this.#out, next.value, running.formats);
      running.rowsLeft--;
    }
  }

  // ---- end -------------------------------------------------------------------------------------------------

  #answerError(error: unknown): void {
    if (!(error instanceof PgError)) {
      // A fault of ours may have left half a message behind.
      this.#out.reset();
      this.#fail(internalError(error));
      return;
    }
    if (error.severity === 'FATAL') {
      this.#fail(error);
      return;
    }
    this.#running = null;
    this.#out.bytes(encodeErrorResponse(error));
    if (this.#statements === null) {
      this.#skipToSync = true;
      return;
    }
    this.#statements = null;
    this.#ready();
  }

  #fail(error: PgError): void {
    if (this.#ended) return;
    this.#out.bytes(encodeErrorResponse(error, { severity: 'FATAL' }));
    this.#wire.end(this.#out.take());
    this.#finish();
  }

  #finish(): void {
    if (this.#ended) return;
    this.#ended = true;
    if (this.#nextTurn !== null) clearImmediate(this.#nextTurn);
    this.#nextTurn = null;
    this.#running = null;
    this.#statements = null;
    this.#onEnd();
  }
}

function noFunctions(): PgError {
  return new PgError({ code: SqlState.FeatureNotSupported, message: 'the console has no functions to call' });
}

/** A fault of ours: it must not take the clients of the pooler down with it, nor tell what it read. */
function internalError(error: unknown): PgError {
  return new PgError({
    code: SqlState.InternalError,
    message: `internal error in the console (${error instanceof Error ? error.name : 'unknown'})`,
    severity: 'FATAL',
    cause: error,
  });
}

/** What PostgreSQL reports at login and drivers count on. */
const REPORTED: readonly [string, string][] = [
  ['server_version', CONSOLE_SERVER_VERSION],
  ['server_encoding', 'UTF8'],
  ['client_encoding', 'UTF8'],
  ['DateStyle', 'ISO, MDY'],
  ['IntervalStyle', 'postgres'],
  ['TimeZone', 'UTC'],
  ['integer_datetimes', 'on'],
  ['standard_conforming_strings', 'on'],
  ['default_transaction_read_only', 'off'],
  ['in_hot_standby', 'off'],
  ['is_superuser', 'on'],
];
/** Settings that drivers ask for by SHOW; libpq does for target_session_attrs. */
const UNREPORTED: readonly [string, string][] = [
  ['transaction_read_only', 'off'],
  ['transaction_isolation', 'read committed'],
  ['default_transaction_isolation', 'read committed'],
];
const TURN_MS = 5;
const ROWS_PER_STEP = 64;
const OUT_BYTES_MAX = 32 * 1024;
/** PostgreSQL's ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE. */
const NOT_IN_PREREQUISITE_STATE = '55000';
