/**
 * Those for whom a server connection works: the owner whose request is under way, and the batches of our own between
 * two requests; and what their entries in the queue of pending responses carry. Declared below them, so that the
 * connection can call them without knowing who they are.
 */
import type { ErrorFields } from '../protocol/backend-messages.ts';
import type { PreparedStatement } from '../session/prepared-statements.ts';
import type { PendingKind } from './pending-responses.ts';
import type { ServerConnection } from './server-connection.ts';

/** Whoever's bytes travel on the connection. The relay of a client session implements it. */
export interface ServerOwner {
  /** A message of the owner was sent in part: nothing may be put in front of its rest. */
  readonly sendingPart: boolean;
  /**
   * Bytes for the client. The view lives until the call returns: false means that it is still referred to, and
   * the connection gives its read buffer away.
   */
  onServerBytes(view: Buffer): boolean;
  /** A command of a simple query whose entry carries something is complete; its tag. */
  onCommand(tag: string): void;
  /** An answer of this owner is complete; called for entries whose `data` is not null. */
  onCompleted(kind: PendingKind, data: PendingData): void;
  /**
   * The entry failed (`failed`) or PostgreSQL skips it because an earlier one did. `code` is the SQLSTATE.
   */
  onNotCompleted(kind: PendingKind, data: PendingData, failed: boolean, code: string): void;
  /** An error drops what is under way, and PostgreSQL reads nothing more before a Sync that is still to be sent. */
  onSkipping(server: ServerConnection): void;
  /** An error is about to be forwarded: null lets it pass, other bytes take its place (none: it is kept back). */
  onError(
    server: ServerConnection,
    kind: PendingKind,
    data: PendingData,
    fields: ErrorFields,
    frame: Buffer,
  ): Buffer | null;
  /** A setting reported while the owner's request was running; false keeps the message from the client. */
  onParameterStatus(name: string, value: string): boolean;
  /** Nothing is pending and no transaction is open. Called once per such moment, after the bytes went out. */
  onServerIdle(server: ServerConnection): void;
  /** The owner's request is over; false keeps ReadyForQuery from the client, who will get another one. */
  onReadyForQuery(server: ServerConnection, status: number): boolean;
  /** The socket to PostgreSQL takes bytes again. */
  onServerDrain(): void;
  /**
   * The connection is gone. `fatalSent`: PostgreSQL's own FATAL was forwarded already, or the owner got a message
   * in part, so that an error of ours would be read as its rest.
   */
  onServerLost(server: ServerConnection, fatalSent: boolean): void;
}

/** A request of our own. Its answers reach nobody else. */
export interface OwnBatch {
  onRow(values: (string | null)[]): void;
  /** ReadyForQuery came; `error` is what PostgreSQL said, if it refused. */
  onEnd(error: ErrorFields | null): void;
  error: ErrorFields | null;
  /** The named statement of ours that it prepares, if any. */
  parses: string;
  /** Gets the settings that the batch changes, as messages for its client; null keeps them quiet. */
  readonly statusTo: ServerOwner | null;
  /** Gets the ReadyForQuery of the batch, which he was not given behind his own request. */
  readonly readyTo: ServerOwner | null;
}

/** The `data` of a Fake entry: the bytes, and what the owner must know when they are dropped. */
export interface FakeAnswer {
  readonly bytes: Buffer;
  readonly change: object | null;
}

/** What an entry of the queue may carry: see PendingResponses. */
export type PendingData = OwnBatch | PreparedStatement | Buffer | object;

/** Of the unnamed statement that a connection holds: it is one of ours, or not known. */
export const UNNAMED_FOREIGN: number = -1;
