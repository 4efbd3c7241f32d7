/**
 * Prepared statements that outlive a server connection: a client's name stands for a statement known by its text
 * and types, which every server connection holds under one name of ours.
 *
 * Hot. SQL text and names are kept as latin1 strings, one character a byte, whatever the client's encoding.
 */
import { Lru } from '../base/lru.ts';
import type { StatementEffects } from '../sql/statement.ts';

/** Names of ours on the server begin with this; a client's name that does is refused. */
export const SERVER_NAME_PREFIX = 'turnstile_';

/** One text with its parameter types. Compared by identity. */
export class PreparedStatement {
  /** Name on the server, without a terminator. */
  readonly serverName: string;
  readonly serverNameBytes: Buffer;
  /** The rest of the Parse message behind the name: text, NUL, type count, types. */
  readonly parseTail: Buffer;
  readonly effects: StatementEffects;

  constructor(serverName: string, parseTail: Buffer, effects: StatementEffects) {
    this.serverName = serverName;
    this.serverNameBytes = Buffer.from(`${serverName}\0`, 'latin1');
    this.parseTail = parseTail;
    this.effects = effects;
  }
}

/**
 * All statements of a worker by key; forgets the least used, whose text then simply gets a new name. Bounded by
 * their number and by their characters together.
 */
export class StatementRegistry {
  readonly #known: Lru<string, PreparedStatement>;
  readonly #charsMax: number;
  #chars = 0;
  #nextId = 1;
  #unnamedId = 0;

  constructor(max: number = REGISTRY_MAX, charsMax: number = REGISTRY_CHARS_MAX) {
    this.#known = new Lru(max);
    this.#charsMax = charsMax;
  }

  get size(): number {
    return this.#known.size;
  }

  /** A number for an unnamed statement that stays as it is; never given twice, positive. */
  takeUnnamedId(): number {
    return ++this.#unnamedId;
  }

  find(key: string): PreparedStatement | undefined {
    return this.#known.get(key);
  }

  /** Makes a statement; with a null key it is private to whoever asked. `parseTail` is copied. */
  make(key: string | null, parseTail: Buffer, effects: StatementEffects): PreparedStatement {
    const name = `${SERVER_NAME_PREFIX}${this.#nextId++}`;
    const statement = new PreparedStatement(name, Buffer.from(parseTail), effects);
    if (key !== null) this.#keep(key, statement);
    return statement;
  }

  #keep(key: string, statement: PreparedStatement): void {
    if (key.length > this.#charsMax) return;
    if (this.#known.peek(key) === undefined) this.#chars += key.length;
    const evicted = this.#known.set(key, statement);
    if (evicted !== undefined) this.#chars -= evicted[0].length;
    while (this.#chars > this.#charsMax) {
      const oldest = this.#known.keys().next().value as string;
      this.#known.delete(oldest);
      this.#chars -= oldest.length;
    }
  }
}

/** The statements that one server connection holds, the least used first to go. */
export class ServerStatements {
  readonly #held = new Map<PreparedStatement, true>();
  readonly #max: number;

  constructor(max: number) {
    this.#max = Math.max(1, Math.min(max, SERVER_MAX));
  }

  get size(): number {
    return this.#held.size;
  }

  /** True when the server holds the statement, which then counts as used. */
  use(statement: PreparedStatement): boolean {
    if (!this.#held.has(statement)) return false;
    // The order matters only when something may have to go.
    if (this.#held.size * 2 > this.#max) {
      this.#held.delete(statement);
      this.#held.set(statement, true);
    }
    return true;
  }

  /** Adds a statement; returns the one that has to be closed for it, if any. */
  add(statement: PreparedStatement): PreparedStatement | null {
    this.#held.set(statement, true);
    if (this.#held.size <= this.#max) return null;
    for (const oldest of this.#held.keys()) {
      if (oldest === statement) continue;
      this.#held.delete(oldest);
      return oldest;
    }
    return null;
  }

  /** Takes back that a statement was closed: PostgreSQL skipped the Close. May go beyond the limit by those. */
  restore(statement: PreparedStatement): void {
    this.#held.set(statement, true);
  }

  delete(statement: PreparedStatement): void {
    this.#held.delete(statement);
  }

  clear(): void {
    this.#held.clear();
  }
}

const REGISTRY_MAX = 50_000;
const REGISTRY_CHARS_MAX = 64 * 1024 * 1024;
const SERVER_MAX = 65_536;
