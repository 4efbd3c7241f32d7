/**
 * What a statement text does to the state of a session, as one frozen value, and the builder that collects it.
 * It owns no rule about SQL; the scan and the tree walk decide what goes in.
 */

/** The effects of one text (a Query string or the text of a Parse). Frozen, shared and cached: compare, never change. */
export interface StatementEffects {
  /** Nothing below but `statementCount` is set. */
  readonly plain: boolean;
  /** Why a session in set_role mode must not run it (SQLSTATE 42501); null when nothing speaks against it. */
  readonly escape: { readonly message: string } | null;
  /** The part of that which no session with a token may run, whatever its backend identity: claims are not its own. */
  readonly claimEscape: { readonly message: string } | null;
  /** Why a read-only session must not run it: it could write behind it. PostgreSQL itself refuses plain writes. */
  readonly widens: { readonly message: string } | null;
  /**
   * The settings that a session-level SET, RESET or set_config(…, false) may change, in lower case, without the
   * ones that end with their transaction (transaction_isolation and its kin) and without role and
   * session_authorization, which are pins.
   */
  readonly settings: readonly string[];
  /** The settings that go back to the session's default: RESET name and SET name TO DEFAULT. */
  readonly resets: readonly string[];
  /** RESET ALL. */
  readonly resetsAll: boolean;
  /** DISCARD ALL. */
  readonly discardsAll: boolean;
  /** Any SET, RESET or set_config: values may differ until the transaction ends. */
  readonly touchesLocalSettings: boolean;
  /** A setting changes of which the text does not tell the name or the scope; also SET SEED and setseed(). */
  readonly unknownSettings: boolean;
  /** State that stays on its server connection, as short reasons; empty when there is none. */
  readonly pins: readonly string[];
  /** The names in DEALLOCATE name. */
  readonly deallocates: readonly string[];
  readonly deallocatesAll: boolean;
  /** Statements in the text, separated by semicolons; 0 for an empty text. Approximate when `unparsed`. */
  readonly statementCount: number;
  /** For a text of one statement: it begins or ends a transaction. COMMIT AND CHAIN is neither. */
  readonly transaction: 'begin' | 'end' | null;
  /** Some statement begins or ends a transaction, or moves between its savepoints. */
  readonly hasTransactionControl: boolean;
  /** COPY … FROM STDIN: PostgreSQL will read data from the client before it reads a request again. */
  readonly copiesIn: boolean;
  /** It runs or defines code that the text does not show: DO, CALL, EXECUTE, CREATE FUNCTION, unknown functions. */
  readonly opaque: boolean;
  /** PostgreSQL's parser refused it or it was too large or too deep to ask; then the rest errs on the side of effects. */
  readonly unparsed: boolean;
  /** It names the setting that brings a new access token; null for every other text. Not kept in any cache. */
  readonly token: TokenStatement | null;
}

/** What a text wants with `turnstile.token`: hand over a token, by its text or by $1, or something that is refused. */
export type TokenStatement =
  | { readonly kind: 'value'; readonly token: string }
  | { readonly kind: 'parameter' }
  | { readonly kind: 'refused'; readonly message: string };

const NOTHING: StatementEffects = {
  plain: true,
  escape: null,
  claimEscape: null,
  widens: null,
  settings: Object.freeze([]),
  resets: Object.freeze([]),
  resetsAll: false,
  discardsAll: false,
  touchesLocalSettings: false,
  unknownSettings: false,
  pins: Object.freeze([]),
  deallocates: Object.freeze([]),
  deallocatesAll: false,
  statementCount: 1,
  transaction: null,
  hasTransactionControl: false,
  copiesIn: false,
  opaque: false,
  unparsed: false,
  token: null,
};

/** One statement that only reads or writes data: by far the most common answer. */
export const NO_EFFECTS: StatementEffects = Object.freeze({ ...NOTHING });
/** One statement that calls a function of which nothing is known. */
export const OPAQUE_EFFECTS: StatementEffects = Object.freeze({ ...NOTHING, plain: false, opaque: true });
/** BEGIN alone. */
export const BEGIN_EFFECTS: StatementEffects = Object.freeze({
  ...NOTHING,
  plain: false,
  transaction: 'begin',
  hasTransactionControl: true,
});
/** COMMIT, END, ROLLBACK or ABORT alone. */
export const END_EFFECTS: StatementEffects = Object.freeze({
  ...NOTHING,
  plain: false,
  transaction: 'end',
  hasTransactionControl: true,
});

