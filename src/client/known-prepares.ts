/**
 * Requests that need no connection: they only prepare statements that PostgreSQL has prepared for this role before,
 * or close some. So a driver that prepares while all connections are in transactions does not wait for them.
 */
import type { Wire } from '../net/wire.ts';
import { DescribeTarget, FrontendMessage } from '../protocol/codes.ts';
import { readInt32 } from '../protocol/frames.ts';
import { CLOSE_COMPLETE, PARSE_COMPLETE } from '../protocol/message-writer.ts';
import type { PreparedStatement, StatementRegistry } from '../session/prepared-statements.ts';
import type { StatementNames } from '../session/statement-names.ts';
import { refusalOf, type SessionGuards } from './refusals.ts';

export interface KnownPreparesOptions extends SessionGuards {
  readonly wire: Wire;
  readonly names: StatementNames;
  readonly registry: StatementRegistry;
  /** Statements that PostgreSQL has prepared for this role before. */
  readonly provenStatements: WeakSet<object>;
}

/** Invariant: a request is answered whole or not at all. */
export class KnownPrepares {
  readonly #wire: Wire;
  readonly #names: StatementNames;
  readonly #registry: StatementRegistry;
  readonly #provenStatements: WeakSet<object>;
  readonly #guards: SessionGuards;

  constructor(options: KnownPreparesOptions) {
    this.#wire = options.wire;
    this.#names = options.names;
    this.#registry = options.registry;
    this.#provenStatements = options.provenStatements;
    this.#guards = options;
  }

  /**
   * Answers every message of a whole request that begins at `start` but its Sync, and where that Sync is; or
   * `start` when the request needs a connection, and then nothing is done.
   */
  answer(parseKey: string, buffer: Buffer, start: number, end: number): number {
    const known = this.#findAll(parseKey, buffer, start, end);
    if (known === null) return start;
    let at = start;
    for (const statement of known) {
      const next = at + readInt32(buffer, at + 1) + 1;
      if (statement === null) {
        this.#names.delete(buffer.toString('latin1', at + 6, next - 1));
        this.#wire.write(CLOSE_COMPLETE);
      } else {
        this.#names.set(buffer.toString('latin1', at + 5, buffer.indexOf(0, at + 5)), statement);
        this.#wire.write(PARSE_COMPLETE);
      }
      at = next;
    }
    return at;
  }

  /** The statement of each Parse, null for each Close, up to Sync; null when there is any other message. */
  #findAll(
    parseKey: string,
    buffer: Buffer,
    start: number,
    end: number,
  ): (PreparedStatement | null)[] | null {
    const known: (PreparedStatement | null)[] = [];
    const names = new Set<string>();
    let at = start;
    while (buffer[at] !== FrontendMessage.Sync) {
      if (end - at < 7) return null;
      const next = at + readInt32(buffer, at + 1) + 1;
      let nameAt = at + 5;
      if (buffer[at] === FrontendMessage.Close) {
        if (buffer[at + 5] !== DescribeTarget.Statement || next <= at + 7) return null;
        nameAt = at + 6;
        known.push(null);
      } else if (buffer[at] === FrontendMessage.Parse) {
        const statement = this.#findProven(parseKey, buffer, at, next);
        if (statement === null) return null;
        known.push(statement);
      } else return null;
      // A name that stands there twice is PostgreSQL's to judge.
      names.add(buffer.toString('latin1', nameAt, buffer.indexOf(0, nameAt)));
      if (names.size < known.length) return null;
      at = next;
      if (end - at < 5) return null;
    }
    // A Sync of another length is a fault that the ordinary road tells.
    return readInt32(buffer, at + 1) === 4 ? known : null;
  }

  /** The statement of a named Parse, if its name is free and PostgreSQL has prepared the text before. */
  #findProven(parseKey: string, buffer: Buffer, start: number, end: number): PreparedStatement | null {
    const nameEnd = buffer.indexOf(0, start + 5);
    if (nameEnd <= start + 5 || nameEnd + 4 > end) return null;
    const name = buffer.toString('latin1', start + 5, nameEnd);
    if (this.#names.has(name) || this.#names.full) return null;
    const statement = this.#registry.find(parseKey + buffer.toString('latin1', nameEnd + 1, end));
    if (statement === undefined || !this.#provenStatements.has(statement)) return null;
    // It may have been proven by a session of this role that has no token.
    return refusalOf(statement.effects, this.#guards) === null ? statement : null;
  }
}
