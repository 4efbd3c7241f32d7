/**
 * A connection to PostgreSQL for the doctor: logged in by the pooler's own login code, so that what works here works
 * there, and then asked one statement at a time. Small answers only; it knows nothing of what they mean.
 */
import type { ScramKeys } from '../auth/scram-keys.ts';
import { decodeDataRow, decodeErrorFields, pgErrorFromFields } from '../protocol/backend-messages.ts';
import { BackendMessage } from '../protocol/codes.ts';
import {
  encodeBind,
  encodeExecute,
  encodeParse,
  encodeQuery,
  SYNC,
  TERMINATE,
} from '../protocol/message-writer.ts';
import { PgError } from '../protocol/pg-error.ts';
import { LoginChannel } from '../server/login-channel.ts';
import { type OpenedServer, openServerConnection, type ServerTarget } from '../server/server-login.ts';

export type Row = readonly (string | null)[];

/** Who the session is now. */
export interface Who {
  readonly sessionUser: string;
  readonly currentUser: string;
}

/** Invariant: one statement at a time. */
export class DoctorSession {
  readonly opened: OpenedServer;
  readonly #channel: LoginChannel;

  constructor(opened: OpenedServer, peer: string) {
    this.opened = opened;
    this.#channel = new LoginChannel(opened.socket, peer);
  }

  /** Rejects with ServerLoginError. */
  static async open(target: ServerTarget, scramKeys: ScramKeys): Promise<DoctorSession> {
    const opened = await openServerConnection(target, { scramKeys });
    return new DoctorSession(opened, `"${target.host}", port ${target.port}`);
  }

  /** The rows of one parameterised statement; rejects with PostgreSQL's error, or when the connection breaks. */
  async ask(sql: string, values: readonly (string | null)[] = []): Promise<Row[]> {
    this.#channel.write(
      Buffer.concat([encodeParse('', sql), encodeBind('', '', values), encodeExecute(''), SYNC]),
    );
    return await this.#answer();
  }

  /** Runs a text as a client would send it (simple Query); PostgreSQL's error, or null. */
  async run(sql: string): Promise<PgError | null> {
    this.#channel.write(encodeQuery(sql));
    try {
      await this.#answer();
      return null;
    } catch (error) {
      if (error instanceof PgError) return error;
      throw error;
    }
  }

  async who(): Promise<Who> {
    const [row] = await this.ask('SELECT session_user::pg_catalog.text, current_user::pg_catalog.text');
    return { sessionUser: row?.[0] ?? '', currentUser: row?.[1] ?? '' };
  }

  close(): void {
    this.#channel.write(TERMINATE);
    this.#channel.socket.destroySoon();
    this.#channel.socket.on('error', () => {});
  }

  async #answer(): Promise<Row[]> {
    const rows: Row[] = [];
    let failure: PgError | null = null;
    for (;;) {
      const { type, buffer, start, end } = await this.#channel.readMessage();
      if (type === BackendMessage.DataRow) rows.push(decodeDataRow(buffer, start, end));
      else if (type === BackendMessage.ErrorResponse) {
        failure ??= pgErrorFromFields(decodeErrorFields(buffer, start, end));
      } else if (type === BackendMessage.ReadyForQuery) break;
    }
    if (failure !== null) throw failure;
    return rows;
  }
}
