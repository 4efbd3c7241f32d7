/**
 * A client's own names for prepared statements, and the undo of changes that PostgreSQL then refused or skipped: a
 * name is noted when its Parse or Close is sent, and taken back when the answer is an error. The empty name is the
 * unnamed statement, where that is mapped. It knows no messages and no server connection.
 *
 * Hot: looked up for every Bind.
 */
import type { PreparedStatement } from './prepared-statements.ts';

/** What a Parse or Close changed, so that it can be taken back. */
export interface NameChange {
  readonly name: string;
  readonly statement: PreparedStatement;
  /** What the name stood for before; null: for nothing. */
  readonly restore: PreparedStatement | null;
}

/** Invariant: a name is taken back once in a request, to what it stood for before the first change of it. */
export class StatementNames {
  /** The name in the last Bind or Describe. */
  lastName: string;
  #unnamed: PreparedStatement | null;
  #named: Map<string, PreparedStatement> | null;
  /** Names that an error gave back their old meaning, until its request is over. */
  #takenBack: Set<string> | null;

  constructor() {
    this.lastName = '';
    this.#unnamed = null;
    this.#named = null;
    this.#takenBack = null;
  }

  /** How many statements have a name; the unnamed one does not count. */
  get size(): number {
    return this.#named === null ? 0 : this.#named.size;
  }

  /** No further name is taken. */
  get full(): boolean {
    return this.size >= NAMES_MAX;
  }

  find(name: string): PreparedStatement | null {
    if (name === '') return this.#unnamed;
    return this.#named?.get(name) ?? null;
  }

  has(name: string): boolean {
    return this.#named?.has(name) === true;
  }

  set(name: string, statement: PreparedStatement): void {
    if (name === '') {
      this.#unnamed = statement;
      return;
    }
    this.#named ??= new Map();
    this.#named.set(name, statement);
  }

  delete(name: string): void {
    if (name === '') this.#unnamed = null;
    else this.#named?.delete(name);
  }

  /** Forgets every name; the unnamed statement stays. */
  clear(): void {
    this.#named?.clear();
  }

  /** Of several changes of one name that are taken back together, the first knows what was there before. */
  takeBack(change: NameChange): void {
    if (this.#takenBack?.has(change.name) === true) return;
    this.#takenBack ??= new Set();
    this.#takenBack.add(change.name);
    if (change.restore === null) this.delete(change.name);
    else this.set(change.name, change.restore);
  }

  /** The request is over: what is changed from here on is another story. */
  settle(): void {
    this.#takenBack = null;
  }

  /** What the client calls the statement: the last name it used, if it is that, or any. */
  nameOf(statement: PreparedStatement): string {
    if (this.find(this.lastName) === statement) return this.lastName;
    // Another request is on its way already: any name of the statement is better than ours.
    let found = this.lastName;
    for (const [name, other] of this.#named ?? []) if (other === statement) found = name;
    return found;
  }
}

/** Names of one client; also of what is noted beside them. */
export const NAMES_MAX: number = 65_536;
