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

/** A statement with a Parse or Close that is not answered. */
interface OpenStatement {
  /** Whether PostgreSQL holds it as far as it has answered. */
  answered: boolean;
  count: number;
  /** The client's request that the last of them belongs to, and whether an error in front of it could skip it. */
  request: number;
  skippable: boolean;
}

/**
 * The statements that one server connection holds, the least used first to go. Noted when a Parse or Close is sent;
 * the answers say what is true in the end.
 */
export class ServerStatements {
  readonly #held = new Map<PreparedStatement, true>();
  readonly #max: number;
  #open: Map<PreparedStatement, OpenStatement> | null = null;

  constructor(max: number) {
    this.#max = Math.max(1, Math.min(max, SERVER_MAX));
  }

  get size(): number {
    return this.#held.size;
  }

  /** True when the server holds the statement, or will when what was sent is done; it then counts as used. */
  use(statement: PreparedStatement): boolean {
    if (!this.#held.has(statement)) return false;
    // The order matters only when something may have to go.
    if (this.#held.size * 2 > this.#max) {
      this.#held.delete(statement);
      this.#held.set(statement, true);
    }
    return true;
  }

  /**
   * True when a request cannot rely on what an earlier one does to the statement: that may be skipped, and where
   * the text is not `proven` it may also be refused.
   */
  inDoubt(statement: PreparedStatement, request: number, proven: boolean): boolean {
    const open = this.#open?.get(statement);
    return open !== undefined && open.request !== request && (open.skippable || !proven);
  }

  /** A Parse is sent; returns the statement that has to be closed for it, if any. */
  add(statement: PreparedStatement, request = 0, skippable = false): PreparedStatement | null {
    this.#begin(statement, request, skippable);
    this.#held.set(statement, true);
    if (this.#held.size <= this.#max) return null;
    for (const oldest of this.#held.keys()) if (oldest !== statement) return oldest;
    return null;
  }

  /** A Close is sent. */
  remove(statement: PreparedStatement, request = 0, skippable = false): void {
    this.#begin(statement, request, skippable);
    this.#held.delete(statement);
  }

  /** PostgreSQL did what was sent: it holds the statement now, or not. */
  complete(statement: PreparedStatement, held: boolean): void {
    const open = this.#open?.get(statement);
    if (open === undefined) return;
    open.answered = held;
    this.#settleOne(statement, open);
  }

  /** PostgreSQL refused or skipped what was sent. Closes that were skipped may leave more than the limit. */
  reject(statement: PreparedStatement): void {
    const open = this.#open?.get(statement);
    if (open !== undefined) this.#settleOne(statement, open);
  }

  /** The statement is not there. */
  delete(statement: PreparedStatement): void {
    const open = this.#open?.get(statement);
    if (open === undefined) this.#held.delete(statement);
    else open.answered = false;
  }

  /** None is there, but for what is on its way behind. */
  clear(): void {
    if (this.#open === null) return this.#held.clear();
    for (const open of this.#open.values()) open.answered = false;
    for (const statement of this.#held.keys()) if (!this.#open.has(statement)) this.#held.delete(statement);
  }

  /** Nothing is under way any more. */
  settle(): void {
    this.#open = null;
  }

  #begin(statement: PreparedStatement, request: number, skippable: boolean): void {
    this.#open ??= new Map();
    const open = this.#open.get(statement);
    if (open === undefined) {
      this.#open.set(statement, { answered: this.#held.has(statement), count: 1, request, skippable });
    } else {
      open.count++;
      open.request = request;
      open.skippable = skippable;
    }
  }

  #settleOne(statement: PreparedStatement, open: OpenStatement): void {
    open.count--;
    if (open.count > 0) return;
    this.#open?.delete(statement);
    if (!open.answered) this.#held.delete(statement);
    else if (!this.#held.has(statement)) this.#held.set(statement, true);
  }
}

const REGISTRY_MAX = 50_000;
const REGISTRY_CHARS_MAX = 64 * 1024 * 1024;
const SERVER_MAX = 65_536;
