/**
 * The queue that makes a pooler right: one entry for every frontend message that PostgreSQL answers, in the
 * order they were sent, saying which answer ends it, who owns that answer, and what to do with it. Injected
 * statements, faked completions and pipelines are all entries of this queue.
 *
 * Hot. Parallel rings, no object per entry. It knows no socket and no client, only opaque owners.
 */

/** What was sent, and thereby which backend message ends the entry. */
export const PendingKind = {
  /** Simple Query: everything up to ReadyForQuery. */
  Query: 1,
  /** FunctionCall: everything up to ReadyForQuery. */
  FunctionCall: 2,
  /** Sync: ReadyForQuery. */
  Sync: 3,
  /** A Sync that PostgreSQL may have swallowed while it read COPY data: its ReadyForQuery may never come. */
  MaybeSync: 4,
  /** Parse: ParseComplete. */
  Parse: 5,
  /** Bind: BindComplete. */
  Bind: 6,
  /** Describe: RowDescription or NoData. */
  Describe: 7,
  /** Execute: CommandComplete, EmptyQueryResponse or PortalSuspended. */
  Execute: 8,
  /** Close: CloseComplete. */
  Close: 9,
  /** Nothing was sent: `data` holds the bytes that the owner gets when the entry reaches the head. */
  Fake: 10,
  /** CopyDone or CopyFail: marks the place, no answer of its own. From `Fake` on nothing is awaited. */
  CopyEnd: 11,
} as const;
export type PendingKind = (typeof PendingKind)[keyof typeof PendingKind];

/** What becomes of the answer. */
export const PendingAction = {
  /** It is the owner's. */
  Forward: 0,
  /** Part of the owner's request, but ours: success is swallowed, an error is the owner's. */
  Quiet: 1,
  /** A batch of our own: `data` is the batch, nothing reaches a client. */
  Own: 2,
} as const;
export type PendingAction = (typeof PendingAction)[keyof typeof PendingAction];

/**
 * Invariant: the entries between two that end in ReadyForQuery belong to one owner and one request.
 */
export class PendingResponses<Owner, Data> {
  #kinds = new Uint8Array(INITIAL);
  #actions = new Uint8Array(INITIAL);
  #owners: (Owner | null)[] = new Array<Owner | null>(INITIAL).fill(null);
  #data: (Data | null)[] = new Array<Data | null>(INITIAL).fill(null);
  #head = 0;
  #length = 0;
  #mask = INITIAL - 1;

  get length(): number {
    return this.#length;
  }

  push(kind: PendingKind, action: PendingAction, owner: Owner | null, data: Data | null): void {
    if (this.#length > this.#mask) this.#grow();
    const at = (this.#head + this.#length) & this.#mask;
    this.#kinds[at] = kind;
    this.#actions[at] = action;
    this.#owners[at] = owner;
    this.#data[at] = data;
    this.#length++;
  }

  /** Kind of the oldest entry; 0 when the queue is empty. */
  get kind(): PendingKind | 0 {
    return this.#length === 0 ? 0 : (this.#kinds[this.#head] as PendingKind);
  }

  get action(): PendingAction {
    return this.#actions[this.#head] as PendingAction;
  }

  get owner(): Owner | null {
    return this.#length === 0 ? null : (this.#owners[this.#head] as Owner | null);
  }

  get data(): Data | null {
    return this.#length === 0 ? null : (this.#data[this.#head] as Data | null);
  }

  /** Puts an entry in front of the oldest. */
  unshift(kind: PendingKind, action: PendingAction, owner: Owner | null, data: Data | null): void {
    if (this.#length > this.#mask) this.#grow();
    this.#head = (this.#head - 1) & this.#mask;
    this.#kinds[this.#head] = kind;
    this.#actions[this.#head] = action;
    this.#owners[this.#head] = owner;
    this.#data[this.#head] = data;
    this.#length++;
  }

  /** Takes the oldest entry away. */
  pop(): void {
    this.#owners[this.#head] = null;
    this.#data[this.#head] = null;
    this.#head = (this.#head + 1) & this.#mask;
    this.#length--;
  }

  kindAt(index: number): PendingKind {
    return this.#kinds[(this.#head + index) & this.#mask] as PendingKind;
  }

  actionAt(index: number): PendingAction {
    return this.#actions[(this.#head + index) & this.#mask] as PendingAction;
  }

  ownerAt(index: number): Owner | null {
    return this.#owners[(this.#head + index) & this.#mask] as Owner | null;
  }

  dataAt(index: number): Data | null {
    return this.#data[(this.#head + index) & this.#mask] as Data | null;
  }

  setKindAt(index: number, kind: PendingKind): void {
    this.#kinds[(this.#head + index) & this.#mask] = kind;
  }

  /** True when some entry is a client's, not ours. */
  hasOwner(owner: Owner): boolean {
    for (let index = 0; index < this.#length; index++) if (this.ownerAt(index) === owner) return true;
    return false;
  }

  /** True when PostgreSQL owes the owner a ReadyForQuery. */
  owesReady(owner: Owner): boolean {
    for (let index = 0; index < this.#length; index++) {
      if (this.kindAt(index) <= PendingKind.Sync && this.ownerAt(index) === owner) return true;
    }
    return false;
  }

  clear(): void {
    while (this.#length > 0) this.pop();
  }

  #grow(): void {
    const size = (this.#mask + 1) * 2;
    const kinds = new Uint8Array(size);
    const actions = new Uint8Array(size);
    const owners = new Array<Owner | null>(size).fill(null);
    const data = new Array<Data | null>(size).fill(null);
    for (let index = 0; index < this.#length; index++) {
      kinds[index] = this.kindAt(index);
      actions[index] = this.actionAt(index);
      owners[index] = this.ownerAt(index);
      data[index] = this.dataAt(index);
    }
    this.#kinds = kinds;
    this.#actions = actions;
    this.#owners = owners;
    this.#data = data;
    this.#head = 0;
    this.#mask = size - 1;
  }
}

const INITIAL = 16;