const COUNTED_MAX = 16;
const PLAIN_BY_COUNT: readonly StatementEffects[] = byCount(NO_EFFECTS);
const OPAQUE_BY_COUNT: readonly StatementEffects[] = byCount(OPAQUE_EFFECTS);

function byCount(effects: StatementEffects): StatementEffects[] {
  return Array.from({ length: COUNTED_MAX + 1 }, (_, statementCount) =>
    statementCount === 1 ? effects : Object.freeze({ ...effects, statementCount }),
  );
}

/** `count` statements that only read or write data, with or without unknown functions. */
export function dataEffects(count: number, opaque: boolean): StatementEffects {
  const shared = (opaque ? OPAQUE_BY_COUNT : PLAIN_BY_COUNT)[count];
  return shared ?? Object.freeze({ ...(opaque ? OPAQUE_EFFECTS : NO_EFFECTS), statementCount: count });
}

const UNSEEN_MESSAGE =
  'functions and transaction control cannot be mixed in one string of a read-only session';

/** Collects effects; `finish` freezes them and gives the shared constants where nothing was found. */
export class EffectsBuilder {
  resetsAll = false;
  discardsAll = false;
  touchesLocalSettings = false;
  unknownSettings = false;
  deallocatesAll = false;
  transaction: 'begin' | 'end' | null = null;
  hasTransactionControl = false;
  copiesIn = false;
  opaque = false;
  unparsed = false;
  #escape: string | null = null;
  #claimEscape: string | null = null;
  #widens: string | null = null;
  readonly #settings = new Set<string>();
  readonly #resets = new Set<string>();
  readonly #pins = new Set<string>();
  readonly #deallocates = new Set<string>();

  /** The claims or the reading of texts could change. The first reason found is the one the client is told. */
  escape(message: string): void {
    this.#escape ??= message;
    this.#claimEscape ??= message;
  }

  /** Only the role could change. */
  escapeRole(message: string): void {
    this.#escape ??= message;
  }

  /** Read-only access could become more. */
  widen(message: string): void {
    this.#widens ??= message;
  }

  setting(name: string): void {
    this.#settings.add(name);
  }

  /** `name` goes back to the session's default. */
  reset(name: string): void {
    this.#resets.add(name);
  }

  pin(reason: string): void {
    this.#pins.add(reason);
  }

  deallocate(name: string): void {
    this.#deallocates.add(name);
  }

  finish(statementCount: number): StatementEffects {
    const transaction = statementCount === 1 ? this.transaction : null;
    // Code that nobody sees may change what the next transaction is, which begins in the same string.
    if (statementCount > 1 && this.opaque && this.hasTransactionControl) this.widen(UNSEEN_MESSAGE);
    const nothing =
      this.#escape === null &&
      this.#widens === null &&
      this.#settings.size + this.#pins.size + this.#deallocates.size === 0 &&
      !(this.resetsAll || this.discardsAll || this.touchesLocalSettings || this.unknownSettings) &&
      !(this.deallocatesAll || this.hasTransactionControl || this.copiesIn || this.unparsed);
    if (nothing) return dataEffects(statementCount, this.opaque);
    return Object.freeze({
      plain: false,
      escape: this.#escape === null ? null : Object.freeze({ message: this.#escape }),
      claimEscape: this.#claimEscape === null ? null : Object.freeze({ message: this.#claimEscape }),
      widens: this.#widens === null ? null : Object.freeze({ message: this.#widens }),
      settings: Object.freeze([...this.#settings]),
      resets: Object.freeze([...this.#resets]),
      resetsAll: this.resetsAll,
      discardsAll: this.discardsAll,
      touchesLocalSettings: this.touchesLocalSettings,
      unknownSettings: this.unknownSettings,
      pins: Object.freeze([...this.#pins]),
      deallocates: Object.freeze([...this.#deallocates]),
      deallocatesAll: this.deallocatesAll,
      statementCount,
      transaction,
      hasTransactionControl: this.hasTransactionControl,
      copiesIn: this.copiesIn,
      opaque: this.opaque,
      unparsed: this.unparsed,
      token: null,
    });
  }
}
