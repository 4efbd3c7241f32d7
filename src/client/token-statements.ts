/**
 * The statements of a client that bring a new access token: the text with the token in it goes nowhere, another takes
 * its place, and PostgreSQL answers that one, in its turn and in the state that the transaction is in. Whether the
 * token is good is the session's business; until it has said so, nothing more is taken from the client.
 */
import { createHash } from 'node:crypto';
import { FrontendMessage, TxStatus } from '../protocol/codes.ts';
import {
  encodeCommandComplete,
  encodeErrorResponse,
  encodeParse,
  encodeQuery,
  encodeReadyForQuery,
} from '../protocol/message-writer.ts';
import { PgError, SqlState } from '../protocol/pg-error.ts';
import { PendingAction, PendingKind } from '../server/pending-responses.ts';
import type { ServerConnection } from '../server/server-connection.ts';
import type { PendingData } from '../server/server-owner.ts';
import { NO_EFFECTS, type StatementEffects, type TokenStatement } from '../sql/statement.ts';
import { sendFailing } from './refusals.ts';
import type { FrameLoop } from './relay-parts.ts';
import type { RequestRecord } from './request-record.ts';
import type { TokenOffer } from './token-renewal.ts';

/** The session, as these statements see it. */
export interface TokenHost {
  /** Has the token looked at. `done` is called once, never before this returns; not at all when the session ends. */
  verifyToken(token: string, done: (offer: TokenOffer) => void): void;
  /** Why the session cannot go on with the token now, or null: what was good may have expired meanwhile. */
  refusalOf(offer: TokenOffer): PgError | null;
  /** The statement is done: the session goes on with the token. */
  renew(offer: TokenOffer): void;
}

/** A statement whose text must go no further. */
export type TokenInText = Exclude<TokenStatement, { kind: 'parameter' }>;

/** What is left of a statement with a token in it. */
export interface OfferEffects extends StatementEffects {
  readonly offer: TokenOffer;
}

/** The offer that an entry of the queue, or a statement, carries; null for any other. */
export function offerOf(data: PendingData): TokenOffer | null {
  return (data as Partial<OfferEffects>).offer ?? null;
}

/**
 * Invariant: an answer is given to the very token it was found for, whatever the client sends in between; what is
 * kept of a token is its digest.
 */
export class TokenStatements {
  readonly #loop: FrameLoop;
  readonly #host: TokenHost;
  readonly #record: RequestRecord;
  #answer: { readonly digest: string; readonly offer: TokenOffer } | null = null;

  constructor(loop: FrameLoop, host: TokenHost, record: RequestRecord) {
    this.#loop = loop;
    this.#host = host;
    this.#record = record;
  }

  /** What stands for the statement from here on, or the error; null: the message has to come again. */
  resolve(statement: TokenInText): OfferEffects | PgError | null {
    // What holds a token is not sent a second time when a plan goes stale.
    this.#record.drop();
    if (statement.kind === 'refused') {
      return new PgError({
        code: SqlState.InsufficientPrivilege,
        message: statement.message,
        reason: 'token_setting',
      });
    }
    return this.resolveToken(statement.token);
  }

