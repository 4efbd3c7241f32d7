/**
 * All that decides about tokens in one process: the issuers with their keys, the verifier, the list of revocations, the
 * ids that were used. Owns the one timer that keeps keys and lists young. It judges tokens and facts, not roles.
 */

import type { TokenFacts } from './identity.ts';
import { JwksSource } from './jwks-source.ts';
import type { KeySource } from './key-source.ts';
import { flatKeyPlace, type KeySourceListeners, openKeySource } from './open-key-source.ts';
import { NO_REVOCATIONS, RevocationFile, type RevocationList } from './revocations.ts';
import { TokenRejected } from './token-rejected.ts';
import {
  databaseAudiences,
  findInsecureReasons,
  type TokenConfig,
  type TokenRules,
  tokenRulesOf,
} from './token-rules.ts';
import { type TokenEntry, TokenVerifier, type VerifiedToken } from './token-verifier.ts';
import { UsedTokenIds } from './used-token-ids.ts';

/** How often it is asked what is due; a file is looked at once a second, a key set when its time has come. */
const POLL_INTERVAL_MS = 500;

export interface TokenListeners extends KeySourceListeners {
  onRevocations?: (list: RevocationList) => void;
  /** The changed revocation file cannot be used; the old list stays in force. */
  onRevocationFault?: (message: string) => void;
}

/** What has become of a token that let somebody in. */
export type TokenStanding = 'good' | 'revoked' | 'key_removed' | 'issuer_removed';

export class TokenAuthority {
  readonly #config: TokenConfig;
  readonly #entries: readonly TokenEntry[];
  readonly #verifier: TokenVerifier;
  readonly #usedIds = new UsedTokenIds();
  readonly #listeners: (() => void)[] = [];
  #revocations: RevocationFile | null = null;
  #timer: NodeJS.Timeout | null = null;

  /**
   * Opens every key source and the revocation file, and begins to fetch what is fetched. Throws `KeyFileFault` for an
   * unfit file and `RangeError` for what no configuration check lets through. `stop` ends it.
   */
  static async open(config: TokenConfig, listeners: TokenListeners = {}): Promise<TokenAuthority> {
    const changed: { tell: () => void } = { tell: () => undefined };
    const watched = watching(listeners, () => changed.tell());
    const rules = tokenRulesOf(config);
    const entries: TokenEntry[] = [];
    for (const entry of rules) {
      const row = config.issuers.find((candidate) => candidate.issuer === entry.source);
      const place = row === undefined ? flatKeyPlace(config) : { ...row, source: row.issuer };
      entries.push({ rules: entry, keys: await openKeySource(place, config, watched) });
    }
    const authority = new TokenAuthority(config, entries);
    const { revocationFile } = config.turnstile;
    if (revocationFile !== null) {
      authority.#revocations = await RevocationFile.open({
        path: revocationFile,
        onFault: listeners.onRevocationFault,
        onLoad: (list) => {
          listeners.onRevocations?.(list);
          changed.tell();
        },
      });
    }
    changed.tell = () => {
      for (const listener of authority.#listeners) listener();
    };
    authority.#start();
    return authority;
  }

  private constructor(config: TokenConfig, entries: readonly TokenEntry[]) {
    this.#config = config;
    this.#entries = entries;
    this.#verifier = new TokenVerifier({
      entries,
      databaseAudiences: databaseAudiences(config),
      judge: (verified, rules, nowMs) => this.#judge(verified, rules, nowMs),
    });
  }

  /**
   * Verifies a token as of `nowMs` (milliseconds since the epoch). `mayCheck` is asked just before a signature is
   * checked; false refuses the token as `overloaded`. Rejects with `TokenRejected` and nothing else.
   */
  verify(token: string, nowMs: number, mayCheck?: () => boolean): Promise<VerifiedToken> {
    return this.#verifier.verify(token, nowMs, mayCheck);
  }

  /** What `verify` would say, where it has nothing to wait for; else null. Throws `TokenRejected`. */
  recall(token: string, nowMs: number): VerifiedToken | null {
    return this.#verifier.recall(token, nowMs);
  }

  /** True when the token's signature is remembered: to verify it again costs next to nothing. */
  isVerified(token: string, nowMs: number): boolean {
    return this.#verifier.isVerified(token, nowMs);
  }

  /** Tokens under verification or waiting for it. */
  get load(): number {
    return this.#verifier.load;
  }

  /** Whether facts that were verified once, also by another authority, would be still, but for the clock. */
  standing(facts: TokenFacts): TokenStanding {
    const entry = this.#entries.find(({ rules }) => rules.source === facts.source);
    if (entry === undefined || (entry.rules.issuer !== null && entry.rules.issuer !== facts.issuer)) {
      return 'issuer_removed';
    }
    if (this.#list.has(facts)) return 'revoked';
    return entry.keys.holds(facts.keyId, facts.keyFingerprint ?? null) ? 'good' : 'key_removed';
  }

  /** Calls the listener whenever revocations or keys have changed, so that `standing` may say something else. */
  onChange(listener: () => void): void {
    this.#listeners.push(listener);
  }

  /** What is open in this configuration: `any_issuer`, `any_audience`, `any_database`, `unverified_email`. */
  insecureReasons(): string[] {
    return findInsecureReasons(this.#config);
  }

  /** Looks at the files and refreshes the key sets that are due. The timer calls it; never rejects. */
  async poll(): Promise<void> {
    const polls = this.#entries.map(({ keys }) => keys.poll());
    await Promise.all([...polls, this.#revocations?.poll()]);
  }

  /** Ends the timer and the requests under way. */
  stop(): void {
    if (this.#timer !== null) clearInterval(this.#timer);
    this.#timer = null;
    this.#listeners.length = 0;
    for (const source of this.#fetching()) source.stop();
  }

  get #list(): RevocationList {
    return this.#revocations?.list ?? NO_REVOCATIONS;
  }

  #start(): void {
    for (const source of this.#fetching()) void source.warm();
    this.#timer = setInterval(() => void this.poll(), POLL_INTERVAL_MS);
    this.#timer.unref();
  }

  #fetching(): JwksSource[] {
    return this.#entries.map(({ keys }) => keys).filter((keys: KeySource) => keys instanceof JwksSource);
  }

  #judge(verified: VerifiedToken, rules: TokenRules, nowMs: number): void {
    const { facts, claims } = verified;
    if (this.#list.has(facts)) throw new TokenRejected('revoked');
    if (!rules.singleUseJti) return;
    const untilMs = facts.expiresAtMs + rules.leewaySeconds * 1_000;
    const iss = typeof claims['iss'] === 'string' ? claims['iss'] : null;
    const outcome = this.#usedIds.use(iss, String(claims['jti']), untilMs, nowMs);
    if (outcome === 'used') throw new TokenRejected('jti_used');
    if (outcome === 'full') throw new TokenRejected('jti_store_full', 'overloaded');
  }
}

/** The listeners, with a word to ourselves whenever keys are others than before. */
function watching(listeners: TokenListeners, changed: () => void): KeySourceListeners {
  return {
    ...(listeners.onFileFault && { onFileFault: listeners.onFileFault }),
    onFileLoaded: (issuer, description, skipped) => {
      listeners.onFileLoaded?.(issuer, description, skipped);
      changed();
    },
    onJwksEvent: (issuer, event) => {
      listeners.onJwksEvent?.(issuer, event);
      if (event.type === 'loaded' && event.changed) changed();
    },
  };
}
