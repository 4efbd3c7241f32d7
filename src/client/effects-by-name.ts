/**
 * What the statements behind a client's own names do to the session, where PostgreSQL keeps the names: portals, and
 * named statements that are not mapped. Most do nothing, and then nothing is kept.
 *
 * Hot: looked at for every Bind and Execute; no string is made while nothing is kept.
 */
import { NAMES_MAX } from '../session/statement-names.ts';
import { NO_EFFECTS, type StatementEffects } from '../sql/statement.ts';
import { UNKNOWN_EFFECTS } from './session-effects.ts';

/** Invariant: a name that is not kept stands for a statement without effects, unless some name found no room. */
export class EffectsByName {
  #byName: Map<string, StatementEffects> | null;
  #overflowed: boolean;

  constructor() {
    this.#byName = null;
    this.#overflowed = false;
  }

  /** `buffer[start, end)` is the name from here on. */
  note(buffer: Buffer, start: number, end: number, effects: StatementEffects): void {
    if (effects.plain && this.#byName === null) return;
    this.#byName ??= new Map();
    const name = buffer.toString('latin1', start, end);
    if (effects.plain) this.#byName.delete(name);
    else if (this.#byName.size < NAMES_MAX || this.#byName.has(name)) this.#byName.set(name, effects);
    else this.#overflowed = true;
  }

  /** The effects behind a name; where names found no room, an unknown one may have done anything. */
  find(buffer: Buffer, start: number, end: number): StatementEffects {
    if (this.#byName === null) return NO_EFFECTS;
    const known = this.#byName.get(buffer.toString('latin1', start, end));
    return known ?? (this.#overflowed ? UNKNOWN_EFFECTS : NO_EFFECTS);
  }

  clear(): void {
    this.#byName = null;
    this.#overflowed = false;
  }
}