  /** The same for a token that came as a parameter. */
  resolveToken(token: string): OfferEffects | null {
    this.#record.drop();
    const digest = createHash('sha256').update(token).digest('base64');
    const answer = this.#answer;
    this.#answer = null;
    if (answer !== null && answer.digest === digest) {
      return Object.freeze({ ...NO_EFFECTS, plain: false, offer: answer.offer });
    }
    this.#loop.park();
    this.#host.verifyToken(token, (offer) => {
      this.#answer = { digest, offer };
      this.#loop.unpark();
    });
    return null;
  }

  /** Sends what stands for a Query with a token. */
  sendQuery(server: ServerConnection, effects: OfferEffects | PgError): void {
    const error = effects instanceof PgError ? effects : this.#host.refusalOf(effects.offer);
    // In a failed transaction PostgreSQL says so, whatever the token is worth.
    const failed = server.txStatus === TxStatus.Failed && server.pending.length === 0;
    if (error !== null && !failed) {
      sendFailing(server, this.#loop, FrontendMessage.Query, error);
    } else {
      server.send(REPLACED_QUERY);
      server.expect(PendingKind.Query, PendingAction.Forward, this.#loop, error === null ? effects : null);
    }
  }

  /**
   * A Query with a token from a client that has no connection, and needs none: its whole answer, or null when the
   * message has to come again.
   */
  answerQuery(statement: TokenInText): Buffer | null {
    const effects = this.resolve(statement);
    if (effects === null) return null;
    this.#loop.requestCount++;
    if (effects instanceof PgError) return Buffer.concat([encodeErrorResponse(effects), READY_IDLE]);
    const error = this.#host.refusalOf(effects.offer);
    if (error !== null) return Buffer.concat([encodeErrorResponse(error), READY_IDLE]);
    this.#host.renew(effects.offer);
    return ANSWER_IDLE;
  }

  /** An Execute of such a statement: the error that takes its place, or null. */
  refusalOf(effects: StatementEffects): PgError | null {
    const offer = offerOf(effects);
    return offer === null ? null : this.#host.refusalOf(offer);
  }

  /** PostgreSQL has run what stood for the statement. */
  onCompleted(data: PendingData): void {
    const offer = offerOf(data);
    if (offer !== null) this.#host.renew(offer);
  }

  /** The Parse of what stands for the statement, under the client's own name as it came. */
  static parseOf(name: string): Buffer {
    if (name === '') return REPLACED_PARSE;
    const head = Buffer.alloc(5);
    head[0] = FrontendMessage.Parse;
    const bytes = Buffer.from(name, 'latin1');
    head.writeInt32BE(4 + bytes.length + REPLACED_TAIL.length + 1, 1);
    return Buffer.concat([head, bytes, REPLACED_PARSE.subarray(5)]);
  }
}

/**
 * Whether a text begins like `SET …`: of the statements that come to a session without a connection, only these are
 * looked at before one is asked for.
 */
export function beginsWithSet(buffer: Buffer, at: number): boolean {
  return (
    ((buffer[at] as number) | 0x20) === 0x73 &&
    ((buffer[at + 1] as number) | 0x20) === 0x65 &&
    ((buffer[at + 2] as number) | 0x20) === 0x74
  );
}

/** A Bind whose one parameter is a token. */
export interface TokenBind {
  readonly token: string;
  /** What stands behind the statement's name, with the parameter made empty. */
  readonly tail: Buffer;
}

/**
 * Reads a Bind from behind the names, `buffer[start, end)`. Null when it has anything but one parameter, so that
 * PostgreSQL would refuse it; then it must not be sent.
 */
export function readTokenBind(buffer: Buffer, start: number, end: number): TokenBind | null {
  if (end - start < 2) return null;
  const countAt = start + 2 + 2 * buffer.readUInt16BE(start);
  if (countAt + 6 > end || buffer.readUInt16BE(countAt) !== 1) return null;
  const length = buffer.readInt32BE(countAt + 2);
  const valueAt = countAt + 6;
  if (length < 0 || valueAt + length + 2 > end) return null;
  const tail = Buffer.concat([
    buffer.subarray(start, countAt + 2),
    Buffer.alloc(4),
    buffer.subarray(valueAt + length, end),
  ]);
  return { token: buffer.toString('latin1', valueAt, valueAt + length), tail };
}

/** For the tag SET, and in a failed transaction 25P02, by PostgreSQL itself. No value is ever set. */
const REPLACED_SQL = 'SET turnstile.token TO DEFAULT';
const REPLACED_QUERY: Buffer = encodeQuery(REPLACED_SQL);
const REPLACED_PARSE: Buffer = encodeParse('', REPLACED_SQL);
/** Text and types, as they stand behind a name. */
export const REPLACED_TAIL: Buffer = REPLACED_PARSE.subarray(6);
const READY_IDLE: Buffer = encodeReadyForQuery(TxStatus.Idle);
const ANSWER_IDLE: Buffer = Buffer.concat([encodeCommandComplete('SET'), READY_IDLE]);
