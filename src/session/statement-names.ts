/**
 * A client's own names for prepared statements. A name is noted when its Parse or Close is sent, so that what comes
 * behind in a pipeline sees it; what PostgreSQL then answers says what the name stands for in the end. The empty
 * name is the unnamed statement, where that is mapped. It knows no messages and no server connection.
 *
 * Hot: looked up for every Bind.
 */
import type { PreparedStatement } from './prepared-statements.ts';

/** What a Parse or Close that is not answered yet makes of a name. */
export interface NameChange {
  readonly name: string;
  /** Null: the name stands for nothing. */
  readonly statement: PreparedStatement | null;
}

/** A name with changes that are not answered. */
interface OpenName {
  /** What it stands for as far as PostgreSQL has answered. */
  answered: PreparedStatement | null;
  /** Changes on their way. */
  count: number;
  /** The request of the last of them, and whether an error in front of it could skip it. */
  request: number;
  skippable: boolean;
}

/** Invariant: once nothing is under way, a name stands for what the answers said. */
export class StatementNames {
  /** The name in the last Bind or Describe. */
  lastName: string;
  /** Counts the client's Syncs: what stands between two of them is skipped together. */
  request: number;
  #unnamed: PreparedStatement | null;
  #named: Map<string, PreparedStatement> | null;
  #open: Map<string, OpenName> | null;

  constructor() {
    this.lastName = '';
    this.request = 0;
    this.#unnamed = null;
    this.#named = null;
    this.#open = null;
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

  /** What PostgreSQL has said already. */
  set(name: string, statement: PreparedStatement): void {
    this.#answer(name, statement);
  }

  delete(name: string): void {
    this.#answer(name, null);
  }

  /** Forgets every name; the unnamed statement stays, and so does what is on its way behind. */
  clear(): void {
    for (const [name, open] of this.#open ?? []) if (name !== '') open.answered = null;
    for (const name of this.#named?.keys() ?? []) if (!this.#open?.has(name)) this.#named?.delete(name);
  }

  // ---- changes on their way --------------------------------------------------------------------------------

  /** Notes a change whose answer is awaited. `skippable`: something in front of it in its request may fail. */
  change(name: string, statement: PreparedStatement | null, skippable: boolean): NameChange {
    this.#open ??= new Map();
    const open = this.#open.get(name);
    if (open === undefined) {
      this.#open.set(name, { answered: this.find(name), count: 1, request: this.request, skippable });
    } else {
      open.count++;
      open.request = this.request;
      open.skippable = skippable;
    }
    this.#put(name, statement);
    return { name, statement };
  }

  /** PostgreSQL did what was noted. */
  complete(change: NameChange): void {
    const open = this.#open?.get(change.name);
    if (open === undefined) return;
    open.answered = change.statement;
    this.#settleOne(change.name, open);
  }

  /** PostgreSQL did not; `dropped`: what was there before is gone all the same. */
  reject(change: NameChange, dropped: boolean): void {
    const open = this.#open?.get(change.name);
    if (open === undefined) return;
    if (dropped) open.answered = null;
    this.#settleOne(change.name, open);
  }

  /** True while any change of the name is on its way. */
  isOpen(name: string): boolean {
    return this.#open?.has(name) === true;
  }

  /**
   * What the name stands for is not known: an earlier request may not have changed it, because an error in front of
   * that skips it or, where its text is not in `proven`, because it is refused itself.
   */
  isInDoubt(name: string, proven: WeakSet<object>): boolean {
    const open = this.#open?.get(name);
    if (open === undefined || open.request === this.request) return false;
    const statement = this.find(name);
    return open.skippable || (statement !== null && (name === '' || !proven.has(statement)));
  }

  /** Whether the name is free is not known: an earlier request may have given it up or failed to take it. */
  mayBeTaken(name: string): boolean {
    const open = this.#open?.get(name);
    return open !== undefined && open.request !== this.request && (open.skippable || this.has(name));
  }

  /** Nothing is under way any more. */
  settle(): void {
    this.#open = null;
  }

  /** What the client calls the statement: the last name it used, if it is that, or any. */
  nameOf(statement: PreparedStatement): string {
    if (this.find(this.lastName) === statement) return this.lastName;
    // Another request is on its way already: any name of the statement is better than ours.
    let found = this.lastName;
    for (const [name, other] of this.#named ?? []) if (other === statement) found = name;
    return found;
  }

  #answer(name: string, statement: PreparedStatement | null): void {
    const open = this.#open?.get(name);
    if (open === undefined) this.#put(name, statement);
    else open.answered = statement;
  }

  #settleOne(name: string, open: OpenName): void {
    open.count--;
    if (open.count > 0) return;
    this.#open?.delete(name);
    this.#put(name, open.answered);
  }

  #put(name: string, statement: PreparedStatement | null): void {
    if (name === '') {
      this.#unnamed = statement;
    } else if (statement === null) {
      this.#named?.delete(name);
    } else {
      this.#named ??= new Map();
      this.#named.set(name, statement);
    }
  }
}

/** Names of one client; also of what is noted beside them. */
export const NAMES_MAX: number = 65_536;
